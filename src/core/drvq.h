/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Driver side of a virtqueue: posts requests, gets them back.
 *
 *     add, publish --avail--> device --used--> get
 *
 * The device is hostile. Free descriptors, chain links, lengths and which id
 * is outstanding live in private memory; what stands in the ring's memory is
 * written and never believed. Only what the device gives back is read: a used
 * id counts only if it is outstanding, and the length is clamped to what was
 * posted (devices that report too much exist; rejecting them breaks real
 * guests). On a fault the queue is broken for good, and every call does
 * nothing.
 *
 * The format of the ring, split or packed, is the ring's (struct moat_vring)
 * and no matter to who uses the queue.
 */
#ifndef MOAT_CORE_DRVQ_H
#define MOAT_CORE_DRVQ_H

#include <stdbool.h>
#include <stdint.h>

#include "core/chain.h"
#include "core/err.h"
#include "core/packed.h"
#include "core/vring.h"

/**
 * struct moat_drvq_desc - private truth about one descriptor, or buffer id
 *
 * Both formats have one for each possible id; in a split ring those that are
 * not heads hold the rest of the chains.
 */
struct moat_drvq_desc {
	uint32_t write_len; /* of the request, at most; lengths have 32 bits */
	uint32_t cookie;    /* the caller's, if this is a head */
	uint16_t next;	    /* in the chain (split), or in the free list */
	uint16_t ndesc;	    /* ring descriptors of the request; 0: not a head */
	uint16_t order;	    /* packed: the id that was added as the n-th */
	uint16_t nth;	    /* packed: and which one this id was added as */
};

struct moat_drvq {
	struct moat_vring ring;
	struct moat_drvq_desc *descs;
	uint16_t free_head;
	uint16_t num_free;    /* free descriptors of the ring */
	uint16_t outstanding; /* requests posted and not got back */
	/* split: indices; packed: positions (packed.h) */
	uint16_t avail_next; /* next avail entry to fill */
	uint16_t avail_published;
	uint16_t used_seen; /* split: used idx as last loaded */
	uint16_t used_next; /* next used entry to look at */
	/* packed */
	uint16_t order_next; /* the next request is added as this one */
	uint64_t held;	     /* word of the first head that is not published */
	bool event_idx;
	bool indirect;
	struct moat_fault fault;
};

void moat_drvq_split_add(struct moat_drvq *q, uint16_t head,
			 const struct moat_seg *segs, uint32_t nread,
			 uint32_t n, void *table, uint64_t table_addr);
bool moat_drvq_split_publish(struct moat_drvq *q);
int moat_drvq_split_get(struct moat_drvq *q, uint32_t *cookie, uint32_t *len);
void moat_drvq_split_notify_off(struct moat_drvq *q);
void moat_drvq_split_notify_on(struct moat_drvq *q);

void moat_drvq_packed_add(struct moat_drvq *q, uint16_t head,
			  const struct moat_seg *segs, uint32_t nread,
			  uint32_t n, void *table, uint64_t table_addr);
bool moat_drvq_packed_publish(struct moat_drvq *q);
int moat_drvq_packed_get(struct moat_drvq *q, uint32_t *cookie, uint32_t *len);
void moat_drvq_packed_notify_off(struct moat_drvq *q);
void moat_drvq_packed_notify_on(struct moat_drvq *q);
uint16_t moat_drvq_packed_untaken(const struct moat_drvq *q, uint32_t base);

/* Take the first of the free list; there is one. */
static inline uint16_t moat_drvq_take_free(struct moat_drvq *q)
{
	uint16_t i = q->free_head;

	q->free_head = q->descs[i].next;
	return i;
}

/* ---- what users call ---- */

/**
 * moat_drvq_init() - an empty queue at its start
 * @ring: zeroed memory that the device maps too; copied
 * @descs: @ring->num caller-owned entries, private
 */
void moat_drvq_init(struct moat_drvq *q, const struct moat_vring *ring,
		    struct moat_drvq_desc *descs, bool event_idx,
		    bool indirect);

/**
 * moat_drvq_wants_table() - should a request of @nsegs use an indirect table?
 *
 * True if posting it directly would not leave one descriptor for each further
 * request that the ring could hold: descriptors then never run out before
 * requests do.
 */
bool moat_drvq_wants_table(const struct moat_drvq *q, uint32_t nsegs);

/** moat_drvq_room() - can a request of @nsegs be added now? */
bool moat_drvq_room(const struct moat_drvq *q, uint32_t nsegs);

/**
 * moat_drvq_add() - post a request (prepare)
 * @segs: device addresses; @nread readable ones, then @nwrite writable ones
 * @cookie: comes back from moat_drvq_get()
 * @table: memory for 16 * (@nread + @nwrite) bytes that the device maps at
 *	@table_addr, or NULL to use the ring's own descriptors
 *
 * The caller has asked moat_drvq_room().
 */
void moat_drvq_add(struct moat_drvq *q, const struct moat_seg *segs,
		   uint32_t nread, uint32_t nwrite, uint32_t cookie,
		   void *table, uint64_t table_addr);

/**
 * moat_drvq_publish() - let the device see what was added
 *
 * Return: true if the device wants a kick (virtio 1.4, 2.7.13.4 and 2.8.10).
 */
static inline bool moat_drvq_publish(struct moat_drvq *q)
{
	if (q->fault.code || q->avail_published == q->avail_next)
		return false;
	return q->ring.packed ? moat_drvq_packed_publish(q)
			      : moat_drvq_split_publish(q);
}

/** moat_drvq_pending() - has the device given something back? For polling */
static inline bool moat_drvq_pending(const struct moat_drvq *q)
{
	if (q->fault.code)
		return false;
	if (q->ring.packed)
		return moat_packed_is_used(moat_packed_flags_load(&q->ring,
								  q->used_next),
					   q->used_next);
	return moat_shm_load16(moat_used_idx(&q->ring)) != q->used_next;
}

/**
 * moat_drvq_get() - get one finished request back
 * @cookie: as given to moat_drvq_add()
 * @len: bytes the device says it wrote, at most the writable bytes posted
 *
 * Return: 1 if there was one, 0 if not, -1 if the queue is broken.
 */
static inline int moat_drvq_get(struct moat_drvq *q, uint32_t *cookie,
				uint32_t *len)
{
	if (q->fault.code)
		return -1;
	return q->ring.packed ? moat_drvq_packed_get(q, cookie, len)
			      : moat_drvq_split_get(q, cookie, len);
}

/** moat_drvq_notify_off() - the device need not call for now */
static inline void moat_drvq_notify_off(struct moat_drvq *q)
{
	if (q->fault.code)
		return;
	if (q->ring.packed)
		moat_drvq_packed_notify_off(q);
	else
		moat_drvq_split_notify_off(q);
}

/**
 * moat_drvq_notify_on() - ask for a call at the next finished request
 *
 * Return: true if some are there already, which will cause no call.
 */
static inline bool moat_drvq_notify_on(struct moat_drvq *q)
{
	if (q->fault.code)
		return false;
	if (q->ring.packed)
		moat_drvq_packed_notify_on(q);
	else
		moat_drvq_split_notify_on(q);
	moat_shm_full_barrier();
	return moat_drvq_pending(q);
}

/**
 * moat_drvq_base() - where a device stands that has taken all that is published
 *
 * In vhost-user's form (see moat_devq_init()).
 */
uint32_t moat_drvq_base(const struct moat_drvq *q);

/**
 * moat_drvq_untaken() - how many of the requests published last were not taken
 * @base: where the device stands, by its own word
 *
 * Return: their number; 0 if the base is none that we could have caused.
 */
uint16_t moat_drvq_untaken(const struct moat_drvq *q, uint32_t base);

#endif
