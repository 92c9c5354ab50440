/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In-flight tracking: what a backend had begun, in memory that outlives it.
 *
 * The front-end keeps the memory while the backend is away, and hands it to the
 * next one (vhost-user, "Inflight I/O tracking"). Each queue has a record, of
 * one layout for split rings and of another for packed ones:
 *
 *     take       the request is noted: counter, inflight = 1
 *     push       remembered, privately
 *     publish    the batch is linked together; then the ring shows it
 *     published  inflight = 0; then where the used ring stands is noted
 *
 * A backend that was killed between the last two left a record that differs
 * from the ring: the last batch is then done, and only not noted. A split
 * ring's record names descriptors, which the driver keeps as they are; a packed
 * one's has copies of them, because used ones overwrite them.
 *
 * The front-end can write to all of it: it is checked before it is believed,
 * and read only when a queue starts.
 */
#ifndef MOAT_DEV_HOST_INFLIGHT_H
#define MOAT_DEV_HOST_INFLIGHT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/devq.h"
#include "vu/proto.h"

/** struct moat_inflight - the whole memory, mapped */
struct moat_inflight {
	uint8_t *host; /* NULL: the front-end tracks nothing */
	uint64_t size;
	uint32_t num_queues, queue_size;
	bool packed;
	int fd; /* of one that was made here, else -1 */
};

/** struct moat_inflight_queue - one queue's record; private copy of its state
 */
struct moat_inflight_queue {
	uint8_t *record; /* NULL: not tracked */
	uint16_t num;
	bool packed;
	bool old; /* a backend that was here before has left it */
	uint64_t counter;
	uint16_t used; /* where the used ring stands: index; packed: position */
	uint16_t *batch; /* [num] pushed: heads; packed: entries */
	uint16_t nbatch;
	/* split */
	uint16_t batch_head;
	/* packed: entries are those of the record's array */
	uint16_t *next;	 /* [num] of the entry */
	uint16_t *last;	 /* [num] entry of the list that begins there */
	uint16_t *entry; /* [num] the list of the request with that id */
	uint16_t *count; /* [num] entries of the list that begins there */
	uint16_t free_head, nfree;
	uint16_t noted; /* the old position, as the record has it */
};

void moat_inflight_init(struct moat_inflight *f);
void moat_inflight_fini(struct moat_inflight *f);

/**
 * moat_inflight_make() - empty records for GET_INFLIGHT_FD
 * @want: queues and their size; size and offset are filled in
 * @packed: the format of the rings
 *
 * Replaces what was there. No queue is started.
 *
 * Return: 0 with @f->fd set, or a negative errno.
 */
int moat_inflight_make(struct moat_inflight *f, struct moat_vu_inflight *want,
		       bool packed);

/** moat_inflight_adopt() - map the front-end's (SET_INFLIGHT_FD) */
int moat_inflight_adopt(struct moat_inflight *f,
			const struct moat_vu_inflight *given, bool packed,
			int fd);

/**
 * moat_inflight_forget() - a queue was stopped in order, its place was told
 *
 * Nothing is under way: the next start is that of a new queue, at the base that
 * the front-end gives. A ring that was reset begins anew.
 */
void moat_inflight_forget(struct moat_inflight *f, uint32_t index);

/**
 * moat_inflight_open() - the record of queue @index, for a queue that starts
 * @ring: as it was found
 * @used: where the used ring stands, as the front-end has it; packed rings do
 *	not say it themselves
 * @begun: room for the queue's size; filled with the requests that were under
 *	way, in the order in which they had been taken: heads; packed: entries,
 *	for moat_inflight_copy()
 *
 * Afterwards @q->used says where the used ring stands. @q is to be closed,
 * whatever is returned.
 *
 * Return: number of @begun, -EINVAL if the record is none of that queue, or
 * another negative errno.
 */
int moat_inflight_open(struct moat_inflight *f, uint32_t index,
		       const struct moat_vring *ring, uint16_t used,
		       uint16_t *begun, struct moat_inflight_queue *q);
void moat_inflight_close(struct moat_inflight_queue *q);

/**
 * moat_inflight_copy() - the descriptors of a packed request that was begun
 * @desc: room for the queue's size
 *
 * Return: how many it has.
 */
uint32_t moat_inflight_copy(const struct moat_inflight_queue *q, uint16_t entry,
			    struct moat_packed_desc *desc);

/** moat_inflight_resumed() - packed: @entry is the request with id @head */
void moat_inflight_resumed(struct moat_inflight_queue *q, uint16_t entry,
			   uint16_t head);

/**
 * moat_inflight_room() - can the request just peeked be noted?
 *
 * Not while a driver posts what it has not been given back: then what was
 * pushed has to be published first.
 */
static inline bool moat_inflight_room(const struct moat_inflight_queue *q,
				      const struct moat_devq *dq)
{
	return !q->record || !q->packed || q->nfree >= dq->peeked;
}

/** moat_inflight_take() - the request just peeked, @head, is to be taken */
void moat_inflight_take(struct moat_inflight_queue *q,
			const struct moat_devq *dq, uint16_t head);

/** moat_inflight_push() - @head was given back, unpublished; at most the
 * queue's size in a batch
 */
void moat_inflight_push(struct moat_inflight_queue *q, uint16_t head);

/** moat_inflight_publish() - the batch is about to be published, up to @used */
void moat_inflight_publish(struct moat_inflight_queue *q, uint16_t used);

/** moat_inflight_published() - it was */
void moat_inflight_published(struct moat_inflight_queue *q);

#endif
