/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "guard/session.h"
#include "guard/shmem.h"
#include "guard/shmemfd.h"
#include "os/clock.h"
#include "os/fd.h"

/* Less than the backends' own patience, so that they hear of it. */
#define ANSWER_MS 4000u
/* After a queue was disabled, a stop has gone on by then, or it is none. */
#define STOP_MS 1000u

#define U(x) ((unsigned long long)(x))

#define MAP VHOST_USER_BACKEND_SHMEM_MAP
#define UNMAP VHOST_USER_BACKEND_SHMEM_UNMAP
/*
 * QEMU 11.1 answers MAP first and lets the guest's processors see the mapping
 * then: who is told of it at once sees nothing there. It does so before it
 * reads our next request. This one changes nothing.
 */
#define FENCE VHOST_USER_BACKEND_CONFIG_CHANGE_MSG

/* Why a request is refused. A cause is logged once: backends repeat them. */
enum cause {
	CAUSE_NONE,
	CAUSE_OFF,
	CAUSE_EARLY,
	CAUSE_BUSY,
	CAUSE_REGION,
	CAUSE_PAGES,
	CAUSE_BOUNDS,
	CAUSE_OVERLAP,
	CAUSE_LIMIT,
	CAUSE_MEMORY,
	CAUSE_UNKNOWN,
	CAUSE_FLAGS,
	CAUSE_FD,
	CAUSE_ROOM,
};

static const struct {
	int err; /* for the backend */
	const char *why;
} causes[] = {
	[CAUSE_OFF] = { ENOTCONN, "the front-end has not negotiated shared "
				  "memory, or gave no channel for it" },
	[CAUSE_EARLY] = { ENOTCONN, "the driver has not started the device, or "
				    "stops it: some front-ends would crash" },
	[CAUSE_BUSY] = { EINTR, "the front-end has not answered an earlier "
				"one" },
	[CAUSE_REGION] = { ENXIO, "there is no such region" },
	[CAUSE_PAGES] = { EINVAL, "it is not whole pages" },
	[CAUSE_BOUNDS] = { ERANGE, "it lies outside its region or its file" },
	[CAUSE_OVERLAP] = { EEXIST, "something is mapped there" },
	[CAUSE_LIMIT] = { ENOSPC, "as many mappings as --shmem-mappings "
				  "allows are there" },
	[CAUSE_MEMORY] = { ENOMEM, "no memory is left to remember it" },
	[CAUSE_UNKNOWN] = { ENOENT, "there is no such mapping; one can only be "
				    "unmapped as a whole" },
	[CAUSE_FLAGS] = { EINVAL, "it has flags that are not known" },
	[CAUSE_FD] = { EPERM, NULL },
	[CAUSE_ROOM] = { EAGAIN, "the front-end does not read its channel" },
};

static enum cause cause_of(int err)
{
	switch (err) {
	case 0:
		return CAUSE_NONE;
	case -ENXIO:
		return CAUSE_REGION;
	case -EINVAL:
		return CAUSE_PAGES;
	case -ERANGE:
		return CAUSE_BOUNDS;
	case -EEXIST:
		return CAUSE_OVERLAP;
	case -ENOSPC:
		return CAUSE_LIMIT;
	default:
		return CAUSE_MEMORY;
	}
}

static const char *name_of(uint32_t request)
{
	return request == MAP ? "SHMEM_MAP" : "SHMEM_UNMAP";
}

/* ---- regions ---- */

int moat_guard_shmem_open(struct moat_session *s)
{
	struct moat_guard_shmem *g = &s->shmem;
	uint64_t total = 0;
	int ret;

	moat_vu_shmem_init(&g->table, s->config->shmem_mappings);
	g->answer_src.fd = -1;
	if (!moat_vu_client_has(&s->client, VHOST_USER_PROTOCOL_F_SHMEM_MAP) ||
	    s->client.channel.fd < 0)
		return 0;
	ret = moat_vu_client_get_shmem_config(&s->client, g->table.sizes);
	if (ret)
		return ret;
	for (uint32_t i = 0; i < MOAT_VU_SHMEM_MAX; i++) {
		uint64_t size = g->table.sizes[i];

		if (!(size % g->table.page) &&
		    size <= MOAT_SHMEM_BYTES_MAX - total) {
			total += size;
			continue;
		}
		log_warn(s->log,
			 "the backend's shared memory region %u of 0x%llx "
			 "bytes is not whole pages or larger than 0x%llx in "
			 "all: no region is offered",
			 i, U(size), U(MOAT_SHMEM_BYTES_MAX));
		memset(g->table.sizes, 0, sizeof(g->table.sizes));
		break;
	}
	return 0;
}

void moat_guard_shmem_close(struct moat_session *s)
{
	moat_loop_unwatch(s->loop, &s->shmem.answer_src);
	moat_fd_close(&s->shmem.then_fd);
	s->shmem.asked = 0;
	moat_vu_shmem_fini(&s->shmem.table);
}

/* ---- checks ---- */

static bool negotiated(const struct moat_session *s)
{
	const uint64_t needs = MOAT_BIT(VHOST_USER_PROTOCOL_F_SHMEM_MAP) |
			       MOAT_BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK);

	return (s->server.protocol_features & needs) == needs &&
	       s->vmm_channel.fd >= 0;
}

/*
 * QEMU 11.1.3 crashes on these messages while the device is not started, which
 * it is while queues run and none has been told to stop.
 */
static bool started(const struct moat_session *s)
{
	/* Not the status: QEMU never sets DRIVER_OK for some devices. */
	return !s->shmem.stopping && moat_session_any_started(s);
}

static enum cause check_map(struct moat_session *s,
			    const struct moat_vu_mmap *m, int fd,
			    const char **why)
{
	enum cause cause;

	if (m->flags & ~MOAT_VU_MMAP_WRITABLE)
		return CAUSE_FLAGS;
	if (m->fd_offset % s->shmem.table.page)
		return CAUSE_PAGES;
	if (m->fd_offset > INT64_MAX || m->len > INT64_MAX - m->fd_offset)
		return CAUSE_BOUNDS;
	cause = cause_of(moat_vu_shmem_may_map(&s->shmem.table, m->shmid,
					       m->shm_offset, m->len));
	if (cause)
		return cause;
	/* Not whether the file is long enough: it may shrink at any time. */
	*why = moat_shmemfd_refused(s, fd, m->flags & MOAT_VU_MMAP_WRITABLE);
	return *why ? CAUSE_FD : CAUSE_NONE;
}

static bool is_whole(const struct moat_session *s, const struct moat_vu_mmap *m)
{
	return moat_vu_shmem_find(&s->shmem.table, m->shmid, m->shm_offset,
				  m->len);
}

/* It may want a place without its predecessor's mappings, or without any. */
static bool may_clear(const struct moat_session *s,
		      const struct moat_vu_mmap *m)
{
	const struct moat_vu_shmem *t = &s->shmem.table;

	return t->former &&
	       !moat_vu_shmem_may_clear(t, m->shmid, m->shm_offset, m->len);
}

static enum cause check(struct moat_session *s, uint32_t request,
			const struct moat_vu_mmap *m, int fd, const char **why)
{
	if (!negotiated(s))
		return CAUSE_OFF;
	if (!started(s))
		return CAUSE_EARLY;
	if (s->shmem.asked || s->shmem.undo)
		return CAUSE_BUSY;
	if (request == MAP)
		return check_map(s, m, fd, why);
	return is_whole(s, m) || may_clear(s, m) ? CAUSE_NONE : CAUSE_UNKNOWN;
}

static int refuse(struct moat_session *s, enum cause cause, const char *why,
		  uint32_t request, const struct moat_vu_mmap *m)
{
	if (!(s->shmem.said & 1u << cause))
		log_warn(s->log,
			 "backend request %s of 0x%llx bytes at 0x%llx of "
			 "region %u: refused, as all like it will be: %s",
			 name_of(request), U(m->len), U(m->shm_offset),
			 m->shmid, why ? why : causes[cause].why);
	s->shmem.said |= 1u << cause;
	return causes[cause].err;
}

/* ---- the VMM's part ---- */

static void on_answer(void *arg, uint32_t events);

static int ask(struct moat_session *s, uint32_t request,
	       const struct moat_vu_mmap *m, int fd)
{
	struct moat_guard_shmem *g = &s->shmem;
	struct moat_vu_mmap plain = {
		.shmid = m->shmid,
		.fd_offset = request == MAP ? m->fd_offset : 0,
		.shm_offset = m->shm_offset,
		.len = m->len,
		.flags = request == MAP ? m->flags : 0,
	};
	int ret;

	if (!moat_vu_conn_room(&s->vmm_channel))
		return -EAGAIN;
	if (fd >= 0)
		moat_guest_mem_show(&s->mem, fd, m->fd_offset, m->len);
	g->answer_src = (struct moat_source){ s->vmm_channel.fd, on_answer, s };
	ret = moat_loop_watch(s->loop, &g->answer_src, false);
	if (!ret)
		ret = moat_vu_conn_send(&s->vmm_channel, request,
					MOAT_VU_F_NEED_REPLY, &plain,
					sizeof(plain), &fd, fd >= 0);
	if (ret) {
		moat_loop_unwatch(s->loop, &g->answer_src);
		g->answer_src.fd = -1;
		return ret;
	}
	g->asked = request;
	g->fenced = false;
	g->what = plain;
	g->end_ns = moat_now_ns() + ANSWER_MS * (uint64_t)MOAT_NS_PER_MS;
	return 0;
}

static void drop_then(struct moat_guard_shmem *g)
{
	moat_fd_close(&g->then_fd);
	g->then_asks = 0;
}

/*
 * Unmap an orphan that is in the way, or do then what was asked for: 0; or 1,
 * if nothing is left to do; or a negative errno.
 */
static int go_on(struct moat_session *s)
{
	struct moat_guard_shmem *g = &s->shmem;
	const struct moat_vu_mmap *m = &g->then;
	const struct moat_vu_mapping *old =
		(g->then_asks == MAP ? moat_vu_shmem_evict
				     : moat_vu_shmem_orphan_in)(
			&g->table, m->shmid, m->shm_offset, m->len);
	int ret;

	if (old) {
		const struct moat_vu_mmap gone = {
			.shmid = old->shmid,
			.shm_offset = old->offset,
			.len = old->len,
		};

		ret = ask(s, UNMAP, &gone, -1);
	} else if (g->then_asks == MAP || is_whole(s, m)) {
		ret = ask(s, g->then_asks, m, g->then_fd);
	} else {
		ret = 1;
	}
	if (ret || !old)
		drop_then(g);
	return ret;
}

int moat_guard_shmem_request(void *arg, uint32_t request,
			     const struct moat_vu_mmap *m, int *fd, bool reply)
{
	struct moat_session *s = arg;
	const char *why = NULL;
	enum cause cause;
	int ret;

	moat_guard_shmem_undo(s);
	cause = check(s, request, m, *fd, &why);
	if (cause)
		return refuse(s, cause, why, request, m);
	s->shmem.then_asks = request;
	s->shmem.then = *m;
	s->shmem.then_fd = moat_fd_take(fd);
	ret = go_on(s);
	if (ret < 0)
		return refuse(s, CAUSE_ROOM, NULL, request, m);
	if (ret > 0)
		return 0;
	s->shmem.owed = true;
	s->shmem.wanted = reply;
	s->client.hold = true;
	moat_loop_unwatch(s->loop, &s->channel_src);
	return MOAT_VU_LATER;
}

/* What the backend asked for, which is not always what the VMM was asked. */
static uint32_t wants(const struct moat_session *s)
{
	return s->shmem.then_asks ? s->shmem.then_asks : s->shmem.asked;
}

/* The backend gets its answer, and may ask again. */
static void answer_backend(struct moat_session *s, uint32_t request,
			   uint64_t status)
{
	struct moat_guard_shmem *g = &s->shmem;

	if (!g->owed)
		return;
	drop_then(g);
	g->owed = false;
	s->client.hold = false;
	if (g->wanted)
		moat_vu_client_answer(&s->client, request, status);
	moat_session_watch_channel(s);
}

/* Nobody knows of it any more, but the VMM has it. */
void moat_guard_shmem_undo(struct moat_session *s)
{
	struct moat_guard_shmem *g = &s->shmem;

	if (g->undo && !g->asked && negotiated(s) && started(s) &&
	    !ask(s, UNMAP, &g->what, -1))
		g->undo = false;
}

static void conclude(struct moat_session *s, uint64_t status)
{
	struct moat_guard_shmem *g = &s->shmem;
	const struct moat_vu_mmap *m = &g->what;
	uint32_t request = g->asked;
	int ret;

	/* Of what is in doubt the VMM need not have anything. */
	if (request == UNMAP &&
	    moat_vu_shmem_unmapped(&g->table, m->shmid, m->shm_offset, m->len,
				   !status))
		status = 0;
	if (status && g->owed && !(g->said & 1))
		log_warn(s->log,
			 "front-end refused %s of 0x%llx bytes at 0x%llx of "
			 "region %u (error %llu)",
			 name_of(request), U(m->len), U(m->shm_offset),
			 m->shmid, U(status));
	if (status && g->owed)
		g->said |= 1;
	if (!status && request == MAP && g->owed)
		moat_vu_shmem_add(&g->table, m->shmid, m->shm_offset, m->len);
	else if (!status && request == MAP)
		g->undo = true;
	g->asked = 0;
	if (g->then_asks) {
		request = g->then_asks;
		ret = go_on(s);
		if (!ret)
			return;
		status = ret < 0 ? EAGAIN : 0;
	}
	answer_backend(s, request, status);
	moat_guard_shmem_undo(s);
}

/* It has been mapped: is something else to be waited for? */
static bool fence(struct moat_session *s)
{
	struct moat_guard_shmem *g = &s->shmem;

	if (g->fenced || !g->owed || g->asked != MAP ||
	    !(s->server.protocol_features &
	      MOAT_BIT(VHOST_USER_PROTOCOL_F_CONFIG)) ||
	    !moat_vu_conn_room(&s->vmm_channel))
		return false;
	g->fenced = !moat_vu_conn_send(&s->vmm_channel, FENCE,
				       MOAT_VU_F_NEED_REPLY, NULL, 0, NULL, 0);
	return g->fenced;
}

static void on_answer(void *arg, uint32_t events)
{
	struct moat_session *s = arg;
	struct moat_guard_shmem *g = &s->shmem;
	struct moat_vu_msg m;
	int ret = moat_vu_conn_recv(&s->vmm_channel, &m);

	(void)events;
	if (!ret)
		return;
	if (ret > 0) {
		ret = m.nfds;
		moat_vu_msg_close(&m);
		if (!ret && m.request == (g->fenced ? FENCE : g->asked) &&
		    m.size == sizeof(m.u64) && m.flags & MOAT_VU_F_REPLY) {
			if (!m.u64 && fence(s))
				return;
			moat_loop_unwatch(s->loop, &g->answer_src);
			conclude(s, g->fenced ? 0 : m.u64);
			return;
		}
		ret = -EPROTO;
	}
	log_warn(s->log, "front-end's answer to %s: %s: no more mappings",
		 name_of(g->asked), strerror(-ret));
	moat_session_close_vmm_channel(s);
}

void moat_guard_shmem_hang_up(struct moat_session *s)
{
	struct moat_guard_shmem *g = &s->shmem;

	moat_loop_unwatch(s->loop, &g->answer_src);
	if (g->asked)
		answer_backend(s, wants(s), ENOTCONN);
	g->asked = 0;
	g->undo = false;
}

/* ---- what else happens ---- */

void moat_guard_shmem_stalled(void *arg)
{
	struct moat_session *s = arg;

	/* A VMM of several threads may have answered meanwhile. */
	if (moat_guard_shmem_busy(&s->shmem))
		on_answer(s, 0);
	if (moat_guard_shmem_busy(&s->shmem))
		answer_backend(s, wants(s), EINTR);
}

void moat_guard_shmem_started(struct moat_session *s)
{
	s->shmem.stopping = false;
	s->shmem.again_ns = 0;
	moat_guard_shmem_undo(s);
}

void moat_guard_shmem_stop(struct moat_session *s)
{
	s->shmem.stopping = true;
	s->shmem.again_ns = 0;
	moat_vu_shmem_doubt(&s->shmem.table);
	answer_backend(s, wants(s), EINTR);
}

void moat_guard_shmem_disabled(struct moat_session *s)
{
	struct moat_guard_shmem *g = &s->shmem;

	if (g->stopping && !g->again_ns)
		return;
	g->stopping = true;
	g->again_ns = moat_now_ns() + STOP_MS * (uint64_t)MOAT_NS_PER_MS;
	answer_backend(s, wants(s), EINTR);
}

void moat_guard_shmem_enabled(struct moat_session *s)
{
	if (s->shmem.again_ns)
		moat_guard_shmem_started(s);
}

int moat_guard_shmem_reopen(struct moat_session *s)
{
	const struct moat_guard_shmem *g = &s->shmem;
	uint64_t sizes[MOAT_VU_SHMEM_MAX] = { 0 };
	int ret;

	if (!moat_vu_client_has(&s->client, VHOST_USER_PROTOCOL_F_SHMEM_MAP) ||
	    s->client.channel.fd < 0 || !moat_vu_shmem_any(&g->table))
		return 0;
	ret = moat_vu_client_get_shmem_config(&s->client, sizes);
	if (ret || !memcmp(sizes, g->table.sizes, sizeof(sizes)))
		return ret;
	log_err(s->log, "the new backend's shared memory regions are not those "
			"of the one before; start the same one again");
	return -EPROTO;
}

void moat_guard_shmem_lose(struct moat_session *s)
{
	drop_then(&s->shmem);
	s->shmem.owed = false;
	s->client.hold = false;
	moat_vu_shmem_orphan(&s->shmem.table);
}

void moat_guard_shmem_waited(struct moat_session *s, uint64_t since)
{
	struct moat_guard_shmem *g = &s->shmem;
	uint64_t now = moat_now_ns();

	g->end_ns += now - since;
	if (g->again_ns)
		g->again_ns += now - since;
}

uint64_t moat_guard_shmem_due(const struct moat_guard_shmem *g)
{
	if (!g->asked)
		return g->again_ns;
	return g->again_ns && g->again_ns < g->end_ns ? g->again_ns : g->end_ns;
}

void moat_guard_shmem_timers(struct moat_session *s, uint64_t now)
{
	struct moat_guard_shmem *g = &s->shmem;

	if (g->again_ns && now >= g->again_ns)
		moat_guard_shmem_started(s);
	/* It may be there, and we were at something else. */
	if (g->asked && now >= g->end_ns)
		on_answer(s, 0);
	if (!g->asked || now < g->end_ns)
		return;
	log_warn(s->log,
		 "front-end does not answer %s within %u s: no more mappings",
		 name_of(g->asked), ANSWER_MS / 1000);
	answer_backend(s, wants(s), ETIMEDOUT);
	moat_session_close_vmm_channel(s);
}
