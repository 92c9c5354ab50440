/* SPDX-License-Identifier: Apache-2.0 */
#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/fs/xattrmap.h"

#define RULES_MAX 64u

enum { CLIENT = 1, SERVER = 2 };

struct rule {
	enum { PREFIX, OK, BAD, UNSUPPORTED, MAP } type;
	unsigned int scope;
	char key[XATTR_NAME_MAX + 1];
	char prepend[XATTR_NAME_MAX + 1];
};

struct fs_xattrmap {
	uint32_t n;
	struct rule rules[RULES_MAX];
};

/* ---- text ---- */

static const char *skip_space(const char *p)
{
	while (isspace((unsigned char)*p))
		p++;
	return p;
}

/* One field, up to the separator; what follows it, or NULL. */
static const char *field(const char *p, char separator,
			 char text[XATTR_NAME_MAX + 1])
{
	const char *end = strchr(p, separator);

	if (!end || end - p > XATTR_NAME_MAX)
		return NULL;
	memcpy(text, p, (size_t)(end - p));
	text[end - p] = 0;
	return end + 1;
}

static int word(const char *text, const char *const *words)
{
	for (int i = 0; words[i]; i++)
		if (!strcmp(text, words[i]))
			return i;
	return -1;
}

/* What follows the rule, or NULL with *@why set. */
static const char *parse_rule(const char *p, struct rule *rule,
			      const char **why)
{
	static const char *const types[] = { "prefix",	    "ok",  "bad",
					     "unsupported", "map", NULL };
	static const char *const scopes[] = { "client", "server", "all", NULL };
	char separator = *p++, text[XATTR_NAME_MAX + 1];
	int n;

	*why = "a rule is incomplete, or has a name of more than 255 bytes";
	p = field(p, separator, text);
	n = p ? word(text, types) : 0;
	if (n < 0) {
		*why = "the types are prefix, ok, bad, unsupported, map";
		return NULL;
	}
	rule->type = (unsigned int)n;
	rule->scope = CLIENT | SERVER;
	if (p && rule->type != MAP) {
		p = field(p, separator, text);
		n = p ? word(text, scopes) : 0;
		if (n < 0) {
			*why = "the scopes are client, server, all";
			return NULL;
		}
		rule->scope = (unsigned int)n + 1;
	}
	if (p)
		p = field(p, separator, rule->key);
	if (p)
		p = field(p, separator, rule->prepend);
	return p ? skip_space(p) : NULL;
}

/* The last rule is a "map": the rules that it stands for. */
static void expand(struct fs_xattrmap *m)
{
	struct rule map = m->rules[--m->n];
	struct rule *next = &m->rules[m->n];
	bool some = *map.key;

	map.type = PREFIX;
	*next++ = map;
	if (some) {
		/* No way to the moved names, and none back from theirs. */
		*next = (struct rule){ .type = BAD, .scope = CLIENT | SERVER };
		memcpy(next->key, map.prepend, sizeof(next->key));
		memcpy(next->prepend, map.key, sizeof(next->prepend));
		next++;
	}
	*next++ = (struct rule){ .type = some ? OK : BAD,
				 .scope = CLIENT | SERVER };
	m->n = (uint32_t)(next - m->rules);
}

static bool is_complete(const struct fs_xattrmap *m)
{
	unsigned int scope = 0;

	for (uint32_t i = 0; i < m->n; i++) {
		const struct rule *r = &m->rules[i];

		scope |= *r->key ? 0 : r->scope & CLIENT;
		scope |= *r->prepend ? 0 : r->scope & SERVER;
	}
	return scope == (CLIENT | SERVER);
}

static int parse(struct fs_xattrmap *m, const char *p, const char **why)
{
	struct rule *rule;

	for (p = skip_space(p); *p;) {
		/* A map takes up to three places. */
		if (m->n > RULES_MAX - 3) {
			*why = "there are too many rules";
			return -EINVAL;
		}
		rule = &m->rules[m->n++];
		p = parse_rule(p, rule, why);
		if (!p)
			return -EINVAL;
		if (rule->type != MAP)
			continue;
		if (*p) {
			*why = "no rule can follow a \"map\"";
			return -EINVAL;
		}
		expand(m);
	}
	if (is_complete(m))
		return 0;
	*why = "the rules have to end with one for all other names, such as "
	       "\":bad:all:::\"";
	return -EINVAL;
}

int fs_xattrmap_parse(const char *text, struct fs_xattrmap **map,
		      const char **why)
{
	struct fs_xattrmap *m = calloc(1, sizeof(*m));
	int ret;

	if (!m) {
		*why = "there is no memory";
		return -ENOMEM;
	}
	ret = parse(m, text, why);
	if (ret)
		free(m);
	else
		*map = m;
	return ret;
}

void fs_xattrmap_free(struct fs_xattrmap *map)
{
	free(map);
}

/* ---- names ---- */

static bool begins(const char *name, const char *with)
{
	return !strncmp(name, with, strlen(with));
}

static const struct rule *find(const struct fs_xattrmap *m, unsigned int scope,
			       const char *name)
{
	for (uint32_t i = 0; i < m->n; i++) {
		const struct rule *r = &m->rules[i];

		if (r->scope & scope &&
		    begins(name, scope == CLIENT ? r->key : r->prepend))
			return r;
	}
	return NULL;
}

int fs_xattrmap_to_host(const struct fs_xattrmap *map, const char *name,
			char host[XATTR_NAME_MAX + 1])
{
	const struct rule *r = map ? find(map, CLIENT, name) : NULL;
	const char *prepend = "";
	int n;

	if (!*name)
		return -ERANGE;
	if (map && (!r || r->type == BAD))
		return -EPERM;
	if (r && r->type == UNSUPPORTED)
		return -EOPNOTSUPP;
	if (r && r->type == PREFIX)
		prepend = r->prepend;
	n = snprintf(host, XATTR_NAME_MAX + 1, "%s%s", prepend, name);
	return n > XATTR_NAME_MAX ? -ERANGE : 0;
}

const char *fs_xattrmap_to_guest(const struct fs_xattrmap *map,
				 const char *name)
{
	const struct rule *r = map ? find(map, SERVER, name) : NULL;

	if (r && r->type == PREFIX)
		name += strlen(r->prepend);
	else if (map && (!r || r->type != OK))
		return NULL;
	return *name ? name : NULL;
}
