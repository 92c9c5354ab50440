/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening a tree. Everything here may be hostile: libfdt's full check comes
 * first, and then limits, so that no later step is worse than linear in the
 * file's size times a small constant.
 */
#include <errno.h>
#include <libfdt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dt/internal.h"

int dt_fail(struct moat_dt_why *why, int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why->text, sizeof(why->text), fmt, ap);
	va_end(ap);
	return err;
}

const char *dt_name(const struct moat_dt *dt, int node)
{
	const char *name = fdt_get_name(dt->fdt, dt->nodes[node].offset, NULL);

	return name ? name : "";
}

const void *dt_prop(const struct moat_dt *dt, int node, const char *name,
		    size_t *len)
{
	int n = 0;
	const void *p = fdt_getprop(dt->fdt, dt->nodes[node].offset, name, &n);

	*len = p && n > 0 ? (size_t)n : 0;
	return p;
}

bool dt_has(const struct moat_dt *dt, int node, const char *name)
{
	size_t len;

	return dt_prop(dt, node, name, &len) != NULL;
}

bool dt_is_compatible(const struct moat_dt *dt, int node, const char *what)
{
	size_t len;
	const char *p = dt_prop(dt, node, "compatible", &len);

	return p && fdt_stringlist_contains(p, (int)len, what);
}

uint64_t dt_cells(const void *p, unsigned int n)
{
	uint64_t value = 0;
	fdt32_t cell;

	for (unsigned int i = 0; i < n; i++) {
		memcpy(&cell, (const char *)p + i * sizeof(cell), sizeof(cell));
		value = value << 32 | fdt32_to_cpu(cell);
	}
	return value;
}

bool dt_u32(const struct moat_dt *dt, int node, const char *name,
	    uint32_t *value)
{
	size_t len;
	const void *p = dt_prop(dt, node, name, &len);

	if (!p || len != 4)
		return false;
	*value = (uint32_t)dt_cells(p, 1);
	return true;
}

const char *moat_dt_path(const struct moat_dt *dt, int node,
			 char buf[MOAT_DT_PATH])
{
	char *p = buf + MOAT_DT_PATH - 1;

	*p = 0;
	for (; node > 0; node = dt->nodes[node].parent) {
		const char *name = dt_name(dt, node);
		size_t len = strlen(name);

		p -= len;
		memcpy(p, name, len);
		*--p = '/';
	}
	if (!*p)
		*--p = '/';
	return memmove(buf, p, (size_t)(buf + MOAT_DT_PATH - p));
}

int dt_child(const struct moat_dt *dt, int parent, const char *name, size_t len)
{
	/* Children follow their parent, up to a node that is no deeper. */
	for (size_t i = (size_t)parent + 1; i < dt->nnodes; i++) {
		const char *s;

		if (dt->nodes[i].depth <= dt->nodes[parent].depth)
			break;
		if (dt->nodes[i].parent != parent)
			continue;
		s = dt_name(dt, (int)i);
		if (strlen(s) == len && !memcmp(s, name, len))
			return (int)i;
	}
	return -ENOENT;
}

/*
 * Not fdt_path_offset(): it takes aliases, which may name each other for ever,
 * and names without their unit address.
 */
int dt_find(const struct moat_dt *dt, const char *path)
{
	char buf[MOAT_DT_PATH];
	size_t len = strlen(path);
	int found = -ENOENT;
	const char *last;

	if (path[0] != '/' || len >= sizeof(buf))
		return -ENOENT;
	last = strrchr(path, '/') + 1;
	for (size_t i = 0; i < dt->nnodes; i++) {
		if (strcmp(dt_name(dt, (int)i), last) != 0 ||
		    strcmp(moat_dt_path(dt, (int)i, buf), path) != 0)
			continue;
		if (found >= 0)
			return -EEXIST;
		found = (int)i;
	}
	return found;
}

struct by_phandle {
	uint32_t phandle;
	int node;
};

static int compare_phandles(const void *a, const void *b)
{
	const struct by_phandle *x = a, *y = b;

	if (x->phandle != y->phandle)
		return x->phandle < y->phandle ? -1 : 1;
	return x->node - y->node;
}

static int sort_phandles(struct moat_dt *dt)
{
	struct by_phandle *v = calloc(dt->nnodes, sizeof(*v));
	size_t n = 0;

	dt->by_phandle = calloc(dt->nnodes, sizeof(*dt->by_phandle));
	if (!v || !dt->by_phandle) {
		free(v);
		return -ENOMEM;
	}
	for (size_t i = 0; i < dt->nnodes; i++)
		if (dt->nodes[i].phandle)
			v[n++] = (struct by_phandle){ dt->nodes[i].phandle,
						      (int)i };
	qsort(v, n, sizeof(*v), compare_phandles);
	for (size_t i = 0; i < n; i++)
		dt->by_phandle[i] = v[i].node;
	dt->nphandles = n;
	free(v);
	return 0;
}

int dt_by_phandle(const struct moat_dt *dt, uint32_t phandle)
{
	size_t lo = 0, hi = dt->nphandles;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (dt->nodes[dt->by_phandle[mid]].phandle < phandle)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (phandle && lo < dt->nphandles &&
	    dt->nodes[dt->by_phandle[lo]].phandle == phandle)
		return dt->by_phandle[lo];
	return -1;
}

size_t dt_refs(const struct moat_dt *dt, int node,
	       uint32_t refs[MOAT_DT_REFS_MAX])
{
	size_t len;
	const char *p = dt_prop(dt, node, "memory-region", &len);
	size_t n = len / 4 < MOAT_DT_REFS_MAX ? len / 4 : MOAT_DT_REFS_MAX;

	for (size_t i = 0; i < n; i++)
		refs[i] = (uint32_t)dt_cells(p + 4 * i, 1);
	return n;
}

/*
 * Names are printed, and compared with paths that users type: only printable
 * ASCII, and nothing that ends a path's component or a quoted string. (The
 * Devicetree Specification, 2.2.1, allows less.)
 */
static int check_name(const char *name, size_t depth, struct moat_dt_why *why)
{
	size_t len = strlen(name);

	if (len > MOAT_DT_NAME_MAX)
		return dt_fail(why, -E2BIG,
			       "a node's name has %zu characters, more than %u",
			       len, MOAT_DT_NAME_MAX);
	if (!len != !depth)
		return dt_fail(why, -EINVAL, "%s",
			       depth ? "a node has no name"
				     : "the root node has a name");
	for (size_t i = 0; i < len; i++)
		if (name[i] <= ' ' || name[i] > '~' || strchr("/\"\\", name[i]))
			return dt_fail(why, -EINVAL,
				       "a node's name has the byte 0x%02x, "
				       "which is not allowed in names",
				       (unsigned char)name[i]);
	return 0;
}

static bool is_disabled(const struct moat_dt *dt, int node)
{
	size_t len;
	const char *s = dt_prop(dt, node, "status", &len);

	/* As of_device_is_available(): absent, "okay" or "ok". */
	return s && !(len == 5 && !memcmp(s, "okay", 5)) &&
	       !(len == 3 && !memcmp(s, "ok", 3));
}

static int add_node(struct moat_dt *dt, int offset, int depth, int *at_depth,
		    size_t *room, struct moat_dt_why *why)
{
	struct moat_dt_node *n;
	int i = (int)dt->nnodes, err;

	if (depth < 0 || (unsigned int)depth > MOAT_DT_DEPTH_MAX)
		return dt_fail(why, -E2BIG, "nodes are more than %u deep",
			       MOAT_DT_DEPTH_MAX);
	if (dt->nnodes == MOAT_DT_NODES_MAX)
		return dt_fail(why, -E2BIG, "there are more than %u nodes",
			       MOAT_DT_NODES_MAX);
	if (dt->nnodes == *room) {
		*room *= 2;
		n = reallocarray(dt->nodes, *room, sizeof(*n));
		if (!n)
			return dt_fail(why, -ENOMEM, "no memory");
		dt->nodes = n;
	}
	n = &dt->nodes[dt->nnodes++];
	*n = (struct moat_dt_node){
		.offset = offset,
		.parent = depth ? at_depth[depth - 1] : -1,
		.host = -1,
		.depth = (unsigned int)depth,
		.phandle = fdt_get_phandle(dt->fdt, offset),
	};
	if (n->phandle == UINT32_MAX)
		n->phandle = 0; /* no node may have it (2.3.3) */
	at_depth[depth] = i;
	err = check_name(dt_name(dt, i), n->depth, why);
	if (err)
		return err;
	n->disabled =
		is_disabled(dt, i) || (depth && dt->nodes[n->parent].disabled);
	return 0;
}

static int load_nodes(struct moat_dt *dt, struct moat_dt_why *why)
{
	int at_depth[MOAT_DT_DEPTH_MAX + 1];
	int offset = 0, depth = 0, err;
	size_t room = 256;

	dt->nodes = calloc(room, sizeof(*dt->nodes));
	if (!dt->nodes)
		return dt_fail(why, -ENOMEM, "no memory");
	do {
		err = add_node(dt, offset, depth, at_depth, &room, why);
		if (err)
			return err;
		offset = fdt_next_node(dt->fdt, offset, &depth);
	} while (offset >= 0 && depth > 0);
	if (offset < 0 && offset != -FDT_ERR_NOTFOUND)
		return dt_fail(why, -EINVAL, "damaged device tree: %s",
			       fdt_strerror(offset));
	if (offset >= 0 && depth == 0)
		return dt_fail(why, -EINVAL, "there are two root nodes");
	return sort_phandles(dt) ? dt_fail(why, -ENOMEM, "no memory") : 0;
}

/* The header, before libfdt follows the offsets in it. */
static int check_header(const void *fdt, size_t size, struct moat_dt_why *why)
{
	int err;

	if (size > MOAT_DT_SIZE_MAX)
		return dt_fail(why, -E2BIG,
			       "%zu bytes are too many for a device tree; the "
			       "limit is %u",
			       size, MOAT_DT_SIZE_MAX);
	if (size < sizeof(struct fdt_header) || fdt_magic(fdt) != FDT_MAGIC)
		return dt_fail(why, -EINVAL,
			       "not a flattened device tree (.dtb); a source "
			       "(.dts) has to go through dtc first");
	/* libfdt 1.6.1 crashes in the root's name, which older ones have. */
	if (fdt_version(fdt) < 16)
		return dt_fail(
			why, -EINVAL,
			"version %u of the format is too old; dtc writes "
			"version 17",
			fdt_version(fdt));
	if (fdt_totalsize(fdt) > size)
		return dt_fail(why, -EINVAL,
			       "cut off: the header tells of %u bytes, the "
			       "file has %zu",
			       fdt_totalsize(fdt), size);
	/* What makes libfdt load from unaligned addresses. */
	if (fdt_off_dt_struct(fdt) % 4 || fdt_off_mem_rsvmap(fdt) % 8)
		return dt_fail(why, -EINVAL,
			       "damaged device tree: a block is not aligned");
	err = fdt_check_full(fdt, size);
	if (err)
		return dt_fail(why, -EINVAL, "damaged device tree: %s",
			       fdt_strerror(err));
	return 0;
}

static void load_cells(struct moat_dt *dt)
{
	uint32_t ac, sc;

	if (dt_u32(dt, 0, "#address-cells", &ac) &&
	    dt_u32(dt, 0, "#size-cells", &sc) && ac >= 1 && ac <= 2 &&
	    sc >= 1 && sc <= 2) {
		dt->addr_cells = ac;
		dt->size_cells = sc;
	}
}

int moat_dt_open(const void *fdt, size_t size, struct moat_dt **out,
		 struct moat_dt_why *why)
{
	struct moat_dt *dt;
	int err = check_header(fdt, size, why);

	*out = NULL;
	if (err)
		return err;
	dt = calloc(1, sizeof(*dt));
	if (!dt)
		return dt_fail(why, -ENOMEM, "no memory");
	dt->fdt = fdt;
	dt->size = size;
	dt->reserved = -1;
	err = load_nodes(dt, why);
	if (!err) {
		load_cells(dt);
		err = dt_load_memory(dt, why);
	}
	if (!err)
		err = dt_load_devices(dt, why);
	if (err) {
		moat_dt_close(dt);
		return err;
	}
	*out = dt;
	return 0;
}

void moat_dt_close(struct moat_dt *dt)
{
	if (!dt)
		return;
	free(dt->nodes);
	free(dt->by_phandle);
	free(dt->devices);
	free(dt);
}
