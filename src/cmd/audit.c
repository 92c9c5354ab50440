/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moat audit: who can reach which bytes of which guest's RAM.
 */
#include <argp.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "audit/audit.h"
#include "os/arg.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_OUTSIDE = 3 };

struct options {
	pid_t *pids, *vmms;
	char **names;
	size_t npids, nvmms, nnames;
	bool all, json, check;
	const char *svg;
};

enum {
	OPT_PID = 0x100,
	OPT_NAME,
	OPT_ALL,
	OPT_VMM,
	OPT_JSON,
	OPT_SVG,
	OPT_CHECK
};

static const struct argp_option option_table[] = {
	{ NULL, 0, NULL, 0, "Which processes:", 1 },
	{ "pid", OPT_PID, "PID", 0,
	  "This process: a VM's own, a backend or any other; can be repeated",
	  0 },
	{ "name", OPT_NAME, "NAME", 0,
	  "All processes of this name; can be repeated", 0 },
	{ "all", OPT_ALL, NULL, 0,
	  "All processes that reach a virtual machine's memory", 0 },
	{ "vmm", OPT_VMM, "PID", 0,
	  "Take this process for a virtual machine monitor, whatever it is; "
	  "asks for it too if nothing else does; can be repeated",
	  0 },
	{ NULL, 0, NULL, 0, "What to write:", 2 },
	{ "json", OPT_JSON, NULL, 0, "JSON instead of a table", 0 },
	{ "svg", OPT_SVG, "FILE", 0, "Also a picture: the memory map", 0 },
	{ "check", OPT_CHECK, NULL, 0,
	  "Exit with 3 if a process that is neither VMM nor guard reaches "
	  "guest RAM outside the pool, with 1 if not all could be read",
	  0 },
	{ 0 },
};

static int add_pid(pid_t **list, size_t *n, const char *arg)
{
	uint64_t v;
	pid_t *p;

	if (moat_arg_number(arg, false, 1, INT32_MAX, &v))
		return -EINVAL;
	p = reallocarray(*list, *n + 1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	*list = p;
	p[(*n)++] = (pid_t)v;
	return 0;
}

static int add_name(struct options *o, char *arg)
{
	char **p = reallocarray(o->names, o->nnames + 1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	o->names = p;
	p[o->nnames++] = arg;
	return 0;
}

static void pid_option(struct argp_state *state, pid_t **list, size_t *n,
		       const char *arg)
{
	int err = add_pid(list, n, arg);

	if (err == -EINVAL)
		argp_error(state, "'%s' is no process number", arg);
	else if (err)
		argp_failure(state, EXIT_FAILED, -err, "--pid");
}

static void finish(struct argp_state *state, const struct options *o)
{
	if (o->all && (o->npids || o->nnames))
		argp_error(state, "--all asks for every process: leave out "
				  "--pid and --name");
	if (!o->all && !o->npids && !o->nnames && !o->nvmms)
		argp_error(state, "say which processes: --pid, --name or "
				  "--all");
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case OPT_PID:
		pid_option(state, &o->pids, &o->npids, arg);
		break;
	case OPT_VMM:
		pid_option(state, &o->vmms, &o->nvmms, arg);
		break;
	case OPT_NAME:
		if (!*arg)
			argp_error(state, "--name needs a name");
		else if (add_name(o, arg))
			argp_failure(state, EXIT_FAILED, ENOMEM, "--name");
		break;
	case OPT_ALL:
		o->all = true;
		break;
	case OPT_JSON:
		o->json = true;
		break;
	case OPT_CHECK:
		o->check = true;
		break;
	case OPT_SVG:
		o->svg = arg;
		break;
	case ARGP_KEY_ARG:
		argp_error(state, "'%s' is no option", arg);
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
	NULL,
	"Shows which bytes of which guest's RAM each process can reach, by a "
	"mapping or by a descriptor that it holds, for any VMM, with moat or "
	"without.\v"
	"Exit status: 0 done; 1 failed; 2 bad usage; with --check 3 if "
	"guest RAM is within reach of another process, and 1 if none was "
	"found but not all could be read.",
	NULL,
	NULL,
	NULL,
};

static int write_out(const struct audit *a, const struct options *o)
{
	int err = o->json ? audit_json(a, stdout) : audit_table(a, stdout);

	if (err) {
		fprintf(stderr, "moat audit: cannot write: %s\n",
			strerror(-err));
		return EXIT_FAILED;
	}
	err = o->svg ? audit_svg(a, o->svg) : 0;
	if (err) {
		fprintf(stderr, "moat audit: cannot write %s: %s\n", o->svg,
			strerror(-err));
		return EXIT_FAILED;
	}
	return EXIT_OK;
}

static int verdict(const struct audit *a, const struct options *o)
{
	bool asked_unread = false;

	for (size_t v = 0; o->check && v < a->nvms; v++)
		if (a->vms[v].outside)
			return EXIT_OUTSIDE;
	if (a->incomplete)
		fprintf(stderr,
			"moat audit: incomplete: %zu processes could not be "
			"read; run it as root\n",
			a->incomplete);
	for (size_t i = 0; i < a->nprocs; i++)
		asked_unread |= a->procs[i].asked && a->procs[i].err;
	return asked_unread || (o->check && a->incomplete) ? EXIT_FAILED
							   : EXIT_OK;
}

static int run(const struct options *o)
{
	struct audit_request req = {
		.pids = o->pids,
		.npids = o->npids,
		.names = o->names,
		.nnames = o->nnames,
		.vmms = o->vmms,
		.nvmms = o->nvmms,
	};
	struct audit a = { 0 };
	char err[256];
	int status;

	if (!o->all && !o->npids && !o->nnames) {
		req.pids = o->vmms;
		req.npids = o->nvmms;
	}
	if (audit_run(&a, &req, err)) {
		fprintf(stderr, "moat audit: %s\n", err);
		status = EXIT_FAILED;
	} else {
		status = write_out(&a, o);
		if (status == EXIT_OK)
			status = verdict(&a, o);
	}
	audit_free(&a);
	return status;
}

int main(int argc, char **argv)
{
	struct options o = { 0 };
	char name[] = "moat audit";
	int status;

	argp_err_exit_status = EXIT_USAGE;
	argv[0] = name;
	status = argp_parse(&parser, argc, argv, 0, NULL, &o) ? EXIT_USAGE
							      : run(&o);
	free(o.pids);
	free(o.vmms);
	free(o.names);
	return status;
}
