/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <signal.h>

#include "dev/host/worker.h"
#include "os/clock.h"
#include "os/fd.h"

/* A write that lasts from one look to the next sleeps. */
#define WATCH_MS 250u

int moat_worker_signal(struct moat_worker *w, int fd)
{
	struct moat_device *d = w->device;
	int ret;

	/* Count, then look; the control thread does it the other way round. */
	__atomic_store_n(&w->calls, w->calls + 1, __ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&d->watched, __ATOMIC_SEQ_CST) &&
	    !__atomic_exchange_n(&d->watched, true, __ATOMIC_SEQ_CST))
		moat_eventfd_signal(d->wake_src.fd);
	ret = moat_eventfd_signal(fd);
	__atomic_store_n(&w->calls, w->calls + 1, __ATOMIC_RELEASE);
	return ret;
}

static uint32_t calls_of(const struct moat_worker *w)
{
	return __atomic_load_n(&w->calls, __ATOMIC_SEQ_CST);
}

/* True if the worker signalled since the last look, or is about to. */
static bool look_at(struct moat_worker *w)
{
	uint32_t calls = calls_of(w);
	bool moved = calls != w->calls_seen;

	if (!moved && calls % 2)
		pthread_kill(w->thread, SIGALRM);
	w->calls_seen = calls;
	return moved || calls % 2;
}

int moat_workers_watch(struct moat_device *d)
{
	uint64_t now = moat_now_ns();
	bool any = false;

	if (!__atomic_load_n(&d->watched, __ATOMIC_SEQ_CST))
		return -1;
	if (now < d->watch_at_ns)
		return (int)((d->watch_at_ns - now) / MOAT_NS_PER_MS) + 1;
	for (uint32_t i = 0; i < d->nworkers; i++)
		any |= d->workers[i] && look_at(d->workers[i]);
	if (!any) {
		__atomic_store_n(&d->watched, false, __ATOMIC_SEQ_CST);
		for (uint32_t i = 0; i < d->nworkers; i++)
			any |= d->workers[i] &&
			       calls_of(d->workers[i]) !=
				       d->workers[i]->calls_seen;
		if (!any)
			return -1;
		__atomic_store_n(&d->watched, true, __ATOMIC_SEQ_CST);
	}
	d->watch_at_ns = now + (uint64_t)WATCH_MS * MOAT_NS_PER_MS;
	return WATCH_MS;
}

static void on_alarm(int sig)
{
	(void)sig;
}

int moat_workers_watch_init(void)
{
	/* Without SA_RESTART: ending the call is the purpose. */
	struct sigaction sa = { .sa_handler = on_alarm };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	if (sigaction(SIGALRM, &sa, NULL) ||
	    sigprocmask(SIG_UNBLOCK, &set, NULL))
		return -errno;
	return 0;
}
