/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared memory regions as a driver finds them, against a reading of the
 * specification that is written here once more.
 */
#include "support.h"

#include "model/shm.h"

#define GIB (UINT64_C(1) << 30)

static const uint64_t bars[6] = { 4096, 0, 0, 0, 64 * GIB, 0 };

static struct moat_shm_set two(void)
{
	struct moat_shm_set set = { .n = 0 };

	assert_true(moat_shm_add(&set, 0, 5 * GIB));
	assert_true(moat_shm_add(&set, 7, 4096));
	return set;
}

static void a_set_has_unique_regions_of_whole_pages(void **state)
{
	struct moat_shm_set set = two();

	(void)state;
	assert_false(moat_shm_add(&set, 0, 4096));
	assert_false(moat_shm_add(&set, 1, 0));
	assert_false(moat_shm_add(&set, 1, 4097));
	assert_false(moat_shm_add(&set, 1, UINT64_MAX - 4095));
	for (uint8_t id = 10; id < 16; id++)
		assert_true(moat_shm_add(&set, id, 4096));
	assert_false(moat_shm_add(&set, 16, 4096));
	for (uint32_t i = 1; i < set.n; i++)
		assert_int_equal(set.regions[i].offset,
				 set.regions[i - 1].offset +
					 set.regions[i - 1].len);
	assert_int_equal(moat_shm_window(&set), 8 * GIB);
	set.n = 0;
	assert_int_equal(moat_shm_window(&set), 0);
}

static void a_capability_is_laid_out_as_the_specification_says(void **state)
{
	static const uint8_t want[24] = {
		0x09, 0x58, 24,	  8,	4, 7, 0, 0,
		0x00, 0x00, 0x00, 0x40, /* offset 5 GiB: low */
		0x00, 0x10, 0x00, 0x00, /* length 4096: low */
		0x01, 0x00, 0x00, 0x00, 0, 0, 0, 0,
	};
	struct moat_shm_set set = two();
	uint8_t config[256] = { 0 };

	(void)state;
	assert_int_equal(moat_shm_pci_show(&set, config, 4, 0x80, 0x58), 0x80);
	assert_int_equal(config[0x81], 0x98);
	assert_memory_equal(config + 0x98, want, sizeof(want));
	/* Where they do not fit none is written. */
	assert_int_equal(moat_shm_pci_show(&set, config, 4, 0xd4, 0), 0);
	assert_int_equal(moat_shm_pci_show(&set, config, 4, 0x82, 0), 0);
	assert_int_equal(moat_shm_pci_show(&set, config, 6, 0x80, 0), 0);
	assert_int_equal(moat_shm_pci_show(&set, config, 4, 0x20, 0), 0);
	set.n = 0;
	assert_int_equal(moat_shm_pci_show(&set, config, 4, 0x80, 0x58), 0x58);
}

static void show(uint8_t config[256], const struct moat_shm_set *set)
{
	memset(config, 0, 256);
	config[0x06] = 0x10;
	config[0x34] = 0x40;
	config[0x40] = 0x11; /* some other capability */
	config[0x41] = moat_shm_pci_show(set, config, 4, 0x60, 0);
}

static void a_pci_driver_finds_what_the_device_shows(void **state)
{
	struct moat_shm_set set = two();
	struct moat_shm_place place;
	uint8_t config[256];

	(void)state;
	show(config, &set);
	assert_true(moat_shm_pci_find(config, bars, 7, &place));
	assert_int_equal(place.addr, 5 * GIB);
	assert_int_equal(place.len, 4096);
	assert_int_equal(place.bar, 4);
	for (unsigned int id = 0; id < 256; id++)
		assert_int_equal(moat_shm_pci_find(config, bars, (uint8_t)id,
						   &place),
				 id == 0 || id == 7);
}

static void a_pci_driver_is_not_fooled(void **state)
{
	struct moat_shm_set set = two();
	struct moat_shm_place place;
	uint8_t config[256];
	/* The second capability is that of region 7. */
	static const struct {
		uint8_t at, value;
	} lies[] = {
		{ 0x06, 0x00 },	    /* no list */
		{ 0x34, 0x3c },	    /* it begins in the header */
		{ 0x34, 0x00 },	    /* it is empty */
		{ 0x78 + 2, 23 },   /* too short */
		{ 0x78 + 0, 0x10 }, /* not a vendor's */
		{ 0x78 + 3, 4 },    /* of another type */
		{ 0x78 + 4, 6 },    /* no such BAR */
		{ 0x78 + 4, 255 },   { 0x78 + 4, 1 }, /* an empty one */
		{ 0x78 + 4, 0 },		      /* a small one */
		{ 0x78 + 13, 0 },		      /* no length */
		{ 0x78 + 19, 0x80 },		      /* far beyond */
		{ 0x78 + 23, 0xff }, /* so long that it wraps */
		{ 0x78 + 16, 0x10 }, /* just behind the end */
		{ 0x78 + 1, 0x40 },  /* a loop */
		{ 0x78 + 1, 0x78 },  { 0x60 + 5, 7 }, /* twice the same id */
		{ 0x61, 0xf0 },			      /* the list leads out */
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
		show(config, &set);
		assert_true(moat_shm_pci_find(config, bars, 7, &place));
		config[lies[i].at] = lies[i].value;
		assert_false(moat_shm_pci_find(config, bars, 7, &place));
	}
}

/* The same again: every capability is visited once, by a set of places. */
static bool oracle(const uint8_t *c, uint8_t id, struct moat_shm_place *place)
{
	bool seen[256] = { false };
	unsigned int n = 0, at = c[0x34] & ~3u;

	if (!(c[6] & 0x10))
		return false;
	for (; at >= 0x40; at = c[at + 1] & ~3u) {
		uint32_t w[6];

		if (seen[at])
			return false;
		seen[at] = true;
		if (at > 256 - 24)
			continue;
		memcpy(w, c + at, 24);
		if ((le32toh(w[0]) & 0xff) != 9 ||
		    (le32toh(w[0]) >> 16 & 0xff) < 24 ||
		    le32toh(w[0]) >> 24 != 8 || c[at + 5] != id)
			continue;
		n++;
		place->bar = c[at + 4];
		place->addr = le32toh(w[2]) + ((uint64_t)le32toh(w[4]) << 32);
		place->len = le32toh(w[3]) + ((uint64_t)le32toh(w[5]) << 32);
	}
	return n == 1 && place->bar < 6 && place->len &&
	       (unsigned __int128)place->addr + place->len <= bars[place->bar];
}

static void any_config_space_reads_as_the_oracle_says(void **state)
{
	struct moat_shm_place got, want;
	struct rng r = { 1 };
	uint32_t hits = 0;

	(void)state;
	for (uint32_t n = 0; n < 200000; n++) {
		struct moat_shm_set set = two();
		uint8_t config[256], id = rnd_below(&r, 4) ? 7 : 0;
		bool found;

		show(config, &set);
		for (uint32_t k = rnd_below(&r, 6); k; k--)
			config[rnd_below(&r, 4) ? 0x34 + rnd_below(&r, 0x5c)
						: rnd_below(&r, 256)] =
				(uint8_t)(rnd_below(&r, 2)
						  ? rnd(&r)
						  : rnd_below(&r, 40) * 4);
		found = oracle(config, id, &want);
		assert_int_equal(moat_shm_pci_find(config, bars, id, &got),
				 found);
		hits += found;
		if (!found)
			continue;
		assert_int_equal(got.addr, want.addr);
		assert_int_equal(got.len, want.len);
		assert_int_equal(got.bar, want.bar);
	}
	assert_in_range(hits, 10000, 190000);
}

static uint32_t reg_read(void *arg, uint32_t reg)
{
	return moat_shm_mmio_read(arg, reg);
}

static void reg_write(void *arg, uint32_t reg, uint32_t value)
{
	moat_shm_mmio_write(arg, reg, value);
}

static void an_mmio_driver_finds_what_the_device_shows(void **state)
{
	struct moat_shm_set set = two();
	struct moat_shm_mmio mmio = { &set, UINT64_C(0x4000000000), 0 };
	struct moat_shm_bus bus = { reg_read, reg_write, &mmio };
	struct moat_shm_place place;

	(void)state;
	for (unsigned int id = 0; id < 256; id++)
		assert_int_equal(moat_shm_mmio_find(&bus, (uint8_t)id, &place),
				 id == 0 || id == 7);
	assert_true(moat_shm_mmio_find(&bus, 7, &place));
	assert_int_equal(place.addr, UINT64_C(0x4000000000) + 5 * GIB);
	assert_int_equal(place.len, 4096);
	/* 4.2.2.1: all ones for an id that is not used. */
	moat_shm_mmio_write(&mmio, 0xac, 1);
	for (uint32_t reg = 0xb0; reg <= 0xbc; reg += 4)
		assert_int_equal(moat_shm_mmio_read(&mmio, reg), 0xffffffff);
	/* The selector has 32 bits: 263 is not 7. */
	moat_shm_mmio_write(&mmio, 0xac, 263);
	assert_int_equal(moat_shm_mmio_read(&mmio, 0xb0), 0xffffffff);
	moat_shm_mmio_write(&mmio, 0xb0, 7);
	assert_int_equal(mmio.sel, 263);
	assert_int_equal(moat_shm_mmio_read(&mmio, 0xac), 0);
}

struct liar {
	uint64_t len, base;
};

static uint32_t lie(void *arg, uint32_t reg)
{
	const struct liar *l = arg;
	uint64_t v = reg < 0xb8 ? l->len : l->base;

	return (uint32_t)(reg & 4 ? v >> 32 : v);
}

static void ignore(void *arg, uint32_t reg, uint32_t value)
{
	(void)arg;
	assert_int_equal(reg, 0xac);
	assert_int_equal(value, 3);
}

static void an_mmio_driver_is_not_fooled(void **state)
{
	static const struct {
		struct liar liar;
		bool found;
	} cases[] = {
		{ { 4096, 4096 }, true },
		{ { 0, 4096 }, false },
		{ { UINT64_MAX, 4096 }, false },
		{ { UINT64_MAX, UINT64_MAX }, false },
		{ { 4096, UINT64_MAX }, false },
		{ { 4096, UINT64_MAX - 4095 }, false },
		{ { 4096, UINT64_MAX - 4096 }, true },
		{ { UINT64_C(1) << 63, UINT64_C(1) << 63 }, false },
		{ { UINT64_MAX - 1, 2 }, false },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct liar liar = cases[i].liar;
		struct moat_shm_bus bus = { lie, ignore, &liar };
		struct moat_shm_place place;

		assert_int_equal(moat_shm_mmio_find(&bus, 3, &place),
				 cases[i].found);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_set_has_unique_regions_of_whole_pages),
		cmocka_unit_test(
			a_capability_is_laid_out_as_the_specification_says),
		cmocka_unit_test(a_pci_driver_finds_what_the_device_shows),
		cmocka_unit_test(a_pci_driver_is_not_fooled),
		cmocka_unit_test(any_config_space_reads_as_the_oracle_says),
		cmocka_unit_test(an_mmio_driver_finds_what_the_device_shows),
		cmocka_unit_test(an_mmio_driver_is_not_fooled),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
