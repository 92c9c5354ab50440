/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The nodes that do DMA, and the pool of each as Linux will see it: see
 * of_dma_configure_id() and of_dma_set_restricted_buffer() in
 * drivers/of/device.c, and pci_dma_configure(), of Linux 6.12.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dt/internal.h"

const char *moat_dt_kind_name(enum moat_dt_kind kind)
{
	static const char *const names[] = {
		[MOAT_DT_VIRTIO_MMIO] = "virtio-mmio",
		[MOAT_DT_PCI_HOST] = "pci-host",
		[MOAT_DT_PCI_BRIDGE] = "pci-bridge",
		[MOAT_DT_PCI_DEVICE] = "pci-device",
	};

	return names[kind];
}

static bool is_pci_bus(const struct moat_dt *dt, int node)
{
	size_t len;
	const char *type = dt_prop(dt, node, "device_type", &len);

	return type &&
	       ((len == sizeof("pci") && !memcmp(type, "pci", len)) ||
		(len == sizeof("pciex") && !memcmp(type, "pciex", len)));
}

/* The slot and function of a PCI node, out of phys.hi of its reg. */
static int devfn_of(const struct moat_dt *dt, int node)
{
	size_t len;
	const void *reg = dt_prop(dt, node, "reg", &len);

	/* Linux: of_pci_get_devfn() wants five cells. */
	if (!reg || len / 4 < 5)
		return -1;
	return (int)(dt_cells(reg, 1) >> 8 & 0xff);
}

/* The address of a virtio-mmio device on its bus; only its order matters. */
static uint64_t mmio_address(const struct moat_dt *dt, int node)
{
	uint32_t ac;
	size_t len;
	const void *reg = dt_prop(dt, node, "reg", &len);

	if (!dt_u32(dt, dt->nodes[node].parent, "#address-cells", &ac))
		ac = 2;
	if (!reg || ac < 1 || ac > 2 || len / 4 < ac)
		return 0;
	return dt_cells(reg, ac);
}

/*
 * Is a node a device that does DMA? Sets the host of PCI nodes, which those
 * below need; so nodes have to come in the order of the file.
 */
static bool classify(struct moat_dt *dt, int node, struct moat_dt_device *d)
{
	struct moat_dt_node *n = &dt->nodes[node];
	const struct moat_dt_node *parent;

	*d = (struct moat_dt_device){ .node = node, .devfn = -1, .pool = -1 };
	if (n->parent < 0)
		return false;
	parent = &dt->nodes[n->parent];
	if (parent->host >= 0 && is_pci_bus(dt, n->parent)) {
		n->host = parent->host;
		d->kind = is_pci_bus(dt, node) ? MOAT_DT_PCI_BRIDGE
					       : MOAT_DT_PCI_DEVICE;
		d->devfn = devfn_of(dt, node);
		/* Interrupt controllers of a bridge are children too. */
		return !n->disabled &&
		       (d->devfn >= 0 || dt_has(dt, node, "memory-region"));
	}
	if (is_pci_bus(dt, node)) {
		n->host = node;
		d->kind = MOAT_DT_PCI_HOST;
		d->behind_iommu = dt_has(dt, node, "iommu-map");
		return !n->disabled;
	}
	if (!dt_is_compatible(dt, node, "virtio,mmio"))
		return false;
	d->kind = MOAT_DT_VIRTIO_MMIO;
	d->address = mmio_address(dt, node);
	d->behind_iommu = dt_has(dt, node, "iommus");
	return !n->disabled;
}

/* The first enabled pool that a node names. */
static int first_pool(const struct moat_dt *dt, int node)
{
	uint32_t refs[MOAT_DT_REFS_MAX];
	size_t n = dt_refs(dt, node, refs);

	for (size_t i = 0; i < n; i++) {
		int target = dt_by_phandle(dt, refs[i]);
		int region = dt_region_at(dt, target);

		if (region >= 0 && dt->regions[region].pool &&
		    !dt->nodes[target].disabled)
			return region;
	}
	return -1;
}

static void use(struct moat_dt *dt, int pool)
{
	if (pool >= 0)
		dt->regions[pool].users++;
}

static void set_pool(struct moat_dt *dt, struct moat_dt_device *d)
{
	const struct moat_dt_device *host = NULL;

	d->pool = first_pool(dt, d->node);
	use(dt, d->pool);
	if (d->kind != MOAT_DT_PCI_DEVICE && d->kind != MOAT_DT_PCI_BRIDGE)
		return;
	/* Hosts come first in the file, so they are done. */
	host = dt_device_at(dt, dt->nodes[d->node].host);
	if (!host)
		return;
	d->behind_iommu = host->behind_iommu;
	if (!dt_has(dt, d->node, "memory-region")) {
		d->pool = host->pool;
		d->inherited = d->pool >= 0;
	}
}

int dt_load_devices(struct moat_dt *dt, struct moat_dt_why *why)
{
	size_t room = 0;

	for (size_t i = 0; i < dt->nnodes; i++) {
		struct moat_dt_device d, *v;

		if (!classify(dt, (int)i, &d)) {
			/* Any other device may use a pool too. */
			if (!dt->nodes[i].disabled)
				use(dt, first_pool(dt, (int)i));
			continue;
		}
		if (dt->ndevices == MOAT_DT_DEVICES_MAX)
			return dt_fail(why, -E2BIG,
				       "there are more than %u devices",
				       MOAT_DT_DEVICES_MAX);
		if (dt->ndevices == room) {
			room = room ? 2 * room : 64;
			v = reallocarray(dt->devices, room, sizeof(*v));
			if (!v)
				return dt_fail(why, -ENOMEM, "no memory");
			dt->devices = v;
		}
		set_pool(dt, &d);
		dt->devices[dt->ndevices++] = d;
	}
	return 0;
}

const struct moat_dt_device *dt_device_at(const struct moat_dt *dt, int node)
{
	size_t lo = 0, hi = dt->ndevices;

	/* Devices are in the order of their nodes. */
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (dt->devices[mid].node < node)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < dt->ndevices && dt->devices[lo].node == node
		       ? &dt->devices[lo]
		       : NULL;
}

const char *dt_refused_by(const struct moat_dt *dt, int node)
{
	/* Linux: rmem_swiotlb_setup(); shared-dma-pool.yaml agrees. */
	static const char *const refused[] = {
		"no-map",
		"reusable",
		"linux,cma-default",
		"linux,dma-default",
	};

	for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++)
		if (dt_has(dt, node, refused[i]))
			return refused[i];
	return NULL;
}

/* Will Linux take this region as a pool? */
static int usable(const struct moat_dt *dt, const struct moat_dt_region *r,
		  const char *path, struct moat_dt_why *why)
{
	const char *refused = dt_refused_by(dt, r->node);

	if (dt->reserved_ignored)
		return dt_fail(why, -EINVAL,
			       "the guest will ignore all of /reserved-memory: "
			       "see `moat dt check`");
	if (refused)
		return dt_fail(why, -EINVAL,
			       "the guest will refuse %s: remove its property "
			       "%s",
			       path, refused);
	if (!r->range.size)
		return dt_fail(why, -EINVAL,
			       "%s has no address that can be read: give it a "
			       "reg",
			       path);
	if (r->range.start % MOAT_DT_PAGE || r->range.size % MOAT_DT_PAGE)
		return dt_fail(why, -EINVAL,
			       "%s is not whole pages of %u bytes", path,
			       MOAT_DT_PAGE);
	if (!dt_inside(dt, &r->range))
		return dt_fail(why, -EINVAL,
			       "%s does not lie inside the guest's RAM", path);
	for (size_t i = 0; i < dt->nregions; i++)
		if (&dt->regions[i] != r &&
		    dt_overlap(&dt->regions[i].range, &r->range))
			return dt_fail(why, -EINVAL,
				       "%s overlaps other reserved memory: "
				       "see `moat dt check`",
				       path);
	return 0;
}

static int pool_of(const struct moat_dt *dt, const char *path,
		   struct moat_dt_pool *out, struct moat_dt_why *why)
{
	int node = dt_find(dt, path);
	const struct moat_dt_device *d;
	const struct moat_dt_region *r;

	if (node == -EEXIST)
		return dt_fail(why, -EINVAL, "two nodes have the path %s",
			       path);
	if (node < 0)
		return dt_fail(why, -ENOENT,
			       "no node %s: `moat dt show` lists them (a PCI "
			       "device without one has its host bridge's pool)",
			       path);
	d = dt_device_at(dt, node);
	if (!d)
		return dt_fail(why, -ENOENT,
			       "%s is no enabled virtio-mmio or PCI node",
			       path);
	if (d->pool < 0)
		return dt_fail(why, -ENOENT,
			       "%s has no pool: `moat dt add-pool "
			       "--device=%s` adds one",
			       path, path);
	if (d->behind_iommu)
		return dt_fail(why, -EINVAL,
			       "%s is behind an IOMMU: the guest will not use "
			       "its pool",
			       path);
	r = &dt->regions[d->pool];
	moat_dt_path(dt, r->node, out->path);
	out->address = r->range.start;
	out->size = r->range.size;
	out->users = r->users;
	return usable(dt, r, out->path, why);
}

int moat_dt_pool_of(const void *fdt, size_t size, const char *node,
		    struct moat_dt_pool *out, struct moat_dt_why *why)
{
	struct moat_dt *dt;
	int err = moat_dt_open(fdt, size, &dt, why);

	if (err)
		return err;
	err = pool_of(dt, node, out, why);
	moat_dt_close(dt);
	return err;
}
