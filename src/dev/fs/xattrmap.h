/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extended attributes under other names on the host (--xattrmap), by
 * virtiofsd's rules:
 *
 *     :type:scope:key:prepend:    the first that matches a name counts
 *
 *     type   prefix: the host's name is "prepend" and the guest's name
 *            ok: the names are the same
 *            bad, unsupported: refused (EPERM, EOPNOTSUPP), and not listed
 *     scope  client: names from the guest that begin with "key"
 *            server: names from the host that begin with "prepend"
 *            all: both
 *
 * ":map:key:prepend:" at the end stands for rules that move what begins with
 * "key", keep the guest from the moved names, and let the rest be (an empty
 * "key": and allow no other). Any character can take the place of the colon in
 * a rule; white space may stand between rules.
 */
#ifndef MOAT_DEV_FS_XATTRMAP_H
#define MOAT_DEV_FS_XATTRMAP_H

#include <linux/limits.h>
#include <stddef.h>

struct fs_xattrmap;

/**
 * fs_xattrmap_parse() - rules from the command line
 * @why: on failure, half a sentence for its user
 *
 * A name that no rule matches would have no answer: such rules are refused.
 *
 * Return: 0 with *@map set, -EINVAL or -ENOMEM.
 */
int fs_xattrmap_parse(const char *text, struct fs_xattrmap **map,
		      const char **why);
void fs_xattrmap_free(struct fs_xattrmap *map);

/**
 * fs_xattrmap_to_host() - the host's name for a guest's
 * @map: NULL: it is the same
 *
 * Return: 0, or -EPERM, -EOPNOTSUPP by a rule, or -ERANGE: it is too long, or
 * empty.
 */
int fs_xattrmap_to_host(const struct fs_xattrmap *map, const char *name,
			char host[XATTR_NAME_MAX + 1]);

/**
 * fs_xattrmap_to_guest() - the guest's name for a host's, within @name
 *
 * Return: NULL if the guest is not to see it.
 */
const char *fs_xattrmap_to_guest(const struct fs_xattrmap *map,
				 const char *name);

#endif
