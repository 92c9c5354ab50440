/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small event loop over epoll: sources with a callback.
 */
#ifndef MOAT_OS_LOOP_H
#define MOAT_OS_LOOP_H

#include <stdbool.h>
#include <stdint.h>

struct moat_alarm;

/**
 * struct moat_source - an fd that is watched
 * @fd: -1 while it is not watched
 * @ready: called with epoll events when it is ready
 * @arg: for @ready
 *
 * Embedded in whoever owns the fd; must stay in place while watched.
 */
struct moat_source {
	int fd;
	void (*ready)(void *arg, uint32_t events);
	void *arg;
};

struct moat_loop {
	int epfd;
	/* Off while it sleeps and on while it works; NULL: none. */
	struct moat_alarm *alarm;
	struct moat_source **batch; /* private: being dispatched */
	int nbatch;
};

int moat_loop_init(struct moat_loop *loop);
void moat_loop_fini(struct moat_loop *loop);

/**
 * moat_loop_watch() - watch @src->fd for input
 * @edge: report each new event once, without reading the fd (for eventfds: no
 *	read per notification); otherwise as long as it is readable
 *
 * Return: 0 or a negative errno; -EPERM for an fd that can not be waited on,
 * such as a regular file.
 */
int moat_loop_watch(struct moat_loop *loop, struct moat_source *src, bool edge);

/** moat_loop_unwatch() - stop watching; safe in any callback, and twice */
void moat_loop_unwatch(struct moat_loop *loop, struct moat_source *src);

/**
 * moat_loop_wait() - wait for events and dispatch them
 * @timeout_ms: 0 to look only, -1 to wait for ever
 *
 * Return: events dispatched, or a negative errno.
 */
int moat_loop_wait(struct moat_loop *loop, int timeout_ms);

#endif
