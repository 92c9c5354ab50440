/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stddef.h>

#include "os/alarm.h"
#include "os/clock.h"

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
static void on_alarm(int sig, siginfo_t *info, void *context)
{
	struct moat_alarm *a = info->si_value.sival_ptr;
	int saved = errno;

	(void)sig;
	(void)context;
	if (info->si_code == SI_TIMER && !a->on) {
		set(a, 0);
		a->armed = 0;
	}
	errno = saved;
}

int moat_alarm_init(struct moat_alarm *a)
{
	/* Without SA_RESTART: ending the call is the purpose. */
	struct sigaction sa = {
		.sa_sigaction = on_alarm,
		.sa_flags = SA_SIGINFO,
	};
	struct sigevent ev = {
		.sigev_notify = SIGEV_SIGNAL,
		.sigev_signo = SIGALRM,
		.sigev_value.sival_ptr = a,
	};
	sigset_t set;

	a->on = a->armed = 0;
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	if (sigaction(SIGALRM, &sa, NULL) ||
	    sigprocmask(SIG_UNBLOCK, &set, NULL) ||
	    timer_create(CLOCK_MONOTONIC, &ev, &a->timer))
		return -errno;
	return 0;
}
