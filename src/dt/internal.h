/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of src/dt share, and nobody else needs. */
#ifndef MOAT_DT_INTERNAL_H
#define MOAT_DT_INTERNAL_H

#include "dt/dt.h"

#define DT_POOL_COMPATIBLE "restricted-dma-pool"

/** dt_fail() - sets @why and returns @err */
int dt_fail(struct moat_dt_why *why, int err, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/** dt_name() - a node's name with its unit address */
const char *dt_name(const struct moat_dt *dt, int node);

/** dt_prop() - a property's bytes, or NULL; @len is 0 or more */
const void *dt_prop(const struct moat_dt *dt, int node, const char *name,
		    size_t *len);

/** dt_has() - does a node have this property? */
bool dt_has(const struct moat_dt *dt, int node, const char *name);

/** dt_is_compatible() - is @what in the node's list of compatible? */
bool dt_is_compatible(const struct moat_dt *dt, int node, const char *what);

/** dt_cells() - a number of @n cells, 1 or 2 */
uint64_t dt_cells(const void *p, unsigned int n);

/** dt_u32() - a property of one cell; false if it is absent or no cell */
bool dt_u32(const struct moat_dt *dt, int node, const char *name,
	    uint32_t *value);

/** dt_by_phandle() - the first node that has a phandle, or -1 */
int dt_by_phandle(const struct moat_dt *dt, uint32_t phandle);

/**
 * dt_find() - the node at a full path, names exact
 *
 * Return: its index, -ENOENT, or -EEXIST if two nodes have that path.
 */
int dt_find(const struct moat_dt *dt, const char *path);

/** dt_child() - the first child with that name of @len bytes, or -ENOENT */
int dt_child(const struct moat_dt *dt, int parent, const char *name,
	     size_t len);

/** dt_device_at() - the device of a node, or NULL */
const struct moat_dt_device *dt_device_at(const struct moat_dt *dt, int node);

/** dt_region_at() - index of a node's first region, or -1 */
int dt_region_at(const struct moat_dt *dt, int node);

/**
 * dt_refs() - the phandles of a node's memory-region
 *
 * Return: how many there are, at most MOAT_DT_REFS_MAX; 0 if it has none.
 */
size_t dt_refs(const struct moat_dt *dt, int node,
	       uint32_t refs[MOAT_DT_REFS_MAX]);

/** dt_load_memory() - fills in the RAM and the regions */
int dt_load_memory(struct moat_dt *dt, struct moat_dt_why *why);

/** dt_load_devices() - fills in the devices, and whose pool is whose */
int dt_load_devices(struct moat_dt *dt, struct moat_dt_why *why);

/** dt_refused_by() - the property for which Linux refuses a pool, or NULL */
const char *dt_refused_by(const struct moat_dt *dt, int node);

/** dt_overlap() - do two ranges share a byte? */
static inline bool dt_overlap(const struct moat_dt_range *a,
			      const struct moat_dt_range *b)
{
	/* By their last bytes: an end may be 2^64. */
	return a->size && b->size && a->start <= b->start + (b->size - 1) &&
	       b->start <= a->start + (a->size - 1);
}

/** dt_inside() - is all of @r inside one range of RAM? */
bool dt_inside(const struct moat_dt *dt, const struct moat_dt_range *r);

#endif
