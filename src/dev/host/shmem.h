/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device's requests to the front-end: shared memory, config changes.
 *
 *     any thread  moat_shmem_map() --SHMEM_MAP--> front-end
 *                 waits            <--answer-----
 *     control     moat_host_shmem_pause(), when it is about to wait for a
 *                 worker: the front-end may be waiting for the control thread,
 *                 and then answers nobody else
 *
 * One request at a time is under way. A wait that is given up leaves an answer
 * owed: whoever asks next takes it first, and undoes a mapping that nobody
 * knows of.
 */
#ifndef MOAT_DEV_SHMEM_H
#define MOAT_DEV_SHMEM_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "vu/conn.h"
#include "vu/shmem.h"

struct moat_device;

struct moat_host_shmem {
	pthread_mutex_t lock;	     /* of all that follows */
	pthread_cond_t left;	     /* nobody is inside any more */
	struct moat_vu_conn channel; /* of SET_BACKEND_REQ_FD; fd -1: none */
	struct moat_vu_shmem table;
	int wake_fd; /* eventfd: who waits has to look again */
	bool negotiated, running;
	bool fence;	       /* a mapping is waited for by one more request */
	bool inside;	       /* somebody asks and waits */
	uint32_t pauses;       /* of the control thread, which waits for us */
	uint64_t paused_at_ns; /* the first of these */
	uint32_t owed;	       /* a request whose answer nobody waits for */
	struct moat_vu_mmap owed_what;
};

/** moat_host_shmem_init() - regions as configured; 0 or a negative errno */
int moat_host_shmem_init(struct moat_device *d);
void moat_host_shmem_fini(struct moat_device *d);

/* On the control thread: */

/** moat_host_shmem_channel() - a new channel @fd, ours; -1: none any more */
void moat_host_shmem_channel(struct moat_device *d, int fd);

/** moat_host_shmem_has_channel() - is there one? */
bool moat_host_shmem_has_channel(struct moat_device *d);

/** moat_host_shmem_tell() - send a request without payload or answer */
int moat_host_shmem_tell(struct moat_device *d, uint32_t request);

/**
 * moat_host_shmem_running() - a queue runs; or one is about to be stopped
 *
 * While the front-end stops queues no mapping is legal, though some still run.
 */
void moat_host_shmem_running(struct moat_device *d, bool running);

/** moat_host_shmem_forget() - the front-end has left: nothing is mapped */
void moat_host_shmem_forget(struct moat_device *d);

/**
 * moat_host_shmem_pause() - the control thread is about to wait for a worker
 *
 * Who waits for the front-end has a moment left. Pauses nest.
 */
void moat_host_shmem_pause(struct moat_device *d);
void moat_host_shmem_resume(struct moat_device *d);

#endif
