/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What bouncing costs: moat_dma_map() and moat_dma_unmap() of a request against
 * memcpy() of the same pieces between the same places.
 *
 * The guest's buffers are taken in turn from 32 MiB, so that they come from the
 * cache as little as a guest's do; the pool hands out its lowest slots.
 */
#include <string.h>

#include "core/dma.h"
#include "micro.h"

#define RAM_ADDR UINT64_C(0x80000000)
#define RAM_SIZE (32u << 20)
#define POOL_ADDR UINT64_C(0x100000000)
#define POOL_SLOTS 4096u /* 16 MiB */
#define NUM 128u
#define PAGE 4096u

struct bench {
	struct moat_dma dma;
	struct moat_pool pool;
	struct moat_memmap map;
	struct moat_region ram;
	struct moat_dma_queue q;
	struct moat_dma_mapped mapped;
	struct moat_dma_req req;
	struct moat_chain *chains; /* a chain for each buffer */
	uint32_t nchains, next;
	uint64_t bytes;
	bool write;
};

static void map_unmap(void *arg, uint64_t n)
{
	struct bench *b = arg;

	while (n--) {
		const struct moat_chain *c = &b->chains[b->next];

		b->next = (b->next + 1) % b->nchains;
		if (moat_dma_map(&b->dma, &b->q, 0, c, false, &b->req,
				 &b->mapped))
			abort();
		moat_dma_unmap(&b->dma, &b->q, &b->req, c->write_len);
	}
}

static void plain(void *arg, uint64_t n)
{
	struct bench *b = arg;
	/* Where the pool's first run lies: after the queue's cells. */
	uint8_t *pool =
		b->dma.pool_host + (uint64_t)b->q.cells.n * MOAT_SLOT_SIZE;

	while (n--) {
		const struct moat_chain *c = &b->chains[b->next];
		uint32_t pieces = (uint32_t)c->nread + c->nwrite;
		uint8_t *p = pool;

		b->next = (b->next + 1) % b->nchains;
		for (uint32_t i = 0; i < pieces; i++) {
			uint8_t *g = b->ram.host + (c->seg[i].addr - RAM_ADDR);

			if (b->write)
				memcpy(g, p, c->seg[i].len);
			else
				memcpy(p, g, c->seg[i].len);
			p += c->seg[i].len;
		}
		/* The compiler may not know that nobody looks. */
		__asm__ volatile("" ::: "memory");
	}
}

/* Buffers side by side, or pages in an order that is not theirs. */
static void make_chains(struct bench *b, uint32_t bytes, uint32_t piece,
			bool write)
{
	uint32_t pieces = bytes / piece, room = bytes < PAGE ? PAGE : bytes;
	uint32_t pages = RAM_SIZE / PAGE, page = 0;

	b->nchains = RAM_SIZE / room;
	b->chains = micro_alloc(b->nchains * sizeof(*b->chains));
	b->next = 0;
	b->bytes = bytes;
	b->write = write;
	for (uint32_t i = 0; i < b->nchains; i++) {
		struct moat_chain *c = &b->chains[i];

		*(write ? &c->nwrite : &c->nread) = (uint16_t)pieces;
		*(write ? &c->write_len : &c->read_len) = bytes;
		for (uint32_t k = 0; k < pieces; k++) {
			uint64_t at = (uint64_t)i * room;

			if (pieces > 1) {
				at = (uint64_t)page * PAGE;
				page = (page + 4099) % pages; /* coprime */
			}
			c->seg[k] = (struct moat_seg){ .addr = RAM_ADDR + at,
						       .len = piece };
		}
	}
}

static void measure(struct bench *b, uint32_t bytes, uint32_t piece, bool write,
		    int pairs, uint64_t ms)
{
	struct micro_way ours = { map_unmap, b }, theirs = { plain, b };

	make_chains(b, bytes, piece, write);
	printf("{\"bytes\": %u, \"pieces\": %u, \"direction\": \"%s\", ", bytes,
	       bytes / piece, write ? "writable" : "readable");
	micro_pairs(&ours, &theirs, pairs, ms);
	free(b->chains);
}

static void set_up(struct bench *b)
{
	uint64_t *bits = micro_alloc(moat_pool_words(POOL_SLOTS) * 8);
	uint64_t *own = micro_alloc(moat_pool_words(POOL_SLOTS) * 8);
	struct moat_dma_chunk *chunks =
		micro_alloc(moat_dma_chunks(NUM) * sizeof(*chunks));

	b->ram = (struct moat_region){ RAM_ADDR, RAM_SIZE, RAM_ADDR,
				       micro_memory(RAM_SIZE, 1) };
	moat_memmap_init(&b->map, &b->ram, 1);
	b->map.n = 1;
	moat_pool_init(&b->pool, POOL_SLOTS, bits);
	b->dma = (struct moat_dma){
		.guest = &b->map,
		.pool = &b->pool,
		.pool_host = micro_memory(POOL_SLOTS * MOAT_SLOT_SIZE, 2),
		.pool_addr = POOL_ADDR,
	};
	if (moat_dma_queue_init(&b->dma, &b->q, NUM, chunks) ||
	    moat_share_open(&b->pool, &b->q.share, POOL_SLOTS / 2, own))
		abort();
}

int main(int argc, char **argv)
{
	static const uint32_t sizes[] = { 512, 4096, 65536, 1 << 20 };
	struct bench *b = micro_alloc(sizeof(*b));
	uint64_t ms;
	int pairs;

	micro_args(argc, argv, &pairs, &ms);
	set_up(b);
	for (unsigned int i = 0; i < 4; i++)
		for (int write = 0; write < 2; write++) {
			measure(b, sizes[i], sizes[i], write, pairs, ms);
			if (sizes[i] > PAGE)
				measure(b, sizes[i], PAGE, write, pairs, ms);
		}
	free(b);
	return 0;
}
