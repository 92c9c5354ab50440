/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/clock.h"
#include "os/fd.h"
#include "os/starter.h"
#include "os/wait.h"

/* A child that is to be replaced has lost its connection, or does not obey. */
#define REPLACED_MS 200u
#define ENDS_MS 3000u
/* The starter has to end a child first, and to fork. */
#define ANSWER_MS 5000u
#define STARTER_FD 3 /* in the starter, and no other above it */

struct answer {
	uint8_t number; /* of the order */
	int ret;
	int has_path;
	char dir[sizeof(((struct moat_child *)0)->dir)];
	char path[sizeof(((struct moat_child *)0)->path)];
};

union control {
	char buf[CMSG_SPACE(2 * sizeof(int))];
	struct cmsghdr align;
};

static struct msghdr header(struct iovec *iov, union control *control,
			    size_t space)
{
	return (struct msghdr){
		.msg_iov = iov,
		.msg_iovlen = 1,
		.msg_control = space ? control->buf : NULL,
		.msg_controllen = space,
	};
}

static int give(int sock, struct answer *a, const int *fds, size_t n)
{
	struct iovec iov = { a, sizeof(*a) };
	union control control = { 0 };
	struct msghdr m =
		header(&iov, &control, n ? CMSG_SPACE(n * sizeof(int)) : 0);

	if (n) {
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);

		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n * sizeof(int));
	}
	return sendmsg(sock, &m, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* The starter's life. */
static void run(int sock, char *const argv[])
{
	struct moat_child child = { .pidfd = -1, .fd = -1 };
	uint8_t number;

	while (read(sock, &number, 1) == 1) {
		struct answer a = { .number = number };
		int fds[2];

		moat_child_stop(&child, REPLACED_MS);
		a.ret = moat_child_start(&child, argv);
		a.has_path = child.has_path;
		memcpy(a.dir, child.dir, sizeof(a.dir));
		memcpy(a.path, child.path, sizeof(a.path));
		fds[0] = child.pidfd;
		fds[1] = child.fd;
		if (give(sock, &a, fds,
			 a.ret ? 0 : 1u + (size_t)(child.fd >= 0)))
			break;
		/* A connection has two ends: this is not one of them. */
		moat_fd_close(&child.fd);
	}
	moat_child_stop(&child, ENDS_MS);
}

int moat_starter_init(struct moat_starter *s, char *const argv[])
{
	int pair[2];

	*s = (struct moat_starter){ .pidfd = -1,
				    .fd = -1,
				    .answer_ms = ANSWER_MS };
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -errno;
	s->pid = fork();
	if (!s->pid) {
		/* Signals for us are blocked: it ends when we do. */
		if ((pair[1] != STARTER_FD &&
		     dup3(pair[1], STARTER_FD, O_CLOEXEC) < 0) ||
		    close_range(STARTER_FD + 1, ~0u, 0))
			_exit(127);
		run(STARTER_FD, argv);
		_exit(0);
	}
	moat_fd_close(&pair[1]);
	s->fd = pair[0];
	if (s->pid > 0)
		s->pidfd = (int)syscall(SYS_pidfd_open, s->pid, 0);
	if (s->pid > 0 && s->pidfd >= 0)
		return 0;
	s->pid = 0;
	moat_fd_close(&s->fd);
	return -errno;
}

static void forget(struct moat_child *child)
{
	moat_fd_close(&child->fd);
	moat_fd_close(&child->pidfd);
	*child = (struct moat_child){ .pidfd = -1, .fd = -1 };
}

/* Its answer, with up to two descriptors. */
static int take(int sock, struct answer *a, int fds[2])
{
	struct iovec iov = { a, sizeof(*a) };
	union control control = { 0 };
	struct msghdr m = header(&iov, &control, sizeof(control.buf));
	struct cmsghdr *c;
	ssize_t n = recvmsg(sock, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

	fds[0] = fds[1] = -1;
	if (n < 0)
		return -errno;
	c = CMSG_FIRSTHDR(&m);
	if (c && c->cmsg_type == SCM_RIGHTS)
		memcpy(fds, CMSG_DATA(c),
		       c->cmsg_len - CMSG_LEN(0) < 2 * sizeof(int)
			       ? c->cmsg_len - CMSG_LEN(0)
			       : 2 * sizeof(int));
	return n == sizeof(*a) ? 0 : -EPIPE;
}

/* The answer to the latest order: who asked before has given up. */
static int await(struct moat_starter *s, struct answer *a, int fds[2])
{
	uint64_t now = moat_now_ns(), end = now + s->answer_ms * MOAT_NS_PER_MS;
	int ret;

	for (; now < end; now = moat_now_ns()) {
		if (!moat_wait_fd(s->fd, POLLIN,
				  (uint32_t)((end - now) / MOAT_NS_PER_MS) + 1))
			break;
		ret = take(s->fd, a, fds);
		if (ret || a->number == s->asked)
			return ret ? ret : a->ret;
		moat_fd_close(&fds[0]);
		moat_fd_close(&fds[1]);
	}
	return -ETIMEDOUT;
}

int moat_starter_start(struct moat_starter *s, struct moat_child *child)
{
	struct answer a;
	int fds[2] = { -1, -1 }, ret;

	forget(child);
	s->asked++;
	if (write(s->fd, &s->asked, 1) != 1)
		return -errno;
	ret = await(s, &a, fds);
	if (ret || fds[0] < 0) {
		moat_fd_close(&fds[0]);
		moat_fd_close(&fds[1]);
		return ret ? ret : -EPIPE;
	}
	child->pidfd = fds[0];
	child->fd = fds[1];
	child->has_path = a.has_path;
	memcpy(child->dir, a.dir, sizeof(a.dir));
	memcpy(child->path, a.path, sizeof(a.path));
	return 0;
}

void moat_starter_end(struct moat_starter *s, struct moat_child *child,
		      unsigned int grace_ms)
{
	forget(child);
	if (!s->pid)
		return;
	moat_fd_close(&s->fd);
	moat_wait_fd(s->pidfd, POLLIN, grace_ms);
	waitpid(s->pid, NULL, WNOHANG);
	moat_fd_close(&s->pidfd);
	s->pid = 0;
}
