/* SPDX-License-Identifier: Apache-2.0 */
#include "seed.h"

#include <libfdt.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void must(int err)
{
	if (err >= 0)
		return;
	fprintf(stderr, "seed: %s\n", fdt_strerror(err));
	abort();
}

static int node(void *fdt, int parent, const char *name)
{
	int offset = fdt_add_subnode(fdt, parent, name);

	must(offset);
	return offset;
}

static void reg(void *fdt, int at, unsigned int cells, uint32_t address,
		uint32_t size)
{
	for (unsigned int i = 1; i < cells; i++)
		must(fdt_appendprop_u32(fdt, at, "reg", 0));
	must(fdt_appendprop_u32(fdt, at, "reg", address));
	for (unsigned int i = 1; i < cells; i++)
		must(fdt_appendprop_u32(fdt, at, "reg", 0));
	must(fdt_appendprop_u32(fdt, at, "reg", size));
}

static void cells_of(void *fdt, int at, unsigned int ac, unsigned int sc)
{
	must(fdt_setprop_u32(fdt, at, "#address-cells", ac));
	must(fdt_setprop_u32(fdt, at, "#size-cells", sc));
}

static void pool(void *fdt, int at, unsigned int cells, uint32_t address,
		 uint32_t phandle)
{
	char name[32];
	int n;

	snprintf(name, sizeof(name), "restricted-dma@%x", address);
	n = node(fdt, at, name);
	must(fdt_setprop_string(fdt, n, "compatible", "restricted-dma-pool"));
	must(fdt_setprop_u32(fdt, n, "phandle", phandle));
	reg(fdt, n, cells, address, 0x1000000);
}

static void add_reserved(void *fdt, unsigned int cells)
{
	int top = node(fdt, 0, "reserved-memory"), n;

	cells_of(fdt, top, cells, cells);
	must(fdt_setprop(fdt, top, "ranges", NULL, 0));
	n = node(fdt, top, "firmware@40000000");
	must(fdt_setprop(fdt, n, "no-map", NULL, 0));
	reg(fdt, n, cells, 0x40000000, 0x100000);
	reg(fdt, n, cells, 0x40200000, 0x100000);
	must(fdt_setprop_u32(fdt, n, "phandle", 3));
	pool(fdt, top, cells, 0x6e000000, 2);
	pool(fdt, top, cells, 0x6f000000, 1);
}

static void add_mmio(void *fdt)
{
	int top = node(fdt, 0, "soc"), n;

	cells_of(fdt, top, 2, 2);
	n = node(fdt, top, "virtio@a000000");
	must(fdt_setprop_string(fdt, n, "compatible", "virtio,mmio"));
	must(fdt_setprop_string(fdt, n, "status", "okay"));
	reg(fdt, n, 2, 0xa000000, 0x200);
	n = node(fdt, top, "virtio@a000200");
	must(fdt_setprop_string(fdt, n, "compatible", "virtio,mmio"));
	reg(fdt, n, 2, 0xa000200, 0x200);
	must(fdt_appendprop_u32(fdt, n, "memory-region", 3));
	must(fdt_appendprop_u32(fdt, n, "memory-region", 1));
	must(fdt_setprop(fdt, n, "memory-region-names", "fw\0dma", 7));
}

static int pci_node(void *fdt, int at, const char *name, uint32_t devfn)
{
	static const uint32_t zero[4];
	int n = node(fdt, at, name);

	must(fdt_setprop_u32(fdt, n, "reg", devfn << 8));
	must(fdt_appendprop(fdt, n, "reg", zero, sizeof(zero)));
	return n;
}

static void add_pci(void *fdt)
{
	int host = node(fdt, 0, "pcie@10000000"), n;

	must(fdt_setprop_string(fdt, host, "device_type", "pci"));
	cells_of(fdt, host, 3, 2);
	n = pci_node(fdt, host, "port@1,0", 8);
	must(fdt_setprop_string(fdt, n, "device_type", "pci"));
	cells_of(fdt, n, 3, 2);
	pci_node(fdt, n, "net@0,0", 0);
	n = pci_node(fdt, host, "blk@2,0", 16);
	must(fdt_setprop_u32(fdt, n, "memory-region", 2));
}

size_t seed_tree(void *buf, unsigned int cells)
{
	int n;

	memset(buf, 0, SEED_MAX);
	must(fdt_create_empty_tree(buf, SEED_MAX));
	must(fdt_add_mem_rsv(buf, 0x48000000, 0x10000));
	cells_of(buf, 0, cells, cells);
	n = node(buf, 0, "memory@40000000");
	must(fdt_setprop_string(buf, n, "device_type", "memory"));
	reg(buf, n, cells, 0x40000000, 0x10000000);
	n = node(buf, 0, "memory@60000000");
	must(fdt_setprop_string(buf, n, "device_type", "memory"));
	reg(buf, n, cells, 0x60000000, 0x8000000);
	reg(buf, n, cells, 0x68000000, 0x8000000);
	n = node(buf, 0, "chosen");
	must(fdt_setprop_u32(buf, n, "linux,initrd-start", 0x44000000));
	must(fdt_setprop_u32(buf, n, "linux,initrd-end", 0x44100000));
	add_reserved(buf, cells);
	add_mmio(buf);
	add_pci(buf);
	must(fdt_pack(buf));
	n = (int)(fdt_totalsize(buf) + 7) & ~7;
	fdt_set_totalsize(buf, (uint32_t)n);
	return (size_t)n;
}
