/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The restricted pool: the only memory that a device sees.
 *
 *     slot  0                                                       slots
 *           | rings | share of queue 0 | share of queue 1 | common ... |
 *
 * The pool hands out runs of contiguous slots. Each queue has a share of its
 * own, carved out when the queue starts, so that no queue can starve another;
 * what is left is common. A run comes from the queue's share if it fits there,
 * else from the common part. A queue that found no room in the common part has
 * first claim on it: until it is served, others live on their shares.
 *
 * The lowest free run is taken, so that a lightly used pool stays within few
 * cache lines however large it is. All metadata is the caller's memory,
 * outside the pool: a device can not reach it.
 */
#ifndef MOAT_CORE_POOL_H
#define MOAT_CORE_POOL_H

#include <stdbool.h>
#include <stdint.h>

#define MOAT_SLOT_SHIFT 12u
#define MOAT_SLOT_SIZE (1u << MOAT_SLOT_SHIFT) /* bytes */

/** moat_pool_words() - 64-bit words of metadata for @slots slots */
#define moat_pool_words(slots) (((slots) + 63u) / 64u)

/** struct moat_arena - a range of slots with a bit for each; 1 is free */
struct moat_arena {
	uint64_t *bits;
	uint32_t first; /* slot number of bit 0 */
	uint32_t n;
	uint32_t free; /* slots now free */
	uint32_t hint; /* no bit below is 1 */
};

/** struct moat_pool_stats - in slots; failures in allocations refused */
struct moat_pool_stats {
	uint32_t used;
	uint32_t high_water;
	uint64_t failures;
};

/** struct moat_share - what one queue may take */
struct moat_share {
	struct moat_arena own;
	struct moat_pool_stats stats;
};

struct moat_pool {
	struct moat_arena common;
	uint32_t slots;
	const struct moat_share *waiter; /* first claim on the common part */
	uint32_t carved;		 /* carved runs now held */
	uint32_t carved_end; /* each of them ends at or below this slot */
	struct moat_pool_stats stats; /* of runs; what is carved is not in it */
};

/** struct moat_run - what was allocated; n is 0 for nothing */
struct moat_run {
	uint32_t first; /* slot number in the pool */
	uint32_t n;
};

/**
 * moat_pool_init() - a pool of @slots free slots
 * @bits: moat_pool_words(@slots) words
 */
void moat_pool_init(struct moat_pool *pool, uint32_t slots, uint64_t *bits);

/**
 * moat_pool_carve() - take @n contiguous slots for as long as a queue lives
 * @align: as in moat_pool_alloc()
 *
 * For rings and the like (coherent memory). Carved runs lie at the low end, so
 * that what remains for requests is contiguous.
 *
 * Return: 0, or -1 if there is no such run now.
 */
int moat_pool_carve(struct moat_pool *pool, uint32_t n, uint32_t align,
		    struct moat_run *run);

/** moat_pool_uncarve() - give it back; an empty run is fine; @run is emptied */
void moat_pool_uncarve(struct moat_pool *pool, struct moat_run *run);

/**
 * moat_share_open() - carve a share of @slots out of the common part
 * @bits: moat_pool_words(@slots) words
 *
 * Return: 0, or -1 if the common part has no such run; the share is then
 * empty and can still be used: it lives on the common part.
 */
int moat_share_open(struct moat_pool *pool, struct moat_share *share,
		    uint32_t slots, uint64_t *bits);

/** moat_share_close() - return a share. Each run taken through it is free. */
void moat_share_close(struct moat_pool *pool, struct moat_share *share);

/**
 * moat_pool_alloc() - take @n contiguous slots
 * @share: the queue's; its own slots are tried first
 * @n: slots, at least 1
 * @align: the run begins at a multiple of this many slots, a power of two
 * @run: set on success
 *
 * Return: 0, or -1 if there is no such run now.
 */
int moat_pool_alloc(struct moat_pool *pool, struct moat_share *share,
		    uint32_t n, uint32_t align, struct moat_run *run);

/**
 * moat_pool_yield() - @share waits no longer
 *
 * For a queue that will not try again: one that broke or was disabled must
 * not keep its claim on the common part.
 */
void moat_pool_yield(struct moat_pool *pool, const struct moat_share *share);

/** moat_pool_free() - give a run back; an empty run is fine; @run is emptied */
void moat_pool_free(struct moat_pool *pool, struct moat_share *share,
		    struct moat_run *run);

/**
 * moat_pool_limit() - slots of the largest run @share could ever get
 *
 * A request above it can never fit: it has to be refused, not to wait.
 */
uint32_t moat_pool_limit(const struct moat_pool *pool,
			 const struct moat_share *share);

#endif
