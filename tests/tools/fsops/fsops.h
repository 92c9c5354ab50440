/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fsops - what a file system does, as text or against a model
 *
 * One static program for guests and for the host.  `table` prints the result of
 * some hundred operations in a canonical text, so that two file systems that
 * behave alike print the same; the other commands check a file system against
 * what they know themselves and end with a message and 1 at the first surprise.
 */
#ifndef MOAT_TESTS_FSOPS_H
#define MOAT_TESTS_FSOPS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/** struct rng - numbers from a seed, the same everywhere */
struct rng {
	uint64_t state;
};

static inline uint64_t rng_next(struct rng *r)
{
	/* splitmix64 */
	uint64_t z = r->state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static inline uint64_t rng_below(struct rng *r, uint64_t n)
{
	return n ? rng_next(r) % n : 0;
}

/** fail() - says what went wrong, with errno, and ends the program with 1 */
_Noreturn void fail(const char *format, ...)
	__attribute__((format(printf, 1, 2)));

#define CHECK(what, ...)                                                       \
	do {                                                                   \
		if (!(what))                                                   \
			fail(__VA_ARGS__);                                     \
	} while (0)

/** fill() - @n bytes that depend on the seed and on nothing else */
void fill(uint8_t *data, size_t n, uint64_t seed);

/** as_user() - a child with these ids and one supplementary group (or -1) */
pid_t as_user(uid_t uid, gid_t gid, int group);

/** ended() - waits for a child; true if it ended with 0 */
bool ended(pid_t child);

/* The commands: argv[0] is the command's name. */
int cmd_table(int argc, char **argv);
int cmd_random(int argc, char **argv);
int cmd_tree(int argc, char **argv);
int cmd_names(int argc, char **argv);
int cmd_sparse(int argc, char **argv);
int cmd_many(int argc, char **argv);
int cmd_load(int argc, char **argv);

/* Parts of the table. */
void table_users(void);
void table_locks(void);
void table_attributes(void);
void say(const char *what, long result);
void show(const char *path);

/** T() - does something and prints what it was and how it ended */
#define T(what)                                                                \
	do {                                                                   \
		errno = 0;                                                     \
		say(#what, (long)(what));                                      \
	} while (0)

/** FD() - as T(), of something that returns a descriptor: it is kept */
#define FD(var, what)                                                          \
	do {                                                                   \
		errno = 0;                                                     \
		var = (what);                                                  \
		say(#what, var < 0 ? -1 : 0);                                  \
	} while (0)

#endif
