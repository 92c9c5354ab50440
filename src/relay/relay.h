/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The data plane: carries requests of one queue from guest to backend and back.
 *
 *     guest ring -> devq -> dma -> drvq -> backend ring      moat_relay_submit
 *     backend ring -> drvq -> dma -> devq -> guest ring moat_relay_complete
 *
 * Nothing here touches a file descriptor: the calls say which notifications
 * are needed, and their caller sends them. Work is bounded by a budget, so that
 * queues that are served in turn can not starve one another.
 *
 * Who owns what: the guest's ring and the backend's ring are hostile memory;
 * a request's truth (struct moat_dma_req, indexed by its guest head) is
 * private. A request is in exactly one of three places: still in the guest's
 * ring, outstanding at the backend, or given back.
 *
 * A queue that keeps its requests (@order is not NULL) outlives its backend:
 *
 *     moat_relay_lose()   the backend is gone; what it had is to be done again
 *     moat_drvq_init()    a new ring, for another backend
 *     moat_relay_submit() gives it those first, in the order in which they were
 *                         taken; then new ones
 */
#ifndef MOAT_RELAY_RELAY_H
#define MOAT_RELAY_RELAY_H

#include <stdbool.h>
#include <stdint.h>

#include "core/devq.h"
#include "core/dma.h"
#include "core/drvq.h"

/* What moat_relay_submit() and moat_relay_complete() return, or'ed. */
enum {
	MOAT_RELAY_KICK = 1,  /* notify the backend */
	MOAT_RELAY_CALL = 2,  /* notify the guest */
	MOAT_RELAY_MOVED = 4, /* at least one request made progress */
	MOAT_RELAY_MORE = 8,  /* the budget ended before the work did */
};

#define MOAT_RELAY_HEAD 64u /* bytes of a request that tell what to answer */

/**
 * typedef moat_relay_fail - what a request gets that no backend will do
 * @head: its first bytes, private; @n of them
 * @out: MOAT_RELAY_HEAD bytes for the beginning of its writable part
 *
 * Return: bytes in @out; used.len is no more than that.
 */
typedef uint32_t (*moat_relay_fail)(const uint8_t *head, uint32_t n,
				    uint8_t *out);

/** struct moat_relay - one device: its DMA view, and scratch for its thread */
struct moat_relay {
	struct moat_dma dma;
	struct moat_chain chain;
	struct moat_dma_mapped mapped;
};

struct moat_relay_stats {
	uint64_t requests;  /* given to the backend */
	uint64_t completed; /* given back to the guest */
	uint64_t waits;	    /* times that a request had to stay in the ring */
};

/** struct moat_relay_order - neighbours of a request that was taken */
struct moat_relay_order {
	uint16_t prev, next;
};

/** moat_relay_order_storage() - entries for a queue of @num; none is zeroed */
#define moat_relay_order_storage(num) ((num) + 1u)

/** struct moat_relay_queue - one queue, between its two ends */
struct moat_relay_queue {
	struct moat_devq dev; /* the guest's ring */
	struct moat_drvq drv; /* the backend's ring */
	struct moat_dma_queue dma;
	struct moat_dma_req *reqs; /* [num], indexed by guest head */
	/*
	 * Those taken and not given back, a ring by guest head that begins and
	 * ends at [num]; NULL: they are not kept.
	 */
	struct moat_relay_order *order;
	uint16_t replay; /* the next to be given to a new backend; num: none */
	moat_relay_fail fail; /* answers all requests; NULL: a backend does */
	bool enabled;	      /* may take new requests (SET_VRING_ENABLE) */
	bool starved;	      /* the next request waits for others */
	struct moat_relay_stats stats;
};

/** moat_relay_keep() - remember requests, in @order, from the start on */
void moat_relay_keep(struct moat_relay_queue *q,
		     struct moat_relay_order *order);

/** moat_relay_replaying() - is there anything to be given once more? */
static inline bool moat_relay_replaying(const struct moat_relay_queue *q)
{
	return q->order && q->replay != q->dev.ring.num;
}

/** moat_relay_taken() - requests taken and not given back; needs @order */
uint32_t moat_relay_taken(const struct moat_relay_queue *q);

/**
 * moat_relay_lose() - the backend is gone; only for queues that keep requests
 *
 * Its memory is released, and nothing of its ring is looked at any more, until
 * the caller starts another (moat_drvq_init()). What it has finished should
 * have been fetched before (moat_relay_complete()).
 */
void moat_relay_lose(struct moat_relay *relay, struct moat_relay_queue *q);

/**
 * moat_relay_fail_all() - after moat_relay_lose(): there is no other backend
 * @fail: answers what is taken, now, and what comes, in moat_relay_submit()
 *
 * Return: MOAT_RELAY_CALL, or 0.
 */
unsigned int moat_relay_fail_all(struct moat_relay *relay,
				 struct moat_relay_queue *q,
				 moat_relay_fail fail);

/**
 * moat_relay_abandon() - the queue stays broken, though it keeps its requests
 *
 * Their memory is released; they are for no backend.
 */
void moat_relay_abandon(struct moat_relay *relay, struct moat_relay_queue *q);

/** moat_relay_submit() - carry up to @budget requests to the backend */
unsigned int moat_relay_submit(struct moat_relay *relay,
			       struct moat_relay_queue *q, unsigned int budget);

/** moat_relay_complete() - carry up to @budget requests back to the guest */
unsigned int moat_relay_complete(struct moat_relay *relay,
				 struct moat_relay_queue *q,
				 unsigned int budget);

/** moat_relay_pending() - is there anything to carry? Cheap; for polling */
static inline bool moat_relay_pending(const struct moat_relay_queue *q)
{
	return moat_drvq_pending(&q->drv) ||
	       (q->enabled && !q->starved && (!q->drv.fault.code || q->fail) &&
		moat_devq_pending(&q->dev));
}

/** moat_relay_notify_off() - neither side needs to notify for now */
void moat_relay_notify_off(struct moat_relay_queue *q);

/**
 * moat_relay_notify_on() - ask both sides to notify again
 *
 * Return: true if there is work already, which will cause no notification.
 */
bool moat_relay_notify_on(struct moat_relay_queue *q);

/** moat_relay_fault() - why the queue is broken, or NULL if it is not */
const struct moat_fault *moat_relay_fault(const struct moat_relay_queue *q);

/**
 * moat_relay_stop() - end the queue; every mapping is released
 * @backend_base: where the backend stands (GET_VRING_BASE of its leg)
 * @lost: set to the number of requests that the backend took and never gave
 *	back
 *
 * Requests that the backend never took go back into the guest's ring.
 *
 * Return: where the guest's ring stands, its GET_VRING_BASE.
 */
uint32_t moat_relay_stop(struct moat_relay *relay, struct moat_relay_queue *q,
			 uint32_t backend_base, uint32_t *lost);

#endif
