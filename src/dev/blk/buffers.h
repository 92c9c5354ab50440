/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory as registered buffers of an io_uring (--registered-buffers=on).
 *
 * All on the thread of the worker whose ring it is.
 */
#ifndef MOAT_DEV_BLK_BUFFERS_H
#define MOAT_DEV_BLK_BUFFERS_H

#include <stdint.h>
#include <sys/uio.h>

#define BLK_BUFFERS 1024u /* of 1 GiB at most */

struct io_uring;

struct blk_chunk {
	uint8_t *base;
	size_t len;
	uint16_t slot; /* in the ring's table */
};

struct blk_buffers {
	struct io_uring *ring;
	uint32_t n, last;
	struct blk_chunk chunks[BLK_BUFFERS]; /* by address */
};

/** blk_buffers_open() - an empty table for @ring, before it is restricted */
int blk_buffers_open(struct blk_buffers *b, struct io_uring *ring);

/**
 * blk_buffers_set() - register this memory, and none else
 * @bytes: set to how much is pinned then
 *
 * What was registered and is not in @iov is so no more when this returns. No
 * request is under way.
 *
 * Return: 0, or a negative errno if not all of it could be registered, which
 * is no matter but for speed: -ENOMEM for RLIMIT_MEMLOCK, -EOPNOTSUPP or
 * -EFAULT for files that can not be pinned, -ENOSPC for too much of it.
 */
int blk_buffers_set(struct blk_buffers *b, const struct iovec *iov, uint32_t n,
		    uint64_t *bytes);

/** blk_buffers_find() - the slot that holds all of a piece, or -1 */
int blk_buffers_find(struct blk_buffers *b, const struct iovec *iov);

#endif
