/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One FUSE message (virtio 1.4, 5.11.6):
 *
 *     readable   fuse_in_header | structure, names | extensions | data
 *     writable   fuse_out_header | answer
 *
 * All but data is copied out of guest memory, once, and checked there.
 */
#include <errno.h>
#include <string.h>

#include "dev/fs/fs.h"

bool fs_req_begin(struct fs_req *r, struct fs *fs, struct moat_request *mr)
{
	memset(r, 0, sizeof(*r));
	r->mr = mr;
	r->fs = fs;
	if (moat_iov_read(mr->readable, mr->nreadable, 0, &r->in, FS_HEADER) !=
	    FS_HEADER) {
		moat_device_log(fs->log, MOAT_DEVICE_ERROR,
				"queue %u: request of %llu bytes, which are no "
				"FUSE header: dropped; fix the guest's driver",
				mr->queue, (unsigned long long)mr->read_len);
		return false;
	}
	r->op = fs_op(r->in.opcode);
	return true;
}

/* The names that the opcode has, each with its NUL; what follows is a blob. */
static int check_names(const struct fs_req *r)
{
	const uint8_t *p = r->thread->args + r->fixed;
	size_t left = r->nargs - r->fixed;

	for (unsigned int i = 0; i < r->op->names; i++) {
		const uint8_t *nul = memchr(p, 0, left);

		if (!nul)
			return -EINVAL;
		left -= (size_t)(nul + 1 - p);
		p = nul + 1;
	}
	return left && r->op->names && !r->op->blob ? -EINVAL : 0;
}

/* SETXATTR alone has a structure whose size was agreed. */
static uint32_t structure_size(const struct fs_req *r)
{
	uint64_t flags = fs_flags(r->fs);

	if (r->in.opcode == FUSE_SETXATTR && !(flags & FUSE_SETXATTR_EXT))
		return FUSE_COMPAT_SETXATTR_IN_SIZE;
	return r->op->size;
}

static int copy_args(struct fs_req *r, uint32_t len)
{
	struct fs_thread *t = r->thread;
	uint32_t size = structure_size(r), least = size;
	bool more = r->op->names || r->op->blob;

	if (r->op->least)
		least = r->op->least;
	if (len < least)
		return -EINVAL;
	/* What is longer than we know it is of a later protocol. */
	r->fixed = size;
	r->nargs = len > size && !more ? size : len;
	if (r->nargs > FS_ARGS_MAX)
		return -E2BIG;
	if (r->nargs < size)
		memset(t->args + r->nargs, 0, size - r->nargs);
	moat_iov_read(r->mr->readable, r->mr->nreadable, FS_HEADER, t->args,
		      r->nargs);
	t->args[r->nargs < size ? size : r->nargs] = 0;
	return more ? check_names(r) : 0;
}

int fs_req_parse(struct fs_req *r)
{
	uint32_t len = r->in.len, ext = r->in.total_extlen * 8u;

	if (r->resumed) {
		memcpy(r->thread->args, r->saved, r->op->size);
		return 0;
	}
	if (len < FS_HEADER || len > r->mr->read_len || ext > len - FS_HEADER ||
	    ext > FS_EXT_MAX)
		return -EINVAL;
	r->ext = ext;
	if (ext)
		moat_iov_read(r->mr->readable, r->mr->nreadable, len - ext,
			      r->thread->ext, ext);
	return copy_args(r, len - FS_HEADER - ext);
}

const char *fs_req_name(const struct fs_req *r, unsigned int n)
{
	const char *p = (const char *)r->thread->args + r->fixed;

	while (n--)
		p += strlen(p) + 1;
	return p;
}

uint64_t fs_req_room(const struct fs_req *r)
{
	uint64_t used = FS_REPLY + (uint64_t)r->out;

	return r->mr->write_len > used ? r->mr->write_len - used : 0;
}

int fs_req_put(struct fs_req *r, const void *data, uint32_t len)
{
	if (len > fs_req_room(r))
		return -ERANGE;
	moat_iov_write(r->mr->writable, r->mr->nwritable, FS_REPLY + r->out,
		       data, len);
	r->out += len;
	return 0;
}

void fs_req_finish(struct fs_req *r, int error)
{
	struct fuse_out_header h = { .unique = r->in.unique, .error = error };
	struct moat_request *mr = r->mr;

	if (error == FS_NO_REPLY || (r->op && r->op->no_reply) ||
	    mr->write_len < FS_REPLY) {
		moat_request_done(mr, 0);
		return;
	}
	h.len = FS_REPLY + (error ? 0 : r->out);
	if (r->notify)
		h.error = r->notify;
	moat_iov_write(mr->writable, mr->nwritable, 0, &h, FS_REPLY);
	moat_request_done(mr, h.len);
}
