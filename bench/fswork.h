/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the file system's driver does, operation by operation.
 *
 * The shared folder is to hold, as bench/fs makes it:
 *
 *     FOLDER/f000000 ...   so many files (--folder, --files)
 *     big, out             of one size; block n of 4096 bytes in big is the
 *                          number n in 8 bytes, then 0x5a
 *     scratch/             an empty folder
 */
#ifndef MOAT_BENCH_FSWORK_H
#define MOAT_BENCH_FSWORK_H

#include "bench/fuse.h"

/* These at most in one run; there is an entry of 4 bytes for each. */
#define RUN_OPERATIONS_MAX (UINT64_C(4) << 20)

struct work_options {
	const char *folder;
	uint32_t files;
	uint32_t size;	/* bytes of a request that moves data */
	uint64_t count; /* operations, at most */
	double seconds; /* as long, at most */
	double warm;	/* seconds before, that do not count */
	bool random, forget;
};

struct run {
	struct fs fs;
	struct work_options opt;
	const struct work *work; /* at hand */
	uint64_t node, fh;	 /* the file or folder that it is about */
	uint64_t blocks;	 /* requests of opt.size in the file */
	uint64_t *nodes;	 /* those of the files, or of what was made */
	uint64_t random;	 /* state */
	uint64_t limit, begun, done;
	uint64_t end_ns; /* nothing begins after this time */
	uint64_t bytes, entries;
	uint32_t *latency; /* ns of each operation */
};

struct work {
	const char *name;
	/* What is needed first; no part of what is timed. NULL: nothing. */
	void (*prepare)(struct run *run);
	/*
	 * At s->step (0: begin) with the answer, if any, and @len bytes of data
	 * of it: posts the operation's next request, or returns false as it is
	 * finished.
	 */
	bool (*step)(struct run *run, struct fs_slot *s, uint32_t len);
	/* NULL: nothing */
	void (*finish)(struct run *run);
	bool once; /* has no warming up */
};

/** work_find() - by its name, or NULL */
const struct work *work_find(const char *name);

/** work_do() - operations until @limit or @end_ns, whatever comes first */
void work_do(struct run *run, const struct work *w, uint64_t limit,
	     uint64_t end_ns);

#endif
