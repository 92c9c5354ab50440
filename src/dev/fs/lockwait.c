/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who waits for locks. Not in the kernel, where nothing but a signal would end
 * that: what can not be had yet is tried again, by one thread for all. That is
 * at once when the guest unlocks something, and each RETRY_NS for what the host
 * locks. Who waits is bounded by the queues, as each is a request.
 *
 * The kernel does not look for deadlocks among locks of open files, and a guest
 * (Linux) does not say when who waits is killed. So it is done here, as Linux
 * does for its processes' locks: who would wait for themselves, by whatever
 * way, gets EDEADLK. Not for flock(2), as Linux.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "dev/fs/lock.h"
#include "os/clock.h"

#define RETRY_NS 20000000u
/*
 * Owners, ranges and waiters that are looked at for one deadlock, or in one
 * round of tries, at some nanoseconds each. What takes more is not found.
 */
#define STEPS 65536u

struct fs_waiter {
	struct fs_waiter *next;
	struct fs_req *req;
	struct fs_node *node; /* held */
	struct fs_ask ask;
	int error; /* not 0: it gives up */
	/* how a deadlock is looked for */
	struct fs_waiter *then;
	uint64_t walk; /* the last that came here */
	uint64_t news; /* fs->lock_news, when none was found */
};

#define EARLY 32u /* interrupts that came before what they are for */

struct fs_lockers {
	uint64_t early[EARLY]; /* their requests; 0: none */
	uint32_t next_early;
	struct fs *fs;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t wake, started;
	struct fs_waiter *first, **last; /* only the thread removes */
	bool again;			 /* something may have changed */
	uint64_t walks;
	bool stop, began;
	int begun; /* 0 or a negative errno */
};

/* Something was unlocked. */
void fs_lock_try_again(struct fs *fs)
{
	struct fs_lockers *w = fs->lockers;

	pthread_mutex_lock(&w->lock);
	if (w->first && !w->again) {
		w->again = true;
		pthread_cond_signal(&w->wake);
	}
	pthread_mutex_unlock(&w->lock);
}

/* The high-priority queue is another's thread: it may be faster. */
static bool was_interrupted(struct fs_lockers *w, uint64_t unique)
{
	for (uint32_t i = 0; i < EARLY; i++)
		if (unique && w->early[i] == unique) {
			w->early[i] = 0;
			return true;
		}
	return false;
}

/* ---- deadlocks; with the lock held, and nodes' locks within it ---- */

struct walk {
	struct fs_lockers *w;
	uint64_t number, owner; /* who shall not be found */
	struct fs_waiter **last;
	uint32_t *steps;
	bool found;
};

/* @owner is in the way: what do they wait for? */
static bool go_on(void *arg, uint64_t owner)
{
	struct walk *k = arg;

	k->found = owner == k->owner;
	for (struct fs_waiter *p = k->w->first; p && !k->found && *k->steps;
	     p = p->next) {
		--*k->steps;
		if (p->ask.owner != owner || p->ask.flock || p->error ||
		    p->walk == k->number)
			continue;
		p->walk = k->number;
		p->then = NULL;
		*k->last = p;
		k->last = &p->then;
	}
	return k->found;
}

/*
 * Does @from wait for its own owner, by way of others that wait? A wait that
 * was no deadlock can only become one when somebody locks something.
 */
static bool is_deadlock(struct fs_lockers *w, struct fs_waiter *from,
			uint32_t *steps)
{
	uint64_t news = __atomic_load_n(&w->fs->lock_news, __ATOMIC_ACQUIRE);
	struct walk k = { w,	       ++w->walks, from->ask.owner,
			  &from->then, steps,	   false };

	if (from->ask.flock || from->error || from->news == news)
		return false;
	from->walk = k.number;
	from->then = NULL;
	for (struct fs_waiter *p = from; p && !k.found && *steps; p = p->then)
		fs_lock_blockers(p->node, &p->ask, steps, go_on, &k);
	if (*steps)
		from->news = news;
	return k.found;
}

static void forget(struct fs *fs, struct fs_waiter *p)
{
	fs_lock_leave(p->node, p->ask.owner, p->ask.flock);
	fs_node_put(fs, p->node);
	free(p);
}

int fs_lock_wait(struct fs_req *r, struct fs_node *node, const struct fs_ask *a)
{
	struct fs_lockers *w = r->fs->lockers;
	struct fs_waiter *p = malloc(sizeof(*p));
	uint32_t steps = STEPS;

	if (!p || fs_node_pin(r->fs, node)) {
		free(p);
		fs_lock_leave(node, a->owner, a->flock);
		return -ENOLCK;
	}
	fs_node_hold(node);
	*p = (struct fs_waiter){ .req = r, .node = node, .ask = *a };
	pthread_mutex_lock(&w->lock);
	if (was_interrupted(w, r->in.unique))
		p->error = -EINTR;
	if (is_deadlock(w, p, &steps)) {
		pthread_mutex_unlock(&w->lock);
		forget(r->fs, p);
		return -EDEADLK;
	}
	*w->last = p;
	w->last = &p->next;
	/* What we tried may have been unlocked since. */
	w->again = true;
	pthread_cond_signal(&w->wake);
	pthread_mutex_unlock(&w->lock);
	return FS_LATER;
}

/* Give up those with @unique, or all, with @error. */
static void give_up(struct fs *fs, bool all, uint64_t unique, int error)
{
	struct fs_lockers *w = fs->lockers;
	bool any = false;

	if (!w)
		return;
	pthread_mutex_lock(&w->lock);
	for (struct fs_waiter *p = w->first; p; p = p->next) {
		if (!all && p->req->in.unique != unique)
			continue;
		p->error = error;
		any = w->again = true;
	}
	if (all)
		memset(w->early, 0, sizeof(w->early));
	else if (!any)
		w->early[w->next_early++ % EARLY] = unique;
	if (w->again)
		pthread_cond_signal(&w->wake);
	pthread_mutex_unlock(&w->lock);
}

void fs_lock_interrupt(struct fs *fs, uint64_t unique)
{
	give_up(fs, false, unique, -EINTR);
}

/*
 * Not EINTR: Linux would restart the call, and where no signal is pending its
 * user would see ERESTARTSYS.
 */
void fs_lock_hurry(struct fs *fs)
{
	give_up(fs, true, 0, -EAGAIN);
}

/*
 * All that wait, in their order, with the lock held but while one is tried:
 * more may be appended then.
 */
static void try_all(struct fs_lockers *w)
{
	struct fs_waiter **at = &w->first, *p;
	uint32_t steps = STEPS;
	int ret;

	while ((p = *at)) {
		ret = p->error;
		if (!ret) {
			pthread_mutex_unlock(&w->lock);
			ret = fs_lock_attempt(w->fs, p->node, &p->ask, true);
			pthread_mutex_lock(&w->lock);
		}
		if (ret == -EAGAIN && is_deadlock(w, p, &steps))
			p->error = -EDEADLK;
		if (ret == -EAGAIN && !p->error) {
			at = &p->next;
			continue;
		}
		if (ret == -EAGAIN)
			ret = p->error;
		*at = p->next;
		if (!*at)
			w->last = at;
		pthread_mutex_unlock(&w->lock);
		if (ret)
			fs_lock_leave(p->node, p->ask.owner, p->ask.flock);
		fs_node_put(w->fs, p->node);
		fs_defer_done(p->req, ret);
		free(p);
		pthread_mutex_lock(&w->lock);
	}
}

static void sleep_until_retry(struct fs_lockers *w)
{
	uint64_t ns = moat_now_ns() + RETRY_NS;
	struct timespec at = { (time_t)(ns / MOAT_NS_PER_SEC),
			       (long)(ns % MOAT_NS_PER_SEC) };

	while (!w->stop && !w->again &&
	       (!w->first ||
		pthread_cond_clockwait(&w->wake, &w->lock, CLOCK_MONOTONIC,
				       &at) != ETIMEDOUT))
		if (!w->first)
			pthread_cond_wait(&w->wake, &w->lock);
}

static void *serve(void *arg)
{
	struct fs_lockers *w = arg;
	int ret = 0;

	/* Where descriptors have names; see fs_fd_name(). */
	if (unshare(CLONE_FS) || fchdir(w->fs->proc_fd))
		ret = -errno;
	pthread_mutex_lock(&w->lock);
	w->begun = ret;
	w->began = true;
	pthread_cond_signal(&w->started);
	while (!ret && !w->stop) {
		sleep_until_retry(w);
		w->again = false;
		try_all(w);
	}
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

int fs_lockers_start(struct fs *fs)
{
	struct fs_lockers *w = calloc(1, sizeof(*w));
	int ret;

	if (!w)
		return -ENOMEM;
	w->fs = fs;
	w->last = &w->first;
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->wake, NULL);
	pthread_cond_init(&w->started, NULL);
	ret = -pthread_create(&w->thread, NULL, serve, w);
	if (ret) {
		free(w);
		return ret;
	}
	fs->lockers = w;
	/* Before the sandbox forbids what a thread does at its beginning. */
	pthread_mutex_lock(&w->lock);
	while (!w->began)
		pthread_cond_wait(&w->started, &w->lock);
	ret = w->begun;
	pthread_mutex_unlock(&w->lock);
	return ret;
}

void fs_lockers_stop(struct fs *fs)
{
	struct fs_lockers *w = fs->lockers;

	if (!w)
		return;
	pthread_mutex_lock(&w->lock);
	w->stop = true;
	pthread_cond_signal(&w->wake);
	pthread_mutex_unlock(&w->lock);
	pthread_join(w->thread, NULL);
	pthread_mutex_destroy(&w->lock);
	pthread_cond_destroy(&w->wake);
	pthread_cond_destroy(&w->started);
	free(w);
	fs->lockers = NULL;
}
