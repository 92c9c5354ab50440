/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread that keeps what is mapped true to the files: tails equal to them,
 * nothing where the host has cut one off, and what could not be mapped when it
 * was asked for.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "dev/fs/dax.h"

#define SYNC_NS 50000000 /* how soon a tail shows what the other side did */
#define THOROUGH 20u	 /* each so many rounds also what looks unchanged */
#define AT_ONCE 64u	 /* tails, before somebody else gets the lock */

/* One look at all tails; the lock is let go now and then. */
static void sync_all(struct fs_dax *d, bool thorough)
{
	uint32_t done = 0;

	for (uint32_t i = 0; i < FS_TAILS_MAX && d->tails.used; i++) {
		if (!d->tails.tail[i].used)
			continue;
		fs_tail_sync(&d->tails, i, thorough);
		if (++done % AT_ONCE)
			continue;
		pthread_mutex_unlock(&d->lock);
		sched_yield();
		pthread_mutex_lock(&d->lock);
	}
}

/* What could not be covered while the front-end did not answer. */
static void catch_up(struct fs_dax *d)
{
	struct statx sx;
	int ret = 0;

	if (!d->behind || !moat_shmem_usable(d->fs->device))
		return;
	d->behind = false;
	for (uint32_t i = 0; ret != -EAGAIN && i < d->nranges; i++) {
		ret = fs_orphans_clear(d, d->ranges[i].at, d->ranges[i].len);
		if (!ret)
			ret = fs_range_stat(d->fs, &d->ranges[i], &sx);
		if (!ret)
			ret = fs_range_cover(d, &d->ranges[i], sx.stx_size);
	}
	d->behind = ret == -EAGAIN;
}

static uint64_t shown(const struct fs_node *node)
{
	return __atomic_load_n(&node->shown, __ATOMIC_SEQ_CST);
}

/*
 * The host has made files shorter, and the guest does not know. What is said to
 * be shown is less before it is: whoever tells the guest of a new size
 * meanwhile comes here and waits. One who did just before then has the file so
 * long, which therefore is looked at again.
 */
static void shrink(struct fs_dax *d)
{
	bool any = false;
	struct statx sx;

	for (uint32_t i = 0; i < d->nranges; i++) {
		struct fs_range *r = &d->ranges[i];
		int ret = fs_range_stat(d->fs, r, &sx);
		uint64_t most = shown(r->node);

		r->size = ret ? 0 : sx.stx_size;
		r->cut = !ret && (r->owed || r->size < most);
		if (r->cut && r->known < most)
			r->known = most;
		any |= r->cut;
	}
	for (uint32_t i = 0; any && i < d->nranges; i++)
		if (d->ranges[i].cut)
			fs_dax_expect(d->ranges[i].node, d->ranges[i].size);
	for (uint32_t i = 0; any && i < d->nranges; i++) {
		struct fs_range *r = &d->ranges[i];

		if (!r->cut || fs_range_stat(d->fs, r, &sx))
			continue;
		r->owed = fs_range_shrink(d, r, sx.stx_size) != 0;
		d->behind |= r->owed;
	}
}

/* Of this file nothing more in this round. */
static void skip(struct fs_dax *d, const struct fs_node *node)
{
	for (uint32_t i = 0; i < d->nranges; i++)
		d->ranges[i].cut |= d->ranges[i].node == node;
}

/* What was cut off is there again: see dax.h. */
static void show_again(struct fs_dax *d)
{
	for (uint32_t i = 0; i < d->nranges; i++) {
		struct fs_range *r = &d->ranges[i];
		int ret = 0;

		if (!r->known || r->cut)
			continue;
		if (r->size > shown(r->node))
			ret = fs_dax_show(d, r->node, r->size);
		if (ret == -EAGAIN)
			return;
		/* Else each of its ranges would try all of them. */
		if (ret)
			skip(d, r->node);
		if (shown(r->node) >= r->known)
			r->known = 0;
	}
}

static void *syncer(void *arg)
{
	struct fs_dax *d = arg;
	const struct timespec pause = { .tv_nsec = SYNC_NS };
	struct fs_thread t; /* files are opened here, too */

	pthread_mutex_lock(&d->lock);
	d->begun = fs_thread_init(&t, d->fs);
	d->began = true;
	pthread_cond_signal(&d->started);
	if (d->begun)
		d->stop = true;
	for (uint32_t n = 0; !d->stop; n++) {
		if (!d->nranges && !d->tails.used) {
			pthread_cond_wait(&d->wake, &d->lock);
			continue;
		}
		catch_up(d);
		if (moat_shmem_usable(d->fs->device)) {
			shrink(d);
			show_again(d);
		}
		sync_all(d, n % THOROUGH == 0);
		pthread_mutex_unlock(&d->lock);
		nanosleep(&pause, NULL);
		pthread_mutex_lock(&d->lock);
	}
	if (!d->begun)
		fs_thread_fini(&t);
	pthread_mutex_unlock(&d->lock);
	return NULL;
}

/* Before system calls are forbidden that it begins with. */
static int start_syncer(struct fs_dax *d)
{
	int ret = -pthread_create(&d->syncer, NULL, syncer, d);

	d->syncing = !ret;
	if (ret)
		return ret;
	pthread_mutex_lock(&d->lock);
	while (!d->began)
		pthread_cond_wait(&d->started, &d->lock);
	ret = d->begun;
	pthread_mutex_unlock(&d->lock);
	return ret;
}

void fs_dax_sync_all(struct fs *fs)
{
	struct fs_dax *d = fs->dax;

	if (!d)
		return;
	pthread_mutex_lock(&d->lock);
	sync_all(d, false);
	pthread_mutex_unlock(&d->lock);
}

int fs_dax_start(struct fs *fs)
{
	struct fs_dax *d;
	int ret;

	if (!fs->opt->dax_window)
		return 0;
	d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	fs->dax = d;
	d->fs = fs;
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->wake, NULL);
	pthread_cond_init(&d->started, NULL);
	ret = fs_tails_init(&d->tails);
	return ret ? ret : start_syncer(d);
}

void fs_dax_stop(struct fs *fs)
{
	struct fs_dax *d = fs->dax;

	if (!d)
		return;
	fs_dax_reset(fs);
	pthread_mutex_lock(&d->lock);
	d->stop = true;
	pthread_cond_signal(&d->wake);
	pthread_mutex_unlock(&d->lock);
	if (d->syncing)
		pthread_join(d->syncer, NULL);
	fs_tails_fini(&d->tails);
	pthread_mutex_destroy(&d->lock);
	pthread_cond_destroy(&d->wake);
	pthread_cond_destroy(&d->started);
	free(d->ranges);
	free(d->pieces);
	free(d);
	fs->dax = NULL;
}
