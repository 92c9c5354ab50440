/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moat dt: restricted DMA pools in a device tree.
 */
#include <argp.h>
#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/cmd.h"
#include "dt/dt.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_FINDINGS = 3 };

enum action { SHOW, CHECK, ADD, REMOVE, QEMU, NACTIONS };

static const char *const action_names[] = {
	"show", "check", "add-pool", "remove-pool", "qemu",
};

struct options {
	enum action action;
	const char *file, *out, *type, *sockets;
	const char **devices, **pools;
	size_t ndevices, npools;
	uint64_t size, address, align, below;
	struct moat_dt_load load;
	bool fixed, shared, all, json;
};

enum {
	OPT_OUT = 'o',
	OPT_JSON = 0x100,
	OPT_SIZE,
	OPT_ADDRESS,
	OPT_ALIGN,
	OPT_BELOW,
	OPT_DEVICE,
	OPT_POOL,
	OPT_SHARED,
	OPT_ALL,
	OPT_QUEUES,
	OPT_QUEUE_SIZE,
	OPT_TYPE,
	OPT_SOCKETS,
};

static const struct argp_option option_table[] = {
	{ "device", OPT_DEVICE, "NODE", 0,
	  "add-pool: gets a pool; remove-pool: leaves its pool; check: needs a "
	  "pool, others do not. Can be repeated",
	  1 },
	{ "output", OPT_OUT, "FILE", 0,
	  "add-pool, remove-pool: where the new tree goes; FILE can be the "
	  "tree itself",
	  1 },
	{ "json", OPT_JSON, NULL, 0, "show, check, qemu: JSON", 1 },
	{ NULL, 0, NULL, 0, "add-pool:", 2 },
	{ "size", OPT_SIZE, "SIZE", 0, "Of each pool; 64M by default", 0 },
	{ "address", OPT_ADDRESS, "ADDR", 0,
	  "Put it there, further ones behind it; by default the highest free "
	  "place is found",
	  0 },
	{ "align", OPT_ALIGN, "SIZE", 0, "Of the place found; 2M by default",
	  0 },
	{ "below", OPT_BELOW, "ADDR", 0, "Find a place below this address",
	  0 },
	{ "shared", OPT_SHARED, NULL, 0,
	  "One pool for all devices; by default each gets its own", 0 },
	{ NULL, 0, NULL, 0, "add-pool and check:", 3 },
	{ "queues", OPT_QUEUES, "N", 0, "Of each device; 1 by default", 0 },
	{ "queue-size", OPT_QUEUE_SIZE, "N", 0,
	  "Descriptors of a queue; 256 by default", 0 },
	{ NULL, 0, NULL, 0, "remove-pool:", 4 },
	{ "pool", OPT_POOL, "NODE", 0, "Remove this pool; can be repeated",
	  0 },
	{ "all", OPT_ALL, NULL, 0, "Remove all pools", 0 },
	{ NULL, 0, NULL, 0, "qemu:", 5 },
	{ "type", OPT_TYPE, "TYPE", 0,
	  "Of the devices: blk (the default), fs, net, scsi ...", 0 },
	{ "sockets", OPT_SOCKETS, "FOLDER", 0,
	  "Of the sockets to connect to; . by default", 0 },
	{ 0 },
};

/* Which actions take an option. */
static const struct {
	int key;
	unsigned int actions;
} allowed[] = {
	{ OPT_DEVICE, 1 << ADD | 1 << REMOVE | 1 << CHECK },
	{ OPT_OUT, 1 << ADD | 1 << REMOVE },
	{ OPT_JSON, 1 << SHOW | 1 << CHECK | 1 << QEMU },
	{ OPT_SIZE, 1 << ADD },
	{ OPT_ADDRESS, 1 << ADD },
	{ OPT_ALIGN, 1 << ADD },
	{ OPT_BELOW, 1 << ADD },
	{ OPT_SHARED, 1 << ADD },
	{ OPT_QUEUES, 1 << ADD | 1 << CHECK },
	{ OPT_QUEUE_SIZE, 1 << ADD | 1 << CHECK },
	{ OPT_POOL, 1 << REMOVE },
	{ OPT_ALL, 1 << REMOVE },
	{ OPT_TYPE, 1 << QEMU },
	{ OPT_SOCKETS, 1 << QEMU },
};

/* Bytes or an address: decimal or 0x, with K, M or G behind it. */
static uint64_t number(struct argp_state *state, const char *name,
		       const char *arg, uint64_t max)
{
	unsigned long long v;
	unsigned int shift = 0;
	char *end;

	errno = 0;
	v = strtoull(arg, &end, 0);
	if (end != arg && *end && strchr("KMG", *end)) {
		shift = *end == 'K' ? 10 : *end == 'M' ? 20 : 30;
		end++;
	}
	if (errno || end == arg || *end || strchr(arg, '-') || !v ||
	    v > max >> shift)
		argp_error(state, "--%s=%s: not a number from 1 to 0x%" PRIx64,
			   name, arg, max);
	return (uint64_t)v << shift;
}

static void append(struct argp_state *state, const char ***list, size_t *n,
		   const char *arg)
{
	const char **p = reallocarray(*list, *n + 1, sizeof(*p));

	if (!p) {
		argp_failure(state, EXIT_FAILED, ENOMEM, "%s", arg);
		return;
	}
	*list = p;
	p[(*n)++] = arg;
}

/* A word that goes into QEMU's options as it is. */
static const char *plain(struct argp_state *state, const char *name,
			 const char *arg)
{
	if (!*arg || strpbrk(arg, ", \t\n\"'\\$`*?[]"))
		argp_error(state,
			   "--%s=%s: must have no comma, blank or quote",
			   name, arg);
	return arg;
}

static void argument(struct argp_state *state, struct options *o, char *arg)
{
	if (state->arg_num == 1) {
		o->file = arg;
		return;
	}
	if (state->arg_num > 1)
		argp_error(state, "'%s': one tree at a time", arg);
	for (o->action = 0; o->action < NACTIONS; o->action++)
		if (!strcmp(arg, action_names[o->action]))
			return;
	argp_error(state, "no action '%s'", arg);
}

static void finish(struct argp_state *state, const struct options *o)
{
	if (!o->file)
		argp_error(state, "say what to do, and the tree's file");
	if ((o->action == ADD || o->action == REMOVE) && !o->out)
		argp_error(state, "say with -o where the new tree goes");
	if (o->action == ADD && !o->ndevices)
		argp_error(state, "say with --device who gets a pool");
	if (o->action == ADD && o->fixed && (o->align || o->below))
		argp_error(state, "--align and --below are for finding a "
				  "place: not with --address");
	if (o->action == REMOVE && !o->all + !o->npools + !o->ndevices != 2)
		argp_error(state, "say which: --pool, --device or --all");
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case OPT_DEVICE:
		append(state, &o->devices, &o->ndevices, arg);
		break;
	case OPT_POOL:
		append(state, &o->pools, &o->npools, arg);
		break;
	case OPT_OUT:
		o->out = arg;
		break;
	case OPT_JSON:
		o->json = true;
		break;
	case OPT_SIZE:
		o->size = number(state, "size", arg, UINT64_MAX);
		break;
	case OPT_ADDRESS:
		o->address = number(state, "address", arg, UINT64_MAX);
		o->fixed = true;
		break;
	case OPT_ALIGN:
		o->align = number(state, "align", arg, UINT64_MAX);
		break;
	case OPT_BELOW:
		o->below = number(state, "below", arg, UINT64_MAX);
		break;
	case OPT_SHARED:
		o->shared = true;
		break;
	case OPT_ALL:
		o->all = true;
		break;
	case OPT_QUEUES:
		o->load.queues = number(state, "queues", arg, 65536);
		break;
	case OPT_QUEUE_SIZE:
		o->load.queue_size = number(state, "queue-size", arg, 32768);
		break;
	case OPT_TYPE:
		o->type = plain(state, "type", arg);
		break;
	case OPT_SOCKETS:
		o->sockets = plain(state, "sockets", arg);
		break;
	case ARGP_KEY_ARG:
		argument(state, o, arg);
		break;
	case ARGP_KEY_END:
		finish(state, o);
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static const struct argp parser = {
	option_table,
	parse,
	"ACTION FILE",
	"Restricted DMA pools in a device tree (.dtb).\n\n"
	"  show         pools, devices, and who has none\n"
	"  check        what keeps a pool from protecting anything\n"
	"  add-pool     gives devices a pool\n"
	"  remove-pool  takes pools away\n"
	"  qemu         QEMU's options for the machine of the tree\v"
	"Exit status: 0 done, or nothing found; 1 failed; 2 bad usage; 3 check "
	"found something.",
	NULL,
	NULL,
	NULL,
};

int moat_cmd_dt(int argc, char **argv)
{
	(void)allowed;
	(void)argc;
	(void)argv;
	(void)parser;
	return EXIT_FAILED;
}
