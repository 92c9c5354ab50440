/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A packed ring laid out once more, from the specification (virtio 1.4, 2.8),
 * with an index and a wrap counter of its own: core/packed.h is not used, so
 * that a mistake there is seen and not shared.
 */
#ifndef MOAT_TESTS_PACKED_RING_H
#define MOAT_TESTS_PACKED_RING_H

#include "support.h"

enum { P_NEXT = 1, P_WRITE = 2, P_INDIRECT = 4, P_AVAIL = 128, P_USED = 32768 };
enum { E_ENABLE, E_DISABLE, E_DESC, E_RESERVED };

struct place {
	uint16_t idx;
	bool wrap;
};

static inline void place_step(struct place *p, uint32_t n, uint16_t num)
{
	while (n--)
		if (++p->idx == num) {
			p->idx = 0;
			p->wrap = !p->wrap;
		}
}

static inline uint16_t place_word(struct place p)
{
	return (uint16_t)(p.idx | (p.wrap ? 0x8000 : 0));
}

static inline bool place_same(struct place a, struct place b)
{
	return a.idx == b.idx && a.wrap == b.wrap;
}

static inline uint16_t avail_bits(struct place p)
{
	return p.wrap ? P_AVAIL : P_USED;
}

static inline uint16_t used_bits(struct place p)
{
	return p.wrap ? P_AVAIL | P_USED : 0;
}

static inline void put_packed(uint8_t *table, uint32_t i, uint64_t addr,
			      uint32_t len, uint16_t id, uint16_t flags)
{
	put64(table + 16 * i, addr);
	put32(table + 16 * i + 8, len);
	put16(table + 16 * i + 12, id);
	put16(table + 16 * i + 14, flags);
}

static inline uint16_t flags_at(const uint8_t *table, uint32_t i)
{
	return get16(table + 16 * i + 14);
}

static inline bool used_at(const struct test_ring *t, struct place p)
{
	uint16_t f = flags_at(t->vring.desc, p.idx);

	return (f & (P_AVAIL | P_USED)) == used_bits(p);
}

static inline bool avail_at(const struct test_ring *t, struct place p)
{
	uint16_t f = flags_at(t->vring.desc, p.idx);

	return (f & (P_AVAIL | P_USED)) == avail_bits(p);
}

static inline void put_event(uint8_t *e, uint16_t pos, uint16_t flags)
{
	put16(e, pos);
	put16(e + 2, flags);
}

/* Was one of the places from @old up to, without it, @now named? Word by word.
 */
static inline bool place_passed(uint16_t event, struct place old,
				struct place now, uint16_t num)
{
	for (; !place_same(old, now); place_step(&old, 1, num))
		if (event == place_word(old))
			return true;
	return false;
}

/* What the other side has to do after @old .. @now, by its event structure. */
static inline bool event_wants(const uint8_t *e, struct place old,
			       struct place now, uint16_t num)
{
	switch (get16(e + 2) & 3) {
	case E_ENABLE:
		return !place_same(old, now);
	case E_DESC:
		return place_passed(get16(e), old, now, num);
	}
	return false;
}

#endif
