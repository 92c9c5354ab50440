/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A queue that goes straight to the backend: its rings lie in the share set,
 * so the backend gets their (synthetic) addresses and the VMM's own eventfds.
 * The guard has no part in its data path.
 */
#ifndef MOAT_GUARD_DIRECT_H
#define MOAT_GUARD_DIRECT_H

#include <stdbool.h>
#include <stddef.h>

#include "guard/vring.h"

/**
 * moat_direct_possible() - could the queue go straight to the backend?
 * @why: set to the reason if not, of at most @size bytes
 */
bool moat_direct_possible(const struct moat_vring_ctl *v, char *why,
			  size_t size);

/** moat_direct_start() - tell the backend; 0 or a negative errno */
int moat_direct_start(struct moat_vring_ctl *v);

/** moat_direct_stop() - take the ring back; its base is left in @v->base */
int moat_direct_stop(struct moat_vring_ctl *v);

#endif
