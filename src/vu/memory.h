/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory as a front-end's messages describe it, mapped here.
 *
 * Whoever serves a front-end (the guard, a backend) has one of these: the table
 * of core/memmap.h and the mappings behind it.
 */
#ifndef MOAT_VU_MEMORY_H
#define MOAT_VU_MEMORY_H

#include <stdint.h>

#include "core/memmap.h"
#include "core/vring.h"
#include "os/log.h"
#include "vu/proto.h"

/* Regions that a front-end may add; each costs a mapping here. */
#define MOAT_VU_MEMORY_MAX 509u

struct moat_vu_memory {
	struct moat_memmap map;
	struct moat_region regions[MOAT_VU_MEMORY_MAX];
	struct moat_log *log;
};

/** moat_vu_memory_init() - no memory yet */
void moat_vu_memory_init(struct moat_vu_memory *mem, struct moat_log *log);

/** moat_vu_memory_fini() - unmap all of it */
void moat_vu_memory_fini(struct moat_vu_memory *mem);

/**
 * moat_vu_memory_map() - map @n regions in place of what @mem had (an empty
 * one)
 * @fds: one each; they stay the caller's
 *
 * Return: 0, or a negative errno, logged, with nothing mapped.
 */
int moat_vu_memory_map(struct moat_vu_memory *mem,
		       const struct moat_vu_mem_region *regions, uint32_t n,
		       const int *fds);

/** moat_vu_memory_replace() - @mem becomes what @with is, which is then empty
 */
void moat_vu_memory_replace(struct moat_vu_memory *mem,
			    struct moat_vu_memory *with);

/**
 * moat_vu_memory_add() - one more region (ADD_MEM_REG)
 *
 * Return: 0 or a negative errno, logged.
 */
int moat_vu_memory_add(struct moat_vu_memory *mem,
		       const struct moat_vu_mem_region *region, int fd);

/**
 * moat_vu_memory_take() - take a region out of the table (REM_MEM_REG)
 * @gone: set to it; still mapped: the caller unmaps it with moat_mem_unmap()
 *
 * Return: 0, or -ENOENT, logged.
 */
int moat_vu_memory_take(struct moat_vu_memory *mem,
			const struct moat_vu_mem_region *region,
			struct moat_region *gone);

/** struct moat_ring_sizes - bytes of a ring's three parts */
struct moat_ring_sizes {
	uint32_t desc, avail, used;
};

/** moat_ring_sizes() - virtio 1.4, 2.7; 2.8: packed rings have event structs */
static inline struct moat_ring_sizes moat_ring_sizes(uint32_t num, bool packed)
{
	return (struct moat_ring_sizes){
		.desc = moat_vring_desc_size(num),
		.avail = packed ? 4 : moat_vring_avail_size(num),
		.used = packed ? 4 : moat_vring_used_size(num),
	};
}

/**
 * moat_vu_find_ring() - find and check a queue's ring
 * @addr: as SET_VRING_ADDR gave it, or NULL if it did not
 * @num: as SET_VRING_NUM gave it, 0 if it did not
 * @packed: the format that was negotiated
 *
 * Return: 0 with @ring set, or a negative errno, logged.
 */
int moat_vu_find_ring(struct moat_vu_memory *mem, uint32_t index,
		      const struct moat_vu_vring_addr *addr, uint32_t num,
		      bool packed, struct moat_vring *ring);

#endif
