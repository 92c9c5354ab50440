/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moat-fs: a directory of the host for virtual machines, as a process of its
 * own.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <linux/virtio_fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "core/shm.h"
#include "dev/fs/dax.h"
#include "dev/fs/fs.h"
#include "dev/fs/notify.h"
#include "dev/fs/options.h"
#include "dev/fs/xattrmap.h"

#define CAP(name) (UINT64_C(1) << CAP_##name)

/* To act for any user of the guest's, on files of any. */
#define CAPABILITIES                                                  \
	(CAP(CHOWN) | CAP(DAC_OVERRIDE) | CAP(FOWNER) | CAP(FSETID) | \
	 CAP(SETGID) | CAP(SETUID) | CAP(MKNOD) | CAP(SETFCAP))

/* Tails have what both sides last had in private memory, and there are the
 * tables. */
#define DAX_HEAP \
	((uint64_t)(FS_TAILS_MAX + FS_LONG_PAGES) * FS_PAGE + (32u << 20))

/* Of the device's queues: the one that never waits. */
#define HIPRIO 1u
#define DESCRIPTORS_AHEAD 65536u
#define SPARE_MOST 16384u
#define SPARE_OWN 128u

/* struct virtio_fs_config (virtio 1.4, 5.11.4), all of it. */
struct config {
	uint8_t tag[FS_TAG_MAX];
	uint32_t num_request_queues;
	uint32_t notify_buf_size;
};

static uint64_t features(void *dev)
{
	const struct fs *fs = dev;

	return fs->opt->notify ? FS_F_NOTIFICATION : 0;
}

static void accepted(void *dev, uint64_t features)
{
	struct fs *fs = dev;

	__atomic_store_n(&fs->accepted, features, __ATOMIC_RELAXED);
}

static void get_config(void *dev, uint32_t offset, void *buf, uint32_t len)
{
	const struct fs *fs = dev;
	struct config c = { 0 };

	memcpy(c.tag, fs->opt->tag, strnlen(fs->opt->tag, sizeof(c.tag)));
	c.num_request_queues = moat_le32(fs->opt->num_request_queues);
	if (fs->opt->notify)
		c.notify_buf_size = moat_le32((uint32_t)FS_NOTIFY_SIZE);
	if (offset < sizeof(c))
		memcpy(buf, (uint8_t *)&c + offset,
		       len < sizeof(c) - offset ? len : sizeof(c) - offset);
}

/* The next guest knows nothing. */
static void left(void *dev)
{
	struct fs *fs = dev;

	fs_dax_reset(fs);
	fs_end_session(fs);
	accepted(fs, 0);
}

static void attached(void *dev, struct moat_device *device)
{
	struct fs *fs = dev;

	fs->device = device;
}

static void hurry(void *dev)
{
	fs_lock_hurry(dev);
	fs_notify_hurry(dev);
}

/* Reads of a file in memory never wait: they need no thread for it. */
static bool in_memory(int fd)
{
	struct statfs s;

	return !fstatfs(fd, &s) && s.f_type == TMPFS_MAGIC;
}

/*
 * The kernel makes the table of descriptors larger by stages, and where there
 * are threads each stage stops the one that needs it for milliseconds. So it is
 * made large before there are any.
 */
static void widen_descriptors(const struct fs *fs, int fd)
{
	uint64_t want = fs->opt->files < DESCRIPTORS_AHEAD ? fs->opt->files
							   : DESCRIPTORS_AHEAD;
	int last = fcntl(fd, F_DUPFD_CLOEXEC, (int)want - 1);

	if (last >= 0)
		close(last);
}

static int entered(void *dev, int root_fd, int proc_fd)
{
	struct fs *fs = dev;
	uint64_t max = fs->opt->files;
	int ret;

	widen_descriptors(fs, root_fd);
	fs->root_fd = root_fd;
	fs->proc_fd = proc_fd;
	fs->in_memory = in_memory(root_fd);
	fs_ids_start(fs);
	ret = fs_table_init(&fs->handles, sizeof(struct fs_handle),
			    max < UINT32_MAX ? (uint32_t)max : UINT32_MAX);
	if (!ret)
		ret = fs_table_scatter(&fs->handles);
	if (!ret)
		ret = fs_nodes_init(fs);
	if (!ret)
		ret = fs_lockers_start(fs);
	if (!ret)
		ret = fs_dax_start(fs);
	if (!ret && fs->opt->notify)
		ret = fs_notify_start(fs);
	if (!ret)
		ret = fs_defer_start(fs, fs->opt->threads);
	if (ret)
		moat_device_log(fs->log, MOAT_DEVICE_ERROR,
				"can not set the file system up: %s",
				strerror(-ret));
	return ret;
}

/* Beside the harness's: what the handlers do; first, with file handles only. */
#define HANDLE_CALLS 2
/* clang-format off: one a line would be two pages */
static const char *const syscalls[] = {
	"name_to_handle_at",
	"open_by_handle_at", /* HANDLE_CALLS */
	"openat2",
	"openat",
	"open",
	"statx",
	"fstat",
	"newfstatat",
	"fstatfs",
	"getdents64",
	"lseek",
	"readlinkat",
	"faccessat",
	"faccessat2",
	"mkdirat",
	"mknodat",
	"symlinkat",
	"linkat",
	"unlinkat",
	"renameat",
	"renameat2",
	"chmod",
	"fchmod",
	"fchmodat",
	"fchownat",
	"ftruncate",
	"utimensat",
	"umask",
	"preadv",
	"preadv2",
	"pwritev",
	"pwritev2",
	"pread64",
	"pwrite64",
	"fsync",
	"fdatasync",
	"syncfs",
	"fallocate",
	"copy_file_range",
	"getxattr",
	"setxattr",
	"listxattr",
	"removexattr",
	"fgetxattr",
	"fsetxattr",
	"flistxattr",
	"fremovexattr",
	"flock",
	"fcntl",
	"dup",
	"setresuid",
	"setresgid",
	"setfsuid",
	"setfsgid",
	"setgroups",
	"capget",
	"capset",
	"getuid",
	"geteuid",
	"getgid",
	"getegid",
	"clock_nanosleep",
	"clock_gettime",
	"nanosleep",
	"memfd_create",
	"inotify_add_watch",
	"inotify_rm_watch",
	"sched_yield",
	"prctl",
	"rseq",
	"set_robust_list",
	NULL,
};
/* clang-format on */

static const struct moat_device_ops ops = {
	.type = "fs",
	.request_size = sizeof(struct fs_req),
	.features = features,
	.accepted = accepted,
	.get_config = get_config,
	.worker_start = fs_worker_start,
	.worker_poll = fs_worker_poll,
	.worker_stop = fs_worker_stop,
	.request = fs_request,
	.left = left,
	.attached = attached,
	.entered = entered,
	.hurry = hurry,
};

/*
 * Descriptors beside those of the files that the guest knows: it shall be able
 * to open some when it knows as many as there may be. And there are our own.
 */
static uint64_t spare_files(uint64_t files)
{
	return (files / 8 < SPARE_MOST ? files / 8 : SPARE_MOST) + SPARE_OWN;
}

/* A descriptor for each file that the guest knows: as many as there may be. */
static void raise_files(struct fs_options *opt)
{
	uint64_t want = opt->files + spare_files(opt->files), spare;
	struct rlimit l = { want, want };

	if (!setrlimit(RLIMIT_NOFILE, &l) || getrlimit(RLIMIT_NOFILE, &l))
		return;
	if (l.rlim_max < want) {
		want = l.rlim_max;
		spare = spare_files(want);
		opt->files = want - (spare < want / 2 ? spare : want / 2);
	}
	l.rlim_cur = want;
	setrlimit(RLIMIT_NOFILE, &l);
}

/* Both tables full, and all threads at work. */
static uint64_t heap_of(const struct fs_options *opt)
{
	uint64_t most = (uint64_t)FS_CHUNK * FS_CHUNKS;
	uint64_t n = opt->files < most ? opt->files : most;
	uint64_t heap = n * (sizeof(struct fs_node) + sizeof(struct fs_handle));

	heap += opt->threads * (uint64_t)FS_THREAD_HEAP;
	return opt->dax_window ? heap + DAX_HEAP : heap;
}

int main(int argc, char **argv)
{
	struct fs_args a = {
		.config = {
			.ops = &ops,
			.name = "moat-fs",
			.syscalls = syscalls + HANDLE_CALLS,
			.max_queues = FS_QUEUES_MAX + HIPRIO,
			.capabilities = CAPABILITIES,
		},
	};
	struct fs fs = {
		.opt = &a.fs,
		.root_fd = -1,
		.proc_fd = -1,
		.uid = geteuid(),
		.gid = getegid(),
	};
	int ret;

	argp_err_exit_status = 2;
	a.config.dev = &fs;
	if (moat_device_defaults(&a.config))
		return 1;
	ret = fs_options_parse(&a, argc, argv);
	if (ret || a.config.print_capabilities) {
		fs_compat_free(&a.compat);
		free(a.config.log);
		return ret;
	}
	fs.log = a.config.log;
	raise_files(&a.fs);
	if (a.fs.handles != FS_HANDLES_NEVER) {
		/* Landlock knows no path of a file that was opened so. */
		a.config.capabilities |= CAP(DAC_READ_SEARCH);
		a.config.no_landlock = true;
		a.config.syscalls = syscalls;
	}
	a.config.files = (uint32_t)(a.fs.files + spare_files(a.fs.files));
	/* With --notify there is one more, which is another request queue to a
	 * driver that does not know of notifications. */
	a.config.num_queues = a.fs.num_request_queues + HIPRIO + a.fs.notify;
	a.config.shmem[VIRTIO_FS_SHMCAP_ID_CACHE] = a.fs.dax_window;
	a.config.heap = heap_of(&a.fs);
	ret = moat_device_serve(&a.config);
	fs_defer_stop(&fs);
	fs_lockers_stop(&fs);
	fs_dax_stop(&fs);
	fs_notify_stop(&fs);
	fs_nodes_fini(&fs);
	fs_table_fini(&fs.handles);
	fs_xattrmap_free(a.fs.xattr_rules);
	fs_compat_free(&a.compat);
	free(a.config.log);
	return ret;
}
