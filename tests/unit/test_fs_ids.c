/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What src/dev/fs/ids.c promises: users are translated as the command line
 * says, and a file is made as the user whom the request names.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "dev/fs/fs.h"

#define LEN(a) (sizeof(a) / sizeof(*(a)))

static int parse(const char *arg)
{
	struct fs_id_map maps[FS_ID_MAPS];
	uint32_t n = 0;

	return fs_ids_parse(arg, maps, &n);
}

static void only_rules_that_make_sense_are_taken(void **state)
{
	static const char *const good[] = {
		"guest:0:1000:1",
		"host:1000:0:4294966296",
		"map:0:100000:65536",
		"squash-guest:0:1001:4294967295",
		"squash-host:5:4294967295:1",
		"forbid-guest:0:4294967295",
	};
	static const char *const bad[] = {
		"",
		"guest",
		"guest:",
		":0:0:1",
		"g:0:0:1",
		"guests:0:0:1",
		"guest:0:1000",
		"guest:0:1000:1:",
		"guest:0:1000:1:1",
		"guest:0:1000:0",
		"guest:0::1",
		"guest:-1:0:1",
		"guest: 1:0:1",
		"guest:+1:0:1",
		"guest:0x1:0:1",
		"guest:4294967296:0:1",
		"guest:99999999999999999999:0:1",
		"guest:4294967295:0:2",
		"guest:0:4294967295:2",
		"squash-guest:4294967295:0:2",
		"forbid-guest:1:2:3",
	};

	(void)state;
	for (size_t i = 0; i < LEN(good); i++)
		if (parse(good[i]))
			fail_msg("refused: %s", good[i]);
	for (size_t i = 0; i < LEN(bad); i++)
		if (parse(bad[i]) != -EINVAL)
			fail_msg("taken: %s", bad[i]);
}

static void rules_of_one_direction_may_not_overlap(void **state)
{
	struct fs_id_map maps[FS_ID_MAPS];
	uint32_t n = 0;

	(void)state;
	assert_int_equal(fs_ids_parse("guest:100:1100:100", maps, &n), 0);
	assert_int_equal(fs_ids_parse("squash-guest:199:0:1", maps, &n),
			 -EINVAL);
	assert_int_equal(fs_ids_parse("forbid-guest:0:101", maps, &n), -EINVAL);
	assert_int_equal(fs_ids_parse("map:150:5000:1", maps, &n), -EINVAL);
	assert_int_equal(fs_ids_parse("forbid-guest:0:100", maps, &n), 0);
	/* The other direction is independent. */
	assert_int_equal(fs_ids_parse("host:100:7:100", maps, &n), 0);
	assert_int_equal(fs_ids_parse("map:300:199:1", maps, &n), -EINVAL);
	assert_int_equal(fs_ids_parse("squash-host:0:7:200", maps, &n),
			 -EINVAL);
	assert_int_equal(n, 3);
}

static void there_is_a_limit_to_rules(void **state)
{
	struct fs_id_map maps[FS_ID_MAPS];
	uint32_t n = 0;
	char arg[32];

	(void)state;
	for (uint32_t i = 0; i < FS_ID_MAPS; i++) {
		snprintf(arg, sizeof(arg), "guest:%u:0:1", i);
		assert_int_equal(fs_ids_parse(arg, maps, &n), 0);
	}
	assert_int_equal(fs_ids_parse("guest:1000:0:1", maps, &n), -EINVAL);
	assert_int_equal(n, FS_ID_MAPS);
}

static void users_and_groups_are_translated_each_by_their_rules(void **state)
{
	struct fs_options opt = { 0 };
	struct fs_ids *ids = &opt.ids;
	struct fs fs = { .opt = &opt };
	uint32_t id;

	(void)state;
	assert_int_equal(fs_ids_parse("map:0:1000:10", ids->uid, &ids->nuid),
			 0);
	assert_int_equal(
		fs_ids_parse("forbid-guest:50:2", ids->uid, &ids->nuid), 0);
	assert_int_equal(fs_ids_parse("squash-host:2000:65534:100", ids->uid,
				      &ids->nuid),
			 0);
	assert_int_equal(
		fs_ids_parse("squash-guest:10:77:90", ids->gid, &ids->ngid), 0);
	assert_int_equal(fs_ids_parse("guest:200:4294967295:1", ids->gid,
				      &ids->ngid),
			 0);
	assert_int_equal(fs_ids_parse("host:5:6:2", ids->gid, &ids->ngid), 0);

	assert_int_equal(fs_uid_to_host(&fs, 9, &id), 0);
	assert_int_equal(id, 1009);
	assert_int_equal(fs_uid_to_host(&fs, 10, &id), 0);
	assert_int_equal(id, 10);
	assert_int_equal(fs_uid_to_host(&fs, 49, &id), 0);
	assert_int_equal(fs_uid_to_host(&fs, 50, &id), -EPERM);
	assert_int_equal(fs_uid_to_host(&fs, 51, &id), -EPERM);
	assert_int_equal(fs_uid_to_host(&fs, 52, &id), 0);
	assert_int_equal(fs_uid_to_guest(&fs, 1009), 9);
	assert_int_equal(fs_uid_to_guest(&fs, 1010), 1010);
	assert_int_equal(fs_uid_to_guest(&fs, 2099), 65534);
	assert_int_equal(fs_uid_to_guest(&fs, 2100), 2100);

	assert_int_equal(fs_gid_to_host(&fs, 99, &id), 0);
	assert_int_equal(id, 77);
	assert_int_equal(fs_gid_to_host(&fs, 100, &id), 0);
	assert_int_equal(id, 100);
	assert_int_equal(fs_gid_to_guest(&fs, 77), 77);
	assert_int_equal(fs_gid_to_guest(&fs, 6), 7);
	/* What the kernel would take for "no change" is nobody's id. */
	assert_int_equal(fs_gid_to_host(&fs, 200, &id), -EINVAL);
	assert_int_equal(fs_uid_to_host(&fs, UINT32_MAX, &id), -EINVAL);
}

/* ---- acting as users, on a thread that ends ---- */

struct scene {
	struct fs_options opt;
	struct fs fs;
	struct fs_thread thread;
	struct fs_req req;
	struct moat_log *log;
	uint8_t ext[FS_EXT_MAX];
	char dir[32];
	void (*run)(struct scene *s);
};

static void *on_thread(void *arg)
{
	struct scene *s = arg;

	/* As fs_thread_init() has it. */
	unshare(CLONE_FS);
	umask(0);
	s->thread = (struct fs_thread){ .fs = &s->fs,
					.ext = s->ext,
					.uid = s->fs.uid,
					.gid = s->fs.gid,
					.fsetid = true };
	s->run(s);
	return NULL;
}

static void in_scene(void (*run)(struct scene *s))
{
	struct moat_device_config config = { .name = "test" };
	struct scene s = { .run = run };
	pthread_t thread;
	char cmd[64];

	assert_int_equal(moat_device_defaults(&config), 0);
	s.fs = (struct fs){
		.opt = &s.opt,
		.log = config.log,
		.uid = geteuid(),
		.gid = getegid(),
		.flags = FUSE_CREATE_SUPP_GROUP,
	};
	s.req = (struct fs_req){ .fs = &s.fs, .thread = &s.thread };
	strcpy(s.dir, "/tmp/moat-ids-XXXXXX");
	assert_non_null(mkdtemp(s.dir));
	assert_int_equal(chmod(s.dir, 0777), 0);
	fs_ids_start(&s.fs);
	/* Who runs this as root wants it as it is for root. */
	assert_int_equal(s.fs.privileged, !geteuid());
	assert_int_equal(geteuid(), s.fs.uid);
	pthread_create(&thread, NULL, on_thread, &s);
	pthread_join(thread, NULL);
	snprintf(cmd, sizeof(cmd), "rm -r %s", s.dir);
	assert_int_equal(system(cmd), 0);
	free(config.log);
}

/* Make a file as user @uid; its attributes, or a negative errno. */
static int make(struct scene *s, uint32_t uid, uint32_t gid, uint32_t umask,
		mode_t mode, struct stat *st)
{
	char path[64];
	int ret, fd = -1;

	snprintf(path, sizeof(path), "%s/file", s->dir);
	s->req.in.uid = uid;
	s->req.in.gid = gid;
	ret = fs_become(&s->req, umask);
	if (!ret) {
		fd = open(path, O_CREAT | O_EXCL | O_RDWR, mode);
		ret = fd < 0 ? -errno : 0;
	}
	fs_become_self(&s->req);
	assert_int_equal(geteuid(), s->fs.uid);
	assert_int_equal(getegid(), s->fs.gid);
	if (ret)
		return ret;
	assert_int_equal(fstat(fd, st), 0);
	close(fd);
	assert_int_equal(unlink(path), 0);
	return 0;
}

static void owner(struct scene *s)
{
	bool root = s->fs.privileged;
	struct stat st;

	for (uint32_t i = 0; i < 3; i++) {
		assert_int_equal(make(s, 1234, 567, 022, 0666, &st), 0);
		assert_int_equal(st.st_uid, root ? 1234 : s->fs.uid);
		assert_int_equal(st.st_gid, root ? 567 : s->fs.gid);
		assert_int_equal(st.st_mode & 07777, 0644);
		assert_int_equal(make(s, 0, 0, 0, 0666, &st), 0);
		assert_int_equal(st.st_uid, s->fs.uid);
		assert_int_equal(st.st_gid, s->fs.gid);
		assert_int_equal(st.st_mode & 07777, 0666);
	}
	assert_int_equal(make(s, UINT32_MAX, 0, 0, 0666, &st), -EINVAL);
	assert_int_equal(make(s, 0, UINT32_MAX, 0, 0666, &st), -EINVAL);
}

static void a_file_belongs_to_the_user_of_the_request(void **state)
{
	(void)state;
	in_scene(owner);
}

static void put_ext(struct scene *s, uint32_t at, uint32_t size, uint32_t type,
		    uint32_t n, uint32_t group)
{
	const uint32_t words[] = { size, type, n, group };

	memcpy(s->ext + at, words, sizeof(words));
}

static void groups(struct scene *s)
{
	bool root = s->fs.privileged;
	struct stat st;

	/* A directory of a group that the user is in beside their own. */
	assert_int_equal(chmod(s->dir, 02770), 0);
	if (root)
		assert_int_equal(chown(s->dir, 0, 600), 0);
	if (root)
		assert_int_equal(make(s, 1234, 567, 0, 0666, &st), -EACCES);
	put_ext(s, 0, 16, 32, 1, 600);
	s->req.ext = 16;
	assert_int_equal(make(s, 1234, 567, 0, 02777, &st), 0);
	assert_int_equal(st.st_gid, root ? 600 : s->fs.gid);
	/* They are in the group: the bit stays. */
	assert_int_equal(st.st_mode & 07777, 02777);
	s->req.ext = 0;
	if (root)
		assert_int_equal(make(s, 1234, 567, 0, 0666, &st), -EACCES);
	/* A guest that can not tell has checked it all the same. */
	s->fs.flags = 0;
	assert_int_equal(make(s, 1234, 567, 0, 02777, &st), 0);
	if (root)
		assert_int_equal(st.st_mode & 07777, 0777);
	assert_int_equal(getgroups(0, NULL), 0);
}

static void a_group_that_the_request_names_counts(void **state)
{
	(void)state;
	if (!geteuid())
		assert_int_equal(setgroups(0, NULL), 0);
	in_scene(groups);
}

static void bad_ext(struct scene *s)
{
	static const struct {
		uint32_t len, size, type, n;
	} bad[] = {
		{ 4, 16, 32, 1 },	    { 8, 16, 32, 1 },
		{ 12, 16, 32, 1 },	    { 16, 7, 32, 1 },
		{ 16, 0, 32, 1 },	    { 16, 17, 32, 1 },
		{ 16, 8, 32, 1 },	    { 16, 16, 32, 2 },
		{ 16, 16, 32, UINT32_MAX }, { 16, 16, 32, 0x40000001 },
		{ 16, 16, 1, 1 },	    { 16, 16, 33, 1 },
		{ 20, 16, 32, 1 },	    { 16, UINT32_MAX, 32, 1 },
	};
	struct stat st;

	for (size_t i = 0; i < LEN(bad); i++) {
		put_ext(s, 0, bad[i].size, bad[i].type, bad[i].n, 600);
		s->req.ext = bad[i].len;
		if (make(s, 1234, 567, 0, 0666, &st) != -EINVAL)
			fail_msg("extension %zu was taken", i);
	}
	/* Groups twice. */
	put_ext(s, 0, 16, 32, 1, 600);
	put_ext(s, 16, 16, 32, 1, 601);
	s->req.ext = 32;
	assert_int_equal(make(s, 1234, 567, 0, 0666, &st), -EINVAL);
}

static void bad_extensions_are_refused(void **state)
{
	(void)state;
	in_scene(bad_ext);
}

static void bits(struct scene *s)
{
	const struct fs_node node = { 0 };
	char path[64];
	struct stat st;
	int fd;

	snprintf(path, sizeof(path), "%s/set", s->dir);
	fd = open(path, O_CREAT | O_RDWR, 0755);
	for (uint32_t i = 0; i < 4; i++) {
		bool keep = i & 1;

		assert_int_equal(fchmod(fd, 06755), 0);
		fs_fsetid(&s->req, &node, keep);
		assert_int_equal(write(fd, "x", 1), 1);
		assert_int_equal(fstat(fd, &st), 0);
		assert_int_equal(st.st_mode & 07777,
				 keep && s->fs.privileged ? 06755 : 0755);
	}
	/* Whoever was somebody else meanwhile has it again. */
	fs_fsetid(&s->req, &node, false);
	assert_int_equal(make(s, 1234, 567, 0, 0666, &st), 0);
	fs_fsetid(&s->req, &node, true);
	assert_int_equal(fchmod(fd, 06755), 0);
	assert_int_equal(write(fd, "x", 1), 1);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_mode & 07777, s->fs.privileged ? 06755 : 0755);
	close(fd);
}

static void set_user_id_bits_go_when_they_should(void **state)
{
	(void)state;
	in_scene(bits);
}

/* A set-group-ID bit without execution for the group is not cleared. */
static void group_bit(struct scene *s)
{
	static const struct {
		uint64_t group; /* of the file, and 1 */
		bool have;
		mode_t before, after;
	} turn[] = {
		{ 568, false, 06644, 02644 }, { 568, false, 06644, 02644 },
		{ 568, true, 06644, 06644 },  { 568, false, 06654, 0654 },
		{ 0, false, 06654, 0654 },    { 568, false, 06644, 02644 },
		{ 569, false, 06644, 0644 },  { 0, true, 06654, 06654 },
	};
	struct fs_node node = { 0 };
	struct stat st;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "%s/group", s->dir);
	fd = open(path, O_CREAT | O_RDWR, 0644);
	assert_int_equal(fchown(fd, 1234, 567), 0);
	for (size_t i = 0; i < LEN(turn); i++) {
		node.setgid = turn[i].group;
		fs_fsetid(&s->req, &node, true);
		assert_int_equal(getegid(), s->fs.gid);
		assert_int_equal(fchmod(fd, turn[i].before), 0);
		fs_fsetid(&s->req, &node, turn[i].have);
		assert_int_equal(ftruncate(fd, (off_t)i), 0);
		assert_int_equal(fstat(fd, &st), 0);
		if ((st.st_mode & 07777) != turn[i].after)
			fail_msg("turn %zu: mode %o", i, st.st_mode);
	}
	/* A file that is made in between is still the other user's. */
	node.setgid = 568;
	fs_fsetid(&s->req, &node, false);
	assert_int_equal(getegid(), 567);
	assert_int_equal(make(s, 4321, 999, 0, 0666, &st), 0);
	assert_int_equal(st.st_uid, 4321);
	assert_int_equal(st.st_gid, 999);
	close(fd);
}

static void a_group_bit_that_is_no_right_stays(void **state)
{
	(void)state;
	/* Who is not root is in their own groups, and no other. */
	if (!geteuid())
		in_scene(group_bit);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_rules_that_make_sense_are_taken),
		cmocka_unit_test(rules_of_one_direction_may_not_overlap),
		cmocka_unit_test(there_is_a_limit_to_rules),
		cmocka_unit_test(
			users_and_groups_are_translated_each_by_their_rules),
		cmocka_unit_test(a_file_belongs_to_the_user_of_the_request),
		cmocka_unit_test(a_group_that_the_request_names_counts),
		cmocka_unit_test(bad_extensions_are_refused),
		cmocka_unit_test(set_user_id_bits_go_when_they_should),
		cmocka_unit_test(a_group_bit_that_is_no_right_stays),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
