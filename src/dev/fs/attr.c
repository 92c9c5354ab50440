/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "dev/fs/fs.h"
#include "dev/fs/handlers.h"

int fs_statx(int fd, struct statx *sx)
{
	return statx(fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, FS_STATX_MASK,
		     sx)
		       ? -errno
		       : 0;
}

int fs_node_stat(struct fs *fs, struct fs_node *node, struct statx *sx)
{
	int ret = fs_statx(node->fd, sx);

	if (!ret)
		fs_node_seen(node, sx);
	return ret ? ret : fs_dax_cover(fs, node, sx->stx_size);
}

void fs_attr(const struct fs *fs, const struct statx *sx, struct fuse_attr *a)
{
	*a = (struct fuse_attr){
		.ino = sx->stx_ino,
		.size = sx->stx_size,
		.blocks = sx->stx_blocks,
		.atime = (uint64_t)sx->stx_atime.tv_sec,
		.mtime = (uint64_t)sx->stx_mtime.tv_sec,
		.ctime = (uint64_t)sx->stx_ctime.tv_sec,
		.atimensec = sx->stx_atime.tv_nsec,
		.mtimensec = sx->stx_mtime.tv_nsec,
		.ctimensec = sx->stx_ctime.tv_nsec,
		.mode = sx->stx_mode,
		.nlink = sx->stx_nlink,
		.uid = fs_uid_to_guest(fs, sx->stx_uid),
		.gid = fs_gid_to_guest(fs, sx->stx_gid),
		/* As the kernel encodes it: new_encode_dev(). */
		.rdev = (sx->stx_rdev_minor & 0xff) | sx->stx_rdev_major << 8 |
			(sx->stx_rdev_minor & ~0xffu) << 12,
		.blksize = sx->stx_blksize,
	};
}

static int put_attr(struct fs_req *r, const struct statx *sx)
{
	struct fuse_attr_out out = { .attr_valid = fs_valid(r->fs) };

	fs_attr(r->fs, sx, &out.attr);
	return fs_req_put(r, &out, sizeof(out));
}

/* Of the request's node, in either form. */
static int reply_stat(struct fs_req *r,
		      int (*put)(struct fs_req *r, const struct statx *sx))
{
	struct fs_node *node = fs_node_get(r->fs, r->in.nodeid);
	struct statx sx;
	int ret;

	if (!node)
		return -ESTALE;
	ret = fs_node_stat(r->fs, node, &sx);
	fs_node_put(r->fs, node);
	return ret ? ret : put(r, &sx);
}

int fs_op_getattr(struct fs_req *r)
{
	return reply_stat(r, put_attr);
}

static struct fs_sx_time sx_time(struct statx_timestamp t)
{
	return (struct fs_sx_time){ .tv_sec = t.tv_sec, .tv_nsec = t.tv_nsec };
}

static int put_statx(struct fs_req *r, const struct statx *sx)
{
	struct fuse_attr a;
	struct fs_statx_out out = { .attr_valid = fs_valid(r->fs) };

	fs_attr(r->fs, sx, &a);
	out.stat.mask = sx->stx_mask & (STATX_BASIC_STATS | STATX_BTIME);
	out.stat.blksize = a.blksize;
	out.stat.attributes = sx->stx_attributes;
	out.stat.attributes_mask = sx->stx_attributes_mask;
	out.stat.nlink = a.nlink;
	out.stat.uid = a.uid;
	out.stat.gid = a.gid;
	out.stat.mode = sx->stx_mode;
	out.stat.ino = a.ino;
	out.stat.size = a.size;
	out.stat.blocks = a.blocks;
	out.stat.atime = sx_time(sx->stx_atime);
	out.stat.btime = sx_time(sx->stx_btime);
	out.stat.ctime = sx_time(sx->stx_ctime);
	out.stat.mtime = sx_time(sx->stx_mtime);
	out.stat.rdev_major = sx->stx_rdev_major;
	out.stat.rdev_minor = sx->stx_rdev_minor;
	out.stat.dev_major = sx->stx_dev_major;
	out.stat.dev_minor = sx->stx_dev_minor;
	return fs_req_put(r, &out, sizeof(out));
}

int fs_op_statx(struct fs_req *r)
{
	return reply_stat(r, put_statx);
}

/* ---- SETATTR ---- */

static int set_owner(struct fs_req *r, const struct fs_node *node,
		     const struct fuse_setattr_in *in)
{
	uint32_t uid = UINT32_MAX, gid = UINT32_MAX; /* as it is */
	int ret = 0;

	if (in->valid & FATTR_UID)
		ret = fs_uid_to_host(r->fs, in->uid, &uid);
	if (!ret && in->valid & FATTR_GID)
		ret = fs_gid_to_host(r->fs, in->gid, &gid);
	if (ret)
		return ret;
	/* The kernel clears the bits by itself, but for who may keep one. */
	fs_fsetid(r, node, !r->in.uid);
	return fchownat(node->fd, "", uid, gid,
			AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW)
		       ? -errno
		       : 0;
}

/*
 * By a descriptor: whoever has leased the file on the host would have
 * truncate() wait until they let go.
 */
static int truncate_node(struct fs_req *r, const struct fs_node *node,
			 off_t size)
{
	bool wait = fs_may_block(r);
	int fd = fs_node_open(r->fs, node, O_WRONLY | (wait ? 0 : O_NONBLOCK));
	int ret;

	if (fd < 0)
		return fd == -EAGAIN && !wait ? FS_DEFER : fd;
	ret = ftruncate(fd, size) ? -errno : 0;
	close(fd);
	return ret;
}

static int set_size(struct fs_req *r, struct fs_node *node,
		    const struct fuse_setattr_in *in)
{
	struct fs_handle *h;
	struct statx sx;
	int ret;

	if (node->type != S_IFREG)
		return node->type == S_IFDIR ? -EISDIR : -EINVAL;
	if (in->size > INT64_MAX)
		return -EFBIG;
	/* What came before may have changed it. */
	if (in->valid & FATTR_KILL_SUIDGID && !fs_statx(node->fd, &sx))
		fs_node_seen(node, &sx);
	fs_fsetid(r, node, !(in->valid & FATTR_KILL_SUIDGID));
	if (!(in->valid & FATTR_FH))
		return truncate_node(r, node, (off_t)in->size);
	h = fs_handle_get(r->fs, in->fh, r->in.nodeid);
	if (!h)
		return -EBADF;
	ret = ftruncate(h->fd, (off_t)in->size) ? -errno : 0;
	fs_handle_put(r->fs, h);
	return ret;
}

static struct timespec time_of(uint32_t valid, uint32_t set, uint32_t now,
			       uint64_t sec, uint32_t nsec)
{
	struct timespec t = { .tv_nsec = UTIME_OMIT };

	if (valid & now)
		t.tv_nsec = UTIME_NOW;
	else if (valid & set)
		t = (struct timespec){ (time_t)sec, nsec };
	return t;
}

static int set_times(const struct fs_node *node,
		     const struct fuse_setattr_in *in)
{
	struct timespec t[2] = {
		time_of(in->valid, FATTR_ATIME, FATTR_ATIME_NOW, in->atime,
			in->atimensec),
		time_of(in->valid, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime,
			in->mtimensec),
	};

	/* Or a number could mean "now", which it does not say. */
	if (in->atimensec > 999999999 || in->mtimensec > 999999999)
		return -EINVAL;
	return utimensat(node->fd, "", t, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW)
		       ? -errno
		       : 0;
}

/* In this order: a change of the owner clears mode bits. */
static int set_attr(struct fs_req *r, struct fs_node *node,
		    const struct fuse_setattr_in *in)
{
	uint32_t v = in->valid;
	char name[16];
	int ret = 0;

	if (v & (FATTR_UID | FATTR_GID))
		ret = set_owner(r, node, in);
	if (!ret && v & FATTR_MODE) {
		fs_fsetid(r, node, true);
		if (node->type == S_IFLNK)
			ret = -EOPNOTSUPP;
		else if (chmod(fs_fd_name(node->fd, name), in->mode & 07777))
			ret = -errno;
	}
	if (!ret && v & FATTR_SIZE)
		ret = set_size(r, node, in);
	if (!ret && v & (FATTR_ATIME | FATTR_MTIME))
		ret = set_times(node, in);
	return ret;
}

int fs_op_setattr(struct fs_req *r)
{
	const struct fuse_setattr_in *in = fs_req_args(r);
	struct fs_node *node = fs_node_get(r->fs, r->in.nodeid);
	struct statx sx;
	int ret;

	if (!node)
		return -ESTALE;
	fs_dax_sync(r->fs, node);
	if (in->valid & FATTR_SIZE)
		fs_dax_expect(node, in->size);
	ret = set_attr(r, node, in);
	fs_dax_sync(r->fs, node);
	if (!ret)
		ret = fs_node_stat(r->fs, node, &sx);
	fs_node_put(r->fs, node);
	return ret ? ret : put_attr(r, &sx);
}

/* ---- others ---- */

int fs_op_statfs(struct fs_req *r)
{
	struct fs_node *node = fs_node_get(r->fs, r->in.nodeid);
	struct fuse_statfs_out out = { 0 };
	struct statfs s;
	int ret;

	if (!node)
		return -ESTALE;
	ret = fstatfs(node->fd, &s) ? -errno : 0;
	fs_node_put(r->fs, node);
	if (ret)
		return ret;
	out.st = (struct fuse_kstatfs){
		.blocks = s.f_blocks,
		.bfree = s.f_bfree,
		.bavail = s.f_bavail,
		.files = s.f_files,
		.ffree = s.f_ffree,
		.bsize = (uint32_t)s.f_bsize,
		.namelen = (uint32_t)s.f_namelen,
		.frsize = (uint32_t)s.f_frsize,
	};
	return fs_req_put(r, &out, sizeof(out));
}

/* The guest checks rights itself, but may ask. */
int fs_op_access(struct fs_req *r)
{
	const struct fuse_access_in *in = fs_req_args(r);
	struct fs_node *node = fs_node_get(r->fs, r->in.nodeid);
	uint32_t mask = in->mask & (R_OK | W_OK | X_OK), mode;
	struct fuse_attr a;
	struct statx sx;
	int ret;

	if (!node)
		return -ESTALE;
	ret = fs_statx(node->fd, &sx);
	fs_node_put(r->fs, node);
	if (ret)
		return ret;
	if (mask & W_OK && r->fs->opt->read_only)
		return -EROFS;
	fs_attr(r->fs, &sx, &a);
	mode = a.mode;
	if (!r->in.uid)
		mode = S_ISDIR(mode) || mode & 0111 ? 7 : 6;
	else if (r->in.uid == a.uid)
		mode >>= 6;
	else if (r->in.gid == a.gid)
		mode >>= 3;
	return mask & ~mode ? -EACCES : 0;
}
