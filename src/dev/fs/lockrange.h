/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which bytes of a file somebody has locked, as POSIX has it: a lock replaces
 * what the same owner had there, an unlock cuts pieces out, neighbours of one
 * type are one.
 *
 * A change is planned first, which is all that can fail; then the kernel is
 * asked; then the change is made or given up. Nothing here is locked: whoever
 * calls sees to it that nobody else changes the same ranges meanwhile.
 *
 * Ranges are an array, sorted: 24 bytes each, a search for each question, and a
 * change moves what is behind it (1.5 MiB where one owner has them all).
 */
#ifndef MOAT_DEV_FS_LOCKRANGE_H
#define MOAT_DEV_FS_LOCKRANGE_H

#include <stdbool.h>
#include <stdint.h>

/* Of all owners together. In the kernel each takes some 200 bytes more. */
#define FS_RANGES_MAX 65536u

/** struct fs_range - bytes @start to @end, which is INT64_MAX at most */
struct fs_range {
	uint64_t start, end;
	uint32_t type; /* F_RDLCK, F_WRLCK; for a change also F_UNLCK */
};

/** struct fs_ranges - what one owner has; none: all zero */
struct fs_ranges {
	struct fs_range *at; /* sorted, apart; of one type: not adjacent */
	uint32_t n, room;
};

/** struct fs_range_plan - @n ranges @put in the place of @first to @last - 1 */
struct fs_range_plan {
	uint32_t first, last, n;
	struct fs_range put[3];
};

/**
 * fs_ranges_plan() - prepare a change
 * @total: ranges of all; atomic
 *
 * fs_ranges_apply() or fs_ranges_abandon() has to follow.
 *
 * Return: 0, or -ENOLCK: there would be too many, or there is no memory.
 */
int fs_ranges_plan(struct fs_ranges *r, const struct fs_range *change,
		   struct fs_range_plan *plan, uint32_t *total);
void fs_ranges_apply(struct fs_ranges *r, const struct fs_range_plan *plan,
		     uint32_t *total);
void fs_ranges_abandon(const struct fs_range_plan *plan, uint32_t *total);

/** fs_ranges_clear() - nothing is locked any more */
void fs_ranges_clear(struct fs_ranges *r, uint32_t *total);

/**
 * fs_ranges_conflict() - would another owner have to wait for @wanted?
 * @steps: ranges that may yet be looked at; none is found beyond
 */
bool fs_ranges_conflict(const struct fs_ranges *r,
			const struct fs_range *wanted, uint32_t *steps);

#endif
