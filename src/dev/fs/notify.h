/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What others on the host change, told to the guest (virtio 1.4, 5.11.6.3).
 *
 *     host --inotify--> thread --notices--> buffers of the notification queue
 *
 * Directories that the guest has looked into are watched; each event becomes at
 * most three notices of what the guest has to forget. A notice waits for a
 * buffer that the driver has posted, and the same is not noted twice. While
 * there are too many, events are left in the kernel's queue, which is bounded,
 * too: when events are lost there, all that the guest keeps of files is
 * invalidated, one node after the other.
 *
 * What the guest itself changes raises the same events. Nothing tells them
 * apart, so it is told of those as well, which costs it a cache and no more.
 */
#ifndef MOAT_DEV_FS_NOTIFY_H
#define MOAT_DEV_FS_NOTIFY_H

#include "dev/fs/fs.h"

/* virtio 1.4, 5.11.3: <linux/virtio_fs.h> does not have it yet. */
#define FS_F_NOTIFICATION (UINT64_C(1) << 0)

/* Of the queues, where that was agreed on. */
#define FS_NOTIFY_QUEUE 1u

#define FS_NOTIFY_NAME 255u /* bytes of a name */

/** FS_NOTIFY_SIZE - bytes of the longest message: notify_buf_size */
#define FS_NOTIFY_SIZE                                           \
	(FS_REPLY + sizeof(struct fuse_notify_inval_entry_out) + \
	 FS_NOTIFY_NAME + 1)

/** fs_notify_start() - before the sandbox; 0 or a negative errno */
int fs_notify_start(struct fs *fs);
/** fs_notify_stop() - before nodes end, which are not watched from then on */
void fs_notify_stop(struct fs *fs);

/** fs_notify_agreed() - has the driver a notification queue? */
static inline bool fs_notify_agreed(const struct fs *fs)
{
	return __atomic_load_n(&fs->accepted, __ATOMIC_RELAXED) &
	       FS_F_NOTIFICATION;
}

/**
 * fs_notify_buffer() - the driver has posted @r, to be filled
 *
 * On its queue's worker. Given back when there is something to tell.
 */
void fs_notify_buffer(struct fs_req *r);

/** fs_notify_hurry() - the buffers are given back soon, from any thread */
void fs_notify_hurry(struct fs *fs);

/**
 * fs_notify_watch() - the guest looks into @dir, which is pinned
 *
 * Called before what it is told is looked up. Nothing where the driver has no
 * notification queue, or @dir is no directory.
 */
void fs_notify_watch(struct fs *fs, struct fs_node *dir);
/** fs_notify_unwatch() - @node goes away, or the session that knows it */
void fs_notify_unwatch(struct fs *fs, struct fs_node *node);

#endif
