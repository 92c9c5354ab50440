/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device's guest memory, and what of it workers work with.
 *
 *     control   table, version n ---- published ----> worker: copy, version n
 *               regions that are gone, kept <--------  version it was quiet at
 *
 * Regions come and go (ADD_MEM_REG, REM_MEM_REG) while requests are under way,
 * and the front-end waits for our answer to each. QEMU sends one whenever a
 * device maps something into a shared memory region, and answers no other
 * request of that device meanwhile: to wait for a request here that waits for
 * the front-end would be for ever. So nobody is waited for. A worker takes a
 * new version over before it takes a request. What is gone stays mapped until
 * each worker was seen without a request since.
 *
 * Where that can not be (a table in place of another, a ring in a region that
 * goes, a device that keeps memory registered) workers adopt the table by a
 * command, with no request outstanding.
 */
#ifndef MOAT_DEV_HOST_MEMORY_H
#define MOAT_DEV_HOST_MEMORY_H

#include <pthread.h>

#include "vu/memory.h"

struct moat_device;
struct moat_worker;

/* Regions that are gone; more are waited for. */
#define MOAT_GONE_MAX 4096u

struct moat_gone {
	struct moat_region region;
	uint32_t version; /* from this one on it is not in the table */
};

/**
 * struct moat_host_memory - guest memory and its versions
 * @table: the control thread's, which changes it with the lock held
 * @version: atomic
 * @gone: in the order of their versions
 */
struct moat_host_memory {
	struct moat_vu_memory table;
	pthread_mutex_t lock;
	uint32_t version;
	struct moat_gone *gone;
	uint32_t ngone, room;
};

void moat_host_memory_init(struct moat_device *d);
void moat_host_memory_fini(struct moat_device *d);

/* Operations of struct moat_vu_server_ops; @dev is the struct moat_device. */
int moat_host_get_max_mem_slots(void *dev, uint64_t *num);
int moat_host_set_mem_table(void *dev, const struct moat_vu_mem_region *r,
			    uint32_t n, int *fds);
int moat_host_add_mem_region(void *dev, const struct moat_vu_mem_region *r,
			     int *fd);
int moat_host_del_mem_region(void *dev, const struct moat_vu_mem_region *r);

/** moat_host_memory_forget() - the front-end is gone; no queue runs */
void moat_host_memory_forget(struct moat_device *d);

/* On a worker's thread: */

/** moat_worker_refresh() - take a new version over; true if there was one */
bool moat_worker_refresh(struct moat_worker *w);

/** moat_worker_rest() - note that no request is outstanding, if that is so */
void moat_worker_rest(struct moat_worker *w);

#endif
