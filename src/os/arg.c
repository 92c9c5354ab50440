/* SPDX-License-Identifier: Apache-2.0 */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "os/arg.h"

int moat_arg_number(const char *arg, bool size, uint64_t min, uint64_t max,
		    uint64_t *out)
{
	static const char units[] = "KMG";
	unsigned int shift = 0;
	char *end;
	uint64_t n;

	/* strtoull() takes a sign and spaces before it. */
	if (!isdigit((unsigned char)arg[0]))
		return -EINVAL;
	errno = 0;
	n = strtoull(arg, &end, size ? 0 : 10);
	if (size && *end && strchr(units, *end))
		shift = 10 * (unsigned int)(strchr(units, *end++) - units + 1);
	if (errno || *end || n > max >> shift || n << shift < min)
		return -EINVAL;
	*out = n << shift;
	return 0;
}
