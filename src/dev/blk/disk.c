/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <time.h>
#include <unistd.h>

#include "core/shm.h"
#include "dev/blk/blk.h"

/* A backend that was killed may take this long to let go of its file. */
#define LOCK_TRIES 200
#define LOCK_PAUSE_NS 10000000

static int say(const struct blk_disk *d, const char *path, const char *what,
	       int err)
{
	moat_device_log(d->log, MOAT_DEVICE_ERROR, "%s: %s: %s", path, what,
			strerror(err));
	return -err;
}

/* Two writers would destroy each other's data. */
static int lock(const struct blk_disk *d, const char *path)
{
	struct timespec pause = { .tv_nsec = LOCK_PAUSE_NS };
	int how = (d->read_only ? LOCK_SH : LOCK_EX) | LOCK_NB;

	for (int i = 0; flock(d->fd, how); i++) {
		if (errno != EWOULDBLOCK)
			return say(d, path, "can not be locked", errno);
		if (i == LOCK_TRIES)
			return say(d, path,
				   "another process has it locked, or I/O of "
				   "one that was killed is under way; end that "
				   "process, or wait",
				   EWOULDBLOCK);
		nanosleep(&pause, NULL);
	}
	return 0;
}

static int size_of(const struct blk_disk *d, uint64_t *bytes)
{
	struct stat st;

	*bytes = 0;
	if (d->is_device)
		return ioctl(d->fd, BLKGETSIZE64, bytes) ? -errno : 0;
	if (fstat(d->fd, &st))
		return -errno;
	*bytes = (uint64_t)st.st_size;
	return 0;
}

/*
 * What O_DIRECT needs here; without the kernel's word, a page for both.
 *
 * What is not aligned for it goes through the page cache, which would write an
 * old neighbour over what went past it: they must not share a page. With 512
 * bytes all offsets are aligned, and memory that is not is copied.
 */
static void ask_alignment(struct blk_disk *d, const char *path)
{
	const uint32_t page = (uint32_t)sysconf(_SC_PAGESIZE);

	d->mem_align = d->off_align = page;
#ifdef STATX_DIOALIGN
	struct statx sx;

	if (!statx(AT_FDCWD, path, 0, STATX_DIOALIGN, &sx) &&
	    sx.stx_mask & STATX_DIOALIGN && sx.stx_dio_mem_align &&
	    sx.stx_dio_offset_align) {
		d->mem_align = sx.stx_dio_mem_align;
		d->off_align = sx.stx_dio_offset_align;
	}
#else
	unsigned int sector;

	(void)path;
	if (d->is_device && !ioctl(d->fd, BLKSSZGET, &sector))
		d->mem_align = d->off_align = sector;
#endif
	if (d->off_align > BLK_SECTOR && d->off_align < page)
		d->off_align = page;
}

static void open_direct(struct blk_disk *d, const struct blk_options *opt)
{
	if (opt->cache != BLK_NONE && opt->cache != BLK_DIRECTSYNC)
		return;
	/*
	 * A read past the page cache can outlive a process that is killed, and
	 * land in memory that the guest was given back by the next one. The
	 * lock of a writable disk outlives it, too, and keeps that one waiting;
	 * one for reading does not.
	 */
	if (d->read_only)
		return;
	d->direct_fd = open(opt->path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (d->direct_fd < 0)
		moat_device_log(d->log, MOAT_DEVICE_WARNING,
				"%s: no O_DIRECT here: %s; the page cache is "
				"used",
				opt->path, strerror(errno));
	else
		ask_alignment(d, opt->path);
}

/* Beyond the end and without moving it: it changes nothing, but it tells. */
static bool can(const struct blk_disk *d, int mode)
{
	uint64_t bytes;

	if (d->read_only || size_of(d, &bytes))
		return false;
	if (d->is_device)
		return true;
	return !fallocate(d->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)bytes,
			  4096);
}

static int open_file(struct blk_disk *d, const struct blk_options *opt)
{
	struct statfs fs;
	struct stat st;
	int ret;

	d->fd = open(opt->path,
		     (opt->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	if (d->fd < 0)
		return say(d, opt->path, "can not be opened", errno);
	if (fstat(d->fd, &st) || fstatfs(d->fd, &fs))
		return say(d, opt->path, "can not be looked at", errno);
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return say(d, opt->path, "is neither a file nor a block device",
			   EINVAL);
	d->is_device = S_ISBLK(st.st_mode);
	ret = lock(d, opt->path);
	if (ret)
		return ret;
	d->in_memory = !opt->async && !d->is_device && fs.f_type == TMPFS_MAGIC;
	if (!d->in_memory)
		open_direct(d, opt);
	d->can_discard = can(d, FALLOC_FL_PUNCH_HOLE);
	d->can_zero = can(d, FALLOC_FL_ZERO_RANGE);
	return 0;
}

static void set_size(struct blk_disk *d, uint64_t bytes)
{
	__atomic_store_n(&d->capacity, bytes / BLK_SECTOR, __ATOMIC_RELAXED);
	d->config.capacity = moat_le64(bytes / BLK_SECTOR);
}

static void make_config(struct blk_disk *d, const struct blk_options *opt)
{
	struct virtio_blk_config *c = &d->config;
	uint32_t block = opt->block_size;
	unsigned int sector;

	if (!block)
		block = d->is_device && !ioctl(d->fd, BLKSSZGET, &sector)
				? sector
				: BLK_SECTOR;
	c->seg_max = moat_le32(BLK_SEG_MAX);
	c->blk_size = moat_le32(block);
	/* Best in pages, whatever a block is. */
	c->physical_block_exp =
		block < 4096 ? (uint8_t)__builtin_ctz(4096 / block) : 0;
	c->min_io_size = moat_le16((uint16_t)(block < 4096 ? 4096 / block : 1));
	c->wce = d->wce_start;
	c->num_queues = moat_le16((uint16_t)opt->num_queues);
	c->max_discard_sectors = moat_le32(BLK_RANGE_SECTORS);
	c->max_discard_seg = moat_le32(BLK_SEGMENTS);
	c->discard_sector_alignment =
		moat_le32((block < 4096 ? 4096 : block) / BLK_SECTOR);
	c->max_write_zeroes_sectors = moat_le32(BLK_RANGE_SECTORS);
	c->max_write_zeroes_seg = moat_le32(BLK_SEGMENTS);
	c->write_zeroes_may_unmap = d->can_discard && !d->is_device;
}

int blk_disk_open(struct blk_disk *d, const struct blk_options *opt)
{
	uint64_t bytes = opt->null_size;
	uint8_t *zeroes = NULL;
	int ret = 0;

	d->fd = d->direct_fd = -1;
	d->mem_align = d->off_align = 1;
	d->read_only = opt->read_only;
	d->null = opt->null_size != 0;
	d->in_memory = d->sync = d->can_discard = d->can_zero = d->null;
	d->wce_start = opt->cache == BLK_NONE || opt->cache == BLK_WRITEBACK;
	if (posix_memalign((void **)&zeroes, 4096, BLK_ZEROES))
		return -ENOMEM;
	memset(zeroes, 0, BLK_ZEROES);
	d->zeroes = zeroes;
	if (opt->serial)
		memcpy(d->serial, opt->serial,
		       strnlen(opt->serial, sizeof(d->serial)));
	if (!d->null)
		ret = open_file(d, opt);
	if (!ret && !d->null)
		ret = size_of(d, &bytes);
	if (ret) {
		blk_disk_close(d);
		return ret;
	}
	if (bytes % BLK_SECTOR)
		moat_device_log(d->log, MOAT_DEVICE_WARNING,
				"%s: its size of %" PRIu64 " bytes is no "
				"multiple of 512: the rest is left out",
				opt->path, bytes);
	set_size(d, bytes);
	make_config(d, opt);
	blk_left(d);
	return 0;
}

void blk_disk_close(struct blk_disk *d)
{
	if (d->fd >= 0)
		close(d->fd);
	if (d->direct_fd >= 0)
		close(d->direct_fd);
	d->fd = d->direct_fd = -1;
	free((void *)d->zeroes);
	d->zeroes = NULL;
}

bool blk_disk_reload(struct blk_disk *d)
{
	uint64_t bytes, old = d->capacity;

	if (d->null || size_of(d, &bytes) || bytes / BLK_SECTOR == old)
		return false;
	set_size(d, bytes);
	moat_device_log(d->log, MOAT_DEVICE_INFO,
			"the disk has %" PRIu64 " sectors now, %" PRIu64
			" before",
			bytes / BLK_SECTOR, old);
	return true;
}

/* ---- features and config space ---- */

#define BIT(n) (UINT64_C(1) << (n))

uint64_t blk_features(void *dev)
{
	const struct blk_disk *d = dev;
	uint64_t f = BIT(VIRTIO_BLK_F_SEG_MAX) | BIT(VIRTIO_BLK_F_BLK_SIZE) |
		     BIT(VIRTIO_BLK_F_FLUSH) | BIT(VIRTIO_BLK_F_TOPOLOGY) |
		     BIT(VIRTIO_BLK_F_CONFIG_WCE) | BIT(VIRTIO_BLK_F_MQ);

	if (d->read_only)
		return f | BIT(VIRTIO_BLK_F_RO);
	if (d->can_discard)
		f |= BIT(VIRTIO_BLK_F_DISCARD);
	return f | BIT(VIRTIO_BLK_F_WRITE_ZEROES);
}

/*
 * virtio 1.4, 5.2.5.2 and 5.2.6.2: a driver that can not flush expects each
 * write to be stable when it is done.
 */
static bool can_flush(const struct blk_disk *d)
{
	return d->accepted & BIT(VIRTIO_BLK_F_FLUSH);
}

static void update_cache(struct blk_disk *d)
{
	__atomic_store_n(&d->write_through, !can_flush(d) || !d->config.wce,
			 __ATOMIC_RELAXED);
}

void blk_accepted(void *dev, uint64_t features)
{
	struct blk_disk *d = dev;

	d->accepted = features;
	__atomic_store_n(&d->in_order, !!(features & BIT(VIRTIO_F_IN_ORDER)),
			 __ATOMIC_RELAXED);
	update_cache(d);
}

/*
 * The driver may have chosen "write through" when another process was here: it
 * sends no flush then, and front-ends do not repeat what it chose. Its first
 * flush shows that it did not.
 */
void blk_resumed(void *dev)
{
	struct blk_disk *d = dev;

	if (!(d->accepted & BIT(VIRTIO_BLK_F_CONFIG_WCE)) ||
	    __atomic_load_n(&d->write_through, __ATOMIC_RELAXED) ||
	    __atomic_exchange_n(&d->in_doubt, true, __ATOMIC_RELAXED))
		return;
	moat_device_log(d->log, MOAT_DEVICE_INFO,
			"goes on after a restart: each write is flushed until "
			"the guest flushes for the first time");
}

/*
 * The choice of write cache stays: the front-end has it still, and shows it to
 * the next driver; QEMU resets a device even for a pause.
 */
void blk_reset(void *dev)
{
	blk_accepted(dev, 0);
}

void blk_left(void *dev)
{
	struct blk_disk *d = dev;

	d->config.wce = d->wce_start;
	__atomic_store_n(&d->in_doubt, false, __ATOMIC_RELAXED);
	update_cache(d);
}

void blk_get_config(void *dev, uint32_t offset, void *buf, uint32_t len)
{
	const struct blk_disk *d = dev;
	struct virtio_blk_config c = d->config;
	uint32_t size = sizeof(c);

	if (d->accepted && !can_flush(d))
		c.wce = 0;
	if (offset < size)
		memcpy(buf, (const uint8_t *)&c + offset,
		       len < size - offset ? len : size - offset);
}

int blk_set_config(void *dev, uint32_t offset, const void *buf, uint32_t len)
{
	const uint32_t at = offsetof(struct virtio_blk_config, wce);
	struct blk_disk *d = dev;

	/* The only field that a driver may write (5.2.5.2). */
	if (offset != at || len != 1 ||
	    !(d->accepted & BIT(VIRTIO_BLK_F_CONFIG_WCE)))
		return -EINVAL;
	d->config.wce = *(const uint8_t *)buf & 1;
	__atomic_store_n(&d->in_doubt, false, __ATOMIC_RELAXED);
	update_cache(d);
	return 0;
}
