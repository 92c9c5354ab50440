/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pairs of timings for the micro benchmarks.
 *
 * Each pair times two ways of doing the same, one right after the other, in
 * turns first; what disturbs the machine for longer than a slice disturbs
 * both. Time is the thread's own processor time. A program prints one JSON
 * object a line, with all pairs; bench/run takes the medians.
 */
#ifndef MOAT_BENCH_MICRO_H
#define MOAT_BENCH_MICRO_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "os/clock.h"

#define MICRO_PAIRS_MAX 101

/** struct micro_way - something to time; @run does @n operations */
struct micro_way {
	void (*run)(void *arg, uint64_t n);
	void *arg;
};

/* Of the processor, for this thread: what others take does not count. */
static inline uint64_t micro_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * MOAT_NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* Operations that take about @ms. */
static inline uint64_t micro_calibrate(const struct micro_way *w, uint64_t ms)
{
	uint64_t n = 1, begin, took;

	for (;;) {
		begin = micro_now_ns();
		w->run(w->arg, n);
		took = micro_now_ns() - begin;
		if (took >= ms * MOAT_NS_PER_MS / 4)
			return n * ms * MOAT_NS_PER_MS / took + 1;
		n *= 2;
	}
}

static inline double micro_time(const struct micro_way *w, uint64_t n)
{
	uint64_t begin = micro_now_ns();

	w->run(w->arg, n);
	return (double)(micro_now_ns() - begin) / (double)n;
}

static inline void micro_list(const char *name, const double *v, int n)
{
	printf("\"%s\": [", name);
	for (int i = 0; i < n; i++)
		printf("%s%.2f", i ? ", " : "", v[i]);
	printf("]");
}

/** micro_pairs() - time both, print "ours" and "theirs" in ns and end the line
 */
static inline void micro_pairs(const struct micro_way *ours,
			       const struct micro_way *theirs, int pairs,
			       uint64_t ms)
{
	double a[MICRO_PAIRS_MAX], b[MICRO_PAIRS_MAX];
	uint64_t na = micro_calibrate(ours, ms);
	uint64_t nb = micro_calibrate(theirs, ms);

	for (int i = 0; i < pairs; i++) {
		if (i % 2)
			a[i] = micro_time(ours, na);
		b[i] = micro_time(theirs, nb);
		if (!(i % 2))
			a[i] = micro_time(ours, na);
	}
	micro_list("ours_ns", a, pairs);
	printf(", ");
	micro_list("theirs_ns", b, pairs);
	printf("}\n");
	fflush(stdout);
}

/* usage: PROGRAM PAIRS MILLISECONDS */
static inline void micro_args(int argc, char **argv, int *pairs, uint64_t *ms)
{
	*pairs = argc == 3 ? atoi(argv[1]) : 0;
	*ms = argc == 3 ? (uint64_t)atoi(argv[2]) : 0;
	if (*pairs < 1 || *pairs > MICRO_PAIRS_MAX || !*ms) {
		fprintf(stderr, "usage: %s PAIRS MILLISECONDS\n", argv[0]);
		exit(2);
	}
}

/** micro_memory() - touched, shared memory, as guest RAM and a pool are */
static inline uint8_t *micro_memory(size_t size, int fill)
{
	uint8_t *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	__builtin_memset(p, fill, size);
	return p;
}

static inline void *micro_alloc(size_t size)
{
	void *p = calloc(1, size);

	if (!p)
		exit(1);
	return p;
}

#endif
