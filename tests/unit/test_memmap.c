/* SPDX-License-Identifier: Apache-2.0 */
#include "support.h"

#include "core/memmap.h"

#define TOP UINT64_MAX

static struct moat_region table[8];
static uint8_t bytes[8][4096];

static int add(struct moat_memmap *m, uint64_t guest, uint64_t size,
	       uint64_t user, uint8_t *host)
{
	struct moat_region r = { guest, size, user, host };

	return moat_memmap_add(m, &r);
}

static void regions_are_kept_sorted_whatever_the_order(void **state)
{
	static const uint64_t at[] = { 0x5000, 0x1000, 0x9000, 0x3000, 0x7000 };
	struct moat_memmap m;

	(void)state;
	moat_memmap_init(&m, table, 8);
	for (size_t i = 0; i < ARRAY_SIZE(at); i++)
		assert_int_equal(add(&m, at[i], 0x1000, at[i], bytes[i]), 0);
	for (uint32_t i = 1; i < m.n; i++)
		assert_true(table[i - 1].guest_addr < table[i].guest_addr);
}

static void overlap_in_either_address_space_is_refused(void **state)
{
	struct moat_memmap m;

	(void)state;
	moat_memmap_init(&m, table, 8);
	assert_int_equal(add(&m, 0x2000, 0x1000, 0x82000, bytes[0]), 0);
	assert_int_equal(add(&m, 0x2fff, 1, 0x1000, bytes[1]), -1);
	assert_int_equal(add(&m, 0x1000, 0x1001, 0x1000, bytes[1]), -1);
	assert_int_equal(add(&m, 0x1000, 0x3000, 0x1000, bytes[1]), -1);
	assert_int_equal(add(&m, 0x2800, 0x10, 0x1000, bytes[1]), -1);
	assert_int_equal(add(&m, 0x9000, 0x1000, 0x82fff, bytes[1]), -1);
	assert_int_equal(add(&m, 0x9000, 0x1000, 0x81001, bytes[1]), -1);
	assert_int_equal(add(&m, 0, TOP, 0x1000000, bytes[1]), -1);
	assert_int_equal(m.n, 1);
	/* Touching is not overlapping. */
	assert_int_equal(add(&m, 0x3000, 0x1000, 0x81000, bytes[1]), 0);
	assert_int_equal(add(&m, 0x1000, 0x1000, 0x83000, bytes[2]), 0);
}

static void wrap_around_and_empty_regions_are_refused(void **state)
{
	struct moat_memmap m;

	(void)state;
	moat_memmap_init(&m, table, 8);
	assert_int_equal(add(&m, 0x1000, 0, 0x1000, bytes[0]), -1);
	assert_int_equal(add(&m, TOP, 2, 0x1000, bytes[0]), -1);
	assert_int_equal(add(&m, 0x1000, 2, TOP, bytes[0]), -1);
	assert_int_equal(add(&m, 2, TOP, 0, bytes[0]), -1);
	assert_int_equal(m.n, 0);
}

static void a_region_may_end_at_2_to_the_64(void **state)
{
	struct moat_memmap m;
	uint8_t buf[16];
	uint64_t got;

	(void)state;
	moat_memmap_init(&m, table, 8);
	assert_int_equal(add(&m, TOP - 0xfff, 0x1000, TOP - 0xfff, bytes[0]),
			 0);
	assert_int_equal(add(&m, 0, 0x1000, 0, bytes[1]), 0);
	assert_ptr_equal(moat_memmap_at(&m, TOP, 1, &got), bytes[0] + 0xfff);
	assert_int_equal(got, 1);
	assert_ptr_equal(moat_memmap_at(&m, TOP - 1, 16, &got),
			 bytes[0] + 0xffe);
	assert_int_equal(got, 2);
	assert_true(moat_memmap_covers(&m, TOP - 0xfff, 0x1000));
	assert_ptr_equal(moat_memmap_user(&m, TOP, 1), bytes[0] + 0xfff);
	assert_null(moat_memmap_user(&m, TOP, 2));
	/* Address 0 is no continuation of 2^64 - 1. */
	assert_false(moat_memmap_covers(&m, TOP, 2));
	assert_int_equal(moat_memmap_read(&m, buf, TOP - 3, 8), -1);
	assert_int_equal(moat_memmap_write(&m, TOP - 3, buf, 8), -1);
	assert_int_equal(moat_memmap_read(&m, buf, TOP - 3, 4), 0);
}

static void adjacent_regions_are_one_range_and_a_gap_ends_it(void **state)
{
	struct moat_memmap m;
	uint8_t buf[32];
	uint64_t got;

	(void)state;
	moat_memmap_init(&m, table, 8);
	add(&m, 0x1000, 0x1000, 0x1000, bytes[0]);
	add(&m, 0x2000, 0x1000, 0x8000, bytes[1]);
	add(&m, 0x3001, 0x100, 0x9000, bytes[2]);
	assert_true(moat_memmap_covers(&m, 0x1000, 0x2000));
	assert_false(moat_memmap_covers(&m, 0x1000, 0x2001));
	assert_false(moat_memmap_covers(&m, 0xfff, 2));
	assert_non_null(moat_memmap_at(&m, 0x1ff8, 32, &got));
	assert_int_equal(got, 8);
	/* A ring must lie in one region: its user range does not go on. */
	assert_null(moat_memmap_user(&m, 0x1ff8, 32));
	for (int i = 0; i < 32; i++)
		buf[i] = (uint8_t)(i + 1);
	assert_int_equal(moat_memmap_write(&m, 0x1ff0, buf, 32), 0);
	assert_memory_equal(bytes[0] + 0xff0, buf, 16);
	assert_memory_equal(bytes[1], buf + 16, 16);
	memset(buf, 0, 32);
	assert_int_equal(moat_memmap_read(&m, buf, 0x1ff0, 32), 0);
	assert_memory_equal(buf + 16, bytes[1], 16);
	assert_int_equal(moat_memmap_read(&m, buf, 0x2ff0, 32), -1);
	assert_true(moat_memmap_covers(&m, 0x5000, 0));
}

static void del_takes_exactly_the_named_region(void **state)
{
	struct moat_region gone;
	struct moat_memmap m;
	uint64_t got;

	(void)state;
	moat_memmap_init(&m, table, 8);
	add(&m, 0x1000, 0x1000, 0x11000, bytes[0]);
	add(&m, 0x2000, 0x1000, 0x12000, bytes[1]);
	/* The last hit must not survive its region. */
	assert_non_null(moat_memmap_at(&m, 0x2000, 1, &got));
	assert_int_equal(moat_memmap_del(&m, 0x2000, 0x12000, 0x800, &gone),
			 -1);
	assert_int_equal(moat_memmap_del(&m, 0x2000, 0x11000, 0x1000, &gone),
			 -1);
	assert_int_equal(moat_memmap_del(&m, 0x2001, 0x12000, 0x1000, &gone),
			 -1);
	assert_int_equal(moat_memmap_del(&m, 0x2000, 0x12000, 0x1000, &gone),
			 0);
	assert_ptr_equal(gone.host, bytes[1]);
	assert_null(moat_memmap_at(&m, 0x2000, 1, &got));
	assert_non_null(moat_memmap_at(&m, 0x1fff, 1, &got));
	assert_int_equal(add(&m, 0x2000, 0x1000, 0x12000, bytes[2]), 0);
	assert_ptr_equal(moat_memmap_at(&m, 0x2000, 1, &got), bytes[2]);
}

static void a_full_table_takes_no_more_and_keeps_what_it_has(void **state)
{
	struct moat_memmap m;
	uint64_t got;

	(void)state;
	moat_memmap_init(&m, table, 2);
	assert_int_equal(add(&m, 0x1000, 0x1000, 0x1000, bytes[0]), 0);
	assert_int_equal(add(&m, 0x3000, 0x1000, 0x3000, bytes[1]), 0);
	assert_int_equal(add(&m, 0x2000, 0x1000, 0x2000, bytes[2]), -1);
	assert_null(moat_memmap_at(&m, 0x2000, 1, &got));
	assert_ptr_equal(moat_memmap_at(&m, 0x3000, 1, &got), bytes[1]);
}

/*
 * The oracle: a small universe of cells, each either unmapped or backed by a
 * host byte, in both address spaces. One cell is one byte of address.
 */
#define CELLS 128u

struct oracle {
	uint64_t base; /* guest address of cell 0 */
	uint64_t user_base;
	uint8_t *guest[CELLS];
	uint8_t *user[CELLS];
	struct moat_region live[8];
	uint32_t n;
};

static bool oracle_add(struct oracle *o, const struct moat_region *r)
{
	uint64_t g = r->guest_addr - o->base, u = r->user_addr - o->user_base;

	if (!r->size || o->n == 8 || g + r->size > CELLS || u + r->size > CELLS)
		return false;
	for (uint64_t i = 0; i < r->size; i++)
		if (o->guest[g + i] || o->user[u + i])
			return false;
	for (uint64_t i = 0; i < r->size; i++) {
		o->guest[g + i] = r->host + i;
		o->user[u + i] = r->host + i;
	}
	o->live[o->n++] = *r;
	return true;
}

static void oracle_del(struct oracle *o, uint32_t k)
{
	struct moat_region *r = &o->live[k];

	for (uint64_t i = 0; i < r->size; i++) {
		o->guest[r->guest_addr - o->base + i] = NULL;
		o->user[r->user_addr - o->user_base + i] = NULL;
	}
	*r = o->live[--o->n];
}

/* Past the universe lies address space, except where it ends at 2^64. */
static bool oracle_knows(const struct oracle *o, const struct moat_region *r)
{
	uint64_t guest_end = r->guest_addr - o->base + r->size;
	uint64_t user_end = r->user_addr - o->user_base + r->size;

	return (guest_end <= CELLS || o->base == 0 - (uint64_t)CELLS) &&
	       (user_end <= CELLS || o->user_base == 0 - (uint64_t)CELLS);
}

static void check_lookup(struct moat_memmap *m, struct oracle *o, uint32_t cell,
			 uint64_t len)
{
	uint64_t addr = o->base + cell, n = 0, got = 0;
	bool all = cell + len <= CELLS;
	uint8_t in[CELLS], *p;

	while (n < len && cell + n < CELLS && o->guest[cell + n])
		n++;
	all = all && n == len;
	assert_int_equal(moat_memmap_covers(m, addr, len), all);
	assert_int_equal(moat_memmap_read(m, in, addr, len), all ? 0 : -1);
	for (uint64_t i = 0; all && i < len; i++)
		assert_int_equal(in[i], *o->guest[cell + i]);
	if (cell >= CELLS)
		return;
	p = moat_memmap_at(m, addr, len, &got);
	assert_ptr_equal(p, o->guest[cell]);
	if (p && len) {
		assert_true(got >= 1 && got <= n);
		for (uint64_t i = 0; i < got; i++)
			assert_ptr_equal(p + i, o->guest[cell + i]);
	}
	/* One region is one run of host bytes here: none touch in memory. */
	p = moat_memmap_user(m, o->user_base + cell, len ? len : 1);
	n = 0;
	while (n < (len ? len : 1) && cell + n < CELLS && o->user[cell] &&
	       o->user[cell + n] == o->user[cell] + n)
		n++;
	assert_ptr_equal(p, n == (len ? len : 1) ? o->user[cell] : NULL);
}

static void random_operations_agree_with_the_oracle(void **state)
{
	static const uint64_t bases[] = { 0, UINT64_C(0xffffff80), /* 2^32 */
					  0 - (uint64_t)CELLS };
	uint8_t *host = must_alloc(64 * 512);
	struct rng r = { 1 };

	(void)state;
	rnd_fill(&r, host, 64 * 512);
	for (size_t b = 0; b < ARRAY_SIZE(bases); b++) {
		struct oracle o = { .base = bases[b],
				    .user_base = bases[2 - b] };
		struct moat_region gone;
		struct moat_memmap m;

		moat_memmap_init(&m, table, 8);
		for (int op = 0; op < 20000; op++) {
			struct moat_region reg = {
				.guest_addr = o.base + rnd_below(&r, CELLS),
				.user_addr = o.user_base + rnd_below(&r, CELLS),
				.size = rnd_below(&r, 24),
				/* A gap between any two host ranges. */
				.host = host + 64 * rnd_below(&r, 512),
			};
			uint32_t k;
			bool reused = false;

			for (k = 0; k < o.n; k++)
				reused |= o.live[k].host == reg.host;
			k = rnd_below(&r, 8);
			if (rnd_below(&r, 3) && !reused &&
			    oracle_knows(&o, &reg)) {
				bool ok = oracle_add(&o, &reg);

				assert_int_equal(moat_memmap_add(&m, &reg),
						 ok ? 0 : -1);
			} else if (k < o.n) {
				reg = o.live[k];
				oracle_del(&o, k);
				assert_int_equal(
					moat_memmap_del(&m, reg.guest_addr,
							reg.user_addr, reg.size,
							&gone),
					0);
				assert_ptr_equal(gone.host, reg.host);
			}
			assert_int_equal(m.n, o.n);
			for (int i = 0; i < 4; i++)
				check_lookup(&m, &o, rnd_below(&r, CELLS),
					     rnd_below(&r, 64));
		}
	}
	free(host);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(regions_are_kept_sorted_whatever_the_order),
		cmocka_unit_test(overlap_in_either_address_space_is_refused),
		cmocka_unit_test(wrap_around_and_empty_regions_are_refused),
		cmocka_unit_test(a_region_may_end_at_2_to_the_64),
		cmocka_unit_test(
			adjacent_regions_are_one_range_and_a_gap_ends_it),
		cmocka_unit_test(del_takes_exactly_the_named_region),
		cmocka_unit_test(
			a_full_table_takes_no_more_and_keeps_what_it_has),
		cmocka_unit_test(random_operations_agree_with_the_oracle),
	};

	return cmocka_run_group_tests_name("memmap", tests, NULL, NULL);
}
