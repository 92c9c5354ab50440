/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pool against an array with a byte for each slot. The oracle says exactly
 * which run each call must return: the lowest one that fits.
 */
#include "support.h"

#include "core/pool.h"

#define MAX_SLOTS 4096u
#define NSHARES 3u
#define COMMON 0u	  /* a free slot of the common part */
#define OWN(k) (1u + (k)) /* a free slot of share k */
#define CARVED 100u
#define TAKEN 101u

struct held {
	struct moat_run run;
	uint32_t share;
};

struct oracle {
	uint8_t slot[MAX_SLOTS];
	uint32_t slots;
	uint32_t low; /* all that is carved lies below this slot */
	int waiter;   /* share, or -1 */
	struct moat_pool_stats all, of[NSHARES];
	struct held held[256];
	uint32_t nheld;
};

struct world {
	struct moat_pool pool;
	struct moat_share share[NSHARES];
	uint64_t *bits[NSHARES + 1];
	struct rng rng;
	struct oracle o;
};

static void world_make(struct world *w, uint32_t slots, uint64_t seed)
{
	memset(w, 0, sizeof(*w));
	w->rng.s = seed;
	w->o.slots = slots;
	w->o.waiter = -1;
	for (uint32_t i = 0; i <= NSHARES; i++) {
		/* Exactly as much as is asked for, so that ASan guards it. */
		w->bits[i] = malloc(8 * moat_pool_words(slots));
		assert_non_null(w->bits[i]);
	}
	moat_pool_init(&w->pool, slots, w->bits[NSHARES]);
}

static void world_free(struct world *w)
{
	for (uint32_t i = 0; i <= NSHARES; i++)
		free(w->bits[i]);
}

/* The lowest aligned run of @n slots that are all @kind; UINT32_MAX: none. */
static uint32_t lowest(const struct oracle *o, uint32_t kind, uint32_t n,
		       uint32_t align)
{
	uint32_t run = 0;

	for (uint32_t i = 0; i + n <= o->slots; i += align) {
		for (run = 0; run < n && o->slot[i + run] == kind; run++)
			;
		if (run == n)
			return i;
	}
	return UINT32_MAX;
}

static void mark(struct oracle *o, const struct moat_run *run, uint32_t kind)
{
	memset(o->slot + run->first, (int)kind, run->n);
}

static void open_share(struct world *w, uint32_t k, uint32_t n)
{
	uint32_t at = n ? lowest(&w->o, COMMON, n, 1) : UINT32_MAX;
	struct moat_run run = { at, n };

	assert_int_equal(moat_share_open(&w->pool, &w->share[k], n, w->bits[k]),
			 at == UINT32_MAX ? -1 : 0);
	assert_int_equal(w->share[k].own.n, at == UINT32_MAX ? 0 : n);
	if (at == UINT32_MAX)
		return;
	assert_int_equal(w->share[k].own.first, at);
	w->o.low = at + n;
	mark(&w->o, &run, OWN(k));
}

static void note(struct moat_pool_stats *s, int64_t n)
{
	if (!n)
		s->failures++;
	s->used = (uint32_t)(s->used + n);
	if (s->used > s->high_water)
		s->high_water = s->used;
}

static void alloc(struct world *w)
{
	uint32_t k = rnd_below(&w->rng, NSHARES), n, align, at;
	uint32_t kind = OWN(k), most = w->o.slots / 4 + 2;
	struct oracle *o = &w->o;
	struct held *h = &o->held[o->nheld];
	bool ok;

	if (o->nheld == ARRAY_SIZE(o->held))
		return;
	n = 1 + rnd_below(&w->rng, rnd_below(&w->rng, 4) ? 12 : most);
	align = 1u << rnd_below(&w->rng, rnd_below(&w->rng, 2) ? 1 : 6);
	at = lowest(o, kind, n, align);
	if (at == UINT32_MAX && (o->waiter < 0 || o->waiter == (int)k)) {
		kind = COMMON;
		at = lowest(o, kind, n, align);
	}
	ok = at != UINT32_MAX;
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[k], n, align,
					 &h->run),
			 ok ? 0 : -1);
	note(&o->all, ok ? n : 0);
	note(&o->of[k], ok ? n : 0);
	if (!ok) {
		if (o->waiter < 0 && n <= o->slots - o->low)
			o->waiter = (int)k;
		return;
	}
	assert_int_equal(h->run.first, at);
	assert_int_equal(h->run.n, n);
	if (o->waiter == (int)k)
		o->waiter = -1;
	h->share = k;
	mark(o, &h->run, TAKEN);
	o->nheld++;
}

static void release(struct world *w, uint32_t i)
{
	struct oracle *o = &w->o;
	struct held h = o->held[i];
	struct moat_arena *own = &w->share[h.share].own;
	bool mine = own->n && h.run.first >= own->first &&
		    h.run.first < own->first + own->n;

	moat_pool_free(&w->pool, &w->share[h.share], &o->held[i].run);
	assert_int_equal(o->held[i].run.n, 0);
	mark(o, &h.run, mine ? OWN(h.share) : COMMON);
	o->all.used -= h.run.n;
	o->of[h.share].used -= h.run.n;
	o->held[i] = o->held[--o->nheld];
}

static void check_counters(struct world *w)
{
	uint32_t count[256] = { 0 };

	for (uint32_t i = 0; i < w->o.slots; i++)
		count[w->o.slot[i]]++;
	assert_int_equal(w->pool.common.free, count[COMMON]);
	assert_memory_equal(&w->pool.stats, &w->o.all, sizeof(w->o.all));
	for (uint32_t k = 0; k < NSHARES; k++) {
		assert_int_equal(w->share[k].own.free, count[OWN(k)]);
		assert_memory_equal(&w->share[k].stats, &w->o.of[k],
				    sizeof(w->o.all));
	}
}

static void random_runs_are_the_lowest_that_the_oracle_finds(void **state)
{
	static const uint32_t sizes[] = { 1, 63, 64, 65, 200, 1000 };
	struct world *w = malloc(sizeof(*w));

	(void)state;
	assert_non_null(w);
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct moat_run rings;

		world_make(w, sizes[i], i);
		if (!moat_pool_carve(&w->pool, 3, 1, &rings))
			mark(&w->o, &rings, CARVED);
		w->o.low = rings.n;
		open_share(w, 0, sizes[i] / 8);
		open_share(w, 1, sizes[i] / 5);
		open_share(w, 2, sizes[i]); /* no room: an empty share */
		for (int op = 0; op < 6000; op++) {
			if (rnd_below(&w->rng, 2))
				alloc(w);
			else if (w->o.nheld)
				release(w, rnd_below(&w->rng, w->o.nheld));
			check_counters(w);
		}
		while (w->o.nheld)
			release(w, 0);
		check_counters(w);
		assert_int_equal(w->pool.stats.used, 0);
		world_free(w);
	}
	free(w);
}

static void runs_of_4_mib_and_more_are_contiguous(void **state)
{
	struct world *w = malloc(sizeof(*w));
	struct moat_run run, rest, one;

	(void)state;
	assert_non_null(w);
	world_make(w, MAX_SLOTS, 1);
	moat_share_open(&w->pool, &w->share[0], 5, w->bits[0]);
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0], 1024, 1, &run),
			 0);
	assert_int_equal(run.first, 5);
	/* 16 MiB less the share and what was taken: the very last slot. */
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0],
					 MAX_SLOTS - 5 - 1024, 1, &rest),
			 0);
	assert_int_equal(rest.first + rest.n, MAX_SLOTS);
	assert_int_equal(w->pool.common.free, 0);
	for (int i = 0; i < 5; i++)
		assert_int_equal(
			moat_pool_alloc(&w->pool, &w->share[0], 1, 1, &one), 0);
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0], 1, 1, &one),
			 -1);
	moat_pool_free(&w->pool, &w->share[0], &run);
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0], 1025, 1, &one),
			 -1);
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0], 1024, 1, &run),
			 0);
	world_free(w);
	free(w);
}

static void the_longest_request_of_32_bits_does_not_overflow(void **state)
{
	struct world *w = malloc(sizeof(*w));
	struct moat_run run = { 7, 7 };

	(void)state;
	assert_non_null(w);
	world_make(w, 64, 1);
	assert_int_equal(moat_share_open(&w->pool, &w->share[0], UINT32_MAX,
					 w->bits[0]),
			 -1);
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0], UINT32_MAX, 1,
					 &run),
			 -1);
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0], 1,
					 UINT32_C(1) << 31, &run),
			 0);
	assert_int_equal(run.first, 0);
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0], 1,
					 UINT32_C(1) << 31, &run),
			 -1);
	assert_int_equal(moat_pool_carve(&w->pool, 0, 1, &run), -1);
	assert_int_equal(run.n, 0);
	moat_pool_uncarve(&w->pool, &run); /* an empty run is fine */
	world_free(w);
	free(w);
}

static void a_share_is_never_taken_by_another_queue(void **state)
{
	struct world *w = malloc(sizeof(*w));
	struct moat_run run;
	uint32_t n = 0;

	(void)state;
	assert_non_null(w);
	world_make(w, 100, 1);
	assert_int_equal(
		moat_share_open(&w->pool, &w->share[0], 20, w->bits[0]), 0);
	assert_int_equal(
		moat_share_open(&w->pool, &w->share[1], 30, w->bits[1]), 0);
	while (!moat_pool_alloc(&w->pool, &w->share[1], 1, 1, &run))
		n++;
	assert_int_equal(n, 80);
	/* Full for share 1, which waits; share 0 has all of its own. */
	assert_ptr_equal(w->pool.waiter, &w->share[1]);
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0], 20, 1, &run),
			 0);
	assert_int_equal(run.first, w->share[0].own.first);
	world_free(w);
	free(w);
}

static void the_first_to_wait_has_first_claim_on_the_common_part(void **state)
{
	struct world *w = malloc(sizeof(*w));
	struct moat_run big, small, own, run;

	(void)state;
	assert_non_null(w);
	world_make(w, 64, 1);
	moat_share_open(&w->pool, &w->share[0], 4, w->bits[0]);
	moat_share_open(&w->pool, &w->share[1], 4, w->bits[1]);
	moat_pool_alloc(&w->pool, &w->share[0], 40, 1, &big);
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[1], 20, 1, &run),
			 -1);
	/* 16 slots are free, but share 1 waits for 20: others must not nibble
	 * at them, or it would wait for ever. */
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0], 5, 1, &small),
			 -1);
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0], 4, 1, &own),
			 0);
	moat_pool_free(&w->pool, &w->share[0], &big);
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0], 5, 1, &small),
			 -1);
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[1], 20, 1, &run),
			 0);
	/* Served: the common part is everybody's again. */
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0], 5, 1, &small),
			 0);
	world_free(w);
	free(w);
}

static void a_claim_ends_with_its_share_or_when_given_up(void **state)
{
	struct world *w = malloc(sizeof(*w));
	struct moat_run run, small;

	(void)state;
	assert_non_null(w);
	world_make(w, 64, 1);
	moat_share_open(&w->pool, &w->share[0], 4, w->bits[0]);
	moat_share_open(&w->pool, &w->share[1], 4, w->bits[1]);
	moat_pool_alloc(&w->pool, &w->share[0], 40, 1, &run);
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[1], 20, 1, &small),
			 -1);
	moat_pool_yield(&w->pool, &w->share[0]); /* not the waiter */
	assert_ptr_equal(w->pool.waiter, &w->share[1]);
	moat_pool_yield(&w->pool, &w->share[1]);
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0], 5, 1, &small),
			 0);
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[1], 20, 1, &small),
			 -1);
	moat_share_close(&w->pool, &w->share[1]);
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0], 5, 1, &small),
			 0);
	world_free(w);
	free(w);
}

static void nobody_waits_for_what_the_common_part_can_never_serve(void **state)
{
	struct world *w = malloc(sizeof(*w));
	struct moat_run run;

	(void)state;
	assert_non_null(w);
	world_make(w, 64, 1);
	moat_share_open(&w->pool, &w->share[0], 40, w->bits[0]);
	moat_pool_alloc(&w->pool, &w->share[0], 1, 1, &run);
	/* Fits its own share once that is empty, but not the other 24. */
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0], 40, 1, &run),
			 -1);
	assert_null(w->pool.waiter);
	assert_int_equal(moat_pool_alloc(&w->pool, &w->share[1], 24, 1, &run),
			 0);
	world_free(w);
	free(w);
}

/* All that is not carved is free: what is the largest run then, really? */
static uint32_t largest(struct world *w, uint32_t k)
{
	uint32_t best = w->share[k].own.n, run = 0;

	for (uint32_t i = 0; i < w->o.slots; i++) {
		run = w->o.slot[i] == COMMON ? run + 1 : 0;
		best = run > best ? run : best;
	}
	return best;
}

static void a_request_at_the_limit_fits_once_the_rest_is_back(void **state)
{
	struct world *w = malloc(sizeof(*w));

	(void)state;
	assert_non_null(w);
	for (uint64_t seed = 0; seed < 300; seed++) {
		uint32_t limit, ncarved = 0;
		struct moat_run run, carved[8];

		world_make(w, 64 + (uint32_t)seed, seed);
		for (uint32_t i = 0; i < 8; i++) {
			uint32_t n = 1 + rnd_below(&w->rng, 12);

			if (i == 4)
				open_share(w, 0, 1 + rnd_below(&w->rng, 30));
			if (!moat_pool_carve(&w->pool, n, 1, &run)) {
				mark(&w->o, &run, CARVED);
				carved[ncarved++] = run;
			}
		}
		/* The last carved go first, so that no hole remains. */
		for (uint32_t i = rnd_below(&w->rng, 4); i; i--) {
			mark(&w->o, &carved[--ncarved], COMMON);
			moat_pool_uncarve(&w->pool, &carved[ncarved]);
		}
		limit = moat_pool_limit(&w->pool, &w->share[0]);
		assert_int_equal(limit, largest(w, 0));
		assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0],
						 limit + 1, 1, &run),
				 -1);
		assert_null(w->pool.waiter);
		assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0], limit,
						 1, &run),
				 0);
		world_free(w);
	}
	free(w);
}

static void the_limit_never_promises_too_much_whatever_has_holes(void **state)
{
	struct world *w = malloc(sizeof(*w));
	struct moat_run run, carved[12];

	(void)state;
	assert_non_null(w);
	for (uint64_t seed = 0; seed < 300; seed++) {
		uint32_t n = 0, limit;

		world_make(w, 128, seed);
		for (int op = 0; op < 40; op++) {
			uint32_t k = n ? rnd_below(&w->rng, n) : 0;

			if (n < 12 && rnd_below(&w->rng, 3)) {
				if (moat_pool_carve(&w->pool,
						    1 + rnd_below(&w->rng, 20),
						    1, &run))
					continue;
				mark(&w->o, &run, CARVED);
				carved[n++] = run;
			} else if (n) {
				mark(&w->o, &carved[k], COMMON);
				moat_pool_uncarve(&w->pool, &carved[k]);
				carved[k] = carved[--n];
			}
			limit = moat_pool_limit(&w->pool, &w->share[0]);
			assert_true(limit <= largest(w, 0));
			if (!n)
				assert_int_equal(limit, 128);
			if (!limit)
				continue;
			assert_int_equal(moat_pool_alloc(&w->pool, &w->share[0],
							 limit, 1, &run),
					 0);
			moat_pool_free(&w->pool, &w->share[0], &run);
		}
		world_free(w);
	}
	free(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			random_runs_are_the_lowest_that_the_oracle_finds),
		cmocka_unit_test(runs_of_4_mib_and_more_are_contiguous),
		cmocka_unit_test(
			the_longest_request_of_32_bits_does_not_overflow),
		cmocka_unit_test(a_share_is_never_taken_by_another_queue),
		cmocka_unit_test(
			the_first_to_wait_has_first_claim_on_the_common_part),
		cmocka_unit_test(a_claim_ends_with_its_share_or_when_given_up),
		cmocka_unit_test(
			nobody_waits_for_what_the_common_part_can_never_serve),
		cmocka_unit_test(
			a_request_at_the_limit_fits_once_the_rest_is_back),
		cmocka_unit_test(
			the_limit_never_promises_too_much_whatever_has_holes),
	};

	return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
