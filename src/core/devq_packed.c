/* SPDX-License-Identifier: Apache-2.0 */
/* The device side of a packed virtqueue (virtio 1.4, 2.8). */
#include "core/devq.h"

static uint16_t *order(const struct moat_devq *q)
{
	return q->ndesc + q->ring.num;
}

/*
 * Some front-ends fill in the avail half of a new ring's base only, as some
 * backends do when they give it: then nothing is in flight.
 */
static uint16_t used_half(uint32_t base)
{
	uint16_t avail = (uint16_t)base, used = (uint16_t)(base >> 16);

	return !used && avail & MOAT_PACKED_WRAP ? avail : used;
}

void moat_devq_packed_init(struct moat_devq *q, uint32_t base)
{
	uint16_t num = q->ring.num;

	/*
	 * Some front-ends know no wrap counters and start a new ring at 0. In a
	 * ring that has got there, the lap before has left AVAIL set.
	 */
	if (!base && !(moat_packed_flags_load(&q->ring, 0) & MOAT_DESC_F_LAP))
		base = MOAT_PACKED_START;
	q->avail_next = (uint16_t)base;
	q->used_next = used_half(base);
	q->inuse = (uint16_t)moat_packed_distance(q->used_next, q->avail_next,
						  num);
	if (moat_packed_idx(q->avail_next) >= num ||
	    moat_packed_idx(q->used_next) >= num || q->inuse > num)
		moat_fault_set(&q->fault, MOAT_FAULT_BASE, base, num);
}

int moat_devq_packed_peek(struct moat_devq *q, struct moat_memmap *map,
			  struct moat_chain *chain)
{
	int n = moat_chain_walk_packed(map, &q->ring, q->avail_next,
				       (uint32_t)q->ring.num - q->inuse,
				       q->indirect, chain, &q->fault);

	if (n <= 0)
		return n;
	if (q->ndesc[chain->head])
		return moat_fault_set(&q->fault, MOAT_FAULT_ID_TWICE,
				      chain->head, 0);
	q->peeked = (uint16_t)n;
	return 1;
}

void moat_devq_packed_take(struct moat_devq *q, uint16_t head)
{
	q->ndesc[head] = q->peeked;
	q->inuse = (uint16_t)(q->inuse + q->peeked);
	q->avail_next =
		moat_packed_advance(q->avail_next, q->peeked, q->ring.num);
	order(q)[q->order_next] = head;
	q->order_next = (uint16_t)(q->order_next + 1u);
	if (q->order_next == q->ring.num)
		q->order_next = 0;
}

int moat_devq_resume_copy(struct moat_devq *q, struct moat_memmap *map,
			  const struct moat_packed_desc *desc, uint32_t n,
			  struct moat_chain *chain)
{
	if (q->fault.code)
		return -1;
	if (n > (uint32_t)q->ring.num - q->inuse)
		return moat_fault_set(&q->fault, MOAT_FAULT_AVAIL_OVER, n,
				      (uint32_t)q->ring.num - q->inuse);
	if (moat_chain_walk_copy(map, q->ring.num, desc, n, q->indirect, chain,
				 &q->fault))
		return -1;
	if (q->ndesc[chain->head])
		return moat_fault_set(&q->fault, MOAT_FAULT_ID_TWICE,
				      chain->head, 0);
	q->peeked = (uint16_t)n;
	moat_devq_packed_take(q, chain->head);
	return 0;
}

void moat_devq_take_back(const struct moat_vring *ring, uint16_t pos,
			 uint32_t n)
{
	for (; n; n--, pos = moat_packed_advance(pos, 1, ring->num))
		if (moat_packed_is_used(moat_packed_flags_load(ring, pos), pos))
			moat_shm_store16(moat_packed_at(ring, pos) + 14,
					 moat_packed_avail_bits(pos));
}

uint16_t moat_devq_packed_rewind(struct moat_devq *q, uint16_t n)
{
	uint16_t done = 0;

	while (!q->fault.code && done < n) {
		uint16_t at = q->order_next ? q->order_next : q->ring.num;
		uint16_t head = order(q)[--at];
		uint16_t ndesc = q->ndesc[head];

		if (!ndesc)
			break;
		q->ndesc[head] = 0;
		q->inuse = (uint16_t)(q->inuse - ndesc);
		q->avail_next =
			moat_packed_retreat(q->avail_next, ndesc, q->ring.num);
		q->order_next = at;
		done++;
	}
	return done;
}

/*
 * The driver looks at one place only, the next used descriptor (2.8.2): a whole
 * batch stays unseen for as long as the first of it is held back. Each takes as
 * many places as its list did, and fills the first of them.
 */
void moat_devq_packed_push(struct moat_devq *q, uint16_t head, uint32_t len)
{
	/* Without WRITE the length is reserved (2.8.4). */
	uint16_t flags = (uint16_t)(moat_packed_used_bits(q->used_next) |
				    (len ? MOAT_DESC_F_WRITE : 0));
	uint64_t word = moat_packed_word(len, head, flags);

	if (q->holds) {
		moat_shm_store64(moat_packed_at(&q->ring, q->used_next) + 8,
				 word);
	} else {
		q->held = word;
		q->held_at = q->used_next;
		q->holds = true;
	}
	q->used_next =
		moat_packed_advance(q->used_next, q->ndesc[head], q->ring.num);
	q->inuse = (uint16_t)(q->inuse - q->ndesc[head]);
	q->ndesc[head] = 0;
}

bool moat_devq_packed_publish(struct moat_devq *q)
{
	struct moat_packed_event e;
	uint16_t old = q->used_signalled;
	bool valid = q->signalled_valid;

	if (!q->holds)
		return false;
	moat_shm_store64_release(moat_packed_at(&q->ring, q->held_at) + 8,
				 q->held);
	q->holds = false;
	q->used_signalled = q->used_next;
	q->signalled_valid = true;
	/* They must be out before we look whether anybody waits for them. */
	moat_shm_full_barrier();
	e = moat_packed_event_load(q->ring.avail);
	if (e.flags == MOAT_EVENT_DESC && q->event_idx)
		return !valid || moat_packed_passed(e.pos, old, q->used_next,
						    q->ring.num);
	if (e.flags > MOAT_EVENT_DISABLE)
		return moat_fault_set(&q->fault, MOAT_FAULT_DRIVER_EVENT,
				      e.flags, MOAT_EVENT_DISABLE),
		       false;
	return e.flags == MOAT_EVENT_ENABLE;
}

void moat_devq_packed_notify_off(struct moat_devq *q)
{
	moat_packed_event_store(q->ring.used, 0, MOAT_EVENT_DISABLE);
}

void moat_devq_packed_notify_on(struct moat_devq *q)
{
	if (q->event_idx)
		moat_packed_event_store(q->ring.used, q->avail_next,
					MOAT_EVENT_DESC);
	else
		moat_packed_event_store(q->ring.used, 0, MOAT_EVENT_ENABLE);
}
