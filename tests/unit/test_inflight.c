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
	uint16_t heads[NUM];
	uint16_t used; /* as it stands in the ring */
};

static int make(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	moat_inflight_init(&w->f);
	w->want =
		(struct moat_vu_inflight){ .num_queues = 2, .queue_size = NUM };
	assert_int_equal(moat_inflight_make(&w->f, &w->want), 0);
	w->used = 65534;
	assert_int_equal(
		moat_inflight_open(&w->f, 1, NUM, w->used, w->heads, &w->q), 0);
	*state = w;
	return 0;
}

static int drop(void **state)
{
	struct world *w = *state;

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
	assert_int_equal(moat_inflight_adopt(&next, &w->want, w->f.fd), 0);
	n = moat_inflight_open(&next, 1, NUM, w->used, w->heads, &w->q);
	w->q.record = NULL;
	moat_inflight_fini(&next);
	return n;
}

static void test_begun_requests_come_back_in_the_order_taken(void **state)
{
	struct world *w = *state;
	static const uint16_t order[] = { 5, 0, 7, 2 };

	for (int i = 0; i < 4; i++)
		moat_inflight_take(&w->q, order[i]);
	assert_int_equal(reopen(w), 4);
	assert_memory_equal(w->heads, order, sizeof(order));
}

/* Three are pushed as one batch; @published: the ring's index went out. */
static void push_batch(struct world *w, bool published, bool noted)
{
	static const uint16_t batch[] = { 3, 1, 6 };

	for (uint16_t h = 0; h < NUM; h++)
		moat_inflight_take(&w->q, h);
	for (int i = 0; i < 3; i++)
		moat_inflight_push(&w->q, batch[i]);
	if (published)
		w->used = (uint16_t)(w->used + 3);
	if (noted)
		moat_inflight_published(&w->q, batch, 3, w->used);
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

static void test_queues_have_records_of_their_own(void **state)
{
	struct world *w = *state;
	struct moat_inflight_queue other;

	moat_inflight_take(&w->q, 4);
	assert_int_equal(moat_inflight_open(&w->f, 0, NUM, 0, w->heads, &other),
			 0);
	assert_int_equal(moat_inflight_open(&w->f, 2, NUM, 0, w->heads, &other),
			 -EINVAL);
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
		assert_int_equal(moat_inflight_open(&w->f, 1, NUM, w->used,
						    w->heads, &q),
				 -EINVAL);
		*p = was;
	}
	w->want.mmap_size = 64;
	assert_int_equal(moat_inflight_adopt(&w->f, &w->want, w->f.fd),
			 -EINVAL);
	w->want.mmap_size = 1 << 20;
	w->want.queue_size = 4096;
	assert_int_equal(moat_inflight_adopt(&w->f, &w->want, w->f.fd),
			 -ERANGE);
	w->want.queue_size = 0;
	assert_int_equal(moat_inflight_make(&w->f, &w->want), -EINVAL);
}

#define T(name) cmocka_unit_test_setup_teardown(name, make, drop)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_begun_requests_come_back_in_the_order_taken),
		T(test_cut_before_publishing_nothing_counts_as_done),
		T(test_cut_after_publishing_the_batch_counts_as_done),
		T(test_cut_after_the_end_of_a_batch_it_is_done_once),
		T(test_queues_have_records_of_their_own),
		T(test_nonsense_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
