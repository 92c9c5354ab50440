/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Driver side of a split virtqueue: posts requests, gets them back.
 *
 *     add, publish --avail--> device --used--> get
 *
 * The device is hostile. Free descriptors, chain links, lengths and which id
 * is outstanding live in private memory; what stands in the ring's memory is
 * written and never believed. Only the used ring is read: a used id counts
 * only if it is outstanding, and the length is clamped to what was posted
 * (devices that report too much exist; rejecting them breaks real guests). On
 * a fault the queue is broken for good, and every call does nothing.
 */
#ifndef MOAT_CORE_DRVQ_H
#define MOAT_CORE_DRVQ_H

#include <stdbool.h>
#include <stdint.h>

#include "core/chain.h"
#include "core/err.h"
#include "core/vring.h"

/** struct moat_drvq_desc - private truth about one descriptor */
struct moat_drvq_desc {
	uint64_t write_len; /* of the chain, if this is its head */
	uint32_t cookie; /* the caller's, if this is a head */
	uint16_t next; /* in the chain, or in the free list */
	uint16_t ndesc; /* ring descriptors of the chain; 0: not a head */
};

struct moat_drvq {
	struct moat_vring ring;
	struct moat_drvq_desc *descs;
	uint16_t free_head;
	uint16_t num_free; /* free descriptors */
	uint16_t outstanding; /* requests posted and not got back */
	uint16_t avail_next; /* next avail entry to fill */
	uint16_t avail_published;
	uint16_t used_seen; /* used idx as last loaded */
	uint16_t used_next; /* next used entry to look at */
	bool event_idx;
	bool indirect;
	struct moat_fault fault;
};

/**
 * moat_drvq_init() - an empty queue at index 0
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
 * Return: true if the device wants a kick (virtio 1.4, 2.7.13.4).
 */
bool moat_drvq_publish(struct moat_drvq *q);

/** moat_drvq_pending() - has the device given something back? For polling */
static inline bool moat_drvq_pending(const struct moat_drvq *q)
{
	return !q->fault.code &&
	       moat_shm_load16(moat_used_idx(&q->ring)) != q->used_next;
}

/**
 * moat_drvq_get() - get one finished request back
 * @cookie: as given to moat_drvq_add()
 * @len: bytes the device says it wrote, at most the writable bytes posted
 *
 * Return: 1 if there was one, 0 if not, -1 if the queue is broken.
 */
int moat_drvq_get(struct moat_drvq *q, uint32_t *cookie, uint32_t *len);

/** moat_drvq_notify_off() - the device need not call for now */
void moat_drvq_notify_off(struct moat_drvq *q);

/**
 * moat_drvq_notify_on() - ask for a call at the next finished request
 *
 * Return: true if some are there already, which will cause no call.
 */
bool moat_drvq_notify_on(struct moat_drvq *q);

#endif
