/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process: socket, sandbox, workers, VMM after VMM, signals.
 */
#include <errno.h>
#include <grp.h>
#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dev/host/host.h"
#include "dev/host/worker.h"
#include "os/cutoff.h"
#include "os/fd.h"
#include "os/sandbox.h"
#include "os/sock.h"

/* Descriptors beside three of each queue; heap beside what queues hold. */
#define FILES 128u
#define HEAP (UINT64_C(256) << 20)
#define HEAP_QUEUE (UINT64_C(64) << 20)
#define SYSCALLS_MAX 192u

struct service {
	struct moat_device device;
	const struct moat_device_config *config;
	int listen_fd, vmm_fd;
	struct moat_sandbox_dir dir; /* if the device serves one */
	struct moat_source listen_src, signal_src;
	bool stopping;
};

/*
 * What the harness needs from here on: its sockets, eventfds, mappings of guest
 * RAM, memory for in-flight records, and threads that end.
 */
/* clang-format off: one a line would be a page */
static const char *const syscalls[] = {
	"read",
	"write",
	"recvmsg",
	"sendmsg",
	"poll",
	"ppoll",
	"epoll_wait",
	"epoll_pwait",
	"epoll_ctl",
	"close",
	"fcntl",
	"accept4",
	"memfd_create",
	"ftruncate",
	"fstat",
	"newfstatat",
	"munmap",
	"madvise",
	"mremap",
	"brk",
	"futex",
	"clock_gettime",
	"rt_sigprocmask",
	"rt_sigreturn",
	"restart_syscall",
	"sched_yield",
	"getpid",
	"gettid",
	"unlink",
	"exit",
	"exit_group",
	NULL,
};
/* clang-format on */

/* Return: 0, or -E2BIG: a list that is cut off would be a trap. */
static int append(struct moat_syscall *list, uint32_t *n,
		  const char *const *names)
{
	for (; names && *names && *n < SYSCALLS_MAX; names++)
		list[(*n)++].name = *names;
	return names && *names ? -E2BIG : 0;
}

static int forbid_syscalls(const struct moat_device_config *c)
{
	struct moat_syscall list[SYSCALLS_MAX + 2] = { { 0 } };
	uint32_t n = 0;

	if (append(list, &n, syscalls) || append(list, &n, c->syscalls))
		return -E2BIG;
	/* For moat_workers_watch(): threads of our own. */
	list[n++] = (struct moat_syscall){ .name = "tgkill",
					   .arg = 1,
					   .value = (unsigned long)getpid() };
	return moat_sandbox_syscalls(list);
}

static void on_signal(void *arg, uint32_t events)
{
	struct service *v = arg;
	struct signalfd_siginfo info;

	(void)events;
	if (read(v->signal_src.fd, &info, sizeof(info)) != sizeof(info))
		return;
	if (info.ssi_signo != SIGHUP)
		v->stopping = true;
	else if (v->config->ops->reload)
		v->config->ops->reload(v->config->dev, &v->device);
}

static void on_listen(void *arg, uint32_t events)
{
	struct service *v = arg;
	int fd = moat_sock_accept(v->listen_fd);

	(void)events;
	if (fd < 0)
		return;
	v->vmm_fd = fd;
	moat_loop_unwatch(&v->device.loop, &v->listen_src);
}

static void block_signals(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGINT);
	sigaddset(set, SIGHUP);
	sigaddset(set, SIGCHLD);
	sigprocmask(SIG_BLOCK, set, NULL);
	sigdelset(set, SIGCHLD);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN); /* a file too long is EFBIG, for who asked */
}

static int listen_for_vmm(struct service *v)
{
	const struct moat_device_config *c = v->config;

	if (c->fd >= 0) {
		v->vmm_fd = c->fd;
		return moat_fd_nonblock(c->fd);
	}
	v->listen_fd = moat_sock_listen(c->socket_path);
	if (v->listen_fd >= 0)
		return 0;
	log_err(c->log, "can not listen on %s: %s%s", c->socket_path,
		strerror(-v->listen_fd),
		v->listen_fd == -EADDRINUSE
			? "; another process does, or it is no socket"
			: "");
	return v->listen_fd;
}

/* The stages that have to come before there are threads. */
static int early_sandbox(const struct moat_device_config *c, int root_fd)
{
	int ret;

	if (c->sandbox == MOAT_SANDBOX_NONE) {
		log_warn(c->log, "runs without its sandbox (--sandbox=none)");
		return 0;
	}
	ret = moat_sandbox_hide();
	if (!ret)
		ret = moat_sandbox_privileges(c->capabilities);
	if (ret)
		log_err(c->log, "sandbox: can not drop privileges: %s",
			strerror(-ret));
	if (ret || c->sandbox != MOAT_SANDBOX_STRICT)
		return ret;
	ret = c->no_landlock ? 0 : moat_sandbox_landlock(root_fd);
	if (ret)
		log_warn(c->log, "sandbox: no Landlock here%s: %s",
			 root_fd < 0 ? "" : " (Linux 5.19 has what it takes)",
			 strerror(-ret));
	ret = moat_sandbox_limits(FILES + 8 * c->num_queues + c->files,
				  HEAP + HEAP_QUEUE * c->num_queues + c->heap);
	if (ret)
		log_warn(c->log, "sandbox: can not set limits: %s",
			 strerror(-ret));
	return 0;
}

static int set_up(struct service *v, const sigset_t *signals)
{
	struct moat_device *d = &v->device;
	int ret = moat_loop_init(&d->loop);

	if (!ret)
		ret = moat_host_shmem_init(d);
	moat_host_memory_init(d);
	if (ret)
		return ret;
	v->signal_src = (struct moat_source){
		signalfd(-1, signals, SFD_CLOEXEC | SFD_NONBLOCK), on_signal, v
	};
	ret = moat_workers_watch_init();
	if (!ret)
		ret = moat_cutoff_init();
	if (ret)
		return ret;
	d->wake_src.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (v->signal_src.fd < 0 || d->wake_src.fd < 0)
		return -errno;
	ret = moat_loop_watch(&d->loop, &v->signal_src, false);
	if (!ret)
		ret = moat_loop_watch(&d->loop, &d->wake_src, true);
	return ret;
}

static int start_workers(struct moat_device *d)
{
	const struct moat_device_config *c = d->config;
	uint32_t n = c->threads && c->threads < c->num_queues ? c->threads
							      : c->num_queues;
	int ret = 0;

	/* Only now: a device may set its queues when it knows its options. */
	if (!c->num_queues || c->num_queues > MOAT_VU_VRINGS_MAX) {
		log_err(d->log, "the device has %u queues: 1 to %u can be",
			c->num_queues, MOAT_VU_VRINGS_MAX);
		return -EINVAL;
	}
	d->queues = calloc(c->num_queues, sizeof(*d->queues));
	d->workers = calloc(n, sizeof(struct moat_worker *));
	if (!d->queues || !d->workers)
		return -ENOMEM;
	for (uint32_t i = 0; i < c->num_queues; i++) {
		struct moat_queue *q = &d->queues[i];

		q->index = i;
		q->device = d;
		q->kick_fd = q->call_fd = q->err_fd = q->kick.fd = -1;
	}
	d->nworkers = n;
	for (uint32_t i = 0; !ret && i < n; i++)
		ret = moat_worker_start(d, i, &d->workers[i]);
	return ret;
}

static void stop_workers(struct moat_device *d)
{
	for (uint32_t i = 0; d->workers && i < d->nworkers; i++)
		if (d->workers[i]) {
			moat_worker_stop(d->workers[i]);
			d->workers[i] = NULL;
		}
	free(d->workers);
	free(d->queues);
}

static void say_cut_off(struct moat_device *d)
{
	uint64_t pages = moat_cutoff_pages();

	if (pages != d->pages_lost)
		log_warn(d->log,
			 "%llu pages of guest memory were cut off while they "
			 "were in use: what was written there is lost",
			 (unsigned long long)(pages - d->pages_lost));
	d->pages_lost = pages;
}

/* 0 to go on, 1 to end well, a negative errno to end badly. */
static int one_vmm(struct service *v)
{
	struct moat_device *d = &v->device;
	bool once = v->config->once;
	int ret;

	if (v->listen_fd >= 0) {
		v->listen_src =
			(struct moat_source){ v->listen_fd, on_listen, v };
		moat_loop_watch(&d->loop, &v->listen_src, false);
	}
	while (!v->stopping && v->vmm_fd < 0)
		moat_loop_wait(&d->loop, -1);
	if (v->vmm_fd < 0)
		return 1;
	log_info(d->log, "a VMM has connected");
	ret = moat_session_begin(d, moat_fd_take(&v->vmm_fd));
	while (!ret && !v->stopping && !d->over)
		moat_loop_wait(&d->loop, moat_workers_watch(d));
	moat_session_finish(d);
	say_cut_off(d);
	log_info(d->log, "the VMM has left");
	if (v->stopping)
		return 1;
	if (once)
		return d->end ? d->end : 1;
	return 0;
}

static int open_dir(struct service *v)
{
	const struct moat_device_config *c = v->config;
	int ret;

	if (!c->shared_dir)
		return 0;
	/* Modes are the guest's business; so are groups, if users are. */
	umask(0);
	if (!geteuid())
		setgroups(0, NULL);
	ret = moat_sandbox_open(&v->dir);
	if (ret)
		log_err(c->log, "can not open the directory %s: %s",
			c->shared_dir, strerror(-ret));
	return ret;
}

/* The device gets its directory. */
static int enter(struct service *v)
{
	const struct moat_device_config *c = v->config;

	if (!c->shared_dir)
		return 0;
	return c->ops->entered(c->dev, moat_fd_take(&v->dir.root_fd),
			       moat_fd_take(&v->dir.proc_fd));
}

static int run(struct service *v, const sigset_t *signals)
{
	const struct moat_device_config *c = v->config;
	struct moat_device *d = &v->device;
	int ret = open_dir(v);

	if (!ret)
		ret = early_sandbox(c, v->dir.root_fd);
	if (!ret)
		ret = enter(v);
	if (!ret)
		ret = set_up(v, signals);
	if (!ret && c->ops->attached)
		c->ops->attached(c->dev, d);
	if (!ret)
		ret = start_workers(d);
	if (!ret && c->sandbox != MOAT_SANDBOX_NONE) {
		ret = forbid_syscalls(c);
		if (ret)
			log_err(c->log, "sandbox: no system call filter: %s",
				strerror(-ret));
	}
	if (!ret && v->listen_fd >= 0)
		log_info(c->log, "listening on %s", c->socket_path);
	while (!ret)
		ret = one_vmm(v);
	stop_workers(d);
	moat_host_shmem_fini(d);
	moat_host_memory_fini(d);
	moat_fd_close(&v->signal_src.fd);
	moat_fd_close(&d->wake_src.fd);
	moat_loop_fini(&d->loop);
	return ret < 0 ? 1 : 0;
}

int moat_device_serve(const struct moat_device_config *c)
{
	struct service *v = calloc(1, sizeof(*v));
	int ret;
	sigset_t signals;
	pid_t child = 0;

	if (!v)
		return 1;
	/*
	 * A thread's arena of its own is given back by way of open(), which
	 * the filter of system calls kills us for; the main one by brk().
	 */
	mallopt(M_ARENA_MAX, 1);
	v->config = v->device.config = c;
	v->device.log = c->log;
	v->listen_fd = v->vmm_fd = v->signal_src.fd = -1;
	v->device.loop.epfd = v->device.wake_src.fd = -1;
	v->device.shmem.channel.fd = v->device.shmem.wake_fd = -1;
	v->dir = (struct moat_sandbox_dir){ c->shared_dir, -1, -1 };
	block_signals(&signals);
	ret = listen_for_vmm(v) ? 1 : 0;
	if (!ret && c->sandbox == MOAT_SANDBOX_STRICT)
		child = moat_sandbox_separate(c->log,
					      c->shared_dir ? &v->dir : NULL);
	if (child < 0) {
		log_err(c->log, "sandbox: can not go on in a child: %s",
			strerror(-child));
		ret = 1;
	} else if (child > 0) {
		/* The VMM is the child's to talk to. */
		moat_fd_close(&v->vmm_fd);
		ret = moat_sandbox_supervise(child);
	} else if (!ret) {
		ret = run(v, &signals);
	}
	/* In an empty root this is in vain: the parent does it. */
	if (v->listen_fd >= 0 && (child || c->sandbox != MOAT_SANDBOX_STRICT))
		unlink(c->socket_path);
	free(v);
	return ret;
}
