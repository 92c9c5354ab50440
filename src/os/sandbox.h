/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Giving up what a process does not need, in named stages.
 *
 *   moat_sandbox_hide         not dumpable: nobody of our user can ptrace us
 *   moat_sandbox_privileges   no new privileges, no capabilities
 *   moat_sandbox_syscalls     only the system calls of a list
 *
 * The list stands beside the code that needs it; this file only applies it.
 */
#ifndef MOAT_OS_SANDBOX_H
#define MOAT_OS_SANDBOX_H

#include <stdbool.h>
#include <stddef.h>

/**
 * moat_sandbox_hide() - before anything that is not trusted can run or answer
 *
 * Whoever attaches before this stays attached.
 *
 * Return: 0 or a negative errno.
 */
int moat_sandbox_hide(void);

/**
 * moat_sandbox_privileges() - drop all capabilities, for good
 * @keep_kill: but CAP_KILL if it is there: for who has to end a child that
 *	may run under another user by then (passt becomes "nobody"). The list
 *	of system calls should allow signals to that child only, by its pidfd.
 *
 * Return: 0 or a negative errno.
 */
int moat_sandbox_privileges(bool keep_kill);

/**
 * struct moat_syscall - one that stays allowed
 * @name: NULL ends a list
 * @arg: with @value: only if argument number @arg - 1 has that value (an
 *	allowed socket() is still not any socket); 0: with any arguments
 */
struct moat_syscall {
	const char *name;
	unsigned int arg;
	unsigned long value;
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
