/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is mapped in a device's shared memory regions, as a table.
 *
 *     region (shmid)   0 ........................................ size
 *     mappings            [offset, len)      [offset, len)
 *
 * Whoever sends or relays SHMEM_MAP and SHMEM_UNMAP keeps one: the rules of the
 * vhost-user specification are checked against it before anything is sent. A
 * mapping is whole pages within its region, over no other, and is unmapped as a
 * whole. The number of mappings is bounded: each costs the front-end an fd and
 * a mapping of its own.
 *
 * A reset of the device unmaps all, but front-ends need not tell of one: QEMU
 * stops the queues, as it does when the whole machine pauses, and then all
 * stays mapped. So once queues were stopped a mapping is in doubt: it is in
 * nobody's way, may still be unmapped, and is forgotten when something else
 * takes its place. The front-end has the last word, as always.
 *
 * A mapping whose back-end is gone is an orphan: another back-end does not know
 * of it, but the guest may be using it. It is in nobody's way either, only that
 * it has to be unmapped before something else takes its place. It counts as any
 * other; where there are as many as may be, one in doubt goes for a new one.
 */
#ifndef MOAT_VU_SHMEM_H
#define MOAT_VU_SHMEM_H

#include <stdbool.h>
#include <stdint.h>

#include "vu/proto.h"

/** struct moat_vu_mapping - one, sorted by region and offset */
struct moat_vu_mapping {
	uint64_t offset;
	uint64_t len;
	uint8_t shmid;
	bool doubtful;
	bool orphan;
};

struct moat_vu_shmem {
	uint64_t sizes[MOAT_VU_SHMEM_MAX]; /* of regions, in bytes; 0: none */
	uint64_t page;			   /* of this host */
	uint32_t max;
	uint32_t n;
	uint32_t room; /* that @maps has */
	bool former;   /* there was another back-end before this one */
	struct moat_vu_mapping *maps;
};

/** moat_vu_shmem_init() - no regions, room for at most @max mappings */
void moat_vu_shmem_init(struct moat_vu_shmem *shmem, uint32_t max);
void moat_vu_shmem_fini(struct moat_vu_shmem *shmem);

/** moat_vu_shmem_any() - is there any region? */
bool moat_vu_shmem_any(const struct moat_vu_shmem *shmem);

/**
 * moat_vu_shmem_may_map() - could this be mapped now?
 *
 * Makes room for it, so that moat_vu_shmem_add() can not fail.
 *
 * Return: 0; -EINVAL: no whole pages; -ENXIO: no such region; -ERANGE: not
 * inside it; -EEXIST: something is mapped there; -ENOSPC: as many as may be
 * are mapped; -ENOMEM.
 */
int moat_vu_shmem_may_map(struct moat_vu_shmem *shmem, uint8_t shmid,
			  uint64_t offset, uint64_t len);

/**
 * moat_vu_shmem_may_clear() - could all orphans in a place be unmapped?
 *
 * Return: 0, also if there are none; else as moat_vu_shmem_may_map(), -EEXIST
 * if there is anything but orphans.
 */
int moat_vu_shmem_may_clear(const struct moat_vu_shmem *shmem, uint8_t shmid,
			    uint64_t offset, uint64_t len);

/**
 * moat_vu_shmem_add() - it is mapped; after moat_vu_shmem_may_map()
 *
 * Nothing may have been added in between.
 */
void moat_vu_shmem_add(struct moat_vu_shmem *shmem, uint8_t shmid,
		       uint64_t offset, uint64_t len);

/**
 * moat_vu_shmem_find() - the mapping that is exactly this, or NULL
 *
 * One in doubt is found too: to unmap it is no mistake, nor is it one of the
 * front-end to have none.
 */
const struct moat_vu_mapping *
moat_vu_shmem_find(const struct moat_vu_shmem *shmem, uint8_t shmid,
		   uint64_t offset, uint64_t len);

/** moat_vu_shmem_del() - it is no longer mapped, if it was */
void moat_vu_shmem_del(struct moat_vu_shmem *shmem, uint8_t shmid,
		       uint64_t offset, uint64_t len);

/** moat_vu_shmem_doubt() - queues were stopped: all mappings are in doubt */
void moat_vu_shmem_doubt(struct moat_vu_shmem *shmem);

/**
 * moat_vu_shmem_unmapped() - the front-end was asked to unmap this
 * @ok: it says that it did
 *
 * Return: whether it is taken for gone: one in doubt is, and an orphan. Else it
 * is in doubt from now on.
 */
bool moat_vu_shmem_unmapped(struct moat_vu_shmem *shmem, uint8_t shmid,
			    uint64_t offset, uint64_t len, bool ok);

/** moat_vu_shmem_orphan() - the back-end is gone: all mappings are orphans */
void moat_vu_shmem_orphan(struct moat_vu_shmem *shmem);

/** moat_vu_shmem_orphan_in() - one that overlaps this place, or NULL */
const struct moat_vu_mapping *
moat_vu_shmem_orphan_in(const struct moat_vu_shmem *shmem, uint8_t shmid,
			uint64_t offset, uint64_t len);

/**
 * moat_vu_shmem_evict() - an orphan to unmap before this can be mapped, or NULL
 *
 * There may be more: ask again.
 */
const struct moat_vu_mapping *
moat_vu_shmem_evict(const struct moat_vu_shmem *shmem, uint8_t shmid,
		    uint64_t offset, uint64_t len);

/** moat_vu_shmem_clear() - nothing is mapped any more; regions stay */
void moat_vu_shmem_clear(struct moat_vu_shmem *shmem);

#endif
