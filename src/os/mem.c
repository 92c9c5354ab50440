/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "os/cutoff.h"
#include "os/fd.h"
#include "os/mem.h"

/* mmap() takes whole pages; regions of front-ends need not be any. */
static uint64_t page_part(uint64_t v)
{
	return v & ((uint64_t)sysconf(_SC_PAGESIZE) - 1);
}

int moat_mem_map(int fd, uint64_t offset, uint64_t size, uint8_t **out)
{
	uint64_t head = page_part(offset);
	struct stat st;
	uint8_t *p;

	if (!size || offset + size < offset || offset + size > INT64_MAX)
		return -EINVAL;
	if (fstat(fd, &st))
		return -errno;
	/* Devices and dma-bufs have no size of their own: mmap() checks. */
	if (S_ISREG(st.st_mode) && offset + size > (uint64_t)st.st_size)
		return -ERANGE;
	p = mmap(NULL, head + size, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_NORESERVE, fd, (off_t)(offset - head));
	if (p == MAP_FAILED)
		return -errno;
	/* Guest RAM has no place in a core file of this process. */
	madvise(p, head + size, MADV_DONTDUMP);
	moat_cutoff_watch(p, head + size);
	*out = p + head;
	return 0;
}

void moat_mem_unmap(uint8_t *p, uint64_t size)
{
	uint64_t head = page_part((uintptr_t)p);

	if (!p)
		return;
	moat_cutoff_forget(p - head, head + size);
	munmap(p - head, head + size);
}

int moat_pool_mem_create(struct moat_pool_mem *pool, uint64_t size)
{
	int fd = memfd_create("moat-pool", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int ret;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)size) ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		ret = -errno;
	else
		ret = moat_mem_map(fd, 0, size, &pool->host);
	if (ret) {
		moat_fd_close(&fd);
		return ret;
	}
	pool->fd = fd;
	pool->size = size;
	return 0;
}

void moat_pool_mem_destroy(struct moat_pool_mem *pool)
{
	/* Who was given it may keep it: then not with pages in it. */
	if (pool->host)
		madvise(pool->host, pool->size, MADV_REMOVE);
	moat_mem_unmap(pool->host, pool->size);
	moat_fd_close(&pool->fd);
	pool->host = NULL;
}
