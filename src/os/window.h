/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long to look for work before going to sleep.
 *
 * A wake-up costs microseconds, looking costs a processor. So the window grows
 * while work comes soon after the last, up to a limit, and shrinks to nothing
 * while it does not: an idle process looks for nothing at all.
 */
#ifndef MOAT_OS_WINDOW_H
#define MOAT_OS_WINDOW_H

#include <stdint.h>

#include "os/clock.h"

#define MOAT_WINDOW_MIN_NS 4000u

struct moat_window {
	uint64_t max_ns; /* 0: never look */
	uint64_t ns;
	uint64_t idle_since_ns;
};

static inline void moat_window_init(struct moat_window *w, uint32_t max_us)
{
	*w = (struct moat_window){ .max_ns = (uint64_t)max_us * 1000,
				   .idle_since_ns = moat_now_ns() };
}

/** moat_window_idle() - going to sleep */
static inline void moat_window_idle(struct moat_window *w)
{
	w->idle_since_ns = moat_now_ns();
}

/** moat_window_woken() - work came: would looking longer have paid? */
static inline void moat_window_woken(struct moat_window *w)
{
	if (!w->max_ns)
		return;
	if (moat_now_ns() - w->idle_since_ns > w->max_ns) {
		w->ns /= 2;
		if (w->ns < MOAT_WINDOW_MIN_NS)
			w->ns = 0;
	} else {
		w->ns = w->ns ? w->ns * 2 : MOAT_WINDOW_MIN_NS;
		if (w->ns > w->max_ns)
			w->ns = w->max_ns;
	}
}

#endif
