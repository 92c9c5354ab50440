/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file system's driver at native speed: FUSE over virtio over vhost-user,
 * for any virtio-fs daemon.
 *
 * Prints one JSON object: operations, requests, bytes and entries in so many
 * seconds, processor time of the driver and of the processes named with
 * --cpu-of in the same span, kicks, sleeps, and latencies of operations in
 * microseconds. With --work=hold it then waits until its standard input ends,
 * and the daemon knows all the files meanwhile.
 */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/fswork.h"
#include "os/clock.h"

#define PIDS_MAX 16u

struct options {
	struct work_options work;
	const char *socket, *name;
	uint32_t depth, queues;
	bool poll;
	clockid_t clocks[PIDS_MAX]; /* of the processes of --cpu-of */
	uint32_t nclocks;
};

struct figures {
	double seconds, cpu, daemon_cpu;
	uint64_t requests, kicks, sleeps;
};

static double daemon_seconds(const struct options *o)
{
	double sum = 0;

	for (uint32_t i = 0; i < o->nclocks; i++) {
		struct timespec ts;

		if (clock_gettime(o->clocks[i], &ts))
			bench_fail("--cpu-of: a process is gone", 0);
		sum += (double)ts.tv_sec + (double)ts.tv_nsec / MOAT_NS_PER_SEC;
	}
	return sum;
}

static struct figures now(const struct options *o, const struct run *run)
{
	struct figures f = {
		.seconds = (double)moat_now_ns() / MOAT_NS_PER_SEC,
		.cpu = bench_cpu_seconds(),
		.daemon_cpu = daemon_seconds(o),
		.requests = run->fs.requests,
		.sleeps = run->fs.front.sleeps,
	};

	for (uint32_t i = 0; i <= run->fs.nqueues; i++)
		f.kicks += run->fs.queues[i].kicks;
	return f;
}

static uint64_t after(double seconds)
{
	return moat_now_ns() + (uint64_t)(seconds * MOAT_NS_PER_SEC);
}

static void print(const struct run *run, struct figures a, struct figures b)
{
	struct bench_latency l = bench_latency(run->latency, run->done);

	printf("{\"operations\": %llu, \"requests\": %llu, \"bytes\": %llu, "
	       "\"entries\": %llu, \"seconds\": %.6f, \"cpu_seconds\": %.6f, "
	       "\"daemon_cpu_seconds\": %.6f, \"kicks\": %llu, "
	       "\"sleeps\": %llu, \"latency_us\": "
	       "{\"mean\": %.2f, \"median\": %.2f, \"p99\": %.2f}}\n",
	       (unsigned long long)run->done,
	       (unsigned long long)(b.requests - a.requests),
	       (unsigned long long)run->bytes, (unsigned long long)run->entries,
	       b.seconds - a.seconds, b.cpu - a.cpu,
	       b.daemon_cpu - a.daemon_cpu,
	       (unsigned long long)(b.kicks - a.kicks),
	       (unsigned long long)(b.sleeps - a.sleeps), l.mean, l.median,
	       l.p99);
	fflush(stdout);
}

static void measure(const struct options *o, struct run *run)
{
	const struct work *w = work_find(o->name);
	struct figures a, b;

	if (w->prepare)
		w->prepare(run);
	if (!w->once && run->opt.warm > 0)
		work_do(run, w, run->opt.count, after(run->opt.warm));
	a = now(o, run);
	work_do(run, w, run->opt.count, after(run->opt.seconds));
	b = now(o, run);
	print(run, a, b);
	if (w->finish)
		w->finish(run);
	if (!strcmp(w->name, "hold"))
		while (getchar() != EOF)
			;
}

static const struct argp_option options[] = {
	{ "socket", 's', "PATH", 0, "where the daemon listens", 0 },
	{ "work", 'w', "NAME", 0,
	  "lookup, getattr, open, create, unlink, readdirplus, read, write or "
	  "hold",
	  0 },
	{ "count", 'c', "N", 0, "operations at most (default and limit: 4 Mi)",
	  0 },
	{ "seconds", 't', "S", 0, "time at most (default 1)", 0 },
	{ "warm", 'W', "S", 0, "time before that does not count (default 0)",
	  0 },
	{ "depth", 'd', "N", 0, "operations in flight (default 1)", 0 },
	{ "queues", 'q', "N", 0, "request queues (default 1)", 0 },
	{ "size", 'b', "BYTES", 0,
	  "of a read, write or readdirplus (default 4096)", 0 },
	{ "random", 'r', 0, 0, "offsets (default: one after the other)", 0 },
	{ "folder", 'F', "NAME", 0, "that holds f000000 ... (default files)",
	  0 },
	{ "files", 'f', "N", 0, "in it (default 1000)", 0 },
	{ "forget", 'g', 0, 0, "each inode at once (default: keep it)", 0 },
	{ "poll", 'p', 0, 0, "never sleep (default: until called)", 0 },
	{ "cpu-of", 'P', "PID[,PID...]", 0, "the daemon's processes", 0 },
	{ 0 },
};

static uint64_t number(const char *arg, uint64_t max, struct argp_state *state)
{
	char *end;
	uint64_t v = strtoull(arg, &end, 0);

	if (end == arg || *end || !v || v > max)
		argp_error(state, "'%s' is no number from 1 to %llu", arg,
			   (unsigned long long)max);
	return v;
}

static double duration(const char *arg, struct argp_state *state)
{
	char *end;
	double v = strtod(arg, &end);

	if (end == arg || *end || !(v >= 0 && v < 1e6))
		argp_error(state, "'%s' is no number of seconds", arg);
	return v;
}

static void take_pids(struct options *o, char *arg, struct argp_state *state)
{
	char *word;

	while ((word = strsep(&arg, ","))) {
		pid_t pid = (pid_t)number(word, INT32_MAX, state);

		if (o->nclocks == PIDS_MAX ||
		    clock_getcpuclockid(pid, &o->clocks[o->nclocks++]))
			argp_error(state, "no process %s, or too many", word);
	}
}

static void check(struct options *o, struct argp_state *state)
{
	if (!o->socket)
		argp_error(state, "--socket is missing");
	if (!o->name || !work_find(o->name))
		argp_error(state, "--work is missing or unknown");
	if (o->work.size % FS_PAGE)
		argp_error(state, "the size is in pages of 4096");
	if (o->depth < o->queues)
		argp_error(state, "a queue would have nothing to do");
	if (o->work.count > RUN_OPERATIONS_MAX ||
	    o->work.files > RUN_OPERATIONS_MAX)
		argp_error(state, "too many operations or files");
	if (o->name && !strcmp(o->name, "hold")) {
		o->work.count = o->work.files;
		o->work.seconds = 1e6;
	}
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case 's':
		o->socket = arg;
		break;
	case 'w':
		o->name = arg;
		break;
	case 'c':
		o->work.count = number(arg, RUN_OPERATIONS_MAX, state);
		break;
	case 't':
		o->work.seconds = duration(arg, state);
		break;
	case 'W':
		o->work.warm = duration(arg, state);
		break;
	case 'd':
		o->depth = (uint32_t)number(arg, FS_QUEUE_SIZE, state);
		break;
	case 'q':
		o->queues = (uint32_t)number(arg, FS_QUEUES_MAX, state);
		break;
	case 'b':
		o->work.size = (uint32_t)number(arg, 2u << 20, state);
		break;
	case 'r':
		o->work.random = true;
		break;
	case 'F':
		o->work.folder = arg;
		break;
	case 'f':
		o->work.files = (uint32_t)number(arg, 999999, state);
		break;
	case 'g':
		o->work.forget = true;
		break;
	case 'p':
		o->poll = true;
		break;
	case 'P':
		take_pids(o, arg, state);
		break;
	case ARGP_KEY_END:
		check(o, state);
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct argp argp = {
		options,
		parse,
		NULL,
		"A driver of virtio-fs over vhost-user, to measure "
		"with.",
		NULL,
		NULL,
		NULL
	};
	struct options o = {
		.work = { .folder = "files",
			  .files = 1000,
			  .size = FS_PAGE,
			  .count = RUN_OPERATIONS_MAX,
			  .seconds = 1 },
		.depth = 1,
		.queues = 1,
	};
	struct run run = { 0 };

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	run.opt = o.work;
	run.latency = calloc(RUN_OPERATIONS_MAX, sizeof(*run.latency));
	run.nodes = calloc(RUN_OPERATIONS_MAX, sizeof(*run.nodes));
	if (!run.latency || !run.nodes)
		bench_fail("memory for figures", -ENOMEM);
	/* Touched: calloc() gives pages that are not there yet. */
	memset(run.latency, 0xff,
	       RUN_OPERATIONS_MAX * sizeof(*run.latency) / 4);
	fs_open(&run.fs, o.socket, o.queues, o.depth, o.work.size, o.poll);
	measure(&o, &run);
	fs_close(&run.fs);
	free(run.latency);
	free(run.nodes);
	return 0;
}
