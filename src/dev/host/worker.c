/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "dev/host/worker.h"
#include "os/fd.h"

/* For an answer, between looks at the workers; and at the device, which is
 * asked to hurry each so often. */
#define WAIT_NS 250000000u
#define HURRY_NS 5000000u
#define LOOKS 32u /* before others may have the processor */

/* The worker's queues are each nworkers-th of the device's. */
#define for_each_queue(w, q)                                            \
	for (struct moat_queue *q = &(w)->device->queues[(w)->index];   \
	     q < (w)->device->queues + (w)->device->config->num_queues; \
	     q += (w)->device->nworkers)

static struct moat_command *pending_command(struct moat_worker *w)
{
	return __atomic_load_n(&w->command, __ATOMIC_ACQUIRE);
}

static bool concerns(const struct moat_command *c, const struct moat_queue *q)
{
	return c && c->quiet && (!c->queue || c->queue == q);
}

/* A command that can be run now. */
static bool command_ready(struct moat_worker *w)
{
	struct moat_command *c = pending_command(w);

	if (!c)
		return false;
	for_each_queue(w, q) if (q->running && concerns(c, q) &&
				 q->outstanding) return false;
	return true;
}

/* True if one was run: it may have changed anything. */
static bool run_command(struct moat_worker *w)
{
	struct moat_command *c = pending_command(w);

	if (!command_ready(w))
		return false;
	c->ret = c->run(c->queue, c->arg);
	pthread_mutex_lock(&w->lock);
	c->done = true;
	__atomic_store_n(&w->command, NULL, __ATOMIC_RELEASE);
	pthread_cond_signal(&w->answered);
	pthread_mutex_unlock(&w->lock);
	return true;
}

/*
 * With the lock held. A worker may be asleep in a write, this one or another:
 * they are watched meanwhile. And a request that waits without bound may be
 * taken, or begin to wait, after the device was asked to give such up: it is
 * asked again.
 */
static void wait_for(struct moat_worker *w, const struct moat_command *c)
{
	const struct moat_device_config *config = w->device->config;
	bool hurry = c->quiet && config->ops->hurry;

	while (!c->done) {
		uint64_t end = moat_now_ns() + (hurry ? HURRY_NS : WAIT_NS);
		struct timespec ts = {
			.tv_sec = (time_t)(end / MOAT_NS_PER_SEC),
			.tv_nsec = (long)(end % MOAT_NS_PER_SEC),
		};

		moat_workers_watch(w->device);
		if (!pthread_cond_timedwait(&w->answered, &w->lock, &ts) ||
		    c->done || !hurry)
			continue;
		pthread_mutex_unlock(&w->lock);
		config->ops->hurry(config->dev);
		pthread_mutex_lock(&w->lock);
	}
}

int moat_worker_call(struct moat_worker *w, struct moat_queue *q, bool quiet,
		     int (*run)(struct moat_queue *q, void *arg), void *arg)
{
	struct moat_command c = {
		.run = run, .queue = q, .quiet = quiet, .arg = arg
	};

	moat_host_shmem_pause(w->device);
	pthread_mutex_lock(&w->lock);
	__atomic_store_n(&w->command, &c, __ATOMIC_RELEASE);
	moat_eventfd_signal(w->wake.fd);
	wait_for(w, &c);
	pthread_mutex_unlock(&w->lock);
	moat_host_shmem_resume(w->device);
	return c.ret;
}

static bool poll_device(struct moat_worker *w)
{
	const struct moat_device_config *c = w->device->config;

	return w->begun && c->ops->worker_poll &&
	       c->ops->worker_poll(c->dev, w->context);
}

/* One turn; false if nothing was to be done. */
static bool turn(struct moat_worker *w)
{
	bool busy = run_command(w);

	moat_worker_refresh(w);
	for_each_queue(w, q) if (q->running && q->serving &&
				 !concerns(pending_command(w), q)) busy |=
		moat_queue_serve(q);
	busy |= poll_device(w);
	for_each_queue(w, q) if (q->running) busy |= moat_queue_publish(q);
	moat_worker_rest(w);
	return busy;
}

static bool any_pending(struct moat_worker *w)
{
	struct moat_command *c = pending_command(w);

	for_each_queue(w, q) if (q->running && q->serving && !q->said_broken &&
				 !concerns(c, q) &&
				 moat_devq_pending(&q->devq)) return true;
	return false;
}

/*
 * Look for work while the window lasts. Whom we wait for may wait for this very
 * processor: each few looks it is offered.
 */
static bool look(struct moat_worker *w)
{
	uint64_t end;

	if (!w->window.ns)
		return false;
	end = moat_now_ns() + w->window.ns;
	do {
		for (uint32_t i = 0; i < LOOKS; i++) {
			if (any_pending(w) || command_ready(w))
				return true;
			moat_cpu_relax();
		}
		if (poll_device(w))
			return true;
		sched_yield();
	} while (moat_now_ns() < end);
	return false;
}

/* Ask for notifications; false if there is work by then. */
static bool go_idle(struct moat_worker *w)
{
	bool idle = true;

	for_each_queue(w, q) if (q->running && q->serving && !q->said_broken &&
				 moat_devq_notify_on(&q->devq) &&
				 !concerns(pending_command(w), q)) idle = false;
	return idle && !command_ready(w) && !poll_device(w);
}

static void wake_up(struct moat_worker *w)
{
	moat_window_woken(&w->window);
	for_each_queue(w, q) if (q->running && q->serving)
		moat_devq_notify_off(&q->devq);
}

static void serve(struct moat_worker *w)
{
	while (!__atomic_load_n(&w->stop, __ATOMIC_ACQUIRE)) {
		if (turn(w) || look(w) || !go_idle(w))
			continue;
		moat_window_idle(&w->window);
		moat_loop_wait(&w->loop, -1);
		wake_up(w);
	}
}

/* Edge-triggered: that it came is all there is to know. */
static void on_event(void *arg, uint32_t events)
{
	(void)arg;
	(void)events;
}

static int begin(struct moat_queue *q, void *arg)
{
	struct moat_worker *w = arg;
	const struct moat_device_config *c = w->device->config;
	int ret = 0;

	(void)q;
	if (c->ops->worker_start)
		ret = c->ops->worker_start(c->dev, &w->context, &w->done.fd);
	if (!ret && w->done.fd >= 0)
		ret = moat_loop_watch(&w->loop, &w->done, false);
	w->begun = !ret;
	return ret;
}

static void *thread(void *arg)
{
	struct moat_worker *w = arg;
	const struct moat_device_config *c = w->device->config;

	serve(w);
	if (w->begun && c->ops->worker_stop)
		c->ops->worker_stop(c->dev, w->context);
	return NULL;
}

static void free_worker(struct moat_worker *w)
{
	moat_loop_fini(&w->loop);
	moat_fd_close(&w->wake.fd);
	pthread_mutex_destroy(&w->lock);
	pthread_cond_destroy(&w->answered);
	free(w);
}

int moat_worker_start(struct moat_device *d, uint32_t index,
		      struct moat_worker **worker)
{
	struct moat_worker *w = calloc(1, sizeof(*w));
	pthread_condattr_t monotonic;
	int ret;

	if (!w)
		return -ENOMEM;
	w->device = d;
	w->index = index;
	w->loop.epfd = -1;
	w->done = (struct moat_source){ -1, on_event, w };
	w->wake = (struct moat_source){ eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
					on_event, w };
	pthread_mutex_init(&w->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&w->answered, &monotonic);
	pthread_condattr_destroy(&monotonic);
	moat_window_init(&w->window, d->config->poll_us);
	moat_memmap_init(&w->map, w->regions, MOAT_VU_MEMORY_MAX);
	for_each_queue(w, q)
	{
		q->worker = w;
		q->kick = (struct moat_source){ -1, on_event, q };
	}
	ret = w->wake.fd < 0 ? -errno : moat_loop_init(&w->loop);
	if (!ret)
		ret = moat_loop_watch(&w->loop, &w->wake, true);
	if (!ret)
		ret = -pthread_create(&w->thread, NULL, thread, w);
	if (ret) {
		log_err(d->log, "can not start a worker thread: %s",
			strerror(-ret));
		free_worker(w);
		return ret;
	}
	*worker = w;
	return moat_worker_call(w, NULL, false, begin, w);
}

static int end(struct moat_queue *q, void *arg)
{
	struct moat_worker *w = arg;

	(void)q;
	w->stop = true;
	return 0;
}

void moat_worker_stop(struct moat_worker *w)
{
	moat_worker_call(w, NULL, true, end, w);
	pthread_join(w->thread, NULL);
	free_worker(w);
}

struct adoption {
	struct moat_worker *worker;
	struct moat_vu_memory *mem;
};

/* What the device may keep of guest memory is this. */
static void tell_memory(const struct moat_worker *w)
{
	const struct moat_device_config *c = w->device->config;
	struct iovec iov[MOAT_VU_MEMORY_MAX];

	if (!w->begun || !c->ops->worker_memory)
		return;
	for (uint32_t i = 0; i < w->map.n; i++)
		iov[i] = (struct iovec){ w->regions[i].host,
					 (size_t)w->regions[i].size };
	c->ops->worker_memory(c->dev, w->context, iov, w->map.n);
}

/* No request is outstanding here; rings are all that is still in use. */
static int adopt(struct moat_queue *unused, void *arg)
{
	struct adoption *a = arg;
	struct moat_worker *w = a->worker;
	int ret = 0;

	(void)unused;
	memcpy(w->regions, a->mem->regions,
	       a->mem->map.n * sizeof(*w->regions));
	w->map.n = a->mem->map.n;
	w->map.last = 0;
	/* The control thread waits: there is no other version meanwhile. */
	w->version = w->device->mem.version;
	tell_memory(w);
	for_each_queue(w, q) if (q->running && moat_queue_remap(q, a->mem))
		ret = -EFAULT;
	return ret;
}

int moat_workers_adopt(struct moat_device *d, struct moat_vu_memory *mem)
{
	int ret = 0;

	for (uint32_t i = 0; i < d->nworkers; i++) {
		struct adoption a = { d->workers[i], mem };

		if (moat_worker_call(d->workers[i], NULL, true, adopt, &a))
			ret = -EFAULT;
	}
	return ret;
}
