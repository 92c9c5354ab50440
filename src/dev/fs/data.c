/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bytes of open files. The kernel reads and writes guest memory in place.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/uio.h>
#include <unistd.h>

#include "dev/fs/fs.h"
#include "dev/fs/handlers.h"

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 8
#endif

#define LARGE (256u << 10) /* what is worth a second processor */

/* Pieces of @len bytes from @skip on; at most as many as one call takes. */
static int slice(struct iovec *to, const struct iovec *from, uint32_t n,
		 uint64_t skip, uint64_t len)
{
	int k = 0;

	for (; n && len && k < (int)FS_IOV; from++, n--) {
		uint64_t part = from->iov_len;

		if (skip >= part) {
			skip -= part;
			continue;
		}
		part -= skip;
		if (part > len)
			part = len;
		to[k++] = (struct iovec){ (uint8_t *)from->iov_base + skip,
					  (size_t)part };
		len -= part;
		skip = 0;
	}
	return k;
}

/* After less than was asked for: is that the end of the file? */
static bool at_end(int fd, uint64_t offset)
{
	struct stat st;

	return !fstat(fd, &st) && (uint64_t)st.st_size <= offset;
}

/* One system call; as preadv2(2), with a negative errno. */
static ssize_t read_some(struct fs_req *r, struct fs_handle *h,
			 const struct fuse_read_in *in, uint64_t end, bool wait)
{
	struct moat_request *mr = r->mr;
	int n = slice(r->thread->iov, mr->writable, mr->nwritable,
		      FS_REPLY + r->moved, end - r->moved);
	ssize_t got =
		preadv2(h->fd, r->thread->iov, n,
			(off_t)(in->offset + r->moved), wait ? 0 : RWF_NOWAIT);

	return got < 0 ? -errno : got;
}

/* The second half of a large read is offered; its begin, or else its end. */
static uint64_t offer_half(struct fs_req *r, struct fs_handle *h,
			   const struct fuse_read_in *in, bool wait)
{
	struct fs_worker *w = r->thread->worker;
	/* As far as O_DIRECT goes, which takes whole sectors. */
	uint64_t mid = in->size / 2 & ~UINT64_C(4095);

	if (!w || in->size < 2 * LARGE || r->moved)
		return in->size;
	w->half.fd = h->fd;
	w->half.flags = wait ? 0 : RWF_NOWAIT;
	w->half.offset = (off_t)(in->offset + mid);
	w->half.n = slice(w->half.iov, r->mr->writable, r->mr->nwritable,
			  FS_REPLY + mid, in->size - mid);
	return fs_defer_offer(r->fs, &w->half) ? mid : in->size;
}

/* 0 at the end, FS_DEFER where one would have to wait. */
static int read_up_to(struct fs_req *r, struct fs_handle *h,
		      const struct fuse_read_in *in, uint64_t end, bool wait)
{
	while (r->moved < end) {
		ssize_t got = read_some(r, h, in, end, wait);

		if (got == -EINTR)
			continue;
		if (!wait && got == -EOPNOTSUPP)
			__atomic_store_n(&h->slow, true, __ATOMIC_RELAXED);
		if (!wait && (got == -EOPNOTSUPP || got == -EAGAIN))
			return FS_DEFER;
		/* What has come is not lost for what has not. */
		if (got < 0)
			return r->moved ? 0 : (int)got;
		if (!got)
			return 0;
		r->moved += (uint64_t)got;
		if (r->moved < end && at_end(h->fd, in->offset + r->moved))
			return 0;
	}
	return 0;
}

static int read_all(struct fs_req *r, struct fs_handle *h,
		    const struct fuse_read_in *in)
{
	bool wait = fs_may_block(r) || r->fs->in_memory;
	uint64_t mid;
	int ret;

	if (!wait && __atomic_load_n(&h->slow, __ATOMIC_RELAXED))
		return FS_DEFER;
	if (in->size >= LARGE && fs_defer_helps(r))
		return FS_DEFER;
	mid = offer_half(r, h, in, wait);
	ret = read_up_to(r, h, in, mid, wait);
	if (mid == in->size)
		return ret;
	/* What follows a gap is nothing. */
	if (fs_defer_collect(r->fs, &r->thread->worker->half) && !ret &&
	    r->moved == mid && r->thread->worker->half.got > 0)
		r->moved += (uint64_t)r->thread->worker->half.got;
	if (ret || r->moved < mid)
		return ret;
	return read_up_to(r, h, in, in->size, wait);
}

int fs_op_read(struct fs_req *r)
{
	const struct fuse_read_in *in = fs_req_args(r);
	struct fs_handle *h;
	int ret;

	if (in->size > fs_req_room(r) ||
	    in->offset > (uint64_t)INT64_MAX - in->size)
		return -EINVAL;
	h = fs_handle_get(r->fs, in->fh, r->in.nodeid);
	if (!h)
		return -EBADF;
	fs_dax_sync(r->fs, h->node);
	ret = h->node->type == S_IFREG ? read_all(r, h, in) : -EISDIR;
	fs_handle_put(r->fs, h);
	if (!ret)
		r->out = (uint32_t)r->moved;
	return ret;
}

/* After a change: mapped data follows, before the guest hears of it. */
static int show(struct fs *fs, struct fs_node *node, int ret)
{
	struct statx sx;

	if (!__atomic_load_n(&node->ranges, __ATOMIC_RELAXED))
		return ret;
	fs_dax_sync(fs, node);
	if (fs_node_pin(fs, node))
		return ret ? ret : -EIO;
	if (fs_node_stat(fs, node, &sx) && !ret)
		ret = -EIO;
	fs_node_unpin(fs, node);
	return ret;
}

static int write_all(struct fs_req *r, int fd, const struct fuse_write_in *in,
		     uint64_t skip)
{
	struct moat_request *mr = r->mr;

	while (r->moved < in->size) {
		int n = slice(r->thread->iov, mr->readable, mr->nreadable,
			      skip + r->moved, in->size - r->moved);
		ssize_t put = pwritev2(fd, r->thread->iov, n,
				       (off_t)(in->offset + r->moved), 0);

		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0)
			return r->moved ? 0 : -errno;
		if (!put)
			return r->moved ? 0 : -EIO;
		r->moved += (uint64_t)put;
	}
	return 0;
}

/*
 * Pages that the guest's kernel writes back (of a shared mapping) belong where
 * they say, whatever file is at hand for it. Linux appends, wherever a write to
 * a file that is open so would go.
 */
static int write_back(struct fs_req *r, struct fs_handle *h,
		      const struct fuse_write_in *in, uint64_t skip)
{
	int fd = fs_node_pin(r->fs, h->node), ret;

	if (fd)
		return fd;
	fd = fs_node_open(r->fs, h->node, h->flags & ~(O_APPEND | O_TRUNC));
	fs_node_unpin(r->fs, h->node);
	if (fd < 0)
		return fd;
	ret = write_all(r, fd, in, skip);
	close(fd);
	return ret;
}

static int write_to(struct fs_req *r, struct fs_handle *h,
		    const struct fuse_write_in *in, uint64_t skip)
{
	if (h->flags & O_APPEND && in->write_flags & FUSE_WRITE_CACHE)
		return write_back(r, h, in, skip);
	return write_all(r, h->fd, in, skip);
}

int fs_op_write(struct fs_req *r)
{
	const struct fuse_write_in *in = fs_req_args(r);
	uint64_t skip = FS_HEADER + sizeof(*in);
	struct fuse_write_out out = { 0 };
	struct fs_handle *h;
	int ret;

	if (in->size > r->mr->read_len - skip ||
	    in->offset > (uint64_t)INT64_MAX - in->size ||
	    fs_req_room(r) < sizeof(out))
		return -EINVAL;
	h = fs_handle_get(r->fs, in->fh, r->in.nodeid);
	if (!h)
		return -EBADF;
	if (h->flags & (O_SYNC | O_DSYNC | O_DIRECT) && !fs_may_block(r)) {
		ret = FS_DEFER;
	} else {
		fs_fsetid(r, h->node,
			  !(in->write_flags & FUSE_WRITE_KILL_SUIDGID));
		fs_dax_sync(r->fs, h->node);
		ret = write_to(r, h, in, skip);
		ret = show(r->fs, h->node, ret);
	}
	fs_handle_put(r->fs, h);
	if (ret)
		return ret;
	out.size = (uint32_t)r->moved;
	return fs_req_put(r, &out, sizeof(out));
}

/*
 * Does a change of data leave set-user-ID bits? Other requests say so; these
 * have but their user, whom the guest may not have told.
 */
static bool keeps_bits(const struct fs_req *r)
{
	return !r->in.uid || !(fs_flags(r->fs) & FUSE_HANDLE_KILLPRIV_V2);
}

int fs_op_fallocate(struct fs_req *r)
{
	const struct fuse_fallocate_in *in = fs_req_args(r);
	struct fs_handle *h;
	int ret;

	if (in->offset > INT64_MAX || in->length > INT64_MAX)
		return -EINVAL;
	h = fs_handle_get(r->fs, in->fh, r->in.nodeid);
	if (!h)
		return -EBADF;
	fs_fsetid(r, h->node, keeps_bits(r));
	fs_dax_sync(r->fs, h->node);
	ret = fallocate(h->fd, (int)in->mode, (off_t)in->offset,
			(off_t)in->length)
		      ? -errno
		      : 0;
	ret = show(r->fs, h->node, ret);
	fs_handle_put(r->fs, h);
	return ret;
}

int fs_op_lseek(struct fs_req *r)
{
	const struct fuse_lseek_in *in = fs_req_args(r);
	struct fuse_lseek_out out;
	struct fs_handle *h;
	off_t at;

	/* Others the guest answers itself; a directory's place is readdir's. */
	if (in->whence != SEEK_DATA && in->whence != SEEK_HOLE)
		return -EINVAL;
	h = fs_handle_get(r->fs, in->fh, r->in.nodeid);
	if (!h)
		return -EBADF;
	/* What the guest has just stored is no hole. */
	fs_dax_sync(r->fs, h->node);
	at = h->node->type == S_IFREG
		     ? lseek(h->fd, (off_t)in->offset, (int)in->whence)
		     : -1;
	if (at < 0)
		at = h->node->type == S_IFREG ? -errno : -EISDIR;
	fs_handle_put(r->fs, h);
	if (at < 0)
		return (int)at;
	out.offset = (uint64_t)at;
	return fs_req_put(r, &out, sizeof(out));
}

int fs_op_copy_file_range(struct fs_req *r)
{
	const struct fuse_copy_file_range_in *in = fs_req_args(r);
	off_t from = (off_t)in->off_in, to = (off_t)in->off_out;
	struct fuse_write_out out = { 0 };
	struct fs_handle *a, *b;
	ssize_t n = -EBADF;

	if (from < 0 || to < 0 || in->flags)
		return -EINVAL;
	a = fs_handle_get(r->fs, in->fh_in, r->in.nodeid);
	b = fs_handle_get(r->fs, in->fh_out, in->nodeid_out);
	if (a && b) {
		/* The answer has 32 bits. */
		size_t len = in->len < INT32_MAX ? (size_t)in->len : INT32_MAX;

		fs_fsetid(r, b->node, keeps_bits(r));
		fs_dax_sync(r->fs, a->node);
		fs_dax_sync(r->fs, b->node);
		n = copy_file_range(a->fd, &from, b->fd, &to, len, 0);
		if (n < 0)
			n = -errno;
		if (show(r->fs, b->node, 0))
			n = -EIO;
	}
	if (a)
		fs_handle_put(r->fs, a);
	if (b)
		fs_handle_put(r->fs, b);
	if (n < 0)
		return (int)n;
	out.size = (uint32_t)n;
	return fs_req_put(r, &out, sizeof(out));
}
