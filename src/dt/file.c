/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dt/internal.h"

static int read_all(int fd, void **out, size_t *size)
{
	size_t room = 1 << 16, n = 0;
	char *buf = NULL;

	for (;;) {
		ssize_t got;
		char *p = realloc(buf, room);

		if (!p) {
			free(buf);
			return -ENOMEM;
		}
		buf = p;
		got = read(fd, buf + n, room - n);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0) {
			free(buf);
			return -errno;
		}
		if (!got)
			break;
		n += (size_t)got;
		/* One byte too many is enough to tell that it is too big. */
		if (n > MOAT_DT_SIZE_MAX)
			break;
		if (n == room)
			room *= 2;
	}
	*out = buf;
	*size = n;
	return 0;
}

int moat_dt_read(const char *path, void **out, size_t *size,
		 struct moat_dt_why *why)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), err;

	if (fd < 0)
		return dt_fail(why, -errno, "%s", strerror(errno));
	err = read_all(fd, out, size);
	close(fd);
	return err ? dt_fail(why, err, "%s", strerror(-err)) : 0;
}

static int write_all(int fd, const char *p, size_t n)
{
	while (n) {
		ssize_t did = write(fd, p, n);

		if (did < 0 && errno == EINTR)
			continue;
		if (did < 0)
			return -errno;
		p += did;
		n -= (size_t)did;
	}
	return 0;
}

/* The permissions of the file that is replaced, or what umask gives. */
static mode_t mode_of(const char *path)
{
	struct stat st;
	mode_t mask;

	if (!stat(path, &st))
		return st.st_mode & 0777;
	mask = umask(0);
	umask(mask);
	return 0666 & ~mask;
}

static int write_beside(const char *path, const char *temp, int fd,
			const void *data, size_t size)
{
	int err = write_all(fd, data, size);

	if (!err && fchmod(fd, mode_of(path)))
		err = -errno;
	if (!err && fsync(fd))
		err = -errno;
	if (close(fd) && !err)
		err = -errno;
	if (!err && rename(temp, path))
		err = -errno;
	return err;
}

int moat_dt_write(const char *path, const void *data, size_t size,
		  struct moat_dt_why *why)
{
	char *real = realpath(path, NULL), *temp;
	struct stat st;
	int fd, err;

	/* What is no file (/dev/stdout) cannot be replaced. */
	if (!stat(path, &st) && !S_ISREG(st.st_mode)) {
		free(real);
		fd = open(path, O_WRONLY | O_CLOEXEC);
		err = fd < 0 ? -errno : write_all(fd, data, size);
		if (fd >= 0 && close(fd) && !err)
			err = -errno;
		return err ? dt_fail(why, err, "%s", strerror(-err)) : 0;
	}
	if (asprintf(&temp, "%s.XXXXXX", real ? real : path) < 0) {
		free(real);
		return dt_fail(why, -ENOMEM, "no memory");
	}
	fd = mkostemp(temp, O_CLOEXEC);
	if (fd < 0)
		err = -errno;
	else
		err = write_beside(real ? real : path, temp, fd, data, size);
	if (err && fd >= 0)
		unlink(temp);
	free(temp);
	free(real);
	return err ? dt_fail(why, err, "%s", strerror(-err)) : 0;
}
