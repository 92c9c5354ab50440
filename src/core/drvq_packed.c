/* SPDX-License-Identifier: Apache-2.0 */
/* The driver side of a packed virtqueue (virtio 1.4, 2.8). */
#include "core/drvq.h"

/* virtio 1.4, 2.8.7: of the flags only WRITE means something in a table. */
static void fill_table(uint8_t *table, const struct moat_seg *segs,
		       uint32_t nread, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		uint8_t *p = table + (size_t)i * 16;

		moat_shm_store64(p, segs[i].addr);
		moat_shm_store64(p + 8,
				 moat_packed_word(segs[i].len, 0,
						  i >= nread ? MOAT_DESC_F_WRITE
							     : 0));
	}
}

/*
 * Write a descriptor of the ring. The first since the last publication is only
 * prepared: the device takes descriptors in order, so it sees none of the batch
 * until that one is written too.
 */
static void put(struct moat_drvq *q, uint16_t pos, uint64_t addr, uint32_t len,
		uint16_t id, uint32_t flags)
{
	uint8_t *p = moat_packed_at(&q->ring, pos);
	uint64_t word = moat_packed_word(
		len, id, (uint16_t)(flags | moat_packed_avail_bits(pos)));

	moat_shm_store64(p, addr);
	if (pos == q->avail_published)
		q->held = word;
	else
		moat_shm_store64(p + 8, word);
}

void moat_drvq_packed_add(struct moat_drvq *q, uint16_t head,
			  const struct moat_seg *segs, uint32_t nread,
			  uint32_t n, void *table, uint64_t table_addr)
{
	uint16_t pos = q->avail_next, num = q->ring.num, nth = q->order_next;

	if (table) {
		fill_table(table, segs, nread, n);
		put(q, pos, table_addr, 16 * n, head, MOAT_DESC_F_INDIRECT);
		pos = moat_packed_advance(pos, 1, num);
	} else {
		for (uint32_t i = 0; i < n; i++) {
			put(q, pos, segs[i].addr, segs[i].len, head,
			    (i + 1 < n ? MOAT_DESC_F_NEXT : 0) |
				    (i >= nread ? MOAT_DESC_F_WRITE : 0));
			pos = moat_packed_advance(pos, 1, num);
		}
	}
	q->avail_next = pos;
	q->descs[nth].order = head;
	q->descs[head].nth = nth;
	q->order_next = nth + 1u < num ? (uint16_t)(nth + 1u) : 0;
}

bool moat_drvq_packed_publish(struct moat_drvq *q)
{
	uint16_t old = q->avail_published;
	struct moat_packed_event e;

	moat_shm_store64_release(moat_packed_at(&q->ring, old) + 8, q->held);
	q->avail_published = q->avail_next;
	moat_shm_full_barrier();
	e = moat_packed_event_load(q->ring.used);
	if (e.flags == MOAT_EVENT_DESC && q->event_idx)
		return moat_packed_passed(e.pos, old, q->avail_next,
					  q->ring.num);
	if (e.flags > MOAT_EVENT_DISABLE)
		return moat_fault_set(&q->fault, MOAT_FAULT_DEVICE_EVENT,
				      e.flags, MOAT_EVENT_DISABLE),
		       false;
	return e.flags == MOAT_EVENT_ENABLE;
}

int moat_drvq_packed_get(struct moat_drvq *q, uint32_t *cookie, uint32_t *len)
{
	const uint8_t *p = moat_packed_at(&q->ring, q->used_next);
	uint64_t word = moat_shm_load64_acquire(p + 8);
	uint16_t id = (uint16_t)(word >> 32), flags = (uint16_t)(word >> 48);
	struct moat_drvq_desc *d;

	if (!moat_packed_is_used(flags, q->used_next))
		return 0;
	if (id >= q->ring.num)
		return moat_fault_set(&q->fault, MOAT_FAULT_USED_RANGE, id,
				      q->ring.num - 1u);
	d = &q->descs[id];
	if (!d->ndesc)
		return moat_fault_set(&q->fault, MOAT_FAULT_USED_UNKNOWN, id,
				      0);
	*cookie = d->cookie;
	/* Without WRITE the length is reserved (2.8.4). */
	*len = flags & MOAT_DESC_F_WRITE ? (uint32_t)word : 0;
	if (*len > d->write_len)
		*len = d->write_len;
	/* The next used one stands where the list that follows began. */
	q->used_next = moat_packed_advance(q->used_next, d->ndesc, q->ring.num);
	q->num_free = (uint16_t)(q->num_free + d->ndesc);
	q->outstanding--;
	d->ndesc = 0;
	d->next = q->free_head;
	q->free_head = id;
	return 1;
}

void moat_drvq_packed_notify_off(struct moat_drvq *q)
{
	moat_packed_event_store(q->ring.avail, 0, MOAT_EVENT_DISABLE);
}

void moat_drvq_packed_notify_on(struct moat_drvq *q)
{
	if (q->event_idx)
		moat_packed_event_store(q->ring.avail, q->used_next,
					MOAT_EVENT_DESC);
	else
		moat_packed_event_store(q->ring.avail, 0, MOAT_EVENT_ENABLE);
}

/*
 * Only the avail half of the base is looked at: the used half, which some
 * backends leave out, is known better here.
 */
uint16_t moat_drvq_packed_untaken(const struct moat_drvq *q, uint32_t base)
{
	uint16_t num = q->ring.num, at = q->order_next, n = 0;
	uint32_t left = moat_packed_idx((uint16_t)base) < num
				? moat_packed_distance((uint16_t)base,
						       q->avail_published, num)
				: 0;

	if (left > (uint32_t)num - q->num_free)
		return 0;
	while (left) {
		const struct moat_drvq_desc *d;

		at = (uint16_t)((at ? at : num) - 1);
		d = &q->descs[q->descs[at].order];
		/* This one was given back, and maybe added again since. */
		if (!d->ndesc || d->nth != at)
			return n;
		/* A base inside a list. */
		if (d->ndesc > left)
			return 0;
		left -= d->ndesc;
		n++;
	}
	return n;
}
