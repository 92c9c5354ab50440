/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A queue whose two legs end at the guard: a ring of its own in the pool for
 * the backend, and the data plane between the two.
 *
 * In the mode `hybrid` this is the same; only the DMA layer lets segments
 * inside the share set pass by reference.
 */
#ifndef MOAT_GUARD_RELAYED_H
#define MOAT_GUARD_RELAYED_H

#include "guard/vring.h"

/**
 * moat_relayed_start() - build the backend's leg, tell it, attach to the runner
 * @front: the guest's ring, found and checked
 *
 * Return: 0, or a negative errno, logged, with nothing held.
 */
int moat_relayed_start(struct moat_vring_ctl *v,
		       const struct moat_vring *front);

/**
 * moat_relayed_stop() - drain, take the ring from the backend, free
 *
 * Return: 0, or a negative errno if the backend did not answer; stopped anyway.
 */
int moat_relayed_stop(struct moat_vring_ctl *v);

/**
 * moat_relayed_drain() - take no new requests, and let those under way finish
 *
 * As long as the backend makes progress, and no longer than is bearable.
 */
void moat_relayed_drain(struct moat_vring_ctl *v);

/*
 * A queue whose session outlives its backend (restart.h):
 *
 *     lose ... renew (the pool is a fresh one) ... resume
 *
 * and lose again at any time.
 */

/** moat_relayed_lose() - the backend is gone: take what it had finished */
void moat_relayed_lose(struct moat_vring_ctl *v);

/** moat_relayed_renew() - an empty ring for the backend, where the old one was
 */
void moat_relayed_renew(struct moat_vring_ctl *v);

/**
 * moat_relayed_resume() - start the queue at the new backend
 *
 * Return: 0, or a negative errno; then lose it again.
 */
int moat_relayed_resume(struct moat_vring_ctl *v);

/** moat_relayed_fail() - after losing it: all requests fail from now on */
int moat_relayed_fail(struct moat_vring_ctl *v);

#endif
