/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Read /proc: every process, what it maps and which descriptors it holds.
 * Processes come and go meanwhile: one that is gone is left out; one that may
 * not be read is kept, with the reason.
 */
#include "audit/scan.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PF_KTHREAD 0x00200000
#define ARGS_MAX 65536

/* The text of a small file of /proc, NUL terminated twice; to be freed. */
static char *slurp(const char *path, size_t max, size_t *len)
{
	char *buf = malloc(max + 2);
	size_t n = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	while (buf && fd >= 0 && n < max) {
		ssize_t got = read(fd, buf + n, max - n);

		if (got <= 0)
			break;
		n += (size_t)got;
	}
	if (fd >= 0)
		close(fd);
	if (!buf || fd < 0) {
		free(buf);
		return NULL;
	}
	buf[n] = buf[n + 1] = 0;
	if (len)
		*len = n;
	return buf;
}

static char *read_link(const char *path)
{
	char buf[PATH_MAX + 16];
	ssize_t n = readlink(path, buf, sizeof(buf) - 1);

	if (n < 0)
		return NULL;
	buf[n] = 0;
	return strdup(buf);
}

/* proc(5), stat: field @n, counted from 1, of what follows the name. */
static const char *stat_field(const char *s, int n)
{
	/* the name, field 2, is in parentheses and may hold any byte */
	s = strrchr(s, ')');
	for (int i = 2; s && i < n; i++) {
		s = strchr(s, ' ');
		s = s ? s + 1 : NULL;
	}
	return s;
}

static int read_stat(struct process *p, char *state)
{
	const char *run, *ppid, *flags, *start;
	char path[64], *s;
	int err = -ESRCH;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)p->pid);
	s = slurp(path, 4096, NULL);
	if (!s)
		return -ESRCH;
	run = stat_field(s, 3);
	ppid = stat_field(s, 4);
	flags = stat_field(s, 9);
	start = stat_field(s, 22);
	if (start) {
		*state = *run;
		p->ppid = (pid_t)strtol(ppid, NULL, 10);
		p->kernel = strtoul(flags, NULL, 10) & PF_KTHREAD;
		p->start = strtoull(start, NULL, 10);
		err = 0;
	}
	free(s);
	return err;
}

static void read_identity(struct process *p)
{
	char path[64], *s, *at;
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)p->pid);
	s = slurp(path, 16384, NULL);
	at = s ? strstr(s, "\nUid:") : NULL;
	if (at)
		p->uid = (uint32_t)strtoul(at + 5, NULL, 10);
	at = s ? strstr(s, "\nCapEff:") : NULL;
	if (at)
		p->caps = strtoull(at + 8, NULL, 16);
	free(s);

	snprintf(path, sizeof(path), "/proc/%d/comm", (int)p->pid);
	p->comm = slurp(path, 64, NULL);
	if (p->comm && *p->comm && p->comm[strlen(p->comm) - 1] == '\n')
		p->comm[strlen(p->comm) - 1] = 0;

	snprintf(path, sizeof(path), "/proc/%d/exe", (int)p->pid);
	p->exe = read_link(path);
	at = p->exe ? strstr(p->exe, " (deleted)") : NULL;
	if (at && !at[10])
		*at = 0;
	if (!stat(path, &st)) {
		p->exe_dev = st.st_dev;
		p->exe_ino = st.st_ino;
	}
	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)p->pid);
	p->args = slurp(path, ARGS_MAX, &p->args_len);
}

static struct reach *reach_of(struct audit *a, struct process *p, uint32_t obj)
{
	uint32_t self = (uint32_t)(p - a->procs) + 1;
	struct object *o = &a->objs[obj];

	/* a hostile process may have a million of them: no search */
	if (o->seen_by == self && o->seen_at < p->nreach &&
	    p->reach[o->seen_at].obj == obj)
		return &p->reach[o->seen_at];
	if (audit_grow(&p->reach, p->nreach, &p->cap_reach, sizeof(*p->reach)))
		return NULL;
	o->seen_by = self;
	o->seen_at = (uint32_t)p->nreach;
	p->reach[p->nreach] = (struct reach){ .obj = obj };
	return &p->reach[p->nreach++];
}

static int add_mapping(struct audit *a, struct process *p,
		       const struct map_line *m)
{
	bool private_write =
		m->perms[1] == 'w' && m->perms[3] == 'p' && m->perms[2] != 'x';
	uint64_t len = m->end - m->start;
	struct reach *r;
	int obj;

	if (private_write && len >= AUDIT_ANON_MIN && m->name[0] != '[' &&
	    ranges_add(&p->anon, m->start, m->end))
		return -ENOMEM;
	if (!m->ino)
		return 0;
	obj = objects_of_map(a, p->pid, m);
	if (obj == -ENODEV)
		return 0;
	if (obj < 0)
		return obj;
	r = reach_of(a, p, (uint32_t)obj);
	if (!r || ranges_add(&r->mapped, m->offset, m->offset + len))
		return -ENOMEM;
	if (m->perms[3] != 's')
		return 0;
	r->shared = true;
	if (m->perms[1] != 'w')
		return 0;
	return ranges_add(&r->writable, m->offset, m->offset + len);
}

/* Return: lines read, or a negative errno */
static long read_maps(struct audit *a, struct process *p, pid_t tid)
{
	char path[64], *line = NULL;
	size_t cap = 0;
	ssize_t len;
	long n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/maps", (int)p->pid,
		 (int)tid);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	while (n >= 0 && (len = getline(&line, &cap, f)) > 0) {
		struct map_line m;
		int err = 0;

		if (line[len - 1] == '\n')
			line[len - 1] = 0;
		if (maps_parse(line, &m))
			err = add_mapping(a, p, &m);
		n = err ? err : n + 1;
	}
	if (n >= 0 && ferror(f))
		n = -errno;
	free(line);
	fclose(f);
	return n;
}

/* How it was opened; of a dma-buf also its size and who made it. */
static void note_flags(struct object *o, struct reach *r, pid_t pid, pid_t tid,
		       int fd)
{
	char path[96], *s, *at;
	unsigned long flags;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/fdinfo/%d", (int)pid,
		 (int)tid, fd);
	s = slurp(path, 4096, NULL);
	at = s ? strstr(s, "flags:") : NULL;
	flags = at ? strtoul(at + 6, NULL, 8) : O_RDWR;
	if (s && o->kind == OBJ_DMABUF) {
		at = strstr(s, "\nexp_name:");
		o->device = at && !audit_starts(at + 10, "\tudmabuf");
		at = strstr(s, "\nsize:");
		if (at)
			o->size = strtoull(at + 6, NULL, 10);
	}
	free(s);
	if (flags & O_PATH)
		r->fd_path = true;
	else if ((flags & O_ACCMODE) == O_RDONLY)
		r->fd_r = true;
	else
		r->fd_w = true;
	if (r->nfds < REACH_FDS)
		r->fds[r->nfds] = fd;
	r->nfds++;
}

static int add_fd(struct audit *a, struct process *p, pid_t tid, int fd)
{
	char path[96], *link;
	struct reach *r;
	int obj;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/fd/%d", (int)p->pid,
		 (int)tid, fd);
	link = read_link(path);
	if (!link)
		return errno == ENOMEM ? -ENOMEM : 0;
	if (!strcmp(link, "/dev/kvm") || !strcmp(link, "anon_inode:kvm-vm"))
		p->kvm = true;
	obj = objects_of_fd(a, path, link);
	free(link);
	/*
	 * Gone, no memory, or a FUSE file system that tells nobody else
	 * (EACCES): the last could not be a guest's RAM unnoticed, since the
	 * VMM's own mapping of it would be noticed.
	 */
	if (obj < 0)
		return obj == -ENOMEM ? obj : 0;
	r = reach_of(a, p, (uint32_t)obj);
	if (!r)
		return -ENOMEM;
	note_flags(&a->objs[obj], r, p->pid, tid, fd);
	return 0;
}

static int read_fds(struct audit *a, struct process *p, pid_t tid)
{
	char path[64];
	struct dirent *e;
	DIR *d;
	int err = 0;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/fd", (int)p->pid,
		 (int)tid);
	d = opendir(path);
	if (!d)
		return -errno;
	while (!err && (errno = 0, e = readdir(d)))
		if (isdigit((unsigned char)e->d_name[0]))
			err = add_fd(a, p, tid,
				     (int)strtol(e->d_name, NULL, 10));
	if (!err && errno)
		err = -errno;
	closedir(d);
	return err;
}

/*
 * Threads share the memory, and mostly the descriptors: unshare(CLONE_FILES)
 * gives one its own table, and a main thread that has ended shows neither.
 */
static int read_threads(struct audit *a, struct process *p, long nmaps)
{
	char path[64];
	struct dirent *e;
	DIR *d;
	int err = 0;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)p->pid);
	d = opendir(path);
	if (!d)
		return -errno;
	while (!err && (e = readdir(d))) {
		pid_t tid = (pid_t)strtol(e->d_name, NULL, 10);

		if (tid <= 0 || tid == p->pid)
			continue;
		if (nmaps <= 0)
			nmaps = read_maps(a, p, tid);
		if (syscall(SYS_kcmp, p->pid, tid, KCMP_FILES, 0, 0))
			err = read_fds(a, p, tid);
		if (err == -ENOENT || err == -ESRCH)
			err = 0;
	}
	closedir(d);
	return err;
}

static void could_not(struct process *p, int err, const char *what)
{
	if (p->err)
		return;
	p->err = err;
	p->err_what = what;
}

static bool gone(long err)
{
	return err == -ENOENT || err == -ESRCH;
}

/* Return: 0, -ESRCH if it is gone, -ENOMEM */
static int scan_process(struct audit *a, struct process *p)
{
	char state;
	long nmaps;
	int err = read_stat(p, &state);

	if (err)
		return err;
	if (p->kernel)
		return 0;
	read_identity(p);
	nmaps = read_maps(a, p, p->pid);
	if (nmaps == -ENOMEM || gone(nmaps))
		return (int)nmaps;
	if (nmaps < 0)
		could_not(p, (int)nmaps, "its mappings");
	err = read_fds(a, p, p->pid);
	if (err == -ENOMEM || (gone(err) && state != 'Z'))
		return err;
	if (err < 0 && state != 'Z')
		could_not(p, err, "its descriptors");
	err = read_threads(a, p, nmaps);
	if (err == -ENOMEM)
		return err;
	if (err < 0 && !gone(err))
		could_not(p, err, "the descriptors of its threads");
	for (size_t i = 0; i < p->nreach; i++) {
		ranges_union(&p->reach[i].mapped);
		ranges_union(&p->reach[i].writable);
	}
	ranges_union(&p->anon);
	return 0;
}

static void process_free(struct process *p)
{
	for (size_t i = 0; i < p->nreach; i++) {
		ranges_free(&p->reach[i].mapped);
		ranges_free(&p->reach[i].writable);
	}
	ranges_free(&p->anon);
	free(p->reach);
	free(p->comm);
	free(p->exe);
	free(p->args);
}

int audit_scan(struct audit *a)
{
	struct dirent *e;
	int err = objects_open(a);
	DIR *d = opendir("/proc");

	if (!d)
		return -errno;
	while (!err && (e = readdir(d))) {
		struct process *p;

		if (!isdigit((unsigned char)e->d_name[0]))
			continue;
		err = audit_grow(&a->procs, a->nprocs, &a->cap_procs,
				 sizeof(*a->procs));
		if (err)
			break;
		p = &a->procs[a->nprocs];
		*p = (struct process){ .vm = -1 };
		p->pid = (pid_t)strtol(e->d_name, NULL, 10);
		err = scan_process(a, p);
		if (err || p->kernel)
			process_free(p);
		else
			a->nprocs++;
		if (gone(err))
			err = 0;
	}
	closedir(d);
	return err;
}

void audit_free(struct audit *a)
{
	for (size_t i = 0; i < a->nprocs; i++)
		process_free(&a->procs[i]);
	for (size_t i = 0; i < a->nobjs; i++) {
		free(a->objs[i].name);
		free(a->objs[i].open_path);
		free(a->objs[i].givers);
		free(a->objs[i].strangers);
	}
	for (size_t i = 0; i < a->nvms; i++) {
		free(a->vms[i].members);
		free(a->vms[i].objs);
		free(a->vms[i].seats);
	}
	objects_close(a);
	free(a->procs);
	free(a->objs);
	free(a->vms);
	*a = (struct audit){ 0 };
}
