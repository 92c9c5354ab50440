/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two ends of a queue over one ring, in one thread: what a request costs in
 * a packed ring (ours) and in a split one (theirs). A request is a disk's, of
 * three segments.
 */
#include <string.h>

#include "core/devq.h"
#include "core/drvq.h"
#include "micro.h"

#define RAM_ADDR UINT64_C(0x80000000)
#define RAM_SIZE (1u << 20)
#define NUM 128u

struct bench {
	struct moat_devq dev;
	struct moat_drvq drv;
	struct moat_memmap map;
	struct moat_region ram;
	struct moat_chain chain;
	uint32_t depth;
};

static const struct moat_seg segs[] = {
	{ .addr = RAM_ADDR, .len = 16 },
	{ .addr = RAM_ADDR + 4096, .len = 4096 },
	{ .addr = RAM_ADDR + 16, .len = 1 },
};

static void go_round(void *arg, uint64_t n)
{
	struct bench *b = arg;
	uint32_t cookie, len;

	for (uint64_t done = 0; done < n; done += b->depth) {
		for (uint32_t i = 0; i < b->depth; i++)
			moat_drvq_add(&b->drv, segs, 1, 2, i, NULL, 0);
		moat_drvq_publish(&b->drv);
		while (moat_devq_peek(&b->dev, &b->map, &b->chain) > 0) {
			moat_devq_take(&b->dev, b->chain.head);
			moat_devq_push(&b->dev, b->chain.head, 4097);
		}
		moat_devq_publish(&b->dev);
		for (uint32_t i = 0; i < b->depth; i++)
			if (moat_drvq_get(&b->drv, &cookie, &len) != 1)
				abort();
	}
}

static struct bench *set_up(bool packed, uint32_t depth)
{
	struct bench *b = micro_alloc(sizeof(*b));
	uint8_t *p = micro_memory(8192, 0);
	struct moat_vring ring = { .desc = p,
				   .avail = p + 16 * NUM,
				   .used = p + 16 * NUM + 1024,
				   .num = NUM,
				   .packed = packed };

	b->depth = depth;
	b->ram = (struct moat_region){ RAM_ADDR, RAM_SIZE, RAM_ADDR,
				       micro_memory(RAM_SIZE, 0) };
	moat_memmap_init(&b->map, &b->ram, 1);
	b->map.n = 1;
	moat_drvq_init(&b->drv, &ring, micro_alloc(NUM * sizeof(*b->drv.descs)),
		       true, false);
	moat_devq_init(&b->dev, &ring, micro_alloc(moat_devq_storage(NUM)),
		       moat_drvq_base(&b->drv), true, false);
	return b;
}

int main(int argc, char **argv)
{
	static const uint32_t depths[] = { 1, 8, 32 };
	uint64_t ms;
	int pairs;

	micro_args(argc, argv, &pairs, &ms);
	for (int i = 0; i < 3; i++) {
		struct micro_way packed = { go_round, set_up(true, depths[i]) };
		struct micro_way split = { go_round, set_up(false, depths[i]) };

		printf("{\"depth\": %u, ", depths[i]);
		micro_pairs(&packed, &split, pairs, ms);
	}
	return 0;
}
