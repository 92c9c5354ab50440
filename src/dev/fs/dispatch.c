/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which handler carries a request out, and on which thread.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "dev/fs/fs.h"
#include "dev/fs/handlers.h"
#include "dev/fs/notify.h"

#define IN(type) .size = sizeof(struct type)

/* clang-format off: a table */
static const struct fs_op ops[] = {
	[FUSE_INIT] = { "INIT", fs_op_init, IN(fuse_init_in), .least = 16,
			.before_init = true, .blocks = true },
	[FUSE_DESTROY] = { "DESTROY", fs_op_destroy, .before_init = true,
			   .blocks = true },

	[FUSE_LOOKUP] = { "LOOKUP", fs_op_lookup, .names = 1 },
	[FUSE_FORGET] = { "FORGET", fs_op_forget, IN(fuse_forget_in),
			  .no_reply = true },
	[FUSE_BATCH_FORGET] = { "BATCH_FORGET", fs_op_batch_forget,
				IN(fuse_batch_forget_in), .blob = true,
				.no_reply = true },
	[FUSE_MKNOD] = { "MKNOD", fs_op_mknod, IN(fuse_mknod_in), .names = 1,
			 .changes = true },
	[FUSE_MKDIR] = { "MKDIR", fs_op_mkdir, IN(fuse_mkdir_in), .names = 1,
			 .changes = true },
	[FUSE_SYMLINK] = { "SYMLINK", fs_op_symlink, .names = 2,
			   .changes = true },
	[FUSE_LINK] = { "LINK", fs_op_link, IN(fuse_link_in), .names = 1,
			.changes = true },
	[FUSE_UNLINK] = { "UNLINK", fs_op_unlink, .names = 1, .changes = true },
	[FUSE_RMDIR] = { "RMDIR", fs_op_rmdir, .names = 1, .changes = true },
	[FUSE_RENAME] = { "RENAME", fs_op_rename, IN(fuse_rename_in),
			  .names = 2, .changes = true },
	[FUSE_RENAME2] = { "RENAME2", fs_op_rename2, IN(fuse_rename2_in),
			   .names = 2, .changes = true },
	[FUSE_READLINK] = { "READLINK", fs_op_readlink },

	[FUSE_GETATTR] = { "GETATTR", fs_op_getattr, IN(fuse_getattr_in) },
	[FUSE_SETATTR] = { "SETATTR", fs_op_setattr, IN(fuse_setattr_in),
			   .changes = true },
	[FS_OP_STATX] = { "STATX", fs_op_statx, IN(fs_statx_in) },
	[FUSE_STATFS] = { "STATFS", fs_op_statfs },
	[FUSE_ACCESS] = { "ACCESS", fs_op_access, IN(fuse_access_in) },

	[FUSE_OPEN] = { "OPEN", fs_op_open, IN(fuse_open_in) },
	[FUSE_CREATE] = { "CREATE", fs_op_create, IN(fuse_create_in),
			  .names = 1, .changes = true },
	[FUSE_TMPFILE] = { "TMPFILE", fs_op_tmpfile, IN(fuse_create_in),
			   .blob = true, .changes = true },
	[FUSE_FLUSH] = { "FLUSH", fs_op_flush, IN(fuse_flush_in) },
	[FUSE_RELEASE] = { "RELEASE", fs_op_release, IN(fuse_release_in) },
	[FUSE_FSYNC] = { "FSYNC", fs_op_fsync, IN(fuse_fsync_in),
			 .blocks = true },
	[FUSE_FSYNCDIR] = { "FSYNCDIR", fs_op_fsync, IN(fuse_fsync_in),
			    .blocks = true },
	[FUSE_SYNCFS] = { "SYNCFS", fs_op_syncfs, IN(fuse_syncfs_in),
			  .blocks = true },

	[FUSE_READ] = { "READ", fs_op_read, IN(fuse_read_in) },
	[FUSE_WRITE] = { "WRITE", fs_op_write, IN(fuse_write_in), .data = true,
			 .changes = true },
	[FUSE_FALLOCATE] = { "FALLOCATE", fs_op_fallocate,
			     IN(fuse_fallocate_in), .changes = true,
			     .blocks = true },
	[FUSE_LSEEK] = { "LSEEK", fs_op_lseek, IN(fuse_lseek_in) },
	[FUSE_COPY_FILE_RANGE] = { "COPY_FILE_RANGE", fs_op_copy_file_range,
				   IN(fuse_copy_file_range_in), .changes = true,
				   .blocks = true },

	[FUSE_OPENDIR] = { "OPENDIR", fs_op_opendir, IN(fuse_open_in) },
	[FUSE_READDIR] = { "READDIR", fs_op_readdir, IN(fuse_read_in) },
	[FUSE_READDIRPLUS] = { "READDIRPLUS", fs_op_readdirplus,
			       IN(fuse_read_in) },
	[FUSE_RELEASEDIR] = { "RELEASEDIR", fs_op_release,
			      IN(fuse_release_in) },

	[FUSE_SETXATTR] = { "SETXATTR", fs_op_setxattr, IN(fuse_setxattr_in),
			    .names = 1, .blob = true, .changes = true },
	[FUSE_GETXATTR] = { "GETXATTR", fs_op_getxattr, IN(fuse_getxattr_in),
			    .names = 1 },
	[FUSE_LISTXATTR] = { "LISTXATTR", fs_op_listxattr,
			     IN(fuse_getxattr_in) },
	[FUSE_REMOVEXATTR] = { "REMOVEXATTR", fs_op_removexattr, .names = 1,
			       .changes = true },

	[FUSE_GETLK] = { "GETLK", fs_op_getlk, IN(fuse_lk_in) },
	[FUSE_SETLK] = { "SETLK", fs_op_setlk, IN(fuse_lk_in) },
	[FUSE_SETLKW] = { "SETLKW", fs_op_setlkw, IN(fuse_lk_in) },
	[FUSE_INTERRUPT] = { "INTERRUPT", fs_op_interrupt,
			     IN(fuse_interrupt_in), .no_reply = true },

	[FUSE_SETUPMAPPING] = { "SETUPMAPPING", fs_op_setupmapping,
				IN(fuse_setupmapping_in), .blocks = true },
	[FUSE_REMOVEMAPPING] = { "REMOVEMAPPING", fs_op_removemapping,
				 IN(fuse_removemapping_in), .blob = true,
				 .blocks = true },
};
/* clang-format on */

const struct fs_op *fs_op(uint32_t opcode)
{
	if (opcode >= sizeof(ops) / sizeof(*ops) || !ops[opcode].handle)
		return NULL;
	return &ops[opcode];
}

static int run(struct fs_req *r)
{
	int ret;

	if (!r->op)
		return -ENOSYS;
	if (!r->op->before_init &&
	    !__atomic_load_n(&r->fs->inited, __ATOMIC_ACQUIRE))
		fs_assume_session(r->fs);
	if (r->op->changes && r->fs->opt->read_only)
		return -EROFS;
	if (r->op->blocks && !fs_may_block(r))
		return FS_DEFER;
	ret = fs_req_parse(r);
	if (!ret)
		ret = r->op->handle(r);
	if (ret == FS_DEFER && r->op->size <= FS_SAVED) {
		memcpy(r->saved, r->thread->args, r->op->size);
		r->resumed = true;
	}
	return ret;
}

int fs_run(struct fs_req *r, struct fs_thread *t)
{
	r->thread = t;
	return run(r);
}

void fs_request(void *dev, void *worker, struct moat_request *mr)
{
	struct fs_worker *w = worker;
	struct fs_req *r = mr->data;
	int ret;

	if (mr->queue == FS_NOTIFY_QUEUE && fs_notify_agreed(dev)) {
		*r = (struct fs_req){ .mr = mr, .fs = dev, .home = w };
		fs_notify_buffer(r);
		return;
	}
	if (!fs_req_begin(r, dev, mr)) {
		moat_request_done(mr, 0);
		return;
	}
	r->home = w;
	w->taken++;
	ret = fs_run(r, &w->thread);
	if (ret == FS_DEFER)
		fs_defer_push(r);
	else if (ret != FS_LATER)
		fs_req_finish(r, ret);
}

/* ---- threads ---- */

int fs_thread_init(struct fs_thread *t, struct fs *fs)
{
	*t = (struct fs_thread){
		.fs = fs, .uid = fs->uid, .gid = fs->gid, .fsetid = true
	};
	/* A working directory and a umask of its own. */
	if (unshare(CLONE_FS) || fchdir(fs->proc_fd))
		return -errno;
	t->args = malloc(FS_ARGS_MAX + 1);
	t->data = malloc(FS_ARGS_MAX);
	t->ext = malloc(FS_EXT_MAX);
	t->iov = calloc(FS_IOV, sizeof(*t->iov));
	if (t->args && t->data && t->ext && t->iov)
		return 0;
	fs_thread_fini(t);
	return -ENOMEM;
}

void fs_thread_fini(struct fs_thread *t)
{
	free(t->args);
	free(t->data);
	free(t->ext);
	free(t->iov);
	t->args = t->data = t->ext = NULL;
	t->iov = NULL;
}

int fs_worker_start(void *dev, void **worker, int *fd)
{
	struct fs *fs = dev;
	struct fs_worker *w = calloc(1, sizeof(*w));
	int ret;

	if (!w)
		return -ENOMEM;
	pthread_mutex_init(&w->lock, NULL);
	w->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ret = w->event_fd < 0 ? -errno : fs_thread_init(&w->thread, fs);
	w->half.iov = calloc(FS_IOV, sizeof(*w->half.iov));
	if (!ret && !w->half.iov)
		ret = -ENOMEM;
	if (ret) {
		moat_device_log(fs->log, MOAT_DEVICE_ERROR,
				"can not set a worker up: %s", strerror(-ret));
		fs_worker_stop(dev, w);
		return ret;
	}
	w->thread.worker = w;
	*worker = w;
	*fd = w->event_fd;
	return 0;
}

void fs_worker_stop(void *dev, void *worker)
{
	struct fs_worker *w = worker;

	(void)dev;
	fs_thread_fini(&w->thread);
	free(w->half.iov);
	if (w->event_fd >= 0)
		close(w->event_fd);
	pthread_mutex_destroy(&w->lock);
	free(w);
}

void fs_defer_done(struct fs_req *r, int error)
{
	struct fs_worker *w = r->home;
	uint64_t one = 1;

	r->error = error;
	pthread_mutex_lock(&w->lock);
	r->next = w->done;
	__atomic_store_n(&w->done, r, __ATOMIC_RELAXED);
	if (!w->signalled)
		w->signalled = write(w->event_fd, &one, sizeof(one)) > 0;
	pthread_mutex_unlock(&w->lock);
}

bool fs_worker_poll(void *dev, void *worker)
{
	struct fs_worker *w = worker;
	struct fs_req *r;
	uint64_t count;

	(void)dev;
	w->taken = 0;
	if (!__atomic_load_n(&w->done, __ATOMIC_RELAXED))
		return false;
	pthread_mutex_lock(&w->lock);
	r = w->done;
	w->done = NULL;
	if (w->signalled &&
	    read(w->event_fd, &count, sizeof(count)) == sizeof(count))
		w->signalled = false;
	pthread_mutex_unlock(&w->lock);
	while (r) {
		/* Given back, it is the guest's to use again. */
		struct fs_req *next = r->next;

		fs_req_finish(r, r->error);
		r = next;
	}
	return true;
}
