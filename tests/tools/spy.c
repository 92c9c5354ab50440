/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spy: search all memory that another process can reach for a pattern.
 *
 *     spy [--no-private] [--no-grow] PID (HEX | @FILE)
 *
 * It looks where an attacker inside process PID could look, and nowhere else:
 *  - all of each memory object behind a descriptor that PID holds (memfd,
 *    tmpfs or hugetlbfs file, dma-buf), holes left out;
 *  - of each object that PID only maps, what it maps and, since mremap(2)
 *    grows a mapping without a descriptor, all that follows in the object
 *    (--no-grow: only what is mapped);
 *  - PID's private memory (unless --no-private): a copy is a leak too.
 *
 * Exit status: 0 found, 1 not found, 2 could not look, or not everywhere.
 * JSON on standard output tells what was searched and what was found.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { FOUND = 0, NOT_FOUND = 1, NO_LOOK = 2 };

#define CHUNK (1u << 20)
#define MATCHES_SHOWN 16
#define MAX_PATTERN 65536

struct seen {
	uint64_t dev, ino;
	uint64_t from; /* searched from here to the end */
};

struct spy {
	int pid;
	int pidfd;
	bool private, grow;
	unsigned char *pattern;
	size_t plen;
	unsigned char *buf; /* CHUNK + plen */
	struct seen *seen;
	size_t nseen;
	uint64_t bytes, matches;
	size_t nobjects, nerrors;
	FILE *objects, *errors; /* JSON under construction */
};

/* One place that is searched: how to read it, and what came of it. */
struct place {
	int fd;
	const unsigned char *map; /* instead of fd, if not NULL */
	uint64_t bytes, matches;
	uint64_t shown[MATCHES_SHOWN];
	uint64_t last; /* offset of the latest match + 1 */
};

static void die(const char *what)
{
	fprintf(stderr, "spy: %s: %s\n", what, strerror(errno));
	exit(NO_LOOK);
}

static bool starts(const char *s, const char *prefix)
{
	return strncmp(s, prefix, strlen(prefix)) == 0;
}

static void print_string(FILE *f, const char *s)
{
	fputc('"', f);
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c < 0x20 || c >= 0x7f || c == '"' || c == '\\')
			fprintf(f, "\\u%04x", c);
		else
			fputc(c, f);
	}
	fputc('"', f);
}

static void failed(struct spy *s, const char *where, const char *what, int err)
{
	fputs(s->nerrors++ ? ",\n    " : "\n    ", s->errors);
	fputs("{\"where\": ", s->errors);
	print_string(s->errors, where);
	fputs(", \"error\": ", s->errors);
	print_string(s->errors, what);
	fputs(", \"errno\": ", s->errors);
	print_string(s->errors, err ? strerror(err) : "");
	fputs("}", s->errors);
}

static void match(struct place *p, uint64_t at)
{
	if (at < p->last)
		return;
	p->last = at + 1;
	if (p->matches < MATCHES_SHOWN)
		p->shown[p->matches] = at;
	p->matches++;
}

static ssize_t get(const struct place *p, void *buf, size_t n, uint64_t at)
{
	if (!p->map)
		return pread(p->fd, buf, n, (off_t)at);
	memcpy(buf, p->map + at, n);
	return (ssize_t)n;
}

/* Search [from, to); a short read ends it. Return: 0 or a negative errno */
static int search(struct spy *s, struct place *p, uint64_t from, uint64_t to)
{
	size_t kept = 0; /* of the chunk before, at the front of buf */

	for (uint64_t at = from; at < to;) {
		size_t n = to - at < CHUNK ? (size_t)(to - at) : CHUNK;
		ssize_t got = get(p, s->buf + kept, n, at);
		unsigned char *x = s->buf;
		size_t have;

		if (got < 0)
			return -errno;
		if (!got)
			break;
		have = kept + (size_t)got;
		while ((x = memmem(x, have - (size_t)(x - s->buf), s->pattern,
				   s->plen))) {
			match(p, at - kept + (uint64_t)(x - s->buf));
			x++;
		}
		at += (uint64_t)got;
		p->bytes += (uint64_t)got;
		kept = have < s->plen - 1 ? have : s->plen - 1;
		memmove(s->buf, s->buf + have - kept, kept);
	}
	return 0;
}

/*
 * Search what holds data in [from, to). A hole reads as zeros and the pattern
 * may hold some at its ends, so each piece is taken with a margin.
 */
static int search_sparse(struct spy *s, struct place *p, uint64_t from,
			 uint64_t to)
{
	uint64_t done = from;

	while (done < to) {
		off_t data = lseek(p->fd, (off_t)done, SEEK_DATA), hole;
		uint64_t a, b;
		int err;

		if (data < 0 && errno == ENXIO)
			return 0; /* only a hole is left */
		hole = data < 0 ? -1 : lseek(p->fd, data, SEEK_HOLE);
		if (hole < 0) /* a file system that does not tell */
			return search(s, p, done, to);
		a = (uint64_t)data > from + s->plen ? (uint64_t)data - s->plen
						    : from;
		b = (uint64_t)hole + s->plen < to ? (uint64_t)hole + s->plen
						  : to;
		err = search(s, p, a, b);
		if (err)
			return err;
		done = (uint64_t)hole;
	}
	return 0;
}

static void report(struct spy *s, const struct place *p, const char *name,
		   const char *via, uint64_t dev, uint64_t ino, uint64_t size)
{
	FILE *f = s->objects;

	fputs(s->nobjects++ ? ",\n    " : "\n    ", f);
	fputs("{\"name\": ", f);
	print_string(f, name);
	fprintf(f,
		", \"via\": \"%s\", \"dev\": %llu, \"ino\": %llu, \"size\": "
		"%llu, \"searched_bytes\": %llu, \"match_count\": %llu, "
		"\"matches\": [",
		via, (unsigned long long)dev, (unsigned long long)ino,
		(unsigned long long)size, (unsigned long long)p->bytes,
		(unsigned long long)p->matches);
	for (uint64_t i = 0; i < p->matches && i < MATCHES_SHOWN; i++)
		fprintf(f, "%s%llu", i ? ", " : "",
			(unsigned long long)p->shown[i]);
	fputs("]}", f);
	s->bytes += p->bytes;
	s->matches += p->matches;
}

/* Was [from, end of object) of this object searched already? */
static struct seen *find_seen(struct spy *s, const struct stat *st)
{
	for (size_t i = 0; i < s->nseen; i++)
		if (s->seen[i].dev == st->st_dev &&
		    s->seen[i].ino == st->st_ino)
			return &s->seen[i];
	return NULL;
}

static bool searched(struct spy *s, const struct stat *st, uint64_t from)
{
	const struct seen *e = find_seen(s, st);

	return e && e->from <= from;
}

/* [from, end of object) is searched from now on. */
static void note(struct spy *s, const struct stat *st, uint64_t from)
{
	struct seen *e = find_seen(s, st);

	if (e) {
		e->from = from;
		return;
	}
	s->seen = reallocarray(s->seen, s->nseen + 1, sizeof(*s->seen));
	if (!s->seen)
		die("memory");
	s->seen[s->nseen++] = (struct seen){ st->st_dev, st->st_ino, from };
}

enum memory { NO_MEMORY, MEMORY, HUGE_PAGES };

static enum memory memory_kind(const char *path, const char *link)
{
	struct statfs sf;

	if (starts(link, "/dmabuf:"))
		return MEMORY;
	if (statfs(path, &sf))
		return NO_MEMORY;
	if (sf.f_type == HUGETLBFS_MAGIC)
		return HUGE_PAGES;
	return sf.f_type == TMPFS_MAGIC || sf.f_type == RAMFS_MAGIC ? MEMORY
								    : NO_MEMORY;
}

/* dma-bufs can be mapped, not read */
static int search_dmabuf(struct spy *s, struct place *p, uint64_t *size)
{
	off_t end = lseek(p->fd, 0, SEEK_END);
	void *map;
	int err;

	if (end <= 0)
		return -errno;
	*size = (uint64_t)end;
	map = mmap(NULL, *size, PROT_READ, MAP_SHARED, p->fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	p->map = map;
	err = search(s, p, 0, *size);
	munmap(map, *size);
	return err;
}

static int steal_fd(const struct spy *s, int n)
{
	return s->pidfd < 0 ? -1
			    : (int)syscall(SYS_pidfd_getfd, s->pidfd, n, 0);
}

static void search_fd(struct spy *s, const char *dir, const char *number)
{
	char path[384], link[512];
	struct place p = { 0 };
	struct stat st;
	uint64_t size;
	ssize_t n;
	int err;

	snprintf(path, sizeof(path), "%s/%s", dir, number);
	n = readlink(path, link, sizeof(link) - 1);
	if (n < 0)
		return; /* closed meanwhile */
	link[n] = 0;
	if (link[0] != '/' || stat(path, &st))
		return;
	if (!S_ISREG(st.st_mode) && !starts(link, "/dmabuf:"))
		return;
	if (!memory_kind(path, link) || searched(s, &st, 0))
		return;
	/*
	 * An open file description of our own where possible: seeking in
	 * PID's would disturb it.
	 */
	p.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (p.fd < 0)
		p.fd = steal_fd(s, (int)strtol(number, NULL, 10));
	if (p.fd < 0) {
		failed(s, link, "cannot open what it holds", errno);
		return;
	}
	size = (uint64_t)st.st_size;
	note(s, &st, 0);
	err = !starts(link, "/dmabuf:") ? search_sparse(s, &p, 0, size)
					: search_dmabuf(s, &p, &size);
	if (err)
		failed(s, link, "cannot read what it holds", -err);
	report(s, &p, link, "fd", st.st_dev, st.st_ino, size);
	close(p.fd);
}

/* Descriptors, those of threads that have a table of their own included. */
static void search_fds(struct spy *s)
{
	char tasks[64], path[96];
	DIR *td, *fd;
	struct dirent *t, *e;

	snprintf(tasks, sizeof(tasks), "/proc/%d/task", s->pid);
	td = opendir(tasks);
	if (!td)
		die(tasks);
	while ((t = readdir(td))) {
		if (!isdigit((unsigned char)t->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "%s/%.20s/fd", tasks, t->d_name);
		fd = opendir(path);
		if (!fd) {
			if (errno != ENOENT)
				failed(s, path, "cannot list", errno);
			continue;
		}
		while ((e = readdir(fd)))
			if (isdigit((unsigned char)e->d_name[0]))
				search_fd(s, path, e->d_name);
		closedir(fd);
	}
	closedir(td);
}

struct line {
	unsigned long start, end, offset, ino;
	char perms[5];
	char *name;
};

/* proc(5), maps: start-end perms offset major:minor inode name */
static bool parse(char *text, struct line *l)
{
	char *at;

	l->start = strtoul(text, &at, 16);
	if (*at != '-')
		return false;
	l->end = strtoul(at + 1, &at, 16);
	if (*at != ' ' || strnlen(at, 6) < 6)
		return false;
	memcpy(l->perms, at + 1, 4);
	l->perms[4] = 0;
	l->offset = strtoul(at + 6, &at, 16);
	at = strchr(at, ':');
	at = at ? strchr(at, ' ') : NULL;
	if (!at)
		return false;
	l->ino = strtoul(at, &at, 10);
	l->name = at + strspn(at, " ");
	return true;
}

/* All of /proc/PID/maps, so that it is one snapshot; to be freed. */
static char *read_maps(int pid)
{
	size_t cap = 1 << 16, n = 0;
	char path[64], *buf = malloc(cap);
	ssize_t got = 0;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || !buf) {
		free(buf);
		return NULL;
	}
	while ((got = read(fd, buf + n, cap - n - 1)) > 0) {
		n += (size_t)got;
		if (cap - n < 8192) {
			char *more = realloc(buf, cap *= 2);

			if (!more)
				die("memory");
			buf = more;
		}
	}
	close(fd);
	if (got < 0 || !n) {
		errno = got < 0 ? errno : ESRCH;
		free(buf);
		return NULL;
	}
	buf[n] = 0;
	return buf;
}

static bool still_mapped(const struct spy *s, const struct line *l)
{
	char *maps = read_maps(s->pid), *at = maps, *line;
	bool yes = false;

	while (maps && (line = strsep(&at, "\n"))) {
		struct line x;

		if (parse(line, &x) && x.start < l->end && x.end > l->start)
			yes = true;
	}
	free(maps);
	return yes;
}

static void search_shared(struct spy *s, const struct line *l)
{
	uint64_t from = l->offset, to = l->offset + (l->end - l->start);
	struct place p = { 0 };
	struct stat st;
	char path[96];
	const char *via = "mapped";
	enum memory memory;
	int err;

	if (!l->ino || starts(l->name, "anon_inode:"))
		return;
	snprintf(path, sizeof(path), "/proc/%d/map_files/%lx-%lx", s->pid,
		 l->start, l->end);
	if (stat(path, &st)) {
		if (still_mapped(s, l))
			failed(s, l->name, "cannot follow its mapping", errno);
		return;
	}
	if (S_ISCHR(st.st_mode))
		return;
	memory = memory_kind(path, l->name);
	if ((l->perms[3] != 's' && !memory) || searched(s, &st, from))
		return;
	p.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (p.fd < 0) {
		if (still_mapped(s, l))
			failed(s, l->name, "cannot open its mapping", errno);
		return;
	}
	/* huge pages refuse to grow */
	if (s->grow && memory == MEMORY) {
		note(s, &st, from);
		if (to < (uint64_t)st.st_size) {
			to = (uint64_t)st.st_size;
			via = "grown";
		}
	}
	if (to > (uint64_t)st.st_size)
		to = (uint64_t)st.st_size;
	err = search_sparse(s, &p, from, to);
	if (err)
		failed(s, l->name, "cannot read its mapping", -err);
	report(s, &p, l->name, via, st.st_dev, st.st_ino, (uint64_t)st.st_size);
	close(p.fd);
}

/* Bits 63 and 62 of a word of pagemap: present, or in swap. */
static bool populated(int pagemap, unsigned long addr, long page)
{
	uint64_t word;

	if (pread(pagemap, &word, sizeof(word),
		  (off_t)(addr / (unsigned long)page * sizeof(word))) !=
	    (ssize_t)sizeof(word))
		return true;
	return word >> 62;
}

static void search_private(struct spy *s, struct place *p, int pagemap,
			   const struct line *l)
{
	unsigned long page = (unsigned long)sysconf(_SC_PAGESIZE);
	unsigned long at = l->start;

	if (starts(l->name, "[v")) /* vvar, vsyscall: the kernel's */
		return;
	while (at < l->end) {
		unsigned long to;
		int err;

		while (at < l->end && !populated(pagemap, at, (long)page))
			at += page;
		for (to = at;
		     to < l->end && populated(pagemap, to, (long)page);)
			to += page;
		err = at < to ? search(s, p, at, to) : 0;
		/* its allocator may have given the page back meanwhile */
		if (err && still_mapped(s, l) &&
		    populated(pagemap, at, (long)page))
			failed(s, l->name[0] ? l->name : "anonymous memory",
			       "cannot read its private memory", -err);
		at = to;
	}
}

static void search_maps(struct spy *s)
{
	char *maps = read_maps(s->pid), *at = maps, *text, path[64];
	struct place p = { .fd = -1 };
	int pagemap;

	if (!maps)
		die("cannot read its mappings");
	snprintf(path, sizeof(path), "/proc/%d/mem", s->pid);
	p.fd = s->private ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (s->private && p.fd < 0)
		failed(s, path, "cannot open its private memory", errno);
	snprintf(path, sizeof(path), "/proc/%d/pagemap", s->pid);
	pagemap = open(path, O_RDONLY | O_CLOEXEC);
	while ((text = strsep(&at, "\n"))) {
		struct line l;

		if (!parse(text, &l))
			continue;
		search_shared(s, &l);
		if (p.fd >= 0 && l.perms[3] == 'p')
			search_private(s, &p, pagemap, &l);
	}
	if (p.fd >= 0) {
		report(s, &p, "private memory", "private", 0, 0, p.bytes);
		close(p.fd);
	}
	if (pagemap >= 0)
		close(pagemap);
	free(maps);
}

static unsigned char *read_pattern(const char *arg, size_t *len)
{
	unsigned char *p = malloc(MAX_PATTERN + 1);
	size_t n = 0;

	if (!p)
		die("memory");
	if (arg[0] == '@') {
		FILE *f = fopen(arg + 1, "re");

		if (!f)
			die(arg + 1);
		n = fread(p, 1, MAX_PATTERN + 1, f);
		fclose(f);
	} else {
		for (; arg[2 * n] && n <= MAX_PATTERN; n++) {
			if (!isxdigit((unsigned char)arg[2 * n]) ||
			    !isxdigit((unsigned char)arg[2 * n + 1])) {
				n = 0;
				break;
			}
			p[n] = (unsigned char)strtoul(
				(char[]){ arg[2 * n], arg[2 * n + 1], 0 }, NULL,
				16);
		}
	}
	if (n < 4 || n > MAX_PATTERN) {
		fprintf(stderr,
			"spy: the pattern must be 4 to %d bytes, as "
			"hexadecimal digits or in @FILE\n",
			MAX_PATTERN);
		exit(NO_LOOK);
	}
	*len = n;
	return p;
}

static void print_result(struct spy *s, const char *objects, const char *errors)
{
	printf("{\n  \"pid\": %d,\n  \"pattern_bytes\": %zu,\n"
	       "  \"found\": %s,\n  \"complete\": %s,\n"
	       "  \"match_count\": %llu,\n  \"searched_bytes\": %llu,\n"
	       "  \"objects\": [%s%s],\n  \"errors\": [%s%s]\n}\n",
	       s->pid, s->plen, s->matches ? "true" : "false",
	       s->nerrors ? "false" : "true", (unsigned long long)s->matches,
	       (unsigned long long)s->bytes, objects, s->nobjects ? "\n  " : "",
	       errors, s->nerrors ? "\n  " : "");
}

int main(int argc, char **argv)
{
	struct spy s = { .private = true, .grow = true };
	char *objects = NULL, *errors = NULL, *end;
	size_t olen, elen;
	int at = 1;

	for (; at < argc && starts(argv[at], "--"); at++) {
		if (!strcmp(argv[at], "--no-private"))
			s.private = false;
		else if (!strcmp(argv[at], "--no-grow"))
			s.grow = false;
		else if (strcmp(argv[at], "--private") != 0)
			break;
	}
	s.pid = argc - at == 2 ? (int)strtol(argv[at], &end, 10) : 0;
	if (s.pid <= 0 || *end) {
		fprintf(stderr, "usage: spy [--no-private] [--no-grow] PID "
				"(HEX | @FILE)\n");
		return NO_LOOK;
	}
	s.pattern = read_pattern(argv[at + 1], &s.plen);
	s.buf = malloc(CHUNK + s.plen);
	s.objects = open_memstream(&objects, &olen);
	s.errors = open_memstream(&errors, &elen);
	if (!s.buf || !s.objects || !s.errors)
		die("memory");
	s.pidfd = (int)syscall(SYS_pidfd_open, s.pid, 0);
	if (s.pidfd < 0)
		die("no such process");
	search_fds(&s);
	search_maps(&s);
	/* it may have ended while we looked: then nothing is proven */
	if (kill(s.pid, 0))
		failed(&s, "the process", "ended during the search", 0);
	fclose(s.objects);
	fclose(s.errors);
	print_result(&s, objects, errors);
	free(objects);
	free(errors);
	free(s.seen);
	free(s.buf);
	free(s.pattern);
	close(s.pidfd);
	return s.matches ? FOUND : s.nerrors ? NO_LOOK : NOT_FOUND;
}
