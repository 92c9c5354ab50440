/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A descriptor chain, walked once into a private, bounded list of segments.
 *
 * The walk snapshots each descriptor (direct or indirect), validates the
 * snapshot and keeps it; nobody reads the table again for this request. After
 * a successful walk the following holds:
 *
 *   - seg[0 .. nread) are device-readable, seg[nread .. nread+nwrite) are
 *     device-writable, in the driver's order;
 *   - each segment lies in guest memory and none is empty (zero-length
 *     descriptors are legal and are left out);
 *   - read_len and write_len are their sums, together at most 2^32 bytes.
 */
#ifndef MOAT_CORE_CHAIN_H
#define MOAT_CORE_CHAIN_H

#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
#include "core/memmap.h"
#include "core/vring.h"

/*
 * The longest chain taken through an indirect table. The specification bounds
 * a chain by the queue size (2.7.5.3.1), but drivers exceed it with indirect
 * tables and devices accept that; 1024 is what QEMU accepts.
 */
#define MOAT_CHAIN_MAX 1024u

/**
 * struct moat_seg - one piece of a request
 * @addr: guest address, or device address once mapped (see dma.h)
 * @len: bytes, never 0
 * @tag: free for the layer that fills the list in
 */
struct moat_seg {
	uint64_t addr;
	uint32_t len;
	uint32_t tag;
};

/** struct moat_chain - one request, private to this side */
struct moat_chain {
	uint16_t head; /* names it: its first descriptor; packed: buffer id */
	uint16_t nread;
	uint16_t nwrite;
	uint64_t read_len;
	uint64_t write_len;
	struct moat_seg seg[MOAT_CHAIN_MAX];
};

/**
 * moat_chain_walk() - walk the chain that starts at descriptor @head
 * @map: guest memory
 * @ring: the queue; only its descriptor table is read
 * @head: already checked to be below the queue size
 * @indirect: whether INDIRECT_DESC was negotiated
 * @chain: filled in
 * @fault: filled in on failure
 *
 * Return: 0, or -1 with @fault set. virtio 1.4, 2.7.5.
 */
int moat_chain_walk(struct moat_memmap *map, const struct moat_vring *ring,
		    uint16_t head, bool indirect, struct moat_chain *chain,
		    struct moat_fault *fault);

/**
 * moat_chain_walk_packed() - walk the list at position @pos of a packed ring
 * @room: ring descriptors that can be available, from @pos on
 *
 * As moat_chain_walk(); the buffer id becomes @chain's head.
 *
 * Return: how many descriptors of the ring it takes, 0 if nothing is available
 * at @pos, or -1 with @fault set. virtio 1.4, 2.8.
 */
int moat_chain_walk_packed(struct moat_memmap *map,
			   const struct moat_vring *ring, uint16_t pos,
			   uint32_t room, bool indirect,
			   struct moat_chain *chain, struct moat_fault *fault);

struct moat_packed_desc;

/**
 * moat_chain_walk_copy() - walk a list that was copied out of a packed ring
 * @num: the ring's size
 * @desc: private memory
 * @n: descriptors; the list has to end with the last of them
 *
 * As moat_chain_walk_packed(), but for AVAIL and USED, which are not looked at.
 *
 * Return: 0, or -1 with @fault set.
 */
int moat_chain_walk_copy(struct moat_memmap *map, uint16_t num,
			 const struct moat_packed_desc *desc, uint32_t n,
			 bool indirect, struct moat_chain *chain,
			 struct moat_fault *fault);

#endif
