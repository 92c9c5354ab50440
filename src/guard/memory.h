/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory as the VMM gives it: mapped here, and shared with the backend
 * as far as the share set goes.
 */
#ifndef MOAT_GUARD_MEMORY_H
#define MOAT_GUARD_MEMORY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "guard/shareset.h"
#include "os/log.h"
#include "vu/memory.h"

/** struct moat_file_id - which file a region is of */
struct moat_file_id {
	uint64_t guest_addr; /* of the region */
	dev_t dev;
	ino_t ino;
};

/* Of what the backend shows the guest, the last so many are remembered. */
#define MOAT_SHOWN_MAX 1024u

struct moat_shown {
	dev_t dev;
	ino_t ino;
	uint64_t offset, size; /* bytes of the file */
};

struct moat_guest_mem {
	struct moat_vu_memory mapped;
	struct moat_file_id files[MOAT_VU_MEMORY_MAX];
	uint32_t nfiles;
	/* parts of files of the backend's own that the VMM mapped (shmem.h) */
	struct moat_shown shown[MOAT_SHOWN_MAX];
	uint32_t next_shown;
	struct moat_shareset share;
	bool share_changed; /* since the backend was last told */
};

/** moat_guest_mem_init() - no memory yet; the arguments as in shareset.h */
void moat_guest_mem_init(struct moat_guest_mem *mem, struct moat_log *log,
			 const struct moat_dma_range *pools, uint32_t npools,
			 int udmabuf_fd);
void moat_guest_mem_fini(struct moat_guest_mem *mem);

/**
 * moat_guest_mem_set() - all regions at once (SET_MEM_TABLE)
 * @fds: one each; they stay the caller's
 *
 * All or nothing: on failure the old table stands.
 *
 * Return: 0 or a negative errno, logged.
 */
int moat_guest_mem_set(struct moat_guest_mem *mem,
		       const struct moat_vu_mem_region *regions, uint32_t n,
		       const int *fds);

/** moat_guest_mem_add() - one more (ADD_MEM_REG) */
int moat_guest_mem_add(struct moat_guest_mem *mem,
		       const struct moat_vu_mem_region *region, int fd);

/** moat_guest_mem_del() - one less (REM_MEM_REG) */
int moat_guest_mem_del(struct moat_guest_mem *mem,
		       const struct moat_vu_mem_region *region);

/**
 * moat_guest_mem_show() - a part of @fd is the backend's, and shown to the
 * guest
 *
 * QEMU then has just this in its memory table, as what it is to the guest:
 * memory. It is not guest RAM for that.
 */
void moat_guest_mem_show(struct moat_guest_mem *mem, int fd, uint64_t offset,
			 uint64_t size);

#endif
