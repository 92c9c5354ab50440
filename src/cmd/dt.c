/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moat dt: restricted DMA pools in a device tree.
 */
#include <argp.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dt/dt.h"
#include "os/arg.h"

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
	unsigned int given; /* bit i: allowed[i] */
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
	{ "below", OPT_BELOW, "ADDR", 0, "Find a place below this address", 0 },
	{ "shared", OPT_SHARED, NULL, 0,
	  "One pool for all devices; by default each gets its own", 0 },
	{ NULL, 0, NULL, 0, "add-pool and check:", 3 },
	{ "queues", OPT_QUEUES, "N", 0, "Of each device; 1 by default", 0 },
	{ "queue-size", OPT_QUEUE_SIZE, "N", 0,
	  "Descriptors of a queue; 256 by default", 0 },
	{ NULL, 0, NULL, 0, "remove-pool:", 4 },
	{ "pool", OPT_POOL, "NODE", 0, "Remove this pool; can be repeated", 0 },
	{ "all", OPT_ALL, NULL, 0, "Remove all pools", 0 },
	{ NULL, 0, NULL, 0, "qemu:", 5 },
	{ "type", OPT_TYPE, "TYPE", 0,
	  "Of the devices: blk (the default), fs, net, scsi ...", 0 },
	{ "sockets", OPT_SOCKETS, "FOLDER", 0,
	  "Of the sockets to connect to; . by default", 0 },
	{ 0 },
};

/* Which actions take an option; those that are not here fit all. */
static const struct {
	int key;
	unsigned int actions;
	const char *name;
} allowed[] = {
	{ OPT_DEVICE, 1 << ADD | 1 << REMOVE | 1 << CHECK, "--device" },
	{ OPT_OUT, 1 << ADD | 1 << REMOVE, "-o" },
	{ OPT_JSON, 1 << SHOW | 1 << CHECK | 1 << QEMU, "--json" },
	{ OPT_SIZE, 1 << ADD, "--size" },
	{ OPT_ADDRESS, 1 << ADD, "--address" },
	{ OPT_ALIGN, 1 << ADD, "--align" },
	{ OPT_BELOW, 1 << ADD, "--below" },
	{ OPT_SHARED, 1 << ADD, "--shared" },
	{ OPT_QUEUES, 1 << ADD | 1 << CHECK, "--queues" },
	{ OPT_QUEUE_SIZE, 1 << ADD | 1 << CHECK, "--queue-size" },
	{ OPT_POOL, 1 << REMOVE, "--pool" },
	{ OPT_ALL, 1 << REMOVE, "--all" },
	{ OPT_TYPE, 1 << QEMU, "--type" },
	{ OPT_SOCKETS, 1 << QEMU, "--sockets" },
};

#define NALLOWED (sizeof(allowed) / sizeof(*allowed))

/* Bytes or an address: decimal or 0x, with K, M or G behind it. */
static uint64_t number(struct argp_state *state, const char *name,
		       const char *arg, uint64_t max)
{
	uint64_t v = 1;

	if (moat_arg_number(arg, true, 1, max, &v))
		argp_error(state, "--%s=%s: not a number from 1 to 0x%" PRIx64,
			   name, arg, max);
	return v;
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
		argp_error(state, "--%s=%s: must have no comma, blank or quote",
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
	for (size_t i = 0; i < NALLOWED; i++)
		if (o->given & 1u << i &&
		    !(allowed[i].actions & 1u << o->action))
			argp_error(state, "%s is not for %s", allowed[i].name,
				   action_names[o->action]);
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

	for (size_t i = 0; i < NALLOWED; i++)
		if (allowed[i].key == key)
			o->given |= 1u << i;
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

static int fail(const char *file, const struct moat_dt_why *why)
{
	fprintf(stderr, "moat dt: %s: %s\n", file, why->text);
	return EXIT_FAILED;
}

/* What was written is only written once it has left for good. */
static int written(int err)
{
	if (!err && fflush(stdout))
		err = -errno;
	if (err)
		fprintf(stderr, "moat dt: cannot write: %s\n", strerror(-err));
	return err ? EXIT_FAILED : EXIT_OK;
}

static int show(const struct options *o, const struct moat_dt *dt)
{
	return written(o->json ? moat_dt_show_json(dt, stdout)
			       : moat_dt_show_text(dt, stdout));
}

static int check(const struct options *o, const struct moat_dt *dt)
{
	struct moat_dt_findings found;
	struct moat_dt_why why;
	int status;

	if (moat_dt_check(dt, &o->load, o->devices, o->ndevices, &found,
			  &why)) {
		status = fail(o->file, &why);
	} else {
		status = written(o->json ? moat_dt_check_json(&found, stdout)
					 : moat_dt_check_text(&found, stdout));
		if (status == EXIT_OK && found.n)
			status = EXIT_FINDINGS;
	}
	moat_dt_findings_free(&found);
	return status;
}

static int qemu(const struct options *o, const struct moat_dt *dt)
{
	const struct moat_dt_qemu how = {
		.dtb = o->file,
		.type = o->type,
		.sockets = o->sockets,
	};
	struct moat_dt_args args;
	struct moat_dt_why why;
	int status = EXIT_OK;

	if (moat_dt_qemu_args(dt, &how, &args, &why))
		status = fail(o->file, &why);
	else if (o->json)
		status = written(moat_dt_qemu_json(&args, stdout));
	else if (strpbrk(o->file, " \t\n\"'\\$`*?[]"))
		status = fail(o->file, &(struct moat_dt_why){
					       "a shell would take this name "
					       "apart: use --json, or "
					       "another name" });
	else
		for (size_t i = 0; i < args.n; i++)
			printf("%s%c", args.v[i], i % 2 ? '\n' : ' ');
	moat_dt_args_free(&args);
	return status == EXIT_OK ? written(0) : status;
}

static int look(const struct options *o, const void *fdt, size_t size)
{
	static int (*const actions[])(const struct options *,
				      const struct moat_dt *) = {
		[SHOW] = show,
		[CHECK] = check,
		[QEMU] = qemu,
	};
	struct moat_dt_why why;
	struct moat_dt *dt;
	int status;

	if (moat_dt_open(fdt, size, &dt, &why))
		return fail(o->file, &why);
	status = actions[o->action](o, dt);
	moat_dt_close(dt);
	return status;
}

static int change(const struct options *o, const void *fdt, size_t size)
{
	const struct moat_dt_add add = {
		.size = o->size,
		.address = o->address,
		.fixed = o->fixed,
		.align = o->align,
		.below = o->below,
		.shared = o->shared,
		.devices = o->devices,
		.ndevices = o->ndevices,
		.load = o->load,
	};
	const struct moat_dt_remove rm = {
		.all = o->all,
		.pools = o->pools,
		.npools = o->npools,
		.devices = o->devices,
		.ndevices = o->ndevices,
	};
	struct moat_dt_why why;
	void *out = NULL;
	size_t out_size;
	int err;

	if (o->action == ADD)
		err = moat_dt_add_pools(fdt, size, &add, &out, &out_size, &why);
	else
		err = moat_dt_remove_pools(fdt, size, &rm, &out, &out_size,
					   &why);
	if (err)
		return fail(o->file, &why);
	err = moat_dt_write(o->out, out, out_size, &why);
	free(out);
	return err ? fail(o->out, &why) : EXIT_OK;
}

static int run(const struct options *o)
{
	struct moat_dt_why why;
	void *fdt;
	size_t size;
	int status;

	if (moat_dt_read(o->file, &fdt, &size, &why))
		return fail(o->file, &why);
	status = o->action == ADD || o->action == REMOVE ? change(o, fdt, size)
							 : look(o, fdt, size);
	free(fdt);
	return status;
}

int main(int argc, char **argv)
{
	struct options o = {
		.size = 64u << 20,
		.type = "blk",
		.sockets = ".",
	};
	char name[] = "moat dt";
	int status;

	argp_err_exit_status = EXIT_USAGE;
	argv[0] = name;
	status = argp_parse(&parser, argc, argv, 0, NULL, &o) ? EXIT_USAGE
							      : run(&o);
	free(o.devices);
	free(o.pools);
	return status;
}
