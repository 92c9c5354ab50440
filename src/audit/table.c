/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table for people. Names are others' choice and come escaped.
 */
#include "audit/audit.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

static const char *name_of(const struct process *p, char *buf, size_t size)
{
	return audit_escape(audit_name(p), buf, size);
}

static void print_seals(const struct object *o, FILE *f)
{
	static const struct {
		int bit;
		const char *name;
	} seals[] = {
		{ F_SEAL_SEAL, "seal" },
		{ F_SEAL_SHRINK, "shrink" },
		{ F_SEAL_GROW, "grow" },
		{ F_SEAL_WRITE, "write" },
		{ F_SEAL_FUTURE_WRITE, "future-write" },
	};
	const char *sep = "";

	/* that no seal can be added is how every plain memfd is */
	if (o->seals <= F_SEAL_SEAL)
		return;
	fputs(", sealed: ", f);
	for (size_t i = 0; i < sizeof(seals) / sizeof(*seals); i++)
		if (o->seals & seals[i].bit) {
			fprintf(f, "%s%s", sep, seals[i].name);
			sep = " ";
		}
}

static void print_object(const struct audit *a, const struct object *o, FILE *f)
{
	char name[96], size[24], data[24], givers[GIVERS_TEXT];

	fprintf(f, "  %-4s %10s  %s (%s", audit_class_name(o->class),
		audit_size(o->size, size),
		audit_escape(audit_object_title(o), name, sizeof(name)),
		audit_kind_name(o->kind));
	if (o->statted)
		fprintf(f, ", %s in use", audit_size(o->allocated, data));
	print_seals(o, f);
	if (o->ngivers)
		fprintf(f, ", %s", audit_givers(a, o, givers));
	if (!o->deleted && o->kind != OBJ_MEMFD)
		fprintf(f, ", has a name: whoever may open it reaches it");
	fputs(")\n", f);
}

static const char *how(const struct seat *s)
{
	if (s->ram_mapped && s->ram_fd)
		return "mapped+fd";
	if (s->ram_fd)
		return "fd";
	return s->ram_mapped ? "mapped" : "-";
}

static void print_seat(const struct audit *a, const struct vm *vm,
		       const struct seat *s, FILE *f)
{
	const struct process *p = &a->procs[s->proc];
	char name[25], ram[24], pool[24], could[24];
	double percent = vm->ram ? 100.0 * (double)s->ram / (double)vm->ram : 0;

	fprintf(f, "  %8d %-24s %-9s %10s %5.1f%% %-9s %-2s %10s", (int)p->pid,
		name_of(p, name, sizeof(name)), audit_role_name(s->role),
		audit_size(s->ram, ram), percent, how(s),
		!s->ram	   ? "-"
		: s->write ? "rw"
			   : "r",
		audit_size(s->pool, pool));
	if (audit_outside(s))
		fputs("  OUTSIDE", f);
	if (s->foreign)
		fprintf(f, "  %s of foreign pools",
			audit_size(s->foreign, could));
	if (s->role != ROLE_VMM && s->could > s->ram)
		fprintf(f, "  can grow to %s", audit_size(s->could, could));
	if (s->role == ROLE_BACKEND && audit_can_ptrace(p))
		fputs("  can ptrace", f);
	if (p->err)
		fputs("  not all could be read", f);
	fputc('\n', f);
}

static void print_verdict(const struct audit *a, const struct vm *vm, FILE *f)
{
	char name[64], size[24];

	for (size_t i = 0; i < vm->nseats; i++) {
		const struct seat *s = &vm->seats[i];
		const struct process *p = &a->procs[s->proc];

		if (s->role == ROLE_GUARD &&
		    strstr(s->why, "another program file"))
			fprintf(f,
				"  note: %d is taken for a guard by its name "
				"only\n",
				(int)p->pid);
		if (s->foreign)
			fprintf(f,
				"  => %s (%d) can reach %s of pools that are "
				"not known to be its own: a pool is for one "
				"backend\n",
				name_of(p, name, sizeof(name)), (int)p->pid,
				audit_size(s->foreign, size));
		if (audit_outside(s) && s->ram)
			fprintf(f,
				"  => %s (%d) can %s %s of this guest's RAM; "
				"`moat guard` would leave it a pool\n",
				name_of(p, name, sizeof(name)), (int)p->pid,
				s->write ? "read and write" : "read",
				audit_size(s->ram, size));
	}
	if (!vm->outside)
		fprintf(f,
			"  => 0 bytes of guest RAM outside the pool are "
			"within reach of any %sprocess above but the VMM "
			"and the guard\n",
			a->narrow ? "asked " : "");
}

static void print_vm(const struct audit *a, size_t v, FILE *f)
{
	const struct vm *vm = &a->vms[v];
	const struct process *p = &a->procs[vm->proc];
	char name[64], ram[24], mapped[24];

	fprintf(f, "VM %zu: %s, pid %d", v + 1, name_of(p, name, sizeof(name)),
		(int)p->pid);
	if (vm->nmembers > 1)
		fprintf(f, " and %zu more processes", vm->nmembers - 1);
	fprintf(f, " (%s: %s): %s of guest RAM, %s mapped by it\n", vm->kind,
		vm->why, audit_size(vm->ram, ram),
		audit_size(vm->ram_mapped, mapped));
	for (size_t i = 0; i < vm->nobjs; i++)
		print_object(a, &a->objs[vm->objs[i]], f);
	fprintf(f, "  %8s %-24s %-9s %10s %6s %-9s %-2s %10s\n", "PID", "NAME",
		"ROLE", "GUEST RAM", "", "HOW", "", "POOL");
	for (size_t i = 0; i < vm->nseats; i++)
		print_seat(a, vm, &vm->seats[i], f);
	print_verdict(a, vm, f);
	fputc('\n', f);
}

static bool has_seat(const struct audit *a, size_t proc)
{
	for (size_t v = 0; v < a->nvms; v++) {
		for (size_t i = 0; i < a->vms[v].nseats; i++)
			if (a->vms[v].seats[i].proc == proc)
				return true;
		for (size_t i = 0; i < a->vms[v].nmembers; i++)
			if (a->vms[v].members[i] == proc)
				return true;
	}
	return false;
}

int audit_table(const struct audit *a, FILE *f)
{
	char name[64];
	bool asked = false;

	for (size_t v = 0; v < a->nvms; v++)
		print_vm(a, v, f);
	for (size_t i = 0; i < a->nprocs; i++) {
		const struct process *p = &a->procs[i];

		asked |= p->asked;
		if (p->asked && !p->err && !has_seat(a, i))
			fprintf(f,
				"%s (%d) reaches no memory of a virtual "
				"machine\n",
				name_of(p, name, sizeof(name)), (int)p->pid);
	}
	if (!a->nvms && !asked)
		fputs("no virtual machine found\n", f);
	for (size_t i = 0; i < a->nprocs; i++) {
		const struct process *p = &a->procs[i];

		if (audit_matters(a, p))
			fprintf(f, "INCOMPLETE: %s (%d): no look at %s: %s\n",
				name_of(p, name, sizeof(name)), (int)p->pid,
				p->err_what, strerror(-p->err));
	}
	return fflush(f) || ferror(f) ? -EIO : 0;
}
