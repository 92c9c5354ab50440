/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/udmabuf.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "guard/session.h"
#include "guard/shareset.h"
#include "os/fd.h"

#define U(x) ((unsigned long long)(x))
/*
 * Nobody may shrink it (the VMM would die of SIGBUS), grow it (it would eat the
 * host's memory) or seal it further: after F_SEAL_FUTURE_WRITE no other process
 * of this VM could map its memory any more.
 */
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

void moat_shareset_init(struct moat_shareset *set,
			const struct moat_dma_range *pools, uint32_t npools,
			int udmabuf_fd)
{
	*set = (struct moat_shareset){
		.pools = pools,
		.npools = npools,
		.udmabuf_fd = udmabuf_fd,
	};
	if (npools)
		snprintf(set->why, sizeof(set->why),
			 "the VMM has no memory at the pool's address 0x%llx",
			 U(pools[0].addr));
}

void moat_shareset_fini(struct moat_shareset *set)
{
	for (uint32_t i = 0; i < set->n; i++)
		moat_fd_close(&set->regions[i].fd);
	set->n = 0;
}

static void keep(struct moat_shareset *set, uint64_t guest_addr, uint64_t size,
		 uint64_t front_addr, int fd)
{
	if (set->n == MOAT_SHARED_MAX) {
		snprintf(set->why, sizeof(set->why),
			 "the pools lie in more than %u regions",
			 MOAT_SHARED_MAX);
		moat_fd_close(&fd);
		return;
	}
	set->ranges[set->n] = (struct moat_dma_range){ guest_addr, size };
	set->regions[set->n++] = (struct moat_shared){
		.guest_addr = guest_addr,
		.size = size,
		.front_addr = front_addr,
		.fd = fd,
	};
	set->why[0] = 0;
}

/*
 * The region's own fd: it must hold the region and nothing else. Huge pages are
 * no good: who holds the fd can punch them out, and where no page is left to
 * fill the hole the VMM dies of SIGBUS.
 */
static void share_own(struct moat_shareset *set,
		      const struct moat_vu_mem_region *r, int fd)
{
	struct stat st;
	struct statfs fs;
	int seals, copy;

	if (!fstatfs(fd, &fs) && fs.f_type == HUGETLBFS_MAGIC) {
		snprintf(set->why, sizeof(set->why),
			 "the region at 0x%llx is of huge pages, which the "
			 "backend could free; give the pool ordinary ones",
			 U(r->guest_addr));
		return;
	}
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || r->mmap_offset ||
	    (uint64_t)st.st_size != r->size) {
		snprintf(set->why, sizeof(set->why),
			 "the fd of the region at 0x%llx holds more than the "
			 "pool; give the pool a memory backend of its own",
			 U(r->guest_addr));
		return;
	}
	seals = fcntl(fd, F_GET_SEALS);
	if (seals >= 0 && (seals & SEALS) != SEALS &&
	    !fcntl(fd, F_ADD_SEALS, SEALS))
		seals |= SEALS;
	if (seals < 0 || (seals & SEALS) != SEALS) {
		snprintf(set->why, sizeof(set->why),
			 "the fd of the region at 0x%llx is not sealed: the "
			 "backend could truncate it; use a memfd "
			 "(memory-backend-memfd)",
			 U(r->guest_addr));
		return;
	}
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (copy >= 0)
		keep(set, r->guest_addr, r->size, r->user_addr, copy);
	else
		snprintf(set->why, sizeof(set->why), "no fd is left: %s",
			 strerror(errno));
}

/* Part of a region's fd: only udmabuf can give a part away and no more. */
static void share_part(struct moat_shareset *set,
		       const struct moat_vu_mem_region *r, int fd,
		       const struct moat_dma_range *pool)
{
	uint64_t off = pool->addr - r->guest_addr;
	struct udmabuf_create create = {
		.memfd = (uint32_t)fd,
		.flags = UDMABUF_FLAGS_CLOEXEC,
		.offset = r->mmap_offset + off,
		.size = pool->size,
	};
	int part;

	if (set->udmabuf_fd < 0) {
		snprintf(set->why, sizeof(set->why),
			 "the pool at 0x%llx is part of a larger fd of guest "
			 "RAM and there is no /dev/udmabuf to carve it out; "
			 "give the pool a memory backend of its own",
			 U(pool->addr));
		return;
	}
	part = ioctl(set->udmabuf_fd, UDMABUF_CREATE, &create);
	if (part < 0)
		snprintf(set->why, sizeof(set->why),
			 "udmabuf can not carve %llu bytes at 0x%llx out of "
			 "guest RAM: %s; RAM has to be a sealed memfd, and "
			 "/sys/module/udmabuf/parameters/size_limit_mb large "
			 "enough",
			 U(pool->size), U(pool->addr), strerror(errno));
	else
		keep(set, pool->addr, pool->size, r->user_addr + off, part);
}

static bool inside(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
	return a - b < b_size && a_size <= b_size - (a - b);
}

static bool overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
	return a < b ? b - a < a_size : a - b < b_size;
}

void moat_shareset_add(struct moat_shareset *set,
		       const struct moat_vu_mem_region *r, int fd)
{
	for (uint32_t i = 0; i < set->npools; i++) {
		const struct moat_dma_range *p = &set->pools[i];

		if (!overlap(r->guest_addr, r->size, p->addr, p->size))
			continue;
		if (r->guest_addr + r->size > MOAT_POOL_GUEST_ADDR)
			snprintf(set->why, sizeof(set->why),
				 "the pool at 0x%llx is above 0x%llx, where "
				 "the guard has its own",
				 U(p->addr), U(MOAT_POOL_GUEST_ADDR));
		else if (inside(r->guest_addr, r->size, p->addr, p->size))
			share_own(set, r, fd);
		else if (inside(p->addr, p->size, r->guest_addr, r->size))
			share_part(set, r, fd, p);
		else
			snprintf(set->why, sizeof(set->why),
				 "the pool at 0x%llx lies partly outside the "
				 "region at 0x%llx",
				 U(p->addr), U(r->guest_addr));
	}
}

void moat_shareset_del(struct moat_shareset *set, uint64_t guest_addr,
		       uint64_t size)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < set->n; i++) {
		struct moat_shared *r = &set->regions[i];

		if (inside(r->guest_addr, r->size, guest_addr, size)) {
			moat_fd_close(&r->fd);
			continue;
		}
		set->ranges[n] = set->ranges[i];
		set->regions[n++] = *r;
	}
	if (n < set->n)
		snprintf(set->why, sizeof(set->why),
			 "the VMM removed the memory at 0x%llx", U(guest_addr));
	set->n = n;
}

static bool same_file(int a, int b)
{
	struct stat sa, sb;

	return !fstat(a, &sa) && !fstat(b, &sb) && sa.st_dev == sb.st_dev &&
	       sa.st_ino == sb.st_ino;
}

bool moat_shareset_same(const struct moat_shareset *a,
			const struct moat_shareset *b)
{
	if (a->n != b->n)
		return false;
	for (uint32_t i = 0; i < a->n; i++) {
		const struct moat_shared *x = &a->regions[i];
		const struct moat_shared *y = &b->regions[i];

		if (x->guest_addr != y->guest_addr || x->size != y->size ||
		    !same_file(x->fd, y->fd))
			return false;
	}
	return true;
}

uint64_t moat_shareset_user(const struct moat_shareset *set,
			    uint64_t front_addr, uint64_t len)
{
	for (uint32_t i = 0; i < set->n; i++) {
		const struct moat_shared *r = &set->regions[i];

		if (inside(front_addr, len, r->front_addr, r->size))
			return MOAT_SHARED_USER_ADDR + r->guest_addr +
			       (front_addr - r->front_addr);
	}
	return 0;
}
