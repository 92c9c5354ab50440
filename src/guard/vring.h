/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control of one queue: what the VMM has said of it so far, and from that its
 * two rings, its memory and its place in the data plane.
 *
 *     stopped --kick, with size and addresses set--> started
 *     started --GET_VRING_BASE, reset, end of session--> stopped
 *
 * Messages edit the configuration of a stopped queue; the data plane is built
 * from it whole, at the start, or not at all. Only fds, enabling and the
 * mapping of guest RAM change while it runs. A started queue is either relayed
 * (relayed.h) or direct (direct.h).
 */
#ifndef MOAT_GUARD_VRING_H
#define MOAT_GUARD_VRING_H

#include <stdbool.h>
#include <stdint.h>

#include "guard/runner.h"
#include "vu/memory.h"

struct moat_session;

struct moat_vring_ctl {
	uint32_t index;
	struct moat_session *session;

	/* as the VMM set it */
	uint32_t num;
	uint32_t base;
	bool has_addr;
	struct moat_vu_vring_addr addr;
	int kick_fd, call_fd, err_fd;
	bool enabled;

	/* while started */
	bool started;
	bool direct; /* no part of what follows is in use */
	struct moat_runner_queue rq;
	struct moat_run ring_run; /* the backend's ring, in the pool */
	int back_call_fd;	  /* the backend calls us on it */
	void *storage;
	bool told;    /* the driver knows that the queue is broken */
	bool drained; /* it was, and takes no new requests */
};

/**
 * moat_vring_tell_backend() - all that starts a queue there, in QEMU's order
 * @addr: ring addresses for the backend
 * @err_fd: -1 for none
 */
int moat_vring_tell_backend(struct moat_vring_ctl *v,
			    const struct moat_vu_vring_addr *addr, uint32_t num,
			    uint32_t base, int kick_fd, int call_fd,
			    int err_fd);

/** moat_vring_new() - a stopped queue; NULL without memory */
struct moat_vring_ctl *moat_vring_new(struct moat_session *s, uint32_t index);
void moat_vring_free(struct moat_vring_ctl *v);

/**
 * moat_vring_start() - start it, relayed or direct as the share mode says
 *
 * Return: 0, or a negative errno, logged, with the queue stopped.
 */
int moat_vring_start(struct moat_vring_ctl *v);

/**
 * moat_vring_stop() - let requests finish, take the queue from the backend
 *
 * Leaves the next avail index in @v->base. Safe if it is stopped already.
 *
 * Return: 0, or a negative errno if the backend did not answer; the queue is
 * stopped in any case.
 */
int moat_vring_stop(struct moat_vring_ctl *v);

/**
 * moat_vring_drain() - take no new requests, let those under way finish
 *
 * As moat_vring_stop() does, but nothing is lost if the backend is.
 *
 * Return: 0, or -EPIPE if the backend is gone.
 */
int moat_vring_drain(struct moat_vring_ctl *v);

/** moat_vring_enable() - let requests through, or not; tells the backend */
int moat_vring_enable(struct moat_vring_ctl *v, bool enable);

/**
 * moat_vring_remap() - guest RAM changed: find the guest's ring again
 *
 * Return: 0, or a negative errno: the ring is gone, and nothing touches it
 * from now on; the session has to end.
 */
int moat_vring_remap(struct moat_vring_ctl *v);

/** moat_vring_set_kick_fd() - replace it, also while started */
int moat_vring_set_kick_fd(struct moat_vring_ctl *v, int *fd);
/** moat_vring_set_call_fd() - replace it, also while started */
int moat_vring_set_call_fd(struct moat_vring_ctl *v, int *fd);
/** moat_vring_set_err_fd() - replace it, also while started */
int moat_vring_set_err_fd(struct moat_vring_ctl *v, int *fd);

#endif
