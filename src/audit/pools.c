/* SPDX-License-Identifier: Apache-2.0 */
#include "audit/pools.h"
#include "audit/classify.h"
#include "audit/scan.h"
#include "audit/vms.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW)

/* What looks as if guard @proc gave @obj of VM @vm to its backend. */
struct gift {
	uint32_t vm, proc, obj;
};

struct gifts {
	struct gift *v;
	size_t n, cap;
};

static bool listed(const uint32_t *v, size_t n, uint32_t x)
{
	for (size_t i = 0; i < n; i++)
		if (v[i] == x)
			return true;
	return false;
}

static const struct reach *find_reach(const struct process *p, uint32_t obj)
{
	for (size_t i = 0; i < p->nreach; i++)
		if (p->reach[i].obj == obj)
			return &p->reach[i];
	return NULL;
}

/* Does @p reach memory of @vm? So a guard is known to be one of this VM. */
static bool touches(const struct vm *vm, const struct process *p)
{
	for (size_t i = 0; i < p->nreach; i++)
		if (listed(vm->objs, vm->nobjs, p->reach[i].obj))
			return true;
	return false;
}

static bool vm_maps(const struct audit *a, const struct vm *vm, uint32_t obj)
{
	for (size_t i = 0; i < vm->nmembers; i++) {
		const struct reach *r =
			find_reach(&a->procs[vm->members[i]], obj);

		if (r && r->writable.n)
			return true;
	}
	return false;
}

static bool could_be_given(struct audit *a, const struct vm *vm,
			   const struct process *p, const struct reach *r)
{
	struct object *o = &a->objs[r->obj];

	/* a pool already, or known to be for something else */
	if (!r->nfds || o->class == CLASS_POOL ||
	    (o->class == CLASS_OTHER && o->why))
		return false;
	if (!o->size || o->size > classify_gives(p))
		return false;
	if (o->kind == OBJ_DMABUF)
		return !o->device && touches(vm, p);
	if (!vm_maps(a, vm, r->obj))
		return false;
	audit_seals(o);
	return o->seals >= 0 && (o->seals & SEALS) == SEALS;
}

static int collect(struct audit *a, size_t v, struct gifts *g)
{
	for (size_t i = 0; i < a->nprocs; i++) {
		const struct process *p = &a->procs[i];

		if (!p->guard || !classify_gives(p))
			continue;
		for (size_t k = 0; k < p->nreach; k++) {
			if (!could_be_given(a, &a->vms[v], p, &p->reach[k]))
				continue;
			if (audit_grow(&g->v, g->n, &g->cap, sizeof(*g->v)))
				return -ENOMEM;
			g->v[g->n++] = (struct gift){ (uint32_t)v, (uint32_t)i,
						      p->reach[k].obj };
		}
	}
	return 0;
}

/*
 * While a guard takes a new table of memory it holds descriptors of all of
 * it, for a moment. So it is asked twice.
 */
static void look_again(const struct audit *a, struct gifts *g)
{
	const struct timespec pause = {
		.tv_nsec = AUDIT_POOL_LOOK_MS * 1000000L,
	};
	size_t kept = 0;

	if (!g->n)
		return;
	nanosleep(&pause, NULL);
	for (size_t i = 0; i < g->n; i++)
		if (objects_held(&a->objs[g->v[i].obj],
				 a->procs[g->v[i].proc].pid))
			g->v[kept++] = g->v[i];
	g->n = kept;
}

static size_t count_ram(const struct audit *a, const struct vm *vm,
			const struct gifts *g, size_t v, uint64_t *given)
{
	size_t ram = 0;

	*given = 0;
	for (size_t i = 0; i < vm->nobjs; i++) {
		bool gift = false;

		for (size_t k = 0; k < g->n; k++)
			gift |= g->v[k].vm == v && g->v[k].obj == vm->objs[i];
		ram += !gift;
		*given += gift ? a->objs[vm->objs[i]].size : 0;
	}
	return ram;
}

/*
 * A guest has RAM that is no pool. If all that its VMM shares would be one,
 * the rest has to be in the VMM's private mappings; if that is not plausible
 * then the guard was told to give all away, or is none.
 */
static int keep_ram(struct audit *a, struct gifts *g, size_t v)
{
	struct vm *vm = &a->vms[v];
	size_t kept = 0;
	uint64_t given;

	if (count_ram(a, vm, g, v, &given) || !given)
		return 0;
	if (ranges_bytes(&a->procs[vm->proc].anon) >= given)
		return audit_add_private(a, vm);
	for (size_t i = 0; i < g->n; i++)
		if (g->v[i].vm != v ||
		    !listed(vm->objs, vm->nobjs, g->v[i].obj))
			g->v[kept++] = g->v[i];
	g->n = kept;
	return 0;
}

static int take(struct audit *a, const struct gift *g)
{
	struct object *o = &a->objs[g->obj];
	struct vm *vm = &a->vms[g->vm];

	o->class = CLASS_POOL;
	o->given = true;
	o->why = o->kind == OBJ_DMABUF
			 ? "a dma-buf of a piece of memory, which a guard "
			   "holds to give it to its backend"
			 : "memory that the VMM maps, sealed and of an object "
			   "of its own, which a guard holds to give it to its "
			   "backend";
	return audit_add_index(&o->givers, &o->ngivers, g->proc)
		       ?: audit_add_index(&vm->objs, &vm->nobjs, g->obj);
}

/* The guards' own pools: those that a VM's guards, or itself, reach. */
static int find_named(struct audit *a, struct vm *vm)
{
	struct vm ram = *vm;
	int err = 0;

	for (size_t i = 0; !err && i < a->nprocs; i++) {
		struct process *p = &a->procs[i];
		bool self = p->vm == (int)(vm - a->vms);

		ram.objs = vm->objs; /* it may move as it grows */
		if (!self && !(p->guard && touches(&ram, p)))
			continue;
		for (size_t k = 0; !err && k < p->nreach; k++) {
			struct reach *r = &p->reach[k];
			struct object *o = &a->objs[r->obj];

			if (o->class != CLASS_POOL)
				continue;
			err = audit_add_index(&vm->objs, &vm->nobjs, r->obj);
			if (!err && p->guard && r->nfds && !o->given)
				err = audit_add_index(&o->givers, &o->ngivers,
						      (uint32_t)i);
		}
	}
	return err;
}

static void ram_first(const struct audit *a, struct vm *vm)
{
	size_t ram = 0;

	for (size_t i = 0; i < vm->nobjs; i++) {
		uint32_t obj = vm->objs[i];

		if (a->objs[obj].class == CLASS_POOL)
			continue;
		for (size_t k = i; k > ram; k--)
			vm->objs[k] = vm->objs[k - 1];
		vm->objs[ram++] = obj;
	}
}

enum kin {
	KIN_OURS,     /* descends from a guard that gives the pool */
	KIN_ANOTHERS, /* descends from a guard that does not */
	KIN_UNKNOWN,
};

/*
 * Processes of one backend are known by descent: @head is the first ancestor
 * that reaches the pool too, @i itself if none does; or the guard whose
 * --exec started them all.
 */
static enum kin kin_of(const struct audit *a, uint32_t obj, size_t i,
		       uint32_t *head)
{
	const struct object *o = &a->objs[obj];
	size_t at = i;

	*head = (uint32_t)i;
	/* a bound: pids can be used again while we read */
	for (size_t steps = 0; steps < a->nprocs; steps++) {
		int up = audit_find_pid(a, a->procs[at].ppid);

		if (up < 0 || (size_t)up == at || a->procs[up].vm >= 0)
			break;
		at = (size_t)up;
		if (a->procs[at].guard) {
			*head = (uint32_t)at;
			return listed(o->givers, o->ngivers, *head)
				       ? KIN_OURS
				       : KIN_ANOTHERS;
		}
		if (find_reach(&a->procs[at], obj))
			*head = (uint32_t)at;
	}
	return KIN_UNKNOWN;
}

/* Guards that gave it; a fork of one, as it starts its backend, is the same. */
static size_t count_givers(const struct audit *a, const struct object *o)
{
	size_t n = 0;

	for (size_t i = 0; i < o->ngivers; i++) {
		int up = audit_find_pid(a, a->procs[o->givers[i]].ppid);

		n += up < 0 || !listed(o->givers, o->ngivers, (uint32_t)up);
	}
	return n ? n : 1;
}

/*
 * A pool is for one backend of each guard that gives it. Whom a guard started
 * is its backend. Of others nothing tells which they serve, so that if there
 * are more families than guards that lack a backend all of them are reported.
 */
static int find_strangers(struct audit *a, uint32_t obj)
{
	struct object *o = &a->objs[obj];
	uint32_t *heads = NULL, *served = NULL, *unknown = NULL;
	size_t nheads = 0, nserved = 0, nunknown = 0;
	int err = 0;

	if (o->class != CLASS_POOL)
		return 0;
	for (size_t i = 0; !err && i < a->nprocs; i++) {
		const struct process *p = &a->procs[i];
		uint32_t head;
		enum kin kin;

		if (p->guard || p->vm >= 0 || !find_reach(p, obj))
			continue;
		kin = kin_of(a, obj, i, &head);
		if (kin == KIN_OURS) {
			err = audit_add_index(&served, &nserved, head);
		} else if (kin == KIN_ANOTHERS) {
			err = audit_add_index(&o->strangers, &o->nstrangers,
					      (uint32_t)i);
		} else {
			err = audit_add_index(&heads, &nheads, head)
				      ?: audit_add_index(&unknown, &nunknown,
							 (uint32_t)i);
		}
	}
	if (nheads + nserved > count_givers(a, o))
		for (size_t i = 0; !err && i < nunknown; i++)
			err = audit_add_index(&o->strangers, &o->nstrangers,
					      unknown[i]);
	free(heads);
	free(served);
	free(unknown);
	return err;
}

int pools_find(struct audit *a)
{
	struct gifts g = { 0 };
	int err = 0;

	for (size_t v = 0; !err && v < a->nvms; v++)
		err = collect(a, v, &g);
	look_again(a, &g);
	for (size_t v = 0; !err && v < a->nvms; v++)
		err = keep_ram(a, &g, v);
	for (size_t i = 0; !err && i < g.n; i++)
		err = take(a, &g.v[i]);
	free(g.v);
	for (size_t v = 0; !err && v < a->nvms; v++) {
		err = find_named(a, &a->vms[v]);
		ram_first(a, &a->vms[v]);
	}
	for (size_t v = 0; !err && v < a->nvms; v++)
		for (size_t i = 0; !err && i < a->vms[v].nobjs; i++)
			err = find_strangers(a, a->vms[v].objs[i]);
	return err;
}
