/* SPDX-License-Identifier: Apache-2.0 */
#include <moat/device.h>

#include "core/shm.h"

enum verb { READ, WRITE, ZERO };

static size_t each(const struct iovec *iov, uint32_t n, uint64_t skip,
		   uint8_t *mine, size_t len, enum verb verb)
{
	size_t done = 0;

	for (; n && done < len; iov++, n--) {
		size_t part = iov->iov_len;
		uint8_t *p = iov->iov_base;

		if (skip >= part) {
			skip -= part;
			continue;
		}
		p += skip;
		part -= (size_t)skip;
		skip = 0;
		if (part > len - done)
			part = len - done;
		if (verb == READ)
			moat_shm_copy_in(mine + done, p, part);
		else if (verb == WRITE)
			moat_shm_copy_out(p, mine + done, part);
		else
			__builtin_memset(p, 0, part);
		done += part;
	}
	return done;
}

size_t moat_iov_read(const struct iovec *iov, uint32_t n, uint64_t skip,
		     void *dst, size_t len)
{
	return each(iov, n, skip, dst, len, READ);
}

size_t moat_iov_write(const struct iovec *iov, uint32_t n, uint64_t skip,
		      const void *src, size_t len)
{
	return each(iov, n, skip, (uint8_t *)src, len, WRITE);
}

size_t moat_iov_zero(const struct iovec *iov, uint32_t n, uint64_t skip,
		     size_t len)
{
	return each(iov, n, skip, NULL, len, ZERO);
}

uint32_t moat_iov_cut(struct iovec **iov, uint32_t n, uint64_t len)
{
	while (n && len >= (*iov)->iov_len) {
		len -= (*iov)->iov_len;
		(*iov)++;
		n--;
	}
	if (n && len) {
		(*iov)->iov_base = (uint8_t *)(*iov)->iov_base + len;
		(*iov)->iov_len -= (size_t)len;
	}
	return n;
}
