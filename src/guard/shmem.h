/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared memory regions: files of the backend's that the guest may see.
 *
 *     backend --SHMEM_MAP, fd--> checks --SHMEM_MAP, fd--> VMM
 *     backend <--answer--------- table <---answer--------- VMM
 *
 * Nothing of the guest's goes the other way: what is mapped is the backend's
 * own. But a mapping is the VMM's: its fd, its address space, its crash if the
 * message came at a wrong time. So each is checked here, and only what is legal
 * now is passed on.
 *
 * The VMM is asked one thing at a time, and nobody waits for its answer: the
 * data plane goes on, and the backend's channel is left alone meanwhile. The
 * VMM may be waiting for the guard, the guard for the backend, and the backend
 * for the VMM: then the backend is told EINTR, and what the VMM does about the
 * request nevertheless is undone.
 */
#ifndef MOAT_GUARD_SHMEM_H
#define MOAT_GUARD_SHMEM_H

#include <stdbool.h>
#include <stdint.h>

#include "os/loop.h"
#include "vu/shmem.h"

struct moat_session;

/* All regions together: the VMM makes a window of the guest's address space. */
#define MOAT_SHMEM_BYTES_MAX (UINT64_C(1) << 40)
/* Each mapping is an fd and a mapping of the VMM, and often a memory slot: QEMU
 * 11.1 aborts with more than 512, its RAM's and other devices' included. */
#define MOAT_SHMEM_MAPPINGS_DEFAULT 480u
#define MOAT_SHMEM_MAPPINGS_MAX 16384u

struct moat_guard_shmem {
	struct moat_vu_shmem table;
	bool stopping;	   /* the VMM stops queues: nothing is legal ... */
	uint64_t again_ns; /* ... until then, if it does not go on; 0: at all */
	/* what the VMM was asked; 0: nothing */
	uint32_t asked;
	struct moat_vu_mmap what;
	bool fenced; /* answered, and then asked whether it can be seen */
	bool owed;   /* its answer is the backend's ... */
	bool wanted; /* ... who asked for one */
	uint64_t end_ns;
	struct moat_source answer_src;
	/* what it asked for, while orphans are unmapped for it; 0: nothing */
	uint32_t then_asks;
	struct moat_vu_mmap then;
	int then_fd;   /* to map; else -1 */
	bool undo;     /* @what was mapped for nobody */
	uint32_t said; /* causes of refusals that are in the log */
};

/**
 * moat_guard_shmem_open() - what regions does the backend have?
 *
 * Return: 0 (perhaps with no regions, logged), or a negative errno.
 */
int moat_guard_shmem_open(struct moat_session *s);
void moat_guard_shmem_close(struct moat_session *s);

/**
 * moat_guard_shmem_reopen() - another backend: are its regions the same?
 *
 * Return: 0, or a negative errno, logged.
 */
int moat_guard_shmem_reopen(struct moat_session *s);

/**
 * moat_guard_shmem_lose() - the backend is gone; what it mapped is not
 *
 * Its mappings are orphans from now on: its successor does not know of them,
 * and the guest may be using them. They go when it maps over them, or unmaps
 * what lies in a place where it has mapped nothing.
 */
void moat_guard_shmem_lose(struct moat_session *s);

/** moat_guard_shmem_request() - for struct moat_vu_client */
int moat_guard_shmem_request(void *arg, uint32_t request,
			     const struct moat_vu_mmap *what, int *fd,
			     bool reply);
/** moat_guard_shmem_stalled() - for struct moat_vu_client */
void moat_guard_shmem_stalled(void *arg);

/** moat_guard_shmem_busy() - is the backend's next request to wait? */
static inline bool moat_guard_shmem_busy(const struct moat_guard_shmem *g)
{
	return g->asked && g->owed;
}

/** moat_guard_shmem_started() - a queue runs */
void moat_guard_shmem_started(struct moat_session *s);

/** moat_guard_shmem_stop() - the VMM is about to wait for queues to stop */
void moat_guard_shmem_stop(struct moat_session *s);

/**
 * moat_guard_shmem_disabled() - a queue that runs was disabled
 *
 * QEMU's stop begins with it, and then it may be too late for a request. But
 * drivers disable queues as well, and no stop follows.
 */
void moat_guard_shmem_disabled(struct moat_session *s);
/** moat_guard_shmem_enabled() - a queue that runs was enabled: it was no stop
 */
void moat_guard_shmem_enabled(struct moat_session *s);

/** moat_guard_shmem_undo() - unmap what nobody knows of, once that is legal */
void moat_guard_shmem_undo(struct moat_session *s);

/** moat_guard_shmem_hang_up() - the channel to the VMM ends */
void moat_guard_shmem_hang_up(struct moat_session *s);

/**
 * moat_guard_shmem_waited() - the VMM may have waited for us from @since to now
 *
 * That is no time in which it did not answer.
 */
void moat_guard_shmem_waited(struct moat_session *s, uint64_t since);

/** moat_guard_shmem_due() - when moat_guard_shmem_timers() has to come, or 0 */
uint64_t moat_guard_shmem_due(const struct moat_guard_shmem *g);

/** moat_guard_shmem_timers() - give up waiting for a VMM that is mute */
void moat_guard_shmem_timers(struct moat_session *s, uint64_t now);

#endif
