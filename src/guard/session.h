/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One VMM's time with one device: from its connection to its end.
 *
 *     VMM <--server--> session <--client--> backend       control
 *     guest RAM <----> runner  <----> pool                data
 *
 * The session owns everything that belongs to this time: both connections,
 * the mappings of guest RAM, a pool of its own (a fresh memfd, so that nothing
 * of one VM reaches the backend of the next) and the queues. When it ends all
 * of it goes, whoever caused the end.
 *
 * States and what is legal in them:
 *     OPEN     the backend is connected and has been asked what it is
 *     SERVING  a VMM is connected; messages of either side are handled
 *     ENDED    @end says why; only moat_session_stop() and _close()
 */
#ifndef MOAT_GUARD_SESSION_H
#define MOAT_GUARD_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "guard/memory.h"
#include "guard/policy.h"
#include "guard/restart.h"
#include "guard/runner.h"
#include "guard/shmem.h"
#include "os/log.h"
#include "os/mem.h"
#include "vu/client.h"
#include "vu/server.h"

/*
 * Where the pool and its rings are for the backend: no address of anybody. The
 * guest address is above what guests use, for shared memory keeps its own.
 */
#define MOAT_POOL_GUEST_ADDR (UINT64_C(1) << 46)
#define MOAT_POOL_USER_ADDR UINT64_C(0x700000000000)

struct moat_vring_ctl;

/** struct moat_session_config - what does not change from VMM to VMM */
struct moat_session_config {
	const struct moat_device_type *type;
	enum moat_share_mode share;
	const struct moat_dma_range *pools; /* the guest's own (--pool) */
	uint32_t npools;
	int udmabuf_fd;		 /* /dev/udmabuf; -1: not there */
	bool access_platform;	 /* offer it even where the guard bounces all */
	uint64_t pool_size;	 /* bytes, a multiple of MOAT_SLOT_SIZE */
	bool shmem;		 /* shared memory regions (--shmem) */
	uint32_t shmem_mappings; /* in them, at most */
	uint32_t poll_us;
	int abort_fd; /* readable: stop waiting for anybody */
	const struct moat_restart_ops *restart; /* NULL: off */
};

enum moat_session_end {
	MOAT_SESSION_RUNNING,
	MOAT_SESSION_VMM_LEFT,
	MOAT_SESSION_VMM_REFUSED, /* it sent something that can not stand */
	MOAT_SESSION_BACKEND_GONE,
	MOAT_SESSION_BACKEND_BROKEN, /* it broke the protocol, or stalls */
};

struct moat_session {
	const struct moat_session_config *config;
	struct moat_loop *loop;
	struct moat_log *log;
	enum moat_session_end end;
	bool orphan; /* it goes on without a backend: requests fail */

	struct moat_vu_server server;
	struct moat_vu_client client;
	struct moat_source server_src, client_src, channel_src;
	struct moat_vu_conn vmm_channel; /* our requests to the VMM */

	uint64_t offered;   /* virtio features, to the VMM */
	uint64_t accepted;  /* by the driver */
	uint64_t forwarded; /* to the backend */
	uint64_t protocol_offered;
	uint32_t max_vrings;
	uint64_t status;

	struct moat_guest_mem mem;
	struct moat_guard_shmem shmem;

	struct moat_pool_mem pool_mem;
	struct moat_pool pool;
	uint64_t *pool_bits;
	bool table_sent; /* the backend has a memory table ... */
	bool pool_sent;	 /* ... with our pool in it */
	bool share_sent; /* ... with the share set in it */
	struct moat_runner runner;
	struct moat_vring_ctl *vrings[MOAT_VU_VRINGS_MAX];

	uint64_t bytes_bounced, bytes_shared; /* by queues that have ended */
	uint64_t completed;		      /* requests, likewise */
	int mode_said; /* last choice logged: 1 direct (hybrid), 2 bounce */
	uint64_t pages_lost; /* of os/cutoff.h, as far as it was said */
	bool impatient; /* the backend kept requests when a queue stopped */
	/* Queues that are stopped one after another are waited for together. */
	uint64_t drain_end_ns, drained_ns;

	/* for the successor of a backend (restart.h) */
	uint32_t config_seen; /* bytes of config space that were read ... */
	uint8_t config_space[MOAT_VU_CONFIG_MAX];
	struct moat_vu_config config_set; /* what was written last */
	uint64_t replaced_at;		  /* requests completed at the last */

	bool config_changed;	  /* to be passed on when legal */
	uint64_t config_next_ns;  /* not before */
	uint64_t channel_next_ns; /* paused until; 0: not paused */
	uint32_t channel_tokens;
};

/**
 * moat_session_open() - meet the backend
 * @fd: connected to it; the session owns it from now on
 *
 * Return: 0, or a negative errno, logged: the backend is not usable. Either
 * way moat_session_close() has to follow.
 */
int moat_session_open(struct moat_session *s,
		      const struct moat_session_config *config,
		      struct moat_loop *loop, struct moat_log *log, int fd);

/** moat_session_serve() - a VMM has connected; @fd is the session's */
int moat_session_serve(struct moat_session *s, int fd);

/**
 * moat_session_step() - do what is due: the data plane's turn, and timers
 *
 * Return: milliseconds that the loop may wait before the next step; -1: any.
 */
int moat_session_step(struct moat_session *s);

/**
 * moat_session_hurry() - we were told to end
 *
 * The backend is still to see an orderly stop, but nobody waits long for it,
 * nor looks any more whether to give up waiting.
 */
void moat_session_hurry(struct moat_session *s);

/**
 * moat_session_send_table() - the backend's memory table, if it has to change
 * @pool: our pool has to be in it from now on: a relayed queue is to start
 * @share: the share set has to be in it from now on
 *
 * In mode `auto` the share set is not sent before a queue goes direct: a guest
 * that did not give the pool to this device keeps its own data there.
 */
int moat_session_send_table(struct moat_session *s, bool pool, bool share);

/** moat_session_has_enable() - does the backend know SET_VRING_ENABLE? */
bool moat_session_has_enable(const struct moat_session *s);

/* For the parts of a session, in other files: */

/** moat_session_finish() - the session is over; the first cause counts */
void moat_session_finish(struct moat_session *s, enum moat_session_end end);

/**
 * moat_session_from_backend() - pass on what a call of the backend returned
 *
 * A backend that can not be talked to any more ends the session.
 *
 * Return: @ret.
 */
int moat_session_from_backend(struct moat_session *s, int ret);

/** moat_session_meet() - the backend is at @fd, which is the session's */
void moat_session_meet(struct moat_session *s, int fd);

/** moat_session_negotiate() - as far as no VMM is needed for it */
int moat_session_negotiate(struct moat_session *s);

/** moat_session_watch_backend() - hear what it sends; 0 or a negative errno */
int moat_session_watch_backend(struct moat_session *s);
void moat_session_unwatch_backend(struct moat_session *s);

/** moat_session_any_started() - does any queue run? */
bool moat_session_any_started(const struct moat_session *s);

/** moat_session_stop() - stop all queues, as well as the backend lets us */
void moat_session_stop(struct moat_session *s);

/** moat_session_watch_channel() - the backend's requests are taken again */
void moat_session_watch_channel(struct moat_session *s);

/** moat_session_close_vmm_channel() - it gets no requests from us any more */
void moat_session_close_vmm_channel(struct moat_session *s);

/** moat_session_close() - stop the queues, close and free everything */
void moat_session_close(struct moat_session *s);

#endif
