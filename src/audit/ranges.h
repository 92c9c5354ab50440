/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sets of half-open byte ranges [start, end): what a process maps of an
 * object. A range that is mapped twice counts once.
 */
#ifndef MOAT_AUDIT_RANGES_H
#define MOAT_AUDIT_RANGES_H

#include <stddef.h>
#include <stdint.h>

struct range {
	uint64_t start;
	uint64_t end;
};

struct ranges {
	struct range *v;
	size_t n;
	size_t cap;
};

/** ranges_add() - add [@start, @end); empty ones are left out; -ENOMEM */
int ranges_add(struct ranges *r, uint64_t start, uint64_t end);

/** ranges_add_all() - add all of @from */
int ranges_add_all(struct ranges *r, const struct ranges *from);

/** ranges_union() - sort, and merge what touches: each byte is in one range */
void ranges_union(struct ranges *r);

/** ranges_clip() - cut off what lies at @end or above; keeps the order */
void ranges_clip(struct ranges *r, uint64_t end);

/**
 * ranges_subtract() - @out = @a without @b
 * @a, @b: both after ranges_union()
 */
int ranges_subtract(const struct ranges *a, const struct ranges *b,
		    struct ranges *out);

/** ranges_bytes() - the number of bytes in a set after ranges_union() */
uint64_t ranges_bytes(const struct ranges *r);

void ranges_free(struct ranges *r);

#endif
