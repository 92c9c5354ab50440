/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Locks of the guest's processes, which the host's processes respect, and the
 * other way round.
 *
 * The guest names who locks by a number, its owner. Each owner has an open file
 * of its own of each node that it locks: locks of open files (F_OFD_SETLK,
 * flock) exclude each other as those of processes do, and go with it. The
 * kernel does not tell whose a lock is: which ranges each owner has is noted
 * here, too, for who looks for deadlocks (lockwait.c).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "dev/fs/lock.h"
#include "dev/fs/handlers.h"

/* Owners, each with a descriptor. */
#define OWNERS_MAX 4096u /* in all */
#define OWNERS_NODE 1024u

struct owner {
	struct owner *next;
	uint64_t id;
	bool flock;
	bool locked; /* it may have locked something */
	int fd;
	struct fs_ranges ranges; /* none of flock's */
};

/** struct fs_locks - of a node; made for its first lock, and kept */
struct fs_locks {
	struct fs *fs;
	pthread_mutex_t lock;
	struct owner *owners;
	uint32_t n;
};

/* ---- owners; with the node's lock held ---- */

static struct owner **find(struct fs_locks *l, uint64_t id, bool flock)
{
	struct owner **at = &l->owners;

	while (*at && ((*at)->id != id || (*at)->flock != flock))
		at = &(*at)->next;
	return at;
}

/* With all that it has locked. */
static void drop(struct fs_locks *l, struct owner **at)
{
	struct owner *o = *at;

	*at = o->next;
	l->n--;
	__atomic_fetch_sub(&l->fs->lock_owners, 1, __ATOMIC_RELAXED);
	fs_ranges_clear(&o->ranges, &l->fs->lock_ranges);
	close(o->fd);
	free(o);
}

/*
 * A file that is open for reading can not be locked for writing by F_OFD_SETLK,
 * and what is locked once can not change its open file: so it is opened for
 * both if it can be. The guest has checked how its process has opened it.
 */
static int open_to_lock(struct fs *fs, const struct fs_node *node)
{
	static const int modes[] = { O_RDWR, O_RDONLY, O_WRONLY };
	int fd = -EROFS;

	for (unsigned int i = fs->opt->read_only; i < 3; i++) {
		fd = fs_node_open(fs, node, modes[i] | O_NONBLOCK);
		if (fd != -EACCES && fd != -EPERM && fd != -EROFS &&
		    fd != -ETXTBSY && fd != -EISDIR)
			break;
	}
	return fd == -EMFILE || fd == -ENFILE ? -ENOLCK : fd;
}

static int new_owner(struct fs_locks *l, const struct fs_node *node,
		     const struct fs_ask *a)
{
	struct fs *fs = l->fs;
	struct owner *o = NULL;
	int ret = -ENOLCK;

	if (__atomic_fetch_add(&fs->lock_owners, 1, __ATOMIC_RELAXED) <
		    OWNERS_MAX &&
	    l->n < OWNERS_NODE)
		o = malloc(sizeof(*o));
	if (o) {
		ret = open_to_lock(fs, node);
		*o = (struct owner){ .next = l->owners,
				     .id = a->owner,
				     .flock = a->flock,
				     .fd = ret };
	}
	if (ret < 0) {
		__atomic_fetch_sub(&fs->lock_owners, 1, __ATOMIC_RELAXED);
		free(o);
		return ret;
	}
	l->owners = o;
	l->n++;
	return 0;
}

static bool is_whole(const struct fs_ask *a)
{
	return a->flock || (!a->start && a->end == INT64_MAX);
}

static struct flock flock_of(const struct fs_ask *a)
{
	return (struct flock){
		.l_type = (short)a->type,
		.l_whence = SEEK_SET,
		.l_start = (off_t)a->start,
		.l_len = a->end == INT64_MAX ? 0
					     : (off_t)(a->end - a->start + 1),
	};
}

/* 0, -EAGAIN if others have it, or another negative errno. */
static int set(int fd, const struct fs_ask *a)
{
	struct flock lk = flock_of(a);
	int ret;

	if (!a->flock)
		ret = fcntl(fd, F_OFD_SETLK, &lk);
	else if (a->type == F_UNLCK)
		ret = flock(fd, LOCK_UN);
	else
		ret = flock(fd,
			    LOCK_NB | (a->type == F_RDLCK ? LOCK_SH : LOCK_EX));
	if (!ret)
		return 0;
	return errno == EACCES ? -EAGAIN : -errno;
}

static struct fs_range range_of(const struct fs_ask *a)
{
	return (struct fs_range){ a->start, a->end, a->type };
}

/* The same, and what the owner then has is noted. */
static int set_noted(struct fs *fs, struct owner *o, const struct fs_ask *a)
{
	const struct fs_range change = range_of(a);
	struct fs_range_plan plan;
	int ret;

	if (a->flock)
		return set(o->fd, a);
	ret = fs_ranges_plan(&o->ranges, &change, &plan, &fs->lock_ranges);
	if (ret)
		return ret;
	ret = set(o->fd, a);
	if (ret) {
		fs_ranges_abandon(&plan, &fs->lock_ranges);
		return ret;
	}
	fs_ranges_apply(&o->ranges, &plan, &fs->lock_ranges);
	if (a->type != F_UNLCK)
		__atomic_fetch_add(&fs->lock_news, 1, __ATOMIC_RELEASE);
	return 0;
}

/* ---- locks of a node ---- */

static struct fs_locks *locks_of(const struct fs_node *node)
{
	return __atomic_load_n(&node->locks, __ATOMIC_ACQUIRE);
}

static struct fs_locks *make_locks(struct fs *fs, struct fs_node *node)
{
	struct fs_locks *l = locks_of(node), *other = NULL;

	if (l)
		return l;
	l = calloc(1, sizeof(*l));
	if (!l)
		return NULL;
	l->fs = fs;
	pthread_mutex_init(&l->lock, NULL);
	if (__atomic_compare_exchange_n(&node->locks, &other, l, false,
					__ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return l;
	fs_locks_free(l);
	return other;
}

void fs_locks_drop(struct fs_node *node)
{
	struct fs_locks *l = locks_of(node);

	if (!l)
		return;
	pthread_mutex_lock(&l->lock);
	while (l->owners)
		drop(l, &l->owners);
	pthread_mutex_unlock(&l->lock);
}

void fs_locks_free(struct fs_locks *l)
{
	if (!l)
		return;
	while (l->owners)
		drop(l, &l->owners);
	pthread_mutex_destroy(&l->lock);
	free(l);
}

int fs_lock_attempt(struct fs *fs, struct fs_node *node, const struct fs_ask *a,
		    bool keep)
{
	struct fs_locks *l = make_locks(fs, node);
	struct owner **at;
	int ret = 0;

	if (!l)
		return -ENOLCK;
	pthread_mutex_lock(&l->lock);
	at = find(l, a->owner, a->flock);
	if (!*at && a->type != F_UNLCK) {
		ret = new_owner(l, node, a);
		at = &l->owners;
	}
	if (!ret && *at) {
		ret = set_noted(fs, *at, a);
		if (!ret && a->type != F_UNLCK)
			(*at)->locked = true;
		if ((!ret && a->type == F_UNLCK && is_whole(a)) ||
		    (ret && !(*at)->locked && !(keep && ret == -EAGAIN)))
			drop(l, at);
	}
	pthread_mutex_unlock(&l->lock);
	return ret;
}

void fs_lock_blockers(struct fs_node *node, const struct fs_ask *a,
		      uint32_t *steps, fs_lock_found *found, void *arg)
{
	const struct fs_range wanted = range_of(a);
	struct fs_locks *l = locks_of(node);
	bool enough = false;

	if (!l)
		return;
	pthread_mutex_lock(&l->lock);
	for (struct owner *o = l->owners; o && *steps && !enough; o = o->next) {
		--*steps;
		if (!o->flock && o->id != a->owner &&
		    fs_ranges_conflict(&o->ranges, &wanted, steps))
			enough = found(arg, o->id);
	}
	pthread_mutex_unlock(&l->lock);
}

static void release(struct fs_node *node, uint64_t id, bool flock, bool idle)
{
	struct fs_locks *l = locks_of(node);
	struct owner **at;

	pthread_mutex_lock(&l->lock);
	at = find(l, id, flock);
	if (*at && !(idle && (*at)->locked))
		drop(l, at);
	pthread_mutex_unlock(&l->lock);
}

void fs_lock_leave(struct fs_node *node, uint64_t id, bool flock)
{
	release(node, id, flock, true);
}

void fs_lock_release(struct fs *fs, struct fs_node *node, uint64_t owner)
{
	if (!locks_of(node))
		return;
	release(node, owner, false, false);
	release(node, owner, true, false);
	fs_lock_try_again(fs);
}

/* ---- handlers ---- */

/* What is asked for, and of which node: held. */
static int get_ask(struct fs_req *r, struct fs_ask *a, struct fs_node **node)
{
	const struct fuse_lk_in *in = fs_req_args(r);
	bool flock = in->lk_flags & FUSE_LK_FLOCK;
	struct fs_handle *h;
	int ret;

	if (!(fs_flags(r->fs) & (flock ? FUSE_FLOCK_LOCKS : FUSE_POSIX_LOCKS)))
		return -ENOSYS;
	if (in->lk_flags & ~FUSE_LK_FLOCK || in->lk.start > in->lk.end ||
	    in->lk.end > INT64_MAX ||
	    (in->lk.type != F_RDLCK && in->lk.type != F_WRLCK &&
	     in->lk.type != F_UNLCK))
		return -EINVAL;
	h = fs_handle_get(r->fs, in->fh, r->in.nodeid);
	if (!h)
		return -EBADF;
	*a = (struct fs_ask){ in->owner, in->lk.start, in->lk.end, in->lk.type,
			      flock };
	*node = h->node;
	ret = fs_node_pin(r->fs, h->node);
	if (!ret)
		fs_node_hold(h->node);
	fs_handle_put(r->fs, h);
	return ret;
}

static int set_lock(struct fs_req *r, bool may_wait)
{
	struct fs_node *node;
	struct fs_ask a;
	int ret = get_ask(r, &a, &node);

	if (ret)
		return ret;
	ret = fs_lock_attempt(r->fs, node, &a, may_wait);
	if (!ret && a.type != F_WRLCK)
		fs_lock_try_again(r->fs);
	if (ret == -EAGAIN && may_wait)
		ret = fs_lock_wait(r, node, &a);
	fs_node_put(r->fs, node);
	return ret;
}

int fs_op_setlk(struct fs_req *r)
{
	return set_lock(r, false);
}

int fs_op_setlkw(struct fs_req *r)
{
	return set_lock(r, true);
}

/* With the open file of the owner itself, or one of nobody's. */
static int get_conflict(struct fs *fs, struct fs_node *node,
			const struct fs_ask *a, struct flock *lk)
{
	struct fs_locks *l = make_locks(fs, node);
	struct owner *o;
	int fd, ret = 0;

	if (!l)
		return -ENOLCK;
	pthread_mutex_lock(&l->lock);
	o = *find(l, a->owner, false);
	fd = o ? o->fd : open_to_lock(fs, node);
	if (fd < 0 || fcntl(fd, F_OFD_GETLK, lk))
		ret = fd < 0 ? fd : -errno;
	if (!o && fd >= 0)
		close(fd);
	pthread_mutex_unlock(&l->lock);
	return ret;
}

int fs_op_getlk(struct fs_req *r)
{
	struct fuse_lk_out out = { .lk = { .type = F_UNLCK } };
	struct fs_node *node;
	struct flock lk;
	struct fs_ask a;
	int ret = get_ask(r, &a, &node);

	if (ret)
		return ret;
	lk = flock_of(&a);
	ret = a.flock || a.type == F_UNLCK ? -EINVAL
					   : get_conflict(r->fs, node, &a, &lk);
	fs_node_put(r->fs, node);
	if (ret)
		return ret;
	if (lk.l_type != F_UNLCK) {
		/* Whose it is means nothing in the guest: process 0. */
		out.lk.type = (uint32_t)lk.l_type;
		out.lk.start = (uint64_t)lk.l_start;
		out.lk.end = lk.l_len ? (uint64_t)(lk.l_start + lk.l_len - 1)
				      : INT64_MAX;
	}
	return fs_req_put(r, &out, sizeof(out));
}

int fs_op_interrupt(struct fs_req *r)
{
	const struct fuse_interrupt_in *in = fs_req_args(r);

	fs_lock_interrupt(r->fs, in->unique);
	return 0;
}
