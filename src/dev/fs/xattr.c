/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extended attributes. A node is open with O_PATH, which the system calls do
 * not take; but "17" in /proc/self/fd leads to the very file, a symbolic link
 * included, and no further.
 *
 * Without them (--no-xattr) Linux is told ENOSYS: it does not ask again, and
 * its users get EOPNOTSUPP.
 */
#include <errno.h>
#include <string.h>
#include <sys/xattr.h>

#include "core/shm.h"
#include "dev/fs/fs.h"
#include "dev/fs/handlers.h"
#include "dev/fs/xattrmap.h"

#define ACL_ACCESS "system.posix_acl_access"
#define ACL_DEFAULT "system.posix_acl_default"

/* An access control list, as Linux has it in an attribute (little endian). */
struct acl_entry {
	uint16_t tag, perm;
	uint32_t id;
};
#define ACL_HEADER 4u /* the version */
#define ACL_USER 0x02u
#define ACL_GROUP 0x08u

static bool is_acl(const char *name)
{
	return !strcmp(name, ACL_ACCESS) || !strcmp(name, ACL_DEFAULT);
}

/* The host's name for the guest's @name. */
static int host_name(const struct fs *fs, const char *name,
		     char host[XATTR_NAME_MAX + 1])
{
	if (!fs->opt->xattr)
		return -ENOSYS;
	if (is_acl(name) && !fs->opt->posix_acl)
		return -EOPNOTSUPP;
	return fs_xattrmap_to_host(fs->opt->xattr_rules, name, host);
}

bool fs_xattr_moves_capability(const struct fs *fs)
{
	static const char name[] = "security.capability";
	char host[XATTR_NAME_MAX + 1];

	return !fs_xattrmap_to_host(fs->opt->xattr_rules, name, host) &&
	       strcmp(name, host) != 0;
}

/* ---- ids within access control lists ---- */

static int translate_entry(const struct fs *fs, struct acl_entry *e, bool out)
{
	uint16_t tag = moat_le16(e->tag);
	uint32_t id = moat_le32(e->id);
	int ret = 0;

	if (tag == ACL_USER && out)
		id = fs_uid_to_guest(fs, id);
	else if (tag == ACL_USER)
		ret = fs_uid_to_host(fs, id, &id);
	else if (tag == ACL_GROUP && out)
		id = fs_gid_to_guest(fs, id);
	else if (tag == ACL_GROUP)
		ret = fs_gid_to_host(fs, id, &id);
	e->id = moat_le32(id);
	return ret;
}

/* @out: to the guest. What is no whole list is the kernel's to refuse. */
static int translate_acl(const struct fs *fs, const char *name, uint8_t *value,
			 size_t len, bool out)
{
	const struct fs_ids *ids = &fs->opt->ids;
	struct acl_entry e;
	int ret = 0;

	if ((!ids->nuid && !ids->ngid) || !is_acl(name))
		return 0;
	for (size_t at = ACL_HEADER; !ret && at + sizeof(e) <= len;
	     at += sizeof(e)) {
		memcpy(&e, value + at, sizeof(e));
		ret = translate_entry(fs, &e, out);
		memcpy(value + at, &e, sizeof(e));
	}
	return ret;
}

/* ---- handlers ---- */

/*
 * The guest's user is not in the file's group, and has no right to keep the
 * set-group-ID bit. We would.
 */
static int kill_sgid(struct fs_node *node)
{
	struct statx sx;
	char path[16];
	int ret = fs_statx(node->fd, &sx);

	if (ret || !(sx.stx_mode & S_ISGID))
		return ret;
	return chmod(fs_fd_name(node->fd, path), sx.stx_mode & 07777 & ~S_ISGID)
		       ? -errno
		       : 0;
}

static int set(struct fs_req *r, struct fs_node *node, const char *host)
{
	const struct fuse_setxattr_in *in = fs_req_args(r);
	const char *name = fs_req_name(r, 0);
	uint8_t *value =
		r->thread->args + (name - (const char *)in) + strlen(name) + 1;
	char path[16];
	int ret;

	if (in->size > r->nargs - (size_t)(value - r->thread->args))
		return -EINVAL;
	ret = translate_acl(r->fs, host, value, in->size, false);
	if (ret)
		return ret;
	fs_fsetid(r, node, true);
	if (setxattr(fs_fd_name(node->fd, path), host, value, in->size,
		     (int)in->flags))
		return -errno;
	/* The flags are of the longer structure; what is missing is 0. */
	if (r->fixed == sizeof(*in) && !strcmp(host, ACL_ACCESS) &&
	    in->setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID)
		return kill_sgid(node);
	return 0;
}

/* What a request that changes an attribute is about. */
static int get_named(struct fs_req *r, char host[XATTR_NAME_MAX + 1],
		     struct fs_node **node)
{
	int ret = host_name(r->fs, fs_req_name(r, 0), host);

	if (ret)
		return ret;
	*node = fs_node_get(r->fs, r->in.nodeid);
	return *node ? 0 : -ESTALE;
}

int fs_op_setxattr(struct fs_req *r)
{
	char host[XATTR_NAME_MAX + 1];
	struct fs_node *node;
	int ret = get_named(r, host, &node);

	if (ret)
		return ret;
	ret = set(r, node, host);
	fs_node_put(r->fs, node);
	return ret;
}

/* The answer to "how long is it?", or what it is. */
static int reply(struct fs_req *r, uint32_t size, const void *value, size_t len)
{
	struct fuse_getxattr_out out = { .size = (uint32_t)len };

	if (!size)
		return fs_req_put(r, &out, sizeof(out));
	return len > size ? -ERANGE : fs_req_put(r, value, (uint32_t)len);
}

int fs_op_getxattr(struct fs_req *r)
{
	const struct fuse_getxattr_in *in = fs_req_args(r);
	uint8_t *value = r->thread->data;
	char host[XATTR_NAME_MAX + 1], path[16];
	int ret = host_name(r->fs, fs_req_name(r, 0), host);
	struct fs_node *node;
	ssize_t len;

	/* One that may not be named is not there. */
	if (ret)
		return ret == -EPERM ? -ENODATA : ret;
	node = fs_node_get(r->fs, r->in.nodeid);
	if (!node)
		return -ESTALE;
	len = getxattr(fs_fd_name(node->fd, path), host, value,
		       in->size ? XATTR_SIZE_MAX : 0);
	ret = len < 0 ? -errno : 0;
	fs_node_put(r->fs, node);
	if (!ret && in->size)
		ret = translate_acl(r->fs, host, value, (size_t)len, true);
	return ret ? ret : reply(r, in->size, value, (size_t)len);
}

/* The guest's names, in place: none is longer than the host's. */
static size_t guest_names(const struct fs *fs, char *list, size_t len)
{
	size_t out = 0;

	/* The kernel ends each name; the last one is ended here once more. */
	list[len] = 0;
	for (size_t at = 0, size; at < len; at += size) {
		const char *name;

		size = strlen(list + at) + 1;
		name = fs_xattrmap_to_guest(fs->opt->xattr_rules, list + at);
		if (!name || (is_acl(name) && !fs->opt->posix_acl))
			continue;
		memmove(list + out, name, strlen(name) + 1);
		out += strlen(list + out) + 1;
	}
	return out;
}

int fs_op_listxattr(struct fs_req *r)
{
	const struct fuse_getxattr_in *in = fs_req_args(r);
	char *list = (char *)r->thread->data, path[16];
	struct fs_node *node;
	ssize_t len;
	int ret;

	if (!r->fs->opt->xattr)
		return -ENOSYS;
	node = fs_node_get(r->fs, r->in.nodeid);
	if (!node)
		return -ESTALE;
	len = listxattr(fs_fd_name(node->fd, path), list, XATTR_LIST_MAX);
	ret = len < 0 ? -errno : 0;
	fs_node_put(r->fs, node);
	if (ret)
		return ret;
	return reply(r, in->size, list, guest_names(r->fs, list, (size_t)len));
}

int fs_op_removexattr(struct fs_req *r)
{
	char host[XATTR_NAME_MAX + 1], path[16];
	struct fs_node *node;
	int ret = get_named(r, host, &node);

	if (ret)
		return ret;
	if (removexattr(fs_fd_name(node->fd, path), host))
		ret = -errno;
	fs_node_put(r->fs, node);
	return ret;
}
