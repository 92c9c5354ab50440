/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory, a pool and one queue, each with a copy that the tests keep as
 * the oracle: after each step all of guest memory and all of the pool must be
 * what the copies say, so a byte too many anywhere is seen.
 */
#ifndef MOAT_TESTS_DMA_WORLD_H
#define MOAT_TESTS_DMA_WORLD_H

#include "support.h"

#include "core/dma.h"

#define POOL_ADDR UINT64_C(0x5500000000)
#define G0 0x10000u /* G0 and G1 touch in guest memory, but not here */
#define G1 (G0 + GSIZE)
#define G2 UINT64_C(0x100000000)
#define GSIZE 0x10000u
#define G2SIZE 0x80000u
#define GUEST_BYTES (2 * GSIZE + G2SIZE)

struct dma_world {
	struct moat_region regions[3];
	struct moat_memmap map;
	struct moat_pool pool;
	struct moat_dma dma;
	struct moat_dma_queue q;
	struct moat_dma_range share_set[2];
	struct moat_chain chain;
	struct moat_dma_mapped out;
	uint64_t *pool_bits, *share_bits;
	uint8_t *host; /* pool */
	uint8_t *pool_copy;
	uint8_t *guest_copy; /* G0, G1, G2 in a row */
	size_t pool_bytes;
	struct rng rng;
};

/* Offset in the copy of a guest address; the regions' order is the copy's. */
static inline size_t guest_off(uint64_t addr)
{
	return addr >= G2 ? addr - G2 + 2 * GSIZE : addr - G0;
}

static inline uint8_t *guest_host(struct dma_world *w, uint64_t addr)
{
	uint64_t got;
	uint8_t *p = moat_memmap_at(&w->map, addr, 1, &got);

	assert_non_null(p);
	return p;
}

static inline void world_make(struct dma_world *w, uint32_t slots,
			      uint32_t share, uint32_t num)
{
	static const uint64_t at[3] = { G0, G1, G2 };
	static const uint64_t size[3] = { GSIZE, GSIZE, G2SIZE };

	memset(w, 0, sizeof(*w));
	w->rng.s = slots;
	w->pool_bytes = (size_t)slots * 4096;
	w->guest_copy = must_alloc(GUEST_BYTES);
	rnd_fill(&w->rng, w->guest_copy, GUEST_BYTES);
	moat_memmap_init(&w->map, w->regions, 3);
	for (int i = 0; i < 3; i++) {
		struct moat_region r = { at[i], size[i], at[i],
					 must_alloc(size[i]) };

		memcpy(r.host, w->guest_copy + guest_off(at[i]), size[i]);
		assert_int_equal(moat_memmap_add(&w->map, &r), 0);
	}
	w->host = must_alloc(w->pool_bytes);
	w->pool_copy = must_alloc(w->pool_bytes);
	memset(w->host, 0xcd, w->pool_bytes);
	memset(w->pool_copy, 0xcd, w->pool_bytes);
	w->pool_bits = calloc(moat_pool_words(slots), 8);
	w->share_bits = calloc(moat_pool_words(slots), 8);
	moat_pool_init(&w->pool, slots, w->pool_bits);
	w->dma = (struct moat_dma){
		.guest = &w->map,
		.pool = &w->pool,
		.pool_host = w->host,
		.pool_addr = POOL_ADDR,
		.shared = w->share_set,
	};
	assert_int_equal(moat_dma_queue_init(&w->dma, &w->q, num,
					     calloc(moat_dma_chunks(num),
						    sizeof(*w->q.chunks))),
			 0);
	if (share)
		assert_int_equal(moat_share_open(&w->pool, &w->q.share, share,
						 w->share_bits),
				 0);
}

static inline void world_free(struct dma_world *w)
{
	for (int i = 0; i < 3; i++)
		free(w->regions[i].host);
	free(w->q.chunks);
	free(w->guest_copy);
	free(w->pool_copy);
	free(w->host);
	free(w->pool_bits);
	free(w->share_bits);
}

/* cmocka compares byte by byte, too slow for megabytes: only to show where. */
static inline void same_bytes(const void *a, const void *b, size_t n)
{
	if (memcmp(a, b, n))
		assert_memory_equal(a, b, n);
}

/* Is everything as the copies say? */
static inline void check_memory(struct dma_world *w)
{
	for (int i = 0; i < 3; i++)
		same_bytes(w->regions[i].host,
			   w->guest_copy + guest_off(w->regions[i].guest_addr),
			   w->regions[i].size);
	same_bytes(w->host, w->pool_copy, w->pool_bytes);
}

/* Append a segment to the chain, as a walk would leave it. */
static inline void add_seg(struct dma_world *w, uint64_t addr, uint32_t len,
			   bool write)
{
	struct moat_chain *c = &w->chain;

	c->seg[c->nread + c->nwrite] =
		(struct moat_seg){ .addr = addr, .len = len };
	if (write) {
		c->nwrite++;
		c->write_len += len;
	} else {
		c->nread++;
		c->read_len += len;
	}
}

static inline void new_chain(struct dma_world *w)
{
	w->chain.nread = w->chain.nwrite = 0;
	w->chain.read_len = w->chain.write_len = 0;
}

static inline bool in_pool(const struct dma_world *w, const struct moat_seg *s)
{
	return s->addr >= POOL_ADDR &&
	       s->addr + s->len <= POOL_ADDR + w->pool_bytes;
}

/* The oracle of copying in: readable bounced segments, nothing else. */
static inline void oracle_copy_in(struct dma_world *w)
{
	for (uint32_t i = 0; i < w->chain.nread; i++) {
		const struct moat_seg *o = &w->out.seg[i];

		if (in_pool(w, o))
			memcpy(w->pool_copy + (o->addr - POOL_ADDR),
			       w->guest_copy + guest_off(w->chain.seg[i].addr),
			       o->len);
	}
}

/*
 * Check a mapped request against its chain: order and lengths kept, each
 * segment in the pool (or, where @byref, at its own address), congruent to its
 * guest address as place() in dma.c promises, and disjoint from the others.
 */
static inline void check_mapped(struct dma_world *w, uint32_t cell,
				const struct moat_run *run)
{
	uint64_t cell_at = POOL_ADDR + 4096u * w->q.cells.first +
			   MOAT_DMA_CELL * (uint64_t)cell;
	uint64_t run_at = POOL_ADDR + 4096 * (uint64_t)run->first;
	uint64_t run_end = run_at + 4096 * (uint64_t)run->n, run_pos = run_at;
	uint64_t cell_pos = cell_at;

	for (uint32_t i = 0; i < w->chain.nread + w->chain.nwrite; i++) {
		const struct moat_seg *g = &w->chain.seg[i];
		const struct moat_seg *o = &w->out.seg[i];
		uint64_t mask = g->len >= 4096	? 4095
				: g->len >= 512 ? 511
						: 15;

		assert_int_equal(o->len, g->len);
		if (!in_pool(w, o)) {
			assert_true(w->dma.nshared);
			assert_int_equal(o->addr, g->addr);
		} else if (o->addr >= cell_pos &&
			   o->addr + o->len <= cell_at + MOAT_DMA_CELL) {
			assert_true(o->len < MOAT_DMA_SMALL);
			cell_pos = o->addr + o->len;
		} else {
			/* One run, in the order of the chain. */
			assert_true(o->addr >= run_pos &&
				    o->addr + o->len <= run_end);
			assert_int_equal(o->addr & mask, g->addr & mask);
			run_pos = o->addr + o->len;
		}
	}
}

#endif
