/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layout of a split virtqueue (virtio 1.4, 2.7), shared by its two ends. That
 * of a packed one is in packed.h.
 *
 *   descriptor table   16 bytes a descriptor, aligned to 16
 *   avail (driver)     flags, idx, ring[num], used_event     aligned to 2
 *   used  (device)     flags, idx, {id, len}[num], avail_event  aligned to 4
 *
 * The structs are never dereferenced: they say offsets and sizes, and the
 * fields are read and written with the verbs of shm.h.
 */
#ifndef MOAT_CORE_VRING_H
#define MOAT_CORE_VRING_H

#include <stdbool.h>
#include <stdint.h>

#include "core/shm.h"

#define MOAT_VRING_NUM_MAX 32768u /* virtio 1.4, 2.7: largest queue size */

#define MOAT_DESC_F_NEXT 1u
#define MOAT_DESC_F_WRITE 2u
#define MOAT_DESC_F_INDIRECT 4u

#define MOAT_AVAIL_F_NO_INTERRUPT 1u
#define MOAT_USED_F_NO_NOTIFY 1u

struct moat_vring_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

struct moat_vring_used_elem {
	uint32_t id;
	uint32_t len;
};

/** struct moat_vring - where the three parts of a ring are mapped here */
struct moat_vring {
	uint8_t *desc;
	uint8_t *avail; /* packed: the driver's event structure */
	uint8_t *used;	/* packed: the device's event structure */
	uint16_t num;	/* queue size up to 32768; split: a power of two */
	bool packed;	/* RING_PACKED was negotiated */
};

static inline bool moat_vring_num_ok(uint32_t num)
{
	return num && num <= MOAT_VRING_NUM_MAX && !(num & (num - 1));
}

/* Sizes in bytes, including the event index that ends each of the two rings. */
static inline uint32_t moat_vring_desc_size(uint32_t num)
{
	return 16 * num;
}

static inline uint32_t moat_vring_avail_size(uint32_t num)
{
	return 6 + 2 * num;
}

static inline uint32_t moat_vring_used_size(uint32_t num)
{
	return 6 + 8 * num;
}

/* Addresses of the fields; @i is reduced by the caller. */
static inline void *moat_avail_flags(const struct moat_vring *r)
{
	return r->avail;
}

static inline void *moat_avail_idx(const struct moat_vring *r)
{
	return r->avail + 2;
}

static inline void *moat_avail_ring(const struct moat_vring *r, uint16_t i)
{
	return r->avail + 4 + (size_t)i * 2;
}

static inline void *moat_used_event(const struct moat_vring *r)
{
	return r->avail + 4 + (size_t)r->num * 2;
}

static inline void *moat_used_flags(const struct moat_vring *r)
{
	return r->used;
}

static inline void *moat_used_idx(const struct moat_vring *r)
{
	return r->used + 2;
}

static inline void *moat_used_ring(const struct moat_vring *r, uint16_t i)
{
	return r->used + 4 + (size_t)i * 8;
}

static inline void *moat_avail_event(const struct moat_vring *r)
{
	return r->used + 4 + (size_t)r->num * 8;
}

/** moat_vring_desc_load() - snapshot descriptor @i of a table, each field once
 */
static inline struct moat_vring_desc moat_vring_desc_load(const void *table,
							  uint32_t i)
{
	const uint8_t *p = (const uint8_t *)table + (size_t)i * 16;
	struct moat_vring_desc d;
	uint64_t rest;

	d.addr = moat_shm_load64(p);
	rest = moat_shm_load64(p + 8);
	d.len = (uint32_t)rest;
	d.flags = (uint16_t)(rest >> 32);
	d.next = (uint16_t)(rest >> 48);
	return d;
}

static inline void moat_vring_desc_store(void *table, uint32_t i,
					 struct moat_vring_desc d)
{
	uint8_t *p = (uint8_t *)table + (size_t)i * 16;

	moat_shm_store64(p, d.addr);
	moat_shm_store64(p + 8, (uint64_t)d.len | (uint64_t)d.flags << 32 |
					(uint64_t)d.next << 48);
}

/**
 * moat_vring_need_event() - has the index passed what the other side named?
 *
 * virtio 1.4, 2.7.10.1 and 2.7.7.1: true when @event lies in [@old, @new).
 */
static inline bool moat_vring_need_event(uint16_t event, uint16_t new_idx,
					 uint16_t old_idx)
{
	return (uint16_t)(new_idx - event - 1) < (uint16_t)(new_idx - old_idx);
}

#endif
