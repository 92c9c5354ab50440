/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "guard/messages.h"
#include "guard/session.h"
#include "guard/vring.h"
#include "os/clock.h"
#include "os/cutoff.h"
#include "os/fd.h"

/* Of a backend that says nothing about its number of queues. */
#define VRINGS_DEFAULT 8u
/* Config changes are passed on at most this often, the last one always. */
#define CONFIG_EVERY_NS (10u * MOAT_NS_PER_MS)
/* Requests of the backend taken before its channel is left alone a while. */
#define CHANNEL_BURST 32u
#define CHANNEL_PAUSE_NS (100u * MOAT_NS_PER_MS)

/* Patience with a backend's answers, all of them, when we were told to end. */
#define HURRY_MS 1000u

#define U(x) ((unsigned long long)(x))

void moat_session_finish(struct moat_session *s, enum moat_session_end end)
{
	if (s->end == MOAT_SESSION_RUNNING)
		s->end = end;
}

int moat_session_from_backend(struct moat_session *s, int ret)
{
	if (s->client.dead && !s->orphan)
		moat_session_finish(s, ret == -EPIPE || ret == -ECONNRESET
					       ? MOAT_SESSION_BACKEND_GONE
					       : MOAT_SESSION_BACKEND_BROKEN);
	return ret;
}

bool moat_session_any_started(const struct moat_session *s)
{
	for (uint32_t i = 0; i < s->max_vrings; i++)
		if (s->vrings[i] && s->vrings[i]->started)
			return true;
	return false;
}

void moat_session_stop(struct moat_session *s)
{
	moat_guard_shmem_stop(s);
	for (uint32_t i = 0; i < s->max_vrings; i++)
		if (s->vrings[i])
			moat_vring_stop(s->vrings[i]);
}

/* ---- what the backend is given ---- */

bool moat_session_has_enable(const struct moat_session *s)
{
	return s->forwarded & MOAT_BIT(VHOST_USER_F_PROTOCOL_FEATURES);
}

/* Made when the first relayed queue starts: `direct` never needs one. */
static int make_pool(struct moat_session *s)
{
	uint32_t slots = (uint32_t)(s->config->pool_size >> MOAT_SLOT_SHIFT);
	int ret = moat_pool_mem_create(&s->pool_mem, s->config->pool_size);

	if (!ret) {
		s->pool_bits =
			calloc(moat_pool_words(slots), sizeof(*s->pool_bits));
		ret = s->pool_bits ? 0 : -ENOMEM;
	}
	if (ret) {
		log_err(s->log, "can not make a pool of %llu bytes: %s",
			U(s->config->pool_size), strerror(-ret));
		/* The next queue has to find all of it, or nothing. */
		if (s->pool_mem.host)
			moat_pool_mem_destroy(&s->pool_mem);
		return ret;
	}
	moat_pool_init(&s->pool, slots, s->pool_bits);
	s->runner.relay.dma = (struct moat_dma){
		.guest = &s->mem.mapped.map,
		.pool = &s->pool,
		.pool_host = s->pool_mem.host,
		.pool_addr = MOAT_POOL_GUEST_ADDR,
	};
	return 0;
}

/* The pool first, then what is shared: at most eight in all. */
int moat_session_send_table(struct moat_session *s, bool pool, bool share)
{
	const struct moat_shareset *set = &s->mem.share;
	struct moat_vu_mem_region r[MOAT_VU_REGIONS_MAX];
	int fds[MOAT_VU_REGIONS_MAX], ret;
	uint32_t n = 0;

	if (pool && !s->pool_mem.host) {
		ret = make_pool(s);
		if (ret)
			return ret;
	}
	pool |= s->pool_sent;
	share |= s->share_sent;
	if (s->table_sent && pool == s->pool_sent && share == s->share_sent &&
	    !(share && s->mem.share_changed))
		return 0;
	if (pool) {
		r[n] = (struct moat_vu_mem_region){
			.guest_addr = MOAT_POOL_GUEST_ADDR,
			.size = s->pool_mem.size,
			.user_addr = MOAT_POOL_USER_ADDR,
		};
		fds[n++] = s->pool_mem.fd;
	}
	for (uint32_t i = 0; share && i < set->n; i++) {
		r[n] = (struct moat_vu_mem_region){
			.guest_addr = set->regions[i].guest_addr,
			.size = set->regions[i].size,
			.user_addr = MOAT_SHARED_USER_ADDR +
				     set->regions[i].guest_addr,
		};
		fds[n++] = set->regions[i].fd;
	}
	/* Segments may pass by reference where the backend has the memory. */
	s->runner.relay.dma.nshared = 0;
	ret = moat_vu_client_set_mem(&s->client, r, n, fds);
	if (ret)
		return moat_session_from_backend(s, ret);
	s->table_sent = true;
	s->pool_sent = pool;
	s->share_sent = share;
	s->mem.share_changed = false;
	s->runner.relay.dma.shared = set->ranges;
	s->runner.relay.dma.nshared = share ? set->n : 0;
	return 0;
}

/* ---- what happens by itself ---- */

static void on_vmm(void *arg, uint32_t events)
{
	struct moat_session *s = arg;
	uint64_t began = moat_now_ns();
	int ret = moat_vu_server_run(&s->server);

	(void)events;
	moat_guard_shmem_waited(s, began);
	if (ret == -EPIPE)
		moat_session_finish(s, MOAT_SESSION_VMM_LEFT);
	else if (ret < 0)
		moat_session_finish(s, MOAT_SESSION_VMM_REFUSED);
}

static void on_backend(void *arg, uint32_t events)
{
	struct moat_session *s = arg;

	(void)events;
	moat_session_from_backend(s, moat_vu_client_input(&s->client));
}

void moat_session_watch_channel(struct moat_session *s)
{
	/* Not while it pauses or one of its requests waits, and not twice. */
	if (s->channel_next_ns || s->channel_src.fd >= 0 ||
	    moat_guard_shmem_busy(&s->shmem))
		return;
	s->channel_src.fd = s->client.channel.fd;
	if (s->channel_src.fd >= 0)
		moat_loop_watch(s->loop, &s->channel_src, false);
}

/* One request a time, and none for a while when there are too many. */
static void on_channel(void *arg, uint32_t events)
{
	struct moat_session *s = arg;

	(void)events;
	if (moat_vu_client_channel(&s->client) < 0)
		return;
	/* What is passed on comes as fast as the VMM answers. */
	if (moat_guard_shmem_busy(&s->shmem))
		return;
	if (s->channel_tokens) {
		s->channel_tokens--;
		return;
	}
	moat_loop_unwatch(s->loop, &s->channel_src);
	s->channel_next_ns = moat_now_ns() + CHANNEL_PAUSE_NS;
}

/* Also in the midst of a message of the VMM, while a call waits. */
static void on_channel_ends(void *arg)
{
	struct moat_session *s = arg;

	moat_loop_unwatch(s->loop, &s->channel_src);
}

static void on_config_changed(void *arg)
{
	struct moat_session *s = arg;

	s->config_changed = true;
}

/*
 * A config change is legal once the VMM has negotiated config space and given
 * us a channel, and the driver has started.
 */
static bool may_tell_vmm(const struct moat_session *s)
{
	return s->vmm_channel.fd >= 0 && moat_session_any_started(s) &&
	       s->server.protocol_features &
		       MOAT_BIT(VHOST_USER_PROTOCOL_F_CONFIG);
}

void moat_session_close_vmm_channel(struct moat_session *s)
{
	moat_guard_shmem_hang_up(s);
	moat_vu_conn_close(&s->vmm_channel);
}

/* Pass one on, or let it wait: until it is legal, or if it comes too often. */
static void pass_config_change(struct moat_session *s, uint64_t now)
{
	if (!s->config_changed || now < s->config_next_ns || !may_tell_vmm(s))
		return;
	s->config_next_ns = now + CONFIG_EVERY_NS;
	/* One that does not fit now comes later: the queues do not wait. */
	if (!moat_vu_conn_room(&s->vmm_channel))
		return;
	s->config_changed = false;
	if (moat_vu_conn_send(&s->vmm_channel,
			      VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, 0, NULL, 0,
			      NULL, 0)) {
		log_warn(s->log, "front-end does not take config changes");
		moat_session_close_vmm_channel(s);
	}
}

static int ms_until(uint64_t now, uint64_t then)
{
	return then <= now ? 0 : (int)((then - now) / MOAT_NS_PER_MS) + 1;
}

static int sooner(int wait, int ms)
{
	return wait < 0 || ms < wait ? ms : wait;
}

/* Once for whatever happened in a turn; the log bounds its lines. */
static void say_cut_off(struct moat_session *s)
{
	uint64_t pages = moat_cutoff_pages();

	if (pages == s->pages_lost)
		return;
	log_warn(s->log,
		 "%llu pages of guest memory were cut off while they were in "
		 "use: they read as zeroes, and what is written there is lost; "
		 "the guest or the VMM shortened a file",
		 (unsigned long long)(pages - s->pages_lost));
	s->pages_lost = pages;
}

int moat_session_step(struct moat_session *s)
{
	uint64_t now;
	int wait = -1;

	moat_runner_turn(&s->runner);
	say_cut_off(s);
	if (!s->config_changed && !s->channel_next_ns &&
	    !moat_guard_shmem_due(&s->shmem))
		return moat_runner_busy(&s->runner) ? 0 : -1;
	now = moat_now_ns();
	pass_config_change(s, now);
	moat_guard_shmem_timers(s, now);
	if (moat_guard_shmem_due(&s->shmem))
		wait = ms_until(now, moat_guard_shmem_due(&s->shmem));
	if (s->config_changed && may_tell_vmm(s))
		wait = sooner(wait, ms_until(now, s->config_next_ns));
	if (s->channel_next_ns && now >= s->channel_next_ns) {
		s->channel_next_ns = 0;
		s->channel_tokens = CHANNEL_BURST;
		moat_session_watch_channel(s);
	} else if (s->channel_next_ns) {
		wait = sooner(wait, ms_until(now, s->channel_next_ns));
	}
	return moat_runner_busy(&s->runner) ? 0 : wait;
}

/* ---- beginning and end ---- */

void moat_session_meet(struct moat_session *s, int fd)
{
	moat_vu_client_init(&s->client, fd, s->config->abort_fd, s->log);
	s->client.config_changed = on_config_changed;
	s->client.channel_ends = on_channel_ends;
	s->client.shmem = moat_guard_shmem_request;
	s->client.stalled = moat_guard_shmem_stalled;
	s->client.arg = s;
}

int moat_session_negotiate(struct moat_session *s)
{
	return moat_vu_client_negotiate(
		&s->client,
		MOAT_POLICY_BACKEND_PROTOCOL |
			(s->config->shmem ? MOAT_POLICY_SHMEM_PROTOCOL : 0));
}

int moat_session_watch_backend(struct moat_session *s)
{
	int ret;

	s->client_src.fd = s->client.conn.fd;
	ret = moat_loop_watch(s->loop, &s->client_src, false);
	moat_session_watch_channel(s);
	return ret;
}

void moat_session_unwatch_backend(struct moat_session *s)
{
	moat_loop_unwatch(s->loop, &s->client_src);
	moat_loop_unwatch(s->loop, &s->channel_src);
	s->channel_next_ns = 0;
	s->channel_tokens = CHANNEL_BURST;
}

/* What the backend is, and whether it will do. */
static int ask_backend(struct moat_session *s)
{
	struct moat_vu_client *c = &s->client;
	uint64_t num = VRINGS_DEFAULT;
	int ret = moat_session_negotiate(s);

	if (!ret)
		ret = moat_guard_shmem_open(s);
	if (ret)
		return ret;
	if (!(c->features & MOAT_BIT(VIRTIO_F_VERSION_1))) {
		log_err(s->log,
			"the backend offers 0x%llx without VERSION_1 (bit 32); "
			"use a backend that knows virtio 1.0",
			U(c->features));
		return -EPROTO;
	}
	if (moat_vu_client_has(c, VHOST_USER_PROTOCOL_F_MQ))
		ret = moat_vu_client_get_u64(c, VHOST_USER_GET_QUEUE_NUM, &num);
	if (ret)
		return ret;
	if (!num) {
		log_err(s->log, "the backend says that it has no queues");
		return -EPROTO;
	}
	s->max_vrings =
		num > MOAT_VU_VRINGS_MAX ? MOAT_VU_VRINGS_MAX : (uint32_t)num;
	s->offered = moat_policy_offer(s->config->type, s->config->share,
				       s->config->access_platform, c->features);
	s->protocol_offered = moat_policy_protocol(c->protocol_features);
	if (moat_vu_shmem_any(&s->shmem.table))
		s->protocol_offered |= MOAT_POLICY_SHMEM_PROTOCOL;
	return 0;
}

int moat_session_open(struct moat_session *s,
		      const struct moat_session_config *config,
		      struct moat_loop *loop, struct moat_log *log, int fd)
{
	int ret;

	*s = (struct moat_session){
		.config = config,
		.loop = loop,
		.log = log,
		.server_src = { -1, on_vmm, s },
		.client_src = { -1, on_backend, s },
		.channel_src = { -1, on_channel, s },
		.pool_mem = { .fd = -1 },
		.shmem = { .answer_src = { .fd = -1 }, .then_fd = -1 },
		.channel_tokens = CHANNEL_BURST,
	};
	moat_guest_mem_init(&s->mem, log, config->pools,
			    config->share == MOAT_SHARE_BOUNCE ? 0
							       : config->npools,
			    config->udmabuf_fd);
	moat_vu_conn_init(&s->vmm_channel, -1);
	moat_vu_server_init(&s->server, -1, &moat_session_ops, s, log);
	moat_session_meet(s, fd);
	moat_runner_init(&s->runner, loop, config->poll_us);
	ret = ask_backend(s);
	if (ret)
		return moat_session_from_backend(s, ret);
	return moat_session_watch_backend(s);
}

int moat_session_serve(struct moat_session *s, int fd)
{
	moat_vu_server_init(&s->server, fd, &moat_session_ops, s, s->log);
	s->server_src.fd = fd;
	return moat_loop_watch(s->loop, &s->server_src, false);
}

void moat_session_hurry(struct moat_session *s)
{
	moat_vu_client_hurry(&s->client, HURRY_MS);
}

void moat_session_close(struct moat_session *s)
{
	moat_loop_unwatch(s->loop, &s->server_src);
	moat_session_unwatch_backend(s);
	moat_guard_shmem_close(s);
	for (uint32_t i = 0; i < MOAT_VU_VRINGS_MAX; i++) {
		moat_vring_free(s->vrings[i]);
		s->vrings[i] = NULL;
	}
	moat_vu_server_close(&s->server);
	moat_vu_client_close(&s->client);
	moat_vu_conn_close(&s->vmm_channel);
	moat_guest_mem_fini(&s->mem);
	if (s->pool_mem.host)
		moat_pool_mem_destroy(&s->pool_mem);
	free(s->pool_bits);
	s->pool_bits = NULL;
}
