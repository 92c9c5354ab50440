/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to the classification: the rows of a VM.
 */
#ifndef MOAT_AUDIT_SEATS_H
#define MOAT_AUDIT_SEATS_H

#include "audit/audit.h"

/** seats_fill() - a seat for each process that reaches the VM; the totals */
int seats_fill(struct audit *a, struct vm *vm);

/**
 * seats_select() - keep the VMs and rows that were asked for
 * @all: nothing was asked for in particular
 *
 * A VM whose own process was asked for keeps all rows; any other keeps the
 * rows asked for, the VM's own and those of guards. process.vm has no meaning
 * after this.
 */
void seats_select(struct audit *a, bool all);

#endif
