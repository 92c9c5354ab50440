/* SPDX-License-Identifier: Apache-2.0 */
#include "dma_world.h"

/* What a request can hold. Refusals are counted elsewhere, and hold nothing. */
struct before {
	uint32_t used, share_used, common, own, chunks;
};

static struct before counters(const struct dma_world *w)
{
	return (struct before){
		w->pool.stats.used,  w->q.share.stats.used, w->pool.common.free,
		w->q.share.own.free, w->q.chunks_left,
	};
}

static void expect_counters(const struct dma_world *w, struct before b)
{
	struct before now = counters(w);

	assert_memory_equal(&now, &b, sizeof(b));
}

static struct dma_world *make(uint32_t slots, uint32_t share, uint32_t num)
{
	struct dma_world *w = malloc(sizeof(*w));

	assert_non_null(w);
	world_make(w, slots, share, num);
	return w;
}

static void finish(struct dma_world *w)
{
	world_free(w);
	free(w);
}

static enum moat_dma_result map(struct dma_world *w, uint32_t cell,
				struct moat_dma_req *req)
{
	return moat_dma_map(&w->dma, &w->q, cell, &w->chain, false, req,
			    &w->out);
}

static void readable_bytes_arrive_and_writable_ones_come_back(void **state)
{
	struct dma_world *w = make(64, 8, 4);
	struct moat_dma_req req = { 0 };
	struct before b = counters(w);

	(void)state;
	add_seg(w, G0 + 5, 16, false);
	add_seg(w, G1 - 100, 5000, false); /* crosses into G1 */
	add_seg(w, G2 + 77, 4096, true);
	add_seg(w, G1 - 10, 20, true); /* crosses as well */
	assert_int_equal(map(w, 1, &req), MOAT_DMA_OK);
	check_mapped(w, 1, &req.run);
	oracle_copy_in(w);
	check_memory(w);
	for (uint32_t i = 2; i < 4; i++) {
		uint64_t off = w->out.seg[i].addr - POOL_ADDR;

		rnd_fill(&w->rng, w->host + off, w->out.seg[i].len);
		memcpy(w->pool_copy + off, w->host + off, w->out.seg[i].len);
		memcpy(w->guest_copy + guest_off(w->chain.seg[i].addr),
		       w->host + off, i == 2 ? 4096 : 5);
	}
	assert_int_equal(moat_dma_unmap(&w->dma, &w->q, &req, 4096 + 5), 0);
	check_memory(w);
	expect_counters(w, b);
	finish(w);
}

static void exactly_the_reported_bytes_come_back(void **state)
{
	static const uint64_t lens[] = { 0,   1,	  99,	     100,
					 101, 700,	  799,	     800,
					 801, UINT32_MAX, UINT64_MAX };

	(void)state;
	for (size_t k = 0; k < ARRAY_SIZE(lens); k++) {
		struct dma_world *w = make(64, 8, 4);
		struct moat_dma_req req = { 0 };
		uint64_t left = lens[k];

		add_seg(w, G0, 32, false);
		add_seg(w, G0 + 1000, 100, true);
		add_seg(w, G2, 600, true);
		add_seg(w, G0 + 3000, 100, true);
		assert_int_equal(map(w, 0, &req), MOAT_DMA_OK);
		oracle_copy_in(w);
		/* The device writes all it can, wherever it can. */
		memset(w->host, 0x77, w->pool_bytes);
		memset(w->pool_copy, 0x77, w->pool_bytes);
		for (uint32_t i = 1; i < 4; i++) {
			uint64_t n = w->chain.seg[i].len;

			n = n < left ? n : left;
			memset(w->guest_copy + guest_off(w->chain.seg[i].addr),
			       0x77, n);
			left -= n;
		}
		moat_dma_unmap(&w->dma, &w->q, &req, lens[k]);
		check_memory(w);
		finish(w);
	}
}

static void small_segments_lie_in_the_cell_and_take_no_slot(void **state)
{
	struct dma_world *w = make(64, 8, 4);
	struct moat_dma_req req = { 0 };
	struct before b = counters(w);

	(void)state;
	add_seg(w, G0 + 1, 16, false);
	add_seg(w, G0 + 100, 200, false);
	add_seg(w, G0 + 400, 1, true);
	assert_int_equal(map(w, 3, &req), MOAT_DMA_OK);
	assert_int_equal(req.run.n, 0);
	b.chunks = w->q.chunks_left;
	expect_counters(w, b);
	for (uint32_t i = 0; i < 3; i++) {
		uint64_t off = w->out.seg[i].addr - POOL_ADDR -
			       4096u * w->q.cells.first;

		assert_int_equal(off / MOAT_DMA_CELL, 3);
		assert_int_equal((off + w->out.seg[i].len - 1) / MOAT_DMA_CELL,
				 3);
	}
	oracle_copy_in(w);
	check_memory(w);
	moat_dma_unmap(&w->dma, &w->q, &req, 0);
	check_memory(w);
	finish(w);
}

static void an_indirect_table_gets_room_that_nobody_else_has(void **state)
{
	(void)state;
	/* In the cell, and once it is too long for that, in the run. */
	for (uint32_t n = 2; n < 40; n++) {
		struct dma_world *w = make(64, 8, 4);
		struct moat_dma_req req = { 0 };
		uint64_t lo, hi;

		for (uint32_t i = 0; i < n; i++)
			add_seg(w, G2 + 600 * i, 20 * i + 1, i & 32);
		assert_int_equal(moat_dma_map(&w->dma, &w->q, 0, &w->chain,
					      true, &req, &w->out),
				 MOAT_DMA_OK);
		lo = w->out.table_addr;
		hi = lo + 16 * n;
		assert_ptr_equal(w->out.table, w->host + (lo - POOL_ADDR));
		assert_int_equal(lo % 16, 0);
		for (uint32_t i = 0; i < n; i++)
			assert_true(w->out.seg[i].addr >= hi ||
				    w->out.seg[i].addr + w->out.seg[i].len <=
					    lo);
		if (lo >= POOL_ADDR + 4096 * (uint64_t)req.run.first &&
		    req.run.n)
			assert_true(hi <=
				    POOL_ADDR +
					    4096 * (uint64_t)(req.run.first +
							      req.run.n));
		else
			assert_true(hi <= POOL_ADDR + MOAT_DMA_CELL +
						  4096 * w->q.cells.first);
		oracle_copy_in(w);
		check_memory(w);
		moat_dma_unmap(&w->dma, &w->q, &req, UINT64_MAX);
		finish(w);
	}
}

static void a_segment_in_the_share_set_passes_by_reference(void **state)
{
	struct dma_world *w = make(64, 8, 4);
	struct moat_dma_req req = { 0 };

	(void)state;
	w->share_set[0] = (struct moat_dma_range){ G0 + 4096, 8192 };
	w->share_set[1] = (struct moat_dma_range){ G0 + 12288, 4096 };
	w->dma.nshared = 2;
	add_seg(w, G0 + 4096, 8192, false); /* all of a range */
	add_seg(w, G0 + 12287 + 1, 1, false);
	add_seg(w, G0 + 5000, 100, true);
	/* In part, on either side, over both, and around all. */
	add_seg(w, G0 + 4095, 2, true);
	add_seg(w, G0 + 16383, 2, true);
	add_seg(w, G0 + 12000, 600, true);
	add_seg(w, G0, 32768, true);
	add_seg(w, G0 + 16384, 5, true);
	assert_int_equal(map(w, 0, &req), MOAT_DMA_OK);
	check_mapped(w, 0, &req.run);
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(!in_pool(w, &w->out.seg[i]), i < 3);
	assert_int_equal(w->q.bytes_shared, 8192 + 1 + 100);
	assert_int_equal(w->q.bytes_bounced, 2 + 2 + 600 + 32768 + 5);
	oracle_copy_in(w);
	check_memory(w);
	/* What the device wrote in place is not copied over. */
	memset(guest_host(w, G0 + 5000), 0x3c, 100);
	memset(w->guest_copy + guest_off(G0 + 5000), 0x3c, 100);
	memcpy(w->guest_copy + guest_off(G0 + 4095),
	       w->host + (w->out.seg[3].addr - POOL_ADDR), 1);
	moat_dma_unmap(&w->dma, &w->q, &req, 101);
	check_memory(w);
	finish(w);
}

static void later_holds_nothing(void **state)
{
	struct dma_world *w = make(32, 8, 4);
	struct moat_dma_req a = { 0 }, c = { 0 };
	struct before b;

	(void)state;
	add_seg(w, G2, 20 * 4096, true);
	assert_int_equal(map(w, 0, &a), MOAT_DMA_OK);
	b = counters(w);
	new_chain(w);
	add_seg(w, G2, 4096, false);
	for (uint32_t i = 0; i < 8; i++)
		add_seg(w, G2 + i, 10 * 4096 / 8, true);
	assert_int_equal(map(w, 1, &c), MOAT_DMA_LATER);
	assert_int_equal(c.run.n, 0);
	expect_counters(w, b);
	check_memory(w);
	moat_dma_unmap(&w->dma, &w->q, &a, 0);
	assert_int_equal(map(w, 1, &c), MOAT_DMA_OK);
	moat_dma_unmap(&w->dma, &w->q, &c, 0);
	finish(w);
}

static void never_names_the_pool_that_would_do(void **state)
{
	static const struct {
		uint64_t addr;
		uint32_t len;
	} big[] = {
		{ G2, 65536 },
		{ G2 + 1, 65536 },
		{ G2 + 4095, 0x20001 },
		{ G2 + 512, 0x7fe00 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(big); i++) {
		uint32_t slots = 2, need;
		enum moat_dma_result r;

		/* One slot for the cells, the rest common. */
		do {
			struct dma_world *w = make(slots, 0, 4);
			struct moat_dma_req req = { 0 };
			struct before b = counters(w);

			add_seg(w, G0, 16, false);
			add_seg(w, G0, 1000, false);
			add_seg(w, big[i].addr, big[i].len, true);
			r = map(w, 0, &req);
			if (r == MOAT_DMA_NEVER) {
				expect_counters(w, b);
				check_memory(w);
				need = (uint32_t)((w->out.need + 4095) / 4096);
				/* The named size is right at once. */
				assert_true(need > slots - 1);
				slots = slots == 2 ? need : need + 1;
			}
			finish(w);
		} while (r == MOAT_DMA_NEVER && slots < 1000);
		assert_int_equal(r, MOAT_DMA_OK);
	}
}

static void a_chain_of_1024_writable_segments_maps_and_comes_back(void **state)
{
	struct dma_world *w = make(64, 8, 1);
	struct moat_dma_req req = { 0 };
	struct before b = counters(w);

	(void)state;
	for (uint32_t i = 0; i < MOAT_CHAIN_MAX; i++)
		add_seg(w, G2 + 300 * i, 1 + i % 150, true);
	assert_int_equal(map(w, 0, &req), MOAT_DMA_OK);
	check_mapped(w, 0, &req.run);
	for (uint32_t i = 0; i < MOAT_CHAIN_MAX; i++) {
		memset(w->host + (w->out.seg[i].addr - POOL_ADDR), (int)i,
		       w->out.seg[i].len);
		memset(w->guest_copy + guest_off(w->chain.seg[i].addr), (int)i,
		       w->out.seg[i].len);
	}
	memcpy(w->pool_copy, w->host, w->pool_bytes);
	assert_int_equal(moat_dma_unmap(&w->dma, &w->q, &req, UINT32_MAX), 0);
	check_memory(w);
	expect_counters(w, b);
	finish(w);
}

static void exhausted_chunks_mean_later_and_come_back(void **state)
{
	struct dma_world *w = make(128, 8, 4);
	struct moat_dma_req a = { 0 }, c = { 0 };
	struct before b = counters(w), full;

	(void)state;
	for (uint32_t i = 0; i < MOAT_CHAIN_MAX; i++)
		add_seg(w, G2 + 16 * i, 1, true);
	for (int round = 0; round < 3; round++) {
		assert_int_equal(map(w, 0, &a), MOAT_DMA_OK);
		full = counters(w);
		assert_int_equal(map(w, 1, &c), MOAT_DMA_LATER);
		expect_counters(w, full);
		check_memory(w);
		moat_dma_unmap(&w->dma, &w->q, &a, 0);
		expect_counters(w, b);
		assert_int_equal(map(w, 1, &c), MOAT_DMA_OK);
		moat_dma_unmap(&w->dma, &w->q, &c, 0);
		expect_counters(w, b);
	}
	finish(w);
}

static void sync_for_device_copies_in_what_changed(void **state)
{
	struct dma_world *w = make(64, 8, 4);
	struct moat_dma_req req = { 0 };

	(void)state;
	add_seg(w, G0, 10, false);
	add_seg(w, G1 - 300, 600, false);
	add_seg(w, G2, 10, true);
	assert_int_equal(map(w, 0, &req), MOAT_DMA_OK);
	memset(w->guest_copy, 0x12, GUEST_BYTES);
	for (int i = 0; i < 3; i++)
		memset(w->regions[i].host, 0x12, w->regions[i].size);
	assert_int_equal(moat_dma_sync_for_device(&w->dma, &w->chain, &w->out),
			 0);
	oracle_copy_in(w);
	check_memory(w);
	moat_dma_unmap(&w->dma, &w->q, &req, 0);
	finish(w);
}

static void a_region_removed_meanwhile_is_reported_and_released(void **state)
{
	struct dma_world *w = make(64, 8, 4);
	struct before b = counters(w);
	struct moat_dma_req req = { 0 };
	struct moat_region gone;

	(void)state;
	add_seg(w, G1 + 5, 5000, true);
	assert_int_equal(map(w, 0, &req), MOAT_DMA_OK);
	assert_int_equal(moat_memmap_del(&w->map, G1, G1, GSIZE, &gone), 0);
	assert_int_equal(moat_dma_unmap(&w->dma, &w->q, &req, 5000), -1);
	expect_counters(w, b);
	assert_int_equal(moat_memmap_add(&w->map, &gone), 0);
	check_memory(w);
	finish(w);
}

static void coherent_memory_is_zeroed_and_given_back(void **state)
{
	struct dma_world *w = make(64, 8, 4);
	struct before b = counters(w);
	struct moat_run run;
	uint64_t addr;
	uint8_t *p;

	(void)state;
	p = moat_dma_alloc_coherent(&w->dma, 4097, &addr, &run);
	assert_non_null(p);
	assert_ptr_equal(p, w->host + (addr - POOL_ADDR));
	assert_int_equal(run.n, 2);
	for (int i = 0; i < 8192; i++)
		assert_int_equal(p[i], 0);
	memset(w->pool_copy + (p - w->host), 0, 8192);
	check_memory(w);
	moat_dma_free_coherent(&w->dma, &run);
	expect_counters(w, b);
	assert_null(moat_dma_alloc_coherent(&w->dma, UINT64_C(1) << 44, &addr,
					    &run));
	assert_null(moat_dma_alloc_coherent(&w->dma, 65 * 4096, &addr, &run));
	moat_dma_queue_fini(&w->dma, &w->q);
	assert_int_equal(w->pool.common.free, 64);
	assert_int_equal(w->pool.carved, 0);
	finish(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			readable_bytes_arrive_and_writable_ones_come_back),
		cmocka_unit_test(exactly_the_reported_bytes_come_back),
		cmocka_unit_test(
			small_segments_lie_in_the_cell_and_take_no_slot),
		cmocka_unit_test(
			an_indirect_table_gets_room_that_nobody_else_has),
		cmocka_unit_test(
			a_segment_in_the_share_set_passes_by_reference),
		cmocka_unit_test(later_holds_nothing),
		cmocka_unit_test(never_names_the_pool_that_would_do),
		cmocka_unit_test(
			a_chain_of_1024_writable_segments_maps_and_comes_back),
		cmocka_unit_test(exhausted_chunks_mean_later_and_come_back),
		cmocka_unit_test(sync_for_device_copies_in_what_changed),
		cmocka_unit_test(
			a_region_removed_meanwhile_is_reported_and_released),
		cmocka_unit_test(coherent_memory_is_zeroed_and_given_back),
	};

	return cmocka_run_group_tests_name("dma", tests, NULL, NULL);
}
