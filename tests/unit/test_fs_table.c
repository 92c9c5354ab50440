/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What src/dev/fs/table.h promises: an id finds its item while that has users,
 * and never another's; from any number of threads.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "dev/fs/table.h"

#define LEN(a) (sizeof(a) / sizeof(*(a)))

struct item {
	struct fs_slot slot;
	uint64_t id; /* atomic; what it was published as, 0: it is free */
};

static struct item *make(struct fs_table *t)
{
	struct item *i = fs_table_new(t);

	if (!i)
		return NULL;
	__atomic_store_n(&i->id, fs_slot_id(&i->slot), __ATOMIC_RELAXED);
	fs_table_publish(&i->slot);
	return i;
}

static void put(struct fs_table *t, struct item *i)
{
	if (!fs_table_put(&i->slot))
		return;
	__atomic_store_n(&i->id, 0, __ATOMIC_RELAXED);
	fs_table_free(t, &i->slot);
}

static void an_id_finds_its_item_and_no_later_one(void **state)
{
	struct fs_table t;
	struct item *i, *again;
	uint64_t id;

	(void)state;
	assert_int_equal(fs_table_init(&t, sizeof(*i), 10), 0);
	i = make(&t);
	id = i->id;
	assert_int_equal(id, 1);
	assert_ptr_equal(fs_table_get(&t, id), i);
	put(&t, i);
	assert_ptr_equal(fs_table_get(&t, id), i);
	put(&t, i);
	put(&t, i);
	assert_null(fs_table_get(&t, id));
	for (uint32_t n = 0; n < 1000; n++) {
		again = make(&t);
		assert_ptr_equal(again, i);
		assert_int_not_equal(again->id, id);
		assert_null(fs_table_get(&t, id));
		put(&t, again);
	}
	fs_table_fini(&t);
}

static void ids_that_never_were_find_nothing(void **state)
{
	static const uint64_t bad[] = {
		0,
		2,
		UINT64_MAX,
		UINT32_MAX,
		UINT64_C(1) << 32,
		(UINT64_C(1) << 32) + 1,
		FS_CHUNK,
		FS_CHUNK * FS_CHUNKS,
		FS_CHUNK * FS_CHUNKS - 1,
		(UINT64_C(1) << 63) + 1,
	};
	struct fs_table t;
	struct item *i;

	(void)state;
	assert_int_equal(fs_table_init(&t, sizeof(*i), UINT32_MAX), 0);
	i = make(&t);
	for (size_t n = 0; n < LEN(bad); n++)
		assert_null(fs_table_get(&t, bad[n]));
	/* One that nobody has published yet. */
	i = fs_table_new(&t);
	assert_null(fs_table_get(&t, fs_slot_id(&i->slot)));
	fs_table_fini(&t);
}

static void a_full_table_says_so_and_has_room_again(void **state)
{
	struct item *items[2500];
	struct fs_table t;

	(void)state;
	assert_int_equal(fs_table_init(&t, sizeof(**items), LEN(items)), 0);
	for (size_t n = 0; n < LEN(items); n++) {
		items[n] = make(&t);
		assert_non_null(items[n]);
	}
	assert_null(make(&t));
	for (size_t n = 0; n < LEN(items); n++)
		assert_ptr_equal(fs_table_get(&t, items[n]->id), items[n]);
	put(&t, items[1234]);
	put(&t, items[1234]);
	assert_ptr_equal(make(&t), items[1234]);
	assert_null(make(&t));
	fs_table_fini(&t);
}

/* ---- many threads, few items: each id is known to all ---- */

#define KNOWN 16u
#define TURNS 100000u

struct crowd {
	struct fs_table *t;
	uint64_t *known;
	uint64_t seed;
	uint64_t made, found;
};

static uint32_t pick(struct crowd *c)
{
	c->seed = c->seed * UINT64_C(6364136223846793005) + 1442695040888963407;
	return (uint32_t)(c->seed >> 33);
}

/* Make, tell the others, let go of what was told there before. */
static void replace(struct crowd *c, uint64_t *known)
{
	struct item *i = make(c->t);
	uint64_t old;

	if (!i)
		return;
	c->made++;
	old = __atomic_exchange_n(known, i->id, __ATOMIC_ACQ_REL);
	i = old ? fs_table_get(c->t, old) : NULL;
	if (!i)
		return;
	/* The one that looking it up has cost, and the maker's. */
	put(c->t, i);
	put(c->t, i);
}

static void *one_of_many(void *arg)
{
	struct crowd *c = arg;

	for (uint32_t n = 0; n < TURNS; n++) {
		uint64_t *known = &c->known[pick(c) % KNOWN];
		uint64_t id = __atomic_load_n(known, __ATOMIC_ACQUIRE);
		struct item *i;

		if (pick(c) % 4 == 0) {
			replace(c, known);
			continue;
		}
		i = id ? fs_table_get(c->t, id) : NULL;
		if (!i)
			continue;
		assert_true(__atomic_load_n(&i->id, __ATOMIC_RELAXED) == id);
		assert_true(fs_slot_id(&i->slot) == id);
		c->found++;
		put(c->t, i);
	}
	return NULL;
}

static void threads_find_what_they_look_for_or_nothing(void **state)
{
	uint64_t known[KNOWN] = { 0 }, made = 0, found = 0;
	struct crowd crowd[4];
	pthread_t threads[LEN(crowd)];
	struct fs_table t;

	(void)state;
	assert_int_equal(fs_table_init(&t, sizeof(struct item), 64), 0);
	for (size_t n = 0; n < LEN(crowd); n++) {
		crowd[n] = (struct crowd){ &t, known, n + 1, 0, 0 };
		pthread_create(&threads[n], NULL, one_of_many, &crowd[n]);
	}
	for (size_t n = 0; n < LEN(crowd); n++) {
		pthread_join(threads[n], NULL);
		made += crowd[n].made;
		found += crowd[n].found;
	}
	assert_true(made > TURNS / 2 && found > TURNS);
	/* What is left is what is known, and nothing was lost. */
	for (size_t n = 0; n < KNOWN; n++) {
		struct item *i = fs_table_get(&t, known[n]);

		assert_non_null(i);
		put(&t, i);
		put(&t, i);
	}
	for (uint32_t n = 0; n < 64; n++)
		assert_non_null(make(&t));
	assert_null(make(&t));
	fs_table_fini(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_id_finds_its_item_and_no_later_one),
		cmocka_unit_test(ids_that_never_were_find_nothing),
		cmocka_unit_test(a_full_table_says_so_and_has_room_again),
		cmocka_unit_test(threads_find_what_they_look_for_or_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
