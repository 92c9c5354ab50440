/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layout of a packed virtqueue (virtio 1.4, 2.8), shared by its two ends.
 *
 *   descriptor ring     16 bytes a descriptor, aligned to 16; both sides write
 *   driver event        4 bytes, aligned to 4; the driver's: when to call
 *   device event        4 bytes, aligned to 4; the device's: when to kick
 *
 * In struct moat_vring they are desc, avail and used.
 *
 * A position is an index into the ring with the wrap counter of its lap in
 * bit 15, the form in which event offsets and vhost-user's ring bases have it.
 * Positions go round modulo twice the queue size: all arithmetic on them is
 * here.
 */
#ifndef MOAT_CORE_PACKED_H
#define MOAT_CORE_PACKED_H

#include <stdbool.h>
#include <stdint.h>

#include "core/shm.h"
#include "core/vring.h"

#define MOAT_PACKED_WRAP 0x8000u
#define MOAT_PACKED_START \
	((uint16_t)MOAT_PACKED_WRAP) /* both wrap counters 1 */

/* Beside the flags of vring.h. */
#define MOAT_DESC_F_AVAIL (1u << 7)
#define MOAT_DESC_F_USED (1u << 15)
#define MOAT_DESC_F_LAP (MOAT_DESC_F_AVAIL | MOAT_DESC_F_USED)

/* Flags of an event structure; 3 is reserved. */
#define MOAT_EVENT_ENABLE 0u
#define MOAT_EVENT_DISABLE 1u
#define MOAT_EVENT_DESC 2u /* only with EVENT_IDX */

struct moat_packed_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t id;
	uint16_t flags;
};

/** struct moat_packed_event - an event structure, as a snapshot */
struct moat_packed_event {
	uint16_t pos;
	uint16_t flags;
};

/** moat_packed_num_ok() - virtio 1.4, 2.8: any size up to 2^15 */
static inline bool moat_packed_num_ok(uint32_t num)
{
	return num && num <= MOAT_VRING_NUM_MAX;
}

static inline uint16_t moat_packed_idx(uint16_t pos)
{
	return pos & (uint16_t)(MOAT_PACKED_WRAP - 1);
}

/** moat_packed_advance() - the position @n descriptors, at most @num, on */
static inline uint16_t moat_packed_advance(uint16_t pos, uint32_t n,
					   uint16_t num)
{
	uint32_t wrap = pos & MOAT_PACKED_WRAP, i = moat_packed_idx(pos) + n;

	return i < num ? (uint16_t)(i | wrap)
		       : (uint16_t)((i - num) | (wrap ^ MOAT_PACKED_WRAP));
}

/** moat_packed_retreat() - the position @n descriptors, at most @num, back */
static inline uint16_t moat_packed_retreat(uint16_t pos, uint32_t n,
					   uint16_t num)
{
	uint32_t wrap = pos & MOAT_PACKED_WRAP, i = moat_packed_idx(pos);

	return i >= n ? (uint16_t)((i - n) | wrap)
		      : (uint16_t)((i + num - n) | (wrap ^ MOAT_PACKED_WRAP));
}

/** moat_packed_distance() - descriptors from @from on to @to, below 2 * @num */
static inline uint32_t moat_packed_distance(uint16_t from, uint16_t to,
					    uint16_t num)
{
	uint32_t f = moat_packed_idx(from), t = moat_packed_idx(to);

	if ((from ^ to) & MOAT_PACKED_WRAP)
		return num + t - f;
	return t >= f ? t - f : 2u * num + t - f;
}

/** moat_packed_avail_bits() - AVAIL and USED of what is available at @pos */
static inline uint16_t moat_packed_avail_bits(uint16_t pos)
{
	return pos & MOAT_PACKED_WRAP ? MOAT_DESC_F_AVAIL : MOAT_DESC_F_USED;
}

/** moat_packed_used_bits() - AVAIL and USED of what is used at @pos */
static inline uint16_t moat_packed_used_bits(uint16_t pos)
{
	return pos & MOAT_PACKED_WRAP ? MOAT_DESC_F_LAP : 0;
}

static inline bool moat_packed_is_avail(uint16_t flags, uint16_t pos)
{
	return (flags & MOAT_DESC_F_LAP) == moat_packed_avail_bits(pos);
}

static inline bool moat_packed_is_used(uint16_t flags, uint16_t pos)
{
	return (flags & MOAT_DESC_F_LAP) == moat_packed_used_bits(pos);
}

/* Length, id and flags of a descriptor are one aligned word. */
static inline uint8_t *moat_packed_at(const struct moat_vring *r, uint16_t pos)
{
	return r->desc + (size_t)moat_packed_idx(pos) * 16;
}

static inline uint16_t moat_packed_flags_load(const struct moat_vring *r,
					      uint16_t pos)
{
	return moat_shm_load16(moat_packed_at(r, pos) + 14);
}

/**
 * moat_packed_desc_load() - snapshot a descriptor, each field once
 *
 * The word with the flags first: if they say that it is ours, the rest is as
 * the peer wrote it before.
 */
static inline struct moat_packed_desc moat_packed_desc_load(const uint8_t *p)
{
	uint64_t rest = moat_shm_load64_acquire(p + 8);

	return (struct moat_packed_desc){
		.addr = moat_shm_load64(p),
		.len = (uint32_t)rest,
		.id = (uint16_t)(rest >> 32),
		.flags = (uint16_t)(rest >> 48),
	};
}

/** moat_packed_word() - length, id and flags, to be stored at once */
static inline uint64_t moat_packed_word(uint32_t len, uint16_t id,
					uint16_t flags)
{
	return (uint64_t)len | (uint64_t)id << 32 | (uint64_t)flags << 48;
}

/** moat_packed_event_load() - both fields of the peer's structure at once */
static inline struct moat_packed_event moat_packed_event_load(const uint8_t *p)
{
	uint32_t v = moat_shm_load32(p);

	/* The upper 14 bits of the flags are reserved without a meaning. */
	return (struct moat_packed_event){ (uint16_t)v, v >> 16 & 3 };
}

static inline void moat_packed_event_store(uint8_t *p, uint16_t pos,
					   uint16_t flags)
{
	moat_shm_store32(p, (uint32_t)flags << 16 | pos);
}

/**
 * moat_packed_passed() - has one of the positions [@old, @pos) been named?
 *
 * virtio 1.4, 2.8.10.
 */
static inline bool moat_packed_passed(uint16_t event, uint16_t old,
				      uint16_t pos, uint16_t num)
{
	return moat_packed_distance(old, event, num) <
	       moat_packed_distance(old, pos, num);
}

#endif
