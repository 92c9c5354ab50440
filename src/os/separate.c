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

static int new_namespaces(struct moat_log *log, bool same_users)
{
	uid_t uid = geteuid();
	gid_t gid = getegid();
	int ret;

	if (same_users && !unshare(NAMESPACES))
		return 0;
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

/*
 * /proc/self/fd, so that nothing else of procfs is to be had from it: a mount
 * of that directory alone, attached nowhere.
 */
static int open_own_fds(void)
{
	int fd = open_tree(AT_FDCWD, "/proc/self/fd",
			   OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);

	/* Who may not mount can not be kept from walking up. */
	if (fd < 0)
		fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/*
 * The directory as the root, with all that is mounted below it; what is mounted
 * later comes from outside and never goes there. A copy of the mounts is laid
 * over the old root, changes places with it, and the old one, which lies on top
 * then, goes.
 */
static int pivot(int tree)
{
	if (move_mount(tree, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH) ||
	    fchdir(tree) || syscall(SYS_pivot_root, ".", ".") ||
	    umount2(".", MNT_DETACH) || chdir("/"))
		return -errno;
	return 0;
}

static int shared_root(struct moat_sandbox_dir *dir)
{
	struct mount_attr attr = {
		.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
	};
	int tree, ret;

	if (unshare(CLONE_NEWNS) ||
	    mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL))
		return -errno;
	tree = open_tree(AT_FDCWD, dir->path,
			 OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
	if (tree < 0)
		return -errno;
	/*
	 * Device nodes are made and removed, never opened. No guest sees these
	 * flags, and Linux before 5.12 can not set them on a whole tree.
	 */
	mount_setattr(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr,
		      sizeof(attr));
	dir->proc_fd = open_own_fds();
	ret = dir->proc_fd < 0 ? dir->proc_fd : pivot(tree);
	if (!ret) {
		dir->root_fd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
		ret = dir->root_fd < 0 ? -errno : 0;
	}
	moat_fd_close(&tree);
	return ret;
}

int moat_sandbox_open(struct moat_sandbox_dir *dir)
{
	if (dir->root_fd < 0)
		dir->root_fd =
			open(dir->path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dir->root_fd < 0)
		return -errno;
	if (dir->proc_fd < 0)
		dir->proc_fd = open_own_fds();
	return dir->proc_fd < 0 ? dir->proc_fd : 0;
}

/* In the child: bound to the parent, which may have died already. */
static int bind_to_parent(int pipe_fd)
{
	struct pollfd p = { .fd = pipe_fd };

	if (prctl(PR_SET_PDEATHSIG, SIGKILL))
		return -errno;
	return poll(&p, 1, 0) ? -EPIPE : 0;
}

pid_t moat_sandbox_separate(struct moat_log *log, struct moat_sandbox_dir *dir)
{
	int fds[2], ret;
	bool own;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC))
		return -errno;
	own = !new_namespaces(log, dir);
	pid = fork();
	if (pid) {
		ret = pid < 0 ? -errno : pid;
		/* The write end stays open for as long as the parent lives. */
		close(fds[0]);
		return ret;
	}
	close(fds[1]);
	ret = !own ? 0 : dir ? shared_root(dir) : empty_root();
	if (ret)
		log_warn(log, "sandbox: can not %s: %s",
			 dir ? "make the shared directory its root"
			     : "empty its root",
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

	if (!moat_sandbox_hide() && !moat_sandbox_privileges(0))
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
	struct rlimit fd, data = { heap, heap };

	if (getrlimit(RLIMIT_NOFILE, &fd))
		return -errno;
	if (files < fd.rlim_max)
		fd.rlim_max = files;
	fd.rlim_cur = fd.rlim_max;
	if (setrlimit(RLIMIT_CORE, &none) || setrlimit(RLIMIT_NOFILE, &fd) ||
	    setrlimit(RLIMIT_DATA, &data))
		return -errno;
	return 0;
}
