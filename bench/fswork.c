/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/fswork.h"
#include "core/shm.h"
#include "os/clock.h"

#define FILLER 0x5a
#define COMPARED 64u /* operations whose data are compared byte by byte */
#define SEED UINT64_C(0x9e3779b97f4a7c15)

static void name_of(char *name, size_t size, char kind, uint64_t number)
{
	snprintf(name, size, "%c%06llu", kind, (unsigned long long)number);
}

/* ---- a run of operations ---- */

static void begin(struct run *run, struct fs_slot *s)
{
	s->step = 0;
	s->number = run->begun++;
	s->begun = moat_now_ns();
	run->work->step(run, s, 0);
}

static bool more(const struct run *run, uint64_t now)
{
	return run->begun < run->limit && now < run->end_ns;
}

static bool turn(struct run *run)
{
	struct fs_slot *s;
	uint32_t len;
	bool some = false;

	for (uint32_t i = 1; i <= run->fs.nqueues; i++) {
		while ((s = fs_get(&run->fs, i, &len))) {
			uint64_t now;

			some = true;
			if (run->work->step(run, s, len))
				continue;
			now = moat_now_ns();
			run->latency[run->done++] = (uint32_t)(now - s->begun);
			if (more(run, now))
				begin(run, s);
		}
	}
	fs_publish(&run->fs);
	return some;
}

void work_do(struct run *run, const struct work *w, uint64_t limit,
	     uint64_t end_ns)
{
	run->work = w;
	run->begun = run->done = run->bytes = run->entries = 0;
	run->limit = limit;
	run->end_ns = end_ns;
	run->random = SEED;
	/* One at least, so that there is something to show. */
	for (uint32_t i = 0; i < run->fs.nslots; i++)
		if (!i || more(run, moat_now_ns()))
			begin(run, &run->fs.slots[i]);
	fs_publish(&run->fs);
	while (run->done < run->begun)
		if (!turn(run))
			fs_wait(&run->fs);
	fs_forgotten(&run->fs);
}

/* ---- names and attributes ---- */

static void find_folder(struct run *run)
{
	run->node = fs_lookup(&run->fs, FUSE_ROOT_ID, run->opt.folder).nodeid;
}

static void find_files(struct run *run)
{
	char name[24];

	find_folder(run);
	for (uint32_t i = 0; i < run->opt.files; i++) {
		name_of(name, sizeof(name), 'f', i);
		run->nodes[i] = fs_lookup(&run->fs, run->node, name).nodeid;
	}
}

static bool step_lookup(struct run *run, struct fs_slot *s, uint32_t len)
{
	struct fs_request r = {
		.opcode = FUSE_LOOKUP,
		.node = run->node,
		.result_len = sizeof(struct fuse_entry_out),
	};
	struct fuse_entry_out e;
	char name[24];

	(void)len;
	if (s->step++) {
		memcpy(&e, fs_result(s), sizeof(e));
		if (!e.nodeid)
			bench_fail("a file is not there", 0);
		if (run->opt.forget)
			fs_forget(&run->fs, e.nodeid, 1);
		return false;
	}
	name_of(name, sizeof(name), 'f', s->number % run->opt.files);
	r.name = name;
	fs_post(&run->fs, s, &r);
	return true;
}

static bool step_getattr(struct run *run, struct fs_slot *s, uint32_t len)
{
	struct fuse_getattr_in arg = { 0 };
	struct fs_request r = {
		.opcode = FUSE_GETATTR,
		.node = run->nodes[s->number % run->opt.files],
		.arg = &arg,
		.arg_len = sizeof(arg),
		.result_len = sizeof(struct fuse_attr_out),
	};

	(void)len;
	if (s->step++)
		return false;
	fs_post(&run->fs, s, &r);
	return true;
}

static bool step_open(struct run *run, struct fs_slot *s, uint32_t len)
{
	struct fuse_open_in arg = { .flags = O_RDWR };
	uint64_t node = run->nodes[s->number % run->opt.files];
	struct fs_request r = {
		.opcode = FUSE_OPEN,
		.node = node,
		.arg = &arg,
		.arg_len = sizeof(arg),
		.result_len = sizeof(struct fuse_open_out),
	};
	struct fuse_release_in release;
	struct fuse_open_out out;

	(void)len;
	if (s->step == 1) {
		memcpy(&out, fs_result(s), sizeof(out));
		r = fs_release(FUSE_RELEASE, node, &release, out.fh);
	}
	if (s->step++ == 2)
		return false;
	fs_post(&run->fs, s, &r);
	return true;
}

/* ---- files that come and go ---- */

static void find_scratch(struct run *run)
{
	run->node = fs_lookup(&run->fs, FUSE_ROOT_ID, "scratch").nodeid;
}

static bool step_create(struct run *run, struct fs_slot *s, uint32_t len)
{
	struct fuse_create_in arg = { .flags = O_CREAT | O_EXCL | O_WRONLY,
				      .mode = S_IFREG | 0644 };
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} out;
	struct fuse_release_in release;
	struct fs_request r = {
		.opcode = FUSE_CREATE,
		.node = run->node,
		.arg = &arg,
		.arg_len = sizeof(arg),
		.result_len = sizeof(out),
	};
	char name[24];

	(void)len;
	name_of(name, sizeof(name), 'c', s->number);
	r.name = name;
	if (s->step == 1) {
		memcpy(&out, fs_result(s), sizeof(out));
		run->nodes[s->number] = out.entry.nodeid;
		r = fs_release(FUSE_RELEASE, out.entry.nodeid, &release,
			       out.open.fh);
	}
	if (s->step++ == 2)
		return false;
	fs_post(&run->fs, s, &r);
	return true;
}

static bool step_unlink(struct run *run, struct fs_slot *s, uint32_t len)
{
	struct fs_request r = { .opcode = FUSE_UNLINK, .node = run->node };
	char name[24];

	(void)len;
	if (s->step++) {
		fs_forget(&run->fs, run->nodes[s->number], 1);
		return false;
	}
	name_of(name, sizeof(name), 'c', s->number);
	r.name = name;
	fs_post(&run->fs, s, &r);
	return true;
}

/* What can be removed has to be made. */
static void make_many(struct run *run)
{
	find_scratch(run);
	work_do(run, work_find("create"), run->opt.count,
		moat_now_ns() + (uint64_t)(run->opt.seconds * 1e9));
	run->opt.count = run->done;
	run->opt.seconds = 1e6; /* all of them */
}

static void remove_all(struct run *run)
{
	uint64_t made = run->done;

	for (uint64_t i = 0; i < made; i++) {
		char name[24];
		struct fs_request r = { .opcode = FUSE_UNLINK,
					.node = run->node };

		name_of(name, sizeof(name), 'c', i);
		r.name = name;
		fs_call(&run->fs, &r);
	}
}

/* ---- folders ---- */

static void check_readdirplus(struct run *run)
{
	if (!(run->fs.init_flags & FUSE_DO_READDIRPLUS))
		bench_fail("the device does not offer READDIRPLUS", 0);
	find_folder(run);
}

static void take_entries(struct run *run, const uint8_t *data, uint32_t len)
{
	struct fuse_direntplus e;
	const uint32_t head = FUSE_NAME_OFFSET_DIRENTPLUS;

	for (uint32_t at = 0; at < len; at += FUSE_DIRENTPLUS_SIZE(&e)) {
		if (len - at < head)
			bench_fail("an entry of a folder is cut off", 0);
		memcpy(&e, data + at, head);
		if (!e.dirent.namelen || e.dirent.namelen > len - at - head)
			bench_fail("a name in a folder is cut off", 0);
		run->entries++;
		/* "." and ".." count as no lookup. */
		if (e.entry_out.nodeid && run->opt.forget &&
		    data[at + head] != '.')
			fs_forget(&run->fs, e.entry_out.nodeid, 1);
	}
}

static uint64_t last_offset(const uint8_t *data, uint32_t len)
{
	struct fuse_direntplus e = { 0 };

	for (uint32_t at = 0; at < len; at += FUSE_DIRENTPLUS_SIZE(&e))
		memcpy(&e, data + at, FUSE_NAME_OFFSET_DIRENTPLUS);
	return e.dirent.off;
}

static struct fs_request read_folder(const struct run *run, struct fs_slot *s,
				     struct fuse_read_in *arg)
{
	*arg = (struct fuse_read_in){ .fh = s->fh,
				      .offset = s->offset,
				      .size = run->opt.size };
	return (struct fs_request){ .opcode = FUSE_READDIRPLUS,
				    .node = run->node,
				    .arg = arg,
				    .arg_len = sizeof(*arg),
				    .data_in = run->opt.size };
}

/* Steps: 1 opened, 2 some entries were read, 3 closed. */
static bool step_readdirplus(struct run *run, struct fs_slot *s, uint32_t len)
{
	struct fuse_open_in open = { .flags = O_RDONLY | O_DIRECTORY };
	struct fs_request r = {
		.opcode = FUSE_OPENDIR,
		.node = run->node,
		.arg = &open,
		.arg_len = sizeof(open),
		.result_len = sizeof(struct fuse_open_out),
	};
	struct fuse_release_in release;
	struct fuse_open_out out;
	struct fuse_read_in read;

	if (s->step == 3)
		return false;
	if (s->step == 1) {
		memcpy(&out, fs_result(s), sizeof(out));
		s->fh = out.fh;
		s->offset = 0;
		r = read_folder(run, s, &read);
	}
	if (s->step == 2 && len) {
		take_entries(run, fs_data(s), len);
		s->offset = last_offset(fs_data(s), len);
		r = read_folder(run, s, &read);
	} else if (s->step == 2) {
		r = fs_release(FUSE_RELEASEDIR, run->node, &release, s->fh);
	}
	if (s->step != 2 || !len)
		s->step++;
	fs_post(&run->fs, s, &r);
	return true;
}

static void count_entries(struct run *run)
{
	/* "." and ".." may be among them or not. */
	uint64_t least = run->opt.files * run->done;

	if (run->entries < least || run->entries > least + 2 * run->done)
		bench_fail("a folder has not the files that it should", 0);
}

/* ---- data ---- */

static void find_file(struct run *run, const char *name, uint32_t flags)
{
	struct fuse_entry_out e = fs_lookup(&run->fs, FUSE_ROOT_ID, name);

	run->node = e.nodeid;
	run->fh = fs_open_file(&run->fs, FUSE_OPEN, e.nodeid, flags);
	run->blocks = e.attr.size / run->opt.size;
	if (!run->blocks)
		bench_fail("the file is shorter than one request", 0);
}

static void find_big(struct run *run)
{
	find_file(run, "big", O_RDONLY);
}

static void find_out(struct run *run)
{
	if (run->fs.max_write < run->opt.size)
		bench_fail("the device does not take writes of this size", 0);
	for (uint32_t i = 0; i < run->fs.nslots; i++)
		memset(fs_data(&run->fs.slots[i]), FILLER, run->opt.size);
	find_file(run, "out", O_RDWR);
}

static void close_file(struct run *run)
{
	struct fuse_release_in arg;
	struct fs_request r =
		fs_release(FUSE_RELEASE, run->node, &arg, run->fh);

	fs_call(&run->fs, &r);
}

static uint64_t next_offset(struct run *run, uint64_t number)
{
	uint64_t x = run->random;

	if (!run->opt.random)
		return number % run->blocks * run->opt.size;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	run->random = x;
	return x % run->blocks * run->opt.size;
}

static void compare(const struct run *run, const struct fs_slot *s)
{
	const uint8_t *p = fs_data(s);

	for (uint32_t at = 0; at < run->opt.size; at += FS_PAGE) {
		if (moat_shm_load64(p + at) != (s->offset + at) / FS_PAGE)
			bench_fail("data are those of another place", 0);
		if (s->number >= COMPARED)
			continue;
		for (uint32_t i = 8; i < FS_PAGE; i++)
			if (p[at + i] != FILLER)
				bench_fail("data are not what was written", 0);
	}
}

static bool step_read(struct run *run, struct fs_slot *s, uint32_t len)
{
	struct fuse_read_in arg = { .fh = run->fh, .size = run->opt.size };
	struct fs_request r = {
		.opcode = FUSE_READ,
		.node = run->node,
		.arg = &arg,
		.arg_len = sizeof(arg),
		.data_in = run->opt.size,
	};

	if (s->step++) {
		if (len != run->opt.size)
			bench_fail("a read was short", 0);
		compare(run, s);
		run->bytes += len;
		return false;
	}
	arg.offset = s->offset = next_offset(run, s->number);
	fs_post(&run->fs, s, &r);
	return true;
}

static bool step_write(struct run *run, struct fs_slot *s, uint32_t len)
{
	struct fuse_write_in arg = { .fh = run->fh, .size = run->opt.size };
	struct fs_request r = {
		.opcode = FUSE_WRITE,
		.node = run->node,
		.arg = &arg,
		.arg_len = sizeof(arg),
		.result_len = sizeof(struct fuse_write_out),
		.data_out = run->opt.size,
	};
	struct fuse_write_out out;

	(void)len;
	if (s->step++) {
		memcpy(&out, fs_result(s), sizeof(out));
		if (out.size != run->opt.size)
			bench_fail("a write was short", 0);
		run->bytes += out.size;
		return false;
	}
	arg.offset = s->offset = next_offset(run, s->number);
	for (uint32_t at = 0; at < run->opt.size; at += FS_PAGE)
		moat_shm_store64(fs_data(s) + at, (s->offset + at) / FS_PAGE);
	fs_post(&run->fs, s, &r);
	return true;
}

/* The places written first, which are those of the same numbers read. */
static void read_back(struct run *run)
{
	uint64_t n = run->done < COMPARED ? run->done : COMPARED;

	work_do(run, work_find("read"), n, UINT64_MAX);
	close_file(run);
}

static const struct work works[] = {
	{ "lookup", .prepare = find_folder, .step = step_lookup },
	{ "getattr", .prepare = find_files, .step = step_getattr },
	{ "open", .prepare = find_files, .step = step_open },
	{ "create", .prepare = find_scratch, .step = step_create,
	  .finish = remove_all, .once = true },
	{ "unlink", .prepare = make_many, .step = step_unlink, .once = true },
	{ "readdirplus", .prepare = check_readdirplus, .step = step_readdirplus,
	  .finish = count_entries },
	{ "read", .prepare = find_big, .step = step_read,
	  .finish = close_file },
	{ "write", .prepare = find_out, .step = step_write,
	  .finish = read_back },
	{ "hold", .prepare = find_folder, .step = step_lookup, .once = true },
};

const struct work *work_find(const char *name)
{
	for (size_t i = 0; i < sizeof(works) / sizeof(works[0]); i++)
		if (!strcmp(works[i].name, name))
			return &works[i];
	return NULL;
}
