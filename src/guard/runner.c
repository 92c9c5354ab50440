/* SPDX-License-Identifier: Apache-2.0 */
#include <sched.h>

#include "guard/runner.h"
#include "os/fd.h"

#define BUDGET 64u	  /* requests of one queue, each way, in one round */
#define ROUNDS 16u	  /* between two looks at the control plane */
#define QUIET_ROUNDS 128u /* without work, before a queue goes idle alone */
#define LOOKS 32u /* at the rings, before others may have the processor */

void moat_runner_init(struct moat_runner *r, struct moat_loop *loop,
		      uint32_t poll_us)
{
	r->loop = loop;
	r->active = r->starved = NULL;
	moat_window_init(&r->window, poll_us);
}

void moat_runner_wake(struct moat_runner *r, struct moat_runner_queue *q)
{
	if (q->active)
		return;
	/* The first queue to wake up tells. */
	if (!r->active)
		moat_window_woken(&r->window);
	q->active = true;
	q->quiet = 0;
	q->next_active = r->active;
	r->active = q;
	moat_relay_notify_off(&q->relay);
}

static void on_event(void *arg, uint32_t events)
{
	struct moat_runner_queue *q = arg;

	(void)events;
	moat_runner_wake(q->runner, q);
}

int moat_runner_attach(struct moat_runner *r, struct moat_runner_queue *q)
{
	int ret = 0;

	q->runner = r;
	q->active = q->listed = q->said_broken = false;
	q->kick.ready = q->call.ready = on_event;
	q->kick.arg = q->call.arg = q;
	if (q->kick.fd >= 0)
		ret = moat_loop_watch(r->loop, &q->kick, true);
	if (!ret && q->call.fd >= 0)
		ret = moat_loop_watch(r->loop, &q->call, true);
	if (ret) {
		moat_loop_unwatch(r->loop, &q->kick);
		return ret;
	}
	/* What was posted before we watched caused no event. */
	moat_runner_wake(r, q);
	return 0;
}

static void drop_active(struct moat_runner *r, struct moat_runner_queue *q)
{
	struct moat_runner_queue **p;

	for (p = &r->active; *p; p = &(*p)->next_active)
		if (*p == q) {
			*p = q->next_active;
			break;
		}
	q->active = false;
}

void moat_runner_detach(struct moat_runner *r, struct moat_runner_queue *q)
{
	struct moat_runner_queue **p;

	moat_loop_unwatch(r->loop, &q->kick);
	moat_loop_unwatch(r->loop, &q->call);
	drop_active(r, q);
	for (p = &r->starved; *p; p = &(*p)->next_starved)
		if (*p == q) {
			*p = q->next_starved;
			break;
		}
}

static void say_broken(struct moat_runner *r, struct moat_runner_queue *q)
{
	const struct moat_fault *fault = moat_relay_fault(&q->relay);

	if (!fault || q->said_broken)
		return;
	q->said_broken = true;
	/* Nothing the guest posts matters any more: do not even listen. */
	moat_loop_unwatch(r->loop, &q->kick);
	/* A backend that is sound still gives back what it holds. */
	if (q->relay.drv.fault.code)
		moat_loop_unwatch(r->loop, &q->call);
	if (q->broken)
		q->broken(q->arg, fault);
}

static unsigned int serve(struct moat_runner *r, struct moat_runner_queue *q)
{
	unsigned int done = moat_relay_complete(&r->relay, &q->relay, BUDGET);
	unsigned int taken = moat_relay_submit(&r->relay, &q->relay, BUDGET);

	/* The backend shares this eventfd, and can have made it block. */
	if (taken & MOAT_RELAY_KICK && moat_eventfd_signal(q->kick_fd))
		moat_fault_set(&q->relay.drv.fault, MOAT_FAULT_KICK_BLOCKS, 0,
			       0);
	if ((done | taken) & MOAT_RELAY_CALL)
		moat_eventfd_signal(q->call_fd);
	say_broken(r, q);
	if (q->relay.starved && !q->listed) {
		q->listed = true;
		q->next_starved = r->starved;
		r->starved = q;
	}
	return done | taken;
}

void moat_runner_wake_starved(struct moat_runner *r)
{
	struct moat_runner_queue *q = r->starved, *next;

	/* Those that still find no room come back in their next turn. */
	for (r->starved = NULL; q; q = next) {
		next = q->next_starved;
		q->listed = false;
		if (q->relay.starved)
			moat_runner_wake(r, q);
	}
}

/* Ask for notifications again; false if there is work by then. */
static bool goes_idle(struct moat_runner_queue *q)
{
	if (moat_relay_notify_on(&q->relay)) {
		moat_relay_notify_off(&q->relay);
		q->quiet = 0;
		return false;
	}
	q->active = false;
	return true;
}

/* One round over the active queues; false if none had work. */
static bool round_of(struct moat_runner *r)
{
	struct moat_runner_queue *q, *next;
	unsigned int all = 0;

	for (q = r->active; q; q = next) {
		unsigned int did = serve(r, q);

		/* One that breaks wakes others up, who come before it. */
		next = q->next_active;
		all |= did;
		if (did & (MOAT_RELAY_MOVED | MOAT_RELAY_MORE))
			q->quiet = 0;
		/* The last one goes idle with the runner: see go_idle(). */
		else if (++q->quiet > QUIET_ROUNDS && r->active->next_active &&
			 goes_idle(q))
			drop_active(r, q);
	}
	if (all & MOAT_RELAY_MOVED)
		moat_runner_wake_starved(r);
	return all & (MOAT_RELAY_MOVED | MOAT_RELAY_MORE);
}

static bool any_pending(const struct moat_runner *r)
{
	for (const struct moat_runner_queue *q = r->active; q;
	     q = q->next_active)
		if (moat_relay_pending(&q->relay))
			return true;
	return false;
}

/*
 * Look for work for as long as the window lasts; true if there is some.
 *
 * Whom we wait for may wait for this very processor: woken up here, on a
 * machine with fewer processors than there are of us, it would get it only once
 * we sleep. So each few looks are followed by an offer to let it run, which
 * costs little when nobody is there.
 */
static bool poll_for_work(const struct moat_runner *r)
{
	uint64_t end;

	if (!r->window.ns)
		return false;
	end = moat_now_ns() + r->window.ns;
	for (;;) {
		for (unsigned int i = 0; i < LOOKS; i++) {
			if (any_pending(r))
				return true;
			moat_cpu_relax();
		}
		if (moat_now_ns() >= end)
			return false;
		sched_yield();
	}
}

/* Queues that have work by then stay active. */
static void go_idle(struct moat_runner *r)
{
	struct moat_runner_queue **p = &r->active;

	while (*p) {
		if (goes_idle(*p))
			*p = (*p)->next_active;
		else
			p = &(*p)->next_active;
	}
	if (!r->active)
		moat_window_idle(&r->window);
}

void moat_runner_turn(struct moat_runner *r)
{
	if (!r->active)
		return;
	for (unsigned int i = 0; i < ROUNDS; i++)
		if (!round_of(r)) {
			if (!poll_for_work(r))
				go_idle(r);
			return;
		}
}
