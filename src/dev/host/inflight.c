/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/shm.h"
#include "core/vring.h"
#include "dev/host/inflight.h"
#include "os/fd.h"
#include "os/mem.h"

/*
 * A queue's record (vhost-user, "Inflight I/O tracking", split virtqueue), in
 * native byte order: u64 features, u16 version, u16 desc_num,
 * u16 last_batch_head, u16 used_idx, then for each descriptor
 * u8 inflight, u8 padding[5], u16 next, u64 counter.
 */
enum { VERSION = 8, DESC_NUM = 10, BATCH_HEAD = 12, USED_IDX = 14, DESCS = 16 };
enum { D_INFLIGHT = 0, D_NEXT = 6, D_COUNTER = 8, D_SIZE = 16 };

#define ALIGN 64u

static uint64_t record_size(uint32_t num)
{
	return (DESCS + (uint64_t)num * D_SIZE + ALIGN - 1) / ALIGN * ALIGN;
}

static uint16_t get16(const uint8_t *p)
{
	return __atomic_load_n((const uint16_t *)p, __ATOMIC_ACQUIRE);
}

/* In program order: whoever kills us must not find a later store alone. */
static void set16(uint8_t *p, uint16_t v)
{
	__atomic_store_n((uint16_t *)p, v, __ATOMIC_RELEASE);
}

static uint8_t *desc_of(const struct moat_inflight_queue *q, uint16_t head)
{
	return q->record + DESCS + (size_t)head * D_SIZE;
}

static void set_inflight(const struct moat_inflight_queue *q, uint16_t head,
			 uint8_t on)
{
	__atomic_store_n(desc_of(q, head) + D_INFLIGHT, on, __ATOMIC_RELEASE);
}

static bool is_inflight(const struct moat_inflight_queue *q, uint16_t head)
{
	return __atomic_load_n(desc_of(q, head) + D_INFLIGHT,
			       __ATOMIC_ACQUIRE) == 1;
}

static uint64_t counter_of(const struct moat_inflight_queue *q, uint16_t head)
{
	return __atomic_load_n((uint64_t *)(desc_of(q, head) + D_COUNTER),
			       __ATOMIC_ACQUIRE);
}

void moat_inflight_init(struct moat_inflight *f)
{
	*f = (struct moat_inflight){ .fd = -1 };
}

void moat_inflight_fini(struct moat_inflight *f)
{
	moat_mem_unmap(f->host, f->size);
	moat_fd_close(&f->fd);
	moat_inflight_init(f);
}

int moat_inflight_make(struct moat_inflight *f, struct moat_vu_inflight *want)
{
	uint64_t size = want->num_queues * record_size(want->queue_size);
	int fd, ret;

	if (!want->num_queues || want->num_queues > MOAT_VU_VRINGS_MAX ||
	    !moat_vring_num_ok(want->queue_size))
		return -EINVAL;
	moat_inflight_fini(f);
	fd = memfd_create("moat-inflight", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	want->mmap_size = size;
	want->mmap_offset = 0;
	ret = ftruncate(fd, (off_t)size) ? -errno
					 : moat_inflight_adopt(f, want, fd);
	if (ret)
		moat_fd_close(&fd);
	else
		f->fd = fd;
	return ret;
}

int moat_inflight_adopt(struct moat_inflight *f,
			const struct moat_vu_inflight *given, int fd)
{
	uint64_t need = given->num_queues * record_size(given->queue_size);
	uint8_t *host;
	int ret;

	if (!given->num_queues || given->num_queues > MOAT_VU_VRINGS_MAX ||
	    !moat_vring_num_ok(given->queue_size) || given->mmap_size < need ||
	    given->mmap_offset % ALIGN)
		return -EINVAL;
	ret = moat_mem_map(fd, given->mmap_offset, need, &host);
	if (ret)
		return ret;
	moat_inflight_fini(f);
	f->host = host;
	f->size = need;
	f->num_queues = given->num_queues;
	f->queue_size = given->queue_size;
	return 0;
}

struct begun {
	uint64_t counter;
	uint16_t head;
};

static int by_counter(const void *a, const void *b)
{
	const struct begun *x = a, *y = b;

	return x->counter < y->counter ? -1 : x->counter > y->counter;
}

/* The last batch went out, and that was not noted any more. */
static int settle(struct moat_inflight_queue *q, uint16_t used_idx)
{
	uint16_t n = (uint16_t)(used_idx - get16(q->record + USED_IDX));
	uint16_t head = get16(q->record + BATCH_HEAD);

	/* More than a batch can hold: another queue's life, nothing of it. */
	for (; n && n <= q->num && head < q->num; n--) {
		set_inflight(q, head, 0);
		head = get16(desc_of(q, head) + D_NEXT);
	}
	if (head >= q->num)
		return -EINVAL;
	set16(q->record + USED_IDX, used_idx);
	return 0;
}

static int collect(struct moat_inflight_queue *q, uint16_t *heads)
{
	struct begun *all = calloc(q->num, sizeof(*all));
	int n = 0;

	if (!all)
		return -ENOMEM;
	for (uint32_t h = 0; h < q->num; h++)
		if (is_inflight(q, (uint16_t)h))
			all[n++] = (struct begun){ counter_of(q, (uint16_t)h),
						   (uint16_t)h };
	qsort(all, (size_t)n, sizeof(*all), by_counter);
	for (int i = 0; i < n; i++)
		heads[i] = all[i].head;
	if (n)
		q->counter = all[n - 1].counter + 1;
	free(all);
	return n;
}

int moat_inflight_open(struct moat_inflight *f, uint32_t index, uint16_t num,
		       uint16_t used_idx, uint16_t *heads,
		       struct moat_inflight_queue *q)
{
	int ret;

	*q = (struct moat_inflight_queue){ .num = num };
	if (!f->host)
		return 0;
	if (index >= f->num_queues || num > f->queue_size)
		return -EINVAL;
	q->record = f->host + index * record_size(f->queue_size);
	if (!get16(q->record + VERSION)) {
		/* New: all zero but these, in an order that can be cut off. */
		set16(q->record + DESC_NUM, num);
		set16(q->record + USED_IDX, used_idx);
		set16(q->record + VERSION, 1);
		return 0;
	}
	if (get16(q->record + VERSION) != 1 ||
	    get16(q->record + DESC_NUM) != num)
		return -EINVAL;
	ret = settle(q, used_idx);
	if (ret)
		return ret;
	q->batch_head = get16(q->record + BATCH_HEAD);
	return collect(q, heads);
}

void moat_inflight_take(struct moat_inflight_queue *q, uint16_t head)
{
	if (!q->record)
		return;
	__atomic_store_n((uint64_t *)(desc_of(q, head) + D_COUNTER),
			 q->counter++, __ATOMIC_RELEASE);
	set_inflight(q, head, 1);
}

void moat_inflight_push(struct moat_inflight_queue *q, uint16_t head)
{
	if (!q->record)
		return;
	set16(desc_of(q, head) + D_NEXT, q->batch_head);
	set16(q->record + BATCH_HEAD, head);
	q->batch_head = head;
}

void moat_inflight_published(struct moat_inflight_queue *q,
			     const uint16_t *heads, uint32_t n,
			     uint16_t used_idx)
{
	if (!q->record)
		return;
	for (uint32_t i = 0; i < n; i++)
		set_inflight(q, heads[i], 0);
	set16(q->record + USED_IDX, used_idx);
}
