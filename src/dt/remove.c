/* SPDX-License-Identifier: Apache-2.0 */
/* Removing pools, and what was there only for them. */
#include <errno.h>
#include <libfdt.h>
#include <stdlib.h>
#include <string.h>

#include "dt/edit.h"

/* What is to be done to each node, by index. */
enum { UNREFER = 1, DELETE = 2, TOUCHED = 4 };

static int mark_pool(struct dt_edit *e, unsigned char *marks, const char *path)
{
	int node = dt_find(e->dt, path);
	int region = node < 0 ? -1 : dt_region_at(e->dt, node);

	if (region < 0 || !e->dt->regions[region].pool)
		return dt_fail(e->why, -ENOENT,
			       "%s is no pool: `moat dt show` lists them",
			       path);
	marks[node] |= DELETE;
	return 0;
}

static int mark_device(struct dt_edit *e, unsigned char *marks,
		       unsigned int *left, const char *path)
{
	int node = dt_find(e->dt, path);
	const struct moat_dt_device *d = NULL;

	if (node >= 0)
		d = dt_device_at(e->dt, node);
	if (!d || d->pool < 0)
		return dt_fail(e->why, -ENOENT,
			       "%s is no device with a pool: `moat dt show` "
			       "lists them",
			       path);
	if (d->inherited)
		return dt_fail(e->why, -EINVAL,
			       "%s has its host bridge's pool: name the bridge",
			       path);
	if (marks[node] & UNREFER)
		return 0;
	marks[node] |= UNREFER;
	if (!--left[d->pool])
		marks[e->dt->regions[d->pool].node] |= DELETE;
	return 0;
}

static int mark(struct dt_edit *e, unsigned char *marks,
		const struct moat_dt_remove *rm)
{
	unsigned int left[MOAT_DT_RANGES_MAX];
	int err = 0;

	for (size_t i = 0; i < e->dt->nregions; i++) {
		left[i] = e->dt->regions[i].users;
		if (rm->all && e->dt->regions[i].pool)
			marks[e->dt->regions[i].node] |= DELETE;
	}
	for (size_t i = 0; i < rm->npools && !err; i++)
		err = mark_pool(e, marks, rm->pools[i]);
	for (size_t i = 0; i < rm->ndevices && !err; i++)
		err = mark_device(e, marks, left, rm->devices[i]);
	return err;
}

/* Removes entry @i of memory-region-names, which goes with memory-region. */
static int drop_name(struct dt_edit *e, int offset, size_t i)
{
	int len;
	const char *p =
		fdt_getprop(e->buf, offset, "memory-region-names", &len);
	char *names;
	size_t at = 0, cut, n;
	int err;

	if (!p || len <= 0 || p[len - 1])
		return 0;
	n = (size_t)len;
	for (; i && at < n; i--)
		at += strlen(p + at) + 1;
	if (at >= n)
		return 0;
	cut = strlen(p + at) + 1;
	if (cut == n)
		return dt_edit_err(e, fdt_delprop(e->buf, offset,
						  "memory-region-names"));
	names = malloc(n);
	if (!names)
		return dt_fail(e->why, -ENOMEM, "no memory");
	memcpy(names, p, at);
	memcpy(names + at, p + at + cut, n - at - cut);
	err = dt_edit_err(e, fdt_setprop(e->buf, offset, "memory-region-names",
					 names, (int)(n - cut)));
	free(names);
	return err;
}

/* Does this entry go: one of a pool that goes, or any pool of the device? */
static bool goes(const struct dt_edit *e, const unsigned char *marks, int node,
		 uint32_t phandle)
{
	int target = dt_by_phandle(e->dt, phandle);
	int region = dt_region_at(e->dt, target);

	if (target < 0)
		return false;
	return marks[target] & DELETE ||
	       (marks[node] & UNREFER && region >= 0 &&
		e->dt->regions[region].pool);
}

static int unrefer(struct dt_edit *e, unsigned char *marks, int node)
{
	uint32_t refs[MOAT_DT_REFS_MAX];
	size_t n = dt_refs(e->dt, node, refs), kept = n;
	fdt32_t out[MOAT_DT_REFS_MAX];
	int offset = dt_edit_offset(e, node), err = 0;

	/* From the end, so that indexes of names stay. */
	for (size_t i = n; i-- > 0 && !err;) {
		if (!goes(e, marks, node, refs[i]))
			continue;
		memmove(refs + i, refs + i + 1, (kept - i - 1) * sizeof(*refs));
		kept--;
		err = drop_name(e, offset, i);
	}
	if (kept == n || err)
		return err;
	marks[node] |= TOUCHED;
	if (!kept)
		return dt_edit_err(e, fdt_delprop(e->buf, offset,
						  "memory-region"));
	for (size_t i = 0; i < kept; i++)
		out[i] = cpu_to_fdt32(refs[i]);
	return dt_edit_err(e, fdt_setprop(e->buf, offset, "memory-region", out,
					  (int)(kept * sizeof(*out))));
}

/*
 * From the last node to the first: what changes at one moves only what comes
 * behind it, so the offsets that the tables hold stay true for the rest.
 */
static int sweep(struct dt_edit *e, unsigned char *marks)
{
	unsigned int changes = 0;
	int err = 0;

	for (int i = (int)e->dt->nnodes - 1; i > 0 && !err; i--) {
		int parent = e->dt->nodes[i].parent;

		if (!(marks[i] & DELETE))
			err = unrefer(e, marks, i);
		if (err)
			break;
		if (marks[i] & TOUCHED && dt_bare_pci(e->dt, i))
			marks[i] |= DELETE;
		if (marks[i] & (DELETE | TOUCHED) &&
		    ++changes > MOAT_DT_DEVICES_MAX)
			return dt_fail(e->why, -E2BIG,
				       "more than %u nodes use the pools",
				       MOAT_DT_DEVICES_MAX);
		if (!(marks[i] & DELETE))
			continue;
		marks[parent] |= TOUCHED;
		err = dt_edit_err(e,
				  fdt_del_node(e->buf, dt_edit_offset(e, i)));
	}
	return err;
}

/* Is there nothing left in /reserved-memory that says something? */
static bool reserved_is_empty(const struct moat_dt *dt)
{
	int offset, p, n = 0;

	if (dt->reserved < 0 || dt->reserved_ignored)
		return false;
	offset = dt->nodes[dt->reserved].offset;
	if (fdt_first_subnode(dt->fdt, offset) >= 0)
		return false;
	fdt_for_each_property_offset(p, dt->fdt, offset) n++;
	return n == 3; /* the cells and ranges, or it would be ignored */
}

static int remove_marked(struct dt_edit *e, const struct moat_dt_remove *rm)
{
	unsigned char *marks = calloc(e->dt->nnodes, 1);
	bool touched;
	int err;

	if (!marks)
		return dt_fail(e->why, -ENOMEM, "no memory");
	err = mark(e, marks, rm);
	if (!err)
		err = sweep(e, marks);
	touched = e->dt->reserved >= 0 && marks[e->dt->reserved];
	free(marks);
	if (!err)
		err = dt_edit_again(e);
	if (err || !touched || !reserved_is_empty(e->dt))
		return err;
	return dt_edit_err(e, fdt_del_node(e->buf,
					   dt_edit_offset(e, e->dt->reserved)));
}

int moat_dt_remove_pools(const void *fdt, size_t size,
			 const struct moat_dt_remove *rm, void **out,
			 size_t *out_size, struct moat_dt_why *why)
{
	struct dt_edit e;
	int err = dt_edit_begin(&e, fdt, size, 0, why);

	if (!err)
		err = remove_marked(&e, rm);
	return dt_edit_end(&e, err, out, out_size);
}
