/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device that is killed, after any store to its record.
 *
 * The code is built once more here, with a look at what a successor would find
 * after each store: on a copy of ring and record, each request that was begun
 * is either used or in flight, never both, never none.
 */
#include "packed_ring.h"

#include "inflight_kill.h"

#define NUM 8u
#define RAM 0x100000u
#define RAM_SIZE 0x10000u
#define POSTS 500u
#define LIST_MAX 3u
#define NONE 0xffffu

/* Between driver and device, and what the driver knows. */
struct shared {
	_Alignas(16) uint8_t desc[16 * NUM];
	_Alignas(8) uint8_t avail[64], used[128];
	uint32_t posted, seen; /* requests */
	uint16_t named[NUM];   /* the request with that head or id */
	uint16_t ndesc[POSTS];
	bool done[POSTS]; /* seen used */
	struct place at, next;
	uint32_t room;
	bool failed;
};

/* What a successor finds; it works on this copy. */
struct copy {
	struct shared s;
	_Alignas(64) uint8_t record[1024];
};

struct world {
	bool packed;
	struct shared s;
	struct copy copy;
	bool looking;
	uint32_t kills;
	struct moat_inflight f;
	struct moat_vu_inflight want;
	struct moat_region region;
	struct moat_memmap map;
	struct moat_vring ring;
	/* the device's */
	struct moat_devq dq;
	struct moat_inflight_queue q;
	struct moat_chain chain;
	void *storage;
	uint16_t held[NUM]; /* taken, not pushed */
	uint32_t nheld, npushed;
	struct rng rng;
};

static struct moat_vring ring_in(const struct world *w, struct shared *s)
{
	return (struct moat_vring){ .num = NUM,
				    .packed = w->packed,
				    .desc = s->desc,
				    .avail = s->avail,
				    .used = s->used };
}

/* ---- the driver; each request's address tells which one it is ---- */

static uint64_t addr_of(uint32_t request, uint32_t i)
{
	return RAM + 64 * request + 16 * i;
}

static uint32_t request_at(uint64_t addr)
{
	return (uint32_t)(addr - RAM) / 64;
}

static void post_packed(struct shared *s, uint16_t id, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		put_packed(s->desc, s->at.idx, addr_of(s->posted, i), 16, id,
			   (uint16_t)(avail_bits(s->at) |
				      (i + 1 < n ? P_NEXT : 0)));
		place_step(&s->at, 1, NUM);
	}
}

static void post_split(struct shared *s, uint16_t head)
{
	put_desc(s->desc, head, addr_of(s->posted, 0), 16, 0, 0);
	put16(s->avail + 4 + 2 * (s->posted % NUM), head);
	put16(s->avail + 2, (uint16_t)(s->posted + 1));
}

static void post(struct world *w)
{
	struct shared *s = &w->s;
	uint32_t n = w->packed ? 1 + rnd_below(&w->rng, LIST_MAX) : 1;
	uint16_t name = (uint16_t)rnd_below(&w->rng, NUM);

	if (n > s->room || s->posted == POSTS)
		return;
	while (s->named[name] != NONE)
		name = (uint16_t)((name + 1) % NUM);
	if (w->packed)
		post_packed(s, name, n);
	else
		post_split(s, name);
	s->named[name] = (uint16_t)s->posted;
	s->ndesc[s->posted++] = (uint16_t)n;
	s->room -= n;
}

/* The next used entry's head or id from @next on, or NONE. */
static uint16_t used_next(const struct world *w, const struct shared *s,
			  struct place next, uint32_t seen)
{
	uint16_t flags = flags_at(s->desc, next.idx);

	if (!w->packed)
		return seen == get16(s->used + 2)
			       ? NONE
			       : get16(s->used + 4 + 8 * (seen % NUM));
	return (flags & (P_AVAIL | P_USED)) == used_bits(next)
		       ? get16(s->desc + 16 * next.idx + 12)
		       : NONE;
}

static void reap(struct world *w)
{
	struct shared *s = &w->s;
	uint16_t name;

	while ((name = used_next(w, s, s->next, s->seen)) != NONE) {
		uint16_t request = s->named[name];

		s->named[name] = NONE;
		s->done[request] = true;
		s->room += s->ndesc[request];
		place_step(&s->next, s->ndesc[request], NUM);
		s->seen++;
	}
}

/* ---- the device, as src/dev/host/queue.c is one ---- */

static void start(struct world *w)
{
	uint16_t begun[NUM];
	struct moat_packed_desc copy[NUM];
	uint16_t used = w->packed ? MOAT_PACKED_START : get16(w->ring.used + 2);
	uint32_t total = 0, base;
	int n;

	moat_inflight_close(&w->q);
	n = moat_inflight_open(&w->f, 0, &w->ring, used, begun, &w->q);
	w->s.failed |= n < 0;
	base = w->packed ? (uint32_t)w->q.used << 16 | w->q.used
			 : w->q.used + (uint32_t)n;
	memset(w->storage, 0, moat_devq_storage(NUM));
	moat_devq_init(&w->dq, &w->ring, w->storage, base, false, false);
	for (int i = 0; w->packed && i < n; i++)
		total += moat_inflight_copy(&w->q, begun[i], copy);
	if (w->packed)
		moat_devq_take_back(&w->ring, w->dq.used_next, total);
	w->nheld = w->npushed = 0;
	for (int i = 0; i < n; i++) {
		if (!w->packed) {
			w->s.failed |= moat_devq_resume(&w->dq, &w->map,
							begun[i], &w->chain);
		} else {
			w->s.failed |= moat_devq_resume_copy(
				&w->dq, &w->map, copy,
				moat_inflight_copy(&w->q, begun[i], copy),
				&w->chain);
			moat_inflight_resumed(&w->q, begun[i], w->chain.head);
		}
		w->held[w->nheld++] = w->chain.head;
	}
}

static void take(struct world *w)
{
	if (moat_devq_peek(&w->dq, &w->map, &w->chain) <= 0)
		return;
	w->s.failed |= !moat_inflight_room(&w->q, &w->dq);
	moat_inflight_take(&w->q, &w->dq, w->chain.head);
	moat_devq_take(&w->dq, w->chain.head);
	w->held[w->nheld++] = w->chain.head;
}

static void push(struct world *w)
{
	uint32_t i;

	if (!w->nheld)
		return;
	i = rnd_below(&w->rng, w->nheld);
	moat_inflight_push(&w->q, w->held[i]);
	moat_devq_push(&w->dq, w->held[i], 0);
	w->held[i] = w->held[--w->nheld];
	w->npushed++;
}

static void publish(struct world *w)
{
	if (!w->npushed)
		return;
	moat_inflight_publish(&w->q, w->dq.used_next);
	moat_devq_publish(&w->dq);
	moat_inflight_published(&w->q);
	w->npushed = 0;
}

static void device(struct world *w)
{
	switch (rnd_below(&w->rng, 16)) {
	case 0:
		start(w);
		break;
	case 1:
	case 2:
	case 3:
		publish(w);
		break;
	case 4:
	case 5:
	case 6:
	case 7:
	case 8:
	case 9:
		push(w);
		break;
	default:
		take(w);
	}
	w->s.failed |= w->dq.fault.code;
}

/* ---- a successor ---- */

static void check_gone(const struct world *w, struct copy *c, struct place p,
		       uint32_t descs)
{
	for (; w->packed && descs; descs--, place_step(&p, 1, NUM))
		assert_false((flags_at(c->s.desc, p.idx) &
			      (P_AVAIL | P_USED)) == used_bits(p));
}

/* Requests that a driver would see used; returns where it would go on. */
static struct place look(const struct world *w, struct shared *s, uint32_t *k)
{
	struct place p = s->next;
	uint32_t seen = s->seen;
	uint16_t name;

	while ((name = used_next(w, s, p, seen)) != NONE) {
		assert_true(name < NUM && s->named[name] != NONE);
		assert_false(s->done[s->named[name]]);
		s->done[s->named[name]] = true;
		place_step(&p, s->ndesc[s->named[name]], NUM);
		seen++;
	}
	*k = seen;
	return p;
}

static void check_successor(const struct world *w, struct copy *c)
{
	struct moat_vring ring = ring_in(w, &c->s);
	struct moat_inflight f = w->f;
	struct moat_inflight_queue q;
	struct moat_packed_desc copy[NUM];
	uint16_t begun[NUM];
	uint32_t k, descs = 0, last = 0;
	struct place p = look(w, &c->s, &k);
	int n;

	f.host = c->record;
	n = moat_inflight_open(&f, 0, &ring,
			       w->packed ? MOAT_PACKED_START : (uint16_t)k,
			       begun, &q);
	assert_true(n >= 0);
	for (int i = 0; i < n; i++) {
		uint32_t m =
			w->packed ? moat_inflight_copy(&q, begun[i], copy) : 1;
		uint32_t r = w->packed ? request_at(copy[0].addr)
				       : c->s.named[begun[i]];

		assert_true(r < c->s.posted && (!i || r > last));
		assert_false(c->s.done[r]);
		assert_int_equal(m, c->s.ndesc[r]);
		for (uint32_t j = 0; w->packed && j < m; j++)
			assert_int_equal(copy[j].addr, addr_of(r, j));
		c->s.done[r] = true;
		last = r;
		descs += m;
	}
	/* All that were begun, and nothing else: the first so many. */
	for (uint32_t r = 0; r < k + (uint32_t)n; r++)
		assert_true(c->s.done[r]);
	assert_int_equal(q.used, w->packed ? place_word(p) : (uint16_t)k);
	if (w->packed)
		moat_devq_take_back(&ring, q.used, descs);
	check_gone(w, c, p, descs);
	moat_inflight_close(&q);
}

/* ---- */

static struct world *world;

void killed_now(void)
{
	struct world *w = world;

	/* The successor's stores are its own. */
	if (w->looking || !w->q.record)
		return;
	w->looking = true;
	w->copy.s = w->s;
	memcpy(w->copy.record, w->f.host, w->f.size);
	check_successor(w, &w->copy);
	w->kills++;
	/* The driver does not wait for anybody. */
	if (!rnd_below(&w->rng, 4)) {
		reap(w);
		post(w);
	}
	w->looking = false;
}

static void run(struct world *w)
{
	while (w->s.seen < POSTS) {
		post(w);
		device(w);
		/* The last store need not have been one to the record. */
		killed_now();
		assert_false(w->s.failed);
		reap(w);
	}
	assert_true(w->kills > 5 * POSTS);
}

static void killed_after_any_store(bool packed, uint64_t seed)
{
	struct world *w = calloc(1, sizeof(*w));
	struct place first = { 0, true };

	world = w;
	w->packed = packed;
	w->rng = (struct rng){ seed };
	w->s.at = w->s.next = first;
	w->s.room = NUM;
	for (uint32_t i = 0; i < NUM; i++)
		w->s.named[i] = NONE;
	w->ring = ring_in(w, &w->s);
	w->region = (struct moat_region){ RAM, RAM_SIZE, RAM,
					  must_alloc(RAM_SIZE) };
	moat_memmap_init(&w->map, &w->region, 1);
	w->map.n = 1;
	w->storage = calloc(1, moat_devq_storage(NUM));
	moat_inflight_init(&w->f);
	w->want =
		(struct moat_vu_inflight){ .num_queues = 1, .queue_size = NUM };
	assert_int_equal(moat_inflight_make(&w->f, &w->want, packed), 0);
	assert_true(w->f.size <= sizeof(w->copy.record));
	start(w);
	run(w);
	moat_inflight_close(&w->q);
	moat_inflight_fini(&w->f);
	free(w->storage);
	free(w->region.host);
	free(w);
}

static void split_requests_are_used_or_in_flight(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 10; seed++)
		killed_after_any_store(false, seed);
}

static void packed_requests_are_used_or_in_flight(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 20; seed++)
		killed_after_any_store(true, seed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(split_requests_are_used_or_in_flight),
		cmocka_unit_test(packed_requests_are_used_or_in_flight),
	};

	return cmocka_run_group_tests_name("inflight-kill", tests, NULL, NULL);
}
