/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads a file once, in a guest: with read(2), or through a mapping of it.
 *
 *     mapread read|mmap FILE
 *
 * Prints the bytes, the nanoseconds from open() on, and a sum over one word in
 * each 64 bytes, which is the same for both ways. Static, as it runs in a guest
 * that has no libraries.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BLOCK (1u << 20)
#define LINE 64u

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t sum(const uint8_t *p, size_t n)
{
	uint64_t total = 0, word;

	for (size_t i = 0; i + sizeof(word) <= n; i += LINE) {
		memcpy(&word, p + i, sizeof(word));
		total += word;
	}
	return total;
}

static uint64_t by_read(int fd)
{
	uint8_t *block = malloc(BLOCK);
	uint64_t total = 0;
	ssize_t n;

	if (!block)
		fail("memory");
	while ((n = read(fd, block, BLOCK)) > 0)
		total += sum(block, (size_t)n);
	if (n < 0)
		fail("read");
	free(block);
	return total;
}

static uint64_t by_mmap(int fd, size_t size)
{
	void *p = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	uint64_t total;

	if (p == MAP_FAILED)
		fail("mmap");
	total = sum(p, size);
	munmap(p, size);
	return total;
}

int main(int argc, char **argv)
{
	uint64_t begin = now_ns(), total;
	struct stat st;
	int fd;

	if (argc != 3 || (strcmp(argv[1], "read") && strcmp(argv[1], "mmap"))) {
		fprintf(stderr, "usage: mapread read|mmap FILE\n");
		return 2;
	}
	fd = open(argv[2], O_RDONLY);
	if (fd < 0 || fstat(fd, &st))
		fail(argv[2]);
	total = argv[1][0] == 'r' ? by_read(fd)
				  : by_mmap(fd, (size_t)st.st_size);
	close(fd);
	printf("bytes %llu ns %llu sum %llu\n", (unsigned long long)st.st_size,
	       (unsigned long long)(now_ns() - begin),
	       (unsigned long long)total);
	return 0;
}
