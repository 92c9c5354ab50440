/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <sys/stat.h>

#include "guard/memory.h"
#include "os/mem.h"

static bool is_shown(const struct moat_guest_mem *mem,
		     const struct moat_shown *what)
{
	for (uint32_t i = 0; i < MOAT_SHOWN_MAX; i++) {
		const struct moat_shown *s = &mem->shown[i];

		if (s->size && s->ino == what->ino && s->dev == what->dev &&
		    s->offset == what->offset && s->size == what->size)
			return true;
	}
	return false;
}

void moat_guest_mem_show(struct moat_guest_mem *mem, int fd, uint64_t offset,
			 uint64_t size)
{
	struct moat_shown what = { .offset = offset, .size = size };
	struct stat st;

	if (fstat(fd, &st))
		return;
	what.dev = st.st_dev;
	what.ino = st.st_ino;
	if (!is_shown(mem, &what))
		mem->shown[mem->next_shown++ % MOAT_SHOWN_MAX] = what;
}

/* What nobody but the VMM may hold is known by its file. */
static void note_file(struct moat_guest_mem *mem,
		      const struct moat_vu_mem_region *r, int fd)
{
	struct moat_shown what = { .offset = r->mmap_offset, .size = r->size };
	struct stat st;

	if (mem->nfiles == MOAT_VU_MEMORY_MAX || fstat(fd, &st))
		return;
	what.dev = st.st_dev;
	what.ino = st.st_ino;
	if (!is_shown(mem, &what))
		mem->files[mem->nfiles++] =
			(struct moat_file_id){ r->guest_addr, st.st_dev,
					       st.st_ino };
}

static void forget_file(struct moat_guest_mem *mem, uint64_t guest_addr)
{
	for (uint32_t i = 0; i < mem->nfiles; i++)
		if (mem->files[i].guest_addr == guest_addr) {
			mem->files[i] = mem->files[--mem->nfiles];
			return;
		}
}

void moat_guest_mem_init(struct moat_guest_mem *mem, struct moat_log *log,
			 const struct moat_dma_range *pools, uint32_t npools,
			 int udmabuf_fd)
{
	moat_vu_memory_init(&mem->mapped, log);
	moat_shareset_init(&mem->share, pools, npools, udmabuf_fd);
	mem->share_changed = false;
	mem->nfiles = 0;
	memset(mem->shown, 0, sizeof(mem->shown));
	mem->next_shown = 0;
}

void moat_guest_mem_fini(struct moat_guest_mem *mem)
{
	moat_vu_memory_fini(&mem->mapped);
	moat_shareset_fini(&mem->share);
}

int moat_guest_mem_set(struct moat_guest_mem *mem,
		       const struct moat_vu_mem_region *r, uint32_t n,
		       const int *fds)
{
	struct moat_vu_memory next;
	struct moat_shareset share;
	int ret;

	moat_vu_memory_init(&next, mem->mapped.log);
	ret = moat_vu_memory_map(&next, r, n, fds);
	if (ret)
		return ret;
	moat_shareset_init(&share, mem->share.pools, mem->share.npools,
			   mem->share.udmabuf_fd);
	for (uint32_t i = 0; i < n; i++)
		moat_shareset_add(&share, &r[i], fds[i]);

	moat_vu_memory_replace(&mem->mapped, &next);
	mem->nfiles = 0;
	for (uint32_t i = 0; i < n; i++)
		note_file(mem, &r[i], fds[i]);
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
	int ret = moat_vu_memory_add(&mem->mapped, r, fd);

	if (ret)
		return ret;
	note_file(mem, r, fd);
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
	int ret = moat_vu_memory_take(&mem->mapped, r, &gone);

	if (ret)
		return ret;
	moat_mem_unmap(gone.host, gone.size);
	forget_file(mem, r->guest_addr);
	moat_shareset_del(&mem->share, r->guest_addr, r->size);
	if (mem->share.n != shared)
		mem->share_changed = true;
	return 0;
}
