/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seats of a VM: who reaches how much of it, and the figures.
 */
#include "audit/seats.h"
#include "audit/scan.h"

#include <errno.h>
#include <stdlib.h>

void audit_reach_free(struct reach *r)
{
	ranges_free(&r->mapped);
	ranges_free(&r->writable);
}

static int merge_reach(const struct process *p, uint32_t obj, struct reach *out)
{
	for (size_t i = 0; i < p->nreach; i++) {
		const struct reach *r = &p->reach[i];

		if (r->obj != obj)
			continue;
		if (ranges_add_all(&out->mapped, &r->mapped) ||
		    ranges_add_all(&out->writable, &r->writable))
			return -ENOMEM;
		out->shared |= r->shared;
		out->fd_r |= r->fd_r;
		out->fd_w |= r->fd_w;
		out->fd_path |= r->fd_path;
		for (uint32_t k = 0; !out->nfds && k < r->nfds && k < REACH_FDS;
		     k++)
			out->fds[k] = r->fds[k];
		if (!out->nfds)
			out->nfds = r->nfds;
	}
	return 0;
}

int audit_seat_reach(const struct audit *a, const struct vm *vm,
		     const struct seat *s, uint32_t obj, struct reach *out)
{
	const struct object *o = &a->objs[obj];
	int err = 0;

	*out = (struct reach){ .obj = obj };
	if (o->kind == OBJ_ANON) {
		if (s->role == ROLE_VMM)
			err = ranges_add(&out->mapped, 0, o->size)
				      ?: ranges_add(&out->writable, 0, o->size);
	} else if (s->role == ROLE_VMM) {
		for (size_t i = 0; !err && i < vm->nmembers; i++)
			err = merge_reach(&a->procs[vm->members[i]], obj, out);
	} else {
		err = merge_reach(&a->procs[s->proc], obj, out);
	}
	if (err) {
		audit_reach_free(out);
		return err;
	}
	ranges_union(&out->mapped);
	ranges_union(&out->writable);
	if (o->statted) {
		ranges_clip(&out->mapped, o->size);
		ranges_clip(&out->writable, o->size);
	}
	return out->mapped.n || out->nfds;
}

/*
 * mremap(2) grows a shared mapping to any later offset of its object without
 * a descriptor; huge pages and dma-bufs refuse.
 */
static uint64_t could_reach(const struct process *p, const struct object *o,
			    const struct reach *r)
{
	uint64_t now = ranges_bytes(&r->mapped);

	if (r->nfds || (r->mapped.n && audit_can_reopen(p)))
		return o->size;
	if (!r->mapped.n || o->kind == OBJ_DMABUF || o->kind == OBJ_HUGETLB ||
	    o->kind == OBJ_ANON)
		return now;
	return o->size - r->mapped.v[0].start;
}

static int count_seat(const struct audit *a, struct vm *vm, struct seat *s)
{
	for (size_t i = 0; i < vm->nobjs; i++) {
		const struct object *o = &a->objs[vm->objs[i]];
		struct reach r;
		uint64_t mapped, bytes;
		int got = audit_seat_reach(a, vm, s, vm->objs[i], &r);

		if (got < 0)
			return got;
		mapped = ranges_bytes(&r.mapped);
		bytes = r.nfds ? o->size : mapped;
		if (audit_foreign(a, s, vm->objs[i])) {
			s->foreign += bytes;
			s->write |= r.fd_w || r.writable.n;
		} else if (o->class == CLASS_POOL) {
			s->pool += bytes;
		} else {
			s->ram += bytes;
			s->ram_mapped += mapped;
			s->ram_fd += r.nfds ? o->size : 0;
			s->could += could_reach(&a->procs[s->proc], o, &r);
			s->write |= r.fd_w || r.writable.n;
		}
		audit_reach_free(&r);
	}
	if (s->role == ROLE_BACKEND || s->role == ROLE_OTHER_VMM)
		s->outside = s->ram + s->foreign;
	return 0;
}

static struct seat seat_for(const struct audit *a, size_t i)
{
	const struct process *p = &a->procs[i];
	struct seat s = { .proc = (uint32_t)i };

	if (p->guard) {
		s.role = ROLE_GUARD;
		s.why = p->guard;
	} else if (p->vm >= 0) {
		s.role = ROLE_OTHER_VMM;
		s.why = "the VMM of another virtual machine";
	} else {
		s.role = ROLE_BACKEND;
		s.why = p->not_vmm ?: "neither this VM's VMM nor a guard";
	}
	return s;
}

static int order_seats(const void *x, const void *y)
{
	const struct seat *a = x, *b = y;

	if (a->role == ROLE_VMM || b->role == ROLE_VMM)
		return (b->role == ROLE_VMM) - (a->role == ROLE_VMM);
	if (audit_outside(a) != audit_outside(b))
		return audit_outside(b) - audit_outside(a);
	if (a->ram != b->ram)
		return a->ram < b->ram ? 1 : -1;
	if (a->pool != b->pool)
		return a->pool < b->pool ? 1 : -1;
	return a->proc < b->proc ? -1 : a->proc > b->proc;
}

int seats_fill(struct audit *a, struct vm *vm)
{
	size_t cap = 0;
	int err;

	for (size_t i = 0; i < a->nprocs; i++) {
		bool self = i == vm->proc, keep;
		struct seat s = { 0 };

		if (!self && a->procs[i].vm == (int)(vm - a->vms))
			continue;
		s = self ? (struct seat){ .proc = (uint32_t)i,
					  .role = ROLE_VMM,
					  .why = vm->why }
			 : seat_for(a, i);
		err = count_seat(a, vm, &s);
		keep = self || s.ram || s.pool || s.foreign;
		if (!err && keep)
			err = audit_grow(&vm->seats, vm->nseats, &cap,
					 sizeof(s));
		if (err)
			return err;
		if (keep)
			vm->seats[vm->nseats++] = s;
	}
	qsort(vm->seats, vm->nseats, sizeof(*vm->seats), order_seats);
	vm->ram_mapped = vm->seats[0].ram_mapped;
	for (size_t i = 0; i < vm->nobjs; i++)
		if (a->objs[vm->objs[i]].class == CLASS_POOL)
			vm->pool += a->objs[vm->objs[i]].size;
		else
			vm->ram += a->objs[vm->objs[i]].size;
	return 0;
}

void seats_select(struct audit *a, bool all)
{
	size_t kept = 0;

	a->narrow = !all;
	for (size_t v = 0; v < a->nvms; v++) {
		struct vm vm = a->vms[v];
		bool whole = all, some = false;
		size_t n = 0;

		for (size_t i = 0; i < vm.nmembers; i++)
			whole |= a->procs[vm.members[i]].asked;
		for (size_t i = 0; i < vm.nseats; i++) {
			struct seat s = vm.seats[i];

			some |= a->procs[s.proc].asked;
			if (whole || a->procs[s.proc].asked ||
			    s.role == ROLE_VMM || s.role == ROLE_GUARD)
				vm.seats[n++] = s;
		}
		a->narrow &= !whole;
		vm.nseats = n;
		for (size_t i = 0; i < n; i++)
			vm.outside += audit_outside(&vm.seats[i]);
		if (whole || some) {
			a->vms[kept++] = vm;
			continue;
		}
		free(vm.members);
		free(vm.objs);
		free(vm.seats);
	}
	a->nvms = kept;
}
