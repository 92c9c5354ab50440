/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The relay between a driver (the core's own driver side, over a ring in guest
 * memory) and a backend (the core's own device side, over the ring in the
 * pool), with two queues on one pool. Most of it holds for any format of the
 * ring on either leg, and runs for each of the four pairs.
 */
#include "support.h"

#include "relay/relay.h"

#define RAM UINT64_C(0x80000000)
#define RAM_SIZE 0x200000u
#define POOL UINT64_C(0x5500000000)
#define NUM 16u
#define BUF 0x10000u /* a buffer of guest memory for each request */

/* The format of each leg's ring: split or packed. */
struct legs {
	bool front, back;
};

struct guest_req {
	bool live;
	struct moat_seg seg[4];
	uint32_t nread, nwrite, len;
	uint8_t fill;
};

struct leg {
	struct moat_relay_queue q;
	struct moat_drvq guest;
	struct moat_devq back;
	struct test_ring ring;
	struct moat_drvq_desc guest_descs[NUM], descs[NUM];
	struct moat_dma_req reqs[NUM];
	struct moat_relay_order order[moat_relay_order_storage(NUM)];
	uint16_t out[moat_devq_storage(NUM) / 2];
	uint16_t back_out[moat_devq_storage(NUM) / 2];
	struct moat_run ring_run;
	struct moat_dma_chunk *chunks;
	uint64_t *share_bits;
	struct moat_chain chain;
	struct guest_req req[NUM];
	uint16_t held[NUM];
	uint32_t held_len[NUM], nheld, next_cookie, done;
	uint64_t base; /* guest address of its buffers */
};

struct world {
	uint8_t expected[BUF];
	struct moat_relay relay;
	struct moat_pool pool;
	struct moat_region ram, pool_region;
	struct moat_memmap map, back_map;
	struct leg leg[2];
	struct legs packed;
	uint64_t *bits;
	uint32_t slots;
	struct rng rng;
};

static void start(struct world *w, struct leg *l, uint32_t share, uint32_t base)
{
	struct moat_dma *dma = &w->relay.dma;
	struct moat_vring back;
	uint64_t addr;
	uint8_t *p;

	p = moat_dma_alloc_coherent(dma, 4096, &addr, &l->ring_run);
	assert_non_null(p);
	memset(p, 0, 4096);
	back = (struct moat_vring){ p, p + 1024, p + 2048, NUM,
				    w->packed.back };
	l->q = (struct moat_relay_queue){ .reqs = l->reqs, .enabled = true };
	memset(l->reqs, 0, sizeof(l->reqs));
	memset(l->out, 0, sizeof(l->out));
	memset(l->back_out, 0, sizeof(l->back_out));
	assert_int_equal(moat_dma_queue_init(dma, &l->q.dma, NUM, l->chunks),
			 0);
	moat_share_open(&w->pool, &l->q.dma.share, share, l->share_bits);
	moat_devq_init(&l->q.dev, &l->ring.vring, l->out, base, true, true);
	moat_drvq_init(&l->q.drv, &back, l->descs, true, true);
	moat_devq_init(&l->back, &back, l->back_out, moat_drvq_base(&l->q.drv),
		       true, true);
	l->nheld = 0;
}

static struct world *make(void **state, uint32_t slots, uint32_t share)
{
	struct world *w = calloc(1, sizeof(*w));

	assert_non_null(w);
	if (*state)
		w->packed = *(const struct legs *)*state;
	w->slots = slots;
	w->rng.s = slots;
	w->ram = (struct moat_region){ RAM, RAM_SIZE, RAM,
				       must_alloc(RAM_SIZE) };
	w->pool_region =
		(struct moat_region){ POOL, slots * UINT64_C(4096), POOL,
				      must_alloc(slots * 4096u) };
	moat_memmap_init(&w->map, &w->ram, 1);
	moat_memmap_init(&w->back_map, &w->pool_region, 1);
	w->map.n = w->back_map.n = 1;
	w->bits = calloc(moat_pool_words(slots), 8);
	moat_pool_init(&w->pool, slots, w->bits);
	w->relay.dma = (struct moat_dma){
		.guest = &w->map,
		.pool = &w->pool,
		.pool_host = w->pool_region.host,
		.pool_addr = POOL,
	};
	for (int i = 0; i < 2; i++) {
		struct leg *l = &w->leg[i];

		if (w->packed.front)
			packed_make(&l->ring, NUM);
		else
			ring_make(&l->ring, NUM);
		l->chunks = calloc(moat_dma_chunks(NUM), sizeof(*l->chunks));
		l->share_bits = calloc(moat_pool_words(slots), 8);
		l->base = RAM + (uint64_t)i * NUM * BUF;
		moat_drvq_init(&l->guest, &l->ring.vring, l->guest_descs, true,
			       false);
		start(w, l, share, moat_drvq_base(&l->guest));
	}
	return w;
}

static void finish(struct world *w)
{
	for (int i = 0; i < 2; i++) {
		ring_free(&w->leg[i].ring);
		free(w->leg[i].chunks);
		free(w->leg[i].share_bits);
	}
	free(w->ram.host);
	free(w->pool_region.host);
	free(w->bits);
	free(w);
}

/* Where a ring stands after @n requests of @ndesc descriptors each. */
static uint32_t stands_at(bool packed, uint32_t n, uint32_t ndesc)
{
	uint32_t laps = n * ndesc / NUM, at = n * ndesc % NUM;

	return packed ? at | (laps & 1 ? 0 : 0x8000) : n;
}

static uint32_t base_at(bool packed, uint32_t avail, uint32_t used,
			uint32_t ndesc)
{
	return stands_at(packed, avail, ndesc) |
	       (packed ? stands_at(packed, used, ndesc) << 16 : 0);
}

static uint8_t *ram(struct world *w, uint64_t addr)
{
	return w->ram.host + (addr - RAM);
}

/* The guest posts; the readable header says what to write and how much. */
static bool guest_post(struct world *w, struct leg *l, uint32_t len,
		       uint32_t nwrite)
{
	uint32_t cookie = l->next_cookie % NUM;
	struct guest_req *r = &l->req[cookie];
	uint64_t at = l->base + (uint64_t)cookie * BUF;

	if (r->live || !moat_drvq_room(&l->guest, 1 + nwrite))
		return false;
	*r = (struct guest_req){ .live = true,
				 .nread = 1,
				 .nwrite = nwrite,
				 .fill = (uint8_t)(1 + l->next_cookie % 255) };
	r->len = rnd_below(&w->rng, (uint64_t)len * nwrite + 1);
	memset(ram(w, at), 0, BUF);
	put32(ram(w, at), r->len);
	put32(ram(w, at) + 4, r->fill);
	r->seg[0] = (struct moat_seg){ .addr = at, .len = 8 };
	for (uint32_t i = 0; i < nwrite; i++)
		r->seg[1 + i] = (struct moat_seg){ .addr = at + 8 + i * len,
						   .len = len };
	moat_drvq_add(&l->guest, r->seg, 1, nwrite, cookie, NULL, 0);
	moat_drvq_publish(&l->guest);
	l->next_cookie++;
	return true;
}

static void guest_reap(struct world *w, struct leg *l)
{
	uint32_t cookie, len;

	while (moat_drvq_get(&l->guest, &cookie, &len) == 1) {
		struct guest_req *r = &l->req[cookie];
		const uint8_t *p = ram(w, r->seg[0].addr);

		assert_true(r->live);
		assert_int_equal(len, r->len);
		/* Bytes in the millions: all of them in one comparison. */
		memset(w->expected, 0, BUF);
		memset(w->expected + 8, r->fill, r->len);
		assert_memory_equal(p + 8, w->expected + 8, BUF - 8);
		r->live = false;
		l->done++;
	}
	assert_int_equal(l->guest.fault.code, MOAT_FAULT_NONE);
}

static void back_take(struct world *w, struct leg *l)
{
	uint8_t head[8];
	uint64_t left;

	while (moat_devq_peek(&l->back, &w->back_map, &l->chain) == 1) {
		struct moat_seg *s = l->chain.seg;

		assert_int_equal(
			moat_memmap_read(&w->back_map, head, s->addr, 8), 0);
		left = get32(head);
		for (uint32_t i = 0; i < l->chain.nwrite; i++) {
			uint64_t n = left < s[1 + i].len ? left : s[1 + i].len;

			/* The whole of it, though less is reported. */
			memset(w->pool_region.host + (s[1 + i].addr - POOL),
			       head[4], s[1 + i].len);
			left -= n;
		}
		moat_devq_take(&l->back, l->chain.head);
		l->held[l->nheld] = l->chain.head;
		l->held_len[l->nheld++] = get32(head);
	}
	assert_int_equal(l->back.fault.code, MOAT_FAULT_NONE);
}

static void back_finish(struct world *w, struct leg *l, uint32_t n)
{
	while (n-- && l->nheld) {
		uint32_t k = rnd_below(&w->rng, l->nheld);

		moat_devq_push(&l->back, l->held[k], l->held_len[k]);
		l->held[k] = l->held[--l->nheld];
		l->held_len[k] = l->held_len[l->nheld];
	}
	moat_devq_publish(&l->back);
}

static void step(struct world *w, struct leg *l)
{
	moat_relay_submit(&w->relay, &l->q, 1 + rnd_below(&w->rng, 20));
	if (rnd_below(&w->rng, 2))
		back_take(w, l);
	if (rnd_below(&w->rng, 2))
		back_finish(w, l, 1 + rnd_below(&w->rng, 8));
	moat_relay_complete(&w->relay, &l->q, 1 + rnd_below(&w->rng, 20));
	guest_reap(w, l);
}

/* The backend is gone, at any moment, and there is another one. */
static void another_backend(struct world *w, struct leg *l)
{
	struct moat_vring ring = l->q.drv.ring;
	uint32_t taken;

	/* What it had finished is fetched, or not: it may lie. */
	if (rnd_below(&w->rng, 2))
		moat_relay_complete(&w->relay, &l->q, UINT32_MAX);
	else
		moat_shm_store16(moat_used_idx(&ring), 0xabcd);
	taken = moat_relay_taken(&l->q);
	moat_relay_lose(&w->relay, &l->q);
	assert_int_equal(moat_relay_complete(&w->relay, &l->q, 8), 0);
	assert_int_equal(moat_relay_submit(&w->relay, &l->q, 8), 0);
	assert_int_equal(l->q.dma.share.stats.used, 0);
	assert_int_equal(moat_relay_taken(&l->q), taken);
	memset(w->pool_region.host + l->ring_run.first * 4096u, 0, 4096);
	memset(l->back_out, 0, sizeof(l->back_out));
	moat_drvq_init(&l->q.drv, &ring, l->descs, true, true);
	moat_devq_init(&l->back, &ring, l->back_out, moat_drvq_base(&l->q.drv),
		       true, true);
	l->nheld = 0;
}

static void each_request_ends_once_however_many_backends_there_are(void **state)
{
	static const uint32_t slots[] = { 30, 64, 400 };

	for (size_t k = 0; k < ARRAY_SIZE(slots); k++) {
		struct world *w = make(state, slots[k], slots[k] / 8);
		uint32_t before = w->pool.common.free, rounds = 0;

		for (int i = 0; i < 2; i++)
			moat_relay_keep(&w->leg[i].q, w->leg[i].order);
		while (w->leg[0].done < 2000 || w->leg[1].done < 2000) {
			struct leg *l = &w->leg[rnd_below(&w->rng, 2)];
			uint32_t len = rnd_below(&w->rng, 2) ? 200 : 20000;

			while (rnd_below(&w->rng, 4) &&
			       guest_post(w, l, 1 + rnd_below(&w->rng, len),
					  rnd_below(&w->rng, 4)))
				;
			step(w, l);
			if (!rnd_below(&w->rng, 40))
				another_backend(w, l);
			assert_true(rounds++ < 200000);
		}
		for (int i = 0; i < 2; i++)
			while (w->leg[i].guest.outstanding)
				step(w, &w->leg[i]);
		assert_null(moat_relay_fault(&w->leg[0].q));
		assert_int_equal(w->pool.common.free, before);
		assert_int_equal(w->pool.stats.used, 0);
		for (int i = 0; i < 2; i++) {
			struct moat_dma_queue *q = &w->leg[i].q.dma;

			assert_int_equal(q->chunks_left, q->nchunks);
			assert_int_equal(moat_relay_taken(&w->leg[i].q), 0);
		}
		finish(w);
	}
}

static void requests_go_through_a_pool_of_any_size(void **state)
{
	static const uint32_t slots[] = { 30, 64, 400 };

	for (size_t k = 0; k < ARRAY_SIZE(slots); k++) {
		struct world *w = make(state, slots[k], slots[k] / 8);
		uint32_t before = w->pool.common.free, todo = 3000, rounds = 0;

		while (w->leg[0].done < todo || w->leg[1].done < todo) {
			struct leg *l = &w->leg[rnd_below(&w->rng, 2)];
			uint32_t len = rnd_below(&w->rng, 2) ? 200 : 20000;

			while (rnd_below(&w->rng, 4) &&
			       guest_post(w, l, 1 + rnd_below(&w->rng, len),
					  rnd_below(&w->rng, 4)))
				;
			step(w, l);
			/* Stuck is a failure and not a hang. */
			assert_true(rounds++ < 100 * todo);
		}
		for (int i = 0; i < 2; i++)
			while (w->leg[i].guest.outstanding)
				step(w, &w->leg[i]);
		assert_null(moat_relay_fault(&w->leg[0].q));
		assert_int_equal(w->pool.common.free, before);
		assert_int_equal(w->pool.stats.used, 0);
		if (slots[k] == 30)
			assert_true(w->leg[0].q.stats.waits);
		finish(w);
	}
}

static void a_fault_breaks_its_queue_and_no_other(void **state)
{
	struct world *w = make(state, 64, 8);
	struct leg *bad = &w->leg[0], *good = &w->leg[1];

	assert_true(guest_post(w, bad, 100, 1));
	moat_relay_submit(&w->relay, &bad->q, 8);
	/* The backend invents an id. */
	moat_shm_store32(moat_used_ring(&bad->back.ring, 0), 9);
	moat_shm_store16(moat_used_idx(&bad->back.ring), 1);
	assert_int_equal(moat_relay_complete(&w->relay, &bad->q, 8), 0);
	assert_int_equal(moat_relay_fault(&bad->q)->code,
			 MOAT_FAULT_USED_UNKNOWN);
	assert_int_equal(moat_relay_submit(&w->relay, &bad->q, 8), 0);
	assert_false(moat_relay_pending(&bad->q));
	for (int i = 0; i < 100; i++) {
		guest_post(w, good, 5000, 2);
		step(w, good);
	}
	assert_true(good->done > 50);
	finish(w);
}

static void a_packed_fault_breaks_its_queue_and_no_other(void **state)
{
	struct world *w = make(state, 64, 8);
	struct leg *bad = &w->leg[0], *good = &w->leg[1];

	assert_true(guest_post(w, bad, 100, 1));
	moat_relay_submit(&w->relay, &bad->q, 8);
	/* The backend invents an id. */
	put32(bad->back.ring.desc + 8, 1);
	put32(bad->back.ring.desc + 12, 9 | 0x8080u << 16);
	assert_int_equal(moat_relay_complete(&w->relay, &bad->q, 8), 0);
	assert_int_equal(moat_relay_fault(&bad->q)->code,
			 MOAT_FAULT_USED_UNKNOWN);
	assert_int_equal(moat_relay_submit(&w->relay, &bad->q, 8), 0);
	assert_int_equal(w->pool.stats.used, 0);
	assert_false(moat_relay_pending(&bad->q));
	for (int i = 0; i < 100; i++) {
		guest_post(w, good, 5000, 2);
		step(w, good);
	}
	assert_true(good->done > 50);
	finish(w);
}

static void a_request_that_never_fits_is_refused_with_its_size(void **state)
{
	struct world *w = make(state, 20, 2);
	struct leg *l = &w->leg[0];
	const struct moat_fault *f;

	assert_true(guest_post(w, l, 0xf000, 1));
	moat_relay_submit(&w->relay, &l->q, 8);
	f = moat_relay_fault(&l->q);
	assert_non_null(f);
	assert_int_equal(f->code, MOAT_FAULT_TOO_BIG);
	assert_true(f->value >= 0xf000 && f->value < 0x11000);
	assert_int_equal(f->limit, 4096 * (20 - 2 - 2 - 4));
	finish(w);
}

/* Two large requests of @a are out and a third waits; @b waits behind it. */
static void crowded(struct world *w, struct leg *a, struct leg *b)
{
	for (int i = 0; i < 3; i++)
		assert_true(guest_post(w, a, 0xe000, 1));
	moat_relay_submit(&w->relay, &a->q, 8);
	assert_int_equal(a->q.drv.outstanding, 2);
	assert_true(a->q.starved);
	assert_ptr_equal(w->pool.waiter, &a->q.dma.share);
	assert_true(guest_post(w, b, 0xe000, 1));
	moat_relay_submit(&w->relay, &b->q, 8);
	assert_true(b->q.starved);
}

static void what_a_broken_guest_ring_holds_comes_back_in_time(void **state)
{
	struct world *w = make(state, 44, 2);
	struct leg *a = &w->leg[0], *b = &w->leg[1];

	crowded(w, a, b);
	put16(avail_entry(&a->ring, 2), 99);
	/* The claim goes at once; what is at the backend is in use there. */
	assert_int_equal(moat_relay_submit(&w->relay, &a->q, 8),
			 MOAT_RELAY_MOVED);
	assert_int_equal(moat_relay_fault(&a->q)->code, MOAT_FAULT_HEAD_RANGE);
	assert_null(w->pool.waiter);
	assert_int_equal(w->pool.stats.used, 30);
	assert_int_equal(moat_relay_submit(&w->relay, &a->q, 8), 0);
	back_take(w, a);
	back_finish(w, a, 8);
	moat_relay_complete(&w->relay, &a->q, 8);
	assert_int_equal(w->pool.stats.used, 0);
	/* The driver of a broken queue is told nothing. */
	assert_int_equal(get16(used_idx(&a->ring)), 0);
	assert_true(moat_relay_submit(&w->relay, &b->q, 8) & MOAT_RELAY_MOVED);
	finish(w);
}

static void what_a_broken_backend_ring_holds_comes_back_at_once(void **state)
{
	struct world *w = make(state, 44, 2);
	struct leg *a = &w->leg[0], *b = &w->leg[1];

	crowded(w, a, b);
	moat_shm_store16(moat_used_idx(&a->back.ring), 9);
	moat_relay_complete(&w->relay, &a->q, 8);
	assert_int_equal(moat_relay_fault(&a->q)->code, MOAT_FAULT_USED_JUMP);
	assert_int_equal(moat_relay_submit(&w->relay, &a->q, 8),
			 MOAT_RELAY_MOVED);
	assert_int_equal(w->pool.stats.used, 0);
	/* Once: it is not work that goes on for ever. */
	assert_int_equal(moat_relay_submit(&w->relay, &a->q, 8), 0);
	assert_true(moat_relay_submit(&w->relay, &b->q, 8) & MOAT_RELAY_MOVED);
	finish(w);
}

static void a_disabled_queue_does_not_keep_others_waiting(void **state)
{
	struct world *w = make(state, 44, 2);
	struct leg *a = &w->leg[0];

	crowded(w, a, &w->leg[1]);
	a->q.enabled = false;
	assert_int_equal(moat_relay_submit(&w->relay, &a->q, 8),
			 MOAT_RELAY_MOVED);
	assert_null(w->pool.waiter);
	/* What is at the backend still comes back. */
	assert_int_equal(a->q.drv.outstanding, 2);
	back_take(w, a);
	back_finish(w, a, 2);
	moat_relay_complete(&w->relay, &a->q, 8);
	guest_reap(w, a);
	assert_int_equal(a->done, 2);
	finish(w);
}

static void the_budget_bounds_a_call_and_more_says_so(void **state)
{
	struct world *w = make(state, 400, 8);
	struct leg *l = &w->leg[0];

	for (int i = 0; i < 6; i++)
		assert_true(guest_post(w, l, 10, 1));
	assert_true(moat_relay_submit(&w->relay, &l->q, 4) & MOAT_RELAY_MORE);
	assert_int_equal(l->q.drv.outstanding, 4);
	assert_false(moat_relay_submit(&w->relay, &l->q, 4) & MOAT_RELAY_MORE);
	back_take(w, l);
	back_finish(w, l, 6);
	assert_true(moat_relay_complete(&w->relay, &l->q, 4) & MOAT_RELAY_MORE);
	assert_int_equal(l->q.drv.outstanding, 2);
	finish(w);
}

/* Post @n requests and let the backend see all, take @take, finish @finish. */
static void half_way(struct world *w, struct leg *l, uint32_t n, uint32_t take,
		     uint32_t done)
{
	for (uint32_t i = 0; i < n; i++)
		assert_true(guest_post(w, l, 3000, 1));
	moat_relay_submit(&w->relay, &l->q, 100);
	assert_int_equal(l->q.drv.outstanding, n);
	back_take(w, l);
	l->nheld = take;
	back_finish(w, l, done);
	moat_relay_complete(&w->relay, &l->q, 100);
	guest_reap(w, l);
}

static void what_the_backend_never_took_is_served_after_a_restart(void **state)
{
	struct world *w = make(state, 400, 8);
	struct leg *l = &w->leg[0];
	uint32_t lost, base;

	half_way(w, l, 8, 5, 5);
	/* Requests take two descriptors in front, and a table behind. */
	base = moat_relay_stop(&w->relay, &l->q,
			       base_at(w->packed.back, 5, 0, 1), &lost);
	assert_int_equal(lost, 0);
	assert_int_equal(base, base_at(w->packed.front, 5, 5, 2));
	assert_int_equal(w->pool.stats.used, 0);
	moat_dma_free_coherent(&w->relay.dma, &l->ring_run);
	start(w, l, 8, base);
	while (l->guest.outstanding)
		step(w, l);
	assert_int_equal(l->done, 8);
	finish(w);
}

/* Readable and writable buffers, all of zero length. */
static void guest_post_empty(struct world *w, struct leg *l)
{
	uint32_t cookie = l->next_cookie % NUM;
	struct guest_req *r = &l->req[cookie];
	uint64_t at = l->base + (uint64_t)cookie * BUF;

	*r = (struct guest_req){ .live = true, .nread = 1, .nwrite = 1 };
	r->seg[0] = r->seg[1] = (struct moat_seg){ .addr = at };
	memset(ram(w, at), 0, BUF);
	moat_drvq_add(&l->guest, r->seg, 1, 1, l->next_cookie++ % NUM, NULL, 0);
	moat_drvq_publish(&l->guest);
}

static void an_empty_request_costs_none_before_it_at_a_restart(void **state)
{
	struct world *w = make(state, 400, 8);
	struct leg *l = &w->leg[0];
	uint32_t lost, base;

	for (uint32_t i = 0; i < 7; i++) {
		if (i == 4)
			guest_post_empty(w, l);
		else
			assert_true(guest_post(w, l, 3000, 1));
	}
	moat_relay_submit(&w->relay, &l->q, 100);
	assert_int_equal(l->q.drv.outstanding, 4);
	guest_reap(w, l);
	assert_int_equal(l->done, 0);
	base = moat_relay_stop(&w->relay, &l->q,
			       base_at(w->packed.back, 0, 0, 1), &lost);
	assert_int_equal(lost, 0);
	assert_int_equal(base, base_at(w->packed.front, 0, 0, 2));
	moat_dma_free_coherent(&w->relay.dma, &l->ring_run);
	start(w, l, 8, base);
	while (l->guest.outstanding)
		step(w, l);
	assert_int_equal(l->done, 7);
	finish(w);
}

static void a_lying_backend_brings_no_finished_request_back(void **state)
{
	/* 8 posted, the first is still out, the others were finished. */
	for (uint32_t base = 0; base < 8; base++) {
		struct world *w = make(state, 400, 8);
		struct leg *l = &w->leg[0];
		uint32_t lost;

		half_way(w, l, 8, 8, 0);
		for (uint32_t k = 1; k < 8; k++)
			moat_devq_push(&l->back, l->held[k], l->held_len[k]);
		moat_devq_publish(&l->back);
		moat_relay_complete(&w->relay, &l->q, 100);
		guest_reap(w, l);
		assert_int_equal(l->done, 7);
		/* Its buffers are the guest's: not to be written again. */
		assert_int_equal(
			moat_relay_stop(&w->relay, &l->q,
					base_at(w->packed.back, base, 0, 1),
					&lost),
			base_at(w->packed.front, 8, 7, 2));
		assert_int_equal(lost, 1);
		finish(w);
	}
}

static void a_base_that_nobody_could_have_caused_says_nothing(void **state)
{
	static const uint32_t bases[] = { 9, 0x7fff, 0x8009, 0x800f, 0xffff };

	for (size_t i = 0; i < ARRAY_SIZE(bases); i++) {
		struct world *w = make(state, 400, 8);
		struct leg *l = &w->leg[0];
		uint32_t lost;

		half_way(w, l, 8, 5, 5);
		moat_relay_stop(&w->relay, &l->q, bases[i], &lost);
		assert_int_equal(lost, 3);
		finish(w);
	}
}

#define EACH(test)                                                  \
	cmocka_unit_test_prestate(test, (void *)&pairs[0]),         \
		cmocka_unit_test_prestate(test, (void *)&pairs[1]), \
		cmocka_unit_test_prestate(test, (void *)&pairs[2]), \
		cmocka_unit_test_prestate(test, (void *)&pairs[3])

int main(void)
{
	static const struct legs pairs[] = { { false, false },
					     { false, true },
					     { true, false },
					     { true, true } };
	const struct CMUnitTest tests[] = {
		EACH(requests_go_through_a_pool_of_any_size),
		EACH(each_request_ends_once_however_many_backends_there_are),
		EACH(a_request_that_never_fits_is_refused_with_its_size),
		EACH(a_disabled_queue_does_not_keep_others_waiting),
		EACH(the_budget_bounds_a_call_and_more_says_so),
		EACH(what_the_backend_never_took_is_served_after_a_restart),
		EACH(an_empty_request_costs_none_before_it_at_a_restart),
		EACH(a_lying_backend_brings_no_finished_request_back),
		EACH(a_base_that_nobody_could_have_caused_says_nothing),
		cmocka_unit_test(a_fault_breaks_its_queue_and_no_other),
		cmocka_unit_test_prestate(
			a_packed_fault_breaks_its_queue_and_no_other,
			(void *)&pairs[1]),
		cmocka_unit_test(
			what_a_broken_guest_ring_holds_comes_back_in_time),
		cmocka_unit_test(
			what_a_broken_backend_ring_holds_comes_back_at_once),
	};

	return cmocka_run_group_tests_name("relay", tests, NULL, NULL);
}
