/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "guard/backend.h"
#include "os/clock.h"
#include "os/fd.h"
#include "os/sock.h"
#include "os/wait.h"

#define START_MS 10000u	 /* a backend may take to listen */
#define LOOK_MS 100u	 /* is it still there? */
#define AGAIN_MS 2000u	 /* and to listen again */
#define GRACE_MS 3000u	 /* and to end */
#define STARTER_MS 4000u /* likewise, and the starter after it */
#define ENDS_MS 200u	 /* it may end when its VMM has left */

#define MINUTE_NS (60u * (uint64_t)MOAT_NS_PER_SEC)
/* Before one that follows others which have finished nothing. */
#define PAUSE_MS 50u
#define PAUSE_MAX_MS 1600u

/* ---- the command ---- */

static void on_child(void *arg, uint32_t events)
{
	struct moat_backend *b = arg;

	(void)events;
	b->ended = true;
	moat_loop_unwatch(b->loop, &b->child_src);
}

static int start(struct moat_backend *b)
{
	int ret;

	moat_loop_unwatch(b->loop, &b->child_src);
	ret = b->starter.pid ? moat_starter_start(&b->starter, &b->child)
			     : moat_child_start(&b->child, b->config->exec);
	if (ret) {
		log_err(b->log, "can not start the backend '%s': %s",
			b->config->exec[0], strerror(-ret));
		return ret;
	}
	b->ended = false;
	b->child_src.fd = b->child.pidfd;
	return moat_loop_watch(b->loop, &b->child_src, false);
}

int moat_backend_start(struct moat_backend *b)
{
	int ret = 0;

	if (!b->config->exec)
		return 0;
	if (b->config->restarts)
		ret = moat_starter_init(&b->starter, b->config->exec);
	if (!ret)
		return start(b);
	log_err(b->log, "can not make a process that starts the backend: %s",
		strerror(-ret));
	return ret;
}

bool moat_backend_one_vmm(const struct moat_backend *b)
{
	return b->config->exec && !b->child.has_path;
}

bool moat_backend_done(const struct moat_backend *b)
{
	if (!b->config->exec || b->config->restarts)
		return false;
	/* It sees its VMM leave when we do, and may take a moment to end. */
	return moat_wait_fd(b->child.pidfd, POLLIN, ENDS_MS);
}

void moat_backend_end(struct moat_backend *b)
{
	moat_loop_unwatch(b->loop, &b->child_src);
	if (b->starter.pid)
		moat_starter_end(&b->starter, &b->child, STARTER_MS);
	else
		moat_child_stop(&b->child, GRACE_MS);
}

/* ---- connections ---- */

/* Whom nobody waits for is waited for no longer. */
static bool hung_up(int vmm_fd)
{
	return moat_wait_fd(vmm_fd, POLLRDHUP, 0) & (POLLRDHUP | POLLHUP);
}

static bool worth_trying(int fd)
{
	return fd == -ENOENT || fd == -ECONNREFUSED || fd == -EAGAIN;
}

static uint32_t ms_left(uint64_t end_ns, uint32_t most)
{
	uint64_t now = moat_now_ns();
	uint64_t ms = now < end_ns ? (end_ns - now) / MOAT_NS_PER_MS + 1 : 0;

	return ms < most ? (uint32_t)ms : most;
}

/* -ECHILD if it was a child that has ended, and nobody listens in its place. */
static int connect_until(struct moat_backend *b, const char *path,
			 uint64_t end_ns, int vmm_fd)
{
	int fd;

	do {
		bool ended = moat_wait_fd(b->child.pidfd, POLLIN, 0);

		fd = moat_sock_connect_wait(
			path, ended ? 0 : ms_left(end_ns, LOOK_MS),
			b->abort_fd);
		if (ended && (fd == -ENOENT || fd == -ECONNREFUSED))
			return -ECHILD;
		if (fd < 0 && hung_up(vmm_fd))
			return -ECONNABORTED;
	} while (worth_trying(fd) && ms_left(end_ns, 1));
	return fd;
}

static const char *path_of(const struct moat_backend *b)
{
	return b->config->exec ? b->child.path : b->config->socket;
}

static int connect_to(struct moat_backend *b, uint32_t ms, int vmm_fd)
{
	uint64_t end_ns = moat_now_ns() + ms * (uint64_t)MOAT_NS_PER_MS;

	if (moat_backend_one_vmm(b))
		return b->child.fd >= 0 ? moat_fd_take(&b->child.fd) : -EPIPE;
	return connect_until(b, path_of(b), end_ns, vmm_fd);
}

static void say_unreachable(const struct moat_backend *b, int err)
{
	char *const *exec = b->config->exec;

	if (exec && err == -ECHILD)
		log_err(b->log,
			"the backend '%s' has ended and listens nowhere; see "
			"its own messages, and its options",
			exec[0]);
	else if (err != -EINTR && err != -ECONNABORTED)
		log_err(b->log,
			"can not connect to the backend at %s: %s; is it "
			"running?",
			path_of(b), strerror(-err));
}

/* ---- others ---- */

static uint64_t price_ns(const struct moat_backend *b)
{
	return MINUTE_NS / b->config->restarts;
}

static void save(struct moat_backend *b)
{
	uint64_t now = moat_now_ns();

	b->saved_ns += now - b->saved_at_ns;
	b->saved_at_ns = now;
	if (b->saved_ns > MINUTE_NS)
		b->saved_ns = MINUTE_NS;
}

static bool left(void *arg)
{
	struct moat_backend *b = arg;

	save(b);
	return b->saved_ns >= price_ns(b);
}

/* Wait; 0, or why not to go on. */
static int pause_ms(const struct moat_backend *b, uint32_t ms, int vmm_fd)
{
	struct pollfd p[] = {
		{ .fd = b->abort_fd, .events = POLLIN },
		{ .fd = vmm_fd, .events = POLLRDHUP },
	};

	if (moat_wait(p, 2, ms) <= 0)
		return 0;
	if (p[0].revents)
		return -EINTR;
	return p[1].revents & (POLLRDHUP | POLLHUP) ? -ECONNABORTED : 0;
}

static uint32_t pause_before(const struct moat_backend *b)
{
	uint32_t ms = PAUSE_MS;

	/* The first one may have had no time to do anything. */
	if (b->idle < 2)
		return 0;
	for (uint32_t i = 2; i < b->idle && ms < PAUSE_MAX_MS; i++)
		ms *= 2;
	return ms;
}

static int another(void *arg, bool idle, uint64_t end_ns, int vmm_fd)
{
	struct moat_backend *b = arg;
	bool exec = b->config->exec;
	int fd;

	b->idle = idle ? b->idle + 1 : 0;
	do {
		fd = pause_ms(b, ms_left(end_ns, pause_before(b)), vmm_fd);
		if (fd)
			return fd;
		if (exec) {
			b->saved_ns -= price_ns(b);
			fd = start(b);
			if (fd)
				return fd;
		}
		fd = connect_to(b, ms_left(end_ns, UINT32_MAX), vmm_fd);
		if (!exec && fd >= 0)
			b->saved_ns -= price_ns(b);
		b->idle++;
	} while (fd == -ECHILD && left(b) && ms_left(end_ns, 1));
	b->idle--;
	if (fd < 0)
		say_unreachable(b, fd);
	return fd;
}

int moat_backend_connect(struct moat_backend *b, bool again)
{
	uint32_t ms = b->config->exec	    ? START_MS
		      : !again		    ? 0
		      : b->config->restarts ? b->config->restart_ms
					    : AGAIN_MS;
	int fd;

	/* One that ends with its VMM may take a moment: see above. */
	if (again && b->config->restarts)
		moat_wait_fd(b->child.pidfd, POLLIN, ENDS_MS);
	fd = connect_to(b, ms, -1);

	/* One that ended with its VMM; for the next VMM there is another. */
	if (fd == -ECHILD && again && b->config->restarts && left(b))
		return another(b, false,
			       moat_now_ns() +
				       START_MS * (uint64_t)MOAT_NS_PER_MS,
			       -1);
	if (fd < 0)
		say_unreachable(b, fd);
	return fd;
}

void moat_backend_init(struct moat_backend *b,
		       const struct moat_backend_config *config,
		       struct moat_log *log, struct moat_loop *loop,
		       int abort_fd)
{
	*b = (struct moat_backend){
		.config = config,
		.log = log,
		.loop = loop,
		.abort_fd = abort_fd,
		.child = { .pidfd = -1, .fd = -1 },
		.starter = { .pidfd = -1, .fd = -1 },
		.ops = { b, left, another, config->restart_ms },
		.saved_ns = MINUTE_NS,
		.saved_at_ns = moat_now_ns(),
	};
	b->child_src = (struct moat_source){ -1, on_child, b };
}
