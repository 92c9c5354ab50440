/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Unix stream sockets by path. All fds are close-on-exec and non-blocking.
 * Paths longer than a socket address holds (107 bytes) are -ENAMETOOLONG.
 */
#ifndef MOAT_OS_SOCK_H
#define MOAT_OS_SOCK_H

#include <stdint.h>

/**
 * moat_sock_listen() - listen at @path
 *
 * A socket file left behind by a process that is gone is replaced; one that
 * somebody listens on is not.
 *
 * Return: the fd, -EADDRINUSE, or another negative errno.
 */
int moat_sock_listen(const char *path);

/** moat_sock_accept() - take one connection; -EAGAIN if there is none */
int moat_sock_accept(int listen_fd);

/** moat_sock_connect() - connect to @path; the fd or a negative errno */
int moat_sock_connect(const char *path);

/**
 * moat_sock_connect_wait() - as moat_sock_connect(), for a server that is
 *	still starting
 * @abort_fd: give up with -EINTR when it becomes readable; -1 for none
 *
 * Tries again while the path does not exist or nobody listens, for at most
 * @timeout_ms.
 */
int moat_sock_connect_wait(const char *path, unsigned int timeout_ms,
			   int abort_fd);

/** moat_sock_pair() - a connected pair */
int moat_sock_pair(int fds[2]);

/** moat_fd_nonblock() - make an inherited fd close-on-exec and non-blocking */
int moat_fd_nonblock(int fd);

#endif
