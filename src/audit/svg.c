/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory map: for each VM and each of its objects one bar with a scale of
 * offsets, and under it one lane for each process: solid where it maps the
 * object, hatched where a descriptor would let it.
 *
 * Cairo draws letters as shapes, so what the picture says is also written as
 * <title>, <desc> and <metadata>, for screen readers and for programs.
 */
#include "audit/audit.h"

#include <cairo-svg.h>
#include <cairo.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define WIDTH 1180.0
#define MARGIN 28.0
#define BAR_X 345.0
#define BAR_W 600.0
#define LANE_H 26.0
#define LANE_GAP 8.0
#define MAX_TEXT 256

struct rgb {
	double r, g, b;
};

static const struct rgb ink = { 0.13, 0.15, 0.19 };
static const struct rgb grey = { 0.42, 0.45, 0.51 };
static const struct rgb pale = { 0.90, 0.91, 0.93 };
static const struct rgb red = { 0.80, 0.16, 0.13 };
static const struct rgb green = { 0.07, 0.53, 0.40 };
static const struct rgb blue = { 0.24, 0.42, 0.69 };
static const struct rgb teal = { 0.38, 0.36, 0.66 };

struct text {
	char *s;
	size_t len, cap;
	bool failed;
};

struct page {
	cairo_t *cr; /* NULL: only measure */
	double y;
	const struct audit *a;
	FILE *meta; /* the lanes, as XML */
};

static void set(struct page *pg, struct rgb c)
{
	cairo_set_source_rgb(pg->cr, c.r, c.g, c.b);
}

enum align { LEFT, RIGHT, CENTRE };

static void put(struct page *pg, double x, double y, double size, bool bold,
		struct rgb c, enum align align, const char *s)
{
	cairo_text_extents_t te;

	if (!pg->cr)
		return;
	cairo_select_font_face(pg->cr, "sans-serif", CAIRO_FONT_SLANT_NORMAL,
			       bold ? CAIRO_FONT_WEIGHT_BOLD
				    : CAIRO_FONT_WEIGHT_NORMAL);
	cairo_set_font_size(pg->cr, size);
	cairo_text_extents(pg->cr, s, &te);
	if (align == RIGHT)
		x -= te.x_advance;
	else if (align == CENTRE)
		x -= te.x_advance / 2;
	set(pg, c);
	cairo_move_to(pg->cr, x, y);
	cairo_show_text(pg->cr, s);
}

static void box(struct page *pg, double x, double y, double w, double h,
		struct rgb c)
{
	if (!pg->cr)
		return;
	set(pg, c);
	cairo_rectangle(pg->cr, x, y, w, h);
	cairo_fill(pg->cr);
}

static void frame(struct page *pg, double x, double y, double w, double h,
		  struct rgb c)
{
	if (!pg->cr)
		return;
	set(pg, c);
	cairo_set_line_width(pg->cr, 0.8);
	cairo_rectangle(pg->cr, x + 0.4, y + 0.4, w - 0.8, h - 0.8);
	cairo_stroke(pg->cr);
}

static void hatch(struct page *pg, double x, double y, double w, double h,
		  struct rgb c)
{
	if (!pg->cr)
		return;
	cairo_save(pg->cr);
	cairo_rectangle(pg->cr, x, y, w, h);
	cairo_clip(pg->cr);
	cairo_set_source_rgba(pg->cr, c.r, c.g, c.b, 0.14);
	cairo_paint(pg->cr);
	set(pg, c);
	cairo_set_line_width(pg->cr, 1.1);
	for (int i = 0; i * 6 < w + h; i++) {
		double at = x - h + i * 6;

		cairo_move_to(pg->cr, at, y + h);
		cairo_line_to(pg->cr, at + h, y);
	}
	cairo_stroke(pg->cr);
	cairo_restore(pg->cr);
}

static struct rgb colour(const struct page *pg, const struct seat *s,
			 uint32_t obj)
{
	if (s->role == ROLE_VMM)
		return blue;
	if (s->role == ROLE_GUARD)
		return teal;
	if (pg->a->objs[obj].class != CLASS_POOL)
		return red;
	return audit_foreign(pg->a, s, obj) ? red : green;
}

/*
 * Ranges closer than a third of a pixel become one shape: a map of a million
 * pages is still a small file. None is thinner than a pixel.
 */
static void draw_ranges(struct page *pg, const struct ranges *r, uint64_t size,
			double y, double h, struct rgb c)
{
	double scale = size ? BAR_W / (double)size : 0;
	double from = -1, to = -1;

	for (size_t i = 0; i < r->n; i++) {
		double x = (double)r->v[i].start * scale;
		double end = (double)r->v[i].end * scale;

		if (end - x < 1)
			end = x + 1 < BAR_W ? x + 1 : BAR_W;
		if (from >= 0 && x - to < 0.34) {
			to = end > to ? end : to;
			continue;
		}
		if (from >= 0)
			box(pg, BAR_X + from, y, to - from, h, c);
		from = x;
		to = end;
	}
	if (from >= 0)
		box(pg, BAR_X + from, y, to - from, h, c);
}

static void write_meta(struct page *pg, const struct object *o,
		       const struct seat *s, const struct reach *r,
		       uint64_t bytes)
{
	if (!pg->meta)
		return;
	fprintf(pg->meta,
		"<moat:lane object=\"%u\" class=\"%s\" pid=\"%d\" role=\"%s\" "
		"bytes=\"%llu\" mapped=\"%llu\" fd=\"%s\" foreign=\"%s\"/>\n",
		o->id, audit_class_name(o->class),
		(int)pg->a->procs[s->proc].pid, audit_role_name(s->role),
		(unsigned long long)bytes,
		(unsigned long long)ranges_bytes(&r->mapped),
		r->nfds ? "yes" : "no",
		audit_foreign(pg->a, s, r->obj) ? "yes" : "no");
}

static void lane_labels(struct page *pg, uint32_t obj, const struct seat *s,
			uint64_t bytes)
{
	const struct object *o = &pg->a->objs[obj];
	const struct process *p = &pg->a->procs[s->proc];
	bool bad = audit_outside(s) && bytes &&
		   (o->class == CLASS_RAM || audit_foreign(pg->a, s, obj));
	char name[24], label[MAX_TEXT], size[24];
	double base = pg->y + LANE_H / 2 + 4.5;

	snprintf(label, sizeof(label), "%s",
		 audit_escape(audit_name(p), name, sizeof(name)));
	put(pg, MARGIN + 14, base, 13, true, bad ? red : ink, LEFT, label);
	snprintf(label, sizeof(label), "%s  %d", audit_role_name(s->role),
		 (int)p->pid);
	put(pg, BAR_X - 14, base, 11.5, false, grey, RIGHT, label);
	if (!bytes) {
		put(pg, BAR_X + BAR_W + 14, base, 13, false, grey, LEFT,
		    "nothing");
		return;
	}
	snprintf(label, sizeof(label), "%s  (%.*f%%)", audit_size(bytes, size),
		 bytes == o->size ? 0 : 1,
		 o->size ? 100.0 * (double)bytes / (double)o->size : 0);
	put(pg, BAR_X + BAR_W + 14, base, 13, bad, bad ? red : ink, LEFT,
	    label);
}

static int draw_lane(struct page *pg, const struct vm *vm, uint32_t obj,
		     const struct seat *s)
{
	const struct object *o = &pg->a->objs[obj];
	struct rgb c = colour(pg, s, obj);
	double solid = LANE_H;
	struct reach r;
	uint64_t bytes;
	int got = audit_seat_reach(pg->a, vm, s, obj, &r);

	if (got < 0)
		return got;
	bytes = r.nfds ? o->size : ranges_bytes(&r.mapped);
	write_meta(pg, o, s, &r, bytes);
	lane_labels(pg, obj, s, bytes);
	if (pg->cr) {
		frame(pg, BAR_X, pg->y, BAR_W, LANE_H, pale);
		if (r.nfds) {
			solid = LANE_H * 0.6;
			hatch(pg, BAR_X, pg->y, BAR_W, LANE_H, c);
		}
		draw_ranges(pg, &r.mapped, o->size, pg->y, solid, c);
		if (bytes)
			frame(pg, BAR_X, pg->y, BAR_W, LANE_H, c);
	}
	pg->y += LANE_H + LANE_GAP;
	audit_reach_free(&r);
	return 0;
}

/* Ticks at round offsets, three to seven of them, and one at the end. */
static void draw_scale(struct page *pg, uint64_t size)
{
	uint64_t step = 4096;
	char label[24];

	while (size / step > 6 && step < 1ull << 62)
		step *= 2;
	for (uint64_t at = 0; at < size; at += step) {
		double x = (double)at / (double)size * BAR_W;

		box(pg, BAR_X + x, pg->y, 1, 5, grey);
		if (BAR_W - x > 96)
			put(pg, BAR_X + x, pg->y + 17, 10.5, false, grey,
			    CENTRE, at ? audit_size(at, label) : "0");
	}
	box(pg, BAR_X + BAR_W - 1, pg->y, 1, 5, grey);
	put(pg, BAR_X + BAR_W, pg->y + 17, 10.5, false, grey, CENTRE,
	    audit_size(size, label));
	pg->y += 28;
}

static int draw_object(struct page *pg, const struct vm *vm, uint32_t obj)
{
	const struct object *o = &pg->a->objs[obj];
	bool pool = o->class == CLASS_POOL;
	char name[40], size[24], label[MAX_TEXT], givers[GIVERS_TEXT];

	audit_escape(audit_object_title(o), name, sizeof(name));
	put(pg, MARGIN, pg->y + 18, 14, true, ink, LEFT,
	    pool ? "Pool" : "Guest RAM");
	snprintf(label, sizeof(label), "%s, %s", audit_kind_name(o->kind),
		 o->kind == OBJ_ANON ? "shared with nobody"
		 : o->ngivers	     ? audit_givers(pg->a, o, givers)
				     : "offsets from 0");
	put(pg, MARGIN, pg->y + 34, 11, false, grey, LEFT, label);
	put(pg, BAR_X - 14, pg->y + 18, 13, false, ink, RIGHT,
	    audit_size(o->size, size));
	box(pg, BAR_X, pg->y, BAR_W, 30,
	    pool ? (struct rgb){ 0.80, 0.92, 0.87 }
		 : (struct rgb){ 0.84, 0.87, 0.92 });
	put(pg, BAR_X + BAR_W / 2, pg->y + 19.5, 12.5, false, ink, CENTRE,
	    name);
	pg->y += 30;
	draw_scale(pg, o->size);
	for (size_t i = 0; i < vm->nseats; i++) {
		int err = draw_lane(pg, vm, obj, &vm->seats[i]);

		if (err)
			return err;
	}
	pg->y += 14;
	return 0;
}

static void verdict(struct page *pg, const struct vm *vm)
{
	char label[MAX_TEXT];
	struct rgb c = vm->outside ? red : green;

	if (vm->outside)
		snprintf(label, sizeof(label),
			 "%zu process%s beside the VMM and its guard can reach "
			 "this guest's RAM outside its own pool",
			 vm->outside, vm->outside == 1 ? "" : "es");
	else if (!pg->a->narrow)
		snprintf(label, sizeof(label),
			 "No process beside the VMM and its guard reaches this "
			 "guest's RAM outside a pool");
	else
		snprintf(label, sizeof(label),
			 "0 bytes of this guest's RAM outside a pool are "
			 "within reach of the processes asked for");
	box(pg, MARGIN, pg->y, 5, 26, c);
	put(pg, MARGIN + 14, pg->y + 18, 14, true, c, LEFT, label);
	pg->y += 44;
}

static int draw_vm(struct page *pg, size_t v)
{
	const struct vm *vm = &pg->a->vms[v];
	const struct process *p = &pg->a->procs[vm->proc];
	char name[64], size[24], label[MAX_TEXT];

	box(pg, MARGIN, pg->y, WIDTH - 2 * MARGIN, 1, pale);
	pg->y += 34;
	snprintf(label, sizeof(label), "VM %zu: %s, pid %d, %s of guest RAM",
		 v + 1, audit_escape(audit_name(p), name, sizeof(name)),
		 (int)p->pid, audit_size(vm->ram, size));
	put(pg, MARGIN, pg->y, 17, true, ink, LEFT, label);
	pg->y += 14;
	verdict(pg, vm);
	for (size_t i = 0; i < vm->nobjs; i++) {
		int err = draw_object(pg, vm, vm->objs[i]);

		if (err)
			return err;
	}
	return 0;
}

static void legend(struct page *pg)
{
	static const struct {
		const struct rgb *c;
		const char *text;
		double width;
	} keys[] = {
		{ &blue, "the VM itself", 130 },
		{ &teal, "guard (trusted)", 142 },
		{ &green, "pool, as meant", 138 },
		{ &red, "exposed", 106 },
	};
	double x = MARGIN;

	for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++) {
		box(pg, x, pg->y, 20, 13, *keys[i].c);
		put(pg, x + 27, pg->y + 11, 12, false, ink, LEFT, keys[i].text);
		x += keys[i].width;
	}
	x += 14;
	box(pg, x, pg->y, 20, 13, grey);
	put(pg, x + 27, pg->y + 11, 12, false, ink, LEFT, "mapped now");
	x += 122;
	hatch(pg, x, pg->y, 20, 13, grey);
	frame(pg, x, pg->y, 20, 13, grey);
	put(pg, x + 27, pg->y + 11, 12, false, ink, LEFT,
	    "holds a descriptor: all can be mapped");
	pg->y += 34;
}

static int draw_page(struct page *pg)
{
	const struct audit *a = pg->a;
	char label[MAX_TEXT];

	pg->y = MARGIN + 16;
	put(pg, MARGIN, pg->y, 22, true, ink, LEFT,
	    "Who can reach the guest's memory");
	put(pg, WIDTH - MARGIN, pg->y, 12, false, grey, RIGHT,
	    "moat audit " MOAT_VERSION);
	pg->y += 20;
	legend(pg);
	for (size_t v = 0; v < a->nvms; v++) {
		int err = draw_vm(pg, v);

		if (err)
			return err;
	}
	if (!a->nvms) {
		put(pg, MARGIN, pg->y + 20, 14, false, ink, LEFT,
		    "No virtual machine's memory is within reach of the "
		    "processes asked for.");
		pg->y += 40;
	}
	if (a->incomplete) {
		snprintf(label, sizeof(label),
			 "Incomplete: %zu process%s could not be read",
			 a->incomplete, a->incomplete == 1 ? "" : "es");
		put(pg, MARGIN, pg->y + 16, 14, true, red, LEFT, label);
		pg->y += 30;
	}
	pg->y += MARGIN / 2;
	return 0;
}

static cairo_status_t collect(void *closure, const unsigned char *data,
			      unsigned int len)
{
	struct text *t = closure;

	if (t->len + len > t->cap) {
		size_t cap = (t->len + len) * 2;
		char *s = realloc(t->s, cap);

		if (!s) {
			t->failed = true;
			return CAIRO_STATUS_WRITE_ERROR;
		}
		t->s = s;
		t->cap = cap;
	}
	memcpy(t->s + t->len, data, len);
	t->len += len;
	return CAIRO_STATUS_SUCCESS;
}

/* Draw on a surface of the height that was measured; fills @out. */
static int render(const struct audit *a, double height, struct text *out)
{
	struct page pg = { .a = a };
	cairo_surface_t *sf = cairo_svg_surface_create_for_stream(
		collect, out, WIDTH, height);
	int err;

	pg.cr = cairo_create(sf);
	box(&pg, 0, 0, WIDTH, height, (struct rgb){ 1, 1, 1 });
	err = draw_page(&pg);
	if (!err && cairo_status(pg.cr))
		err = -ENOMEM;
	cairo_destroy(pg.cr);
	cairo_surface_finish(sf);
	if (!err && (cairo_surface_status(sf) || out->failed))
		err = -ENOMEM;
	cairo_surface_destroy(sf);
	return err;
}

/* The picture with @meta put in behind the opening tag <svg ...>. */
static int write_file(const char *path, const struct text *svg,
		      const char *meta, size_t meta_len)
{
	const char *tag = memmem(svg->s, svg->len, "<svg", 4);
	const char *end =
		tag ? memchr(tag, '>', svg->len - (size_t)(tag - svg->s))
		    : NULL;
	size_t head;
	FILE *f;
	int err = 0;

	if (!end)
		return -EINVAL;
	head = (size_t)(end + 1 - svg->s);
	f = fopen(path, "we");
	if (!f)
		return -errno;
	if (fwrite(svg->s, 1, head, f) != head ||
	    fwrite(meta, 1, meta_len, f) != meta_len ||
	    fwrite(svg->s + head, 1, svg->len - head, f) != svg->len - head)
		err = -EIO;
	if (fclose(f) && !err)
		err = -errno;
	return err;
}

int audit_svg(const struct audit *a, const char *path)
{
	struct page measure = { .a = a };
	struct text svg = { 0 };
	char *meta = NULL;
	size_t meta_len = 0;
	int err;

	measure.meta = open_memstream(&meta, &meta_len);
	if (!measure.meta)
		return -ENOMEM;
	fprintf(measure.meta,
		"\n<title>Who can reach the guest's memory</title>\n"
		"<desc>moat audit: one bar for each object of memory, one lane "
		"under it for each process</desc>\n"
		"<metadata xmlns:moat=\"urn:moat:audit:1\">\n");
	err = draw_page(&measure);
	fprintf(measure.meta, "</metadata>");
	if (fclose(measure.meta) && !err)
		err = -ENOMEM;
	if (!err)
		err = render(a, measure.y, &svg);
	if (!err)
		err = write_file(path, &svg, meta, meta_len);
	free(svg.s);
	free(meta);
	return err;
}
