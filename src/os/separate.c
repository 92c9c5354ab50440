/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stages of the sandbox that take the surroundings away.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/fd.h"
#include "os/sandbox.h"

#define NAMESPACES (CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS)

static int put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		ret = -errno;
	close(fd);
	return ret;
}

/* We are ourselves there, and nobody else exists. */
static int map_ids(uid_t uid, gid_t gid)
{
	char text[64];
	int ret = put("/proc/self/setgroups", "deny");

	snprintf(text, sizeof(text), "%u %u 1", uid, uid);
	if (!ret)
		ret = put("/proc/self/uid_map", text);
	snprintf(text, sizeof(text), "%u %u 1", gid, gid);
	if (!ret)
		ret = put("/proc/self/gid_map", text);
	return ret;
}

static int new_namespaces(struct moat_log *log)
{
	uid_t uid = geteuid();
	gid_t gid = getegid();
	int ret;

	if (!unshare(CLONE_NEWUSER | NAMESPACES)) {
		ret = map_ids(uid, gid);
		if (ret)
			log_warn(log, "sandbox: can not map its user: %s",
				 strerror(-ret));
		return ret;
	}
	ret = -errno;
	if (!unshare(NAMESPACES)) {
		log_warn(log, "sandbox: no user namespace of its own: %s",
			 strerror(-ret));
		return 0;
	}
	log_warn(log,
		 "sandbox: no namespaces of its own: %s; the other stages "
		 "stand",
		 strerror(-ret));
	return ret;
}

/*
 * An empty root: what is mounted over /proc becomes /, the rest goes. In a
 * mount namespace of the child's alone: the parent has files to remove.
 */
static int empty_root(void)
{
	unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;

	if (unshare(CLONE_NEWNS) ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("tmpfs", "/proc", "tmpfs", flags, "size=4k,mode=555") ||
	    chdir("/proc") || syscall(SYS_pivot_root, ".", ".") ||
	    umount2(".", MNT_DETACH) || chdir("/") ||
	    mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | flags,
		  NULL))
		return -errno;
	return 0;
}

/* In the child: bound to the parent, which may have died already. */
static int bind_to_parent(int pipe_fd)
{
	struct pollfd p = { .fd = pipe_fd };

	if (prctl(PR_SET_PDEATHSIG, SIGKILL))
		return -errno;
	return poll(&p, 1, 0) ? -EPIPE : 0;
}

pid_t moat_sandbox_separate(struct moat_log *log)
{
	int fds[2], ret;
	bool own;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC))
		return -errno;
	own = !new_namespaces(log);
	pid = fork();
	if (pid) {
		ret = pid < 0 ? -errno : pid;
		/* The write end stays open for as long as the parent lives. */
		close(fds[0]);
		return ret;
	}
	close(fds[1]);
	ret = own ? empty_root() : 0;
	if (ret)
		log_warn(log, "sandbox: can not empty its root: %s",
			 strerror(-ret));
	ret = bind_to_parent(fds[0]);
	close(fds[0]);
	return ret;
}

int moat_sandbox_supervise(pid_t child)
{
	const struct moat_syscall calls[] = {
		{ "rt_sigtimedwait" },
		{ "kill", 1, (unsigned long)child },
		{ "wait4" },
		{ "write" },
		{ "unlink" },
		{ "close" },
		{ "exit_group" },
		{ "munmap" },
		{ "brk" },
		{ "futex" },
		{ "restart_syscall" },
		{ NULL },
	};
	sigset_t set;
	int sig, status;

	if (!moat_sandbox_hide() && !moat_sandbox_privileges(false))
		moat_sandbox_syscalls(calls);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGCHLD);
	for (;;) {
		if (waitpid(child, &status, WNOHANG) == child)
			return WIFEXITED(status) ? WEXITSTATUS(status)
						 : 128 + WTERMSIG(status);
		sig = sigwaitinfo(&set, NULL);
		if (sig > 0 && sig != SIGCHLD)
			kill(child, sig);
	}
}

int moat_sandbox_limits(unsigned int files, unsigned long heap)
{
	struct rlimit none = { 0, 0 };
	struct rlimit fd = { files, files }, data = { heap, heap };

	if (setrlimit(RLIMIT_CORE, &none) || setrlimit(RLIMIT_NOFILE, &fd) ||
	    setrlimit(RLIMIT_DATA, &data))
		return -errno;
	return 0;
}

/*
 * The kernel's struct landlock_ruleset_attr, with the fields of ABI 6: libc's
 * headers may be older than the kernel.
 */
struct ruleset {
	uint64_t fs, net, scoped;
};

int moat_sandbox_landlock(void)
{
	/* Rights that exist from one ABI on, by its number. */
	static const unsigned int fs_bits[] = { 13, 14, 15, 15, 16 };
	struct ruleset r = { 0 };
	size_t size = sizeof(r.fs);
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, 1);
	int fd, ret = 0;

	if (abi < 1)
		return abi ? -errno : -EOPNOTSUPP;
	r.fs = (UINT64_C(1) << fs_bits[abi > 5 ? 4 : abi - 1]) - 1;
	if (abi >= 4) {
		r.net = 3; /* bind and connect TCP */
		size = offsetof(struct ruleset, scoped);
	}
	if (abi >= 6) {
		r.scoped = 3; /* abstract sockets, signals */
		size = sizeof(r);
	}
	fd = (int)syscall(SYS_landlock_create_ruleset, &r, size, 0);
	if (fd < 0)
		return -errno;
	if (syscall(SYS_landlock_restrict_self, fd, 0))
		ret = -errno;
	moat_fd_close(&fd);
	return ret;
}
