/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the unit tests share: a generator with a fixed seed, and a split ring
 * that is laid out here once more, from the specification (virtio 1.4, 2.7),
 * so that a wrong offset in core/vring.h is seen and not shared.
 */
#ifndef MOAT_TESTS_SUPPORT_H
#define MOAT_TESTS_SUPPORT_H

#include <endian.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/vring.h"

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

struct rng {
	uint64_t s;
};

static inline uint64_t rnd(struct rng *r)
{
	uint64_t z = (r->s += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* 0 .. n-1 */
static inline uint32_t rnd_below(struct rng *r, uint64_t n)
{
	return (uint32_t)(rnd(r) % n);
}

static inline void rnd_fill(struct rng *r, void *p, size_t n)
{
	uint8_t *b = p;

	for (size_t i = 0; i < n; i++)
		b[i] = (uint8_t)(rnd(r) >> 32);
}

static inline void *must_alloc(size_t n)
{
	void *p = aligned_alloc(4096, (n + 4095) & ~(size_t)4095);

	assert_non_null(p);
	memset(p, 0, (n + 4095) & ~(size_t)4095);
	return p;
}

/* Each of the three parts in memory of its own, so that ASan guards it. */
struct test_ring {
	struct moat_vring vring;
	size_t desc_bytes, avail_bytes, used_bytes;
};

static inline void ring_make(struct test_ring *t, uint16_t num)
{
	t->desc_bytes = (size_t)16 * num;
	t->avail_bytes = 6 + (size_t)2 * num;
	t->used_bytes = 6 + (size_t)8 * num;
	t->vring = (struct moat_vring){
		.desc = calloc(1, t->desc_bytes),
		.avail = calloc(1, t->avail_bytes),
		.used = calloc(1, t->used_bytes),
		.num = num,
	};
	assert_non_null(t->vring.desc);
	assert_non_null(t->vring.avail);
	assert_non_null(t->vring.used);
}

/* A packed one (2.8): the ring and the two event structures. */
static inline void packed_make(struct test_ring *t, uint16_t num)
{
	t->desc_bytes = (size_t)16 * num;
	t->avail_bytes = t->used_bytes = 4;
	t->vring = (struct moat_vring){
		.desc = calloc(1, t->desc_bytes),
		.avail = calloc(1, t->avail_bytes),
		.used = calloc(1, t->used_bytes),
		.num = num,
		.packed = true,
	};
	assert_non_null(t->vring.desc);
	assert_non_null(t->vring.avail);
	assert_non_null(t->vring.used);
}

static inline void ring_free(struct test_ring *t)
{
	free(t->vring.desc);
	free(t->vring.avail);
	free(t->vring.used);
}

static inline uint16_t get16(const uint8_t *p)
{
	uint16_t v;

	memcpy(&v, p, 2);
	return le16toh(v);
}

static inline uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return le32toh(v);
}

static inline uint64_t get64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return le64toh(v);
}

static inline void put16(uint8_t *p, uint16_t v)
{
	v = htole16(v);
	memcpy(p, &v, 2);
}

static inline void put32(uint8_t *p, uint32_t v)
{
	v = htole32(v);
	memcpy(p, &v, 4);
}

static inline void put64(uint8_t *p, uint64_t v)
{
	v = htole64(v);
	memcpy(p, &v, 8);
}

static inline void put_desc(uint8_t *table, uint32_t i, uint64_t addr,
			    uint32_t len, uint16_t flags, uint16_t next)
{
	put64(table + 16 * i, addr);
	put32(table + 16 * i + 8, len);
	put16(table + 16 * i + 12, flags);
	put16(table + 16 * i + 14, next);
}

static inline struct moat_vring_desc get_desc(const uint8_t *table, uint32_t i)
{
	return (struct moat_vring_desc){
		.addr = get64(table + 16 * i),
		.len = get32(table + 16 * i + 8),
		.flags = get16(table + 16 * i + 12),
		.next = get16(table + 16 * i + 14),
	};
}

/* Fields of a ring, by the specification's layout. */
static inline uint8_t *avail_flags(const struct test_ring *t)
{
	return t->vring.avail;
}

static inline uint8_t *avail_idx(const struct test_ring *t)
{
	return t->vring.avail + 2;
}

static inline uint8_t *avail_entry(const struct test_ring *t, uint16_t idx)
{
	return t->vring.avail + 4 + (size_t)2 * (idx % t->vring.num);
}

static inline uint8_t *used_event(const struct test_ring *t)
{
	return t->vring.avail + 4 + (size_t)2 * t->vring.num;
}

static inline uint8_t *used_flags(const struct test_ring *t)
{
	return t->vring.used;
}

static inline uint8_t *used_idx(const struct test_ring *t)
{
	return t->vring.used + 2;
}

static inline uint8_t *used_entry(const struct test_ring *t, uint16_t idx)
{
	return t->vring.used + 4 + (size_t)8 * (idx % t->vring.num);
}

static inline uint8_t *avail_event(const struct test_ring *t)
{
	return t->vring.used + 4 + (size_t)8 * t->vring.num;
}

/*
 * The rule of 2.7.7.2 and 2.7.10.1 word by word: entries old .. new-1 were
 * written; was one of them written at an index equal to the event field?
 */
static inline bool event_passed(uint16_t event, uint16_t old, uint16_t new_idx)
{
	for (uint16_t i = old; i != new_idx; i++)
		if (i == event)
			return true;
	return false;
}

#endif
