/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver side of a packed ring against a model of a device, which reads the
 * ring by the specification, scribbles over what it may write, and completes in
 * any order with any length.
 */
#include "packed_ring.h"

#include "core/drvq.h"

#define MAX_SEGS 6u
#define TABLE_AT(cookie) (UINT64_C(0x700000000) + 96u * (cookie))

struct req {
	bool live; /* added and not got back */
	uint32_t nread, nwrite, ndesc;
	uint16_t id;
	uint64_t write_len;
	uint32_t want; /* the length that the driver must get */
	struct moat_seg seg[MAX_SEGS];
};

struct device {
	struct test_ring ring;
	struct moat_drvq_desc *descs;
	struct moat_drvq q;
	struct rng rng;
	uint8_t *tables;
	struct req *req;		/* by cookie */
	uint32_t *added, *taken, *done; /* cookies, in their orders */
	uint32_t nadded, npublished, nseen, ntaken, ndone, ngot;
	uint32_t nlive, free;
	struct place add, published, seen; /* available */
	struct place used, got;		   /* used */
	struct place begun; /* first used one that is not visible yet */
	uint16_t begun_flags;
	bool event, indirect;
};

static void device_make(struct device *d, uint16_t num, bool event,
			bool indirect)
{
	struct place at = { 0, true };

	*d = (struct device){ .event = event,
			      .indirect = indirect,
			      .free = num,
			      .add = at,
			      .published = at,
			      .seen = at,
			      .used = at,
			      .got = at,
			      .begun = at,
			      .rng = { num } };
	packed_make(&d->ring, num);
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
	assert_false(avail_at(&d->ring, d->published));
	d->added[d->nadded++ % num] = cookie;
	d->nlive++;
	d->free -= r->ndesc;
	place_step(&d->add, r->ndesc, (uint16_t)num);
	return true;
}

static void publish(struct device *d)
{
	uint16_t num = d->ring.vring.num;
	struct place e = d->published;
	bool want;

	if (rnd_below(&d->rng, 2))
		place_step(&e, rnd_below(&d->rng, 2u * num), num);
	put_event(d->ring.vring.used, place_word(e),
		  (uint16_t)(rnd_below(&d->rng, d->event ? 3 : 2) |
			     (rnd(&d->rng) & 0xfffc)));
	want = event_wants(d->ring.vring.used, d->published, d->add, num);
	assert_int_equal(moat_drvq_publish(&d->q), want);
	d->published = d->add;
	d->npublished = d->nadded;
	assert_int_equal((uint16_t)moat_drvq_base(&d->q),
			 place_word(d->published));
	assert_int_equal(moat_drvq_base(&d->q) >> 16, place_word(d->got));
}

static void check_desc(const struct req *r, const uint8_t *p, uint32_t k)
{
	assert_int_equal(get64(p), r->seg[k].addr);
	assert_int_equal(get32(p + 8), r->seg[k].len);
	assert_int_equal(flags_at(p, 0) & P_WRITE, k < r->nread ? 0 : P_WRITE);
}

static void check_table(struct device *d, uint32_t cookie, const uint8_t *p)
{
	struct req *r = &d->req[cookie];
	uint32_t n = r->nread + r->nwrite;

	assert_int_equal(r->ndesc, 1);
	assert_int_equal(get64(p), TABLE_AT(cookie));
	assert_int_equal(get32(p + 8), 16 * n);
	for (uint32_t k = 0; k < n; k++) {
		const uint8_t *e = d->tables + 96 * cookie + 16 * k;

		check_desc(r, e, k);
		assert_int_equal(flags_at(e, 0) & ~P_WRITE, 0);
	}
}

/* Read one list as a device does, and hold it against what was posted. */
static void device_take(struct device *d)
{
	uint32_t cookie = d->added[d->nseen % d->ring.vring.num];
	struct req *r = &d->req[cookie];
	uint8_t *p;

	for (uint32_t k = 0; k < r->ndesc; k++) {
		bool last = k + 1 == r->ndesc;
		uint16_t f;

		p = d->ring.vring.desc + 16 * d->seen.idx;
		f = flags_at(p, 0);
		assert_true(avail_at(&d->ring, d->seen));
		f &= (uint16_t) ~(P_AVAIL | P_USED);
		if (f & P_INDIRECT) {
			assert_int_equal(f, P_INDIRECT);
			check_table(d, cookie, p);
		} else if (!(r->nread + r->nwrite)) {
			assert_int_equal(f, 0);
			assert_int_equal(get32(p + 8), 0);
		} else {
			assert_int_equal(f & ~P_WRITE, last ? 0 : P_NEXT);
			check_desc(r, p, k);
		}
		r->id = get16(p + 12);
		/* Nothing the device writes there may matter to the queue. */
		rnd_fill(&d->rng, p, 14);
		place_step(&d->seen, 1, d->ring.vring.num);
	}
	d->taken[d->ntaken++] = cookie;
	d->nseen++;
}

static void device_finish(struct device *d)
{
	uint32_t k = rnd_below(&d->rng, d->ntaken), cookie = d->taken[k];
	uint8_t *p = d->ring.vring.desc + 16 * d->used.idx;
	struct req *r = &d->req[cookie];
	bool write = rnd_below(&d->rng, 4);
	uint16_t flags = used_bits(d->used);
	uint32_t len = rnd_below(&d->rng, 3)
			       ? rnd_below(&d->rng, r->write_len + 1)
			       : (uint32_t)rnd(&d->rng);

	d->taken[k] = d->taken[--d->ntaken];
	/* Without WRITE the length is reserved; NEXT always is (2.8.4, 2.8.6).
	 */
	r->want = !write	       ? 0
		  : len < r->write_len ? len
				       : (uint32_t)r->write_len;
	flags |= (uint16_t)((write ? P_WRITE : 0) | (rnd(&d->rng) & P_NEXT));
	put32(p + 8, len);
	put16(p + 12, r->id);
	/* The first of a batch becomes visible last. */
	if (place_same(d->used, d->begun))
		d->begun_flags = flags;
	else
		put16(p + 14, flags);
	d->done[d->ndone++ % d->ring.vring.num] = cookie;
	place_step(&d->used, r->ndesc, d->ring.vring.num);
}

static void device_flush(struct device *d)
{
	if (place_same(d->begun, d->used))
		return;
	put16(d->ring.vring.desc + 16 * d->begun.idx + 14, d->begun_flags);
	d->begun = d->used;
}

static void get(struct device *d)
{
	uint32_t cookie = 0, len = 0;
	struct req *r;

	if (d->ngot == d->ndone) {
		assert_int_equal(moat_drvq_get(&d->q, &cookie, &len), 0);
		return;
	}
	assert_int_equal(moat_drvq_get(&d->q, &cookie, &len), 1);
	assert_int_equal(cookie, d->done[d->ngot++ % d->ring.vring.num]);
	r = &d->req[cookie];
	assert_true(r->live);
	assert_int_equal(len, r->want);
	r->live = false;
	place_step(&d->got, r->ndesc, d->ring.vring.num);
	d->free += r->ndesc;
	d->nlive--;
}

static void notifications(struct device *d)
{
	const uint8_t *e = d->ring.vring.avail;
	bool more = d->ngot != d->ndone;

	assert_int_equal(moat_drvq_pending(&d->q), more);
	moat_drvq_notify_off(&d->q);
	assert_int_equal(get16(e + 2), E_DISABLE);
	assert_int_equal(moat_drvq_notify_on(&d->q), more);
	assert_int_equal(get16(e + 2), d->event ? E_DESC : E_ENABLE);
	if (d->event)
		assert_int_equal(get16(e), place_word(d->got));
}

/* What a device that stopped anywhere would say of where it stands. */
static void untaken(struct device *d)
{
	if (d->nlive == 0)
		return;
	assert_int_equal(moat_drvq_untaken(&d->q, place_word(d->seen)),
			 d->npublished - d->nseen);
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
			untaken(&d);
			break;
		case 2:
			while (burst-- && d.nseen != d.npublished)
				device_take(&d);
			break;
		case 3:
			while (burst-- && d.ntaken)
				device_finish(&d);
			/* Invisible until now. */
			assert_false(moat_drvq_pending(&d.q) &&
				     place_same(d.got, d.begun));
			device_flush(&d);
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
	total = d.ngot;
	device_free(&d);
	return total;
}

static void random_operations_agree_with_the_model(void **state)
{
	static const uint16_t nums[] = { 1, 2, 3, 8, 61, 256 };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(nums); i++)
		for (int f = 0; f < 4; f++)
			run(nums[i], f & 1, f & 2, 4000);
	assert_true(run(250, true, true, 60000) > 2 * 65536);
	assert_true(run(250, false, false, 60000) > 65536);
}

static void a_queue_of_32768_fills_and_empties(void **state)
{
	uint32_t num = 32768;
	struct device d;

	(void)state;
	device_make(&d, (uint16_t)num, true, false);
	for (int lap = 0; lap < 3; lap++) {
		while (d.nlive < num)
			assert_true(post(&d, 1));
		assert_false(moat_drvq_room(&d.q, 1));
		publish(&d);
		while (d.nseen != d.npublished)
			device_take(&d);
		while (d.ntaken)
			device_finish(&d);
		device_flush(&d);
		while (d.nlive)
			get(&d);
		get(&d);
	}
	device_free(&d);
}

/* A device with three requests outstanding, one of them a list of two. */
static void posted_three(struct device *d, bool event)
{
	device_make(d, 8, event, false);
	for (uint32_t n = 1; n <= 3; n++)
		assert_true(post(d, n == 2 ? 2 : 1));
	put_event(d->ring.vring.used, 0, E_ENABLE);
	assert_true(moat_drvq_publish(&d->q));
	d->published = d->add;
	d->npublished = d->nadded;
	while (d->nseen != d->npublished)
		device_take(d);
}

static void used(struct device *d, uint32_t at, uint16_t id, uint32_t len)
{
	put_packed(d->ring.vring.desc, at, 0, len, id,
		   P_AVAIL | P_USED | P_WRITE);
}

static void expect_broken(struct device *d, enum moat_fault_code code,
			  uint64_t value, uint64_t limit)
{
	uint32_t cookie = 77, len = 77;
	uint8_t *copy = malloc(d->ring.desc_bytes);

	assert_non_null(copy);
	assert_int_equal(moat_drvq_get(&d->q, &cookie, &len), -1);
	assert_int_equal(d->q.fault.code, code);
	assert_int_equal(d->q.fault.value, value);
	assert_int_equal(d->q.fault.limit, limit);
	assert_int_equal(cookie, 77);
	memcpy(copy, d->ring.vring.desc, d->ring.desc_bytes);
	put_event(d->ring.vring.avail, 0x1234, 0);
	assert_false(moat_drvq_room(&d->q, 1));
	assert_false(moat_drvq_publish(&d->q));
	moat_drvq_notify_off(&d->q);
	assert_false(moat_drvq_notify_on(&d->q));
	assert_false(moat_drvq_pending(&d->q));
	assert_int_equal(moat_drvq_get(&d->q, &cookie, &len), -1);
	assert_memory_equal(d->ring.vring.desc, copy, d->ring.desc_bytes);
	assert_int_equal(get32(d->ring.vring.avail), 0x1234);
	free(copy);
	device_free(d);
}

static void a_used_id_out_of_range_breaks_the_queue(void **state)
{
	static const uint16_t ids[] = { 8, 9, 0x7fff, 0x8000, 0xffff };
	struct device d;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
		posted_three(&d, i & 1);
		used(&d, 0, ids[i], 0);
		expect_broken(&d, MOAT_FAULT_USED_RANGE, ids[i], 7);
	}
}

static void a_used_id_counts_only_while_outstanding(void **state)
{
	uint32_t cookie, len;
	struct device d;

	(void)state;
	/* Never posted. */
	posted_three(&d, true);
	used(&d, 0, 7, 0);
	expect_broken(&d, MOAT_FAULT_USED_UNKNOWN, 7, 0);
	/* Twice: the second stands after the list of two. */
	posted_three(&d, false);
	used(&d, 0, d.req[1].id, 0);
	used(&d, 1, 7, 0);
	used(&d, 2, d.req[1].id, 0);
	assert_int_equal(moat_drvq_get(&d.q, &cookie, &len), 1);
	assert_int_equal(cookie, 1);
	expect_broken(&d, MOAT_FAULT_USED_UNKNOWN, d.req[1].id, 0);
	/* Nothing is outstanding at all. */
	device_make(&d, 8, false, false);
	used(&d, 0, 0, 0);
	expect_broken(&d, MOAT_FAULT_USED_UNKNOWN, 0, 0);
}

static void what_is_not_used_is_not_got(void **state)
{
	static const uint16_t not_now[] = { 0, P_AVAIL, P_USED };
	uint32_t cookie, len;
	struct device d;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(not_now); i++) {
		posted_three(&d, false);
		put_packed(d.ring.vring.desc, 0, 0, 0, d.req[0].id, not_now[i]);
		/* Later ones do not matter before this one. */
		used(&d, 1, d.req[1].id, 0);
		assert_false(moat_drvq_pending(&d.q));
		assert_int_equal(moat_drvq_get(&d.q, &cookie, &len), 0);
		device_free(&d);
	}
}

static void used_len_is_clamped_to_what_was_posted(void **state)
{
	static const struct moat_seg seg[] = {
		{ .addr = 0x1000, .len = 100 },
		{ .addr = 0x2000, .len = UINT32_MAX },
		{ .addr = 0x3000, .len = 1 },
	};
	static const uint32_t want[] = { 0, UINT32_MAX, UINT32_MAX };
	uint32_t cookie, len;
	struct device d;

	(void)state;
	device_make(&d, 5, false, false);
	/* Readable only, then 2^32 - 1 writable, then 2^32: 32 bits hold. */
	moat_drvq_add(&d.q, seg, 1, 0, 0, NULL, 0);
	moat_drvq_add(&d.q, seg, 1, 1, 1, NULL, 0);
	moat_drvq_add(&d.q, seg + 1, 0, 2, 2, NULL, 0);
	moat_drvq_publish(&d.q);
	for (uint32_t i = 0, at = 0; i < 3; at += i++ ? 2 : 1) {
		uint16_t id = get16(d.ring.vring.desc + 16 * at + 12);

		used(&d, at, id, UINT32_MAX);
		assert_int_equal(moat_drvq_get(&d.q, &cookie, &len), 1);
		assert_int_equal(cookie, i);
		assert_int_equal(len, want[i]);
	}
	device_free(&d);
}

static void reserved_event_flags_break_the_queue(void **state)
{
	struct device d;

	(void)state;
	for (int event = 0; event < 2; event++) {
		posted_three(&d, event);
		assert_true(post(&d, 1));
		put_event(d.ring.vring.used, 0, event ? E_RESERVED : E_DESC);
		assert_false(moat_drvq_publish(&d.q));
		expect_broken(&d, MOAT_FAULT_DEVICE_EVENT,
			      event ? E_RESERVED : E_DESC, 1);
	}
}

static void a_base_inside_a_list_says_nothing(void **state)
{
	struct device d;

	(void)state;
	posted_three(&d, false); /* of 1, 2 and 1 descriptors */
	assert_int_equal(moat_drvq_untaken(&d.q, 0x80008004), 0);
	assert_int_equal(moat_drvq_untaken(&d.q, 0x8003), 1);
	assert_int_equal(moat_drvq_untaken(&d.q, 0x8002), 0);
	assert_int_equal(moat_drvq_untaken(&d.q, 0x12348001), 2);
	assert_int_equal(moat_drvq_untaken(&d.q, 0x8000), 3);
	assert_int_equal(moat_drvq_untaken(&d.q, 0x8005), 0);
	assert_int_equal(moat_drvq_untaken(&d.q, 0x0007), 0);
	assert_int_equal(moat_drvq_untaken(&d.q, 0x8008), 0);
	assert_int_equal(moat_drvq_untaken(&d.q, 0xffff), 0);
	device_free(&d);
}

static void an_id_that_was_added_again_counts_once(void **state)
{
	static const struct moat_seg seg[2] = { { .len = 1 }, { .len = 1 } };
	uint32_t cookie, len;
	struct device d;

	(void)state;
	device_make(&d, 8, false, false);
	moat_drvq_add(&d.q, seg, 2, 0, 0, NULL, 0);
	moat_drvq_add(&d.q, seg, 1, 0, 1, NULL, 0);
	moat_drvq_publish(&d.q);
	/* The second comes back, and its id goes out once more. */
	used(&d, 0, get16(d.ring.vring.desc + 16 * 2 + 12), 0);
	assert_int_equal(moat_drvq_get(&d.q, &cookie, &len), 1);
	moat_drvq_add(&d.q, seg, 1, 0, 2, NULL, 0);
	moat_drvq_publish(&d.q);
	assert_int_equal(get16(d.ring.vring.desc + 16 * 3 + 12),
			 get16(d.ring.vring.desc + 16 * 2 + 12));
	assert_int_equal(moat_drvq_untaken(&d.q, 0x8004), 0);
	assert_int_equal(moat_drvq_untaken(&d.q, 0x8003), 1);
	/* Not taken, by its word, though it gave it back. */
	assert_int_equal(moat_drvq_untaken(&d.q, 0x8002), 1);
	device_free(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_operations_agree_with_the_model),
		cmocka_unit_test(a_queue_of_32768_fills_and_empties),
		cmocka_unit_test(a_used_id_out_of_range_breaks_the_queue),
		cmocka_unit_test(a_used_id_counts_only_while_outstanding),
		cmocka_unit_test(what_is_not_used_is_not_got),
		cmocka_unit_test(used_len_is_clamped_to_what_was_posted),
		cmocka_unit_test(reserved_event_flags_break_the_queue),
		cmocka_unit_test(a_base_inside_a_list_says_nothing),
		cmocka_unit_test(an_id_that_was_added_again_counts_once),
	};

	return cmocka_run_group_tests_name("drvq_packed", tests, NULL, NULL);
}
