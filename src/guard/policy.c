/* SPDX-License-Identifier: Apache-2.0 */
#include <endian.h>
#include <stddef.h>
#include <string.h>

#include "core/pool.h"
#include "guard/policy.h"

#define PAYLOAD                                                         \
	"it puts guest addresses into payloads, which a bounce pool "   \
	"can not follow; give it to the VMM without moat, or wait for " \
	"a mediator"

/* Request-like devices answer each request; the others hold buffers. */
#define REQUESTS 5000u
#define BUFFERS 20u

static void put_le32(uint8_t *p, uint32_t v)
{
	v = htole32(v);
	memcpy(p, &v, sizeof(v));
}

/*
 * struct fuse_in_header (len, opcode, unique, ...) and struct fuse_out_header
 * (len, error, unique) of Linux's fuse.h. ENOTCONN is what it says itself where
 * a server is gone.
 */
#define FUSE_UNIQUE 8u
#define FUSE_OUT_HEADER 16u
#define FUSE_ENOTCONN 107u

static uint32_t fail_fs(const uint8_t *head, uint32_t n, uint8_t *out)
{
	if (n < FUSE_UNIQUE + 8)
		return 0;
	put_le32(out, FUSE_OUT_HEADER);
	put_le32(out + 4, -FUSE_ENOTCONN);
	memcpy(out + 8, head + FUSE_UNIQUE, 8);
	return FUSE_OUT_HEADER;
}

static const struct moat_device_type types[] = {
	{ "generic", 0, NULL, NULL, 100 },
	{ "net", 1, "net", NULL, BUFFERS },
	{ "blk", 2, "block", NULL, REQUESTS },
	{ "console", 3, "console", NULL, BUFFERS },
	{ "rng", 4, "rng", NULL, REQUESTS },
	{ "balloon", 5, "balloon", PAYLOAD, 0 },
	{ "scsi", 8, "scsi", NULL, REQUESTS },
	{ "gpu", 16, "gpu", PAYLOAD, 0 },
	{ "input", 18, "input", NULL, BUFFERS },
	{ "vsock", 19, "vsock", NULL, BUFFERS },
	{ "crypto", 20, "crypto", NULL, REQUESTS },
	{ "iommu", 23, NULL, PAYLOAD, 0 },
	{ "mem", 24, NULL, PAYLOAD, 0 },
	{ "snd", 25, NULL, NULL, BUFFERS },
	{ "fs", 26, "fs", NULL, REQUESTS, fail_fs, true },
	{ "i2c", 34, NULL, NULL, REQUESTS },
	{ "gpio", 41, NULL, NULL, BUFFERS },
	{ NULL },
};

/* virtio 1.4, 5.11.2 and 5.11.3: a queue of buffers among those of requests. */
#define VIRTIO_ID_FS 26u
#define FS_F_NOTIFICATION MOAT_BIT(0)
#define FS_NOTIFICATION_QUEUE 1u

uint32_t moat_policy_drain_ms(const struct moat_device_type *type,
			      uint64_t features, uint32_t index)
{
	if (type->virtio_id == VIRTIO_ID_FS && index == FS_NOTIFICATION_QUEUE &&
	    features & FS_F_NOTIFICATION)
		return BUFFERS;
	return type->drain_ms;
}

#define VIRTIO_ID_BLOCK 2u
#define VIRTIO_BLK_F_SIZE_MAX 1
#define VIRTIO_BLK_F_SEG_MAX 2
/* Offsets in struct virtio_blk_config (virtio 1.4, 5.2.4). */
#define BLK_SIZE_MAX 8u
#define BLK_SEG_MAX 12u
#define BLK_LIMITS_END 16u

/* Device-specific feature bits: 0 to 23, 50 and up (virtio 1.4, 2.2). */
#define DEVICE_BITS (((UINT64_C(1) << 24) - 1) | ~((UINT64_C(1) << 50) - 1))

const struct moat_device_type *moat_device_types(void)
{
	return types;
}

const struct moat_device_type *moat_device_type(const char *name)
{
	for (const struct moat_device_type *t = types; t->name; t++)
		if (!strcmp(t->name, name))
			return t;
	return NULL;
}

uint64_t moat_policy_protocol(uint64_t backend)
{
	uint64_t pass = MOAT_BIT(VHOST_USER_PROTOCOL_F_MQ) |
			MOAT_BIT(VHOST_USER_PROTOCOL_F_CONFIG) |
			MOAT_BIT(VHOST_USER_PROTOCOL_F_RESET_DEVICE);
	uint64_t own = MOAT_BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK) |
		       MOAT_BIT(VHOST_USER_PROTOCOL_F_BACKEND_REQ) |
		       MOAT_BIT(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS) |
		       MOAT_BIT(VHOST_USER_PROTOCOL_F_STATUS);

	return (backend & pass) | own;
}

/* Ring features that a queue may have that goes straight to the backend. */
#define DIRECT_BITS                                                        \
	(MOAT_BIT(VIRTIO_F_INDIRECT_DESC) | MOAT_BIT(VIRTIO_F_EVENT_IDX) | \
	 MOAT_BIT(VIRTIO_F_RING_PACKED) | MOAT_BIT(VIRTIO_F_IN_ORDER) |    \
	 MOAT_BIT(VIRTIO_F_ORDER_PLATFORM) | MOAT_BIT(VIRTIO_F_RING_RESET))
/* Those that the guard's own ends of a queue know. */
#define RELAY_BITS                                                         \
	(MOAT_BIT(VIRTIO_F_INDIRECT_DESC) | MOAT_BIT(VIRTIO_F_EVENT_IDX) | \
	 MOAT_BIT(VIRTIO_F_RING_PACKED))

/*
 * The driver may reset a single queue if the backend is fit for that: a relayed
 * queue stops and starts on both legs. Not IN_ORDER: a backend that has it
 * gives back a batch by its last request, and is not bound to any order without
 * it.
 */
#define PASSED_BITS MOAT_BIT(VIRTIO_F_RING_RESET)

uint64_t moat_policy_offer(const struct moat_device_type *type,
			   enum moat_share_mode mode, bool access_platform,
			   uint64_t backend)
{
	uint64_t f = (backend & DEVICE_BITS) | MOAT_BIT(VIRTIO_F_VERSION_1) |
		     MOAT_BIT(VHOST_USER_F_PROTOCOL_FEATURES);

	/*
	 * Where the guard bounces all, the driver need not follow the
	 * platform's DMA layout, and user-mode Linux, which has no DMA API,
	 * fails its probe with -ENOMEM once the feature is offered.
	 */
	if (mode != MOAT_SHARE_BOUNCE || access_platform)
		f |= MOAT_BIT(VIRTIO_F_ACCESS_PLATFORM);
	if (mode == MOAT_SHARE_DIRECT)
		return f | (backend & DIRECT_BITS);
	/*
	 * With indirect tables a driver may build chains longer than the ring;
	 * the backend can only be given those if it takes tables as well. In
	 * mode `auto` a queue may yet go straight to the backend: it has to
	 * know all that the driver chose.
	 */
	f |= backend & (RELAY_BITS | PASSED_BITS);
	if (mode != MOAT_SHARE_AUTO)
		f |= RELAY_BITS & ~MOAT_BIT(VIRTIO_F_INDIRECT_DESC);
	/* The driver has to know how much fits the pool. */
	if (type->virtio_id == VIRTIO_ID_BLOCK &&
	    backend & MOAT_BIT(VIRTIO_BLK_F_SEG_MAX))
		f |= MOAT_BIT(VIRTIO_BLK_F_SIZE_MAX);
	return f;
}

uint64_t moat_policy_accept(enum moat_share_mode mode, uint64_t backend,
			    uint64_t driver)
{
	uint64_t own = MOAT_BIT(VIRTIO_F_VERSION_1) |
		       MOAT_BIT(VHOST_USER_F_PROTOCOL_FEATURES);

	/* The legs are one where a queue may go straight through. */
	if (mode == MOAT_SHARE_DIRECT || mode == MOAT_SHARE_AUTO)
		return backend & ((driver & (DEVICE_BITS | DIRECT_BITS)) | own);
	return backend &
	       ((driver & (DEVICE_BITS | PASSED_BITS)) | RELAY_BITS | own);
}

static uint32_t get_le32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return le32toh(v);
}

/*
 * Any seg_max segments of up to size_max bytes have to fit: each may need up
 * to a page more for its alignment.
 */
static void clamp_blk(uint32_t *size_max, uint32_t *seg_max, uint64_t limit)
{
	uint64_t page = MOAT_SLOT_SIZE, per_seg;

	if (limit < 2 * page)
		limit = 2 * page;
	if (!*seg_max || *seg_max > limit / (2 * page))
		*seg_max = *seg_max ? (uint32_t)(limit / (2 * page)) : 1;
	per_seg = limit / *seg_max / page * page - page;
	if (!*size_max || *size_max > per_seg)
		*size_max =
			per_seg > UINT32_MAX ? UINT32_MAX : (uint32_t)per_seg;
}

void moat_policy_config_range(const struct moat_device_type *type,
			      uint32_t *offset, uint32_t *size)
{
	uint32_t end = *offset + *size;

	if (type->virtio_id != VIRTIO_ID_BLOCK || end <= BLK_SIZE_MAX ||
	    *offset >= BLK_LIMITS_END)
		return;
	if (*offset > BLK_SIZE_MAX)
		*offset = BLK_SIZE_MAX;
	if (end < BLK_LIMITS_END)
		end = BLK_LIMITS_END;
	*size = end - *offset;
}

void moat_policy_config(const struct moat_device_type *type,
			struct moat_vu_config *config, uint64_t limit)
{
	uint32_t size_max, seg_max;
	uint8_t *at;

	if (type->virtio_id != VIRTIO_ID_BLOCK)
		return;
	if (config->offset > BLK_SIZE_MAX ||
	    config->offset + config->size < BLK_LIMITS_END)
		return;
	at = config->data + (BLK_SIZE_MAX - config->offset);
	size_max = get_le32(at);
	seg_max = get_le32(at + (BLK_SEG_MAX - BLK_SIZE_MAX));
	clamp_blk(&size_max, &seg_max, limit);
	put_le32(at, size_max);
	put_le32(at + (BLK_SEG_MAX - BLK_SIZE_MAX), seg_max);
}
