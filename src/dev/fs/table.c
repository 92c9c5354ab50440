/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "dev/fs/table.h"

#define GENERATION (UINT64_C(1) << 32)

int fs_table_init(struct fs_table *t, size_t size, uint32_t max)
{
	*t = (struct fs_table){ .size = size };
	t->max = max < FS_CHUNK * FS_CHUNKS ? max : FS_CHUNK * FS_CHUNKS - 1;
	t->chunks = calloc(FS_CHUNKS, sizeof(*t->chunks));
	if (!t->chunks)
		return -ENOMEM;
	pthread_mutex_init(&t->lock, NULL);
	return 0;
}

int fs_table_scatter(struct fs_table *t)
{
	uint32_t n;

	if (getrandom(&n, sizeof(n), 0) != sizeof(n))
		return -errno;
	t->generation = n;
	return 0;
}

void fs_table_fini(struct fs_table *t)
{
	if (!t->chunks)
		return;
	for (uint32_t i = 0; i < FS_CHUNKS; i++)
		free(t->chunks[i]);
	free(t->chunks);
	t->chunks = NULL;
	pthread_mutex_destroy(&t->lock);
}

void *fs_table_at(const struct fs_table *t, uint32_t index)
{
	uint8_t *chunk;

	if (index >= FS_CHUNK * FS_CHUNKS)
		return NULL;
	chunk = __atomic_load_n(&t->chunks[index / FS_CHUNK], __ATOMIC_ACQUIRE);
	return chunk ? chunk + index % FS_CHUNK * t->size : NULL;
}

/* Under the lock: a place that nobody has had. */
static struct fs_slot *extend(struct fs_table *t)
{
	uint32_t index = t->n + 1;
	uint8_t **chunk = &t->chunks[index / FS_CHUNK], *fresh;
	struct fs_slot *s;

	if (t->n == t->max)
		return NULL;
	if (!*chunk) {
		fresh = calloc(FS_CHUNK, t->size);
		if (!fresh)
			return NULL;
		__atomic_store_n(chunk, fresh, __ATOMIC_RELEASE);
	}
	s = fs_table_at(t, index);
	s->index = index;
	__atomic_store_n(&s->state, (uint64_t)t->generation << 32,
			 __ATOMIC_RELAXED);
	__atomic_store_n(&t->n, index, __ATOMIC_RELEASE);
	return s;
}

void *fs_table_new(struct fs_table *t)
{
	struct fs_slot *s;

	pthread_mutex_lock(&t->lock);
	s = t->free ? fs_table_at(t, t->free) : extend(t);
	if (s && t->free == s->index)
		t->free = s->next_free;
	pthread_mutex_unlock(&t->lock);
	return s;
}

void *fs_table_get(struct fs_table *t, uint64_t id)
{
	struct fs_slot *s = fs_table_at(t, (uint32_t)id);
	uint64_t state;

	if (!s)
		return NULL;
	state = __atomic_load_n(&s->state, __ATOMIC_RELAXED);
	do {
		if (!(uint32_t)state || (state ^ id) >= GENERATION)
			return NULL;
	} while (!__atomic_compare_exchange_n(&s->state, &state, state + 1,
					      false, __ATOMIC_ACQUIRE,
					      __ATOMIC_RELAXED));
	return s;
}

void fs_table_free(struct fs_table *t, struct fs_slot *s)
{
	__atomic_fetch_add(&s->state, GENERATION, __ATOMIC_RELAXED);
	pthread_mutex_lock(&t->lock);
	s->next_free = t->free;
	t->free = s->index;
	pthread_mutex_unlock(&t->lock);
}
