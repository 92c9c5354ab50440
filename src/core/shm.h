/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The only loads and stores to memory that a peer can write.
 *
 * Shared memory is hostile: its content may change between any two reads. So
 * each value is read once, with one of the verbs below, into private memory,
 * and only that copy is validated and used. The verbs are atomic at their
 * width, so a value is never torn, and volatile in effect, so the compiler can
 * not read it a second time behind our back.
 *
 * Virtio rings are little-endian (virtio 1.4, 1.4): the verbs convert.
 */
#ifndef MOAT_CORE_SHM_H
#define MOAT_CORE_SHM_H

#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define moat_le16(x) ((uint16_t)(x))
#define moat_le32(x) ((uint32_t)(x))
#define moat_le64(x) ((uint64_t)(x))
#else
#define moat_le16(x) __builtin_bswap16(x)
#define moat_le32(x) __builtin_bswap32(x)
#define moat_le64(x) __builtin_bswap64(x)
#endif

/** moat_shm_load16() - read once, no order implied */
static inline uint16_t moat_shm_load16(const void *p)
{
	return moat_le16(
		__atomic_load_n((const uint16_t *)p, __ATOMIC_RELAXED));
}

static inline uint32_t moat_shm_load32(const void *p)
{
	return moat_le32(
		__atomic_load_n((const uint32_t *)p, __ATOMIC_RELAXED));
}

static inline uint64_t moat_shm_load64(const void *p)
{
	return moat_le64(
		__atomic_load_n((const uint64_t *)p, __ATOMIC_RELAXED));
}

/**
 * moat_shm_load16_acquire() - read an index that a peer publishes
 *
 * Everything the peer wrote before it published the index is visible after.
 */
static inline uint16_t moat_shm_load16_acquire(const void *p)
{
	return moat_le16(
		__atomic_load_n((const uint16_t *)p, __ATOMIC_ACQUIRE));
}

/**
 * moat_shm_load64_acquire() - read a word whose flags a peer publishes
 *
 * For a packed ring, where flags stand in the descriptor itself (2.8.6).
 */
static inline uint64_t moat_shm_load64_acquire(const void *p)
{
	return moat_le64(
		__atomic_load_n((const uint64_t *)p, __ATOMIC_ACQUIRE));
}

/** moat_shm_store16() - write, no order implied */
static inline void moat_shm_store16(void *p, uint16_t v)
{
	__atomic_store_n((uint16_t *)p, moat_le16(v), __ATOMIC_RELAXED);
}

static inline void moat_shm_store32(void *p, uint32_t v)
{
	__atomic_store_n((uint32_t *)p, moat_le32(v), __ATOMIC_RELAXED);
}

static inline void moat_shm_store64(void *p, uint64_t v)
{
	__atomic_store_n((uint64_t *)p, moat_le64(v), __ATOMIC_RELAXED);
}

/**
 * moat_shm_store16_release() - publish an index
 *
 * Everything written before is visible to a peer that sees the new index.
 */
static inline void moat_shm_store16_release(void *p, uint16_t v)
{
	__atomic_store_n((uint16_t *)p, moat_le16(v), __ATOMIC_RELEASE);
}

/** moat_shm_store64_release() - publish a descriptor of a packed ring */
static inline void moat_shm_store64_release(void *p, uint64_t v)
{
	__atomic_store_n((uint64_t *)p, moat_le64(v), __ATOMIC_RELEASE);
}

/**
 * moat_shm_full_barrier() - order a store before a later load
 *
 * Needed wherever one side publishes an index and then looks whether the
 * other wants a notification (virtio 1.4, 2.7.13.4 and 2.7.10).
 */
static inline void moat_shm_full_barrier(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/**
 * moat_shm_copy_in() - copy payload bytes out of shared memory
 *
 * For bytes that nobody here interprets. What is interpreted is either loaded
 * with the verbs above or parsed from the private copy that this makes.
 */
static inline void moat_shm_copy_in(void *dst, const void *shared, size_t n)
{
	__builtin_memcpy(dst, shared, n);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/** moat_shm_copy_out() - copy private bytes to shared memory */
static inline void moat_shm_copy_out(void *shared, const void *src, size_t n)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	__builtin_memcpy(shared, src, n);
}

/** moat_shm_copy() - copy between two shared memories (guest RAM, pool) */
static inline void moat_shm_copy(void *dst, const void *src, size_t n)
{
	__builtin_memcpy(dst, src, n);
}

#endif
