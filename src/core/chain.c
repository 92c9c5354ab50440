/* SPDX-License-Identifier: Apache-2.0 */
#include <stddef.h>

#include "core/chain.h"

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
static int load_indirect(struct walk *w, uint64_t table, uint32_t i,
			 struct moat_vring_desc *d)
{
	uint64_t addr = table + 16u * (uint64_t)i, got;
	const uint8_t *p = moat_memmap_at(w->map, addr, 16, &got);
	uint8_t copy[16];

	if (p && got == 16 && !((uintptr_t)p & 7)) {
		*d = moat_vring_desc_load(p, 0);
		return 0;
	}
	if (moat_memmap_read(w->map, copy, addr, 16))
		return moat_fault_set(w->fault, MOAT_FAULT_ADDRESS, addr, 16);
	__builtin_memcpy(d, copy, 16);
	d->addr = moat_le64(d->addr);
	d->len = moat_le32(d->len);
	d->flags = moat_le16(d->flags);
	d->next = moat_le16(d->next);
	return 0;
}

/* virtio 1.4, 2.7.5.3: the table that descriptor @ref refers to. */
static int walk_indirect(struct walk *w, const struct moat_vring_desc *ref)
{
	uint32_t n = ref->len / 16, i = 0;
	struct moat_vring_desc d;

	if (!n || ref->len % 16 || n > MOAT_VRING_NUM_MAX)
		return moat_fault_set(w->fault, MOAT_FAULT_INDIRECT_LEN,
				      ref->len, MOAT_VRING_NUM_MAX * 16u);
	if (!moat_memmap_covers(w->map, ref->addr, ref->len))
		return moat_fault_set(w->fault, MOAT_FAULT_ADDRESS, ref->addr,
				      ref->len);
	/* Each step takes one entry: more steps than entries is a loop. */
	for (uint32_t steps = 0;; steps++) {
		if (steps == n || steps == MOAT_CHAIN_MAX)
			return moat_fault_set(w->fault, MOAT_FAULT_CHAIN_LONG,
					      steps + 1, steps);
		if (load_indirect(w, ref->addr, i, &d))
			return -1;
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

int moat_chain_walk(struct moat_memmap *map, const struct moat_vring *ring,
		    uint16_t head, bool indirect, struct moat_chain *chain,
		    struct moat_fault *fault)
{
	struct walk w = { map, chain, fault, false };
	struct moat_vring_desc d;
	uint32_t i = head;

	chain->head = head;
	chain->nread = chain->nwrite = 0;
	chain->read_len = chain->write_len = 0;

	for (uint32_t steps = 0;; steps++) {
		if (steps == ring->num)
			return moat_fault_set(fault, MOAT_FAULT_CHAIN_LONG,
					      steps + 1, ring->num);
		d = moat_vring_desc_load(ring->desc, i);
		if (d.flags & MOAT_DESC_F_INDIRECT) {
			if (!indirect)
				return moat_fault_set(fault,
						      MOAT_FAULT_INDIRECT_OFF,
						      i, 0);
			if (d.flags & MOAT_DESC_F_NEXT)
				return moat_fault_set(fault,
						      MOAT_FAULT_INDIRECT_NEXT,
						      i, 0);
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
