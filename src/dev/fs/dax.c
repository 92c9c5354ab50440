/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The DAX window (virtio 1.4, 5.11.6.4): files, mapped where the guest asks.
 *
 *     window   0 ....[ file a, 0 to 2 MiB )....[ file b, 6 MiB to 8 MiB )....
 * size
 *
 * A driver may map over what is mapped, and unmap any range. vhost-user can do
 * neither: there a mapping goes as a whole, and nothing is laid over it. So
 * what is to go is cut out here: a range that sticks out is unmapped, and what
 * sticks out mapped again.
 *
 * While that happens there is nothing at these addresses, and a processor of
 * the guest that looks would see no file. The case that Linux makes, a range
 * that it has for reading and now wants for writing too, therefore is none:
 * what can be written to is mapped so at once. Programs are left out, as the
 * host could not run them meanwhile (ETXTBSY).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_fs.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "dev/fs/dax.h"

#define WINDOW VIRTIO_FS_SHMCAP_ID_CACHE
#define PAGE_MASK ((uint64_t)FS_PAGE - 1)
#define RANGES_MAX 65536u
#define SYNC_NS 50000000 /* how soon a tail shows what the other side did */

struct range {
	uint64_t at, len, offset; /* in the window; in the file */
	uint64_t covered;     /* bytes that are mapped, from its beginning */
	struct fs_node *node; /* held */
	bool writable;
};

struct piece {
	uint64_t at, len;
	uint32_t tail; /* or FS_TAIL_NONE */
};

/** struct fs_dax - what is mapped, each sorted by place */
struct fs_dax {
	struct fs *fs;
	pthread_mutex_t lock;
	struct range *ranges;
	struct piece *pieces;
	uint32_t nranges, npieces, room_ranges, room_pieces;
	struct fs_tails tails;
	pthread_t syncer;
	pthread_cond_t wake;
	bool syncing, stop;
};

/* ---- the tables ---- */

/* The first that ends behind @at. */
static uint32_t range_after(const struct fs_dax *d, uint64_t at)
{
	uint32_t low = 0, high = d->nranges;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (d->ranges[mid].at + d->ranges[mid].len <= at)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static uint32_t piece_after(const struct fs_dax *d, uint64_t at)
{
	uint32_t low = 0, high = d->npieces;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (d->pieces[mid].at + d->pieces[mid].len <= at)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* Room for @more, before anything is changed that could not be noted. */
static int make_room(void **table, uint32_t *room, uint32_t n, uint32_t more,
		     size_t size)
{
	uint32_t want = *room ? *room : 64;
	void *p;

	if (*room - n >= more)
		return 0;
	while (want - n < more)
		want *= 2;
	p = realloc(*table, want * size);
	if (!p)
		return -ENOMEM;
	*table = p;
	*room = want;
	return 0;
}

static int room_for_ranges(struct fs_dax *d, uint32_t more)
{
	if (d->nranges + more > RANGES_MAX)
		return -ENOSPC;
	return make_room((void **)&d->ranges, &d->room_ranges, d->nranges, more,
			 sizeof(struct range));
}

static int room_for_piece(struct fs_dax *d)
{
	return make_room((void **)&d->pieces, &d->room_pieces, d->npieces, 1,
			 sizeof(struct piece));
}

static void insert_piece(struct fs_dax *d, const struct piece *p)
{
	uint32_t i = piece_after(d, p->at);

	memmove(&d->pieces[i + 1], &d->pieces[i],
		(d->npieces - i) * sizeof(*p));
	d->pieces[i] = *p;
	d->npieces++;
}

static void remove_piece(struct fs_dax *d, uint32_t i)
{
	d->npieces--;
	memmove(&d->pieces[i], &d->pieces[i + 1],
		(d->npieces - i) * sizeof(struct piece));
}

static void insert_range(struct fs_dax *d, const struct range *r)
{
	uint32_t i = range_after(d, r->at);

	memmove(&d->ranges[i + 1], &d->ranges[i],
		(d->nranges - i) * sizeof(*r));
	d->ranges[i] = *r;
	d->nranges++;
	__atomic_fetch_add(&r->node->ranges, 1, __ATOMIC_RELAXED);
}

/* The hold on its node stays, for the caller to put. */
static void remove_range(struct fs_dax *d, uint32_t i, struct range *was)
{
	*was = d->ranges[i];
	__atomic_fetch_sub(&was->node->ranges, 1, __ATOMIC_RELAXED);
	d->nranges--;
	memmove(&d->ranges[i], &d->ranges[i + 1],
		(d->nranges - i) * sizeof(*was));
}

/* ---- pieces ---- */

/*
 * The front-end stops the device for a while, or does not answer: the guest
 * is to try again (Linux does so on EAGAIN).
 */
static int later(int ret)
{
	return ret == -EINTR || ret == -ETIMEDOUT ? -EAGAIN : ret;
}

static int open_range(struct fs *fs, const struct range *r)
{
	int fd = fs_node_pin(fs, r->node);

	if (fd)
		return fd;
	fd = fs_node_open(fs, r->node, r->writable ? O_RDWR : O_RDONLY);
	fs_node_unpin(fs, r->node);
	return fd;
}

static int map_piece(struct fs_dax *d, const struct piece *p, int fd,
		     uint64_t offset, bool writable)
{
	int ret = room_for_piece(d);

	if (!ret)
		ret = moat_shmem_map(d->fs->device, WINDOW, p->at, p->len, fd,
				     offset, writable);
	if (!ret)
		insert_piece(d, p);
	return later(ret);
}

/* The page at r->covered is one that the file does not fill. */
static int map_tail(struct fs_dax *d, struct range *r)
{
	struct piece p = { .at = r->at + r->covered, .len = FS_PAGE };
	int fd = open_range(d->fs, r), tail, ret;

	if (fd < 0)
		return fd;
	tail = fs_tail_new(&d->tails, fd, r->writable, r->offset + r->covered,
			   fs_slot_id(&r->node->slot));
	if (tail < 0) {
		close(fd);
		return tail;
	}
	p.tail = (uint32_t)tail;
	ret = map_piece(d, &p, d->tails.fd, (uint64_t)p.tail * FS_PAGE,
			r->writable);
	if (ret) {
		fs_tail_free(&d->tails, p.tail);
		return ret;
	}
	__atomic_fetch_add(&r->node->tails, 1, __ATOMIC_RELAXED);
	r->covered += FS_PAGE;
	pthread_cond_signal(&d->wake);
	return 0;
}

static int map_pages(struct fs_dax *d, struct range *r, uint64_t upto)
{
	struct piece p = { r->at + r->covered, upto - r->covered,
			   FS_TAIL_NONE };
	int fd = open_range(d->fs, r), ret;

	if (fd < 0)
		return fd;
	ret = map_piece(d, &p, fd, r->offset + r->covered, r->writable);
	close(fd);
	if (!ret)
		r->covered = upto;
	return ret;
}

/* All of @r that a file of @size bytes has. */
static int cover(struct fs_dax *d, struct range *r, uint64_t size)
{
	uint64_t end = size > r->offset ? size - r->offset : 0;
	uint64_t full = end & ~PAGE_MASK;
	int ret = 0;

	if (full > r->len)
		full = r->len;
	if (end > r->len)
		end = r->len;
	if (r->covered < full)
		ret = map_pages(d, r, full);
	if (!ret && r->covered < end)
		ret = map_tail(d, r);
	return ret;
}

static void drop_tail(struct fs_dax *d, struct fs_node *node, uint32_t tail)
{
	if (tail == FS_TAIL_NONE)
		return;
	fs_tail_sync(&d->tails, tail);
	fs_tail_free(&d->tails, tail);
	__atomic_fetch_sub(&node->tails, 1, __ATOMIC_RELAXED);
}

/* Nothing of the range is mapped any more; else what is left still is. */
static int uncover(struct fs_dax *d, struct range *r)
{
	uint32_t i;

	while ((i = piece_after(d, r->at)) < d->npieces &&
	       d->pieces[i].at < r->at + r->len) {
		struct piece p = d->pieces[i];
		int ret = moat_shmem_unmap(d->fs->device, WINDOW, p.at, p.len);

		/* It is gone, by a reset of the device. */
		if (ret && ret != -ENOENT)
			return later(ret);
		drop_tail(d, r->node, p.tail);
		remove_piece(d, i);
	}
	r->covered = 0;
	return 0;
}

/* ---- ranges ---- */

static int stat_range(struct fs *fs, const struct range *r, struct statx *sx)
{
	int ret = fs_node_pin(fs, r->node);

	if (ret)
		return ret;
	ret = fs_statx(r->node->fd, sx);
	fs_node_unpin(fs, r->node);
	return ret;
}

/* Maps it, and notes it: there is room. Takes over the hold on its node. */
static int begin(struct fs_dax *d, struct range *r)
{
	bool asked = r->writable;
	struct statx sx;
	int ret = stat_range(d->fs, r, &sx), fd;

	if (ret)
		return ret;
	/* A program that is only read stays one that the host can run. */
	r->writable |= !d->fs->opt->read_only && !(sx.stx_mode & 0111);
	if (r->writable && !asked) {
		fd = open_range(d->fs, r);
		r->writable = fd >= 0;
		if (fd >= 0)
			close(fd);
	}
	ret = cover(d, r, sx.stx_size);
	if (ret) {
		uncover(d, r);
		return ret;
	}
	insert_range(d, r);
	return 0;
}

/* What is left of @was from @from on, up to @to, is mapped again. */
static int restore(struct fs_dax *d, const struct range *was, uint64_t from,
		   uint64_t to)
{
	struct range r = *was;
	int ret;

	if (from >= to)
		return 0;
	r.at = from;
	r.len = to - from;
	r.offset += from - was->at;
	r.covered = 0;
	fs_node_hold(r.node);
	ret = begin(d, &r);
	if (!ret)
		return 0;
	fs_node_drop(d->fs, r.node);
	moat_device_log(d->fs->log, MOAT_DEVICE_ERROR,
			"window: %llu bytes at %llu were to stay mapped and "
			"can not be: %s; the guest will have to map them again",
			(unsigned long long)r.len, (unsigned long long)r.at,
			strerror(-ret));
	return ret;
}

/* Nothing is mapped in [at, at + len) any more. */
static int cut_out(struct fs_dax *d, uint64_t at, uint64_t len)
{
	struct range was;
	uint32_t i;
	int ret = 0;

	while (!ret && (i = range_after(d, at)) < d->nranges &&
	       d->ranges[i].at < at + len) {
		/* One that goes may become two. */
		ret = room_for_ranges(d, 2);
		if (!ret)
			ret = uncover(d, &d->ranges[i]);
		if (ret)
			return ret;
		remove_range(d, i, &was);
		ret = restore(d, &was, was.at, at);
		if (!ret)
			ret = restore(d, &was, at + len, was.at + was.len);
		fs_node_drop(d->fs, was.node);
	}
	return ret;
}

/* It is mapped so already; then only as far as the file reaches now. */
static struct range *find_same(struct fs_dax *d, const struct range *r)
{
	uint32_t i = range_after(d, r->at);
	struct range *have = &d->ranges[i];

	if (i < d->nranges && have->node == r->node && have->at <= r->at &&
	    have->at + have->len >= r->at + r->len &&
	    have->offset + (r->at - have->at) == r->offset &&
	    (have->writable || !r->writable))
		return have;
	return NULL;
}

int fs_dax_cover(struct fs *fs, struct fs_node *node, uint64_t size)
{
	struct fs_dax *d = fs->dax;
	int ret = 0;

	if (!__atomic_load_n(&node->ranges, __ATOMIC_RELAXED))
		return 0;
	pthread_mutex_lock(&d->lock);
	for (uint32_t i = 0; !ret && i < d->nranges; i++)
		if (d->ranges[i].node == node)
			ret = cover(d, &d->ranges[i], size);
	pthread_mutex_unlock(&d->lock);
	return ret;
}

void fs_dax_sync(struct fs *fs, const struct fs_node *node)
{
	struct fs_dax *d = fs->dax;
	uint64_t id = fs_slot_id(&node->slot);

	if (!__atomic_load_n(&node->tails, __ATOMIC_RELAXED))
		return;
	pthread_mutex_lock(&d->lock);
	for (uint32_t i = 0; i < FS_TAILS_MAX; i++)
		if (d->tails.tail[i].used && d->tails.tail[i].node == id)
			fs_tail_sync(&d->tails, i);
	pthread_mutex_unlock(&d->lock);
}

/* ---- requests ---- */

static bool in_window(const struct fs *fs, uint64_t at, uint64_t len)
{
	return len && !((at | len) & PAGE_MASK) && len <= fs->opt->dax_window &&
	       at <= fs->opt->dax_window - len;
}

static int set_up(struct fs_dax *d, struct range *r)
{
	struct range *have = find_same(d, r);
	struct statx sx;
	int ret;

	if (have) {
		ret = stat_range(d->fs, r, &sx);
		return ret ? ret : cover(d, have, sx.stx_size);
	}
	ret = cut_out(d, r->at, r->len);
	if (!ret)
		ret = room_for_ranges(d, 1);
	if (ret)
		return ret;
	fs_node_hold(r->node);
	ret = begin(d, r);
	if (ret)
		fs_node_drop(d->fs, r->node);
	return ret;
}

int fs_op_setupmapping(struct fs_req *r)
{
	const struct fuse_setupmapping_in *in = fs_req_args(r);
	uint64_t known =
		FUSE_SETUPMAPPING_FLAG_READ | FUSE_SETUPMAPPING_FLAG_WRITE;
	struct fs_dax *d = r->fs->dax;
	struct range range = {
		.at = in->moffset,
		.len = in->len,
		.offset = in->foffset,
		.writable = in->flags & FUSE_SETUPMAPPING_FLAG_WRITE,
	};
	int ret = -EINVAL;

	if (!r->fs->opt->dax_window)
		return -ENOSYS;
	if (!in_window(r->fs, range.at, range.len) ||
	    range.offset & PAGE_MASK ||
	    range.offset > (uint64_t)INT64_MAX - range.len || !in->flags ||
	    in->flags & ~known)
		return -EINVAL;
	if (range.writable && r->fs->opt->read_only)
		return -EROFS;
	range.node = fs_node_get(r->fs, r->in.nodeid);
	if (!range.node)
		return -ESTALE;
	if (range.node->type == S_IFREG) {
		pthread_mutex_lock(&d->lock);
		ret = set_up(d, &range);
		pthread_mutex_unlock(&d->lock);
	}
	fs_node_put(r->fs, range.node);
	return ret;
}

int fs_op_removemapping(struct fs_req *r)
{
	const struct fuse_removemapping_in *in = fs_req_args(r);
	const uint8_t *p = r->thread->args + sizeof(*in);
	struct fuse_removemapping_one one;
	uint64_t n = (r->nargs - sizeof(*in)) / sizeof(one);
	struct fs_dax *d = r->fs->dax;
	int ret = 0;

	if (!r->fs->opt->dax_window)
		return -ENOSYS;
	if (!in->count || in->count > n)
		return -EINVAL;
	for (uint32_t i = 0; !ret && i < in->count; i++) {
		memcpy(&one, p + i * sizeof(one), sizeof(one));
		if (!in_window(r->fs, one.moffset, one.len))
			return -EINVAL;
		pthread_mutex_lock(&d->lock);
		ret = cut_out(d, one.moffset, one.len);
		pthread_mutex_unlock(&d->lock);
	}
	return ret;
}

/* ---- begin and end ---- */

static void *sync_tails(void *arg)
{
	struct fs_dax *d = arg;
	const struct timespec pause = { .tv_nsec = SYNC_NS };

	pthread_mutex_lock(&d->lock);
	while (!d->stop) {
		if (!d->tails.used) {
			pthread_cond_wait(&d->wake, &d->lock);
			continue;
		}
		for (uint32_t i = 0; i < FS_TAILS_MAX; i++)
			if (d->tails.tail[i].used)
				fs_tail_sync(&d->tails, i);
		pthread_mutex_unlock(&d->lock);
		nanosleep(&pause, NULL);
		pthread_mutex_lock(&d->lock);
	}
	pthread_mutex_unlock(&d->lock);
	return NULL;
}

int fs_dax_start(struct fs *fs)
{
	struct fs_dax *d;
	int ret;

	if (!fs->opt->dax_window)
		return 0;
	d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	fs->dax = d;
	d->fs = fs;
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->wake, NULL);
	ret = fs_tails_init(&d->tails);
	if (!ret)
		ret = -pthread_create(&d->syncer, NULL, sync_tails, d);
	d->syncing = !ret;
	return ret;
}

void fs_dax_stop(struct fs *fs)
{
	struct fs_dax *d = fs->dax;

	if (!d)
		return;
	fs_dax_reset(fs);
	pthread_mutex_lock(&d->lock);
	d->stop = true;
	pthread_cond_signal(&d->wake);
	pthread_mutex_unlock(&d->lock);
	if (d->syncing)
		pthread_join(d->syncer, NULL);
	fs_tails_fini(&d->tails);
	pthread_mutex_destroy(&d->lock);
	pthread_cond_destroy(&d->wake);
	free(d->ranges);
	free(d->pieces);
	free(d);
	fs->dax = NULL;
}

static void forget(struct fs *fs, bool unmap)
{
	struct fs_dax *d = fs->dax;
	struct range was;

	if (!d)
		return;
	pthread_mutex_lock(&d->lock);
	while (d->nranges) {
		uint32_t i;

		remove_range(d, d->nranges - 1, &was);
		while ((i = piece_after(d, was.at)) < d->npieces) {
			struct piece *p = &d->pieces[i];

			if (unmap)
				moat_shmem_unmap(fs->device, WINDOW, p->at,
						 p->len);
			drop_tail(d, was.node, p->tail);
			remove_piece(d, i);
		}
		fs_node_drop(fs, was.node);
	}
	pthread_mutex_unlock(&d->lock);
}

void fs_dax_clear(struct fs *fs)
{
	forget(fs, true);
}

void fs_dax_reset(struct fs *fs)
{
	forget(fs, false);
}
