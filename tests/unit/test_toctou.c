/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A peer that changes what it published, as fast as it can, while it is being
 * read: what was validated must be what is used. A value that is read twice
 * gives a segment outside guest memory here, or a length that was not posted.
 */
#include <pthread.h>
#include <time.h>

#include "packed_ring.h"

#include "core/devq.h"
#include "core/drvq.h"

#define RAM 0x10000u
#define TURNS 500000u /* at least, and until both states were seen often */

struct peer {
	uint8_t *p; /* what it flips between two states */
	uint8_t a[16], b[16];
	bool stop;
};

static void *flip(void *arg)
{
	struct peer *f = arg;

	while (!__atomic_load_n(&f->stop, __ATOMIC_RELAXED)) {
		for (int i = 0; i < 16; i += 8) {
			moat_shm_store64(f->p + i, get64(f->b + i));
			__atomic_signal_fence(__ATOMIC_SEQ_CST);
		}
		for (int i = 0; i < 16; i += 8) {
			moat_shm_store64(f->p + i, get64(f->a + i));
			__atomic_signal_fence(__ATOMIC_SEQ_CST);
		}
	}
	return NULL;
}

static pthread_t start(struct peer *f)
{
	pthread_t t;

	f->stop = false;
	memcpy(f->p, f->a, 16);
	assert_int_equal(pthread_create(&t, NULL, flip, f), 0);
	return t;
}

/* Both states have to be seen, or nothing is tested; with a deadline. */
static bool enough(uint32_t a, uint32_t b, time_t since)
{
	if ((a + b) % 1024)
		return false;
	assert_true(time(NULL) - since < 20);
	return a + b >= TURNS && a >= 100 && b >= 100;
}

static void stop(struct peer *f, pthread_t t)
{
	__atomic_store_n(&f->stop, true, __ATOMIC_RELAXED);
	pthread_join(t, NULL);
}

/* Good: one page of memory. Bad: other address, length, direction and flags. */
static void a_flickering_descriptor_never_yields_an_unchecked_segment(void **s)
{
	struct moat_region r = { RAM, 4096, RAM, must_alloc(4096) };
	struct moat_chain *c = malloc(sizeof(*c));
	uint32_t good, bad;
	time_t since = time(NULL);
	struct moat_fault fault;
	struct test_ring ring;
	struct moat_memmap map;
	struct peer f;

	(void)s;
	assert_non_null(c);
	moat_memmap_init(&map, &r, 1);
	map.n = 1;
	ring_make(&ring, 4);
	for (int indirect = 0; indirect < 2; indirect++) {
		pthread_t t;

		f.p = indirect ? r.host : ring.vring.desc;
		put_desc(ring.vring.desc, 0, RAM, 16, MOAT_DESC_F_INDIRECT, 0);
		put_desc(f.a, 0, RAM + 64, 256, 0, 0);
		put_desc(f.b, 0, RAM + 4000, 4096, MOAT_DESC_F_WRITE, 0);
		t = start(&f);
		good = bad = 0;
		do {
			struct moat_seg *g = c->seg;

			if (moat_chain_walk(&map, &ring.vring, 0, true, c,
					    &fault)) {
				assert_int_equal(fault.code,
						 MOAT_FAULT_ADDRESS);
				bad++;
				continue; /* to the condition */
			}
			good++;
			assert_int_equal(c->nread + c->nwrite, 1);
			assert_true(g->addr >= RAM &&
				    g->addr + g->len <= RAM + 4096);
			assert_int_equal(c->read_len + c->write_len, g->len);
			assert_int_equal(c->nwrite ? c->write_len : c->read_len,
					 g->len);
		} while (!enough(good, bad, since));
		stop(&f, t);
	}
	ring_free(&ring);
	free(r.host);
	free(c);
}

/* The same in a packed ring, and in a table of one. */
static void a_flickering_packed_descriptor_is_read_once_too(void **s)
{
	struct moat_region r = { RAM, 4096, RAM, must_alloc(4096) };
	struct moat_chain *c = malloc(sizeof(*c));
	uint32_t good, bad;
	time_t since = time(NULL);
	struct moat_fault fault;
	struct test_ring ring;
	struct moat_memmap map;
	struct peer f;

	(void)s;
	assert_non_null(c);
	moat_memmap_init(&map, &r, 1);
	map.n = 1;
	packed_make(&ring, 4);
	for (int indirect = 0; indirect < 2; indirect++) {
		pthread_t t;

		f.p = indirect ? r.host : ring.vring.desc;
		put_packed(ring.vring.desc, 0, RAM, 16, 0,
			   P_AVAIL | P_INDIRECT);
		put_packed(f.a, 0, RAM + 64, 256, 0, P_AVAIL);
		put_packed(f.b, 0, RAM + 4000, 4096, 3, P_AVAIL | P_WRITE);
		t = start(&f);
		good = bad = 0;
		do {
			const struct moat_seg *g = c->seg;
			int n = moat_chain_walk_packed(
				&map, &ring.vring, 0x8000, 4, true, c, &fault);

			if (n < 0) {
				assert_int_equal(fault.code,
						 MOAT_FAULT_ADDRESS);
				bad++;
				continue; /* to the condition */
			}
			good++;
			assert_int_equal(n, 1);
			assert_int_equal(c->nread + c->nwrite, 1);
			assert_true(g->addr >= RAM &&
				    g->addr + g->len <= RAM + 4096);
			/* Length, id and flags are of one state. */
			assert_int_equal(g->len, c->nwrite ? 4096 : 256);
			if (!indirect)
				assert_int_equal(c->head, c->nwrite ? 3 : 0);
		} while (!enough(good, bad, since));
		stop(&f, t);
	}
	ring_free(&ring);
	free(r.host);
	free(c);
}

static void a_flickering_used_entry_never_yields_more_than_was_posted(void **s)
{
	const struct moat_seg seg = { .addr = RAM, .len = 100 };
	struct moat_drvq_desc descs[4];
	uint32_t whole = 0, part = 0;
	time_t since = time(NULL);
	struct test_ring ring;
	struct moat_drvq q;
	struct peer f;
	pthread_t t;

	(void)s;
	ring_make(&ring, 4);
	/* The first two entries are then aligned for 8-byte stores. */
	f.p = malloc(6 + 8 * 4 + 16);
	assert_non_null(f.p);
	free(ring.vring.used);
	ring.vring.used = f.p + 4;
	memset(f.p, 0, 6 + 8 * 4 + 16);
	f.p += 8;
	memset(f.a, 0, 16);
	memset(f.b, 0, 16);
	put32(f.a + 4, 10);
	put32(f.b + 4, 0xfffff);
	put32(f.b + 8, 5);
	t = start(&f);
	do {
		uint32_t cookie = 1, len = 0;

		memset(ring.vring.used, 0, 4);
		moat_drvq_init(&q, &ring.vring, descs, false, false);
		moat_drvq_add(&q, &seg, 0, 1, 42, NULL, 0);
		moat_drvq_publish(&q);
		put16(used_idx(&ring), 1);
		assert_int_equal(moat_drvq_get(&q, &cookie, &len), 1);
		assert_int_equal(cookie, 42);
		assert_true(len == 10 || len == 100);
		whole += len == 100;
		part += len == 10;
	} while (!enough(whole, part, since));
	stop(&f, t);
	ring.vring.used = f.p - 8;
	ring_free(&ring);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			a_flickering_packed_descriptor_is_read_once_too),
		cmocka_unit_test(
			a_flickering_descriptor_never_yields_an_unchecked_segment),
		cmocka_unit_test(
			a_flickering_used_entry_never_yields_more_than_was_posted),
	};

	return cmocka_run_group_tests_name("toctou", tests, NULL, NULL);
}
