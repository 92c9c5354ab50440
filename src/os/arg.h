/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers on a command line.
 */
#ifndef MOAT_OS_ARG_H
#define MOAT_OS_ARG_H

#include <stdbool.h>
#include <stdint.h>

/**
 * moat_arg_number() - parse all of @arg as a number
 * @size: it may be hexadecimal (0x...), and K, M or G may stand behind it
 * @min: the least that is allowed
 * @max: the most
 *
 * Return: 0 with *@out set, or -EINVAL.
 */
int moat_arg_number(const char *arg, bool size, uint64_t min, uint64_t max,
		    uint64_t *out);

#endif
