/* SPDX-License-Identifier: Apache-2.0 */
#include <stddef.h>

#include "core/pool.h"

/* The first bit at or after @i that is @set; @n if there is none. */
static uint32_t next_bit(const uint64_t *bits, uint32_t i, uint32_t n, bool set)
{
	while (i < n) {
		uint64_t w = bits[i / 64];

		w = (set ? w : ~w) >> (i % 64);
		if (w) {
			i += (uint32_t)__builtin_ctzll(w);
			return i < n ? i : n;
		}
		i = (i | 63) + 1;
	}
	return n;
}

static void put_bits(uint64_t *bits, uint32_t i, uint32_t n, bool set)
{
	while (n) {
		uint32_t off = i % 64, k = 64 - off < n ? 64 - off : n;
		uint64_t mask =
			(k == 64 ? ~UINT64_C(0) : (UINT64_C(1) << k) - 1)
			<< off;

		if (set)
			bits[i / 64] |= mask;
		else
			bits[i / 64] &= ~mask;
		i += k;
		n -= k;
	}
}

static void arena_init(struct moat_arena *a, uint32_t first, uint32_t n,
		       uint64_t *bits)
{
	*a = (struct moat_arena){
		.bits = bits,
		.first = first,
		.n = n,
		.free = n,
	};
	for (uint32_t i = 0; i < moat_pool_words(n); i++)
		bits[i] = 0;
	put_bits(bits, 0, n, true);
}

/* Take the lowest run of @n slots; false if there is none. */
static bool arena_alloc(struct moat_arena *a, uint32_t n, uint32_t align,
			struct moat_run *run)
{
	uint32_t i, end;

	if (n > a->free)
		return false;
	i = next_bit(a->bits, a->hint, a->n, true);
	a->hint = i;
	for (;;) {
		/* Alignment is of the slot number in the pool. */
		i += (0 - (a->first + i)) & (align - 1);
		if (i >= a->n || n > a->n - i)
			return false;
		end = next_bit(a->bits, i, i + n, false);
		if (end == i + n)
			break;
		i = next_bit(a->bits, end, a->n, true);
	}
	put_bits(a->bits, i, n, false);
	a->free -= n;
	if (i == a->hint)
		a->hint = i + n;
	run->first = a->first + i;
	run->n = n;
	return true;
}

static void arena_free(struct moat_arena *a, const struct moat_run *run)
{
	uint32_t i = run->first - a->first;

	put_bits(a->bits, i, run->n, true);
	a->free += run->n;
	if (i < a->hint)
		a->hint = i;
}

static bool arena_owns(const struct moat_arena *a, const struct moat_run *run)
{
	return run->first - a->first < a->n;
}

static void account(struct moat_pool_stats *s, uint32_t n)
{
	s->used += n;
	if (s->used > s->high_water)
		s->high_water = s->used;
}

void moat_pool_init(struct moat_pool *pool, uint32_t slots, uint64_t *bits)
{
	*pool = (struct moat_pool){ .slots = slots };
	arena_init(&pool->common, 0, slots, bits);
}

int moat_pool_carve(struct moat_pool *pool, uint32_t n, uint32_t align,
		    struct moat_run *run)
{
	if (!n || !arena_alloc(&pool->common, n, align, run)) {
		run->n = 0;
		return -1;
	}
	pool->carved++;
	if (run->first + run->n > pool->carved_end)
		pool->carved_end = run->first + run->n;
	return 0;
}

void moat_pool_uncarve(struct moat_pool *pool, struct moat_run *run)
{
	if (!run->n)
		return;
	arena_free(&pool->common, run);
	/* Without a list, only the highest run's end is known to be gone. */
	if (run->first + run->n == pool->carved_end)
		pool->carved_end = run->first;
	if (!--pool->carved)
		pool->carved_end = 0;
	run->n = 0;
}

int moat_share_open(struct moat_pool *pool, struct moat_share *share,
		    uint32_t slots, uint64_t *bits)
{
	struct moat_run run;

	*share = (struct moat_share){ 0 };
	if (moat_pool_carve(pool, slots, 1, &run))
		return -1;
	arena_init(&share->own, run.first, run.n, bits);
	return 0;
}

void moat_share_close(struct moat_pool *pool, struct moat_share *share)
{
	struct moat_run run = { share->own.first, share->own.n };

	moat_pool_uncarve(pool, &run);
	moat_pool_yield(pool, share);
	*share = (struct moat_share){ 0 };
}

/* The largest run of the common part once every request is back. */
static uint32_t common_limit(const struct moat_pool *pool)
{
	return pool->slots - pool->carved_end;
}

void moat_pool_yield(struct moat_pool *pool, const struct moat_share *share)
{
	if (pool->waiter == share)
		pool->waiter = NULL;
}

static bool alloc_any(struct moat_pool *pool, struct moat_share *share,
		      uint32_t n, uint32_t align, struct moat_run *run)
{
	if (arena_alloc(&share->own, n, align, run))
		return true;
	return (!pool->waiter || pool->waiter == share) &&
	       arena_alloc(&pool->common, n, align, run);
}

int moat_pool_alloc(struct moat_pool *pool, struct moat_share *share,
		    uint32_t n, uint32_t align, struct moat_run *run)
{
	if (!alloc_any(pool, share, n, align, run)) {
		pool->stats.failures++;
		share->stats.failures++;
		/* No claim on what the common part can never serve. */
		if (!pool->waiter && n <= common_limit(pool))
			pool->waiter = share;
		return -1;
	}
	account(&pool->stats, n);
	account(&share->stats, n);
	moat_pool_yield(pool, share);
	return 0;
}

void moat_pool_free(struct moat_pool *pool, struct moat_share *share,
		    struct moat_run *run)
{
	if (!run->n)
		return;
	if (arena_owns(&share->own, run))
		arena_free(&share->own, run);
	else
		arena_free(&pool->common, run);
	pool->stats.used -= run->n;
	share->stats.used -= run->n;
	run->n = 0;
}

uint32_t moat_pool_limit(const struct moat_pool *pool,
			 const struct moat_share *share)
{
	uint32_t common = common_limit(pool);

	return share->own.n > common ? share->own.n : common;
}
