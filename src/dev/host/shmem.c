/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "dev/host/host.h"
#include "dev/host/shmem.h"
#include "os/clock.h"
#include "os/fd.h"

/* The table is ours: the front-end has a limit of its own. */
#define MAPPINGS_MAX 16384u
#define WAIT_MS 5000u
/*
 * QEMU 11.1 answers SHMEM_MAP first and lets the guest's processors see the
 * mapping then: who is told of it at once sees nothing there. It does so before
 * it reads our next request. This one changes nothing.
 */
#define FENCE VHOST_USER_BACKEND_CONFIG_CHANGE_MSG
/* A front-end that waits for the control thread may yet be of several. */
#define PAUSE_MS 100u

#define MS(n) ((n) * (uint64_t)MOAT_NS_PER_MS)

int moat_host_shmem_init(struct moat_device *d)
{
	struct moat_host_shmem *h = &d->shmem;
	const uint64_t *sizes = d->config->shmem;

	pthread_mutex_init(&h->lock, NULL);
	pthread_cond_init(&h->left, NULL);
	moat_vu_conn_init(&h->channel, -1);
	moat_vu_shmem_init(&h->table, MAPPINGS_MAX);
	for (uint32_t i = 0; i < MOAT_SHMEM_REGIONS; i++) {
		h->table.sizes[i] = sizes[i];
		if (!(sizes[i] % h->table.page))
			continue;
		log_err(d->log,
			"shared memory region %u of %llu bytes: it has to be "
			"whole pages of %llu",
			i, (unsigned long long)sizes[i],
			(unsigned long long)h->table.page);
		return -EINVAL;
	}
	h->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return h->wake_fd < 0 ? -errno : 0;
}

void moat_host_shmem_fini(struct moat_device *d)
{
	struct moat_host_shmem *h = &d->shmem;

	moat_vu_conn_close(&h->channel);
	moat_vu_shmem_fini(&h->table);
	moat_fd_close(&h->wake_fd);
	pthread_cond_destroy(&h->left);
	pthread_mutex_destroy(&h->lock);
}

static bool usable(const struct moat_host_shmem *h)
{
	return h->negotiated && h->running && h->channel.fd >= 0;
}

/* ---- who asks; all of it with the lock held ---- */

/* Until when the answer is waited for: 0 for not at all any more. */
static uint64_t patience(const struct moat_host_shmem *h, uint64_t end)
{
	if (!usable(h))
		return 0;
	if (h->pauses && h->paused_at_ns + MS(PAUSE_MS) < end)
		return h->paused_at_ns + MS(PAUSE_MS);
	return end;
}

/* Sleep until there is something to look at; the lock is let go meanwhile. */
static int sleep_until(struct moat_host_shmem *h, uint64_t until)
{
	uint64_t now = moat_now_ns(), ignored;
	struct pollfd p[2] = {
		{ .fd = h->channel.fd, .events = POLLIN },
		{ .fd = h->wake_fd, .events = POLLIN },
	};

	if (now >= until)
		return -ETIMEDOUT;
	/* Nobody closes the channel while somebody is inside. */
	pthread_mutex_unlock(&h->lock);
	/* Whatever woke us up, the caller looks at all of it. */
	if (poll(p, 2, (int)((until - now) / MOAT_NS_PER_MS) + 1) > 0 &&
	    p[1].revents)
		(void)!read(h->wake_fd, &ignored, sizeof(ignored));
	pthread_mutex_lock(&h->lock);
	return 0;
}

/* 0 with the answer to @request, or why there is none. */
static int wait_answer(struct moat_host_shmem *h, uint32_t request,
		       uint64_t *status)
{
	uint64_t end = moat_now_ns() + MS(WAIT_MS);
	struct moat_vu_msg m;
	int ret;

	for (;;) {
		uint64_t until;

		ret = moat_vu_conn_recv(&h->channel, &m);
		if (ret)
			break;
		until = patience(h, end);
		if (until && !sleep_until(h, until))
			continue;
		return until == end ? -ETIMEDOUT : -EINTR;
	}
	if (ret > 0) {
		ret = m.nfds;
		moat_vu_msg_close(&m);
		*status = m.u64;
		if (!ret && m.request == request && m.size == sizeof(m.u64) &&
		    m.flags & MOAT_VU_F_REPLY)
			return 0;
	}
	/* Gone, or out of step: there is no way back. */
	moat_vu_conn_close(&h->channel);
	h->owed = 0;
	return -ENOTCONN;
}

static int transact(struct moat_host_shmem *h, uint32_t request,
		    const struct moat_vu_mmap *what, int fd, uint64_t *status)
{
	int ret = moat_vu_conn_send(&h->channel, request, MOAT_VU_F_NEED_REPLY,
				    what, request == FENCE ? 0 : sizeof(*what),
				    &fd, fd >= 0);

	if (ret) {
		moat_vu_conn_close(&h->channel);
		return -ENOTCONN;
	}
	ret = wait_answer(h, request, status);
	if (ret == -EINTR || ret == -ETIMEDOUT) {
		h->owed = request;
		h->owed_what = *what;
	}
	return ret;
}

static int may_ask(struct moat_host_shmem *h, uint32_t request,
		   const struct moat_vu_mmap *what, bool former)
{
	int ret;

	if (request == VHOST_USER_BACKEND_SHMEM_UNMAP && !former)
		return moat_vu_shmem_find(&h->table, what->shmid,
					  what->shm_offset, what->len)
			       ? 0
			       : -ENOENT;
	if (former)
		ret = moat_vu_shmem_may_clear(&h->table, what->shmid,
					      what->shm_offset, what->len);
	else
		ret = moat_vu_shmem_may_map(&h->table, what->shmid,
					    what->shm_offset, what->len);
	return ret == -ENXIO || ret == -ERANGE ? -EINVAL : ret;
}

/* The guard says why it refuses; other front-ends say 1. */
static int error_of(uint64_t status)
{
	switch (status) {
	case 0:
		return 0;
	case EINTR:
	case EAGAIN:
		return -EINTR;
	case ENOTCONN:
		return -ENOTCONN;
	case ENOSPC:
		return -ENOSPC;
	case ETIMEDOUT:
		return -ETIMEDOUT;
	default:
		return -EIO;
	}
}

/* It said yes or no: what is mapped now? */
static int conclude(struct moat_host_shmem *h, uint32_t request,
		    const struct moat_vu_mmap *what, uint64_t status)
{
	int ret = error_of(status);

	if (request == VHOST_USER_BACKEND_SHMEM_MAP) {
		if (!ret)
			moat_vu_shmem_add(&h->table, what->shmid,
					  what->shm_offset, what->len);
		return ret;
	}
	/* To be tried later: it was not tried. */
	if (ret == -EINTR)
		return ret;
	/* The guard's word for what is not there. */
	if (status == ENOENT)
		ret = 0;
	/* Of what is in doubt there need not be anything. */
	if (moat_vu_shmem_unmapped(&h->table, what->shmid, what->shm_offset,
				   what->len, !ret))
		return 0;
	return ret;
}

/* Take the answer that is owed, and undo what was done for nobody. */
static int settle(struct moat_host_shmem *h)
{
	struct moat_vu_mmap what = h->owed_what;
	bool map = h->owed != VHOST_USER_BACKEND_SHMEM_UNMAP;
	bool fence = h->owed == FENCE;
	uint64_t status;
	int ret = h->owed ? wait_answer(h, h->owed, &status) : 0;

	if (ret || !h->owed)
		return ret;
	h->owed = 0;
	if (!map)
		conclude(h, VHOST_USER_BACKEND_SHMEM_UNMAP, &what, status);
	else if (fence || !status)
		ret = transact(h, VHOST_USER_BACKEND_SHMEM_UNMAP, &what, -1,
			       &status);
	return ret;
}

/* @former: what is to be unmapped is not ours. */
static int ask(struct moat_host_shmem *h, uint32_t request,
	       const struct moat_vu_mmap *what, int fd, bool former)
{
	uint64_t status, ignored;
	int ret;

	if (!usable(h))
		return -ENOTCONN;
	if (patience(h, UINT64_MAX) <= moat_now_ns())
		return -EINTR;
	ret = settle(h);
	if (!ret)
		ret = may_ask(h, request, what, former);
	if (!ret)
		ret = transact(h, request, what, fd, &status);
	if (!ret && !status && h->fence &&
	    request == VHOST_USER_BACKEND_SHMEM_MAP)
		ret = transact(h, FENCE, what, -1, &ignored);
	if (ret)
		return ret;
	return former ? error_of(status) : conclude(h, request, what, status);
}

static int ask_in_turn(struct moat_host_shmem *h, uint32_t request,
		       const struct moat_vu_mmap *what, int fd, bool former)
{
	int ret;

	pthread_mutex_lock(&h->lock);
	while (h->inside)
		pthread_cond_wait(&h->left, &h->lock);
	h->inside = true;
	ret = ask(h, request, what, fd, former);
	h->inside = false;
	pthread_cond_broadcast(&h->left);
	pthread_mutex_unlock(&h->lock);
	return ret;
}

bool moat_shmem_usable(const struct moat_device *device)
{
	/* The lock is not what callers mean by the device. */
	struct moat_host_shmem *h = (struct moat_host_shmem *)&device->shmem;
	bool ret;

	pthread_mutex_lock(&h->lock);
	ret = usable(h);
	pthread_mutex_unlock(&h->lock);
	return ret;
}

int moat_shmem_map(struct moat_device *d, uint8_t shmid, uint64_t offset,
		   uint64_t len, int fd, uint64_t fd_offset, bool writable)
{
	struct moat_vu_mmap what = {
		.shmid = shmid,
		.fd_offset = fd_offset,
		.shm_offset = offset,
		.len = len,
		.flags = writable ? MOAT_VU_MMAP_WRITABLE : 0,
	};

	if (fd < 0 || fd_offset % d->shmem.table.page ||
	    fd_offset > INT64_MAX || len > INT64_MAX - fd_offset)
		return -EINVAL;
	return ask_in_turn(&d->shmem, VHOST_USER_BACKEND_SHMEM_MAP, &what, fd,
			   false);
}

static int unmap(struct moat_device *d, uint8_t shmid, uint64_t offset,
		 uint64_t len, bool former)
{
	struct moat_vu_mmap what = {
		.shmid = shmid,
		.shm_offset = offset,
		.len = len,
	};

	return ask_in_turn(&d->shmem, VHOST_USER_BACKEND_SHMEM_UNMAP, &what, -1,
			   former);
}

int moat_shmem_unmap(struct moat_device *d, uint8_t shmid, uint64_t offset,
		     uint64_t len)
{
	return unmap(d, shmid, offset, len, false);
}

int moat_shmem_unmap_former(struct moat_device *d, uint8_t shmid,
			    uint64_t offset, uint64_t len)
{
	return unmap(d, shmid, offset, len, true);
}

/* ---- the control thread ---- */

/* Who is inside sees that nothing is usable, and leaves. */
static void empty(struct moat_host_shmem *h)
{
	h->running = false;
	moat_eventfd_signal(h->wake_fd);
	while (h->inside)
		pthread_cond_wait(&h->left, &h->lock);
}

void moat_host_shmem_channel(struct moat_device *d, int fd)
{
	struct moat_host_shmem *h = &d->shmem;
	bool running;

	pthread_mutex_lock(&h->lock);
	running = h->running;
	empty(h);
	moat_vu_conn_close(&h->channel);
	moat_vu_conn_init(&h->channel, fd);
	h->owed = 0;
	h->running = running && fd >= 0;
	pthread_mutex_unlock(&h->lock);
}

bool moat_host_shmem_has_channel(struct moat_device *d)
{
	bool ret;

	pthread_mutex_lock(&d->shmem.lock);
	ret = d->shmem.channel.fd >= 0;
	pthread_mutex_unlock(&d->shmem.lock);
	return ret;
}

int moat_host_shmem_tell(struct moat_device *d, uint32_t request)
{
	struct moat_host_shmem *h = &d->shmem;
	int ret;

	pthread_mutex_lock(&h->lock);
	ret = moat_vu_conn_send(&h->channel, request, 0, NULL, 0, NULL, 0);
	pthread_mutex_unlock(&h->lock);
	return ret;
}

void moat_host_shmem_running(struct moat_device *d, bool running)
{
	const uint64_t needs = MOAT_BIT(VHOST_USER_PROTOCOL_F_SHMEM_MAP) |
			       MOAT_BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK);
	struct moat_host_shmem *h = &d->shmem;

	pthread_mutex_lock(&h->lock);
	h->negotiated = (d->server.protocol_features & needs) == needs;
	h->fence = d->server.protocol_features &
		   MOAT_BIT(VHOST_USER_PROTOCOL_F_CONFIG);
	h->running = running;
	if (!running) {
		moat_vu_shmem_doubt(&h->table);
		moat_eventfd_signal(h->wake_fd);
	}
	pthread_mutex_unlock(&h->lock);
}

void moat_host_shmem_forget(struct moat_device *d)
{
	struct moat_host_shmem *h = &d->shmem;

	pthread_mutex_lock(&h->lock);
	empty(h);
	moat_vu_shmem_clear(&h->table);
	pthread_mutex_unlock(&h->lock);
}

void moat_host_shmem_pause(struct moat_device *d)
{
	struct moat_host_shmem *h = &d->shmem;

	pthread_mutex_lock(&h->lock);
	if (!h->pauses++)
		h->paused_at_ns = moat_now_ns();
	if (h->inside)
		moat_eventfd_signal(h->wake_fd);
	pthread_mutex_unlock(&h->lock);
}

void moat_host_shmem_resume(struct moat_device *d)
{
	pthread_mutex_lock(&d->shmem.lock);
	d->shmem.pauses--;
	pthread_mutex_unlock(&d->shmem.lock);
}
