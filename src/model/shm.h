/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared memory regions as a driver finds them (virtio 1.4, 2.10).
 *
 *     device's set    id, offset in its window, length
 *       PCI           one virtio_pci_cap64 each (4.1.4.7); the window is a BAR
 *       MMIO          SHMSel, SHMLen, SHMBase (4.2.2); the window has an
 * address driver's view   id -> where it is, or nowhere
 *
 * The device's end makes a set once and shows it either way. The driver's end
 * believes nothing: what it reads is the device's to say, and may be nonsense.
 */
#ifndef MOAT_MODEL_SHM_H
#define MOAT_MODEL_SHM_H

#include <stdbool.h>
#include <stdint.h>

#define MOAT_SHM_REGIONS_MAX 8u
#define MOAT_SHM_ALIGN 4096u

/** struct moat_shm_region - one, in the device's window */
struct moat_shm_region {
	uint64_t offset; /* bytes */
	uint64_t len;
	uint8_t id;
};

struct moat_shm_set {
	struct moat_shm_region regions[MOAT_SHM_REGIONS_MAX];
	uint32_t n;
	uint64_t used; /* bytes of the window */
};

/**
 * moat_shm_add() - one more region, behind the others
 * @id: no other has it
 * @len: bytes, a multiple of MOAT_SHM_ALIGN
 *
 * Return: false if it can not be.
 */
bool moat_shm_add(struct moat_shm_set *set, uint8_t id, uint64_t len);

/** moat_shm_window() - bytes of a BAR that holds all: a power of two, or 0 */
uint64_t moat_shm_window(const struct moat_shm_set *set);

/* ---- virtio-pci ---- */

#define MOAT_PCI_CONFIG 256u
#define MOAT_PCI_BARS 6u
#define MOAT_PCI_CAP_VENDOR 0x09u
#define MOAT_SHM_PCI_CAP_SIZE 24u
#define MOAT_SHM_PCI_CFG_TYPE 8u

/**
 * moat_shm_pci_show() - write capabilities into a config space
 * @bar: the window
 * @at: where there is room for MOAT_SHM_PCI_CAP_SIZE bytes each, a multiple of
 *	4
 * @next: the capability that follows them; 0: none
 *
 * Return: where the first one is, for whoever points to it (@next if there are
 * none); 0 if they do not fit.
 */
uint8_t moat_shm_pci_show(const struct moat_shm_set *set,
			  uint8_t config[MOAT_PCI_CONFIG], uint8_t bar,
			  uint8_t at, uint8_t next);

/** struct moat_shm_place - where a driver finds a region */
struct moat_shm_place {
	uint64_t addr; /* PCI: offset in the BAR; MMIO: guest physical */
	uint64_t len;
	uint8_t bar; /* PCI */
};

/**
 * moat_shm_pci_find() - the region with this id
 * @bars: their sizes in bytes, 0 for none
 *
 * Return: false if there is none, more than one, or one outside its BAR.
 */
bool moat_shm_pci_find(const uint8_t config[MOAT_PCI_CONFIG],
		       const uint64_t bars[MOAT_PCI_BARS], uint8_t id,
		       struct moat_shm_place *place);

/* ---- virtio-mmio ---- */

#define MOAT_SHM_MMIO_SEL 0xacu
#define MOAT_SHM_MMIO_LEN_LOW 0xb0u
#define MOAT_SHM_MMIO_LEN_HIGH 0xb4u
#define MOAT_SHM_MMIO_BASE_LOW 0xb8u
#define MOAT_SHM_MMIO_BASE_HIGH 0xbcu

/** struct moat_shm_mmio - the device's registers */
struct moat_shm_mmio {
	const struct moat_shm_set *set;
	uint64_t window; /* guest physical address of it */
	uint32_t sel;
};

/** moat_shm_mmio_read() - a register of these; others read as 0 */
uint32_t moat_shm_mmio_read(const struct moat_shm_mmio *mmio, uint32_t reg);
/** moat_shm_mmio_write() - only the selector can be written */
void moat_shm_mmio_write(struct moat_shm_mmio *mmio, uint32_t reg,
			 uint32_t value);

/** struct moat_shm_bus - how a driver gets at a device's registers */
struct moat_shm_bus {
	uint32_t (*read)(void *arg, uint32_t reg);
	void (*write)(void *arg, uint32_t reg, uint32_t value);
	void *arg;
};

/**
 * moat_shm_mmio_find() - the region with this id
 *
 * Return: false if there is none, or one that wraps around.
 */
bool moat_shm_mmio_find(const struct moat_shm_bus *bus, uint8_t id,
			struct moat_shm_place *place);

#endif
