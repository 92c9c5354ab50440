/* SPDX-License-Identifier: Apache-2.0 */
/* A hostile driver of a packed ring: its descriptors are what the input says.
 */
#include "fuzz.h"

#include "core/devq.h"

#define PAGE 4096u
#define RAM UINT64_C(0x10000)
#define TOP (UINT64_MAX - (PAGE - 1))
#define NUM_MAX 67u

struct world {
	uint8_t low[PAGE] __attribute__((aligned(16)));
	uint8_t next[PAGE] __attribute__((aligned(16)));
	uint8_t top[PAGE] __attribute__((aligned(16)));
	uint32_t driver_event, device_event;
	uint8_t *desc; /* on the heap: ASan sees an index out of range */
	uint8_t before[16 * NUM_MAX];
	struct moat_region regions[3];
	struct moat_memmap map;
	struct moat_vring ring;
	struct moat_devq q;
	uint16_t *storage;
	uint8_t taken[NUM_MAX];
	uint32_t ntaken;
	uint32_t lost; /* what the base says is in flight */
	struct moat_chain chain;
};

static void set_up(struct world *w, struct input *in)
{
	uint8_t f = in8(in);
	uint16_t num = (uint16_t)(1 + in8(in) % NUM_MAX);
	uint32_t base = in8(in) % num;

	memset(w, 0, offsetof(struct world, chain));
	w->regions[0] = (struct moat_region){ RAM, PAGE, RAM, w->low };
	w->regions[1] =
		(struct moat_region){ RAM + PAGE, PAGE, 0x90000, w->next };
	w->regions[2] = (struct moat_region){ TOP, PAGE, TOP, w->top };
	moat_memmap_init(&w->map, w->regions, 3);
	w->map.n = 3;
	w->desc = calloc(num, 16);
	w->storage = calloc(1, moat_devq_storage(num));
	CHECK(w->desc && w->storage);
	w->ring = (struct moat_vring){ .desc = w->desc,
				       .avail = (void *)&w->driver_event,
				       .used = (void *)&w->device_event,
				       .num = num,
				       .packed = true };
	base |= (f & 1 ? 0x8000u : 0) | (f & 2 ? base | 0x8000u : in8(in) % num)
						<< 16;
	if (f & 4)
		base = in32(in);
	moat_devq_init(&w->q, &w->ring, w->storage, base, f & 64, f & 128);
	w->lost = w->q.inuse;
}

/* A good descriptor at the next place, give or take what the input breaks. */
static void scribble(struct world *w, struct input *in, uint8_t op)
{
	static const uint64_t near[] = { RAM,	     RAM + 2048, RAM + PAGE - 8,
					 RAM + PAGE, TOP,	 TOP + PAGE - 8,
					 0 };
	uint8_t which = in8(in), *p = w->desc;
	uint16_t at = w->q.fault.code == MOAT_FAULT_BASE ? 0 : w->q.avail_next;
	uint16_t pos =
		moat_packed_advance(at, in8(in) % w->ring.num, w->ring.num);
	uint16_t flags = in8(in) & 7;

	switch (op & 3) {
	case 0:
	case 1:
		p += 16 * moat_packed_idx(pos);
		flags |= which & 16 ? (uint16_t)(in16(in))
				    : moat_packed_avail_bits(pos);
		break;
	case 2: /* in a table */
		p = which & 1 ? w->next : w->low + 2048;
		p += 16 * (which >> 5);
		flags |= (uint16_t)(which & 16 ? in16(in) : 0);
		break;
	case 3:
		w->driver_event =
			which & 1 ? in32(in) : (uint32_t)(in8(in) % 3) << 16;
		return;
	}
	moat_shm_store64(p, near[in8(in) % 7] + in8(in) % 64);
	moat_shm_store64(
		p + 8, moat_packed_word(in8(in) * (which & 8 ? 16u : 1u),
					in8(in) % (w->ring.num + (which > 250)),
					flags));
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

		if (!w->taken[k] || w->q.fault.code)
			continue;
		moat_devq_push(&w->q, (uint16_t)k, in8(in));
		w->taken[k] = 0;
		w->ntaken--;
		return;
	}
}

static void rewind_some(struct world *w, struct input *in)
{
	uint16_t n = moat_devq_rewind(&w->q, in8(in) % 4);
	uint32_t left = 0;

	for (uint32_t k = 0; k < w->ring.num; k++) {
		w->taken[k] = w->q.ndesc[k] != 0;
		left += w->taken[k];
	}
	CHECK(left + n == w->ntaken);
	w->ntaken = left;
}

static void operate(struct world *w, struct input *in, uint8_t op)
{
	switch (op >> 2 & 7) {
	case 0:
	case 1:
	case 2:
		scribble(w, in, op);
		memcpy(w->before, w->desc, 16u * w->ring.num);
		break;
	case 3:
	case 4:
		take(w);
		break;
	case 5:
		push(w, in);
		break;
	case 6:
		if (op & 128) {
			rewind_some(w, in);
			break;
		}
		moat_devq_publish(&w->q);
		break;
	case 7:
		if (op & 1)
			moat_devq_notify_off(&w->q);
		else if (moat_devq_notify_on(&w->q))
			CHECK(moat_devq_pending(&w->q));
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	struct world w;
	bool broken;

	set_up(&w, &in);
	while (in.left) {
		uint32_t event = w.device_event, sum = w.lost;

		broken = w.q.fault.code;
		memcpy(w.before, w.desc, 16u * w.ring.num);
		operate(&w, &in, in8(&in));
		CHECK(w.q.fault.code < MOAT_FAULT_CODES);
		/* Broken once is broken for good, and silent. */
		CHECK(!broken || w.q.fault.code);
		CHECK(!broken || !memcmp(w.before, w.desc, 16u * w.ring.num));
		CHECK(!broken || event == w.device_event);
		for (uint32_t k = 0; k < w.ring.num; k++)
			sum += w.q.ndesc[k];
		CHECK(w.q.fault.code == MOAT_FAULT_BASE ||
		      (sum == w.q.inuse && sum <= w.ring.num));
	}
	free(w.desc);
	free(w.storage);
	return 0;
}
