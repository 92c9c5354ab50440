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

static int grow(struct moat_vu_shmem *s)
{
	uint32_t room = s->room ? s->room * 2 : ROOM_FIRST;
	struct moat_vu_mapping *maps;

	if (s->n == s->max)
		return -ENOSPC;
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

int moat_vu_shmem_may_map(struct moat_vu_shmem *s, uint8_t shmid,
			  uint64_t offset, uint64_t len)
{
	uint64_t size = s->sizes[shmid];
	uint32_t at = find(s, shmid, offset);

	if (!size)
		return -ENXIO;
	if (!len || offset % s->page || len % s->page)
		return -EINVAL;
	/* Each bound by itself: the sum may wrap. */
	if (offset > size || len > size - offset)
		return -ERANGE;
	if (at < s->n && s->maps[at].shmid == shmid &&
	    s->maps[at].offset - offset < len)
		return -EEXIST;
	if (at && s->maps[at - 1].shmid == shmid &&
	    offset - s->maps[at - 1].offset < s->maps[at - 1].len)
		return -EEXIST;
	return grow(s);
}

void moat_vu_shmem_add(struct moat_vu_shmem *s, uint8_t shmid, uint64_t offset,
		       uint64_t len)
{
	uint32_t at = find(s, shmid, offset);

	memmove(s->maps + at + 1, s->maps + at,
		(s->n - at) * sizeof(*s->maps));
	s->maps[at] = (struct moat_vu_mapping){ offset, len, shmid };
	s->n++;
}

bool moat_vu_shmem_has(const struct moat_vu_shmem *s, uint8_t shmid,
		       uint64_t offset, uint64_t len)
{
	uint32_t at = find(s, shmid, offset);

	return at < s->n && s->maps[at].shmid == shmid &&
	       s->maps[at].offset == offset && s->maps[at].len == len;
}

void moat_vu_shmem_del(struct moat_vu_shmem *s, uint8_t shmid, uint64_t offset,
		       uint64_t len)
{
	uint32_t at = find(s, shmid, offset);

	if (!moat_vu_shmem_has(s, shmid, offset, len))
		return;
	s->n--;
	memmove(s->maps + at, s->maps + at + 1,
		(s->n - at) * sizeof(*s->maps));
}

void moat_vu_shmem_clear(struct moat_vu_shmem *s)
{
	s->n = 0;
}
