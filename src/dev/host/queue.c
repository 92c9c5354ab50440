/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dev/host/host.h"
#include "dev/host/worker.h"
#include "os/fd.h"

#define BUDGET 64u /* requests of one queue in one turn */
/*
 * Done in one turn before the driver may see them: requests, and bytes. A few
 * at first, for a driver that sleeps takes a while to wake; then more, for each
 * look at it has a price.
 */
#define BATCH_FIRST 4u
#define BATCH 16u
#define BATCH_BYTES 65536u

#define U(x) ((unsigned long long)(x))

static struct moat_slot *slot_of(struct moat_queue *q, uint16_t head)
{
	return (void *)(q->slots + head * q->slot_size);
}

/* ---- requests ---- */

/* Pieces of memory of one segment; it may cross regions. */
static uint32_t pieces_of(struct moat_memmap *map, const struct moat_seg *seg,
			  struct iovec *iov, uint32_t room)
{
	uint64_t addr = seg->addr, left = seg->len, got;
	uint32_t n = 0;

	while (left) {
		/* The walk found each byte of it in this very map. */
		uint8_t *p = moat_memmap_at(map, addr, left, &got);

		if (n < room)
			iov[n] = (struct iovec){ p, (size_t)got };
		n++;
		addr += got;
		left -= got;
	}
	return n;
}

static uint32_t pieces(struct moat_memmap *map, const struct moat_seg *seg,
		       uint32_t nseg, struct iovec *iov, uint32_t room)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < nseg; i++)
		n += pieces_of(map, &seg[i], iov + n, n < room ? room - n : 0);
	return n;
}

/* For chains that the slot itself has no room for; kept for the next. */
static struct iovec *spill_for(struct moat_slot *s, uint32_t n)
{
	if (n > s->spill_n) {
		struct iovec *p = realloc(s->spill, n * sizeof(*p));

		if (!p)
			return NULL;
		s->spill = p;
		s->spill_n = n;
	}
	return s->spill;
}

static int fill_slot(struct moat_queue *q, struct moat_slot *s,
		     struct moat_memmap *map, const struct moat_chain *c)
{
	uint32_t nseg = (uint32_t)c->nread + c->nwrite;
	uint32_t nr, n, room = MOAT_HOST_IOV;
	struct iovec *iov = s->iov;

	/* Lookups are what a small request costs most: once, if they fit. */
	nr = pieces(map, c->seg, c->nread, iov, room);
	n = nr + pieces(map, c->seg + c->nread, c->nwrite, iov + nr,
			nr < room ? room - nr : 0);
	if (n > room) {
		iov = spill_for(s, n);
		if (!iov)
			return -ENOMEM;
		pieces(map, c->seg, nseg, iov, n);
	}
	s->req.readable = iov;
	s->req.writable = iov + nr;
	s->req.nreadable = nr;
	s->req.nwritable = n - nr;
	s->req.read_len = c->read_len;
	s->req.write_len = c->write_len;
	s->busy = true;
	q->outstanding++;
	return 0;
}

static void hand_over(struct moat_queue *q, const struct moat_chain *c)
{
	struct moat_worker *w = q->worker;
	struct moat_slot *s = slot_of(q, c->head);

	if (fill_slot(q, s, &w->map, c)) {
		q->broken_why = "is out of memory for its requests; reset the "
				"device";
		return;
	}
	q->device->config->ops->request(q->device->config->dev, w->context,
					&s->req);
}

static bool is_broken(const struct moat_queue *q)
{
	return q->devq.fault.code || q->broken_why;
}

static void say_broken(struct moat_queue *q)
{
	const struct moat_fault *f = &q->devq.fault;
	struct moat_device *d = q->device;

	if (q->said_broken)
		return;
	q->said_broken = true;
	if (q->broken_why)
		log_err(d->log, "queue %u %s", q->index, q->broken_why);
	else
		log_err(d->log,
			"queue %u broken: %s (value 0x%llx, limit 0x%llx); %s",
			q->index, moat_fault_text(f->code), U(f->value),
			U(f->limit), moat_fault_cure(f->code));
	moat_loop_unwatch(&q->worker->loop, &q->kick);
	/* Who hears of it from the err eventfd finds it in the status. */
	__atomic_store_n(&d->broken, true, __ATOMIC_RELEASE);
	moat_worker_signal(q->worker,
			   __atomic_load_n(&q->err_fd, __ATOMIC_RELAXED));
	moat_eventfd_signal(d->wake_src.fd);
}

/* The driver is waiting. An eventfd that blocks once is not tried again. */
static void call(struct moat_queue *q)
{
	int fd = __atomic_load_n(&q->call_fd, __ATOMIC_RELAXED);

	if (q->call_blocks || fd < 0 || !moat_worker_signal(q->worker, fd))
		return;
	q->call_blocks = true;
	if (!q->broken_why)
		q->broken_why = "broken: its call eventfd is full and blocks; "
				"the front-end has to make it non-blocking";
}

/* The next request is in the worker's scratch; memory is looked up in it. */
static bool next_chain(struct moat_queue *q)
{
	struct moat_worker *w = q->worker;
	int ret;

	moat_worker_refresh(w);
	ret = moat_devq_peek(&q->devq, &w->map, &w->chain);
	/* It may be in memory that came after we had looked. */
	if (ret < 0 && moat_worker_refresh(w)) {
		memset(&q->devq.fault, 0, sizeof(q->devq.fault));
		ret = moat_devq_peek(&q->devq, &w->map, &w->chain);
	}
	return ret > 0;
}

bool moat_queue_serve(struct moat_queue *q)
{
	struct moat_worker *w = q->worker;
	uint64_t bytes = 0;
	uint32_t n, batch = BATCH_FIRST;

	for (n = 0; n < BUDGET && !is_broken(q); n++) {
		if (!next_chain(q))
			break;
		if (!moat_inflight_room(&q->inflight, &q->devq))
			moat_queue_publish(q);
		moat_inflight_take(&q->inflight, &q->devq, w->chain.head);
		moat_devq_take(&q->devq, w->chain.head);
		hand_over(q, &w->chain);
		/* The driver can go on with these meanwhile. */
		bytes += w->chain.read_len + w->chain.write_len;
		if (q->npushed >= batch || bytes >= BATCH_BYTES) {
			moat_queue_publish(q);
			bytes = 0;
			if (batch < BATCH)
				batch *= 2;
		}
	}
	if (is_broken(q))
		say_broken(q);
	return n;
}

bool moat_queue_publish(struct moat_queue *q)
{
	if (!q->npushed)
		return false;
	q->npushed = 0;
	if (q->devq.fault.code)
		return true;
	moat_inflight_publish(&q->inflight, q->devq.used_next);
	if (moat_devq_publish(&q->devq))
		call(q);
	moat_inflight_published(&q->inflight);
	return true;
}

void moat_request_done(struct moat_request *req, uint32_t written)
{
	struct moat_queue *q = req->owner;
	struct moat_slot *s = slot_of(q, req->head);

	if (!s->busy)
		return;
	s->busy = false;
	q->outstanding--;
	if (written > req->write_len)
		written = (uint32_t)req->write_len;
	/* A driver that posts a head again too early can fill a batch. */
	if (q->npushed == q->devq.ring.num)
		moat_queue_publish(q);
	moat_inflight_push(&q->inflight, req->head);
	moat_devq_push(&q->devq, req->head, written);
	q->npushed++;
}

void moat_request_broken(struct moat_request *req, const char *why)
{
	struct moat_queue *q = req->owner;
	struct moat_slot *s = slot_of(q, req->head);

	if (s->busy)
		q->outstanding--;
	s->busy = false;
	q->broken_why = why;
}

/* ---- start and stop, on the worker's thread ---- */

static void queue_free(struct moat_queue *q)
{
	for (uint32_t i = 0; q->slots && i < q->devq.ring.num; i++)
		free(slot_of(q, (uint16_t)i)->spill);
	free(q->slots);
	free(q->storage);
	moat_inflight_close(&q->inflight);
	q->slots = q->storage = NULL;
}

static int queue_alloc(struct moat_queue *q)
{
	size_t data = q->device->config->ops->request_size;
	size_t align = _Alignof(max_align_t);

	q->slot_size =
		(sizeof(struct moat_slot) + data + align - 1) / align * align;
	q->slots = calloc(q->num, q->slot_size);
	q->storage = calloc(1, moat_devq_storage(q->num));
	if (!q->slots || !q->storage)
		return -ENOMEM;
	for (uint32_t i = 0; i < q->num; i++) {
		struct moat_slot *s = slot_of(q, (uint16_t)i);

		s->req.data = s + 1;
		s->req.owner = q;
		s->req.head = (uint16_t)i;
		s->req.queue = (uint16_t)q->index;
	}
	return 0;
}

/* A request that an earlier backend had begun, by its name in the records. */
static int resume_one(struct moat_queue *q, uint16_t begun,
		      struct moat_packed_desc *copy)
{
	struct moat_worker *w = q->worker;
	uint32_t n;

	if (!q->devq.ring.packed)
		return moat_devq_resume(&q->devq, &w->map, begun, &w->chain);
	n = moat_inflight_copy(&q->inflight, begun, copy);
	if (moat_devq_resume_copy(&q->devq, &w->map, copy, n, &w->chain))
		return -1;
	moat_inflight_resumed(&q->inflight, begun, w->chain.head);
	return 0;
}

/* What the driver was not to see yet must not be seen with what follows. */
static void take_back(struct moat_queue *q, const uint16_t *begun, int n,
		      struct moat_packed_desc *copy)
{
	uint32_t descs = 0;

	for (int i = 0; i < n; i++)
		descs += moat_inflight_copy(&q->inflight, begun[i], copy);
	moat_devq_take_back(&q->devq.ring, q->devq.used_next, descs);
}

/* Requests that an earlier backend had begun are begun again. */
static int resume(struct moat_queue *q, const uint16_t *begun, int n)
{
	struct moat_packed_desc *copy = NULL;

	if (!n)
		return 0;
	/* The control thread may have been told of their memory just now. */
	moat_worker_refresh(q->worker);
	if (q->devq.ring.packed) {
		copy = calloc(q->num, sizeof(*copy));
		if (!copy)
			return -ENOMEM;
		take_back(q, begun, n, copy);
	}
	for (int i = 0; i < n && !resume_one(q, begun[i], copy); i++)
		hand_over(q, &q->worker->chain);
	free(copy);
	log_info(q->device->log,
		 "queue %u: %d requests of before the restart are done again",
		 q->index, n);
	return 0;
}

static int open_records(struct moat_queue *q, const struct moat_vring *ring,
			uint16_t *begun)
{
	struct moat_device *d = q->device;
	int n = moat_inflight_open(&d->inflight, q->index, ring,
				   q->devq.used_next, begun, &q->inflight);

	if (n < 0)
		log_err(d->log,
			"queue %u: its in-flight records do not fit it: "
			"refused; the front-end has to keep them as they were",
			q->index);
	return n;
}

static void init_ring(struct moat_queue *q, const struct moat_vring *ring,
		      uint32_t base)
{
	uint64_t f = q->device->accepted;

	moat_devq_init(&q->devq, ring, q->storage, base,
		       f & MOAT_BIT(VIRTIO_F_EVENT_IDX),
		       f & MOAT_BIT(VIRTIO_F_INDIRECT_DESC));
}

/*
 * What was taken is either used or in flight: records know best. Of a packed
 * ring the requests that are resumed lead on from there by themselves.
 */
static uint32_t base_of_records(const struct moat_queue *q, int begun)
{
	uint32_t used = q->inflight.used;

	return q->inflight.packed ? used << 16 | used
				  : (uint16_t)(used + (uint32_t)begun);
}

static int watch_kick(struct moat_queue *q)
{
	int ret;

	q->kick.fd = q->kick_fd;
	ret = moat_loop_watch(&q->worker->loop, &q->kick, true);
	if (!ret)
		return 0;
	q->kick.fd = -1;
	log_err(q->device->log,
		"queue %u: its kick fd can not be waited on (%s): refused; it "
		"has to be an eventfd",
		q->index, strerror(-ret));
	return ret;
}

static int start_on_worker(struct moat_queue *q, void *arg)
{
	const struct moat_vring *ring = arg;
	const struct moat_device_ops *ops = q->device->config->ops;
	uint16_t *begun = calloc(q->num, sizeof(*begun));
	int n = begun ? queue_alloc(q) : -ENOMEM;

	q->devq.ring = *ring; /* for queue_free() */
	/* While it can still be refused: no request is begun. */
	if (!n)
		n = watch_kick(q);
	if (!n) {
		init_ring(q, ring, q->base);
		n = open_records(q, ring, begun);
	}
	if (n >= 0) {
		if (q->inflight.record)
			init_ring(q, ring, base_of_records(q, n));
		q->outstanding = q->npushed = 0;
		q->said_broken = q->call_blocks = false;
		q->broken_why = NULL;
		if (q->inflight.old && ops->resumed)
			ops->resumed(q->device->config->dev);
		n = resume(q, begun, n);
	}
	free(begun);
	if (n < 0) {
		moat_loop_unwatch(&q->worker->loop, &q->kick);
		queue_free(q);
		return n;
	}
	q->running = true;
	q->serving = q->enabled;
	/* It may have been killed between showing requests and its call. */
	if (q->inflight.old)
		call(q);
	return 0;
}

static int stop_on_worker(struct moat_queue *q, void *arg)
{
	(void)arg;
	if (!q->running)
		return 0;
	/* The device may have completed some since the last turn. */
	moat_queue_publish(q);
	moat_loop_unwatch(&q->worker->loop, &q->kick);
	q->base = moat_devq_base(&q->devq);
	q->running = q->serving = false;
	queue_free(q);
	return 0;
}

static int update_on_worker(struct moat_queue *q, void *arg)
{
	int ret = 0;

	(void)arg;
	moat_loop_unwatch(&q->worker->loop, &q->kick);
	if (q->kick_fd >= 0 && !q->said_broken)
		ret = watch_kick(q);
	q->serving = q->enabled;
	/* A call that went to the old fd may have been lost. */
	q->call_blocks = false;
	call(q);
	return ret;
}

static int find_ring(struct moat_queue *q, struct moat_vu_memory *mem,
		     struct moat_vring *ring)
{
	bool packed = q->device->accepted & MOAT_BIT(VIRTIO_F_RING_PACKED);

	return moat_vu_find_ring(mem, q->index, q->has_addr ? &q->addr : NULL,
				 q->num, packed, ring);
}

int moat_queue_remap(struct moat_queue *q, struct moat_vu_memory *mem)
{
	struct moat_vring ring;
	int ret = find_ring(q, mem, &ring);

	if (!ret)
		q->devq.ring = ring;
	else
		moat_fault_set(&q->devq.fault, MOAT_FAULT_ADDRESS, q->addr.used,
			       0);
	return ret;
}

/* ---- the same, from the control thread ---- */

int moat_queue_start(struct moat_queue *q)
{
	struct moat_vring ring;
	int ret = find_ring(q, &q->device->mem.table, &ring);

	if (!ret)
		ret = moat_worker_call(q->worker, q, true, start_on_worker,
				       &ring);
	q->started = !ret;
	if (!ret)
		moat_host_shmem_running(q->device, true);
	if (!ret)
		log_debug(q->device->log,
			  "queue %u: started, %s, size %u, base 0x%x%s",
			  q->index, ring.packed ? "packed" : "split", q->num,
			  q->base, q->enabled ? "" : ", disabled");
	return ret;
}

void moat_queue_stop(struct moat_queue *q)
{
	if (!q->started)
		return;
	moat_host_shmem_running(q->device, false);
	moat_worker_call(q->worker, q, true, stop_on_worker, NULL);
	q->started = false;
	log_debug(q->device->log, "queue %u: stopped, base 0x%x", q->index,
		  q->base);
}

int moat_queue_update(struct moat_queue *q)
{
	return moat_worker_call(q->worker, q, false, update_on_worker, NULL);
}
