/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs the data plane: from eventfds to relay and back to eventfds.
 *
 *     idle --kick or call--> active --no work for a while--> idle
 *
 * An idle queue asks both sides for notifications and costs nothing. An active
 * one asks for none and is served in turn with the other active ones, each
 * turn within a budget. When no active queue has work the runner looks again
 * for a window of up to poll-us before it goes idle; the window grows while
 * that pays off and shrinks while it does not. Where others have work, a queue
 * that has had none for many rounds goes idle by itself: what a round costs
 * depends on the queues in use, not on those that there are.
 */
#ifndef MOAT_GUARD_RUNNER_H
#define MOAT_GUARD_RUNNER_H

#include <stdbool.h>
#include <stdint.h>

#include "os/loop.h"
#include "os/window.h"
#include "relay/relay.h"

struct moat_runner;

/** struct moat_runner_queue - a queue and its four notifications */
struct moat_runner_queue {
	struct moat_relay_queue relay;
	struct moat_source kick; /* from the guest; fd -1: it polls us */
	struct moat_source call; /* from the backend; fd -1: there is none */
	int kick_fd;		 /* to the backend */
	int call_fd;		 /* to the guest; -1: it does not want any */
	/* The queue broke; called once. */
	void (*broken)(void *arg, const struct moat_fault *fault);
	void *arg;
	/* private */
	struct moat_runner *runner;
	struct moat_runner_queue *next_active;
	struct moat_runner_queue *next_starved;
	uint32_t quiet; /* rounds without work */
	bool active;
	bool listed; /* in the list of starved ones */
	bool said_broken;
};

struct moat_runner {
	struct moat_relay relay;
	struct moat_loop *loop;
	/* private */
	struct moat_runner_queue *active;
	struct moat_runner_queue *starved; /* and some that were */
	struct moat_window window;
};

/** moat_runner_init() - @runner->relay.dma is set up by the caller */
void moat_runner_init(struct moat_runner *runner, struct moat_loop *loop,
		      uint32_t poll_us);

/**
 * moat_runner_attach() - start serving @q
 * @q: relay, fds and callback set up; stays in place until detached
 *
 * Return: 0, or a negative errno if an fd can not be waited on.
 */
int moat_runner_attach(struct moat_runner *runner, struct moat_runner_queue *q);

/** moat_runner_detach() - stop serving; safe if it was not attached */
void moat_runner_detach(struct moat_runner *runner,
			struct moat_runner_queue *q);

/** moat_runner_wake() - look at @q at the next turn */
void moat_runner_wake(struct moat_runner *runner, struct moat_runner_queue *q);

/**
 * moat_runner_wake_starved() - room has come back to the pool
 *
 * Queues that wait for some can try again. The runner calls it for what it
 * moves itself; whoever stops a queue calls it too, for a queue that waits has
 * perhaps nothing under way that would wake it.
 */
void moat_runner_wake_starved(struct moat_runner *runner);

/** moat_runner_busy() - does the runner want its next turn without waiting? */
static inline bool moat_runner_busy(const struct moat_runner *runner)
{
	return runner->active != NULL;
}

/** moat_runner_turn() - serve the active queues for a bounded while */
void moat_runner_turn(struct moat_runner *runner);

#endif
