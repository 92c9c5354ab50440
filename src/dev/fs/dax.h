/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What dax (requests), window (what is mapped), tail (copies) and syncer share.
 *
 *     range    what the guest asked for: [at, at + len) shows a file
 *     piece    what the front-end has mapped of it: pages of the file itself,
 *              or a tail
 *     tail     pages of memory in place of the file's, kept equal to it
 *
 * A mapping is never longer than its file. QEMU refuses others, and makes an
 * empty file longer for them. So a range is covered only as far as the guest
 * knows the file to reach; it looks no further, and it learns of a new size
 * from us alone: before that it is covered up to there (fs_dax_cover()).
 *
 * A file's last page is in general one that the file does not fill. In its
 * place is a tail: what either side changes is copied to the other, byte by
 * byte, soon and whenever a request makes it matter. A tail stays one when the
 * file grows, for it can not be exchanged under a guest that may be looking at
 * it. A file that grows and grows while it is mapped would need a mapping for
 * each step: after some, the rest of the range is one tail.
 *
 * A file that the host makes shorter has mapped pages that are none: a guest
 * that touches one ends or hangs with its VMM. The guest does so until it hears
 * of the new size. So what it was told is compared with what is, often, and
 * then taken out of its sight. It comes back when the file does: a guest that
 * has not heard of it in between relies on the size from before.
 *
 * And what the guest may only read is a tail, where the front-end can not map
 * so: QEMU 11.1 maps all writable or not at all.
 */
#ifndef MOAT_DEV_FS_DAX_H
#define MOAT_DEV_FS_DAX_H

#include "dev/fs/fs.h"

#define FS_PAGE 4096u
#define FS_PAGE_MASK ((uint64_t)FS_PAGE - 1)
/* With the kit's 16384 mappings: two for each 2 MiB of FS_WINDOW_MAX. */
#define FS_TAILS_MAX 8192u
#define FS_WINDOW_MAX (UINT64_C(16) << 30)
/* Pages of tails that are longer than one and can be written to: each is in
 * memory twice. */
#define FS_LONG_PAGES 65536u
/* QEMU 11.1 aborts with more than 512 regions of memory, its RAM included. */
#define FS_MAPPINGS_DEFAULT 480u
#define FS_MAPPINGS_MAX 16384u /* the kit's */
#define FS_TAIL_NONE UINT32_MAX

/** struct fs_stamp - by which a changed file is told */
struct fs_stamp {
	uint64_t size;
	int64_t mtime, ctime; /* ns */
};

/**
 * struct fs_tail - pages in place of a file's
 * @fd: the file, open; -1: it is kept equal to nothing any more
 * @shown_fd: of a long one: a memfd of its own, else -1
 * @base: as both sides last had it; NULL if the guest may only read
 * @upto: pages that were ever shown with something in them
 * @error: the file could not be written to; not told yet
 */
struct fs_tail {
	bool used, writable;
	int fd, shown_fd;
	uint64_t offset; /* in the file */
	uint32_t pages, upto;
	struct fs_node *node; /* held by the range */
	uint32_t next, prev;  /* of the node's: number + 1, 0 ends */
	uint8_t *shown, *base;
	struct fs_stamp stamp;
	int error;
};

/** struct fs_tails - all of them; those of one page lie in one memfd */
struct fs_tails {
	int fd;
	uint8_t *pages;
	struct fs_tail *tail;
	uint32_t used, next, long_pages;
};

int fs_tails_init(struct fs_tails *t);
void fs_tails_fini(struct fs_tails *t);

/**
 * fs_tail_new() - for @pages of a file, from @offset on
 * @fd: the file; taken over on success
 *
 * Return: its number, or a negative errno.
 */
int fs_tail_new(struct fs_tails *t, int fd, bool writable, uint64_t offset,
		uint32_t pages, struct fs_node *node);

/** fs_tail_fd() - what to map in place of the file, from @offset on */
int fs_tail_fd(const struct fs_tails *t, uint32_t i, uint64_t *offset);

/**
 * fs_tail_sync() - copy to each side what the other has changed
 * @thorough: read the file even if it does not look changed
 *
 * Return: 0, or why the file could not be written to: it is tried again.
 */
int fs_tail_sync(struct fs_tails *t, uint32_t i, bool thorough);

/** fs_tail_mute() - sync once more, then let go of file and node */
void fs_tail_mute(struct fs_tails *t, uint32_t i);

/** fs_tail_free() - mute it; nobody sees it any more */
void fs_tail_free(struct fs_tails *t, uint32_t i);

/* ---- the window ---- */

struct fs_range {
	uint64_t at, len, offset; /* in the window; in the file */
	uint64_t covered;     /* bytes that are mapped, from its beginning */
	struct fs_node *node; /* held */
	uint64_t size;	      /* the syncer's: as it saw the file ... */
	uint64_t known; /* as the guest may know a file that was cut; or 0 */
	uint32_t pieces;
	bool writable;
	bool cut;  /* ... which was shorter than shown */
	bool owed; /* and could not be shown so: it is tried again */
};

struct fs_piece {
	uint64_t at, len;
	uint32_t tail; /* or FS_TAIL_NONE */
	bool orphan;   /* of no range: to be unmapped */
};

/** struct fs_dax - what is mapped, each sorted by place */
struct fs_dax {
	struct fs *fs;
	pthread_mutex_t lock; /* of all here */
	struct fs_range *ranges;
	struct fs_piece *pieces;
	uint32_t nranges, npieces, room_ranges, room_pieces;
	struct fs_tails tails;
	bool copies; /* the front-end maps nothing read-only */
	bool behind; /* something is to be covered that could not be */
	bool former; /* there may be mappings of a process before this one */
	pthread_t syncer;
	pthread_cond_t wake, started;
	bool syncing, began, stop;
	int begun; /* 0 or a negative errno: how the syncer's start went */
};

/**
 * fs_dax_show() - all ranges of a file that has @size bytes now, which are more
 *
 * Return: 0; -EAGAIN if something is not covered yet; another negative errno.
 */
int fs_dax_show(struct fs_dax *d, struct fs_node *node, uint64_t size);

/** fs_range_after() - the first that ends behind @at */
uint32_t fs_range_after(const struct fs_dax *d, uint64_t at);

/** fs_ranges_room() - for @more; 0 or a negative errno */
int fs_ranges_room(struct fs_dax *d, uint32_t more);

/** fs_range_insert() - there is room, and its node's count has it */
void fs_range_insert(struct fs_dax *d, const struct fs_range *r);

/** fs_range_remove() - its node stays held and counted, by @was */
void fs_range_remove(struct fs_dax *d, uint32_t i, struct fs_range *was);

/** fs_range_cover() - all of it that a file of @size bytes has */
int fs_range_cover(struct fs_dax *d, struct fs_range *r, uint64_t size);

/**
 * fs_range_uncover() - nothing of it is mapped any more
 *
 * Return: 0; or a negative errno, and then @r says how much still is.
 */
int fs_range_uncover(struct fs_dax *d, struct fs_range *r);

/**
 * fs_range_shrink() - what its file of @size bytes has no more is not mapped
 *
 * Of a mapping that reaches further the beginning is mapped anew.
 */
int fs_range_shrink(struct fs_dax *d, struct fs_range *r, uint64_t size);

/**
 * fs_range_abandon() - uncover, or what is left of it belongs to none
 * @ask: the front-end; else it is left so
 */
int fs_range_abandon(struct fs_dax *d, struct fs_range *r, bool ask);

/** fs_orphans_clear() - unmap what belongs to none in [at, at + len) */
int fs_orphans_clear(struct fs_dax *d, uint64_t at, uint64_t len);

/**
 * fs_former_clear() - unmap what a process before this one had there
 *
 * In [at, at + len), where nothing of this one's is. 0 or a negative errno.
 */
int fs_former_clear(struct fs_dax *d, uint64_t at, uint64_t len);

/** fs_pieces_drop() - all are gone by themselves */
void fs_pieces_drop(struct fs_dax *d);

/** fs_range_stat() - of its file; 0 or a negative errno */
int fs_range_stat(struct fs *fs, const struct fs_range *r, struct statx *sx);

/** fs_range_open() - its file, as it is to be mapped; fd or negative errno */
int fs_range_open(struct fs *fs, const struct fs_range *r);

#endif
