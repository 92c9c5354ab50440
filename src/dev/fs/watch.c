/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "dev/fs/watch.h"

#define LISTS 4096u
#define EVENTS 8192u /* bytes read at a time */

#define NAMES (IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO)
/*
 * A file that was changed and then moved is not at its name any more when the
 * change is looked into: what is moved in has changed, too.
 */
#define DATA (IN_MODIFY | IN_MOVED_TO)
#define FILES (DATA | IN_ATTRIB | IN_CREATE)
/* NAMES and FILES */
#define ALL (NAMES | IN_MODIFY | IN_ATTRIB)

struct fs_watches {
	struct fs *fs;
	int fd;
	pthread_mutex_t lock;
	struct fs_watch *lists[LISTS]; /* by wd */
	uint32_t n;
	bool full, said;
};

int fs_watches_new(struct fs *fs, struct fs_watches **watches)
{
	struct fs_watches *w = calloc(1, sizeof(*w));
	int ret;

	if (!w)
		return -ENOMEM;
	w->fs = fs;
	pthread_mutex_init(&w->lock, NULL);
	w->fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if (w->fd >= 0) {
		*watches = w;
		return 0;
	}
	ret = -errno;
	moat_device_log(fs->log, MOAT_DEVICE_ERROR,
			"--notify: no inotify: %s; raise "
			"fs.inotify.max_user_instances",
			strerror(-ret));
	free(w);
	return ret;
}

void fs_watches_free(struct fs_watches *w)
{
	struct fs_watch *p;

	if (!w)
		return;
	for (uint32_t i = 0; i < LISTS; i++)
		while ((p = w->lists[i])) {
			w->lists[i] = p->next;
			free(p);
		}
	close(w->fd);
	pthread_mutex_destroy(&w->lock);
	free(w);
}

int fs_watches_fd(const struct fs_watches *w)
{
	return w->fd;
}

static struct fs_watch **list_of(struct fs_watches *w, int wd)
{
	return &w->lists[(uint32_t)wd % LISTS];
}

/* Under the lock. */
static void refuse(struct fs_watches *w, int error)
{
	/* Any other says something of that directory alone. */
	w->full = error == ENOSPC || error == ENOMEM;
	if (!w->said)
		moat_device_log(w->fs->log, MOAT_DEVICE_WARNING,
				"can not watch a directory beside %u others: "
				"%s: the guest is not told what changes in it; "
				"%s",
				w->n, strerror(error),
				w->full ? "raise fs.inotify.max_user_watches, "
					  "or use --cache=auto"
					: "make it readable for moat-fs");
	w->said = true;
}

static int add(struct fs_watches *w, struct fs_node *dir)
{
	struct fs_watch *p, **list;
	char name[16];
	int error;

	if (w->n == FS_WATCHES_MAX)
		return ENOSPC;
	p = malloc(sizeof(*p));
	if (!p)
		return ENOMEM;
	p->id = fs_slot_id(&dir->slot);
	p->wd = inotify_add_watch(w->fd, fs_fd_name(dir->fd, name),
				  ALL | IN_EXCL_UNLINK);
	if (p->wd < 0) {
		error = errno;
		free(p);
		return error;
	}
	list = list_of(w, p->wd);
	p->next = *list;
	*list = p;
	w->n++;
	__atomic_store_n(&dir->watch, p, __ATOMIC_RELEASE);
	return 0;
}

void fs_watches_add(struct fs_watches *w, struct fs_node *dir)
{
	int error = 0;

	/* Its first event may come before this is over, and finds it. */
	pthread_mutex_lock(&w->lock);
	if (!dir->watch && !w->full)
		error = add(w, dir);
	if (error)
		refuse(w, error);
	pthread_mutex_unlock(&w->lock);
}

/* Under the lock. */
static void take_out(struct fs_watches *w, struct fs_watch *watch)
{
	struct fs_watch **list = list_of(w, watch->wd), **at = list, *p;

	while (*at != watch)
		at = &(*at)->next;
	*at = watch->next;
	for (p = *list; p && p->wd != watch->wd;)
		p = p->next;
	/* The same directory on another mount would be watched no more. */
	if (!p)
		inotify_rm_watch(w->fd, watch->wd);
	w->n--;
	w->full = false;
}

void fs_watches_remove(struct fs_watches *w, struct fs_node *dir)
{
	struct fs_watch *p;

	pthread_mutex_lock(&w->lock);
	p = dir->watch;
	__atomic_store_n(&dir->watch, NULL, __ATOMIC_RELAXED);
	if (p)
		take_out(w, p);
	pthread_mutex_unlock(&w->lock);
	free(p);
}

/* The @i-th node that is watched as @wd; 0: there are no more. */
static uint64_t watched(struct fs_watches *w, int wd, uint32_t i)
{
	const struct fs_watch *p;
	uint64_t id = 0;

	pthread_mutex_lock(&w->lock);
	for (p = *list_of(w, wd); p && !id; p = p->next)
		if (p->wd == wd && !i--)
			id = p->id;
	pthread_mutex_unlock(&w->lock);
	return id;
}

int fs_watches_read(struct fs_watches *w,
		    void (*changed)(void *arg, uint64_t dir, const char *name,
				    const struct fs_change *c),
		    void *arg)
{
	_Alignas(struct inotify_event) uint8_t buf[EVENTS];
	ssize_t n = read(w->fd, buf, sizeof(buf));
	const struct inotify_event *e;
	int ret = 0;

	for (ssize_t at = 0; at < n; at += (ssize_t)(sizeof(*e) + e->len)) {
		struct fs_change c;
		uint64_t id;

		e = (const void *)(buf + at);
		c = (struct fs_change){ .names = e->mask & NAMES,
					.made = e->mask & IN_CREATE,
					.file = e->mask & FILES,
					.data = e->mask & DATA };
		if (e->mask & IN_Q_OVERFLOW)
			ret = -EOVERFLOW;
		/* IN_IGNORED: an end, which is ours or a mount's. */
		if (!(e->mask & ALL))
			continue;
		for (uint32_t i = 0; (id = watched(w, e->wd, i)); i++)
			changed(arg, id, e->len ? e->name : NULL, &c);
	}
	return ret;
}
