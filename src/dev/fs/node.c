/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A node has one user for as long as the guest knows it (lookups > 0), and one
 * for each request and open file that works with it. What the guest knows is in
 * a bucket, by file; what it has forgotten is not, though somebody may still
 * use it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "dev/fs/fs.h"
#include "dev/fs/notify.h"

/* Files that a guest may know where most of them take no descriptor. */
#define NODES_BY_HANDLE 1000000u

static dev_t dev_of(const struct statx *sx)
{
	return (dev_t)sx->stx_dev_major << 32 | sx->stx_dev_minor;
}

/* Where a file's node is: a list, and the lock of that list and others. */
struct bucket {
	pthread_mutex_t *lock;
	struct fs_node **first;
};

static struct bucket bucket_at(struct fs *fs, uint32_t i)
{
	return (struct bucket){ &fs->locks[i % FS_LOCKS], &fs->buckets[i] };
}

static struct bucket bucket_of(struct fs *fs, uint64_t ino, dev_t dev)
{
	uint64_t h = (ino ^ (uint64_t)dev << 20) * UINT64_C(0x9e3779b97f4a7c15);

	return bucket_at(fs, (uint32_t)(h >> 32) % FS_BUCKETS);
}

/*
 * A descriptor keeps the inode, so that its number names no other file. Where
 * there is none the file may be gone, and the number another one's: the handle
 * tells (@fd; -1: that can not be told).
 */
static bool is_file(const struct fs_node *n, const struct statx *sx, int fd)
{
	return n->ino == sx->stx_ino && n->dev == dev_of(sx) &&
	       n->mount == sx->stx_mnt_id &&
	       (!n->by_handle ||
		(fd >= 0 && fs_by_handle_is(n->by_handle, fd)));
}

void fs_node_seen(struct fs_node *node, const struct statx *sx)
{
	bool set = (sx->stx_mode & (S_ISGID | S_IXGRP)) == S_ISGID &&
		   S_ISREG(sx->stx_mode);

	__atomic_store_n(&node->setgid, set ? UINT64_C(1) + sx->stx_gid : 0,
			 __ATOMIC_RELAXED);
}

/* Under the bucket's lock; held. */
static struct fs_node *find(struct bucket b, const struct statx *sx, int fd)
{
	struct fs_node *n = *b.first;

	while (n && !is_file(n, sx, fd))
		n = n->next;
	if (n) {
		fs_node_seen(n, sx);
		fs_table_hold(&n->slot);
	}
	return n;
}

static struct fs_node *find_of(struct fs *fs, const struct statx *sx,
			       uint64_t lookups)
{
	struct bucket b = bucket_of(fs, sx->stx_ino, dev_of(sx));
	struct fs_node *n;

	pthread_mutex_lock(b.lock);
	n = find(b, sx, -1);
	if (n)
		n->lookups += lookups;
	pthread_mutex_unlock(b.lock);
	return n;
}

struct fs_node *fs_node_known(struct fs *fs, const struct statx *sx)
{
	return find_of(fs, sx, 1);
}

struct fs_node *fs_node_of(struct fs *fs, const struct statx *sx)
{
	return find_of(fs, sx, 0);
}

bool fs_node_probable(struct fs *fs, const struct fs_node *dir, uint64_t ino)
{
	struct bucket b = bucket_of(fs, ino, dir->dev);
	struct fs_node *n;

	pthread_mutex_lock(b.lock);
	for (n = *b.first; n; n = n->next)
		if (n->ino == ino && n->dev == dir->dev)
			break;
	pthread_mutex_unlock(b.lock);
	return n;
}

static void say_full(struct fs *fs)
{
	if (!__atomic_exchange_n(&fs->said_full, true, __ATOMIC_RELAXED))
		moat_device_log(fs->log, MOAT_DEVICE_ERROR,
				"the guest knows %u files, as many as there "
				"may be: it gets ENFILE for more; raise "
				"--rlimit-nofile, or the hard limit of "
				"descriptors",
				fs->nodes.n);
}

int fs_node_enter(struct fs *fs, int fd, const struct statx *sx,
		  struct fs_node **node)
{
	struct bucket b = bucket_of(fs, sx->stx_ino, dev_of(sx));
	struct fs_node *n;

	pthread_mutex_lock(b.lock);
	n = find(b, sx, fd);
	if (n) {
		n->lookups++;
	} else {
		n = fs_table_new(&fs->nodes);
		if (!n) {
			pthread_mutex_unlock(b.lock);
			close(fd);
			say_full(fs);
			return -ENFILE;
		}
		n->by_handle = fs_by_handle_new(fs, fd, sx);
		n->pins = 0;
		n->fd = n->by_handle ? -1 : fd;
		n->ino = sx->stx_ino;
		n->dev = dev_of(sx);
		n->mount = sx->stx_mnt_id;
		n->type = sx->stx_mode & S_IFMT;
		fs_node_seen(n, sx);
		n->locks = NULL;
		n->watch = NULL;
		n->ranges = n->tails = n->first_tail = 0;
		n->shown = 0;
		n->lookups = 1;
		n->next = *b.first;
		*b.first = n;
		if (!n->by_handle) {
			__atomic_fetch_add(&fs->fd_nodes, 1, __ATOMIC_RELAXED);
			fd = -1;
		}
		fs_table_publish(&n->slot);
		fs_table_hold(&n->slot);
	}
	pthread_mutex_unlock(b.lock);
	if (fd >= 0)
		close(fd);
	*node = n;
	return 0;
}

int fs_node_pin(struct fs *fs, struct fs_node *node)
{
	struct bucket b;
	int ret = 0;

	if (!node->by_handle)
		return 0;
	b = bucket_of(fs, node->ino, node->dev);
	pthread_mutex_lock(b.lock);
	if (node->fd < 0) {
		ret = fs_by_handle_open(node->by_handle);
		if (ret >= 0)
			node->fd = ret;
	}
	if (ret >= 0)
		node->pins++;
	pthread_mutex_unlock(b.lock);
	return ret < 0 ? ret : 0;
}

void fs_node_unpin(struct fs *fs, struct fs_node *node)
{
	struct bucket b;
	int fd = -1;

	if (!node->by_handle)
		return;
	b = bucket_of(fs, node->ino, node->dev);
	pthread_mutex_lock(b.lock);
	if (!--node->pins) {
		fd = node->fd;
		node->fd = -1;
	}
	pthread_mutex_unlock(b.lock);
	if (fd >= 0)
		close(fd);
}

struct fs_node *fs_node_get(struct fs *fs, uint64_t id)
{
	struct fs_node *node = fs_table_get(&fs->nodes, id);

	if (!node || !fs_node_pin(fs, node))
		return node;
	fs_node_drop(fs, node);
	return NULL;
}

void fs_node_put(struct fs *fs, struct fs_node *node)
{
	fs_node_unpin(fs, node);
	fs_node_drop(fs, node);
}

void fs_node_hold(struct fs_node *node)
{
	fs_table_hold(&node->slot);
}

void fs_node_drop(struct fs *fs, struct fs_node *node)
{
	if (!fs_table_put(&node->slot))
		return;
	fs_locks_free(node->locks);
	fs_notify_unwatch(fs, node);
	if (node->by_handle) {
		free(node->by_handle);
	} else {
		close(node->fd);
		__atomic_fetch_sub(&fs->fd_nodes, 1, __ATOMIC_RELAXED);
	}
	fs_table_free(&fs->nodes, &node->slot);
}

/* Under the bucket's lock. */
static void leave(struct bucket b, struct fs_node *node)
{
	struct fs_node **at = b.first;

	while (*at != node)
		at = &(*at)->next;
	*at = node->next;
}

void fs_node_forget(struct fs *fs, uint64_t id, uint64_t n)
{
	struct fs_node *node = fs_table_get(&fs->nodes, id);
	struct bucket b;
	bool gone = false;

	if (!node)
		return;
	b = bucket_of(fs, node->ino, node->dev);
	pthread_mutex_lock(b.lock);
	/* A guest that forgets more than it knew has still forgotten it. */
	if (node != fs->root && node->lookups && n) {
		node->lookups -= n < node->lookups ? n : node->lookups;
		gone = !node->lookups;
	}
	if (gone)
		leave(b, node);
	pthread_mutex_unlock(b.lock);
	if (gone)
		fs_node_drop(fs, node);
	fs_node_drop(fs, node);
}

/* One that the guest knows, but the root; it knows it no more. */
static struct fs_node *take_one(struct fs *fs, struct bucket b)
{
	struct fs_node *n;

	pthread_mutex_lock(b.lock);
	n = *b.first;
	if (n == fs->root && n)
		n = n->next;
	if (n) {
		n->lookups = 0;
		leave(b, n);
	}
	pthread_mutex_unlock(b.lock);
	return n;
}

void fs_nodes_forget_all(struct fs *fs)
{
	struct fs_node *n;

	for (uint32_t i = 0; i < FS_BUCKETS; i++)
		while ((n = take_one(fs, bucket_at(fs, i))))
			fs_node_drop(fs, n);
	if (fs->root) {
		fs_locks_drop(fs->root);
		fs_notify_unwatch(fs, fs->root);
	}
	__atomic_store_n(&fs->said_full, false, __ATOMIC_RELAXED);
}

int fs_nodes_init(struct fs *fs)
{
	struct statx sx;
	uint64_t max = fs->opt->handles == FS_HANDLES_NEVER ? fs->opt->files
							    : NODES_BY_HANDLE;
	int ret = fs_table_init(&fs->nodes, sizeof(struct fs_node),
				max < UINT32_MAX ? (uint32_t)max : UINT32_MAX);

	if (ret)
		return ret;
	fs->buckets = calloc(FS_BUCKETS, sizeof(struct fs_node *));
	if (!fs->buckets)
		return -ENOMEM;
	for (uint32_t i = 0; i < FS_LOCKS; i++)
		pthread_mutex_init(&fs->locks[i], NULL);
	pthread_mutex_init(&fs->mounts_lock, NULL);
	ret = fs_statx(fs->root_fd, &sx);
	if (!ret)
		ret = fs_node_enter(fs, fs->root_fd, &sx, &fs->root);
	fs->root_fd = -1;
	/* The first of all: its id is FUSE_ROOT_ID. */
	return ret ? ret : fs_table_scatter(&fs->nodes);
}

void fs_nodes_fini(struct fs *fs)
{
	if (fs->buckets)
		fs_nodes_forget_all(fs);
	if (fs->root) {
		/* The guest's hold on it, which never ends, and ours. */
		fs_node_drop(fs, fs->root);
		fs_node_drop(fs, fs->root);
	}
	for (uint32_t i = 0; i < fs->nmounts; i++)
		close(fs->mounts[i].fd);
	free(fs->buckets);
	fs_table_fini(&fs->nodes);
}

const char *fs_fd_name(int fd, char buf[16])
{
	snprintf(buf, 16, "%d", fd);
	return buf;
}

int fs_node_open(struct fs *fs, const struct fs_node *node, int flags)
{
	char name[16];
	int fd;

	(void)fs;
	if (node->type == S_IFDIR)
		fd = openat(node->fd, ".", flags | O_CLOEXEC);
	else if (node->type == S_IFREG)
		fd = open(fs_fd_name(node->fd, name), flags | O_CLOEXEC);
	else
		return -ELOOP;
	return fd < 0 ? -errno : fd;
}
