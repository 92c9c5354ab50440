/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Works with files as it is told, for tests: in a guest, beside or without
 * mappings of them.
 *
 *     usage: daxops QUESTIONS ANSWERS
 *
 * Both are FIFOs. Each line of the first is a command, its answer a line of the
 * other: "ok ...", "bus" if a mapping had nothing there, or "error NUMBER".
 * What is opened or mapped stays so, by a number from 0 on, between commands.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SLOTS 4096
#define PERIOD 251

struct slot {
	int fd;
	uint8_t *map;
	size_t len;
};

struct args {
	struct slot *slot;
	uint64_t n[4];
	char word[256];
};

static struct slot slots[SLOTS];
static sigjmp_buf nothing_there;

static void on_bus(int sig)
{
	(void)sig;
	siglongjmp(nothing_there, 1);
}

/* What Python's zlib.crc32() says. */
static uint32_t crc(uint32_t c, const uint8_t *p, size_t len)
{
	static uint32_t table[256];

	for (uint32_t i = 0; !table[255] && i < 256; i++) {
		uint32_t v = i;

		for (int k = 0; k < 8; k++)
			v = v >> 1 ^ (v & 1 ? 0xedb88320u : 0);
		table[i] = v;
	}
	c = ~c;
	while (len--)
		c = c >> 8 ^ table[(c ^ *p++) & 0xff];
	return ~c;
}

static void fill(uint8_t *p, size_t len, uint64_t seed)
{
	for (size_t i = 0; i < len; i++)
		p[i] = (uint8_t)((seed + i) % PERIOD);
}

static int fail(char *out)
{
	sprintf(out, "error %d", errno);
	return 0;
}

static int done(char *out, long ret)
{
	return ret < 0 ? fail(out) : sprintf(out, "ok %ld", ret);
}

/* open N PATH FLAGS MODE */
static int do_open(struct args *a, char *out)
{
	a->slot->fd = open(a->word, (int)a->n[0], (mode_t)a->n[1]);
	return done(out, a->slot->fd < 0 ? -1 : 0);
}

static int do_close(struct args *a, char *out)
{
	return done(out, close(a->slot->fd));
}

/* map N - OFFSET LEN PROT */
static int do_map(struct args *a, char *out)
{
	void *p = mmap(NULL, a->n[1], (int)a->n[2], MAP_SHARED, a->slot->fd,
		       (off_t)a->n[0]);

	if (p == MAP_FAILED)
		return fail(out);
	a->slot->map = p;
	a->slot->len = a->n[1];
	return done(out, 0);
}

static int do_unmap(struct args *a, char *out)
{
	return done(out, munmap(a->slot->map, a->slot->len));
}

/* sum N - AT LEN: of the mapping */
static int do_sum(struct args *a, char *out)
{
	return done(out, crc(0, a->slot->map + a->n[0], a->n[1]));
}

/* get N - AT LEN: at most 64 bytes */
static int do_get(struct args *a, char *out)
{
	int at = sprintf(out, "ok ");

	for (size_t i = 0; i < a->n[1] && i < 64; i++)
		at += sprintf(out + at, "%02x", a->slot->map[a->n[0] + i]);
	return 0;
}

/* fill N - AT LEN SEED */
static int do_fill(struct args *a, char *out)
{
	fill(a->slot->map + a->n[0], a->n[1], a->n[2]);
	return done(out, 0);
}

static int do_msync(struct args *a, char *out)
{
	return done(out, msync(a->slot->map, a->slot->len, MS_SYNC));
}

static int do_fsync(struct args *a, char *out)
{
	return done(out, fsync(a->slot->fd));
}

/* read N - AT LEN: its sum; by aligned memory, for O_DIRECT */
static int do_read(struct args *a, char *out)
{
	uint8_t *p = aligned_alloc(4096, a->n[1]);
	uint32_t sum = 0;
	ssize_t got = 0;
	size_t at = 0;

	while (p && at < a->n[1] &&
	       (got = pread(a->slot->fd, p, a->n[1] - at,
			    (off_t)(a->n[0] + at))) > 0) {
		sum = crc(sum, p, (size_t)got);
		at += (size_t)got;
	}
	got = got < 0 ? fail(out) : sprintf(out, "ok %" PRIu32 " %zu", sum, at);
	free(p);
	return 0;
}

/* write N - AT LEN SEED */
static int do_write(struct args *a, char *out)
{
	uint8_t *p = aligned_alloc(4096, (a->n[1] + 4095) & ~UINT64_C(4095));
	ssize_t put;

	fill(p, a->n[1], a->n[2]);
	put = pwrite(a->slot->fd, p, a->n[1], (off_t)a->n[0]);
	done(out, put);
	free(p);
	return 0;
}

static int do_truncate(struct args *a, char *out)
{
	return done(out, ftruncate(a->slot->fd, (off_t)a->n[0]));
}

/* fallocate N - MODE AT LEN */
static int do_fallocate(struct args *a, char *out)
{
	return done(out, fallocate(a->slot->fd, (int)a->n[0], (off_t)a->n[1],
				   (off_t)a->n[2]));
}

/* copy N - AT OTHER AT LEN: from this file into another */
static int do_copy(struct args *a, char *out)
{
	off_t from = (off_t)a->n[0], to = (off_t)a->n[2];

	return done(out, copy_file_range(a->slot->fd, &from,
					 slots[a->n[1] % SLOTS].fd, &to,
					 a->n[3], 0));
}

static int do_size(struct args *a, char *out)
{
	struct stat st;

	return fstat(a->slot->fd, &st) ? fail(out) : done(out, st.st_size);
}

/* many 0 FOLDER COUNT LEN: files 0, 1, ... of it, all mapped at once; their
 * sum */
static int do_many(struct args *a, char *out)
{
	uint32_t sum = 0;
	char path[300];

	for (uint64_t i = 0; i < a->n[0] && i < SLOTS; i++) {
		struct args one = { .slot = &slots[i],
				    .n = { 0, a->n[1], PROT_READ } };
		int fd;

		snprintf(path, sizeof(path), "%s/%" PRIu64, a->word, i);
		fd = slots[i].fd = open(path, O_RDONLY);
		if (fd < 0)
			return fail(out);
		do_map(&one, out);
		close(fd);
		if (*out == 'e')
			return 0;
		sum = crc(sum, slots[i].map, 64);
	}
	for (int64_t i = (int64_t)a->n[0]; i--;)
		sum = crc(sum, slots[i].map, slots[i].len);
	for (uint64_t i = 0; i < a->n[0]; i++)
		munmap(slots[i].map, slots[i].len);
	return done(out, sum);
}

static const struct command {
	const char *name;
	int (*run)(struct args *a, char *out);
} commands[] = {
	{ "open", do_open },   { "close", do_close },
	{ "map", do_map },     { "unmap", do_unmap },
	{ "sum", do_sum },     { "get", do_get },
	{ "fill", do_fill },   { "msync", do_msync },
	{ "fsync", do_fsync }, { "read", do_read },
	{ "write", do_write }, { "truncate", do_truncate },
	{ "size", do_size },   { "fallocate", do_fallocate },
	{ "copy", do_copy },   { "many", do_many },
};

static void answer(char *line, char *out)
{
	struct args a = { 0 };
	unsigned int slot = 0;
	char name[16];

	strcpy(out, "error -1");
	if (sscanf(line,
		   "%15s %u %255s %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64,
		   name, &slot, a.word, &a.n[0], &a.n[1], &a.n[2], &a.n[3]) < 1)
		return;
	a.slot = &slots[slot % SLOTS];
	if (sigsetjmp(nothing_there, 1)) {
		strcpy(out, "bus");
		return;
	}
	for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++)
		if (!strcmp(commands[i].name, name))
			commands[i].run(&a, out);
}

int main(int argc, char **argv)
{
	/* Both for reading and writing: so neither end ever is nobody's. */
	FILE *from = argc == 3 ? fopen(argv[1], "r+") : NULL;
	FILE *to = argc == 3 ? fopen(argv[2], "r+") : NULL;
	struct sigaction sa = { .sa_handler = on_bus };
	char line[512], out[512];

	if (!from || !to)
		return 2;
	sigaction(SIGBUS, &sa, NULL);
	while (fgets(line, sizeof(line), from)) {
		answer(line, out);
		fprintf(to, "%s\n", out);
		fflush(to);
	}
	return 0;
}
