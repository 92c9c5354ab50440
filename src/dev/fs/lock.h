/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between lock.c, which locks, and lockwait.c, which waits.
 */
#ifndef MOAT_DEV_FS_LOCK_H
#define MOAT_DEV_FS_LOCK_H

#include "dev/fs/fs.h"
#include "dev/fs/lockrange.h"

/** struct fs_ask - a lock that is asked for, bytes @start to @end */
struct fs_ask {
	uint64_t owner, start, end;
	uint32_t type; /* F_RDLCK, F_WRLCK, F_UNLCK */
	bool flock;    /* of the whole file, and apart from others */
};

/**
 * fs_lock_attempt() - lock or unlock, without waiting
 * @keep: who waits needs its open file again; whoever gets no lock and does not
 *	wait leaves nothing behind
 *
 * Return: 0, -EAGAIN if others have it, or another negative errno.
 */
int fs_lock_attempt(struct fs *fs, struct fs_node *node, const struct fs_ask *a,
		    bool keep);

/** fs_lock_found - is that enough? */
typedef bool fs_lock_found(void *arg, uint64_t owner);

/**
 * fs_lock_blockers() - who has ranges that @a has to wait for
 * @steps: owners, and ranges of theirs, that may yet be looked at
 *
 * Not what the host has locked, and not flock(2)'s.
 */
void fs_lock_blockers(struct fs_node *node, const struct fs_ask *a,
		      uint32_t *steps, fs_lock_found *found, void *arg);

/** fs_lock_leave() - who waited gives up; what it has locked before stays */
void fs_lock_leave(struct fs_node *node, uint64_t id, bool flock);

/** fs_lock_wait() - @r waits for that; as a handler returns. -EDEADLK: for
 * ever */
int fs_lock_wait(struct fs_req *r, struct fs_node *node,
		 const struct fs_ask *a);

/** fs_lock_try_again() - something was unlocked */
void fs_lock_try_again(struct fs *fs);

#endif
