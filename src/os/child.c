/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/child.h"
#include "os/fd.h"
#include "os/sock.h"
#include "os/wait.h"

/* @word with the first @what replaced by @with, or NULL if it has none. */
static char *substitute(const char *word, const char *what, const char *with)
{
	const char *at = strstr(word, what);
	char *out;

	if (!at)
		return NULL;
	if (asprintf(&out, "%.*s%s%s", (int)(at - word), word, with,
		     at + strlen(what)) < 0)
		abort();
	return out;
}

static bool mentions(char *const argv[], const char *what)
{
	for (; *argv; argv++)
		if (strstr(*argv, what))
			return true;
	return false;
}

static char **expand(char *const argv[], const char *what, const char *with)
{
	size_t n = 0;
	char **out;

	while (argv[n])
		n++;
	out = calloc(n + 2, sizeof(*out));
	if (!out)
		return NULL;
	for (size_t i = 0; i < n; i++) {
		char *s = substitute(argv[i], what, with);

		out[i] = s ? s : argv[i];
	}
	/* No place was named for it: the convention's option. */
	if (!mentions(argv, what) && asprintf(&out[n], "--fd=%s", with) < 0)
		abort();
	return out;
}

/* Runs in the child; @keep is the one fd that it inherits, or -1. */
static void run(char *const argv[], const char *what, const char *with,
		int keep, pid_t parent)
{
	char **args = expand(argv, what, with);
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent || !args)
		_exit(127);
	/*
	 * Whoever started us may have left descriptors open, even of guest
	 * RAM: the backend gets its socket and standard streams.
	 */
	if (close_range(3, ~0u, CLOSE_RANGE_CLOEXEC))
		_exit(127);
	if (keep >= 0) {
		/* The child may expect a plain blocking socket. */
		fcntl(keep, F_SETFD, 0);
		fcntl(keep, F_SETFL, fcntl(keep, F_GETFL) & ~O_NONBLOCK);
	}
	execvp(args[0], args);
	dprintf(STDERR_FILENO, "moat guard: error: can not run '%s': %s\n",
		args[0], strerror(errno));
	_exit(127);
}

static int make_path(struct moat_child *c)
{
	const char *base = getenv("XDG_RUNTIME_DIR");

	if (!base || strlen(base) > 32)
		base = "/tmp";
	snprintf(c->dir, sizeof(c->dir), "%s/moat-XXXXXX", base);
	if (!mkdtemp(c->dir)) {
		c->dir[0] = 0;
		return -errno;
	}
	snprintf(c->path, sizeof(c->path), "%s/backend.sock", c->dir);
	c->has_path = true;
	return 0;
}

static void forget(struct moat_child *c)
{
	char beside[sizeof(c->path) + 4];

	if (c->dir[0]) {
		unlink(c->path);
		/* virtiofsd's lock file, which it leaves there. */
		snprintf(beside, sizeof(beside), "%s.pid", c->path);
		unlink(beside);
		rmdir(c->dir);
	}
	moat_fd_close(&c->fd);
	moat_fd_close(&c->pidfd);
	*c = (struct moat_child){ .pidfd = -1, .fd = -1 };
}

int moat_child_start(struct moat_child *c, char *const argv[])
{
	bool by_path = mentions(argv, "{socket}");
	bool by_listen = mentions(argv, "{listen-fd}");
	const char *what = by_path     ? "{socket}"
			   : by_listen ? "{listen-fd}"
				       : "{fd}";
	int pair[2] = { -1, -1 }, ret = 0;
	pid_t parent = getpid();
	char with[96];

	*c = (struct moat_child){ .pidfd = -1, .fd = -1 };
	if (by_path || by_listen)
		ret = make_path(c);
	if (!ret && by_listen) {
		pair[1] = moat_sock_listen(c->path);
		ret = pair[1] < 0 ? pair[1] : 0;
	} else if (!ret && !by_path) {
		ret = moat_sock_pair(pair);
		c->fd = pair[0];
	}
	if (!ret) {
		if (by_path)
			snprintf(with, sizeof(with), "%s", c->path);
		else
			snprintf(with, sizeof(with), "%d", pair[1]);
		c->pid = fork();
		if (!c->pid)
			run(argv, what, with, pair[1], parent);
		if (c->pid < 0)
			ret = -errno;
	}
	moat_fd_close(&pair[1]);
	if (!ret) {
		c->pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0);
		if (c->pidfd >= 0)
			return 0;
		ret = -errno;
		kill(c->pid, SIGKILL);
		waitpid(c->pid, NULL, 0);
	}
	forget(c);
	return ret;
}

/* Through the pidfd: it can be nobody else, and a sandbox can allow it. */
static void send_signal(const struct moat_child *c, int sig)
{
	syscall(SYS_pidfd_send_signal, c->pidfd, sig, NULL, 0);
}

int moat_child_stop(struct moat_child *c, unsigned int grace_ms)
{
	int status, ret = -1;

	if (c->pid <= 0)
		return -1;
	/* Already gone: its own exit status counts, not our signal. */
	if (!moat_wait_fd(c->pidfd, POLLIN, 0)) {
		send_signal(c, SIGTERM);
		if (!moat_wait_fd(c->pidfd, POLLIN, grace_ms)) {
			send_signal(c, SIGKILL);
			moat_wait_fd(c->pidfd, POLLIN, grace_ms);
		}
	}
	/* Not for ever: it may be another user's by now, and not obey us. */
	if (waitpid(c->pid, &status, WNOHANG) == c->pid)
		ret = WIFEXITED(status) ? WEXITSTATUS(status)
					: 128 + WTERMSIG(status);
	forget(c);
	return ret;
}
