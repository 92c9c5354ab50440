/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Policy: which device types the guard carries, which features it lets through
 * on each leg, and what it changes in a config space. Tables and pure
 * functions; no state.
 *
 *     VMM  <-- moat_policy_offer --  backend's features
 *     VMM  -- driver's choice  --> moat_policy_accept --> backend
 *
 * What concerns the ring ends at the guard, each leg on its own; what concerns
 * the device passes; what is unknown does not.
 */
#ifndef MOAT_GUARD_POLICY_H
#define MOAT_GUARD_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "relay/relay.h"
#include "vu/proto.h"

/**
 * struct moat_device_type - what --device=TYPE means
 * @name: as on the command line
 * @virtio_id: device ID (virtio 1.4, 5); 0 for the generic rules
 * @capability: its name in the vhost-user back-end capabilities, or NULL
 * @refused: why it can not be carried; NULL if it can
 * @drain_ms: how long a stopping queue waits without progress for requests
 *	that the backend has: long where each request ends by itself, short
 *	where buffers are posted for what may never come
 * @fail: what its requests get once there is no backend for them; NULL: the
 *	session ends, which is better where a VMM can connect again
 * @shmem: it has shared memory regions: --shmem is on if nothing is said
 */
struct moat_device_type {
	const char *name;
	uint32_t virtio_id;
	const char *capability;
	const char *refused;
	uint32_t drain_ms;
	moat_relay_fail fail;
	bool shmem;
};

/** moat_device_type() - by @name, or NULL */
const struct moat_device_type *moat_device_type(const char *name);

/**
 * moat_policy_drain_ms() - drain_ms of one queue of the device
 * @features: that the driver took
 */
uint32_t moat_policy_drain_ms(const struct moat_device_type *type,
			      uint64_t features, uint32_t index);

/** moat_device_types() - all of them, ended by one without a name */
const struct moat_device_type *moat_device_types(void);

/** enum moat_share_mode - what the backend sees of guest memory (--share) */
enum moat_share_mode {
	MOAT_SHARE_BOUNCE, /* nothing */
	MOAT_SHARE_DIRECT, /* the guest's pool, which holds rings and buffers */
	MOAT_SHARE_HYBRID, /* the guest's pool, which holds buffers */
	MOAT_SHARE_AUTO,   /* direct where that can be had, else bounce */
};

/** Protocol features that the guard can use towards a backend. */
#define MOAT_POLICY_BACKEND_PROTOCOL                   \
	(MOAT_BIT(VHOST_USER_PROTOCOL_F_MQ) |          \
	 MOAT_BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK) |   \
	 MOAT_BIT(VHOST_USER_PROTOCOL_F_BACKEND_REQ) | \
	 MOAT_BIT(VHOST_USER_PROTOCOL_F_CONFIG) |      \
	 MOAT_BIT(VHOST_USER_PROTOCOL_F_RESET_DEVICE))

/** And more, towards both, where there are shared memory regions. */
#define MOAT_POLICY_SHMEM_PROTOCOL                   \
	(MOAT_BIT(VHOST_USER_PROTOCOL_F_SHMEM_MAP) | \
	 MOAT_BIT(VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD))

/** moat_policy_protocol() - protocol features to offer to the VMM */
uint64_t moat_policy_protocol(uint64_t backend);

/**
 * moat_policy_offer() - virtio features to offer to the VMM
 * @access_platform: offer ACCESS_PLATFORM in mode `bounce` too
 * @backend: features that the backend offers
 */
uint64_t moat_policy_offer(const struct moat_device_type *type,
			   enum moat_share_mode mode, bool access_platform,
			   uint64_t backend);

/**
 * moat_policy_accept() - what to acknowledge to the backend
 * @backend: features that it offers
 * @driver: features that the driver took from moat_policy_offer()
 */
uint64_t moat_policy_accept(enum moat_share_mode mode, uint64_t backend,
			    uint64_t driver);

/**
 * moat_policy_config_range() - what to read to answer a part of a config space
 * @offset: of the part; @size: its bytes; both are widened where limits that
 *	moat_policy_config() changes depend on one another
 */
void moat_policy_config_range(const struct moat_device_type *type,
			      uint32_t *offset, uint32_t *size);

/**
 * moat_policy_config() - bring limits in a config space down to the pool
 * @config: as read from the backend, of a range as above
 * @limit: bytes of the largest request that fits
 */
void moat_policy_config(const struct moat_device_type *type,
			struct moat_vu_config *config, uint64_t limit);

#endif
