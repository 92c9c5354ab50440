/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Objects by identity. stat(2) through /proc/PID/fd and /proc/PID/map_files
 * asks the inode itself, whatever mount namespace or chroot the process lives
 * in, and opens nothing.
 */
#include "audit/scan.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

struct slot {
	uint64_t dev, ino;
	uint32_t obj; /* index + 1; 0: free */
};

struct fs {
	uint64_t dev;
	enum object_kind kind;
};

struct index {
	struct slot *slots;
	size_t n, mask;
	struct fs *fs;
	size_t nfs, cap_fs;
	uint64_t shm_dev; /* memfds, SysV and anonymous shared memory */
};

int audit_grow(void *array, size_t n, size_t *cap, size_t size)
{
	void **v = array;
	size_t want = *cap ? *cap * 2 : 16;
	void *p;

	if (n < *cap)
		return 0;
	p = reallocarray(*v, want, size);
	if (!p)
		return -ENOMEM;
	*v = p;
	*cap = want;
	return 0;
}

int objects_open(struct audit *a)
{
	struct index *ix = calloc(1, sizeof(*ix));
	struct stat st;
	int fd;

	if (!ix)
		return -ENOMEM;
	a->index = ix;
	ix->mask = 1023;
	ix->slots = calloc(ix->mask + 1, sizeof(*ix->slots));
	if (!ix->slots)
		return -ENOMEM;
	/*
	 * A name "/memfd:..." proves nothing (a tmpfs of another mount
	 * namespace can hold such a file), the kernel's own mount does.
	 */
	fd = memfd_create("moat-audit", MFD_CLOEXEC);
	if (fd >= 0 && !fstat(fd, &st))
		ix->shm_dev = st.st_dev;
	if (fd >= 0)
		close(fd);
	return 0;
}

void objects_close(struct audit *a)
{
	struct index *ix = a->index;

	if (ix) {
		free(ix->slots);
		free(ix->fs);
	}
	free(ix);
	a->index = NULL;
}

static struct slot *find(struct index *ix, uint64_t dev, uint64_t ino)
{
	uint64_t h =
		(ino * 0x9e3779b97f4a7c15ull) ^ (dev * 0xff51afd7ed558ccdull);
	size_t i = (h >> 20) & ix->mask;

	while (ix->slots[i].obj &&
	       (ix->slots[i].dev != dev || ix->slots[i].ino != ino))
		i = (i + 1) & ix->mask;
	return &ix->slots[i];
}

static int rehash(struct index *ix)
{
	struct slot *old = ix->slots;
	size_t n = ix->mask + 1;

	ix->slots = calloc(n * 2, sizeof(*ix->slots));
	if (!ix->slots) {
		ix->slots = old;
		return -ENOMEM;
	}
	ix->mask = n * 2 - 1;
	for (size_t i = 0; i < n; i++)
		if (old[i].obj)
			*find(ix, old[i].dev, old[i].ino) = old[i];
	free(old);
	return 0;
}

/* The index of object (dev, ino), made with @name if it is new. */
static int lookup(struct audit *a, uint64_t dev, uint64_t ino, const char *name,
		  bool *made)
{
	struct index *ix = a->index;
	struct slot *s;
	struct object *o;

	if (ix->n * 2 > ix->mask && rehash(ix))
		return -ENOMEM;
	s = find(ix, dev, ino);
	*made = !s->obj;
	if (s->obj)
		return (int)s->obj - 1;
	if (audit_grow(&a->objs, a->nobjs, &a->cap_objs, sizeof(*a->objs)))
		return -ENOMEM;
	o = &a->objs[a->nobjs];
	*o = (struct object){ .dev = dev, .ino = ino, .seals = -1 };
	o->name = strdup(name);
	if (!o->name)
		return -ENOMEM;
	*s = (struct slot){ dev, ino, (uint32_t)++a->nobjs };
	ix->n++;
	return (int)a->nobjs - 1;
}

static enum object_kind fs_kind(struct index *ix, uint64_t dev,
				const char *path)
{
	struct statfs sf;
	enum object_kind kind = OBJ_FILE;

	for (size_t i = 0; i < ix->nfs; i++)
		if (ix->fs[i].dev == dev)
			return ix->fs[i].kind;
	if (statfs(path, &sf))
		return OBJ_FILE;
	if (sf.f_type == TMPFS_MAGIC || sf.f_type == RAMFS_MAGIC)
		kind = OBJ_TMPFS;
	else if (sf.f_type == HUGETLBFS_MAGIC)
		kind = OBJ_HUGETLB;
	else if (sf.f_type == DMA_BUF_MAGIC)
		kind = OBJ_DMABUF;
	if (!audit_grow(&ix->fs, ix->nfs, &ix->cap_fs, sizeof(*ix->fs)))
		ix->fs[ix->nfs++] = (struct fs){ dev, kind };
	return kind;
}

static bool ends_with(const char *s, const char *end)
{
	size_t n = strlen(s), m = strlen(end);

	return n >= m && !strcmp(s + n - m, end);
}

static void name_object(struct index *ix, struct object *o)
{
	static const char gone[] = " (deleted)";

	if (ends_with(o->name, gone)) {
		o->name[strlen(o->name) - strlen(gone)] = 0;
		o->deleted = true;
	}
	if (o->kind == OBJ_TMPFS && o->dev == ix->shm_dev &&
	    audit_starts(o->name, "/memfd:"))
		o->kind = OBJ_MEMFD;
	/* huge memfds live on the kernel's hugetlbfs mounts, without a name */
	if (o->kind == OBJ_HUGETLB && o->deleted &&
	    audit_starts(o->name, "/memfd:"))
		o->kind = OBJ_MEMFD;
}

static int object_of_stat(struct audit *a, const char *path, const char *link,
			  const struct statx *st)
{
	uint64_t dev = makedev(st->stx_dev_major, st->stx_dev_minor);
	struct object *o;
	bool made;
	int i = lookup(a, dev, st->stx_ino, link, &made);

	if (i < 0)
		return i;
	o = &a->objs[i];
	if (!made && o->statted)
		return i;
	o->statted = true;
	o->kind = fs_kind(a->index, dev, path);
	o->size = st->stx_size;
	o->allocated = st->stx_blocks * 512;
	/* a dma-buf tells its size in blocks only */
	if (o->kind == OBJ_DMABUF && !o->size)
		o->size = o->allocated;
	o->mode = st->stx_mode & 07777;
	o->uid = st->stx_uid;
	o->deleted = !st->stx_nlink;
	if (o->kind != OBJ_FILE)
		o->open_path = strdup(path);
	name_object(a->index, o);
	return i;
}

/* Network file systems are not asked: they could hang. */
static int look(const char *path, struct statx *st)
{
	if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT,
		  STATX_BASIC_STATS, st))
		return -errno;
	return 0;
}

int objects_of_fd(struct audit *a, const char *path, const char *link)
{
	struct statx st;
	int err;

	/* sockets, pipes, event fds; a dma-buf shows as "/dmabuf:" */
	if (link[0] != '/')
		return -ENODEV;
	err = look(path, &st);
	if (err)
		return err;
	if (!S_ISREG(st.stx_mode) && !audit_starts(link, "/dmabuf:"))
		return -ENODEV;
	return object_of_stat(a, path, link, &st);
}

int objects_of_map(struct audit *a, pid_t pid, const struct map_line *m)
{
	struct index *ix = a->index;
	struct slot *s = find(ix, m->dev, m->ino);
	struct object *o;
	struct statx st;
	char path[80];
	bool made;
	int i;

	/* one inode for all of them: no identity, and no memory of a guest */
	if (audit_starts(m->name, "anon_inode:"))
		return -ENODEV;
	/* In memory file systems maps' device is stat's; btrfs differs. */
	if (s->obj && a->objs[s->obj - 1].kind != OBJ_FILE)
		return (int)s->obj - 1;
	snprintf(path, sizeof(path), "/proc/%d/map_files/%lx-%lx", (int)pid,
		 (unsigned long)m->start, (unsigned long)m->end);
	if (!look(path, &st)) {
		if (S_ISCHR(st.stx_mode))
			return -ENODEV;
		return object_of_stat(a, path, m->name, &st);
	}
	if (audit_starts(m->name, "/dev/") &&
	    !audit_starts(m->name, "/dev/shm/") &&
	    !audit_starts(m->name, "/dev/zero") &&
	    !audit_starts(m->name, "/dev/hugepages"))
		return -ENODEV;
	/* no capability to follow map_files: what maps says must do */
	i = lookup(a, m->dev, m->ino, m->name, &made);
	if (i < 0)
		return i;
	o = &a->objs[i];
	if (made) {
		bool shm = m->dev == ix->shm_dev ||
			   audit_starts(m->name, "/dev/shm/");

		o->kind = shm ? OBJ_TMPFS : OBJ_FILE;
		if (audit_starts(m->name, "/dmabuf:"))
			o->kind = OBJ_DMABUF;
		name_object(ix, o);
	}
	if (!o->statted && o->size < m->offset + (m->end - m->start))
		o->size = m->offset + (m->end - m->start);
	return i;
}

int audit_anon_object(struct audit *a, const struct process *p)
{
	bool made;
	int i = lookup(a, 0, (uint64_t)p->pid, "", &made);

	if (i < 0)
		return i;
	a->objs[i].kind = OBJ_ANON;
	a->objs[i].owner = p->pid;
	a->objs[i].deleted = true;
	a->objs[i].size = ranges_bytes(&p->anon);
	return i;
}

bool objects_held(const struct object *o, pid_t pid)
{
	bool found = false;
	struct dirent *e;
	char path[64];
	struct stat st;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	d = opendir(path);
	while (d && !found && (e = readdir(d)))
		found = e->d_name[0] != '.' &&
			!fstatat(dirfd(d), e->d_name, &st, 0) &&
			st.st_dev == o->dev && st.st_ino == o->ino;
	if (d)
		closedir(d);
	return found;
}

void audit_seals(struct object *o)
{
	int fd;

	if (!o->open_path || o->kind == OBJ_FILE || o->kind == OBJ_DMABUF)
		return;
	fd = open(o->open_path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return;
	o->seals = fcntl(fd, F_GET_SEALS);
	close(fd);
}

/* A number in base @base that ends with @sep; moves @at behind it. */
static bool number(char **at, int base, char sep, uint64_t *v)
{
	char *end;

	errno = 0;
	*v = strtoull(*at, &end, base);
	if (errno || end == *at || *end != sep)
		return false;
	*at = end + 1;
	return true;
}

/* proc(5), maps: start-end perms offset major:minor inode name */
bool maps_parse(char *line, struct map_line *m)
{
	uint64_t major, minor;
	char *at = line;

	if (!number(&at, 16, '-', &m->start) ||
	    !number(&at, 16, ' ', &m->end) || m->end <= m->start ||
	    strnlen(at, 5) < 5)
		return false;
	memcpy(m->perms, at, sizeof(m->perms));
	at += 5;
	if (!number(&at, 16, ' ', &m->offset) ||
	    !number(&at, 16, ':', &major) || !number(&at, 16, ' ', &minor))
		return false;
	m->ino = strtoull(at, &at, 10);
	m->dev = makedev((unsigned int)major, (unsigned int)minor);
	m->name = at + strspn(at, " ");
	/* an offset that wraps is an address, such as that of [vsyscall] */
	return m->offset + (m->end - m->start) >= m->offset;
}
