/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moat: the table of commands.
 */
#include <stdio.h>
#include <string.h>

#include "cmd/cmd.h"

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *help;
} commands[] = {
	{ "audit", moat_cmd_audit,
	  "shows which bytes of guest RAM each process can reach" },
	{ "dt", moat_cmd_dt,
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
