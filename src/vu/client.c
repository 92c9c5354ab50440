/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>

#include "os/clock.h"
#include "os/fd.h"
#include "os/sock.h"
#include "vu/client.h"

void moat_vu_client_init(struct moat_vu_client *c, int fd, int abort_fd,
			 struct moat_log *log)
{
	*c = (struct moat_vu_client){
		.abort_fd = abort_fd,
		.reply_ms = MOAT_VU_REPLY_MS,
		.credit_ns = MOAT_VU_CREDIT_MS * (uint64_t)MOAT_NS_PER_MS,
		.credit_at_ns = moat_now_ns(),
		.log = log,
	};
	moat_vu_conn_init(&c->conn, fd);
	moat_vu_conn_init(&c->channel, -1);
}

void moat_vu_client_hurry(struct moat_vu_client *c, uint32_t ms)
{
	c->abort_fd = -1;
	c->reply_ms = ms;
	c->end_ns = moat_now_ns() + (uint64_t)ms * MOAT_NS_PER_MS;
}

void moat_vu_client_close(struct moat_vu_client *c)
{
	moat_vu_conn_close(&c->conn);
	moat_vu_conn_close(&c->channel);
	c->dead = true;
}

/* The backend can not be talked to any more; says why, once. */
static int die(struct moat_vu_client *c, uint32_t request, int err)
{
	const char *name = moat_vu_request_name(request);

	if (c->dead || err == -EINTR) {
		c->dead = true;
		return err;
	}
	c->dead = true;
	if (err == -EPIPE || err == -ECONNRESET)
		log_err(c->log, "backend gone: it closed the connection at %s",
			name);
	else if (err == -ETIMEDOUT)
		log_err(c->log,
			"backend stalls: no answer to %s within %u s; restart "
			"it",
			name, c->reply_ms / 1000);
	else
		log_err(c->log,
			"backend broke the protocol at %s: %s; restart or "
			"replace it",
			name, strerror(-err));
	return err;
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Wait until the backend's connection is readable; serves its channel. */
static int wait_input(struct moat_vu_client *c, uint64_t end)
{
	uint64_t stall =
		moat_now_ns() + MOAT_VU_STALL_MS * (uint64_t)MOAT_NS_PER_MS;

	for (;;) {
		struct pollfd p[3] = {
			{ .fd = c->conn.fd, .events = POLLIN },
			{ .fd = c->abort_fd, .events = POLLIN },
			{ .fd = c->hold ? -1 : c->channel.fd,
			  .events = POLLIN },
		};
		uint64_t now = moat_now_ns(), until;

		if (now >= end)
			return -ETIMEDOUT;
		if (now >= stall && c->stalled)
			c->stalled(c->arg);
		if (now >= stall)
			stall = now +
				MOAT_VU_STALL_MS * (uint64_t)MOAT_NS_PER_MS;
		until = least(end, stall);
		if (poll(p, 3, (int)((until - now) / MOAT_NS_PER_MS) + 1) < 0 &&
		    errno != EINTR)
			return -errno;
		if (p[1].revents)
			return -EINTR;
		if (p[0].revents)
			return 0;
		if (p[2].revents)
			moat_vu_client_channel(c);
	}
}

/* How long to wait from @now on: this answer's time, and what credit is left.
 */
static uint64_t patience_ends(struct moat_vu_client *c, uint64_t now)
{
	uint64_t full = MOAT_VU_CREDIT_MS * (uint64_t)MOAT_NS_PER_MS;
	uint64_t floor = MOAT_VU_CREDIT_LEAST_MS * (uint64_t)MOAT_NS_PER_MS;
	uint64_t end = now + c->reply_ms * (uint64_t)MOAT_NS_PER_MS;

	c->credit_ns = least(c->credit_ns + (now - c->credit_at_ns) / 10, full);
	c->credit_at_ns = now;
	end = least(end, now + (c->credit_ns > floor ? c->credit_ns : floor));
	return c->end_ns ? least(end, c->end_ns) : end;
}

static void spend_credit(struct moat_vu_client *c)
{
	uint64_t now = moat_now_ns();

	c->credit_ns -= least(c->credit_ns, now - c->credit_at_ns);
	c->credit_at_ns = now;
}

/* Wait for the reply to @request. */
static int get_reply(struct moat_vu_client *c, uint32_t request,
		     struct moat_vu_msg *m)
{
	uint64_t end = patience_ends(c, moat_now_ns());
	int ret;

	while (!(ret = moat_vu_conn_recv(&c->conn, m))) {
		ret = wait_input(c, end);
		if (ret)
			return die(c, request, ret);
	}
	spend_credit(c);
	if (ret < 0)
		return die(c, request, ret);
	ret = m->nfds;
	moat_vu_msg_close(m);
	if (m->request != request || !(m->flags & MOAT_VU_F_REPLY) || ret)
		return die(c, request, -EPROTO);
	return 0;
}

/* Send, and wait for the acknowledgement where there is one. */
static int call(struct moat_vu_client *c, uint32_t request, const void *payload,
		uint32_t size, const int *fds, int nfds)
{
	bool ack = moat_vu_client_has(c, VHOST_USER_PROTOCOL_F_REPLY_ACK);
	struct moat_vu_msg m;
	int ret;

	if (c->dead)
		return -EPIPE;
	ret = moat_vu_conn_send(&c->conn, request,
				ack ? MOAT_VU_F_NEED_REPLY : 0, payload, size,
				fds, nfds);
	if (ret)
		return die(c, request, ret);
	if (!ack)
		return 0;
	ret = get_reply(c, request, &m);
	if (ret)
		return ret;
	if (m.size != sizeof(m.u64))
		return die(c, request, -EPROTO);
	if (m.u64) {
		log_err(c->log, "backend refused %s (error %llu)",
			moat_vu_request_name(request),
			(unsigned long long)m.u64);
		return -EIO;
	}
	return 0;
}

/* Send a request whose reply is a message of its own. */
static int query(struct moat_vu_client *c, uint32_t request,
		 const void *payload, uint32_t size, struct moat_vu_msg *reply)
{
	int ret;

	if (c->dead)
		return -EPIPE;
	ret = moat_vu_conn_send(&c->conn, request, 0, payload, size, NULL, 0);
	return ret ? die(c, request, ret) : get_reply(c, request, reply);
}

int moat_vu_client_get_u64(struct moat_vu_client *c, uint32_t request,
			   uint64_t *value)
{
	struct moat_vu_msg m;
	int ret = query(c, request, NULL, 0, &m);

	if (ret)
		return ret;
	if (m.size != sizeof(m.u64))
		return die(c, request, -EPROTO);
	*value = m.u64;
	return 0;
}

int moat_vu_client_set_u64(struct moat_vu_client *c, uint32_t request,
			   uint64_t value)
{
	return call(c, request, &value, sizeof(value), NULL, 0);
}

int moat_vu_client_simple(struct moat_vu_client *c, uint32_t request)
{
	return call(c, request, NULL, 0, NULL, 0);
}

int moat_vu_client_set_mem(struct moat_vu_client *c,
			   const struct moat_vu_mem_region *regions, uint32_t n,
			   const int *fds)
{
	struct moat_vu_mem_table t = { .nregions = n };

	if (n > MOAT_VU_REGIONS_MAX)
		return -EINVAL;
	memcpy(t.regions, regions, n * sizeof(*regions));
	return call(c, VHOST_USER_SET_MEM_TABLE, &t,
		    8 + n * (uint32_t)sizeof(*regions), fds, (int)n);
}

int moat_vu_client_vring(struct moat_vu_client *c, uint32_t request,
			 uint32_t index, uint32_t num)
{
	struct moat_vu_vring_state s = { index, num };

	return call(c, request, &s, sizeof(s), NULL, 0);
}

int moat_vu_client_vring_addr(struct moat_vu_client *c,
			      const struct moat_vu_vring_addr *addr)
{
	return call(c, VHOST_USER_SET_VRING_ADDR, addr, sizeof(*addr), NULL, 0);
}

int moat_vu_client_vring_fd(struct moat_vu_client *c, uint32_t request,
			    uint32_t index, int fd)
{
	uint64_t v = index | (fd < 0 ? MOAT_VU_VRING_NOFD : 0);

	return call(c, request, &v, sizeof(v), &fd, fd < 0 ? 0 : 1);
}

int moat_vu_client_get_vring_base(struct moat_vu_client *c, uint32_t index,
				  uint32_t *base)
{
	struct moat_vu_vring_state s = { index, 0 };
	struct moat_vu_msg m;
	int ret = query(c, VHOST_USER_GET_VRING_BASE, &s, sizeof(s), &m);

	if (ret)
		return ret;
	if (m.size != sizeof(m.state) || m.state.index != index)
		return die(c, VHOST_USER_GET_VRING_BASE, -EPROTO);
	*base = m.state.num;
	return 0;
}

int moat_vu_client_get_config(struct moat_vu_client *c,
			      struct moat_vu_config *config)
{
	uint32_t size = MOAT_VU_CONFIG_HEADER + config->size;
	struct moat_vu_msg m;
	int ret = query(c, VHOST_USER_GET_CONFIG, config, size, &m);

	if (ret)
		return ret;
	if (!m.size) {
		log_err(c->log,
			"backend refused GET_CONFIG of %u bytes at offset %u",
			config->size, config->offset);
		return -EIO;
	}
	if (m.size != size || m.config.size != config->size ||
	    m.config.offset != config->offset)
		return die(c, VHOST_USER_GET_CONFIG, -EPROTO);
	memcpy(config->data, m.config.data, config->size);
	return 0;
}

int moat_vu_client_set_config(struct moat_vu_client *c,
			      const struct moat_vu_config *config)
{
	return call(c, VHOST_USER_SET_CONFIG, config,
		    MOAT_VU_CONFIG_HEADER + config->size, NULL, 0);
}

int moat_vu_client_get_shmem_config(struct moat_vu_client *c, uint64_t *sizes)
{
	const uint32_t header = MOAT_VU_SHMEM_CONFIG_HEADER;
	struct moat_vu_msg m;
	int ret = query(c, VHOST_USER_GET_SHMEM_CONFIG, NULL, 0, &m);

	if (ret)
		return ret;
	/* Shorter ones leave out the end of the array. */
	if (m.size < header || m.size > sizeof(m.shmem) ||
	    m.shmem.nregions > MOAT_VU_SHMEM_MAX ||
	    m.size < header + m.shmem.nregions * sizeof(*sizes))
		return die(c, VHOST_USER_GET_SHMEM_CONFIG, -EPROTO);
	memcpy(sizes, m.shmem.sizes, sizeof(m.shmem.sizes));
	return 0;
}

static int open_channel(struct moat_vu_client *c)
{
	int pair[2], ret = moat_sock_pair(pair);

	if (ret)
		return ret;
	moat_vu_conn_init(&c->channel, pair[0]);
	/* Backends wait on their end for acknowledgements: plain blocking. */
	if (fcntl(pair[1], F_SETFL, 0))
		ret = -errno;
	if (!ret)
		ret = call(c, VHOST_USER_SET_BACKEND_REQ_FD, NULL, 0, &pair[1],
			   1);
	moat_fd_close(&pair[1]);
	return ret;
}

int moat_vu_client_negotiate(struct moat_vu_client *c, uint64_t protocol)
{
	uint64_t offered = 0;
	int ret;

	ret = moat_vu_client_get_u64(c, VHOST_USER_GET_FEATURES, &c->features);
	if (ret)
		return ret;
	if (c->features & MOAT_BIT(VHOST_USER_F_PROTOCOL_FEATURES)) {
		ret = moat_vu_client_get_u64(
			c, VHOST_USER_GET_PROTOCOL_FEATURES, &offered);
		if (!ret)
			ret = moat_vu_client_set_u64(
				c, VHOST_USER_SET_PROTOCOL_FEATURES,
				offered & protocol);
		if (ret)
			return ret;
		c->protocol_features = offered & protocol;
	}
	ret = moat_vu_client_simple(c, VHOST_USER_SET_OWNER);
	if (!ret && moat_vu_client_has(c, VHOST_USER_PROTOCOL_F_BACKEND_REQ))
		ret = open_channel(c);
	return ret;
}

int moat_vu_client_input(struct moat_vu_client *c)
{
	struct moat_vu_msg m;
	int ret = moat_vu_conn_recv(&c->conn, &m);

	if (!ret)
		return 0;
	if (ret > 0) {
		log_err(c->log,
			"backend sent message %u that nobody asked for; "
			"restart "
			"or replace it",
			m.request);
		moat_vu_msg_close(&m);
		c->dead = true;
		return -EPROTO;
	}
	if (ret == -EPIPE || ret == -ECONNRESET) {
		if (!c->dead)
			log_err(c->log,
				"backend gone: it closed the connection");
		c->dead = true;
		return -EPIPE;
	}
	return die(c, 0, ret);
}

/* The other connection says so, and no second line is needed. */
static bool hung_up(int err)
{
	return err == -EPIPE || err == -ECONNRESET;
}

static void close_channel(struct moat_vu_client *c)
{
	if (c->channel_ends)
		c->channel_ends(c->arg);
	moat_vu_conn_close(&c->channel);
}

int moat_vu_client_answer(struct moat_vu_client *c, uint32_t request,
			  uint64_t status)
{
	int ret = -EAGAIN;

	if (c->channel.fd < 0)
		return -EPIPE;
	if (moat_vu_conn_room(&c->channel))
		ret = moat_vu_conn_send(&c->channel, request, MOAT_VU_F_REPLY,
					&status, sizeof(status), NULL, 0);
	if (!ret)
		return 0;
	if (!hung_up(ret))
		log_err(c->log,
			"backend does not read its request channel: closed");
	close_channel(c);
	return -EPIPE;
}

static bool is_config_change(const struct moat_vu_client *c,
			     const struct moat_vu_msg *m)
{
	return m->request == VHOST_USER_BACKEND_CONFIG_CHANGE_MSG && !m->size &&
	       !m->nfds && moat_vu_client_has(c, VHOST_USER_PROTOCOL_F_CONFIG);
}

static bool is_shmem(const struct moat_vu_client *c,
		     const struct moat_vu_msg *m)
{
	bool map = m->request == VHOST_USER_BACKEND_SHMEM_MAP;

	return (map || m->request == VHOST_USER_BACKEND_SHMEM_UNMAP) &&
	       m->size == sizeof(m->mmap) && m->nfds == (map ? 1 : 0) &&
	       moat_vu_client_has(c, VHOST_USER_PROTOCOL_F_SHMEM_MAP) &&
	       c->shmem;
}

/* 0 or an error number for the answer; MOAT_VU_LATER for none now. */
static int obey(struct moat_vu_client *c, struct moat_vu_msg *m, bool reply)
{
	/* We ask it nothing there: a reply is no request. */
	bool ask = !(m->flags & MOAT_VU_F_REPLY);
	int none = -1;

	if (ask && is_config_change(c, m)) {
		if (c->config_changed)
			c->config_changed(c->arg);
		return 0;
	}
	if (ask && is_shmem(c, m))
		return c->shmem(c->arg, m->request, &m->mmap,
				m->nfds ? &m->fds[0] : &none, reply);
	/* Once, or it could drown other lines (os/log.h). */
	if (!c->said_refused)
		log_err(c->log,
			"backend request %u (%u bytes, %d fds) is not allowed: "
			"refused, as more of them will be",
			m->request, m->size, m->nfds);
	c->said_refused = true;
	return EPERM;
}

int moat_vu_client_channel(struct moat_vu_client *c)
{
	struct moat_vu_msg m;
	int ret, status;
	bool reply;

	if (c->channel.fd < 0)
		return -EPIPE;
	ret = moat_vu_conn_recv(&c->channel, &m);
	if (!ret)
		return 0;
	if (ret < 0) {
		if (!hung_up(ret))
			log_err(c->log, "backend's request channel: %s; closed",
				strerror(-ret));
		close_channel(c);
		return ret;
	}
	reply = m.flags & MOAT_VU_F_NEED_REPLY &&
		moat_vu_client_has(c, VHOST_USER_PROTOCOL_F_REPLY_ACK);
	status = obey(c, &m, reply);
	moat_vu_msg_close(&m);
	if (reply && status != MOAT_VU_LATER &&
	    moat_vu_client_answer(c, m.request, (uint64_t)status))
		return -EPIPE;
	return 1;
}
