/* SPDX-License-Identifier: Apache-2.0 */
/* The driver side of a split virtqueue (virtio 1.4, 2.7). */
#include <stddef.h>

#include "core/drvq.h"

static uint16_t seg_flags(uint32_t i, uint32_t nread, uint32_t n)
{
	return (uint16_t)((i + 1 < n ? MOAT_DESC_F_NEXT : 0) |
			  (i >= nread ? MOAT_DESC_F_WRITE : 0));
}

static void fill_table(void *table, const struct moat_seg *segs, uint32_t nread,
		       uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		moat_vring_desc_store(table, i,
				      (struct moat_vring_desc){
					      .addr = segs[i].addr,
					      .len = segs[i].len,
					      .flags = seg_flags(i, nread, n),
					      .next = (uint16_t)(i + 1),
				      });
}

static void fill_ring(struct moat_drvq *q, uint16_t head,
		      const struct moat_seg *segs, uint32_t nread, uint32_t n)
{
	uint16_t d = head;

	for (uint32_t i = 0; i < n; i++) {
		uint16_t next = i + 1 < n ? moat_drvq_take_free(q) : 0;

		q->descs[d].next = next;
		moat_vring_desc_store(q->ring.desc, d,
				      (struct moat_vring_desc){
					      .addr = segs[i].addr,
					      .len = segs[i].len,
					      .flags = seg_flags(i, nread, n),
					      .next = next,
				      });
		d = next;
	}
}

void moat_drvq_split_add(struct moat_drvq *q, uint16_t head,
			 const struct moat_seg *segs, uint32_t nread,
			 uint32_t n, void *table, uint64_t table_addr)
{
	if (table) {
		fill_table(table, segs, nread, n);
		moat_vring_desc_store(q->ring.desc, head,
				      (struct moat_vring_desc){
					      .addr = table_addr,
					      .len = 16 * n,
					      .flags = MOAT_DESC_F_INDIRECT,
				      });
	} else {
		fill_ring(q, head, segs, nread, n);
	}
	moat_shm_store16(moat_avail_ring(&q->ring,
					 q->avail_next &
						 (uint16_t)(q->ring.num - 1)),
			 head);
	q->avail_next++;
}

bool moat_drvq_split_publish(struct moat_drvq *q)
{
	uint16_t old = q->avail_published;

	moat_shm_store16_release(moat_avail_idx(&q->ring), q->avail_next);
	q->avail_published = q->avail_next;
	moat_shm_full_barrier();
	if (q->event_idx)
		return moat_vring_need_event(
			moat_shm_load16(moat_avail_event(&q->ring)),
			q->avail_next, old);
	return !(moat_shm_load16(moat_used_flags(&q->ring)) &
		 MOAT_USED_F_NO_NOTIFY);
}

/* Give the descriptors of the chain at @head back to the free list. */
static void release(struct moat_drvq *q, uint16_t head)
{
	uint16_t n = q->descs[head].ndesc, last = head;

	for (uint16_t i = 1; i < n; i++)
		last = q->descs[last].next;
	q->descs[last].next = q->free_head;
	q->free_head = head;
	q->num_free = (uint16_t)(q->num_free + n);
	q->descs[head].ndesc = 0;
	q->outstanding--;
}

static bool refresh(struct moat_drvq *q)
{
	uint16_t idx, n;

	if (q->used_seen != q->used_next)
		return true;
	idx = moat_shm_load16_acquire(moat_used_idx(&q->ring));
	n = (uint16_t)(idx - q->used_next);
	if (n > q->outstanding) {
		moat_fault_set(&q->fault, MOAT_FAULT_USED_JUMP, n,
			       q->outstanding);
		return false;
	}
	q->used_seen = idx;
	return n != 0;
}

int moat_drvq_split_get(struct moat_drvq *q, uint32_t *cookie, uint32_t *len)
{
	struct moat_drvq_desc *d;
	const uint8_t *e;
	uint32_t id, n;

	if (!refresh(q))
		return q->fault.code ? -1 : 0;
	e = moat_used_ring(&q->ring,
			   q->used_next & (uint16_t)(q->ring.num - 1));
	id = moat_shm_load32(e);
	n = moat_shm_load32(e + 4);
	if (id >= q->ring.num)
		return moat_fault_set(&q->fault, MOAT_FAULT_USED_RANGE, id,
				      q->ring.num - 1u);
	d = &q->descs[id];
	if (!d->ndesc)
		return moat_fault_set(&q->fault, MOAT_FAULT_USED_UNKNOWN, id,
				      0);
	*cookie = d->cookie;
	*len = n < d->write_len ? n : d->write_len;
	release(q, (uint16_t)id);
	q->used_next++;
	return 1;
}

void moat_drvq_split_notify_off(struct moat_drvq *q)
{
	if (!q->event_idx)
		moat_shm_store16(moat_avail_flags(&q->ring),
				 MOAT_AVAIL_F_NO_INTERRUPT);
}

void moat_drvq_split_notify_on(struct moat_drvq *q)
{
	if (q->event_idx)
		moat_shm_store16(moat_used_event(&q->ring), q->used_next);
	else
		moat_shm_store16(moat_avail_flags(&q->ring), 0);
}
