/* SPDX-License-Identifier: Apache-2.0 */
/*
 * File descriptors with a visible owner: what was closed or given away is -1.
 */
#ifndef MOAT_OS_FD_H
#define MOAT_OS_FD_H

#include <errno.h>
#include <stdint.h>
#include <unistd.h>

/** moat_fd_close() - close *@fd if it is one, and make it -1 */
static inline void moat_fd_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/** moat_fd_take() - the fd, which the caller now owns; *@fd becomes -1 */
static inline int moat_fd_take(int *fd)
{
	int taken = *fd;

	*fd = -1;
	return taken;
}

/**
 * moat_eventfd_signal() - add one to an eventfd
 *
 * A full counter (EAGAIN) is fine: it is signalled already.
 *
 * Return: 0, or -EINTR if the write slept until a signal came (os/alarm.h):
 * whoever shares the eventfd has made it block.
 */
static inline int moat_eventfd_signal(int fd)
{
	uint64_t one = 1;

	if (fd >= 0 && write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
		return -EINTR;
	return 0;
}

#endif
