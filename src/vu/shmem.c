/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vu/shmem.h"

#define ROOM_FIRST 16u

void moat_vu_shmem_init(struct moat_vu_shmem *s, uint32_t max)
{
	*s = (struct moat_vu_shmem){
		.page = (uint64_t)sysconf(_SC_PAGESIZE),
		.max = max,
	};
}

void moat_vu_shmem_fini(struct moat_vu_shmem *s)
{
	free(s->maps);
	s->maps = NULL;
	s->n = s->room = 0;
}

bool moat_vu_shmem_any(const struct moat_vu_shmem *s)
{
	for (uint32_t i = 0; i < MOAT_VU_SHMEM_MAX; i++)
		if (s->sizes[i])
			return true;
	return false;
}

/* The first mapping at or behind a place. */
static uint32_t find(const struct moat_vu_shmem *s, uint8_t shmid,
		     uint64_t offset)
{
	uint32_t low = 0, high = s->n;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;
		const struct moat_vu_mapping *m = &s->maps[mid];

		if (m->shmid < shmid ||
		    (m->shmid == shmid && m->offset < offset))
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* Keep those that @keep says. */
static void sift(struct moat_vu_shmem *s,
		 bool (*keep)(const struct moat_vu_mapping *m,
			      const struct moat_vu_mapping *arg),
		 const struct moat_vu_mapping *arg)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < s->n; i++)
		if (keep(&s->maps[i], arg))
			s->maps[n++] = s->maps[i];
	s->n = n;
}

static bool is_wanted(const struct moat_vu_mapping *m,
		      const struct moat_vu_mapping *unused)
{
	(void)unused;
	return !m->doubtful || m->orphan;
}

static bool overlap(const struct moat_vu_mapping *a,
		    const struct moat_vu_mapping *b)
{
	return a->shmid == b->shmid &&
	       (a->offset < b->offset ? b->offset - a->offset < a->len
				      : a->offset - b->offset < b->len);
}

static bool is_elsewhere(const struct moat_vu_mapping *m,
			 const struct moat_vu_mapping *other)
{
	return !overlap(m, other);
}

/* One to give up for another's sake: perhaps it is gone by itself. */
static const struct moat_vu_mapping *spare(const struct moat_vu_shmem *s)
{
	for (uint32_t i = 0; i < s->n; i++)
		if (s->maps[i].orphan && s->maps[i].doubtful)
			return &s->maps[i];
	return NULL;
}

/* Room for @m. */
static int grow(struct moat_vu_shmem *s, const struct moat_vu_mapping *m)
{
	uint32_t room = s->room ? s->room * 2 : ROOM_FIRST;
	struct moat_vu_mapping *maps;

	if (s->n == s->max)
		sift(s, is_wanted, NULL);
	/* An orphan goes before there is another. */
	if (s->n == s->max)
		return moat_vu_shmem_evict(s, m->shmid, m->offset, m->len)
			       ? 0
			       : -ENOSPC;
	if (s->n < s->room)
		return 0;
	if (room > s->max)
		room = s->max;
	maps = realloc(s->maps, room * sizeof(*maps));
	if (!maps)
		return -ENOMEM;
	s->maps = maps;
	s->room = room;
	return 0;
}

/* Those in the way are the one before its place and some from there on. */
static bool in_the_way(const struct moat_vu_shmem *s,
		       const struct moat_vu_mapping *m, bool *others)
{
	uint32_t at = find(s, m->shmid, m->offset);

	for (uint32_t i = at ? at - 1 : 0; i < s->n; i++) {
		bool hit = overlap(&s->maps[i], m);

		if (hit && !s->maps[i].doubtful && !s->maps[i].orphan)
			return true;
		*others |= hit;
		if (!hit && i >= at)
			break;
	}
	return false;
}

static int check_place(const struct moat_vu_shmem *s, uint8_t shmid,
		       uint64_t offset, uint64_t len)
{
	uint64_t size = s->sizes[shmid];

	if (!size)
		return -ENXIO;
	if (!len || offset % s->page || len % s->page)
		return -EINVAL;
	/* Each bound by itself: the sum may wrap. */
	if (offset > size || len > size - offset)
		return -ERANGE;
	return 0;
}

int moat_vu_shmem_may_map(struct moat_vu_shmem *s, uint8_t shmid,
			  uint64_t offset, uint64_t len)
{
	struct moat_vu_mapping m = { offset, len, shmid, false, false };
	int ret = check_place(s, shmid, offset, len);
	bool ignored = false;

	if (ret)
		return ret;
	if (in_the_way(s, &m, &ignored))
		return -EEXIST;
	return grow(s, &m);
}

int moat_vu_shmem_may_clear(const struct moat_vu_shmem *s, uint8_t shmid,
			    uint64_t offset, uint64_t len)
{
	const struct moat_vu_mapping m = { offset, len, shmid, false, false };
	int ret = check_place(s, shmid, offset, len);

	for (uint32_t i = 0; !ret && i < s->n; i++)
		if (!s->maps[i].orphan && overlap(&s->maps[i], &m))
			ret = -EEXIST;
	return ret;
}

void moat_vu_shmem_add(struct moat_vu_shmem *s, uint8_t shmid, uint64_t offset,
		       uint64_t len)
{
	struct moat_vu_mapping m = { offset, len, shmid, false, false };
	bool others = false;
	uint32_t at;

	in_the_way(s, &m, &others);
	if (others)
		sift(s, is_elsewhere, &m);
	at = find(s, shmid, offset);
	memmove(s->maps + at + 1, s->maps + at, (s->n - at) * sizeof(*s->maps));
	s->maps[at] = m;
	s->n++;
}

const struct moat_vu_mapping *moat_vu_shmem_find(const struct moat_vu_shmem *s,
						 uint8_t shmid, uint64_t offset,
						 uint64_t len)
{
	uint32_t at = find(s, shmid, offset);

	if (at < s->n && s->maps[at].shmid == shmid &&
	    s->maps[at].offset == offset && s->maps[at].len == len)
		return &s->maps[at];
	return NULL;
}

void moat_vu_shmem_del(struct moat_vu_shmem *s, uint8_t shmid, uint64_t offset,
		       uint64_t len)
{
	const struct moat_vu_mapping *m =
		moat_vu_shmem_find(s, shmid, offset, len);
	size_t at;

	if (!m)
		return;
	at = (size_t)(m - s->maps);
	s->n--;
	memmove(s->maps + at, s->maps + at + 1, (s->n - at) * sizeof(*s->maps));
}

void moat_vu_shmem_doubt(struct moat_vu_shmem *s)
{
	for (uint32_t i = 0; i < s->n; i++)
		s->maps[i].doubtful = true;
}

bool moat_vu_shmem_unmapped(struct moat_vu_shmem *s, uint8_t shmid,
			    uint64_t offset, uint64_t len, bool ok)
{
	const struct moat_vu_mapping *m =
		moat_vu_shmem_find(s, shmid, offset, len);

	if (ok || !m || m->doubtful || m->orphan) {
		moat_vu_shmem_del(s, shmid, offset, len);
		return true;
	}
	s->maps[m - s->maps].doubtful = true;
	return false;
}

void moat_vu_shmem_orphan(struct moat_vu_shmem *s)
{
	for (uint32_t i = 0; i < s->n; i++)
		s->maps[i].orphan = true;
	s->former = true;
}

const struct moat_vu_mapping *
moat_vu_shmem_orphan_in(const struct moat_vu_shmem *s, uint8_t shmid,
			uint64_t offset, uint64_t len)
{
	const struct moat_vu_mapping m = { offset, len, shmid, false, false };

	for (uint32_t i = 0; i < s->n; i++)
		if (s->maps[i].orphan && overlap(&s->maps[i], &m))
			return &s->maps[i];
	return NULL;
}

const struct moat_vu_mapping *moat_vu_shmem_evict(const struct moat_vu_shmem *s,
						  uint8_t shmid,
						  uint64_t offset, uint64_t len)
{
	const struct moat_vu_mapping *m =
		moat_vu_shmem_orphan_in(s, shmid, offset, len);

	return m || s->n < s->max ? m : spare(s);
}

void moat_vu_shmem_clear(struct moat_vu_shmem *s)
{
	s->n = 0;
}
