/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device that serves a directory, for tests of the sandbox: what a request
 * says, in words, is done with the descriptors that the kit gave; the answer is
 * what the system call returned, or a negative errno, in 8 bytes.
 *
 * Descriptors have places: 0 is the directory, 1 is /proc/self/fd.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <moat/device.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define PLACES 16u
#define WORDS 5u

struct shelf {
	int fd[PLACES];
	struct moat_request
		*held; /* only its worker touches what it points to */
	bool hurry;    /* atomic */
};

static int at(const struct shelf *s, const char *place)
{
	return s->fd[strtoul(place, NULL, 10) % PLACES];
}

/* The path of a descriptor; beneath /proc/self/fd, which is where we are. */
static const char *path_of(const struct shelf *s, const char *place)
{
	static __thread char name[16];

	snprintf(name, sizeof(name), "%d", at(s, place));
	return fchdir(s->fd[1]) ? "?" : name;
}

static long do_open(struct shelf *s, char **w)
{
	int fd = openat(at(s, w[1]), w[2], O_PATH | O_NOFOLLOW | O_CLOEXEC);

	if (fd >= 0)
		s->fd[strtoul(w[3], NULL, 10) % PLACES] = fd;
	return fd < 0 ? -1 : 0;
}

static long do_reopen(struct shelf *s, char **w)
{
	int fd = open(path_of(s, w[1]), O_RDWR | O_CLOEXEC);

	return fd < 0 ? fd : close(fd);
}

static long do_absolute(struct shelf *s, char **w)
{
	int fd = open(w[1], O_RDONLY | O_CLOEXEC);

	(void)s;
	return fd < 0 ? fd : close(fd);
}

static long do_link(struct shelf *s, char **w)
{
	return linkat(AT_FDCWD, path_of(s, w[1]), at(s, w[2]), w[3],
		      AT_SYMLINK_FOLLOW);
}

static long do_rename(struct shelf *s, char **w)
{
	return syscall(SYS_renameat2, at(s, w[1]), w[2], at(s, w[3]), w[4], 0);
}

static long do_truncate(struct shelf *s, char **w)
{
	return truncate(path_of(s, w[1]), strtol(w[2], NULL, 10));
}

static long do_mknod(struct shelf *s, char **w)
{
	mode_t type = w[3][0] == 'c'   ? S_IFCHR
		      : w[3][0] == 'p' ? S_IFIFO
				       : S_IFSOCK;

	return mknodat(at(s, w[1]), w[2], type | 0666, makedev(1, 3));
}

static long do_mkdir(struct shelf *s, char **w)
{
	return mkdirat(at(s, w[1]), w[2], 0777);
}

static long do_chown(struct shelf *s, char **w)
{
	return fchownat(at(s, w[1]), w[2], (uid_t)strtoul(w[3], NULL, 10),
			(gid_t)-1, AT_SYMLINK_NOFOLLOW);
}

/* 1 if there is no way up from that directory, 0 if there is one. */
static long do_top(struct shelf *s, char **w)
{
	struct stat here, above;

	if (fstat(at(s, w[1]), &here) || fstatat(at(s, w[1]), "..", &above, 0))
		return -1;
	return here.st_ino == above.st_ino && here.st_dev == above.st_dev;
}

static long do_capabilities(struct shelf *s, char **w)
{
	struct __user_cap_header_struct head = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct cap[2];

	(void)s;
	(void)w;
	if (syscall(SYS_capget, &head, cap))
		return -1;
	return (long)((uint64_t)cap[1].effective << 32 | cap[0].effective);
}

static long run(struct shelf *s, char *text)
{
	static const struct {
		const char *word;
		long (*run)(struct shelf *s, char **w);
	} all[] = {
		{ "open", do_open },	     { "reopen", do_reopen },
		{ "absolute", do_absolute }, { "link", do_link },
		{ "rename", do_rename },     { "truncate", do_truncate },
		{ "mknod", do_mknod },	     { "mkdir", do_mkdir },
		{ "chown", do_chown },	     { "top", do_top },
		{ "caps", do_capabilities },
	};
	char *w[WORDS + 1] = { 0 }, *save;
	unsigned int n = 0;

	for (char *p = strtok_r(text, " ", &save); p && n < WORDS;
	     p = strtok_r(NULL, " ", &save))
		w[n++] = p;
	while (n < WORDS)
		w[n++] = (char *)"";
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
		long ret;

		if (strcmp(w[0], all[i].word))
			continue;
		ret = all[i].run(s, w);
		return ret == -1 ? -errno : ret;
	}
	return -ENOSYS;
}

static void answer(struct moat_request *req, int64_t ret)
{
	moat_iov_write(req->writable, req->nwritable, 0, &ret, sizeof(ret));
	moat_request_done(req, sizeof(ret));
}

static void request(void *dev, void *worker, struct moat_request *req)
{
	struct shelf *s = dev;
	char text[256] = { 0 };

	(void)worker;
	moat_iov_read(req->readable, req->nreadable, 0, text, sizeof(text) - 1);
	if (strcmp(text, "hold"))
		answer(req, run(s, text));
	else
		s->held = req;
}

/* It is told again and again, so that a late one is seen, too. */
static bool worker_poll(void *dev, void *worker)
{
	struct shelf *s = dev;

	(void)worker;
	if (!__atomic_exchange_n(&s->hurry, false, __ATOMIC_ACQ_REL) ||
	    !s->held)
		return false;
	answer(s->held, -EAGAIN);
	s->held = NULL;
	return true;
}

static void hurry(void *dev)
{
	struct shelf *s = dev;
	uint64_t one = 1;

	__atomic_store_n(&s->hurry, true, __ATOMIC_RELEASE);
	/* The worker's; it polls when it is woken. */
	if (write(s->fd[2], &one, sizeof(one)) < 0)
		abort();
}

static int worker_start(void *dev, void **worker, int *fd)
{
	struct shelf *s = dev;

	*worker = s;
	*fd = s->fd[2];
	return 0;
}

static int entered(void *dev, int root_fd, int proc_fd)
{
	struct shelf *s = dev;

	s->fd[0] = root_fd;
	s->fd[1] = proc_fd;
	return 0;
}

static uint64_t features(void *dev)
{
	(void)dev;
	return 0;
}

static void get_config(void *dev, uint32_t offset, void *buf, uint32_t len)
{
	(void)dev;
	(void)offset;
	(void)buf;
	(void)len;
}

static const char *const syscalls[] = {
	"openat",     "open",	 "fchdir",  "linkat",	"renameat2",
	"truncate",   "mknodat", "mkdirat", "fchownat", "statx",
	"newfstatat", "capget",	 "gettid",  "tgkill",	NULL,
};

static const struct moat_device_ops ops = {
	.type = "shelf",
	.features = features,
	.get_config = get_config,
	.worker_start = worker_start,
	.worker_poll = worker_poll,
	.request = request,
	.entered = entered,
	.hurry = hurry,
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct moat_device_config *c = state->input;

	if (key == ARGP_KEY_INIT)
		state->child_inputs[0] = c;
	else if (key == 'd')
		c->shared_dir = arg;
	else
		return ARGP_ERR_UNKNOWN;
	return 0;
}

int main(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "shared-dir", 'd', "DIR", 0, "what is served", 0 }, { 0 }
	};
	const struct argp_child children[] = {
		{ moat_device_argp(), 0, NULL, 0 }, { 0 }
	};
	const struct argp argp = { .options = options,
				   .parser = parse,
				   .children = children };
	struct shelf s = { 0 };
	struct moat_device_config config = {
		.ops = &ops,
		.dev = &s,
		.name = "moat-shelf",
		.syscalls = syscalls,
		.max_queues = 1,
		.capabilities = 1u << CAP_CHOWN | 1u << CAP_DAC_OVERRIDE |
				1u << CAP_MKNOD,
		.files = 100,
	};
	int ret;

	argp_err_exit_status = 2;
	if (moat_device_defaults(&config) ||
	    argp_parse(&argp, argc, argv, 0, NULL, &config))
		return 2;
	s.fd[2] = (int)syscall(SYS_eventfd2, 0, O_CLOEXEC | O_NONBLOCK);
	ret = s.fd[2] < 0 ? 1 : moat_device_serve(&config);
	free(config.log);
	return ret;
}
