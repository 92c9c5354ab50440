/* SPDX-License-Identifier: Apache-2.0 */
/* The small files: layout of a ring, its notification rule, fault texts. */
#include "support.h"

#include "core/err.h"

static void queue_sizes_are_powers_of_two_up_to_32768(void **state)
{
	uint32_t ok = 0;

	(void)state;
	for (uint32_t n = 0; n < 70000; n++)
		ok += moat_vring_num_ok(n);
	assert_int_equal(ok, 16);
	assert_true(moat_vring_num_ok(1));
	assert_true(moat_vring_num_ok(32768));
	assert_false(moat_vring_num_ok(0));
	assert_false(moat_vring_num_ok(65536));
	assert_false(moat_vring_num_ok(UINT32_C(1) << 31));
}

static void the_largest_ring_has_the_sizes_of_the_specification(void **state)
{
	struct moat_vring r = { NULL, NULL, NULL, 32768 };

	(void)state;
	assert_int_equal(moat_vring_desc_size(32768), 524288);
	assert_int_equal(moat_vring_avail_size(32768), 65542);
	assert_int_equal(moat_vring_used_size(32768), 262150);
	/* The event index is the last field of either ring. */
	assert_int_equal((uintptr_t)moat_used_event(&r) + 2, 65542);
	assert_int_equal((uintptr_t)moat_avail_event(&r) + 2, 262150);
	assert_int_equal((uintptr_t)moat_avail_ring(&r, 32767) + 2, 65540);
	assert_int_equal((uintptr_t)moat_used_ring(&r, 32767) + 8, 262148);
}

static void descriptors_are_little_endian_in_memory(void **state)
{
	static const uint8_t bytes[16] = { 0x08, 0x07, 0x06, 0x05, 0x04, 0x03,
					   0x02, 0x01, 0xd4, 0xc3, 0xb2, 0xa1,
					   0x03, 0x00, 0xfe, 0xff };
	uint8_t table[32] __attribute__((aligned(16))) = { 0 };
	struct moat_vring_desc d;

	(void)state;
	memcpy(table + 16, bytes, 16);
	d = moat_vring_desc_load(table, 1);
	assert_int_equal(d.addr, UINT64_C(0x0102030405060708));
	assert_int_equal(d.len, 0xa1b2c3d4);
	assert_int_equal(d.flags, 3);
	assert_int_equal(d.next, 0xfffe);
	moat_vring_desc_store(table, 0, d);
	assert_memory_equal(table, bytes, 16);
}

static void a_notification_is_due_exactly_when_the_event_is_passed(void **state)
{
	static const uint16_t starts[] = { 0, 1, 32767, 65530, 65535 };

	(void)state;
	for (size_t s = 0; s < ARRAY_SIZE(starts); s++)
		for (uint16_t n = 0; n < 20; n++)
			for (int e = -30; e < 30; e++) {
				uint16_t old = starts[s];
				uint16_t now = (uint16_t)(old + n);
				uint16_t event = (uint16_t)(old + e);

				assert_int_equal(
					moat_vring_need_event(event, now, old),
					event_passed(event, old, now));
			}
}

static void every_fault_says_what_happened_and_what_to_do(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < MOAT_FAULT_CODES; i++) {
		const char *text = moat_fault_text((enum moat_fault_code)i);

		assert_non_null(text);
		assert_non_null(moat_fault_cure((enum moat_fault_code)i));
		assert_true(strlen(text) > 4);
		for (unsigned int k = 0; k < i; k++)
			assert_string_not_equal(
				text, moat_fault_text((enum moat_fault_code)k));
	}
	assert_string_equal(moat_fault_text(MOAT_FAULT_CODES), "unknown fault");
	assert_string_equal(moat_fault_cure(MOAT_FAULT_CODES), "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(queue_sizes_are_powers_of_two_up_to_32768),
		cmocka_unit_test(
			the_largest_ring_has_the_sizes_of_the_specification),
		cmocka_unit_test(descriptors_are_little_endian_in_memory),
		cmocka_unit_test(
			a_notification_is_due_exactly_when_the_event_is_passed),
		cmocka_unit_test(every_fault_says_what_happened_and_what_to_do),
	};

	return cmocka_run_group_tests_name("vring", tests, NULL, NULL);
}
