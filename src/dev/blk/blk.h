/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moat-blk: a virtio disk (virtio 1.4, 5.2) on a file or a block device.
 *
 *     request  --check--> plan --steps--> engine --> kernel
 *                                  ^---- result ----'
 *
 *     disk      what is open, its size and abilities; config space
 *     request   from the driver's request to a plan, and from results to status
 *     engine    carries a step out: io_uring, or at once where nothing blocks
 *
 * Guest memory is read and written by the kernel in place. Of a request only
 * its header and its list of segments are copied: once, and then checked.
 */
#ifndef MOAT_DEV_BLK_H
#define MOAT_DEV_BLK_H

#include <linux/virtio_blk.h>
#include <moat/device.h>

#define BLK_SECTOR 512u
#define BLK_SEGMENTS 16u  /* of one discard or write-zeroes request */
#define BLK_SEG_MAX 1022u /* pieces of data; with header and status 1024 */
#define BLK_RANGE_SECTORS (1u << 22) /* 2 GiB at a time */
#define BLK_ZEROES 65536u /* bytes of zeroes that are written at a time */

enum blk_cache { BLK_NONE, BLK_WRITEBACK, BLK_WRITETHROUGH, BLK_DIRECTSYNC };

/** struct blk_disk - what is served; fixed but for what says otherwise */
struct blk_disk {
	int fd;			       /* through the page cache */
	int direct_fd;		       /* O_DIRECT, or -1 */
	uint32_t mem_align, off_align; /* that O_DIRECT needs */
	bool is_device;		       /* a block device */
	bool in_memory;		       /* I/O never waits: it is done at once */
	bool sync;		       /* and by no other thread */
	bool null;		       /* no file at all: for measuring */
	bool read_only;
	bool can_discard, can_zero;
	bool register_buffers; /* guest memory is pinned for io_uring */
	char serial[VIRTIO_BLK_ID_BYTES];
	uint64_t capacity;  /* sectors; atomic: workers look at it */
	bool write_through; /* atomic: as the driver chose */
	bool in_doubt;	    /* what it chose: write through; atomic */
	bool wce_start;	    /* write cache as --cache= says */
	uint64_t accepted;  /* features */
	bool in_order;	    /* requests are to be done so; atomic */
	int said;	    /* errno that was logged last, atomic */
	bool said_unpinned; /* that buffers can not be registered, atomic */
	struct virtio_blk_config config;
	const uint8_t *zeroes; /* BLK_ZEROES of them */
	struct moat_log *log;
};

struct blk_options {
	const char *path;
	uint64_t null_size; /* bytes; 0: there is a path */
	enum blk_cache cache;
	bool read_only;
	uint32_t block_size;
	const char *serial;
	uint32_t num_queues;
	bool async; /* io_uring, even where nothing blocks */
};

/** blk_disk_open() - 0 or a negative errno, logged */
int blk_disk_open(struct blk_disk *disk, const struct blk_options *opt);
void blk_disk_close(struct blk_disk *disk);

/** blk_disk_reload() - look at the size again; true if it changed */
bool blk_disk_reload(struct blk_disk *disk);

uint64_t blk_features(void *dev);
void blk_accepted(void *dev, uint64_t features);
void blk_resumed(void *dev);
void blk_reset(void *dev);
void blk_left(void *dev);
void blk_get_config(void *dev, uint32_t offset, void *buf, uint32_t len);
int blk_set_config(void *dev, uint32_t offset, const void *buf, uint32_t len);

/** enum blk_step - what the engine is asked to do */
enum blk_step {
	BLK_READ,
	BLK_WRITE,
	BLK_SYNC,
	BLK_PUNCH, /* FALLOC_FL_PUNCH_HOLE */
	BLK_ZERO,  /* FALLOC_FL_ZERO_RANGE */
};

struct blk_range {
	uint64_t offset, len; /* bytes */
	bool unmap;
};

/** struct blk_req - a request's plan, in moat_request.data */
struct blk_req {
	struct moat_request *req;
	struct blk_req *next; /* waits for room in the ring */
	uint8_t *status;      /* in guest memory */
	uint32_t type;	      /* VIRTIO_BLK_T_... */
	enum blk_step step;
	bool direct;	   /* through direct_fd */
	bool copied;	   /* and through memory that it takes */
	bool durable;	   /* before it is done */
	struct iovec *iov; /* what is left to be moved */
	uint32_t niov;
	uint64_t offset, len;	 /* bytes, of what is left */
	uint32_t nranges, range; /* and the one at hand */
	struct blk_range ranges[BLK_SEGMENTS];
	struct iovec zeroes[BLK_SEGMENTS]; /* the range at hand, written */
};

/** blk_plan() - check a request; true: take its first step; else it is done */
bool blk_plan(struct blk_disk *disk, struct moat_request *req);

/** blk_result() - of a step; true: take the next one; else it is done */
bool blk_result(struct blk_disk *disk, struct blk_req *r, int res);

/* The ops of struct moat_device_ops. */
int blk_worker_start(void *dev, void **worker, int *fd);
bool blk_worker_poll(void *dev, void *worker);
void blk_worker_stop(void *dev, void *worker);
void blk_worker_memory(void *dev, void *worker, const struct iovec *iov,
		       uint32_t n);
void blk_request(void *dev, void *worker, struct moat_request *req);

#endif
