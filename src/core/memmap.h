/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory as a table of regions, and lookups that can not overflow.
 *
 *     guest address  ----->  host pointer     descriptors (moat_memmap_at)
 *     user address   ----->  host pointer     ring addresses (moat_memmap_user)
 *
 * The caller owns the array of regions and the mappings behind it; the table
 * keeps them sorted by guest address, without overlap and without wrap-around.
 * A range of guest memory may cross from one region into the next where the
 * two touch; it is then found piece by piece.
 */
#ifndef MOAT_CORE_MEMMAP_H
#define MOAT_CORE_MEMMAP_H

#include <stdbool.h>
#include <stdint.h>

/**
 * struct moat_region - one piece of guest memory
 * @guest_addr: guest physical address of its first byte
 * @size: bytes
 * @user_addr: the front-end's own address of it, which ring addresses use
 * @host: where it is mapped here
 */
struct moat_region {
	uint64_t guest_addr;
	uint64_t size;
	uint64_t user_addr;
	uint8_t *host;
};

struct moat_memmap {
	struct moat_region *regions;
	uint32_t n, max;
	uint32_t last; /* where the last lookup hit */
};

/** moat_memmap_init() - an empty map over @max caller-owned @regions */
void moat_memmap_init(struct moat_memmap *map, struct moat_region *regions,
		      uint32_t max);

/**
 * moat_memmap_add() - add a region
 *
 * Return: 0, or -1 if the region is empty, wraps around in either address
 * space, overlaps another in either, or if the table is full. Nothing changes
 * on failure.
 */
int moat_memmap_add(struct moat_memmap *map, const struct moat_region *region);

/**
 * moat_memmap_del() - remove the region that has exactly these addresses
 * @removed: set to what was removed, so that the caller can unmap it
 *
 * Return: 0, or -1 if there is no such region.
 */
int moat_memmap_del(struct moat_memmap *map, uint64_t guest_addr,
		    uint64_t user_addr, uint64_t size,
		    struct moat_region *removed);

/**
 * moat_memmap_at() - host pointer of a guest address
 * @want: bytes wanted from there on
 * @got: set to how many of them lie in the same region (at least 1 if @want)
 *
 * Return: the pointer, or NULL if @addr lies in no region.
 */
uint8_t *moat_memmap_at(struct moat_memmap *map, uint64_t addr, uint64_t want,
			uint64_t *got);

/** moat_memmap_covers() - is each byte of the range guest memory? */
bool moat_memmap_covers(struct moat_memmap *map, uint64_t addr, uint64_t len);

/**
 * moat_memmap_user() - host pointer of @len bytes at a front-end address
 *
 * Return: the pointer, or NULL unless the whole range lies in one region.
 */
uint8_t *moat_memmap_user(const struct moat_memmap *map, uint64_t user_addr,
			  uint64_t len);

/**
 * moat_memmap_read() - copy guest memory out; moat_memmap_write() - copy in
 *
 * Return: 0, or -1 if the range leaves guest memory (bytes before the gap may
 * have been copied: callers check with moat_memmap_covers() when they take the
 * address, and treat a failure here as a region that was removed since).
 */
int moat_memmap_read(struct moat_memmap *map, void *dst, uint64_t addr,
		     uint64_t len);
int moat_memmap_write(struct moat_memmap *map, uint64_t addr, const void *src,
		      uint64_t len);

#endif
