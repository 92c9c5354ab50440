/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guard as a process: one device, one VMM at a time, session after session.
 *
 *     connect to the backend --> wait for a VMM --> session --> again
 *
 * It ends on SIGTERM or SIGINT (cleanly), when the backend is gone, or after
 * one VMM if it was told to serve one.
 */
#ifndef MOAT_GUARD_SERVICE_H
#define MOAT_GUARD_SERVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "guard/backend.h"
#include "guard/session.h"
#include "os/log.h"

struct moat_service_config {
	struct moat_session_config session; /* its fds are the service's */
	const char *socket_path;	    /* listen here, or ... */
	int fd; /* ... serve this connection; -1 for none */
	struct moat_backend_config backend;
	bool once;
	bool seccomp;
};

/**
 * moat_service_run() - run until the end
 *
 * Return: the exit status: 0 for a clean end, 1 for a failure (logged).
 */
int moat_service_run(const struct moat_service_config *config,
		     struct moat_log *log);

#endif
