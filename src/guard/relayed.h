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

#endif
