/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "os/clock.h"
#include "os/fd.h"
#include "os/wait.h"
#include "vu/conn.h"

#define SEND_TIMEOUT_MS 2000u

void moat_vu_conn_init(struct moat_vu_conn *conn, int fd)
{
	memset(conn, 0, sizeof(*conn));
	conn->fd = fd;
}

void moat_vu_msg_close(struct moat_vu_msg *msg)
{
	for (int i = 0; i < msg->nfds; i++)
		moat_fd_close(&msg->fds[i]);
	msg->nfds = 0;
}

void moat_vu_conn_close(struct moat_vu_conn *conn)
{
	moat_vu_msg_close(&conn->rx);
	moat_fd_close(&conn->fd);
}

/* Keep the fds of one control message; those over the limit are closed. */
static int keep_fds(struct moat_vu_msg *rx, const struct cmsghdr *c)
{
	size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	int ret = 0;

	for (size_t i = 0; i < n; i++) {
		int fd;

		memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
		if (rx->nfds < (int)MOAT_VU_FDS_MAX) {
			rx->fds[rx->nfds++] = fd;
		} else {
			moat_fd_close(&fd);
			ret = -EMFILE;
		}
	}
	return ret;
}

/* One recvmsg(); bytes received, 0 if none are there, or a negative errno. */
static ssize_t receive(struct moat_vu_conn *conn, void *buf, size_t size)
{
	/* Room for one more than a message may have, to see the surplus. */
	union {
		char buf[CMSG_SPACE((MOAT_VU_FDS_MAX + 1) * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { buf, size };
	struct msghdr mh = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	ssize_t n = recvmsg(conn->fd, &mh, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	int bad = 0;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&mh); c; c = CMSG_NXTHDR(&mh, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
		    keep_fds(&conn->rx, c))
			bad = -EMFILE;
	if (mh.msg_flags & MSG_CTRUNC)
		bad = -EMFILE;
	if (bad)
		return bad;
	if (!n)
		return conn->have ? -ECONNRESET : -EPIPE;
	return n;
}

static int parse_header(struct moat_vu_conn *conn)
{
	struct moat_vu_msg *rx = &conn->rx;

	memcpy(&rx->request, conn->header, 4);
	memcpy(&rx->flags, conn->header + 4, 4);
	memcpy(&rx->size, conn->header + 8, 4);
	if ((rx->flags & MOAT_VU_VERSION_MASK) != MOAT_VU_VERSION)
		return -EPROTO;
	if (rx->size > MOAT_VU_PAYLOAD_MAX)
		return -EMSGSIZE;
	return 0;
}

int moat_vu_conn_recv(struct moat_vu_conn *conn, struct moat_vu_msg *msg)
{
	struct moat_vu_msg *rx = &conn->rx;
	ssize_t n;
	int ret;

	while (conn->have < MOAT_VU_HEADER_SIZE) {
		n = receive(conn, conn->header + conn->have,
			    MOAT_VU_HEADER_SIZE - conn->have);
		if (n <= 0)
			return (int)n;
		conn->have += (uint32_t)n;
		if (conn->have == MOAT_VU_HEADER_SIZE) {
			ret = parse_header(conn);
			if (ret)
				return ret;
		}
	}
	while (conn->have < MOAT_VU_HEADER_SIZE + rx->size) {
		uint32_t at = conn->have - MOAT_VU_HEADER_SIZE;

		n = receive(conn, rx->bytes + at, rx->size - at);
		if (n <= 0)
			return (int)n;
		conn->have += (uint32_t)n;
	}
	*msg = *rx;
	/* Nobody may read what an earlier, longer message left behind. */
	memset(msg->bytes + msg->size, 0, sizeof(msg->bytes) - msg->size);
	conn->have = 0;
	rx->nfds = 0;
	return 1;
}

static int wait_writable(int fd, uint64_t end)
{
	struct pollfd p = { .fd = fd, .events = POLLOUT };
	uint64_t now = moat_now_ns();

	if (now >= end)
		return -ETIMEDOUT;
	if (poll(&p, 1, (int)((end - now) / MOAT_NS_PER_MS) + 1) < 0 &&
	    errno != EINTR)
		return -errno;
	return 0;
}

/*
 * Descriptors that were sent and not received yet are counted for all processes
 * of a user together, against our own limit of open ones: others' go by.
 */
static int wait_in_flight(uint64_t end)
{
	if (moat_now_ns() >= end)
		return -ETOOMANYREFS;
	poll(NULL, 0, 1);
	return 0;
}

bool moat_vu_conn_room(const struct moat_vu_conn *conn)
{
	/* An error is for the send to find. */
	return moat_wait_fd(conn->fd, POLLOUT, 0);
}

int moat_vu_conn_send(struct moat_vu_conn *conn, uint32_t request,
		      uint32_t flags, const void *payload, uint32_t size,
		      const int *fds, int nfds)
{
	uint64_t end = moat_now_ns() + SEND_TIMEOUT_MS * MOAT_NS_PER_MS;
	uint8_t buf[MOAT_VU_HEADER_SIZE + MOAT_VU_PAYLOAD_MAX];
	uint32_t head[3] = { request, flags | MOAT_VU_VERSION, size };
	union {
		char buf[CMSG_SPACE(MOAT_VU_FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control = { { 0 } };
	struct iovec iov = { buf, MOAT_VU_HEADER_SIZE + size };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (size > MOAT_VU_PAYLOAD_MAX || nfds > (int)MOAT_VU_FDS_MAX)
		return -EMSGSIZE;
	memcpy(buf, head, sizeof(head));
	if (size)
		memcpy(buf + MOAT_VU_HEADER_SIZE, payload, size);
	if (nfds) {
		mh.msg_control = control.buf;
		mh.msg_controllen = CMSG_SPACE((size_t)nfds * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN((size_t)nfds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, (size_t)nfds * sizeof(int));
	}
	while (iov.iov_len) {
		/* The fd may be the peer's choice, and blocking. */
		ssize_t n = sendmsg(conn->fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
		int ret;

		if (n < 0 && errno != EAGAIN && errno != EINTR &&
		    errno != ETOOMANYREFS)
			return -errno;
		if (n < 0) {
			ret = errno == ETOOMANYREFS
				      ? wait_in_flight(end)
				      : wait_writable(conn->fd, end);
			if (ret)
				return ret;
			continue;
		}
		/* The fds went with the first byte. */
		mh.msg_control = NULL;
		mh.msg_controllen = 0;
		iov.iov_base = (uint8_t *)iov.iov_base + n;
		iov.iov_len -= (size_t)n;
	}
	return 0;
}

const char *moat_vu_request_name(uint32_t request)
{
	/* clang-format off */
#define NAME(r) [VHOST_USER_##r] = #r
	static const char *const names[VHOST_USER_REQUESTS] = {
		NAME(GET_FEATURES), NAME(SET_FEATURES), NAME(SET_OWNER),
		NAME(RESET_OWNER), NAME(SET_MEM_TABLE), NAME(SET_LOG_BASE),
		NAME(SET_LOG_FD), NAME(SET_VRING_NUM), NAME(SET_VRING_ADDR),
		NAME(SET_VRING_BASE), NAME(GET_VRING_BASE),
		NAME(SET_VRING_KICK), NAME(SET_VRING_CALL),
		NAME(SET_VRING_ERR), NAME(GET_PROTOCOL_FEATURES),
		NAME(SET_PROTOCOL_FEATURES), NAME(GET_QUEUE_NUM),
		NAME(SET_VRING_ENABLE), NAME(SEND_RARP), NAME(NET_SET_MTU),
		NAME(SET_BACKEND_REQ_FD), NAME(IOTLB_MSG),
		NAME(SET_VRING_ENDIAN), NAME(GET_CONFIG), NAME(SET_CONFIG),
		NAME(CREATE_CRYPTO_SESSION), NAME(CLOSE_CRYPTO_SESSION),
		NAME(POSTCOPY_ADVISE), NAME(POSTCOPY_LISTEN),
		NAME(POSTCOPY_END), NAME(GET_INFLIGHT_FD),
		NAME(SET_INFLIGHT_FD), NAME(GPU_SET_SOCKET),
		NAME(RESET_DEVICE), NAME(VRING_KICK), NAME(GET_MAX_MEM_SLOTS),
		NAME(ADD_MEM_REG), NAME(REM_MEM_REG), NAME(SET_STATUS),
		NAME(GET_STATUS), NAME(GET_SHARED_OBJECT),
		NAME(SET_DEVICE_STATE_FD), NAME(CHECK_DEVICE_STATE),
		NAME(GET_SHMEM_CONFIG),
	};
#undef NAME
	/* clang-format on */
	return request < VHOST_USER_REQUESTS && names[request] ? names[request]
							       : "?";
}
