/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The thread that reads events and fills buffers, and the driver's buffers.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "dev/fs/notice.h"
#include "dev/fs/notify.h"
#include "dev/fs/watch.h"

struct fs_notify {
	struct fs *fs;
	struct fs_watches *watches;
	struct fs_notices notices; /* the thread's */
	uint32_t sweep; /* the next node that is to be told of; 0: none */
	pthread_t thread;
	int wake_fd;
	/* buffers, and what else others say to the thread */
	pthread_mutex_t lock;
	struct fs_req *first, **last;
	bool hurry, stop;
};

static void wake(struct fs_notify *n)
{
	uint64_t one = 1;

	/* If it is full, the thread has been woken. */
	if (write(n->wake_fd, &one, sizeof(one)) < 0)
		return;
}

/* ---- buffers ---- */

void fs_notify_buffer(struct fs_req *r)
{
	struct fs_notify *n = r->fs->notify;
	bool first;

	/* It must hold any message (virtio 1.4, 5.11.6.3.1). */
	if (r->mr->write_len < FS_NOTIFY_SIZE) {
		moat_request_broken(
			r->mr, "broken: a notification buffer is smaller than "
			       "notify_buf_size; fix the guest's driver");
		return;
	}
	pthread_mutex_lock(&n->lock);
	first = !n->first;
	*n->last = r;
	n->last = &r->next;
	pthread_mutex_unlock(&n->lock);
	/* Else the thread has some, and does not wait for more. */
	if (first)
		wake(n);
}

static struct fs_req *take_buffer(struct fs_notify *n)
{
	struct fs_req *r;

	pthread_mutex_lock(&n->lock);
	r = n->first;
	if (r) {
		n->first = r->next;
		if (!n->first)
			n->last = &n->first;
		r->next = NULL;
	}
	pthread_mutex_unlock(&n->lock);
	return r;
}

static void send_name(struct fs_req *r, uint64_t dir, const char *name,
		      uint32_t len)
{
	struct fuse_notify_inval_entry_out out = { .parent = dir,
						   .namelen = len };

	fs_req_put(r, &out, sizeof(out));
	fs_req_put(r, name, len + 1);
	r->notify = FUSE_NOTIFY_INVAL_ENTRY;
	fs_defer_done(r, 0);
}

/* Attributes; with @data, all that is kept of its contents, too. */
static void send_node(struct fs_req *r, uint64_t id, bool data)
{
	struct fuse_notify_inval_inode_out out = { .ino = id,
						   .off = data ? 0 : -1 };

	fs_req_put(r, &out, sizeof(out));
	r->notify = FUSE_NOTIFY_INVAL_INODE;
	fs_defer_done(r, 0);
}

/*
 * There is no message that says nothing, and a buffer without one might be
 * taken for what it held before: what is given back unused has one that is
 * always true and costs next to nothing. Queues do not only stop for good: the
 * driver may go on in a moment.
 */
static void give_back(struct fs_notify *n)
{
	struct fs_req *r;

	while ((r = take_buffer(n)))
		send_node(r, FUSE_ROOT_ID, false);
}

void fs_notify_hurry(struct fs *fs)
{
	struct fs_notify *n = fs->notify;

	if (!n)
		return;
	pthread_mutex_lock(&n->lock);
	n->hurry = true;
	pthread_mutex_unlock(&n->lock);
	wake(n);
}

/* ---- what to say ---- */

/* What the guest has forgotten need not be told to be. */
static bool knows(struct fs *fs, uint64_t id)
{
	struct fs_node *node = fs_table_get(&fs->nodes, id);

	if (node)
		fs_node_drop(fs, node);
	return node;
}

static void deliver_notices(struct fs_notify *n)
{
	const struct fs_notice *p;
	struct fs_req *r;

	while ((p = n->notices.first)) {
		if (knows(n->fs, p->id)) {
			r = take_buffer(n);
			if (!r)
				return;
			if (p->len)
				send_name(r, p->id, p->name, p->len);
			else
				send_node(r, p->id, p->data);
		}
		fs_notices_pop(&n->notices);
	}
}

/* Events were lost: any file may have changed. */
static void deliver_sweep(struct fs_notify *n)
{
	struct fs_table *t = &n->fs->nodes;
	const struct fs_slot *s;
	struct fs_req *r;

	for (; n->sweep; n->sweep++) {
		if (n->sweep > __atomic_load_n(&t->n, __ATOMIC_ACQUIRE)) {
			n->sweep = 0;
			return;
		}
		s = fs_table_at(t, n->sweep);
		if (!knows(n->fs, fs_slot_id(s)))
			continue;
		r = take_buffer(n);
		if (!r)
			return;
		send_node(r, fs_slot_id(s), true);
	}
}

static void lost(struct fs_notify *n, const char *why)
{
	if (!n->sweep)
		moat_device_log(n->fs->log, MOAT_DEVICE_WARNING,
				"%s: the guest is told to forget data and "
				"attributes of all files; names may be out of "
				"date for as long as --cache lets it keep them",
				why);
	n->sweep = 1;
}

static void note(struct fs_notify *n, uint64_t id, const char *name, bool data)
{
	if (fs_notices_add(&n->notices, id, name, data))
		lost(n, "no memory for changes on the host");
}

/* The file at a name in a directory has changed. */
static void note_file(struct fs_notify *n, uint64_t dir, const char *name,
		      const struct fs_change *c)
{
	struct fs_node *d = fs_node_get(n->fs, dir), *node;
	struct statx sx;

	if (!d)
		return;
	if (!statx(d->fd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT,
		   FS_STATX_MASK, &sx)) {
		node = fs_node_of(n->fs, &sx);
		/* A new file is news to nobody; its other names' may be. */
		if (node && (!c->made || sx.stx_nlink > 1))
			note(n, fs_slot_id(&node->slot), NULL, c->data);
		if (node)
			fs_node_drop(n->fs, node);
	}
	fs_node_put(n->fs, d);
}

static void changed(void *arg, uint64_t dir, const char *name,
		    const struct fs_change *c)
{
	struct fs_notify *n = arg;

	if (c->names)
		note(n, dir, NULL, true);
	if (!name)
		note(n, dir, NULL, false);
	/* That a name does not exist is nothing that a guest may keep. */
	else if (c->names && !c->made && strlen(name) <= FS_NOTIFY_NAME)
		note(n, dir, name, false);
	if (name && c->file)
		note_file(n, dir, name, c);
}

/* ---- the thread ---- */

/* What was said since; false: stop. */
static bool listen(struct fs_notify *n)
{
	bool hurry, stop;

	pthread_mutex_lock(&n->lock);
	hurry = n->hurry;
	n->hurry = false;
	stop = n->stop;
	pthread_mutex_unlock(&n->lock);
	if (hurry)
		give_back(n);
	return !stop;
}

static void *serve(void *arg)
{
	struct fs_notify *n = arg;
	struct pollfd fds[2] = { { .fd = n->wake_fd, .events = POLLIN },
				 { .events = POLLIN } };
	uint64_t count;

	while (listen(n)) {
		deliver_notices(n);
		deliver_sweep(n);
		fds[1].fd = fs_notices_full(&n->notices)
				    ? -1
				    : fs_watches_fd(n->watches);
		if (poll(fds, 2, -1) < 0)
			continue;
		if (fds[0].revents)
			(void)!read(n->wake_fd, &count, sizeof(count));
		if (fds[1].revents &&
		    fs_watches_read(n->watches, changed, n) == -EOVERFLOW)
			lost(n, "changes on the host came faster than the "
				"guest took notifications");
	}
	return NULL;
}

int fs_notify_start(struct fs *fs)
{
	struct fs_notify *n = calloc(1, sizeof(*n));
	int ret;

	if (!n)
		return -ENOMEM;
	n->fs = fs;
	n->last = &n->first;
	fs_notices_init(&n->notices);
	pthread_mutex_init(&n->lock, NULL);
	n->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ret = n->wake_fd < 0 ? -errno : fs_watches_new(fs, &n->watches);
	if (!ret)
		ret = -pthread_create(&n->thread, NULL, serve, n);
	if (!ret) {
		fs->notify = n;
		return 0;
	}
	fs_watches_free(n->watches);
	if (n->wake_fd >= 0)
		close(n->wake_fd);
	free(n);
	return ret;
}

void fs_notify_stop(struct fs *fs)
{
	struct fs_notify *n = fs->notify;

	if (!n)
		return;
	pthread_mutex_lock(&n->lock);
	n->stop = true;
	pthread_mutex_unlock(&n->lock);
	wake(n);
	pthread_join(n->thread, NULL);
	fs->notify = NULL;
	fs_watches_free(n->watches);
	fs_notices_fini(&n->notices);
	close(n->wake_fd);
	pthread_mutex_destroy(&n->lock);
	free(n);
}

void fs_notify_watch(struct fs *fs, struct fs_node *dir)
{
	if (fs->notify && dir->type == S_IFDIR && fs_notify_agreed(fs) &&
	    !__atomic_load_n(&dir->watch, __ATOMIC_ACQUIRE))
		fs_watches_add(fs->notify->watches, dir);
}

void fs_notify_unwatch(struct fs *fs, struct fs_node *node)
{
	if (fs->notify && __atomic_load_n(&node->watch, __ATOMIC_ACQUIRE))
		fs_watches_remove(fs->notify->watches, node);
}
