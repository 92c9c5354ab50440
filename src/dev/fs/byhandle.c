/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nodes without a descriptor of their own (--inode-file-handles): a file handle
 * names the file, and it is opened for as long as requests work with it.
 *
 * A handle can name any file of its file system, so the handles are ours alone:
 * nothing that a guest says becomes one.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dev/fs/fs.h"

/** struct fs_by_handle - what opens a node's file */
struct fs_by_handle {
	int mount_fd;
	struct file_handle file;
};

/* A descriptor of the mount, for open_by_handle_at(); -1: there is none. */
static int mount_of(struct fs *fs, int fd, const struct statx *sx)
{
	struct fs_mount *m = fs->mounts;
	int ret = -1;

	pthread_mutex_lock(&fs->mounts_lock);
	while (m < fs->mounts + fs->nmounts && m->id != sx->stx_mnt_id)
		m++;
	if (m < fs->mounts + fs->nmounts) {
		ret = m->fd;
	} else if (fs->nmounts < FS_MOUNTS && S_ISDIR(sx->stx_mode)) {
		ret = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (ret >= 0)
			fs->mounts[fs->nmounts++] =
				(struct fs_mount){ sx->stx_mnt_id, ret };
	}
	pthread_mutex_unlock(&fs->mounts_lock);
	return ret;
}

/* Is the next node to do without a descriptor? */
static bool wanted(struct fs *fs)
{
	switch (fs->opt->handles) {
	case FS_HANDLES_NEVER:
		return false;
	case FS_HANDLES_MANDATORY:
		return true;
	case FS_HANDLES_PREFER:
		break;
	}
	/* Half of the descriptors are for nodes, half for open files. */
	return __atomic_load_n(&fs->fd_nodes, __ATOMIC_RELAXED) >=
	       fs->opt->files / 2;
}

/* What names a file of any file system. */
union handle {
	struct file_handle h;
	char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
};

static int get_handle(int fd, union handle *u)
{
	int id;

	u->h.handle_bytes = MAX_HANDLE_SZ;
	return name_to_handle_at(fd, "", &u->h, &id, AT_EMPTY_PATH);
}

struct fs_by_handle *fs_by_handle_new(struct fs *fs, int fd,
				      const struct statx *sx)
{
	struct fs_by_handle *by;
	union handle u;
	int mount_fd;

	if (fs->opt->handles == FS_HANDLES_NEVER)
		return NULL;
	/* Of a directory in any case: files of its mount may follow. */
	mount_fd = mount_of(fs, fd, sx);
	if (mount_fd < 0 || !wanted(fs) || get_handle(fd, &u))
		return NULL;
	by = malloc(sizeof(*by) + u.h.handle_bytes);
	if (!by)
		return NULL;
	by->mount_fd = mount_fd;
	memcpy(&by->file, &u.h, sizeof(u.h) + u.h.handle_bytes);
	return by;
}

bool fs_by_handle_is(const struct fs_by_handle *by, int fd)
{
	union handle u;

	return !get_handle(fd, &u) && u.h.handle_type == by->file.handle_type &&
	       u.h.handle_bytes == by->file.handle_bytes &&
	       !memcmp(u.h.f_handle, by->file.f_handle, u.h.handle_bytes);
}

int fs_by_handle_open(struct fs_by_handle *by)
{
	int fd = open_by_handle_at(by->mount_fd, &by->file,
				   O_PATH | O_NOFOLLOW | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}
