/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What src/dev/fs/lock.c promises: the guest's owners and the host's processes
 * keep each other out; who waits gets it, or gives up when told to, or would
 * wait for ever.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "dev/fs/fs.h"
#include "dev/fs/handlers.h"
#include "dev/fs/notify.h"

#define ALL INT64_MAX
#define DEADLINE_S 10
#define WAITERS 64u
#define RING 50u

/* One guest request, and what became of it. */
struct ask {
	struct fs_req req;
	struct fs_thread thread;
	union {
		struct fuse_lk_in lk;
		struct fuse_interrupt_in interrupt;
	} args;
	struct fuse_lk_out out;
	bool done;
	int error;
};

struct world {
	struct fs_options opt;
	struct fs fs;
	char path[32];
	struct fs_node *node;
	uint64_t handle;
	struct ask asks[WAITERS];
};

/* ---- what the rest of moat-fs would do ---- */

static pthread_mutex_t done_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t done_cond = PTHREAD_COND_INITIALIZER;

void fs_defer_done(struct fs_req *r, int error)
{
	struct ask *a = (void *)((uint8_t *)r - offsetof(struct ask, req));

	pthread_mutex_lock(&done_lock);
	a->done = true;
	a->error = error;
	pthread_cond_broadcast(&done_cond);
	pthread_mutex_unlock(&done_lock);
}

int fs_req_put(struct fs_req *r, const void *data, uint32_t len)
{
	struct ask *a = (void *)((uint8_t *)r - offsetof(struct ask, req));

	assert_int_equal(len, sizeof(a->out));
	memcpy(&a->out, data, len);
	return 0;
}

void fs_notify_unwatch(struct fs *fs, struct fs_node *node)
{
	(void)fs;
	assert_null(node->watch);
}

int fs_statx(int fd, struct statx *sx)
{
	return statx(fd, "", AT_EMPTY_PATH, FS_STATX_MASK, sx) ? -errno : 0;
}

/* ---- scene ---- */

static int make(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	struct statx sx;
	int fd;

	w->opt.files = 10000;
	w->fs = (struct fs){
		.opt = &w->opt,
		.root_fd = open("/tmp", O_PATH | O_DIRECTORY),
		.proc_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY),
		.flags = FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS,
	};
	assert_int_equal(fchdir(w->fs.proc_fd), 0);
	assert_int_equal(fs_table_init(&w->fs.handles, sizeof(struct fs_handle),
				       100),
			 0);
	assert_int_equal(fs_nodes_init(&w->fs), 0);
	assert_int_equal(fs_lockers_start(&w->fs), 0);
	strcpy(w->path, "/tmp/moat-lock-XXXXXX");
	fd = mkstemp(w->path);
	close(fd);
	fd = open(w->path, O_PATH);
	assert_int_equal(fs_statx(fd, &sx), 0);
	assert_int_equal(fs_node_enter(&w->fs, fd, &sx, &w->node), 0);
	assert_int_equal(fs_handle_new(&w->fs, w->node, open(w->path, O_RDWR),
				       O_RDWR, &w->handle),
			 0);
	*state = w;
	return 0;
}

static int drop(void **state)
{
	struct world *w = *state;

	fs_handles_close_all(&w->fs);
	fs_node_put(&w->fs, w->node);
	fs_nodes_forget_all(&w->fs);
	assert_int_equal(w->fs.lock_owners, 0);
	assert_int_equal(w->fs.lock_ranges, 0);
	fs_lockers_stop(&w->fs);
	fs_nodes_fini(&w->fs);
	fs_table_fini(&w->fs.handles);
	close(w->fs.proc_fd);
	unlink(w->path);
	free(w);
	return 0;
}

static struct fs_req *prepare(struct world *w, uint32_t i, uint64_t owner,
			      uint32_t type, uint64_t start, uint64_t end)
{
	struct ask *a = &w->asks[i];

	memset(a, 0, sizeof(*a));
	a->args.lk = (struct fuse_lk_in){
		.fh = w->handle,
		.owner = owner,
		.lk = { start, end, type, 77 },
	};
	a->thread =
		(struct fs_thread){ .fs = &w->fs, .args = (uint8_t *)&a->args };
	a->req = (struct fs_req){ .fs = &w->fs, .thread = &a->thread };
	a->req.in.nodeid = fs_slot_id(&w->node->slot);
	a->req.in.unique = 1000 + i;
	return &a->req;
}

static int set(struct world *w, uint64_t owner, uint32_t type, uint64_t start,
	       uint64_t end)
{
	return fs_op_setlk(prepare(w, 0, owner, type, start, end));
}

static int set_flock(struct world *w, uint64_t owner, uint32_t type)
{
	struct fs_req *r = prepare(w, 0, owner, type, 0, ALL);

	w->asks[0].args.lk.lk_flags = FUSE_LK_FLOCK;
	return fs_op_setlk(r);
}

/* Request @i begins to wait. */
static void begin(struct world *w, uint32_t i, uint64_t owner, uint32_t type)
{
	assert_int_equal(fs_op_setlkw(prepare(w, i, owner, type, 10, 19)),
			 FS_LATER);
}

/* That of the two which is done. */
static uint32_t either(const struct world *w, uint32_t i, uint32_t j)
{
	struct timespec at;
	int ret = 0;

	clock_gettime(CLOCK_REALTIME, &at);
	at.tv_sec += DEADLINE_S;
	pthread_mutex_lock(&done_lock);
	while (!w->asks[i].done && !w->asks[j].done && !ret)
		ret = pthread_cond_timedwait(&done_cond, &done_lock, &at);
	if (!w->asks[i].done)
		i = j;
	pthread_mutex_unlock(&done_lock);
	assert_int_equal(ret, 0);
	return i;
}

static int result(const struct world *w, uint32_t i)
{
	return w->asks[either(w, i, i)].error;
}

static bool is_done(struct world *w, uint32_t i)
{
	bool done;

	pthread_mutex_lock(&done_lock);
	done = w->asks[i].done;
	pthread_mutex_unlock(&done_lock);
	return done;
}

/* What another process gets: 0 or a negative errno. */
static int as_host(struct world *w, short type, off_t start, off_t len)
{
	struct flock lk = { .l_type = type, .l_start = start, .l_len = len };
	pid_t pid = fork();
	int status;

	if (!pid) {
		int fd = open(w->path, O_RDWR);

		_exit(fcntl(fd, F_SETLK, &lk) ? errno : 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return -WEXITSTATUS(status);
}

/* ---- tests ---- */

static void owners_keep_each_other_out(void **state)
{
	struct world *w = *state;

	assert_int_equal(set(w, 1, F_WRLCK, 0, 9), 0);
	assert_int_equal(set(w, 2, F_WRLCK, 9, 9), -EAGAIN);
	assert_int_equal(set(w, 2, F_RDLCK, 0, ALL), -EAGAIN);
	assert_int_equal(set(w, 2, F_WRLCK, 10, 19), 0);
	assert_int_equal(set(w, 1, F_WRLCK, 0, 10), -EAGAIN);
	/* One's own are changed. */
	assert_int_equal(set(w, 1, F_RDLCK, 0, 9), 0);
	assert_int_equal(set(w, 2, F_RDLCK, 0, ALL), 0);
	assert_int_equal(set(w, 1, F_WRLCK, 0, 9), -EAGAIN);
	assert_int_equal(set(w, 2, F_UNLCK, 0, ALL), 0);
	assert_int_equal(set(w, 1, F_WRLCK, 0, 9), 0);
	assert_int_equal(set(w, 3, F_UNLCK, 0, ALL), 0);
	assert_int_equal(w->fs.lock_owners, 1);
}

static void the_host_sees_them_and_they_see_the_host(void **state)
{
	struct world *w = *state;
	int fd = open(w->path, O_RDWR);
	struct flock lk = { .l_type = F_WRLCK, .l_start = 50, .l_len = 10 };

	assert_int_equal(as_host(w, F_WRLCK, 0, 0), 0);
	assert_int_equal(set(w, 1, F_RDLCK, 10, 19), 0);
	assert_int_equal(as_host(w, F_WRLCK, 19, 1), -EAGAIN);
	assert_int_equal(as_host(w, F_RDLCK, 19, 1), 0);
	assert_int_equal(as_host(w, F_WRLCK, 20, 10), 0);
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &lk), 0);
	assert_int_equal(set(w, 1, F_RDLCK, 59, 59), -EAGAIN);
	close(fd);
	assert_int_equal(set(w, 1, F_RDLCK, 59, 59), 0);
}

static void a_closed_file_is_unlocked(void **state)
{
	struct world *w = *state;

	assert_int_equal(set(w, 1, F_WRLCK, 0, 9), 0);
	assert_int_equal(set_flock(w, 1, F_WRLCK), 0);
	assert_int_equal(set(w, 2, F_WRLCK, 20, 29), 0);
	fs_lock_release(&w->fs, w->node, 1);
	assert_int_equal(as_host(w, F_WRLCK, 0, 10), 0);
	assert_int_equal(as_host(w, F_WRLCK, 20, 1), -EAGAIN);
	assert_int_equal(set_flock(w, 3, F_WRLCK), 0);
	fs_lock_release(&w->fs, w->node, 99);
	assert_int_equal(w->fs.lock_owners, 2);
}

static int get(struct world *w, uint64_t owner, uint32_t type, uint64_t start,
	       uint64_t end)
{
	return fs_op_getlk(prepare(w, 0, owner, type, start, end));
}

static void what_stands_in_the_way_is_told(void **state)
{
	struct world *w = *state;
	struct fuse_file_lock *lk = &w->asks[0].out.lk;

	assert_int_equal(set(w, 1, F_WRLCK, 10, 19), 0);
	assert_int_equal(set(w, 1, F_RDLCK, 100, ALL), 0);
	assert_int_equal(get(w, 2, F_RDLCK, 0, ALL), 0);
	assert_int_equal(lk->type, F_WRLCK);
	assert_int_equal(lk->start, 10);
	assert_int_equal(lk->end, 19);
	assert_int_equal(lk->pid, 0);
	assert_int_equal(get(w, 2, F_WRLCK, 50, 200), 0);
	assert_int_equal(lk->type, F_RDLCK);
	assert_int_equal(lk->start, 100);
	assert_true(lk->end == ALL);
	assert_int_equal(get(w, 2, F_RDLCK, 50, 200), 0);
	assert_int_equal(lk->type, F_UNLCK);
	assert_int_equal(get(w, 1, F_WRLCK, 0, ALL), 0);
	assert_int_equal(lk->type, F_UNLCK);
	assert_int_equal(w->fs.lock_owners, 1);
}

static void whole_files_are_locked_apart(void **state)
{
	struct world *w = *state;
	int fd = open(w->path, O_RDONLY);

	assert_int_equal(set(w, 1, F_WRLCK, 0, ALL), 0);
	assert_int_equal(set_flock(w, 2, F_RDLCK), 0);
	assert_int_equal(set_flock(w, 3, F_RDLCK), 0);
	assert_int_equal(set_flock(w, 4, F_WRLCK), -EAGAIN);
	assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), -1);
	assert_int_equal(set_flock(w, 2, F_UNLCK), 0);
	assert_int_equal(set_flock(w, 3, F_WRLCK), 0);
	assert_int_equal(flock(fd, LOCK_SH | LOCK_NB), -1);
	assert_int_equal(set_flock(w, 3, F_UNLCK), 0);
	assert_int_equal(flock(fd, LOCK_SH | LOCK_NB), 0);
	assert_int_equal(set_flock(w, 3, F_WRLCK), -EAGAIN);
	assert_int_equal(w->fs.lock_owners, 1);
	close(fd);
}

static void who_waits_gets_it_when_it_is_free(void **state)
{
	struct world *w = *state;
	struct flock lk = { .l_type = F_WRLCK };
	uint32_t first;
	int fd;

	assert_int_equal(set(w, 1, F_WRLCK, 0, 99), 0);
	begin(w, 1, 2, F_WRLCK);
	begin(w, 2, 3, F_RDLCK);
	/* Part of it is not enough. */
	assert_int_equal(set(w, 1, F_UNLCK, 0, 14), 0);
	assert_false(is_done(w, 1));
	assert_int_equal(set(w, 1, F_UNLCK, 0, 50), 0);
	/*
	 * One after the other. They are tried in their order, but the second
	 * may be the one that is tried when it becomes free.
	 */
	first = either(w, 1, 2);
	assert_int_equal(result(w, first), 0);
	assert_false(is_done(w, 3 - first));
	fs_lock_release(&w->fs, w->node, 1 + first);
	assert_int_equal(result(w, 3 - first), 0);
	fs_lock_release(&w->fs, w->node, 4 - first);
	/* The host tells nobody. */
	fd = open(w->path, O_RDWR);
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &lk), -1);
	fs_lock_release(&w->fs, w->node, 1);
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &lk), 0);
	begin(w, 3, 2, F_WRLCK);
	close(fd);
	assert_int_equal(result(w, 3), 0);
	assert_int_equal(as_host(w, F_RDLCK, 10, 1), -EAGAIN);
}

static void who_waits_can_be_told_to_give_up(void **state)
{
	struct world *w = *state;
	struct fs_req *r;

	assert_int_equal(set(w, 1, F_WRLCK, 0, 99), 0);
	for (uint32_t i = 1; i < 5; i++)
		begin(w, i, 10 + i, F_WRLCK);
	r = prepare(w, 0, 0, 0, 0, 0);
	w->asks[0].args.interrupt.unique = w->asks[2].req.in.unique;
	assert_int_equal(fs_op_interrupt(r), 0);
	assert_int_equal(result(w, 2), -EINTR);
	fs_lock_interrupt(&w->fs, 5); /* nobody's */
	assert_false(is_done(w, 1) || is_done(w, 3) || is_done(w, 4));
	fs_lock_hurry(&w->fs);
	assert_int_equal(result(w, 1), -EAGAIN);
	assert_int_equal(result(w, 3), -EAGAIN);
	assert_int_equal(result(w, 4), -EAGAIN);
	/* They leave nothing behind. */
	assert_int_equal(w->fs.lock_owners, 1);
	/* What an owner has locked before stays. */
	assert_int_equal(set(w, 2, F_WRLCK, 200, 209), 0);
	begin(w, 1, 2, F_WRLCK);
	fs_lock_hurry(&w->fs);
	assert_int_equal(result(w, 1), -EAGAIN);
	assert_int_equal(as_host(w, F_RDLCK, 200, 1), -EAGAIN);
}

static void a_file_that_is_forgotten_is_kept_while_one_waits(void **state)
{
	struct world *w = *state;
	uint64_t id = fs_slot_id(&w->node->slot);
	struct fs_node *node;

	assert_int_equal(set(w, 1, F_WRLCK, 0, 99), 0);
	begin(w, 1, 2, F_WRLCK);
	fs_handles_close_all(&w->fs);
	fs_node_forget(&w->fs, id, 1);
	fs_lock_release(&w->fs, w->node, 1);
	assert_int_equal(result(w, 1), 0);
	assert_int_equal(as_host(w, F_RDLCK, 10, 1), -EAGAIN);
	node = w->node;
	w->node = w->fs.root;
	fs_node_hold(w->node);
	fs_node_put(&w->fs, node);
	/* The last one who knew it: its locks go with it. */
	assert_int_equal(as_host(w, F_WRLCK, 0, 0), 0);
	assert_int_equal(w->fs.lock_owners, 0);
}

static void nonsense_is_refused(void **state)
{
	struct world *w = *state;
	struct fs_req *r;

	assert_int_equal(set(w, 1, F_WRLCK, 2, 1), -EINVAL);
	assert_int_equal(set(w, 1, F_WRLCK, 0, UINT64_MAX), -EINVAL);
	assert_int_equal(set(w, 1, F_WRLCK, UINT64_MAX, UINT64_MAX), -EINVAL);
	assert_int_equal(set(w, 1, 3, 0, 1), -EINVAL);
	assert_int_equal(set(w, 1, UINT32_MAX, 0, 1), -EINVAL);
	assert_int_equal(get(w, 1, F_UNLCK, 0, 1), -EINVAL);
	assert_int_equal(set(w, 1, F_WRLCK, INT64_MAX, INT64_MAX), 0);
	assert_int_equal(set(w, 1, F_UNLCK, 0, INT64_MAX), 0);
	r = prepare(w, 0, 1, F_WRLCK, 0, 1);
	w->asks[0].args.lk.lk_flags = 2;
	assert_int_equal(fs_op_setlkw(r), -EINVAL);
	r = prepare(w, 0, 1, F_WRLCK, 0, 1);
	w->asks[0].args.lk.fh++;
	assert_int_equal(fs_op_setlkw(r), -EBADF);
	r = prepare(w, 0, 1, F_WRLCK, 0, 1);
	r->in.nodeid = FUSE_ROOT_ID;
	assert_int_equal(fs_op_setlkw(r), -EBADF);
	w->fs.flags = FUSE_FLOCK_LOCKS;
	assert_int_equal(set(w, 1, F_WRLCK, 0, 1), -ENOSYS);
	w->fs.flags = FUSE_POSIX_LOCKS;
	assert_int_equal(set_flock(w, 1, F_WRLCK), -ENOSYS);
	assert_int_equal(w->fs.lock_owners, 0);
}

static void owners_are_limited_in_number(void **state)
{
	struct world *w = *state;
	uint64_t n = 0;
	int ret = 0;

	/* Those that get no lock do not count. */
	assert_int_equal(set(w, 1, F_WRLCK, 0, 0), 0);
	for (uint64_t i = 0; i < 10000; i++)
		assert_int_equal(set(w, 100 + i, F_RDLCK, 0, 0), -EAGAIN);
	while (!ret && n < 10000)
		ret = set(w, 100 + n++, F_RDLCK, 5, 5);
	assert_int_equal(ret, -ENOLCK);
	/* It is a limit, or the descriptors that this process may have. */
	assert_in_range(w->fs.lock_owners, 100, 1024);
	assert_int_equal(set(w, 100, F_UNLCK, 0, ALL), 0);
	assert_int_equal(set(w, 99, F_RDLCK, 5, 5), 0);
}

/* ---- deadlocks ---- */

static int wait_for(struct world *w, uint32_t i, uint64_t owner, uint32_t type,
		    uint64_t at)
{
	return fs_op_setlkw(prepare(w, i, owner, type, at, at));
}

static void who_would_wait_for_themselves_is_told(void **state)
{
	struct world *w = *state;

	for (uint32_t i = 1; i <= RING; i++)
		assert_int_equal(set(w, i, F_WRLCK, i, i), 0);
	for (uint32_t i = 1; i < RING; i++)
		assert_int_equal(wait_for(w, i, i, F_RDLCK, i + 1), FS_LATER);
	assert_int_equal(wait_for(w, RING, RING, F_RDLCK, 1), -EDEADLK);
	/* They keep what they have, and who gives it up lets the others on. */
	assert_int_equal(as_host(w, F_RDLCK, RING, 1), -EAGAIN);
	for (uint32_t i = RING; i > 1; i--) {
		assert_false(is_done(w, i - 1));
		fs_lock_release(&w->fs, w->node, i);
		assert_int_equal(result(w, i - 1), 0);
	}
}

static void two_readers_can_not_both_become_writers(void **state)
{
	struct world *w = *state;

	assert_int_equal(set(w, 1, F_RDLCK, 0, 9), 0);
	assert_int_equal(set(w, 2, F_RDLCK, 0, 9), 0);
	assert_int_equal(wait_for(w, 1, 1, F_WRLCK, 5), FS_LATER);
	assert_int_equal(wait_for(w, 2, 2, F_WRLCK, 9), -EDEADLK);
	assert_int_equal(set(w, 2, F_UNLCK, 5, 5), 0);
	assert_int_equal(result(w, 1), 0);
}

/* Not only by the first of those whom somebody waits for. */
static void each_way_is_looked_at(void **state)
{
	struct world *w = *state;

	assert_int_equal(set(w, 8, F_WRLCK, 800, 800), 0);
	assert_int_equal(set(w, 9, F_WRLCK, 900, 900), 0);
	for (uint32_t i = 1; i < 6; i++) {
		assert_int_equal(set(w, i, F_RDLCK, 10, 19), 0);
		assert_int_equal(wait_for(w, i, i, F_WRLCK, i == 3 ? 900 : 800),
				 FS_LATER);
	}
	assert_int_equal(wait_for(w, 9, 9, F_WRLCK, 10), -EDEADLK);
	fs_lock_hurry(&w->fs);
	for (uint32_t i = 1; i < 6; i++)
		assert_int_equal(result(w, i), -EAGAIN);
}

static void a_deadlock_that_comes_later_is_found(void **state)
{
	struct world *w = *state;

	assert_int_equal(set(w, 2, F_WRLCK, 20, 20), 0);
	assert_int_equal(set(w, 3, F_WRLCK, 10, 10), 0);
	assert_int_equal(wait_for(w, 1, 1, F_WRLCK, 10), FS_LATER);
	assert_int_equal(fs_op_setlkw(prepare(w, 2, 3, F_WRLCK, 20, 30)),
			 FS_LATER);
	/* Another thread of the process that waits already. */
	assert_int_equal(set(w, 1, F_WRLCK, 30, 30), 0);
	assert_int_equal(result(w, 1), -EDEADLK);
	assert_false(is_done(w, 2));
	fs_lock_release(&w->fs, w->node, 1);
	fs_lock_release(&w->fs, w->node, 2);
	assert_int_equal(result(w, 2), 0);
}

static void what_is_no_deadlock_is_not_taken_for_one(void **state)
{
	struct world *w = *state;
	struct fs_req *r;

	/* It waits for one who waits for nobody any more. */
	assert_int_equal(set(w, 1, F_WRLCK, 10, 10), 0);
	assert_int_equal(set(w, 2, F_WRLCK, 20, 20), 0);
	assert_int_equal(wait_for(w, 1, 1, F_WRLCK, 20), FS_LATER);
	fs_lock_interrupt(&w->fs, w->asks[1].req.in.unique);
	assert_int_equal(wait_for(w, 2, 2, F_WRLCK, 10), FS_LATER);
	assert_int_equal(result(w, 1), -EINTR);
	/* What is unlocked in part is in nobody's way. */
	assert_int_equal(set(w, 2, F_WRLCK, 20, 29), 0);
	assert_int_equal(set(w, 2, F_UNLCK, 25, 25), 0);
	assert_int_equal(set(w, 1, F_WRLCK, 25, 25), 0);
	fs_lock_release(&w->fs, w->node, 1);
	assert_int_equal(result(w, 2), 0);
	/* Whole files: Linux does not look there, either. */
	assert_int_equal(set_flock(w, 2, F_WRLCK), 0);
	r = prepare(w, 3, 1, F_WRLCK, 0, ALL);
	w->asks[3].args.lk.lk_flags = FUSE_LK_FLOCK;
	assert_int_equal(fs_op_setlkw(r), FS_LATER);
	assert_int_equal(set(w, 1, F_WRLCK, 50, 50), 0);
	assert_int_equal(wait_for(w, 4, 2, F_WRLCK, 50), FS_LATER);
	fs_lock_release(&w->fs, w->node, 1);
	assert_int_equal(result(w, 4), 0);
	fs_lock_hurry(&w->fs);
	assert_int_equal(result(w, 3), -EAGAIN);
}

static void ranges_are_limited_in_number(void **state)
{
	struct world *w = *state;

	assert_int_equal(set(w, 1, F_WRLCK, 0, 0), 0);
	w->fs.lock_ranges += 65536 - 3;
	assert_int_equal(set(w, 1, F_RDLCK, 2, 2), 0);
	assert_int_equal(set(w, 2, F_RDLCK, 2, 2), 0);
	assert_int_equal(set(w, 3, F_RDLCK, 2, 2), -ENOLCK);
	assert_int_equal(set(w, 1, F_RDLCK, 4, 4), -ENOLCK);
	/* The kernel has not got it, either. */
	assert_int_equal(as_host(w, F_WRLCK, 4, 1), 0);
	assert_int_equal(w->fs.lock_owners, 2);
	fs_lock_release(&w->fs, w->node, 2);
	assert_int_equal(set(w, 1, F_RDLCK, 4, 4), 0);
	w->fs.lock_ranges -= 65536 - 3;
}

/* ---- many at once ---- */

struct crowd {
	struct world *w;
	uint32_t index;
	bool *busy;
};

static void *one_of_many(void *arg)
{
	struct crowd *c = arg;
	struct world *w = c->w;
	uint32_t got = 0;

	while (got < 200) {
		struct fs_req *r =
			prepare(w, c->index, c->index, F_WRLCK, 0, 9);
		int ret = fs_op_setlkw(r);

		if (ret == FS_LATER)
			ret = result(w, c->index);
		if (ret == -EAGAIN || ret == -EINTR)
			continue;
		assert_int_equal(ret, 0);
		got++;
		assert_false(
			__atomic_exchange_n(c->busy, true, __ATOMIC_RELAXED));
		__atomic_store_n(c->busy, false, __ATOMIC_RELAXED);
		if (got & 1)
			fs_lock_release(&w->fs, w->node, c->index);
		else
			assert_int_equal(fs_op_setlk(prepare(w, c->index,
							     c->index, F_UNLCK,
							     0, ALL)),
					 0);
	}
	return NULL;
}

static void many_wait_and_one_has_it(void **state)
{
	struct world *w = *state;
	struct crowd crowd[8];
	pthread_t threads[8];
	bool busy = false;

	for (uint32_t i = 0; i < 8; i++) {
		crowd[i] = (struct crowd){ w, i, &busy };
		pthread_create(&threads[i], NULL, one_of_many, &crowd[i]);
	}
	for (uint32_t i = 0; i < 200; i++) {
		fs_lock_interrupt(&w->fs, 1000 + i % 8);
		if (i % 20 == 0)
			fs_lock_hurry(&w->fs);
		sched_yield();
	}
	for (uint32_t i = 0; i < 8; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(w->fs.lock_owners, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make, drop)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(owners_keep_each_other_out),
		TEST(the_host_sees_them_and_they_see_the_host),
		TEST(a_closed_file_is_unlocked),
		TEST(what_stands_in_the_way_is_told),
		TEST(whole_files_are_locked_apart),
		TEST(who_waits_gets_it_when_it_is_free),
		TEST(who_waits_can_be_told_to_give_up),
		TEST(a_file_that_is_forgotten_is_kept_while_one_waits),
		TEST(nonsense_is_refused),
		TEST(owners_are_limited_in_number),
		TEST(who_would_wait_for_themselves_is_told),
		TEST(two_readers_can_not_both_become_writers),
		TEST(each_way_is_looked_at),
		TEST(a_deadlock_that_comes_later_is_found),
		TEST(what_is_no_deadlock_is_not_taken_for_one),
		TEST(ranges_are_limited_in_number),
		TEST(many_wait_and_one_has_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
