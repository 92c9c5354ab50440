/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Drives a fuzz target without a fuzzing engine: with file names it runs those
 * inputs (to look at a crash), else as many generated ones as -n says. The
 * seed is fixed, so a failure comes again; the input that failed is named by
 * its number and run alone with -i.
 */
#include <signal.h>
#include <unistd.h>

#include "fuzz.h"

#define MAX_INPUT 1024u

static uint64_t next(uint64_t *s)
{
	uint64_t z = (*s += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* Bytes near the edges are worth more than others. */
static uint8_t some_byte(uint64_t *s)
{
	static const uint8_t edge[] = { 0, 1,  2,  3,	4,   7,
					8, 15, 16, 127, 128, 255 };
	uint64_t r = next(s);

	return r & 0x300 ? (uint8_t)r
			 : edge[(r >> 16) % (sizeof(edge) / sizeof(edge[0]))];
}

static void run_generated(uint64_t number)
{
	uint64_t s = number * UINT64_C(0xd1342543de82ef95) + 1;
	size_t n = next(&s) % MAX_INPUT;
	uint8_t *data = malloc(n ? n : 1); /* exact, so that ASan guards it */

	if (!data)
		abort();
	for (size_t i = 0; i < n; i++)
		data[i] = some_byte(&s);
	LLVMFuzzerTestOneInput(data, n);
	free(data);
}

static int run_file(const char *name)
{
	static uint8_t data[1 << 20];
	FILE *f = fopen(name, "rb");
	size_t n;

	if (!f) {
		perror(name);
		return 1;
	}
	n = fread(data, 1, sizeof(data), f);
	fclose(f);
	LLVMFuzzerTestOneInput(data, n);
	return 0;
}

static volatile uint64_t current;

/* A sanitizer that only exits is told apart by its own report. */
static void on_abort(int sig)
{
	char text[] = "failing input: -i 00000000000000000000\n";
	uint64_t n = current;

	for (size_t i = sizeof(text) - 3; n; i--, n /= 10)
		text[i] = (char)('0' + n % 10);
	if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
		_exit(1);
	signal(sig, SIG_DFL);
	raise(sig);
}

int main(int argc, char **argv)
{
	uint64_t n = 20000;
	int opt, ret = 0;

	signal(SIGABRT, on_abort);
	while ((opt = getopt(argc, argv, "n:i:")) != -1) {
		if (opt == 'i') {
			run_generated(strtoull(optarg, NULL, 10));
			return 0;
		}
		if (opt != 'n')
			return 2;
		n = strtoull(optarg, NULL, 10);
	}
	for (int i = optind; i < argc; i++)
		ret |= run_file(argv[i]);
	if (optind < argc)
		return ret;
	for (current = 0; current < n; current++)
		run_generated(current);
	printf("%llu inputs\n", (unsigned long long)n);
	return 0;
}
