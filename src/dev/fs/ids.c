/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose rights a request has.
 *
 * Users and groups are the guest's; here they may be others (--translate-uid).
 * A file is made as the request's user, so that it belongs to whom it should
 * and set-group-ID directories work. All else is done with the daemon's rights:
 * the guest has checked what its users may do.
 *
 * Linux has credentials for each thread, libc's functions change those of all
 * of them: hence plain system calls. A thread that is somebody else has lost
 * its effective capabilities, and has them again when it comes back.
 */
#include <errno.h>
#include <linux/capability.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "dev/fs/fs.h"

/* The protocol's (7.38), which older headers lack. */
struct ext_header {
	uint32_t size, type;
};
#define EXT_GROUPS 32u
#define GROUPS_MAX 32u /* Linux sends one */

#define SAME ((uint32_t)-1) /* "no change", and never an id */
#define CAP(name) (UINT64_C(1) << CAP_##name)

/* ---- translation ---- */

static const struct {
	const char *word;
	uint32_t fields;
	bool guest, host; /* which way it translates */
} kinds[] = {
	[FS_ID_GUEST] = { "guest", 3, true, false },
	[FS_ID_HOST] = { "host", 3, false, true },
	[FS_ID_BOTH] = { "map", 3, true, true },
	[FS_ID_SQUASH_GUEST] = { "squash-guest", 3, true, false },
	[FS_ID_SQUASH_HOST] = { "squash-host", 3, false, true },
	[FS_ID_FORBID_GUEST] = { "forbid-guest", 2, true, false },
};

#define KINDS (sizeof(kinds) / sizeof(*kinds))

static bool parse_fields(const char *at, uint32_t n, uint32_t *field)
{
	for (uint32_t i = 0; i < n; i++) {
		unsigned long value;
		char *end;

		if (*at++ != ':' || *at < '0' || *at > '9')
			return false;
		errno = 0;
		value = strtoul(at, &end, 10);
		if (errno || value > UINT32_MAX)
			return false;
		field[i] = (uint32_t)value;
		at = end;
	}
	return !*at;
}

static bool fits(uint32_t base, uint32_t count)
{
	return count && (uint64_t)base + count <= UINT64_C(1) << 32;
}

static bool overlap(uint32_t a, uint32_t na, uint32_t b, uint32_t nb)
{
	return a < (uint64_t)b + nb && b < (uint64_t)a + na;
}

/* Where a rule's ids begin on the host's side, for host to guest. */
static uint32_t host_base(const struct fs_id_map *m)
{
	return m->kind == FS_ID_BOTH ? m->to : m->from;
}

static bool clash(const struct fs_id_map *a, const struct fs_id_map *b)
{
	if (kinds[a->kind].guest && kinds[b->kind].guest &&
	    overlap(a->from, a->count, b->from, b->count))
		return true;
	return kinds[a->kind].host && kinds[b->kind].host &&
	       overlap(host_base(a), a->count, host_base(b), b->count);
}

int fs_ids_parse(const char *arg, struct fs_id_map *maps, uint32_t *n)
{
	size_t len = strcspn(arg, ":");
	struct fs_id_map *m = &maps[*n];
	uint32_t field[3] = { 0 };
	size_t kind = 0;

	while (kind < KINDS && (strncmp(arg, kinds[kind].word, len) != 0 ||
				kinds[kind].word[len]))
		kind++;
	if (kind == KINDS || *n == FS_ID_MAPS ||
	    !parse_fields(arg + len, kinds[kind].fields, field))
		return -EINVAL;
	m->kind = kind;
	m->from = field[0];
	m->to = kinds[kind].fields == 3 ? field[1] : 0;
	m->count = field[kinds[kind].fields - 1];
	if (!fits(m->from, m->count))
		return -EINVAL;
	if (kind <= FS_ID_BOTH && !fits(m->to, m->count))
		return -EINVAL;
	for (uint32_t i = 0; i < *n; i++)
		if (clash(&maps[i], m))
			return -EINVAL;
	++*n;
	return 0;
}

static uint32_t to_guest(const struct fs_id_map *maps, uint32_t n, uint32_t id)
{
	for (uint32_t i = 0; i < n; i++) {
		const struct fs_id_map *m = &maps[i];
		uint32_t base = host_base(m);

		if (!kinds[m->kind].host || id < base || id - base >= m->count)
			continue;
		if (m->kind == FS_ID_SQUASH_HOST)
			return m->to;
		return (m->kind == FS_ID_BOTH ? m->from : m->to) + (id - base);
	}
	return id;
}

static int to_host(const struct fs_id_map *maps, uint32_t n, uint32_t guest,
		   uint32_t *id)
{
	*id = guest;
	for (uint32_t i = 0; i < n; i++) {
		const struct fs_id_map *m = &maps[i];

		if (!kinds[m->kind].guest || guest < m->from ||
		    guest - m->from >= m->count)
			continue;
		if (m->kind == FS_ID_FORBID_GUEST)
			return -EPERM;
		*id = m->to;
		if (m->kind != FS_ID_SQUASH_GUEST)
			*id += guest - m->from;
		break;
	}
	/* The kernel would take it for "leave it as it is": as root. */
	return *id == SAME ? -EINVAL : 0;
}

uint32_t fs_uid_to_guest(const struct fs *fs, uint32_t uid)
{
	return to_guest(fs->opt->ids.uid, fs->opt->ids.nuid, uid);
}

uint32_t fs_gid_to_guest(const struct fs *fs, uint32_t gid)
{
	return to_guest(fs->opt->ids.gid, fs->opt->ids.ngid, gid);
}

int fs_uid_to_host(const struct fs *fs, uint32_t guest, uint32_t *uid)
{
	return to_host(fs->opt->ids.uid, fs->opt->ids.nuid, guest, uid);
}

int fs_gid_to_host(const struct fs *fs, uint32_t guest, uint32_t *gid)
{
	return to_host(fs->opt->ids.gid, fs->opt->ids.ngid, guest, gid);
}

/* ---- what a thread is ---- */

static int set_uid(struct fs_thread *t, uint32_t uid)
{
	if (uid == t->uid)
		return 0;
	if (syscall(SYS_setresuid, SAME, uid, SAME))
		return -errno;
	t->uid = uid;
	return 0;
}

static int set_gid(struct fs_thread *t, uint32_t gid)
{
	if (gid == t->gid)
		return 0;
	if (syscall(SYS_setresgid, SAME, gid, SAME))
		return -errno;
	t->gid = gid;
	return 0;
}

static int set_groups(struct fs_thread *t, uint32_t n, const gid_t *groups)
{
	if (!n && !t->ngroups)
		return 0;
	if (syscall(SYS_setgroups, (size_t)n, groups))
		return -errno;
	t->ngroups = n;
	return 0;
}

static int set_capabilities(uint64_t effective, uint64_t permitted)
{
	struct __user_cap_header_struct head = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct cap[2] = {
		{ (uint32_t)effective, (uint32_t)permitted, 0 },
		{ (uint32_t)(effective >> 32), (uint32_t)(permitted >> 32), 0 },
	};

	return syscall(SYS_capset, &head, cap) ? -errno : 0;
}

/* What the daemon has kept; it never changes. */
static uint64_t permitted(struct fs_thread *t)
{
	struct __user_cap_header_struct head = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct cap[2] = { { 0 } };

	if (!t->caps_known && !syscall(SYS_capget, &head, cap)) {
		t->caps = (uint64_t)cap[1].permitted << 32 | cap[0].permitted;
		t->caps_known = true;
	}
	return t->caps;
}

static void set_fsetid(struct fs_thread *t, bool have)
{
	uint64_t caps;

	if (t->fsetid == have)
		return;
	caps = permitted(t);
	/* Without it, bits are cleared always: there is nothing to do. */
	if (!(caps & CAP(FSETID)) ||
	    !set_capabilities(have ? caps : caps & ~CAP(FSETID), caps))
		t->fsetid = have;
}

/*
 * The kernel asks whether the thread is in the file's group. It stays in one
 * until another is wanted, so that many writes cost no system call each.
 */
void fs_fsetid(struct fs_req *r, const struct fs_node *node, bool have)
{
	uint64_t group = __atomic_load_n(&node->setgid, __ATOMIC_RELAXED);

	set_fsetid(r->thread, have);
	/* If it fails, a bit goes that might have stayed. */
	if (r->fs->privileged)
		set_gid(r->thread,
			have || !group ? r->fs->gid : (gid_t)(group - 1));
}

/* ---- acting as somebody ---- */

static int supp_groups(const struct fs_req *r, const uint8_t *p, uint32_t len,
		       uint32_t *n, gid_t *groups)
{
	uint32_t count, guest;
	int ret = 0;

	if (len < sizeof(count))
		return -EINVAL;
	memcpy(&count, p, sizeof(count));
	if (count > GROUPS_MAX || len - sizeof(count) < count * sizeof(guest))
		return -EINVAL;
	for (uint32_t i = 0; !ret && i < count; i++) {
		memcpy(&guest, p + sizeof(count) + i * sizeof(guest),
		       sizeof(guest));
		ret = fs_gid_to_host(r->fs, guest, &groups[i]);
	}
	*n = count;
	return ret;
}

/*
 * Extensions follow each other, each with its header and padded. Groups are the
 * only ones that INIT agrees on.
 */
static int read_extensions(const struct fs_req *r, uint32_t *n, gid_t *groups)
{
	const uint8_t *p = r->thread->ext;
	uint32_t left = r->ext;
	struct ext_header h;
	int ret = 0;

	*n = 0;
	while (!ret && left) {
		if (left < sizeof(h))
			return -EINVAL;
		memcpy(&h, p, sizeof(h));
		if (h.size < sizeof(h) || h.size > left ||
		    h.type != EXT_GROUPS || *n)
			return -EINVAL;
		ret = supp_groups(r, p + sizeof(h),
				  h.size - (uint32_t)sizeof(h), n, groups);
		p += h.size;
		left -= h.size;
	}
	return ret;
}

/*
 * A user may be let into a directory by a group that we are not told of: by a
 * guest that can not (Linux before 6.3), or by an ACL. The guest has checked
 * that; so the thread goes past the check here.
 */
static bool groups_are_told(const struct fs *fs)
{
	return fs_flags(fs) & FUSE_CREATE_SUPP_GROUP && !fs->opt->posix_acl;
}

static int take_rights(struct fs_req *r, uint32_t uid, uint32_t gid, uint32_t n,
		       const gid_t *groups)
{
	struct fs_thread *t = r->thread;
	uint64_t caps;
	int ret;

	/* While it may: the group first. */
	ret = set_gid(t, gid);
	if (!ret)
		ret = set_groups(t, n, groups);
	if (!ret)
		ret = set_uid(t, uid);
	if (ret || uid == r->fs->uid || groups_are_told(r->fs))
		return ret;
	caps = permitted(t);
	return set_capabilities(caps & CAP(DAC_OVERRIDE), caps);
}

int fs_become(struct fs_req *r, uint32_t umask_wanted)
{
	struct fs_thread *t = r->thread;
	gid_t groups[GROUPS_MAX];
	uint32_t uid, gid, n;
	int ret;

	ret = fs_uid_to_host(r->fs, r->in.uid, &uid);
	if (!ret)
		ret = fs_gid_to_host(r->fs, r->in.gid, &gid);
	if (!ret)
		ret = read_extensions(r, &n, groups);
	if (ret)
		return ret;
	umask_wanted &= 0777;
	if (t->umask != umask_wanted) {
		umask(umask_wanted);
		t->umask = umask_wanted;
	}
	set_fsetid(t, true);
	return r->fs->privileged ? take_rights(r, uid, gid, n, groups) : 0;
}

void fs_become_self(struct fs_req *r)
{
	struct fs_thread *t = r->thread;
	bool was_other = t->uid != r->fs->uid;
	int ret;

	if (!r->fs->privileged)
		return;
	ret = set_uid(t, r->fs->uid);
	if (!ret)
		ret = set_gid(t, r->fs->gid);
	if (!ret)
		ret = set_groups(t, 0, NULL);
	/* The kernel gives back what it took, but not if nobody was root. */
	if (!ret && was_other && r->fs->uid)
		ret = set_capabilities(permitted(t), permitted(t));
	if (ret)
		moat_device_log(r->fs->log, MOAT_DEVICE_ERROR,
				"a thread can not be user %u again, and works "
				"with the rights of user %u: %s",
				r->fs->uid, t->uid, strerror(-ret));
}

/* ---- may it? ---- */

static void *try(void *arg)
{
	bool *may = arg;
	uint32_t other = geteuid() == 1 ? 2 : 1;

	*may = !syscall(SYS_setgroups, (size_t)0, NULL) &&
	       !syscall(SYS_setresgid, SAME, other, SAME) &&
	       !syscall(SYS_setresuid, SAME, other, SAME);
	return NULL;
}

/*
 * On a thread that ends with it: what changed stays changed, and a parent-death
 * signal, for one, is lost with the user.
 */
void fs_ids_start(struct fs *fs)
{
	pthread_t thread;
	bool may = false;

	if (!pthread_create(&thread, NULL, try, &may))
		pthread_join(thread, NULL);
	fs->privileged = may;
	if (!may)
		moat_device_log(fs->log, MOAT_DEVICE_INFO,
				"may not act as other users: all that the "
				"guest makes belongs to user %u",
				fs->uid);
}
