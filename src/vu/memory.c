/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "os/mem.h"
#include "vu/check.h"
#include "vu/memory.h"

#define U(x) ((unsigned long long)(x))

void moat_vu_memory_init(struct moat_vu_memory *mem, struct moat_log *log)
{
	moat_memmap_init(&mem->map, mem->regions, MOAT_VU_MEMORY_MAX);
	mem->log = log;
}

void moat_vu_memory_fini(struct moat_vu_memory *mem)
{
	for (uint32_t i = 0; i < mem->map.n; i++)
		moat_mem_unmap(mem->regions[i].host, mem->regions[i].size);
	mem->map.n = 0;
}

int moat_vu_memory_add(struct moat_vu_memory *mem,
		       const struct moat_vu_mem_region *r, int fd)
{
	struct moat_region region = {
		.guest_addr = r->guest_addr,
		.size = r->size,
		.user_addr = r->user_addr,
	};
	int ret = moat_mem_map(fd, r->mmap_offset, r->size, &region.host);

	if (!ret && moat_memmap_add(&mem->map, &region)) {
		moat_mem_unmap(region.host, region.size);
		ret = -EEXIST;
	}
	if (ret)
		log_err(mem->log,
			"memory region of 0x%llx bytes at guest address 0x%llx "
			"(user 0x%llx, offset 0x%llx) refused: %s",
			U(r->size), U(r->guest_addr), U(r->user_addr),
			U(r->mmap_offset),
			ret == -EEXIST	 ? "it wraps, overlaps another, or is "
					   "one too many"
			: ret == -ERANGE ? "its fd is shorter than that"
					 : strerror(-ret));
	return ret;
}

int moat_vu_memory_map(struct moat_vu_memory *mem,
		       const struct moat_vu_mem_region *r, uint32_t n,
		       const int *fds)
{
	int ret = 0;

	for (uint32_t i = 0; !ret && i < n; i++)
		ret = moat_vu_memory_add(mem, &r[i], fds[i]);
	if (ret)
		moat_vu_memory_fini(mem);
	return ret;
}

void moat_vu_memory_replace(struct moat_vu_memory *mem,
			    struct moat_vu_memory *with)
{
	moat_vu_memory_fini(mem);
	memcpy(mem->regions, with->regions,
	       with->map.n * sizeof(*with->regions));
	mem->map.n = with->map.n;
	mem->map.last = 0;
	with->map.n = 0;
}

int moat_vu_memory_take(struct moat_vu_memory *mem,
			const struct moat_vu_mem_region *r,
			struct moat_region *gone)
{
	if (!moat_memmap_del(&mem->map, r->guest_addr, r->user_addr, r->size,
			     gone))
		return 0;
	log_err(mem->log,
		"REM_MEM_REG of 0x%llx bytes at guest address 0x%llx: there is "
		"no such region: refused",
		U(r->size), U(r->guest_addr));
	return -ENOENT;
}

static bool overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
	return a < b ? b - a < a_len : a - b < b_len;
}

int moat_vu_find_ring(struct moat_vu_memory *mem, uint32_t index,
		      const struct moat_vu_vring_addr *a, uint32_t num,
		      bool packed, struct moat_vring *ring)
{
	struct moat_ring_sizes z = moat_ring_sizes(num, packed);
	uint32_t avail_align = packed ? 4 : 2; /* 2.8.10.1, 2.7 */

	if (!num || !a) {
		log_err(mem->log,
			"queue %u: kick before size and addresses were set: "
			"refused; the front-end has to send SET_VRING_NUM and "
			"SET_VRING_ADDR first",
			index);
		return -EINVAL;
	}
	/* Again: it may have been set when the other format was chosen. */
	if (moat_vu_check_num(mem->log, index, num, packed))
		return -EINVAL;
	if (a->desc % 16 || a->avail % avail_align || a->used % 4 ||
	    overlap(a->desc, z.desc, a->avail, z.avail) ||
	    overlap(a->desc, z.desc, a->used, z.used) ||
	    overlap(a->avail, z.avail, a->used, z.used)) {
		log_err(mem->log,
			"queue %u: rings at 0x%llx, 0x%llx, 0x%llx are "
			"misaligned or overlap: refused; fix the guest's "
			"driver",
			index, U(a->desc), U(a->avail), U(a->used));
		return -EINVAL;
	}
	ring->num = (uint16_t)num;
	ring->packed = packed;
	ring->desc = moat_memmap_user(&mem->map, a->desc, z.desc);
	ring->avail = moat_memmap_user(&mem->map, a->avail, z.avail);
	ring->used = moat_memmap_user(&mem->map, a->used, z.used);
	if (!ring->desc || !ring->avail || !ring->used) {
		log_err(mem->log,
			"queue %u: a ring at 0x%llx, 0x%llx or 0x%llx lies "
			"outside guest memory: refused; fix the guest's driver",
			index, U(a->desc), U(a->avail), U(a->used));
		return -EFAULT;
	}
	/* Mappings are page-aligned, but regions need not be in user space. */
	if ((uintptr_t)ring->desc % 16 ||
	    (uintptr_t)ring->avail % avail_align || (uintptr_t)ring->used % 4) {
		log_err(mem->log,
			"queue %u: the region of the ring at 0x%llx has a user "
			"address that misaligns it: refused; fix the front-end",
			index, U(a->desc));
		return -EINVAL;
	}
	return 0;
}
