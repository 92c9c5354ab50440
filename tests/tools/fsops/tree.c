/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tree under random operations, in the manner of fsstress: each is done in two
 * folders, one of which lies in a file system that is trusted.  Results have to
 * be the same, and in the end the trees.
 */
#include "fsops.h"

#include <ftw.h>
#include <sys/xattr.h>

#define NAMES 5 /* in each folder */
#define DEPTH 3

struct twins {
	struct rng rng;
	int root[2];
	unsigned long step, worked;
	char log[500];
};

/* A path of one to DEPTH short names. */
static void some_path(struct rng *r, char *out)
{
	uint64_t depth = 1 + rng_below(r, DEPTH);

	*out = '\0';
	for (uint64_t i = 0; i < depth; i++)
		sprintf(out + strlen(out), "%sn%llu", i ? "/" : "",
			(unsigned long long)rng_below(r, NAMES));
}

struct op {
	const char *name;
	char a[400], b[400];
	uint64_t number;
	mode_t mode;
};

static long put(int at, const struct op *op)
{
	uint8_t data[3000];
	size_t n = op->number % sizeof(data);
	int fd = openat(at, op->a, O_CREAT | O_WRONLY, 0644);
	long ret;

	if (fd < 0)
		return -1;
	fill(data, n, op->number);
	ret = pwrite(fd, data, n, (off_t)(op->number >> 20) % 10000);
	close(fd);
	return ret;
}

static long get(int at, const struct op *op)
{
	uint8_t data[13000];
	uint32_t sum = 0;
	ssize_t n;
	int fd = openat(at, op->a, O_RDONLY);

	if (fd < 0)
		return -1;
	n = read(fd, data, sizeof(data));
	for (ssize_t i = 0; i < n; i++)
		sum = sum * 31 + data[i];
	close(fd);
	return n < 0 ? -1 : (long)(sum % 1000000) * 20000 + n;
}

static long cut(int at, const struct op *op)
{
	int fd = openat(at, op->a, O_WRONLY);
	long ret;

	if (fd < 0)
		return -1;
	ret = ftruncate(fd, (off_t)(op->number % 12000));
	close(fd);
	return ret;
}

static long see(int at, const struct op *op)
{
	struct stat st;

	if (fstatat(at, op->a, &st, AT_SYMLINK_NOFOLLOW))
		return -1;
	return (long)st.st_mode + (long)st.st_nlink * 1000000 +
	       (S_ISDIR(st.st_mode) ? 0 : (long)st.st_size * 1000000000);
}

/* How many names, and a sum of them that does not depend on their order. */
static long names_in(int at, const struct op *op)
{
	int fd = openat(at, op->a, O_RDONLY | O_DIRECTORY);
	struct dirent *d;
	long sum = 0;
	DIR *dir;

	if (fd < 0)
		return -1;
	dir = fdopendir(fd);
	while ((d = readdir(dir))) {
		long name = d->d_type;

		for (const char *c = d->d_name; *c; c++)
			name = name * 131 + *c;
		sum += 1000000000000 + name % 1000000000;
	}
	closedir(dir);
	return sum;
}

static long run_op(int at, unsigned int kind, const struct op *op)
{
	char target[100];
	long n;

	switch (kind) {
	case 0 ... 3:
		return put(at, op);
	case 4 ... 6:
		return mkdirat(at, op->a, op->mode);
	case 7:
		return unlinkat(at, op->a, 0);
	case 8:
		return unlinkat(at, op->a, AT_REMOVEDIR);
	case 9 ... 11:
		return renameat(at, op->a, at, op->b);
	case 12:
		return linkat(at, op->a, at, op->b, 0);
	case 13:
		return symlinkat(op->b, at, op->a);
	case 14:
		n = readlinkat(at, op->a, target, sizeof(target));
		return n;
	case 15:
		return cut(at, op);
	case 16:
		return fchmodat(at, op->a, op->mode | 0600, 0);
	case 17:
		return renameat2(at, op->a, at, op->b,
				 op->number & 1 ? RENAME_EXCHANGE :
						  RENAME_NOREPLACE);
	case 18:
		return mknodat(at, op->a, S_IFIFO | op->mode, 0);
	case 19 ... 21:
		return see(at, op);
	case 22:
		return names_in(at, op);
	default:
		return get(at, op);
	}
}

static bool may_block(int at, unsigned int kind, const struct op *op)
{
	struct stat st;

	/* An open of a FIFO waits for somebody. */
	return (kind <= 3 || kind == 15 || kind > 22) &&
	       !fstatat(at, op->a, &st, 0) && S_ISFIFO(st.st_mode);
}

static void step(struct twins *t)
{
	unsigned int kind = (unsigned int)rng_below(&t->rng, 27);
	struct op op = { .number = rng_next(&t->rng),
			 .mode = (mode_t)rng_below(&t->rng, 01000) | 0700 };
	long result[2];
	int error[2];

	some_path(&t->rng, op.a);
	some_path(&t->rng, op.b);
	if (may_block(t->root[1], kind, &op))
		return;
	for (int i = 0; i < 2; i++) {
		errno = 0;
		result[i] = run_op(t->root[i], kind, &op);
		error[i] = result[i] < 0 ? errno : 0;
	}
	t->worked += result[0] >= 0;
	errno = error[0];
	CHECK(result[0] == result[1] && error[0] == error[1],
	      "step %lu: operation %u on %s, %s, mode %o: %ld, not %ld (%s)",
	      t->step, kind, op.a, op.b, op.mode, result[0], result[1],
	      strerrorname_np(error[1]));
}

/* The names of a folder, sorted; freed by the caller. */
static int names(int at, const char *path, struct dirent ***list)
{
	return scandirat(at, path, list, NULL, alphasort);
}

static void compare(struct twins *t, const char *path)
{
	struct dirent **list[2];
	int n[2];

	for (int i = 0; i < 2; i++)
		n[i] = names(t->root[i], path, &list[i]);
	CHECK(n[0] >= 0 && n[0] == n[1], "%s: %d names, not %d", path, n[0],
	      n[1]);
	for (int i = 0; i < n[0]; i++) {
		struct op op = { .name = "compare" };
		struct stat st;
		const char *name = list[0][i]->d_name;

		errno = 0;
		CHECK(!strcmp(name, list[1][i]->d_name), "%s: %s, not %s",
		      path, name, list[1][i]->d_name);
		if (!strcmp(name, ".") || !strcmp(name, ".."))
			continue;
		snprintf(op.a, sizeof(op.a), "%s/%s", path, name);
		CHECK(see(t->root[0], &op) == see(t->root[1], &op),
		      "%s: attributes differ", op.a);
		CHECK(!fstatat(t->root[1], op.a, &st, AT_SYMLINK_NOFOLLOW),
		      "%s", op.a);
		if (S_ISREG(st.st_mode))
			CHECK(get(t->root[0], &op) == get(t->root[1], &op),
			      "%s: contents differ", op.a);
		if (S_ISDIR(st.st_mode))
			compare(t, op.a);
	}
	for (int i = 0; i < 2; i++) {
		for (int k = 0; k < n[i]; k++)
			free(list[i][k]);
		free(list[i]);
	}
}

int cmd_tree(int argc, char **argv)
{
	struct twins t = { 0 };
	unsigned long count;

	CHECK(argc == 5, "tree: DIR LOCAL SEED COUNT");
	umask(0);
	for (int i = 0; i < 2; i++) {
		t.root[i] = open(argv[1 + i], O_RDONLY | O_DIRECTORY);
		CHECK(t.root[i] >= 0, "%s", argv[1 + i]);
	}
	t.rng.state = strtoull(argv[3], NULL, 0);
	count = strtoul(argv[4], NULL, 0);
	for (t.step = 1; t.step <= count; t.step++)
		step(&t);
	compare(&t, ".");
	printf("%lu of %lu operations worked\n", t.worked, count);
	return 0;
}
