/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tables of what is mapped, and the pieces.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_fs.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dev/fs/dax.h"

#define WINDOW VIRTIO_FS_SHMCAP_ID_CACHE
#define RANGES_MAX 65536u
/* Of one range, before its rest becomes a tail. */
#define PIECES_MAX 2u

/* ---- the tables ---- */

uint32_t fs_range_after(const struct fs_dax *d, uint64_t at)
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

int fs_ranges_room(struct fs_dax *d, uint32_t more)
{
	if (d->nranges + more > RANGES_MAX)
		return -ENOSPC;
	return make_room((void **)&d->ranges, &d->room_ranges, d->nranges, more,
			 sizeof(struct fs_range));
}

static int room_for_piece(struct fs_dax *d)
{
	return make_room((void **)&d->pieces, &d->room_pieces, d->npieces, 1,
			 sizeof(struct fs_piece));
}

static void insert_piece(struct fs_dax *d, const struct fs_piece *p)
{
	uint32_t i = piece_after(d, p->at);

	memmove(&d->pieces[i + 1], &d->pieces[i],
		(d->npieces - i) * sizeof(*p));
	d->pieces[i] = *p;
	d->npieces++;
}

static void remove_piece(struct fs_dax *d, uint32_t i)
{
	if (d->pieces[i].tail != FS_TAIL_NONE)
		fs_tail_free(&d->tails, d->pieces[i].tail);
	d->npieces--;
	memmove(&d->pieces[i], &d->pieces[i + 1],
		(d->npieces - i) * sizeof(struct fs_piece));
}

void fs_range_insert(struct fs_dax *d, const struct fs_range *r)
{
	uint32_t i = fs_range_after(d, r->at);

	memmove(&d->ranges[i + 1], &d->ranges[i],
		(d->nranges - i) * sizeof(*r));
	d->ranges[i] = *r;
	d->nranges++;
}

void fs_range_remove(struct fs_dax *d, uint32_t i, struct fs_range *was)
{
	*was = d->ranges[i];
	d->nranges--;
	memmove(&d->ranges[i], &d->ranges[i + 1],
		(d->nranges - i) * sizeof(*was));
}

/* ---- pieces come ---- */

int fs_range_stat(struct fs *fs, const struct fs_range *r, struct statx *sx)
{
	int ret = fs_node_pin(fs, r->node);

	if (ret)
		return ret;
	ret = fs_statx(r->node->fd, sx);
	fs_node_unpin(fs, r->node);
	return ret;
}

/*
 * The front-end stops the device for a while, or does not answer: the guest
 * is to try again (Linux does so on EAGAIN).
 */
static int later(int ret)
{
	return ret == -EINTR || ret == -ETIMEDOUT ? -EAGAIN : ret;
}

/*
 * Whoever has leased it is told, and not waited for: others want the window,
 * too. That is -EAGAIN, and the guest tries again.
 */
int fs_range_open(struct fs *fs, const struct fs_range *r)
{
	int fd = fs_node_pin(fs, r->node);

	if (fd)
		return fd;
	fd = fs_node_open(fs, r->node,
			  (r->writable ? O_RDWR : O_RDONLY) | O_NONBLOCK);
	fs_node_unpin(fs, r->node);
	return fd;
}

static int map_piece(struct fs_dax *d, struct fs_range *r,
		     const struct fs_piece *p, int fd, uint64_t offset,
		     bool writable)
{
	int ret = d->npieces < d->fs->opt->dax_mappings ? room_for_piece(d)
							: -ENOSPC;

	if (!ret)
		ret = moat_shmem_map(d->fs->device, WINDOW, p->at, p->len, fd,
				     offset, writable);
	if (ret)
		return later(ret);
	insert_piece(d, p);
	r->covered += p->len;
	r->pieces++;
	return 0;
}

/*
 * It is mapped writable in any case, as that works everywhere: what the guest
 * does to a tail that it may only read goes no further.
 */
static int map_tail(struct fs_dax *d, struct fs_range *r, uint64_t len)
{
	struct fs_piece p = { .at = r->at + r->covered, .len = len };
	int fd = fs_range_open(d->fs, r), tail, ret;
	uint64_t offset;

	if (fd < 0)
		return fd;
	tail = fs_tail_new(&d->tails, fd, r->writable, r->offset + r->covered,
			   (uint32_t)(len / FS_PAGE), r->node);
	if (tail < 0) {
		close(fd);
		return tail;
	}
	p.tail = (uint32_t)tail;
	fd = fs_tail_fd(&d->tails, p.tail, &offset);
	ret = map_piece(d, r, &p, fd, offset, true);
	if (ret)
		fs_tail_free(&d->tails, p.tail);
	else
		pthread_cond_signal(&d->wake);
	return ret;
}

static int map_pages(struct fs_dax *d, struct fs_range *r, uint64_t upto)
{
	struct fs_piece p = { .at = r->at + r->covered,
			      .len = upto - r->covered,
			      .tail = FS_TAIL_NONE };
	int fd = fs_range_open(d->fs, r), ret;

	if (fd < 0)
		return fd;
	ret = map_piece(d, r, &p, fd, r->offset + r->covered, r->writable);
	close(fd);
	return ret;
}

/* Bytes of the range that may be one tail now; 0: page by page. */
static uint64_t long_tail(const struct fs_dax *d, const struct fs_range *r)
{
	uint64_t rest = r->len - r->covered;

	if (!r->writable)
		return d->copies ? rest : 0;
	return r->pieces >= PIECES_MAX &&
			       rest / FS_PAGE <=
				       FS_LONG_PAGES - d->tails.long_pages
		       ? rest
		       : 0;
}

static int cover_pages(struct fs_dax *d, struct fs_range *r, uint64_t upto)
{
	uint64_t rest = long_tail(d, r);
	int ret;

	if (rest)
		return map_tail(d, r, rest);
	ret = map_pages(d, r, upto);
	if (ret != -EIO || r->writable || d->copies)
		return ret;
	moat_device_log(d->fs->log, MOAT_DEVICE_WARNING,
			"window: the front-end maps nothing read-only (QEMU "
			"11.1 does not): programs, and a read-only share, are "
			"shown as copies in memory");
	d->copies = true;
	return map_tail(d, r, r->len - r->covered);
}

int fs_range_cover(struct fs_dax *d, struct fs_range *r, uint64_t size)
{
	uint64_t end = size > r->offset ? size - r->offset : 0;
	uint64_t full = end & ~FS_PAGE_MASK;
	int ret = 0;

	if (full > r->len)
		full = r->len;
	if (end > r->len)
		end = r->len;
	if (r->covered < full)
		ret = cover_pages(d, r, full);
	if (!ret && r->covered < end) {
		uint64_t rest = long_tail(d, r);

		ret = map_tail(d, r, rest ? rest : FS_PAGE);
	}
	return ret;
}

/* ---- pieces go ---- */

/* From the end on, so that what is left is at the beginning. */
static int uncover_from(struct fs_dax *d, struct fs_range *r, uint64_t end)
{
	while (r->covered > end) {
		uint32_t i = piece_after(d, r->at + r->covered - 1);
		struct fs_piece *p = &d->pieces[i];
		int ret;

		/* A tail can be longer than its file. */
		if (p->at < r->at + end && p->tail != FS_TAIL_NONE)
			return 0;
		ret = moat_shmem_unmap(d->fs->device, WINDOW, p->at, p->len);
		/* It may be gone, by a reset of the device. */
		if (ret && ret != -ENOENT)
			return later(ret);
		r->covered = p->at - r->at;
		r->pieces--;
		remove_piece(d, i);
	}
	return 0;
}

int fs_range_uncover(struct fs_dax *d, struct fs_range *r)
{
	return uncover_from(d, r, 0);
}

int fs_range_shrink(struct fs_dax *d, struct fs_range *r, uint64_t size)
{
	uint64_t end = size > r->offset ? size - r->offset : 0;
	int ret;

	/* Where it is in the middle of a page, that one stays. */
	end = (end + FS_PAGE_MASK) & ~FS_PAGE_MASK;
	if (r->covered <= end)
		return 0;
	ret = uncover_from(d, r, end);
	return ret ? ret : fs_range_cover(d, r, size);
}

int fs_range_abandon(struct fs_dax *d, struct fs_range *r, bool ask)
{
	int ret = ask ? fs_range_uncover(d, r) : -EAGAIN;

	if (!ret)
		return 0;
	for (uint32_t i = piece_after(d, r->at);
	     i < d->npieces && d->pieces[i].at < r->at + r->covered; i++) {
		d->pieces[i].orphan = true;
		if (d->pieces[i].tail != FS_TAIL_NONE)
			fs_tail_mute(&d->tails, d->pieces[i].tail);
	}
	r->covered = 0;
	return ret;
}

int fs_orphans_clear(struct fs_dax *d, uint64_t at, uint64_t len)
{
	uint32_t i = piece_after(d, at);

	while (i < d->npieces && d->pieces[i].at < at + len) {
		struct fs_piece *p = &d->pieces[i];
		int ret;

		if (!p->orphan) {
			i++;
			continue;
		}
		ret = moat_shmem_unmap(d->fs->device, WINDOW, p->at, p->len);
		if (ret && ret != -ENOENT)
			return later(ret);
		remove_piece(d, i);
	}
	return 0;
}

int fs_former_clear(struct fs_dax *d, uint64_t at, uint64_t len)
{
	if (!d->former)
		return 0;
	return later(moat_shmem_unmap_former(d->fs->device, WINDOW, at, len));
}

void fs_pieces_drop(struct fs_dax *d)
{
	while (d->npieces)
		remove_piece(d, d->npieces - 1);
}
