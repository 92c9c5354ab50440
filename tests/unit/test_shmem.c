/* SPDX-License-Identifier: Apache-2.0 */
/* The table of mappings in shared memory regions, against a map of pages. */
#include "support.h"

#include <errno.h>

#include "vu/shmem.h"

#define PAGES 64u
#define REGIONS 3u
#define MAX 12u

/* Each page: the number of the mapping that it is of; 0: none. */
struct oracle {
	uint32_t page[REGIONS][PAGES];
	struct {
		uint32_t first, n, region;
		bool there, doubtful, orphan;
	} maps[1 << 17];
	uint32_t next;
};

/* Those that do not go by themselves; none for one that goes before. */
static uint32_t lasting(const struct oracle *o)
{
	uint32_t n = 0;

	for (uint32_t i = 1; i < o->next; i++) {
		if (o->maps[i].there && o->maps[i].doubtful &&
		    o->maps[i].orphan)
			return 0;
		n += o->maps[i].there && !o->maps[i].doubtful;
	}
	return n;
}

static int place(uint32_t region, uint32_t first, uint32_t n)
{
	if (region >= REGIONS)
		return -ENXIO;
	if (!n)
		return -EINVAL;
	if (first + n > PAGES)
		return -ERANGE;
	return 0;
}

/* 0, or what moat_vu_shmem_may_map() has to say. */
static int verdict(const struct oracle *o, uint32_t region, uint32_t first,
		   uint32_t n)
{
	int ret = place(region, first, n);
	bool orphan = false;

	for (uint32_t i = first; !ret && i < first + n; i++) {
		uint32_t id = o->page[region][i];

		if (id && !o->maps[id].doubtful && !o->maps[id].orphan)
			ret = -EEXIST;
		orphan |= id && o->maps[id].orphan;
	}
	return ret || orphan || lasting(o) < MAX ? ret : -ENOSPC;
}

static void drop(struct oracle *o, uint32_t id)
{
	o->maps[id].there = false;
	for (uint32_t i = 0; i < o->maps[id].n; i++)
		o->page[o->maps[id].region][o->maps[id].first + i] = 0;
}

/* The number of what the table says; it is there. */
static uint32_t id_of(const struct oracle *o, const struct moat_vu_shmem *s,
		      const struct moat_vu_mapping *m)
{
	uint32_t id = o->page[m->shmid][m->offset / s->page];

	assert_true(id && o->maps[id].there);
	assert_int_equal(o->maps[id].first * s->page, m->offset);
	assert_int_equal(o->maps[id].n * s->page, m->len);
	assert_int_equal(o->maps[id].orphan, m->orphan);
	assert_int_equal(o->maps[id].doubtful, m->doubtful);
	return id;
}

static bool overlaps(const struct oracle *o, uint32_t id, uint32_t region,
		     uint32_t first, uint32_t n)
{
	return o->maps[id].region == region && o->maps[id].first < first + n &&
	       first < o->maps[id].first + o->maps[id].n;
}

/* Orphans are taken for gone, whatever the front-end says. */
static void take_away(struct oracle *o, struct moat_vu_shmem *s, uint32_t id)
{
	assert_true(o->maps[id].orphan);
	assert_true(moat_vu_shmem_unmapped(s, (uint8_t)o->maps[id].region,
					   o->maps[id].first * s->page,
					   o->maps[id].n * s->page, id % 2));
	drop(o, id);
}

static void make_way(struct oracle *o, struct moat_vu_shmem *s, uint32_t region,
		     uint32_t first, uint32_t n)
{
	const struct moat_vu_mapping *m;

	while ((m = moat_vu_shmem_evict(s, (uint8_t)region, first * s->page,
					n * s->page))) {
		uint32_t id = id_of(o, s, m);

		if (!overlaps(o, id, region, first, n)) {
			assert_int_equal(s->n, MAX);
			assert_true(m->doubtful);
		}
		take_away(o, s, id);
	}
}

static void clear(struct oracle *o, struct moat_vu_shmem *s, uint32_t region,
		  uint32_t first, uint32_t n)
{
	const struct moat_vu_mapping *m;
	int want = place(region, first, n);

	for (uint32_t i = first; !want && i < first + n; i++)
		if (o->page[region][i] && !o->maps[o->page[region][i]].orphan)
			want = -EEXIST;
	assert_int_equal(moat_vu_shmem_may_clear(s, (uint8_t)region,
						 first * s->page, n * s->page),
			 want);
	if (want)
		return;
	while ((m = moat_vu_shmem_orphan_in(s, (uint8_t)region, first * s->page,
					    n * s->page))) {
		assert_true(overlaps(o, id_of(o, s, m), region, first, n));
		take_away(o, s, id_of(o, s, m));
	}
	for (uint32_t i = first; i < first + n; i++)
		assert_int_equal(o->page[region][i], 0);
}

static void map(struct oracle *o, struct moat_vu_shmem *s, uint32_t region,
		uint32_t first, uint32_t n)
{
	int want = verdict(o, region, first, n);

	assert_int_equal(moat_vu_shmem_may_map(s, (uint8_t)region,
					       first * s->page, n * s->page),
			 want);
	if (want)
		return;
	/* To make room, those in doubt may have gone. */
	for (uint32_t i = 1; i < o->next; i++)
		if (o->maps[i].there && o->maps[i].doubtful &&
		    !moat_vu_shmem_find(s, (uint8_t)o->maps[i].region,
					o->maps[i].first * s->page,
					o->maps[i].n * s->page))
			drop(o, i);
	make_way(o, s, region, first, n);
	assert_true(s->n < MAX);
	moat_vu_shmem_add(s, (uint8_t)region, first * s->page, n * s->page);
	for (uint32_t i = first; i < first + n; i++)
		if (o->page[region][i])
			drop(o, o->page[region][i]);
	o->maps[o->next].first = first;
	o->maps[o->next].n = n;
	o->maps[o->next].region = region;
	o->maps[o->next].there = true;
	for (uint32_t i = first; i < first + n; i++)
		o->page[region][i] = o->next;
	o->next++;
}

static void unmap(struct oracle *o, struct moat_vu_shmem *s, uint32_t region,
		  uint32_t first, uint32_t n)
{
	uint32_t id =
		region < REGIONS && first < PAGES ? o->page[region][first] : 0;
	bool there = id && o->maps[id].first == first && o->maps[id].n == n;
	const struct moat_vu_mapping *m = moat_vu_shmem_find(
		s, (uint8_t)region, first * s->page, n * s->page);

	assert_int_equal(m != NULL, there);
	if (m)
		assert_int_equal(m->doubtful, o->maps[id].doubtful);
	moat_vu_shmem_del(s, (uint8_t)region, first * s->page, n * s->page);
	if (there)
		drop(o, id);
}

static void check(const struct oracle *o, const struct moat_vu_shmem *s)
{
	uint32_t n = 0;

	for (uint32_t i = 1; i < o->next; i++)
		if (o->maps[i].there) {
			n++;
			assert_non_null(moat_vu_shmem_find(
				s, (uint8_t)o->maps[i].region,
				o->maps[i].first * s->page,
				o->maps[i].n * s->page));
		}
	assert_int_equal(s->n, n);
}

static void any_sequence_is_as_a_map_of_pages_says(void **state)
{
	struct oracle *o = calloc(1, sizeof(*o));
	struct moat_vu_shmem s;
	struct rng r = { 7 };

	(void)state;
	assert_non_null(o);
	o->next = 1;
	moat_vu_shmem_init(&s, MAX);
	for (uint32_t i = 0; i < REGIONS; i++)
		s.sizes[i] = PAGES * s.page;
	for (uint32_t step = 0; step < 4000; step++) {
		uint32_t region = rnd_below(&r, REGIONS + 1);
		uint32_t first = rnd_below(&r, PAGES + 2);
		uint32_t n = rnd_below(&r, 10);
		uint32_t id = 1 + rnd_below(&r, o->next);

		if (rnd_below(&r, 100) == 0) {
			moat_vu_shmem_doubt(&s);
			for (uint32_t i = 1; i < o->next; i++)
				o->maps[i].doubtful = true;
		} else if (rnd_below(&r, 100) == 0) {
			moat_vu_shmem_orphan(&s);
			for (uint32_t i = 1; i < o->next; i++)
				o->maps[i].orphan = true;
		} else if (rnd_below(&r, 10) == 0) {
			clear(o, &s, region, first, n);
		} else if (rnd_below(&r, 3)) {
			map(o, &s, region, first, n);
		} else if (rnd_below(&r, 2) && id < o->next) {
			unmap(o, &s, o->maps[id].region, o->maps[id].first,
			      o->maps[id].n);
		} else {
			unmap(o, &s, region, first, n);
		}
		check(o, &s);
	}
	moat_vu_shmem_fini(&s);
	free(o);
}

static void what_wraps_is_outside(void **state)
{
	struct moat_vu_shmem s;

	(void)state;
	moat_vu_shmem_init(&s, MAX);
	assert_false(moat_vu_shmem_any(&s));
	s.sizes[255] = 4 * s.page;
	assert_true(moat_vu_shmem_any(&s));
	assert_int_equal(moat_vu_shmem_may_map(&s, 255, 0, 4 * s.page), 0);
	assert_int_equal(moat_vu_shmem_may_map(&s, 255, 0, 5 * s.page),
			 -ERANGE);
	assert_int_equal(moat_vu_shmem_may_map(&s, 255, 5 * s.page, s.page),
			 -ERANGE);
	assert_int_equal(moat_vu_shmem_may_map(&s, 255, s.page, 0 - s.page),
			 -ERANGE);
	assert_int_equal(moat_vu_shmem_may_map(&s, 255, 0 - s.page, s.page),
			 -ERANGE);
	assert_int_equal(moat_vu_shmem_may_map(&s, 255, 1, s.page), -EINVAL);
	assert_int_equal(moat_vu_shmem_may_map(&s, 255, 0, 1), -EINVAL);
	assert_int_equal(moat_vu_shmem_may_map(&s, 254, 0, s.page), -ENXIO);
	moat_vu_shmem_fini(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_sequence_is_as_a_map_of_pages_says),
		cmocka_unit_test(what_wraps_is_outside),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
