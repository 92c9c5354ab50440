/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ids that a guest holds, and the things they name.
 *
 *     id      63 ....... generation ....... 32 31 ....... index ........ 0
 *     state   63 ....... generation ....... 32 31 ....... users ........ 0
 *
 * A thing is one of the table's items, which begin with a struct fs_slot. It is
 * found by the index, without a lock, and held by one more user, but only if it
 * still has users and is of the id's generation: an id of something that has
 * gone finds nothing, however often its place was used again.
 *
 * Items stay where they are, and their memory the table's, until it ends.
 */
#ifndef MOAT_DEV_FS_TABLE_H
#define MOAT_DEV_FS_TABLE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FS_CHUNK 1024u	/* items that are allocated at a time */
#define FS_CHUNKS 4096u /* so that a table has up to 4 Mi items */

struct fs_slot {
	uint64_t state; /* atomic */
	uint32_t index;
	uint32_t next_free;
};

struct fs_table {
	size_t size; /* of an item */
	uint32_t n, max;
	uint32_t free;	     /* the first free one's index, 0: none */
	uint32_t generation; /* of places that nobody has had */
	pthread_mutex_t lock;
	uint8_t **chunks;
};

/** fs_table_init() - for @max items of @size bytes; 0 or -ENOMEM */
int fs_table_init(struct fs_table *t, size_t size, uint32_t max);
void fs_table_fini(struct fs_table *t);

/**
 * fs_table_scatter() - items from here on have ids that no other process gives
 *
 * A guest may go on with another process and still have ids of the one before:
 * they shall find nothing, not something else.
 *
 * Return: 0 or a negative errno.
 */
int fs_table_scatter(struct fs_table *t);

/**
 * fs_table_new() - an item without users, which nobody finds yet
 *
 * Indices begin at 1. All of it but its slot is as whoever had it left it, or
 * zero. fs_table_publish() or fs_table_free() follows.
 *
 * Return: NULL if the table is full or there is no memory.
 */
void *fs_table_new(struct fs_table *t);

/** fs_table_publish() - the item is filled in; it has one user */
static inline void fs_table_publish(struct fs_slot *s)
{
	__atomic_fetch_add(&s->state, 1, __ATOMIC_RELEASE);
}

/** fs_table_get() - one more user of what @id names; NULL if it is gone */
void *fs_table_get(struct fs_table *t, uint64_t id);

/** fs_table_hold() - one more user of what has users */
static inline void fs_table_hold(struct fs_slot *s)
{
	__atomic_fetch_add(&s->state, 1, __ATOMIC_RELAXED);
}

/**
 * fs_table_put() - one user less
 *
 * Return: true if that was the last: clean the item up, then call
 * fs_table_free().
 */
static inline bool fs_table_put(struct fs_slot *s)
{
	return (uint32_t)__atomic_fetch_sub(&s->state, 1, __ATOMIC_ACQ_REL) ==
	       1;
}

/** fs_table_free() - an item without users can be used again */
void fs_table_free(struct fs_table *t, struct fs_slot *s);

/** fs_table_at() - the item at @index, which may be free; NULL past the end */
void *fs_table_at(const struct fs_table *t, uint32_t index);

/** fs_slot_id() - what names an item that has users */
static inline uint64_t fs_slot_id(const struct fs_slot *s)
{
	uint64_t state = __atomic_load_n(&s->state, __ATOMIC_RELAXED);

	return (state & ~(uint64_t)UINT32_MAX) | s->index;
}

#endif
