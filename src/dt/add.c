/* SPDX-License-Identifier: Apache-2.0 */
/* Adding pools. */
#include <errno.h>
#include <inttypes.h>
#include <libfdt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dt/edit.h"

/* What a pool and its user's node may add to the file, names included. */
#define ROOM_PER_DEVICE 4096u
#define DEFAULT_ALIGN (2u << 20)

static bool is_power_of_two(uint64_t n)
{
	return n && !(n & (n - 1));
}

static int check_request(const struct moat_dt_add *a, struct moat_dt_why *why)
{
	if (!a->ndevices)
		return dt_fail(why, -EINVAL, "no device is named");
	if (a->ndevices > MOAT_DT_DEVICES_MAX)
		return dt_fail(why, -E2BIG, "more than %u devices",
			       MOAT_DT_DEVICES_MAX);
	if (!a->size || a->size % MOAT_DT_PAGE)
		return dt_fail(why, -EINVAL,
			       "the size 0x%" PRIx64 " is not whole pages of "
			       "%u bytes",
			       a->size, MOAT_DT_PAGE);
	if (a->fixed && a->address % MOAT_DT_PAGE)
		return dt_fail(why, -EINVAL,
			       "the address 0x%" PRIx64 " is not at a page of "
			       "%u bytes",
			       a->address, MOAT_DT_PAGE);
	if (a->align && (!is_power_of_two(a->align) || a->align < MOAT_DT_PAGE))
		return dt_fail(why, -EINVAL,
			       "the alignment 0x%" PRIx64 " is no power of two "
			       "of %u or more",
			       a->align, MOAT_DT_PAGE);
	if (a->size < moat_dt_need(&a->load))
		return dt_fail(why, -EINVAL,
			       "%" PRIu64 " KiB are too small for the queues, "
			       "which need %" PRIu64 " KiB (--size, --queues, "
			       "--queue-size)",
			       a->size / 1024, moat_dt_need(&a->load) / 1024);
	return 0;
}

static int make_reserved(struct dt_edit *e)
{
	int offset, err;

	if (!e->dt->addr_cells)
		return dt_fail(e->why, -EINVAL,
			       "the root's #address-cells and #size-cells are "
			       "not 1 or 2: see `moat dt check`");
	if (e->dt->reserved_ignored)
		return dt_fail(e->why, -EINVAL,
			       "the guest will ignore all of /reserved-memory: "
			       "see `moat dt check`");
	if (e->dt->reserved >= 0)
		return 0;
	offset = fdt_add_subnode(e->buf, 0, "reserved-memory");
	if (offset < 0)
		return dt_edit_err(e, offset);
	err = fdt_setprop_u32(e->buf, offset, "#address-cells",
			      e->dt->addr_cells);
	if (!err)
		err = fdt_setprop_u32(e->buf, offset, "#size-cells",
				      e->dt->size_cells);
	if (!err)
		err = fdt_setprop(e->buf, offset, "ranges", NULL, 0);
	return err ? dt_edit_err(e, err) : dt_edit_again(e);
}

static unsigned int put_cells(fdt32_t *to, uint64_t value, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		to[i] = cpu_to_fdt32((uint32_t)(value >> 32 * (n - 1 - i)));
	return n;
}

static bool fits_cells(uint64_t value, unsigned int n)
{
	return n > 1 || value <= UINT32_MAX;
}

static int next_phandle(const struct dt_edit *e, uint32_t *phandle)
{
	const struct moat_dt *dt = e->dt;

	*phandle = 1;
	if (dt->nphandles)
		*phandle =
			dt->nodes[dt->by_phandle[dt->nphandles - 1]].phandle +
			1;
	/* 0xffffffff is no phandle; with it taken up to there, look below. */
	for (uint32_t p = 1; *phandle == UINT32_MAX; p++)
		if (dt_by_phandle(dt, p) < 0)
			*phandle = p;
	return 0;
}

static int make_pool(struct dt_edit *e, uint64_t address, uint64_t size,
		     uint32_t *phandle)
{
	unsigned int ac = e->dt->addr_cells, sc = e->dt->size_cells, n;
	fdt32_t reg[4];
	char name[64];
	int offset, err;

	if (!fits_cells(address, ac) || !fits_cells(size, sc))
		return dt_fail(e->why, -EINVAL,
			       "0x%" PRIx64 "+0x%" PRIx64 " does not fit the "
			       "tree's cells of 32 bits (%u and %u)",
			       address, size, ac, sc);
	n = put_cells(reg, address, ac);
	n += put_cells(reg + n, size, sc);
	next_phandle(e, phandle);
	snprintf(name, sizeof(name), "restricted-dma@%" PRIx64, address);
	offset = fdt_add_subnode(e->buf, dt_edit_offset(e, e->dt->reserved),
				 name);
	if (offset == -FDT_ERR_EXISTS)
		return dt_fail(e->why, -EEXIST,
			       "/reserved-memory/%s is there already", name);
	if (offset < 0)
		return dt_edit_err(e, offset);
	err = fdt_setprop_string(e->buf, offset, "compatible",
				 DT_POOL_COMPATIBLE);
	if (!err)
		err = fdt_setprop(e->buf, offset, "reg", reg,
				  (int)(n * sizeof(*reg)));
	if (!err)
		err = fdt_setprop_u32(e->buf, offset, "phandle", *phandle);
	return err ? dt_edit_err(e, err) : dt_edit_again(e);
}

/* The device's node, made if need be; it must have no pool of its own. */
static int device_node(struct dt_edit *e, const char *path)
{
	int node = dt_find(e->dt, path), err;
	const struct moat_dt_device *d;

	if (node == -EEXIST)
		return dt_fail(e->why, -EINVAL, "two nodes have the path %s",
			       path);
	if (node < 0) {
		err = dt_make_pci(e, path);
		if (err)
			return err;
		node = dt_find(e->dt, path);
	}
	d = node < 0 ? NULL : dt_device_at(e->dt, node);
	if (!d)
		return dt_fail(e->why, -EINVAL,
			       "%s is no enabled virtio-mmio or PCI node: "
			       "`moat dt show` lists them",
			       path);
	if (d->kind == MOAT_DT_PCI_BRIDGE)
		return dt_fail(e->why, -EINVAL,
			       "%s is a bridge: devices behind it would not "
			       "inherit its pool; name the device or the host "
			       "bridge",
			       path);
	if (d->pool >= 0 && !d->inherited) {
		char buf[MOAT_DT_PATH];

		return dt_fail(e->why, -EEXIST,
			       "%s already has the pool %.300s: `moat dt "
			       "remove-pool` first",
			       path,
			       moat_dt_path(e->dt, e->dt->regions[d->pool].node,
					    buf));
	}
	return node;
}

static int assign(struct dt_edit *e, const char *path, uint32_t phandle)
{
	int node = device_node(e, path), err;

	if (node < 0)
		return node;
	err = fdt_appendprop_u32(e->buf, dt_edit_offset(e, node),
				 "memory-region", phandle);
	return err ? dt_edit_err(e, err) : dt_edit_again(e);
}

static int place(struct dt_edit *e, const struct moat_dt_add *a, size_t i,
		 uint64_t *address)
{
	if (a->fixed) {
		*address = a->address + i * a->size;
		if (*address + (a->size - 1) < a->address)
			return dt_fail(e->why, -EINVAL,
				       "the pools end beyond 2^64");
		return 0;
	}
	if (moat_dt_find_room(e->dt, a->size,
			      a->align ? a->align : DEFAULT_ALIGN, a->below,
			      address))
		return dt_fail(e->why, -ENOSPC,
			       "no room for a pool of %" PRIu64 " KiB: give "
			       "the guest more memory (-m) or ask for less "
			       "(--size, --align)",
			       a->size / 1024);
	return 0;
}

/* A pool that a check would complain about is none. */
static int verify(struct dt_edit *e, const struct moat_dt_add *a)
{
	struct moat_dt_findings f;
	int err = moat_dt_check(e->dt, &a->load, a->devices, a->ndevices, &f,
				e->why);

	for (size_t i = 0; !err && i < f.n; i++) {
		int node = dt_find(e->dt, f.v[i].path);
		int region = node < 0 ? -1 : dt_region_at(e->dt, node);
		bool ours = false;

		if (a->shared && !strcmp(f.v[i].code, "shared-pool"))
			continue;
		for (size_t k = 0; k < a->ndevices && !ours; k++) {
			int dev = dt_find(e->dt, a->devices[k]);
			const struct moat_dt_device *d;

			d = dev < 0 ? NULL : dt_device_at(e->dt, dev);
			ours = d && (dev == node ||
				     (region >= 0 && d->pool == region));
		}
		if (ours)
			err = dt_fail(e->why, -EINVAL, "%.200s: %s; %s",
				      f.v[i].path, f.v[i].text, f.v[i].cure);
	}
	moat_dt_findings_free(&f);
	return err;
}

int moat_dt_add_pools(const void *fdt, size_t size, const struct moat_dt_add *a,
		      void **out, size_t *out_size, struct moat_dt_why *why)
{
	struct dt_edit e;
	uint32_t phandle = 0;
	uint64_t address;
	int err = check_request(a, why);

	if (err)
		return err;
	err = dt_edit_begin(&e, fdt, size, (a->ndevices + 1) * ROOM_PER_DEVICE,
			    why);
	if (!err)
		err = make_reserved(&e);
	for (size_t i = 0; i < a->ndevices && !err; i++) {
		if (!i || !a->shared) {
			err = place(&e, a, i, &address);
			if (!err)
				err = make_pool(&e, address, a->size, &phandle);
		}
		if (!err)
			err = assign(&e, a->devices[i], phandle);
	}
	if (!err)
		err = verify(&e, a);
	return dt_edit_end(&e, err, out, out_size);
}
