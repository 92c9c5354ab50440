/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "guard/memory.h"
#include "os/mem.h"

#define U(x) ((unsigned long long)(x))

void moat_guest_mem_init(struct moat_guest_mem *mem, struct moat_log *log,
			 const struct moat_dma_range *pools, uint32_t npools,
			 int udmabuf_fd)
{
	moat_memmap_init(&mem->map, mem->regions, MOAT_GUEST_REGIONS_MAX);
	moat_shareset_init(&mem->share, pools, npools, udmabuf_fd);
	mem->share_changed = false;
	mem->log = log;
}

static void unmap_all(struct moat_memmap *map)
{
	for (uint32_t i = 0; i < map->n; i++)
		moat_mem_unmap(map->regions[i].host, map->regions[i].size);
	map->n = 0;
}

void moat_guest_mem_fini(struct moat_guest_mem *mem)
{
	unmap_all(&mem->map);
	moat_shareset_fini(&mem->share);
}

static int map_region(struct moat_guest_mem *mem, struct moat_memmap *map,
		      const struct moat_vu_mem_region *r, int fd)
{
	struct moat_region region = {
		.guest_addr = r->guest_addr,
		.size = r->size,
		.user_addr = r->user_addr,
	};
	int ret = moat_mem_map(fd, r->mmap_offset, r->size, &region.host);

	if (!ret && moat_memmap_add(map, &region)) {
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

int moat_guest_mem_set(struct moat_guest_mem *mem,
		       const struct moat_vu_mem_region *r, uint32_t n,
		       const int *fds)
{
	struct moat_region regions[MOAT_VU_REGIONS_MAX];
	struct moat_shareset share;
	struct moat_memmap map;
	int ret = 0;

	moat_memmap_init(&map, regions, MOAT_VU_REGIONS_MAX);
	for (uint32_t i = 0; !ret && i < n; i++)
		ret = map_region(mem, &map, &r[i], fds[i]);
	if (ret) {
		unmap_all(&map);
		return ret;
	}
	moat_shareset_init(&share, mem->share.pools, mem->share.npools,
			   mem->share.udmabuf_fd);
	for (uint32_t i = 0; i < n; i++)
		moat_shareset_add(&share, &r[i], fds[i]);

	unmap_all(&mem->map);
	memcpy(mem->regions, regions, n * sizeof(*regions));
	mem->map.n = n;
	mem->map.last = 0;
	if (!moat_shareset_same(&share, &mem->share))
		mem->share_changed = true;
	moat_shareset_fini(&mem->share);
	mem->share = share;
	return 0;
}

int moat_guest_mem_add(struct moat_guest_mem *mem,
		       const struct moat_vu_mem_region *r, int fd)
{
	uint32_t shared = mem->share.n;
	int ret = map_region(mem, &mem->map, r, fd);

	if (ret)
		return ret;
	moat_shareset_add(&mem->share, r, fd);
	if (mem->share.n != shared)
		mem->share_changed = true;
	return 0;
}

int moat_guest_mem_del(struct moat_guest_mem *mem,
		       const struct moat_vu_mem_region *r)
{
	uint32_t shared = mem->share.n;
	struct moat_region gone;

	if (moat_memmap_del(&mem->map, r->guest_addr, r->user_addr, r->size,
			    &gone)) {
		log_err(mem->log,
			"REM_MEM_REG of 0x%llx bytes at guest address 0x%llx: "
			"there is no such region: refused",
			U(r->size), U(r->guest_addr));
		return -ENOENT;
	}
	moat_mem_unmap(gone.host, gone.size);
	moat_shareset_del(&mem->share, r->guest_addr, r->size);
	if (mem->share.n != shared)
		mem->share_changed = true;
	return 0;
}
