/* SPDX-License-Identifier: Apache-2.0 */
#include <stddef.h>

#include "model/shm.h"

/* PCI's config space (PCI 3.0, 6.1, 6.7). */
#define STATUS 0x06u
#define STATUS_CAP_LIST 0x10u
#define CAP_POINTER 0x34u
#define CAP_FIRST 0x40u /* capabilities are behind the header */

/* struct virtio_pci_cap64 (virtio 1.4, 4.1.4). */
enum {
	CAP_VNDR = 0,
	CAP_NEXT = 1,
	CAP_LEN = 2,
	CAP_CFG_TYPE = 3,
	CAP_BAR = 4,
	CAP_ID = 5,
	CAP_OFFSET = 8,
	CAP_LENGTH = 12,
	CAP_OFFSET_HI = 16,
	CAP_LENGTH_HI = 20,
};

bool moat_shm_add(struct moat_shm_set *set, uint8_t id, uint64_t len)
{
	if (!len || len % MOAT_SHM_ALIGN || set->n == MOAT_SHM_REGIONS_MAX ||
	    len > (UINT64_C(1) << 62) - set->used)
		return false;
	for (uint32_t i = 0; i < set->n; i++)
		if (set->regions[i].id == id)
			return false;
	set->regions[set->n++] = (struct moat_shm_region){ set->used, len, id };
	set->used += len;
	return true;
}

uint64_t moat_shm_window(const struct moat_shm_set *set)
{
	uint64_t size = MOAT_SHM_ALIGN;

	while (size < set->used)
		size <<= 1;
	return set->n ? size : 0;
}

/* ---- virtio-pci ---- */

static void put32(uint8_t *p, uint64_t v)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> 8 * i);
}

static uint64_t get32(const uint8_t *p)
{
	uint64_t v = 0;

	for (int i = 0; i < 4; i++)
		v |= (uint64_t)p[i] << 8 * i;
	return v;
}

uint8_t moat_shm_pci_show(const struct moat_shm_set *set,
			  uint8_t config[MOAT_PCI_CONFIG], uint8_t bar,
			  uint8_t at, uint8_t next)
{
	const uint32_t size = MOAT_SHM_PCI_CAP_SIZE;

	if (at % 4 || at < CAP_FIRST || bar >= MOAT_PCI_BARS ||
	    set->n * size > MOAT_PCI_CONFIG - at)
		return 0;
	for (uint32_t i = 0; i < set->n; i++) {
		const struct moat_shm_region *r = &set->regions[i];
		uint8_t *p = config + at + (size_t)i * size;

		for (uint32_t k = 0; k < size; k++)
			p[k] = 0;
		p[CAP_VNDR] = MOAT_PCI_CAP_VENDOR;
		p[CAP_NEXT] =
			i + 1 < set->n ? (uint8_t)(at + (i + 1) * size) : next;
		p[CAP_LEN] = (uint8_t)size;
		p[CAP_CFG_TYPE] = MOAT_SHM_PCI_CFG_TYPE;
		p[CAP_BAR] = bar;
		p[CAP_ID] = r->id;
		put32(p + CAP_OFFSET, r->offset);
		put32(p + CAP_LENGTH, r->len);
		put32(p + CAP_OFFSET_HI, r->offset >> 32);
		put32(p + CAP_LENGTH_HI, r->len >> 32);
	}
	return set->n ? at : next;
}

/* Is it a region with this id? */
static bool is_region(const uint8_t *config, uint32_t at, uint8_t id)
{
	const uint8_t *p = config + at;

	return at + MOAT_SHM_PCI_CAP_SIZE <= MOAT_PCI_CONFIG &&
	       p[CAP_VNDR] == MOAT_PCI_CAP_VENDOR &&
	       p[CAP_LEN] >= MOAT_SHM_PCI_CAP_SIZE &&
	       p[CAP_CFG_TYPE] == MOAT_SHM_PCI_CFG_TYPE && p[CAP_ID] == id;
}

static bool inside_bar(const struct moat_shm_place *p,
		       const uint64_t bars[MOAT_PCI_BARS])
{
	return p->bar < MOAT_PCI_BARS && p->len && p->addr <= bars[p->bar] &&
	       p->len <= bars[p->bar] - p->addr;
}

bool moat_shm_pci_find(const uint8_t config[MOAT_PCI_CONFIG],
		       const uint64_t bars[MOAT_PCI_BARS], uint8_t id,
		       struct moat_shm_place *place)
{
	/* No list is longer than there is room; a loop is. */
	uint32_t left = (MOAT_PCI_CONFIG - CAP_FIRST) / 4, found = 0, at;

	if (!(config[STATUS] & STATUS_CAP_LIST))
		return false;
	for (at = config[CAP_POINTER] & 0xfcu; at >= CAP_FIRST;
	     at = config[at + CAP_NEXT] & 0xfcu) {
		const uint8_t *p = config + at;

		if (!left--)
			return false;
		if (!is_region(config, at, id))
			continue;
		found++;
		*place = (struct moat_shm_place){
			.addr = get32(p + CAP_OFFSET) | get32(p + CAP_OFFSET_HI)
								<< 32,
			.len = get32(p + CAP_LENGTH) | get32(p + CAP_LENGTH_HI)
							       << 32,
			.bar = p[CAP_BAR],
		};
	}
	return found == 1 && inside_bar(place, bars);
}

/* ---- virtio-mmio ---- */

static const struct moat_shm_region *selected(const struct moat_shm_mmio *m)
{
	for (uint32_t i = 0; i < m->set->n; i++)
		if (m->set->regions[i].id == m->sel)
			return &m->set->regions[i];
	return NULL;
}

uint32_t moat_shm_mmio_read(const struct moat_shm_mmio *m, uint32_t reg)
{
	const struct moat_shm_region *r = selected(m);
	/* 4.2.2.1: an id that is not used reads as all ones. */
	uint64_t len = r ? r->len : UINT64_MAX;
	uint64_t base = r ? m->window + r->offset : UINT64_MAX;

	switch (reg) {
	case MOAT_SHM_MMIO_LEN_LOW:
		return (uint32_t)len;
	case MOAT_SHM_MMIO_LEN_HIGH:
		return (uint32_t)(len >> 32);
	case MOAT_SHM_MMIO_BASE_LOW:
		return (uint32_t)base;
	case MOAT_SHM_MMIO_BASE_HIGH:
		return (uint32_t)(base >> 32);
	default:
		return 0;
	}
}

void moat_shm_mmio_write(struct moat_shm_mmio *m, uint32_t reg, uint32_t value)
{
	if (reg == MOAT_SHM_MMIO_SEL)
		m->sel = value;
}

static uint64_t read64(const struct moat_shm_bus *bus, uint32_t low)
{
	uint64_t v = bus->read(bus->arg, low);

	return v | (uint64_t)bus->read(bus->arg, low + 4) << 32;
}

bool moat_shm_mmio_find(const struct moat_shm_bus *bus, uint8_t id,
			struct moat_shm_place *place)
{
	bus->write(bus->arg, MOAT_SHM_MMIO_SEL, id);
	*place = (struct moat_shm_place){
		.addr = read64(bus, MOAT_SHM_MMIO_BASE_LOW),
		.len = read64(bus, MOAT_SHM_MMIO_LEN_LOW),
	};
	/* All ones wrap around with any length. */
	return place->len && place->len != UINT64_MAX &&
	       place->addr <= UINT64_MAX - place->len;
}
