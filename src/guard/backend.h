/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a guard's backend comes from: a socket that it listens on (--backend),
 * or a command that is started (--exec); and, with --restart, where another one
 * comes from once it is gone.
 *
 * How often that may be is bounded by a number a minute, saved up to that
 * number. One that follows others which have finished no request comes later
 * each time.
 */
#ifndef MOAT_GUARD_BACKEND_H
#define MOAT_GUARD_BACKEND_H

#include <stdbool.h>
#include <stdint.h>

#include "guard/restart.h"
#include "os/child.h"
#include "os/log.h"
#include "os/loop.h"
#include "os/starter.h"

#define MOAT_RESTARTS_MAX 1000u

struct moat_backend_config {
	const char *socket;  /* connect here, or ... */
	char *const *exec;   /* ... start this; NULL for none */
	uint32_t restarts;   /* others a minute; 0: none */
	uint32_t restart_ms; /* for which a VMM may have to wait for one */
};

struct moat_backend {
	const struct moat_backend_config *config;
	struct moat_log *log;
	struct moat_loop *loop;
	int abort_fd;
	struct moat_child child;
	struct moat_starter starter;
	struct moat_source child_src;
	bool ended; /* the child has */
	struct moat_restart_ops ops;
	/* private */
	uint64_t saved_ns; /* each restart costs a minute / restarts */
	uint64_t saved_at_ns;
	uint32_t idle; /* that many have finished nothing */
};

/** moat_backend_init() - nothing is started; @abort_fd ends all waiting */
void moat_backend_init(struct moat_backend *b,
		       const struct moat_backend_config *config,
		       struct moat_log *log, struct moat_loop *loop,
		       int abort_fd);

/** moat_backend_start() - the command, if there is one; before the sandbox */
int moat_backend_start(struct moat_backend *b);

/**
 * moat_backend_connect() - to serve a VMM
 * @again: it was connected to before
 *
 * Return: the fd or a negative errno, logged.
 */
int moat_backend_connect(struct moat_backend *b, bool again);

/** moat_backend_one_vmm() - was it handed its one connection? */
bool moat_backend_one_vmm(const struct moat_backend *b);

/** moat_backend_done() - has it ended with its VMM, as some do? */
bool moat_backend_done(const struct moat_backend *b);

/** moat_backend_end() - end the command */
void moat_backend_end(struct moat_backend *b);

#endif
