/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The words that table, JSON and SVG share, and small questions on processes.
 */
#include "audit/audit.h"

#include <linux/capability.h>
#include <string.h>

const char *audit_escape(const char *s, char *buf, size_t size)
{
	static const char hex[] = "0123456789abcdef";
	size_t at = 0;

	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;
		bool plain = c >= 0x20 && c < 0x7f && c != '\\';

		if (at + (plain ? 1 : 4) + 4 > size) {
			memcpy(buf + at, "...", 4);
			return buf;
		}
		if (plain) {
			buf[at++] = (char)c;
		} else {
			buf[at++] = '\\';
			buf[at++] = 'x';
			buf[at++] = hex[c >> 4];
			buf[at++] = hex[c & 15];
		}
	}
	buf[at] = 0;
	return buf;
}

bool audit_starts(const char *s, const char *prefix)
{
	return strncmp(s, prefix, strlen(prefix)) == 0;
}

const char *audit_size(uint64_t bytes, char *buf)
{
	static const char *const unit[] = { "KiB", "MiB", "GiB", "TiB" };
	double v = (double)bytes / 1024;
	size_t i = 0;

	if (bytes < 1024) {
		snprintf(buf, 24, "%u B", (unsigned)bytes);
		return buf;
	}
	for (; v >= 1024 && i < 3; i++)
		v /= 1024;
	snprintf(buf, 24, "%.1f %s", v, unit[i]);
	return buf;
}

const char *audit_kind_name(enum object_kind kind)
{
	static const char *const names[] = {
		[OBJ_MEMFD] = "memfd",	   [OBJ_TMPFS] = "tmpfs",
		[OBJ_HUGETLB] = "hugetlb", [OBJ_DMABUF] = "dmabuf",
		[OBJ_FILE] = "file",	   [OBJ_ANON] = "anon",
	};

	return names[kind];
}

const char *audit_class_name(enum object_class class)
{
	static const char *const names[] = {
		[CLASS_OTHER] = "other",
		[CLASS_RAM] = "ram",
		[CLASS_POOL] = "pool",
	};

	return names[class];
}

const char *audit_role_name(enum role role)
{
	static const char *const names[] = {
		[ROLE_NONE] = "none",		[ROLE_VMM] = "vmm",
		[ROLE_GUARD] = "guard",		[ROLE_BACKEND] = "backend",
		[ROLE_OTHER_VMM] = "other-vmm",
	};

	return names[role];
}

const char *audit_name(const struct process *p)
{
	const char *slash = p->exe ? strrchr(p->exe, '/') : NULL;

	if (slash && slash[1])
		return slash + 1;
	return p->comm ? p->comm : "?";
}

const char *audit_object_title(const struct object *o)
{
	if (o->kind == OBJ_ANON)
		return "private memory";
	if (o->kind == OBJ_MEMFD && o->name[0] == '/')
		return o->name + 1;
	return o->name[0] ? o->name : "?";
}

const char *audit_givers(const struct audit *a, const struct object *o,
			 char *buf)
{
	int first = o->ngivers ? (int)a->procs[o->givers[0]].pid : 0;
	const char *by = o->given ? "given by" : "of";

	if (o->ngivers > 1)
		snprintf(buf, GIVERS_TEXT, "%s %zu guards (%d ...)", by,
			 o->ngivers, first);
	else
		snprintf(buf, GIVERS_TEXT, "%s the guard %d", by, first);
	return buf;
}

static bool has_cap(const struct process *p, unsigned int cap)
{
	return p->caps >> cap & 1;
}

bool audit_can_ptrace(const struct process *p)
{
	return has_cap(p, CAP_SYS_PTRACE);
}

/* proc(5), map_files: following a link takes one of these two */
bool audit_can_reopen(const struct process *p)
{
	return has_cap(p, CAP_SYS_ADMIN) || has_cap(p, CAP_CHECKPOINT_RESTORE);
}

bool audit_matters(const struct audit *a, const struct process *p)
{
	if (!p->err)
		return false;
	return p->asked || p->looks_vmm || !a->powerful || !audit_can_ptrace(p);
}

bool audit_outside(const struct seat *s)
{
	return s->outside > 0;
}

bool audit_foreign(const struct audit *a, const struct seat *s, uint32_t obj)
{
	const struct object *o = &a->objs[obj];

	if (o->class != CLASS_POOL || s->role == ROLE_VMM ||
	    s->role == ROLE_GUARD)
		return false;
	for (size_t i = 0; i < o->nstrangers; i++)
		if (o->strangers[i] == s->proc)
			return true;
	return s->role == ROLE_OTHER_VMM;
}
