/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The DAX window (virtio 1.4, 5.11.6.4): files, mapped where the guest asks.
 *
 *     window   0 ....[ file a, 0 to 2 MiB )....[ file b, 6 MiB to 8 MiB )....
 * size
 *
 * A driver may map over what is mapped, and unmap any range. vhost-user can do
 * neither: there a mapping goes as a whole, and nothing is laid over it. So
 * what is to go is cut out here: a mapping that sticks out of the range is
 * unmapped, and what sticks out mapped again.
 *
 * While that happens there is nothing at these addresses, and a processor of
 * the guest that looks would see no file. The case that Linux makes, a mapping
 * that it has for reading and now wants for writing too, therefore is none:
 * what can be written to is mapped so at once. Programs are left out, as the
 * host could not run them meanwhile (ETXTBSY).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_fs.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dev/fs/fs.h"

#define WINDOW VIRTIO_FS_SHMCAP_ID_CACHE
#define PAGE_MASK UINT64_C(4095)

struct mapping {
	uint64_t at, len, offset; /* in the window; in the file */
	struct fs_node *node;	  /* held */
	bool writable;
};

/** struct fs_dax - what is mapped, sorted by place */
struct fs_dax {
	pthread_mutex_t lock;
	struct mapping *maps;
	uint32_t n, room;
};

int fs_dax_start(struct fs *fs)
{
	fs->dax = calloc(1, sizeof(*fs->dax));
	if (!fs->dax)
		return -ENOMEM;
	pthread_mutex_init(&fs->dax->lock, NULL);
	return 0;
}

void fs_dax_stop(struct fs *fs)
{
	if (!fs->dax)
		return;
	pthread_mutex_destroy(&fs->dax->lock);
	free(fs->dax->maps);
	free(fs->dax);
	fs->dax = NULL;
}

/* ---- the table ---- */

/* The first that ends behind @at; d->n if there is none. */
static uint32_t first_after(const struct fs_dax *d, uint64_t at)
{
	uint32_t low = 0, high = d->n;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (d->maps[mid].at + d->maps[mid].len <= at)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* Room for @more, before anything is changed that could not be noted. */
static int make_room(struct fs_dax *d, uint32_t more)
{
	uint32_t room = d->room ? d->room : 64;
	struct mapping *maps;

	if (d->room - d->n >= more)
		return 0;
	while (room - d->n < more)
		room *= 2;
	maps = realloc(d->maps, room * sizeof(*maps));
	if (!maps)
		return -ENOMEM;
	d->maps = maps;
	d->room = room;
	return 0;
}

static void insert(struct fs_dax *d, const struct mapping *m)
{
	uint32_t i = first_after(d, m->at);

	memmove(&d->maps[i + 1], &d->maps[i],
		(d->n - i) * sizeof(struct mapping));
	d->maps[i] = *m;
	d->n++;
}

static void take_out(struct fs_dax *d, uint32_t i)
{
	d->n--;
	memmove(&d->maps[i], &d->maps[i + 1],
		(d->n - i) * sizeof(struct mapping));
}

/* ---- what the front-end maps ---- */

/*
 * The front-end stops the device for a while, or does not answer: the guest
 * is to try again (Linux does so on EAGAIN).
 */
static int later(int ret)
{
	return ret == -EINTR || ret == -ETIMEDOUT ? -EAGAIN : ret;
}

static int open_for(struct fs *fs, const struct fs_node *node, bool *writable)
{
	struct statx sx;
	int fd = -EACCES;

	/* A program that is only read stays one that the host can run. */
	if (!*writable && !fs->opt->read_only && !fs_statx(node->fd, &sx))
		*writable = !(sx.stx_mode & 0111);
	else if (!*writable)
		fd = -EROFS;
	if (*writable)
		fd = fs_node_open(fs, node, O_RDWR);
	return fd;
}

/* Maps it, and notes it: there is room. Takes over the hold on its node. */
static int map(struct fs *fs, struct mapping *m)
{
	bool asked = m->writable;
	int fd = open_for(fs, m->node, &m->writable), ret;

	if (fd < 0 && !asked) {
		m->writable = false;
		fd = fs_node_open(fs, m->node, O_RDONLY);
	}
	if (fd < 0)
		return fd;
	ret = moat_shmem_map(fs->device, WINDOW, m->at, m->len, fd, m->offset,
			     m->writable);
	close(fd);
	if (!ret)
		insert(fs->dax, m);
	return later(ret);
}

/* Unmaps one; the table lets go of it. */
static int unmap(struct fs *fs, uint32_t i, struct mapping *was)
{
	*was = fs->dax->maps[i];
	int ret = moat_shmem_unmap(fs->device, WINDOW, was->at, was->len);

	/* It is gone, by a reset of the device. */
	if (ret == -ENOENT)
		ret = 0;
	if (!ret)
		take_out(fs->dax, i);
	return later(ret);
}

/* What is left of @was behind @from, up to @to, is mapped again. */
static int restore(struct fs *fs, const struct mapping *was, uint64_t from,
		   uint64_t to)
{
	struct mapping m = *was;
	int ret;

	if (from >= to)
		return 0;
	m.at = from;
	m.len = to - from;
	m.offset += from - was->at;
	fs_node_hold(m.node);
	ret = map(fs, &m);
	if (!ret)
		return 0;
	fs_node_put(fs, m.node);
	moat_device_log(fs->log, MOAT_DEVICE_ERROR,
			"window: %llu bytes at %llu were to stay mapped and "
			"can not be: %s; the guest will have to map them again",
			(unsigned long long)m.len, (unsigned long long)m.at,
			strerror(-ret));
	return ret;
}

/* Nothing is mapped in the range any more. */
static int cut_out(struct fs *fs, uint64_t at, uint64_t len)
{
	struct fs_dax *d = fs->dax;
	struct mapping was;
	uint32_t i;
	int ret;

	while ((i = first_after(d, at)) < d->n && d->maps[i].at < at + len) {
		/* One that goes may become two. */
		ret = make_room(d, 2);
		if (!ret)
			ret = unmap(fs, i, &was);
		if (ret)
			return ret;
		ret = restore(fs, &was, was.at, at);
		if (!ret)
			ret = restore(fs, &was, at + len, was.at + was.len);
		fs_node_put(fs, was.node);
		if (ret)
			return ret;
	}
	return 0;
}

/* It is mapped so already. */
static bool is_mapped(const struct fs_dax *d, const struct mapping *m)
{
	uint32_t i = first_after(d, m->at);
	const struct mapping *have = &d->maps[i];

	return i < d->n && have->node == m->node && have->at <= m->at &&
	       have->at + have->len >= m->at + m->len &&
	       have->offset + (m->at - have->at) == m->offset &&
	       (have->writable || !m->writable);
}

/* ---- requests ---- */

static bool in_window(const struct fs *fs, uint64_t at, uint64_t len)
{
	return len && !((at | len) & PAGE_MASK) && len <= fs->opt->dax_window &&
	       at <= fs->opt->dax_window - len;
}

static int set_up(struct fs *fs, struct mapping *m)
{
	struct fs_dax *d = fs->dax;
	int ret = 0;

	pthread_mutex_lock(&d->lock);
	if (is_mapped(d, m)) {
		fs_node_put(fs, m->node);
	} else {
		ret = cut_out(fs, m->at, m->len);
		if (!ret)
			ret = make_room(d, 1);
		if (!ret)
			ret = map(fs, m);
		if (ret)
			fs_node_put(fs, m->node);
	}
	pthread_mutex_unlock(&d->lock);
	return ret;
}

int fs_op_setupmapping(struct fs_req *r)
{
	const struct fuse_setupmapping_in *in = fs_req_args(r);
	uint64_t known =
		FUSE_SETUPMAPPING_FLAG_READ | FUSE_SETUPMAPPING_FLAG_WRITE;
	struct mapping m = {
		.at = in->moffset,
		.len = in->len,
		.offset = in->foffset,
		.writable = in->flags & FUSE_SETUPMAPPING_FLAG_WRITE,
	};

	if (!r->fs->opt->dax_window)
		return -ENOSYS;
	if (!in_window(r->fs, m.at, m.len) || m.offset & PAGE_MASK ||
	    m.offset > (uint64_t)INT64_MAX - m.len || !in->flags ||
	    in->flags & ~known)
		return -EINVAL;
	if (m.writable && r->fs->opt->read_only)
		return -EROFS;
	m.node = fs_node_get(r->fs, r->in.nodeid);
	if (!m.node)
		return -ESTALE;
	if (m.node->type != S_IFREG) {
		fs_node_put(r->fs, m.node);
		return -EINVAL;
	}
	return set_up(r->fs, &m);
}

int fs_op_removemapping(struct fs_req *r)
{
	const struct fuse_removemapping_in *in = fs_req_args(r);
	const uint8_t *p = r->thread->args + sizeof(*in);
	struct fuse_removemapping_one one;
	uint64_t n = (r->nargs - sizeof(*in)) / sizeof(one);
	struct fs *fs = r->fs;
	int ret = 0;

	if (!fs->opt->dax_window)
		return -ENOSYS;
	if (!in->count || in->count > n)
		return -EINVAL;
	for (uint32_t i = 0; !ret && i < in->count; i++) {
		memcpy(&one, p + i * sizeof(one), sizeof(one));
		if (!in_window(fs, one.moffset, one.len))
			return -EINVAL;
		pthread_mutex_lock(&fs->dax->lock);
		ret = cut_out(fs, one.moffset, one.len);
		pthread_mutex_unlock(&fs->dax->lock);
	}
	return ret;
}

static void forget(struct fs *fs, bool unmap_them)
{
	struct fs_dax *d = fs->dax;

	pthread_mutex_lock(&d->lock);
	while (d->n) {
		struct mapping *m = &d->maps[--d->n];

		if (unmap_them)
			moat_shmem_unmap(fs->device, WINDOW, m->at, m->len);
		fs_node_put(fs, m->node);
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
