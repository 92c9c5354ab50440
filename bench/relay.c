/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The core alone, without processes, sleeping or waking: requests per second
 * through devq, dma and drvq in one thread, against a driver and a backend that
 * share one ring.
 *
 *     ours    driver -> ring -> relay -> ring in the pool -> backend, and back
 *     theirs  driver -> ring -> backend, and back
 *
 * Driver and backend do no more than their rings ask of them. Requests are a
 * disk's: 16 bytes of header, the data, one byte of status.
 */
#include <string.h>

#include "micro.h"
#include "relay/relay.h"

#define RAM_ADDR UINT64_C(0x80000000)
#define RAM_SIZE (8u << 20)
#define POOL_ADDR UINT64_C(0x100000000)
#define POOL_SLOTS 2048u
#define NUM 128u
#define RING_SIZE 8192u /* of NUM, all three parts */
#define BUFFER 65536u	/* of guest memory for each request in flight */

struct bench {
	struct moat_relay relay;
	struct moat_pool pool;
	struct moat_memmap map;
	struct moat_region ram;
	struct moat_relay_queue q;
	struct moat_vring front, back;	    /* guest's ring, and the pool's */
	uint16_t driver_avail, driver_used; /* the driver's own indices */
	uint16_t backend_avail;
	uint32_t bytes, depth;
	bool write; /* the guest writes: the data is readable */
};

static struct moat_vring ring_at(uint8_t *p)
{
	return (struct moat_vring){ p, p + 16 * NUM, p + 16 * NUM + 1024, NUM };
}

/* Each request has descriptors and a buffer of its own, filled in once. */
static void fill_table(const struct bench *b)
{
	for (uint32_t i = 0; i < b->depth; i++) {
		uint64_t at = RAM_ADDR + RING_SIZE + (uint64_t)i * BUFFER;
		uint16_t d = (uint16_t)(3 * i);

		moat_vring_desc_store(
			b->front.desc, d,
			(struct moat_vring_desc){ at, 16, MOAT_DESC_F_NEXT,
						  (uint16_t)(d + 1) });
		moat_vring_desc_store(
			b->front.desc, d + 1u,
			(struct moat_vring_desc){
				at + 4096, b->bytes,
				(uint16_t)(MOAT_DESC_F_NEXT |
					   (b->write ? 0 : MOAT_DESC_F_WRITE)),
				(uint16_t)(d + 2) });
		moat_vring_desc_store(
			b->front.desc, d + 2u,
			(struct moat_vring_desc){ at + 16, 1, MOAT_DESC_F_WRITE,
						  0 });
	}
}

static void driver_post(struct bench *b, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		moat_shm_store16(moat_avail_ring(&b->front,
						 b->driver_avail++ % NUM),
				 (uint16_t)(3 * i));
	moat_shm_store16_release(moat_avail_idx(&b->front), b->driver_avail);
}

static void driver_reap(struct bench *b, uint32_t n)
{
	b->driver_used = (uint16_t)(b->driver_used + n);
	if (moat_shm_load16_acquire(moat_used_idx(&b->front)) != b->driver_used)
		abort();
}

/* Complete all that is in @ring. */
static void backend(struct bench *b, const struct moat_vring *ring)
{
	uint16_t idx = moat_shm_load16_acquire(moat_avail_idx(ring));
	uint32_t len = b->write ? 1 : b->bytes + 1;

	while (b->backend_avail != idx) {
		uint16_t i = b->backend_avail++ % NUM;
		uint8_t *e = moat_used_ring(ring, i);

		moat_shm_store32(e, moat_shm_load16(moat_avail_ring(ring, i)));
		moat_shm_store32(e + 4, len);
	}
	moat_shm_store16_release(moat_used_idx(ring), idx);
}

static void relayed(void *arg, uint64_t n)
{
	struct bench *b = arg;

	for (uint64_t done = 0; done < n; done += b->depth) {
		driver_post(b, b->depth);
		moat_relay_submit(&b->relay, &b->q, NUM);
		backend(b, &b->back);
		moat_relay_complete(&b->relay, &b->q, NUM);
		driver_reap(b, b->depth);
	}
}

static void straight(void *arg, uint64_t n)
{
	struct bench *b = arg;

	for (uint64_t done = 0; done < n; done += b->depth) {
		driver_post(b, b->depth);
		backend(b, &b->front);
		driver_reap(b, b->depth);
	}
}

static struct bench *set_up(uint32_t bytes, uint32_t depth, bool write)
{
	struct bench *b = micro_alloc(sizeof(*b));
	struct moat_dma *dma = &b->relay.dma;
	struct moat_drvq_desc *descs = micro_alloc(NUM * sizeof(*descs));
	struct moat_dma_chunk *chunks =
		micro_alloc(moat_dma_chunks(NUM) * sizeof(*chunks));
	struct moat_run run;
	uint64_t addr;

	b->ram = (struct moat_region){ RAM_ADDR, RAM_SIZE, RAM_ADDR,
				       micro_memory(RAM_SIZE, 0) };
	moat_memmap_init(&b->map, &b->ram, 1);
	b->map.n = 1;
	moat_pool_init(&b->pool, POOL_SLOTS,
		       micro_alloc(moat_pool_words(POOL_SLOTS) * 8));
	*dma = (struct moat_dma){
		.guest = &b->map,
		.pool = &b->pool,
		.pool_host = micro_memory(POOL_SLOTS * MOAT_SLOT_SIZE, 0),
		.pool_addr = POOL_ADDR,
	};
	b->front = ring_at(b->ram.host);
	b->back = ring_at(moat_dma_alloc_coherent(dma, RING_SIZE, &addr, &run));
	b->bytes = bytes;
	b->depth = depth;
	b->write = write;
	b->q.enabled = true;
	b->q.reqs = micro_alloc(NUM * sizeof(*b->q.reqs));
	if (moat_dma_queue_init(dma, &b->q.dma, NUM, chunks) ||
	    moat_share_open(&b->pool, &b->q.dma.share, POOL_SLOTS / 2,
			    micro_alloc(moat_pool_words(POOL_SLOTS) * 8)))
		abort();
	moat_devq_init(&b->q.dev, &b->front,
		       micro_alloc(moat_devq_storage(NUM)), 0, false, false);
	moat_drvq_init(&b->q.drv, &b->back, descs, false, false);
	fill_table(b);
	return b;
}

static void measure(uint32_t bytes, uint32_t depth, bool write, int pairs,
		    uint64_t ms)
{
	struct bench *b = set_up(bytes, depth, write);
	struct bench *plain = set_up(bytes, depth, write);
	struct micro_way ours = { relayed, b }, theirs = { straight, plain };

	printf("{\"bytes\": %u, \"depth\": %u, \"direction\": \"%s\", ", bytes,
	       depth, write ? "write" : "read");
	micro_pairs(&ours, &theirs, pairs, ms);
}

int main(int argc, char **argv)
{
	uint64_t ms;
	int pairs;

	micro_args(argc, argv, &pairs, &ms);
	for (int write = 0; write < 2; write++) {
		measure(512, 32, write, pairs, ms);
		measure(4096, 1, write, pairs, ms);
		measure(4096, 32, write, pairs, ms);
	}
	return 0;
}
