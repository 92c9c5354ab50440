/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/udmabuf.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guard/service.h"
#include "os/alarm.h"
#include "os/cutoff.h"
#include "os/fd.h"
#include "os/sandbox.h"
#include "os/sock.h"
#include "os/wait.h"

#define FDS_WANTED (5u * MOAT_VU_VRINGS_MAX + 256u)

struct service {
	const struct moat_service_config *config;
	struct moat_log *log;
	struct moat_loop loop;
	struct moat_session *session;
	struct moat_session_config session_config;
	struct moat_alarm alarm;
	struct moat_backend backend;
	struct moat_source listen_src, signal_src;
	int listen_fd;
	bool stopping;	 /* a signal asked for it */
	bool vmm_served; /* at least one */
	int vmm_fd;	 /* just accepted, or given; -1: none */
};

/*
 * All that the guard needs from here on: its sockets, eventfds, mappings of
 * guest RAM, a pool for each session, and the end of its child.
 */
/* One a line would be a page. */
/* clang-format off */
static const struct moat_syscall syscalls[] = {
	{ "read" }, { "write" }, { "recvmsg" }, { "sendmsg" },
	{ "poll" }, { "ppoll" }, { "epoll_wait" }, { "epoll_pwait" },
	{ "epoll_ctl" }, { "eventfd2" }, { "close" }, { "fcntl" },
	{ "accept4" }, { "connect" }, { "socket", 1, AF_UNIX },
	{ "socketpair", 1, AF_UNIX }, { "memfd_create" }, { "ftruncate" },
	{ "fstat" }, { "newfstatat" }, { "fstatfs" }, { "munmap" },
	{ "madvise" },
	{ "mremap" }, { "brk" }, { "futex" }, { "clock_gettime" },
	{ "getrandom" }, { "rt_sigprocmask" }, { "rt_sigreturn" },
	{ "timer_settime" }, { "restart_syscall" }, { "sched_yield" },
	{ "getpid" }, { "gettid" }, { "pidfd_send_signal" }, { "wait4" },
	{ "unlink" }, { "unlinkat" }, { "rmdir" },
	{ "ioctl", 2, UDMABUF_CREATE }, { "exit" }, { "exit_group" },
	{ NULL },
};
/* clang-format on */

static void on_signal(void *arg, uint32_t events)
{
	struct service *v = arg;

	(void)events;
	v->stopping = true;
	/* It stays readable: that also ends every wait for a peer. */
	moat_loop_unwatch(&v->loop, &v->signal_src);
}

static void on_listen(void *arg, uint32_t events)
{
	struct service *v = arg;
	int fd = moat_sock_accept(v->listen_fd);

	(void)events;
	if (fd < 0)
		return;
	v->vmm_fd = fd;
	moat_loop_unwatch(&v->loop, &v->listen_src);
}

static int watch_signals(struct service *v)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	v->signal_src.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (v->signal_src.fd < 0)
		return -errno;
	v->session_config.abort_fd = v->signal_src.fd;
	return moat_loop_watch(&v->loop, &v->signal_src, false);
}

/* Before the sandbox: after it nothing can be opened. */
static void open_udmabuf(struct service *v)
{
	v->session_config.udmabuf_fd = -1;
	if (v->session_config.share != MOAT_SHARE_BOUNCE)
		v->session_config.udmabuf_fd =
			open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
}

/*
 * Each queue has up to five fds; the usual soft limit of 1024 is less than the
 * queues that a device can have. Not before the child, which may rely on it.
 */
static void raise_fd_limit(void)
{
	struct rlimit l;

	if (getrlimit(RLIMIT_NOFILE, &l) || l.rlim_cur >= FDS_WANTED)
		return;
	l.rlim_cur = l.rlim_max < FDS_WANTED ? l.rlim_max : FDS_WANTED;
	setrlimit(RLIMIT_NOFILE, &l);
}

static int listen_for_vmm(struct service *v)
{
	const struct moat_service_config *c = v->config;

	if (c->fd >= 0) {
		v->vmm_fd = c->fd;
		return moat_fd_nonblock(c->fd);
	}
	v->listen_fd = moat_sock_listen(c->socket_path);
	if (v->listen_fd < 0) {
		log_err(v->log, "can not listen on %s: %s%s", c->socket_path,
			strerror(-v->listen_fd),
			v->listen_fd == -EADDRINUSE
				? "; another process does, or it is no socket"
				: "");
		return v->listen_fd;
	}
	return 0;
}

static int enter_sandbox(struct service *v)
{
	int ret;

	if (!v->config->seccomp) {
		log_warn(v->log, "runs without its sandbox (--sandbox=none)");
		return 0;
	}
	ret = moat_sandbox_privileges(
		v->config->backend.exec ? UINT64_C(1) << CAP_KILL : 0);
	if (!ret)
		ret = moat_sandbox_syscalls(syscalls);
	if (ret)
		log_err(v->log, "can not enter the sandbox: %s",
			strerror(-ret));
	return ret;
}

/* Wait for a VMM, then serve it, until the session ends or we have to. */
static void run_session(struct service *v)
{
	struct moat_session *s = v->session;

	if (v->vmm_fd < 0) {
		v->listen_src.fd = v->listen_fd;
		moat_loop_watch(&v->loop, &v->listen_src, false);
	}
	while (!v->stopping && (s->end == MOAT_SESSION_RUNNING ||
				!moat_restart(s) || !moat_restart_orphan(s))) {
		int wait = moat_session_step(s);

		if (v->vmm_fd >= 0) {
			log_info(v->log, "a VMM has connected");
			v->vmm_served = true;
			if (moat_session_serve(s, moat_fd_take(&v->vmm_fd)))
				moat_session_finish(s,
						    MOAT_SESSION_VMM_REFUSED);
		}
		moat_loop_wait(&v->loop, wait);
		/* A child that ends closes its socket: that says it all. */
		if (v->backend.ended && s->end == MOAT_SESSION_RUNNING &&
		    s->server.conn.fd < 0) {
			log_err(v->log, "the backend has ended");
			s->end = MOAT_SESSION_BACKEND_GONE;
		}
	}
	moat_loop_unwatch(&v->loop, &v->listen_src);
	/* It may be what made a call of the backend fail. */
	if (moat_wait_fd(v->session_config.abort_fd, POLLIN, 0))
		v->stopping = true;
}

/* After a session: 0 to go on, 1 to end well, a negative errno to end badly. */
static int judge(struct service *v)
{
	struct moat_session *s = v->session;
	/* A backend that was handed its one connection can have no other. */
	bool once = v->config->once || v->config->fd >= 0 ||
		    moat_backend_one_vmm(&v->backend);

	if (v->stopping)
		return 1;
	/* That it went on for a while does not mend it. */
	if (s->orphan)
		return -EPIPE;
	switch (s->end) {
	case MOAT_SESSION_VMM_LEFT:
		log_info(v->log,
			 "the VMM has left; %llu bytes bounced, %llu bytes by "
			 "reference; buffers took at most %llu of %llu KiB of "
			 "the pool",
			 (unsigned long long)s->bytes_bounced,
			 (unsigned long long)s->bytes_shared,
			 (unsigned long long)s->pool.stats.high_water *
				 (MOAT_SLOT_SIZE / 1024),
			 (unsigned long long)s->config->pool_size / 1024);
		return once ? 1 : 0;
	case MOAT_SESSION_VMM_REFUSED:
		return once ? -EPROTO : 0;
	case MOAT_SESSION_BACKEND_BROKEN:
		return once || v->config->backend.exec ? -EPROTO : 0;
	default:
		return -EPIPE;
	}
}

/* One turn: backend, VMM, session, end. As judge(). */
static int turn(struct service *v)
{
	struct moat_session *s = v->session;
	bool first = !v->vmm_served;
	int ret, fd;

	if (v->vmm_served && moat_backend_done(&v->backend)) {
		log_info(v->log, "the backend has ended with its VMM");
		return 1;
	}
	fd = moat_backend_connect(&v->backend, v->vmm_served);
	if (v->stopping || fd == -EINTR)
		return 1;
	if (fd < 0)
		return fd;
	ret = moat_session_open(s, &v->session_config, &v->loop, v->log, fd);
	if (!ret && v->listen_fd < 0 && v->config->fd < 0) {
		ret = listen_for_vmm(v);
		if (!ret)
			ret = enter_sandbox(v);
		if (!ret)
			log_info(v->log, "listening on %s; pool %llu KiB",
				 v->config->socket_path,
				 (unsigned long long)
						 v->session_config.pool_size /
					 1024);
	} else if (!ret && first && v->config->fd >= 0) {
		ret = listen_for_vmm(v);
		if (!ret)
			ret = enter_sandbox(v);
	}
	if (!ret) {
		run_session(v);
		if (v->stopping)
			moat_session_hurry(s);
		moat_session_stop(s);
		ret = judge(v);
	}
	moat_session_close(s);
	return ret == -EINTR ? 1 : ret;
}

static void clean_up(struct service *v)
{
	if (v->listen_fd >= 0)
		unlink(v->config->socket_path);
	moat_fd_close(&v->listen_fd);
	moat_fd_close(&v->vmm_fd);
	moat_backend_end(&v->backend);
	moat_fd_close(&v->session_config.udmabuf_fd);
	moat_loop_fini(&v->loop);
	free(v->session);
}

int moat_service_run(const struct moat_service_config *config,
		     struct moat_log *log)
{
	struct service v = {
		.config = config,
		.log = log,
		.session = calloc(1, sizeof(*v.session)),
		.session_config = config->session,
		.listen_fd = -1,
		.vmm_fd = -1,
	};
	int ret;

	v.listen_src = (struct moat_source){ -1, on_listen, &v };
	v.signal_src = (struct moat_source){ -1, on_signal, &v };
	if (!v.session)
		return 1;
	/* First of all: a backend of our user may be waiting for us. */
	ret = config->seccomp ? moat_sandbox_hide() : 0;
	if (!ret)
		ret = moat_loop_init(&v.loop);
	if (!ret)
		ret = watch_signals(&v);
	moat_backend_init(&v.backend, &config->backend, log, &v.loop,
			  v.session_config.abort_fd);
	if (config->backend.restarts)
		v.session_config.restart = &v.backend.ops;
	open_udmabuf(&v);
	if (!ret)
		ret = moat_cutoff_init();
	if (!ret)
		ret = moat_alarm_init(&v.alarm);
	v.loop.alarm = ret ? NULL : &v.alarm;
	moat_alarm_on(v.loop.alarm);
	if (!ret)
		ret = moat_backend_start(&v.backend);
	raise_fd_limit();
	while (!ret)
		ret = turn(&v);
	if (v.loop.alarm)
		moat_alarm_fini(&v.alarm);
	clean_up(&v);
	return ret < 0 ? 1 : 0;
}
