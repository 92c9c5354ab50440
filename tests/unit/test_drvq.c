/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver side against a model of a device, which reads the ring by the
 * specification, scribbles over whatever it may write, and completes in any
 * order with any length.
 */
#include "support.h"

#include "core/drvq.h"

#define MAX_SEGS 6u
#define TABLE_AT(cookie) (UINT64_C(0x700000000) + 96u * (cookie))

struct req {
	bool live; /* added and not got back */
	bool done; /* the device has given it back */
	uint32_t nread, nwrite, ndesc;
	uint16_t head;
	uint64_t write_len;
	uint32_t used_len;
	struct moat_seg seg[MAX_SEGS];
};

struct device {
	struct test_ring ring;
	struct moat_drvq_desc *descs;
	struct moat_drvq q;
	struct rng rng;
	uint8_t *tables; /* the cookie's table, as the device maps it */
	struct req *req; /* by cookie, one for each possible head */
	uint32_t *added; /* cookies in the order they were added */
	uint32_t *taken; /* cookies that the device works on */
	uint32_t *done;	 /* cookies in the order they were completed */
	uint32_t nlive, ntaken, free, total;
	uint16_t add, published, seen; /* avail */
	uint16_t used, got;	       /* used */
	bool event, indirect;
};

static void device_make(struct device *d, uint16_t num, bool event,
			bool indirect)
{
	*d = (struct device){ .event = event,
			      .indirect = indirect,
			      .free = num,
			      .rng = { num } };
	ring_make(&d->ring, num);
	d->descs = calloc(num, sizeof(*d->descs));
	d->tables = must_alloc((size_t)96 * num);
	d->req = calloc(num, sizeof(*d->req));
	d->added = calloc(num, sizeof(*d->added));
	d->taken = calloc(num, sizeof(*d->taken));
	d->done = calloc(num, sizeof(*d->done));
	moat_drvq_init(&d->q, &d->ring.vring, d->descs, event, indirect);
}

static void device_free(struct device *d)
{
	ring_free(&d->ring);
	free(d->descs);
	free(d->tables);
	free(d->req);
	free(d->added);
	free(d->taken);
	free(d->done);
}

static void fill(struct device *d, struct req *r, uint32_t n)
{
	*r = (struct req){ .live = true, .nread = rnd_below(&d->rng, n + 1) };
	r->nwrite = n - r->nread;
	for (uint32_t i = 0; i < n; i++) {
		r->seg[i].addr = rnd(&d->rng);
		r->seg[i].len = 1 + rnd_below(&d->rng, 70000);
		if (i >= r->nread)
			r->write_len += r->seg[i].len;
	}
}

/* Post a request of @n segments if the queue says that there is room. */
static bool post(struct device *d, uint32_t n)
{
	uint32_t num = d->ring.vring.num, cookie = 0, need = n ? n : 1;
	bool room, table = moat_drvq_wants_table(&d->q, n);
	struct req *r;

	assert_true(d->indirect || !table);
	room = d->nlive < num && d->free >= (table ? 1 : need);
	assert_int_equal(moat_drvq_room(&d->q, n), room);
	/* With tables, descriptors never run out before requests do. */
	if (d->indirect && d->nlive < num && need <= num)
		assert_true(room);
	if (!room)
		return false;
	while (d->req[cookie].live)
		cookie++;
	r = &d->req[cookie];
	fill(d, r, n);
	r->ndesc = table ? 1 : need;
	moat_drvq_add(&d->q, r->seg, r->nread, r->nwrite, cookie,
		      table ? d->tables + 96 * cookie : NULL,
		      table ? TABLE_AT(cookie) : 0);
	/* Prepared is not published. */
	assert_int_equal(get16(avail_idx(&d->ring)), d->published);
	d->added[d->add++ % num] = cookie;
	d->nlive++;
	d->free -= r->ndesc;
	return true;
}

static void publish(struct device *d)
{
	uint16_t event = (uint16_t)(d->published + rnd_below(&d->rng, 12) - 4);
	uint16_t flags = (uint16_t)rnd(&d->rng);
	bool want;

	put16(avail_event(&d->ring), event);
	put16(used_flags(&d->ring), flags);
	want = d->event ? event_passed(event, d->published, d->add)
			: d->add != d->published && !(flags & 1);
	assert_int_equal(moat_drvq_publish(&d->q), want);
	assert_int_equal(get16(avail_idx(&d->ring)), d->add);
	d->published = d->add;
}

/* Read one chain as a device does, and hold it against what was posted. */
static void device_take(struct device *d)
{
	uint32_t cookie = d->added[d->seen % d->ring.vring.num];
	uint16_t head = get16(avail_entry(&d->ring, d->seen)), i = head;
	const uint8_t *table = d->ring.vring.desc;
	struct req *r = &d->req[cookie];
	struct moat_vring_desc e;

	assert_true(head < d->ring.vring.num);
	e = get_desc(table, i);
	if (e.flags == MOAT_DESC_F_INDIRECT) {
		assert_int_equal(e.addr, TABLE_AT(cookie));
		assert_int_equal(e.len, 16 * (r->nread + r->nwrite));
		assert_int_equal(r->ndesc, 1);
		table = d->tables + 96 * cookie;
		i = 0;
	} else if (!(r->nread + r->nwrite)) {
		assert_int_equal(e.flags, 0);
		assert_int_equal(e.len, 0);
	}
	for (uint32_t k = 0; k < r->nread + r->nwrite; k++) {
		bool last = k + 1 == r->nread + r->nwrite;

		e = get_desc(table, i);
		assert_int_equal(e.addr, r->seg[k].addr);
		assert_int_equal(e.len, r->seg[k].len);
		assert_int_equal(e.flags,
				 (last ? 0 : MOAT_DESC_F_NEXT) |
					 (k < r->nread ? 0
						       : MOAT_DESC_F_WRITE));
		/* Nothing the device writes there may matter to the queue. */
		if (table == d->ring.vring.desc)
			rnd_fill(&d->rng, d->ring.vring.desc + 16 * i, 16);
		i = e.next;
	}
	put16(avail_entry(&d->ring, d->seen), 0xffff);
	r->head = head;
	d->taken[d->ntaken++] = cookie;
	d->seen++;
}

static void device_finish(struct device *d)
{
	uint32_t k = rnd_below(&d->rng, d->ntaken), cookie = d->taken[k];
	struct req *r = &d->req[cookie];
	uint8_t *e = used_entry(&d->ring, d->used);

	d->taken[k] = d->taken[--d->ntaken];
	r->used_len = rnd_below(&d->rng, 3)
			      ? rnd_below(&d->rng, r->write_len + 1)
			      : (uint32_t)rnd(&d->rng);
	put32(e, r->head);
	put32(e + 4, r->used_len);
	d->done[d->used++ % d->ring.vring.num] = cookie;
}

static void get(struct device *d)
{
	uint32_t cookie = 0, len = 0;
	struct req *r;

	if (d->got == get16(used_idx(&d->ring))) {
		assert_int_equal(moat_drvq_get(&d->q, &cookie, &len), 0);
		return;
	}
	assert_int_equal(moat_drvq_get(&d->q, &cookie, &len), 1);
	assert_int_equal(cookie, d->done[d->got++ % d->ring.vring.num]);
	r = &d->req[cookie];
	assert_true(r->live);
	assert_int_equal(len, r->used_len < r->write_len ? r->used_len
							 : r->write_len);
	r->live = false;
	d->free += r->ndesc;
	d->nlive--;
	d->total++;
}

static void notifications(struct device *d)
{
	uint16_t before = get16(used_event(&d->ring));
	bool more = get16(used_idx(&d->ring)) != d->got;

	assert_int_equal(moat_drvq_pending(&d->q), more);
	moat_drvq_notify_off(&d->q);
	assert_int_equal(get16(avail_flags(&d->ring)), d->event ? 0 : 1);
	assert_int_equal(get16(used_event(&d->ring)), before);
	assert_int_equal(moat_drvq_notify_on(&d->q), more);
	assert_int_equal(get16(avail_flags(&d->ring)), 0);
	assert_int_equal(get16(used_event(&d->ring)),
			 d->event ? d->got : before);
}

static uint32_t run(uint16_t num, bool event, bool indirect, int ops)
{
	struct device d;
	uint32_t total;

	device_make(&d, num, event, indirect);
	for (int i = 0; i < ops; i++) {
		uint32_t burst = 1 + rnd_below(&d.rng, num < 48 ? num : 48);

		switch (rnd_below(&d.rng, 6)) {
		case 0:
			while (burst-- &&
			       post(&d, rnd_below(&d.rng, MAX_SEGS + 1)))
				;
			break;
		case 1:
			publish(&d);
			break;
		case 2:
			while (burst-- && d.seen != d.published)
				device_take(&d);
			break;
		case 3:
			while (burst-- && d.ntaken)
				device_finish(&d);
			put16(used_idx(&d.ring), d.used);
			break;
		case 4:
			while (burst--)
				get(&d);
			break;
		case 5:
			notifications(&d);
			break;
		}
		assert_int_equal(d.q.num_free, d.free);
		assert_int_equal(d.q.outstanding, d.nlive);
	}
	assert_int_equal(d.q.fault.code, MOAT_FAULT_NONE);
	total = d.total;
	device_free(&d);
	return total;
}

static void random_operations_agree_with_the_model(void **state)
{
	static const uint16_t nums[] = { 1, 2, 8, 32, 256 };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(nums); i++)
		for (int f = 0; f < 4; f++)
			run(nums[i], f & 1, f & 2, 4000);
}

static void indices_wrap_at_65536_for_as_long_as_one_likes(void **state)
{
	(void)state;
	assert_true(run(256, true, true, 60000) > 2 * 65536);
	assert_true(run(256, false, false, 60000) > 65536);
}

static void a_request_without_segments_is_one_empty_descriptor(void **state)
{
	uint32_t cookie, len;
	struct device d;

	(void)state;
	device_make(&d, 2, false, false);
	put_desc(d.ring.vring.desc, 0, 0x1234, 99, MOAT_DESC_F_WRITE, 1);
	assert_true(post(&d, 0));
	assert_true(post(&d, 0));
	assert_false(moat_drvq_room(&d.q, 0));
	publish(&d);
	device_take(&d);
	device_take(&d);
	device_finish(&d);
	put16(used_idx(&d.ring), d.used);
	assert_int_equal(moat_drvq_get(&d.q, &cookie, &len), 1);
	assert_int_equal(len, 0);
	device_free(&d);
}

static void no_room_without_descriptors_even_for_an_empty_request(void **state)
{
	struct device d;

	(void)state;
	device_make(&d, 4, false, false);
	assert_true(post(&d, 4));
	assert_false(moat_drvq_room(&d.q, 0));
	assert_false(moat_drvq_room(&d.q, 1));
	device_free(&d);
}

static void
without_tables_a_request_longer_than_the_ring_never_fits(void **state)
{
	struct device d;

	(void)state;
	device_make(&d, 4, false, false);
	assert_true(moat_drvq_room(&d.q, 4));
	assert_false(moat_drvq_room(&d.q, 5));
	device_free(&d);
	device_make(&d, 4, false, true);
	assert_true(moat_drvq_room(&d.q, 1024));
	device_free(&d);
}

/* A device with three requests outstanding, one of them a chain of two. */
static void posted_three(struct device *d, bool event)
{
	device_make(d, 8, event, false);
	for (uint32_t n = 1; n <= 3; n++)
		assert_true(post(d, n == 2 ? 2 : 1));
	publish(d);
	while (d->seen != d->published)
		device_take(d);
}

static void used(struct device *d, uint32_t id, uint32_t len)
{
	uint8_t *e = used_entry(&d->ring, d->used++);

	put32(e, id);
	put32(e + 4, len);
	put16(used_idx(&d->ring), d->used);
}

static void expect_broken(struct device *d, enum moat_fault_code code,
			  uint64_t value, uint64_t limit)
{
	uint32_t cookie = 77, len = 77;
	uint8_t *copy = malloc(d->ring.avail_bytes);

	assert_non_null(copy);
	assert_int_equal(moat_drvq_get(&d->q, &cookie, &len), -1);
	assert_int_equal(d->q.fault.code, code);
	assert_int_equal(d->q.fault.value, value);
	assert_int_equal(d->q.fault.limit, limit);
	assert_int_equal(cookie, 77);
	memcpy(copy, d->ring.vring.avail, d->ring.avail_bytes);
	assert_false(moat_drvq_room(&d->q, 1));
	assert_false(moat_drvq_publish(&d->q));
	moat_drvq_notify_off(&d->q);
	assert_false(moat_drvq_notify_on(&d->q));
	assert_false(moat_drvq_pending(&d->q));
	used(d, d->req[0].head, 0);
	assert_int_equal(moat_drvq_get(&d->q, &cookie, &len), -1);
	assert_memory_equal(d->ring.vring.avail, copy, d->ring.avail_bytes);
	free(copy);
	device_free(d);
}

static void a_used_idx_that_jumps_breaks_the_queue(void **state)
{
	static const uint16_t jump[] = { 4, 8, 0x8000, 0xffff /* back */ };
	struct device d;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(jump); i++) {
		posted_three(&d, i & 1);
		put16(used_idx(&d.ring), jump[i]);
		expect_broken(&d, MOAT_FAULT_USED_JUMP, jump[i], 3);
	}
}

static void a_used_id_out_of_range_breaks_the_queue(void **state)
{
	static const uint32_t ids[] = { 8, 0x10000, 0x80000000, UINT32_MAX };
	struct device d;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
		posted_three(&d, i & 1);
		used(&d, ids[i], 0);
		expect_broken(&d, MOAT_FAULT_USED_RANGE, ids[i], 7);
	}
}

static void a_used_id_counts_only_while_outstanding(void **state)
{
	uint32_t cookie, len, second;
	struct device d;

	(void)state;
	/* Never posted. */
	posted_three(&d, true);
	used(&d, 7, 0);
	expect_broken(&d, MOAT_FAULT_USED_UNKNOWN, 7, 0);
	/* The second descriptor of a chain is no head. */
	posted_three(&d, true);
	second = d.descs[d.req[1].head].next;
	used(&d, second, 0);
	expect_broken(&d, MOAT_FAULT_USED_UNKNOWN, second, 0);
	/* Twice. */
	posted_three(&d, false);
	used(&d, d.req[1].head, 0);
	used(&d, d.req[1].head, 0);
	assert_int_equal(moat_drvq_get(&d.q, &cookie, &len), 1);
	assert_int_equal(cookie, 1);
	expect_broken(&d, MOAT_FAULT_USED_UNKNOWN, d.req[1].head, 0);
}

static void used_len_is_clamped_to_what_was_posted(void **state)
{
	static const struct moat_seg seg[] = {
		{ .addr = 0x1000, .len = 100 },
		{ .addr = 0x2000, .len = UINT32_MAX },
		{ .addr = 0x3000, .len = 1 },
	};
	uint32_t cookie, len;
	struct device d;

	(void)state;
	device_make(&d, 4, false, false);
	/* Readable only, then 2^32 - 1 writable, then 2^32: 32 bits hold. */
	moat_drvq_add(&d.q, seg, 1, 0, 0, NULL, 0);
	moat_drvq_add(&d.q, seg, 1, 1, 1, NULL, 0);
	moat_drvq_publish(&d.q);
	for (uint32_t i = 0; i < 2; i++)
		used(&d, get16(avail_entry(&d.ring, (uint16_t)i)), UINT32_MAX);
	assert_int_equal(moat_drvq_get(&d.q, &cookie, &len), 1);
	assert_int_equal(len, 0);
	assert_int_equal(moat_drvq_get(&d.q, &cookie, &len), 1);
	assert_int_equal(len, UINT32_MAX);
	moat_drvq_add(&d.q, seg + 1, 0, 2, 2, NULL, 0);
	moat_drvq_publish(&d.q);
	used(&d, get16(avail_entry(&d.ring, 2)), UINT32_MAX);
	assert_int_equal(moat_drvq_get(&d.q, &cookie, &len), 1);
	assert_int_equal(len, UINT32_MAX);
	device_free(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_operations_agree_with_the_model),
		cmocka_unit_test(
			indices_wrap_at_65536_for_as_long_as_one_likes),
		cmocka_unit_test(
			a_request_without_segments_is_one_empty_descriptor),
		cmocka_unit_test(
			no_room_without_descriptors_even_for_an_empty_request),
		cmocka_unit_test(
			without_tables_a_request_longer_than_the_ring_never_fits),
		cmocka_unit_test(a_used_idx_that_jumps_breaks_the_queue),
		cmocka_unit_test(a_used_id_out_of_range_breaks_the_queue),
		cmocka_unit_test(a_used_id_counts_only_while_outstanding),
		cmocka_unit_test(used_len_is_clamped_to_what_was_posted),
	};

	return cmocka_run_group_tests_name("drvq", tests, NULL, NULL);
}
