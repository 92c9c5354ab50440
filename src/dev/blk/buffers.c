/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory as registered buffers of a ring: pinned once, and not looked up
 * for each request.
 *
 * The ring has a table of slots. When guest memory changes, slots of what is
 * gone are emptied and those of what is new are filled; the rest stays pinned.
 */
#include <errno.h>
#include <inttypes.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>

#include "dev/blk/buffers.h"

/* What the kernel takes as one buffer. */
#define CHUNK_MAX (UINT64_C(1) << 30)

int blk_buffers_open(struct blk_buffers *b, struct io_uring *ring)
{
	b->ring = ring;
	b->n = b->last = 0;
	return io_uring_register_buffers_sparse(ring, BLK_BUFFERS);
}

static bool holds(const struct iovec *iov, uint32_t n, const uint8_t *base,
		  size_t len)
{
	for (uint32_t i = 0; i < n; i++) {
		uintptr_t at = (uintptr_t)base - (uintptr_t)iov[i].iov_base;

		/* As it was cut up, or it is not the same. */
		if (at < iov[i].iov_len && !(at % CHUNK_MAX) &&
		    (iov[i].iov_len - at < CHUNK_MAX ? iov[i].iov_len - at
						     : CHUNK_MAX) == len)
			return true;
	}
	return false;
}

static int set_slot(struct blk_buffers *b, uint16_t slot, void *base,
		    size_t len)
{
	struct iovec iov = { base, len };
	__u64 tag = 0;
	int ret = io_uring_register_buffers_update_tag(b->ring, slot, &iov,
						       &tag, 1);

	return ret < 0 ? ret : 0;
}

/* What is no guest memory any more: unpinned before it is unmapped. */
static void drop(struct blk_buffers *b, const struct iovec *iov, uint32_t n)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < b->n; i++) {
		struct blk_chunk *c = &b->chunks[i];

		if (holds(iov, n, c->base, c->len))
			b->chunks[kept++] = *c;
		else
			set_slot(b, c->slot, NULL, 0);
	}
	b->n = kept;
	b->last = 0;
}

static bool has(const struct blk_buffers *b, const uint8_t *base)
{
	for (uint32_t i = 0; i < b->n; i++)
		if (b->chunks[i].base == base)
			return true;
	return false;
}

static uint16_t free_slot(const struct blk_buffers *b)
{
	uint8_t taken[BLK_BUFFERS] = { 0 };
	uint16_t slot = 0;

	for (uint32_t i = 0; i < b->n; i++)
		taken[b->chunks[i].slot] = 1;
	while (taken[slot])
		slot++;
	return slot;
}

/* Kept in the order of addresses, for lookups. */
static int add(struct blk_buffers *b, uint8_t *base, size_t len)
{
	uint32_t i = b->n;
	uint16_t slot;
	int ret;

	if (b->n == BLK_BUFFERS)
		return -ENOSPC;
	slot = free_slot(b);
	ret = set_slot(b, slot, base, len);
	if (ret)
		return ret;
	for (; i && b->chunks[i - 1].base > base; i--)
		b->chunks[i] = b->chunks[i - 1];
	b->chunks[i] = (struct blk_chunk){ base, len, slot };
	b->n++;
	return 0;
}

int blk_buffers_set(struct blk_buffers *b, const struct iovec *iov, uint32_t n,
		    uint64_t *bytes)
{
	int ret = 0;

	drop(b, iov, n);
	for (uint32_t i = 0; !ret && i < n; i++) {
		uint8_t *p = iov[i].iov_base;
		uint64_t left = iov[i].iov_len;

		while (!ret && left) {
			uint64_t len = left < CHUNK_MAX ? left : CHUNK_MAX;

			if (!has(b, p))
				ret = add(b, p, (size_t)len);
			p += len;
			left -= len;
		}
	}
	*bytes = 0;
	for (uint32_t i = 0; i < b->n; i++)
		*bytes += b->chunks[i].len;
	return ret;
}

static bool inside(const struct blk_chunk *c, const struct iovec *iov)
{
	uintptr_t at = (uintptr_t)iov->iov_base - (uintptr_t)c->base;

	return at < c->len && iov->iov_len <= c->len - at;
}

int blk_buffers_find(struct blk_buffers *b, const struct iovec *iov)
{
	uint32_t lo = 0, hi = b->n;

	if (b->last < b->n && inside(&b->chunks[b->last], iov))
		return b->chunks[b->last].slot;
	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (inside(&b->chunks[mid], iov)) {
			b->last = mid;
			return b->chunks[mid].slot;
		}
		if ((uint8_t *)iov->iov_base < b->chunks[mid].base)
			hi = mid;
		else
			lo = mid + 1;
	}
	return -1;
}
