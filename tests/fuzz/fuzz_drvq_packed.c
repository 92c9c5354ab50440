/* SPDX-License-Identifier: Apache-2.0 */
/* A hostile device of a packed ring: it may write anything into any part. */
#include "fuzz.h"

#include "core/drvq.h"

#define NUM_MAX 67u
#define MAX_SEGS 8u
#define RING_BYTES (16 * NUM_MAX + 8)

struct world {
	uint8_t mem[RING_BYTES] __attribute__((aligned(16)));
	uint8_t before[RING_BYTES];
	uint8_t tables[NUM_MAX][16 * MAX_SEGS] __attribute__((aligned(16)));
	struct moat_vring ring;
	struct moat_drvq q;
	struct moat_drvq_desc *descs;
	bool live[NUM_MAX]; /* by cookie */
	uint64_t write_len[NUM_MAX];
	uint32_t ndesc[NUM_MAX];
	uint32_t nlive, free;
};

static void set_up(struct world *w, struct input *in)
{
	uint8_t f = in8(in);

	memset(w, 0, sizeof(*w));
	w->ring.num = (uint16_t)(1u + in8(in) % NUM_MAX);
	w->ring.packed = true;
	w->ring.desc = w->mem;
	w->ring.avail = w->mem + 16 * w->ring.num;
	w->ring.used = w->ring.avail + 4;
	w->free = w->ring.num;
	/* On the heap: an index out of range is then ASan's to see. */
	w->descs = malloc(w->ring.num * sizeof(*w->descs));
	CHECK(w->descs);
	moat_drvq_init(&w->q, &w->ring, w->descs, f & 64, f & 128);
}

static void add(struct world *w, struct input *in)
{
	uint32_t n = in8(in) % (MAX_SEGS + 1), nread = in8(in) % (n + 1);
	bool table = moat_drvq_wants_table(&w->q, n);
	uint32_t need = table || !n ? 1 : n, cookie = 0;
	struct moat_seg seg[MAX_SEGS];
	uint64_t write_len = 0;

	if (!moat_drvq_room(&w->q, n))
		return;
	CHECK(w->nlive < w->ring.num && w->free >= need);
	while (w->live[cookie])
		cookie++;
	for (uint32_t i = 0; i < n; i++) {
		seg[i] = (struct moat_seg){ .addr = i, .len = in8(in) + 1u };
		write_len += i >= nread ? seg[i].len : 0;
	}
	moat_drvq_add(&w->q, seg, nread, n - nread, cookie,
		      table ? w->tables[cookie] : NULL, 0x1000);
	w->live[cookie] = true;
	w->write_len[cookie] = write_len;
	w->ndesc[cookie] = need;
	w->nlive++;
	w->free -= need;
}

static void get(struct world *w)
{
	uint32_t cookie, len;

	if (moat_drvq_get(&w->q, &cookie, &len) <= 0)
		return;
	CHECK(cookie < w->ring.num && w->live[cookie]);
	CHECK(len <= w->write_len[cookie]);
	w->live[cookie] = false;
	w->nlive--;
	w->free += w->ndesc[cookie];
}

/* A good used descriptor, give or take; or its notification wishes. */
static void scribble(struct world *w, struct input *in, uint8_t op)
{
	uint16_t pos = w->q.used_next, v;

	switch (op & 3) {
	case 1:
		pos = moat_packed_advance(pos, in8(in) % w->ring.num,
					  w->ring.num);
		/* fallthrough */
	case 0:
	case 2:
		v = in8(in) & MOAT_DESC_F_WRITE;
		v |= op == 255 ? in16(in) : moat_packed_used_bits(pos);
		moat_shm_store64(
			moat_packed_at(&w->ring, pos) + 8,
			moat_packed_word(op & 64 ? in32(in) : in8(in),
					 in8(in) % (w->ring.num + (op > 250)),
					 v));
		break;
	case 3:
		if (op & 64) {
			v = in16(in) % (16u * w->ring.num - 15);
			memset(w->mem + v, in8(in), 1 + in8(in) % 16);
		} else {
			moat_packed_event_store(w->ring.used, in16(in),
						in8(in) % 8 ? in8(in) % 3 : 3);
		}
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
		uint8_t op = in8(&in);

		broken = w.q.fault.code;
		memcpy(w.before, w.mem, sizeof(w.mem));
		switch (op >> 2 & 7) {
		case 0:
		case 1:
			add(&w, &in);
			break;
		case 2:
			moat_drvq_publish(&w.q);
			break;
		case 3:
		case 4:
			scribble(&w, &in, op);
			memcpy(w.before, w.mem, sizeof(w.mem));
			break;
		case 5:
		case 6:
			get(&w);
			break;
		case 7:
			if (op & 1)
				moat_drvq_notify_off(&w.q);
			else if (moat_drvq_notify_on(&w.q))
				CHECK(moat_drvq_pending(&w.q));
			CHECK(moat_drvq_untaken(&w.q, in32(&in)) <= w.nlive);
			break;
		}
		CHECK(w.q.outstanding == w.nlive && w.q.num_free == w.free);
		CHECK(!broken || w.q.fault.code);
		CHECK(!broken || !memcmp(w.before, w.mem, sizeof(w.mem)));
	}
	free(w.descs);
	return 0;
}
