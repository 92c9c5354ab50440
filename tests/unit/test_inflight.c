/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In-flight records: cut off at any point, a successor knows what was begun.
 */
#include "support.h"

#include <errno.h>
#include <unistd.h>

#include "dev/host/inflight.h"

#define NUM 8u

struct world {
	struct moat_inflight f;
	struct moat_vu_inflight want;
	struct moat_inflight_queue q;
	struct moat_vring ring;
	struct moat_devq dq;
	uint16_t heads[NUM];
	uint16_t used; /* as it stands in the ring */
};

static int make(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	moat_inflight_init(&w->f);
	w->want =
		(struct moat_vu_inflight){ .num_queues = 2, .queue_size = NUM };
	w->ring.num = NUM;
	assert_int_equal(moat_inflight_make(&w->f, &w->want, false), 0);
	w->used = 65534;
	assert_int_equal(moat_inflight_open(&w->f, 1, &w->ring, w->used,
					    w->heads, &w->q),
			 0);
	*state = w;
	return 0;
}

static int drop(void **state)
{
	struct world *w = *state;

	moat_inflight_close(&w->q);
	moat_inflight_fini(&w->f);
	free(w);
	return 0;
}

/* A successor: another mapping of the same file. */
static int reopen(struct world *w)
{
	struct moat_inflight next;
	int n;

	moat_inflight_init(&next);
	assert_int_equal(moat_inflight_adopt(&next, &w->want, false, w->f.fd),
			 0);
	moat_inflight_close(&w->q);
	n = moat_inflight_open(&next, 1, &w->ring, w->used, w->heads, &w->q);
	w->q.record = NULL;
	moat_inflight_fini(&next);
	return n;
}

static void test_begun_requests_come_back_in_the_order_taken(void **state)
{
	struct world *w = *state;
	static const uint16_t order[] = { 5, 0, 7, 2 };

	for (int i = 0; i < 4; i++)
		moat_inflight_take(&w->q, &w->dq, order[i]);
	assert_int_equal(reopen(w), 4);
	assert_memory_equal(w->heads, order, sizeof(order));
}

/* Three are pushed as one batch; @published: the ring's index went out. */
static void push_batch(struct world *w, bool published, bool noted)
{
	static const uint16_t batch[] = { 3, 1, 6 };

	for (uint16_t h = 0; h < NUM; h++)
		moat_inflight_take(&w->q, &w->dq, h);
	for (int i = 0; i < 3; i++)
		moat_inflight_push(&w->q, batch[i]);
	moat_inflight_publish(&w->q, (uint16_t)(w->used + 3));
	if (published)
		w->used = (uint16_t)(w->used + 3);
	if (noted)
		moat_inflight_published(&w->q);
}

static void test_cut_before_publishing_nothing_counts_as_done(void **state)
{
	struct world *w = *state;

	push_batch(w, false, false);
	assert_int_equal(reopen(w), NUM);
}

static void test_cut_after_publishing_the_batch_counts_as_done(void **state)
{
	struct world *w = *state;
	static const uint16_t left[] = { 0, 2, 4, 5, 7 };

	push_batch(w, true, false);
	assert_int_equal(reopen(w), 5);
	assert_memory_equal(w->heads, left, sizeof(left));
	/* And stays so. */
	assert_int_equal(reopen(w), 5);
}

static void test_cut_after_the_end_of_a_batch_it_is_done_once(void **state)
{
	struct world *w = *state;

	push_batch(w, true, true);
	assert_int_equal(reopen(w), 5);
}

static void test_a_queue_that_was_stopped_in_order_is_new(void **state)
{
	struct world *w = *state;

	/* Broken, with requests that are never done. */
	moat_inflight_take(&w->q, &w->dq, 4);
	moat_inflight_forget(&w->f, 1);
	moat_inflight_forget(&w->f, 2);
	w->used = 0;
	assert_int_equal(reopen(w), 0);
	assert_int_equal(w->q.used, 0);
}

static void test_a_batch_is_never_longer_than_its_queue(void **state)
{
	struct world *w = *state;

	/* A broken queue gives back what it held and publishes nothing. */
	for (uint16_t i = 0; i < 3 * NUM; i++) {
		moat_inflight_take(&w->q, &w->dq, i % NUM);
		moat_inflight_push(&w->q, i % NUM);
	}
	assert_int_equal(w->q.nbatch, NUM);
	assert_int_equal(reopen(w), NUM);
}

static void test_queues_have_records_of_their_own(void **state)
{
	struct world *w = *state;
	struct moat_inflight_queue other;

	moat_inflight_take(&w->q, &w->dq, 4);
	assert_int_equal(
		moat_inflight_open(&w->f, 0, &w->ring, 0, w->heads, &other), 0);
	moat_inflight_close(&other);
	assert_int_equal(moat_inflight_open(&w->f, 2, &w->ring, 0, w->heads,
					    &other),
			 -EINVAL);
	moat_inflight_close(&other);
}

static void test_nonsense_is_refused(void **state)
{
	struct world *w = *state;
	static const struct {
		size_t at;
		uint16_t value;
	} bad[] = { { 8, 2 }, { 10, NUM / 2 }, { 12, NUM } };

	for (int i = 0; i < 3; i++) {
		uint16_t *p = (void *)(w->q.record + bad[i].at);
		uint16_t was = *p;
		struct moat_inflight_queue q;

		*p = bad[i].value;
		w->used++;
		assert_int_equal(moat_inflight_open(&w->f, 1, &w->ring, w->used,
						    w->heads, &q),
				 -EINVAL);
		moat_inflight_close(&q);
		*p = was;
	}
	w->want.mmap_size = 64;
	assert_int_equal(moat_inflight_adopt(&w->f, &w->want, false, w->f.fd),
			 -EINVAL);
	w->want.mmap_size = 1 << 20;
	w->want.queue_size = 4096;
	assert_int_equal(moat_inflight_adopt(&w->f, &w->want, false, w->f.fd),
			 -ERANGE);
	w->want.queue_size = 0;
	assert_int_equal(moat_inflight_make(&w->f, &w->want, false), -EINVAL);
}

/* What no copy of a ring may do: name memory that is not the record's. */
static void check_copies(struct moat_inflight_queue *q, const uint16_t *begun,
			 int n)
{
	struct moat_packed_desc copy[NUM];
	uint32_t total = 0;

	assert_true(n <= (int)NUM);
	for (int i = 0; i < n; i++) {
		uint32_t m = moat_inflight_copy(q, begun[i], copy);

		assert_true(m && m <= NUM);
		total += m;
		moat_inflight_resumed(q, begun[i], begun[i]);
		moat_inflight_push(q, begun[i]);
	}
	assert_int_equal(total + q->nfree, NUM);
	moat_inflight_publish(q, q->used);
	moat_inflight_published(q);
	assert_int_equal(q->nfree, NUM);
}

/*
 * Fields that are likely to be believed, in a record that was sound: linked as
 * new, one request of two entries under way.
 */
static void test_a_packed_record_of_any_bytes_is_refused_or_sound(void **state)
{
	struct world *w = *state;
	struct moat_packed_desc ring[NUM] = { 0 };
	struct moat_inflight_queue q;
	struct rng r = { 7 };
	uint32_t sound = 0, refused = 0;

	w->ring.packed = true;
	w->ring.desc = (void *)ring;
	for (int round = 0; round < 20000; round++) {
		uint8_t *rec;
		int n;

		assert_int_equal(moat_inflight_make(&w->f, &w->want, true), 0);
		assert_int_equal(moat_inflight_open(&w->f, 1, &w->ring, 0x8000,
						    w->heads, &q),
				 0);
		w->dq = (struct moat_devq){ .ring = w->ring,
					    .avail_next = 0x8000,
					    .peeked = 2 };
		moat_inflight_take(&q, &w->dq, 5);
		rec = q.record;
		moat_inflight_close(&q);
		for (uint32_t i = rnd_below(&r, 4); i; i--) {
			uint32_t at = 8 + 2 * rnd_below(&r, 12 + 16 * NUM);

			put16(rec + at, (uint16_t)rnd_below(&r, NUM + 2));
		}
		n = moat_inflight_open(&w->f, 1, &w->ring, 0x8000, w->heads,
				       &q);
		assert_true(n >= 0 || n == -EINVAL);
		if (n >= 0)
			check_copies(&q, w->heads, n);
		sound += n > 0;
		refused += n < 0;
		moat_inflight_close(&q);
	}
	assert_true(sound > 1000 && refused > 1000);
}

static void test_records_are_of_one_format(void **state)
{
	struct world *w = *state;
	struct moat_inflight_queue q;

	w->ring.packed = true;
	assert_int_equal(moat_inflight_open(&w->f, 1, &w->ring, 0x8000,
					    w->heads, &q),
			 -EINVAL);
	moat_inflight_close(&q);
	/* Of a packed ring the size need be no power of two. */
	w->want.queue_size = 11;
	assert_int_equal(moat_inflight_make(&w->f, &w->want, false), -EINVAL);
	assert_int_equal(moat_inflight_make(&w->f, &w->want, true), 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, make, drop)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_begun_requests_come_back_in_the_order_taken),
		T(test_cut_before_publishing_nothing_counts_as_done),
		T(test_cut_after_publishing_the_batch_counts_as_done),
		T(test_cut_after_the_end_of_a_batch_it_is_done_once),
		T(test_a_queue_that_was_stopped_in_order_is_new),
		T(test_a_batch_is_never_longer_than_its_queue),
		T(test_queues_have_records_of_their_own),
		T(test_nonsense_is_refused),
		T(test_a_packed_record_of_any_bytes_is_refused_or_sound),
		T(test_records_are_of_one_format),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
