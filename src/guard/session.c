/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "guard/session.h"
#include "guard/vring.h"
#include "os/clock.h"
#include "os/fd.h"

/* Of a backend that says nothing about its number of queues. */
#define VRINGS_DEFAULT 8u
/* Config changes are passed on at most this often, the last one always. */
#define CONFIG_EVERY_NS (10u * MOAT_NS_PER_MS)
/* Requests of the backend taken before its channel is left alone a while. */
#define CHANNEL_BURST 32u
#define CHANNEL_PAUSE_NS (100u * MOAT_NS_PER_MS)

/* Patience with a backend's answer when we were told to end. */
#define HURRY_REPLY_MS 1000u

#define U(x) ((unsigned long long)(x))

static void finish(struct moat_session *s, enum moat_session_end end)
{
	if (s->end == MOAT_SESSION_RUNNING)
		s->end = end;
}

/* Pass a failure of the backend on; it also ends the session. */
static int from_backend(struct moat_session *s, int ret)
{
	if (s->client.dead)
		finish(s, ret == -EPIPE || ret == -ECONNRESET
				  ? MOAT_SESSION_BACKEND_GONE
				  : MOAT_SESSION_BACKEND_BROKEN);
	return ret;
}

static bool any_started(const struct moat_session *s)
{
	for (uint32_t i = 0; i < s->max_vrings; i++)
		if (s->vrings[i] && s->vrings[i]->started)
			return true;
	return false;
}

static void stop_all(struct moat_session *s)
{
	for (uint32_t i = 0; i < s->max_vrings; i++)
		if (s->vrings[i])
			moat_vring_stop(s->vrings[i]);
}

static struct moat_vring_ctl *vring_of(struct moat_session *s, uint32_t index)
{
	if (index >= s->max_vrings) {
		log_err(s->log,
			"queue %u does not exist: refused; the device has %u",
			index, s->max_vrings);
		return NULL;
	}
	if (!s->vrings[index])
		s->vrings[index] = moat_vring_new(s, index);
	return s->vrings[index];
}

/* ---- what the VMM says: features ---- */

static int op_get_features(void *dev, uint64_t *features)
{
	struct moat_session *s = dev;

	*features = s->offered;
	return 0;
}

static int op_set_features(void *dev, uint64_t features)
{
	struct moat_session *s = dev;
	uint64_t surplus = features & ~s->offered;

	if (surplus) {
		log_err(s->log,
			"SET_FEATURES with 0x%llx, of which 0x%llx was not "
			"offered: refused; fix the front-end",
			U(features), U(surplus));
		return -EINVAL;
	}
	if (!(features & MOAT_BIT(VIRTIO_F_VERSION_1))) {
		log_err(s->log,
			"SET_FEATURES without VERSION_1 (bit 32): refused; the "
			"driver has to be a virtio 1.0 one or later");
		return -EINVAL;
	}
	if (any_started(s)) {
		if (features == s->accepted)
			return 0;
		log_err(s->log,
			"SET_FEATURES changes 0x%llx to 0x%llx while queues "
			"run: refused; stop them first",
			U(s->accepted), U(features));
		return -EBUSY;
	}
	s->accepted = features;
	s->forwarded = moat_policy_accept(s->config->share, s->client.features,
					  features);
	return from_backend(s, moat_vu_client_set_u64(&s->client,
						      VHOST_USER_SET_FEATURES,
						      s->forwarded));
}

static int op_get_protocol_features(void *dev, uint64_t *features)
{
	struct moat_session *s = dev;

	*features = s->protocol_offered;
	return 0;
}

static int op_set_protocol_features(void *dev, uint64_t features)
{
	struct moat_session *s = dev;

	if (!(features & ~s->protocol_offered))
		return 0;
	log_err(s->log,
		"SET_PROTOCOL_FEATURES with 0x%llx, of which 0x%llx was not "
		"offered: refused; fix the front-end",
		U(features), U(features & ~s->protocol_offered));
	return -EINVAL;
}

static int op_set_owner(void *dev)
{
	/* The backend has its owner already: the guard. */
	(void)dev;
	return 0;
}

static int op_reset(void *dev)
{
	struct moat_session *s = dev;

	stop_all(s);
	s->status = 0;
	if (!moat_vu_client_has(&s->client, VHOST_USER_PROTOCOL_F_RESET_DEVICE))
		return from_backend(s, s->client.dead ? -EPIPE : 0);
	return from_backend(s, moat_vu_client_simple(&s->client,
						     VHOST_USER_RESET_DEVICE));
}

static int op_get_queue_num(void *dev, uint64_t *num)
{
	struct moat_session *s = dev;

	*num = s->max_vrings;
	return 0;
}

/* ---- guest memory ---- */

static int op_get_max_mem_slots(void *dev, uint64_t *num)
{
	(void)dev;
	*num = MOAT_VU_MEMORY_MAX;
	return 0;
}

/* Guest RAM changed: find the rings of running queues again. */
static int after_memory_change(struct moat_session *s)
{
	int ret = 0;

	for (uint32_t i = 0; i < s->max_vrings; i++) {
		struct moat_vring_ctl *v = s->vrings[i];

		if (!v || !v->started || !moat_vring_remap(v))
			continue;
		ret = -EFAULT;
		log_err(s->log,
			"queue %u: its ring is no longer in guest memory: the "
			"session ends",
			i);
	}
	if (ret)
		finish(s, MOAT_SESSION_VMM_REFUSED);
	/* A backend that has a table is told of the new one at once. */
	else if (s->table_sent)
		ret = moat_session_send_table(s, false);
	return ret;
}

static int op_set_mem_table(void *dev, const struct moat_vu_mem_region *r,
			    uint32_t n, int *fds)
{
	struct moat_session *s = dev;
	int ret = moat_guest_mem_set(&s->mem, r, n, fds);

	return ret ? ret : after_memory_change(s);
}

static int op_add_mem_region(void *dev, const struct moat_vu_mem_region *r,
			     int *fd)
{
	struct moat_session *s = dev;
	int ret = moat_guest_mem_add(&s->mem, r, *fd);

	return ret ? ret : after_memory_change(s);
}

static int op_del_mem_region(void *dev, const struct moat_vu_mem_region *r)
{
	struct moat_session *s = dev;
	int ret = moat_guest_mem_del(&s->mem, r);

	return ret ? ret : after_memory_change(s);
}

/* ---- queues ---- */

/* What only makes sense while a queue is stopped. */
static struct moat_vring_ctl *stopped_vring(struct moat_session *s,
					    uint32_t index, const char *what)
{
	struct moat_vring_ctl *v = vring_of(s, index);

	if (v && v->started) {
		log_err(s->log,
			"queue %u: %s while it runs: refused; stop it "
			"with GET_VRING_BASE first",
			index, what);
		return NULL;
	}
	return v;
}

static bool is_packed(const struct moat_session *s)
{
	return s->accepted & MOAT_BIT(VIRTIO_F_RING_PACKED);
}

static int op_set_vring_num(void *dev, uint32_t index, uint32_t num)
{
	struct moat_session *s = dev;
	struct moat_vring_ctl *v = stopped_vring(s, index, "SET_VRING_NUM");

	if (!v)
		return -EINVAL;
	/* Only a split ring has to be a power of two (2.7; packed: 2.8.10). */
	if (!moat_vring_num_ok(num) &&
	    (!is_packed(s) || !num || num > MOAT_VRING_NUM_MAX)) {
		log_err(s->log,
			"queue %u: size %u is no power of two from 1 to %u: "
			"refused; fix the guest's driver",
			index, num, MOAT_VRING_NUM_MAX);
		return -EINVAL;
	}
	v->num = num;
	return 0;
}

static int op_set_vring_addr(void *dev, const struct moat_vu_vring_addr *addr)
{
	struct moat_session *s = dev;
	struct moat_vring_ctl *v = vring_of(s, addr->index);

	if (!v)
		return -EINVAL;
	/* Front-ends repeat it to toggle logging, which was not offered. */
	if (v->started && !memcmp(&v->addr, addr, sizeof(*addr)))
		return 0;
	v = stopped_vring(s, addr->index, "SET_VRING_ADDR");
	if (!v)
		return -EBUSY;
	v->addr = *addr;
	v->has_addr = true;
	return 0;
}

static int op_set_vring_base(void *dev, uint32_t index, uint32_t base)
{
	struct moat_session *s = dev;
	struct moat_vring_ctl *v = stopped_vring(s, index, "SET_VRING_BASE");

	if (!v)
		return -EINVAL;
	if (base > UINT16_MAX && !is_packed(s)) {
		log_err(s->log,
			"queue %u: base %u is no index of a split ring: "
			"refused",
			index, base);
		return -EINVAL;
	}
	v->base = base;
	return 0;
}

static int op_get_vring_base(void *dev, uint32_t index, uint32_t *base)
{
	struct moat_session *s = dev;
	struct moat_vring_ctl *v = vring_of(s, index);
	int ret;

	if (!v)
		return -EINVAL;
	ret = from_backend(s, moat_vring_stop(v));
	*base = v->base;
	return ret;
}

bool moat_session_has_enable(const struct moat_session *s)
{
	return s->forwarded & MOAT_BIT(VHOST_USER_F_PROTOCOL_FEATURES);
}

/* The pool first, then what is shared: at most eight in all. */
int moat_session_send_table(struct moat_session *s, bool relayed)
{
	const struct moat_shareset *set = &s->mem.share;
	bool shares = s->config->share != MOAT_SHARE_BOUNCE;
	struct moat_vu_mem_region r[MOAT_VU_REGIONS_MAX];
	int fds[MOAT_VU_REGIONS_MAX], ret;
	uint32_t n = 0;

	if (s->table_sent && (!relayed || s->pool_sent) &&
	    !(shares && s->mem.share_changed))
		return 0;
	if (relayed || s->pool_sent) {
		r[n] = (struct moat_vu_mem_region){
			.guest_addr = MOAT_POOL_GUEST_ADDR,
			.size = s->pool_mem.size,
			.user_addr = MOAT_POOL_USER_ADDR,
		};
		fds[n++] = s->pool_mem.fd;
	}
	for (uint32_t i = 0; shares && i < set->n; i++) {
		r[n] = (struct moat_vu_mem_region){
			.guest_addr = set->regions[i].guest_addr,
			.size = set->regions[i].size,
			.user_addr = MOAT_SHARED_USER_ADDR +
				     set->regions[i].guest_addr,
		};
		fds[n++] = set->regions[i].fd;
	}
	ret = moat_vu_client_set_mem(&s->client, r, n, fds);
	if (ret)
		return from_backend(s, ret);
	s->table_sent = true;
	s->pool_sent |= relayed;
	s->mem.share_changed = false;
	/* What segments may pass by reference: what the backend has. */
	if (shares)
		s->runner.relay.dma.shared = set->ranges;
	s->runner.relay.dma.nshared = shares ? set->n : 0;
	return 0;
}

static int op_set_vring_kick(void *dev, uint32_t index, int *fd)
{
	struct moat_session *s = dev;
	struct moat_vring_ctl *v = vring_of(s, index);
	int ret;

	if (!v)
		return -EINVAL;
	if (*fd < 0) {
		log_err(s->log,
			"queue %u: SET_VRING_KICK without an fd asks us to "
			"poll: refused; the front-end has to send an eventfd",
			index);
		return -EOPNOTSUPP;
	}
	ret = moat_vring_set_kick_fd(v, fd);
	if (ret || v->started)
		return ret;
	/* Without PROTOCOL_FEATURES a ring is enabled from the start. */
	if (!(s->accepted & MOAT_BIT(VHOST_USER_F_PROTOCOL_FEATURES)))
		v->enabled = true;
	return from_backend(s, moat_vring_start(v));
}

static int op_set_vring_call(void *dev, uint32_t index, int *fd)
{
	struct moat_vring_ctl *v = vring_of(dev, index);

	if (!v)
		return -EINVAL;
	return from_backend(dev, moat_vring_set_call_fd(v, fd));
}

static int op_set_vring_err(void *dev, uint32_t index, int *fd)
{
	struct moat_vring_ctl *v = vring_of(dev, index);

	if (!v)
		return -EINVAL;
	moat_fd_close(&v->err_fd);
	v->err_fd = moat_fd_take(fd);
	return 0;
}

static int op_set_vring_enable(void *dev, uint32_t index, bool enable)
{
	struct moat_session *s = dev;
	struct moat_vring_ctl *v = vring_of(s, index);

	if (!v)
		return -EINVAL;
	return from_backend(s, moat_vring_enable(v, enable));
}

/* ---- config space and status ---- */

/* Bytes of the largest request that any queue will be able to map. */
static uint64_t request_limit(const struct moat_session *s)
{
	uint64_t half = s->pool_mem.size / 2;

	/* Rings and cells come out of the common half; so may a table. */
	return half - half / 4 - MOAT_SLOT_SIZE;
}

static int op_get_config(void *dev, struct moat_vu_config *config)
{
	struct moat_session *s = dev;
	int ret =
		from_backend(s, moat_vu_client_get_config(&s->client, config));

	if (!ret && s->config->share != MOAT_SHARE_DIRECT)
		moat_policy_config(s->config->type, config, request_limit(s));
	return ret;
}

static int op_set_config(void *dev, const struct moat_vu_config *config)
{
	struct moat_session *s = dev;

	return from_backend(s, moat_vu_client_set_config(&s->client, config));
}

static int op_set_backend_req_fd(void *dev, int *fd)
{
	struct moat_session *s = dev;

	moat_vu_conn_close(&s->vmm_channel);
	moat_vu_conn_init(&s->vmm_channel, moat_fd_take(fd));
	return 0;
}

static int op_set_status(void *dev, uint64_t status)
{
	struct moat_session *s = dev;

	if (status > UINT8_MAX) {
		log_err(s->log,
			"SET_STATUS with 0x%llx: refused; it has 8 bits",
			U(status));
		return -EINVAL;
	}
	/* Writing 0 resets the device (virtio 1.4, 2.1.2). */
	if (!status)
		stop_all(s);
	s->status =
		status ? status | (s->status & VIRTIO_STATUS_NEEDS_RESET) : 0;
	return from_backend(s, s->client.dead ? -EPIPE : 0);
}

static int op_get_status(void *dev, uint64_t *status)
{
	struct moat_session *s = dev;

	*status = s->status;
	return 0;
}

static const struct moat_vu_server_ops ops = {
	.get_features = op_get_features,
	.set_features = op_set_features,
	.get_protocol_features = op_get_protocol_features,
	.set_protocol_features = op_set_protocol_features,
	.set_owner = op_set_owner,
	.reset = op_reset,
	.get_queue_num = op_get_queue_num,
	.get_max_mem_slots = op_get_max_mem_slots,
	.set_mem_table = op_set_mem_table,
	.add_mem_region = op_add_mem_region,
	.del_mem_region = op_del_mem_region,
	.set_vring_num = op_set_vring_num,
	.set_vring_addr = op_set_vring_addr,
	.set_vring_base = op_set_vring_base,
	.get_vring_base = op_get_vring_base,
	.set_vring_kick = op_set_vring_kick,
	.set_vring_call = op_set_vring_call,
	.set_vring_err = op_set_vring_err,
	.set_vring_enable = op_set_vring_enable,
	.get_config = op_get_config,
	.set_config = op_set_config,
	.set_backend_req_fd = op_set_backend_req_fd,
	.set_status = op_set_status,
	.get_status = op_get_status,
};

/* ---- what happens by itself ---- */

static void on_vmm(void *arg, uint32_t events)
{
	struct moat_session *s = arg;
	int ret = moat_vu_server_run(&s->server);

	(void)events;
	if (ret == -EPIPE)
		finish(s, MOAT_SESSION_VMM_LEFT);
	else if (ret < 0)
		finish(s, MOAT_SESSION_VMM_REFUSED);
}

static void on_backend(void *arg, uint32_t events)
{
	struct moat_session *s = arg;

	(void)events;
	from_backend(s, moat_vu_client_input(&s->client));
}

static void watch_channel(struct moat_session *s)
{
	s->channel_src.fd = s->client.channel.fd;
	if (s->channel_src.fd >= 0)
		moat_loop_watch(s->loop, &s->channel_src, false);
}

/* One request a time, and none for a while when there are too many. */
static void on_channel(void *arg, uint32_t events)
{
	struct moat_session *s = arg;
	int watched = s->channel_src.fd;

	(void)events;
	moat_vu_client_channel(&s->client);
	if (watched == s->client.channel.fd && s->channel_tokens) {
		s->channel_tokens--;
		return;
	}
	moat_loop_unwatch(s->loop, &s->channel_src);
	if (s->client.channel.fd >= 0)
		s->channel_next_ns = moat_now_ns() + CHANNEL_PAUSE_NS;
}

static void on_config_changed(void *arg)
{
	struct moat_session *s = arg;

	s->config_changed = true;
}

/*
 * Pass a config change on. It is legal once the VMM has given us a channel and
 * the driver has started; until then, and if it comes too often, it waits.
 */
static void pass_config_change(struct moat_session *s, uint64_t now)
{
	if (!s->config_changed || now < s->config_next_ns ||
	    s->vmm_channel.fd < 0 || !any_started(s))
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
		moat_vu_conn_close(&s->vmm_channel);
	}
}

static int ms_until(uint64_t now, uint64_t then)
{
	return then <= now ? 0 : (int)((then - now) / MOAT_NS_PER_MS) + 1;
}

int moat_session_step(struct moat_session *s)
{
	uint64_t now;
	int wait = -1;

	moat_runner_turn(&s->runner);
	if (!s->config_changed && !s->channel_next_ns)
		return moat_runner_busy(&s->runner) ? 0 : -1;
	now = moat_now_ns();
	pass_config_change(s, now);
	if (s->config_changed && s->vmm_channel.fd >= 0 && any_started(s))
		wait = ms_until(now, s->config_next_ns);
	if (s->channel_next_ns && now >= s->channel_next_ns) {
		s->channel_next_ns = 0;
		s->channel_tokens = CHANNEL_BURST;
		watch_channel(s);
	} else if (s->channel_next_ns) {
		int ms = ms_until(now, s->channel_next_ns);

		wait = wait < 0 || ms < wait ? ms : wait;
	}
	return moat_runner_busy(&s->runner) ? 0 : wait;
}

/* ---- beginning and end ---- */

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

/* What the backend is, and whether it will do. */
static int ask_backend(struct moat_session *s)
{
	struct moat_vu_client *c = &s->client;
	uint64_t num = VRINGS_DEFAULT;
	int ret = moat_vu_client_negotiate(c, MOAT_POLICY_BACKEND_PROTOCOL);

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
		.channel_tokens = CHANNEL_BURST,
	};
	moat_guest_mem_init(&s->mem, log, config->pools, config->npools,
			    config->udmabuf_fd);
	moat_vu_conn_init(&s->vmm_channel, -1);
	moat_vu_server_init(&s->server, -1, &ops, s, log);
	moat_vu_client_init(&s->client, fd, config->abort_fd, log);
	s->client.config_changed = on_config_changed;
	s->client.arg = s;
	moat_runner_init(&s->runner, loop, config->poll_us);
	s->runner.alarm = config->alarm;
	ret = make_pool(s);
	if (!ret)
		ret = ask_backend(s);
	if (ret)
		return from_backend(s, ret);
	s->client_src.fd = s->client.conn.fd;
	ret = moat_loop_watch(loop, &s->client_src, false);
	watch_channel(s);
	return ret;
}

int moat_session_serve(struct moat_session *s, int fd)
{
	moat_vu_server_init(&s->server, fd, &ops, s, s->log);
	s->server_src.fd = fd;
	return moat_loop_watch(s->loop, &s->server_src, false);
}

void moat_session_hurry(struct moat_session *s)
{
	s->client.abort_fd = -1;
	s->client.reply_ms = HURRY_REPLY_MS;
}

void moat_session_stop(struct moat_session *s)
{
	stop_all(s);
}

void moat_session_close(struct moat_session *s)
{
	moat_loop_unwatch(s->loop, &s->server_src);
	moat_loop_unwatch(s->loop, &s->client_src);
	moat_loop_unwatch(s->loop, &s->channel_src);
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
