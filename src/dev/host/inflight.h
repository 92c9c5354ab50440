/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In-flight tracking: what a backend had begun, in memory that outlives it.
 *
 * The front-end keeps the memory while the backend is away, and hands it to the
 * next one (vhost-user, "Inflight I/O tracking"). Each queue has a record:
 *
 *     take      desc[head].counter = next; desc[head].inflight = 1
 *     push      linked into the batch: desc[head].next, last_batch_head
 *     publish   used idx in the ring; then inflight = 0; then used_idx here
 *
 * A backend that was killed between the last two steps left a used_idx that
 * differs from the ring's: the last batch is then done, and only not noted.
 * The front-end can write to all of it: it is checked before it is believed.
 */
#ifndef MOAT_DEV_HOST_INFLIGHT_H
#define MOAT_DEV_HOST_INFLIGHT_H

#include <stdbool.h>
#include <stdint.h>

#include "vu/proto.h"

/** struct moat_inflight - the whole memory, mapped */
struct moat_inflight {
	uint8_t *host; /* NULL: the front-end tracks nothing */
	uint64_t size;
	uint32_t num_queues, queue_size;
	int fd; /* of one that was made here, else -1 */
};

/** struct moat_inflight_queue - one queue's record; private copy of its state
 */
struct moat_inflight_queue {
	uint8_t *record; /* NULL: not tracked */
	uint16_t num;
	uint64_t counter;
	uint16_t batch_head;
};

void moat_inflight_init(struct moat_inflight *f);
void moat_inflight_fini(struct moat_inflight *f);

/**
 * moat_inflight_make() - empty records for GET_INFLIGHT_FD
 * @want: queues and their size; size and offset are filled in
 *
 * Replaces what was there. No queue is started.
 *
 * Return: 0 with @f->fd set, or a negative errno.
 */
int moat_inflight_make(struct moat_inflight *f, struct moat_vu_inflight *want);

/** moat_inflight_adopt() - map the front-end's (SET_INFLIGHT_FD) */
int moat_inflight_adopt(struct moat_inflight *f,
			const struct moat_vu_inflight *given, int fd);

/**
 * moat_inflight_open() - the record of queue @index, for a queue that starts
 * @num: its size
 * @used_idx: as it stands in the ring
 * @heads: room for @num; filled with the requests that were under way, in the
 *	order in which they had been taken
 *
 * Return: number of @heads, or -EINVAL if the record is none of that queue.
 */
int moat_inflight_open(struct moat_inflight *f, uint32_t index, uint16_t num,
		       uint16_t used_idx, uint16_t *heads,
		       struct moat_inflight_queue *q);

/** moat_inflight_take() - @head is under way from now on */
void moat_inflight_take(struct moat_inflight_queue *q, uint16_t head);

/** moat_inflight_push() - @head was put into the used ring, unpublished */
void moat_inflight_push(struct moat_inflight_queue *q, uint16_t head);

/** moat_inflight_published() - @n @heads were published, up to @used_idx */
void moat_inflight_published(struct moat_inflight_queue *q,
			     const uint16_t *heads, uint32_t n,
			     uint16_t used_idx);

#endif
