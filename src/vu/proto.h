/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vhost-user on the wire: numbers, names and payloads, as the vhost-user
 * specification shipped with QEMU 11.1 gives them.
 *
 *   header   u32 request, u32 flags, u32 size     native byte order
 *   payload  size bytes
 *   fds      SCM_RIGHTS with the header
 */
#ifndef MOAT_VU_PROTO_H
#define MOAT_VU_PROTO_H

#include <stdint.h>

#define MOAT_VU_VERSION 1u
#define MOAT_VU_VERSION_MASK 3u
#define MOAT_VU_F_REPLY (1u << 2)
#define MOAT_VU_F_NEED_REPLY (1u << 3)

#define MOAT_VU_HEADER_SIZE 12u
#define MOAT_VU_PAYLOAD_MAX 4096u
#define MOAT_VU_FDS_MAX 8u
#define MOAT_VU_REGIONS_MAX 8u	/* in one SET_MEM_TABLE */
#define MOAT_VU_CONFIG_MAX 256u /* bytes of config space */
#define MOAT_VU_VRINGS_MAX 256u /* a vring index has 8 bits next to its fd */

/* Requests of the front-end. */
enum moat_vu_request {
	VHOST_USER_GET_FEATURES = 1,
	VHOST_USER_SET_FEATURES = 2,
	VHOST_USER_SET_OWNER = 3,
	VHOST_USER_RESET_OWNER = 4,
	VHOST_USER_SET_MEM_TABLE = 5,
	VHOST_USER_SET_LOG_BASE = 6,
	VHOST_USER_SET_LOG_FD = 7,
	VHOST_USER_SET_VRING_NUM = 8,
	VHOST_USER_SET_VRING_ADDR = 9,
	VHOST_USER_SET_VRING_BASE = 10,
	VHOST_USER_GET_VRING_BASE = 11,
	VHOST_USER_SET_VRING_KICK = 12,
	VHOST_USER_SET_VRING_CALL = 13,
	VHOST_USER_SET_VRING_ERR = 14,
	VHOST_USER_GET_PROTOCOL_FEATURES = 15,
	VHOST_USER_SET_PROTOCOL_FEATURES = 16,
	VHOST_USER_GET_QUEUE_NUM = 17,
	VHOST_USER_SET_VRING_ENABLE = 18,
	VHOST_USER_SEND_RARP = 19,
	VHOST_USER_NET_SET_MTU = 20,
	VHOST_USER_SET_BACKEND_REQ_FD = 21,
	VHOST_USER_IOTLB_MSG = 22,
	VHOST_USER_SET_VRING_ENDIAN = 23,
	VHOST_USER_GET_CONFIG = 24,
	VHOST_USER_SET_CONFIG = 25,
	VHOST_USER_CREATE_CRYPTO_SESSION = 26,
	VHOST_USER_CLOSE_CRYPTO_SESSION = 27,
	VHOST_USER_POSTCOPY_ADVISE = 28,
	VHOST_USER_POSTCOPY_LISTEN = 29,
	VHOST_USER_POSTCOPY_END = 30,
	VHOST_USER_GET_INFLIGHT_FD = 31,
	VHOST_USER_SET_INFLIGHT_FD = 32,
	VHOST_USER_GPU_SET_SOCKET = 33,
	VHOST_USER_RESET_DEVICE = 34,
	VHOST_USER_VRING_KICK = 35,
	VHOST_USER_GET_MAX_MEM_SLOTS = 36,
	VHOST_USER_ADD_MEM_REG = 37,
	VHOST_USER_REM_MEM_REG = 38,
	VHOST_USER_SET_STATUS = 39,
	VHOST_USER_GET_STATUS = 40,
	VHOST_USER_GET_SHARED_OBJECT = 41,
	VHOST_USER_SET_DEVICE_STATE_FD = 42,
	VHOST_USER_CHECK_DEVICE_STATE = 43,
	VHOST_USER_GET_SHMEM_CONFIG = 44,
	VHOST_USER_REQUESTS
};

/* Requests of the back-end, on the channel of SET_BACKEND_REQ_FD. */
enum moat_vu_backend_request {
	VHOST_USER_BACKEND_IOTLB_MSG = 1,
	VHOST_USER_BACKEND_CONFIG_CHANGE_MSG = 2,
	VHOST_USER_BACKEND_VRING_HOST_NOTIFIER_MSG = 3,
	VHOST_USER_BACKEND_VRING_CALL = 4,
	VHOST_USER_BACKEND_VRING_ERR = 5,
	VHOST_USER_BACKEND_SHARED_OBJECT_ADD = 6,
	VHOST_USER_BACKEND_SHARED_OBJECT_REMOVE = 7,
	VHOST_USER_BACKEND_SHARED_OBJECT_LOOKUP = 8,
	VHOST_USER_BACKEND_SHMEM_MAP = 9,
	VHOST_USER_BACKEND_SHMEM_UNMAP = 10,
};

#define MOAT_BIT(n) (UINT64_C(1) << (n))

/* Virtio feature bits that concern the ring or the transport. */
#define VIRTIO_F_NOTIFY_ON_EMPTY 24
#define VIRTIO_F_ANY_LAYOUT 27
#define VIRTIO_F_INDIRECT_DESC 28
#define VIRTIO_F_EVENT_IDX 29
#define VHOST_USER_F_PROTOCOL_FEATURES 30
#define VIRTIO_F_VERSION_1 32
#define VIRTIO_F_ACCESS_PLATFORM 33
#define VIRTIO_F_RING_PACKED 34
#define VIRTIO_F_IN_ORDER 35
#define VIRTIO_F_ORDER_PLATFORM 36
#define VIRTIO_F_SR_IOV 37
#define VIRTIO_F_NOTIFICATION_DATA 38
#define VIRTIO_F_NOTIF_CONFIG_DATA 39
#define VIRTIO_F_RING_RESET 40
#define VIRTIO_F_ADMIN_VQ 41

/* Protocol feature bits. */
#define VHOST_USER_PROTOCOL_F_MQ 0
#define VHOST_USER_PROTOCOL_F_LOG_SHMFD 1
#define VHOST_USER_PROTOCOL_F_RARP 2
#define VHOST_USER_PROTOCOL_F_REPLY_ACK 3
#define VHOST_USER_PROTOCOL_F_MTU 4
#define VHOST_USER_PROTOCOL_F_BACKEND_REQ 5
#define VHOST_USER_PROTOCOL_F_CROSS_ENDIAN 6
#define VHOST_USER_PROTOCOL_F_CRYPTO_SESSION 7
#define VHOST_USER_PROTOCOL_F_PAGEFAULT 8
#define VHOST_USER_PROTOCOL_F_CONFIG 9
#define VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD 10
#define VHOST_USER_PROTOCOL_F_HOST_NOTIFIER 11
#define VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD 12
#define VHOST_USER_PROTOCOL_F_RESET_DEVICE 13
#define VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS 14
#define VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS 15
#define VHOST_USER_PROTOCOL_F_STATUS 16
#define VHOST_USER_PROTOCOL_F_SHMEM_MAP 22

/* Device status (virtio 1.4, 2.1). */
#define VIRTIO_STATUS_DRIVER_OK 4u
#define VIRTIO_STATUS_NEEDS_RESET 64u

/* SET_VRING_KICK, CALL, ERR: a u64 with the index and "no fd" */
#define MOAT_VU_VRING_IDX_MASK 0xffu
#define MOAT_VU_VRING_NOFD (1u << 8)

struct moat_vu_vring_state {
	uint32_t index;
	uint32_t num;
};

struct moat_vu_vring_addr {
	uint32_t index;
	uint32_t flags; /* bit 0: log writes to the used ring */
	uint64_t desc;	/* user addresses of the front-end */
	uint64_t used;
	uint64_t avail;
	uint64_t log;
};

struct moat_vu_mem_region {
	uint64_t guest_addr;
	uint64_t size;
	uint64_t user_addr;
	uint64_t mmap_offset;
};

struct moat_vu_mem_table {
	uint32_t nregions;
	uint32_t padding;
	struct moat_vu_mem_region regions[MOAT_VU_REGIONS_MAX];
};

struct moat_vu_mem_one {
	uint64_t padding;
	struct moat_vu_mem_region region;
};

struct moat_vu_config {
	uint32_t offset;
	uint32_t size;
	uint32_t flags;
	uint8_t data[MOAT_VU_CONFIG_MAX];
};

#define MOAT_VU_CONFIG_HEADER 12u

/* The specification's fields end here; front-ends send it padded to 24. */
#define MOAT_VU_INFLIGHT_SIZE 20u

struct moat_vu_inflight {
	uint64_t mmap_size;
	uint64_t mmap_offset;
	uint16_t num_queues;
	uint16_t queue_size;
	uint32_t padding;
};

#define MOAT_VU_SHMEM_MAX 256u /* a shmid has 8 bits */

/* The reply to GET_SHMEM_CONFIG: sizes by shmid, 0 for none. */
struct moat_vu_shmem_config {
	uint32_t nregions; /* sizes that are not 0 */
	uint32_t padding;
	uint64_t sizes[MOAT_VU_SHMEM_MAX]; /* bytes, whole pages */
};

#define MOAT_VU_SHMEM_CONFIG_HEADER 8u

#define MOAT_VU_MMAP_WRITABLE UINT64_C(1)

/* SHMEM_MAP, with one fd, and SHMEM_UNMAP, which has no use for all of it. */
struct moat_vu_mmap {
	uint8_t shmid;
	uint8_t padding[7];
	uint64_t fd_offset;
	uint64_t shm_offset;
	uint64_t len;
	uint64_t flags;
};

#endif
