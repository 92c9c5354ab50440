/* SPDX-License-Identifier: Apache-2.0 */
/* The table: attributes, extended attributes and ACLs, users. */
#include "fsops.h"

#include <sys/xattr.h>
#include <time.h>

static long create(const char *path, mode_t mode)
{
	int fd = open(path, O_CREAT | O_EXCL | O_RDWR, mode);

	if (fd < 0)
		return -1;
	return close(fd);
}

static long reads(const char *path)
{
	char byte;
	int fd = open(path, O_RDONLY);
	long ret;

	if (fd < 0)
		return -1;
	ret = read(fd, &byte, 1);
	close(fd);
	return ret;
}

static long writes(const char *path)
{
	int fd = open(path, O_WRONLY);
	long ret;

	if (fd < 0)
		return -1;
	ret = write(fd, "w", 1);
	close(fd);
	return ret;
}

static long lists(const char *path)
{
	DIR *dir = opendir(path);

	return dir ? closedir(dir) : -1;
}

static void times_of(const char *path)
{
	struct stat st;

	CHECK(!lstat(path, &st), "%s", path);
	printf("%s: accessed %lld.%09ld changed %lld.%09ld\n", path,
	       (long long)st.st_atim.tv_sec, st.st_atim.tv_nsec,
	       (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
}

/* Whether something moved a time on: mtime, ctime. */
static void moved(const char *what, const char *path, struct stat *before)
{
	struct stat st;
	bool m, c;

	CHECK(!lstat(path, &st), "%s", path);
	m = st.st_mtim.tv_sec != before->st_mtim.tv_sec ||
	    st.st_mtim.tv_nsec != before->st_mtim.tv_nsec;
	c = st.st_ctim.tv_sec != before->st_ctim.tv_sec ||
	    st.st_ctim.tv_nsec != before->st_ctim.tv_nsec;
	printf("%s: mtime %s, ctime %s\n", what, m ? "moves" : "stays",
	       c ? "moves" : "stays");
	*before = st;
	nanosleep(&(struct timespec){ .tv_nsec = 20000000 }, NULL);
}

static void table_times(void)
{
	struct timespec t[2] = { { 1000000000, 123456789 },
				 { 4000000000, 987654321 } };
	struct stat st;

	T(create("t", 0644));
	T(utimensat(AT_FDCWD, "t", t, 0));
	times_of("t");
	t[0].tv_nsec = UTIME_OMIT;
	t[1].tv_sec = -5;
	T(utimensat(AT_FDCWD, "t", t, 0));
	times_of("t");
	t[1].tv_nsec = 2000000000;
	T(utimensat(AT_FDCWD, "t", t, 0));
	T(symlink("t", "tl"));
	t[1] = (struct timespec){ 77, 0 };
	t[0] = (struct timespec){ 78, 0 };
	T(utimensat(AT_FDCWD, "tl", t, AT_SYMLINK_NOFOLLOW));
	printf("%s\n", lstat("tl", &st) || st.st_mtime != 77 ? "not set" :
							       "set");
	T(unlink("tl"));
	CHECK(!lstat("t", &st), "t");
	moved("nothing", "t", &st);
	T(writes("t"));
	moved("write", "t", &st);
	T(chmod("t", 0600));
	moved("chmod", "t", &st);
	T(truncate("t", 100));
	moved("truncate", "t", &st);
	T(truncate("t", 100));
	moved("truncate to the same", "t", &st);
	T(link("t", "t2"));
	moved("link", "t", &st);
	T(unlink("t2"));
	moved("unlink", "t", &st);
	T(rename("t", "t2"));
	CHECK(!lstat(".", &st), ".");
	moved("nothing", ".", &st);
	T(create("t3", 0600));
	moved("create, the folder", ".", &st);
	T(unlink("t3"));
	moved("unlink, the folder", ".", &st);
	T(unlink("t2"));
}

static void names_of(const char *path)
{
	char names[1000];
	ssize_t n = listxattr(path, names, sizeof(names));

	say("listxattr", n < 0 ? -1 : 0);
	/* What a security module adds is not the file system's. */
	for (ssize_t i = 0; i < n; i += (ssize_t)strlen(names + i) + 1)
		if (strncmp(names + i, "security.", 9))
			printf("  %s\n", names + i);
}

static void table_xattr(void)
{
	static char big[65536];
	char data[100];

	T(create("x", 0644));
	T(mkdir("xd", 0755));
	T(symlink("x", "xl"));
	T(setxattr("x", "user.one", "value", 5, 0));
	T(setxattr("x", "user.one", "other", 5, XATTR_CREATE));
	T(setxattr("x", "user.two", "other", 5, XATTR_REPLACE));
	T(setxattr("x", "user.none", "", 0, 0));
	T(setxattr("x", "user.", "x", 1, 0));
	T(setxattr("x", "", "x", 1, 0));
	T(setxattr("x", "nonsense", "x", 1, 0));
	T(setxattr("x", "user.big", big, sizeof(big), 0));
	T(setxattr("x", "trusted.t", "x", 1, 0));
	T(setxattr("xd", "user.dir", "x", 1, 0));
	T(lsetxattr("xl", "user.link", "x", 1, 0));
	T(getxattr("x", "user.one", data, sizeof(data)));
	T(getxattr("x", "user.one", data, 4));
	T(getxattr("x", "user.one", NULL, 0));
	T(getxattr("x", "user.none", data, sizeof(data)));
	T(getxattr("x", "user.two", data, sizeof(data)));
	names_of("x");
	names_of("xd");
	T(listxattr("x", data, 3));
	T(removexattr("x", "user.one"));
	T(removexattr("x", "user.one"));
	T(unlink("x"));
	T(rmdir("xd"));
	T(unlink("xl"));
}

/* system.posix_acl_*: version 2, then tag, permissions, id. */
static size_t acl(uint8_t *out, const uint32_t (*entries)[3], size_t n)
{
	uint32_t version = 2;

	memcpy(out, &version, 4);
	for (size_t i = 0; i < n; i++) {
		uint16_t head[2] = { (uint16_t)entries[i][0],
				     (uint16_t)entries[i][1] };

		memcpy(out + 4 + 8 * i, head, 4);
		memcpy(out + 8 + 8 * i, &entries[i][2], 4);
	}
	return 4 + 8 * n;
}

static void table_acl(void)
{
	/* u::rwx u:1001:rw- g::r-- m::rw- o::--- */
	static const uint32_t some[][3] = { { 1, 7, ~0u },
					    { 2, 6, 1001 },
					    { 4, 4, ~0u },
					    { 16, 6, ~0u },
					    { 32, 0, ~0u } };
	static const char access_[] = "system.posix_acl_access";
	static const char default_[] = "system.posix_acl_default";
	uint8_t text[200], back[200];
	size_t n = acl(text, some, 5);
	pid_t child;

	T(create("acl", 0640));
	T(setxattr("acl", access_, text, n, 0));
	T(getxattr("acl", access_, back, sizeof(back)));
	show("acl");
	child = as_user(1001, 1001, -1);
	if (!child) {
		T(reads("acl"));
		T(writes("acl"));
		exit(0);
	}
	ended(child);
	child = as_user(1002, 1002, -1);
	if (!child) {
		T(reads("acl"));
		exit(0);
	}
	ended(child);
	T(chmod("acl", 0600));
	show("acl");
	T(mkdir("acld", 0755));
	T(setxattr("acld", default_, text, n, 0));
	T(create("acld/file", 0666));
	show("acld/file");
	T(getxattr("acld/file", access_, back, sizeof(back)));
	T(mkdir("acld/dir", 0777));
	show("acld/dir");
	T(getxattr("acld/dir", default_, back, sizeof(back)));
	T(setxattr("acl", default_, text, n, 0));
	T(setxattr("acl", access_, text, n - 3, 0));
	T(removexattr("acl", access_));
	show("acl");
	T(unlink("acld/file"));
	T(rmdir("acld/dir"));
	T(rmdir("acld"));
	T(unlink("acl"));
}

void table_attributes(void)
{
	T(create("m", 0777));
	show("m");
	T(chmod("m", 07777));
	show("m");
	T(chown("m", 1001, 1002));
	show("m");
	T(chmod("m", 06755));
	T(truncate("m", 5));
	show("m");
	T(chmod("m", 02745));
	T(chown("m", -1, -1));
	show("m");
	T(chown("nothing", 1, 1));
	T(chmod("nothing", 0));
	T(lchown("m", 4000000000u, 4000000001u));
	show("m");
	T(unlink("m"));
	umask(0);
	T(create("m", 0666));
	show("m");
	T(unlink("m"));
	umask(077);
	T(create("m", 0666));
	show("m");
	T(mkdir("md", 0777));
	show("md");
	T(unlink("m"));
	T(rmdir("md"));
	umask(022);
	table_times();
	table_xattr();
	table_acl();
}

/* A user who is nobody: what root's files let him do. */
static void stranger(void)
{
	T(reads("u/public"));
	T(writes("u/public"));
	T(reads("u/secret"));
	T(reads("u/closed/in"));
	T(lists("u/closed"));
	T(create("u/mine", 0644));
	T(create("u/open/mine", 0644));
	show("u/open/mine");
	T(mkdir("u/open/dir", 0755));
	show("u/open/dir");
	T(symlink("x", "u/open/link"));
	show("u/open/link");
	T(unlink("u/open/theirs"));
	T(rename("u/open/theirs", "u/open/taken"));
	T(chmod("u/public", 0666));
	T(chown("u/open/mine", 1002, -1));
	T(chown("u/open/mine", -1, 2000));
	T(chown("u/open/mine", -1, 3000));
	show("u/open/mine");
	T(chmod("u/open/mine", 06755));
	show("u/open/mine");
	T(writes("u/open/mine"));
	show("u/open/mine");
	T(chmod("u/open/mine", 06755));
	T(truncate("u/open/mine", 0));
	show("u/open/mine");
	T(chmod("u/open/mine", 02644));
	T(truncate("u/open/mine", 1));
	show("u/open/mine");
	T(mknod("u/open/dev", S_IFCHR | 0666, 0x103));
	T(mkfifo("u/open/fifo", 0666));
	T(setxattr("u/public", "user.x", "x", 1, 0));
	T(setxattr("u/open/mine", "trusted.x", "x", 1, 0));
	T(utimensat(AT_FDCWD, "u/public", NULL, 0));
	T(utimensat(AT_FDCWD, "u/open/mine", NULL, 0));
	T(reads("u/group"));
	T(writes("u/group"));
	T(create("u/setgid/in", 02755));
	show("u/setgid/in");
	T(mkdir("u/setgid/dir", 0755));
	show("u/setgid/dir");
	T(truncate("u/public", 0));
	T(link("u/secret", "u/open/hard"));
	T(access("u/secret", R_OK));
	T(access("u/public", R_OK));
	T(access("u/public", W_OK));
}

void table_users(void)
{
	static const char *const files[] = {
		"u/open/mine", "u/open/link", "u/open/fifo", "u/open/theirs",
		"u/open/taken", "u/open/hard", "u/setgid/in",  "u/closed/in",
		"u/public",    "u/secret",    "u/group",     "u/mine"
	};
	static const char *const folders[] = { "u/open/dir", "u/setgid/dir",
					       "u/setgid", "u/open",
					       "u/closed", "u" };
	pid_t child;

	T(mkdir("u", 0755));
	T(create("u/public", 0644));
	T(create("u/secret", 0600));
	T(create("u/group", 0660));
	T(chown("u/group", 0, 2000));
	T(mkdir("u/closed", 0700));
	T(create("u/closed/in", 0666));
	T(mkdir("u/open", 0));
	T(chmod("u/open", 01777));
	T(create("u/open/theirs", 0666));
	T(mkdir("u/setgid", 0));
	T(chown("u/setgid", 0, 2000));
	T(chmod("u/setgid", 02777));
	for (int group = -1; group <= 2000; group += 2001) {
		printf("-- a user, supplementary group %d\n", group);
		child = as_user(1001, 1001, group);
		if (!child) {
			stranger();
			exit(0);
		}
		printf("ended %d\n", ended(child));
		T(unlink("u/open/mine"));
		T(unlink("u/open/fifo"));
		T(unlink("u/setgid/in"));
		T(rmdir("u/setgid/dir"));
		T(rmdir("u/open/dir"));
	}
	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
		unlink(files[i]);
	for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++)
		rmdir(folders[i]);
	show("u");
}
