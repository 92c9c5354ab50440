/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "guard/session.h"
#include "guard/shmemfd.h"

/*
 * Regular files by their mode that are not memory: registers of devices (PCI
 * resources below /sys), the kernel's own state.
 */
static const uint32_t no_files[] = {
	PROC_SUPER_MAGIC,   SYSFS_MAGIC,	  DEBUGFS_MAGIC,
	TRACEFS_MAGIC,	    SECURITYFS_MAGIC,	  BPF_FS_MAGIC,
	CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC,  EFIVARFS_MAGIC,
	PSTOREFS_MAGIC,	    BINDERFS_SUPER_MAGIC, SELINUX_MAGIC,
};

static bool is_memory(const struct stat *st, const struct statfs *fs)
{
	/* A dma-buf's inode has no type. */
	if (fs->f_type == DMA_BUF_MAGIC)
		return true;
	if (!S_ISREG(st->st_mode))
		return false;
	for (size_t i = 0; i < sizeof(no_files) / sizeof(*no_files); i++)
		if ((uint32_t)fs->f_type == no_files[i])
			return false;
	return true;
}

static bool is_file(const struct stat *st, int fd)
{
	struct stat other;

	return fd >= 0 && !fstat(fd, &other) && st->st_dev == other.st_dev &&
	       st->st_ino == other.st_ino;
}

static bool is_ours(const struct moat_session *s, const struct stat *st)
{
	const struct moat_guest_mem *mem = &s->mem;

	for (uint32_t i = 0; i < mem->nfiles; i++)
		if (mem->files[i].dev == st->st_dev &&
		    mem->files[i].ino == st->st_ino)
			return true;
	for (uint32_t i = 0; i < mem->share.n; i++)
		if (is_file(st, mem->share.regions[i].fd))
			return true;
	return is_file(st, s->pool_mem.fd);
}

const char *moat_shmemfd_refused(const struct moat_session *s, int fd,
				 bool writable)
{
	int flags = fcntl(fd, F_GETFL);
	struct statfs fs;
	struct stat st;

	if (flags < 0 || fstat(fd, &st) || fstatfs(fd, &fs) ||
	    !is_memory(&st, &fs))
		return "its fd is no regular file, memfd or dma-buf";
	if (flags & O_PATH || (flags & O_ACCMODE) == O_WRONLY)
		return "its fd is not open for reading";
	if (writable && (flags & O_ACCMODE) != O_RDWR)
		return "it is to be writable and its fd is not";
	/* QEMU 11.1.3 forgets the flag, and the guest can write. */
	if (!writable && (flags & O_ACCMODE) != O_RDONLY)
		return "it is to be read-only and its fd is not, which some "
		       "front-ends map writable all the same";
	if (is_ours(s, &st))
		return "its fd is guest RAM, or the pool";
	return NULL;
}
