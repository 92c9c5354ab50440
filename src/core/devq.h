/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device side of a virtqueue: takes requests, gives them back.
 *
 *     driver --avail--> peek, take ... push, publish --used--> driver
 *
 * The driver is hostile. This side's truth is private: where it stands in
 * the ring, and what is outstanding. The ring is only ever read in order to
 * learn of new requests. On a fault the queue is broken for good: every call
 * then does nothing, until it is initialised again.
 *
 * Prepare and publish are apart: any number of moat_devq_push() cost one
 * barrier and at most one notification, in moat_devq_publish().
 *
 * The format of the ring, split or packed, is the ring's (struct moat_vring)
 * and no matter to who uses the queue. A request is named by its head: of a
 * split ring the first descriptor's index, of a packed one the buffer id; of
 * all that are outstanding no two have the same, and it is below the queue
 * size.
 */
#ifndef MOAT_CORE_DEVQ_H
#define MOAT_CORE_DEVQ_H

#include <stdbool.h>
#include <stdint.h>

#include "core/chain.h"
#include "core/err.h"
#include "core/memmap.h"
#include "core/packed.h"
#include "core/vring.h"

/**
 * moat_devq_storage() - bytes of caller-owned, zeroed memory a queue needs
 *
 * Aligned to 2. It is the larger need, a packed ring's.
 */
#define moat_devq_storage(num) ((size_t)(num)*4)

struct moat_devq {
	struct moat_vring ring;
	union {
		/* split: a bit for each head taken, not yet pushed */
		uint8_t *outstanding;
		/*
		 * packed: [num] ring descriptors of the request with that id, 0
		 * if it is not outstanding; then [num] ids in the order in
		 * which they were taken
		 */
		uint16_t *ndesc;
	};
	/* split: indices; packed: positions (packed.h) */
	uint16_t avail_seen;	 /* split: avail idx as last loaded */
	uint16_t avail_next;	 /* next avail entry to take */
	uint16_t used_next;	 /* next used entry to fill */
	uint16_t used_signalled; /* used_next when last asked to notify */
	/* packed */
	uint16_t peeked;     /* ring descriptors of the request just peeked */
	uint16_t inuse;	     /* ring descriptors taken and not given back */
	uint16_t order_next; /* next entry of the taken ids */
	uint16_t held_at;    /* position of the used descriptor held back */
	uint64_t held;	     /* and its word, the first of a batch */
	bool holds;	     /* there is one */
	bool signalled_valid;
	bool event_idx;
	bool indirect;
	struct moat_fault fault; /* why it is broken; code 0 if it is not */
};

int moat_devq_split_peek(struct moat_devq *q, struct moat_memmap *map,
			 struct moat_chain *chain);
void moat_devq_split_take(struct moat_devq *q, uint16_t head);
uint16_t moat_devq_split_rewind(struct moat_devq *q, uint16_t n);
void moat_devq_split_push(struct moat_devq *q, uint16_t head, uint32_t len);
bool moat_devq_split_publish(struct moat_devq *q);
void moat_devq_split_notify_off(struct moat_devq *q);
void moat_devq_split_notify_on(struct moat_devq *q);

void moat_devq_packed_init(struct moat_devq *q, uint32_t base);
int moat_devq_packed_peek(struct moat_devq *q, struct moat_memmap *map,
			  struct moat_chain *chain);
void moat_devq_packed_take(struct moat_devq *q, uint16_t head);
uint16_t moat_devq_packed_rewind(struct moat_devq *q, uint16_t n);
void moat_devq_packed_push(struct moat_devq *q, uint16_t head, uint32_t len);
bool moat_devq_packed_publish(struct moat_devq *q);
void moat_devq_packed_notify_off(struct moat_devq *q);
void moat_devq_packed_notify_on(struct moat_devq *q);

/* ---- what users call ---- */

/**
 * moat_devq_init() - start at @base
 * @ring: mapped and checked for size and alignment by the caller; copied
 * @storage: moat_devq_storage(ring->num) zeroed bytes
 * @base: where to go on, as vhost-user has it (SET_VRING_BASE). Split: the next
 *	avail index. Packed: the next avail position in bits 0 to 15, the next
 *	used one above.
 * @event_idx: EVENT_IDX was negotiated
 * @indirect: INDIRECT_DESC was negotiated
 *
 * Going on after a stop, the used ring of a split queue is continued where the
 * driver's memory says it stands; a wrong value there only confuses the driver
 * that wrote it. A base that a packed ring can not have breaks the queue, but
 * one of a new ring may leave wrap counters and the used half out.
 */
void moat_devq_init(struct moat_devq *q, const struct moat_vring *ring,
		    void *storage, uint32_t base, bool event_idx,
		    bool indirect);

/** moat_devq_base() - where it stands, as moat_devq_init() takes it */
uint32_t moat_devq_base(const struct moat_devq *q);

/** moat_devq_pending() - has the driver posted something? Cheap; for polling */
static inline bool moat_devq_pending(const struct moat_devq *q)
{
	if (q->fault.code)
		return false;
	if (q->ring.packed)
		return moat_packed_is_avail(
			moat_packed_flags_load(&q->ring, q->avail_next),
			q->avail_next);
	return moat_shm_load16(moat_avail_idx(&q->ring)) != q->avail_next;
}

/**
 * moat_devq_peek() - snapshot the next request and leave it in the ring
 * @map: guest memory, for the chain's addresses
 * @chain: filled in
 *
 * Return: 1 if there is a request, 0 if not, -1 if the queue is broken.
 */
static inline int moat_devq_peek(struct moat_devq *q, struct moat_memmap *map,
				 struct moat_chain *chain)
{
	if (q->fault.code)
		return -1;
	return q->ring.packed ? moat_devq_packed_peek(q, map, chain)
			      : moat_devq_split_peek(q, map, chain);
}

/** moat_devq_take() - take the request just peeked; its head is outstanding */
static inline void moat_devq_take(struct moat_devq *q, uint16_t head)
{
	if (q->ring.packed)
		moat_devq_packed_take(q, head);
	else
		moat_devq_split_take(q, head);
}

/**
 * moat_devq_resume() - take a request that was under way before a restart
 * @head: as in-flight records name it; from memory that a peer can write
 * @chain: filled in
 *
 * The avail ring does not name it any more; the request is outstanding after.
 *
 * Return: 0, or -1 if the queue is broken (@head is no such request).
 */
int moat_devq_resume(struct moat_devq *q, struct moat_memmap *map,
		     uint16_t head, struct moat_chain *chain);

/**
 * moat_devq_resume_copy() - the same for a packed ring
 * @desc: its descriptors as they were, in private memory; @n of them
 *
 * The ring does not have them any more: used ones may stand there. Requests are
 * resumed in the order in which they had been taken, from a base at which none
 * is outstanding; each moves the queue on by its descriptors.
 *
 * Return: 0, or -1 if the queue is broken.
 */
int moat_devq_resume_copy(struct moat_devq *q, struct moat_memmap *map,
			  const struct moat_packed_desc *desc, uint32_t n,
			  struct moat_chain *chain);

/**
 * moat_devq_take_back() - nothing from @pos on was given back, after all
 * @n: descriptors of a packed ring, all of them this side's
 *
 * A device that was killed before it published a batch has left used
 * descriptors behind the first, unwritten one. A driver must not meet them once
 * another batch begins there.
 */
void moat_devq_take_back(const struct moat_vring *ring, uint16_t pos,
			 uint32_t n);

/**
 * moat_devq_rewind() - put the last requests taken back into the ring
 * @n: how many at most
 *
 * Stops at one that was given back already: its buffers are the driver's
 * again, and taking it a second time would write to them.
 *
 * Return: how many were put back; moat_devq_base() stands before them.
 */
static inline uint16_t moat_devq_rewind(struct moat_devq *q, uint16_t n)
{
	return q->ring.packed ? moat_devq_packed_rewind(q, n)
			      : moat_devq_split_rewind(q, n);
}

/**
 * moat_devq_push() - give a request back (prepare)
 * @head: of a request taken and not pushed since
 * @len: bytes written to its writable segments, from the first one on
 */
static inline void moat_devq_push(struct moat_devq *q, uint16_t head,
				  uint32_t len)
{
	if (q->fault.code)
		return;
	if (q->ring.packed)
		moat_devq_packed_push(q, head, len);
	else
		moat_devq_split_push(q, head, len);
}

/**
 * moat_devq_publish() - let the driver see what was pushed
 *
 * Return: true if the driver wants a notification (virtio 1.4, 2.7.7.2 and
 * 2.8.10).
 */
static inline bool moat_devq_publish(struct moat_devq *q)
{
	if (q->fault.code)
		return false;
	return q->ring.packed ? moat_devq_packed_publish(q)
			      : moat_devq_split_publish(q);
}

/** moat_devq_notify_off() - the driver need not kick for now */
static inline void moat_devq_notify_off(struct moat_devq *q)
{
	if (q->fault.code)
		return;
	if (q->ring.packed)
		moat_devq_packed_notify_off(q);
	else
		moat_devq_split_notify_off(q);
}

/**
 * moat_devq_notify_on() - ask for a kick at the next request
 *
 * Return: true if requests are there already, which will cause no kick.
 */
static inline bool moat_devq_notify_on(struct moat_devq *q)
{
	if (q->fault.code)
		return false;
	if (q->ring.packed)
		moat_devq_packed_notify_on(q);
	else
		moat_devq_split_notify_on(q);
	moat_shm_full_barrier();
	return moat_devq_pending(q);
}

#endif
