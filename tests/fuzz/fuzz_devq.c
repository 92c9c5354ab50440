/* SPDX-License-Identifier: Apache-2.0 */
/* A hostile driver: ring, tables and indices are what the input says. */
#include "fuzz.h"

#include "core/devq.h"

#define PAGE 4096u
#define RAM UINT64_C(0x10000)
#define TOP (UINT64_MAX - (PAGE - 1))
#define NUM_MAX 64u
#define AVAIL 1024u /* offsets in the first page */
#define USED 1536u

struct world {
	uint8_t low[PAGE] __attribute__((aligned(16)));
	uint8_t next[PAGE] __attribute__((aligned(16)));
	uint8_t top[PAGE] __attribute__((aligned(16)));
	struct moat_region regions[3];
	struct moat_memmap map;
	struct moat_vring ring;
	struct moat_devq q;
	uint16_t storage[moat_devq_storage(NUM_MAX) / 2];
	uint8_t taken[NUM_MAX];
	uint8_t used[6 + 8 * NUM_MAX]; /* as the device left it */
	uint32_t ntaken, pushed;
	struct moat_chain chain;
};

static void set_up(struct world *w, struct input *in)
{
	uint8_t f = in8(in);
	uint16_t base = in16(in);

	memset(w, 0, offsetof(struct world, chain));
	w->regions[0] = (struct moat_region){ RAM, PAGE, RAM, w->low };
	w->regions[1] =
		(struct moat_region){ RAM + PAGE, PAGE, 0x90000, w->next };
	w->regions[2] = (struct moat_region){ TOP, PAGE, TOP, w->top };
	moat_memmap_init(&w->map, w->regions, 3);
	w->map.n = 3;
	w->ring = (struct moat_vring){ w->low, w->low + AVAIL, w->low + USED,
				       (uint16_t)(1u << (f & 7) % 7) };
	for (uint32_t i = 0; i < NUM_MAX; i++) {
		moat_vring_desc_store(w->ring.desc, i,
				      (struct moat_vring_desc){
					      .addr = RAM + 2048 + 16 * i,
					      .len = 16 + i,
				      });
		moat_shm_store16(moat_avail_ring(&w->ring,
						 (uint16_t)(i % w->ring.num)),
				 (uint16_t)i % w->ring.num);
	}
	moat_shm_store16(moat_avail_idx(&w->ring), base);
	moat_shm_store16(moat_used_idx(&w->ring), in16(in));
	moat_devq_init(&w->q, &w->ring, w->storage, base, f & 64, f & 128);
}

static void *table(struct world *w, uint8_t which)
{
	return which & 3 ? (which & 1 ? w->next : w->low + 2048) : w->ring.desc;
}

/* The driver writes: a field where it hurts, or anything anywhere. */
static void scribble(struct world *w, struct input *in, uint8_t op)
{
	static const uint64_t near[] = { RAM,	     RAM + 2048, RAM + PAGE - 8,
					 RAM + PAGE, TOP,	 TOP + PAGE - 8,
					 0 };
	struct moat_vring_desc d;
	uint8_t which;
	uint16_t v;

	switch (op & 3) {
	case 0:
		v = moat_shm_load16(moat_avail_idx(&w->ring));
		moat_shm_store16(moat_avail_idx(&w->ring),
				 (uint16_t)(v + in8(in) % (w->ring.num + 1u)));
		break;
	case 1:
		v = in8(in);
		moat_shm_store16(moat_avail_ring(&w->ring, v % w->ring.num),
				 in8(in) % (w->ring.num + (v > 250)));
		break;
	case 2:
		which = in8(in);
		d.addr = near[in8(in) % 7] + in8(in) % 64;
		d.len = in8(in) * (which & 8 ? 16u : 1u);
		d.flags = in8(in) & 7;
		d.next = in8(in) % (w->ring.num + (which > 250));
		moat_vring_desc_store(table(w, which),
				      in8(in) % (which & 3 ? 8 : w->ring.num),
				      d);
		break;
	case 3:
		v = in16(in) % (USED - 8);
		which = in8(in);
		memset(w->low + v, which, in8(in) % 8);
		break;
	}
}

static void check_chain(struct world *w)
{
	const struct moat_chain *c = &w->chain;
	uint64_t sum = 0;

	CHECK(c->head < w->ring.num && !w->taken[c->head]);
	CHECK(c->nread + c->nwrite <= MOAT_CHAIN_MAX);
	for (uint32_t i = 0; i < c->nread + c->nwrite; i++) {
		const struct moat_seg *s = &c->seg[i];

		CHECK(s->len && moat_memmap_covers(&w->map, s->addr, s->len));
		sum += s->len;
	}
	CHECK(sum == c->read_len + c->write_len);
}

static void take(struct world *w)
{
	if (moat_devq_peek(&w->q, &w->map, &w->chain) <= 0)
		return;
	check_chain(w);
	moat_devq_take(&w->q, w->chain.head);
	w->taken[w->chain.head] = 1;
	w->ntaken++;
}

static void push(struct world *w, struct input *in)
{
	uint32_t from = in8(in);

	for (uint32_t i = 0; i < w->ring.num; i++) {
		uint32_t k = (from + i) % w->ring.num;

		if (!w->taken[k])
			continue;
		moat_devq_push(&w->q, (uint16_t)k, in8(in));
		w->taken[k] = 0;
		w->ntaken--;
		return;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	struct world w;
	bool broken;

	set_up(&w, &in);
	while (in.left) {
		uint8_t op = in8(&in);

		memcpy(w.used, w.ring.used, sizeof(w.used));
		broken = w.q.fault.code;
		switch (op >> 2 & 7) {
		case 0:
		case 1:
		case 2:
			scribble(&w, &in, op);
			memcpy(w.used, w.ring.used, sizeof(w.used));
			break;
		case 3:
		case 4:
			take(&w);
			break;
		case 5:
			push(&w, &in);
			break;
		case 6:
			moat_devq_publish(&w.q);
			CHECK(broken || moat_shm_load16(moat_used_idx(
						&w.ring)) == w.q.used_next);
			break;
		case 7:
			if (op & 1)
				moat_devq_notify_off(&w.q);
			else if (moat_devq_notify_on(&w.q))
				CHECK(moat_devq_pending(&w.q));
			break;
		}
		CHECK(w.ntaken <= w.ring.num);
		CHECK(w.q.fault.code < MOAT_FAULT_CODES);
		/* Broken once is broken for good, and silent. */
		CHECK(!broken || w.q.fault.code);
		CHECK(!broken || !memcmp(w.used, w.ring.used, sizeof(w.used)));
	}
	return 0;
}
