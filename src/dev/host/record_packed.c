/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "dev/host/record.h"

/*
 * A queue's record (vhost-user, "Inflight I/O tracking", packed virtqueue):
 * u64 features, u16 version, u16 desc_num, u16 free_head, u16 old_free_head,
 * u16 used_idx, u16 old_used_idx, u8 used_wrap_counter,
 * u8 old_used_wrap_counter, u8 padding[7]; then, aligned, entries of
 * u8 inflight, u8 padding, u16 next, u16 last, u16 num, u64 counter, u16 id,
 * u16 flags, u32 len, u64 addr.
 *
 * A request takes as many entries off the free list as it has descriptors; they
 * stay linked by next. The list is ended by what is no entry. All but the head
 * of the list, which old_free_head says until a batch is published, can be told
 * from it: whoever finds the two different takes the old one, unless the ring
 * shows that the batch went out.
 *
 * The truth is private: of what stands there only inflight, old_free_head and
 * the old position matter, to a successor.
 */
enum {
	FREE_HEAD = 12,
	OLD_FREE_HEAD = 14,
	PLACES = 16, /* used_idx to old_used_wrap_counter */
	DESCS = 32
};
enum {
	D_INFLIGHT = 0,
	D_NEXT = 2,
	D_LAST = 4,
	D_NUM = 6,
	D_COUNTER = 8,
	D_ID = 16,
	D_FLAGS = 18,
	D_LEN = 20,
	D_ADDR = 24,
	D_SIZE = 32
};

uint64_t moat_rec_packed_size(uint32_t num)
{
	return DESCS + (uint64_t)num * D_SIZE;
}

static uint8_t *desc_of(const struct moat_inflight_queue *q, uint32_t entry)
{
	return q->record + DESCS + (size_t)entry * D_SIZE;
}

/*
 * Both positions, in one word: no half of one may ever stand there. The flags
 * behind a list's first descriptor stay as the driver made them, so that an
 * index with another lap's counter can look like what was not used yet.
 */
static void set_places(struct moat_inflight_queue *q, uint16_t used,
		       uint16_t old)
{
	uint16_t idx[2] = { moat_packed_idx(used), moat_packed_idx(old) };
	uint8_t wrap[4] = { !!(used & MOAT_PACKED_WRAP),
			    !!(old & MOAT_PACKED_WRAP) };
	uint64_t word;

	memcpy(&word, idx, sizeof(idx));
	memcpy((uint8_t *)&word + sizeof(idx), wrap, sizeof(wrap));
	moat_rec_set64(q->record + PLACES, word);
	q->noted = old;
}

static void get_places(const struct moat_inflight_queue *q, uint16_t pos[2])
{
	uint64_t word = moat_rec_get64(q->record + PLACES);
	uint8_t wrap[2];

	memcpy(pos, &word, 2 * sizeof(*pos));
	memcpy(wrap, (uint8_t *)&word + 2 * sizeof(*pos), sizeof(wrap));
	for (int i = 0; i < 2; i++)
		pos[i] = (uint16_t)((pos[i] & (MOAT_PACKED_WRAP - 1)) |
				    (wrap[i] ? MOAT_PACKED_WRAP : 0));
}

static void set_next(struct moat_inflight_queue *q, uint16_t entry,
		     uint16_t next)
{
	q->next[entry] = next;
	moat_rec_set16(desc_of(q, entry) + D_NEXT, next);
}

void moat_rec_packed_new(struct moat_inflight_queue *q)
{
	for (uint32_t i = 0; i < q->num; i++) {
		set_next(q, (uint16_t)i, (uint16_t)(i + 1));
		moat_rec_set8(desc_of(q, i) + D_INFLIGHT, 0);
	}
	q->free_head = 0;
	q->nfree = q->num;
	moat_rec_set16(q->record + FREE_HEAD, 0);
	moat_rec_set16(q->record + OLD_FREE_HEAD, 0);
	set_places(q, q->used, q->used);
}

/* Was the batch that was being made published? Then it is done. */
static int settle(struct moat_inflight_queue *q, const struct moat_vring *ring)
{
	uint16_t head = moat_rec_get16(q->record + OLD_FREE_HEAD);
	uint16_t place[2], now, old;

	get_places(q, place);
	now = place[0];
	old = place[1];
	if (moat_packed_idx(old) >= q->num || moat_packed_idx(now) >= q->num)
		return -EINVAL;
	if (old != now &&
	    !moat_packed_is_avail(moat_packed_flags_load(ring, old), old)) {
		head = moat_rec_get16(q->record + FREE_HEAD);
		old = now;
	}
	q->free_head = head;
	q->used = old;
	return 0;
}

static void write_settled(struct moat_inflight_queue *q)
{
	moat_rec_set16(q->record + OLD_FREE_HEAD, q->free_head);
	set_places(q, q->used, q->used);
	moat_rec_set16(q->record + FREE_HEAD, q->free_head);
}

/*
 * Take @n entries from @entry on out of the unclaimed ones (count is 0).
 * Return: the last of them, or -EINVAL.
 */
static int claim(struct moat_inflight_queue *q, uint32_t entry, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (i)
			entry = q->next[entry];
		if (entry >= q->num || q->count[entry])
			return -EINVAL;
		q->count[entry] = 1;
	}
	return (int)entry;
}

static int claim_free(struct moat_inflight_queue *q)
{
	for (uint32_t e = q->free_head; e < q->num; e = q->next[e]) {
		if (claim(q, e, 1) < 0)
			return -EINVAL;
		q->nfree++;
		moat_rec_set8(desc_of(q, e) + D_INFLIGHT, 0);
	}
	return 0;
}

int moat_rec_packed_old(struct moat_inflight_queue *q,
			const struct moat_vring *ring, struct moat_begun *all)
{
	uint32_t claimed;
	int n = 0;

	for (uint32_t i = 0; i < q->num; i++)
		q->next[i] = moat_rec_get16(desc_of(q, i) + D_NEXT);
	if (settle(q, ring) || claim_free(q))
		return -EINVAL;
	claimed = q->nfree;
	for (uint32_t i = 0; i < q->num; i++) {
		const uint8_t *d = desc_of(q, i);
		uint16_t count = moat_rec_get16(d + D_NUM);
		int last;

		if (moat_rec_get8(d + D_INFLIGHT) != 1)
			continue;
		last = count ? claim(q, i, count) : -EINVAL;
		if (last < 0)
			return -EINVAL;
		q->last[i] = (uint16_t)last;
		q->count[i] = count;
		claimed += count;
		all[n++] = (struct moat_begun){ moat_rec_get64(d + D_COUNTER),
						(uint16_t)i };
	}
	/* Each entry is free or a request's. */
	if (claimed != q->num)
		return -EINVAL;
	write_settled(q);
	return n;
}

uint32_t moat_inflight_copy(const struct moat_inflight_queue *q, uint16_t entry,
			    struct moat_packed_desc *desc)
{
	uint32_t n = q->count[entry];

	for (uint32_t i = 0; i < n; i++, entry = q->next[entry]) {
		const uint8_t *d = desc_of(q, entry);

		desc[i] = (struct moat_packed_desc){
			.addr = moat_rec_get64(d + D_ADDR),
			.len = moat_rec_get32(d + D_LEN),
			.id = moat_rec_get16(d + D_ID),
			.flags = moat_rec_get16(d + D_FLAGS),
		};
	}
	return n;
}

void moat_inflight_resumed(struct moat_inflight_queue *q, uint16_t entry,
			   uint16_t head)
{
	q->entry[head] = entry;
}

/*
 * The ring is read a second time here. A driver that changes it meanwhile has
 * its own lie noted, which is checked like any other request when it is
 * resumed.
 */
void moat_rec_packed_take(struct moat_inflight_queue *q,
			  const struct moat_devq *dq, uint16_t head)
{
	uint16_t first = q->free_head, entry = first, last = first;
	uint16_t pos = dq->avail_next, n = dq->peeked;
	uint8_t *h = desc_of(q, first);

	for (uint32_t i = 0; i < n; i++, entry = q->next[entry]) {
		struct moat_packed_desc d =
			moat_packed_desc_load(moat_packed_at(&dq->ring, pos));
		uint8_t *p = desc_of(q, entry);

		moat_rec_set16(p + D_ID, i + 1u == n ? head : d.id);
		moat_rec_set16(p + D_FLAGS, d.flags);
		moat_rec_set32(p + D_LEN, d.len);
		moat_rec_set64(p + D_ADDR, d.addr);
		pos = moat_packed_advance(pos, 1, q->num);
		last = entry;
	}
	moat_rec_set16(h + D_NUM, n);
	moat_rec_set16(h + D_LAST, last);
	moat_rec_set64(h + D_COUNTER, q->counter++);
	moat_rec_set8(h + D_INFLIGHT, 1);
	q->last[first] = last;
	q->count[first] = n;
	q->entry[head] = first;
	q->free_head = entry;
	q->nfree = (uint16_t)(q->nfree - n);
	moat_rec_set16(q->record + FREE_HEAD, entry);
	/* From here on it is one that was begun. */
	moat_rec_set16(q->record + OLD_FREE_HEAD, entry);
}

void moat_rec_packed_publish(struct moat_inflight_queue *q, uint16_t used)
{
	for (uint32_t i = 0; i < q->nbatch; i++) {
		uint16_t entry = q->batch[i];

		set_next(q, q->last[entry], q->free_head);
		q->free_head = entry;
		q->nfree = (uint16_t)(q->nfree + q->count[entry]);
		moat_rec_set16(q->record + FREE_HEAD, entry);
	}
	set_places(q, used, q->noted);
}

void moat_rec_packed_published(struct moat_inflight_queue *q)
{
	for (uint32_t i = 0; i < q->nbatch; i++)
		moat_rec_set8(desc_of(q, q->batch[i]) + D_INFLIGHT, 0);
	moat_rec_set16(q->record + OLD_FREE_HEAD, q->free_head);
	set_places(q, q->used, q->used);
}
