/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The back-end's end of a vhost-user connection: faces the VMM.
 *
 *     VMM --message--> size, fds, order checked --> one call of ops
 *     VMM <--reply---- built from what the call returned
 *
 * The server knows the protocol and nothing of the device: it checks each
 * message against a table (payload size, number of fds, the protocol feature
 * that has to be negotiated first) before an op sees it, and answers it. An op
 * that returns an error refuses the message: the peer gets a non-zero reply if
 * it asked for one, else the connection is of no more use and is to be closed.
 *
 * Legal per state:
 *     connected              all that does not start or stop a queue
 *     after SET_FEATURES     the size, addresses, base and kick of a queue too
 * and, in any state, only what its protocol feature allows.
 */
#ifndef MOAT_VU_SERVER_H
#define MOAT_VU_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "os/log.h"
#include "vu/conn.h"

/*
 * What a device implements. Each op returns 0 or a negative errno, having
 * logged why. An op that takes an fd sets the caller's variable to -1.
 * NULL for an op that the device does not have: the message is refused.
 */
struct moat_vu_server_ops {
	int (*get_features)(void *dev, uint64_t *features);
	int (*set_features)(void *dev, uint64_t features);
	int (*get_protocol_features)(void *dev, uint64_t *features);
	int (*set_protocol_features)(void *dev, uint64_t features);
	int (*set_owner)(void *dev);
	int (*reset)(void *dev); /* RESET_OWNER, RESET_DEVICE */
	int (*get_queue_num)(void *dev, uint64_t *num);
	int (*get_max_mem_slots)(void *dev, uint64_t *num);
	int (*set_mem_table)(void *dev, const struct moat_vu_mem_region *r,
			     uint32_t n, int *fds);
	int (*add_mem_region)(void *dev, const struct moat_vu_mem_region *r,
			      int *fd);
	int (*del_mem_region)(void *dev, const struct moat_vu_mem_region *r);
	int (*set_vring_num)(void *dev, uint32_t index, uint32_t num);
	int (*set_vring_addr)(void *dev, const struct moat_vu_vring_addr *addr);
	int (*set_vring_base)(void *dev, uint32_t index, uint32_t base);
	int (*get_vring_base)(void *dev, uint32_t index, uint32_t *base);
	/* @fd is -1 where the message says that there is none */
	int (*set_vring_kick)(void *dev, uint32_t index, int *fd);
	int (*set_vring_call)(void *dev, uint32_t index, int *fd);
	int (*set_vring_err)(void *dev, uint32_t index, int *fd);
	int (*set_vring_enable)(void *dev, uint32_t index, bool enable);
	/* @config: offset and size are checked; fill or take the data */
	int (*get_config)(void *dev, struct moat_vu_config *config);
	int (*set_config)(void *dev, const struct moat_vu_config *config);
	int (*set_backend_req_fd)(void *dev, int *fd);
	int (*set_status)(void *dev, uint64_t status);
	int (*get_status)(void *dev, uint64_t *status);
	/* @inflight: queues and sizes in, size and offset out; *@fd: set to
	 * one of the device's, which stays its own */
	int (*get_inflight)(void *dev, struct moat_vu_inflight *inflight,
			    int *fd);
	int (*set_inflight)(void *dev, const struct moat_vu_inflight *inflight,
			    int *fd);
	/* @sizes: MOAT_VU_SHMEM_MAX, zeroed; set those of regions */
	int (*get_shmem_config)(void *dev, uint64_t *sizes);
};

struct moat_vu_server {
	struct moat_vu_conn conn;
	const struct moat_vu_server_ops *ops;
	void *dev;
	struct moat_log *log;
	uint64_t protocol_features; /* as acknowledged by the VMM */
	bool features_set;
	int reply_fd; /* goes with the reply being made; -1: none */
};

/** moat_vu_server_init() - serve @fd, which the server owns from now on */
void moat_vu_server_init(struct moat_vu_server *server, int fd,
			 const struct moat_vu_server_ops *ops, void *dev,
			 struct moat_log *log);
void moat_vu_server_close(struct moat_vu_server *server);

/**
 * moat_vu_server_run() - handle one message if it is there
 *
 * Return: 1 if one was handled (refused with a reply counts); 0 if there is
 * none; -EPIPE when the VMM left; another negative errno when the connection
 * has to be closed, the cause having been logged.
 */
int moat_vu_server_run(struct moat_vu_server *server);

#endif
