/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tree that is being changed. libfdt moves everything behind a change, so
 * the tables are made anew after each step that changes offsets they hold.
 */
#ifndef MOAT_DT_EDIT_H
#define MOAT_DT_EDIT_H

#include "dt/internal.h"

struct dt_edit {
	void *buf; /* room included */
	size_t room;
	struct moat_dt *dt; /* of @buf; NULL before dt_edit_again() */
	struct moat_dt_why *why;
};

/** dt_edit_begin() - copy a tree, with @room bytes to grow by */
int dt_edit_begin(struct dt_edit *e, const void *fdt, size_t size, size_t room,
		  struct moat_dt_why *why);

/** dt_edit_again() - make the tables anew */
int dt_edit_again(struct dt_edit *e);

/** dt_edit_end() - hand the tree out, packed, if @err is 0; frees the rest */
int dt_edit_end(struct dt_edit *e, int err, void **out, size_t *out_size);

/** dt_edit_err() - turn what libfdt returned into an errno and a reason */
int dt_edit_err(struct dt_edit *e, int fdt_err);

/** dt_edit_offset() - libfdt's offset of a node */
static inline int dt_edit_offset(const struct dt_edit *e, int node)
{
	return e->dt->nodes[node].offset;
}

/**
 * dt_make_pci() - make the node of a PCI device, and of bridges above it
 * @path: such as /pcie@10000000/virtio@2,0; the host bridge must be there
 *
 * Nothing happens if the node is there already.
 */
int dt_make_pci(struct dt_edit *e, const char *path);

/** dt_bare_pci() - does a PCI node say nothing but where its device is? */
bool dt_bare_pci(const struct moat_dt *dt, int node);

#endif
