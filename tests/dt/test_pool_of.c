/* SPDX-License-Identifier: Apache-2.0 */
/* What moat_dt_pool_of() promises to the guard. */
#include <errno.h>
#include <libfdt.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "dt/dt.h"
#include "seed.h"

struct world {
	void *fdt;
	size_t size;
	struct moat_dt_pool pool;
	struct moat_dt_why why;
};

static int set_up(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	assert_non_null(w);
	w->fdt = malloc(SEED_MAX);
	assert_non_null(w->fdt);
	seed_tree(w->fdt, 2);
	assert_int_equal(fdt_open_into(w->fdt, w->fdt, SEED_MAX), 0);
	w->size = SEED_MAX;
	*state = w;
	return 0;
}

static int tear_down(void **state)
{
	struct world *w = *state;

	free(w->fdt);
	free(w);
	return 0;
}

static int ask(struct world *w, const char *node)
{
	return moat_dt_pool_of(w->fdt, w->size, node, &w->pool, &w->why);
}

static int at(struct world *w, const char *path)
{
	int offset = fdt_path_offset(w->fdt, path);

	assert_true(offset >= 0);
	return offset;
}

static void test_address_and_size_of_a_virtio_mmio_node(void **state)
{
	struct world *w = *state;

	assert_int_equal(ask(w, SEED_MMIO), 0);
	assert_true(w->pool.address == 0x6f000000);
	assert_true(w->pool.size == 0x1000000);
	assert_int_equal(w->pool.users, 1);
	assert_string_equal(w->pool.path,
			    "/reserved-memory/restricted-dma@6f000000");
}

static void test_address_and_size_of_a_pci_device(void **state)
{
	struct world *w = *state;

	assert_int_equal(ask(w, SEED_PCI), 0);
	assert_true(w->pool.address == 0x6e000000);
}

static void test_a_pci_device_inherits_the_host_bridges_pool(void **state)
{
	struct world *w = *state;
	const char *device = "/pcie@10000000/port@1,0/net@0,0";

	assert_int_equal(ask(w, device), -ENOENT);
	assert_int_equal(fdt_setprop_u32(w->fdt, at(w, "/pcie@10000000"),
					 "memory-region", 1),
			 0);
	assert_int_equal(ask(w, device), 0);
	assert_true(w->pool.address == 0x6f000000);
	assert_int_equal(w->pool.users, 2);
}

/* of_dma_set_restricted_buffer(): a memory-region of its own ends the search */
static void test_a_device_with_another_region_does_not_inherit(void **state)
{
	struct world *w = *state;
	const char *device = "/pcie@10000000/port@1,0/net@0,0";

	fdt_setprop_u32(w->fdt, at(w, "/pcie@10000000"), "memory-region", 1);
	fdt_setprop_u32(w->fdt, at(w, device), "memory-region", 3);
	assert_int_equal(ask(w, device), -ENOENT);
}

static void test_a_device_without_pool_is_told_how_to_get_one(void **state)
{
	struct world *w = *state;

	assert_int_equal(ask(w, SEED_FREE), -ENOENT);
	assert_non_null(strstr(w->why.text, "add-pool --device=" SEED_FREE));
}

static void test_a_node_is_found_by_its_exact_path_only(void **state)
{
	static const char *const wrong[] = {
		"",
		"soc",
		"/soc/virtio",
		"/soc//virtio@a000200",
		"/soc/virtio@a000200/",
		"/soc/virtio@a0002000",
	};

	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
		assert_int_equal(ask(*state, wrong[i]), -ENOENT);
}

static void test_an_alias_that_names_itself_is_no_path(void **state)
{
	struct world *w = *state;
	int aliases = fdt_add_subnode(w->fdt, 0, "aliases");

	assert_int_equal(fdt_setprop_string(w->fdt, aliases, "me", "me"), 0);
	assert_int_equal(ask(w, "me"), -ENOENT);
}

static void test_a_pool_that_linux_refuses_is_none(void **state)
{
	static const char *const refused[] = {
		"no-map",
		"reusable",
		"linux,cma-default",
		"linux,dma-default",
	};
	struct world *w = *state;
	const char *pool = "/reserved-memory/restricted-dma@6f000000";

	for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++) {
		fdt_setprop(w->fdt, at(w, pool), refused[i], NULL, 0);
		assert_int_equal(ask(w, SEED_MMIO), -EINVAL);
		assert_non_null(strstr(w->why.text, refused[i]));
		fdt_delprop(w->fdt, at(w, pool), refused[i]);
	}
	assert_int_equal(ask(w, SEED_MMIO), 0);
}

static void set_reg(struct world *w, uint64_t address, uint64_t size)
{
	int pool = at(w, "/reserved-memory/restricted-dma@6f000000");
	fdt64_t reg[2] = { cpu_to_fdt64(address), cpu_to_fdt64(size) };

	assert_int_equal(fdt_setprop(w->fdt, pool, "reg", reg, sizeof(reg)), 0);
}

static void test_a_pool_that_is_no_good_place_is_none(void **state)
{
	static const uint64_t bad[][2] = {
		{ 0x70000000, 0x1000000 },  /* behind RAM */
		{ 0x6f800000, 0x1000000 },  /* half out of it */
		{ 0x4f800000, 0x20000000 }, /* over a hole */
		{ 0x6f000800, 0x1000 },	    /* no page */
		{ 0x6f000000, 0x1800 },
		{ 0x6f000000, 0 },
		{ 0x6e800000, 0x1000000 }, /* over another pool */
		{ 0x40000000, 0x1000 },	   /* over a region */
		{ 0x40200000, 0x1000 },	   /* over a region's second range */
		{ 0x48000000, 0x1000 },	   /* over /memreserve/ */
		{ 0x44000000, 0x1000 },	   /* over the initrd */
		{ 0xfffffffffffff000, 0x2000 }, /* beyond 2^64 */
		{ 0x6f000000, 0xfffffffffffff000 },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		set_reg(*state, bad[i][0], bad[i][1]);
		assert_int_equal(ask(*state, SEED_MMIO), -EINVAL);
	}
	set_reg(*state, 0x60000000, 0x2000);
	assert_int_equal(ask(*state, SEED_MMIO), 0);
}

static void test_a_device_behind_an_iommu_has_no_pool(void **state)
{
	struct world *w = *state;

	fdt_setprop_u32(w->fdt, at(w, SEED_MMIO), "iommus", 7);
	assert_int_equal(ask(w, SEED_MMIO), -EINVAL);
	fdt_setprop_u32(w->fdt, at(w, "/pcie@10000000"), "iommu-map", 7);
	assert_int_equal(ask(w, SEED_PCI), -EINVAL);
}

static void test_two_nodes_of_one_path_are_refused(void **state)
{
	struct world *w = *state;
	int n = fdt_add_subnode(w->fdt, at(w, "/soc"), "virtio@a000201");

	/* libfdt does not make two of one name, but takes them. */
	assert_true(n >= 0);
	fdt_setprop_string(w->fdt, n, "compatible", "virtio,mmio");
	memcpy((char *)(uintptr_t)fdt_get_name(w->fdt, n, NULL),
	       "virtio@a000200", sizeof("virtio@a000200"));
	assert_int_equal(ask(w, SEED_MMIO), -EINVAL);
	assert_non_null(strstr(w->why.text, "two nodes"));
}

static void test_a_region_that_linux_ignores_is_no_pool(void **state)
{
	struct world *w = *state;

	fdt_delprop(w->fdt, at(w, "/reserved-memory"), "ranges");
	assert_int_equal(ask(w, SEED_MMIO), -EINVAL);
}

static void test_a_disabled_device_or_pool_is_none(void **state)
{
	struct world *w = *state;
	const char *pool = "/reserved-memory/restricted-dma@6f000000";

	fdt_setprop_string(w->fdt, at(w, pool), "status", "disabled");
	assert_int_equal(ask(w, SEED_MMIO), -ENOENT);
	fdt_setprop_string(w->fdt, at(w, pool), "status", "okay");
	assert_int_equal(ask(w, SEED_MMIO), 0);
	fdt_setprop_string(w->fdt, at(w, "/soc"), "status", "disabled");
	assert_int_equal(ask(w, SEED_MMIO), -ENOENT);
}

#define TEST(f) cmocka_unit_test_setup_teardown(test_##f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(address_and_size_of_a_virtio_mmio_node),
		TEST(address_and_size_of_a_pci_device),
		TEST(a_pci_device_inherits_the_host_bridges_pool),
		TEST(a_device_with_another_region_does_not_inherit),
		TEST(a_device_without_pool_is_told_how_to_get_one),
		TEST(a_node_is_found_by_its_exact_path_only),
		TEST(an_alias_that_names_itself_is_no_path),
		TEST(a_pool_that_linux_refuses_is_none),
		TEST(a_pool_that_is_no_good_place_is_none),
		TEST(a_device_behind_an_iommu_has_no_pool),
		TEST(two_nodes_of_one_path_are_refused),
		TEST(a_region_that_linux_ignores_is_no_pool),
		TEST(a_disabled_device_or_pool_is_none),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
