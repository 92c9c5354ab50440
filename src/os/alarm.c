/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stddef.h>

#include "os/alarm.h"
#include "os/clock.h"

/*
 * For the handler, which takes nothing from the signal: any process of our user
 * (a backend, perhaps) can queue one that says what it likes, SI_TIMER and a
 * pointer included.
 */
static struct moat_alarm *alarm_of_process;

static void set(struct moat_alarm *a, long ns)
{
	struct itimerspec it = {
		.it_interval = { .tv_nsec = ns },
		.it_value = { .tv_nsec = ns },
	};

	timer_settime(a->timer, 0, &it, NULL);
}

void moat_alarm_arm(struct moat_alarm *a)
{
	a->armed = 1;
	set(a, (long)MOAT_ALARM_MS * (long)MOAT_NS_PER_MS);
}

void moat_alarm_fini(struct moat_alarm *a)
{
	set(a, 0);
}

/* That it came is what counts; once there is no work it stops coming. */
static void on_alarm(int sig)
{
	struct moat_alarm *a = alarm_of_process;
	int saved = errno;

	(void)sig;
	if (!a->on) {
		set(a, 0);
		a->armed = 0;
	}
	errno = saved;
}

int moat_alarm_init(struct moat_alarm *a)
{
	/* Without SA_RESTART: ending the call is the purpose. */
	struct sigaction sa = {
		.sa_handler = on_alarm,
	};
	struct sigevent ev = {
		.sigev_notify = SIGEV_SIGNAL,
		.sigev_signo = SIGALRM,
	};
	sigset_t set;

	alarm_of_process = a;
	a->on = a->armed = 0;
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	if (sigaction(SIGALRM, &sa, NULL) ||
	    sigprocmask(SIG_UNBLOCK, &set, NULL) ||
	    timer_create(CLOCK_MONOTONIC, &ev, &a->timer))
		return -errno;
	return 0;
}
