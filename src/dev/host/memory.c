/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dev/host/host.h"
#include "dev/host/worker.h"
#include "os/fd.h"
#include "os/mem.h"

void moat_host_memory_init(struct moat_device *d)
{
	pthread_mutex_init(&d->mem.lock, NULL);
	moat_vu_memory_init(&d->mem.table, d->log);
}

void moat_host_memory_fini(struct moat_device *d)
{
	free(d->mem.gone);
	pthread_mutex_destroy(&d->mem.lock);
}

int moat_host_get_max_mem_slots(void *dev, uint64_t *num)
{
	(void)dev;
	*num = MOAT_VU_MEMORY_MAX;
	return 0;
}

/* ---- what is gone ---- */

/* Versions come around: before and after are told by their distance. */
static bool is_since(uint32_t version, uint32_t when)
{
	return (int32_t)(version - when) >= 0;
}

static bool still_used(const struct moat_device *d, uint32_t version)
{
	for (uint32_t i = 0; i < d->nworkers; i++)
		if (!is_since(__atomic_load_n(&d->workers[i]->rested,
					      __ATOMIC_ACQUIRE),
			      version))
			return true;
	return false;
}

static void unmap_gone(struct moat_device *d, bool all)
{
	struct moat_host_memory *m = &d->mem;
	uint32_t n = 0;

	while (n < m->ngone && (all || !still_used(d, m->gone[n].version))) {
		moat_mem_unmap(m->gone[n].region.host, m->gone[n].region.size);
		n++;
	}
	if (!n)
		return;
	m->ngone -= n;
	memmove(m->gone, m->gone + n, m->ngone * sizeof(*m->gone));
}

static bool room_for_gone(struct moat_host_memory *m)
{
	uint32_t room = m->room ? m->room * 2 : 64;
	struct moat_gone *p;

	if (m->ngone < m->room)
		return true;
	if (room > MOAT_GONE_MAX)
		return false;
	p = realloc(m->gone, room * sizeof(*p));
	if (!p)
		return false;
	m->gone = p;
	m->room = room;
	return true;
}

/* ---- by a command ---- */

/* A ring that lost its memory can not be gone on with. */
static int adopt(struct moat_device *d, struct moat_vu_memory *mem)
{
	int ret = moat_workers_adopt(d, mem);

	unmap_gone(d, true);
	if (ret) {
		d->over = true;
		d->end = ret;
	}
	return ret;
}

int moat_host_set_mem_table(void *dev, const struct moat_vu_mem_region *r,
			    uint32_t n, int *fds)
{
	struct moat_device *d = dev;
	struct moat_vu_memory next;
	int ret;

	moat_vu_memory_init(&next, d->log);
	ret = moat_vu_memory_map(&next, r, n, fds);
	if (ret)
		return ret;
	ret = adopt(d, &next);
	moat_vu_memory_replace(&d->mem.table, &next);
	return ret;
}

void moat_host_memory_forget(struct moat_device *d)
{
	struct moat_vu_memory none;

	moat_vu_memory_init(&none, d->log);
	adopt(d, &none);
	moat_vu_memory_fini(&d->mem.table);
	moat_vu_memory_init(&d->mem.table, d->log);
}

/* ---- by versions ---- */

/* The device may have it registered with the kernel. */
static bool by_command(const struct moat_device *d)
{
	return d->config->ops->worker_memory;
}

/* Workers that sleep look at it, too: or they never would have rested. */
static void publish(struct moat_device *d)
{
	__atomic_fetch_add(&d->mem.version, 1, __ATOMIC_RELEASE);
	for (uint32_t i = 0; i < d->nworkers; i++)
		moat_eventfd_signal(d->workers[i]->wake.fd);
}

int moat_host_add_mem_region(void *dev, const struct moat_vu_mem_region *r,
			     int *fd)
{
	struct moat_device *d = dev;
	int ret;

	pthread_mutex_lock(&d->mem.lock);
	ret = moat_vu_memory_add(&d->mem.table, r, *fd);
	if (!ret && !by_command(d))
		publish(d);
	pthread_mutex_unlock(&d->mem.lock);
	unmap_gone(d, false);
	return ret || !by_command(d) ? ret : adopt(d, &d->mem.table);
}

static bool has_ring(const struct moat_device *d, const struct moat_region *r)
{
	for (uint32_t i = 0; i < d->config->num_queues; i++) {
		const struct moat_queue *q = &d->queues[i];
		const uint64_t at[] = { q->addr.desc, q->addr.avail,
					q->addr.used };

		for (uint32_t k = 0; q->started && k < 3; k++)
			if (at[k] - r->user_addr < r->size)
				return true;
	}
	return false;
}

int moat_host_del_mem_region(void *dev, const struct moat_vu_mem_region *r)
{
	struct moat_device *d = dev;
	struct moat_host_memory *m = &d->mem;
	struct moat_region gone;
	bool wait;
	int ret;

	unmap_gone(d, false);
	wait = by_command(d) || !room_for_gone(m);
	pthread_mutex_lock(&m->lock);
	ret = moat_vu_memory_take(&m->table, r, &gone);
	if (!ret && !wait)
		wait = has_ring(d, &gone);
	if (!ret && !wait) {
		publish(d);
		m->gone[m->ngone++] = (struct moat_gone){ gone, m->version };
	}
	pthread_mutex_unlock(&m->lock);
	if (ret || !wait)
		return ret;
	ret = adopt(d, &m->table);
	moat_mem_unmap(gone.host, gone.size);
	return ret;
}

/* ---- workers ---- */

bool moat_worker_refresh(struct moat_worker *w)
{
	struct moat_host_memory *m = &w->device->mem;

	if (__atomic_load_n(&m->version, __ATOMIC_ACQUIRE) == w->version)
		return false;
	pthread_mutex_lock(&m->lock);
	w->version = m->version;
	memcpy(w->regions, m->table.regions,
	       m->table.map.n * sizeof(*w->regions));
	w->map.n = m->table.map.n;
	w->map.last = 0;
	pthread_mutex_unlock(&m->lock);
	return true;
}

void moat_worker_rest(struct moat_worker *w)
{
	struct moat_device *d = w->device;

	if (w->rested == w->version)
		return;
	for (uint32_t i = w->index; i < d->config->num_queues; i += d->nworkers)
		if (d->queues[i].running && d->queues[i].outstanding)
			return;
	__atomic_store_n(&w->rested, w->version, __ATOMIC_RELEASE);
}
