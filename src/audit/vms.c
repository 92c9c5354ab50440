/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From processes and objects to VMs: which processes are one VM, which
 * objects are its RAM, who else reaches them.
 */
#include "audit/audit.h"
#include "audit/classify.h"
#include "audit/pools.h"
#include "audit/scan.h"
#include "audit/seats.h"
#include "audit/vms.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct work {
	struct audit *a;
	const struct audit_request *req;
	struct vmm_verdict *verdicts; /* one a process */
	size_t cap_vms;
};

int audit_add_index(uint32_t **v, size_t *n, uint32_t x)
{
	uint32_t *p;

	for (size_t i = 0; i < *n; i++)
		if ((*v)[i] == x)
			return 0;
	p = reallocarray(*v, *n + 1, sizeof(**v));
	if (!p)
		return -ENOMEM;
	*v = p;
	p[(*n)++] = x;
	return 0;
}

int audit_find_pid(const struct audit *a, pid_t pid)
{
	for (size_t i = 0; i < a->nprocs; i++)
		if (a->procs[i].pid == pid)
			return (int)i;
	return -1;
}

int audit_add_private(struct audit *a, struct vm *vm)
{
	int obj = audit_anon_object(a, &a->procs[vm->proc]);

	if (obj < 0)
		return obj;
	a->objs[obj].class = CLASS_RAM;
	a->objs[obj].why = "the VMM's large private mappings: shared with "
			   "nobody (a guess: its heap may be among them)";
	return audit_add_index(&vm->objs, &vm->nobjs, (uint32_t)obj);
}

/* The first ancestor that runs the same program, or @i itself. */
static size_t root_of(const struct audit *a, size_t i)
{
	size_t root = i;

	/* a bound: pids can be used again while we read */
	for (size_t steps = 0; steps < a->nprocs; steps++) {
		const struct process *p = &a->procs[root];
		int up = audit_find_pid(a, p->ppid);

		if (up < 0 || !p->exe_ino ||
		    a->procs[up].exe_ino != p->exe_ino ||
		    a->procs[up].exe_dev != p->exe_dev || (size_t)up == root)
			break;
		root = (size_t)up;
	}
	return root;
}

static bool explicit_vmm(const struct work *w, size_t i)
{
	for (size_t k = 0; k < w->req->nvmms; k++)
		if (w->req->vmms[k] == w->a->procs[i].pid)
			return true;
	return false;
}

/* Does it hold what could be a guest's RAM? -1: no; else the first object */
static int first_ram(const struct audit *a, const struct process *p)
{
	for (size_t i = 0; i < p->nreach; i++)
		if (classify_ram(&a->objs[p->reach[i].obj], &p->reach[i]))
			return (int)p->reach[i].obj;
	return -1;
}

/* The VM whose RAM one of @p's objects is already, or -1. */
static int owner_vm(const struct audit *a, const struct process *p)
{
	for (size_t i = 0; i < p->nreach; i++) {
		if (a->objs[p->reach[i].obj].class != CLASS_RAM)
			continue;
		for (size_t v = 0; v < a->nvms; v++)
			for (size_t k = 0; k < a->vms[v].nobjs; k++)
				if (a->vms[v].objs[k] == p->reach[i].obj)
					return (int)v;
	}
	return -1;
}

/* Make process @i a part of VM @v, and what it holds the VM's RAM. */
static int join_vm(struct audit *a, size_t v, size_t i)
{
	struct process *p = &a->procs[i];
	struct vm *vm = &a->vms[v];
	int err = audit_add_index(&vm->members, &vm->nmembers, (uint32_t)i);

	p->vm = (int)v;
	for (size_t k = 0; !err && k < p->nreach; k++) {
		struct object *o = &a->objs[p->reach[k].obj];
		const char *why = classify_ram(o, &p->reach[k]);

		if (!why)
			continue;
		if (o->class != CLASS_RAM) {
			o->class = CLASS_RAM;
			o->why = why;
		}
		err = audit_add_index(&vm->objs, &vm->nobjs, p->reach[k].obj);
	}
	return err;
}

static int new_vm(struct work *w, size_t i, const char *kind, const char *why)
{
	struct audit *a = w->a;
	struct process *p = &a->procs[i];
	struct vm *vm;
	int err;

	if (first_ram(a, p) < 0 && !p->anon.n)
		return 0;
	err = audit_grow(&a->vms, a->nvms, &w->cap_vms, sizeof(*a->vms));
	if (err)
		return err;
	vm = &a->vms[a->nvms++];
	*vm = (struct vm){ .proc = (uint32_t)i, .kind = kind, .why = why };
	err = join_vm(a, a->nvms - 1, i);
	if (err || vm->nobjs)
		return err;
	/*
	 * Nothing that is shared: then its large private mappings are the
	 * guest's memory, and only ptrace(2) reaches them.
	 */
	return audit_add_private(a, vm);
}

/* VMMs that were named to us, then those known by their program's name. */
static int find_roots(struct work *w)
{
	struct audit *a = w->a;
	int err = 0;

	for (size_t i = 0; !err && i < a->nprocs; i++)
		if (explicit_vmm(w, i))
			err = new_vm(w, i, "vmm", "named by --vmm");
	for (size_t i = 0; !err && i < a->nprocs; i++) {
		const struct vmm_verdict *d = &w->verdicts[i];
		struct process *p = &a->procs[i];
		int v;

		if (!d->kind || d->weak || p->vm >= 0 || root_of(a, i) != i)
			continue;
		/* parts of a family whose parent has gone */
		v = d->family ? owner_vm(a, p) : -1;
		if (v >= 0 && a->procs[a->vms[v].proc].exe_ino == p->exe_ino)
			err = join_vm(a, (size_t)v, i);
		else
			err = new_vm(w, i, d->kind, d->why);
	}
	return err;
}

static int find_children(struct work *w)
{
	struct audit *a = w->a;
	int err = 0;

	for (size_t i = 0; !err && i < a->nprocs; i++) {
		const struct vmm_verdict *d = &w->verdicts[i];
		struct process *p = &a->procs[i];
		size_t root;
		int v;

		if (!d->kind || d->weak || p->vm >= 0)
			continue;
		root = root_of(a, i);
		v = a->procs[root].vm;
		if (root == i || v < 0)
			continue;
		if (d->family || p->kvm)
			err = join_vm(a, (size_t)v, i);
		else
			p->not_vmm = "a child of the VMM that holds no KVM: a "
				     "device process";
	}
	return err;
}

static int by_start(const void *x, const void *y, void *arg)
{
	const struct audit *a = arg;
	const struct process *p = &a->procs[*(const uint32_t *)x];
	const struct process *q = &a->procs[*(const uint32_t *)y];

	return (p->start > q->start) - (p->start < q->start);
}

/*
 * VMMs that only KVM betrays. Anybody may open /dev/kvm, a hostile backend
 * too, to look like a VMM: so memory that has a VMM already takes no other,
 * and of several the oldest is the VMM and the rest are reported.
 */
static int find_weak(struct work *w)
{
	struct audit *a = w->a;
	uint32_t *order = NULL;
	size_t n = 0;
	int err = 0;

	for (size_t i = 0; !err && i < a->nprocs; i++)
		if (w->verdicts[i].weak && a->procs[i].vm < 0 &&
		    !a->procs[i].guard)
			err = audit_add_index(&order, &n, (uint32_t)i);
	if (n)
		qsort_r(order, n, sizeof(*order), by_start, a);
	for (size_t k = 0; !err && k < n; k++) {
		struct process *p = &a->procs[order[k]];

		if (owner_vm(a, p) >= 0)
			p->not_vmm = "holds KVM, but this memory has a VMM "
				     "already";
		else if (first_ram(a, p) >= 0 || p->anon.n)
			err = new_vm(w, order[k], w->verdicts[order[k]].kind,
				     w->verdicts[order[k]].why);
	}
	free(order);
	return err;
}

/* The program `moat` that lies beside this one: a guard that runs it is ours.
 */
static int stat_moat(struct stat *st)
{
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
	char *slash;

	if (n <= 0)
		return -1;
	path[n] = 0;
	slash = strrchr(path, '/');
	snprintf(slash + 1, sizeof(path) - (size_t)(slash + 1 - path), "moat");
	return stat(path, st);
}

static int classify_all(struct work *w)
{
	struct audit *a = w->a;
	struct stat self = { 0 };
	int err;

	if (stat_moat(&self))
		self.st_ino = 0;
	for (size_t i = 0; i < a->nobjs; i++)
		classify_object(&a->objs[i]);
	for (size_t i = 0; i < a->nprocs; i++) {
		struct process *p = &a->procs[i];

		w->verdicts[i] = classify_vmm(p);
		if (!w->verdicts[i].kind)
			p->not_vmm = w->verdicts[i].why;
		p->looks_vmm = classify_vmm_name(p);
		p->guard = classify_guard(p, self.st_dev, self.st_ino);
	}
	for (size_t i = 0; i < a->nprocs; i++)
		if (a->procs[i].pid == getpid())
			a->powerful = audit_can_ptrace(&a->procs[i]);
	err = find_roots(w);
	if (!err)
		err = find_children(w);
	if (!err)
		err = find_weak(w);
	if (!err)
		err = pools_find(a);
	for (size_t v = 0; !err && v < a->nvms; v++)
		err = seats_fill(a, &a->vms[v]);
	return err;
}

int audit_classify(struct audit *a, const struct audit_request *req)
{
	struct work w = { .a = a, .req = req };
	uint32_t id = 0;
	int err = -ENOMEM;

	w.verdicts = calloc(a->nprocs + 1, sizeof(*w.verdicts));
	if (w.verdicts)
		err = classify_all(&w);
	free(w.verdicts);
	if (err)
		return err;
	seats_select(a, !req->npids && !req->nnames);
	for (size_t v = 0; v < a->nvms; v++)
		for (size_t i = 0; i < a->vms[v].nobjs; i++) {
			struct object *o = &a->objs[a->vms[v].objs[i]];

			if (!o->id) {
				o->id = ++id;
				audit_seals(o);
			}
		}
	for (size_t i = 0; i < a->nprocs; i++)
		a->incomplete += audit_matters(a, &a->procs[i]);
	return 0;
}
