/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The RAM of a tree, and what of it is not the kernel's to hand out: children
 * of /reserved-memory, /memreserve/ entries and the initrd.
 */
#include <errno.h>
#include <libfdt.h>
#include <stdlib.h>
#include <string.h>

#include "dt/internal.h"

static size_t entry_size(unsigned int ac, unsigned int sc)
{
	return ((size_t)ac + sc) * 4;
}

/* Entry @i of a reg; false if it is empty or its end wraps. */
static bool reg_entry(const char *reg, size_t i, unsigned int ac,
		      unsigned int sc, struct moat_dt_range *r)
{
	const char *p = reg + i * entry_size(ac, sc);

	r->start = dt_cells(p, ac);
	r->size = dt_cells(p + (size_t)ac * 4, sc);
	return r->size && r->start + (r->size - 1) >= r->start;
}

static int add_ram(struct moat_dt *dt, int node, struct moat_dt_why *why)
{
	const char *name = dt_has(dt, node, "linux,usable-memory")
				   ? "linux,usable-memory"
				   : "reg";
	size_t entry = entry_size(dt->addr_cells, dt->size_cells), len;
	const char *reg = dt_prop(dt, node, name, &len);

	if (!reg || !len || len % entry) {
		dt->nodes[node].bad_reg = true;
		return 0;
	}
	for (size_t i = 0; i < len / entry; i++) {
		struct moat_dt_range r;

		if (!reg_entry(reg, i, dt->addr_cells, dt->size_cells, &r)) {
			/* An empty bank is usual; one that wraps is not. */
			dt->nodes[node].bad_reg |= r.size != 0;
			continue;
		}
		if (dt->nram == MOAT_DT_RANGES_MAX)
			return dt_fail(why, -E2BIG,
				       "there are more than %u ranges of RAM",
				       MOAT_DT_RANGES_MAX);
		dt->ram[dt->nram++] = r;
	}
	return 0;
}

static int compare_ranges(const void *a, const void *b)
{
	const struct moat_dt_range *x = a, *y = b;

	if (x->start != y->start)
		return x->start < y->start ? -1 : 1;
	return 0;
}

static uint64_t last_of(const struct moat_dt_range *r)
{
	return r->start + (r->size - 1);
}

/* Banks that touch are one piece of RAM, whichever nodes tell of them. */
static void merge_ram(struct moat_dt *dt)
{
	size_t n = 0;

	qsort(dt->ram, dt->nram, sizeof(*dt->ram), compare_ranges);
	for (size_t i = 0; i < dt->nram; i++) {
		const struct moat_dt_range r = dt->ram[i];
		struct moat_dt_range *prev = n ? &dt->ram[n - 1] : NULL;

		if (!prev ||
		    (r.start > last_of(prev) && r.start - last_of(prev) > 1)) {
			dt->ram[n++] = r;
			continue;
		}
		if (last_of(&r) <= last_of(prev))
			continue;
		prev->size = last_of(&r) - prev->start;
		if (prev->size != UINT64_MAX) /* 2^64 does not fit */
			prev->size++;
	}
	dt->nram = n;
}

static int add_region(struct moat_dt *dt, const struct moat_dt_region *r,
		      struct moat_dt_why *why)
{
	if (dt->nregions == MOAT_DT_RANGES_MAX)
		return dt_fail(why, -E2BIG,
			       "there are more than %u reserved regions",
			       MOAT_DT_RANGES_MAX);
	dt->regions[dt->nregions++] = *r;
	return 0;
}

static int add_reserved(struct moat_dt *dt, int node, unsigned int ac,
			unsigned int sc, struct moat_dt_why *why)
{
	size_t entry = entry_size(ac, sc), len;
	const char *reg = dt_prop(dt, node, "reg", &len);
	struct moat_dt_region r = {
		.node = node,
		.first = true,
		.pool = dt_is_compatible(dt, node, DT_POOL_COMPATIBLE),
	};
	int err;

	if (!reg || !len || len % entry) {
		/* Without a reg, Linux chooses the place at boot. */
		dt->nodes[node].bad_reg = reg != NULL;
		return add_region(dt, &r, why);
	}
	for (size_t i = 0; i < len / entry; i++) {
		if (!reg_entry(reg, i, ac, sc, &r.range)) {
			dt->nodes[node].bad_reg = true;
			r.range.size = 0;
		}
		err = add_region(dt, &r, why);
		if (err)
			return err;
		r.first = r.pool = false;
	}
	return 0;
}

static int load_reserved(struct moat_dt *dt, struct moat_dt_why *why)
{
	uint32_t ac = 0, sc = 0;
	int err;

	dt->reserved =
		dt_child(dt, 0, "reserved-memory", strlen("reserved-memory"));
	if (dt->reserved < 0) {
		dt->reserved = -1;
		return 0;
	}
	/* Linux: __reserved_mem_check_root() */
	if (!dt_u32(dt, dt->reserved, "#address-cells", &ac) ||
	    !dt_u32(dt, dt->reserved, "#size-cells", &sc) ||
	    ac != dt->addr_cells || sc != dt->size_cells ||
	    !dt_has(dt, dt->reserved, "ranges") ||
	    dt->nodes[dt->reserved].disabled) {
		dt->reserved_ignored = true;
		/* Show its regions all the same, as well as can be. */
		ac = ac == 1 || ac == 2 ? ac : dt->addr_cells;
		sc = sc == 1 || sc == 2 ? sc : dt->size_cells;
	}
	for (size_t i = (size_t)dt->reserved + 1;
	     i < dt->nnodes && dt->nodes[i].depth > 1; i++) {
		if (dt->nodes[i].parent != dt->reserved)
			continue;
		err = add_reserved(dt, (int)i, ac, sc, why);
		if (err)
			return err;
	}
	return 0;
}

static int load_memreserve(struct moat_dt *dt, struct moat_dt_why *why)
{
	int n = fdt_num_mem_rsv(dt->fdt), err;

	for (int i = 0; i < n; i++) {
		struct moat_dt_region r = { .node = -1,
					    .what = "/memreserve/" };

		if (fdt_get_mem_rsv(dt->fdt, i, &r.range.start, &r.range.size))
			return dt_fail(why, -EINVAL,
				       "damaged device tree: /memreserve/");
		if (!r.range.size ||
		    r.range.start + (r.range.size - 1) < r.range.start)
			continue;
		err = add_region(dt, &r, why);
		if (err)
			return err;
	}
	return 0;
}

static bool chosen_address(const struct moat_dt *dt, int node, const char *name,
			   uint64_t *value)
{
	size_t len;
	const void *p = dt_prop(dt, node, name, &len);

	if (!p || (len != 4 && len != 8))
		return false;
	*value = dt_cells(p, (unsigned int)len / 4);
	return true;
}

/* QEMU and boot loaders say here where they put the initrd. */
static int load_initrd(struct moat_dt *dt, struct moat_dt_why *why)
{
	struct moat_dt_region r = { .node = -1, .what = "the initrd" };
	int chosen = dt_child(dt, 0, "chosen", strlen("chosen"));
	uint64_t end;

	if (chosen < 0 ||
	    !chosen_address(dt, chosen, "linux,initrd-start", &r.range.start) ||
	    !chosen_address(dt, chosen, "linux,initrd-end", &end) ||
	    end <= r.range.start)
		return 0;
	r.range.size = end - r.range.start;
	return add_region(dt, &r, why);
}

static bool is_memory(const struct moat_dt *dt, size_t node)
{
	size_t len;
	const char *type = dt_prop(dt, (int)node, "device_type", &len);

	/* Linux: early_init_dt_scan_memory() */
	return dt->nodes[node].depth == 1 && !dt->nodes[node].disabled &&
	       type && len == sizeof("memory") && !memcmp(type, "memory", len);
}

int dt_load_memory(struct moat_dt *dt, struct moat_dt_why *why)
{
	int err = 0;

	/* Without the root's cells no address can be read. */
	if (!dt->addr_cells)
		return 0;
	for (size_t i = 0; i < dt->nnodes && !err; i++)
		if (is_memory(dt, i))
			err = add_ram(dt, (int)i, why);
	if (err)
		return err;
	merge_ram(dt);
	err = load_reserved(dt, why);
	if (!err)
		err = load_memreserve(dt, why);
	return err ? err : load_initrd(dt, why);
}

int dt_region_at(const struct moat_dt *dt, int node)
{
	for (size_t i = 0; node >= 0 && i < dt->nregions; i++)
		if (dt->regions[i].node == node)
			return (int)i;
	return -1;
}

bool dt_inside(const struct moat_dt *dt, const struct moat_dt_range *r)
{
	for (size_t i = 0; i < dt->nram; i++) {
		const struct moat_dt_range *ram = &dt->ram[i];

		if (r->start >= ram->start && r->size <= ram->size &&
		    r->start - ram->start <= ram->size - r->size)
			return true;
	}
	return false;
}

/* The lowest region that shares a byte with @r, or NULL. */
static const struct moat_dt_region *
lowest_in_the_way(const struct moat_dt *dt, const struct moat_dt_range *r)
{
	const struct moat_dt_region *found = NULL;

	for (size_t i = 0; i < dt->nregions; i++) {
		const struct moat_dt_region *other = &dt->regions[i];

		if (dt_overlap(r, &other->range) &&
		    (!found || other->range.start < found->range.start))
			found = other;
	}
	return found;
}

/*
 * From the top downwards: the kernel, its device tree and its initrd are
 * loaded low, and pools at the end leave the rest of the RAM in one piece.
 */
int moat_dt_find_room(const struct moat_dt *dt, uint64_t size, uint64_t align,
		      uint64_t below, uint64_t *address)
{
	for (size_t i = dt->nram; i-- > 0;) {
		const struct moat_dt_range *ram = &dt->ram[i];
		/* Offsets from the start: the end itself may be 2^64. */
		uint64_t end = ram->size;

		if (below && below <= ram->start)
			continue;
		if (below && below - ram->start < end)
			end = below - ram->start;
		while (end >= size) {
			struct moat_dt_range r = {
				(ram->start + (end - size)) & ~(align - 1),
				size,
			};
			const struct moat_dt_region *other;

			if (r.start < ram->start)
				break;
			other = lowest_in_the_way(dt, &r);
			if (!other) {
				*address = r.start;
				return 0;
			}
			if (other->range.start <= ram->start)
				break;
			end = other->range.start - ram->start;
		}
	}
	return -ENOSPC;
}
