/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In-flight records, private: loads and stores, and what the two layouts do.
 *
 * All is in native byte order. Stores are seen in program order: whoever kills
 * us must not find a later one alone.
 */
#ifndef MOAT_DEV_HOST_RECORD_H
#define MOAT_DEV_HOST_RECORD_H

#include "dev/host/inflight.h"

/* Both layouts begin so. */
enum { R_VERSION = 8, R_DESC_NUM = 10 };

static inline uint8_t moat_rec_get8(const uint8_t *p)
{
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static inline void moat_rec_set8(uint8_t *p, uint8_t v)
{
	__atomic_store_n(p, v, __ATOMIC_RELEASE);
}

static inline uint16_t moat_rec_get16(const uint8_t *p)
{
	return __atomic_load_n((const uint16_t *)p, __ATOMIC_ACQUIRE);
}

static inline void moat_rec_set16(uint8_t *p, uint16_t v)
{
	__atomic_store_n((uint16_t *)p, v, __ATOMIC_RELEASE);
}

static inline uint32_t moat_rec_get32(const uint8_t *p)
{
	return __atomic_load_n((const uint32_t *)p, __ATOMIC_ACQUIRE);
}

static inline void moat_rec_set32(uint8_t *p, uint32_t v)
{
	__atomic_store_n((uint32_t *)p, v, __ATOMIC_RELEASE);
}

static inline uint64_t moat_rec_get64(const uint8_t *p)
{
	return __atomic_load_n((const uint64_t *)p, __ATOMIC_ACQUIRE);
}

static inline void moat_rec_set64(uint8_t *p, uint64_t v)
{
	__atomic_store_n((uint64_t *)p, v, __ATOMIC_RELEASE);
}

/** struct moat_begun - a request that was under way */
struct moat_begun {
	uint64_t counter;
	uint16_t head;
};

/* A record that was zero. */
void moat_rec_split_new(struct moat_inflight_queue *q);
void moat_rec_packed_new(struct moat_inflight_queue *q);

/*
 * One that a predecessor left: bring it up to date, set the private state but
 * for the counter, and fill in what was under way, in any order.
 * Return: how many, or -EINVAL.
 */
int moat_rec_split_old(struct moat_inflight_queue *q, struct moat_begun *all);
int moat_rec_packed_old(struct moat_inflight_queue *q,
			const struct moat_vring *ring, struct moat_begun *all);

void moat_rec_split_take(struct moat_inflight_queue *q, uint16_t head);
void moat_rec_split_publish(struct moat_inflight_queue *q);
void moat_rec_split_published(struct moat_inflight_queue *q);
void moat_rec_packed_take(struct moat_inflight_queue *q,
			  const struct moat_devq *dq, uint16_t head);
void moat_rec_packed_publish(struct moat_inflight_queue *q, uint16_t used);
void moat_rec_packed_published(struct moat_inflight_queue *q);

/* Bytes of a record. */
uint64_t moat_rec_split_size(uint32_t num);
uint64_t moat_rec_packed_size(uint32_t num);

#endif
