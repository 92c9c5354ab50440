/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "os/fd.h"
#include "vu/server.h"

#define ANY (-1)
#define SIZE(member) ((int)sizeof(((struct moat_vu_msg *)0)->member))

/* What a handler leaves in the message is the payload of the reply. */
enum reply {
	REPLY_ACK, /* only if asked for: 0 or an error number */
	REPLY_MSG, /* always: the message as the handler left it */
};

struct handler {
	int (*run)(struct moat_vu_server *s, struct moat_vu_msg *m);
	int size; /* of the payload; ANY: the handler checks */
	int max_fds;
	enum reply reply;
	int needs;	     /* protocol feature bit, or ANY for none */
	bool after_features; /* only once SET_FEATURES was accepted */
};

/* Calls an op that may be missing. */
#define OP(s, op, ...) \
	((s)->ops->op ? (s)->ops->op((s)->dev, ##__VA_ARGS__) : -EOPNOTSUPP)

static int get_features(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	m->size = sizeof(m->u64);
	return OP(s, get_features, &m->u64);
}

static int set_features(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	int ret = OP(s, set_features, m->u64);

	if (!ret)
		s->features_set = true;
	return ret;
}

static int get_protocol_features(struct moat_vu_server *s,
				 struct moat_vu_msg *m)
{
	m->size = sizeof(m->u64);
	return OP(s, get_protocol_features, &m->u64);
}

static int set_protocol_features(struct moat_vu_server *s,
				 struct moat_vu_msg *m)
{
	int ret = OP(s, set_protocol_features, m->u64);

	if (!ret)
		s->protocol_features = m->u64;
	return ret;
}

static int set_owner(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	(void)m;
	return OP(s, set_owner);
}

static int reset(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	(void)m;
	return OP(s, reset);
}

static int get_queue_num(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	m->size = sizeof(m->u64);
	return OP(s, get_queue_num, &m->u64);
}

static int get_max_mem_slots(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	m->size = sizeof(m->u64);
	return OP(s, get_max_mem_slots, &m->u64);
}

static int set_mem_table(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	uint32_t n = m->table.nregions;

	if (n > MOAT_VU_REGIONS_MAX || m->nfds != (int)n ||
	    m->size < 8 + n * sizeof(m->table.regions[0])) {
		log_err(s->log,
			"SET_MEM_TABLE names %u regions in %u bytes with %d "
			"fds: "
			"refused; at most %u regions, one fd each",
			n, m->size, m->nfds, MOAT_VU_REGIONS_MAX);
		return -EINVAL;
	}
	return OP(s, set_mem_table, m->table.regions, n, m->fds);
}

static int add_mem_reg(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	if (m->nfds != 1) {
		log_err(s->log, "ADD_MEM_REG came without its fd: refused");
		return -EINVAL;
	}
	return OP(s, add_mem_region, &m->region.region, &m->fds[0]);
}

static int rem_mem_reg(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	return OP(s, del_mem_region, &m->region.region);
}

static int set_vring_num(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	return OP(s, set_vring_num, m->state.index, m->state.num);
}

static int set_vring_addr(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	return OP(s, set_vring_addr, &m->addr);
}

static int set_vring_base(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	return OP(s, set_vring_base, m->state.index, m->state.num);
}

static int get_vring_base(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	return OP(s, get_vring_base, m->state.index, &m->state.num);
}

/* KICK, CALL and ERR: an index, and an fd unless NOFD is set. */
static int vring_fd(struct moat_vu_server *s, struct moat_vu_msg *m,
		    int (*op)(void *, uint32_t, int *))
{
	bool nofd = m->u64 & MOAT_VU_VRING_NOFD;
	uint32_t index = m->u64 & MOAT_VU_VRING_IDX_MASK;
	int none = -1;

	if (m->nfds != (nofd ? 0 : 1) ||
	    m->u64 & ~(uint64_t)(MOAT_VU_VRING_IDX_MASK | MOAT_VU_VRING_NOFD)) {
		log_err(s->log,
			"queue %u: %s with value 0x%llx and %d fds: refused",
			index, moat_vu_request_name(m->request),
			(unsigned long long)m->u64, m->nfds);
		return -EINVAL;
	}
	if (!op)
		return -EOPNOTSUPP;
	return op(s->dev, index, nofd ? &none : &m->fds[0]);
}

static int set_vring_kick(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	return vring_fd(s, m, s->ops->set_vring_kick);
}

static int set_vring_call(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	return vring_fd(s, m, s->ops->set_vring_call);
}

static int set_vring_err(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	return vring_fd(s, m, s->ops->set_vring_err);
}

static int set_vring_enable(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	return OP(s, set_vring_enable, m->state.index, m->state.num != 0);
}

static int config_check(struct moat_vu_server *s, const struct moat_vu_msg *m)
{
	const struct moat_vu_config *c = &m->config;

	/* Each bound by itself, so that the sum can not wrap. */
	if (m->size >= MOAT_VU_CONFIG_HEADER &&
	    c->offset <= MOAT_VU_CONFIG_MAX &&
	    c->size <= MOAT_VU_CONFIG_MAX - c->offset &&
	    m->size == MOAT_VU_CONFIG_HEADER + c->size)
		return 0;
	log_err(s->log,
		"%s of %u bytes at offset %u in a message of %u: refused; "
		"config space has %u bytes",
		moat_vu_request_name(m->request), c->size, c->offset, m->size,
		MOAT_VU_CONFIG_MAX);
	return -EINVAL;
}

static int get_config(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	int ret = config_check(s, m);

	if (!ret)
		ret = OP(s, get_config, &m->config);
	/* A reply without payload says that it failed. */
	if (ret)
		m->size = 0;
	return 0;
}

static int set_config(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	int ret = config_check(s, m);

	return ret ? ret : OP(s, set_config, &m->config);
}

static int set_backend_req_fd(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	if (m->nfds != 1) {
		log_err(s->log, "SET_BACKEND_REQ_FD came without its fd: "
				"refused");
		return -EINVAL;
	}
	return OP(s, set_backend_req_fd, &m->fds[0]);
}

static int set_status(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	return OP(s, set_status, m->u64);
}

static int get_status(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	m->size = sizeof(m->u64);
	return OP(s, get_status, &m->u64);
}

static int inflight_check(struct moat_vu_server *s, const struct moat_vu_msg *m,
			  int nfds)
{
	if ((m->size == MOAT_VU_INFLIGHT_SIZE ||
	     m->size == sizeof(m->inflight)) &&
	    m->nfds == nfds)
		return 0;
	log_err(s->log, "%s with %u bytes of payload and %d fds: refused",
		moat_vu_request_name(m->request), m->size, m->nfds);
	return -EINVAL;
}

static int get_inflight(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	int ret = inflight_check(s, m, 0);

	return ret ? ret : OP(s, get_inflight, &m->inflight, &s->reply_fd);
}

static int set_inflight(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	int ret = inflight_check(s, m, 1);

	return ret ? ret : OP(s, set_inflight, &m->inflight, &m->fds[0]);
}

static int get_shmem_config(struct moat_vu_server *s, struct moat_vu_msg *m)
{
	struct moat_vu_shmem_config *c = &m->shmem;
	int ret;

	*c = (struct moat_vu_shmem_config){ 0 };
	ret = OP(s, get_shmem_config, c->sizes);
	for (uint32_t i = 0; i < MOAT_VU_SHMEM_MAX; i++)
		c->nregions += c->sizes[i] != 0;
	/* Front-ends copy the whole array, however few regions there are. */
	m->size = sizeof(*c);
	return ret;
}

#define F(bit) VHOST_USER_PROTOCOL_F_##bit
#define U64 SIZE(u64)
#define STATE SIZE(state)

/* request = handler, payload, fds, reply, needs, after SET_FEATURES */
static const struct handler handlers[VHOST_USER_REQUESTS] = {
	[VHOST_USER_GET_FEATURES] = { get_features, 0, 0, REPLY_MSG, ANY, 0 },
	[VHOST_USER_SET_FEATURES] = { set_features, U64, 0, REPLY_ACK, ANY, 0 },
	[VHOST_USER_SET_OWNER] = { set_owner, 0, 0, REPLY_ACK, ANY, 0 },
	[VHOST_USER_RESET_OWNER] = { reset, 0, 0, REPLY_ACK, ANY, 0 },
	[VHOST_USER_SET_MEM_TABLE] = { set_mem_table, ANY, MOAT_VU_REGIONS_MAX,
				       REPLY_ACK, ANY, 0 },
	[VHOST_USER_SET_VRING_NUM] = { set_vring_num, STATE, 0, REPLY_ACK, ANY,
				       1 },
	[VHOST_USER_SET_VRING_ADDR] = { set_vring_addr, SIZE(addr), 0,
					REPLY_ACK, ANY, 1 },
	[VHOST_USER_SET_VRING_BASE] = { set_vring_base, STATE, 0, REPLY_ACK,
					ANY, 1 },
	[VHOST_USER_GET_VRING_BASE] = { get_vring_base, STATE, 0, REPLY_MSG,
					ANY, 1 },
	/* Some front-ends set call and err fds before the features. */
	[VHOST_USER_SET_VRING_KICK] = { set_vring_kick, U64, 1, REPLY_ACK, ANY,
					1 },
	[VHOST_USER_SET_VRING_CALL] = { set_vring_call, U64, 1, REPLY_ACK, ANY,
					0 },
	[VHOST_USER_SET_VRING_ERR] = { set_vring_err, U64, 1, REPLY_ACK, ANY,
				       0 },
	[VHOST_USER_GET_PROTOCOL_FEATURES] = { get_protocol_features, 0, 0,
					       REPLY_MSG, ANY, 0 },
	[VHOST_USER_SET_PROTOCOL_FEATURES] = { set_protocol_features, U64, 0,
					       REPLY_ACK, ANY, 0 },
	[VHOST_USER_GET_QUEUE_NUM] = { get_queue_num, 0, 0, REPLY_MSG, F(MQ),
				       0 },
	/* QEMU enables a network device's queues before anything else. */
	[VHOST_USER_SET_VRING_ENABLE] = { set_vring_enable, STATE, 0, REPLY_ACK,
					  ANY, 0 },
	[VHOST_USER_SET_BACKEND_REQ_FD] = { set_backend_req_fd, 0, 1, REPLY_ACK,
					    F(BACKEND_REQ), 0 },
	[VHOST_USER_GET_CONFIG] = { get_config, ANY, 0, REPLY_MSG, F(CONFIG),
				    0 },
	[VHOST_USER_SET_CONFIG] = { set_config, ANY, 0, REPLY_ACK, F(CONFIG),
				    0 },
	[VHOST_USER_GET_INFLIGHT_FD] = { get_inflight, ANY, 0, REPLY_MSG,
					 F(INFLIGHT_SHMFD), 0 },
	[VHOST_USER_SET_INFLIGHT_FD] = { set_inflight, ANY, 1, REPLY_ACK,
					 F(INFLIGHT_SHMFD), 0 },
	[VHOST_USER_RESET_DEVICE] = { reset, 0, 0, REPLY_ACK, F(RESET_DEVICE),
				      0 },
	[VHOST_USER_GET_MAX_MEM_SLOTS] = { get_max_mem_slots, 0, 0, REPLY_MSG,
					   F(CONFIGURE_MEM_SLOTS), 0 },
	[VHOST_USER_ADD_MEM_REG] = { add_mem_reg, SIZE(region), 1, REPLY_ACK,
				     F(CONFIGURE_MEM_SLOTS), 0 },
	/* The specification lets the front-end send an fd here as well. */
	[VHOST_USER_REM_MEM_REG] = { rem_mem_reg, SIZE(region), 1, REPLY_ACK,
				     F(CONFIGURE_MEM_SLOTS), 0 },
	[VHOST_USER_SET_STATUS] = { set_status, U64, 0, REPLY_ACK, F(STATUS),
				    0 },
	[VHOST_USER_GET_STATUS] = { get_status, 0, 0, REPLY_MSG, F(STATUS), 0 },
	[VHOST_USER_GET_SHMEM_CONFIG] = { get_shmem_config, 0, 0, REPLY_MSG,
					  F(SHMEM_MAP), 0 },
};

void moat_vu_server_init(struct moat_vu_server *s, int fd,
			 const struct moat_vu_server_ops *ops, void *dev,
			 struct moat_log *log)
{
	*s = (struct moat_vu_server){ .ops = ops, .dev = dev, .log = log };
	moat_vu_conn_init(&s->conn, fd);
	s->reply_fd = -1;
}

void moat_vu_server_close(struct moat_vu_server *s)
{
	moat_vu_conn_close(&s->conn);
}

/* The form of the message, before any handler sees it. */
static int check(struct moat_vu_server *s, const struct moat_vu_msg *m,
		 const struct handler *h)
{
	const char *name = moat_vu_request_name(m->request);

	if (m->flags & MOAT_VU_F_REPLY) {
		log_err(s->log, "message %u (%s) is marked as a reply: refused",
			m->request, name);
		return -EPROTO;
	}
	if (!h->run) {
		log_err(s->log,
			"message %u (%s) is not supported: refused; its "
			"feature "
			"was not offered",
			m->request, name);
		return -EOPNOTSUPP;
	}
	if (h->needs != ANY && !(s->protocol_features & MOAT_BIT(h->needs))) {
		log_err(s->log,
			"%s without protocol feature %d negotiated: refused",
			name, h->needs);
		return -EPROTO;
	}
	if (h->after_features && !s->features_set) {
		log_err(s->log, "%s before SET_FEATURES: refused", name);
		return -EPROTO;
	}
	if (h->size != ANY && m->size != (uint32_t)h->size) {
		log_err(s->log, "%s with %u bytes of payload, not %d: refused",
			name, m->size, h->size);
		return -EINVAL;
	}
	if (m->nfds > h->max_fds) {
		log_err(s->log, "%s with %d fds, at most %d: refused", name,
			m->nfds, h->max_fds);
		return -EINVAL;
	}
	return 0;
}

static int answer(struct moat_vu_server *s, const struct moat_vu_msg *m,
		  const struct handler *h, int result)
{
	bool ack = m->flags & MOAT_VU_F_NEED_REPLY &&
		   s->protocol_features &
			   MOAT_BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK);
	uint64_t status = result ? (uint64_t)-result : 0;
	int ret;

	if (h->run && h->reply == REPLY_MSG) {
		/* There is no way to say no to these: the peer would wait. */
		if (result)
			return result;
		ret = moat_vu_conn_send(&s->conn, m->request, MOAT_VU_F_REPLY,
					m->bytes, m->size, &s->reply_fd,
					s->reply_fd >= 0);
	} else if (ack) {
		ret = moat_vu_conn_send(&s->conn, m->request, MOAT_VU_F_REPLY,
					&status, sizeof(status), NULL, 0);
	} else {
		return result;
	}
	if (ret)
		log_err(s->log, "can not answer %s: %s",
			moat_vu_request_name(m->request), strerror(-ret));
	return ret;
}

int moat_vu_server_run(struct moat_vu_server *s)
{
	static const struct handler none;
	const struct handler *h = &none;
	struct moat_vu_msg m;
	int ret = moat_vu_conn_recv(&s->conn, &m);

	if (ret < 0 && ret != -EPIPE)
		log_err(s->log, "bad message from the front-end: %s",
			strerror(-ret));
	if (ret <= 0)
		return ret;
	if (m.request < VHOST_USER_REQUESTS)
		h = &handlers[m.request];
	ret = check(s, &m, h);
	s->reply_fd = -1;
	if (!ret)
		ret = h->run(s, &m);
	moat_vu_msg_close(&m);
	ret = answer(s, &m, h, ret);
	return ret ? ret : 1;
}
