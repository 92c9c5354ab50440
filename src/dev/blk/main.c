/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moat-blk: a disk for virtual machines, as a process of its own.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "dev/blk/blk.h"

#define QUEUES_MAX 64u

enum {
	OPT_PATH = 256,
	OPT_NULL,
	OPT_READ_ONLY,
	OPT_CACHE,
	OPT_SERIAL,
	OPT_BLOCK,
	OPT_ENGINE,
	OPT_BUFFERS,
};

static const struct argp_option options[] = {
	{ 0, 0, 0, 0, "The disk (one of):", 1 },
	{ "blk-file", OPT_PATH, "FILE", 0, "a raw file or a block device", 0 },
	{ "null", OPT_NULL, "SIZE", 0,
	  "no disk at all, of SIZE bytes (K, M, G): for measuring", 0 },
	{ 0, 0, 0, 0, "How it is shown and used:", 2 },
	{ "read-only", OPT_READ_ONLY, 0, 0, "the guest can not write", 0 },
	{ "cache", OPT_CACHE, "MODE", 0,
	  "none (default; past the page cache where the file allows), "
	  "writeback (through it), writethrough (through it, and each write "
	  "is stable when it is done), directsync (past it, likewise)",
	  0 },
	{ "serial", OPT_SERIAL, "TEXT", 0, "up to 20 characters", 0 },
	{ "block-size", OPT_BLOCK, "N", 0,
	  "logical block size, 512 to 4096 (the device's, or 512)", 0 },
	{ "engine", OPT_ENGINE, "ENGINE", 0,
	  "auto (default: io_uring, but at once for a file in memory), uring, "
	  "sync",
	  0 },
	{ "registered-buffers", OPT_BUFFERS, "on|off", 0,
	  "pin all guest memory for io_uring (default off: it takes the memory "
	  "for good, and a guest with a balloon must not have it)",
	  0 },
	{ 0 },
};

struct args {
	struct moat_device_config config;
	struct blk_options blk;
	bool sync;
	bool buffers;
};

static void check(const struct args *a, struct argp_state *state)
{
	if (a->config.print_capabilities)
		return;
	if (!a->blk.path == !a->blk.null_size)
		argp_error(state, "exactly one of --blk-file=FILE and "
				  "--null=SIZE is needed");
}

static void parse_block(const char *arg, struct args *a,
			struct argp_state *state)
{
	uint64_t n = moat_device_number(arg, "block-size", false, BLK_SECTOR,
					4096, state);

	if (n & (n - 1))
		argp_error(state, "--block-size=%s: 512, 1024, 2048 or 4096",
			   arg);
	a->blk.block_size = (uint32_t)n;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	static const char *const caches[] = { "none", "writeback",
					      "writethrough", "directsync",
					      NULL };
	static const char *const engines[] = { "auto", "uring", "sync", NULL };
	static const char *const off_on[] = { "off", "on", NULL };
	struct args *a = state->input;
	int engine;

	switch (key) {
	case ARGP_KEY_INIT:
		state->child_inputs[0] = &a->config;
		break;
	case OPT_PATH:
		a->blk.path = arg;
		break;
	case OPT_NULL:
		a->blk.null_size = moat_device_number(arg, "null", true, 1,
						      UINT64_C(1) << 62, state);
		break;
	case OPT_READ_ONLY:
		a->blk.read_only = true;
		break;
	case OPT_CACHE:
		a->blk.cache = (enum blk_cache)moat_device_word(arg, "cache",
								caches, state);
		break;
	case OPT_SERIAL:
		if (strlen(arg) > VIRTIO_BLK_ID_BYTES)
			argp_error(state, "--serial: at most %d characters",
				   VIRTIO_BLK_ID_BYTES);
		a->blk.serial = arg;
		break;
	case OPT_BLOCK:
		parse_block(arg, a, state);
		break;
	case OPT_ENGINE:
		engine = moat_device_word(arg, "engine", engines, state);
		a->blk.async = engine == 1;
		a->sync = engine == 2;
		break;
	case OPT_BUFFERS:
		a->buffers = moat_device_word(arg, "registered-buffers", off_on,
					      state);
		break;
	case ARGP_KEY_END:
		check(a, state);
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static void reload(void *dev, struct moat_device *device)
{
	if (blk_disk_reload(dev))
		moat_device_config_changed(device);
}

/* Beside the harness's: what engine.c and disk.c do once all is open. */
static const char *const syscalls[] = {
	"io_uring_enter", "preadv", "pwritev", "fdatasync",
	"fallocate",	  "ioctl",  "lseek",   NULL,
};

/* And with registered buffers; the ring takes nothing else by then. */
static const char *const with_buffers[] = {
	"io_uring_enter",
	"preadv",
	"pwritev",
	"fdatasync",
	"fallocate",
	"ioctl",
	"lseek",
	"io_uring_register",
	NULL,
};

/* Pinned memory counts as locked. All that we may have, then. */
static void allow_pinning(void)
{
	struct rlimit lim = { RLIM_INFINITY, RLIM_INFINITY };

	if (!setrlimit(RLIMIT_MEMLOCK, &lim) || getrlimit(RLIMIT_MEMLOCK, &lim))
		return;
	lim.rlim_cur = lim.rlim_max;
	setrlimit(RLIMIT_MEMLOCK, &lim);
}

static const struct moat_device_ops ops = {
	.type = "block",
	.request_size = sizeof(struct blk_req),
	.features = blk_features,
	.accepted = blk_accepted,
	.get_config = blk_get_config,
	.set_config = blk_set_config,
	.worker_start = blk_worker_start,
	.worker_poll = blk_worker_poll,
	.worker_memory = blk_worker_memory,
	.worker_stop = blk_worker_stop,
	.request = blk_request,
	.resumed = blk_resumed,
	.reset = blk_reset,
	.left = blk_left,
	.reload = reload,
};

/* The vhost-user specification, "Backend program conventions". */
static void print_capabilities(void)
{
	puts("{\n  \"type\": \"block\",\n"
	     "  \"features\": [ \"read-only\", \"blk-file\" ]\n}");
}

int main(int argc, char **argv)
{
	const struct argp_child children[] = {
		{ moat_device_argp(), 0, NULL, 0 }, { 0 }
	};
	const struct argp argp = {
		.options = options,
		.parser = parse,
		.children = children,
		.doc = "Serve a raw file or a block device as a virtio disk, "
		       "over vhost-user.\vSIGHUP: look at the file's size "
		       "again and tell the guest. SIGTERM: finish what was "
		       "begun, and end.",
	};
	struct blk_disk disk = { 0 };
	struct args a = {
		.config = {
			.ops = &ops,
			.dev = &disk,
			.name = "moat-blk",
			.syscalls = syscalls,
			.max_queues = QUEUES_MAX,
		},
	};
	int ret;

	argp_err_exit_status = 2;
	if (moat_device_defaults(&a.config))
		return 1;
	if (argp_parse(&argp, argc, argv, 0, NULL, &a))
		return 2;
	if (a.config.print_capabilities) {
		print_capabilities();
		free(a.config.log);
		return 0;
	}
	a.blk.num_queues = a.config.num_queues;
	disk.log = a.config.log;
	ret = blk_disk_open(&disk, &a.blk);
	disk.in_memory |= a.sync;
	disk.sync |= a.sync;
	/* What is done at once is done in order, or can be. */
	a.config.in_order = disk.in_memory;
	disk.register_buffers = a.buffers && !disk.in_memory;
	if (disk.register_buffers) {
		a.config.syscalls = with_buffers;
		allow_pinning();
	}
	ret = ret ? 1 : moat_device_serve(&a.config);
	blk_disk_close(&disk);
	free(a.config.log);
	return ret;
}
