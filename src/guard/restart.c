/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "guard/relayed.h"
#include "guard/restart.h"
#include "guard/session.h"
#include "os/clock.h"

#define U(x) ((unsigned long long)(x))

static bool any_direct(const struct moat_session *s)
{
	for (uint32_t i = 0; i < s->max_vrings; i++)
		if (s->vrings[i] && s->vrings[i]->started &&
		    s->vrings[i]->direct)
			return true;
	return false;
}

bool moat_restart_possible(const struct moat_session *s)
{
	const struct moat_restart_ops *ops = s->config->restart;

	return ops && !s->orphan && ops->left(ops->arg) && !any_direct(s);
}

/* The queue, if it runs. */
static struct moat_vring_ctl *running(const struct moat_session *s, uint32_t i)
{
	struct moat_vring_ctl *v = s->vrings[i];

	return v && v->started ? v : NULL;
}

static void lose(struct moat_session *s)
{
	struct moat_vring_ctl *v;

	moat_guard_shmem_lose(s);
	moat_session_unwatch_backend(s);
	for (uint32_t i = 0; i < s->max_vrings; i++)
		if ((v = running(s, i)))
			moat_relayed_lose(v);
	moat_vu_client_close(&s->client);
}

/* Requests that the guest waits for, and those that it got. */
static void count(const struct moat_session *s, uint64_t *waiting,
		  uint64_t *done)
{
	const struct moat_vring_ctl *v;

	*waiting = 0;
	*done = s->completed;
	for (uint32_t i = 0; i < s->max_vrings; i++)
		if ((v = running(s, i))) {
			*waiting += moat_relay_taken(&v->rq.relay);
			*done += v->rq.relay.stats.completed;
		}
}

/* What the VMM, and the driver, rely on. */
static int check(struct moat_session *s, uint64_t features, uint64_t protocol)
{
	const struct moat_vu_client *c = &s->client;
	uint64_t needs = s->server.features_set ? s->forwarded : features;
	uint64_t num = s->max_vrings;
	int ret = 0;

	if (needs & ~c->features || protocol & ~c->protocol_features) {
		log_err(s->log,
			"the new backend lacks features (0x%llx) or protocol "
			"features (0x%llx) of the one before; start the same "
			"one again",
			U(needs & ~c->features),
			U(protocol & ~c->protocol_features));
		return -EPROTO;
	}
	if (moat_vu_client_has(c, VHOST_USER_PROTOCOL_F_MQ))
		ret = moat_vu_client_get_u64(&s->client,
					     VHOST_USER_GET_QUEUE_NUM, &num);
	if (!ret && num < s->max_vrings) {
		log_err(s->log,
			"the new backend has %llu queues, not %u as the one "
			"before",
			U(num), s->max_vrings);
		ret = -EPROTO;
	}
	return ret;
}

/* As it was read last; a difference is told as soon as that is legal. */
static int compare_config(struct moat_session *s)
{
	struct moat_vu_config c = { .size = s->config_seen };
	int ret;

	if (s->config_set.size) {
		ret = moat_vu_client_set_config(&s->client, &s->config_set);
		if (s->client.dead)
			return ret;
	}
	if (!c.size)
		return 0;
	ret = moat_vu_client_get_config(&s->client, &c);
	if (ret || memcmp(c.data, s->config_space, c.size))
		s->config_changed = true;
	return s->client.dead ? ret : 0;
}

/* The new backend gets a pool that the old one never had. */
static int renew_pool(struct moat_session *s)
{
	struct moat_pool_mem fresh;
	struct moat_vring_ctl *v;
	int ret;

	if (!s->pool_mem.host)
		return 0;
	ret = moat_pool_mem_create(&fresh, s->pool_mem.size);
	if (ret) {
		log_err(s->log, "can not make another pool of %llu bytes: %s",
			U(s->pool_mem.size), strerror(-ret));
		return ret;
	}
	moat_pool_mem_destroy(&s->pool_mem);
	s->pool_mem = fresh;
	s->runner.relay.dma.pool_host = fresh.host;
	for (uint32_t i = 0; i < s->max_vrings; i++)
		if ((v = running(s, i)))
			moat_relayed_renew(v);
	return 0;
}

static int resume(struct moat_session *s)
{
	bool pool = s->pool_sent, share = s->share_sent;
	struct moat_vring_ctl *v;
	int ret = renew_pool(s);

	if (!ret && s->server.features_set)
		ret = moat_vu_client_set_u64(
			&s->client, VHOST_USER_SET_FEATURES, s->forwarded);
	if (!ret)
		ret = compare_config(s);
	if (!ret && s->table_sent) {
		s->table_sent = s->pool_sent = s->share_sent = false;
		ret = moat_session_send_table(s, pool, share);
		/* Whether or not it was: so it has to be. */
		s->table_sent = true;
		s->pool_sent = pool;
		s->share_sent = share;
	}
	for (uint32_t i = 0; !ret && i < s->max_vrings; i++)
		if ((v = running(s, i)))
			ret = moat_relayed_resume(v);
	return ret;
}

/* One try with one backend. */
static int take_on(struct moat_session *s, int fd, uint64_t end_ns)
{
	uint64_t features = s->client.features;
	uint64_t protocol = s->client.protocol_features;
	int ret;

	moat_session_meet(s, fd);
	s->client.end_ns = end_ns;
	ret = moat_session_negotiate(s);
	if (!ret)
		ret = check(s, features, protocol);
	if (!ret)
		ret = moat_guard_shmem_reopen(s);
	if (!ret)
		ret = resume(s);
	if (!ret)
		ret = moat_session_watch_backend(s);
	s->client.end_ns = 0;
	if (!ret)
		return 0;
	lose(s);
	/* They are the old one's for as long as it has no successor. */
	s->client.features = features;
	s->client.protocol_features = protocol;
	return ret;
}

static void say_not(struct moat_session *s)
{
	const struct moat_restart_ops *ops = s->config->restart;

	if (!ops)
		return;
	if (any_direct(s))
		log_warn(s->log,
			 "--restart does not help queues that went direct: the "
			 "session ends");
	else if (!ops->left(ops->arg))
		log_err(s->log, "the backend was replaced as often as "
				"--restart allows in a minute: the session "
				"ends");
}

int moat_restart(struct moat_session *s)
{
	const struct moat_restart_ops *ops = s->config->restart;
	enum moat_session_end end = s->end;
	uint64_t began, end_ns, waiting, done, before = s->replaced_at;
	int fd, ret = -EPIPE;

	if (end != MOAT_SESSION_BACKEND_GONE &&
	    end != MOAT_SESSION_BACKEND_BROKEN)
		return -EPIPE;
	if (!moat_restart_possible(s)) {
		say_not(s);
		return -EPIPE;
	}
	began = moat_now_ns();
	end_ns = began + ops->wait_ms * (uint64_t)MOAT_NS_PER_MS;
	lose(s);
	count(s, &waiting, &done);
	s->replaced_at = done;
	do {
		fd = ops->another(ops->arg, done == before, end_ns,
				  s->server.conn.fd);
		if (fd == -ECONNABORTED)
			s->end = MOAT_SESSION_VMM_LEFT;
		if (fd < 0)
			return fd;
		ret = take_on(s, fd, end_ns);
		before = done;
	} while (ret && ret != -EINTR && ops->left(ops->arg) &&
		 moat_now_ns() < end_ns);
	if (ret) {
		log_err(s->log, "no backend takes the place of the one that is "
				"gone: the session ends");
		return ret;
	}
	s->end = MOAT_SESSION_RUNNING;
	s->impatient = false;
	moat_guard_shmem_waited(s, began);
	log_warn(s->log,
		 "another backend goes on; it is given %llu requests again",
		 U(waiting));
	return 0;
}

int moat_restart_orphan(struct moat_session *s)
{
	struct moat_vring_ctl *v;
	int ret = 0;

	if ((s->end != MOAT_SESSION_BACKEND_GONE &&
	     s->end != MOAT_SESSION_BACKEND_BROKEN) ||
	    !s->config->type->fail || any_direct(s) ||
	    !moat_session_any_started(s))
		return -EPIPE;
	lose(s);
	s->orphan = true;
	s->end = MOAT_SESSION_RUNNING;
	for (uint32_t i = 0; !ret && i < s->max_vrings; i++)
		if ((v = running(s, i)))
			ret = moat_relayed_fail(v);
	if (ret) {
		s->end = MOAT_SESSION_BACKEND_GONE;
		return ret;
	}
	s->status |= VIRTIO_STATUS_NEEDS_RESET;
	s->config_changed = true;
	log_err(s->log, "without a backend: all requests are answered with an "
			"error until the VMM leaves");
	return 0;
}

bool moat_restart_again(struct moat_session *s, int ret)
{
	moat_session_from_backend(s, ret);
	return s->client.dead && !s->orphan && !moat_restart(s);
}
