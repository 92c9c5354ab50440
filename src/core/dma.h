/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The DMA API: what a device may see of a request, and where.
 *
 * One rule: a segment inside the share set passes by reference, any other is
 * bounced through the pool. The share set is the guest memory that the device
 * has been given anyway; it is empty in mode `bounce` and holds the guest's own
 * restricted pool in modes `direct` and `hybrid`.
 *
 *     map     guest segments -> device segments; readable bytes are copied in
 *     sync    copy again, either way, while the request stays mapped
 *     unmap   copy back what the device says it wrote, release
 *
 * Descriptor boundaries stay as the driver made them. All large segments of a
 * request lie in one contiguous run of slots, each at the same offset within
 * its page as in guest memory, so that a device that needs aligned buffers
 * (O_DIRECT) finds them aligned. Small ones (headers, status) go to the
 * request's cell: memory that the queue holds for as long as it lives.
 *
 * What is needed to undo a mapping is private: nothing in the pool is read
 * back but payload bytes.
 */
#ifndef MOAT_CORE_DMA_H
#define MOAT_CORE_DMA_H

#include <stdbool.h>
#include <stdint.h>

#include "core/chain.h"
#include "core/err.h"
#include "core/memmap.h"
#include "core/pool.h"

/* Bytes of pool memory that each request of a queue has from the start. */
#define MOAT_DMA_CELL 256u
/* Segments of this size and more go to slots, at their alignment. */
#define MOAT_DMA_SMALL 256u

/** struct moat_dma_range - a piece of the share set, in guest addresses */
struct moat_dma_range {
	uint64_t addr;
	uint64_t size;
};

/** struct moat_dma - one device's view; shared by its queues */
struct moat_dma {
	struct moat_memmap *guest;
	struct moat_pool *pool;
	uint8_t *pool_host;		     /* where the pool is mapped here */
	uint64_t pool_addr;		     /* device address of slot 0 */
	const struct moat_dma_range *shared; /* the share set */
	uint32_t nshared;
};

/* A segment, kept from map to unmap. */
struct moat_dma_dst {
	uint64_t guest_addr;
	uint64_t pool_off; /* MOAT_DMA_BYREF: the device wrote in place */
	uint32_t len;
};

#define MOAT_DMA_BYREF UINT64_MAX
#define MOAT_DMA_INLINE 2u
#define MOAT_DMA_PER_CHUNK 5u
#define MOAT_DMA_NO_CHUNK UINT32_MAX

struct moat_dma_chunk {
	struct moat_dma_dst dst[MOAT_DMA_PER_CHUNK];
	uint32_t next;
};

/** moat_dma_chunks() - chunks for a queue of @num; the longest chain fits */
#define moat_dma_chunks(num) \
	(MOAT_CHAIN_MAX / MOAT_DMA_PER_CHUNK + 1u + 2u * (uint32_t)(num))

/** struct moat_dma_queue - what one queue owns of the DMA layer */
struct moat_dma_queue {
	struct moat_share share;
	struct moat_run cells; /* num * MOAT_DMA_CELL bytes of the pool */
	struct moat_dma_chunk *chunks; /* caller-owned */
	uint32_t nchunks;
	uint32_t chunk_free;  /* list of chunks given back */
	uint32_t chunk_fresh; /* chunks from here on were never used */
	uint32_t chunks_left;
	bool keep; /* requests are remembered whole, for moat_dma_remap() */
	uint64_t bytes_bounced;
	uint64_t bytes_shared; /* passed by reference */
};

/** struct moat_dma_req - one mapped request; private, caller-owned, zeroed */
struct moat_dma_req {
	struct moat_run run;
	uint16_t nsrc;	/* readable segments, if they are kept, and then ... */
	uint16_t ndst;	/* ... writable ones */
	uint32_t chunk; /* those after the first MOAT_DMA_INLINE */
	struct moat_dma_dst dst[MOAT_DMA_INLINE];
};

/**
 * moat_dma_queue_init() - cells and chunks of a queue of @num requests
 * @chunks: moat_dma_chunks(@num) caller-owned entries
 *
 * The share is opened by the caller (moat_share_open()).
 *
 * Return: 0, or -1 if the pool has no room for the cells.
 */
int moat_dma_queue_init(struct moat_dma *dma, struct moat_dma_queue *q,
			uint32_t num, struct moat_dma_chunk *chunks);

/** moat_dma_queue_fini() - give cells and share back; no request is mapped */
void moat_dma_queue_fini(struct moat_dma *dma, struct moat_dma_queue *q);

/**
 * moat_dma_alloc_coherent() - zeroed memory that both sides see, for rings
 * @bytes: rounded up to slots
 * @dev_addr: set to its address for the device
 * @run: for moat_dma_free_coherent()
 *
 * Return: host pointer, or NULL if the pool has no room.
 */
void *moat_dma_alloc_coherent(struct moat_dma *dma, uint64_t bytes,
			      uint64_t *dev_addr, struct moat_run *run);
void moat_dma_free_coherent(struct moat_dma *dma, struct moat_run *run);

/** enum moat_dma_result - of moat_dma_map() */
enum moat_dma_result {
	MOAT_DMA_OK,
	MOAT_DMA_LATER, /* no room now: leave the request in the ring */
	MOAT_DMA_NEVER, /* larger than any run this queue can get */
};

/** struct moat_dma_mapped - a request as the device will see it */
struct moat_dma_mapped {
	struct moat_seg seg[MOAT_CHAIN_MAX]; /* device addresses */
	void *table; /* room for an indirect table, if asked for */
	uint64_t table_addr;
	uint64_t need; /* MOAT_DMA_NEVER: bytes of pool it would take */
};

/**
 * moat_dma_map() - map a request and copy its readable bytes in
 * @cell: number of the request's cell, below the queue's num
 * @chain: as walked from the guest's ring
 * @table: make room for an indirect table as well
 * @req: kept by the caller until moat_dma_unmap()
 * @out: scratch; the device's segments
 *
 * On anything but MOAT_DMA_OK nothing is held.
 */
enum moat_dma_result moat_dma_map(struct moat_dma *dma,
				  struct moat_dma_queue *q, uint32_t cell,
				  const struct moat_chain *chain, bool table,
				  struct moat_dma_req *req,
				  struct moat_dma_mapped *out);

/**
 * moat_dma_sync_for_cpu() - copy what the device wrote back to the guest
 * @len: bytes, from the first writable one on; clamped to what was posted
 *
 * Return: 0, or -1 if a segment is no longer guest memory.
 */
int moat_dma_sync_for_cpu(struct moat_dma *dma, struct moat_dma_queue *q,
			  const struct moat_dma_req *req, uint64_t len);

/** moat_dma_sync_for_device() - copy readable segments in again */
int moat_dma_sync_for_device(struct moat_dma *dma,
			     const struct moat_chain *chain,
			     const struct moat_dma_mapped *out);

/**
 * moat_dma_unmap() - moat_dma_sync_for_cpu() of @len bytes, then release
 *
 * Return: as moat_dma_sync_for_cpu(); the request is released either way.
 */
int moat_dma_unmap(struct moat_dma *dma, struct moat_dma_queue *q,
		   struct moat_dma_req *req, uint64_t len);

/*
 * A device that is lost is given its requests again by another one. For queues
 * that keep their requests:
 *
 *     map ... drop (the device is gone) ... recall, remap ... unmap
 */

/** moat_dma_drop() - release a request's memory; what it was is kept */
void moat_dma_drop(struct moat_dma *dma, struct moat_dma_queue *q,
		   struct moat_dma_req *req);

/**
 * moat_dma_recall() - a dropped request, as it was when it was mapped
 * @chain: filled in, but for the head; nothing of it is read from the guest
 */
void moat_dma_recall(const struct moat_dma_queue *q,
		     const struct moat_dma_req *req, struct moat_chain *chain);

/**
 * moat_dma_remap() - map a dropped request again
 * @chain: from moat_dma_recall()
 *
 * As moat_dma_map(); on anything but MOAT_DMA_OK it is still a dropped one.
 */
enum moat_dma_result moat_dma_remap(struct moat_dma *dma,
				    struct moat_dma_queue *q, uint32_t cell,
				    const struct moat_chain *chain, bool table,
				    struct moat_dma_req *req,
				    struct moat_dma_mapped *out);

#endif
