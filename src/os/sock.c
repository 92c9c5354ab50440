/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "os/clock.h"
#include "os/fd.h"
#include "os/sock.h"

#define FLAGS (SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK)

static int to_addr(struct sockaddr_un *sa, const char *path)
{
	size_t n = strlen(path);

	if (n >= sizeof(sa->sun_path))
		return -ENAMETOOLONG;
	*sa = (struct sockaddr_un){ .sun_family = AF_UNIX };
	memcpy(sa->sun_path, path, n);
	return 0;
}

static bool is_stale(const char *path)
{
	struct stat st;
	int fd;

	if (lstat(path, &st) || !S_ISSOCK(st.st_mode))
		return false;
	fd = moat_sock_connect(path);
	if (fd >= 0)
		close(fd);
	return fd == -ECONNREFUSED;
}

int moat_sock_listen(const char *path)
{
	struct sockaddr_un sa;
	int ret = to_addr(&sa, path);
	int fd;

	if (ret)
		return ret;
	fd = socket(AF_UNIX, FLAGS, 0);
	if (fd < 0)
		return -errno;
	ret = bind(fd, (struct sockaddr *)&sa, sizeof(sa));
	if (ret && errno == EADDRINUSE) {
		if (is_stale(path) && !unlink(path))
			ret = bind(fd, (struct sockaddr *)&sa, sizeof(sa));
		else
			errno = EADDRINUSE; /* is_stale() may have changed it */
	}
	if (ret || listen(fd, 1)) {
		ret = -errno;
		close(fd);
		return ret;
	}
	return fd;
}

int moat_sock_accept(int listen_fd)
{
	int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	return fd < 0 ? -errno : fd;
}

int moat_sock_connect(const char *path)
{
	struct sockaddr_un sa;
	int ret = to_addr(&sa, path);
	int fd;

	if (ret)
		return ret;
	fd = socket(AF_UNIX, FLAGS, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa))) {
		ret = -errno;
		close(fd);
		return ret;
	}
	return fd;
}

int moat_sock_connect_wait(const char *path, unsigned int timeout_ms,
			   int abort_fd)
{
	uint64_t end = moat_now_ns() + (uint64_t)timeout_ms * MOAT_NS_PER_MS;
	struct pollfd p = { .fd = abort_fd, .events = POLLIN };

	for (;;) {
		int fd = moat_sock_connect(path);

		if (fd != -ENOENT && fd != -ECONNREFUSED && fd != -EAGAIN)
			return fd;
		if (moat_now_ns() >= end)
			return fd;
		/* There is nothing to wait on for a path to appear. */
		if (poll(&p, 1, 10) > 0)
			return -EINTR;
	}
}

int moat_sock_pair(int fds[2])
{
	return socketpair(AF_UNIX, FLAGS, 0, fds) ? -errno : 0;
}

int moat_fd_nonblock(int fd)
{
	int fl = fcntl(fd, F_GETFL);

	if (fl < 0 || fcntl(fd, F_SETFL, fl | O_NONBLOCK) ||
	    fcntl(fd, F_SETFD, FD_CLOEXEC))
		return -errno;
	return 0;
}
