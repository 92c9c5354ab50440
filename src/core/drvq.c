/* SPDX-License-Identifier: Apache-2.0 */
#include <stddef.h>

#include "core/drvq.h"

void moat_drvq_init(struct moat_drvq *q, const struct moat_vring *ring,
		    struct moat_drvq_desc *descs, bool event_idx, bool indirect)
{
	uint16_t start = ring->packed ? MOAT_PACKED_START : 0;

	*q = (struct moat_drvq){
		.ring = *ring,
		.descs = descs,
		.num_free = ring->num,
		.avail_next = start,
		.avail_published = start,
		.used_next = start,
		.event_idx = event_idx,
		.indirect = indirect,
	};
	for (uint16_t i = 0; i < ring->num; i++)
		descs[i] = (struct moat_drvq_desc){
			.next = (uint16_t)(i + 1u),
		};
}

bool moat_drvq_wants_table(const struct moat_drvq *q, uint32_t nsegs)
{
	uint32_t spare = (uint32_t)(q->ring.num - q->outstanding) - 1;

	return q->indirect && nsegs > 1 && q->num_free < nsegs + spare;
}

bool moat_drvq_room(const struct moat_drvq *q, uint32_t nsegs)
{
	/* Even a request without a segment takes one descriptor. */
	if (!nsegs || moat_drvq_wants_table(q, nsegs))
		nsegs = 1;
	return !q->fault.code && q->outstanding < q->ring.num &&
	       q->num_free >= nsegs;
}

void moat_drvq_add(struct moat_drvq *q, const struct moat_seg *segs,
		   uint32_t nread, uint32_t nwrite, uint32_t cookie,
		   void *table, uint64_t table_addr)
{
	static const struct moat_seg nothing;
	uint32_t n = nread + nwrite;
	uint16_t head = moat_drvq_take_free(q);
	struct moat_drvq_desc *d = &q->descs[head];
	uint64_t write_len = 0;

	/*
	 * A chain of nothing but zero-length descriptors is legal and has no
	 * segments: it is posted as one such descriptor. Else the device would
	 * find whatever stood in the ring before.
	 */
	if (!n) {
		segs = &nothing;
		nread = n = 1;
		table = NULL;
	}
	for (uint32_t i = nread; i < n; i++)
		write_len += segs[i].len;
	d->write_len =
		write_len < UINT32_MAX ? (uint32_t)write_len : UINT32_MAX;
	d->cookie = cookie;
	d->ndesc = (uint16_t)(table ? 1 : n);
	q->num_free = (uint16_t)(q->num_free - d->ndesc);
	q->outstanding++;
	if (q->ring.packed)
		moat_drvq_packed_add(q, head, segs, nread, n, table,
				     table_addr);
	else
		moat_drvq_split_add(q, head, segs, nread, n, table, table_addr);
}

uint32_t moat_drvq_base(const struct moat_drvq *q)
{
	if (q->ring.packed)
		return (uint32_t)q->used_next << 16 | q->avail_published;
	return q->avail_published;
}

uint16_t moat_drvq_untaken(const struct moat_drvq *q, uint32_t base)
{
	uint16_t n;

	if (q->ring.packed)
		return moat_drvq_packed_untaken(q, base);
	n = (uint16_t)(q->avail_published - (uint16_t)base);
	return n > q->outstanding ? 0 : n;
}
