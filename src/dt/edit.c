/* SPDX-License-Identifier: Apache-2.0 */
#include "dt/edit.h"

#include <errno.h>
#include <libfdt.h>
#include <stdlib.h>
#include <string.h>

int dt_edit_err(struct dt_edit *e, int fdt_err)
{
	if (fdt_err >= 0)
		return 0;
	if (fdt_err == -FDT_ERR_NOSPACE)
		return dt_fail(e->why, -ENOSPC,
			       "the device tree grew beyond its buffer");
	return dt_fail(e->why, -EINVAL, "cannot change the device tree: %s",
		       fdt_strerror(fdt_err));
}

int dt_edit_begin(struct dt_edit *e, const void *fdt, size_t size, size_t room,
		  struct moat_dt_why *why)
{
	struct moat_dt *dt;
	int err = moat_dt_open(fdt, size, &dt, why);

	*e = (struct dt_edit){ .why = why };
	if (err)
		return err;
	moat_dt_close(dt);
	/* The blocks may overlap in a hostile file, so that they add up. */
	e->room = 2 * fdt_totalsize(fdt) + 64 + room;
	e->buf = calloc(1, e->room);
	if (!e->buf)
		return dt_fail(why, -ENOMEM, "no memory");
	err = dt_edit_err(e, fdt_open_into(fdt, e->buf, (int)e->room));
	/* As small as can be, plus what may be added. */
	if (!err)
		err = dt_edit_err(e, fdt_pack(e->buf));
	if (!err && fdt_totalsize(e->buf) + room > e->room)
		err = dt_fail(why, -E2BIG, "the device tree is too big");
	if (!err) {
		fdt_set_totalsize(e->buf,
				  fdt_totalsize(e->buf) + (uint32_t)room);
		e->room = fdt_totalsize(e->buf);
		err = dt_edit_again(e);
	}
	return err;
}

int dt_edit_again(struct dt_edit *e)
{
	moat_dt_close(e->dt);
	e->dt = NULL;
	return moat_dt_open(e->buf, e->room, &e->dt, e->why);
}

int dt_edit_end(struct dt_edit *e, int err, void **out, size_t *out_size)
{
	moat_dt_close(e->dt);
	e->dt = NULL;
	if (!err)
		err = dt_edit_err(e, fdt_pack(e->buf));
	if (err) {
		free(e->buf);
		return err;
	}
	*out = e->buf;
	*out_size = fdt_totalsize(e->buf);
	return 0;
}
