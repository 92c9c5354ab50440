/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory behind file descriptors: guest RAM that a VMM hands over, and the
 * pool that is handed to a backend.
 */
#ifndef MOAT_OS_MEM_H
#define MOAT_OS_MEM_H

#include <stdint.h>

/**
 * moat_mem_map() - map @size bytes of @fd from @offset on, shared
 * @fd: stays the caller's; the mapping outlives it
 * @out: set to the first byte
 *
 * The range must lie inside the file: a mapping beyond its end would kill the
 * process with SIGBUS at the first access.
 *
 * Return: 0, -EINVAL if the range is empty or wraps, -ERANGE if the file is
 * shorter than the range, or what mmap() says.
 */
int moat_mem_map(int fd, uint64_t offset, uint64_t size, uint8_t **out);

/** moat_mem_unmap() - undo moat_mem_map() */
void moat_mem_unmap(uint8_t *p, uint64_t size);

/** struct moat_pool_mem - the pool's memory, one sealed memfd */
struct moat_pool_mem {
	int fd;
	uint8_t *host;
	uint64_t size; /* bytes */
};

/**
 * moat_pool_mem_create() - a memfd named "moat-pool" of @size zero bytes
 *
 * It is sealed against shrinking and growing, so that a backend can neither
 * take it from under us (SIGBUS) nor grow it without bound. Pages are only
 * allocated when touched.
 *
 * Return: 0 or a negative errno; on failure nothing is held.
 */
int moat_pool_mem_create(struct moat_pool_mem *pool, uint64_t size);
void moat_pool_mem_destroy(struct moat_pool_mem *pool);

#endif
