/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lets user-mode Linux before 6.13 run on processors that are newer than it.
 *
 * It saves the floating-point state of its processes in a buffer of fixed
 * size.  The host's kernel fills such a buffer as far as it goes, but takes
 * back a whole state only: where the processor's state is larger than the
 * buffer (AMX: 11 KiB), the first return to user space fails and init is
 * killed.  This library, put before libc by LD_PRELOAD, completes the state
 * with what the process has in the components that the buffer lacks.  On other
 * processors it changes nothing.
 */
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/*
 * Static, as a kernel stack of user-mode Linux has only 16 KiB; it is never
 * in here twice, having one processor and no preemption.
 */
static uint8_t whole[65536];

static long set_xstate(long pid, const struct iovec *part)
{
	struct iovec all = { .iov_base = whole, .iov_len = sizeof(whole) };

	if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &all))
		return -1;
	if (part->iov_len > all.iov_len) {
		errno = EFAULT;
		return -1;
	}
	memcpy(whole, part->iov_base, part->iov_len);
	return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, &all);
}

long ptrace(enum __ptrace_request request, ...)
{
	long pid, addr, data, word, ret;
	va_list ap;

	va_start(ap, request);
	pid = va_arg(ap, long);
	addr = va_arg(ap, long);
	data = va_arg(ap, long);
	va_end(ap);

	/* These return the word itself in libc, through a pointer below it. */
	if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA ||
	    request == PTRACE_PEEKUSER) {
		ret = syscall(SYS_ptrace, request, pid, addr, &word);
		if (ret < 0)
			return ret;
		errno = 0;
		return word;
	}

	ret = syscall(SYS_ptrace, request, pid, addr, data);
	if (ret < 0 && errno == EFAULT && request == PTRACE_SETREGSET &&
	    addr == NT_X86_XSTATE)
		return set_xstate(pid, (const struct iovec *)data);
	return ret;
}
