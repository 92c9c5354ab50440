/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads for what may take long: syncing, copying, reading what is not in
 * memory. So a queue goes on while one of its requests waits for a disk.
 *
 * What waits here is bounded by the queues: each has so many requests.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "dev/fs/fs.h"
#include "os/clock.h"

#define COLLECT_NS 20000u /* looked for, before it is waited for */

struct fs_defer {
	struct fs *fs;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct fs_req *first, **last;
	struct fs_half *halves;
	uint32_t idle;		/* threads */
	pthread_cond_t collect; /* some half is done */
	uint32_t under_way;	/* atomic */
	bool stop;
	int begun; /* 0 or a negative errno: the newest thread's start */
	bool began;
	pthread_cond_t started;
	uint32_t n;
	pthread_t threads[];
};

/* With the lock held, but not while it reads. */
static void do_half(struct fs_defer *d, struct fs_half *h)
{
	d->halves = h->next;
	h->begun = true;
	pthread_mutex_unlock(&d->lock);
	h->got = preadv2(h->fd, h->iov, h->n, h->offset, h->flags);
	if (h->got < 0)
		h->got = -errno;
	pthread_mutex_lock(&d->lock);
	__atomic_store_n(&h->done, true, __ATOMIC_RELEASE);
	pthread_cond_broadcast(&d->collect);
}

static struct fs_req *take(struct fs_defer *d)
{
	struct fs_req *r;

	pthread_mutex_lock(&d->lock);
	d->idle++;
	while (d->halves || (!d->first && !d->stop)) {
		if (d->halves) {
			d->idle--;
			do_half(d, d->halves);
			d->idle++;
		} else {
			pthread_cond_wait(&d->wake, &d->lock);
		}
	}
	d->idle--;
	r = d->first;
	if (r) {
		d->first = r->next;
		if (!d->first)
			d->last = &d->first;
	}
	pthread_mutex_unlock(&d->lock);
	return r;
}

static void *serve(void *arg)
{
	struct fs_defer *d = arg;
	struct fs_thread t;
	struct fs_req *r;
	int ret = fs_thread_init(&t, d->fs);

	pthread_mutex_lock(&d->lock);
	d->begun = ret;
	d->began = true;
	pthread_cond_signal(&d->started);
	pthread_mutex_unlock(&d->lock);
	if (ret)
		return NULL;
	while ((r = take(d))) {
		ret = fs_run(r, &t);
		__atomic_fetch_sub(&d->under_way, 1, __ATOMIC_RELAXED);
		if (ret != FS_LATER)
			fs_defer_done(r, ret == FS_DEFER ? -EIO : ret);
	}
	fs_thread_fini(&t);
	return NULL;
}

static int start_thread(struct fs_defer *d)
{
	pthread_attr_t attr;
	int ret;

	/* There may be hundreds, and what they take is limited. */
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, FS_STACK);
	ret = pthread_create(&d->threads[d->n], &attr, serve, d);
	pthread_attr_destroy(&attr);
	if (ret)
		return -ret;
	d->n++;
	pthread_mutex_lock(&d->lock);
	while (!d->began)
		pthread_cond_wait(&d->started, &d->lock);
	d->began = false;
	ret = d->begun;
	pthread_mutex_unlock(&d->lock);
	return ret;
}

int fs_defer_start(struct fs *fs, uint32_t n)
{
	struct fs_defer *d = calloc(1, sizeof(*d) + n * sizeof(*d->threads));
	int ret = 0;

	if (!d)
		return -ENOMEM;
	d->fs = fs;
	d->last = &d->first;
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->wake, NULL);
	pthread_cond_init(&d->started, NULL);
	pthread_cond_init(&d->collect, NULL);
	fs->defer = d;
	while (!ret && d->n < n)
		ret = start_thread(d);
	if (ret)
		moat_device_log(fs->log, MOAT_DEVICE_ERROR,
				"can not start a thread for slow requests: %s",
				strerror(-ret));
	return ret;
}

void fs_defer_stop(struct fs *fs)
{
	struct fs_defer *d = fs->defer;

	if (!d)
		return;
	pthread_mutex_lock(&d->lock);
	d->stop = true;
	pthread_cond_broadcast(&d->wake);
	pthread_mutex_unlock(&d->lock);
	for (uint32_t i = 0; i < d->n; i++)
		pthread_join(d->threads[i], NULL);
	pthread_mutex_destroy(&d->lock);
	pthread_cond_destroy(&d->wake);
	pthread_cond_destroy(&d->started);
	pthread_cond_destroy(&d->collect);
	free(d);
	fs->defer = NULL;
}

bool fs_defer_helps(const struct fs_req *r)
{
	const struct fs_worker *w = r->thread->worker;
	const struct fs_defer *d = r->fs->defer;

	return w && d->n && w->taken % 2 == 0 &&
	       __atomic_load_n(&d->under_way, __ATOMIC_RELAXED) < d->n;
}

void fs_defer_push(struct fs_req *r)
{
	struct fs_defer *d = r->fs->defer;

	__atomic_fetch_add(&d->under_way, 1, __ATOMIC_RELAXED);
	pthread_mutex_lock(&d->lock);
	r->next = NULL;
	*d->last = r;
	d->last = &r->next;
	pthread_cond_signal(&d->wake);
	pthread_mutex_unlock(&d->lock);
}

/* ---- halves ---- */

bool fs_defer_offer(struct fs *fs, struct fs_half *h)
{
	struct fs_defer *d = fs->defer;
	bool any;

	pthread_mutex_lock(&d->lock);
	any = d->idle && !d->first;
	if (any) {
		h->begun = h->done = false;
		h->next = d->halves;
		d->halves = h;
		pthread_cond_signal(&d->wake);
	}
	pthread_mutex_unlock(&d->lock);
	return any;
}

static bool withdraw(struct fs_defer *d, struct fs_half *h)
{
	struct fs_half **p = &d->halves;

	if (h->begun)
		return false;
	while (*p != h)
		p = &(*p)->next;
	*p = h->next;
	return true;
}

bool fs_defer_collect(struct fs *fs, struct fs_half *h)
{
	struct fs_defer *d = fs->defer;
	uint64_t end = moat_now_ns() + COLLECT_NS;
	bool back;

	pthread_mutex_lock(&d->lock);
	back = withdraw(d, h);
	pthread_mutex_unlock(&d->lock);
	if (back)
		return false;
	/* It began when we did, and is about to end as we do. */
	while (!__atomic_load_n(&h->done, __ATOMIC_ACQUIRE) &&
	       moat_now_ns() < end)
		moat_cpu_relax();
	pthread_mutex_lock(&d->lock);
	while (!h->done)
		pthread_cond_wait(&d->collect, &d->lock);
	pthread_mutex_unlock(&d->lock);
	return true;
}
