/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <limits.h>

#include "os/clock.h"
#include "os/wait.h"

int moat_wait(struct pollfd *p, nfds_t n, uint32_t ms)
{
	uint64_t now = moat_now_ns();
	uint64_t end = now + ms * (uint64_t)MOAT_NS_PER_MS;
	uint64_t left = ms;
	int ret;

	for (;;) {
		ret = poll(p, n, left < INT_MAX ? (int)left : INT_MAX);
		if (ret >= 0)
			return ret;
		if (errno != EINTR)
			return -errno;
		now = moat_now_ns();
		/* Up, for what is left of a millisecond is to be waited too. */
		left = now < end ? (end - now - 1) / MOAT_NS_PER_MS + 1 : 0;
	}
}

short moat_wait_fd(int fd, short events, uint32_t ms)
{
	struct pollfd p = { .fd = fd, .events = events };

	return moat_wait(&p, 1, ms) > 0 ? p.revents : 0;
}
