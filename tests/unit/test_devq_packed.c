/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device side of a packed ring against a model of a driver, which knows by
 * plain bookkeeping what each call must return and what must stand in the ring.
 */
#include "packed_ring.h"

#include "core/devq.h"

#define RAM 0x100000u
#define RAM_SIZE 0x20000u
#define MAX_SEGS 4u

enum { FREE, POSTED, TAKEN, PREPARED };

struct expect {
	uint8_t state;
	uint16_t ndesc;
	uint32_t nread, nwrite, len;
	struct moat_seg seg[MAX_SEGS];
};

struct driver {
	struct test_ring ring;
	struct moat_region region;
	struct moat_memmap map;
	void *storage;
	struct moat_devq q;
	struct moat_chain chain;
	struct rng rng;
	struct expect *req; /* by id */
	uint16_t *posted;   /* ids, as posted, modulo the queue size */
	uint16_t *pushed;   /* ids, as pushed, modulo the queue size */
	uint32_t nposted, ntaken, npushed, nseen;
	uint32_t free;	    /* descriptors */
	struct place avail; /* where the next list goes */
	struct place take;  /* where the next list to take begins */
	struct place push;  /* where the next used one goes */
	struct place used;  /* where the next used one is seen */
	struct place notified;
	bool notified_valid, event, indirect;
};

static void driver_make(struct driver *d, uint16_t num, uint32_t base,
			bool event, bool indirect)
{
	struct place at = { base & 0x7fff, base & 0x8000 };

	*d = (struct driver){ .avail = at,
			      .take = at,
			      .push = at,
			      .used = at,
			      .notified = at,
			      .free = num,
			      .event = event,
			      .indirect = indirect,
			      .rng = { base + num } };
	packed_make(&d->ring, num);
	/* As the laps before left it: all used. */
	for (uint16_t i = 0; i < num; i++)
		put16(d->ring.vring.desc + 16 * i + 14,
		      used_bits((struct place){ i, i < at.idx ? at.wrap
							      : !at.wrap }));
	d->region = (struct moat_region){ RAM, RAM_SIZE, RAM,
					  must_alloc(RAM_SIZE) };
	moat_memmap_init(&d->map, &d->region, 1);
	d->map.n = 1;
	d->storage = calloc(1, moat_devq_storage(num));
	d->req = calloc(num, sizeof(*d->req));
	d->posted = calloc(num, sizeof(*d->posted));
	d->pushed = calloc(num, sizeof(*d->pushed));
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
	free(d->pushed);
}

static void fill(struct driver *d, struct expect *e, uint32_t n)
{
	*e = (struct expect){ .state = POSTED,
			      .nread = rnd_below(&d->rng, n + 1) };
	e->nwrite = n - e->nread;
	for (uint32_t i = 0; i < n; i++)
		e->seg[i] = (struct moat_seg){
			.addr = RAM + rnd_below(&d->rng, RAM_SIZE / 2),
			.len = 1 + rnd_below(&d->rng, 5000),
		};
}

static void post_table(struct driver *d, uint16_t id, uint32_t n)
{
	uint32_t off = 16 * MAX_SEGS * id;
	struct expect *e = &d->req[id];

	/* All but WRITE is reserved in a table, and ignored: also AVAIL. */
	for (uint32_t i = 0; i < n; i++)
		put_packed(d->region.host + off, i, e->seg[i].addr,
			   e->seg[i].len, (uint16_t)rnd(&d->rng),
			   (uint16_t)((rnd(&d->rng) & ~(uint32_t)P_WRITE) |
				      (i >= e->nread ? P_WRITE : 0)));
	e->ndesc = 1;
	put_packed(d->ring.vring.desc, d->avail.idx, RAM + off, 16 * n, id,
		   (uint16_t)(P_INDIRECT | avail_bits(d->avail) |
			      (rnd(&d->rng) & P_WRITE)));
	place_step(&d->avail, 1, d->ring.vring.num);
}

static void post_list(struct driver *d, uint16_t id, uint32_t n)
{
	struct expect *e = &d->req[id];

	for (uint32_t i = 0; i < n; i++) {
		bool last = i + 1 == n;

		/* The id counts in the last only. */
		put_packed(d->ring.vring.desc, d->avail.idx, e->seg[i].addr,
			   e->seg[i].len, last ? id : (uint16_t)rnd(&d->rng),
			   (uint16_t)(avail_bits(d->avail) |
				      (last ? 0 : P_NEXT) |
				      (i >= e->nread ? P_WRITE : 0)));
		place_step(&d->avail, 1, d->ring.vring.num);
	}
	e->ndesc = (uint16_t)n;
}

static bool post(struct driver *d)
{
	uint32_t num = d->ring.vring.num, id = rnd_below(&d->rng, num);
	uint32_t n = 1 + rnd_below(&d->rng, MAX_SEGS);
	bool table = d->indirect && rnd_below(&d->rng, 2);

	if (d->free < (table ? 1 : n))
		return false;
	while (d->req[id].state != FREE)
		id = (id + 1) % num;
	fill(d, &d->req[id], n);
	if (table)
		post_table(d, (uint16_t)id, n);
	else
		post_list(d, (uint16_t)id, n);
	d->free -= d->req[id].ndesc;
	d->posted[d->nposted++ % num] = (uint16_t)id;
	return true;
}

static bool check_peek(struct driver *d)
{
	const struct expect *e;
	uint16_t id;

	if (d->ntaken == d->nposted) {
		assert_int_equal(moat_devq_peek(&d->q, &d->map, &d->chain), 0);
		return false;
	}
	id = d->posted[d->ntaken % d->ring.vring.num];
	e = &d->req[id];
	assert_int_equal(moat_devq_peek(&d->q, &d->map, &d->chain), 1);
	assert_int_equal(d->chain.head, id);
	assert_int_equal(d->chain.nread, e->nread);
	assert_int_equal(d->chain.nwrite, e->nwrite);
	for (uint32_t i = 0; i < e->nread + e->nwrite; i++) {
		assert_int_equal(d->chain.seg[i].addr, e->seg[i].addr);
		assert_int_equal(d->chain.seg[i].len, e->seg[i].len);
	}
	return true;
}

static void take(struct driver *d)
{
	uint16_t id;

	if (!check_peek(d) || !rnd_below(&d->rng, 4))
		return; /* a peek alone leaves it in the ring */
	id = d->chain.head;
	moat_devq_take(&d->q, id);
	/* Once it is taken, nothing there matters to the device. */
	for (uint32_t i = 0; i < d->req[id].ndesc; i++) {
		rnd_fill(&d->rng, d->ring.vring.desc + 16 * d->take.idx, 14);
		place_step(&d->take, 1, d->ring.vring.num);
	}
	d->req[id].state = TAKEN;
	d->ntaken++;
}

static void push(struct driver *d)
{
	uint32_t num = d->ring.vring.num, k = rnd_below(&d->rng, num);
	struct expect *e;

	if (d->npushed == d->ntaken)
		return;
	while (d->req[k].state != TAKEN)
		k = (k + 1) % num;
	e = &d->req[k];
	e->state = PREPARED;
	e->len = rnd_below(&d->rng, 3) ? (uint32_t)rnd(&d->rng) : 0;
	moat_devq_push(&d->q, (uint16_t)k, e->len);
	d->pushed[d->npushed++ % num] = (uint16_t)k;
	place_step(&d->push, e->ndesc, d->ring.vring.num);
	/* Prepared is not published. */
	assert_false(used_at(&d->ring, d->used));
}

/* The driver looks at what was published, and frees the requests. */
static uint32_t see(struct driver *d)
{
	uint32_t n = 0;

	for (; d->nseen != d->npushed; d->nseen++, n++) {
		uint16_t id = d->pushed[d->nseen % d->ring.vring.num];
		const uint8_t *p = d->ring.vring.desc + 16 * d->used.idx;
		struct expect *e = &d->req[id];

		assert_true(used_at(&d->ring, d->used));
		assert_int_equal(get16(p + 12), id);
		assert_int_equal(get32(p + 8), e->len);
		assert_int_equal(flags_at(p, 0) & ~(P_AVAIL | P_USED),
				 e->len ? P_WRITE : 0);
		place_step(&d->used, e->ndesc, d->ring.vring.num);
		d->free += e->ndesc;
		e->state = FREE;
	}
	assert_false(used_at(&d->ring, d->used));
	return n;
}

static uint32_t publish(struct driver *d)
{
	uint16_t num = d->ring.vring.num, flags;
	struct place e = d->notified;
	bool want, moved = !place_same(d->notified, d->push);

	place_step(&e, rnd_below(&d->rng, 2u * num), num);
	if (rnd_below(&d->rng, 2))
		e = d->notified;
	flags = (uint16_t)rnd_below(&d->rng, d->event ? 3 : 2);
	put_event(d->ring.vring.avail, place_word(e),
		  (uint16_t)(flags | (rnd(&d->rng) & 0xfffc)));
	want = event_wants(d->ring.vring.avail, d->notified, d->push, num);
	if (flags == E_DESC && !d->notified_valid)
		want = moved;
	assert_int_equal(moat_devq_publish(&d->q), want);
	d->notified = d->push;
	d->notified_valid |= moved;
	return see(d);
}

static void notifications(struct driver *d)
{
	const uint8_t *e = d->ring.vring.used;

	assert_int_equal(moat_devq_pending(&d->q), d->ntaken != d->nposted);
	moat_devq_notify_off(&d->q);
	assert_int_equal(get16(e + 2), E_DISABLE);
	assert_int_equal(moat_devq_notify_on(&d->q), d->ntaken != d->nposted);
	assert_int_equal(get16(e + 2), d->event ? E_DESC : E_ENABLE);
	if (d->event)
		assert_int_equal(get16(e), place_word(d->take));
}

/* Return: how many requests went through. */
static uint32_t run(uint16_t num, uint32_t base, bool event, bool indirect,
		    int ops)
{
	uint32_t total = 0;
	struct driver d;

	driver_make(&d, num, base, event, indirect);
	for (int i = 0; i < ops; i++) {
		uint32_t burst = 1 + rnd_below(&d.rng, num < 48 ? num : 48);

		switch (rnd_below(&d.rng, 5)) {
		case 0:
			while (burst-- && post(&d))
				;
			break;
		case 1:
			while (burst--)
				take(&d);
			break;
		case 2:
			while (burst--)
				push(&d);
			break;
		case 3:
			total += publish(&d);
			break;
		case 4:
			notifications(&d);
			break;
		}
		assert_int_equal(moat_devq_base(&d.q),
				 place_word(d.take) |
					 (uint32_t)place_word(d.push) << 16);
	}
	assert_int_equal(d.q.fault.code, MOAT_FAULT_NONE);
	driver_free(&d);
	return total;
}

static void random_operations_agree_with_the_model(void **state)
{
	static const uint16_t nums[] = { 1, 2, 3, 8, 61, 256 };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(nums); i++)
		for (int f = 0; f < 4; f++) {
			uint16_t last = (uint16_t)(nums[i] - 1);

			run(nums[i], 0x80008000, f & 1, f & 2, 1500);
			run(nums[i], 0, f & 1, f & 2, 1500);
			run(nums[i], last | (uint32_t)last << 16, f & 1, f & 2,
			    1500);
		}
	assert_true(run(250, 0x80008000, true, true, 40000) > 65536);
}

static void a_queue_of_32768_fills_and_empties(void **state)
{
	uint16_t num = 32768;
	struct driver d;

	(void)state;
	driver_make(&d, num, 0x84d284d2, true, false);
	for (uint32_t i = 0; i < num; i++) {
		fill(&d, &d.req[i ^ 0x55], 1);
		post_list(&d, (uint16_t)(i ^ 0x55), 1);
		d.posted[d.nposted++] = (uint16_t)(i ^ 0x55);
	}
	for (uint32_t i = 0; i < num; i++) {
		assert_true(check_peek(&d));
		moat_devq_take(&d.q, d.chain.head);
		d.ntaken++;
	}
	assert_false(check_peek(&d));
	assert_int_equal(moat_devq_base(&d.q), 0x84d204d2);
	for (uint32_t i = 0; i < num; i++) {
		moat_devq_push(&d.q, (uint16_t)i, i);
		d.req[i].len = i;
		d.pushed[d.npushed++] = (uint16_t)i;
	}
	assert_true(moat_devq_publish(&d.q));
	assert_int_equal(see(&d), num);
	driver_free(&d);
}

static void expect_broken(struct driver *d, enum moat_fault_code code,
			  uint64_t value, uint64_t limit)
{
	uint8_t *copy = malloc(d->ring.desc_bytes);

	assert_non_null(copy);
	assert_int_equal(moat_devq_peek(&d->q, &d->map, &d->chain), -1);
	assert_int_equal(d->q.fault.code, code);
	assert_int_equal(d->q.fault.value, value);
	assert_int_equal(d->q.fault.limit, limit);
	memcpy(copy, d->ring.vring.desc, d->ring.desc_bytes);
	put_event(d->ring.vring.used, 0x1234, 0);
	moat_devq_push(&d->q, 0, 0);
	assert_false(moat_devq_publish(&d->q));
	moat_devq_notify_off(&d->q);
	assert_false(moat_devq_notify_on(&d->q));
	assert_false(moat_devq_pending(&d->q));
	assert_int_equal(moat_devq_rewind(&d->q, 1), 0);
	assert_int_equal(moat_devq_peek(&d->q, &d->map, &d->chain), -1);
	assert_memory_equal(d->ring.vring.desc, copy, d->ring.desc_bytes);
	assert_int_equal(get32(d->ring.vring.used), 0x1234);
	free(copy);
	driver_free(d);
}

/* A queue of 4 at its start; @flags of successive descriptors of one byte. */
static void posted(struct driver *d, const uint16_t *flags, uint32_t n,
		   bool indirect)
{
	driver_make(d, 4, 0x80008000, false, indirect);
	for (uint32_t i = 0; i < n; i++)
		put_packed(d->ring.vring.desc, i, RAM + i, 16, 2, flags[i]);
}

static void a_malformed_list_breaks_the_queue(void **state)
{
	static const struct {
		uint16_t flags[4];
		uint32_t n;
		bool indirect;
		enum moat_fault_code code;
		uint64_t value, limit;
	} bad[] = {
		/* longer than the ring, which is a loop as well */
		{ { P_AVAIL | P_NEXT, P_AVAIL | P_NEXT, P_AVAIL | P_NEXT,
		    P_AVAIL | P_NEXT },
		  4,
		  false,
		  MOAT_FAULT_CHAIN_LONG,
		  5,
		  4 },
		/* inside a list: used, of the last lap, never written */
		{ { P_AVAIL | P_NEXT, P_AVAIL | P_USED },
		  2,
		  false,
		  MOAT_FAULT_LAP_BITS,
		  P_AVAIL | P_USED,
		  0 },
		{ { P_AVAIL | P_NEXT, P_USED },
		  2,
		  false,
		  MOAT_FAULT_LAP_BITS,
		  P_USED,
		  0 },
		{ { P_AVAIL | P_NEXT, 0 },
		  2,
		  false,
		  MOAT_FAULT_LAP_BITS,
		  0,
		  0 },
		{ { P_AVAIL | P_NEXT | P_WRITE, P_AVAIL },
		  2,
		  false,
		  MOAT_FAULT_DIRECTION,
		  RAM + 1,
		  0 },
		{ { P_AVAIL | P_INDIRECT },
		  1,
		  false,
		  MOAT_FAULT_INDIRECT_OFF,
		  2,
		  0 },
		{ { P_AVAIL | P_INDIRECT | P_NEXT, P_AVAIL },
		  2,
		  true,
		  MOAT_FAULT_INDIRECT_NEXT,
		  0,
		  0 },
		{ { P_AVAIL | P_NEXT, P_AVAIL | P_INDIRECT },
		  2,
		  true,
		  MOAT_FAULT_INDIRECT_NEXT,
		  1,
		  0 },
	};
	struct driver d;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		posted(&d, bad[i].flags, bad[i].n, bad[i].indirect);
		expect_broken(&d, bad[i].code, bad[i].value, bad[i].limit);
	}
}

static void a_malformed_table_breaks_the_queue(void **state)
{
	static const struct {
		uint64_t addr;
		uint32_t len;
		enum moat_fault_code code;
		uint64_t value, limit;
	} bad[] = {
		{ RAM, 0, MOAT_FAULT_INDIRECT_LEN, 0, 0x80000 },
		{ RAM, 24, MOAT_FAULT_INDIRECT_LEN, 24, 0x80000 },
		{ RAM, 0x80010, MOAT_FAULT_INDIRECT_LEN, 0x80010, 0x80000 },
		{ RAM, 16 * 1025, MOAT_FAULT_CHAIN_LONG, 1025, 1024 },
		{ RAM - 16, 32, MOAT_FAULT_ADDRESS, RAM - 16, 32 },
		{ RAM + RAM_SIZE - 16, 32, MOAT_FAULT_ADDRESS,
		  RAM + RAM_SIZE - 16, 32 },
	};
	struct driver d;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		posted(&d, NULL, 0, true);
		put_packed(d.ring.vring.desc, 0, bad[i].addr, bad[i].len, 0,
			   P_AVAIL | P_INDIRECT);
		expect_broken(&d, bad[i].code, bad[i].value, bad[i].limit);
	}
}

static void an_id_counts_below_the_size_and_once(void **state)
{
	static const uint16_t flags[] = { P_AVAIL, P_AVAIL };
	struct driver d;

	(void)state;
	for (uint16_t id = 4; id; id = (uint16_t)(id * 2)) {
		posted(&d, flags, 1, false);
		put16(d.ring.vring.desc + 12, id);
		expect_broken(&d, MOAT_FAULT_ID_RANGE, id, 3);
	}
	posted(&d, flags, 2, false);
	assert_int_equal(moat_devq_peek(&d.q, &d.map, &d.chain), 1);
	moat_devq_take(&d.q, 2);
	expect_broken(&d, MOAT_FAULT_ID_TWICE, 2, 0);
	/* Given back, it is the driver's to use again. */
	posted(&d, flags, 2, false);
	assert_int_equal(moat_devq_peek(&d.q, &d.map, &d.chain), 1);
	moat_devq_take(&d.q, 2);
	moat_devq_push(&d.q, 2, 0);
	assert_int_equal(moat_devq_peek(&d.q, &d.map, &d.chain), 1);
	driver_free(&d);
}

static void more_than_the_ring_holds_breaks_the_queue(void **state)
{
	static const uint16_t flags[] = { P_AVAIL | P_NEXT, P_AVAIL,
					  P_AVAIL | P_NEXT, P_AVAIL | P_NEXT };
	struct driver d;

	(void)state;
	/* A list that runs into one which is outstanding. */
	posted(&d, flags, 4, false);
	assert_int_equal(moat_devq_peek(&d.q, &d.map, &d.chain), 1);
	moat_devq_take(&d.q, 2);
	put16(d.ring.vring.desc + 14, P_USED);
	expect_broken(&d, MOAT_FAULT_AVAIL_OVER, 3, 2);
	/* All are outstanding, and the next lap begins. */
	posted(&d, flags, 4, false);
	put_packed(d.ring.vring.desc, 3, RAM, 1, 1, P_AVAIL);
	for (uint16_t id = 2; id; id--) {
		assert_int_equal(moat_devq_peek(&d.q, &d.map, &d.chain), 1);
		assert_int_equal(d.chain.head, id);
		moat_devq_take(&d.q, id);
	}
	assert_int_equal(moat_devq_peek(&d.q, &d.map, &d.chain), 0);
	put16(d.ring.vring.desc + 14, P_USED);
	expect_broken(&d, MOAT_FAULT_AVAIL_OVER, 1, 0);
}

static void what_is_not_available_is_not_taken(void **state)
{
	static const uint16_t not_now[] = { 0, P_USED, P_AVAIL | P_USED };
	struct driver d;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(not_now); i++) {
		posted(&d, &not_now[i], 1, false);
		assert_int_equal(moat_devq_peek(&d.q, &d.map, &d.chain), 0);
		assert_false(moat_devq_pending(&d.q));
		driver_free(&d);
	}
}

static void reserved_event_flags_break_the_queue(void **state)
{
	static const uint16_t flags[] = { P_AVAIL };
	struct driver d;

	(void)state;
	for (int event = 0; event < 2; event++) {
		posted(&d, flags, 1, false);
		d.q.event_idx = event;
		assert_int_equal(moat_devq_peek(&d.q, &d.map, &d.chain), 1);
		moat_devq_take(&d.q, 2);
		moat_devq_push(&d.q, 2, 0);
		/* DESC is for those who negotiated EVENT_IDX. */
		put_event(d.ring.vring.avail, 0, event ? E_RESERVED : E_DESC);
		assert_false(moat_devq_publish(&d.q));
		expect_broken(&d, MOAT_FAULT_DRIVER_EVENT,
			      event ? E_RESERVED : E_DESC, 1);
	}
}

static void a_base_that_a_ring_can_not_have_breaks_the_queue(void **state)
{
	static const uint32_t bad[] = {
		0x80048000, 0x80008004, /* past the end */
		0x80018000,		/* used before avail was */
		0x00018003,		/* more in flight than the ring holds */
	};
	/* With two in flight; and bases whose used half is left out. */
	static const uint32_t good[] = { 0x80018003, 0x80030001, 0x8000, 0x8003,
					 0x0 };
	struct driver d;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		posted(&d, NULL, 0, false);
		moat_devq_init(&d.q, &d.ring.vring, d.storage, bad[i], false,
			       false);
		expect_broken(&d, MOAT_FAULT_BASE, bad[i], 4);
	}
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		posted(&d, NULL, 0, false);
		moat_devq_init(&d.q, &d.ring.vring, d.storage, good[i], false,
			       false);
		assert_int_equal(d.q.fault.code, MOAT_FAULT_NONE);
		assert_int_equal(d.q.inuse, i < 2 ? 2 : 0);
		driver_free(&d);
	}
}

static void a_new_ring_may_start_without_wrap_counters(void **state)
{
	static const uint16_t used[] = { P_AVAIL | P_USED };
	struct driver d;

	(void)state;
	posted(&d, NULL, 0, false);
	moat_devq_init(&d.q, &d.ring.vring, d.storage, 0, false, false);
	assert_int_equal(moat_devq_base(&d.q), 0x80008000);
	driver_free(&d);
	/* This one went round an odd number of times. */
	posted(&d, used, 1, false);
	moat_devq_init(&d.q, &d.ring.vring, d.storage, 0, false, false);
	assert_int_equal(moat_devq_base(&d.q), 0);
	driver_free(&d);
}

static void rewinding_stops_at_what_was_given_back(void **state)
{
	struct driver d;

	(void)state;
	driver_make(&d, 8, 0x80068006, false, false);
	/* Lists of 1, 2, 1 and 2, over the end of the ring. */
	for (uint16_t id = 0; id < 4; id++) {
		fill(&d, &d.req[id], 1 + id % 2);
		post_list(&d, id, 1 + id % 2);
		d.posted[d.nposted++] = id;
		assert_true(check_peek(&d));
		moat_devq_take(&d.q, id);
		d.ntaken++;
	}
	assert_int_equal(moat_devq_base(&d.q), 0x80060004);
	moat_devq_push(&d.q, 1, 0);
	assert_int_equal(moat_devq_rewind(&d.q, 1), 1);
	assert_int_equal(moat_devq_base(&d.q), 0x00000002);
	assert_int_equal(moat_devq_rewind(&d.q, 4), 1);
	assert_int_equal(moat_devq_base(&d.q), 0x00000001);
	for (d.ntaken = 2; d.ntaken < 4; d.ntaken++) {
		assert_true(check_peek(&d));
		moat_devq_take(&d.q, d.chain.head);
	}
	assert_false(check_peek(&d));
	driver_free(&d);
}

static void a_request_of_before_a_restart_is_outstanding_once(void **state)
{
	struct moat_packed_desc list[] = { { RAM, 5, 9, P_NEXT },
					   { RAM + 64, 7, 3, P_WRITE } };
	struct driver d;

	(void)state;
	driver_make(&d, 8, 0x80068006, false, false);
	assert_int_equal(moat_devq_resume_copy(&d.q, &d.map, list, 2, &d.chain),
			 0);
	assert_int_equal(d.chain.head, 3);
	assert_int_equal(d.chain.read_len, 5);
	assert_int_equal(d.chain.write_len, 7);
	/* It stands in the ring's last two places; the next is one lap on. */
	assert_int_equal(moat_devq_base(&d.q), 0x80060000);
	moat_devq_push(&d.q, 3, 7);
	moat_devq_publish(&d.q);
	assert_true(used_at(&d.ring, (struct place){ 6, true }));
	assert_int_equal(moat_devq_base(&d.q), 0);
	assert_int_equal(moat_devq_resume_copy(&d.q, &d.map, list, 2, &d.chain),
			 0);
	assert_int_equal(moat_devq_resume_copy(&d.q, &d.map, list, 2, &d.chain),
			 -1);
	assert_int_equal(d.q.fault.code, MOAT_FAULT_ID_TWICE);
	driver_free(&d);
}

/* In-flight records are memory that a peer can write. */
static void a_copied_list_that_is_none_breaks_the_queue(void **state)
{
	static const struct {
		struct moat_packed_desc list[2];
		uint32_t n;
		enum moat_fault_code code;
	} bad[] = {
		{ { { RAM, 5, 3, P_NEXT } }, 1, MOAT_FAULT_CHAIN_LONG },
		{ { { RAM, 5, 3, 0 } }, 2, MOAT_FAULT_CHAIN_LONG },
		{ { { RAM, 5, 3, 0 } }, 0, MOAT_FAULT_CHAIN_LONG },
		{ { { RAM, 5, 8, 0 } }, 1, MOAT_FAULT_ID_RANGE },
		{ { { 0, 5, 3, 0 } }, 1, MOAT_FAULT_ADDRESS },
		{ { { RAM, 16, 3, P_INDIRECT } }, 1, MOAT_FAULT_INDIRECT_OFF },
		{ { { RAM, 5, 3, P_NEXT } }, 9, MOAT_FAULT_AVAIL_OVER },
	};
	struct driver d;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		driver_make(&d, 8, 0x80008000, false, false);
		assert_int_equal(moat_devq_resume_copy(&d.q, &d.map,
						       bad[i].list, bad[i].n,
						       &d.chain),
				 -1);
		assert_int_equal(d.q.fault.code, bad[i].code);
		driver_free(&d);
	}
}

static void what_is_taken_back_is_not_seen_used(void **state)
{
	struct driver d;
	struct place p = { 6, true };

	(void)state;
	driver_make(&d, 8, 0x80068006, false, false);
	for (uint32_t i = 0; i < 8; i++, place_step(&p, 1, 8))
		put16(d.ring.vring.desc + 16 * p.idx + 14,
		      i % 2 ? used_bits(p)
			    : (uint16_t)(avail_bits(p) | P_NEXT));
	moat_devq_take_back(&d.ring.vring, 0x8006, 4);
	p = (struct place){ 6, true };
	for (uint32_t i = 0; i < 8; i++, place_step(&p, 1, 8)) {
		assert_int_equal(used_at(&d.ring, p), i % 2 && i >= 4);
		assert_true(i % 2 ||
			    flags_at(d.ring.vring.desc, p.idx) & P_NEXT);
	}
	driver_free(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_operations_agree_with_the_model),
		cmocka_unit_test(a_queue_of_32768_fills_and_empties),
		cmocka_unit_test(a_malformed_list_breaks_the_queue),
		cmocka_unit_test(a_malformed_table_breaks_the_queue),
		cmocka_unit_test(an_id_counts_below_the_size_and_once),
		cmocka_unit_test(more_than_the_ring_holds_breaks_the_queue),
		cmocka_unit_test(what_is_not_available_is_not_taken),
		cmocka_unit_test(reserved_event_flags_break_the_queue),
		cmocka_unit_test(
			a_base_that_a_ring_can_not_have_breaks_the_queue),
		cmocka_unit_test(a_new_ring_may_start_without_wrap_counters),
		cmocka_unit_test(rewinding_stops_at_what_was_given_back),
		cmocka_unit_test(
			a_request_of_before_a_restart_is_outstanding_once),
		cmocka_unit_test(a_copied_list_that_is_none_breaks_the_queue),
		cmocka_unit_test(what_is_taken_back_is_not_seen_used),
	};

	return cmocka_run_group_tests_name("devq_packed", tests, NULL, NULL);
}
