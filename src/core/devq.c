/* SPDX-License-Identifier: Apache-2.0 */
#include "core/devq.h"

void moat_devq_init(struct moat_devq *q, const struct moat_vring *ring,
		    void *storage, uint32_t base, bool event_idx, bool indirect)
{
	*q = (struct moat_devq){
		.ring = *ring,
		.outstanding = storage,
		.event_idx = event_idx,
		.indirect = indirect,
	};
	if (ring->packed) {
		moat_devq_packed_init(q, base);
		return;
	}
	q->avail_seen = q->avail_next = (uint16_t)base;
	q->used_next = moat_shm_load16(moat_used_idx(ring));
}

uint32_t moat_devq_base(const struct moat_devq *q)
{
	if (q->ring.packed)
		return (uint32_t)q->used_next << 16 | q->avail_next;
	return q->avail_next;
}
