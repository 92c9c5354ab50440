/* SPDX-License-Identifier: Apache-2.0 */
/* The device side of a split virtqueue (virtio 1.4, 2.7). */
#include "core/devq.h"

static bool is_outstanding(const struct moat_devq *q, uint16_t head)
{
	return q->outstanding[head / 8] >> (head % 8) & 1;
}

static void set_outstanding(struct moat_devq *q, uint16_t head, bool on)
{
	uint8_t bit = (uint8_t)(1u << (head % 8));

	if (on)
		q->outstanding[head / 8] |= bit;
	else
		q->outstanding[head / 8] &= (uint8_t)~bit;
}

/* Look for new entries; false if there are none or the index is absurd. */
static bool refresh(struct moat_devq *q)
{
	uint16_t idx, n;

	if (q->avail_seen != q->avail_next)
		return true;
	idx = moat_shm_load16_acquire(moat_avail_idx(&q->ring));
	n = (uint16_t)(idx - q->avail_next);
	if (n > q->ring.num) {
		moat_fault_set(&q->fault, MOAT_FAULT_AVAIL_JUMP, n,
			       q->ring.num);
		return false;
	}
	q->avail_seen = idx;
	return n != 0;
}

/* The chain of a head that is to be taken; 0, or -1 with the queue broken. */
static int walk_head(struct moat_devq *q, struct moat_memmap *map,
		     uint16_t head, struct moat_chain *chain)
{
	if (head >= q->ring.num)
		return moat_fault_set(&q->fault, MOAT_FAULT_HEAD_RANGE, head,
				      q->ring.num - 1u);
	if (is_outstanding(q, head))
		return moat_fault_set(&q->fault, MOAT_FAULT_HEAD_TWICE, head,
				      0);
	return moat_chain_walk(map, &q->ring, head, q->indirect, chain,
			       &q->fault);
}

int moat_devq_split_peek(struct moat_devq *q, struct moat_memmap *map,
			 struct moat_chain *chain)
{
	uint16_t head;

	if (!refresh(q))
		return q->fault.code ? -1 : 0;
	head = moat_shm_load16(moat_avail_ring(
		&q->ring, q->avail_next & (uint16_t)(q->ring.num - 1)));
	return walk_head(q, map, head, chain) ? -1 : 1;
}

int moat_devq_resume(struct moat_devq *q, struct moat_memmap *map,
		     uint16_t head, struct moat_chain *chain)
{
	/* In-flight records of a packed ring name buffer ids, not heads. */
	if (q->fault.code || q->ring.packed || walk_head(q, map, head, chain))
		return -1;
	set_outstanding(q, head, true);
	return 0;
}

void moat_devq_split_take(struct moat_devq *q, uint16_t head)
{
	set_outstanding(q, head, true);
	q->avail_next++;
}

uint16_t moat_devq_split_rewind(struct moat_devq *q, uint16_t n)
{
	uint16_t done = 0, mask = (uint16_t)(q->ring.num - 1);

	/* The entries are the driver's: a changed one is its own loss. */
	while (!q->fault.code && done < n) {
		uint16_t at = (uint16_t)(q->avail_next - 1) & mask;
		uint16_t head = moat_shm_load16(moat_avail_ring(&q->ring, at));

		if (head >= q->ring.num || !is_outstanding(q, head))
			break;
		set_outstanding(q, head, false);
		q->avail_next--;
		done++;
	}
	q->avail_seen = q->avail_next;
	return done;
}

void moat_devq_split_push(struct moat_devq *q, uint16_t head, uint32_t len)
{
	uint8_t *e;

	set_outstanding(q, head, false);
	e = moat_used_ring(&q->ring,
			   q->used_next & (uint16_t)(q->ring.num - 1));
	moat_shm_store32(e, head);
	moat_shm_store32(e + 4, len);
	q->used_next++;
}

bool moat_devq_split_publish(struct moat_devq *q)
{
	uint16_t old = q->used_signalled;
	bool valid = q->signalled_valid;

	moat_shm_store16_release(moat_used_idx(&q->ring), q->used_next);
	/* The index must be out before we look whether anybody waits for it. */
	moat_shm_full_barrier();
	if (!q->event_idx)
		return !(moat_shm_load16(moat_avail_flags(&q->ring)) &
			 MOAT_AVAIL_F_NO_INTERRUPT);
	q->used_signalled = q->used_next;
	q->signalled_valid = true;
	return !valid ||
	       moat_vring_need_event(moat_shm_load16(moat_used_event(&q->ring)),
				     q->used_next, old);
}

void moat_devq_split_notify_off(struct moat_devq *q)
{
	/* With EVENT_IDX a stale avail_event already says so (2.7.10). */
	if (!q->event_idx)
		moat_shm_store16(moat_used_flags(&q->ring),
				 MOAT_USED_F_NO_NOTIFY);
}

void moat_devq_split_notify_on(struct moat_devq *q)
{
	if (q->event_idx)
		moat_shm_store16(moat_avail_event(&q->ring), q->avail_next);
	else
		moat_shm_store16(moat_used_flags(&q->ring), 0);
}
