/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <moat/device.h>

#include "os/arg.h"
#include "os/log.h"
#include "vu/proto.h"

#define POLL_DEFAULT_US 64u
#define POLL_MAX_US 10000u

enum {
	OPT_SOCKET = 0x1000,
	OPT_FD,
	OPT_QUEUES,
	OPT_THREADS,
	OPT_POLL,
	OPT_ONCE,
	OPT_RESET,
	OPT_SANDBOX,
	OPT_LOG,
	OPT_CAPS,
};

static const struct argp_option options[] = {
	{ 0, 0, 0, 0, "Towards the VMM (one of):", 10 },
	{ "socket-path", OPT_SOCKET, "PATH", 0,
	  "listen on PATH, for one VMM after the other", 0 },
	{ "fd", OPT_FD, "N", 0, "serve the connection that fd N is", 0 },
	{ 0, 0, 0, 0, "Running:", 11 },
	{ "num-queues", OPT_QUEUES, "N", 0, "queues of the device (1)", 0 },
	{ "threads", OPT_THREADS, "N", 0,
	  "worker threads that share the queues (as many as queues)", 0 },
	{ "poll-us", OPT_POLL, "N", 0,
	  "look for work for up to N microseconds before sleeping (64)", 0 },
	{ "once", OPT_ONCE, 0, 0, "end when the first VMM has left", 0 },
	{ "ring-reset", OPT_RESET, 0, 0,
	  "offer the reset of single queues: only for a VMM that passes it on "
	  "(QEMU 11.1 resets a disk's queue and tells no backend)",
	  0 },
	{ "sandbox", OPT_SANDBOX, "LEVEL", 0,
	  "strict (default): namespaces, Landlock, limits, and what seccomp "
	  "does; seccomp: no capabilities, few system calls; none",
	  0 },
	{ "log-level", OPT_LOG, "LEVEL", 0,
	  "error, warn, info (default) or debug", 0 },
	{ "print-capabilities", OPT_CAPS, 0, 0,
	  "print what this back-end program can do, as JSON, and exit", 0 },
	{ 0 },
};

int moat_device_defaults(struct moat_device_config *c)
{
	c->fd = -1;
	c->num_queues = 1;
	c->threads = 0;
	c->poll_us = POLL_DEFAULT_US;
	c->sandbox = MOAT_SANDBOX_STRICT;
	if (!c->max_queues || c->max_queues > MOAT_VU_VRINGS_MAX)
		c->max_queues = MOAT_VU_VRINGS_MAX;
	c->log = malloc(sizeof(*c->log));
	if (!c->log)
		return -ENOMEM;
	moat_log_init(c->log, c->name, MOAT_LOG_INFO);
	return 0;
}

uint64_t moat_device_number(const char *arg, const char *name, bool size,
			    uint64_t min, uint64_t max,
			    struct argp_state *state)
{
	uint64_t n = min;

	if (moat_arg_number(arg, size, min, max, &n))
		argp_error(state, "--%s=%s: %llu to %llu is needed", name, arg,
			   (unsigned long long)min, (unsigned long long)max);
	return n;
}

static uint32_t number(const char *arg, uint32_t min, uint32_t max,
		       const char *name, struct argp_state *state)
{
	return (uint32_t)moat_device_number(arg, name, false, min, max, state);
}

int moat_device_word(const char *arg, const char *name,
		     const char *const *names, struct argp_state *state)
{
	for (int i = 0; names[i]; i++)
		if (!strcmp(arg, names[i]))
			return i;
	argp_error(state, "--%s=%s: see --help for the words it takes", name,
		   arg);
	return 0;
}

static void check(struct moat_device_config *c, struct argp_state *state)
{
	struct stat st;

	if (c->print_capabilities)
		return;
	if (c->fd >= 0 && (fstat(c->fd, &st) || !S_ISSOCK(st.st_mode)))
		argp_error(state, "--fd=%d: is no socket that was inherited",
			   c->fd);
	if (!c->socket_path == (c->fd < 0))
		argp_error(state, "exactly one of --socket-path=PATH and "
				  "--fd=N is needed");
	if (c->fd >= 0)
		c->once = true;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	static const char *const levels[] = { "error", "warn", "info", "debug",
					      NULL };
	static const char *const sandboxes[] = { "none", "seccomp", "strict",
						 NULL };
	struct moat_device_config *c = state->input;
	bool serves_files = c->ops->entered;

	switch (key) {
	case OPT_SOCKET:
		c->socket_path = arg;
		break;
	case OPT_FD:
		c->fd = (int)number(arg, 0, INT32_MAX, "fd", state);
		break;
	case OPT_QUEUES:
		c->num_queues =
			number(arg, 1, c->max_queues, "num-queues", state);
		break;
	case OPT_THREADS:
		c->threads = number(arg, 1, c->max_queues, "threads", state);
		break;
	case OPT_POLL:
		c->poll_us = number(arg, 0, POLL_MAX_US, "poll-us", state);
		break;
	case OPT_ONCE:
		c->once = true;
		break;
	case OPT_RESET:
		c->ring_reset = true;
		break;
	case OPT_SANDBOX:
		/* Names that virtiofsd has for what is no less than strict. */
		if (serves_files &&
		    (!strcmp(arg, "namespace") || !strcmp(arg, "chroot")))
			arg = (char *)"strict";
		c->sandbox = (enum moat_sandbox_level)moat_device_word(
			arg, "sandbox", sandboxes, state);
		break;
	case OPT_LOG:
		c->log->level = (enum moat_log_level)moat_device_word(
			arg, "log-level", levels, state);
		break;
	case OPT_CAPS:
		c->print_capabilities = true;
		break;
	case ARGP_KEY_END:
		check(c, state);
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

const struct argp *moat_device_argp(void)
{
	static const struct argp argp = { .options = options, .parser = parse };

	return &argp;
}

void moat_device_log(struct moat_log *log, enum moat_device_log_level level,
		     const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	moat_log_va(log, (enum moat_log_level)level, fmt, ap);
	va_end(ap);
}
