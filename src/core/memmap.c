/* SPDX-License-Identifier: Apache-2.0 */
#include <stddef.h>

#include "core/memmap.h"
#include "core/shm.h"

static bool overlaps(uint64_t a, uint64_t b, uint64_t a_size, uint64_t b_size)
{
	return a < b ? b - a < a_size : a - b < b_size;
}

/* Does the range run past 2^64? Ending exactly there is fine. */
static bool wraps(uint64_t addr, uint64_t len)
{
	return len && addr + (len - 1) < addr;
}

void moat_memmap_init(struct moat_memmap *map, struct moat_region *regions,
		      uint32_t max)
{
	*map = (struct moat_memmap){ .regions = regions, .max = max };
}

int moat_memmap_add(struct moat_memmap *map, const struct moat_region *r)
{
	uint32_t i;

	/* The last byte must exist; a region may end at 2^64. */
	if (!r->size || wraps(r->guest_addr, r->size) ||
	    wraps(r->user_addr, r->size) || map->n == map->max)
		return -1;
	for (i = 0; i < map->n; i++) {
		const struct moat_region *o = &map->regions[i];

		if (overlaps(r->guest_addr, o->guest_addr, r->size, o->size) ||
		    overlaps(r->user_addr, o->user_addr, r->size, o->size))
			return -1;
	}
	for (i = map->n; i && map->regions[i - 1].guest_addr > r->guest_addr;
	     i--)
		map->regions[i] = map->regions[i - 1];
	map->regions[i] = *r;
	map->n++;
	map->last = 0;
	return 0;
}

int moat_memmap_del(struct moat_memmap *map, uint64_t guest_addr,
		    uint64_t user_addr, uint64_t size,
		    struct moat_region *removed)
{
	for (uint32_t i = 0; i < map->n; i++) {
		struct moat_region *r = &map->regions[i];

		if (r->guest_addr != guest_addr || r->user_addr != user_addr ||
		    r->size != size)
			continue;
		*removed = *r;
		map->n--;
		for (; i < map->n; i++)
			map->regions[i] = map->regions[i + 1];
		map->last = 0;
		return 0;
	}
	return -1;
}

/* The region that holds @addr: the one of the last hit, or by bisection. */
static const struct moat_region *find(struct moat_memmap *map, uint64_t addr)
{
	uint32_t lo = 0, hi = map->n;

	if (map->last < map->n) {
		const struct moat_region *r = &map->regions[map->last];

		if (addr - r->guest_addr < r->size)
			return r;
	}
	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;
		const struct moat_region *r = &map->regions[mid];

		if (addr < r->guest_addr) {
			hi = mid;
		} else if (addr - r->guest_addr >= r->size) {
			lo = mid + 1;
		} else {
			map->last = mid;
			return r;
		}
	}
	return NULL;
}

uint8_t *moat_memmap_at(struct moat_memmap *map, uint64_t addr, uint64_t want,
			uint64_t *got)
{
	const struct moat_region *r = find(map, addr);
	uint64_t off, left;

	if (!r)
		return NULL;
	off = addr - r->guest_addr;
	left = r->size - off;
	*got = want < left ? want : left;
	return r->host + off;
}

bool moat_memmap_covers(struct moat_memmap *map, uint64_t addr, uint64_t len)
{
	uint64_t got;

	if (wraps(addr, len))
		return false;
	while (len) {
		if (!moat_memmap_at(map, addr, len, &got))
			return false;
		addr += got;
		len -= got;
	}
	return true;
}

uint8_t *moat_memmap_user(const struct moat_memmap *map, uint64_t user_addr,
			  uint64_t len)
{
	for (uint32_t i = 0; i < map->n; i++) {
		const struct moat_region *r = &map->regions[i];
		uint64_t off = user_addr - r->user_addr;

		if (off < r->size && len <= r->size - off)
			return r->host + off;
	}
	return NULL;
}

int moat_memmap_read(struct moat_memmap *map, void *dst, uint64_t addr,
		     uint64_t len)
{
	uint8_t *d = dst;
	uint64_t got;

	if (wraps(addr, len))
		return -1;
	while (len) {
		const uint8_t *p = moat_memmap_at(map, addr, len, &got);

		if (!p)
			return -1;
		moat_shm_copy_in(d, p, (size_t)got);
		d += got;
		addr += got;
		len -= got;
	}
	return 0;
}

int moat_memmap_write(struct moat_memmap *map, uint64_t addr, const void *src,
		      uint64_t len)
{
	const uint8_t *s = src;
	uint64_t got;

	if (wraps(addr, len))
		return -1;
	while (len) {
		uint8_t *p = moat_memmap_at(map, addr, len, &got);

		if (!p)
			return -1;
		moat_shm_copy_out(p, s, (size_t)got);
		s += got;
		addr += got;
		len -= got;
	}
	return 0;
}
