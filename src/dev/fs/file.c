/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Open files, from OPEN or CREATE to RELEASE.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "dev/fs/fs.h"
#include "dev/fs/handlers.h"
#include "dev/fs/notify.h"

/* What of open(2)'s flags is the host's matter. */
#define FLAGS                                                            \
	(O_ACCMODE | O_APPEND | O_TRUNC | O_SYNC | O_DSYNC | O_NOATIME | \
	 O_DIRECT)

static int host_flags(const struct fs_req *r, uint32_t guest)
{
	const struct fs_options *o = r->fs->opt;
	int flags = (int)guest & FLAGS;

	if (!o->direct_io)
		flags &= ~O_DIRECT;
	/*
	 * With a write-back cache the guest reads pages that it writes to, and
	 * has itself decided where the end is.
	 */
	if (fs_flags(r->fs) & FUSE_WRITEBACK_CACHE) {
		if ((flags & O_ACCMODE) == O_WRONLY)
			flags = (flags & ~O_ACCMODE) | O_RDWR;
		flags &= ~O_APPEND;
	}
	return flags;
}

static bool writes(int flags)
{
	return (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;
}

static uint32_t open_flags(const struct fs_req *r, bool dir)
{
	switch (r->fs->opt->cache) {
	case FS_CACHE_ALWAYS:
		return FOPEN_KEEP_CACHE | (dir ? FOPEN_CACHE_DIR : 0);
	case FS_CACHE_META:
		return dir ? FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR
			   : FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
	case FS_CACHE_NEVER:
		return dir ? 0 : FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
	case FS_CACHE_AUTO:
		break;
	}
	return 0;
}

static int reply_open(struct fs_req *r, struct fs_node *node, int fd, int flags)
{
	struct fuse_open_out out = {
		.open_flags = open_flags(r, node->type == S_IFDIR),
	};
	int ret;

	if (fs_req_room(r) < sizeof(out)) {
		close(fd);
		return -ERANGE;
	}
	ret = fs_handle_new(r->fs, node, fd, flags, &out.fh);
	return ret ? ret : fs_req_put(r, &out, sizeof(out));
}

/* The guest may know its size already, and go on to map it. */
static int open_as_it_is(struct fs_req *r, struct fs_node *node, int flags)
{
	int fd = fs_node_open(r->fs, node, flags);
	int ret = fd < 0 ? 0 : fs_dax_opened(r->fs, node, fd);

	if (!ret)
		return fd;
	close(fd);
	return ret;
}

/* An open of a node; @kill: set-user-ID bits go if it is cut. */
static int open_node(struct fs_req *r, struct fs_node *node, int flags,
		     bool kill)
{
	struct statx sx;
	int fd;

	if (node->type != S_IFREG)
		return node->type == S_IFDIR ? -EISDIR : -EINVAL;
	if (r->fs->opt->read_only && writes(flags))
		return -EROFS;
	if (!(flags & O_TRUNC))
		return open_as_it_is(r, node, flags);
	if (kill && !fs_statx(node->fd, &sx))
		fs_node_seen(node, &sx);
	fs_fsetid(r, node, !kill);
	fs_dax_sync(r->fs, node);
	/* It is the guest that makes it shorter: nothing is to be unmapped. */
	fs_dax_expect(node, 0);
	fd = fs_node_open(r->fs, node, flags);
	fs_dax_sync(r->fs, node);
	return fd;
}

int fs_op_open(struct fs_req *r)
{
	const struct fuse_open_in *in = fs_req_args(r);
	struct fs_node *node = fs_node_get(r->fs, r->in.nodeid);
	int flags = host_flags(r, in->flags), ret;
	/*
	 * Somebody on the host may have leased it: then the kernel waits until
	 * they let go. The flag has no meaning for an open file.
	 */
	int wait = fs_may_block(r) ? 0 : O_NONBLOCK;

	if (!node)
		return -ESTALE;
	ret = open_node(r, node, flags | wait,
			in->open_flags & FUSE_OPEN_KILL_SUIDGID);
	if (ret == -EAGAIN && wait)
		ret = FS_DEFER;
	else if (ret >= 0)
		ret = reply_open(r, node, ret, flags);
	fs_node_put(r->fs, node);
	return ret;
}

int fs_op_opendir(struct fs_req *r)
{
	struct fs_node *node = fs_node_get(r->fs, r->in.nodeid);
	int ret;

	if (!node)
		return -ESTALE;
	fs_notify_watch(r->fs, node);
	ret = node->type == S_IFDIR
		      ? fs_node_open(r->fs, node, O_RDONLY | O_DIRECTORY)
		      : -ENOTDIR;
	if (ret >= 0)
		ret = reply_open(r, node, ret, O_RDONLY);
	fs_node_put(r->fs, node);
	return ret;
}

/* ---- CREATE and TMPFILE ---- */

static int reply_created(struct fs_req *r, struct fs_node *dir, int fd,
			 int flags)
{
	struct fuse_entry_out out;
	struct fs_node *node;
	int ret = fs_enter(r->fs, dir, fd, &node, &out);

	if (ret) {
		close(fd);
		return ret;
	}
	fs_req_put(r, &out, sizeof(out));
	ret = reply_open(r, node, fd, flags);
	if (ret)
		fs_node_forget(r->fs, out.nodeid, 1);
	fs_node_drop(r->fs, node);
	return ret;
}

/*
 * The name is there already, and may be: it is looked up and opened.
 *
 * But the guest did not see it, and so asked nobody whether this user may. On
 * -ESTALE it looks again, does ask, and opens it (Linux, with LOOKUP_REVAL);
 * so it does where somebody has leased the file, as OPEN can wait.
 */
static int open_existing(struct fs_req *r, struct fs_node *dir,
			 const char *name, int flags)
{
	const struct fuse_create_in *in = fs_req_args(r);
	struct fuse_entry_out out;
	struct fs_node *node;
	int ret = r->in.uid ? -ESTALE : fs_lookup(r->fs, dir, name, 0, &out);

	if (ret)
		return ret;
	node = fs_node_get(r->fs, out.nodeid);
	ret = node ? open_node(r, node, flags | O_NONBLOCK,
			       in->open_flags & FUSE_OPEN_KILL_SUIDGID)
		   : -ESTALE;
	if (ret == -EAGAIN)
		ret = -ESTALE;
	if (ret >= 0) {
		fs_req_put(r, &out, sizeof(out));
		ret = reply_open(r, node, ret, flags);
	}
	if (ret)
		fs_node_forget(r->fs, out.nodeid, 1);
	if (node)
		fs_node_put(r->fs, node);
	return ret;
}

static int create_in(struct fs_req *r, struct fs_node *dir, const char *name,
		     int how)
{
	const struct fuse_create_in *in = fs_req_args(r);
	int flags = host_flags(r, in->flags), ret, fd = -1;

	if (fs_req_room(r) <
	    sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out))
		return -ERANGE;
	fs_notify_watch(r->fs, dir);
	ret = fs_become(r, in->umask);
	if (!ret) {
		fd = openat(dir->fd, name, (flags & ~O_TRUNC) | how | O_CLOEXEC,
			    in->mode & 07777);
		ret = fd < 0 ? -errno : 0;
	}
	fs_become_self(r);
	if (!ret)
		return reply_created(r, dir, fd, flags);
	/* Whoever made it may do with it what its mode does not let others. */
	if (ret == -EEXIST && how & O_CREAT && !(in->flags & O_EXCL))
		return open_existing(r, dir, name, flags);
	return ret;
}

int fs_op_create(struct fs_req *r)
{
	const char *name = fs_req_name(r, 0);
	struct fs_node *dir;
	int ret;

	if (!fs_name_ok(name))
		return -EINVAL;
	dir = fs_node_get(r->fs, r->in.nodeid);
	if (!dir)
		return -ESTALE;
	ret = create_in(r, dir, name, O_CREAT | O_EXCL | O_NOFOLLOW);
	fs_node_put(r->fs, dir);
	return ret;
}

int fs_op_tmpfile(struct fs_req *r)
{
	const struct fuse_create_in *in = fs_req_args(r);
	struct fs_node *dir = fs_node_get(r->fs, r->in.nodeid);
	int how = O_TMPFILE, ret;

	if (!dir)
		return -ESTALE;
	if (in->flags & O_EXCL)
		how |= O_EXCL; /* it shall never have a name */
	ret = dir->type == S_IFDIR ? create_in(r, dir, ".", how) : -ENOTDIR;
	fs_node_put(r->fs, dir);
	return ret;
}

/* ---- FLUSH, RELEASE, and what makes data durable ---- */

int fs_op_flush(struct fs_req *r)
{
	const struct fuse_flush_in *in = fs_req_args(r);
	struct fs_handle *h = fs_handle_get(r->fs, in->fh, r->in.nodeid);
	int fd, ret;

	if (!h)
		return -EBADF;
	if (fs_flags(r->fs) & FUSE_POSIX_LOCKS)
		fs_lock_release(r->fs, h->node, in->lock_owner);
	ret = fs_dax_flush(r->fs, h->node);
	/* Some file systems have errors to tell only when a file is closed. */
	fd = fcntl(h->fd, F_DUPFD_CLOEXEC, 0);
	/* Without a descriptor to spare the last close tells nobody. */
	if (fd >= 0 && close(fd))
		ret = -errno;
	fs_handle_put(r->fs, h);
	return ret;
}

int fs_op_release(struct fs_req *r)
{
	const struct fuse_release_in *in = fs_req_args(r);
	struct fs_node *node = fs_node_get(r->fs, r->in.nodeid);

	if (node && in->release_flags & FUSE_RELEASE_FLOCK_UNLOCK)
		fs_lock_release(r->fs, node, in->lock_owner);
	if (node)
		fs_node_put(r->fs, node);
	return fs_handle_close(r->fs, in->fh, r->in.nodeid);
}

int fs_op_fsync(struct fs_req *r)
{
	const struct fuse_fsync_in *in = fs_req_args(r);
	struct fs_handle *h = fs_handle_get(r->fs, in->fh, r->in.nodeid);
	bool failed;
	int ret;

	if (!h)
		return -EBADF;
	ret = fs_dax_flush(r->fs, h->node);
	failed = in->fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(h->fd)
							: fsync(h->fd);
	if (failed)
		ret = -errno;
	fs_handle_put(r->fs, h);
	return ret;
}

int fs_op_syncfs(struct fs_req *r)
{
	struct fs_node *node = fs_node_get(r->fs, r->in.nodeid);
	int fd, ret;

	if (!node)
		return -ESTALE;
	fs_dax_sync_all(r->fs);
	fd = node->type == S_IFDIR
		     ? fs_node_open(r->fs, node, O_RDONLY | O_DIRECTORY)
		     : -EINVAL;
	ret = fd < 0 ? fd : syncfs(fd) ? -errno : 0;
	if (fd >= 0)
		close(fd);
	fs_node_put(r->fs, node);
	return ret;
}
