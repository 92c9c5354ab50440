/* SPDX-License-Identifier: Apache-2.0 */
#include "audit/ranges.h"

#include <errno.h>
#include <stdlib.h>

int ranges_add(struct ranges *r, uint64_t start, uint64_t end)
{
	if (start >= end)
		return 0;
	/* maps files list neighbours in order: most additions end here */
	if (r->n && r->v[r->n - 1].end == start) {
		r->v[r->n - 1].end = end;
		return 0;
	}
	if (r->n == r->cap) {
		size_t cap = r->cap ? r->cap * 2 : 4;
		struct range *v = reallocarray(r->v, cap, sizeof(*v));

		if (!v)
			return -ENOMEM;
		r->v = v;
		r->cap = cap;
	}
	r->v[r->n++] = (struct range){ start, end };
	return 0;
}

int ranges_add_all(struct ranges *r, const struct ranges *from)
{
	for (size_t i = 0; i < from->n; i++) {
		int err = ranges_add(r, from->v[i].start, from->v[i].end);

		if (err)
			return err;
	}
	return 0;
}

static int by_start(const void *a, const void *b)
{
	const struct range *x = a, *y = b;

	return (x->start > y->start) - (x->start < y->start);
}

void ranges_union(struct ranges *r)
{
	size_t out = 0;

	if (r->n < 2)
		return;
	qsort(r->v, r->n, sizeof(*r->v), by_start);
	for (size_t i = 1; i < r->n; i++) {
		if (r->v[i].start > r->v[out].end)
			r->v[++out] = r->v[i];
		else if (r->v[i].end > r->v[out].end)
			r->v[out].end = r->v[i].end;
	}
	r->n = out + 1;
}

void ranges_clip(struct ranges *r, uint64_t end)
{
	size_t out = 0;

	for (size_t i = 0; i < r->n; i++) {
		struct range x = r->v[i];

		if (x.end > end)
			x.end = end;
		if (x.start < x.end)
			r->v[out++] = x;
	}
	r->n = out;
}

int ranges_subtract(const struct ranges *a, const struct ranges *b,
		    struct ranges *out)
{
	size_t j = 0;

	for (size_t i = 0; i < a->n; i++) {
		uint64_t at = a->v[i].start, end = a->v[i].end;

		while (j < b->n && b->v[j].end <= at)
			j++;
		for (size_t k = j; k < b->n && b->v[k].start < end; k++) {
			int err = ranges_add(out, at, b->v[k].start);

			if (err)
				return err;
			if (b->v[k].end > at)
				at = b->v[k].end;
		}
		if (ranges_add(out, at, end))
			return -ENOMEM;
	}
	return 0;
}

uint64_t ranges_bytes(const struct ranges *r)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < r->n; i++)
		sum += r->v[i].end - r->v[i].start;
	return sum;
}

void ranges_free(struct ranges *r)
{
	free(r->v);
	*r = (struct ranges){ 0 };
}
