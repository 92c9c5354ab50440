/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Framing: whole messages with their fds over a non-blocking stream socket.
 *
 * A message arrives in any number of pieces; nothing blocks on a peer that
 * sends half of one. Every fd that arrives is owned by exactly one place: the
 * connection while the message is incomplete, then the message, then whoever
 * takes it out (its entry becomes -1). moat_vu_msg_close() closes the rest.
 */
#ifndef MOAT_VU_CONN_H
#define MOAT_VU_CONN_H

#include <stdbool.h>
#include <stdint.h>

#include "vu/proto.h"

struct moat_vu_msg {
	uint32_t request;
	uint32_t flags;
	uint32_t size; /* bytes of payload */
	int nfds;
	union {
		uint64_t u64;
		struct moat_vu_vring_state state;
		struct moat_vu_vring_addr addr;
		struct moat_vu_mem_table table;
		struct moat_vu_mem_one region;
		struct moat_vu_config config;
		struct moat_vu_inflight inflight;
		struct moat_vu_shmem_config shmem;
		struct moat_vu_mmap mmap;
		uint8_t bytes[MOAT_VU_PAYLOAD_MAX];
	};
	int fds[MOAT_VU_FDS_MAX];
};

struct moat_vu_conn {
	int fd;
	uint32_t have; /* bytes of the message in @rx that have arrived */
	struct moat_vu_msg rx;
	uint8_t header[MOAT_VU_HEADER_SIZE];
};

/** moat_vu_conn_init() - over @fd, which the connection owns from now on */
void moat_vu_conn_init(struct moat_vu_conn *conn, int fd);

/** moat_vu_conn_close() - close the socket and any fds in flight */
void moat_vu_conn_close(struct moat_vu_conn *conn);

/**
 * moat_vu_conn_recv() - take one whole message if it is there
 * @msg: filled in; its fds are the caller's (moat_vu_msg_close())
 *
 * Return: 1 for a message; 0 if there is none yet; -EPIPE when the peer closed
 * between messages; -ECONNRESET when it closed inside one; -EPROTO for a wrong
 * version; -EMSGSIZE for a payload over MOAT_VU_PAYLOAD_MAX; -EMFILE for more
 * fds than a message may have, or for truncated control data; another negative
 * errno of the socket. After an error the connection can only be closed.
 */
int moat_vu_conn_recv(struct moat_vu_conn *conn, struct moat_vu_msg *msg);

/**
 * moat_vu_conn_send() - send one message
 * @fds: @nfds fds to pass along; they stay the caller's
 *
 * Waits a bounded time for room: a peer that does not read is -ETIMEDOUT.
 *
 * Return: 0 or a negative errno.
 */
int moat_vu_conn_send(struct moat_vu_conn *conn, uint32_t request,
		      uint32_t flags, const void *payload, uint32_t size,
		      const int *fds, int nfds);

/** moat_vu_conn_room() - would a small message be sent without waiting? */
bool moat_vu_conn_room(const struct moat_vu_conn *conn);

/** moat_vu_msg_close() - close the fds that nobody took */
void moat_vu_msg_close(struct moat_vu_msg *msg);

/** moat_vu_request_name() - of a front-end request; "?" if there is none */
const char *moat_vu_request_name(uint32_t request);

#endif
