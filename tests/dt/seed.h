/* SPDX-License-Identifier: Apache-2.0 */
/* Device trees made in memory, for the tests in C. */
#ifndef MOAT_TESTS_DT_SEED_H
#define MOAT_TESTS_DT_SEED_H

#include <stddef.h>

#define SEED_MAX 8192u
#define SEED_MMIO "/soc/virtio@a000200"
#define SEED_PCI "/pcie@10000000/blk@2,0"
#define SEED_FREE "/soc/virtio@a000000"

/**
 * seed_tree() - a tree in which everything that src/dt looks at is there
 * @buf: 8-byte aligned
 * @cells: of addresses and of sizes: 1 or 2
 *
 * RAM is 0x40000000+0x10000000 and 0x60000000+0x10000000. SEED_MMIO has the
 * pool at 0x6f000000, SEED_PCI that at 0x6e000000, each of 16 MiB; SEED_FREE
 * has none, nor has /pcie@10000000.
 *
 * Return: the size, a multiple of 8.
 */
size_t seed_tree(void *buf, unsigned int cells);

#endif
