/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>

#include "dt/internal.h"

static void put_range(FILE *f, const char *word, const struct moat_dt_range *r)
{
	if (!r->size) {
		fprintf(f, "%-9s%-37s", word, "no address");
		return;
	}
	fprintf(f, "%-9s0x%010" PRIx64 "-0x%010" PRIx64, word, r->start,
		r->start + (r->size - 1));
	if (r->size % (1 << 20))
		fprintf(f, " %8" PRIu64 " KiB", r->size >> 10);
	else
		fprintf(f, " %8" PRIu64 " MiB", r->size >> 20);
}

static void put_regions(const struct moat_dt *dt, FILE *f)
{
	char path[MOAT_DT_PATH];

	for (size_t i = 0; i < dt->nregions; i++) {
		const struct moat_dt_region *r = &dt->regions[i];

		put_range(f, r->pool ? "pool" : "reserved", &r->range);
		fprintf(f, "  %s",
			r->node < 0 ? r->what
				    : moat_dt_path(dt, r->node, path));
		if (r->pool && dt->nodes[r->node].disabled)
			fputs("  (disabled)", f);
		else if (r->pool && !r->users)
			fputs("  (unused)", f);
		else if (r->pool && r->users > 1)
			fprintf(f, "  (shared by %u devices)", r->users);
		fputc('\n', f);
	}
}

static void put_device(const struct moat_dt *dt, const struct moat_dt_device *d,
		       FILE *f)
{
	char path[MOAT_DT_PATH];

	fprintf(f, "%-12s %s  ", moat_dt_kind_name(d->kind),
		moat_dt_path(dt, d->node, path));
	if (d->pool < 0)
		fputs("UNPROTECTED", f);
	else
		fprintf(f, "%s%s",
			moat_dt_path(dt, dt->regions[d->pool].node, path),
			d->inherited ? " (the host bridge's)" : "");
	if (d->behind_iommu)
		fputs("  (behind an IOMMU)", f);
	fputc('\n', f);
}

int moat_dt_show_text(const struct moat_dt *dt, FILE *f)
{
	size_t without = 0, n = 0;

	for (size_t i = 0; i < dt->nram; i++) {
		put_range(f, "RAM", &dt->ram[i]);
		fputc('\n', f);
	}
	put_regions(dt, f);
	for (size_t i = 0; i < dt->ndevices; i++) {
		const struct moat_dt_device *d = &dt->devices[i];

		put_device(dt, d, f);
		/* A bridge's own DMA is but its interrupts. */
		n += d->kind != MOAT_DT_PCI_BRIDGE;
		without += d->kind != MOAT_DT_PCI_BRIDGE && d->pool < 0;
	}
	fprintf(f, "%zu of %zu devices unprotected\n", without, n);
	return ferror(f) ? -EIO : 0;
}

int moat_dt_check_text(const struct moat_dt_findings *found, FILE *f)
{
	for (size_t i = 0; i < found->n; i++)
		fprintf(f, "%s: %s: %s\n  cure: %s\n", found->v[i].path,
			found->v[i].code, found->v[i].text, found->v[i].cure);
	return ferror(f) ? -EIO : 0;
}
