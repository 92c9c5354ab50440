/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From names to nodes. A name is one component, below a directory's descriptor;
 * "..", "/" and the like never reach the kernel.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "dev/fs/fs.h"
#include "dev/fs/handlers.h"
#include "dev/fs/notify.h"

bool fs_name_ok(const char *name)
{
	return *name && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
	       !strchr(name, '/');
}

/* Even if a name were none after all, this would not lead out. */
static int open_path(const struct fs_node *dir, const char *name)
{
	struct open_how how = {
		.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
	};
	long fd;

	do
		fd = syscall(SYS_openat2, dir->fd, name, &how, sizeof(how));
	while (fd < 0 && errno == EAGAIN);
	return fd < 0 ? -errno : (int)fd;
}

static void fill_entry(const struct fs *fs, const struct fs_node *dir,
		       const struct fs_node *node, const struct statx *sx,
		       struct fuse_entry_out *out)
{
	uint64_t valid = fs_valid(fs);

	*out = (struct fuse_entry_out){
		.nodeid = fs_slot_id(&node->slot),
		.entry_valid = valid,
		.attr_valid = valid,
	};
	fs_attr(fs, sx, &out->attr);
	if (fs_flags(fs) & FUSE_SUBMOUNTS && node->type == S_IFDIR &&
	    node->mount != dir->mount)
		out->attr.flags = FUSE_ATTR_SUBMOUNT;
}

/* What the guest knows need not be opened to be found. */
static int look_known(struct fs *fs, const struct fs_node *dir,
		      const char *name, struct statx *sx, struct fs_node **node)
{
	if (statx(dir->fd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT,
		  FS_STATX_MASK, sx))
		return -errno;
	*node = fs_node_known(fs, sx);
	return 0;
}

static int look_new(struct fs *fs, const struct fs_node *dir, const char *name,
		    struct statx *sx, struct fs_node **node)
{
	int fd = open_path(dir, name), ret;

	if (fd < 0)
		return fd;
	ret = fs_statx(fd, sx);
	if (ret) {
		close(fd);
		return ret;
	}
	return fs_node_enter(fs, fd, sx, node);
}

int fs_lookup(struct fs *fs, struct fs_node *dir, const char *name,
	      uint64_t hint, struct fuse_entry_out *out)
{
	struct fs_node *node = NULL;
	struct statx sx;
	int ret = 0;

	out->nodeid = 0;
	if (dir->type != S_IFDIR)
		return -ENOTDIR;
	fs_notify_watch(fs, dir);
	if (!hint || fs_node_probable(fs, dir, hint))
		ret = look_known(fs, dir, name, &sx, &node);
	if (!ret && !node)
		ret = look_new(fs, dir, name, &sx, &node);
	if (ret)
		return ret;
	ret = fs_dax_cover(fs, node, sx.stx_size);
	if (ret)
		fs_node_forget(fs, fs_slot_id(&node->slot), 1);
	else
		fill_entry(fs, dir, node, &sx, out);
	fs_node_drop(fs, node);
	return ret;
}

int fs_enter(struct fs *fs, const struct fs_node *dir, int fd,
	     struct fs_node **node, struct fuse_entry_out *out)
{
	struct statx sx;
	char name[16];
	int path = open(fs_fd_name(fd, name), O_PATH | O_CLOEXEC), ret;

	if (path < 0)
		return -errno;
	ret = fs_statx(path, &sx);
	if (ret) {
		close(path);
		return ret;
	}
	ret = fs_node_enter(fs, path, &sx, node);
	if (!ret)
		fill_entry(fs, dir, *node, &sx, out);
	return ret;
}

/* The request's directory, and a name in it that can be one. */
static int get_dir(struct fs_req *r, unsigned int n, struct fs_node **dir)
{
	if (!fs_name_ok(fs_req_name(r, n)))
		return -EINVAL;
	*dir = fs_node_get(r->fs, r->in.nodeid);
	return *dir ? 0 : -ESTALE;
}

static int reply_entry(struct fs_req *r, struct fs_node *dir, const char *name)
{
	struct fuse_entry_out out;
	int ret;

	/* Or the guest would know it without knowing. */
	if (fs_req_room(r) < sizeof(out))
		return -ERANGE;
	ret = fs_lookup(r->fs, dir, name, 0, &out);
	return ret ? ret : fs_req_put(r, &out, sizeof(out));
}

int fs_op_lookup(struct fs_req *r)
{
	struct fs_node *dir;
	int ret = get_dir(r, 0, &dir);

	if (ret)
		return ret;
	ret = reply_entry(r, dir, fs_req_name(r, 0));
	fs_node_put(r->fs, dir);
	return ret;
}

int fs_op_forget(struct fs_req *r)
{
	const struct fuse_forget_in *in = fs_req_args(r);

	fs_node_forget(r->fs, r->in.nodeid, in->nlookup);
	return FS_NO_REPLY;
}

int fs_op_batch_forget(struct fs_req *r)
{
	const struct fuse_batch_forget_in *in = fs_req_args(r);
	const uint8_t *p = (const uint8_t *)(in + 1);
	uint32_t n = (r->nargs - (uint32_t)sizeof(*in)) /
		     (uint32_t)sizeof(struct fuse_forget_one);

	/* As many as there are, whatever it says. */
	for (uint32_t i = 0; i < n && i < in->count; i++) {
		struct fuse_forget_one one;

		memcpy(&one, p + i * sizeof(one), sizeof(one));
		fs_node_forget(r->fs, one.nodeid, one.nlookup);
	}
	return FS_NO_REPLY;
}

/* ---- making names ---- */

/* struct fuse_mknod_in has the kernel's encoding: new_decode_dev(). */
static dev_t decode_dev(uint32_t d)
{
	return makedev((d & 0xfff00) >> 8, (d & 0xff) | (d >> 12 & 0xfff00));
}

static int make_node(struct fs_req *r, int dir, const char *name)
{
	const struct fuse_mknod_in *in = fs_req_args(r);

	return mknodat(dir, name, in->mode, decode_dev(in->rdev));
}

static int make_dir(struct fs_req *r, int dir, const char *name)
{
	const struct fuse_mkdir_in *in = fs_req_args(r);

	return mkdirat(dir, name, in->mode & 07777);
}

static int make_link(struct fs_req *r, int dir, const char *name)
{
	return symlinkat(fs_req_name(r, 1), dir, name);
}

static int make(struct fs_req *r, uint32_t umask,
		int (*how)(struct fs_req *r, int dir, const char *name))
{
	const char *name = fs_req_name(r, 0);
	struct fs_node *dir;
	int ret = get_dir(r, 0, &dir);

	if (ret)
		return ret;
	ret = fs_become(r, umask);
	if (!ret && how(r, dir->fd, name))
		ret = -errno;
	fs_become_self(r);
	if (!ret)
		ret = reply_entry(r, dir, name);
	fs_node_put(r->fs, dir);
	return ret;
}

int fs_op_mknod(struct fs_req *r)
{
	const struct fuse_mknod_in *in = fs_req_args(r);

	return make(r, in->umask, make_node);
}

int fs_op_mkdir(struct fs_req *r)
{
	const struct fuse_mkdir_in *in = fs_req_args(r);

	return make(r, in->umask, make_dir);
}

int fs_op_symlink(struct fs_req *r)
{
	return make(r, 0, make_link);
}

int fs_op_link(struct fs_req *r)
{
	const struct fuse_link_in *in = fs_req_args(r);
	const char *name = fs_req_name(r, 0);
	struct fs_node *dir, *node;
	char old[16];
	int ret = get_dir(r, 0, &dir);

	if (ret)
		return ret;
	node = fs_node_get(r->fs, in->oldnodeid);
	if (!node) {
		fs_node_put(r->fs, dir);
		return -ESTALE;
	}
	if (linkat(AT_FDCWD, fs_fd_name(node->fd, old), dir->fd, name,
		   AT_SYMLINK_FOLLOW))
		ret = -errno;
	else
		ret = reply_entry(r, dir, name);
	fs_node_put(r->fs, node);
	fs_node_put(r->fs, dir);
	return ret;
}

/* ---- removing and moving them ---- */

static int remove_name(struct fs_req *r, int flags)
{
	struct fs_node *dir;
	int ret = get_dir(r, 0, &dir);

	if (ret)
		return ret;
	if (unlinkat(dir->fd, fs_req_name(r, 0), flags))
		ret = -errno;
	fs_node_put(r->fs, dir);
	return ret;
}

int fs_op_unlink(struct fs_req *r)
{
	return remove_name(r, 0);
}

int fs_op_rmdir(struct fs_req *r)
{
	return remove_name(r, AT_REMOVEDIR);
}

static int rename_to(struct fs_req *r, uint64_t newdir, unsigned int flags)
{
	const char *from = fs_req_name(r, 0), *to = fs_req_name(r, 1);
	struct fs_node *dir, *target;
	int ret = get_dir(r, 0, &dir);

	if (ret)
		return ret;
	target = fs_node_get(r->fs, newdir);
	if (!target)
		ret = -ESTALE;
	else if (!fs_name_ok(to))
		ret = -EINVAL;
	else if (renameat2(dir->fd, from, target->fd, to, flags))
		ret = -errno;
	if (target)
		fs_node_put(r->fs, target);
	fs_node_put(r->fs, dir);
	return ret;
}

int fs_op_rename(struct fs_req *r)
{
	const struct fuse_rename_in *in = fs_req_args(r);

	return rename_to(r, in->newdir, 0);
}

int fs_op_rename2(struct fs_req *r)
{
	const struct fuse_rename2_in *in = fs_req_args(r);

	return rename_to(r, in->newdir, in->flags);
}

int fs_op_readlink(struct fs_req *r)
{
	struct fs_node *node = fs_node_get(r->fs, r->in.nodeid);
	ssize_t n;
	int ret;

	if (!node)
		return -ESTALE;
	n = readlinkat(node->fd, "", (char *)r->thread->data, PATH_MAX);
	ret = n < 0 ? -errno : 0;
	/* An empty path to something else than a link. */
	if (ret == -ENOENT)
		ret = -EINVAL;
	fs_node_put(r->fs, node);
	return ret ? ret : fs_req_put(r, r->thread->data, (uint32_t)n);
}
