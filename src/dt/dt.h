/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Restricted DMA pools in a flattened device tree.
 *
 *   /reserved-memory/restricted-dma@7c000000   the pool: an address, a size
 *        ^ phandle
 *   /virtio_mmio@a003e00  memory-region = <&pool>;     the device that uses it
 *
 * A tree is first opened: moat_dt_open() proves that the bytes are a device
 * tree, whoever wrote them, and builds the tables below, which are all that
 * the rest reads. A struct moat_dt refers to the caller's bytes, which must
 * stay and not change as long as it is in use. What changes a tree takes bytes
 * and returns other bytes; nothing is changed in place.
 *
 * Who uses which pool is decided as Linux 6.12 decides it
 * (of_dma_set_restricted_buffer() in drivers/of/device.c): a device takes the
 * first enabled restricted-dma-pool that its own node names; a PCI device
 * whose node has no memory-region, or that has no node, takes its host
 * bridge's. Bridges in between give nothing to the devices behind them.
 */
#ifndef MOAT_DT_DT_H
#define MOAT_DT_DT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/*
 * What a tree may have at most; a file beyond is refused. Linux takes 2 MiB on
 * arm64 and 64 reserved regions, and real trees are less than 10 levels deep.
 */
#define MOAT_DT_SIZE_MAX (4u << 20)
#define MOAT_DT_NODES_MAX 65536u
#define MOAT_DT_DEPTH_MAX 31u
#define MOAT_DT_NAME_MAX 127u
#define MOAT_DT_PATH (MOAT_DT_DEPTH_MAX * (MOAT_DT_NAME_MAX + 1u) + 2u)
#define MOAT_DT_RANGES_MAX 256u /* of RAM; and of reserved regions */
#define MOAT_DT_DEVICES_MAX 1024u
#define MOAT_DT_REFS_MAX 64u /* entries of one memory-region that count */

/* A pool's address and size are whole pages of this. */
#define MOAT_DT_PAGE 4096u

/** struct moat_dt_why - what went wrong and what to do, for the user */
struct moat_dt_why {
	char text[768];
};

struct moat_dt_range {
	uint64_t start, size; /* size is never 0, the end never wraps */
};

/** struct moat_dt_node - one node, in the order of the file */
struct moat_dt_node {
	int offset; /* libfdt's */
	int parent; /* index, -1 at the root */
	int host;   /* the PCI host bridge that it is or is behind, or -1 */
	uint32_t phandle; /* 0: none */
	unsigned int depth;
	bool disabled; /* by its own status or that of one above it */
	bool bad_reg;  /* a memory node or region whose reg cannot be read */
};

/**
 * struct moat_dt_region - memory that is not the kernel's to hand out
 * @node: index of the child of /reserved-memory, -1 for one without a node
 * @what: for one without a node: where it is told
 * @range: size 0 if the node has no usable address
 * @first: the first range of its node; Linux sees no other
 * @pool: a restricted-dma-pool
 * @users: number of device nodes that take it as their pool
 */
struct moat_dt_region {
	int node;
	const char *what;
	struct moat_dt_range range;
	bool first, pool;
	unsigned int users;
};

enum moat_dt_kind {
	MOAT_DT_VIRTIO_MMIO,
	MOAT_DT_PCI_HOST,
	MOAT_DT_PCI_BRIDGE,
	MOAT_DT_PCI_DEVICE,
};

/**
 * struct moat_dt_device - a node that does DMA
 * @address: of a virtio-mmio device's registers
 * @devfn: of a PCI device: slot << 3 | function, -1 if its reg is unusable
 * @pool: index of the region that it takes as pool, -1 for none
 * @inherited: the pool is the host bridge's
 * @behind_iommu: Linux then translates and ignores the pool
 */
struct moat_dt_device {
	int node;
	enum moat_dt_kind kind;
	uint64_t address;
	int devfn;
	int pool;
	bool inherited, behind_iommu;
};

/** struct moat_dt - a tree that was found to be well-formed */
struct moat_dt {
	const void *fdt;
	size_t size;
	struct moat_dt_node *nodes;
	size_t nnodes;
	int *by_phandle; /* indexes of nodes with a phandle, sorted by it */
	size_t nphandles;
	unsigned int addr_cells, size_cells; /* of the root; 0 if unusable */
	int reserved;	       /* index of /reserved-memory, or -1 */
	bool reserved_ignored; /* wrong cells or no ranges: Linux skips it */
	struct moat_dt_range ram[MOAT_DT_RANGES_MAX]; /* sorted and merged */
	size_t nram;
	struct moat_dt_region regions[MOAT_DT_RANGES_MAX];
	size_t nregions;
	struct moat_dt_device *devices;
	size_t ndevices;
};

/** struct moat_dt_pool - a pool as the outside needs it */
struct moat_dt_pool {
	uint64_t address;   /* guest-physical, of the first byte */
	uint64_t size;	    /* bytes */
	unsigned int users; /* device nodes that share it, at least 1 */
	char path[MOAT_DT_PATH];
};

/**
 * moat_dt_open() - check the bytes of a device tree and index them
 * @fdt: the bytes, 8-byte aligned; kept by reference
 * @size: how many; the tree may be shorter
 * @out: the tree, to be closed with moat_dt_close()
 * @why: says what is wrong
 *
 * Return: 0, -EINVAL for bytes that are no device tree, -E2BIG for one that
 * is beyond the limits above, or -ENOMEM.
 */
int moat_dt_open(const void *fdt, size_t size, struct moat_dt **out,
		 struct moat_dt_why *why);

/** moat_dt_close() - frees a tree, not its bytes; NULL is fine */
void moat_dt_close(struct moat_dt *dt);

/**
 * moat_dt_path() - the full path of a node
 * @buf: takes it; names of an opened tree are printable ASCII
 *
 * Return: @buf.
 */
const char *moat_dt_path(const struct moat_dt *dt, int node,
			 char buf[MOAT_DT_PATH]);

/** moat_dt_kind_name() - such as "virtio-mmio" */
const char *moat_dt_kind_name(enum moat_dt_kind kind);

/** moat_dt_end() - the first address behind a range; 0 is 2^64 */
static inline uint64_t moat_dt_end(const struct moat_dt_range *r)
{
	return r->start + r->size;
}

/**
 * moat_dt_pool_of() - the pool that a device may do DMA to
 * @fdt: the bytes of a device tree, 8-byte aligned; need not be trusted
 * @size: how many
 * @node: the full path of the device's node
 * @out: the pool
 * @why: what is wrong and what to do
 *
 * Only a pool that Linux will take is returned: one inside RAM, page-aligned,
 * with a node that Linux reads and without a property for which it refuses it.
 *
 * Return: 0, -ENOENT if there is no such node or it has no pool, -EINVAL if
 * the tree or the pool is not right, or -ENOMEM.
 */
int moat_dt_pool_of(const void *fdt, size_t size, const char *node,
		    struct moat_dt_pool *out, struct moat_dt_why *why);

/**
 * struct moat_dt_load - what devices put into their pools
 * @queues: of one device, 0 means 1
 * @queue_size: descriptors of one queue, 0 means 256
 */
struct moat_dt_load {
	uint64_t queues, queue_size;
};

/**
 * moat_dt_need() - the least size of a pool for one device
 *
 * For each queue its rings, a slot of 2 KiB for each descriptor and one of
 * the largest mappings that Linux's swiotlb makes, 256 KiB.
 */
uint64_t moat_dt_need(const struct moat_dt_load *load);

/**
 * struct moat_dt_finding - something that is wrong with a tree's pools
 * @code: a word for programs, such as "overlap"; docs/dt.md lists them
 * @path: the node
 * @text: what is wrong with it
 * @cure: what to do
 */
struct moat_dt_finding {
	const char *code;
	char *path, *text, *cure;
};

struct moat_dt_findings {
	struct moat_dt_finding *v;
	size_t n;
};

#define MOAT_DT_FINDINGS_MAX 1000u

/**
 * moat_dt_check() - everything that keeps a pool from protecting anything
 * @devices: paths of the devices that need a pool; NULL: all need one
 * @ndevices: how many
 * @out: the findings; no more are looked for after MOAT_DT_FINDINGS_MAX; to be
 *	freed with moat_dt_findings_free() whatever is returned
 *
 * Return: 0, whatever was found, -ENOENT if a path of @devices is not in the
 * tree, or -ENOMEM.
 */
int moat_dt_check(const struct moat_dt *dt, const struct moat_dt_load *load,
		  const char *const *devices, size_t ndevices,
		  struct moat_dt_findings *out, struct moat_dt_why *why);

void moat_dt_findings_free(struct moat_dt_findings *f);

/**
 * struct moat_dt_add - pools to be added
 * @size: of each, in bytes
 * @fixed: the (first) pool is to be at @address, else room is found
 * @align: of a pool for which room is found: a power of two, 0 means 2 MiB
 * @below: a pool for which room is found ends at or below it, 0 means 2^64
 * @shared: one pool for all devices, not one for each
 * @devices: paths; a PCI device's node is made if it is not there
 */
struct moat_dt_add {
	uint64_t size, address, align, below;
	bool fixed, shared;
	const char *const *devices;
	size_t ndevices;
	struct moat_dt_load load;
};

/**
 * moat_dt_add_pools() - the same tree with pools added
 * @out: the new tree, to be freed with free()
 * @out_size: its size in bytes
 *
 * The result is checked: with a finding about the new pools or about their
 * devices there is no result.
 *
 * Return: 0, or a negative errno with @why.
 */
int moat_dt_add_pools(const void *fdt, size_t size,
		      const struct moat_dt_add *add, void **out,
		      size_t *out_size, struct moat_dt_why *why);

/**
 * struct moat_dt_remove - pools to be removed
 * @all: every restricted-dma-pool
 * @pools: paths of pools
 * @devices: paths of devices: each leaves its pool; one without users goes
 */
struct moat_dt_remove {
	bool all;
	const char *const *pools;
	size_t npools;
	const char *const *devices;
	size_t ndevices;
};

/**
 * moat_dt_remove_pools() - the same tree with pools removed
 *
 * So are references to them, nodes of PCI devices that say nothing but where
 * the device is, and an empty /reserved-memory.
 *
 * Return: 0, or a negative errno with @why.
 */
int moat_dt_remove_pools(const void *fdt, size_t size,
			 const struct moat_dt_remove *rm, void **out,
			 size_t *out_size, struct moat_dt_why *why);

/**
 * moat_dt_find_room() - the highest free place for a pool
 * @size: in bytes
 * @align: a power of two
 * @below: the pool ends at or below it, 0 means 2^64
 * @address: the place
 *
 * Return: 0, or -ENOSPC.
 */
int moat_dt_find_room(const struct moat_dt *dt, uint64_t size, uint64_t align,
		      uint64_t below, uint64_t *address);

/**
 * struct moat_dt_qemu - how QEMU is to be started
 * @dtb: name of the tree's file
 * @type: of the devices: "blk", "fs", "net" ...
 * @sockets: folder of the backends' sockets
 */
struct moat_dt_qemu {
	const char *dtb, *type, *sockets;
};

/** struct moat_dt_args - words of a command line */
struct moat_dt_args {
	char **v;
	size_t n;
};

/**
 * moat_dt_qemu_args() - QEMU's options that make the machine of the tree
 * @args: the words; to be freed with moat_dt_args_free() whatever is returned
 *
 * Each pool becomes a memory backend of its own, at a NUMA node of its own.
 *
 * Return: 0, -EINVAL if QEMU's virt machine cannot be like this tree, or
 * -ENOMEM.
 */
int moat_dt_qemu_args(const struct moat_dt *dt, const struct moat_dt_qemu *how,
		      struct moat_dt_args *args, struct moat_dt_why *why);

void moat_dt_args_free(struct moat_dt_args *args);

/**
 * moat_dt_show_text() - RAM, pools, devices and who has no pool, for people
 *
 * Return: 0, or a negative errno of writing. So do the four below.
 */
int moat_dt_show_text(const struct moat_dt *dt, FILE *f);

/** moat_dt_show_json() - the same for programs; docs/dt.md has the schema */
int moat_dt_show_json(const struct moat_dt *dt, FILE *f);

int moat_dt_check_text(const struct moat_dt_findings *found, FILE *f);
int moat_dt_check_json(const struct moat_dt_findings *found, FILE *f);
int moat_dt_qemu_json(const struct moat_dt_args *args, FILE *f);

/**
 * moat_dt_read() - read a file that should hold a device tree
 * @out: its bytes, to be freed with free()
 */
int moat_dt_read(const char *path, void **out, size_t *size,
		 struct moat_dt_why *why);

/**
 * moat_dt_write() - write a file: whole, or not at all
 *
 * A file of that name is replaced, with its permissions kept.
 */
int moat_dt_write(const char *path, const void *data, size_t size,
		  struct moat_dt_why *why);

#endif
