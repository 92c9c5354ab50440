/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "guard/direct.h"
#include "guard/session.h"

#define U(x) ((unsigned long long)(x))

/* The three parts as the backend will see them; false if one is not shared. */
static bool find_shared(const struct moat_vring_ctl *v,
			struct moat_vu_vring_addr *addr)
{
	const struct moat_session *s = v->session;
	const struct moat_shareset *set = &s->mem.share;
	struct moat_ring_sizes sizes = moat_vring_sizes(v);

	*addr = (struct moat_vu_vring_addr){
		.index = v->index,
		.desc = moat_shareset_user(set, v->addr.desc, sizes.desc),
		.avail = moat_shareset_user(set, v->addr.avail, sizes.avail),
		.used = moat_shareset_user(set, v->addr.used, sizes.used),
	};
	return addr->desc && addr->avail && addr->used;
}

bool moat_direct_possible(const struct moat_vring_ctl *v, char *why,
			  size_t size)
{
	const struct moat_session *s = v->session;
	struct moat_vu_vring_addr addr;

	/*
	 * ACCESS_PLATFORM tells nothing here: QEMU keeps the guest's answer to
	 * itself where it has no vIOMMU.  Where the rings lie does: a driver
	 * without it takes no ring from the pool.
	 */
	if (!s->mem.share.n)
		snprintf(why, size, "%s", s->mem.share.why);
	else if (!find_shared(v, &addr))
		snprintf(why, size,
			 "its rings (descriptors at user address 0x%llx) lie "
			 "outside the pool at 0x%llx; the VMM's device has to "
			 "offer ACCESS_PLATFORM (iommu_platform=on), and the "
			 "guest to assign the pool to it (restricted-dma-pool "
			 "and memory-region in the device tree; see its log)",
			 U(v->addr.desc), U(s->mem.share.ranges[0].addr));
	else
		return true;
	return false;
}

int moat_direct_start(struct moat_vring_ctl *v)
{
	struct moat_vu_vring_addr addr;

	find_shared(v, &addr);
	return moat_vring_tell_backend(v, &addr, v->num, v->base, v->kick_fd,
				       v->call_fd, v->err_fd);
}

int moat_direct_stop(struct moat_vring_ctl *v)
{
	const struct moat_session *s = v->session;
	uint32_t base;
	int ret = moat_vu_client_get_vring_base(&v->session->client, v->index,
						&base);

	if (ret)
		return ret;
	/* A split ring's is an index (2.7); the VMM is to get nothing else. */
	v->base = s->accepted & MOAT_BIT(VIRTIO_F_RING_PACKED) ? base
							       : base & 0xffff;
	return 0;
}
