/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Giving up what a process does not need, in named stages.
 *
 *   moat_sandbox_hide         not dumpable: nobody of our user can ptrace us
 *   moat_sandbox_separate     namespaces of its own, in a child, with no files
 *   moat_sandbox_privileges   no new privileges, no capabilities
 *   moat_sandbox_landlock     no file but beneath one directory, if any, and no
 *                             network, by Landlock
 *   moat_sandbox_limits       no core file, so many descriptors, so much heap
 *   moat_sandbox_syscalls     only the system calls of a list, all threads
 *
 * In this order, all but the last before there are threads.
 *
 * The list stands beside the code that needs it; this file only applies it.
 */
#ifndef MOAT_OS_SANDBOX_H
#define MOAT_OS_SANDBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "os/log.h"

/**
 * struct moat_sandbox_dir - the directory that stays with a process
 * @path: where it is before anything was taken away
 * @root_fd: the directory, O_PATH; -1 until it is opened
 * @proc_fd: /proc/self/fd of the process that opened it, O_PATH: "17" beneath
 *	it names descriptor 17; likewise
 */
struct moat_sandbox_dir {
	const char *path;
	int root_fd, proc_fd;
};

/**
 * moat_sandbox_separate() - go on in a child with namespaces of its own
 * @log: told of what this machine does not allow; that is no failure
 * @dir: what the child serves; NULL: nothing
 *
 * The child has its own user, mount, network, PID, IPC and UTS namespaces; it
 * dies when the parent does. Descriptors stay. Its root is empty and read-only.
 *
 * With @dir, that directory and what is mounted below it, then or later, is the
 * root, and opened in @dir; nothing of procfs is there but @dir->proc_fd, from
 * where no ".." leads on. Where the caller may, the user namespace stays the
 * same: files can be given to any user.
 *
 * Return: 0 in the child, its pid in the parent, or a negative errno. The child
 * may find @dir not opened: moat_sandbox_open() follows.
 */
pid_t moat_sandbox_separate(struct moat_log *log, struct moat_sandbox_dir *dir);

/**
 * moat_sandbox_open() - open @dir where it is, unless it is open already
 *
 * For a process that keeps its surroundings.
 *
 * Return: 0 or a negative errno.
 */
int moat_sandbox_open(struct moat_sandbox_dir *dir);

/**
 * moat_sandbox_supervise() - be the parent until @child has ended
 *
 * Passes SIGTERM, SIGINT and SIGHUP on, which the caller has blocked together
 * with SIGCHLD; may do nothing else but unlink files meanwhile and later.
 *
 * Return: the child's exit status, as the shell counts it.
 */
int moat_sandbox_supervise(pid_t child);

/**
 * moat_sandbox_landlock() - no file by path, no network
 * @root_fd: but what is beneath this directory; -1: nothing
 *
 * What is moved away from there can not be worked with any more, even by who
 * has it open. Newer Linux (6.19, and stable series of before) allows that
 * where the directory is the root of its mount, as moat_sandbox_separate()
 * makes it; but then no ".." leads up from what was moved.
 *
 * Return: 0, or a negative errno, e.g. -EOPNOTSUPP: Linux lacks it, or with
 * @root_fd is older than 5.19 and would forbid to move files.
 */
int moat_sandbox_landlock(int root_fd);

/**
 * moat_sandbox_limits() - for good
 * @files: open descriptors, at most; fewer where the hard limit is lower
 * @heap: bytes of private memory, at most
 */
int moat_sandbox_limits(unsigned int files, unsigned long heap);

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
 * @keep: but these (1 << CAP_...) if they are there. CAP_KILL is for who has to
 *	end a child that may run under another user by then (passt becomes
 *	"nobody"): the list of system calls should allow signals to that child
 *	only, by its pidfd.
 *
 * Return: 0 or a negative errno.
 */
int moat_sandbox_privileges(uint64_t keep);

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
