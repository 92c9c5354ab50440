/* SPDX-License-Identifier: Apache-2.0 */
/* In-flight records, whatever their layout: record_split.c, record_packed.c. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dev/host/record.h"
#include "os/fd.h"
#include "os/mem.h"

#define ALIGN 64u
#define ARRAYS 5u /* of num, in struct moat_inflight_queue */

static uint64_t record_size(uint32_t num, bool packed)
{
	uint64_t size =
		packed ? moat_rec_packed_size(num) : moat_rec_split_size(num);

	return (size + ALIGN - 1) / ALIGN * ALIGN;
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

static bool sizes_ok(const struct moat_vu_inflight *w, bool packed)
{
	return w->num_queues && w->num_queues <= MOAT_VU_VRINGS_MAX &&
	       (packed ? moat_packed_num_ok(w->queue_size)
		       : moat_vring_num_ok(w->queue_size));
}

int moat_inflight_make(struct moat_inflight *f, struct moat_vu_inflight *want,
		       bool packed)
{
	uint64_t size =
		want->num_queues * record_size(want->queue_size, packed);
	int fd, ret;

	if (!sizes_ok(want, packed))
		return -EINVAL;
	moat_inflight_fini(f);
	fd = memfd_create("moat-inflight", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	want->mmap_size = size;
	want->mmap_offset = 0;
	ret = ftruncate(fd, (off_t)size)
		      ? -errno
		      : moat_inflight_adopt(f, want, packed, fd);
	if (ret)
		moat_fd_close(&fd);
	else
		f->fd = fd;
	return ret;
}

int moat_inflight_adopt(struct moat_inflight *f,
			const struct moat_vu_inflight *given, bool packed,
			int fd)
{
	uint64_t need =
		given->num_queues * record_size(given->queue_size, packed);
	uint8_t *host;
	int ret;

	if (!sizes_ok(given, packed) || given->mmap_size < need ||
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
	f->packed = packed;
	return 0;
}

static uint8_t *record_of(const struct moat_inflight *f, uint32_t index)
{
	return f->host + index * record_size(f->queue_size, f->packed);
}

void moat_inflight_forget(struct moat_inflight *f, uint32_t index)
{
	if (f->host && index < f->num_queues)
		moat_rec_set16(record_of(f, index) + R_VERSION, 0);
}

static int by_counter(const void *a, const void *b)
{
	const struct moat_begun *x = a, *y = b;

	return x->counter < y->counter ? -1 : x->counter > y->counter;
}

/* What a predecessor had begun, as it had begun it. */
static int old_record(struct moat_inflight_queue *q,
		      const struct moat_vring *ring, uint16_t *begun)
{
	struct moat_begun *all = calloc(q->num, sizeof(*all));
	int n;

	if (!all)
		return -ENOMEM;
	n = q->packed ? moat_rec_packed_old(q, ring, all)
		      : moat_rec_split_old(q, all);
	if (n > 0) {
		qsort(all, (size_t)n, sizeof(*all), by_counter);
		q->counter = all[n - 1].counter + 1;
	}
	for (int i = 0; i < n; i++)
		begun[i] = all[i].head;
	free(all);
	return n;
}

static int get_arrays(struct moat_inflight_queue *q)
{
	uint16_t *p = calloc((size_t)q->num * ARRAYS, sizeof(*p));

	if (!p)
		return -ENOMEM;
	q->batch = p;
	q->next = p + q->num;
	q->last = q->next + q->num;
	q->entry = q->last + q->num;
	q->count = q->entry + q->num;
	return 0;
}

int moat_inflight_open(struct moat_inflight *f, uint32_t index,
		       const struct moat_vring *ring, uint16_t used,
		       uint16_t *begun, struct moat_inflight_queue *q)
{
	uint16_t version;
	int ret;

	*q = (struct moat_inflight_queue){ .num = ring->num,
					   .packed = ring->packed,
					   .used = used };
	if (!f->host)
		return 0;
	if (index >= f->num_queues || ring->num > f->queue_size ||
	    ring->packed != f->packed)
		return -EINVAL;
	ret = get_arrays(q);
	if (ret)
		return ret;
	q->record = record_of(f, index);
	version = moat_rec_get16(q->record + R_VERSION);
	q->old = version;
	if (version)
		return version == 1 && moat_rec_get16(q->record + R_DESC_NUM) ==
					       q->num
			       ? old_record(q, ring, begun)
			       : -EINVAL;
	/* The version comes last: what is cut off before is new once more. */
	if (q->packed)
		moat_rec_packed_new(q);
	else
		moat_rec_split_new(q);
	moat_rec_set16(q->record + R_DESC_NUM, q->num);
	moat_rec_set16(q->record + R_VERSION, 1);
	return 0;
}

void moat_inflight_close(struct moat_inflight_queue *q)
{
	free(q->batch);
	*q = (struct moat_inflight_queue){ 0 };
}

void moat_inflight_take(struct moat_inflight_queue *q,
			const struct moat_devq *dq, uint16_t head)
{
	if (!q->record)
		return;
	if (q->packed)
		moat_rec_packed_take(q, dq, head);
	else
		moat_rec_split_take(q, head);
}

void moat_inflight_push(struct moat_inflight_queue *q, uint16_t head)
{
	/* A queue that broke publishes no more. */
	if (q->record && q->nbatch < q->num)
		q->batch[q->nbatch++] = q->packed ? q->entry[head] : head;
}

void moat_inflight_publish(struct moat_inflight_queue *q, uint16_t used)
{
	if (!q->record)
		return;
	q->used = used;
	if (q->packed)
		moat_rec_packed_publish(q, used);
	else
		moat_rec_split_publish(q);
}

void moat_inflight_published(struct moat_inflight_queue *q)
{
	if (!q->record)
		return;
	if (q->packed)
		moat_rec_packed_published(q);
	else
		moat_rec_split_published(q);
	q->nbatch = 0;
}
