/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device side against a model of a driver, which knows by plain
 * bookkeeping what each call must return and what must stand in the ring.
 */
#include "support.h"

#include "core/devq.h"

#define RAM 0x100000u
#define RAM_SIZE 0x20000u
#define TABLES RAM /* an indirect table of 3 entries for each head */

enum { FREE, POSTED, TAKEN, PREPARED, PART };

struct expect {
	uint8_t state;
	uint8_t nread, nwrite;
	uint16_t second; /* other descriptor of a direct chain, or itself */
	struct moat_seg seg[3];
};

struct driver {
	struct test_ring ring;
	struct moat_region region;
	struct moat_memmap map;
	uint8_t *storage;
	struct moat_devq q;
	struct moat_chain chain;
	struct rng rng;
	struct expect *req;
	uint16_t *posted;      /* heads by avail index, modulo the queue size */
	uint16_t avail, taken; /* avail index; index of the next to take */
	uint16_t used, used_out; /* pushed; published */
	uint16_t notified;	 /* used index at the last question */
	bool notified_valid;
	uint32_t ntaken;
	bool event, indirect;
};

static void driver_make(struct driver *d, uint16_t num, uint16_t base,
			uint16_t used, bool event, bool indirect)
{
	*d = (struct driver){ .avail = base,
			      .taken = base,
			      .used = used,
			      .used_out = used,
			      .event = event,
			      .indirect = indirect,
			      .rng = { base + num } };
	ring_make(&d->ring, num);
	d->region = (struct moat_region){ RAM, RAM_SIZE, RAM,
					  must_alloc(RAM_SIZE) };
	moat_memmap_init(&d->map, &d->region, 1);
	d->map.n = 1;
	d->storage = calloc(1, moat_devq_storage(num));
	d->req = calloc(num, sizeof(*d->req));
	d->posted = calloc(num, sizeof(*d->posted));
	put16(avail_idx(&d->ring), base);
	put16(used_idx(&d->ring), used);
	moat_devq_init(&d->q, &d->ring.vring, d->storage, base, event,
		       indirect);
}

static void driver_free(struct driver *d)
{
	ring_free(&d->ring);
	free(d->region.host);
	free(d->storage);
	free(d->req);
	free(d->posted);
}

static struct moat_seg some_seg(struct driver *d)
{
	return (struct moat_seg){
		.addr = RAM + rnd_below(&d->rng, RAM_SIZE / 2),
		.len = 1 + rnd_below(&d->rng, 5000),
	};
}

static int find_free(struct driver *d, uint32_t from)
{
	for (uint32_t i = 0; i < d->ring.vring.num; i++) {
		uint32_t k = (from + i) % d->ring.vring.num;

		if (d->req[k].state == FREE)
			return (int)k;
	}
	return -1;
}

static void write_table(struct expect *e, uint8_t *table, const uint16_t *at)
{
	uint32_t n = (uint32_t)e->nread + e->nwrite;

	for (uint32_t i = 0; i < n; i++)
		put_desc(table, at[i], e->seg[i].addr, e->seg[i].len,
			 (uint16_t)((i + 1 < n ? MOAT_DESC_F_NEXT : 0) |
				    (i >= e->nread ? MOAT_DESC_F_WRITE : 0)),
			 i + 1 < n ? at[i + 1] : 0);
}

/* Put one request into the ring, without publishing it; false if it is full. */
static bool post(struct driver *d)
{
	int head = find_free(d, rnd_below(&d->rng, d->ring.vring.num)), more;
	uint16_t h = (uint16_t)head;
	uint32_t n = 1;

	if (head < 0)
		return false;
	d->req[h] = (struct expect){ .state = POSTED, .second = h };
	more = find_free(d, rnd_below(&d->rng, d->ring.vring.num));
	if (d->indirect && rnd_below(&d->rng, 2))
		n = 1 + rnd_below(&d->rng, 3);
	else if (more >= 0 && rnd_below(&d->rng, 2))
		n = 2;
	else
		more = -1;
	d->req[h].nread = (uint8_t)rnd_below(&d->rng, n + 1);
	d->req[h].nwrite = (uint8_t)(n - d->req[h].nread);
	for (uint32_t i = 0; i < n; i++)
		d->req[h].seg[i] = some_seg(d);
	if (n == 1 || (n == 2 && more >= 0 && !d->indirect)) {
		uint16_t at[2] = { h, (uint16_t)more };

		if (n == 2) {
			d->req[h].second = at[1];
			d->req[at[1]].state = PART;
		}
		write_table(&d->req[h], d->ring.vring.desc, at);
	} else {
		static const uint16_t at[3] = { 0, 2, 1 };
		static const uint16_t two[2] = { 0, 1 };
		uint32_t off = 48u * h;

		write_table(&d->req[h], d->region.host + off,
			    n == 3 ? at : two);
		put_desc(d->ring.vring.desc, h, TABLES + off, 16 * n,
			 MOAT_DESC_F_INDIRECT, 0);
	}
	d->posted[d->avail % d->ring.vring.num] = h;
	put16(avail_entry(&d->ring, d->avail), h);
	d->avail++;
	return true;
}

static void check_peek(struct driver *d)
{
	const struct expect *e;
	uint16_t head;

	if (d->taken == d->avail) {
		assert_int_equal(moat_devq_peek(&d->q, &d->map, &d->chain), 0);
		return;
	}
	head = d->posted[d->taken % d->ring.vring.num];
	e = &d->req[head];
	assert_int_equal(moat_devq_peek(&d->q, &d->map, &d->chain), 1);
	assert_int_equal(d->chain.head, head);
	assert_int_equal(d->chain.nread, e->nread);
	assert_int_equal(d->chain.nwrite, e->nwrite);
	for (uint32_t i = 0; i < e->nread + e->nwrite; i++) {
		assert_int_equal(d->chain.seg[i].addr, e->seg[i].addr);
		assert_int_equal(d->chain.seg[i].len, e->seg[i].len);
	}
}

static void take(struct driver *d)
{
	uint16_t head = d->chain.head;

	check_peek(d);
	if (d->taken == d->avail || !rnd_below(&d->rng, 4))
		return; /* a peek alone leaves it in the ring */
	head = d->chain.head;
	moat_devq_take(&d->q, head);
	d->req[head].state = TAKEN;
	d->taken++;
	d->ntaken++;
}

static void push(struct driver *d)
{
	uint32_t num = d->ring.vring.num, len = (uint32_t)rnd(&d->rng);
	uint32_t from = rnd_below(&d->rng, num);

	for (uint32_t i = 0; i < num; i++) {
		uint32_t k = (from + i) % num;
		uint8_t *e = used_entry(&d->ring, d->used);

		if (d->req[k].state != TAKEN)
			continue;
		moat_devq_push(&d->q, (uint16_t)k, len);
		assert_int_equal(get32(e), k);
		assert_int_equal(get32(e + 4), len);
		/* Prepared is not published. */
		assert_int_equal(get16(used_idx(&d->ring)), d->used_out);
		d->req[k].state = PREPARED;
		d->used++;
		d->ntaken--;
		return;
	}
}

static void publish(struct driver *d)
{
	uint16_t event = (uint16_t)(d->notified + rnd_below(&d->rng, 12) - 4);
	uint16_t flags = (uint16_t)rnd(&d->rng);
	bool want;

	put16(used_event(&d->ring), event);
	put16(avail_flags(&d->ring), flags);
	if (d->event)
		want = !d->notified_valid ||
		       event_passed(event, d->notified, d->used);
	else
		want = !(flags & 1);
	assert_int_equal(moat_devq_publish(&d->q), want);
	assert_int_equal(get16(used_idx(&d->ring)), d->used);
	d->notified = d->used;
	d->notified_valid = true;
	/* The driver sees the new entries and frees the requests. */
	for (; d->used_out != d->used; d->used_out++) {
		uint32_t id = get32(used_entry(&d->ring, d->used_out));

		assert_int_equal(d->req[id].state, PREPARED);
		d->req[d->req[id].second].state = FREE;
		d->req[id].state = FREE;
	}
}

static void notifications(struct driver *d)
{
	uint16_t before = get16(avail_event(&d->ring));

	moat_devq_notify_off(&d->q);
	assert_int_equal(get16(used_flags(&d->ring)), d->event ? 0 : 1);
	assert_int_equal(get16(avail_event(&d->ring)), before);
	assert_int_equal(moat_devq_notify_on(&d->q), d->taken != d->avail);
	assert_int_equal(get16(used_flags(&d->ring)), 0);
	assert_int_equal(get16(avail_event(&d->ring)),
			 d->event ? d->taken : before);
}

/* Return: how many requests went through. */
static uint32_t run(uint16_t num, uint16_t base, uint16_t used, bool event,
		    bool indirect, int ops)
{
	uint32_t total = 0;
	struct driver d;

	driver_make(&d, num, base, used, event, indirect);
	d.notified = used;
	for (int i = 0; i < ops; i++) {
		uint32_t burst = 1 + rnd_below(&d.rng, num < 48 ? num : 48);

		switch (rnd_below(&d.rng, 5)) {
		case 0:
			while (burst-- && post(&d))
				;
			put16(avail_idx(&d.ring), d.avail);
			break;
		case 1:
			while (burst--)
				take(&d);
			break;
		case 2:
			while (burst-- && d.ntaken)
				push(&d);
			break;
		case 3:
			total += (uint16_t)(d.used - d.used_out);
			publish(&d);
			break;
		case 4:
			assert_int_equal(moat_devq_pending(&d.q),
					 d.taken != d.avail);
			notifications(&d);
			break;
		}
	}
	assert_int_equal(d.q.fault.code, MOAT_FAULT_NONE);
	driver_free(&d);
	return total;
}

static void random_operations_agree_with_the_model(void **state)
{
	static const uint16_t nums[] = { 1, 2, 8, 256 };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(nums); i++)
		for (int f = 0; f < 4; f++) {
			run(nums[i], 0, 0, f & 1, f & 2, 1500);
			run(nums[i], 65530, 65530, f & 1, f & 2, 1500);
			run(nums[i], 65530, 3, f & 1, f & 2, 1500);
		}
}

static void indices_wrap_at_65536_for_as_long_as_one_likes(void **state)
{
	(void)state;
	assert_true(run(256, 0, 0, true, true, 40000) > 2 * 65536);
}

static void a_queue_of_32768_fills_and_empties(void **state)
{
	struct driver d;
	uint16_t num = 32768;

	(void)state;
	driver_make(&d, num, 65000, 65000, true, false);
	for (uint32_t i = 0; i < num; i++)
		put_desc(d.ring.vring.desc, i, RAM + i, 1, 0, 0);
	for (uint32_t i = 0; i < num; i++)
		put16(avail_entry(&d.ring, (uint16_t)(65000 + i)),
		      (uint16_t)(i ^ 0x55));
	put16(avail_idx(&d.ring), (uint16_t)(65000 + num));
	for (uint32_t i = 0; i < num; i++) {
		assert_int_equal(moat_devq_peek(&d.q, &d.map, &d.chain), 1);
		assert_int_equal(d.chain.head, i ^ 0x55);
		moat_devq_take(&d.q, d.chain.head);
	}
	assert_int_equal(moat_devq_peek(&d.q, &d.map, &d.chain), 0);
	for (uint32_t i = 0; i < num; i++)
		moat_devq_push(&d.q, (uint16_t)i, i);
	moat_devq_publish(&d.q);
	assert_int_equal(get16(used_idx(&d.ring)), (uint16_t)(65000 + num));
	driver_free(&d);
}

/* A broken queue writes nothing and returns nothing, whatever is called. */
static void expect_broken(struct driver *d, enum moat_fault_code code,
			  uint64_t value, uint64_t limit)
{
	uint8_t *copy;

	assert_int_equal(moat_devq_peek(&d->q, &d->map, &d->chain), -1);
	assert_int_equal(d->q.fault.code, code);
	assert_int_equal(d->q.fault.value, value);
	assert_int_equal(d->q.fault.limit, limit);
	copy = malloc(d->ring.used_bytes);
	assert_non_null(copy);
	memset(d->ring.vring.used, 0xa5, d->ring.used_bytes);
	memcpy(copy, d->ring.vring.used, d->ring.used_bytes);
	put16(avail_idx(&d->ring), d->q.avail_next);
	for (uint16_t i = 0; i < d->ring.vring.num; i++)
		moat_devq_push(&d->q, i, 1);
	assert_false(moat_devq_publish(&d->q));
	moat_devq_notify_off(&d->q);
	assert_false(moat_devq_notify_on(&d->q));
	put16(avail_idx(&d->ring), (uint16_t)(d->q.avail_next + 1));
	assert_false(moat_devq_pending(&d->q));
	assert_int_equal(moat_devq_peek(&d->q, &d->map, &d->chain), -1);
	assert_memory_equal(d->ring.vring.used, copy, d->ring.used_bytes);
	assert_int_equal(d->q.fault.code, code);
	free(copy);
}

static void an_avail_idx_that_jumps_breaks_the_queue(void **state)
{
	static const uint16_t jump[] = { 9, 100, 0x8000, 0xffff /* back */ };

	(void)state;
	for (int event = 0; event < 2; event++)
		for (size_t i = 0; i < ARRAY_SIZE(jump); i++) {
			struct driver d;

			driver_make(&d, 8, 65533, 0, event, true);
			put16(avail_idx(&d.ring), (uint16_t)(65533 + jump[i]));
			expect_broken(&d, MOAT_FAULT_AVAIL_JUMP, jump[i], 8);
			driver_free(&d);
		}
}

static void a_head_out_of_range_breaks_the_queue(void **state)
{
	static const uint16_t heads[] = { 8, 9, 0x8000, 0xffff };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(heads); i++) {
		struct driver d;

		driver_make(&d, 8, 7, 0, true, true);
		put16(avail_entry(&d.ring, 7), heads[i]);
		put16(avail_idx(&d.ring), 8);
		expect_broken(&d, MOAT_FAULT_HEAD_RANGE, heads[i], 7);
		driver_free(&d);
	}
}

static void a_head_counts_once_until_it_is_given_back(void **state)
{
	struct driver d;

	(void)state;
	driver_make(&d, 8, 0, 0, false, true);
	put_desc(d.ring.vring.desc, 3, RAM, 1, 0, 0);
	for (uint16_t i = 0; i < 3; i++)
		put16(avail_entry(&d.ring, i), 3);
	put16(avail_idx(&d.ring), 1);
	assert_int_equal(moat_devq_peek(&d.q, &d.map, &d.chain), 1);
	moat_devq_take(&d.q, 3);
	moat_devq_push(&d.q, 3, 0);
	/* Given back: it may be posted again. */
	put16(avail_idx(&d.ring), 3);
	assert_int_equal(moat_devq_peek(&d.q, &d.map, &d.chain), 1);
	moat_devq_take(&d.q, 3);
	expect_broken(&d, MOAT_FAULT_HEAD_TWICE, 3, 0);
	driver_free(&d);
}

static void a_malformed_chain_breaks_the_queue(void **state)
{
	struct driver d;

	(void)state;
	driver_make(&d, 8, 0, 0, true, true);
	put_desc(d.ring.vring.desc, 0, RAM, 1, MOAT_DESC_F_NEXT, 0);
	put16(avail_idx(&d.ring), 1);
	expect_broken(&d, MOAT_FAULT_CHAIN_LONG, 9, 8);
	driver_free(&d);
}

static void a_peeked_request_is_read_afresh_when_it_stayed(void **state)
{
	struct driver d;

	(void)state;
	driver_make(&d, 8, 0, 0, true, true);
	put_desc(d.ring.vring.desc, 0, RAM, 1, 0, 0);
	put16(avail_idx(&d.ring), 1);
	assert_int_equal(moat_devq_peek(&d.q, &d.map, &d.chain), 1);
	put_desc(d.ring.vring.desc, 0, 1 /* outside */, 1, 0, 0);
	expect_broken(&d, MOAT_FAULT_ADDRESS, 1, 1);
	driver_free(&d);
}

static void the_first_publish_after_a_start_notifies(void **state)
{
	struct driver d;

	(void)state;
	/* The driver may wait for an index that was passed before the stop. */
	driver_make(&d, 8, 100, 100, true, true);
	put_desc(d.ring.vring.desc, 0, RAM, 1, 0, 0);
	put16(avail_entry(&d.ring, 100), 0);
	put16(avail_idx(&d.ring), 101);
	put16(used_event(&d.ring), 99);
	assert_int_equal(moat_devq_peek(&d.q, &d.map, &d.chain), 1);
	moat_devq_take(&d.q, 0);
	moat_devq_push(&d.q, 0, 0);
	assert_true(moat_devq_publish(&d.q));
	assert_int_equal(get16(used_idx(&d.ring)), 101);
	assert_false(moat_devq_publish(&d.q));
	driver_free(&d);
}

static void rewinding_stops_at_what_was_given_back(void **state)
{
	struct driver d;

	(void)state;
	driver_make(&d, 8, 65533, 0, true, true);
	for (uint16_t i = 0; i < 5; i++) {
		put_desc(d.ring.vring.desc, i, RAM + i, 1, 0, 0);
		put16(avail_entry(&d.ring, (uint16_t)(65533 + i)), i);
	}
	put16(avail_idx(&d.ring), 2);
	while (moat_devq_peek(&d.q, &d.map, &d.chain) == 1)
		moat_devq_take(&d.q, d.chain.head);
	moat_devq_push(&d.q, 1, 0);
	assert_int_equal(moat_devq_rewind(&d.q, 1), 1);
	assert_int_equal(moat_devq_rewind(&d.q, 4), 2);
	assert_int_equal(d.q.avail_next, 65535);
	/* Head 0 is still out, heads 2 to 4 can be taken once more. */
	for (uint16_t i = 2; i < 5; i++) {
		assert_int_equal(moat_devq_peek(&d.q, &d.map, &d.chain), 1);
		assert_int_equal(d.chain.head, i);
		moat_devq_take(&d.q, i);
	}
	assert_int_equal(moat_devq_peek(&d.q, &d.map, &d.chain), 0);
	driver_free(&d);
}

static void a_request_of_before_a_restart_is_outstanding_once(void **state)
{
	struct driver d;

	(void)state;
	driver_make(&d, 8, 100, 98, false, false);
	put_desc(d.ring.vring.desc, 3, RAM, 5, 0, 0);
	assert_int_equal(moat_devq_resume(&d.q, &d.map, 3, &d.chain), 0);
	assert_int_equal(d.chain.head, 3);
	assert_int_equal(d.chain.read_len, 5);
	/* The avail ring stands where it stood; the driver can not post it. */
	assert_int_equal(d.q.avail_next, 100);
	moat_devq_push(&d.q, 3, 0);
	assert_int_equal(moat_devq_resume(&d.q, &d.map, 3, &d.chain), 0);
	assert_int_equal(moat_devq_resume(&d.q, &d.map, 3, &d.chain), -1);
	assert_int_equal(d.q.fault.code, MOAT_FAULT_HEAD_TWICE);
	driver_free(&d);

	driver_make(&d, 8, 100, 98, false, false);
	assert_int_equal(moat_devq_resume(&d.q, &d.map, 8, &d.chain), -1);
	assert_int_equal(d.q.fault.code, MOAT_FAULT_HEAD_RANGE);
	driver_free(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_operations_agree_with_the_model),
		cmocka_unit_test(
			indices_wrap_at_65536_for_as_long_as_one_likes),
		cmocka_unit_test(a_queue_of_32768_fills_and_empties),
		cmocka_unit_test(an_avail_idx_that_jumps_breaks_the_queue),
		cmocka_unit_test(a_head_out_of_range_breaks_the_queue),
		cmocka_unit_test(a_head_counts_once_until_it_is_given_back),
		cmocka_unit_test(a_malformed_chain_breaks_the_queue),
		cmocka_unit_test(
			a_peeked_request_is_read_afresh_when_it_stayed),
		cmocka_unit_test(the_first_publish_after_a_start_notifies),
		cmocka_unit_test(rewinding_stops_at_what_was_given_back),
		cmocka_unit_test(
			a_request_of_before_a_restart_is_outstanding_once),
	};

	return cmocka_run_group_tests_name("devq", tests, NULL, NULL);
}
