/* SPDX-License-Identifier: Apache-2.0 */
/* The table: locks between processes. */
#include "fsops.h"

#include <sys/file.h>

static long lock(int fd, int how, short type, off_t start, off_t length)
{
	struct flock l = { .l_type = type,
			   .l_whence = SEEK_SET,
			   .l_start = start,
			   .l_len = length };

	if (fcntl(fd, how, &l))
		return -1;
	if (how == F_GETLK)
		printf("  in the way: type %d from %lld, %lld\n", l.l_type,
		       (long long)l.l_start, (long long)l.l_len);
	return 0;
}

/* What another process sees of the locks of the first. */
static void other(void)
{
	pid_t child = as_user(0, 0, -1);
	int fd;

	if (child) {
		printf("ended %d\n", ended(child));
		return;
	}
	FD(fd, open("lock", O_RDWR));
	T(lock(fd, F_SETLK, F_WRLCK, 0, 10));
	T(lock(fd, F_SETLK, F_RDLCK, 0, 10));
	T(lock(fd, F_SETLK, F_WRLCK, 10, 10));
	T(lock(fd, F_SETLK, F_RDLCK, 20, 0));
	T(lock(fd, F_GETLK, F_WRLCK, 0, 0));
	T(lock(fd, F_SETLK, F_UNLCK, 0, 0));
	T(flock(fd, LOCK_EX | LOCK_NB));
	T(flock(fd, LOCK_SH | LOCK_NB));
	exit(0);
}

/* A child waits for a lock that this process gives up once it waits. */
static void waits(int fd)
{
	int pipes[2];
	char byte;
	pid_t child;

	CHECK(!pipe(pipes), "pipe");
	T(lock(fd, F_SETLK, F_WRLCK, 0, 10));
	child = as_user(0, 0, -1);
	if (!child) {
		fd = open("lock", O_RDWR);
		CHECK(write(pipes[1], "w", 1) == 1, "pipe");
		/* Silent: its order among the other's lines is not fixed. */
		exit(lock(fd, F_SETLKW, F_WRLCK, 5, 10) ? 1 : 0);
	}
	CHECK(read(pipes[0], &byte, 1) == 1, "pipe");
	usleep(100000); /* it waits most of the time by then */
	T(lock(fd, F_SETLK, F_UNLCK, 0, 10));
	printf("ended %d\n", ended(child));
	close(pipes[0]);
	close(pipes[1]);
}

/* Two that wait for each other: one of them is told, whoever is later. */
static void deadlock(int fd)
{
	int pipes[2], status;
	char byte;
	pid_t child;
	bool told;

	CHECK(!pipe(pipes), "pipe");
	T(lock(fd, F_SETLK, F_WRLCK, 0, 10));
	child = as_user(0, 0, -1);
	if (!child) {
		fd = open("lock", O_RDWR);
		status = (int)lock(fd, F_SETLK, F_WRLCK, 20, 10);
		CHECK(write(pipes[1], "w", 1) == 1, "pipe");
		if (!status && lock(fd, F_SETLKW, F_WRLCK, 0, 10))
			status = errno == EDEADLK ? 1 : 2;
		exit(status);
	}
	CHECK(read(pipes[0], &byte, 1) == 1, "pipe");
	told = lock(fd, F_SETLKW, F_WRLCK, 20, 10) && errno == EDEADLK;
	T(lock(fd, F_SETLK, F_UNLCK, 0, 0));
	CHECK(waitpid(child, &status, 0) == child, "waitpid");
	CHECK(WIFEXITED(status), "the child was killed");
	printf("told of a deadlock: %d\n", told + WEXITSTATUS(status));
	close(pipes[0]);
	close(pipes[1]);
}

void table_locks(void)
{
	int fd, second;

	FD(fd, open("lock", O_CREAT | O_RDWR, 0666));
	printf("-- no locks\n");
	other();
	T(lock(fd, F_SETLK, F_WRLCK, 0, 10));
	T(lock(fd, F_SETLK, F_RDLCK, 20, 5));
	printf("-- a write lock, a read lock\n");
	other();
	T(lock(fd, F_SETLK, F_UNLCK, 3, 2));
	T(lock(fd, F_SETLK, F_WRLCK, 22, 1));
	printf("-- in pieces\n");
	other();
	T(lock(fd, F_SETLK, 99, 0, 10));
	T(lock(fd, F_SETLK, F_RDLCK, -1, 10));
	T(lock(fd, F_SETLK, F_RDLCK, 0, -1));
	FD(second, open("lock", O_RDWR));
	T(close(second));
	printf("-- closed once: gone\n");
	other();
	waits(fd);
	deadlock(fd);
	T(flock(fd, LOCK_SH));
	printf("-- flock, shared\n");
	other();
	T(flock(fd, LOCK_EX));
	printf("-- flock, alone\n");
	other();
	FD(second, open("lock", O_RDWR));
	T(flock(second, LOCK_SH | LOCK_NB));
	T(flock(fd, LOCK_UN));
	T(flock(second, LOCK_EX | LOCK_NB));
	T(close(second));
	/* Locks of an open file description. */
	T(lock(fd, F_OFD_SETLK, F_WRLCK, 0, 10));
	FD(second, open("lock", O_RDWR));
	T(lock(second, F_OFD_SETLK, F_WRLCK, 0, 10));
	T(lock(second, F_OFD_SETLK, F_WRLCK, 10, 10));
	T(close(second));
	T(close(fd));
	FD(second, open("lock", O_RDONLY));
	T(lock(second, F_SETLK, F_WRLCK, 0, 1));
	T(lock(second, F_SETLK, F_RDLCK, 0, 1));
	T(close(second));
	T(unlink("lock"));
}
