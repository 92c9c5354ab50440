/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table: what operations return, in words that do not depend on when and
 * where they ran.
 */
#include "fsops.h"

#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

void say(const char *what, long result)
{
	if (result < 0)
		printf("%s = %s\n", what, strerrorname_np(errno));
	else
		printf("%s = %ld\n", what, result);
}

void show(const char *path)
{
	struct stat st;

	if (lstat(path, &st)) {
		printf("%s: %s\n", path, strerrorname_np(errno));
		return;
	}
	printf("%s: mode %06o links %u uid %u gid %u", path, st.st_mode,
	       (unsigned int)st.st_nlink, st.st_uid, st.st_gid);
	if (S_ISREG(st.st_mode) || S_ISLNK(st.st_mode))
		printf(" size %lld", (long long)st.st_size);
	if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode))
		printf(" device %u:%u", major(st.st_rdev), minor(st.st_rdev));
	printf("\n");
}

static long make(const char *path, const char *text)
{
	int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0644);
	long ret;

	if (fd < 0)
		return -1;
	ret = write(fd, text, strlen(text));
	close(fd);
	return ret;
}

static void text_of(const char *path)
{
	char data[100];
	int fd = open(path, O_RDONLY);
	ssize_t n;

	if (fd < 0) {
		say(path, -1);
		return;
	}
	n = read(fd, data, sizeof(data) - 1);
	if (n < 0)
		say("read", -1);
	else
		printf("%s holds '%.*s'\n", path, (int)n, data);
	close(fd);
}

/* Each of the flags of open() on each kind of file. */
static void table_open(void)
{
	static const struct {
		const char *name;
		int flags;
	} modes[] = {
		{ "O_RDONLY", O_RDONLY },
		{ "O_WRONLY", O_WRONLY },
		{ "O_RDWR", O_RDWR },
		{ "O_CREAT", O_CREAT | O_RDWR },
		{ "O_CREAT|O_EXCL", O_CREAT | O_EXCL | O_RDWR },
		{ "O_TRUNC", O_TRUNC | O_RDWR },
		{ "O_DIRECTORY", O_DIRECTORY | O_RDONLY },
		{ "O_NOFOLLOW", O_NOFOLLOW | O_RDONLY },
		{ "O_PATH", O_PATH },
		{ "O_APPEND", O_APPEND | O_WRONLY },
		{ "O_TMPFILE", O_TMPFILE | O_RDWR },
		{ "O_RDONLY|O_TRUNC", O_RDONLY | O_TRUNC },
	};
	static const char *const files[] = { "file", "dir",  "link",
					     "hang", "loop", "nothing",
					     "dir/", "file/", "file/x",
					     "nothing/x", "", "link/x" };

	make("file", "text");
	mkdir("dir", 0755);
	symlink("file", "link");
	symlink("nowhere", "hang");
	symlink("loop", "loop");
	for (size_t f = 0; f < sizeof(files) / sizeof(files[0]); f++) {
		for (size_t m = 0; m < sizeof(modes) / sizeof(modes[0]); m++) {
			int fd = open(files[f], modes[m].flags, 0600);

			printf("open '%s' %s ", files[f], modes[m].name);
			say("", fd < 0 ? -1 : 0);
			if (fd >= 0)
				close(fd);
			unlink("nothing");
			unlink("nowhere");
		}
	}
	show("file");
	unlink("file");
	unlink("link");
	unlink("hang");
	unlink("loop");
	rmdir("dir");
}

static void table_names(void)
{
	T(mkdir("d", 0755));
	T(mkdir("d", 0755));
	T(mkdir("d/e/f", 0755));
	T(make("d/f", "hello"));
	T(mkdir("d/f", 0755));
	T(mkdir("d/f/g", 0755));
	T(rmdir("d"));
	T(rmdir("d/f"));
	T(rmdir("nothing"));
	T(rmdir("d/."));
	T(rmdir("d/.."));
	T(unlink("d"));
	T(unlink("nothing"));
	T(unlink("d/f/g"));
	T(mkdir("d/e", 01777));
	T(mkdir("d/s", 02755));
	show("d/e");
	show("d/s");
	show("d");
	T(link("d/f", "d/g"));
	T(link("d/f", "d/g"));
	T(link("d", "d2"));
	T(link("nothing", "d2"));
	show("d/f");
	T(symlink("d/f", "s"));
	T(symlink("d/f", "s"));
	T(symlink("", "empty"));
	T(link("s", "s2"));
	show("s2");
	T(readlink("s", (char[16]){ 0 }, 16));
	T(readlink("s", (char[2]){ 0 }, 2));
	T(readlink("d", (char[16]){ 0 }, 16));
	T(mkfifo("fifo", 0640));
	T(mknod("null", S_IFCHR | 0666, makedev(1, 3)));
	T(mknod("block", S_IFBLK | 0600, makedev(7, 300)));
	T(mknod("sock", S_IFSOCK | 0600, 0));
	T(mknod("reg", S_IFREG | 0604, 0));
	T(mknod("odd", S_IFDIR | 0600, 0));
	show("fifo");
	show("null");
	show("block");
	show("sock");
	show("reg");
	T(unlink("fifo"));
	T(unlink("null"));
	T(unlink("block"));
	T(unlink("sock"));
	T(unlink("reg"));
	T(unlink("s"));
	T(unlink("s2"));
}

static long rename2(const char *from, const char *to, unsigned int flags)
{
	return renameat2(AT_FDCWD, from, AT_FDCWD, to, flags);
}

static void table_rename(void)
{
	T(make("a", "aaa"));
	T(make("b", "bbbbb"));
	T(mkdir("x", 0755));
	T(mkdir("y", 0755));
	T(make("y/z", "z"));
	T(rename("a", "b"));
	show("a");
	text_of("b");
	T(rename("a", "c"));
	T(rename("b", "x"));
	T(rename("x", "b"));
	T(rename("x", "x/sub"));
	T(rename("x", "y"));
	T(rename("y", "x"));
	show("x/z");
	T(rename("b", "x/b"));
	T(rename("x/b", "b"));
	T(rename("b", "b"));
	T(link("b", "b2"));
	T(rename("b", "b2"));
	show("b");
	T(rename("b", "nothing/b"));
	T(make("a", "aaa"));
	T(rename2("a", "b", RENAME_NOREPLACE));
	T(rename2("a", "n", RENAME_NOREPLACE));
	T(rename2("n", "b", RENAME_EXCHANGE));
	text_of("b");
	text_of("n");
	T(rename2("n", "nothing", RENAME_EXCHANGE));
	T(rename2("n", "x", RENAME_EXCHANGE));
	show("n/z");
	T(rename2("x", "n", RENAME_EXCHANGE));
	T(rename2("n", "n2", RENAME_EXCHANGE | RENAME_NOREPLACE));
	T(rename2("n", "n2", 0x100));
	T(unlink("n"));
	T(unlink("b"));
	T(unlink("b2"));
	T(unlink("x/z"));
	T(rmdir("x"));
}

static void table_data(void)
{
	char data[64] = { 0 };
	struct stat st;
	int fd, other;

	FD(fd, open("data", O_CREAT | O_RDWR, 0600));
	T(write(fd, "0123456789", 10));
	T(pread(fd, data, 5, 7));
	T(pread(fd, data, 5, 10));
	T(pread(fd, data, 5, 1000));
	T(pread(fd, data, 5, -1));
	T(pwrite(fd, "x", 1, -1));
	T(pwrite(fd, "x", 0, 100000));
	T(pwrite(fd, "x", 1, 9000));
	show("data");
	T(lseek(fd, 0, SEEK_DATA));
	T(lseek(fd, 9001, SEEK_DATA));
	T(lseek(fd, 9000, SEEK_HOLE));
	T(lseek(fd, 9001, SEEK_HOLE));
	T(lseek(fd, -1, SEEK_SET));
	T(lseek(fd, -10, SEEK_END));
	T(ftruncate(fd, 3));
	T(ftruncate(fd, -1));
	T(ftruncate(fd, INT64_MAX));
	T(pread(fd, data, 9, 0));
	T(truncate("data", 8));
	T(pread(fd, data, 9, 0));
	printf("data '%.3s' and %d %d\n", data, data[3], data[7]);
	T(fallocate(fd, 0, 0, 10000));
	show("data");
	T(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 50000));
	show("data");
	T(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1, 2));
	T(fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, 1));
	T(fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 1));
	T(fallocate(fd, 0, -1, 10));
	T(fallocate(fd, 0, 10, 0));
	T(pread(fd, data, 9, 0));
	printf("data %d %d %d %d\n", data[0], data[1], data[2], data[3]);
	FD(other, open("other", O_CREAT | O_RDWR, 0600));
	T(pwrite(fd, "copied text", 11, 0));
	T(copy_file_range(fd, &(off64_t){ 7 }, other, &(off64_t){ 1 }, 4, 0));
	T(copy_file_range(fd, &(off64_t){ 99999 }, other, &(off64_t){ 1 }, 4,
			  0));
	T(copy_file_range(fd, &(off64_t){ 0 }, fd, &(off64_t){ 2 }, 4, 0));
	T(copy_file_range(fd, &(off64_t){ 0 }, other, &(off64_t){ 2 }, 4, 1));
	T(pread(other, data, 9, 1));
	printf("copied '%.4s'\n", data);
	show("other");
	T(fsync(fd));
	T(fdatasync(fd));
	T(syncfs(fd));
	T(close(other));
	FD(other, open("other", O_RDONLY));
	T(write(other, "x", 1));
	T(ftruncate(other, 1));
	T(fallocate(other, 0, 0, 1));
	T(close(other));
	FD(other, open("other", O_WRONLY | O_APPEND));
	T(read(other, data, 1));
	T(pwrite(other, "end", 3, 0));
	T(copy_file_range(fd, NULL, other, NULL, 1, 0));
	T(close(other));
	show("other");
	/* Unlinked, yet open. */
	T(unlink("data"));
	T(pread(fd, data, 4, 0));
	T(pwrite(fd, "more", 4, 60000));
	T(fstat(fd, &st));
	printf("unlinked: links %u size %lld mode %o\n",
	       (unsigned int)st.st_nlink, (long long)st.st_size, st.st_mode);
	T(fchmod(fd, 0604));
	T(ftruncate(fd, 2));
	T(fstat(fd, &st));
	printf("unlinked: links %u size %lld mode %o\n",
	       (unsigned int)st.st_nlink, (long long)st.st_size, st.st_mode);
	T(close(fd));
	T(unlink("other"));
}

static void table_tmpfile(void)
{
	char path[32];
	int fd;

	FD(fd, open(".", O_TMPFILE | O_RDWR, 0640));
	if (fd < 0)
		return;
	T(write(fd, "unnamed", 7));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	T(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
	show("named");
	text_of("named");
	T(close(fd));
	T(unlink("named"));
	FD(fd, open(".", O_TMPFILE | O_RDWR | O_EXCL, 0640));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	T(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
	T(close(fd));
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* All names in a folder, sorted; and its types as readdir has them. */
static void list(const char *path)
{
	char *names[100];
	struct dirent *d;
	size_t n = 0;
	DIR *dir = opendir(path);

	CHECK(dir, "opendir %s", path);
	while (n < 100 && (d = readdir(dir)))
		CHECK(asprintf(&names[n++], "%s/%d", d->d_name, d->d_type) > 0,
		      "asprintf");
	closedir(dir);
	qsort(names, n, sizeof(names[0]), by_name);
	printf("in %s:", path);
	for (size_t i = 0; i < n; i++) {
		printf(" %s", names[i]);
		free(names[i]);
	}
	printf("\n");
}

static void table_folders(void)
{
	char name[300];
	int fd;

	T(mkdir("l", 0755));
	T(make("l/file", "x"));
	T(mkdir("l/dir", 0700));
	T(symlink("x", "l/link"));
	T(mkfifo("l/fifo", 0600));
	list("l");
	list("l/dir");
	FD(fd, open("l/dir", O_RDONLY | O_DIRECTORY));
	T(read(fd, name, 1));
	T(fsync(fd));
	T(fchmod(fd, 0755));
	show("l/dir");
	T(rmdir("l/dir"));
	T(openat(fd, "x", O_CREAT | O_RDWR, 0600));
	T(mkdirat(fd, "x", 0600));
	T(close(fd));
	memset(name, 'n', 256);
	name[256] = '\0';
	T(mkdir(name, 0755));
	name[255] = '\0';
	T(mkdir(name, 0755));
	T(rmdir(name));
	T(rename("l", "."));
	T(rename("l", ".."));
	T(access("l/file", X_OK));
	T(access("l/file", R_OK | W_OK));
	T(access("l/nothing", F_OK));
	T(unlink("l/file"));
	T(unlink("l/link"));
	T(unlink("l/fifo"));
	T(rmdir("l"));
}

static void table_map(void)
{
	char *map = MAP_FAILED;
	int fd;

	FD(fd, open("map", O_CREAT | O_RDWR, 0600));
	T(ftruncate(fd, 8192));
	map = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	printf("shared writable map %s\n",
	       map == MAP_FAILED ? strerrorname_np(errno) : "works");
	if (map != MAP_FAILED) {
		strcpy(map + 4090, "over the edge");
		T(msync(map, 8192, MS_SYNC));
		munmap(map, 8192);
	}
	map = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, fd, 0);
	printf("private map '%s'\n",
	       map == MAP_FAILED ? strerrorname_np(errno) : map + 4090);
	T(close(fd));
	show("map");
	T(unlink("map"));
}

int cmd_table(int argc, char **argv)
{
	CHECK(argc == 2 && !chdir(argv[1]), "table: a folder");
	umask(022);
	table_open();
	table_names();
	table_rename();
	table_data();
	table_tmpfile();
	table_folders();
	table_map();
	table_attributes();
	table_users();
	table_locks();
	return 0;
}
