/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What src/os/wait.c promises, and who relies on it: a signal that comes all
 * the time (os/alarm.h is one) neither shortens a wait nor hides what is there.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "os/clock.h"
#include "os/fd.h"
#include "os/starter.h"
#include "os/wait.h"

#define MS(x) ((x) * (uint64_t)MOAT_NS_PER_MS)

static volatile sig_atomic_t came;
static timer_t timer;

static void on_signal(int sig)
{
	(void)sig;
	came = came + 1;
}

static void every(long ns)
{
	struct itimerspec it = { { 0, ns }, { 0, ns } };

	assert_int_equal(timer_settime(timer, 0, &it, NULL), 0);
}

/* Signals without SA_RESTART, at this thread, 2000 times a second. */
static int rain(void **state)
{
	struct sigaction sa = { .sa_handler = on_signal };
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL,
			       .sigev_signo = SIGALRM };

	(void)state;
	came = 0;
	if (sigaction(SIGALRM, &sa, NULL) ||
	    timer_create(CLOCK_MONOTONIC, &ev, &timer))
		return -1;
	every(500000);
	return 0;
}

static int dry(void **state)
{
	(void)state;
	return timer_delete(timer);
}

static void a_wait_takes_its_time(void **state)
{
	uint64_t since = moat_now_ns();
	int fds[2];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(moat_wait_fd(fds[0], POLLIN, 100), 0);
	assert_true(moat_now_ns() - since >= MS(100));
	assert_true(came > 10);
	assert_int_equal(moat_wait_fd(-1, POLLIN, 20), 0);
	close(fds[0]);
	close(fds[1]);
}

static void what_is_there_is_seen(void **state)
{
	struct pollfd p[2];
	int fds[2];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	every(20000);
	for (int i = 0; i < 20000; i++)
		assert_int_equal(moat_wait_fd(fds[1], POLLOUT, 0), POLLOUT);
	assert_true(came > 100);
	p[0] = (struct pollfd){ .fd = fds[0], .events = POLLIN };
	p[1] = (struct pollfd){ .fd = fds[1], .events = POLLOUT };
	assert_int_equal(moat_wait(p, 2, 1000), 1);
	assert_int_equal(p[0].revents, 0);
	assert_int_equal(p[1].revents, POLLOUT);
	close(fds[1]);
	assert_int_equal(moat_wait_fd(fds[0], POLLIN, 1000), POLLHUP);
	close(fds[0]);
	/* It is neither ready nor waited for. */
	assert_int_equal(moat_wait_fd(fds[0], POLLIN, 60000), POLLNVAL);
}

static void *write_later(void *fd)
{
	struct timespec ts = { .tv_nsec = 50 * 1000 * 1000 };
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	nanosleep(&ts, NULL);
	assert_int_equal(write(*(int *)fd, "", 1), 1);
	return NULL;
}

static void what_comes_ends_the_wait(void **state)
{
	uint64_t since = moat_now_ns();
	pthread_t t;
	int fds[2];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(pthread_create(&t, NULL, write_later, &fds[1]), 0);
	assert_int_equal(moat_wait_fd(fds[0], POLLIN, 60000), POLLIN);
	assert_true(moat_now_ns() - since < MS(50000));
	pthread_join(t, NULL);
	close(fds[0]);
	close(fds[1]);
}

/* Can not be asked to end. */
static char sh[] = "sh", c[] = "-c";
static char script[] = "trap '' TERM; exec sleep 600 # {socket}";
static char *const deaf[] = { sh, c, script, NULL };
static char *const tame[] = { sh, c, script + sizeof("trap '' TERM;") - 1,
			      NULL };

static void a_child_that_does_not_obey_is_killed(void **state)
{
	struct moat_child child = { .pidfd = -1, .fd = -1 };
	struct timespec ts = { .tv_nsec = 300 * 1000 * 1000 };
	uint64_t since;

	(void)state;
	assert_int_equal(moat_child_start(&child, deaf), 0);
	while (nanosleep(&ts, &ts))
		;
	since = moat_now_ns();
	assert_int_equal(moat_child_stop(&child, 200), 128 + SIGKILL);
	assert_true(moat_now_ns() - since >= MS(200));
}

static void a_starter_has_its_time_to_end_one_and_start_another(void **state)
{
	struct moat_child child = { .pidfd = -1, .fd = -1 };
	struct moat_starter s;
	int pidfd;

	(void)state;
	assert_int_equal(moat_starter_init(&s, deaf), 0);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(moat_starter_start(&s, &child), 0);
		assert_int_equal(moat_wait_fd(child.pidfd, POLLIN, 100), 0);
	}
	/* Ours, for that one forgets its own. */
	pidfd = dup(child.pidfd);
	moat_starter_end(&s, &child, 5000);
	assert_true(moat_wait_fd(pidfd, POLLIN, 0) & POLLIN);
	close(pidfd);
	assert_true(came > 100);
}

/* What was started too late for who had asked is not taken for the next. */
static void an_answer_that_comes_too_late_is_nobodys(void **state)
{
	struct moat_child child = { .pidfd = -1, .fd = -1 };
	struct moat_starter s;

	(void)state;
	assert_int_equal(moat_starter_init(&s, tame), 0);
	assert_int_equal(moat_starter_start(&s, &child), 0);
	assert_int_equal(kill(s.pid, SIGSTOP), 0);
	s.answer_ms = 100;
	assert_int_equal(moat_starter_start(&s, &child), -ETIMEDOUT);
	s.answer_ms = 60000;
	assert_int_equal(child.pidfd, -1);
	assert_int_equal(kill(s.pid, SIGCONT), 0);
	assert_int_equal(moat_starter_start(&s, &child), 0);
	/* That other one would be ended now. */
	assert_int_equal(moat_wait_fd(child.pidfd, POLLIN, 1000), 0);
	moat_starter_end(&s, &child, 5000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_wait_takes_its_time, rain,
						dry),
		cmocka_unit_test_setup_teardown(what_is_there_is_seen, rain,
						dry),
		cmocka_unit_test_setup_teardown(what_comes_ends_the_wait, rain,
						dry),
		cmocka_unit_test_setup_teardown(
			a_child_that_does_not_obey_is_killed, rain, dry),
		cmocka_unit_test_setup_teardown(
			a_starter_has_its_time_to_end_one_and_start_another,
			rain, dry),
		cmocka_unit_test_setup_teardown(
			an_answer_that_comes_too_late_is_nobodys, rain, dry),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
