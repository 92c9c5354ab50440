/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The harness behind moat/device.h.
 *
 *     control thread   service -> session: messages, memory, configuration
 *     worker threads   worker -> queue: rings, requests, notifications
 *
 * A queue's configuration is the control thread's. All else of it is its
 * worker's, and changes only in commands that the control thread sends to the
 * worker and waits for (worker.h). Memory that goes away is unmapped only after
 * every worker has adopted a map without it, with no request outstanding.
 */
#ifndef MOAT_DEV_HOST_H
#define MOAT_DEV_HOST_H

#include <moat/device.h>

#include "core/devq.h"
#include "dev/host/inflight.h"
#include "dev/host/memory.h"
#include "dev/host/shmem.h"
#include "os/log.h"
#include "os/loop.h"
#include "vu/server.h"

struct moat_worker;

/* Pieces of guest memory that a request holds without memory of its own. */
#define MOAT_HOST_IOV 8u

/** struct moat_slot - a request, by the head of its chain */
struct moat_slot {
	struct moat_request req;
	struct iovec iov[MOAT_HOST_IOV];
	struct iovec *spill; /* for longer chains; kept */
	uint32_t spill_n;
	bool busy;
};

struct moat_queue {
	uint32_t index;
	struct moat_device *device;
	struct moat_worker *worker;

	/* configuration: the control thread's */
	uint32_t num, base;
	bool has_addr, enabled, started;
	struct moat_vu_vring_addr addr;
	int kick_fd, call_fd, err_fd;

	/* running: the worker's */
	bool running, serving, said_broken;
	bool call_blocks; /* nobody can be called on it */
	struct moat_devq devq;
	struct moat_source kick;
	struct moat_inflight_queue inflight;
	uint8_t *storage;
	uint8_t *slots;
	size_t slot_size;
	uint32_t outstanding;
	uint32_t npushed;	/* requests of the batch being made */
	const char *broken_why; /* from moat_request_broken() */
};

struct moat_device {
	const struct moat_device_config *config;
	struct moat_log *log;
	struct moat_loop loop;
	struct moat_queue *queues;
	struct moat_worker **workers;
	uint32_t nworkers;

	/* one VMM's time with us */
	struct moat_vu_server server;
	struct moat_source server_src;
	struct moat_host_shmem shmem; /* and the channel for our requests */
	struct moat_host_memory mem;
	struct moat_inflight inflight;
	uint64_t accepted;
	uint64_t status;
	bool config_changed; /* not told yet */
	bool over;	     /* the session is */
	int end;	     /* why: 0 or a negative errno */
	uint64_t pages_lost; /* of os/cutoff.h, as far as it was said */

	/* written by workers, with an eventfd to wake us */
	bool broken;  /* a queue broke */
	bool watched; /* moat_workers_watch() is called while workers signal */
	struct moat_source wake_src;
	uint64_t watch_at_ns;
};

/** moat_session_begin() - serve the VMM on @fd, which is ours from now on */
int moat_session_begin(struct moat_device *d, int fd);
/** moat_session_finish() - stop queues, forget the VMM */
void moat_session_finish(struct moat_device *d);

/** moat_queue_start() - from its configuration; logged if it fails */
int moat_queue_start(struct moat_queue *q);
/** moat_queue_stop() - let requests finish; leaves the index in @q->base */
void moat_queue_stop(struct moat_queue *q);
/**
 * moat_queue_update() - its worker adopts fds and enabling while it runs
 *
 * Return: 0, or a negative errno, logged, if it can not wait on the kick fd.
 */
int moat_queue_update(struct moat_queue *q);

/* On the worker's thread: */

/** moat_queue_serve() - take requests; true if there were any */
bool moat_queue_serve(struct moat_queue *q);
/** moat_queue_publish() - let the driver see what is done; true if anything */
bool moat_queue_publish(struct moat_queue *q);

/** moat_queue_remap() - find the ring in @mem; else the queue is broken */
int moat_queue_remap(struct moat_queue *q, struct moat_vu_memory *mem);

#endif
