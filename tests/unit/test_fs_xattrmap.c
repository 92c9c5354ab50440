/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What src/dev/fs/xattrmap.c promises: virtiofsd's rules, as its documentation
 * says them.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "dev/fs/xattrmap.h"

static struct fs_xattrmap *parsed(const char *text)
{
	struct fs_xattrmap *map;
	const char *why = "";

	if (fs_xattrmap_parse(text, &map, &why))
		fail_msg("%s: %s", text, why);
	return map;
}

static void to_host(const struct fs_xattrmap *map, const char *guest,
		    const char *host)
{
	char name[XATTR_NAME_MAX + 1];

	assert_int_equal(fs_xattrmap_to_host(map, guest, name), 0);
	assert_string_equal(name, host);
}

static void refused(const struct fs_xattrmap *map, const char *guest, int error)
{
	char name[XATTR_NAME_MAX + 1];

	assert_int_equal(fs_xattrmap_to_host(map, guest, name), error);
}

static void to_guest(const struct fs_xattrmap *map, const char *host,
		     const char *guest)
{
	const char *name = fs_xattrmap_to_guest(map, host);

	if (!guest)
		assert_null(name);
	else
		assert_string_equal(name, guest);
}

static void without_rules_names_are_the_same(void **state)
{
	(void)state;
	to_host(NULL, "user.x", "user.x");
	to_guest(NULL, "user.x", "user.x");
	refused(NULL, "", -ERANGE);
	to_guest(NULL, "", NULL);
}

static void check_all_moved(const char *text)
{
	struct fs_xattrmap *map = parsed(text);

	to_host(map, "trusted.a", "user.virtiofs.trusted.a");
	to_host(map, "user.virtiofs.a", "user.virtiofs.user.virtiofs.a");
	to_guest(map, "user.virtiofs.trusted.a", "trusted.a");
	to_guest(map, "user.virtiofs.", NULL);
	to_guest(map, "trusted.a", NULL);
	to_guest(map, "user.a", NULL);
	fs_xattrmap_free(map);
}

static void all_names_are_moved(void **state)
{
	(void)state;
	check_all_moved(":prefix:all::user.virtiofs.::bad:all:::");
	check_all_moved(":map::user.virtiofs.:");
	check_all_moved("  \n:map::user.virtiofs.:\t\n");
	check_all_moved("/map//user.virtiofs./");
}

static void check_some_moved(const char *text)
{
	struct fs_xattrmap *map = parsed(text);

	to_host(map, "trusted.a", "user.virtiofs.trusted.a");
	refused(map, "user.virtiofs.trusted.a", -EPERM);
	to_host(map, "user.a", "user.a");
	to_guest(map, "user.virtiofs.trusted.a", "trusted.a");
	to_guest(map, "trusted.a", NULL);
	to_guest(map, "user.a", "user.a");
	fs_xattrmap_free(map);
}

static void some_names_are_moved_and_no_other_way_leads_there(void **state)
{
	(void)state;
	check_some_moved("/prefix/all/trusted./user.virtiofs./\n"
			 "/bad/server//trusted./\n"
			 "/bad/client/user.virtiofs.//\n"
			 "/ok/all///");
	check_some_moved("/map/trusted./user.virtiofs./");
}

static void names_are_refused_and_hidden(void **state)
{
	struct fs_xattrmap *map =
		parsed("/bad/all/security./security./ "
		       "-unsupported-all-system.-system.- /ok/all///");

	(void)state;
	refused(map, "security.selinux", -EPERM);
	refused(map, "system.nfs4_acl", -EOPNOTSUPP);
	to_guest(map, "security.selinux", NULL);
	to_guest(map, "system.nfs4_acl", NULL);
	to_host(map, "user.a", "user.a");
	to_guest(map, "securit.y", "securit.y");
	fs_xattrmap_free(map);
}

static void the_first_rule_that_matches_counts(void **state)
{
	struct fs_xattrmap *map =
		parsed(":ok:client:user.a.::" /* only the guest's names */
		       ":bad:client:user.::"
		       ":prefix:server::user.p.:"
		       ":ok:all:::");

	(void)state;
	to_host(map, "user.a.x", "user.a.x");
	refused(map, "user.b", -EPERM);
	to_guest(map, "user.b", "user.b");
	to_guest(map, "user.p.q", "q");
	to_host(map, "q", "q");
	fs_xattrmap_free(map);
}

static void a_name_that_becomes_too_long_is_refused(void **state)
{
	struct fs_xattrmap *map = parsed(":map::user.virtiofs.:");
	char name[XATTR_NAME_MAX + 2], host[XATTR_NAME_MAX + 1];

	(void)state;
	memset(name, 'a', sizeof(name));
	name[XATTR_NAME_MAX - strlen("user.virtiofs.")] = 0;
	assert_int_equal(fs_xattrmap_to_host(map, name, host), 0);
	assert_int_equal(strlen(host), XATTR_NAME_MAX);
	name[strlen(name)] = 'a';
	name[XATTR_NAME_MAX - strlen("user.virtiofs.") + 1] = 0;
	refused(map, name, -ERANGE);
	memset(name, 'a', sizeof(name));
	name[XATTR_NAME_MAX + 1] = 0;
	refused(NULL, name, -ERANGE);
	name[XATTR_NAME_MAX] = 0;
	to_host(NULL, name, name);
	refused(map, "", -ERANGE);
	fs_xattrmap_free(map);
}

static void bad_rules_are_refused(void **state)
{
	static const char *const bad[] = {
		"",
		"  ",
		":",
		":ok",
		":ok:",
		":ok:all",
		":ok:all:",
		":ok:all::",
		"ok:all:::",
		":okay:all:::",
		":ok:everywhere:::",
		":ok:all:: :", /* a name, and no end */
		":ok:client:::",
		":ok:server:::",
		":prefix:all:trusted.:user.:",
		":map::user.: :ok:all:::",
		":map::a.::map::b.:",
		":ok:all:::x",
		"/ok:all///",
	};
	struct fs_xattrmap *map = NULL;
	char text[2048] = "";
	const char *why;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		why = NULL;
		if (fs_xattrmap_parse(bad[i], &map, &why) != -EINVAL)
			fail_msg("taken: '%s'", bad[i]);
		assert_non_null(why);
	}
	for (int i = 0; i < 62; i++)
		strcat(text, ":ok:client:x:y:");
	strcat(text, ":ok:all:::");
	assert_int_equal(fs_xattrmap_parse(text, &map, &why), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(without_rules_names_are_the_same),
		cmocka_unit_test(all_names_are_moved),
		cmocka_unit_test(
			some_names_are_moved_and_no_other_way_leads_there),
		cmocka_unit_test(names_are_refused_and_hidden),
		cmocka_unit_test(the_first_rule_that_matches_counts),
		cmocka_unit_test(a_name_that_becomes_too_long_is_refused),
		cmocka_unit_test(bad_rules_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
