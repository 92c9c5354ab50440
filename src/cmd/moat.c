/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moat: the table of commands.
 *
 * `moat audit` and `moat dt` are programs of their own, beside this one: what
 * they draw and parse with has no business in a guard, nor in its memory.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cmd/cmd.h"

/* Become moat-NAME, which lies in the folder that this program lies in. */
static int run_program(int argc, char **argv)
{
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
	char *slash;

	(void)argc;
	if (n > 0) {
		path[n] = 0;
		slash = strrchr(path, '/');
		snprintf(slash + 1, sizeof(path) - (size_t)(slash + 1 - path),
			 "moat-%s", argv[0]);
		execv(path, argv);
	}
	fprintf(stderr, "moat %s: can not run %s: %s\n", argv[0],
		n > 0 ? path : "/proc/self/exe", strerror(errno));
	return 1;
}

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *help;
} commands[] = {
	{ "audit", run_program,
	  "shows which bytes of guest RAM each process can reach" },
	{ "dt", run_program,
	  "writes and checks restricted pools in a device tree" },
	{ "guard", moat_cmd_guard,
	  "stands between a VMM and a vhost-user backend" },
	{ 0 },
};

static void usage(FILE *f)
{
	fprintf(f, "usage: moat COMMAND [OPTION...]\n\n"
		   "virtio devices that see only the memory you give them\n\n");
	for (size_t i = 0; commands[i].name; i++)
		fprintf(f, "  %-8s %s\n", commands[i].name, commands[i].help);
	fprintf(f, "\n`moat COMMAND --help` tells more.\n");
}

int main(int argc, char **argv)
{
	if (argc < 2) {
		usage(stderr);
		return 2;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "help")) {
		usage(stdout);
		return 0;
	}
	if (!strcmp(argv[1], "--version")) {
		puts("moat " MOAT_VERSION);
		return 0;
	}
	for (size_t i = 0; commands[i].name; i++)
		if (!strcmp(argv[1], commands[i].name))
			return commands[i].run(argc - 1, argv + 1);
	fprintf(stderr, "moat: no command '%s'; `moat --help` lists them\n",
		argv[1]);
	return 2;
}
