/* SPDX-License-Identifier: Apache-2.0 */
/* The schema of docs/dt.md. Addresses are numbers: they need 64 bits. */
#include <errno.h>
#include <json-c/json.h>

#include "dt/internal.h"

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

static void add_str(json *to, const char *key, const char *s)
{
	add(to, key, s ? json_object_new_string(s) : NULL);
}

static void add_path(json *to, const char *key, const struct moat_dt *dt,
		     int node)
{
	char path[MOAT_DT_PATH];

	add_str(to, key, node < 0 ? NULL : moat_dt_path(dt, node, path));
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

static void add_range(json *to, const struct moat_dt_range *r)
{
	add(to, "address", r->size ? json_object_new_uint64(r->start) : NULL);
	add_int(to, "size", r->size);
}

static void add_regions(json *root, const struct moat_dt *dt)
{
	json *pools = new_list(root, "pools");
	json *others = new_list(root, "reserved");

	for (size_t i = 0; i < dt->nregions; i++) {
		const struct moat_dt_region *r = &dt->regions[i];
		json *e = new_entry(r->pool ? pools : others);
		json *users;

		add_path(e, "node", dt, r->node);
		add_range(e, &r->range);
		if (r->what)
			add_str(e, "what", r->what);
		if (!r->pool)
			continue;
		add(e, "enabled",
		    json_object_new_boolean(!dt->reserved_ignored &&
					    !dt->nodes[r->node].disabled));
		add_int(e, "users", r->users);
		users = new_list(e, "devices");
		for (size_t k = 0; k < dt->ndevices; k++) {
			char path[MOAT_DT_PATH];

			if (dt->devices[k].pool != (int)i)
				continue;
			moat_dt_path(dt, dt->devices[k].node, path);
			json_object_array_add(users,
					      json_object_new_string(path));
		}
	}
}

static int put(json *root, FILE *f)
{
	const char *s = json_object_to_json_string_ext(
		root, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE);
	int err = !s ? -ENOMEM : fprintf(f, "%s\n", s) < 0 ? -EIO : 0;

	json_object_put(root);
	return err;
}

static json *new_root(void)
{
	json *root = json_object_new_object();

	add_int(root, "schema", SCHEMA);
	return root;
}

int moat_dt_show_json(const struct moat_dt *dt, FILE *f)
{
	json *root = new_root(), *list = new_list(root, "ram");

	for (size_t i = 0; i < dt->nram; i++)
		add_range(new_entry(list), &dt->ram[i]);
	add_regions(root, dt);
	list = new_list(root, "devices");
	for (size_t i = 0; i < dt->ndevices; i++) {
		const struct moat_dt_device *d = &dt->devices[i];
		json *e = new_entry(list);

		add_path(e, "node", dt, d->node);
		add_str(e, "kind", moat_dt_kind_name(d->kind));
		add_path(e, "pool", dt,
			 d->pool < 0 ? -1 : dt->regions[d->pool].node);
		add(e, "inherited", json_object_new_boolean(d->inherited));
		add(e, "behind_iommu",
		    json_object_new_boolean(d->behind_iommu));
	}
	return put(root, f);
}

int moat_dt_check_json(const struct moat_dt_findings *found, FILE *f)
{
	json *root = new_root(), *list = new_list(root, "findings");

	for (size_t i = 0; i < found->n; i++) {
		json *e = new_entry(list);

		add_str(e, "code", found->v[i].code);
		add_str(e, "node", found->v[i].path);
		add_str(e, "text", found->v[i].text);
		add_str(e, "cure", found->v[i].cure);
	}
	return put(root, f);
}

int moat_dt_qemu_json(const struct moat_dt_args *args, FILE *f)
{
	json *root = new_root(), *list = new_list(root, "args");

	for (size_t i = 0; i < args->n; i++)
		json_object_array_add(list, json_object_new_string(args->v[i]));
	return put(root, f);
}
