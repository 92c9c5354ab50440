/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nodes for PCI devices. PCI is enumerable, so trees seldom have any; but a
 * device needs a node to have a pool of its own (IEEE 1275 PCI bus binding).
 */
#include <errno.h>
#include <libfdt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dt/edit.h"

/* "name@slot" or "name@slot,function", in hexadecimal: the devfn or -1. */
static int parse_unit(const char *name, size_t len)
{
	char buf[MOAT_DT_NAME_MAX + 1], unit[16];
	unsigned long slot, function = 0;
	char *at, *end;

	if (len >= sizeof(buf))
		return -1;
	memcpy(buf, name, len);
	buf[len] = 0;
	at = strchr(buf, '@');
	if (!at || at == buf)
		return -1;
	slot = strtoul(at + 1, &end, 16);
	if (*end == ',')
		function = strtoul(end + 1, &end, 16);
	if (*end || slot > 31 || function > 7)
		return -1;
	/* Only as it is written canonically: a path has one spelling. */
	snprintf(unit, sizeof(unit), strchr(at, ',') ? "%lx,%lx" : "%lx", slot,
		 function);
	return strcmp(unit, at + 1) ? -1 : (int)(slot << 3 | function);
}

static int set_cells(struct dt_edit *e, int offset, bool bridge, int devfn)
{
	fdt32_t reg[5] = { cpu_to_fdt32((uint32_t)devfn << 8) };
	int err = fdt_setprop(e->buf, offset, "reg", reg, sizeof(reg));

	if (!bridge || err)
		return dt_edit_err(e, err);
	err = fdt_setprop_string(e->buf, offset, "device_type", "pci");
	if (!err)
		err = fdt_setprop_u32(e->buf, offset, "#address-cells", 3);
	if (!err)
		err = fdt_setprop_u32(e->buf, offset, "#size-cells", 2);
	if (!err)
		err = fdt_setprop(e->buf, offset, "ranges", NULL, 0);
	return dt_edit_err(e, err);
}

/* The child at a slot and function, whatever its name. */
static const struct moat_dt_device *child_at(const struct moat_dt *dt,
					     int parent, int devfn)
{
	for (size_t i = 0; i < dt->ndevices; i++)
		if (dt->nodes[dt->devices[i].node].parent == parent &&
		    dt->devices[i].devfn == devfn)
			return &dt->devices[i];
	return NULL;
}

static int make(struct dt_edit *e, int parent, const char *path,
		const char *name, size_t len, bool bridge)
{
	const struct moat_dt_device *d = dt_device_at(e->dt, parent);
	const struct moat_dt_device *taken;
	int devfn = parse_unit(name, len), offset, err;
	uint32_t ac, sc;

	if (!d ||
	    (d->kind != MOAT_DT_PCI_HOST && d->kind != MOAT_DT_PCI_BRIDGE))
		return dt_fail(
			e->why, -ENOENT,
			"no node %s: `moat dt show` lists the devices; "
			"only nodes of PCI devices below an enabled host "
			"bridge are made when they are missing",
			path);
	if (devfn < 0)
		return dt_fail(e->why, -EINVAL,
			       "%s: a PCI device's node is called "
			       "name@slot,function, such as virtio@2,0, in "
			       "hexadecimal",
			       path);
	taken = child_at(e->dt, parent, devfn);
	if (taken) {
		char buf[MOAT_DT_PATH];

		return dt_fail(e->why, -EEXIST,
			       "%s: the device there has the node %.500s", path,
			       moat_dt_path(e->dt, taken->node, buf));
	}
	if (!dt_u32(e->dt, parent, "#address-cells", &ac) || ac != 3 ||
	    !dt_u32(e->dt, parent, "#size-cells", &sc) || sc != 2)
		return dt_fail(e->why, -EINVAL,
			       "%s: the bridge above it must have "
			       "#address-cells = <3> and #size-cells = <2>",
			       path);
	offset = fdt_add_subnode_namelen(e->buf, dt_edit_offset(e, parent),
					 name, (int)len);
	if (offset < 0)
		return dt_edit_err(e, offset);
	err = set_cells(e, offset, bridge, devfn);
	return err ? err : dt_edit_again(e);
}

int dt_make_pci(struct dt_edit *e, const char *path)
{
	const char *name = path + 1;
	int node = 0, child, err;

	if (path[0] != '/' || strlen(path) >= MOAT_DT_PATH)
		return dt_fail(e->why, -ENOENT,
			       "%.200s is no path of a node: it must begin "
			       "with a slash",
			       path);
	for (;;) {
		size_t len = strcspn(name, "/");

		child = dt_child(e->dt, node, name, len);
		if (child < 0) {
			err = make(e, node, path, name, len, name[len]);
			if (err)
				return err;
			child = dt_child(e->dt, node, name, len);
		}
		if (child < 0)
			return dt_fail(e->why, -EINVAL, "%s: not made", path);
		node = child;
		if (!name[len])
			return 0;
		name += len + 1;
	}
}

bool dt_bare_pci(const struct moat_dt *dt, int node)
{
	static const char *const known[] = {
		"reg", "device_type", "#address-cells", "#size-cells", "ranges",
	};
	const struct moat_dt_device *d = dt_device_at(dt, node);
	int offset = dt->nodes[node].offset, p;

	if (!d ||
	    (d->kind != MOAT_DT_PCI_DEVICE && d->kind != MOAT_DT_PCI_BRIDGE) ||
	    fdt_first_subnode(dt->fdt, offset) >= 0)
		return false;
	fdt_for_each_property_offset(p, dt->fdt, offset)
	{
		const char *name = NULL;
		size_t i;

		fdt_getprop_by_offset(dt->fdt, p, &name, NULL);
		for (i = 0; i < sizeof(known) / sizeof(*known); i++)
			if (name && !strcmp(name, known[i]))
				break;
		if (i == sizeof(known) / sizeof(*known))
			return false;
	}
	return true;
}
