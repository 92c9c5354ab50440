/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which fds of the backend may be mapped into the guest.
 */
#ifndef MOAT_GUARD_SHMEMFD_H
#define MOAT_GUARD_SHMEMFD_H

#include <stdbool.h>

struct moat_session;

/**
 * moat_shmemfd_refused() - may this fd be mapped?
 * @writable: the guest is to be able to write
 *
 * Return: NULL if so, or half a sentence that says why not.
 */
const char *moat_shmemfd_refused(const struct moat_session *s, int fd,
				 bool writable);

#endif
