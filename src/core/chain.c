/* SPDX-License-Identifier: Apache-2.0 */
#include <stddef.h>

#include "core/chain.h"
#include "core/packed.h"

struct walk {
	struct moat_memmap *map;
	struct moat_chain *chain;
	struct moat_fault *fault;
	bool writable; /* a device-writable descriptor was seen */
};

/* Check and keep one snapshot of a descriptor that describes a buffer. */
static int take(struct walk *w, const struct moat_vring_desc *d)
{
	struct moat_chain *c = w->chain;
	bool write = d->flags & MOAT_DESC_F_WRITE;
	uint32_t n = (uint32_t)c->nread + c->nwrite;

	/* virtio 1.4, 2.7.4.2: readable before writable, empty or not. */
	if (!write && w->writable)
		return moat_fault_set(w->fault, MOAT_FAULT_DIRECTION, d->addr,
				      0);
	w->writable = write;
	if (!d->len)
		return 0;
	if (c->read_len + c->write_len + d->len > UINT64_C(1) << 32)
		return moat_fault_set(w->fault, MOAT_FAULT_TOTAL_LEN,
				      c->read_len + c->write_len + d->len,
				      UINT64_C(1) << 32);
	if (!moat_memmap_covers(w->map, d->addr, d->len))
		return moat_fault_set(w->fault, MOAT_FAULT_ADDRESS, d->addr,
				      d->len);
	if (n == MOAT_CHAIN_MAX)
		return moat_fault_set(w->fault, MOAT_FAULT_CHAIN_LONG, n + 1,
				      MOAT_CHAIN_MAX);
	c->seg[n] = (struct moat_seg){ .addr = d->addr, .len = d->len };
	if (write) {
		c->nwrite++;
		c->write_len += d->len;
	} else {
		c->nread++;
		c->read_len += d->len;
	}
	return 0;
}

/*
 * The table may lie anywhere in guest memory, even across regions: descriptors
 * are snapshot one by one through the memory map.
 */
static int load_entry(struct walk *w, uint64_t table, uint32_t i,
		      uint64_t word[2])
{
	uint64_t addr = table + 16u * (uint64_t)i, got;
	const uint8_t *p = moat_memmap_at(w->map, addr, 16, &got);

	if (p && got == 16 && !((uintptr_t)p & 7)) {
		word[0] = moat_shm_load64(p);
		word[1] = moat_shm_load64(p + 8);
		return 0;
	}
	if (moat_memmap_read(w->map, word, addr, 16))
		return moat_fault_set(w->fault, MOAT_FAULT_ADDRESS, addr, 16);
	word[0] = moat_le64(word[0]);
	word[1] = moat_le64(word[1]);
	return 0;
}

/* Number of entries of the table that @ref refers to, or -1. */
static int table_entries(struct walk *w, const struct moat_vring_desc *ref)
{
	uint32_t n = ref->len / 16;

	if (!n || ref->len % 16 || n > MOAT_VRING_NUM_MAX)
		return moat_fault_set(w->fault, MOAT_FAULT_INDIRECT_LEN,
				      ref->len,
				      UINT64_C(16) * MOAT_VRING_NUM_MAX);
	if (!moat_memmap_covers(w->map, ref->addr, ref->len))
		return moat_fault_set(w->fault, MOAT_FAULT_ADDRESS, ref->addr,
				      ref->len);
	return (int)n;
}

/* virtio 1.4, 2.7.5.3: the table that descriptor @ref refers to. */
static int walk_indirect(struct walk *w, const struct moat_vring_desc *ref)
{
	int entries = table_entries(w, ref);
	struct moat_vring_desc d;
	uint32_t n, i = 0;
	uint64_t word[2];

	if (entries < 0)
		return -1;
	n = (uint32_t)entries;
	/* Each step takes one entry: more steps than entries is a loop. */
	for (uint32_t steps = 0;; steps++) {
		if (steps == n || steps == MOAT_CHAIN_MAX)
			return moat_fault_set(w->fault, MOAT_FAULT_CHAIN_LONG,
					      steps + 1, steps);
		if (load_entry(w, ref->addr, i, word))
			return -1;
		d = (struct moat_vring_desc){
			.addr = word[0],
			.len = (uint32_t)word[1],
			.flags = (uint16_t)(word[1] >> 32),
			.next = (uint16_t)(word[1] >> 48),
		};
		if (d.flags & MOAT_DESC_F_INDIRECT)
			return moat_fault_set(w->fault,
					      MOAT_FAULT_INDIRECT_NESTED, i, 0);
		if (take(w, &d))
			return -1;
		if (!(d.flags & MOAT_DESC_F_NEXT))
			return 0;
		if (d.next >= n)
			return moat_fault_set(w->fault, MOAT_FAULT_NEXT_RANGE,
					      d.next, n - 1);
		i = d.next;
	}
}

static void begin(struct moat_chain *chain)
{
	chain->nread = chain->nwrite = 0;
	chain->read_len = chain->write_len = 0;
}

int moat_chain_walk(struct moat_memmap *map, const struct moat_vring *ring,
		    uint16_t head, bool indirect, struct moat_chain *chain,
		    struct moat_fault *fault)
{
	struct walk w = { map, chain, fault, false };
	struct moat_vring_desc d;
	uint32_t i = head;

	begin(chain);
	chain->head = head;
	for (uint32_t steps = 0;; steps++) {
		if (steps == ring->num)
			return moat_fault_set(fault, MOAT_FAULT_CHAIN_LONG,
					      steps + 1, ring->num);
		d = moat_vring_desc_load(ring->desc, i);
		if (d.flags & MOAT_DESC_F_INDIRECT) {
			if (!indirect)
				return moat_fault_set(
					fault, MOAT_FAULT_INDIRECT_OFF, i, 0);
			if (d.flags & MOAT_DESC_F_NEXT)
				return moat_fault_set(
					fault, MOAT_FAULT_INDIRECT_NEXT, i, 0);
			return walk_indirect(&w, &d);
		}
		if (take(&w, &d))
			return -1;
		if (!(d.flags & MOAT_DESC_F_NEXT))
			return 0;
		if (d.next >= ring->num)
			return moat_fault_set(fault, MOAT_FAULT_NEXT_RANGE,
					      d.next, ring->num - 1u);
		i = d.next;
	}
}

/*
 * virtio 1.4, 2.8.7: all entries count, in order; of their flags only WRITE
 * does, and their ids do not.
 */
static int walk_packed_table(struct walk *w, const struct moat_vring_desc *ref)
{
	int n = table_entries(w, ref);
	struct moat_vring_desc d;
	uint64_t word[2];

	if (n > (int)MOAT_CHAIN_MAX)
		return moat_fault_set(w->fault, MOAT_FAULT_CHAIN_LONG,
				      (uint32_t)n, MOAT_CHAIN_MAX);
	for (int i = 0; i < n; i++) {
		if (load_entry(w, ref->addr, (uint32_t)i, word))
			return -1;
		d = (struct moat_vring_desc){
			.addr = word[0],
			.len = (uint32_t)word[1],
			.flags = (uint16_t)(word[1] >> 48),
		};
		if (take(w, &d))
			return -1;
	}
	return n < 0 ? -1 : 0;
}

/* What one available descriptor of the ring adds; 1 if more follow. */
static int take_packed(struct walk *w, const struct moat_packed_desc *p,
		       bool indirect, uint32_t steps)
{
	struct moat_vring_desc d = { p->addr, p->len, p->flags, 0 };

	if (!(p->flags & MOAT_DESC_F_INDIRECT))
		return take(w, &d) ? -1 : (int)(p->flags & MOAT_DESC_F_NEXT);
	if (!indirect)
		return moat_fault_set(w->fault, MOAT_FAULT_INDIRECT_OFF, p->id,
				      0);
	/* Neither the first of a list nor inside one (2.8.19). */
	if (steps || p->flags & MOAT_DESC_F_NEXT)
		return moat_fault_set(w->fault, MOAT_FAULT_INDIRECT_NEXT, steps,
				      0);
	return walk_packed_table(w, &d);
}

/* The buffer id is that of a list's last descriptor (2.8.6). */
static int name_packed(struct walk *w, uint16_t id, uint16_t num)
{
	if (id >= num)
		return moat_fault_set(w->fault, MOAT_FAULT_ID_RANGE, id,
				      num - 1u);
	w->chain->head = id;
	return 0;
}

int moat_chain_walk_copy(struct moat_memmap *map, uint16_t num,
			 const struct moat_packed_desc *desc, uint32_t n,
			 bool indirect, struct moat_chain *chain,
			 struct moat_fault *fault)
{
	struct walk w = { map, chain, fault, false };
	uint32_t steps = 0;
	int more = 1;

	begin(chain);
	while (more > 0 && steps < n) {
		more = take_packed(&w, &desc[steps], indirect, steps);
		steps++;
	}
	if (more < 0)
		return -1;
	if (more || steps != n || !n)
		return moat_fault_set(fault, MOAT_FAULT_CHAIN_LONG, steps, n);
	return name_packed(&w, desc[n - 1].id, num);
}

int moat_chain_walk_packed(struct moat_memmap *map,
			   const struct moat_vring *ring, uint16_t pos,
			   uint32_t room, bool indirect,
			   struct moat_chain *chain, struct moat_fault *fault)
{
	struct walk w = { map, chain, fault, false };
	struct moat_packed_desc d;
	uint32_t steps = 0;
	bool avail;
	int more;

	begin(chain);
	do {
		d = moat_packed_desc_load(moat_packed_at(ring, pos));
		avail = moat_packed_is_avail(d.flags, pos);
		if (!avail && !steps)
			return 0;
		if (steps == room)
			return moat_fault_set(fault,
					      room == ring->num
						      ? MOAT_FAULT_CHAIN_LONG
						      : MOAT_FAULT_AVAIL_OVER,
					      steps + 1, room);
		/* 2.8.6: they are right in all of a list, not just the first.
		 */
		if (!avail)
			return moat_fault_set(fault, MOAT_FAULT_LAP_BITS,
					      d.flags, 0);
		more = take_packed(&w, &d, indirect, steps++);
		pos = moat_packed_advance(pos, 1, ring->num);
	} while (more > 0);
	if (more < 0 || name_packed(&w, d.id, ring->num))
		return -1;
	return (int)steps;
}
