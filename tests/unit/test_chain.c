/* SPDX-License-Identifier: Apache-2.0 */
#include <sys/mman.h>

#include "support.h"

#include "core/chain.h"

#define NUM 16u
#define LOW 0x10000u  /* two adjacent regions of a page each */
#define FAR 0x100000u /* one page, a gap before it */
#define HUGE_AT UINT64_C(0x1000000000)
#define HUGE_SIZE (UINT64_C(8) << 30)

#define NX MOAT_DESC_F_NEXT
#define WR MOAT_DESC_F_WRITE
#define IND MOAT_DESC_F_INDIRECT

struct world {
	struct moat_region regions[5];
	struct moat_memmap map;
	struct test_ring ring;
	uint8_t *low0, *low1, *far, *huge;
	struct moat_chain chain;
	struct moat_fault fault;
};

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	assert_non_null(w);
	w->low0 = must_alloc(4096);
	w->low1 = must_alloc(4096);
	w->far = must_alloc(4096);
	/* Nobody touches it: the walk only looks at addresses. */
	w->huge = mmap(NULL, HUGE_SIZE, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_ptr_not_equal(w->huge, MAP_FAILED);
	moat_memmap_init(&w->map, w->regions, 5);
	struct moat_region r[] = {
		{ LOW, 4096, 0x1000, w->low0 },
		{ LOW + 4096, 4096, 0x8000, w->low1 },
		{ FAR, 4096, 0x20000, w->far },
		{ HUGE_AT, HUGE_SIZE, HUGE_AT, w->huge },
	};
	for (size_t i = 0; i < ARRAY_SIZE(r); i++)
		assert_int_equal(moat_memmap_add(&w->map, &r[i]), 0);
	ring_make(&w->ring, NUM);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	munmap(w->huge, HUGE_SIZE);
	free(w->low0);
	free(w->low1);
	free(w->far);
	ring_free(&w->ring);
	free(w);
	return 0;
}

static void direct(struct world *w, uint32_t i, uint64_t addr, uint32_t len,
		   uint16_t flags, uint16_t next)
{
	put_desc(w->ring.vring.desc, i, addr, len, flags, next);
}

static int walk(struct world *w, uint16_t head)
{
	memset(&w->fault, 0, sizeof(w->fault));
	return moat_chain_walk(&w->map, &w->ring.vring, head, true, &w->chain,
			       &w->fault);
}

static void expect_fault(struct world *w, enum moat_fault_code code,
			 uint64_t value, uint64_t limit)
{
	assert_int_equal(walk(w, 0), -1);
	assert_int_equal(w->fault.code, code);
	assert_int_equal(w->fault.value, value);
	assert_int_equal(w->fault.limit, limit);
}

static void expect_seg(struct world *w, uint32_t i, uint64_t addr, uint32_t len)
{
	assert_int_equal(w->chain.seg[i].addr, addr);
	assert_int_equal(w->chain.seg[i].len, len);
}

static void a_direct_chain_is_listed_in_order(void **state)
{
	struct world *w = *state;

	direct(w, 5, LOW, 16, NX, 2);
	direct(w, 2, FAR + 1, 100, NX | WR, 9);
	direct(w, 9, LOW + 8, 1, WR, 5 /* ignored without NEXT */);
	assert_int_equal(walk(w, 5), 0);
	assert_int_equal(w->chain.head, 5);
	assert_int_equal(w->chain.nread, 1);
	assert_int_equal(w->chain.nwrite, 2);
	assert_int_equal(w->chain.read_len, 16);
	assert_int_equal(w->chain.write_len, 101);
	expect_seg(w, 0, LOW, 16);
	expect_seg(w, 1, FAR + 1, 100);
	expect_seg(w, 2, LOW + 8, 1);
}

static void a_chain_as_long_as_the_ring_is_taken_and_a_loop_is_not(void **state)
{
	struct world *w = *state;

	for (uint16_t i = 0; i < NUM; i++)
		direct(w, i, LOW, 8, i + 1u < NUM ? NX : 0, (uint16_t)(i + 1u));
	assert_int_equal(walk(w, 0), 0);
	assert_int_equal(w->chain.nread, NUM);
	direct(w, NUM - 1, LOW, 8, NX, 0);
	expect_fault(w, MOAT_FAULT_CHAIN_LONG, NUM + 1, NUM);
	direct(w, 0, LOW, 8, NX, 0);
	expect_fault(w, MOAT_FAULT_CHAIN_LONG, NUM + 1, NUM);
	/* A loop of empty descriptors makes no segment, and still ends. */
	direct(w, 0, LOW, 0, NX, 0);
	expect_fault(w, MOAT_FAULT_CHAIN_LONG, NUM + 1, NUM);
}

static void next_out_of_range_names_the_index(void **state)
{
	struct world *w = *state;

	direct(w, 0, LOW, 8, NX, NUM);
	expect_fault(w, MOAT_FAULT_NEXT_RANGE, NUM, NUM - 1);
	direct(w, 0, LOW, 8, NX, 0xffff);
	expect_fault(w, MOAT_FAULT_NEXT_RANGE, 0xffff, NUM - 1);
	/* Within the ring, but not within the indirect table. */
	direct(w, 0, FAR, 32, IND, 0);
	put_desc(w->far, 0, LOW, 8, NX, 2);
	expect_fault(w, MOAT_FAULT_NEXT_RANGE, 2, 1);
}

static void readable_after_writable_is_refused_even_if_empty(void **state)
{
	struct world *w = *state;

	for (uint32_t wlen = 0; wlen < 2; wlen++) {
		for (uint32_t rlen = 0; rlen < 2; rlen++) {
			direct(w, 0, LOW, wlen, NX | WR, 1);
			direct(w, 1, FAR, rlen, 0, 0);
			expect_fault(w, MOAT_FAULT_DIRECTION, FAR, 0);
			direct(w, 0, LOW, wlen, NX | WR, 1);
			direct(w, 1, FAR, 16, IND, 0);
			put_desc(w->far, 0, LOW + 1, rlen, 0, 0);
			expect_fault(w, MOAT_FAULT_DIRECTION, LOW + 1, 0);
		}
	}
}

static void addresses_outside_guest_memory_are_refused(void **state)
{
	struct world *w = *state;
	static const struct {
		uint64_t addr;
		uint32_t len;
	} bad[] = {
		{ 0, 1 }, /* before all regions */
		{ LOW - 1, 2 },
		{ LOW + 8191, 2 }, /* into the gap */
		{ LOW + 8192, 1 }, /* in the gap */
		{ FAR + 4095, 2 }, /* over the end */
		{ FAR, UINT32_MAX },
		{ LOW, FAR - LOW + 1 }, /* both ends fine, a gap between */
		{ UINT64_MAX, 2 },	/* wraps */
		{ UINT64_MAX - 7, 16 },
		{ UINT64_MAX, 1 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		for (uint16_t f = 0; f <= WR; f = (uint16_t)(f + WR)) {
			direct(w, 0, bad[i].addr, bad[i].len, f, 0);
			expect_fault(w, MOAT_FAULT_ADDRESS, bad[i].addr,
				     bad[i].len);
			direct(w, 0, FAR, 16, IND, 0);
			put_desc(w->far, 0, bad[i].addr, bad[i].len, f, 0);
			expect_fault(w, MOAT_FAULT_ADDRESS, bad[i].addr,
				     bad[i].len);
		}
	}
}

static void a_segment_may_cross_adjacent_regions(void **state)
{
	struct world *w = *state;

	direct(w, 0, LOW + 4000, 200, NX, 1);
	direct(w, 1, LOW, 8192, WR, 0);
	assert_int_equal(walk(w, 0), 0);
	assert_int_equal(w->chain.nread + w->chain.nwrite, 2);
	expect_seg(w, 0, LOW + 4000, 200);
	expect_seg(w, 1, LOW, 8192);
}

static void zero_length_segments_are_legal_and_left_out(void **state)
{
	struct world *w = *state;

	direct(w, 0, 0 /* no guest memory */, 0, NX, 1);
	direct(w, 1, LOW, 4, NX, 2);
	direct(w, 2, UINT64_MAX, 0, NX | WR, 3);
	direct(w, 3, FAR, 4, NX | WR, 4);
	direct(w, 4, 0, 0, WR, 0);
	assert_int_equal(walk(w, 0), 0);
	assert_int_equal(w->chain.nread, 1);
	assert_int_equal(w->chain.nwrite, 1);
	expect_seg(w, 1, FAR, 4);
	direct(w, 0, 0, 0, 0, 0);
	assert_int_equal(walk(w, 0), 0);
	assert_int_equal(w->chain.nread + w->chain.nwrite, 0);
	assert_int_equal(w->chain.read_len + w->chain.write_len, 0);
}

static void total_length_up_to_2_to_the_32_and_no_more(void **state)
{
	struct world *w = *state;

	direct(w, 0, HUGE_AT, UINT32_MAX, NX, 1);
	direct(w, 1, LOW, 1, WR, 0);
	assert_int_equal(walk(w, 0), 0);
	assert_int_equal(w->chain.read_len + w->chain.write_len, UINT64_C(1)
									 << 32);
	direct(w, 1, LOW, 2, WR, 0);
	expect_fault(w, MOAT_FAULT_TOTAL_LEN, (UINT64_C(1) << 32) + 1,
		     UINT64_C(1) << 32);
	direct(w, 1, HUGE_AT, UINT32_MAX, 0, 0);
	expect_fault(w, MOAT_FAULT_TOTAL_LEN, 2 * (uint64_t)UINT32_MAX,
		     UINT64_C(1) << 32);
	direct(w, 0, HUGE_AT, 0x80000000, NX | WR, 1);
	direct(w, 1, HUGE_AT, 0x80000000, WR, 0);
	assert_int_equal(walk(w, 0), 0);
	assert_int_equal(w->chain.write_len, UINT64_C(1) << 32);
}

static void indirect_must_be_negotiated(void **state)
{
	struct world *w = *state;

	direct(w, 3, FAR, 16, IND, 0);
	put_desc(w->far, 0, LOW, 8, 0, 0);
	assert_int_equal(moat_chain_walk(&w->map, &w->ring.vring, 3, false,
					 &w->chain, &w->fault),
			 -1);
	assert_int_equal(w->fault.code, MOAT_FAULT_INDIRECT_OFF);
	assert_int_equal(w->fault.value, 3);
}

static void indirect_with_next_or_nested_is_refused(void **state)
{
	struct world *w = *state;

	direct(w, 0, FAR, 16, IND | NX, 1);
	direct(w, 1, LOW, 8, 0, 0);
	put_desc(w->far, 0, LOW, 8, 0, 0);
	expect_fault(w, MOAT_FAULT_INDIRECT_NEXT, 0, 0);
	direct(w, 0, FAR, 32, IND, 0);
	put_desc(w->far, 0, LOW, 8, NX, 1);
	put_desc(w->far, 1, FAR, 16, IND, 0);
	expect_fault(w, MOAT_FAULT_INDIRECT_NESTED, 1, 0);
}

static void indirect_length_must_be_whole_descriptors(void **state)
{
	struct world *w = *state;
	static const uint32_t bad[] = {
		0, 1, 15, 17, 31, UINT32_MAX, 16 * 32768 + 16, 0xfffffff0
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		direct(w, 0, HUGE_AT, bad[i], IND, 0);
		expect_fault(w, MOAT_FAULT_INDIRECT_LEN, bad[i], 16 * 32768);
	}
}

static void indirect_table_outside_guest_memory_is_refused(void **state)
{
	struct world *w = *state;

	direct(w, 0, FAR + 4096 - 16, 32, IND, 0);
	/* The first entry would do: the whole table has to be memory. */
	put_desc(w->far + 4096 - 16, 0, LOW, 8, 0, 0);
	expect_fault(w, MOAT_FAULT_ADDRESS, FAR + 4096 - 16, 32);
	direct(w, 0, UINT64_MAX - 15, 32, IND, 0);
	expect_fault(w, MOAT_FAULT_ADDRESS, UINT64_MAX - 15, 32);
}

static void write_on_the_referring_descriptor_is_ignored(void **state)
{
	struct world *w = *state;

	direct(w, 0, LOW, 4, NX, 1);
	direct(w, 1, FAR, 32, IND | WR, 0);
	put_desc(w->far, 0, LOW + 4, 5, NX, 1);
	put_desc(w->far, 1, LOW + 9, 6, WR, 0);
	assert_int_equal(walk(w, 0), 0);
	assert_int_equal(w->chain.nread, 2);
	assert_int_equal(w->chain.nwrite, 1);
	expect_seg(w, 1, LOW + 4, 5);
	expect_seg(w, 2, LOW + 9, 6);
}

static void tables_may_be_unaligned_and_cross_regions(void **state)
{
	struct world *w = *state;
	uint8_t t[3 * 16];

	put_desc(t, 0, FAR, 1, NX, 2);
	put_desc(t, 2, FAR + 1, 2, NX | WR, 1);
	put_desc(t, 1, FAR + 3, 3, WR, 0);
	for (uint32_t back = 1; back < sizeof(t); back++) {
		uint64_t at = LOW + 4096 - back;

		memcpy(w->low0 + 4096 - back, t, back);
		memcpy(w->low1, t + back, sizeof(t) - back);
		direct(w, 0, at, sizeof(t), IND, 0);
		assert_int_equal(walk(w, 0), 0);
		assert_int_equal(w->chain.nread, 1);
		assert_int_equal(w->chain.nwrite, 2);
		expect_seg(w, 0, FAR, 1);
		expect_seg(w, 1, FAR + 1, 2);
		expect_seg(w, 2, FAR + 3, 3);
	}
}

static void loops_in_an_indirect_table_end(void **state)
{
	struct world *w = *state;

	direct(w, 0, FAR, 48, IND, 0);
	put_desc(w->far, 0, LOW, 8, NX, 1);
	put_desc(w->far, 1, LOW, 8, NX, 0);
	put_desc(w->far, 2, LOW, 8, 0, 0);
	expect_fault(w, MOAT_FAULT_CHAIN_LONG, 4, 3);
	put_desc(w->far, 0, LOW, 0, NX, 0);
	expect_fault(w, MOAT_FAULT_CHAIN_LONG, 4, 3);
}

static void an_indirect_chain_may_have_1024_segments_and_no_more(void **state)
{
	struct world *w = *state;
	uint8_t *big = must_alloc(2048 * 16);
	struct moat_region r = { 0x400000, 2048 * 16, 0x400000, big };

	assert_int_equal(moat_memmap_add(&w->map, &r), 0);
	for (uint32_t i = 0; i < 2048; i++)
		put_desc(big, i, LOW + i, 1, i == 1023 ? 0 : NX,
			 (uint16_t)(i + 1));
	direct(w, 0, r.guest_addr, 2048 * 16, IND, 0);
	assert_int_equal(walk(w, 0), 0);
	assert_int_equal(w->chain.nread, 1024);
	expect_seg(w, 1023, LOW + 1023, 1);
	put_desc(big, 1023, LOW, 1, NX, 1024);
	put_desc(big, 1024, LOW, 1, 0, 0);
	expect_fault(w, MOAT_FAULT_CHAIN_LONG, 1025, 1024);
	/* Direct descriptors before the table count as well. */
	put_desc(big, 1023, LOW, 1, 0, 0);
	direct(w, 0, LOW, 1, NX, 1);
	direct(w, 1, r.guest_addr, 2048 * 16, IND, 0);
	expect_fault(w, MOAT_FAULT_CHAIN_LONG, 1025, 1024);
	free(big);
}

/* Whatever the table says: an end within bounds, or a fault; no crash. */
static void random_tables_keep_the_promises_of_a_walk(void **state)
{
	struct world *w = *state;
	struct rng r = { 2 };
	uint32_t good = 0;

	for (int round = 0; round < 60000; round++) {
		uint64_t sum = 0;

		for (uint32_t i = 0; i < NUM; i++) {
			static const uint64_t at[] = { LOW, LOW, LOW + 4000,
						       FAR, FAR, HUGE_AT };
			uint64_t a = at[rnd_below(&r, 6)] + rnd_below(&r, 64);
			uint16_t f = (uint16_t)rnd_below(&r, 3);

			if (!rnd_below(&r, 8))
				f = IND;
			direct(w, i, a,
			       f == IND ? 16 * rnd_below(&r, 6)
					: rnd_below(&r, 90),
			       f, (uint16_t)rnd_below(&r, NUM + 1));
			f = (uint16_t)rnd_below(&r, 3);
			put_desc(rnd_below(&r, 2) ? w->far : w->low0, i, a,
				 rnd_below(&r, 90), f,
				 (uint16_t)rnd_below(&r, 6));
			if (a >= HUGE_AT) /* a table there can not be read */
				direct(w, i, a, 1, 0, 0);
		}
		if (walk(w, (uint16_t)rnd_below(&r, NUM))) {
			assert_int_not_equal(w->fault.code, MOAT_FAULT_NONE);
			continue;
		}
		good++;
		for (uint32_t i = 0; i < w->chain.nread + w->chain.nwrite;
		     i++) {
			const struct moat_seg *s = &w->chain.seg[i];

			assert_true(s->len);
			assert_true(
				moat_memmap_covers(&w->map, s->addr, s->len));
			sum += s->len;
			if (i + 1u == w->chain.nread)
				assert_int_equal(sum, w->chain.read_len);
		}
		assert_int_equal(sum, w->chain.read_len + w->chain.write_len);
	}
	assert_true(good > 1000);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(a_direct_chain_is_listed_in_order),
		T(a_chain_as_long_as_the_ring_is_taken_and_a_loop_is_not),
		T(next_out_of_range_names_the_index),
		T(readable_after_writable_is_refused_even_if_empty),
		T(addresses_outside_guest_memory_are_refused),
		T(a_segment_may_cross_adjacent_regions),
		T(zero_length_segments_are_legal_and_left_out),
		T(total_length_up_to_2_to_the_32_and_no_more),
		T(indirect_must_be_negotiated),
		T(indirect_with_next_or_nested_is_refused),
		T(indirect_length_must_be_whole_descriptors),
		T(indirect_table_outside_guest_memory_is_refused),
		T(write_on_the_referring_descriptor_is_ignored),
		T(tables_may_be_unaligned_and_cross_regions),
		T(loops_in_an_indirect_table_end),
		T(an_indirect_chain_may_have_1024_segments_and_no_more),
		T(random_tables_keep_the_promises_of_a_walk),
	};

	return cmocka_run_group_tests_name("chain", tests, NULL, NULL);
}
