/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What src/dev/fs/lockrange.c promises: an owner's ranges are what the kernel
 * has, and what a table of bytes says; there are never too many.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "dev/fs/lockrange.h"

/*
 * The oracle: the type of each cell. Cells are single bytes, at both ends of
 * what there is, and all bytes between as one.
 */
#define CELLS 64
#define MIDDLE 31

struct world {
	struct fs_ranges ranges;
	uint32_t total;
	uint32_t cell[CELLS];
	int fd, other; /* the same file, opened twice */
	uint64_t seed;
};

static uint64_t low(uint32_t cell)
{
	return cell <= MIDDLE ? cell : (uint64_t)INT64_MAX - (CELLS - 1 - cell);
}

static uint64_t high(uint32_t cell)
{
	return cell == CELLS - 1 ? (uint64_t)INT64_MAX : low(cell + 1) - 1;
}

static uint32_t below(struct world *w, uint32_t n)
{
	w->seed = w->seed * UINT64_C(6364136223846793005) + 1442695040888963407;
	return (uint32_t)(w->seed >> 33) % n;
}

static int make(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	char path[] = "/tmp/moat-range-XXXXXX";

	for (uint32_t i = 0; i < CELLS; i++)
		w->cell[i] = F_UNLCK;
	w->fd = mkstemp(path);
	w->other = open(path, O_RDWR);
	unlink(path);
	*state = w;
	return 0;
}

static int drop(void **state)
{
	struct world *w = *state;

	fs_ranges_clear(&w->ranges, &w->total);
	assert_int_equal(w->total, 0);
	close(w->fd);
	close(w->other);
	free(w);
	return 0;
}

static int set(struct world *w, uint32_t type, uint64_t start, uint64_t end)
{
	const struct fs_range change = { start, end, type };
	struct fs_range_plan plan;
	int ret = fs_ranges_plan(&w->ranges, &change, &plan, &w->total);

	if (!ret)
		fs_ranges_apply(&w->ranges, &plan, &w->total);
	return ret;
}

/* Sorted, apart, and as few as they can be. */
static void check_form(const struct world *w)
{
	const struct fs_ranges *r = &w->ranges;

	assert_int_equal(w->total, r->n);
	assert_true(r->n <= r->room || !r->n);
	for (uint32_t i = 0; i < r->n; i++) {
		const struct fs_range *a = &r->at[i];

		assert_true(a->start <= a->end && a->end <= INT64_MAX);
		assert_true(a->type == F_RDLCK || a->type == F_WRLCK);
		if (!i)
			continue;
		assert_true(a[-1].end < a->start);
		if (a[-1].end + 1 == a->start)
			assert_int_not_equal(a[-1].type, a->type);
	}
}

static uint32_t type_at(const struct world *w, uint64_t at)
{
	for (uint32_t i = 0; i < w->ranges.n; i++)
		if (w->ranges.at[i].start <= at && at <= w->ranges.at[i].end)
			return w->ranges.at[i].type;
	return F_UNLCK;
}

static void check_oracle(const struct world *w)
{
	for (uint32_t i = 0; i < CELLS; i++) {
		assert_int_equal(type_at(w, low(i)), w->cell[i]);
		assert_int_equal(type_at(w, high(i)), w->cell[i]);
	}
}

static struct flock flock_of(uint32_t type, uint64_t start, uint64_t end)
{
	return (struct flock){
		.l_type = (short)type,
		.l_start = (off_t)start,
		.l_len = end == INT64_MAX ? 0 : (off_t)(end - start + 1),
	};
}

/* All that the kernel has, as another sees it: the same, and no more. */
static void check_kernel(const struct world *w)
{
	for (uint32_t i = 0; i < CELLS; i++) {
		struct flock lk = flock_of(F_WRLCK, low(i), high(i));

		assert_int_equal(fcntl(w->other, F_OFD_GETLK, &lk), 0);
		assert_int_equal(lk.l_type, w->cell[i]);
	}
}

static void check_conflict(struct world *w)
{
	uint32_t a = below(w, CELLS), b = a + below(w, CELLS - a);
	struct fs_range wanted = { low(a), high(b), F_RDLCK };
	bool any = false, write = false;
	uint32_t steps = 2 * CELLS;

	for (uint32_t i = a; i <= b; i++) {
		any |= w->cell[i] != F_UNLCK;
		write |= w->cell[i] == F_WRLCK;
	}
	assert_int_equal(fs_ranges_conflict(&w->ranges, &wanted, &steps),
			 write);
	wanted.type = F_WRLCK;
	assert_int_equal(fs_ranges_conflict(&w->ranges, &wanted, &steps), any);
}

static void one_change(struct world *w)
{
	static const uint32_t types[] = { F_RDLCK, F_WRLCK, F_UNLCK };
	uint32_t a = below(w, CELLS), most = below(w, 8) ? 6 : CELLS;
	uint32_t b = a + below(w, CELLS - a < most ? CELLS - a : most);
	uint32_t type = types[below(w, 3)];
	struct flock lk = flock_of(type, low(a), high(b));

	assert_int_equal(set(w, type, low(a), high(b)), 0);
	assert_int_equal(fcntl(w->fd, F_OFD_SETLK, &lk), 0);
	for (uint32_t i = a; i <= b; i++)
		w->cell[i] = type;
}

static void they_are_what_bytes_and_the_kernel_say(void **state)
{
	struct world *w = *state;

	for (uint32_t i = 0; i < 20000; i++) {
		w->seed += i;
		one_change(w);
		check_form(w);
		check_oracle(w);
		check_conflict(w);
		if (i % 16 == 0)
			check_kernel(w);
	}
}

static void what_is_given_up_changes_nothing(void **state)
{
	const struct fs_range change = { 12, 13, F_UNLCK };
	struct world *w = *state;
	struct fs_range_plan plan;

	assert_int_equal(set(w, F_WRLCK, 10, 19), 0);
	assert_int_equal(fs_ranges_plan(&w->ranges, &change, &plan, &w->total),
			 0);
	fs_ranges_abandon(&plan, &w->total);
	check_form(w);
	assert_int_equal(w->ranges.n, 1);
	assert_int_equal(type_at(w, 12), F_WRLCK);
}

static void there_is_a_limit_for_all_together(void **state)
{
	struct world *w = *state;
	struct fs_ranges full;
	uint64_t n = 0;

	while (n < FS_RANGES_MAX) {
		assert_int_equal(set(w, F_WRLCK, 4 * n, 4 * n + 2), 0);
		n++;
	}
	assert_int_equal(set(w, F_WRLCK, 4 * n, 4 * n), -ENOLCK);
	assert_int_equal(set(w, F_UNLCK, 1, 1), -ENOLCK);
	assert_int_equal(set(w, F_RDLCK, 1, 1), -ENOLCK);
	check_form(w);
	/* What needs no more is allowed. */
	assert_int_equal(set(w, F_UNLCK, 0, 0), 0);
	assert_int_equal(set(w, F_WRLCK, 0, 0), 0);
	assert_int_equal(set(w, F_RDLCK, 4, 6), 0);
	assert_int_equal(w->total, FS_RANGES_MAX);
	/* For another owner, too, until there is room. */
	full = w->ranges;
	w->ranges = (struct fs_ranges){ 0 };
	assert_int_equal(set(w, F_RDLCK, 0, 0), -ENOLCK);
	assert_int_equal(set(w, F_UNLCK, 0, INT64_MAX), 0);
	w->ranges = full;
	assert_int_equal(set(w, F_UNLCK, 8, 10), 0);
	assert_int_equal(set(w, F_UNLCK, 1, 1), 0);
	assert_int_equal(set(w, F_UNLCK, 13, 13), -ENOLCK);
}

static void a_search_ends(void **state)
{
	struct fs_range wanted = { 0, 1000000, F_RDLCK };
	struct world *w = *state;
	uint32_t steps = 100;

	for (uint64_t i = 0; i < 1000; i++)
		assert_int_equal(set(w, F_RDLCK, 2 * i, 2 * i), 0);
	assert_int_equal(set(w, F_WRLCK, 2000, 2000), 0);
	assert_false(fs_ranges_conflict(&w->ranges, &wanted, &steps));
	assert_int_equal(steps, 0);
	steps = 1001;
	assert_true(fs_ranges_conflict(&w->ranges, &wanted, &steps));
	assert_int_equal(steps, 0);
}

static void who_has_few_keeps_no_memory_of_many(void **state)
{
	struct world *w = *state;

	for (uint64_t i = 0; i < 10000; i++)
		assert_int_equal(set(w, F_RDLCK, 2 * i, 2 * i), 0);
	assert_true(w->ranges.room >= 10000);
	for (uint64_t i = 0; i < 9999; i++)
		assert_int_equal(set(w, F_UNLCK, 2 * i, 2 * i + 1), 0);
	assert_true(w->ranges.room <= 8);
	check_form(w);
	assert_int_equal(set(w, F_UNLCK, 0, INT64_MAX), 0);
	assert_int_equal(w->ranges.n, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make, drop)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(they_are_what_bytes_and_the_kernel_say),
		TEST(what_is_given_up_changes_nothing),
		TEST(there_is_a_limit_for_all_together),
		TEST(a_search_ends),
		TEST(who_has_few_keeps_no_memory_of_many),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
