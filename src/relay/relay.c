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

/*
 * Carry the request that was just peeked.
 * Return: true if it was taken, false if it stays in the ring.
 */
static bool carry(struct moat_relay *relay, struct moat_relay_queue *q)
{
	const struct moat_chain *c = &relay->chain;
	uint32_t n = (uint32_t)c->nread + c->nwrite;
	struct moat_dma_req *req = &q->reqs[c->head];
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
	switch (moat_dma_map(&relay->dma, &q->dma, c->head, c, table, req,
			     &relay->mapped)) {
	case MOAT_DMA_LATER:
		q->starved = true;
		return false;
	case MOAT_DMA_NEVER:
		refuse(relay, q);
		return false;
	case MOAT_DMA_OK:
		break;
	}
	moat_devq_take(&q->dev, c->head);
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
	if (q->drv.fault.code) {
		held |= q->dma.share.stats.used != 0;
		release_all(relay, q);
	}
	moat_pool_yield(relay->dma.pool, &q->dma.share);
	return held ? MOAT_RELAY_MOVED : 0;
}

unsigned int moat_relay_submit(struct moat_relay *relay,
			       struct moat_relay_queue *q, unsigned int budget)
{
	unsigned int flags = 0;
	bool empty = false;

	q->starved = false;
	if (!q->enabled || moat_relay_fault(q))
		return yield_if_idle(relay, q);
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
		} else if (carry(relay, q)) {
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
	return q->drv.fault.code ? &q->drv.fault : NULL;
}

uint32_t moat_relay_stop(struct moat_relay *relay, struct moat_relay_queue *q,
			 uint32_t backend_base, uint32_t *lost)
{
	uint16_t untaken = moat_drvq_untaken(&q->drv, backend_base);

	/* A base does not bring back what was finished: see moat_devq_rewind().
	 */
	untaken = moat_devq_rewind(&q->dev, untaken);
	*lost = (uint32_t)q->drv.outstanding - untaken;
	release_all(relay, q);
	moat_dma_queue_fini(&relay->dma, &q->dma);
	return moat_devq_base(&q->dev);
}
