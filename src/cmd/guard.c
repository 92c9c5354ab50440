/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moat guard: stands between a VMM and a vhost-user backend.
 */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cmd/cmd.h"
#include "core/pool.h"
#include "dt/dt.h"
#include "guard/service.h"
#include "os/arg.h"

#define POOL_DEFAULT (UINT64_C(64) << 20)
#define POOL_MIN (UINT64_C(64) << 10)
#define POOL_MAX (UINT64_C(1) << 40)
#define POLL_DEFAULT_US 64u
#define POLL_MAX_US 10000u
#define RESTART_DEFAULT_MS 5000u
#define RESTART_MS_MAX 600000u

enum {
	OPT_SOCKET = 256,
	OPT_FD,
	OPT_BACKEND,
	OPT_EXEC,
	OPT_DEVICE,
	OPT_POOL,
	OPT_SHARE,
	OPT_POOL_AT,
	OPT_DTB,
	OPT_ACCESS,
	OPT_SHMEM,
	OPT_MAPPINGS,
	OPT_POLL,
	OPT_RESTART,
	OPT_RESTART_MS,
	OPT_ONCE,
	OPT_SANDBOX,
	OPT_LOG,
	OPT_CAPS,
};

static const struct argp_option options[] = {
	{ 0, 0, 0, 0, "Towards the VMM (one of):", 1 },
	{ "socket-path", OPT_SOCKET, "PATH", 0,
	  "listen on PATH, for one VMM after the other", 0 },
	{ "fd", OPT_FD, "N", 0, "serve the connection that fd N is", 0 },
	{ 0, 0, 0, 0, "Towards the backend (one of):", 2 },
	{ "backend", OPT_BACKEND, "SOCKET", 0,
	  "connect to the backend that listens on SOCKET", 0 },
	{ "exec", OPT_EXEC, 0, 0,
	  "start the backend: the COMMAND after --. In its arguments {socket} "
	  "becomes a path to listen on, {listen-fd} a listening fd, {fd} a "
	  "connected one; with none of them --fd=N is appended",
	  0 },
	{ "restart", OPT_RESTART, "N|off", 0,
	  "when the backend dies, stalls or breaks the protocol, go on with "
	  "another one, at most N times a minute: the VMM's connection stays, "
	  "and what was not finished is done again (default off)",
	  0 },
	{ "restart-ms", OPT_RESTART_MS, "N", 0,
	  "wait up to N milliseconds for another one (default 5000)", 0 },
	{ 0, 0, 0, 0, "The device:", 3 },
	{ "device", OPT_DEVICE, "TYPE|NODE", 0,
	  "what the backend is (blk, fs, net, ...; default: generic rules); "
	  "with a /, its node in the tree of --dtb",
	  0 },
	{ "share", OPT_SHARE, "MODE", 0,
	  "what the backend sees of guest memory: bounce (nothing; default), "
	  "direct (the guest's pool, with rings and buffers), hybrid (the "
	  "guest's pool, with buffers), auto (direct if it can be had; default "
	  "with --pool or --dtb)",
	  0 },
	{ "pool", OPT_POOL_AT, "ADDR+SIZE", 0,
	  "the guest's own pool for this device; may be repeated", 0 },
	{ "dtb", OPT_DTB, "FILE", 0,
	  "take the guest's pool from this device tree, for --device=NODE", 0 },
	{ "access-platform", OPT_ACCESS, "on|off", 0,
	  "offer VIRTIO_F_ACCESS_PLATFORM in mode bounce as well (default off; "
	  "the other modes always offer it)",
	  0 },
	{ "pool-size", OPT_POOL, "SIZE", 0,
	  "bytes of memory that the backend sees, with K, M or G (default "
	  "64M); only what is used is allocated",
	  0 },
	{ "shmem", OPT_SHMEM, "on|off", 0,
	  "let the backend map its files into the guest's shared memory "
	  "regions "
	  "(default: on for --device=fs, else off)",
	  0 },
	{ "shmem-mappings", OPT_MAPPINGS, "N", 0,
	  "of them at most N at a time (default 480); each is an open file of "
	  "the VMM",
	  0 },
	{ "poll-us", OPT_POLL, "N", 0,
	  "look for work up to N microseconds before sleeping, while that pays "
	  "off (default 64; 0: never)",
	  0 },
	{ 0, 0, 0, 0, "The process:", 4 },
	{ "once", OPT_ONCE, 0, 0, "end when the first VMM leaves", 0 },
	{ "sandbox", OPT_SANDBOX, "MODE", 0,
	  "seccomp (default) or none, for debugging", 0 },
	{ "log-level", OPT_LOG, "LEVEL", 0,
	  "error, warn, info (default) or debug", 0 },
	{ "print-capabilities", OPT_CAPS, 0, 0,
	  "print what this back-end program can do, as JSON, and exit", 0 },
	{ 0 },
};

#define POOLS_MAX 7u

struct args {
	struct moat_service_config config;
	struct moat_dma_range pools[POOLS_MAX];
	const char *dtb, *node;
	bool share_given, shmem_given;
	const char *device;
	enum moat_log_level level;
	bool exec;
	bool caps;
};

static void parse_pool(const char *arg, struct args *a,
		       struct argp_state *state)
{
	uint64_t size;

	if (moat_arg_number(arg, true, POOL_MIN, POOL_MAX, &size))
		argp_error(
			state,
			"--pool-size=%s: a size from 64K to 1024G, with K, M "
			"or G, is needed",
			arg);
	else
		a->config.session.pool_size = (size + MOAT_SLOT_SIZE - 1) /
					      MOAT_SLOT_SIZE * MOAT_SLOT_SIZE;
}

/* Add a pool; why not, or NULL. */
static const char *add_pool(struct args *a, struct moat_dma_range r)
{
	struct moat_session_config *c = &a->config.session;

	for (uint32_t i = 0; i < c->npools; i++)
		if (r.addr - a->pools[i].addr < a->pools[i].size ||
		    a->pools[i].addr - r.addr < r.size)
			return "it overlaps another pool";
	if (c->npools == POOLS_MAX)
		return "there are 7 pools already, which is the most";
	a->pools[c->npools++] = r;
	return NULL;
}

/* ADDR+SIZE, in guest addresses, whole pages. */
static void parse_pool_at(const char *arg, struct args *a,
			  struct argp_state *state)
{
	const char *plus = strchr(arg, '+'), *why;
	struct moat_dma_range r;
	char *end;

	errno = 0;
	r.addr = strtoull(arg, &end, 0);
	if (!plus || end != plus || end == arg || errno || arg[0] == '-' ||
	    moat_arg_number(plus + 1, true, 1, UINT64_MAX, &r.size) ||
	    r.addr % MOAT_SLOT_SIZE || r.size % MOAT_SLOT_SIZE ||
	    r.addr + r.size < r.addr)
		argp_error(state,
			   "--pool=%s: ADDR+SIZE is needed, such as "
			   "0x7c000000+64M, in whole pages",
			   arg);
	else if ((why = add_pool(a, r)))
		argp_error(state, "--pool=%s: %s", arg, why);
}

static void parse_share(const char *arg, struct args *a,
			struct argp_state *state)
{
	static const char *const names[] = {
		[MOAT_SHARE_BOUNCE] = "bounce",
		[MOAT_SHARE_DIRECT] = "direct",
		[MOAT_SHARE_HYBRID] = "hybrid",
		[MOAT_SHARE_AUTO] = "auto",
	};

	for (unsigned int i = 0; i < 4; i++)
		if (!strcmp(arg, names[i])) {
			a->config.session.share = (enum moat_share_mode)i;
			a->share_given = true;
			return;
		}
	argp_error(state, "--share=%s: bounce, direct, hybrid or auto", arg);
}

static void parse_access(const char *arg, struct args *a,
			 struct argp_state *state)
{
	if (!strcmp(arg, "on"))
		a->config.session.access_platform = true;
	else if (!strcmp(arg, "off"))
		a->config.session.access_platform = false;
	else
		argp_error(state, "--access-platform=%s: on or off", arg);
}

static void parse_shmem(const char *arg, struct args *a,
			struct argp_state *state)
{
	bool on = !strcmp(arg, "on");

	if (on || !strcmp(arg, "off")) {
		a->config.session.shmem = on;
		a->shmem_given = true;
		return;
	}
	argp_error(state, "--shmem=%s: on or off", arg);
}

static void parse_restart(const char *arg, struct args *a,
			  struct argp_state *state)
{
	uint64_t n = 0;

	if (strcmp(arg, "off") &&
	    moat_arg_number(arg, false, 1, MOAT_RESTARTS_MAX, &n))
		argp_error(state, "--restart=%s: 1 to %u, or off", arg,
			   MOAT_RESTARTS_MAX);
	else
		a->config.backend.restarts = (uint32_t)n;
}

static void parse_mappings(const char *arg, struct args *a,
			   struct argp_state *state)
{
	uint64_t n;

	if (moat_arg_number(arg, false, 1, MOAT_SHMEM_MAPPINGS_MAX, &n))
		argp_error(state, "--shmem-mappings=%s: 1 to %u is needed", arg,
			   MOAT_SHMEM_MAPPINGS_MAX);
	else
		a->config.session.shmem_mappings = (uint32_t)n;
}

static void parse_device(const char *arg, struct args *a,
			 struct argp_state *state)
{
	if (arg[0] == '/') {
		a->node = arg;
		return;
	}
	a->config.session.type = moat_device_type(arg);
	if (a->config.session.type && !a->config.session.type->refused)
		return;
	if (a->config.session.type) {
		argp_error(state, "--device=%s is refused: %s", arg,
			   a->config.session.type->refused);
		return;
	}
	fprintf(stderr, "moat guard: device types:");
	for (const struct moat_device_type *t = moat_device_types(); t->name;
	     t++)
		if (!t->refused)
			fprintf(stderr, " %s", t->name);
	fputc('\n', stderr);
	argp_error(state, "--device=%s: no such device type", arg);
}

static void parse_level(const char *arg, struct args *a,
			struct argp_state *state)
{
	static const char *const names[] = { "error", "warn", "info", "debug" };

	for (unsigned int i = 0; i < 4; i++)
		if (!strcmp(arg, names[i])) {
			a->level = (enum moat_log_level)i;
			return;
		}
	argp_error(state, "--log-level=%s: error, warn, info or debug", arg);
}

static void parse_sandbox(const char *arg, struct args *a,
			  struct argp_state *state)
{
	static const char *const names[] = { "none", "seccomp" };

	for (unsigned int i = 0; i < 2; i++)
		if (!strcmp(arg, names[i])) {
			a->config.seccomp = i;
			return;
		}
	argp_error(state, "--sandbox=%s: seccomp or none", arg);
}

static bool is_socket(int fd)
{
	struct stat st;

	return !fstat(fd, &st) && S_ISSOCK(st.st_mode);
}

static void check(const struct args *a, struct argp_state *state)
{
	if (a->caps)
		return;
	if (a->config.fd >= 0 && !is_socket(a->config.fd))
		argp_error(state, "--fd=%d: is no socket that was inherited",
			   a->config.fd);
	if (!a->config.socket_path == (a->config.fd < 0))
		argp_error(state,
			   "exactly one of --socket-path=PATH and --fd=N "
			   "is needed");
	if (!a->config.backend.socket == !a->exec)
		argp_error(state, "exactly one of --backend=SOCKET and --exec "
				  "-- COMMAND is needed");
	if (!a->dtb != !a->node)
		argp_error(state, "--dtb=FILE and --device=/NODE go together");
	if (a->share_given && a->config.session.share != MOAT_SHARE_BOUNCE &&
	    !a->config.session.npools && !a->dtb)
		argp_error(state, "this --share mode needs --pool=ADDR+SIZE, "
				  "or --dtb=FILE and --device=/NODE");
	if (a->exec && !a->config.backend.exec)
		argp_error(state, "--exec needs a COMMAND after --");
	if (!a->exec && a->config.backend.exec)
		argp_error(state, "a COMMAND needs --exec before it");
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *a = state->input;
	uint64_t n;

	switch (key) {
	case OPT_SOCKET:
		a->config.socket_path = arg;
		break;
	case OPT_FD:
		if (moat_arg_number(arg, false, 0, INT32_MAX, &n))
			argp_error(state, "--fd=%s: a number is needed", arg);
		else
			a->config.fd = (int)n;
		break;
	case OPT_BACKEND:
		a->config.backend.socket = arg;
		break;
	case OPT_EXEC:
		a->exec = true;
		break;
	case OPT_DEVICE:
		parse_device(arg, a, state);
		break;
	case OPT_POOL:
		parse_pool(arg, a, state);
		break;
	case OPT_SHARE:
		parse_share(arg, a, state);
		break;
	case OPT_POOL_AT:
		parse_pool_at(arg, a, state);
		break;
	case OPT_DTB:
		a->dtb = arg;
		break;
	case OPT_ACCESS:
		parse_access(arg, a, state);
		break;
	case OPT_SHMEM:
		parse_shmem(arg, a, state);
		break;
	case OPT_MAPPINGS:
		parse_mappings(arg, a, state);
		break;
	case OPT_POLL:
		if (moat_arg_number(arg, false, 0, POLL_MAX_US, &n))
			argp_error(state, "--poll-us=%s: 0 to %u is needed",
				   arg, POLL_MAX_US);
		else
			a->config.session.poll_us = (uint32_t)n;
		break;
	case OPT_RESTART:
		parse_restart(arg, a, state);
		break;
	case OPT_RESTART_MS:
		if (moat_arg_number(arg, false, 1, RESTART_MS_MAX, &n))
			argp_error(state, "--restart-ms=%s: 1 to %u is needed",
				   arg, RESTART_MS_MAX);
		else
			a->config.backend.restart_ms = (uint32_t)n;
		break;
	case OPT_ONCE:
		a->config.once = true;
		break;
	case OPT_SANDBOX:
		parse_sandbox(arg, a, state);
		break;
	case OPT_LOG:
		parse_level(arg, a, state);
		break;
	case OPT_CAPS:
		a->caps = true;
		break;
	case ARGP_KEY_ARGS:
		a->config.backend.exec = state->argv + state->next;
		state->next = state->argc;
		break;
	case ARGP_KEY_END:
		check(a, state);
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

/* The vhost-user specification, "Back-end program conventions". */
static void print_capabilities(const struct moat_device_type *type)
{
	printf("{\n  \"type\": \"%s\",\n  \"features\": []\n}\n",
	       type->capability ? type->capability : type->name);
}

/* The pool that the device tree gives to this device: 0 or -1, logged. */
static int pool_of_tree(struct args *a, struct moat_log *log)
{
	struct moat_dt_pool pool;
	const char *no;
	struct moat_dt_why why;
	void *fdt = NULL;
	size_t size = 0;
	int ret;

	if (!a->dtb)
		return 0;
	ret = moat_dt_read(a->dtb, &fdt, &size, &why);
	if (!ret)
		ret = moat_dt_pool_of(fdt, size, a->node, &pool, &why);
	free(fdt);
	if (ret) {
		log_err(log, "--dtb=%s --device=%s: %s", a->dtb, a->node,
			why.text);
		return -1;
	}
	no = add_pool(a, (struct moat_dma_range){ pool.address, pool.size });
	if (no) {
		log_err(log,
			"the tree's pool %s can not be added to --pool: %s",
			pool.path, no);
		return -1;
	}
	if (pool.users > 1)
		log_warn(log,
			 "%s is the pool of %u devices: this backend sees the "
			 "buffers of all of them; give each a pool of its own",
			 pool.path, pool.users);
	return 0;
}

int moat_cmd_guard(int argc, char **argv)
{
	static const struct argp argp = {
		.options = options,
		.parser = parse,
		.args_doc = "[-- COMMAND [ARGUMENT...]]",
		.doc = "Stand between a VMM and a vhost-user backend, so that "
		       "the backend sees a pool and nothing of the guest's "
		       "RAM.",
	};
	struct args a = {
		.config = {
			.session = {
				.type = moat_device_type("generic"),
				.pool_size = POOL_DEFAULT,
				.poll_us = POLL_DEFAULT_US,
				.shmem_mappings = MOAT_SHMEM_MAPPINGS_DEFAULT,
			},
			.backend = { .restart_ms = RESTART_DEFAULT_MS },
			.fd = -1,
			.seccomp = true,
		},
		.level = MOAT_LOG_INFO,
	};
	struct moat_log log;
	char prefix[64];
	static char name[] = "moat guard";

	argv[0] = name;
	argp_err_exit_status = 2;
	if (argp_parse(&argp, argc, argv, 0, NULL, &a))
		return 2;
	if (a.caps) {
		print_capabilities(a.config.session.type);
		return 0;
	}
	snprintf(prefix, sizeof(prefix), "moat guard[%s]",
		 a.config.session.type->name);
	moat_log_init(&log, prefix, a.level);
	if (pool_of_tree(&a, &log))
		return 1;
	a.config.session.pools = a.pools;
	if (!a.share_given && a.config.session.npools)
		a.config.session.share = MOAT_SHARE_AUTO;
	if (!a.shmem_given)
		a.config.session.shmem = a.config.session.type->shmem;
	return moat_service_run(&a.config, &log);
}
