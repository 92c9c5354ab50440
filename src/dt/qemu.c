/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's options for the machine of a tree.
 *
 * QEMU's virt machine fills its one range of RAM with the NUMA nodes' memory
 * backends, one behind the other. So each pool and each piece between pools
 * becomes a node with a backend, and thus an fd, of its own.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dt/internal.h"

#define QEMU_NODES 128 /* MAX_NODES of QEMU */

struct build {
	const struct moat_dt *dt;
	const struct moat_dt_qemu *how;
	struct moat_dt_args *args;
	struct moat_dt_why *why;
	unsigned int nodes, ram, pools, chardevs, ports;
	bool no_memory;
};

/* Adds one word. */
__attribute__((format(printf, 2, 3))) static void add(struct build *b,
						      const char *fmt, ...)
{
	struct moat_dt_args *a = b->args;
	char **v, *s;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&s, fmt, ap);
	va_end(ap);
	v = n < 0 ? NULL : reallocarray(a->v, a->n + 1, sizeof(*v));
	if (!v) {
		b->no_memory = true;
		if (n >= 0)
			free(s);
		return;
	}
	a->v = v;
	a->v[a->n++] = s;
}

static void add_size(struct build *b, uint64_t size)
{
	if (size % (1 << 20))
		add(b, "%" PRIu64 "K", size >> 10);
	else
		add(b, "%" PRIu64 "M", size >> 20);
}

static void add_bank(struct build *b, uint64_t size, bool pool)
{
	char id[32];

	snprintf(id, sizeof(id), "moat-%s%u", pool ? "pool" : "ram",
		 pool ? b->pools++ : b->ram++);
	add(b, "-object");
	add(b, "memory-backend-memfd,id=%s,size=%" PRIu64 ",share=on", id,
	    size);
	add(b, "-numa");
	add(b, "node,nodeid=%u,memdev=%s", b->nodes++, id);
}

/* Puts a region where it belongs in an array sorted by address. */
static void insert(const struct moat_dt_region **v, size_t n,
		   const struct moat_dt_region *r)
{
	for (; n && v[n - 1]->range.start > r->range.start; n--)
		v[n] = v[n - 1];
	v[n] = r;
}

/* The pools, sorted by address, each proven to be a bank of its own. */
static int sort_pools(struct build *b,
		      const struct moat_dt_region *pools[MOAT_DT_RANGES_MAX],
		      size_t *n)
{
	const struct moat_dt *dt = b->dt;

	*n = 0;
	for (size_t i = 0; i < dt->nregions; i++) {
		const struct moat_dt_region *r = &dt->regions[i];

		if (r->pool && !dt->nodes[r->node].disabled)
			insert(pools, (*n)++, r);
	}
	if (!*n)
		return dt_fail(b->why, -EINVAL,
			       "there is no pool: `moat dt add-pool` adds one");
	for (size_t i = 0; i < *n; i++) {
		const struct moat_dt_range *r = &pools[i]->range;

		if (dt->reserved_ignored || !r->size ||
		    r->start % MOAT_DT_PAGE || r->size % MOAT_DT_PAGE ||
		    !dt_inside(dt, r) ||
		    (i && dt_overlap(r, &pools[i - 1]->range)))
			return dt_fail(b->why, -EINVAL,
				       "a pool is not right: see `moat dt "
				       "check`");
	}
	return 0;
}

static int add_memory(struct build *b)
{
	const struct moat_dt_region *pools[MOAT_DT_RANGES_MAX];
	const struct moat_dt *dt = b->dt;
	size_t n;
	int err = sort_pools(b, pools, &n);
	uint64_t at, left;

	if (err)
		return err;
	if (dt->nram != 1)
		return dt_fail(b->why, -EINVAL,
			       "RAM is in %zu pieces; QEMU's virt machine has "
			       "it in one",
			       dt->nram);
	at = dt->ram[0].start;
	left = dt->ram[0].size;
	if (left % MOAT_DT_PAGE || at % MOAT_DT_PAGE)
		return dt_fail(b->why, -EINVAL, "RAM is not whole pages");
	add(b, "-m");
	add_size(b, left);
	for (size_t i = 0; i < n; i++) {
		const struct moat_dt_range *r = &pools[i]->range;

		if (r->start > at)
			add_bank(b, r->start - at, false);
		add_bank(b, r->size, true);
		left -= r->start - at + r->size;
		at = moat_dt_end(r);
	}
	if (left)
		add_bank(b, left, false);
	if (b->nodes > QEMU_NODES)
		return dt_fail(b->why, -EINVAL,
			       "%u banks of memory are more than QEMU's %u "
			       "NUMA nodes: put the pools side by side",
			       b->nodes, QEMU_NODES);
	return 0;
}

/* QEMU numbers its virtio-mmio buses by address. */
static unsigned int mmio_bus(const struct moat_dt *dt,
			     const struct moat_dt_device *d)
{
	unsigned int n = 0;

	for (size_t i = 0; i < dt->ndevices; i++)
		n += dt->devices[i].kind == MOAT_DT_VIRTIO_MMIO &&
		     dt->devices[i].address < d->address;
	return n;
}

/* A device is behind the bridge itself, or behind a root port of its own. */
static int add_pci_bus(struct build *b, const struct moat_dt_device *d,
		       char bus[64])
{
	const struct moat_dt *dt = b->dt;
	const struct moat_dt_device *up;
	int parent = dt->nodes[d->node].parent;
	char path[MOAT_DT_PATH];

	if (parent == dt->nodes[d->node].host) {
		snprintf(bus, 64, "bus=pcie.0,addr=%x.%x",
			 (unsigned int)d->devfn >> 3,
			 (unsigned int)d->devfn & 7);
		return 0;
	}
	up = dt_device_at(dt, parent);
	if (!up || up->devfn < 0 || d->devfn != 0 ||
	    dt->nodes[parent].parent != dt->nodes[d->node].host)
		return dt_fail(b->why, -EINVAL,
			       "%s: only devices of the host bridge, and the "
			       "first behind one of its root ports, can be "
			       "told to QEMU",
			       moat_dt_path(dt, d->node, path));
	add(b, "-device");
	add(b, "pcie-root-port,id=moat-port%u,bus=pcie.0,addr=%x.%x,chassis=%u",
	    b->ports, (unsigned int)up->devfn >> 3, (unsigned int)up->devfn & 7,
	    b->ports + 1);
	snprintf(bus, 64, "bus=moat-port%u,addr=0", b->ports++);
	return 0;
}

/* QEMU's name of the device, on virtio-mmio and on PCI. */
static void device_name(const char *type, bool pci, char name[64])
{
	if (!strcmp(type, "net")) /* its back end is a netdev */
		snprintf(name, 64, "virtio-net-%s", pci ? "pci" : "device");
	else if (!strcmp(type, "blk") && !pci)
		snprintf(name, 64, "vhost-user-blk");
	else
		snprintf(name, 64, "vhost-user-%s-%s", type,
			 pci ? "pci" : "device");
}

static int add_device(struct build *b, const struct moat_dt_device *d)
{
	bool pci = d->kind != MOAT_DT_VIRTIO_MMIO;
	const char *type = b->how->type;
	unsigned int i = b->chardevs++;
	char bus[64], name[64], backend[64], tag[32] = "";
	int err = 0;

	if (!pci)
		snprintf(bus, sizeof(bus), "bus=virtio-mmio-bus.%u",
			 mmio_bus(b->dt, d));
	else if (d->kind == MOAT_DT_PCI_HOST)
		snprintf(bus, sizeof(bus), "bus=pcie.0");
	else
		err = add_pci_bus(b, d, bus);
	if (err)
		return err;
	add(b, "-chardev");
	add(b, "socket,id=moat-chr%u,path=%s/moat%u.sock", i, b->how->sockets,
	    i);
	snprintf(backend, sizeof(backend), "chardev=moat-chr%u", i);
	if (!strcmp(type, "net")) {
		add(b, "-netdev");
		add(b, "vhost-user,id=moat-net%u,chardev=moat-chr%u", i, i);
		snprintf(backend, sizeof(backend), "netdev=moat-net%u", i);
	}
	device_name(type, pci, name);
	if (!strcmp(type, "fs"))
		snprintf(tag, sizeof(tag), ",tag=moat%u", i);
	add(b, "-device");
	/* A transitional device cannot have ACCESS_PLATFORM. */
	add(b, "%s,%s%s,iommu_platform=on%s,%s", name, backend, tag,
	    pci ? ",disable-legacy=on" : "", bus);
	return 0;
}

static int add_devices(struct build *b, bool hosts)
{
	int err = 0;

	for (size_t i = 0; i < b->dt->ndevices && !err; i++) {
		const struct moat_dt_device *d = &b->dt->devices[i];

		if (d->pool >= 0 && !d->inherited &&
		    d->kind != MOAT_DT_PCI_BRIDGE &&
		    hosts == (d->kind == MOAT_DT_PCI_HOST))
			err = add_device(b, d);
	}
	return err;
}

int moat_dt_qemu_args(const struct moat_dt *dt, const struct moat_dt_qemu *how,
		      struct moat_dt_args *args, struct moat_dt_why *why)
{
	struct build b = { .dt = dt, .how = how, .args = args, .why = why };
	bool mmio = false;
	int err;

	memset(args, 0, sizeof(*args));
	err = add_memory(&b);
	add(&b, "-dtb");
	add(&b, "%s", how->dtb);
	for (size_t i = 0; i < dt->ndevices && !err; i++)
		mmio |= dt->devices[i].kind == MOAT_DT_VIRTIO_MMIO &&
			dt->devices[i].pool >= 0;
	if (mmio) {
		add(&b, "-global");
		add(&b, "virtio-mmio.force-legacy=false");
	}
	err = err ? err : add_devices(&b, false);
	/* Last, for QEMU gives it a slot that is free by then. */
	err = err ? err : add_devices(&b, true);
	return err ? err : b.no_memory ? dt_fail(why, -ENOMEM, "no memory") : 0;
}

void moat_dt_args_free(struct moat_dt_args *args)
{
	for (size_t i = 0; i < args->n; i++)
		free(args->v[i]);
	free(args->v);
	memset(args, 0, sizeof(*args));
}
