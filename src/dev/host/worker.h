/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker: a thread that serves some of a device's queues.
 *
 *     busy:  commands, requests of each queue in turn, the device's
 *            completions, publish; then look again for a while
 *     idle:  notifications on, asleep until a kick, the device or a command
 *
 * The control thread changes what a worker works with by commands alone. A
 * command may ask that its queue (or all of the worker's) have no request
 * outstanding: until then none is taken from there, and the others go on.
 */
#ifndef MOAT_DEV_WORKER_H
#define MOAT_DEV_WORKER_H

#include <pthread.h>

#include "dev/host/host.h"
#include "os/window.h"

struct moat_command {
	int (*run)(struct moat_queue *q, void *arg);
	struct moat_queue *queue; /* NULL: of all of them */
	bool quiet; /* only once they have no request outstanding */
	void *arg;
	int ret;
	bool done;
};

struct moat_worker {
	struct moat_device *device;
	uint32_t index;
	pthread_t thread;
	struct moat_loop loop;
	struct moat_source wake; /* an eventfd: there is a command */
	struct moat_source done; /* the device's fd */
	void *context;		 /* the device's */
	bool begun;		 /* the device has set it */
	struct moat_window window;
	/* its own copy of guest memory: lookups keep state */
	struct moat_memmap map;
	struct moat_region regions[MOAT_VU_MEMORY_MAX];
	struct moat_chain chain; /* scratch */
	/* between control and worker */
	pthread_mutex_t lock;
	pthread_cond_t answered;
	struct moat_command *command;
	bool stop;
};

/**
 * moat_worker_start() - with its thread, the device's part included
 *
 * Return: 0 with *@worker set, or a negative errno, logged.
 */
int moat_worker_start(struct moat_device *d, uint32_t index,
		      struct moat_worker **worker);

/** moat_worker_stop() - end and free it; no queue of it is started */
void moat_worker_stop(struct moat_worker *w);

/** moat_worker_call() - run a command there and wait; returns what it does */
int moat_worker_call(struct moat_worker *w, struct moat_queue *q, bool quiet,
		     int (*run)(struct moat_queue *q, void *arg), void *arg);

/**
 * moat_workers_adopt() - all use @mem from now on, and nothing else
 *
 * Return: 0, or -EFAULT if a running queue's ring is not in it: nothing touches
 * that queue any more, and the session has to end.
 */
int moat_workers_adopt(struct moat_device *d, struct moat_vu_memory *mem);

#endif
