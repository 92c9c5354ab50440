/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random requests, many of them mapped at once, against the oracle: all of
 * guest memory and all of the pool are compared after each step.
 */
#include "dma_world.h"

#define NUM 16u

struct request {
	bool live;
	struct moat_dma_req req;
	struct moat_chain chain;
	struct moat_dma_mapped out;
};

struct fleet {
	struct dma_world w;
	struct request r[NUM];
	uint32_t mapped, refused;
};

static uint64_t some_addr(struct rng *r, uint32_t len)
{
	uint32_t at = rnd_below(r, GUEST_BYTES - 2 * GSIZE - len);

	if (rnd_below(r, 2))
		return G2 + at;
	return G0 + rnd_below(r, 2 * GSIZE - (len < GSIZE ? len : GSIZE));
}

static uint32_t some_len(struct rng *r)
{
	static const uint32_t edge[] = { 1,    15,   16,  255,	256,
					 257,  511,  512, 513,	4095,
					 4096, 4097, 127, 8192, 32768 };

	if (rnd_below(r, 2))
		return edge[rnd_below(r, ARRAY_SIZE(edge))];
	return 1 + rnd_below(r, rnd_below(r, 3) ? 600 : 20000);
}

static void random_chain(struct dma_world *w)
{
	uint32_t n = 1 + rnd_below(&w->rng, rnd_below(&w->rng, 8) ? 6 : 60);
	uint32_t nread = rnd_below(&w->rng, n + 1);

	new_chain(w);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t len = some_len(&w->rng);

		add_seg(w, some_addr(&w->rng, len), len, i >= nread);
	}
}

/* Ranges that a request has in the pool overlap with no other request's. */
static void check_disjoint(struct fleet *f, const struct request *a)
{
	uint32_t n = (uint32_t)a->chain.nread + a->chain.nwrite;

	for (uint32_t k = 0; k < NUM; k++) {
		const struct request *b = &f->r[k];
		const struct moat_run *x = &a->req.run, *y = &b->req.run;

		if (!b->live || b == a || !x->n || !y->n)
			continue;
		assert_true(x->first + x->n <= y->first ||
			    y->first + y->n <= x->first);
	}
	for (uint32_t i = 0; i < n; i++) {
		const struct moat_seg *s = &a->out.seg[i];

		/* By reference only what lies in the share set whole. */
		if (in_pool(&f->w, s))
			continue;
		assert_true(s->addr >= f->w.share_set[0].addr);
		assert_true(s->addr + s->len <=
			    f->w.share_set[0].addr + f->w.share_set[0].size);
	}
}

static void map_one(struct fleet *f, uint32_t cell)
{
	struct request *r = &f->r[cell];
	struct dma_world *w = &f->w;
	uint32_t chunks = w->q.chunks_left, used = w->pool.stats.used;
	uint32_t common = w->pool.common.free, own = w->q.share.own.free;
	uint32_t n;

	random_chain(w);
	n = (uint32_t)w->chain.nread + w->chain.nwrite;
	switch (moat_dma_map(&w->dma, &w->q, cell, &w->chain,
			     rnd_below(&w->rng, 2), &r->req, &w->out)) {
	case MOAT_DMA_OK:
		break;
	case MOAT_DMA_NEVER:
		assert_true(w->out.need >
			    4096 * (uint64_t)moat_pool_limit(&w->pool,
							     &w->q.share));
		/* fall through */
	case MOAT_DMA_LATER:
		f->refused++;
		assert_int_equal(w->q.chunks_left, chunks);
		assert_int_equal(w->pool.stats.used, used);
		assert_int_equal(w->pool.common.free, common);
		assert_int_equal(w->q.share.own.free, own);
		check_memory(w);
		return;
	}
	f->mapped++;
	oracle_copy_in(w);
	check_mapped(w, cell, &r->req.run);
	check_memory(w);
	r->live = true;
	r->chain = w->chain;
	memcpy(r->out.seg, w->out.seg, n * sizeof(r->out.seg[0]));
	if (w->out.table) {
		/* Nobody reads the table back. */
		memset(w->out.table, 0xff, 16 * n);
		memset(w->pool_copy + (w->out.table_addr - POOL_ADDR), 0xff,
		       16 * n);
	}
	check_disjoint(f, r);
}

/* The device writes each writable segment in full, whatever it reports. */
static void device_writes(struct fleet *f, struct request *r)
{
	struct dma_world *w = &f->w;

	for (uint32_t i = 0; i < r->chain.nwrite; i++) {
		const struct moat_seg *s = &r->out.seg[r->chain.nread + i];
		uint8_t fill = (uint8_t)rnd(&w->rng);

		if (in_pool(w, s)) {
			memset(w->host + (s->addr - POOL_ADDR), fill, s->len);
			memset(w->pool_copy + (s->addr - POOL_ADDR), fill,
			       s->len);
			continue;
		}
		for (uint32_t k = 0; k < s->len; k++) {
			*guest_host(w, s->addr + k) = fill;
			w->guest_copy[guest_off(s->addr + k)] = fill;
		}
	}
}

static void unmap_one(struct fleet *f, uint32_t cell)
{
	struct request *r = &f->r[cell];
	struct dma_world *w = &f->w;
	uint64_t len = rnd_below(&w->rng, r->chain.write_len + 1), left;

	if (!rnd_below(&w->rng, 3))
		len = rnd_below(&w->rng, 2) ? UINT32_MAX : r->chain.write_len;
	device_writes(f, r);
	left = len;
	for (uint32_t i = 0; i < r->chain.nwrite && left; i++) {
		uint32_t k = r->chain.nread + i;
		const struct moat_seg *g = &r->chain.seg[k];
		const struct moat_seg *o = &r->out.seg[k];
		uint64_t n = left < g->len ? left : g->len;

		if (in_pool(w, o))
			memcpy(w->guest_copy + guest_off(g->addr),
			       w->host + (o->addr - POOL_ADDR), n);
		left -= n;
	}
	assert_int_equal(moat_dma_unmap(&w->dma, &w->q, &r->req, len), 0);
	r->live = false;
	check_memory(w);
}

static void run(uint32_t slots, uint32_t share, bool share_set)
{
	struct fleet *f = calloc(1, sizeof(*f));
	uint32_t chunks, common;

	assert_non_null(f);
	world_make(&f->w, slots, share, NUM);
	chunks = f->w.q.chunks_left;
	common = f->w.pool.common.free;
	if (share_set) {
		f->w.share_set[0] =
			(struct moat_dma_range){ G2 + 4096, 0x40000 };
		f->w.dma.nshared = 1;
	}
	for (int op = 0; op < 2500; op++) {
		uint32_t cell = rnd_below(&f->w.rng, NUM);

		if (f->r[cell].live)
			unmap_one(f, cell);
		else
			map_one(f, cell);
	}
	for (uint32_t i = 0; i < NUM; i++)
		if (f->r[i].live)
			unmap_one(f, i);
	assert_true(f->mapped > 300);
	assert_int_equal(f->w.pool.stats.used, 0);
	assert_int_equal(f->w.pool.common.free, common);
	assert_int_equal(f->w.q.share.own.free, share);
	assert_int_equal(f->w.q.chunks_left, chunks);
	/* A small pool has refused some, or it tested less than it says. */
	assert_int_equal(f->refused > 0, slots < 128);
	world_free(&f->w);
	free(f);
}

static void bounced_requests_agree_with_the_oracle(void **state)
{
	(void)state;
	run(400, 64, false);
}

static void a_pool_that_is_too_small_delays_and_corrupts_nothing(void **state)
{
	(void)state;
	run(24, 6, false);
}

static void a_share_set_agrees_with_the_oracle(void **state)
{
	(void)state;
	run(400, 64, true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bounced_requests_agree_with_the_oracle),
		cmocka_unit_test(
			a_pool_that_is_too_small_delays_and_corrupts_nothing),
		cmocka_unit_test(a_share_set_agrees_with_the_oracle),
	};

	return cmocka_run_group_tests_name("dma-random", tests, NULL, NULL);
}
