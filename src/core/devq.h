/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device side of a split virtqueue: takes requests, gives them back.
 *
 *     driver --avail--> peek, take ... push, publish --used--> driver
 *
 * The driver is hostile. This side's truth is private: where it stands in
 * either ring, and which heads are outstanding. The ring is only ever read in
 * order to learn of new heads. On a fault the queue is broken for good: every
 * call then does nothing, until it is initialised again.
 *
 * Prepare and publish are apart: any number of moat_devq_push() cost one
 * barrier and at most one notification, in moat_devq_publish().
 */
#ifndef MOAT_CORE_DEVQ_H
#define MOAT_CORE_DEVQ_H

#include <stdbool.h>
#include <stdint.h>

#include "core/chain.h"
#include "core/err.h"
#include "core/memmap.h"
#include "core/vring.h"

/** moat_devq_storage() - bytes of caller-owned, zeroed memory a queue needs */
#define moat_devq_storage(num) (((num) + 7u) / 8u)

struct moat_devq {
	struct moat_vring ring;
	uint8_t *outstanding; /* a bit for each head taken, not yet pushed */
	uint16_t avail_seen; /* avail idx as last loaded */
	uint16_t avail_next; /* next avail entry to take */
	uint16_t used_next; /* next used entry to fill */
	uint16_t used_signalled; /* used idx when last asked to notify */
	bool signalled_valid;
	bool event_idx;
	bool indirect;
	struct moat_fault fault; /* why it is broken; code 0 if it is not */
};

/**
 * moat_devq_init() - start at avail index @base
 * @ring: mapped and checked for size and alignment by the caller; copied
 * @storage: moat_devq_storage(ring->num) zeroed bytes
 * @base: the next avail entry to take (vhost-user: SET_VRING_BASE)
 * @event_idx: EVENT_IDX was negotiated
 * @indirect: INDIRECT_DESC was negotiated
 *
 * Going on after a stop, the used ring is continued where the driver's memory
 * says it stands; a wrong value there only confuses the driver that wrote it.
 */
void moat_devq_init(struct moat_devq *q, const struct moat_vring *ring,
		    uint8_t *storage, uint16_t base, bool event_idx,
		    bool indirect);

/** moat_devq_pending() - has the driver posted something? Cheap; for polling */
static inline bool moat_devq_pending(const struct moat_devq *q)
{
	return !q->fault.code &&
	       moat_shm_load16(moat_avail_idx(&q->ring)) != q->avail_next;
}

/**
 * moat_devq_peek() - snapshot the next request and leave it in the ring
 * @map: guest memory, for the chain's addresses
 * @chain: filled in
 *
 * Return: 1 if there is a request, 0 if not, -1 if the queue is broken.
 */
int moat_devq_peek(struct moat_devq *q, struct moat_memmap *map,
		   struct moat_chain *chain);

/** moat_devq_take() - take the request just peeked; its head is outstanding */
void moat_devq_take(struct moat_devq *q, uint16_t head);

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
 * moat_devq_rewind() - put the last requests taken back into the ring
 * @n: how many at most
 *
 * Stops at one that was given back already: its buffers are the driver's
 * again, and taking it a second time would write to them.
 *
 * Return: how many were put back; avail_next stands before them.
 */
uint16_t moat_devq_rewind(struct moat_devq *q, uint16_t n);

/**
 * moat_devq_push() - give a request back (prepare)
 * @head: of a request taken and not pushed since
 * @len: bytes written to its writable segments, from the first one on
 */
void moat_devq_push(struct moat_devq *q, uint16_t head, uint32_t len);

/**
 * moat_devq_publish() - let the driver see what was pushed
 *
 * Return: true if the driver wants a notification (virtio 1.4, 2.7.7.2).
 */
bool moat_devq_publish(struct moat_devq *q);

/** moat_devq_notify_off() - the driver need not kick for now */
void moat_devq_notify_off(struct moat_devq *q);

/**
 * moat_devq_notify_on() - ask for a kick at the next request
 *
 * Return: true if requests are there already, which will cause no kick.
 */
bool moat_devq_notify_on(struct moat_devq *q);

#endif
