/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to the classification: small steps in building a VM.
 */
#ifndef MOAT_AUDIT_VMS_H
#define MOAT_AUDIT_VMS_H

#include "audit/audit.h"

/** audit_add_index() - append @x to a list that does not have it; -ENOMEM */
int audit_add_index(uint32_t **v, size_t *n, uint32_t x);

/** audit_find_pid() - the index of a process, or -1 */
int audit_find_pid(const struct audit *a, pid_t pid);

/** audit_add_private() - call the VMM's private memory RAM; negative errno */
int audit_add_private(struct audit *a, struct vm *vm);

#endif
