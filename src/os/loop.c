/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stddef.h>
#include <sys/epoll.h>

#include "os/alarm.h"
#include "os/fd.h"
#include "os/loop.h"

#define BATCH 64

int moat_loop_init(struct moat_loop *loop)
{
	*loop = (struct moat_loop){ .epfd = epoll_create1(EPOLL_CLOEXEC) };
	return loop->epfd < 0 ? -errno : 0;
}

void moat_loop_fini(struct moat_loop *loop)
{
	moat_fd_close(&loop->epfd);
}

int moat_loop_watch(struct moat_loop *loop, struct moat_source *src, bool edge)
{
	struct epoll_event ev = {
		.events = EPOLLIN | (edge ? EPOLLET : 0),
		.data.ptr = src,
	};

	if (epoll_ctl(loop->epfd, EPOLL_CTL_ADD, src->fd, &ev))
		return -errno;
	return 0;
}

void moat_loop_unwatch(struct moat_loop *loop, struct moat_source *src)
{
	if (src->fd < 0)
		return;
	epoll_ctl(loop->epfd, EPOLL_CTL_DEL, src->fd, NULL);
	/* An event of this round may still name it. */
	for (int i = 0; i < loop->nbatch; i++)
		if (loop->batch[i] == src)
			loop->batch[i] = NULL;
	src->fd = -1;
}

int moat_loop_wait(struct moat_loop *loop, int timeout_ms)
{
	struct epoll_event ev[BATCH];
	struct moat_source *batch[BATCH];
	int n;

	if (timeout_ms)
		moat_alarm_off(loop->alarm);
	n = epoll_wait(loop->epfd, ev, BATCH, timeout_ms);
	/* The last signal of the alarm itself is no work. */
	if (n >= 0)
		moat_alarm_on(loop->alarm);
	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	for (int i = 0; i < n; i++)
		batch[i] = ev[i].data.ptr;
	loop->batch = batch;
	loop->nbatch = n;
	for (int i = 0; i < n; i++)
		if (batch[i])
			batch[i]->ready(batch[i]->arg, ev[i].events);
	loop->batch = NULL;
	loop->nbatch = 0;
	return n;
}
