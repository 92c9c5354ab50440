/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A way out of a system call that a peer made block.
 *
 * O_NONBLOCK belongs to the open file, which everybody shares who holds it: a
 * hostile peer can take it off an eventfd and fill the counter, and our next
 * write sleeps for ever; so does close() of a socket that was told to linger.
 * So while there is work (os/loop.h: always but when it sleeps), a signal comes
 * a few times a second; a call that sleeps ends with EINTR, which a call that
 * can not sleep never does. An idle process gets no signal.
 */
#ifndef MOAT_OS_ALARM_H
#define MOAT_OS_ALARM_H

#include <signal.h>
#include <time.h>

#define MOAT_ALARM_MS 250u

struct moat_alarm {
	timer_t timer;
	volatile sig_atomic_t on;    /* there is work */
	volatile sig_atomic_t armed; /* the timer runs */
};

/**
 * moat_alarm_init() - @a stays in place until the process ends
 *
 * Return: 0 or a negative errno.
 */
int moat_alarm_init(struct moat_alarm *a);

/** moat_alarm_fini() - no signal comes any more */
void moat_alarm_fini(struct moat_alarm *a);

/* private */
void moat_alarm_arm(struct moat_alarm *a);

/** moat_alarm_on() - from here on a call may sleep; NULL is fine */
static inline void moat_alarm_on(struct moat_alarm *a)
{
	if (!a)
		return;
	a->on = 1;
	if (!a->armed)
		moat_alarm_arm(a);
}

/** moat_alarm_off() - nothing to do; the timer runs out by itself */
static inline void moat_alarm_off(struct moat_alarm *a)
{
	if (a)
		a->on = 0;
}

#endif
