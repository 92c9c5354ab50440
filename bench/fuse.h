/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtio-fs driver's requests in flight (virtio 1.4, 5.11), as Linux has
 * them:
 *
 *     queue 0      high priority: FUSE_FORGET, which is not answered
 *     queue 1...   requests
 *
 *     readable     header | argument | name or data, in pieces of a page
 *     writable     header | result | data, in pieces of a page
 *
 * A slot is the memory of one request at a time:
 *
 *     0     what goes out: header, argument, name
 *     2048  what comes in: header, result
 *     4096  indirect table
 *     then the data
 *
 * The device is measured, not trusted: what it answers is checked as far as it
 * could make a measurement wrong, and the program ends at the first mistake.
 */
#ifndef MOAT_BENCH_FUSE_H
#define MOAT_BENCH_FUSE_H

#include <linux/fuse.h>
#include <stdbool.h>
#include <stdint.h>

#include "bench/front.h"

#define FS_PAGE 4096u
#define FS_QUEUE_SIZE 1024u /* what QEMU gives virtio-fs at most */
#define FS_SEGS_MAX 520u    /* of a request: 2 MiB of data, and the rest */
#define FS_QUEUES_MAX 64u   /* of requests */
#define FS_NAME_MAX 255u

struct fs_slot {
	uint8_t *mem; /* FS_HEAD and then the data */
	uint64_t addr;
	uint32_t index;
	uint32_t queue;
	uint64_t unique;
	uint32_t data_in; /* bytes of data that the device may write */
	/* of the operation that the slot is at work for */
	uint32_t step;
	uint64_t number; /* operations are counted from 0 */
	uint64_t node, fh, offset;
	uint64_t begun; /* ns */
};

/**
 * struct fs_request - what is sent
 * @arg, @arg_len: the operation's own structure
 * @name: with its terminating 0, or NULL
 * @result_len: of the structure that is the answer
 * @data_out, @data_in: bytes of the slot's data that the device reads or writes
 */
struct fs_request {
	uint32_t opcode;
	uint64_t node;
	const void *arg;
	uint32_t arg_len;
	const char *name;
	uint32_t result_len;
	uint32_t data_out, data_in;
};

struct fs {
	struct bench_front front;
	struct bench_bank ram;
	struct bench_queue *queues; /* the high-priority one, then those of */
	uint32_t nqueues;	    /* requests, of which there are so many */
	struct fs_slot *slots;
	uint32_t nslots;
	uint64_t slot_size;
	uint64_t forgets_addr; /* a cell for each entry of queue 0 */
	uint8_t *forgets;
	uint16_t *forget_free; /* cells that are free, a stack */
	uint32_t nforget_free;
	uint32_t init_flags; /* of the device, after FUSE_INIT */
	uint32_t max_write;
	uint64_t requests; /* sent so far, those to forget not counted */
};

/**
 * fs_open() - connects, starts the queues and says FUSE_INIT
 * @depth: slots, dealt out to @nqueues request queues in turn
 * @data: bytes of data of the largest request
 */
void fs_open(struct fs *fs, const char *socket, uint32_t nqueues,
	     uint32_t depth, uint32_t data, bool poll);
void fs_close(struct fs *fs);

/** fs_data() - where a slot's data are */
uint8_t *fs_data(const struct fs_slot *s);

/** fs_post() - adds a request to the slot's queue; fs_publish() shows it */
void fs_post(struct fs *fs, struct fs_slot *s, const struct fs_request *r);
void fs_publish(struct fs *fs);

/**
 * fs_get() - a request of queue @queue (from 1) that was answered, or NULL
 * @data_len: bytes of data that came in
 */
struct fs_slot *fs_get(struct fs *fs, uint32_t queue, uint32_t *data_len);

/** fs_result() - the structure that was answered; 0 is the only status */
const void *fs_result(const struct fs_slot *s);

/** fs_wait() - nothing was there on any queue */
void fs_wait(struct fs *fs);

/** fs_forget() - FUSE_FORGET of @n lookups, published at once */
void fs_forget(struct fs *fs, uint64_t node, uint64_t n);

/** fs_forgotten() - waits until the device has taken all of those */
void fs_forgotten(struct fs *fs);

/** fs_call() - one request from beginning to end; returns the bytes of data */
uint32_t fs_call(struct fs *fs, const struct fs_request *r);

/** fs_lookup() - of @name in @parent, which is to be there */
struct fuse_entry_out fs_lookup(struct fs *fs, uint64_t parent,
				const char *name);

/** fs_open_file() - FUSE_OPEN or FUSE_OPENDIR; returns the handle */
uint64_t fs_open_file(struct fs *fs, uint32_t opcode, uint64_t node,
		      uint32_t flags);

/** fs_release() - what undoes it; to be given as a request */
struct fs_request fs_release(uint32_t opcode, uint64_t node,
			     struct fuse_release_in *arg, uint64_t fh);

#endif
