/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "dev/fs/lockrange.h"

#define LEAST 4u /* ranges that there is room for */

/* The first that ends at @at or behind it. */
static uint32_t first_to(const struct fs_ranges *r, uint64_t at)
{
	uint32_t low = 0, high = r->n;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (r->at[mid].end < at)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/*
 * What touches the change, an adjacent one included: of its type it becomes a
 * part of it; of another what sticks out stays. That is one range on each side
 * at most: the one with the byte before, and the one with the byte behind.
 */
static void make_plan(const struct fs_ranges *r, const struct fs_range *change,
		      struct fs_range_plan *p)
{
	struct fs_range whole = *change, left = { 0 }, right = { 0 };
	bool has_left = false, has_right = false;
	uint32_t i = first_to(r, change->start ? change->start - 1 : 0);

	*p = (struct fs_range_plan){ .first = i };
	for (; i < r->n && r->at[i].start <= change->end + 1; i++) {
		const struct fs_range *old = &r->at[i];

		if (old->type == change->type) {
			if (old->start < whole.start)
				whole.start = old->start;
			if (old->end > whole.end)
				whole.end = old->end;
			continue;
		}
		if (old->start < change->start) {
			left = *old;
			if (left.end >= change->start)
				left.end = change->start - 1;
			has_left = true;
		}
		if (old->end > change->end) {
			right = *old;
			if (right.start <= change->end)
				right.start = change->end + 1;
			has_right = true;
		}
	}
	p->last = i;
	if (has_left)
		p->put[p->n++] = left;
	if (change->type != F_UNLCK)
		p->put[p->n++] = whole;
	if (has_right)
		p->put[p->n++] = right;
}

static uint32_t removed(const struct fs_range_plan *p)
{
	return p->last - p->first;
}

static bool resize(struct fs_ranges *r, uint32_t room)
{
	struct fs_range *at = realloc(r->at, room * sizeof(*at));

	if (!at)
		return false;
	r->at = at;
	r->room = room;
	return true;
}

/* Count @n more, unless that are too many. */
static bool count(uint32_t *total, uint32_t n)
{
	if (__atomic_add_fetch(total, n, __ATOMIC_RELAXED) <= FS_RANGES_MAX)
		return true;
	__atomic_fetch_sub(total, n, __ATOMIC_RELAXED);
	return false;
}

int fs_ranges_plan(struct fs_ranges *r, const struct fs_range *change,
		   struct fs_range_plan *plan, uint32_t *total)
{
	uint32_t more, need;

	make_plan(r, change, plan);
	more = plan->n > removed(plan) ? plan->n - removed(plan) : 0;
	need = r->n + more;
	/* What shrinks is allowed always. */
	if (more && !count(total, more))
		return -ENOLCK;
	if (need <= r->room ||
	    resize(r, r->room ? 2 * r->room : LEAST)) /* more is 2 at most */
		return 0;
	fs_ranges_abandon(plan, total);
	return -ENOLCK;
}

void fs_ranges_abandon(const struct fs_range_plan *plan, uint32_t *total)
{
	if (plan->n > removed(plan))
		__atomic_fetch_sub(total, plan->n - removed(plan),
				   __ATOMIC_RELAXED);
}

void fs_ranges_apply(struct fs_ranges *r, const struct fs_range_plan *plan,
		     uint32_t *total)
{
	uint32_t behind = r->n - plan->last;

	if (behind && plan->n != removed(plan))
		memmove(r->at + plan->first + plan->n, r->at + plan->last,
			behind * sizeof(*r->at));
	if (plan->n)
		memcpy(r->at + plan->first, plan->put,
		       plan->n * sizeof(*r->at));
	r->n = plan->first + plan->n + behind;
	if (plan->n < removed(plan))
		__atomic_fetch_sub(total, removed(plan) - plan->n,
				   __ATOMIC_RELAXED);
	/* Or each of many owners could keep as much as all may have. */
	if (r->room > LEAST && r->n < r->room / 4)
		resize(r, r->room / 2);
}

void fs_ranges_clear(struct fs_ranges *r, uint32_t *total)
{
	__atomic_fetch_sub(total, r->n, __ATOMIC_RELAXED);
	free(r->at);
	*r = (struct fs_ranges){ 0 };
}

bool fs_ranges_conflict(const struct fs_ranges *r,
			const struct fs_range *wanted, uint32_t *steps)
{
	for (uint32_t i = first_to(r, wanted->start);
	     i < r->n && *steps && r->at[i].start <= wanted->end; i++) {
		--*steps;
		if (wanted->type == F_WRLCK || r->at[i].type == F_WRLCK)
			return true;
	}
	return false;
}
