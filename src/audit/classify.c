/* SPDX-License-Identifier: Apache-2.0 */
#include "audit/classify.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * Who is a VMM, by the name of its program file. An argument in @unless says
 * that the same program does something else here.
 */
static const struct vmm_rule {
	const char *name; /* a '*' at the end matches any rest */
	const char *kind;
	const char *unless;
	const char *unless_why;
	bool family;
} vmm_rules[] = {
	{ "qemu-system-*", "qemu", "x-remote",
	  "a QEMU that serves devices (-machine x-remote)", false },
	{ "qemu-kvm", "qemu", "x-remote",
	  "a QEMU that serves devices (-machine x-remote)", false },
	{ "cloud-hypervisor", "cloud-hypervisor", NULL, NULL, false },
	{ "crosvm", "crosvm", "device",
	  "a crosvm that serves a device (crosvm device)", false },
	{ "crosvm", "crosvm", "devices",
	  "a crosvm that serves devices (crosvm devices)", false },
	{ "firecracker*", "firecracker", NULL, NULL, false },
	{ "stratovirt", "stratovirt", NULL, NULL, false },
	{ "lkvm", "kvmtool", NULL, NULL, false },
	{ "kvmtool", "kvmtool", NULL, NULL, false },
	{ "vmware-vmx", "vmware", NULL, NULL, false },
	{ "VBoxHeadless", "virtualbox", NULL, NULL, false },
	{ "VirtualBoxVM", "virtualbox", NULL, NULL, false },
	/*
	 * User-mode Linux: a helper process for its I/O and one for each
	 * address space of the guest, all children that map parts of the
	 * same file.
	 */
	{ "linux", "user-mode-linux", NULL, NULL, true },
	{ "linux.uml", "user-mode-linux", NULL, NULL, true },
	{ "vmlinux", "user-mode-linux", NULL, NULL, true },
	{ 0 },
};

/* Large memory that VMMs share for other ends, by the name of its memfd. */
static const struct {
	const char *name; /* a '*' at the end matches any rest */
	const char *why;
} not_ram[] = {
	{ "vhost-inflight*", "vhost-user's record of requests in flight" },
	{ "vhost-log*", "vhost-user's log of dirty pages" },
	{ "pulseaudio*", "a sound server's buffers" },
	{ "pipewire*", "a sound server's buffers" },
	{ "wayland*", "a window's pixels" },
	{ "gdk-wayland*", "a window's pixels" },
	{ "xshmfence*", "an X11 fence" },
	{ 0 },
};

static bool matches(const char *s, const char *pattern)
{
	size_t n = strlen(pattern);

	if (n && pattern[n - 1] == '*')
		return !strncmp(s, pattern, n - 1);
	return !strcmp(s, pattern);
}

static const char *next_arg(const struct process *p, const char *arg)
{
	arg = arg ? arg + strlen(arg) + 1 : p->args;
	return arg && arg < p->args + p->args_len ? arg : NULL;
}

static bool has_word(const struct process *p, const char *word)
{
	size_t n = strlen(word);

	for (const char *a = next_arg(p, NULL); a; a = next_arg(p, a))
		if (!strncmp(a, word, n) && (!a[n] || a[n] == ','))
			return true;
	return false;
}

struct vmm_verdict classify_vmm(const struct process *p)
{
	const struct vmm_rule *found = NULL;

	for (const struct vmm_rule *r = vmm_rules; r->name; r++) {
		if (!p->exe || !matches(audit_name(p), r->name))
			continue;
		if (r->unless && has_word(p, r->unless))
			return (struct vmm_verdict){ .why = r->unless_why };
		found = r;
	}
	if (found)
		return (struct vmm_verdict){
			.kind = found->kind,
			.why = "the name of its program file",
			.family = found->family,
		};
	if (p->kvm)
		return (struct vmm_verdict){
			.kind = "kvm",
			.why = "holds /dev/kvm or a KVM virtual machine",
			.weak = true,
		};
	return (struct vmm_verdict){ 0 };
}

/* The kernel cuts the name of a process, not of its file, to this. */
#define COMM_LEN 15

bool classify_vmm_name(const struct process *p)
{
	for (const struct vmm_rule *r = vmm_rules; r->name; r++) {
		if (matches(audit_name(p), r->name))
			return true;
		if (p->comm && strlen(p->comm) == COMM_LEN &&
		    !strncmp(p->comm, r->name, COMM_LEN))
			return true;
	}
	return false;
}

const char *classify_guard(const struct process *p, uint64_t dev, uint64_t ino)
{
	const char *arg = next_arg(p, NULL);

	arg = arg ? next_arg(p, arg) : NULL;
	if (!arg || strcmp(arg, "guard") != 0 || !p->exe ||
	    strcmp(audit_name(p), "moat") != 0)
		return NULL;
	if (ino && p->exe_dev == dev && p->exe_ino == ino)
		return "runs `moat guard` from the program file beside this "
		       "audit";
	return "runs `moat guard`, by name: another program file than this "
	       "audit's";
}

/* The value of option @name at @*arg, "--NAME=X" or "--NAME" "X"; or NULL. */
static const char *option(const struct process *p, const char **arg,
			  const char *name)
{
	size_t n = strlen(name);

	if (strncmp(*arg, name, n) != 0)
		return NULL;
	if ((*arg)[n] == '=')
		return *arg + n + 1;
	if ((*arg)[n] || !next_arg(p, *arg))
		return NULL;
	return *arg = next_arg(p, *arg);
}

/* The size in ADDR+SIZE, as the guard's --pool takes it; 0 if it is none. */
static uint64_t pool_size(const char *value)
{
	static const char units[] = "KMG";
	const char *plus = strchr(value, '+'), *unit;
	unsigned int shift = 0;
	uint64_t size;
	char *end;

	if (!plus)
		return 0;
	errno = 0;
	size = strtoull(plus + 1, &end, 0);
	unit = *end ? strchr(units, *end) : NULL;
	if (unit) {
		shift = 10 * (unsigned int)(unit - units + 1);
		end++;
	}
	if (errno || *end || size > UINT64_MAX >> shift)
		return 0;
	return size << shift;
}

uint64_t classify_gives(const struct process *p)
{
	uint64_t most = 0;

	for (const char *a = next_arg(p, NULL); a; a = next_arg(p, a)) {
		const char *value;

		if (!strcmp(a, "--"))
			break; /* the backend's command */
		value = option(p, &a, "--share");
		if (value && !strcmp(value, "bounce"))
			return 0;
		if (value)
			continue;
		if (option(p, &a, "--dtb")) {
			most = UINT64_MAX;
			continue;
		}
		value = option(p, &a, "--pool");
		if (value && pool_size(value) > most)
			most = pool_size(value);
	}
	return most;
}

void classify_object(struct object *o)
{
	const char *name = o->name;

	o->class = CLASS_OTHER;
	o->why = NULL;
	if (o->kind != OBJ_MEMFD || !audit_starts(name, "/memfd:"))
		return;
	name += 7;
	if (!strcmp(name, "moat-pool")) {
		o->class = CLASS_POOL;
		o->why = "a memfd named moat-pool";
		return;
	}
	for (size_t i = 0; not_ram[i].name; i++)
		if (matches(name, not_ram[i].name))
			o->why = not_ram[i].why;
}

const char *classify_ram(const struct object *o, const struct reach *r)
{
	bool mapped = r->writable.n > 0;

	/* a pool is none, and what the table knows is not */
	if (o->class == CLASS_POOL || (o->class == CLASS_OTHER && o->why))
		return NULL;
	if (o->size < AUDIT_RAM_MIN || o->device)
		return NULL;
	switch (o->kind) {
	case OBJ_MEMFD:
		if (mapped)
			return "a memfd that the VMM maps shared and writable";
		return r->nfds ? "a memfd that the VMM holds" : NULL;
	case OBJ_TMPFS:
		return mapped ? "memory of a tmpfs that the VMM maps shared "
				"and writable"
			      : NULL;
	case OBJ_HUGETLB:
		return mapped ? "huge pages that the VMM maps shared and "
				"writable"
			      : NULL;
	case OBJ_DMABUF:
		return mapped || r->nfds ? "a dma-buf that the VMM holds; of "
					   "which pages cannot be seen"
					 : NULL;
	case OBJ_FILE:
		if (mapped && ranges_bytes(&r->writable) >= AUDIT_RAM_FILE_MIN)
			return "a file that the VMM maps shared and writable";
		return NULL;
	case OBJ_ANON:
		break;
	}
	return NULL;
}
