/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rules by which a process is a VMM or a guard, and an object guest RAM
 * or a pool: pure functions of what the scan found, each with its reason.
 */
#ifndef MOAT_AUDIT_CLASSIFY_H
#define MOAT_AUDIT_CLASSIFY_H

#include "audit/audit.h"

/* Objects below this hold no guest: rings, logs, frame buffers. */
#define AUDIT_RAM_MIN (1ull << 20)
/* Files of a disk: databases and caches map them too. */
#define AUDIT_RAM_FILE_MIN (16ull << 20)

struct vmm_verdict {
	const char *kind; /* NULL: no VMM */
	const char *why;  /* or, without a kind, why it is none in spite of its
			   * name; NULL if nothing speaks for it */
	bool family;	  /* its children of the same program are the same VM */
	bool weak;	  /* by KVM alone: yields to one known by name */
};

struct vmm_verdict classify_vmm(const struct process *p);

/** classify_vmm_name() - does its name, or its program's, say VMM? */
bool classify_vmm_name(const struct process *p);

/** classify_guard() - why @p is a guard, or NULL. @dev, @ino: this program */
const char *classify_guard(const struct process *p, uint64_t dev, uint64_t ino);

/**
 * classify_gives() - the largest piece of a guest's memory that a guard was
 * told to give to its backend
 *
 * Return: bytes, from its --pool options; UINT64_MAX if only a device tree
 * tells; 0 if it was told to give nothing
 */
uint64_t classify_gives(const struct process *p);

/** classify_object() - set class and why from its name alone */
void classify_object(struct object *o);

/**
 * classify_ram() - is @o, held so by a process of a VMM, guest RAM?
 *
 * Return: why, or NULL
 */
const char *classify_ram(const struct object *o, const struct reach *r);

#endif
