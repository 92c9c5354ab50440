/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "guard/session.h"
#include "guard/vring.h"
#include "os/clock.h"
#include "os/fd.h"

/* A stopping queue waits this long in all for requests under way. */
#define DRAIN_TOTAL_MS 10000u
/* Room for requests below this is no use to any driver. */
#define ROOM_MIN (8u * MOAT_SLOT_SIZE)

static void on_broken(void *arg, const struct moat_fault *fault);

struct moat_vring_ctl *moat_vring_new(struct moat_session *s, uint32_t index)
{
	struct moat_vring_ctl *v = calloc(1, sizeof(*v));

	if (!v)
		return NULL;
	v->index = index;
	v->session = s;
	v->kick_fd = v->call_fd = v->err_fd = v->back_call_fd = -1;
	v->rq.kick.fd = v->rq.call.fd = v->rq.kick_fd = v->rq.call_fd = -1;
	return v;
}

void moat_vring_free(struct moat_vring_ctl *v)
{
	if (!v)
		return;
	moat_vring_stop(v);
	moat_fd_close(&v->kick_fd);
	moat_fd_close(&v->call_fd);
	moat_fd_close(&v->err_fd);
	free(v);
}

static bool overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
	return a < b ? b - a < a_len : a - b < b_len;
}

/* Find and check the guest's ring (virtio 1.4, 2.7). */
static int find_ring(struct moat_vring_ctl *v, struct moat_vring *ring)
{
	struct moat_session *s = v->session;
	const struct moat_vu_vring_addr *a = &v->addr;
	uint32_t dn = moat_vring_desc_size(v->num);
	uint32_t an = moat_vring_avail_size(v->num);
	uint32_t un = moat_vring_used_size(v->num);

	if (!moat_vring_num_ok(v->num) || !v->has_addr) {
		log_err(s->log,
			"queue %u: kick before size and addresses were set: "
			"refused; the front-end has to send SET_VRING_NUM and "
			"SET_VRING_ADDR first",
			v->index);
		return -EINVAL;
	}
	if (a->desc % 16 || a->avail % 2 || a->used % 4 ||
	    overlap(a->desc, dn, a->avail, an) ||
	    overlap(a->desc, dn, a->used, un) ||
	    overlap(a->avail, an, a->used, un)) {
		log_err(s->log,
			"queue %u: rings at 0x%llx, 0x%llx, 0x%llx are "
			"misaligned or overlap: refused; fix the guest's driver",
			v->index, (unsigned long long)a->desc,
			(unsigned long long)a->avail,
			(unsigned long long)a->used);
		return -EINVAL;
	}
	ring->num = (uint16_t)v->num;
	ring->desc = moat_memmap_user(&s->memmap, a->desc, dn);
	ring->avail = moat_memmap_user(&s->memmap, a->avail, an);
	ring->used = moat_memmap_user(&s->memmap, a->used, un);
	if (!ring->desc || !ring->avail || !ring->used) {
		log_err(s->log,
			"queue %u: a ring at 0x%llx, 0x%llx or 0x%llx lies "
			"outside guest memory: refused; fix the guest's driver",
			v->index, (unsigned long long)a->desc,
			(unsigned long long)a->avail,
			(unsigned long long)a->used);
		return -EFAULT;
	}
	/* Mappings are page-aligned, but regions need not be in user space. */
	if ((uintptr_t)ring->desc % 16 || (uintptr_t)ring->avail % 2 ||
	    (uintptr_t)ring->used % 4)
		return -EINVAL;
	return 0;
}

/* Private memory of one queue, in one piece. */
struct storage {
	uint8_t *outstanding;
	struct moat_drvq_desc *descs;
	struct moat_dma_req *reqs;
	struct moat_dma_chunk *chunks;
	uint64_t *share_bits;
};

static int get_storage(struct moat_vring_ctl *v, uint32_t share_slots,
		       struct storage *st)
{
	size_t descs = v->num * sizeof(*st->descs);
	size_t reqs = v->num * sizeof(*st->reqs);
	size_t chunks = moat_dma_chunks(v->num) * sizeof(*st->chunks);
	size_t bits = moat_pool_words(share_slots) * sizeof(uint64_t);
	uint8_t *p = calloc(1, descs + reqs + chunks + bits +
				       moat_devq_storage(v->num));

	if (!p)
		return -ENOMEM;
	v->storage = p;
	st->descs = (void *)p;
	st->reqs = (void *)(p + descs);
	st->chunks = (void *)(p + descs + reqs);
	st->share_bits = (void *)(p + descs + reqs + chunks);
	st->outstanding = p + descs + reqs + chunks + bits;
	return 0;
}

static uint64_t round_up(uint64_t v, uint64_t to)
{
	return (v + to - 1) / to * to;
}

/* The backend's ring: one piece of the pool for all three parts. */
static int make_back_ring(struct moat_vring_ctl *v, struct moat_vring *ring)
{
	uint64_t avail = moat_vring_desc_size(v->num);
	uint64_t used = round_up(avail + moat_vring_avail_size(v->num), 64);
	uint64_t size = used + moat_vring_used_size(v->num);
	uint8_t *p = moat_dma_alloc_coherent(&v->session->runner.relay.dma,
					     size, &v->ring_addr, &v->ring_run);

	if (!p)
		return -ENOSPC;
	*ring = (struct moat_vring){
		.desc = p,
		.avail = p + avail,
		.used = p + used,
		.num = (uint16_t)v->num,
	};
	return 0;
}

/* A pool that would do: this queue's size, for all queues, plus as much room. */
static uint64_t pool_needed(const struct moat_vring_ctl *v)
{
	uint64_t fixed = round_up(26u * v->num + 128, MOAT_SLOT_SIZE) +
			 round_up((uint64_t)v->num * MOAT_DMA_CELL,
				  MOAT_SLOT_SIZE);

	return round_up(v->session->max_vrings * (fixed + 2 * ROOM_MIN),
			MOAT_BIT(20));
}

static int build(struct moat_vring_ctl *v, const struct moat_vring *front)
{
	struct moat_session *s = v->session;
	struct moat_dma *dma = &s->runner.relay.dma;
	struct moat_relay_queue *q = &v->rq.relay;
	uint64_t back_features = moat_policy_accept(s->client.features,
						    s->accepted);
	uint32_t share = s->pool.slots / 2 / s->max_vrings;
	struct moat_vring back;
	struct storage st;
	int ret = get_storage(v, share, &st);

	if (ret)
		return ret;
	*q = (struct moat_relay_queue){ .reqs = st.reqs };
	ret = make_back_ring(v, &back);
	if (!ret && moat_dma_queue_init(dma, &q->dma, v->num, st.chunks))
		ret = -ENOSPC;
	/* Without a share of its own the queue lives on the common part. */
	if (!ret)
		moat_share_open(&s->pool, &q->dma.share, share, st.share_bits);
	if (!ret && moat_pool_limit(&s->pool, &q->dma.share) <
			    ROOM_MIN >> MOAT_SLOT_SHIFT)
		ret = -ENOSPC;
	if (ret) {
		log_err(s->log,
			"queue %u: the pool of %llu KiB is too small for its "
			"queues (%u of size %u): refused; use --pool-size=%lluM "
			"or more",
			v->index, (unsigned long long)s->pool_mem.size >> 10,
			s->max_vrings, v->num,
			(unsigned long long)pool_needed(v) >> 20);
		return ret;
	}
	moat_devq_init(&q->dev, front, st.outstanding, (uint16_t)v->base,
		       s->accepted & MOAT_BIT(VIRTIO_F_EVENT_IDX),
		       s->accepted & MOAT_BIT(VIRTIO_F_INDIRECT_DESC));
	moat_drvq_init(&q->drv, &back, st.descs,
		       back_features & MOAT_BIT(VIRTIO_F_EVENT_IDX),
		       back_features & MOAT_BIT(VIRTIO_F_INDIRECT_DESC));
	q->enabled = v->enabled;
	return 0;
}

/* Undo build() and make_fds(), however far they got. */
static void tear_down(struct moat_vring_ctl *v)
{
	struct moat_dma *dma = &v->session->runner.relay.dma;

	moat_dma_queue_fini(dma, &v->rq.relay.dma);
	moat_dma_free_coherent(dma, &v->ring_run);
	moat_fd_close(&v->rq.kick_fd);
	moat_fd_close(&v->back_call_fd);
	free(v->storage);
	v->storage = NULL;
	v->started = false;
}

static int make_fds(struct moat_vring_ctl *v)
{
	v->rq.kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	v->back_call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (v->rq.kick_fd < 0 || v->back_call_fd < 0)
		return -errno;
	v->rq.kick.fd = v->kick_fd;
	v->rq.call.fd = v->back_call_fd;
	v->rq.call_fd = v->call_fd;
	v->rq.broken = on_broken;
	v->rq.arg = v;
	return 0;
}

/* The order is the one that every backend knows: QEMU's. */
static int tell_backend(struct moat_vring_ctl *v)
{
	struct moat_session *s = v->session;
	struct moat_vu_client *c = &s->client;
	uint64_t user = v->ring_addr - MOAT_POOL_GUEST_ADDR +
			MOAT_POOL_USER_ADDR;
	uint64_t avail = moat_vring_desc_size(v->num);
	struct moat_vu_vring_addr addr = {
		.index = v->index,
		.desc = user,
		.avail = user + avail,
		.used = user +
			round_up(avail + moat_vring_avail_size(v->num), 64),
	};
	int ret;

	ret = moat_vu_client_vring(c, VHOST_USER_SET_VRING_NUM, v->index,
				   v->num);
	if (!ret)
		ret = moat_vu_client_vring(c, VHOST_USER_SET_VRING_BASE,
					   v->index, 0);
	if (!ret)
		ret = moat_vu_client_vring_addr(c, &addr);
	if (!ret)
		ret = moat_vu_client_vring_fd(c, VHOST_USER_SET_VRING_CALL,
					      v->index, v->back_call_fd);
	if (!ret)
		ret = moat_vu_client_vring_fd(c, VHOST_USER_SET_VRING_KICK,
					      v->index, v->rq.kick_fd);
	if (!ret && s->client.features &
			    MOAT_BIT(VHOST_USER_F_PROTOCOL_FEATURES))
		ret = moat_vu_client_vring(c, VHOST_USER_SET_VRING_ENABLE,
					   v->index, v->enabled);
	return ret;
}

int moat_vring_start(struct moat_vring_ctl *v)
{
	struct moat_session *s = v->session;
	struct moat_vring front;
	int ret = find_ring(v, &front);

	if (ret)
		return ret;
	ret = build(v, &front);
	if (!ret)
		ret = make_fds(v);
	if (!ret)
		ret = tell_backend(v);
	if (!ret) {
		ret = moat_runner_attach(&s->runner, &v->rq);
		if (ret)
			log_err(s->log,
				"queue %u: its kick fd can not be waited on "
				"(%s): refused; it has to be an eventfd",
				v->index, strerror(-ret));
	}
	if (ret) {
		tear_down(v);
		return ret;
	}
	v->started = true;
	log_debug(s->log, "queue %u: started, size %u, base %u%s", v->index,
		  v->num, v->base, v->enabled ? "" : ", disabled");
	return 0;
}

/* Let the backend finish what it has, as long as it makes progress. */
static void drain(struct moat_vring_ctl *v)
{
	struct moat_session *s = v->session;
	struct moat_relay_queue *q = &v->rq.relay;
	uint64_t now = moat_now_ns();
	uint64_t end = now + DRAIN_TOTAL_MS * (uint64_t)MOAT_NS_PER_MS;
	uint64_t quiet = s->config->type->drain_ms * (uint64_t)MOAT_NS_PER_MS;
	uint64_t next = now + quiet;
	unsigned int did;

	moat_drvq_notify_on(&q->drv);
	for (;;) {
		struct pollfd p[] = {
			{ .fd = v->back_call_fd, .events = POLLIN },
			{ .fd = s->client.conn.fd, .events = POLLIN },
			{ .fd = s->config->abort_fd, .events = POLLIN },
		};
		uint64_t ignored;

		did = moat_relay_complete(&s->runner.relay, q, UINT32_MAX);
		if (did & MOAT_RELAY_CALL)
			moat_eventfd_signal(v->call_fd);
		now = moat_now_ns();
		if (did & MOAT_RELAY_MOVED)
			next = now + quiet;
		if (!q->drv.outstanding || q->drv.fault.code ||
		    s->client.dead || now >= end || now >= next)
			return;
		if (moat_drvq_notify_on(&q->drv))
			continue;
		poll(p, 3, (int)((next - now) / MOAT_NS_PER_MS) + 1);
		if (p[1].revents || p[2].revents)
			return;
		if (p[0].revents &&
		    read(v->back_call_fd, &ignored, sizeof(ignored)) < 0)
			continue;
	}
}

int moat_vring_stop(struct moat_vring_ctl *v)
{
	struct moat_session *s = v->session;
	struct moat_relay_queue *q = &v->rq.relay;
	uint32_t back_base, lost;
	int ret;

	if (!v->started)
		return 0;
	moat_runner_detach(&s->runner, &v->rq);
	q->enabled = false;
	moat_alarm_on(s->config->alarm);
	drain(v);
	if (!moat_runner_busy(&s->runner))
		moat_alarm_off(s->config->alarm);
	back_base = q->drv.avail_published;
	ret = moat_vu_client_get_vring_base(&s->client, v->index, &back_base);
	/* Whatever the backend finished before it answered. */
	if (moat_relay_complete(&s->runner.relay, q, UINT32_MAX) &
	    MOAT_RELAY_CALL)
		moat_eventfd_signal(v->call_fd);
	v->base = moat_relay_stop(&s->runner.relay, q, (uint16_t)back_base,
				  &lost);
	if (lost && !s->client.dead)
		log_warn(s->log,
			 "queue %u: stopped with %u requests still at the "
			 "backend",
			 v->index, lost);
	log_debug(s->log,
		  "queue %u: stopped at base %u; %llu requests, %llu bytes "
		  "bounced, %llu waits, pool high water %u KiB",
		  v->index, v->base, (unsigned long long)q->stats.requests,
		  (unsigned long long)q->dma.bytes_bounced,
		  (unsigned long long)q->stats.waits,
		  s->pool.stats.high_water << (MOAT_SLOT_SHIFT - 10));
	tear_down(v);
	moat_runner_wake_starved(&s->runner);
	return ret;
}

int moat_vring_enable(struct moat_vring_ctl *v, bool enable)
{
	struct moat_session *s = v->session;

	v->enabled = enable;
	if (!v->started)
		return 0;
	v->rq.relay.enabled = enable;
	moat_runner_wake(&s->runner, &v->rq);
	if (!(s->client.features & MOAT_BIT(VHOST_USER_F_PROTOCOL_FEATURES)))
		return 0;
	return moat_vu_client_vring(&s->client, VHOST_USER_SET_VRING_ENABLE,
				    v->index, enable);
}

int moat_vring_remap(struct moat_vring_ctl *v)
{
	struct moat_vring front;
	int ret = find_ring(v, &front);

	if (!ret)
		v->rq.relay.dev.ring = front;
	return ret;
}

int moat_vring_set_kick_fd(struct moat_vring_ctl *v, int *fd)
{
	struct moat_session *s = v->session;
	int ret = 0;

	if (!v->started) {
		moat_fd_close(&v->kick_fd);
		v->kick_fd = moat_fd_take(fd);
		return 0;
	}
	moat_loop_unwatch(s->loop, &v->rq.kick);
	moat_fd_close(&v->kick_fd);
	v->kick_fd = moat_fd_take(fd);
	v->rq.kick.fd = v->kick_fd;
	if (v->kick_fd >= 0 && !v->rq.said_broken)
		ret = moat_loop_watch(s->loop, &v->rq.kick, true);
	moat_runner_wake(&s->runner, &v->rq);
	return ret;
}

void moat_vring_set_call_fd(struct moat_vring_ctl *v, int *fd)
{
	moat_fd_close(&v->call_fd);
	v->call_fd = moat_fd_take(fd);
	v->rq.call_fd = v->call_fd;
	/* A call that went to the old fd may have been lost. */
	if (v->started)
		moat_eventfd_signal(v->call_fd);
}

/* The data plane found the queue broken: say it once, everywhere. */
static void on_broken(void *arg, const struct moat_fault *fault)
{
	struct moat_vring_ctl *v = arg;
	struct moat_session *s = v->session;

	if (fault->code == MOAT_FAULT_TOO_BIG)
		log_err(s->log,
			"queue %u broken: a request needs %llu bytes of pool "
			"in one piece and at most %llu can be had; use "
			"--pool-size=%lluM or more",
			v->index, (unsigned long long)fault->value,
			(unsigned long long)fault->limit,
			(unsigned long long)(2 * fault->value +
					     s->pool.carved_end *
						     (uint64_t)MOAT_SLOT_SIZE +
					     MOAT_BIT(20)) >>
				20);
	else
		log_err(s->log,
			"queue %u broken: %s (value 0x%llx, limit 0x%llx); %s",
			v->index, moat_fault_text(fault->code),
			(unsigned long long)fault->value,
			(unsigned long long)fault->limit,
			moat_fault_cure(fault->code));
	s->status |= VIRTIO_STATUS_NEEDS_RESET;
	s->config_changed = true;
	moat_eventfd_signal(v->err_fd);
}
