/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One file under random operations, its contents kept in memory beside it, in
 * the manner of fsx.
 */
#include "fsops.h"

#include <sys/mman.h>

#define LIMIT (1u << 20) /* bytes that the file may have */

struct oracle {
	struct rng rng;
	const char *path;
	int fd;
	bool map, gone; /* maps are to be used; unlinked, yet open */
	uint8_t *good, *seen;
	size_t size;
	unsigned long step;
	char log[200]; /* the step at hand */
};

#define STEP(o, ...) snprintf((o)->log, sizeof((o)->log), __VA_ARGS__)

static void differs(struct oracle *o, size_t at, size_t n, const char *where)
{
	size_t i = 0;

	while (i < n && o->seen[i] == o->good[at + i])
		i++;
	errno = 0;
	fail("step %lu (%s): %s differs at %zu: %02x, not %02x", o->step,
	     o->log, where, at + i, o->seen[i], o->good[at + i]);
}

static void range(struct oracle *o, size_t limit, size_t *at, size_t *n)
{
	*at = rng_below(&o->rng, limit);
	*n = 1 + rng_below(&o->rng, rng_below(&o->rng, 4) ? 20000 : 200000);
	if (*n > limit - *at)
		*n = limit - *at;
}

/* The oracle's file ends at @size from now on. */
static void resize(struct oracle *o, size_t size)
{
	if (size < o->size)
		memset(o->good + size, 0, o->size - size);
	o->size = size;
}

static void do_read(struct oracle *o)
{
	size_t at, n, want;
	ssize_t got;

	range(o, LIMIT, &at, &n);
	STEP(o, "read %zu at %zu", n, at);
	want = at >= o->size ? 0 : o->size - at < n ? o->size - at : n;
	got = pread(o->fd, o->seen, n, (off_t)at);
	CHECK(got == (ssize_t)want, "step %lu: %s gives %zd, not %zu", o->step,
	      o->log, got, want);
	if (memcmp(o->seen, o->good + at, want))
		differs(o, at, want, "what is read");
}

static void do_write(struct oracle *o)
{
	size_t at, n;

	range(o, LIMIT, &at, &n);
	STEP(o, "write %zu at %zu", n, at);
	fill(o->seen, n, rng_next(&o->rng));
	CHECK(pwrite(o->fd, o->seen, n, (off_t)at) == (ssize_t)n,
	      "step %lu: %s", o->step, o->log);
	memcpy(o->good + at, o->seen, n);
	if (at + n > o->size)
		o->size = at + n;
}

static void do_append(struct oracle *o)
{
	size_t n = 1 + rng_below(&o->rng, 5000);
	int fd;

	if (o->size + n > LIMIT || o->gone)
		return;
	STEP(o, "append %zu at %zu", n, o->size);
	fill(o->seen, n, rng_next(&o->rng));
	fd = open(o->path, O_WRONLY | O_APPEND);
	CHECK(fd >= 0 && write(fd, o->seen, n) == (ssize_t)n, "step %lu: %s",
	      o->step, o->log);
	close(fd);
	memcpy(o->good + o->size, o->seen, n);
	o->size += n;
}

static void do_truncate(struct oracle *o)
{
	size_t size = rng_below(&o->rng, LIMIT);

	STEP(o, "truncate from %zu to %zu", o->size, size);
	CHECK(!(rng_below(&o->rng, 2) || o->gone
			? ftruncate(o->fd, (off_t)size)
			: truncate(o->path, (off_t)size)),
	      "step %lu: %s", o->step, o->log);
	resize(o, size);
}

static void do_map(struct oracle *o)
{
	size_t at, n, from;
	uint8_t *map;
	bool writes = rng_below(&o->rng, 2);

	if (!o->map || !o->size)
		return;
	range(o, o->size, &at, &n);
	from = at & ~4095ul;
	STEP(o, "map %s %zu at %zu", writes ? "write" : "read", n, at);
	map = mmap(NULL, at + n - from, PROT_READ | PROT_WRITE, MAP_SHARED,
		   o->fd, (off_t)from);
	CHECK(map != MAP_FAILED, "step %lu: %s", o->step, o->log);
	if (writes) {
		fill(o->good + at, n, rng_next(&o->rng));
		memcpy(map + (at - from), o->good + at, n);
		CHECK(!msync(map, at + n - from, MS_SYNC), "step %lu: %s",
		      o->step, o->log);
	} else {
		memcpy(o->seen, map + (at - from), n);
		if (memcmp(o->seen, o->good + at, n))
			differs(o, at, n, "what is mapped");
	}
	munmap(map, at + n - from);
}

static void do_fallocate(struct oracle *o)
{
	static const int modes[] = { 0, FALLOC_FL_KEEP_SIZE,
				     FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				     FALLOC_FL_ZERO_RANGE,
				     FALLOC_FL_ZERO_RANGE |
					     FALLOC_FL_KEEP_SIZE };
	int mode = modes[rng_below(&o->rng, 5)];
	size_t at, n;

	range(o, LIMIT, &at, &n);
	STEP(o, "fallocate mode %d, %zu at %zu", mode, n, at);
	if (fallocate(o->fd, mode, (off_t)at, (off_t)n)) {
		CHECK(errno == EOPNOTSUPP, "step %lu: %s", o->step, o->log);
		return;
	}
	if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
		memset(o->good + at, 0, n);
	if (!(mode & FALLOC_FL_KEEP_SIZE) && at + n > o->size)
		o->size = at + n;
}

static void do_copy(struct oracle *o)
{
	off64_t from, to;
	size_t at, where, n, done = 0;

	if (!o->size)
		return;
	range(o, o->size, &at, &n);
	where = rng_below(&o->rng, LIMIT - n);
	if (where < at + n && at < where + n)
		return; /* ranges of one file may not overlap */
	STEP(o, "copy %zu from %zu to %zu", n, at, where);
	while (done < n) {
		ssize_t ret;

		from = (off64_t)(at + done);
		to = (off64_t)(where + done);
		ret = copy_file_range(o->fd, &from, o->fd, &to, n - done, 0);
		CHECK(ret > 0, "step %lu: %s gives %zd", o->step, o->log, ret);
		done += (size_t)ret;
	}
	memcpy(o->good + where, o->good + at, n);
	if (where + n > o->size)
		o->size = where + n;
}

/* What SEEK_HOLE calls a hole holds zeroes, what is not zero is data. */
static void do_seek(struct oracle *o)
{
	off_t data, hole;

	if (!o->size)
		return;
	STEP(o, "seek");
	/* A guest that collects writes does not look at those for this. */
	CHECK(!fsync(o->fd), "step %lu: fsync", o->step);
	hole = lseek(o->fd, (off_t)rng_below(&o->rng, o->size), SEEK_HOLE);
	CHECK(hole >= 0 && (size_t)hole <= o->size, "step %lu: hole at %lld",
	      o->step, (long long)hole);
	if ((size_t)hole == o->size)
		return;
	data = lseek(o->fd, hole, SEEK_DATA);
	CHECK(data > hole || (data < 0 && errno == ENXIO),
	      "step %lu: data at %lld behind a hole", o->step, (long long)data);
	for (size_t i = (size_t)hole; i < (data < 0 ? o->size : (size_t)data);
	     i++)
		CHECK(!o->good[i], "step %lu: a hole where data is, at %zu",
		      o->step, i);
}

static void do_reopen(struct oracle *o)
{
	if (o->gone)
		return;
	STEP(o, "reopen");
	if (rng_below(&o->rng, 2))
		CHECK(!fsync(o->fd), "step %lu: fsync", o->step);
	CHECK(!close(o->fd), "step %lu: close", o->step);
	o->fd = open(o->path, O_RDWR);
	CHECK(o->fd >= 0, "step %lu: open", o->step);
}

static void check_size(struct oracle *o)
{
	struct stat st;

	CHECK(!fstat(o->fd, &st), "step %lu: stat", o->step);
	CHECK((size_t)st.st_size == o->size,
	      "step %lu (%s): size %lld, not %zu", o->step, o->log,
	      (long long)st.st_size, o->size);
}

static void check_all(struct oracle *o)
{
	size_t done = 0;

	STEP(o, "the whole file");
	while (done < o->size) {
		ssize_t n = pread(o->fd, o->seen + done, o->size - done,
				  (off_t)done);

		CHECK(n > 0, "read at %zu of %zu gives %zd", done, o->size, n);
		done += (size_t)n;
	}
	if (memcmp(o->seen, o->good, o->size))
		differs(o, 0, o->size, "the file");
}

int cmd_random(int argc, char **argv)
{
	static void (*const all[])(struct oracle *) = {
		do_read,     do_read, do_write,	    do_write, do_append,
		do_map,	     do_map,  do_fallocate, do_copy,  do_seek,
		do_truncate, do_read, do_write,	    do_map,   do_reopen,
	};
	struct oracle o = { 0 };
	unsigned long count;

	CHECK(argc >= 4, "random: FILE SEED COUNT [mmap]");
	o.path = argv[1];
	o.rng.state = strtoull(argv[2], NULL, 0);
	count = strtoul(argv[3], NULL, 0);
	o.map = argc > 4;
	o.good = calloc(1, LIMIT);
	o.seen = calloc(1, LIMIT);
	o.fd = open(o.path, O_CREAT | O_TRUNC | O_RDWR, 0644);
	CHECK(o.good && o.seen && o.fd >= 0, "%s", o.path);
	for (o.step = 1; o.step <= count; o.step++) {
		all[rng_below(&o.rng, sizeof(all) / sizeof(all[0]))](&o);
		check_size(&o);
		if (o.step == count - count / 4) {
			CHECK(!unlink(o.path), "unlink %s", o.path);
			o.gone = true;
		}
		if (o.step % 500 == 0)
			check_all(&o);
	}
	check_all(&o);
	close(o.fd);
	printf("%lu steps, %zu bytes\n", o.step, o.size);
	return 0;
}
