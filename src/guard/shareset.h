/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The share set: guest memory that the device may see as it is.
 *
 *     pools asked for (--pool)  x  regions of the VMM  -->  shared regions
 *
 * A pool is shared only in an fd that holds nothing else, for a backend that
 * has an fd can map all of it whatever it was told:
 *
 *     a region that lies inside a pool    its own fd, once it is proved to be
 *                                         exactly as long, and sealed
 *     a pool that lies inside a region    carved out of it by /dev/udmabuf
 *     anything else                       not shared, and why() says so
 *
 * Each shared region keeps its guest address, for the descriptors name it, and
 * gets a synthetic user address: nobody's virtual address leaves the guard.
 */
#ifndef MOAT_GUARD_SHARESET_H
#define MOAT_GUARD_SHARESET_H

#include <stdbool.h>
#include <stdint.h>

#include "core/dma.h"
#include "vu/proto.h"

/* With the bounce pool they make one SET_MEM_TABLE. */
#define MOAT_SHARED_MAX (MOAT_VU_REGIONS_MAX - 1)
#define MOAT_SHARED_USER_ADDR (UINT64_C(1) << 56)

/** struct moat_shared - one shared region */
struct moat_shared {
	uint64_t guest_addr;
	uint64_t size;
	uint64_t front_addr; /* the front-end's address of it */
	int fd;		     /* holds exactly @size bytes; owned */
};

struct moat_shareset {
	const struct moat_dma_range *pools; /* as asked for */
	uint32_t npools;
	int udmabuf_fd; /* /dev/udmabuf, or -1; not owned */
	uint32_t n;
	struct moat_shared regions[MOAT_SHARED_MAX];
	struct moat_dma_range ranges[MOAT_SHARED_MAX]; /* the same, for dma */
	char why[256]; /* why a pool is not shared; empty if none is known */
};

/** moat_shareset_init() - an empty set for @npools caller-owned pools */
void moat_shareset_init(struct moat_shareset *set,
			const struct moat_dma_range *pools, uint32_t npools,
			int udmabuf_fd);
void moat_shareset_fini(struct moat_shareset *set);

/**
 * moat_shareset_add() - the VMM has a region: share what can be shared of it
 * @fd: stays the caller's
 *
 * What can not be shared is no error: why then says the cause.
 */
void moat_shareset_add(struct moat_shareset *set,
		       const struct moat_vu_mem_region *region, int fd);

/** moat_shareset_del() - the region is gone, and what was shared of it */
void moat_shareset_del(struct moat_shareset *set, uint64_t guest_addr,
		       uint64_t size);

/** moat_shareset_same() - do both share the same bytes of the same files? */
bool moat_shareset_same(const struct moat_shareset *a,
			const struct moat_shareset *b);

/**
 * moat_shareset_user() - from a front-end address to a synthetic one
 *
 * Return: the backend's address of the @len bytes at @front_addr, or 0 if they
 * do not all lie in one shared region.
 */
uint64_t moat_shareset_user(const struct moat_shareset *set,
			    uint64_t front_addr, uint64_t len);

#endif
