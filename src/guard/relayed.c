/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "guard/relayed.h"
#include "guard/restart.h"
#include "guard/session.h"
#include "os/clock.h"
#include "os/fd.h"

/* Stopping queues wait this long in all for requests under way ... */
#define DRAIN_TOTAL_MS 10000u
/* ... those that are stopped within this time of each other, and each a little.
 */
#define DRAIN_TOGETHER_MS 1000u
#define DRAIN_LEAST_MS 50u
/* Once another queue of the session has waited in vain: without progress ... */
#define DRAIN_IMPATIENT_MS 50u
#define DRAIN_IMPATIENT_TOTAL_MS 500u /* ... and in all */
/* Room for requests below this is no use to any driver. */
#define ROOM_MIN (UINT64_C(8) * MOAT_SLOT_SIZE)

/* Another backend may take its place. */
static void say_broken(struct moat_vring_ctl *v, const struct moat_fault *fault)
{
	log_err(v->session->log,
		"queue %u: the backend broke its ring: %s (value 0x%llx, limit "
		"0x%llx)",
		v->index, moat_fault_text(fault->code),
		(unsigned long long)fault->value,
		(unsigned long long)fault->limit);
	moat_session_finish(v->session, MOAT_SESSION_BACKEND_BROKEN);
}

/* The data plane found the queue broken: say it once, everywhere. */
static void on_broken(void *arg, const struct moat_fault *fault)
{
	struct moat_vring_ctl *v = arg;
	struct moat_session *s = v->session;

	if (v->rq.relay.drv.fault.code && moat_restart_possible(s)) {
		say_broken(v, fault);
		return;
	}
	v->told = true;
	if (v->rq.relay.drv.fault.code && v->rq.relay.order) {
		moat_relay_abandon(&s->runner.relay, &v->rq.relay);
		moat_runner_wake_starved(&s->runner);
	}
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

/* Private memory of one queue, in one piece. */
struct storage {
	uint8_t *outstanding;
	struct moat_drvq_desc *descs;
	struct moat_dma_req *reqs;
	struct moat_dma_chunk *chunks;
	uint64_t *share_bits;
	struct moat_relay_order *order;
};

/*
 * Backends are known to reject queues larger than the front-end asked for, so
 * their ring has the same size; only that a split one is a power of two.
 */
static uint32_t back_num(const struct moat_vring_ctl *v, bool packed)
{
	uint32_t num = v->num;

	while (!packed && num & (num - 1))
		num += num & -num;
	return num;
}

static int get_storage(struct moat_vring_ctl *v, uint32_t num,
		       uint32_t share_slots, struct storage *st)
{
	size_t descs = num * sizeof(*st->descs);
	size_t reqs = v->num * sizeof(*st->reqs);
	size_t chunks = moat_dma_chunks(v->num) * sizeof(*st->chunks);
	size_t bits = moat_pool_words(share_slots) * sizeof(uint64_t);
	size_t order = moat_relay_order_storage(v->num) * sizeof(*st->order);
	uint8_t *p = calloc(1, descs + reqs + chunks + bits + order +
				       moat_devq_storage(v->num));

	if (!p)
		return -ENOMEM;
	v->storage = p;
	st->descs = (void *)p;
	st->reqs = (void *)(p + descs);
	st->chunks = (void *)(p + descs + reqs);
	st->share_bits = (void *)(p + descs + reqs + chunks);
	st->order = (void *)(p + descs + reqs + chunks + bits);
	st->outstanding = p + descs + reqs + chunks + bits + order;
	return 0;
}

static uint64_t round_up(uint64_t v, uint64_t to)
{
	return (v + to - 1) / to * to;
}

/*
 * The backend's ring: one piece of the pool for all three parts. Its size and
 * format are set, and where it begins.
 *
 * Return: its bytes.
 */
static uint64_t place_back_ring(const struct moat_vring_ctl *v,
				struct moat_vring *ring, uint8_t *p,
				uint64_t at, struct moat_vu_vring_addr *addr)
{
	uint32_t num = ring->num;
	uint64_t avail = moat_vring_desc_size(num);
	uint64_t used = round_up(
		avail + (ring->packed ? 4 : moat_vring_avail_size(num)), 64);

	if (p) {
		ring->desc = p;
		ring->avail = p + avail;
		ring->used = p + used;
	}
	at = at - MOAT_POOL_GUEST_ADDR + MOAT_POOL_USER_ADDR;
	*addr = (struct moat_vu_vring_addr){
		.index = v->index,
		.desc = at,
		.avail = at + avail,
		.used = at + used,
	};
	return used + (ring->packed ? 4 : moat_vring_used_size(num));
}

static int make_back_ring(struct moat_vring_ctl *v, struct moat_vring *ring,
			  struct moat_vu_vring_addr *addr)
{
	uint64_t at = 0, size = place_back_ring(v, ring, NULL, at, addr);
	uint8_t *p = moat_dma_alloc_coherent(&v->session->runner.relay.dma,
					     size, &at, &v->ring_run);

	if (!p)
		return -ENOSPC;
	place_back_ring(v, ring, p, at, addr);
	return 0;
}

/* A pool that would do: this queue's size, for all queues, plus as much room.
 */
static uint64_t pool_needed(const struct moat_vring_ctl *v)
{
	uint64_t fixed =
		round_up((uint64_t)v->num * 26 + 128, MOAT_SLOT_SIZE) +
		round_up((uint64_t)v->num * MOAT_DMA_CELL, MOAT_SLOT_SIZE);

	return round_up(v->session->max_vrings * (fixed + 2 * ROOM_MIN),
			MOAT_BIT(20));
}

static int build(struct moat_vring_ctl *v, const struct moat_vring *front,
		 struct moat_vu_vring_addr *addr)
{
	struct moat_session *s = v->session;
	struct moat_dma *dma = &s->runner.relay.dma;
	struct moat_relay_queue *q = &v->rq.relay;
	uint32_t share = s->pool.slots / 2 / s->max_vrings;
	bool packed = s->forwarded & MOAT_BIT(VIRTIO_F_RING_PACKED);
	struct moat_vring back = { .num = (uint16_t)back_num(v, packed),
				   .packed = packed };
	struct storage st;
	int ret = get_storage(v, back.num, share, &st);

	if (ret) {
		log_err(s->log, "queue %u: no memory for %u requests: refused",
			v->index, v->num);
		return ret;
	}
	*q = (struct moat_relay_queue){ .reqs = st.reqs };
	ret = make_back_ring(v, &back, addr);
	if (!ret && moat_dma_queue_init(dma, &q->dma, v->num, st.chunks))
		ret = -ENOSPC;
	/* Without a share of its own the queue lives on the common part. */
	if (!ret)
		moat_share_open(&s->pool, &q->dma.share, share, st.share_bits);
	if (!ret && moat_pool_limit(&s->pool, &q->dma.share) < ROOM_MIN >>
			    MOAT_SLOT_SHIFT)
		ret = -ENOSPC;
	if (ret) {
		log_err(s->log,
			"queue %u: the pool of %llu KiB is too small for its "
			"queues (%u of size %u): refused; use "
			"--pool-size=%lluM "
			"or more",
			v->index, (unsigned long long)s->pool_mem.size >> 10,
			s->max_vrings, v->num,
			(unsigned long long)pool_needed(v) >> 20);
		return ret;
	}
	moat_devq_init(&q->dev, front, st.outstanding, v->base,
		       s->accepted & MOAT_BIT(VIRTIO_F_EVENT_IDX),
		       s->accepted & MOAT_BIT(VIRTIO_F_INDIRECT_DESC));
	moat_drvq_init(&q->drv, &back, st.descs,
		       s->forwarded & MOAT_BIT(VIRTIO_F_EVENT_IDX),
		       s->forwarded & MOAT_BIT(VIRTIO_F_INDIRECT_DESC));
	q->enabled = v->enabled;
	if (s->config->restart || s->config->type->fail)
		moat_relay_keep(q, st.order);
	v->drained = v->told = false;
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
}

static int make_fds(struct moat_vring_ctl *v)
{
	v->rq.kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	v->back_call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (v->rq.kick_fd < 0 || v->back_call_fd < 0) {
		int ret = -errno;

		log_err(v->session->log,
			"queue %u: can not make an eventfd: %s: refused; allow "
			"the guard more open files (ulimit -n), five for each "
			"queue",
			v->index, strerror(-ret));
		return ret;
	}
	v->rq.kick.fd = v->kick_fd;
	v->rq.call.fd = v->back_call_fd;
	v->rq.call_fd = v->call_fd;
	v->rq.broken = on_broken;
	v->rq.arg = v;
	return 0;
}

int moat_relayed_start(struct moat_vring_ctl *v, const struct moat_vring *front)
{
	struct moat_session *s = v->session;
	const struct moat_drvq *drv = &v->rq.relay.drv;
	struct moat_vu_vring_addr addr;
	uint32_t ignored;
	int ret = build(v, front, &addr);

	if (!ret)
		ret = make_fds(v);
	if (!ret)
		ret = moat_vring_tell_backend(v, &addr, drv->ring.num,
					      moat_drvq_base(drv),
					      v->rq.kick_fd, v->back_call_fd,
					      -1);
	if (!ret) {
		ret = moat_runner_attach(&s->runner, &v->rq);
		if (ret)
			log_err(s->log,
				"queue %u: its kick fd can not be waited on "
				"(%s): refused; it has to be an eventfd",
				v->index, strerror(-ret));
		/* The backend must not go on with a ring that is taken away. */
		if (ret)
			moat_vu_client_get_vring_base(&s->client, v->index,
						      &ignored);
	}
	if (ret)
		tear_down(v);
	return ret;
}

static uint32_t patience_ms(const struct moat_vring_ctl *v)
{
	const struct moat_session *s = v->session;
	uint32_t ms =
		moat_policy_drain_ms(s->config->type, s->accepted, v->index);

	return s->impatient && ms > DRAIN_IMPATIENT_MS ? DRAIN_IMPATIENT_MS
						       : ms;
}

/* The VMM waits meanwhile, and stops one queue after another. */
static uint64_t drain_ends(struct moat_session *s, uint64_t now)
{
	uint64_t ms = MOAT_NS_PER_MS, least = now + DRAIN_LEAST_MS * ms;

	if (now > s->drained_ns + DRAIN_TOGETHER_MS * ms)
		s->drain_end_ns = now + DRAIN_TOTAL_MS * ms;
	if (s->impatient &&
	    s->drain_end_ns > now + DRAIN_IMPATIENT_TOTAL_MS * ms)
		return now + DRAIN_IMPATIENT_TOTAL_MS * ms;
	return s->drain_end_ns > least ? s->drain_end_ns : least;
}

static void wait_for_backend(struct moat_vring_ctl *v)
{
	struct moat_session *s = v->session;
	struct moat_relay_queue *q = &v->rq.relay;
	uint64_t now = moat_now_ns();
	uint64_t end = drain_ends(s, now);
	uint64_t quiet = (uint64_t)MOAT_NS_PER_MS * patience_ms(v);
	uint64_t next = now + quiet;
	unsigned int did;

	moat_drvq_notify_on(&q->drv);
	for (;;) {
		struct pollfd p[] = {
			{ .fd = v->back_call_fd, .events = POLLIN },
			{ .fd = s->client.conn.fd, .events = POLLIN },
			{ .fd = s->config->abort_fd, .events = POLLIN },
			/* A request may wait for what its device asked for. */
			{ .fd = s->client.channel.fd, .events = POLLIN },
		};
		uint64_t ignored;

		did = moat_relay_complete(&s->runner.relay, q, UINT32_MAX);
		if (did & MOAT_RELAY_CALL)
			moat_eventfd_signal(v->call_fd);
		/* Nothing but what another backend has left undone. */
		if (moat_relay_submit(&s->runner.relay, q, UINT32_MAX) &
		    MOAT_RELAY_KICK)
			moat_eventfd_signal(v->rq.kick_fd);
		now = moat_now_ns();
		if (did & MOAT_RELAY_MOVED)
			next = now + quiet;
		if ((!q->drv.outstanding && !moat_relay_replaying(q)) ||
		    q->drv.fault.code || s->client.dead || now >= end ||
		    now >= next)
			return;
		if (moat_drvq_notify_on(&q->drv))
			continue;
		poll(p, 4, (int)((next - now) / MOAT_NS_PER_MS) + 1);
		/* Another backend may finish what this one had. */
		if (p[1].revents && s->config->restart)
			moat_session_from_backend(
				s, moat_vu_client_input(&s->client));
		if (p[1].revents || p[2].revents)
			return;
		if (p[3].revents)
			moat_vu_client_channel(&s->client);
		if (p[0].revents &&
		    read(v->back_call_fd, &ignored, sizeof(ignored)) < 0)
			continue;
	}
}

void moat_relayed_drain(struct moat_vring_ctl *v)
{
	struct moat_session *s = v->session;

	v->rq.relay.enabled = false;
	if (v->drained)
		return;
	wait_for_backend(v);
	s->drained_ns = moat_now_ns();
	/* As on_broken(): what it has not done is another's. */
	if (v->rq.relay.drv.fault.code && !v->told && !s->client.dead &&
	    moat_restart_possible(s)) {
		say_broken(v, &v->rq.relay.drv.fault);
		s->client.dead = true;
	}
	v->drained = !s->client.dead;
}

int moat_relayed_stop(struct moat_vring_ctl *v)
{
	struct moat_session *s = v->session;
	struct moat_relay_queue *q = &v->rq.relay;
	uint32_t back_base, lost;
	int ret;

	moat_runner_detach(&s->runner, &v->rq);
	moat_relayed_drain(v);
	back_base = moat_drvq_base(&q->drv);
	ret = moat_vu_client_get_vring_base(&s->client, v->index, &back_base);
	/* Whatever the backend finished before it answered. */
	if (moat_relay_complete(&s->runner.relay, q, UINT32_MAX) &
	    MOAT_RELAY_CALL)
		moat_eventfd_signal(v->call_fd);
	/* All that it had is for the next one. */
	if (s->client.dead && q->order)
		moat_relay_lose(&s->runner.relay, q);
	v->base = moat_relay_stop(&s->runner.relay, q, back_base, &lost);
	s->completed += q->stats.completed;
	s->bytes_bounced += q->dma.bytes_bounced;
	s->bytes_shared += q->dma.bytes_shared;
	/* A backend that keeps requests is not waited for queue by queue. */
	if (lost)
		s->impatient = true;
	if (lost && !s->client.dead)
		log_warn(s->log,
			 "queue %u: stopped with %u requests still at the "
			 "backend",
			 v->index, lost);
	log_debug(s->log,
		  "queue %u: stopped at base 0x%x; %llu requests, %llu bytes "
		  "bounced, %llu waits, pool high water %u KiB",
		  v->index, v->base, (unsigned long long)q->stats.requests,
		  (unsigned long long)q->dma.bytes_bounced,
		  (unsigned long long)q->stats.waits,
		  s->pool.stats.high_water << (MOAT_SLOT_SHIFT - 10));
	tear_down(v);
	moat_runner_wake_starved(&s->runner);
	return ret;
}

void moat_relayed_lose(struct moat_vring_ctl *v)
{
	struct moat_session *s = v->session;

	moat_runner_detach(&s->runner, &v->rq);
	if (moat_relay_complete(&s->runner.relay, &v->rq.relay, UINT32_MAX) &
	    MOAT_RELAY_CALL)
		moat_eventfd_signal(v->call_fd);
	moat_relay_lose(&s->runner.relay, &v->rq.relay);
	/* It can do what it likes with those that it has. */
	moat_fd_close(&v->rq.kick_fd);
	moat_fd_close(&v->back_call_fd);
}

static void find_back_ring(struct moat_vring_ctl *v, struct moat_vring *ring,
			   struct moat_vu_vring_addr *addr)
{
	struct moat_session *s = v->session;
	uint64_t off = (uint64_t)v->ring_run.first << MOAT_SLOT_SHIFT;

	*ring = v->rq.relay.drv.ring;
	place_back_ring(v, ring, s->pool_mem.host + off,
			MOAT_POOL_GUEST_ADDR + off, addr);
}

void moat_relayed_renew(struct moat_vring_ctl *v)
{
	struct moat_drvq *drv = &v->rq.relay.drv;
	struct moat_vu_vring_addr addr;
	struct moat_vring ring;

	find_back_ring(v, &ring, &addr);
	moat_drvq_init(drv, &ring, drv->descs, drv->event_idx, drv->indirect);
	/* It stays broken. */
	if (v->told)
		moat_fault_set(&drv->fault, MOAT_FAULT_GONE, 0, 0);
}

int moat_relayed_resume(struct moat_vring_ctl *v)
{
	struct moat_session *s = v->session;
	struct moat_drvq *drv = &v->rq.relay.drv;
	struct moat_vu_vring_addr addr;
	struct moat_vring ring;
	int ret;

	find_back_ring(v, &ring, &addr);
	ret = make_fds(v);
	if (!ret)
		ret = moat_vring_tell_backend(v, &addr, ring.num,
					      moat_drvq_base(drv),
					      v->rq.kick_fd, v->back_call_fd,
					      -1);
	if (ret || v->told)
		return ret;
	return moat_runner_attach(&s->runner, &v->rq);
}

int moat_relayed_fail(struct moat_vring_ctl *v)
{
	struct moat_session *s = v->session;

	if (v->told)
		return 0;
	if (moat_relay_fail_all(&s->runner.relay, &v->rq.relay,
				s->config->type->fail) &
	    MOAT_RELAY_CALL)
		moat_eventfd_signal(v->call_fd);
	v->rq.kick.fd = v->kick_fd;
	v->rq.call.fd = -1;
	v->rq.call_fd = v->call_fd;
	return moat_runner_attach(&s->runner, &v->rq);
}
