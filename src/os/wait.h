/* SPDX-License-Identifier: Apache-2.0 */
/*
 * poll() that a signal does not cut short. Who has an alarm (os/alarm.h) is
 * interrupted up to four times a second while it works, at any call and even
 * at one that does not wait: an EINTR taken for "nothing came" would give up
 * on others before their time.
 */
#ifndef MOAT_OS_WAIT_H
#define MOAT_OS_WAIT_H

#include <poll.h>
#include <stdint.h>

/**
 * moat_wait() - poll() of @n descriptors for @ms milliseconds; 0 only looks
 *
 * Return: how many are ready, 0 once the time is over, or a negative errno.
 */
int moat_wait(struct pollfd *p, nfds_t n, uint32_t ms);

/** moat_wait_fd() - the same of one: what is true of it (POLLIN...), or 0 */
short moat_wait_fd(int fd, short events, uint32_t ms);

#endif
