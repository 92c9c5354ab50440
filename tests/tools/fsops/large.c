/* SPDX-License-Identifier: Apache-2.0 */
/* What is large or strange: names, sizes, numbers of files; and a load. */
#include "fsops.h"

static const char hex[] = "0123456789abcdef";

/* A name that holds each byte but NUL and '/', in runs of up to 255. */
static size_t all_bytes(char *out, unsigned int from)
{
	size_t n = 0;

	for (unsigned int c = from; c < 256 && n < 255; c++)
		if (c && c != '/')
			out[n++] = (char)c;
	out[n] = '\0';
	return n;
}

/* Counts a folder's names; each must be there once. */
static unsigned long count_names(const char *path, uint8_t *seen,
				 unsigned long limit)
{
	DIR *dir = opendir(path);
	unsigned long n = 0;
	struct dirent *d;

	CHECK(dir, "opendir %s", path);
	for (errno = 0; (d = readdir(dir)); errno = 0) {
		unsigned long i;

		if (d->d_name[0] == '.')
			continue;
		i = strtoul(d->d_name + 1, NULL, 10);
		CHECK(i < limit && !seen[i], "%s is there twice, or wrong",
		      d->d_name);
		seen[i] = 1;
		n++;
	}
	CHECK(!errno, "readdir %s", path);
	closedir(dir);
	return n;
}

int cmd_names(int argc, char **argv)
{
	char name[300];
	unsigned int n = 0;
	struct stat st;
	struct dirent *d;
	DIR *dir;
	int fd;

	CHECK(argc == 2 && !chdir(argv[1]), "names: a folder");
	for (unsigned int c = 1; c < 256; c++) {
		if (c == '/')
			continue;
		/* Alone it would be '.'. */
		snprintf(name, sizeof(name), "%c%c%c", (char)c, hex[c >> 4],
			 hex[c & 15]);
		fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0644);
		CHECK(fd >= 0, "a name with byte %u", c);
		close(fd);
		n++;
	}
	CHECK(all_bytes(name, 0) == 254 && !mkdir(name, 0755), "all bytes");
	CHECK(!stat(name, &st) && S_ISDIR(st.st_mode), "all bytes");
	dir = opendir(".");
	CHECK(dir, "opendir");
	while ((d = readdir(dir))) {
		unsigned char c = (unsigned char)d->d_name[0];

		if (strlen(d->d_name) == 254) {
			CHECK(!strcmp(d->d_name, name), "all bytes, read back");
			continue;
		}
		if (!strcmp(d->d_name, ".") || !strcmp(d->d_name, ".."))
			continue;
		CHECK(d->d_name[1] == hex[c >> 4] && d->d_name[2] == hex[c & 15],
		      "byte %u, read back", c);
		n--;
	}
	closedir(dir);
	CHECK(!n, "%u names are missing", n);
	CHECK(!rmdir(name), "rmdir of all bytes");
	for (unsigned int c = 1; c < 256; c++) {
		if (c == '/')
			continue;
		snprintf(name, sizeof(name), "%c%c%c", (char)c, hex[c >> 4],
			 hex[c & 15]);
		CHECK(!unlink(name), "unlink of a name with byte %u", c);
	}
	memset(name, 'x', 256);
	name[256] = '\0';
	CHECK(mkdir(name, 0755) && errno == ENAMETOOLONG, "256 bytes");
	name[255] = '\0';
	CHECK(!mkdir(name, 0755) && !rmdir(name), "255 bytes");
	return 0;
}

int cmd_sparse(int argc, char **argv)
{
	static const off_t places[] = { 0, 4294967290, 4294967296 + 4097,
					10000000000, 1099511627776 };
	char data[32], want[32];
	struct stat st;
	int fd;

	CHECK(argc == 2 && !chdir(argv[1]), "sparse: a folder");
	fd = open("sparse", O_CREAT | O_TRUNC | O_RDWR, 0644);
	CHECK(fd >= 0, "sparse");
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		snprintf(want, sizeof(want), "at %lld", (long long)places[i]);
		CHECK(pwrite(fd, want, 20, places[i]) == 20, "write %s", want);
	}
	close(fd);
	fd = open("sparse", O_RDWR);
	CHECK(!fstat(fd, &st) && st.st_size == places[4] + 20, "size");
	CHECK(st.st_blocks < 1000, "%lld blocks for a file of holes",
	      (long long)st.st_blocks);
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		snprintf(want, sizeof(want), "at %lld", (long long)places[i]);
		CHECK(pread(fd, data, 20, places[i]) == 20 &&
			      !strcmp(data, want),
		      "read %s", want);
	}
	CHECK(pread(fd, data, 20, 5000000000) == 20 && !data[0] && !data[19],
	      "a hole is not zero");
	CHECK(lseek(fd, 8192, SEEK_DATA) == (4294967290 & ~4095ll),
	      "data behind the first hole");
	CHECK(!ftruncate(fd, 4294967296) && !fstat(fd, &st) &&
		      st.st_size == 4294967296,
	      "truncate to 4 GiB");
	CHECK(!pread(fd, data, 20, 10000000000), "read behind the end");
	CHECK(!close(fd) && !unlink("sparse"), "unlink");
	return 0;
}

int cmd_many(int argc, char **argv)
{
	unsigned long count, n;
	uint8_t *seen;
	char name[32];
	int fd;

	CHECK(argc == 3 && !chdir(argv[1]), "many: DIR COUNT");
	count = strtoul(argv[2], NULL, 0);
	CHECK(!mkdir("many", 0755) && !chdir("many"), "mkdir");
	for (n = 0; n < count; n++) {
		snprintf(name, sizeof(name), "f%lu", n);
		fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0644);
		CHECK(fd >= 0, "create %s", name);
		close(fd);
	}
	seen = calloc(1, count);
	CHECK(seen, "calloc");
	n = count_names(".", seen, count);
	CHECK(n == count, "%lu names of %lu", n, count);
	/* Half of them go, one by one. */
	for (n = 0; n < count; n += 2) {
		snprintf(name, sizeof(name), "f%lu", n);
		CHECK(!unlink(name), "unlink %s", name);
	}
	memset(seen, 0, count);
	n = count_names(".", seen, count);
	CHECK(n == count / 2, "%lu names of %lu are left", n, count / 2);
	for (n = 1; n < count; n += 2) {
		snprintf(name, sizeof(name), "f%lu", n);
		CHECK(!unlink(name), "unlink %s", name);
	}
	free(seen);
	CHECK(!chdir("..") && !rmdir("many"), "rmdir");
	return 0;
}

/* One process of the load: files of its own, whose contents tell a number. */
static int load(const char *dir, uint64_t seed)
{
	struct rng r = { seed };
	uint8_t data[16384];
	char name[200], other[220];

	for (unsigned long n = 0;; n++) {
		size_t size = rng_below(&r, sizeof(data)) & ~7ul;
		uint64_t what = rng_next(&r);
		int fd;

		snprintf(name, sizeof(name), "%s/p%llu-%lu", dir,
			 (unsigned long long)seed, n % 50);
		snprintf(other, sizeof(other), "%s.new", name);
		fill(data, size, what);
		fd = open(other, O_CREAT | O_TRUNC | O_RDWR, 0644);
		if (fd < 0 || write(fd, data, size) != (ssize_t)size ||
		    pread(fd, data, size, 0) != (ssize_t)size || close(fd) ||
		    rename(other, name)) {
			printf("load %llu: %s after %lu\n",
			       (unsigned long long)seed,
			       strerrorname_np(errno), n);
			return 0;
		}
		if (n % 64 == 63)
			printf("load %llu: %lu\n", (unsigned long long)seed, n);
	}
}

int cmd_load(int argc, char **argv)
{
	unsigned long processes;
	uint64_t seed;

	CHECK(argc == 4, "load: DIR SEED PROCESSES");
	seed = strtoull(argv[2], NULL, 0);
	processes = strtoul(argv[3], NULL, 0);
	for (unsigned long i = 0; i < processes; i++)
		if (!fork())
			return load(argv[1], seed + i);
	while (wait(NULL) > 0)
		;
	printf("load has ended\n");
	return 0;
}
