/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The schema of docs/audit.md. Names come escaped to printable ASCII, so that
 * what a hostile process calls itself is valid JSON and harmless when printed.
 */
#include "audit/audit.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <string.h>

#define SCHEMA 1

typedef struct json_object json;

static void add(json *to, const char *key, json *value)
{
	json_object_object_add(to, key, value);
}

static void add_int(json *to, const char *key, uint64_t value)
{
	add(to, key, json_object_new_uint64(value));
}

static void add_bool(json *to, const char *key, bool value)
{
	add(to, key, json_object_new_boolean(value));
}

static void add_str(json *to, const char *key, const char *s)
{
	char buf[4096];

	add(to, key,
	    s ? json_object_new_string(audit_escape(s, buf, sizeof(buf)))
	      : NULL);
}

static json *new_list(json *to, const char *key)
{
	json *list = json_object_new_array();

	add(to, key, list);
	return list;
}

static json *new_entry(json *list)
{
	json *o = json_object_new_object();

	json_object_array_add(list, o);
	return o;
}

static void push_int(json *list, uint64_t value)
{
	json_object_array_add(list, json_object_new_uint64(value));
}

static void add_seals(json *to, const struct object *o)
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
	json *list;

	if (o->seals < 0) {
		add(to, "seals", NULL);
		return;
	}
	list = new_list(to, "seals");
	for (size_t i = 0; i < sizeof(seals) / sizeof(*seals); i++)
		if (o->seals & seals[i].bit)
			json_object_array_add(
				list, json_object_new_string(seals[i].name));
}

static void add_objects(const struct audit *a, json *root)
{
	json *list = new_list(root, "objects");

	for (size_t i = 0; i < a->nobjs; i++) {
		const struct object *o = &a->objs[i];
		json *e, *guards;

		if (!o->id)
			continue;
		e = new_entry(list);
		add_int(e, "id", o->id);
		add_str(e, "class", audit_class_name(o->class));
		add_str(e, "why", o->why);
		add_str(e, "kind", audit_kind_name(o->kind));
		add_str(e, "name", audit_object_title(o));
		add_int(e, "dev", o->dev);
		add_int(e, "ino", o->ino);
		add_int(e, "size", o->size);
		add_bool(e, "size_known", o->statted || o->kind == OBJ_ANON);
		add_int(e, "allocated", o->allocated);
		add_bool(e, "has_path", !o->deleted && o->kind != OBJ_MEMFD);
		add_int(e, "mode", o->mode);
		add_int(e, "uid", o->uid);
		add_seals(e, o);
		add_bool(e, "given", o->given);
		guards = new_list(e, "guards");
		for (size_t k = 0; k < o->ngivers; k++)
			push_int(guards, (uint64_t)a->procs[o->givers[k]].pid);
	}
}

static void add_figures(json *e, const struct vm *vm, const struct seat *s)
{
	add_str(e, "role", audit_role_name(s->role));
	add_str(e, "why", s->why);
	add_int(e, "ram_bytes", s->ram);
	add_int(e, "ram_mapped_bytes", s->ram_mapped);
	add_int(e, "ram_fd_bytes", s->ram_fd);
	add_int(e, "ram_could_reach_bytes", s->could);
	add_int(e, "outside_bytes", s->outside);
	add_int(e, "pool_bytes", s->pool);
	add_int(e, "foreign_pool_bytes", s->foreign);
	add_bool(e, "write", s->write);
	add(e, "ram_percent",
	    json_object_new_double(
		    vm->ram ? 100.0 * (double)s->ram / (double)vm->ram : 0));
}

static void add_vms(const struct audit *a, json *root)
{
	json *list = new_list(root, "vms");

	for (size_t v = 0; v < a->nvms; v++) {
		const struct vm *vm = &a->vms[v];
		json *e = new_entry(list), *sub;

		add_int(e, "id", v + 1);
		add_int(e, "pid", (uint64_t)a->procs[vm->proc].pid);
		add_str(e, "name", audit_name(&a->procs[vm->proc]));
		add_str(e, "kind", vm->kind);
		add_str(e, "why", vm->why);
		add_int(e, "ram_bytes", vm->ram);
		add_int(e, "ram_mapped_bytes", vm->ram_mapped);
		add_int(e, "pool_bytes", vm->pool);
		add_int(e, "outside_processes", vm->outside);
		sub = new_list(e, "members");
		for (size_t i = 0; i < vm->nmembers; i++)
			push_int(sub, (uint64_t)a->procs[vm->members[i]].pid);
		sub = new_list(e, "objects");
		for (size_t i = 0; i < vm->nobjs; i++)
			push_int(sub, a->objs[vm->objs[i]].id);
		sub = new_list(e, "processes");
		for (size_t i = 0; i < vm->nseats; i++) {
			json *row = new_entry(sub);

			add_int(row, "pid",
				(uint64_t)a->procs[vm->seats[i].proc].pid);
			add_figures(row, vm, &vm->seats[i]);
		}
	}
}

static void add_range(json *list, const struct audit *a, const struct reach *r,
		      const char *how, const char *perms, uint64_t start,
		      uint64_t end)
{
	const struct object *o = &a->objs[r->obj];
	json *e = new_entry(list);

	add_int(e, "object", o->id);
	add_str(e, "how", how);
	add_str(e, "perms", perms);
	add_bool(e, "could_write",
		 o->seals < 0 ||
			 !(o->seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)));
	add_int(e, "start", start);
	add_int(e, "end", end);
}

static int add_reach(json *list, const struct audit *a, const struct reach *r)
{
	const struct object *o = &a->objs[r->obj];
	struct ranges readonly = { 0 };

	if (ranges_subtract(&r->mapped, &r->writable, &readonly))
		return -ENOMEM;
	for (size_t i = 0; i < r->writable.n; i++)
		add_range(list, a, r, "mapped", "rw", r->writable.v[i].start,
			  r->writable.v[i].end);
	for (size_t i = 0; i < readonly.n; i++)
		add_range(list, a, r, "mapped", "r", readonly.v[i].start,
			  readonly.v[i].end);
	ranges_free(&readonly);
	if (r->nfds) {
		json *e, *fds;

		add_range(list, a, r, "fd",
			  r->fd_w   ? "rw"
			  : r->fd_r ? "r"
				    : "path",
			  0, o->size);
		e = json_object_array_get_idx(
			list, json_object_array_length(list) - 1);
		fds = new_list(e, "fds");
		for (uint32_t i = 0; i < r->nfds && i < REACH_FDS; i++)
			push_int(fds, (uint64_t)r->fds[i]);
		add_int(e, "fd_count", r->nfds);
	}
	return 0;
}

/* What process @i reaches, over all VMs shown; each object once. */
static int add_reaches(const struct audit *a, json *e, size_t i)
{
	const struct process *p = &a->procs[i];
	const struct vm none = { 0 };
	const struct seat s = { .proc = (uint32_t)i, .role = ROLE_NONE };
	json *list = new_list(e, "reach");

	for (size_t k = 0; k < a->nobjs; k++) {
		struct reach r = { .obj = (uint32_t)k };
		const struct object *o = &a->objs[k];

		if (o->kind == OBJ_ANON && o->id && o->owner == p->pid)
			add_range(list, a, &r, "private", "rw", 0, o->size);
	}
	for (size_t k = 0; k < p->nreach; k++) {
		struct reach r;
		int err;

		if (!a->objs[p->reach[k].obj].id)
			continue;
		err = audit_seat_reach(a, &none, &s, p->reach[k].obj, &r);
		if (err < 0)
			return err;
		memcpy(r.fds, p->reach[k].fds, sizeof(r.fds));
		err = add_reach(list, a, &r);
		audit_reach_free(&r);
		if (err)
			return err;
	}
	return 0;
}

/* Is process @i in what is shown? */
static bool seated(const struct audit *a, size_t i, json *list, json *totals)
{
	uint64_t outside = 0, ram = 0, pool = 0, foreign = 0;
	enum role role = ROLE_NONE;
	const char *why = "reaches no memory of a virtual machine";
	bool found = a->procs[i].asked || audit_matters(a, &a->procs[i]);

	for (size_t v = 0; v < a->nvms; v++) {
		const struct vm *vm = &a->vms[v];

		for (size_t k = 0; k < vm->nmembers; k++)
			if (vm->members[k] == i) {
				found = true;
				role = ROLE_VMM;
				why = "a process of the VM";
			}
		for (size_t k = 0; k < vm->nseats; k++) {
			const struct seat *s = &vm->seats[k];
			json *e;

			if (s->proc != i)
				continue;
			found = true;
			if (role != ROLE_VMM) {
				role = s->role;
				why = s->why;
			}
			outside += s->outside;
			foreign += s->foreign;
			ram += s->ram;
			pool += s->pool;
			e = new_entry(list);
			add_int(e, "vm", v + 1);
			add_figures(e, vm, s);
		}
	}
	add_str(totals, "role", audit_role_name(role));
	add_str(totals, "why", why);
	add_int(totals, "ram_bytes", ram);
	add_int(totals, "outside_bytes", outside);
	add_int(totals, "pool_bytes", pool);
	add_int(totals, "foreign_pool_bytes", foreign);
	return found;
}

static int add_process(const struct audit *a, json *list, size_t i)
{
	const struct process *p = &a->procs[i];
	json *e = json_object_new_object();
	json *vms = json_object_new_array();

	add_int(e, "pid", (uint64_t)p->pid);
	add_int(e, "ppid", (uint64_t)p->ppid);
	add_int(e, "uid", p->uid);
	add_str(e, "name", audit_name(p));
	add_str(e, "comm", p->comm);
	add_str(e, "exe", p->exe);
	if (!seated(a, i, vms, e)) {
		json_object_put(vms);
		json_object_put(e);
		return 0;
	}
	add(e, "vms", vms);
	json_object_array_add(list, e);
	add_bool(e, "asked", p->asked);
	add_bool(e, "complete", !p->err);
	add_bool(e, "can_ptrace", audit_can_ptrace(p));
	add_bool(e, "can_reopen_mappings", audit_can_reopen(p));
	return add_reaches(a, e, i);
}

static void add_incomplete(const struct audit *a, json *root)
{
	json *list = new_list(root, "incomplete");

	for (size_t i = 0; i < a->nprocs; i++) {
		const struct process *p = &a->procs[i];
		json *e;

		if (!p->err)
			continue;
		e = new_entry(list);
		add_int(e, "pid", (uint64_t)p->pid);
		add_str(e, "name", audit_name(p));
		add_str(e, "what", p->err_what);
		add_str(e, "error",
			p->err == -EACCES || p->err == -EPERM
				? "no permission"
				: strerror(-p->err));
		add_bool(e, "can_ptrace", audit_can_ptrace(p));
		add_bool(e, "matters", audit_matters(a, p));
	}
}

int audit_json(const struct audit *a, FILE *f)
{
	json *root = json_object_new_object(), *list;
	uint64_t outside = 0;
	const char *text;
	int err = 0;

	if (!root)
		return -ENOMEM;
	add_int(root, "schema", SCHEMA);
	add_str(root, "moat", MOAT_VERSION);
	add_bool(root, "complete", !a->incomplete);
	for (size_t v = 0; v < a->nvms; v++)
		outside += a->vms[v].outside;
	add_int(root, "outside_processes", outside);
	add_vms(a, root);
	add_objects(a, root);
	list = new_list(root, "processes");
	for (size_t i = 0; !err && i < a->nprocs; i++)
		err = add_process(a, list, i);
	add_incomplete(a, root);
	text = err ? NULL
		   : json_object_to_json_string_ext(
			     root, JSON_C_TO_STRING_PRETTY |
					   JSON_C_TO_STRING_NOSLASHESCAPE);
	if (text && (fprintf(f, "%s\n", text) < 0 || fflush(f)))
		err = -EIO;
	else if (!text && !err)
		err = -ENOMEM;
	json_object_put(root);
	return err;
}
