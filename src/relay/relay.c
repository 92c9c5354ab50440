/* SPDX-License-Identifier: Apache-2.0 */
#include <stddef.h>

#include "relay/relay.h"

/* Mapping the request failed for good: the queue can not get past it. */
static void refuse(struct moat_relay *relay, struct moat_relay_queue *q)
{
	uint64_t limit =
		(uint64_t)moat_pool_limit(relay->dma.pool, &q->dma.share)
		<< MOAT_SLOT_SHIFT;

	moat_fault_set(&q->dev.fault, MOAT_FAULT_TOO_BIG, relay->mapped.need,
		       limit);
}

/* ---- requests that are kept, in the order in which they were taken ---- */

void moat_relay_keep(struct moat_relay_queue *q, struct moat_relay_order *order)
{
	uint16_t end = q->dev.ring.num;

	q->order = order;
	q->dma.keep = true;
	order[end].prev = order[end].next = q->replay = end;
}

static void order_add(struct moat_relay_queue *q, uint16_t head)
{
	uint16_t end = q->dev.ring.num;
	struct moat_relay_order *o = q->order;

	if (!o)
		return;
	o[head] = (struct moat_relay_order){ o[end].prev, end };
	o[o[end].prev].next = head;
	o[end].prev = head;
}

static void order_del(struct moat_relay_queue *q, uint16_t head)
{
	struct moat_relay_order *o = q->order;

	if (!o)
		return;
	o[o[head].prev].next = o[head].next;
	o[o[head].next].prev = o[head].prev;
}

/* How many there are from @head on. */
static uint16_t order_count(const struct moat_relay_queue *q, uint16_t head)
{
	uint16_t n = 0;

	for (; head != q->dev.ring.num; head = q->order[head].next)
		n++;
	return n;
}

uint32_t moat_relay_taken(const struct moat_relay_queue *q)
{
	return order_count(q, q->order[q->dev.ring.num].next);
}

void moat_relay_lose(struct moat_relay *relay, struct moat_relay_queue *q)
{
	uint16_t end = q->dev.ring.num, first = q->order[end].next;

	for (uint16_t i = first; i != end; i = q->order[i].next)
		moat_dma_drop(&relay->dma, &q->dma, &q->reqs[i]);
	q->replay = first;
	moat_fault_set(&q->drv.fault, MOAT_FAULT_GONE, 0, 0);
	moat_pool_yield(relay->dma.pool, &q->dma.share);
}

/* ---- from the guest to the backend ---- */

static enum moat_dma_result map(struct moat_relay *relay,
				struct moat_relay_queue *q, bool table,
				bool again)
{
	const struct moat_chain *c = &relay->chain;

	return (again ? moat_dma_remap
		      : moat_dma_map)(&relay->dma, &q->dma, c->head, c, table,
				      &q->reqs[c->head], &relay->mapped);
}

/*
 * Carry the request that was just peeked, or recalled in order to be given to
 * another backend (@again).
 * Return: true if it was taken, false if it stays where it is.
 */
static bool carry(struct moat_relay *relay, struct moat_relay_queue *q,
		  bool again)
{
	const struct moat_chain *c = &relay->chain;
	uint32_t n = (uint32_t)c->nread + c->nwrite;
	bool table;

	if (!q->drv.indirect && n > q->drv.ring.num) {
		/* Can not happen while INDIRECT is only offered with it. */
		moat_fault_set(&q->dev.fault, MOAT_FAULT_CHAIN_LONG, n,
			       q->drv.ring.num);
		return false;
	}
	if (!moat_drvq_room(&q->drv, n)) {
		q->starved = true;
		return false;
	}
	table = moat_drvq_wants_table(&q->drv, n);
	switch (map(relay, q, table, again)) {
	case MOAT_DMA_LATER:
		q->starved = true;
		return false;
	case MOAT_DMA_NEVER:
		refuse(relay, q);
		return false;
	case MOAT_DMA_OK:
		break;
	}
	if (!again) {
		moat_devq_take(&q->dev, c->head);
		order_add(q, c->head);
	}
	moat_drvq_add(&q->drv, relay->mapped.seg, c->nread, c->nwrite, c->head,
		      relay->mapped.table, relay->mapped.table_addr);
	return true;
}

/* Every mapping is released; the guest gets nothing of them. */
static void release_all(struct moat_relay *relay, struct moat_relay_queue *q)
{
	for (uint32_t i = 0; i < q->drv.ring.num; i++)
		if (q->drv.descs[i].ndesc)
			moat_dma_unmap(&relay->dma, &q->dma,
				       &q->reqs[q->drv.descs[i].cookie], 0);
}

/*
 * A queue that will not ask again must not hold others up. What the guest
 * broke is still at a sound backend, and comes back by moat_relay_complete():
 * until then its slots are in use. What the backend broke never comes back.
 *
 * Return: MOAT_RELAY_MOVED if there is room now that others may wait for.
 */
static unsigned int yield_if_idle(struct moat_relay *relay,
				  struct moat_relay_queue *q)
{
	bool held = relay->dma.pool->waiter == &q->dma.share;

	if (q->enabled && !moat_relay_fault(q))
		return 0;
	/* What is kept may yet be for another backend. */
	if (q->drv.fault.code && !q->order) {
		held |= q->dma.share.stats.used != 0;
		release_all(relay, q);
	}
	moat_pool_yield(relay->dma.pool, &q->dma.share);
	return held ? MOAT_RELAY_MOVED : 0;
}

void moat_relay_abandon(struct moat_relay *relay, struct moat_relay_queue *q)
{
	release_all(relay, q);
	moat_pool_yield(relay->dma.pool, &q->dma.share);
}

/* What a backend that is gone had not done, for its successor. */
static unsigned int replay(struct moat_relay *relay, struct moat_relay_queue *q,
			   unsigned int budget)
{
	unsigned int flags = 0;

	while (moat_relay_replaying(q)) {
		if (!budget--) {
			flags |= MOAT_RELAY_MORE;
			break;
		}
		relay->chain.head = q->replay;
		moat_dma_recall(&q->dma, &q->reqs[q->replay], &relay->chain);
		if (!carry(relay, q, true)) {
			q->stats.waits += q->starved;
			break;
		}
		q->replay = q->order[q->replay].next;
		flags |= MOAT_RELAY_MOVED;
	}
	if (moat_drvq_publish(&q->drv))
		flags |= MOAT_RELAY_KICK;
	return flags;
}

/* ---- where there is no backend any more ---- */

/* Bytes between private memory and the segments, as far as both go. */
static uint32_t first_bytes(struct moat_relay *relay, const struct moat_seg *s,
			    uint32_t n, uint8_t *bytes, uint32_t len,
			    bool write)
{
	struct moat_memmap *guest = relay->dma.guest;
	uint32_t done = 0;

	for (uint32_t i = 0; i < n && done < len; i++) {
		uint32_t part = s[i].len < len - done ? s[i].len : len - done;
		int ret = write ? moat_memmap_write(guest, s[i].addr,
						    bytes + done, part)
				: moat_memmap_read(guest, bytes + done,
						   s[i].addr, part);

		if (ret)
			break;
		done += part;
	}
	return done;
}

static void answer(struct moat_relay *relay, struct moat_relay_queue *q)
{
	const struct moat_chain *c = &relay->chain;
	uint8_t head[MOAT_RELAY_HEAD], out[MOAT_RELAY_HEAD];
	uint32_t n =
		first_bytes(relay, c->seg, c->nread, head, sizeof(head), false);

	n = q->fail(head, n, out);
	n = first_bytes(relay, c->seg + c->nread, c->nwrite, out, n, true);
	moat_devq_push(&q->dev, c->head, n);
	q->stats.completed++;
}

unsigned int moat_relay_fail_all(struct moat_relay *relay,
				 struct moat_relay_queue *q,
				 moat_relay_fail fail)
{
	uint16_t end = q->dev.ring.num;

	q->fail = fail;
	while (q->order[end].next != end) {
		uint16_t head = q->order[end].next;

		relay->chain.head = head;
		moat_dma_recall(&q->dma, &q->reqs[head], &relay->chain);
		moat_dma_unmap(&relay->dma, &q->dma, &q->reqs[head], 0);
		order_del(q, head);
		answer(relay, q);
	}
	q->replay = end;
	q->starved = false;
	return moat_devq_publish(&q->dev) ? MOAT_RELAY_CALL : 0;
}

static unsigned int submit_to_nobody(struct moat_relay *relay,
				     struct moat_relay_queue *q,
				     unsigned int budget)
{
	unsigned int flags = 0;

	while (q->enabled &&
	       moat_devq_peek(&q->dev, relay->dma.guest, &relay->chain) > 0) {
		if (!budget--) {
			flags |= MOAT_RELAY_MORE;
			break;
		}
		moat_devq_take(&q->dev, relay->chain.head);
		answer(relay, q);
		flags |= MOAT_RELAY_MOVED;
	}
	if (flags & MOAT_RELAY_MOVED && moat_devq_publish(&q->dev))
		flags |= MOAT_RELAY_CALL;
	return flags;
}

/* ---- what users call ---- */

unsigned int moat_relay_submit(struct moat_relay *relay,
			       struct moat_relay_queue *q, unsigned int budget)
{
	unsigned int flags = 0;
	bool empty = false;

	if (q->fail)
		return submit_to_nobody(relay, q, budget);
	q->starved = false;
	/* They were taken while the queue was enabled. */
	if (moat_relay_replaying(q) && !moat_relay_fault(q))
		flags = replay(relay, q, budget);
	if (moat_relay_replaying(q) || !q->enabled || moat_relay_fault(q))
		return flags | yield_if_idle(relay, q);
	while (moat_devq_peek(&q->dev, relay->dma.guest, &relay->chain) > 0) {
		if (!budget--) {
			flags |= MOAT_RELAY_MORE;
			break;
		}
		if (!relay->chain.nread && !relay->chain.nwrite) {
			/*
			 * Nothing but zero-length buffers: nothing to do. But
			 * a stop could not put those before it back into the
			 * ring any more: it waits for them.
			 */
			if (q->drv.outstanding) {
				q->starved = true;
				q->stats.waits++;
				break;
			}
			moat_devq_take(&q->dev, relay->chain.head);
			moat_devq_push(&q->dev, relay->chain.head, 0);
			empty = true;
		} else if (carry(relay, q, false)) {
			q->stats.requests++;
			flags |= MOAT_RELAY_MOVED;
		} else {
			q->stats.waits += q->starved;
			break;
		}
	}
	if (empty) {
		flags |= MOAT_RELAY_MOVED;
		if (moat_devq_publish(&q->dev))
			flags |= MOAT_RELAY_CALL;
	}
	if (moat_drvq_publish(&q->drv))
		flags |= MOAT_RELAY_KICK;
	return flags | yield_if_idle(relay, q);
}

unsigned int moat_relay_complete(struct moat_relay *relay,
				 struct moat_relay_queue *q,
				 unsigned int budget)
{
	unsigned int flags = 0;
	uint32_t head, len;

	while (budget && moat_drvq_get(&q->drv, &head, &len) > 0) {
		moat_dma_unmap(&relay->dma, &q->dma, &q->reqs[head], len);
		order_del(q, (uint16_t)head);
		moat_devq_push(&q->dev, (uint16_t)head, len);
		q->stats.completed++;
		flags |= MOAT_RELAY_MOVED;
		budget--;
	}
	if (!budget)
		flags |= MOAT_RELAY_MORE;
	if ((flags & MOAT_RELAY_MOVED) && moat_devq_publish(&q->dev))
		flags |= MOAT_RELAY_CALL;
	return flags;
}

void moat_relay_notify_off(struct moat_relay_queue *q)
{
	moat_devq_notify_off(&q->dev);
	moat_drvq_notify_off(&q->drv);
}

bool moat_relay_notify_on(struct moat_relay_queue *q)
{
	bool dev = moat_devq_notify_on(&q->dev);
	bool drv = moat_drvq_notify_on(&q->drv);

	/* Requests that nobody will take are no work. */
	return drv ||
	       (dev && q->enabled && !q->starved && !moat_relay_fault(q));
}

const struct moat_fault *moat_relay_fault(const struct moat_relay_queue *q)
{
	if (q->dev.fault.code)
		return &q->dev.fault;
	/* With no backend there is none that could break its ring. */
	return q->drv.fault.code && !q->fail ? &q->drv.fault : NULL;
}

uint32_t moat_relay_stop(struct moat_relay *relay, struct moat_relay_queue *q,
			 uint32_t backend_base, uint32_t *lost)
{
	uint16_t untaken = moat_drvq_untaken(&q->drv, backend_base);
	uint32_t all = q->drv.outstanding;

	/* What is kept is more than what this backend was given. */
	if (q->order) {
		all = moat_relay_taken(q);
		untaken = q->drv.fault.code == MOAT_FAULT_GONE ? 0 : untaken;
		untaken = (uint16_t)(untaken + order_count(q, q->replay));
	}
	/* A base does not bring back what was finished: see moat_devq_rewind().
	 */
	untaken = moat_devq_rewind(&q->dev, untaken);
	*lost = all - untaken;
	release_all(relay, q);
	moat_dma_queue_fini(&relay->dma, &q->dma);
	return moat_devq_base(&q->dev);
}
