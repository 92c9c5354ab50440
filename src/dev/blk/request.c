/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "core/shm.h"
#include "dev/blk/blk.h"

#define HEADER ((uint32_t)sizeof(struct virtio_blk_outhdr))

/*
 * The status is the last writable byte, wherever the driver put it. All that
 * lies before it was written: data, or zeroes where there is none.
 */
static bool done(struct blk_req *r, uint8_t status)
{
	*r->status = status;
	moat_request_done(r->req, (uint32_t)r->req->write_len);
	return false;
}

/* A driver that breaks the rules: one line, and an error for it. */
static bool refuse(struct blk_disk *d, struct blk_req *r, const char *what,
		   uint64_t value)
{
	moat_device_log(d->log, MOAT_DEVICE_ERROR,
			"queue %u: request of type %u with %s (%" PRIu64
			"): refused; fix the guest's driver",
			r->req->queue, r->type, what, value);
	if (r->step == BLK_READ)
		moat_iov_zero(r->iov, r->niov, 0, (size_t)r->len);
	return done(r, VIRTIO_BLK_S_IOERR);
}

static bool unsupported(struct blk_disk *d, struct blk_req *r, const char *what,
			uint64_t value)
{
	moat_device_log(d->log, MOAT_DEVICE_WARNING,
			"queue %u: request of type %u with %s (%" PRIu64
			"): not supported; it was not offered",
			r->req->queue, r->type, what, value);
	return done(r, VIRTIO_BLK_S_UNSUPP);
}

static bool write_through(const struct blk_disk *d)
{
	return __atomic_load_n(&d->write_through, __ATOMIC_RELAXED) ||
	       __atomic_load_n(&d->in_doubt, __ATOMIC_RELAXED);
}

static bool in_disk(const struct blk_disk *d, uint64_t sector, uint64_t n)
{
	uint64_t capacity = __atomic_load_n(&d->capacity, __ATOMIC_RELAXED);

	return sector <= capacity && n <= capacity - sector;
}

/* ---- reads and writes ---- */

static bool memory_aligned(const struct blk_disk *d, const struct blk_req *r)
{
	for (uint32_t i = 0; i < r->niov; i++)
		if (((uintptr_t)r->iov[i].iov_base | r->iov[i].iov_len) &
		    (d->mem_align - 1))
			return false;
	return true;
}

/*
 * Past the page cache, if @direct and aligned. A write whose memory alone is
 * not aligned is copied; see ask_alignment().
 */
static void choose_way(const struct blk_disk *d, struct blk_req *r, bool direct)
{
	r->direct = direct && !((r->offset | r->len) & (d->off_align - 1));
	r->copied = false;
	if (!r->direct || memory_aligned(d, r))
		return;
	r->copied = r->step == BLK_WRITE;
	r->direct = r->copied;
}

static bool plan_data(struct blk_disk *d, struct blk_req *r, uint64_t sector)
{
	if (r->len % BLK_SECTOR)
		return refuse(d, r, "a length that is no multiple of 512",
			      r->len);
	if (!in_disk(d, sector, r->len / BLK_SECTOR))
		return refuse(d, r, "a range past the end, from sector",
			      sector);
	if (!r->len)
		return done(r, VIRTIO_BLK_S_OK);
	r->offset = sector * BLK_SECTOR;
	choose_way(d, r, d->direct_fd >= 0);
	return true;
}

static bool plan_read(struct blk_disk *d, struct blk_req *r, uint64_t sector)
{
	struct moat_request *req = r->req;
	struct iovec *last = &req->writable[req->nwritable - 1];

	r->step = BLK_READ;
	r->iov = req->writable;
	r->niov = req->nwritable;
	r->len = req->write_len - 1;
	if (!--last->iov_len)
		r->niov--;
	return plan_data(d, r, sector);
}

static bool plan_write(struct blk_disk *d, struct blk_req *r, uint64_t sector)
{
	struct moat_request *req = r->req;

	if (d->read_only)
		return refuse(d, r, "data for a read-only disk, at sector",
			      sector);
	r->step = BLK_WRITE;
	r->iov = req->readable;
	r->niov = moat_iov_cut(&r->iov, req->nreadable, HEADER);
	r->len = req->read_len - HEADER;
	r->durable = write_through(d);
	return plan_data(d, r, sector);
}

/* ---- discard and write zeroes ---- */

/* Zeroes by hand, where the file system can not: a piece of the range. */
static void write_zeroes(const struct blk_disk *d, struct blk_req *r)
{
	struct blk_range *range = &r->ranges[r->range];
	uint64_t left = range->len;

	r->step = BLK_WRITE;
	r->iov = r->zeroes;
	r->niov = 0;
	r->offset = range->offset;
	r->len = 0;
	while (left && r->niov < BLK_SEGMENTS) {
		size_t part = left < BLK_ZEROES ? (size_t)left : BLK_ZEROES;

		r->zeroes[r->niov++] =
			(struct iovec){ (void *)d->zeroes, part };
		r->len += part;
		left -= part;
	}
	range->offset += r->len;
	range->len = left;
	choose_way(d, r, d->direct_fd >= 0);
}

/* The step for the range at hand; false when there is none left. */
static bool next_range(const struct blk_disk *d, struct blk_req *r)
{
	const struct blk_range *range = &r->ranges[r->range];

	while (r->range < r->nranges && !range->len)
		range = &r->ranges[++r->range];
	if (r->range == r->nranges)
		return false;
	r->offset = range->offset;
	r->len = range->len;
	if (r->type == VIRTIO_BLK_T_DISCARD ||
	    (range->unmap && d->can_discard && !d->is_device))
		r->step = BLK_PUNCH;
	else if (d->can_zero)
		r->step = BLK_ZERO;
	else
		write_zeroes(d, r);
	return true;
}

static bool take_range(struct blk_disk *d, struct blk_req *r,
		       const struct virtio_blk_discard_write_zeroes *s)
{
	uint64_t sector = moat_le64(s->sector), n = moat_le32(s->num_sectors);
	uint32_t flags = moat_le32(s->flags);
	uint32_t known = r->type == VIRTIO_BLK_T_WRITE_ZEROES
				 ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
				 : 0;

	/* virtio 1.4, 5.2.6.2: unknown flags, and unmap in a discard. */
	if (flags & ~known)
		return unsupported(d, r, "segment flags", flags);
	if (n > BLK_RANGE_SECTORS)
		return refuse(d, r, "too many sectors in a segment", n);
	if (!in_disk(d, sector, n))
		return refuse(d, r, "a segment past the end, from sector",
			      sector);
	r->ranges[r->nranges++] = (struct blk_range){
		.offset = sector * BLK_SECTOR,
		.len = n * BLK_SECTOR,
		.unmap = flags,
	};
	return true;
}

static bool plan_ranges(struct blk_disk *d, struct blk_req *r, uint64_t sector)
{
	struct virtio_blk_discard_write_zeroes seg[BLK_SEGMENTS];
	struct moat_request *req = r->req;
	uint64_t len = req->read_len - HEADER;

	(void)sector;
	r->step = BLK_PUNCH;
	if (d->read_only)
		return refuse(d, r, "a read-only disk, bytes", len);
	if (r->type == VIRTIO_BLK_T_DISCARD && !d->can_discard)
		return unsupported(d, r, "bytes of segments", len);
	if (!len || len % sizeof(*seg) || len > sizeof(seg))
		return refuse(d, r, "this many bytes of segments", len);
	moat_iov_read(req->readable, req->nreadable, HEADER, seg, (size_t)len);
	for (uint64_t i = 0; i < len / sizeof(*seg); i++)
		if (!take_range(d, r, &seg[i]))
			return false;
	r->durable = write_through(d);
	return next_range(d, r) || done(r, VIRTIO_BLK_S_OK);
}

/* ---- the others ---- */

static bool plan_flush(struct blk_disk *d, struct blk_req *r, uint64_t sector)
{
	(void)sector;
	r->step = BLK_SYNC;
	if (__atomic_load_n(&d->in_doubt, __ATOMIC_RELAXED))
		__atomic_store_n(&d->in_doubt, false, __ATOMIC_RELAXED);
	return true;
}

static bool plan_id(struct blk_disk *d, struct blk_req *r, uint64_t sector)
{
	struct moat_request *req = r->req;
	size_t room = (size_t)req->write_len - 1;

	(void)sector;
	moat_iov_zero(req->writable, req->nwritable, 0, room);
	moat_iov_write(req->writable, req->nwritable, 0, d->serial,
		       room < sizeof(d->serial) ? room : sizeof(d->serial));
	return done(r, VIRTIO_BLK_S_OK);
}

static bool (*const plans[])(struct blk_disk *, struct blk_req *, uint64_t) = {
	[VIRTIO_BLK_T_IN] = plan_read,
	[VIRTIO_BLK_T_OUT] = plan_write,
	[VIRTIO_BLK_T_FLUSH] = plan_flush,
	[VIRTIO_BLK_T_GET_ID] = plan_id,
	[VIRTIO_BLK_T_DISCARD] = plan_ranges,
	[VIRTIO_BLK_T_WRITE_ZEROES] = plan_ranges,
};

bool blk_plan(struct blk_disk *d, struct moat_request *req)
{
	struct virtio_blk_outhdr h = { 0 };
	struct blk_req *r = req->data;
	const struct iovec *last;

	if (!req->write_len) {
		moat_request_broken(req,
				    "has a request without a writable byte "
				    "for its status; fix the guest's driver");
		return false;
	}
	/* All but the arrays, which are filled as far as they are used. */
	memset(r, 0, offsetof(struct blk_req, ranges));
	last = &req->writable[req->nwritable - 1];
	r->req = req;
	r->status = (uint8_t *)last->iov_base + last->iov_len - 1;
	r->step = BLK_SYNC;
	/* Once: what the checks saw is what is done. */
	if (moat_iov_read(req->readable, req->nreadable, 0, &h, HEADER) !=
	    HEADER) {
		moat_iov_zero(req->writable, req->nwritable, 0,
			      (size_t)req->write_len);
		return refuse(d, r, "a header that is too short",
			      req->read_len);
	}
	r->type = moat_le32(h.type);
	if (r->type != VIRTIO_BLK_T_IN && req->write_len > 1)
		moat_iov_zero(req->writable, req->nwritable, 0,
			      (size_t)req->write_len);
	if (r->type >= sizeof(plans) / sizeof(*plans) || !plans[r->type])
		return unsupported(d, r, "sector", moat_le64(h.sector));
	return plans[r->type](d, r, moat_le64(h.sector));
}

/* ---- results ---- */

/* One line for a cause, however many requests it fails. */
static bool fail(struct blk_disk *d, struct blk_req *r, int err)
{
	static const char *const names[] = {
		[BLK_READ] = "read",	     [BLK_WRITE] = "write",
		[BLK_SYNC] = "flush",	     [BLK_PUNCH] = "discard",
		[BLK_ZERO] = "write zeroes",
	};

	if (__atomic_exchange_n(&d->said, err, __ATOMIC_RELAXED) != err)
		moat_device_log(
			d->log, MOAT_DEVICE_ERROR,
			"%s of %" PRIu64 " bytes at %" PRIu64 " fails: %s; the "
			"guest gets I/O errors until that is mended",
			names[r->step], r->len, r->offset,
			err == ENODATA ? "the file is shorter than the disk"
				       : strerror(err));
	if (r->step == BLK_READ)
		moat_iov_zero(r->iov, r->niov, 0, (size_t)r->len);
	return done(r, VIRTIO_BLK_S_IOERR);
}

/* After the data, or a range: the next range, the flush, or the end. */
static bool go_on(struct blk_disk *d, struct blk_req *r)
{
	r->copied = false;
	if (r->nranges && next_range(d, r))
		return true;
	if (r->durable) {
		r->durable = false;
		r->step = BLK_SYNC;
		return true;
	}
	if (__atomic_load_n(&d->said, __ATOMIC_RELAXED))
		__atomic_store_n(&d->said, 0, __ATOMIC_RELAXED);
	return done(r, VIRTIO_BLK_S_OK);
}

static bool moved(struct blk_disk *d, struct blk_req *r, uint64_t n)
{
	if (!n)
		return fail(d, r, r->step == BLK_READ ? ENODATA : EIO);
	if (n < r->len) {
		r->niov = moat_iov_cut(&r->iov, r->niov, n);
		r->offset += n;
		r->len -= n;
		choose_way(d, r, r->direct);
		return true;
	}
	return go_on(d, r);
}

bool blk_result(struct blk_disk *d, struct blk_req *r, int res)
{
	if (res == -EINTR || res == -EAGAIN)
		return true;
	if (r->step == BLK_READ || r->step == BLK_WRITE) {
		/* The file system refuses what it said it would take. */
		if (res == -EINVAL && r->direct) {
			r->direct = r->copied = false;
			return true;
		}
		return res < 0 ? fail(d, r, -res) : moved(d, r, (uint64_t)res);
	}
	/* A device with larger blocks than the range is aligned to. */
	if (res == -EINVAL && d->is_device && r->step != BLK_SYNC)
		res = -EOPNOTSUPP;
	if (res == -EOPNOTSUPP && r->step == BLK_PUNCH &&
	    r->type == VIRTIO_BLK_T_DISCARD)
		res = 0; /* a discard is advice */
	if (res == -EOPNOTSUPP && r->step != BLK_SYNC) {
		write_zeroes(d, r);
		return true;
	}
	if (res < 0)
		return fail(d, r, -res);
	if (r->nranges && r->step != BLK_SYNC)
		r->ranges[r->range].len = 0;
	return go_on(d, r);
}
