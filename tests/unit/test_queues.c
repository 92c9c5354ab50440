/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two ends back to back over one memory: what drvq posts, devq takes, and
 * back. Each side sleeps unless it was notified, or was told at falling asleep
 * that there is work: a notification that is missing ends in both asleep.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <time.h>

#include "support.h"

#include "core/devq.h"
#include "core/drvq.h"

#define MEM UINT64_C(0x4000000000)
#define SLOT 4096u /* payload of a request */
#define TABLE 256u /* and its indirect table */
#define MAX_SEGS 12u

struct pair {
	struct moat_drvq drv;
	struct moat_devq dev;
	struct test_ring ring;
	struct moat_drvq_desc *descs;
	uint8_t *storage, *mem;
	struct moat_region region;
	struct moat_memmap map;
	struct moat_chain chain; /* the device's */
	struct rng drv_rng, dev_rng;
	uint16_t *held; /* heads that the device works on, with their lengths */
	uint32_t *held_len;
	uint32_t nheld;
	bool *busy;    /* cookies in flight */
	uint64_t *tag; /* what the request asked for */
	uint32_t *write_len, *want_len;
	uint32_t todo, posted, done;
	uint32_t max_segs; /* what an empty ring holds at least */
	sem_t kick, call;
};

static void pair_make(struct pair *p, bool packed, uint16_t num, bool event,
		      bool indirect, uint32_t todo)
{
	size_t bytes = (size_t)num * (SLOT + TABLE);

	memset(p, 0, sizeof(*p));
	if (packed)
		packed_make(&p->ring, num);
	else
		ring_make(&p->ring, num);
	p->descs = calloc(num, sizeof(*p->descs));
	p->storage = calloc(1, moat_devq_storage(num));
	p->mem = must_alloc(bytes);
	p->region = (struct moat_region){ MEM, bytes, MEM, p->mem };
	moat_memmap_init(&p->map, &p->region, 1);
	p->map.n = 1;
	p->held = calloc(num, sizeof(*p->held));
	p->held_len = calloc(num, sizeof(*p->held_len));
	p->busy = calloc(num, sizeof(*p->busy));
	p->tag = calloc(num, sizeof(*p->tag));
	p->write_len = calloc(num, sizeof(*p->write_len));
	p->want_len = calloc(num, sizeof(*p->want_len));
	p->drv_rng.s = num;
	p->dev_rng.s = num + 1u;
	p->todo = todo;
	p->max_segs = indirect || num > MAX_SEGS ? MAX_SEGS : num;
	sem_init(&p->kick, 0, 0);
	sem_init(&p->call, 0, 0);
	moat_drvq_init(&p->drv, &p->ring.vring, p->descs, event, indirect);
	moat_devq_init(&p->dev, &p->ring.vring, p->storage,
		       moat_drvq_base(&p->drv), event, indirect);
}

static void pair_free(struct pair *p)
{
	ring_free(&p->ring);
	free(p->descs);
	free(p->storage);
	free(p->mem);
	free(p->held);
	free(p->held_len);
	free(p->busy);
	free(p->tag);
	free(p->write_len);
	free(p->want_len);
	sem_destroy(&p->kick);
	sem_destroy(&p->call);
}

/*
 * A request: 16 readable bytes (a tag, and how many bytes to write), then
 * writable ones, both cut into segments at random.
 */
static bool driver_post(struct pair *p)
{
	uint32_t n, nread = 1, at = 0, cookie = 0, wlen = 0;
	struct rng *r = &p->drv_rng;
	struct moat_seg seg[MAX_SEGS];
	uint8_t *slot;
	bool table;

	n = 1 + rnd_below(r, p->max_segs);
	if (n > 1 && rnd_below(r, 2))
		nread = 2;
	if (p->posted == p->todo || !moat_drvq_room(&p->drv, n))
		return false;
	while (p->busy[cookie])
		cookie++;
	slot = p->mem + (size_t)cookie * (SLOT + TABLE);
	for (uint32_t i = 0; i < n; i++) {
		seg[i].addr = MEM + (uint64_t)(slot - p->mem) + at;
		seg[i].len = i < nread ? 16 / nread : 1 + rnd_below(r, 300);
		at += seg[i].len;
		if (i >= nread)
			wlen += seg[i].len;
	}
	p->busy[cookie] = true;
	p->tag[cookie] = rnd(r);
	p->write_len[cookie] = wlen;
	p->want_len[cookie] = rnd_below(r, wlen + 1);
	memset(slot, 0xee, SLOT);
	put64(slot, p->tag[cookie]);
	put64(slot + 8, p->want_len[cookie]);
	table = moat_drvq_wants_table(&p->drv, n);
	moat_drvq_add(&p->drv, seg, nread, n - nread, cookie,
		      table ? slot + SLOT : NULL,
		      MEM + (uint64_t)(slot - p->mem) + SLOT);
	p->posted++;
	return true;
}

static void driver_got(struct pair *p, uint32_t cookie, uint32_t len)
{
	const uint8_t *out = p->mem + (size_t)cookie * (SLOT + TABLE) + 16;
	uint8_t fill = (uint8_t)p->tag[cookie];

	assert_true(p->busy[cookie]);
	assert_int_equal(len, p->want_len[cookie]);
	for (uint32_t i = 0; i < p->write_len[cookie]; i++)
		assert_int_equal(out[i], i < len ? fill : 0xee);
	p->busy[cookie] = false;
	p->done++;
}

/* One round of the driver; returns true if the device must be woken. */
static bool driver_step(struct pair *p)
{
	uint32_t burst = 1 + rnd_below(&p->drv_rng, 16), cookie, len;
	bool kick = false;

	while (burst-- && driver_post(p))
		if (!rnd_below(&p->drv_rng, 5))
			kick |= moat_drvq_publish(&p->drv);
	kick |= moat_drvq_publish(&p->drv);
	while (moat_drvq_get(&p->drv, &cookie, &len) == 1)
		driver_got(p, cookie, len);
	assert_int_equal(p->drv.fault.code, MOAT_FAULT_NONE);
	return kick;
}

static uint32_t device_work(struct pair *p)
{
	uint64_t left;
	uint8_t in[16];
	uint32_t at = 0;

	for (uint32_t i = 0; i < p->chain.nread; i++) {
		assert_int_equal(moat_memmap_read(&p->map, in + at,
						  p->chain.seg[i].addr,
						  p->chain.seg[i].len),
				 0);
		at += p->chain.seg[i].len;
	}
	assert_int_equal(at, 16);
	left = get64(in + 8);
	for (uint32_t i = 0; i < p->chain.nwrite; i++) {
		const struct moat_seg *s = &p->chain.seg[p->chain.nread + i];
		uint64_t n = left < s->len ? left : s->len;

		memset(p->mem + (s->addr - MEM), in[0], n);
		left -= n;
	}
	assert_int_equal(left, 0);
	return (uint32_t)get64(in + 8);
}

/* One round of the device; returns true if the driver must be woken. */
static bool device_step(struct pair *p, bool flush)
{
	uint32_t burst = 1 + rnd_below(&p->dev_rng, 16);
	bool call = false;

	while (moat_devq_peek(&p->dev, &p->map, &p->chain) == 1) {
		p->held[p->nheld] = p->chain.head;
		p->held_len[p->nheld++] = device_work(p);
		moat_devq_take(&p->dev, p->chain.head);
	}
	assert_int_equal(p->dev.fault.code, MOAT_FAULT_NONE);
	while (p->nheld && (flush || burst--)) {
		uint32_t k = rnd_below(&p->dev_rng, p->nheld);

		moat_devq_push(&p->dev, p->held[k], p->held_len[k]);
		p->held[k] = p->held[--p->nheld];
		p->held_len[k] = p->held_len[p->nheld];
		if (!rnd_below(&p->dev_rng, 5))
			call |= moat_devq_publish(&p->dev);
	}
	return moat_devq_publish(&p->dev) || call;
}

static void no_wakeup_is_lost_in_any_order_of_calls(void **state)
{
	static const uint16_t nums[] = { 1, 4, 64, 256 };
	static const uint16_t odd[] = { 1, 3, 61, 250 };

	(void)state;
	for (int k = 0; k < 32; k++) {
		bool packed = k & 16;
		uint16_t num = packed ? odd[k % 4] : nums[k % 4];
		bool drv_awake = true, dev_awake = true;
		struct pair p;

		pair_make(&p, packed, num, k & 4, k & 8,
			  num > 1 ? 12000 : 2000);
		while (p.done != p.todo) {
			/* Both asleep with work left: a lost wakeup. */
			assert_true(drv_awake || dev_awake || p.nheld);
			if (drv_awake && rnd_below(&p.drv_rng, 2)) {
				moat_drvq_notify_off(&p.drv);
				dev_awake |= driver_step(&p);
				drv_awake = moat_drvq_notify_on(&p.drv);
				/* Room is work too: it can post on. */
				drv_awake |= p.posted != p.todo &&
					     moat_drvq_room(&p.drv, p.max_segs);
			}
			if ((dev_awake || p.nheld) &&
			    rnd_below(&p.drv_rng, 2)) {
				moat_devq_notify_off(&p.dev);
				drv_awake |= device_step(&p, false);
				dev_awake = moat_devq_notify_on(&p.dev);
			}
		}
		assert_int_equal(p.drv.outstanding, 0);
		assert_int_equal(p.drv.num_free, num);
		pair_free(&p);
	}
}

/* With a deadline: a wakeup that is lost is a failure and not a hang. */
static bool sleep_on(sem_t *s)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	t.tv_sec += 20;
	while (sem_timedwait(s, &t))
		if (errno == ETIMEDOUT)
			return false;
	return true;
}

static void *device_thread(void *arg)
{
	struct pair *p = arg;

	for (;;) {
		moat_devq_notify_off(&p->dev);
		if (device_step(p, true))
			sem_post(&p->call);
		if (moat_devq_notify_on(&p->dev))
			continue;
		if (!sleep_on(&p->kick))
			return p;
		if (__atomic_load_n(&p->todo, __ATOMIC_ACQUIRE) == 0)
			return NULL;
	}
}

static void no_wakeup_is_lost_between_two_threads(void **state)
{
	(void)state;
	for (int k = 0; k < 8; k++) {
		void *stuck = NULL;
		pthread_t thread;
		struct pair p;

		pair_make(&p, k & 4, k & 1 ? 4 : 128, k & 2, true, 20000);
		assert_int_equal(
			pthread_create(&thread, NULL, device_thread, &p), 0);
		while (p.done != p.todo && !stuck) {
			moat_drvq_notify_off(&p.drv);
			if (driver_step(&p))
				sem_post(&p.kick);
			if (moat_drvq_notify_on(&p.drv) || p.done == p.todo ||
			    (p.posted != p.todo &&
			     moat_drvq_room(&p.drv, p.max_segs)))
				continue;
			if (!sleep_on(&p.call))
				stuck = &p;
		}
		assert_null(stuck);
		__atomic_store_n(&p.todo, 0, __ATOMIC_RELEASE);
		sem_post(&p.kick);
		pthread_join(thread, &stuck);
		assert_null(stuck);
		pair_free(&p);
	}
}

/*
 * The race itself, over and over: one side publishes while the other falls
 * asleep. Without the full barrier on either side both may look too early.
 */
struct race {
	struct pair p;
	uint32_t go, ready; /* rounds that main, that the sleeper has begun */
	bool drv_sleeps, more, stop;
};

static void meet(uint32_t *mine, const uint32_t *other)
{
	uint32_t n = __atomic_add_fetch(mine, 1, __ATOMIC_SEQ_CST);

	for (uint32_t i = 0; __atomic_load_n(other, __ATOMIC_SEQ_CST) < n; i++)
		if (i > 2000)
			sched_yield();
}

static void *sleeper(void *arg)
{
	struct race *r = arg;

	for (;;) {
		meet(&r->ready, &r->go);
		if (r->stop)
			return NULL;
		if (r->drv_sleeps)
			r->more = moat_drvq_notify_on(&r->p.drv);
		else
			r->more = moat_devq_notify_on(&r->p.dev);
		meet(&r->ready, &r->go);
	}
}

/* A request goes round; the sleeper falls asleep right at the publication. */
static void race_round(struct race *r, uint32_t i)
{
	const struct moat_seg seg = { .addr = MEM, .len = 1 };
	uint32_t cookie, len;
	bool want;

	moat_drvq_notify_off(&r->p.drv);
	moat_devq_notify_off(&r->p.dev);
	moat_drvq_add(&r->p.drv, &seg, 1, 0, 0, NULL, 0);
	if (r->drv_sleeps) {
		moat_drvq_publish(&r->p.drv);
		assert_int_equal(
			moat_devq_peek(&r->p.dev, &r->p.map, &r->p.chain), 1);
		moat_devq_take(&r->p.dev, r->p.chain.head);
		moat_devq_push(&r->p.dev, r->p.chain.head, 0);
	}
	meet(&r->go, &r->ready);
	for (uint32_t k = i % 64; k; k--)
		__atomic_signal_fence(__ATOMIC_SEQ_CST);
	want = r->drv_sleeps ? moat_devq_publish(&r->p.dev)
			     : moat_drvq_publish(&r->p.drv);
	meet(&r->go, &r->ready);
	assert_true(want || r->more);
	if (!r->drv_sleeps) {
		assert_int_equal(
			moat_devq_peek(&r->p.dev, &r->p.map, &r->p.chain), 1);
		moat_devq_take(&r->p.dev, r->p.chain.head);
		moat_devq_push(&r->p.dev, r->p.chain.head, 0);
		moat_devq_publish(&r->p.dev);
	}
	assert_int_equal(moat_drvq_get(&r->p.drv, &cookie, &len), 1);
}

static void publishing_and_falling_asleep_never_miss_each_other(void **state)
{
	(void)state;
	for (int k = 0; k < 8; k++) {
		struct race *r = calloc(1, sizeof(*r));
		pthread_t thread;

		assert_non_null(r);
		pair_make(&r->p, k & 4, k & 4 ? 3 : 4, k & 1, false, 0);
		r->drv_sleeps = k & 2;
		assert_int_equal(pthread_create(&thread, NULL, sleeper, r), 0);
		for (uint32_t i = 0; i < 60000; i++)
			race_round(r, i);
		r->stop = true;
		meet(&r->go, &r->ready);
		pthread_join(thread, NULL);
		pair_free(&r->p);
		free(r);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_wakeup_is_lost_in_any_order_of_calls),
		cmocka_unit_test(no_wakeup_is_lost_between_two_threads),
		cmocka_unit_test(
			publishing_and_falling_asleep_never_miss_each_other),
	};

	return cmocka_run_group_tests_name("queues", tests, NULL, NULL);
}
