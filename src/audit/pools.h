/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to the classification: the pools of VMs, and for whom each is.
 *
 * Two kinds of object are a pool. A memfd named moat-pool is a guard's own.
 * A *given* pool is memory of the VMM's that a guard hands to its backend as
 * it is (`moat guard --pool`). The guard does so only with an object that
 * holds nothing else and that nobody can shrink or grow, and it keeps a
 * descriptor of that, where it closes those of other memory as soon as it
 * has mapped them. So an object is given if all of this is true:
 *
 *  - a guard that was told of a pool (--pool, --dtb) holds a descriptor of
 *    it, at both of two looks that are AUDIT_POOL_LOOK_MS apart;
 *  - the VMM maps it and it is sealed against shrinking and growing, or it
 *    is a dma-buf that udmabuf made and the guard reaches the VM's RAM;
 *  - it is no larger than the largest pool that the guard was told of;
 *  - the VM has RAM beside: memory that is all pool is RAM.
 */
#ifndef MOAT_AUDIT_POOLS_H
#define MOAT_AUDIT_POOLS_H

#include "audit/audit.h"

#define AUDIT_POOL_LOOK_MS 15

/**
 * pools_find() - add the pools to each VM, behind its RAM, and find out who
 * reaches one that is not meant for it
 *
 * Waits AUDIT_POOL_LOOK_MS if a guard holds what could be a given pool.
 *
 * Return: 0 or -ENOMEM
 */
int pools_find(struct audit *a);

#endif
