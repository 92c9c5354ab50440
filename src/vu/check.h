/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every device refuses of a front-end, in the same words.
 *
 * server.h checks the form of a message; here is what of its content is wrong
 * whatever the device is. Each returns 0 or a negative errno, logged.
 */
#ifndef MOAT_VU_CHECK_H
#define MOAT_VU_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "os/log.h"

/**
 * moat_vu_check_features() - SET_FEATURES
 * @accepted: what was accepted before
 * @running: whether a queue is started, which takes the same features only
 */
int moat_vu_check_features(struct moat_log *log, uint64_t features,
			   uint64_t offered, uint64_t accepted, bool running);

/** moat_vu_check_protocol() - SET_PROTOCOL_FEATURES */
int moat_vu_check_protocol(struct moat_log *log, uint64_t features,
			   uint64_t offered);

/** moat_vu_check_index() - of a queue, of @queues */
int moat_vu_check_index(struct moat_log *log, uint32_t index, uint32_t queues);

/** moat_vu_check_stopped() - @what only makes sense while a queue is stopped */
int moat_vu_check_stopped(struct moat_log *log, uint32_t index, bool started,
			  const char *what);

/** moat_vu_check_num() - SET_VRING_NUM */
int moat_vu_check_num(struct moat_log *log, uint32_t index, uint32_t num,
		      bool packed);

/** moat_vu_check_base() - SET_VRING_BASE */
int moat_vu_check_base(struct moat_log *log, uint32_t index, uint32_t base,
		       bool packed);

/** moat_vu_check_kick() - SET_VRING_KICK; @fd is -1 if there is none */
int moat_vu_check_kick(struct moat_log *log, uint32_t index, int fd);

/** moat_vu_check_status() - SET_STATUS */
int moat_vu_check_status(struct moat_log *log, uint64_t status);

#endif
