/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Notices that wait to be told to the guest: in their order, none twice. For
 * one thread.
 */
#ifndef MOAT_DEV_FS_NOTICE_H
#define MOAT_DEV_FS_NOTICE_H

#include <stdbool.h>
#include <stdint.h>

#define FS_NOTICES_MAX 4096u
#define FS_NOTICE_LISTS 1024u

/**
 * struct fs_notice - what the guest has to forget
 * @id: of a node: a file, or the directory with the name
 * @data: of a file: not only attributes
 * @len: of the name; 0: the file is meant
 */
struct fs_notice {
	struct fs_notice *next, *same; /* in order; in its list */
	uint64_t id;
	uint32_t len;
	bool data;
	char name[];
};

struct fs_notices {
	struct fs_notice *first, **last;
	struct fs_notice *lists[FS_NOTICE_LISTS]; /* by id and name */
	uint32_t n;
};

void fs_notices_init(struct fs_notices *t);
void fs_notices_fini(struct fs_notices *t);
/** fs_notices_add() - @name is NULL for a file; 0 or -ENOMEM */
int fs_notices_add(struct fs_notices *t, uint64_t id, const char *name,
		   bool data);
/** fs_notices_pop() - the first one is done with */
void fs_notices_pop(struct fs_notices *t);

/** fs_notices_full() - may as well wait; some more still have room */
static inline bool fs_notices_full(const struct fs_notices *t)
{
	return t->n >= FS_NOTICES_MAX;
}

#endif
