/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Giving up what a process does not need, in named stages.
 *
 *   moat_sandbox_privileges   no new privileges, no capabilities, not dumpable
 *   moat_sandbox_syscalls     only the system calls of a list
 *
 * The list stands beside the code that needs it; this file only applies it.
 */
#ifndef MOAT_OS_SANDBOX_H
#define MOAT_OS_SANDBOX_H

#include <stddef.h>

/**
 * moat_sandbox_privileges() - drop all capabilities, for good
 *
 * Return: 0 or a negative errno.
 */
int moat_sandbox_privileges(void);

/** struct moat_syscall - one that stays allowed */
struct moat_syscall {
	const char *name;
	/*
	 * 0, or the first argument has to be this value + 1 (socket families:
	 * an allowed socket() call is still not any socket).
	 */
	unsigned int arg0_plus1;
};

/**
 * moat_sandbox_syscalls() - kill the process at any call not in @list
 * @list: ended by an entry without a name; names unknown to this machine's
 *	architecture are passed over
 *
 * mmap() and mprotect() are always allowed, but never with PROT_EXEC.
 *
 * Return: 0 or a negative errno.
 */
int moat_sandbox_syscalls(const struct moat_syscall *list);

#endif
