/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hostile trees: a good one is damaged as the input says, then everything that
 * src/dt can do is done to it. The bytes end at a page that cannot be read, so
 * that libfdt, which is not instrumented, is caught reading too far as well.
 */
#include <inttypes.h>
#include <libfdt.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../fuzz/fuzz.h"
#include "dt/dt.h"
#include "seed.h"

struct spot {
	int offset, len;
};

struct world {
	uint64_t aligned; /* for what follows */
	uint8_t tree[SEED_MAX];
	size_t size;
	struct spot spots[256]; /* properties' values and nodes' names */
	size_t nspots;
	struct moat_dt_why why;
};

static void add_spot(struct world *w, const void *p, int len)
{
	if (len <= 0 || w->nspots == sizeof(w->spots) / sizeof(*w->spots))
		return;
	w->spots[w->nspots++] =
		(struct spot){ (int)((const uint8_t *)p - w->tree), len };
}

/* Damage of values and names leaves a tree that libfdt takes. */
static void find_spots(struct world *w)
{
	int depth = 0, p, len;

	for (int n = 0; n >= 0; n = fdt_next_node(w->tree, n, &depth)) {
		const char *name = fdt_get_name(w->tree, n, &len);

		add_spot(w, name, len);
		fdt_for_each_property_offset(p, w->tree, n)
		{
			const void *v =
				fdt_getprop_by_offset(w->tree, p, NULL, &len);
			add_spot(w, v, len);
		}
	}
	CHECK(w->nspots > 40);
}

static void put32(uint8_t *at, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		at[i] = (uint8_t)(value >> (24 - 8 * i));
}

static uint32_t some_value(struct input *in)
{
	static const uint32_t edge[] = {
		0,	    1,		2,	    3,		4,
		0x1000,	    0x40000000, 0x50000000, 0x6f000000, 0x7fffffff,
		0x80000000, 0xfffff000, 0xfffffffe, 0xffffffff,
	};
	uint8_t which = in8(in);

	return which < sizeof(edge) / sizeof(*edge) ? edge[which] : in32(in);
}

static void damage(struct world *w, struct input *in)
{
	const struct spot *s = &w->spots[in8(in) % w->nspots];
	const struct spot *t = &w->spots[in8(in) % w->nspots];
	size_t at = in16(in) % (w->size - 3);

	switch (in8(in) % 8) {
	case 0: /* anywhere, the header included */
		put32(w->tree + at, some_value(in));
		break;
	case 1:
		w->tree[at] ^= (uint8_t)(1 << in8(in) % 8);
		break;
	case 2: /* the header */
		put32(w->tree + in8(in) % 10 * sizeof(uint32_t),
		      some_value(in));
		break;
	case 3:
		put32(w->tree + in8(in) % 10 * sizeof(uint32_t),
		      in16(in) % 4096);
		break;
	case 4: /* one value over another */
		memmove(w->tree + s->offset, w->tree + t->offset,
			(size_t)(s->len < t->len ? s->len : t->len));
		break;
	case 5:
		w->tree[s->offset + in8(in) % s->len] = in8(in);
		break;
	default:
		if (s->len >= 4)
			put32(w->tree + s->offset +
				      in8(in) % ((size_t)s->len / 4) * 4,
			      some_value(in));
	}
}

/* A copy that ends where reading ends. */
static uint8_t *fence(const uint8_t *data, size_t size, size_t *mapped)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	size_t room = (size + page - 1) / page * page;
	uint8_t *p;

	*mapped = room + page;
	p = mmap(NULL, *mapped, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED);
	CHECK(!mprotect(p + room, page, PROT_NONE));
	memcpy(p + room - size, data, size);
	return p + room - size;
}

static void unfence(uint8_t *p, size_t size, size_t mapped)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	munmap(p + size + page - mapped, mapped);
}

static void look(struct world *w, const void *fdt, size_t size)
{
	struct moat_dt *dt;
	struct moat_dt_load load = { 0 };
	struct moat_dt_findings found;
	struct moat_dt_args args;
	static const struct moat_dt_qemu how = { "x.dtb", "blk", "." };
	FILE *null = fopen("/dev/null", "w");

	CHECK(null);
	if (!moat_dt_open(fdt, size, &dt, &w->why)) {
		CHECK(!moat_dt_show_text(dt, null));
		CHECK(!moat_dt_show_json(dt, null));
		CHECK(!moat_dt_check(dt, &load, NULL, 0, &found, &w->why));
		CHECK(!moat_dt_check_text(&found, null));
		moat_dt_findings_free(&found);
		if (!moat_dt_qemu_args(dt, &how, &args, &w->why))
			CHECK(args.n > 6);
		moat_dt_args_free(&args);
		moat_dt_close(dt);
	}
	fclose(null);
}

/* Whatever the tree: a pool that is returned is one. */
static void ask(struct world *w, const void *fdt, size_t size)
{
	static const char *const nodes[] = {
		SEED_MMIO, SEED_PCI,
		SEED_FREE, "/pcie@10000000/port@1,0/net@0,0",
		"/",	   "",
	};
	struct moat_dt_pool pool;

	for (size_t i = 0; i < sizeof(nodes) / sizeof(*nodes); i++) {
		w->why.text[0] = 0;
		if (moat_dt_pool_of(fdt, size, nodes[i], &pool, &w->why)) {
			CHECK(w->why.text[0]);
			continue;
		}
		CHECK(pool.size && !(pool.size % MOAT_DT_PAGE));
		CHECK(!(pool.address % MOAT_DT_PAGE));
		CHECK(pool.address + (pool.size - 1) > pool.address);
		CHECK(pool.users && pool.path[0] == '/');
	}
}

static void change(struct world *w, const void *fdt, size_t size)
{
	static const char *const devices[] = {
		SEED_FREE, "/pcie@10000000/port@1,0/net@1,0"
	};
	const struct moat_dt_add add = {
		.size = 2 << 20,
		.devices = devices,
		.ndevices = 2,
	};
	const struct moat_dt_remove rm = { .devices = devices, .ndevices = 2 };
	const struct moat_dt_remove rm_all = { .all = true };
	struct moat_dt_pool pool;
	void *added, *removed;
	size_t n, m;

	if (!moat_dt_add_pools(fdt, size, &add, &added, &n, &w->why)) {
		for (int i = 0; i < 2; i++) {
			CHECK(!moat_dt_pool_of(added, n, devices[i], &pool,
					       &w->why));
			CHECK(pool.size == add.size && pool.users == 1);
		}
		CHECK(!moat_dt_remove_pools(added, n, &rm, &removed, &m,
					    &w->why));
		CHECK(moat_dt_pool_of(removed, m, devices[0], &pool, &w->why));
		free(added);
		free(removed);
	}
	if (!moat_dt_remove_pools(fdt, size, &rm_all, &removed, &m, &w->why)) {
		CHECK(moat_dt_pool_of(removed, m, SEED_MMIO, &pool, &w->why));
		free(removed);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	struct world w = { 0 };
	size_t mapped;
	uint8_t setup = in8(&in), *p;

	w.size = seed_tree(w.tree, 1 + (setup & 1));
	find_spots(&w);
	for (unsigned int n = setup >> 1 & 7; n; n--)
		damage(&w, &in);
	if (setup > 0xe0) /* cut off */
		w.size = in16(&in) % w.size & ~(size_t)7;
	p = fence(w.tree, w.size, &mapped);
	look(&w, p, w.size);
	ask(&w, p, w.size);
	change(&w, p, w.size);
	unfence(p, w.size, mapped);
	return 0;
}
