/* SPDX-License-Identifier: Apache-2.0 */
/*
 * inotify: the directories that are watched, and what happens in them.
 */
#ifndef MOAT_DEV_FS_WATCH_H
#define MOAT_DEV_FS_WATCH_H

#include "dev/fs/fs.h"

/* Each holds its inode in the host's memory: about a kilobyte. */
#define FS_WATCHES_MAX 65536u

/** struct fs_watch - a node that is watched; of one inode there may be two */
struct fs_watch {
	struct fs_watch *next; /* in its list */
	uint64_t id;	       /* of the node */
	int wd;		       /* inotify's */
};

/**
 * struct fs_change - what an event means
 * @names: one was made, removed, or moved in or out
 * @made: it was made: nothing had that name before
 * @file: what is at the name now may be a file that the guest knows, and
 *	differs from what it knows of it
 * @data: so do its contents
 */
struct fs_change {
	bool names, made, file, data;
};

struct fs_watches;

/** fs_watches_new() - 0 or a negative errno, logged */
int fs_watches_new(struct fs *fs, struct fs_watches **watches);
void fs_watches_free(struct fs_watches *w);
/** fs_watches_fd() - readable when there are events */
int fs_watches_fd(const struct fs_watches *w);
/** fs_watches_add() - @dir, pinned; it stays unwatched if there are too many */
void fs_watches_add(struct fs_watches *w, struct fs_node *dir);
/** fs_watches_remove() - @dir; nothing if it is not watched */
void fs_watches_remove(struct fs_watches *w, struct fs_node *dir);

/**
 * fs_watches_read() - some events; does not wait
 * @changed: is called for each, and each node that its directory is; @name is
 *	NULL if the directory itself has changed
 *
 * Return: 0, or -EOVERFLOW: some were lost.
 */
int fs_watches_read(struct fs_watches *w,
		    void (*changed)(void *arg, uint64_t dir, const char *name,
				    const struct fs_change *c),
		    void *arg);

#endif
