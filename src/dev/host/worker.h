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
	uint32_t version; /* of guest memory, that this is */
	uint32_t rested;  /* the last with no request outstanding; atomic */
	struct moat_chain chain; /* scratch */
	uint32_t calls;		 /* of moat_worker_signal(); odd while in one */
	uint32_t calls_seen;	 /* by moat_workers_watch() */
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
 * moat_worker_signal() - signal an eventfd that a peer has, too
 *
 * O_NONBLOCK belongs to the open file, which the peer shares: it can take it
 * off and fill the counter, and our write sleeps. The control thread watches
 * over it and ends it with a signal: not by a timer of this thread, for a
 * signal would end system calls of the device's as well.
 *
 * Return: 0, or -EINTR if it slept.
 */
int moat_worker_signal(struct moat_worker *w, int fd);

/**
 * moat_workers_watch() - end writes that sleep; the control thread's
 *
 * Return: milliseconds until it is due again, -1 if it is not until a worker
 * wakes us.
 */
int moat_workers_watch(struct moat_device *d);

/** moat_workers_watch_init() - before any worker starts; a negative errno */
int moat_workers_watch_init(void);

/**
 * moat_workers_adopt() - all use @mem from now on, and nothing else
 *
 * Return: 0, or -EFAULT if a running queue's ring is not in it: nothing touches
 * that queue any more, and the session has to end.
 */
int moat_workers_adopt(struct moat_device *d, struct moat_vu_memory *mem);

#endif
