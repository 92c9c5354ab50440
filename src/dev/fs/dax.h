/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between dax (what the guest has mapped where) and tail (last pages).
 *
 *     range    what the guest asked for: [at, at + len) shows a file
 *     piece    what the front-end has mapped of it: whole pages of the file,
 *              or, for a last page that the file does not fill, a tail
 *
 * A mapping is never longer than its file. QEMU refuses others, and makes an
 * empty file longer for them. So a range is covered only as far as the guest
 * knows the file to reach; it looks no further, and it learns of a new size
 * from us alone: before that it is covered up to there (fs_dax_cover()).
 *
 * A file's last page is in general one that the file does not fill. In its
 * place is a page of memory, the tail, that is kept equal to the file: what
 * either side changes is copied to the other, byte by byte, soon and whenever a
 * request makes it matter. A tail stays one when the file grows, for it can not
 * be exchanged under a guest that may be looking at it.
 */
#ifndef MOAT_DEV_FS_DAX_H
#define MOAT_DEV_FS_DAX_H

#include "dev/fs/fs.h"

#define FS_PAGE 4096u
#define FS_TAILS_MAX 4096u /* 32 MiB at the most, here and in shared memory */
#define FS_TAIL_NONE UINT32_MAX

struct fs_tail {
	bool used, writable;
	int fd;		 /* the file, open */
	uint64_t offset; /* of the page in it */
	uint64_t node;	 /* its id */
	uint8_t *base;	 /* as both sides last had it */
};

/** struct fs_tails - all of them, and the memory that is shown to the guest */
struct fs_tails {
	int fd;
	uint8_t *pages;
	struct fs_tail *tail;
	uint32_t used, next;
};

int fs_tails_init(struct fs_tails *t);
void fs_tails_fini(struct fs_tails *t);

/**
 * fs_tail_new() - for the page at @offset of a file
 * @fd: the file; taken over on success
 *
 * Return: its number, or a negative errno.
 */
int fs_tail_new(struct fs_tails *t, int fd, bool writable, uint64_t offset,
		uint64_t node);

/** fs_tail_sync() - copy to each side what the other has changed */
void fs_tail_sync(struct fs_tails *t, uint32_t i);

/** fs_tail_free() - after a last sync */
void fs_tail_free(struct fs_tails *t, uint32_t i);

#endif
