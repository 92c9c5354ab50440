/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What keeps a pool from protecting anything. Linux only warns in its log when
 * it cannot set a pool up, and then the device uses all of memory: whatever
 * Linux would reject has to be seen here.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dt/internal.h"

/* Linux before 6.12 keeps no more regions; the rest is silently lost. */
#define LINUX_REGIONS 64

/* Linux's swiotlb: a slot, and the largest mapping (128 slots). */
#define SLOT UINT64_C(2048)
#define LARGEST_MAPPING (128 * SLOT)

struct check {
	const struct moat_dt *dt;
	const struct moat_dt_load *load;
	struct moat_dt_findings *out;
	size_t room;
	bool no_memory;
};

static uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

uint64_t moat_dt_need(const struct moat_dt_load *load)
{
	uint64_t queues = load->queues ? load->queues : 1;
	uint64_t n = load->queue_size ? load->queue_size : 256;
	/* A split ring in pages: descriptors and avail, then used. */
	uint64_t rings =
		round_up(round_up(16 * n + 6 + 2 * n, MOAT_DT_PAGE) + 6 + 8 * n,
			 MOAT_DT_PAGE);

	return queues * (rings + n * SLOT + LARGEST_MAPPING);
}

static char *print(const char *fmt, va_list ap)
{
	char *s;

	return vasprintf(&s, fmt, ap) < 0 ? NULL : s;
}

/* A finding about @node, -1 for one without; the cure comes next. */
__attribute__((format(printf, 4, 5))) static void
find(struct check *c, const char *code, int node, const char *fmt, ...)
{
	struct moat_dt_findings *out = c->out;
	char path[MOAT_DT_PATH];
	va_list ap;

	if (out->n == c->room) {
		size_t room = c->room ? 2 * c->room : 16;
		void *v = reallocarray(out->v, room, sizeof(*out->v));

		if (!v) {
			c->no_memory = true;
			return;
		}
		out->v = v;
		c->room = room;
	}
	va_start(ap, fmt);
	out->v[out->n++] = (struct moat_dt_finding){
		.code = code,
		.path = strdup(node < 0 ? "/"
					: moat_dt_path(c->dt, node, path)),
		.text = print(fmt, ap),
	};
	va_end(ap);
}

__attribute__((format(printf, 2, 3))) static void cure(struct check *c,
						       const char *fmt, ...)
{
	struct moat_dt_finding *f =
		c->out->n ? &c->out->v[c->out->n - 1] : NULL;
	va_list ap;

	if (c->no_memory || !f)
		return;
	va_start(ap, fmt);
	f->cure = print(fmt, ap);
	va_end(ap);
	if (!f->cure || !f->path || !f->text)
		c->no_memory = true;
}

static bool enough(const struct check *c)
{
	return c->no_memory || c->out->n >= MOAT_DT_FINDINGS_MAX;
}

static void check_cells(struct check *c)
{
	const struct moat_dt *dt = c->dt;

	if (!dt->addr_cells) {
		find(c, "wrong-cells", 0,
		     "#address-cells and #size-cells of the root must each be "
		     "1 or 2, or no address can be read");
		cure(c, "set them to <2>, and write each reg accordingly");
	}
	if (dt->reserved_ignored && dt->nodes[dt->reserved].disabled) {
		find(c, "disabled", dt->reserved, "is disabled: no pool works");
		cure(c, "remove its property status");
	} else if (dt->reserved_ignored &&
		   !dt_has(dt, dt->reserved, "ranges")) {
		find(c, "no-ranges", dt->reserved,
		     "has no property ranges: Linux ignores all of it");
		cure(c, "add an empty property ranges");
	} else if (dt->reserved_ignored) {
		find(c, "wrong-cells", dt->reserved,
		     "its #address-cells and #size-cells must be the root's, "
		     "%u and %u: Linux ignores all of it",
		     dt->addr_cells, dt->size_cells);
		cure(c, "set them so, and write the reg of each child "
			"accordingly");
	}
	for (size_t i = 0; i < dt->nnodes && !enough(c); i++) {
		if (!dt->nodes[i].bad_reg)
			continue;
		find(c, "wrong-cells", (int)i,
		     "its reg must be addresses of %u and sizes of %u cells, "
		     "of at least one byte and below 2^64",
		     dt->addr_cells, dt->size_cells);
		cure(c, "write its reg as <address size> with that many "
			"cells");
	}
}

static void check_phandles(struct check *c)
{
	const struct moat_dt *dt = c->dt;

	for (size_t i = 1; i < dt->nphandles && !enough(c); i++) {
		char path[MOAT_DT_PATH];
		int a = dt->by_phandle[i - 1], b = dt->by_phandle[i];

		if (dt->nodes[a].phandle != dt->nodes[b].phandle)
			continue;
		find(c, "duplicate-phandle", b,
		     "has phandle 0x%" PRIx32 ", and so has %s: which one is "
		     "meant is chance",
		     dt->nodes[b].phandle, moat_dt_path(dt, a, path));
		cure(c, "give one of them another phandle, or compile the "
			"source again with labels");
	}
}

/* One entry of a memory-region; true if it is an enabled pool. */
static bool check_ref(struct check *c, int node, uint32_t phandle)
{
	const struct moat_dt *dt = c->dt;
	int target = dt_by_phandle(dt, phandle);
	int region = dt_region_at(dt, target);
	char path[MOAT_DT_PATH];

	if (target < 0) {
		find(c, "dangling-phandle", node,
		     "its memory-region names phandle 0x%" PRIx32
		     ", which no node has",
		     phandle);
		cure(c, "remove the property memory-region, and add a pool "
			"with `moat dt add-pool`");
		return false;
	}
	if (region < 0) {
		find(c, "no-region", node,
		     "its memory-region names %s, which is no child of "
		     "/reserved-memory",
		     moat_dt_path(dt, target, path));
		cure(c, "name a child of /reserved-memory");
		return false;
	}
	if (!dt->regions[region].pool)
		return false;
	if (dt->nodes[target].disabled) {
		find(c, "disabled", node, "its pool %s is disabled",
		     moat_dt_path(dt, target, path));
		cure(c, "remove the property status of the pool");
		return false;
	}
	return true;
}

static void check_refs(struct check *c)
{
	const struct moat_dt *dt = c->dt;

	for (size_t i = 0; i < dt->nnodes && !enough(c); i++) {
		uint32_t refs[MOAT_DT_REFS_MAX];
		size_t n, len, pools = 0;

		if (!dt_prop(dt, (int)i, "memory-region", &len))
			continue;
		if (!len || len % 4 || len / 4 > MOAT_DT_REFS_MAX) {
			find(c, "wrong-cells", (int)i,
			     "its memory-region has %zu bytes; it must be 1 "
			     "to %u phandles of 4",
			     len, MOAT_DT_REFS_MAX);
			cure(c, "write it as <&pool>");
		}
		n = dt_refs(dt, (int)i, refs);
		for (size_t k = 0; k < n && !enough(c); k++)
			pools += check_ref(c, (int)i, refs[k]);
		if (pools > 1) {
			find(c, "several-pools", (int)i,
			     "names %zu pools; Linux takes the first", pools);
			cure(c, "leave one pool in its memory-region");
		}
	}
}

static void check_overlaps(struct check *c, size_t pool)
{
	const struct moat_dt *dt = c->dt;
	const struct moat_dt_region *p = &dt->regions[pool];

	for (size_t i = 0; i < dt->nregions && !enough(c); i++) {
		const struct moat_dt_region *other = &dt->regions[i];
		char path[MOAT_DT_PATH];

		/* Two pools: told once. */
		if (i == pool || (other->pool && i < pool) ||
		    !dt_overlap(&p->range, &other->range))
			continue;
		find(c, "overlap", p->node,
		     "its 0x%" PRIx64 "+0x%" PRIx64 " shares memory with %s, "
		     "0x%" PRIx64 "+0x%" PRIx64,
		     p->range.start, p->range.size,
		     other->node < 0 ? other->what
				     : moat_dt_path(dt, other->node, path),
		     other->range.start, other->range.size);
		cure(c, "move one of them: `moat dt remove-pool`, then "
			"`moat dt add-pool` without --address finds room");
	}
}

static void check_place(struct check *c, const struct moat_dt_region *p)
{
	const struct moat_dt *dt = c->dt;
	const struct moat_dt_range *r = &p->range;

	if (!dt_has(dt, p->node, "reg")) {
		find(c, "no-address", p->node,
		     "has no reg: the guest chooses its place at boot, where "
		     "the host does not know it");
		cure(c, "give it a reg with a fixed address");
		return;
	}
	if (!r->size)
		return; /* told by check_cells() */
	if (r->start % MOAT_DT_PAGE || r->size % MOAT_DT_PAGE) {
		find(c, "unaligned", p->node,
		     "0x%" PRIx64 "+0x%" PRIx64 " is not whole pages of %u "
		     "bytes: what shares a page with it is given away",
		     r->start, r->size, MOAT_DT_PAGE);
		cure(c, "round address and size to pages");
	}
	if (dt->addr_cells && !dt_inside(dt, r)) {
		find(c, "outside-ram", p->node,
		     "0x%" PRIx64 "+0x%" PRIx64 " does not lie inside the RAM "
		     "that the memory nodes tell of",
		     r->start, r->size);
		cure(c, "move it into RAM, or give the guest more memory "
			"(-m) and dump the tree again");
	}
}

static void check_users(struct check *c, const struct moat_dt_region *p)
{
	uint64_t need = moat_dt_need(c->load);
	unsigned int users = p->users ? p->users : 1;

	if (!p->users) {
		find(c, "unused-pool", p->node,
		     "no enabled device uses it: its memory is lost");
		cure(c, "name it in the memory-region of a device, or remove "
			"it with `moat dt remove-pool`");
	}
	if (p->users > 1) {
		find(c, "shared-pool", p->node,
		     "%u devices share it: each backend reads and writes what "
		     "the others' devices transfer",
		     p->users);
		cure(c, "give each device a pool of its own with "
			"`moat dt add-pool`");
	}
	if (p->range.size && p->range.size / users < need) {
		find(c, "too-small", p->node,
		     "its %" PRIu64 " KiB are too small for the queues of %u "
		     "device%s, which need %" PRIu64 " KiB each",
		     p->range.size / 1024, users, users > 1 ? "s" : "",
		     need / 1024);
		cure(c,
		     "make it %" PRIu64 " KiB or larger, or give the "
		     "device fewer or smaller queues (--queues, "
		     "--queue-size)",
		     round_up(users * need, MOAT_DT_PAGE) / 1024);
	}
}

static void check_pools(struct check *c)
{
	const struct moat_dt *dt = c->dt;
	unsigned int regions = 0;

	for (size_t i = 0; i < dt->nregions && !enough(c); i++) {
		const struct moat_dt_region *r = &dt->regions[i];
		const char *refused;

		regions += r->node >= 0 && r->first;
		if (!r->pool || dt->nodes[r->node].disabled)
			continue;
		refused = dt_refused_by(dt, r->node);
		if (refused) {
			find(c, "refused-property", r->node,
			     "Linux refuses a pool with the property %s",
			     refused);
			cure(c, "remove the property");
		}
		if (i + 1 < dt->nregions &&
		    dt->regions[i + 1].node == r->node) {
			find(c, "several-ranges", r->node,
			     "its reg has several ranges; Linux uses the "
			     "first only");
			cure(c, "make a pool of each range");
		}
		check_place(c, r);
		check_overlaps(c, i);
		check_users(c, r);
	}
	if (regions > LINUX_REGIONS) {
		find(c, "too-many-regions", dt->reserved,
		     "has %u children; Linux before 6.12 knows no more than "
		     "%u",
		     regions, LINUX_REGIONS);
		cure(c, "remove some, or share pools (add-pool --shared)");
	}
}

static void check_device(struct check *c, const struct moat_dt_device *d,
			 bool wanted)
{
	const struct moat_dt *dt = c->dt;
	bool own = d->pool >= 0 && !d->inherited;
	char path[MOAT_DT_PATH];

	moat_dt_path(dt, d->node, path);
	if (d->kind == MOAT_DT_PCI_BRIDGE && own) {
		find(c, "pool-on-bridge", d->node,
		     "its pool is for the bridge itself; devices behind it "
		     "do not inherit it");
		cure(c, "move the memory-region to the devices' nodes or to "
			"the host bridge's");
	}
	if (d->devfn < 0 && own && d->kind == MOAT_DT_PCI_DEVICE) {
		find(c, "wrong-cells", d->node,
		     "its reg must have 5 cells for Linux to find the PCI "
		     "device that the node is for");
		cure(c, "write it as reg = <(slot << 11 | function << 8) "
			"0 0 0 0>");
	}
	if (d->pool >= 0 && d->behind_iommu) {
		find(c, "behind-iommu", d->node,
		     "is behind an IOMMU: Linux then leaves its pool unused");
		cure(c, "start the guest without an IOMMU, or without a pool "
			"for this device");
	}
	if (d->pool < 0 && wanted && d->kind != MOAT_DT_PCI_BRIDGE) {
		find(c, "no-pool", d->node,
		     "has no pool: its backend needs all of the guest's "
		     "memory, or a guard that copies");
		cure(c,
		     "`moat dt add-pool --device=%s`; if nothing is "
		     "plugged in there, name the devices to look at with "
		     "--device",
		     path);
	}
}

/* Was this device asked for? Also says which of those asked for are there. */
static int find_wanted(const struct moat_dt *dt, const char *const *devices,
		       size_t n, bool *wanted, struct moat_dt_why *why)
{
	for (size_t i = 0; i < n; i++) {
		int node = dt_find(dt, devices[i]);
		const struct moat_dt_device *d;

		d = node < 0 ? NULL : dt_device_at(dt, node);
		if (!d)
			return dt_fail(why, -ENOENT,
				       "%s is no enabled virtio-mmio or PCI "
				       "node: `moat dt show` lists them",
				       devices[i]);
		wanted[d - dt->devices] = true;
	}
	return 0;
}

int moat_dt_check(const struct moat_dt *dt, const struct moat_dt_load *load,
		  const char *const *devices, size_t ndevices,
		  struct moat_dt_findings *out, struct moat_dt_why *why)
{
	struct check c = { .dt = dt, .load = load, .out = out };
	bool *wanted;
	int err;

	memset(out, 0, sizeof(*out));
	wanted = calloc(dt->ndevices + 1, sizeof(*wanted));
	if (!wanted)
		return dt_fail(why, -ENOMEM, "no memory");
	err = find_wanted(dt, devices, ndevices, wanted, why);
	if (!err) {
		check_cells(&c);
		check_phandles(&c);
		check_refs(&c);
		check_pools(&c);
		for (size_t i = 0; i < dt->ndevices && !enough(&c); i++)
			check_device(&c, &dt->devices[i],
				     !ndevices || wanted[i]);
	}
	free(wanted);
	if (c.no_memory)
		return dt_fail(why, -ENOMEM, "no memory");
	return err;
}

void moat_dt_findings_free(struct moat_dt_findings *f)
{
	for (size_t i = 0; i < f->n; i++) {
		free(f->v[i].path);
		free(f->v[i].text);
		free(f->v[i].cure);
	}
	free(f->v);
	memset(f, 0, sizeof(*f));
}
