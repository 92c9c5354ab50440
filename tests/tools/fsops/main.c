/* SPDX-License-Identifier: Apache-2.0 */
#include "fsops.h"

#include <grp.h>
#include <stdarg.h>

_Noreturn void fail(const char *format, ...)
{
	int error = errno;
	va_list args;

	fflush(stdout);
	fputs("fsops: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, " (%s)\n", strerror(error));
	exit(1);
}

void fill(uint8_t *data, size_t n, uint64_t seed)
{
	struct rng r = { seed };

	for (size_t i = 0; i < n; i += 8) {
		uint64_t v = rng_next(&r);

		memcpy(data + i, &v, n - i < 8 ? n - i : 8);
	}
}

pid_t as_user(uid_t uid, gid_t gid, int group)
{
	gid_t groups[1] = { (gid_t)group };
	pid_t child;

	fflush(stdout);
	child = fork();
	CHECK(child >= 0, "fork");
	if (child)
		return child;
	CHECK(!setgroups(group < 0 ? 0 : 1, groups), "setgroups");
	CHECK(!setresgid(gid, gid, gid), "setresgid");
	CHECK(!setresuid(uid, uid, uid), "setresuid");
	return 0;
}

bool ended(pid_t child)
{
	int status;

	CHECK(waitpid(child, &status, 0) == child, "waitpid");
	return WIFEXITED(status) && !WEXITSTATUS(status);
}

static const struct {
	const char *name, *usage;
	int (*run)(int argc, char **argv);
} commands[] = {
	{ "table", "DIR: prints what operations do in an empty folder",
	  cmd_table },
	{ "random", "FILE SEED COUNT [mmap]: one file against an oracle",
	  cmd_random },
	{ "tree", "DIR LOCAL SEED COUNT: the same in two folders, compared",
	  cmd_tree },
	{ "names", "DIR: names of all bytes and lengths", cmd_names },
	{ "sparse", "DIR: a file of over 4 GiB with holes", cmd_sparse },
	{ "many", "DIR COUNT: so many files in one folder", cmd_many },
	{ "load", "DIR SEED PROCESSES: works until it is killed or fails",
	  cmd_load },
};

int main(int argc, char **argv)
{
	const size_t n = sizeof(commands) / sizeof(commands[0]);

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (size_t i = 0; argc > 1 && i < n; i++)
		if (!strcmp(argv[1], commands[i].name))
			return commands[i].run(argc - 1, argv + 1);
	for (size_t i = 0; i < n; i++)
		fprintf(stderr, "usage: fsops %s %s\n", commands[i].name,
			commands[i].usage);
	return 2;
}
