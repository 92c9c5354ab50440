/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads beside the queues' own: for requests that may take long, and for
 * halves of large reads.
 */
#ifndef MOAT_DEV_FS_DEFER_H
#define MOAT_DEV_FS_DEFER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct fs;
struct fs_req;

/**
 * struct fs_half - a part of a large read that another thread may do
 * @got: as preadv2(2), with a negative errno
 */
struct fs_half {
	int fd, flags, n;
	off_t offset;
	struct iovec *iov; /* FS_IOV */
	ssize_t got;
	/* of defer */
	struct fs_half *next;
	bool begun, done;
};

#define FS_STACK (1u << 20) /* bytes of each thread's; sanitizers need most */
/* What a thread takes, with what fs_thread_init() allocates. */
#define FS_THREAD_HEAP (FS_STACK + 2 * FS_ARGS_MAX + 65536u)

/** fs_defer_start() - with @n threads; 0 or a negative errno */
int fs_defer_start(struct fs *fs, uint32_t n);
void fs_defer_stop(struct fs *fs);
/** fs_defer_push() - carry it out on a thread that may block */
void fs_defer_push(struct fs_req *r);
/**
 * fs_defer_helps() - would another thread be faster, though nothing waits?
 *
 * With several requests at hand, every other large one is another processor's.
 */
bool fs_defer_helps(const struct fs_req *r);
/** fs_defer_offer() - to a thread that has nothing to do; false: there is none
 */
bool fs_defer_offer(struct fs *fs, struct fs_half *half);
/**
 * fs_defer_collect() - wait for what was offered
 *
 * Return: false if nobody had begun with it, and now nobody will.
 */
bool fs_defer_collect(struct fs *fs, struct fs_half *half);
/** fs_defer_done() - from any thread: it is to be finished with @error */
void fs_defer_done(struct fs_req *r, int error);

#endif
