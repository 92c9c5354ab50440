/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "dev/host/record.h"

/*
 * A queue's record (vhost-user, "Inflight I/O tracking", split virtqueue):
 * u64 features, u16 version, u16 desc_num, u16 last_batch_head, u16 used_idx,
 * then for each descriptor u8 inflight, u8 padding[5], u16 next, u64 counter.
 */
enum { BATCH_HEAD = 12, USED_IDX = 14, DESCS = 16 };
enum { D_INFLIGHT = 0, D_NEXT = 6, D_COUNTER = 8, D_SIZE = 16 };

uint64_t moat_rec_split_size(uint32_t num)
{
	return DESCS + (uint64_t)num * D_SIZE;
}

static uint8_t *desc_of(const struct moat_inflight_queue *q, uint16_t head)
{
	return q->record + DESCS + (size_t)head * D_SIZE;
}

void moat_rec_split_new(struct moat_inflight_queue *q)
{
	for (uint32_t h = 0; h < q->num; h++)
		moat_rec_set8(desc_of(q, (uint16_t)h) + D_INFLIGHT, 0);
	moat_rec_set16(q->record + BATCH_HEAD, 0);
	moat_rec_set16(q->record + USED_IDX, q->used);
}

/* The last batch went out, and that was not noted any more. */
static int settle(struct moat_inflight_queue *q)
{
	uint16_t n = (uint16_t)(q->used - moat_rec_get16(q->record + USED_IDX));
	uint16_t head = moat_rec_get16(q->record + BATCH_HEAD);

	/* More than a batch can hold: another queue's life, nothing of it. */
	for (; n && n <= q->num && head < q->num; n--) {
		moat_rec_set8(desc_of(q, head) + D_INFLIGHT, 0);
		head = moat_rec_get16(desc_of(q, head) + D_NEXT);
	}
	if (head >= q->num)
		return -EINVAL;
	moat_rec_set16(q->record + USED_IDX, q->used);
	return 0;
}

int moat_rec_split_old(struct moat_inflight_queue *q, struct moat_begun *all)
{
	int n = 0;

	if (settle(q))
		return -EINVAL;
	q->batch_head = moat_rec_get16(q->record + BATCH_HEAD);
	for (uint32_t h = 0; h < q->num; h++) {
		const uint8_t *d = desc_of(q, (uint16_t)h);

		if (moat_rec_get8(d + D_INFLIGHT) == 1)
			all[n++] = (struct moat_begun){
				moat_rec_get64(d + D_COUNTER), (uint16_t)h
			};
	}
	return n;
}

void moat_rec_split_take(struct moat_inflight_queue *q, uint16_t head)
{
	moat_rec_set64(desc_of(q, head) + D_COUNTER, q->counter++);
	moat_rec_set8(desc_of(q, head) + D_INFLIGHT, 1);
}

void moat_rec_split_publish(struct moat_inflight_queue *q)
{
	for (uint32_t i = 0; i < q->nbatch; i++) {
		uint16_t head = q->batch[i];

		moat_rec_set16(desc_of(q, head) + D_NEXT, q->batch_head);
		moat_rec_set16(q->record + BATCH_HEAD, head);
		q->batch_head = head;
	}
}

void moat_rec_split_published(struct moat_inflight_queue *q)
{
	for (uint32_t i = 0; i < q->nbatch; i++)
		moat_rec_set8(desc_of(q, q->batch[i]) + D_INFLIGHT, 0);
	moat_rec_set16(q->record + USED_IDX, q->used);
}
