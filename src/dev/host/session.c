/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One VMM's time with the device: what its messages do.
 */
#include <errno.h>
#include <string.h>

#include "dev/host/host.h"
#include "dev/host/worker.h"
#include "os/fd.h"
#include "os/mem.h"
#include "vu/check.h"

#define U(x) ((unsigned long long)(x))

#define RING_FEATURES                                                        \
	(MOAT_BIT(VIRTIO_F_VERSION_1) | MOAT_BIT(VIRTIO_F_EVENT_IDX) |       \
	 MOAT_BIT(VIRTIO_F_INDIRECT_DESC) | MOAT_BIT(VIRTIO_F_RING_PACKED) | \
	 MOAT_BIT(VHOST_USER_F_PROTOCOL_FEATURES))

#define P(bit) MOAT_BIT(VHOST_USER_PROTOCOL_F_##bit)
#define PROTOCOL_FEATURES                                               \
	(P(MQ) | P(REPLY_ACK) | P(BACKEND_REQ) | P(CONFIG) |            \
	 P(INFLIGHT_SHMFD) | P(RESET_DEVICE) | P(CONFIGURE_MEM_SLOTS) | \
	 P(STATUS))
/* Of a device with shared memory: it sends fds. */
#define SHMEM_FEATURES (P(SHMEM_MAP) | P(BACKEND_SEND_FD))

static const struct moat_device_ops *ops_of(const struct moat_device *d)
{
	return d->config->ops;
}

static bool any_started(const struct moat_device *d)
{
	for (uint32_t i = 0; i < d->config->num_queues; i++)
		if (d->queues[i].started)
			return true;
	return false;
}

static void stop_all(struct moat_device *d)
{
	for (uint32_t i = 0; i < d->config->num_queues; i++)
		moat_queue_stop(&d->queues[i]);
}

static struct moat_queue *queue_of(struct moat_device *d, uint32_t index)
{
	if (moat_vu_check_index(d->log, index, d->config->num_queues))
		return NULL;
	return &d->queues[index];
}

/* What only makes sense while a queue is stopped. */
static struct moat_queue *stopped_queue(struct moat_device *d, uint32_t index,
					const char *what)
{
	struct moat_queue *q = queue_of(d, index);

	if (!q || moat_vu_check_stopped(d->log, index, q->started, what))
		return NULL;
	return q;
}

static bool is_packed(const struct moat_device *d)
{
	return d->accepted & MOAT_BIT(VIRTIO_F_RING_PACKED);
}

/* ---- features ---- */

static uint64_t offered(const struct moat_device *d)
{
	const struct moat_device_config *c = d->config;
	uint64_t f = RING_FEATURES | c->ops->features(c->dev);

	if (c->in_order)
		f |= MOAT_BIT(VIRTIO_F_IN_ORDER);
	/* A front-end that does not pass it on would leave us the old ring. */
	if (c->ring_reset)
		f |= MOAT_BIT(VIRTIO_F_RING_RESET);
	return f;
}

static int op_get_features(void *dev, uint64_t *features)
{
	*features = offered(dev);
	return 0;
}

static int op_set_features(void *dev, uint64_t features)
{
	struct moat_device *d = dev;
	bool running = any_started(d);
	int ret = moat_vu_check_features(d->log, features, offered(d),
					 d->accepted, running);

	if (ret || running)
		return ret;
	d->accepted = features;
	if (ops_of(d)->accepted)
		ops_of(d)->accepted(d->config->dev, features);
	return 0;
}

static int op_get_protocol_features(void *dev, uint64_t *features)
{
	struct moat_device *d = dev;

	*features = PROTOCOL_FEATURES;
	if (moat_vu_shmem_any(&d->shmem.table))
		*features |= SHMEM_FEATURES;
	return 0;
}

static int op_set_protocol_features(void *dev, uint64_t features)
{
	struct moat_device *d = dev;
	uint64_t has = 0;

	op_get_protocol_features(dev, &has);
	return moat_vu_check_protocol(d->log, features, has);
}

static int op_set_owner(void *dev)
{
	(void)dev;
	return 0;
}

static int op_reset(void *dev)
{
	struct moat_device *d = dev;

	stop_all(d);
	/* What rings come next are new, and disabled. */
	for (uint32_t i = 0; i < d->config->num_queues; i++) {
		moat_inflight_forget(&d->inflight, i);
		d->queues[i].enabled = false;
	}
	d->status = 0;
	/* Of a queue that was: nobody may have looked yet. */
	__atomic_store_n(&d->broken, false, __ATOMIC_RELAXED);
	if (ops_of(d)->reset)
		ops_of(d)->reset(d->config->dev);
	return 0;
}

static int op_get_queue_num(void *dev, uint64_t *num)
{
	struct moat_device *d = dev;

	*num = d->config->num_queues;
	return 0;
}

/* ---- queues ---- */

static int op_set_vring_num(void *dev, uint32_t index, uint32_t num)
{
	struct moat_device *d = dev;
	struct moat_queue *q = stopped_queue(d, index, "SET_VRING_NUM");

	if (!q || moat_vu_check_num(d->log, index, num, is_packed(d)))
		return -EINVAL;
	q->num = num;
	return 0;
}

static int op_set_vring_addr(void *dev, const struct moat_vu_vring_addr *addr)
{
	struct moat_device *d = dev;
	struct moat_queue *q = queue_of(d, addr->index);

	if (!q)
		return -EINVAL;
	/* Front-ends repeat it to toggle logging, which was not offered. */
	if (q->started && !memcmp(&q->addr, addr, sizeof(*addr)))
		return 0;
	q = stopped_queue(d, addr->index, "SET_VRING_ADDR");
	if (!q)
		return -EBUSY;
	q->addr = *addr;
	q->has_addr = true;
	return 0;
}

static int op_set_vring_base(void *dev, uint32_t index, uint32_t base)
{
	struct moat_device *d = dev;
	struct moat_queue *q = stopped_queue(d, index, "SET_VRING_BASE");

	if (!q || moat_vu_check_base(d->log, index, base, is_packed(d)))
		return -EINVAL;
	q->base = base;
	return 0;
}

static int op_get_vring_base(void *dev, uint32_t index, uint32_t *base)
{
	struct moat_device *d = dev;
	struct moat_queue *q = queue_of(d, index);

	if (!q)
		return -EINVAL;
	if (q->started) {
		moat_queue_stop(q);
		moat_inflight_forget(&d->inflight, index);
	}
	*base = q->base;
	return 0;
}

/* The worker lets go of the old fd before it is closed. */
static int replace_fd(struct moat_queue *q, int *slot, int *fd)
{
	int old = *slot, ret = 0;

	/* The worker looks at it whenever it likes. */
	__atomic_store_n(slot, moat_fd_take(fd), __ATOMIC_RELAXED);
	if (q->started)
		ret = moat_queue_update(q);
	moat_fd_close(&old);
	return ret;
}

static int op_set_vring_kick(void *dev, uint32_t index, int *fd)
{
	struct moat_device *d = dev;
	struct moat_queue *q = queue_of(d, index);
	int ret;

	if (!q)
		return -EINVAL;
	ret = moat_vu_check_kick(d->log, index, *fd);
	if (ret)
		return ret;
	ret = replace_fd(q, &q->kick_fd, fd);
	if (ret || q->started)
		return ret;
	/* Without PROTOCOL_FEATURES a ring is enabled from the start. */
	if (!(d->accepted & MOAT_BIT(VHOST_USER_F_PROTOCOL_FEATURES)))
		q->enabled = true;
	return moat_queue_start(q);
}

static int op_set_vring_call(void *dev, uint32_t index, int *fd)
{
	struct moat_queue *q = queue_of(dev, index);

	if (!q)
		return -EINVAL;
	replace_fd(q, &q->call_fd, fd);
	return 0;
}

static int op_set_vring_err(void *dev, uint32_t index, int *fd)
{
	struct moat_queue *q = queue_of(dev, index);

	if (!q)
		return -EINVAL;
	replace_fd(q, &q->err_fd, fd);
	return 0;
}

static int op_set_vring_enable(void *dev, uint32_t index, bool enable)
{
	struct moat_queue *q = queue_of(dev, index);

	if (!q)
		return -EINVAL;
	q->enabled = enable;
	if (q->started)
		moat_queue_update(q);
	return 0;
}

static int op_get_inflight(void *dev, struct moat_vu_inflight *inflight,
			   int *fd)
{
	struct moat_device *d = dev;
	int ret = any_started(d) ? -EBUSY
				 : moat_inflight_make(&d->inflight, inflight,
						      is_packed(d));

	if (ret)
		log_err(d->log,
			"GET_INFLIGHT_FD for %u queues of %u: refused: %s",
			inflight->num_queues, inflight->queue_size,
			strerror(-ret));
	*fd = d->inflight.fd;
	return ret;
}

static int op_set_inflight(void *dev, const struct moat_vu_inflight *inflight,
			   int *fd)
{
	struct moat_device *d = dev;
	int ret = any_started(d) ? -EBUSY
				 : moat_inflight_adopt(&d->inflight, inflight,
						       is_packed(d), *fd);

	if (ret)
		log_err(d->log,
			"SET_INFLIGHT_FD for %u queues of %u in %llu bytes: "
			"refused: %s",
			inflight->num_queues, inflight->queue_size,
			U(inflight->mmap_size), strerror(-ret));
	return ret;
}

/* ---- config space and status ---- */

static int op_get_config(void *dev, struct moat_vu_config *config)
{
	struct moat_device *d = dev;

	memset(config->data, 0, sizeof(config->data));
	ops_of(d)->get_config(d->config->dev, config->offset, config->data,
			      config->size);
	return 0;
}

static int op_set_config(void *dev, const struct moat_vu_config *config)
{
	struct moat_device *d = dev;
	int ret = -EOPNOTSUPP;

	if (ops_of(d)->set_config)
		ret = ops_of(d)->set_config(d->config->dev, config->offset,
					    config->data, config->size);
	if (ret)
		log_err(d->log,
			"SET_CONFIG of %u bytes at offset %u: refused; the "
			"driver may not write there",
			config->size, config->offset);
	return ret;
}

static int op_set_backend_req_fd(void *dev, int *fd)
{
	struct moat_device *d = dev;

	moat_host_shmem_channel(d, moat_fd_take(fd));
	return 0;
}

static int op_get_shmem_config(void *dev, uint64_t *sizes)
{
	struct moat_device *d = dev;

	memcpy(sizes, d->config->shmem, sizeof(d->config->shmem));
	return 0;
}

/* Legal once there is a channel and the driver has started; else later. */
static void tell_config(struct moat_device *d)
{
	if (!d->config_changed || !any_started(d) ||
	    !moat_host_shmem_has_channel(d))
		return;
	d->config_changed = false;
	if (moat_host_shmem_tell(d, VHOST_USER_BACKEND_CONFIG_CHANGE_MSG)) {
		log_warn(d->log, "front-end does not take config changes");
		moat_host_shmem_channel(d, -1);
	}
}

void moat_device_config_changed(struct moat_device *d)
{
	d->config_changed = true;
	tell_config(d);
}

/* virtio 1.4, 2.1.2: NEEDS_RESET, and a notification that it is there. */
static void see_broken(struct moat_device *d)
{
	if (!__atomic_exchange_n(&d->broken, false, __ATOMIC_ACQUIRE))
		return;
	d->status |= VIRTIO_STATUS_NEEDS_RESET;
	if (d->server.protocol_features & P(STATUS))
		moat_device_config_changed(d);
}

static int op_set_status(void *dev, uint64_t status)
{
	struct moat_device *d = dev;

	if (moat_vu_check_status(d->log, status))
		return -EINVAL;
	/* Writing 0 resets the device (virtio 1.4, 2.1.2). */
	if (!status)
		return op_reset(d);
	d->status = status | (d->status & VIRTIO_STATUS_NEEDS_RESET);
	return 0;
}

static int op_get_status(void *dev, uint64_t *status)
{
	struct moat_device *d = dev;

	see_broken(d);
	*status = d->status;
	return 0;
}

static const struct moat_vu_server_ops ops = {
	.get_features = op_get_features,
	.set_features = op_set_features,
	.get_protocol_features = op_get_protocol_features,
	.set_protocol_features = op_set_protocol_features,
	.set_owner = op_set_owner,
	.reset = op_reset,
	.get_queue_num = op_get_queue_num,
	.get_max_mem_slots = moat_host_get_max_mem_slots,
	.set_mem_table = moat_host_set_mem_table,
	.add_mem_region = moat_host_add_mem_region,
	.del_mem_region = moat_host_del_mem_region,
	.set_vring_num = op_set_vring_num,
	.set_vring_addr = op_set_vring_addr,
	.set_vring_base = op_set_vring_base,
	.get_vring_base = op_get_vring_base,
	.set_vring_kick = op_set_vring_kick,
	.set_vring_call = op_set_vring_call,
	.set_vring_err = op_set_vring_err,
	.set_vring_enable = op_set_vring_enable,
	.get_config = op_get_config,
	.set_config = op_set_config,
	.set_backend_req_fd = op_set_backend_req_fd,
	.set_status = op_set_status,
	.get_status = op_get_status,
	.get_inflight = op_get_inflight,
	.set_inflight = op_set_inflight,
	.get_shmem_config = op_get_shmem_config,
};

/* ---- what happens by itself ---- */

static void on_message(void *arg, uint32_t events)
{
	struct moat_device *d = arg;
	int ret = moat_vu_server_run(&d->server);

	(void)events;
	if (ret < 0) {
		d->over = true;
		d->end = ret == -EPIPE ? 0 : ret;
	}
	tell_config(d);
}

static void on_wake(void *arg, uint32_t events)
{
	(void)events;
	see_broken(arg);
}

int moat_session_begin(struct moat_device *d, int fd)
{
	d->over = d->config_changed = false;
	d->end = 0;
	d->accepted = d->status = 0;
	moat_vu_server_init(&d->server, fd, &ops, d, d->log);
	moat_inflight_init(&d->inflight);
	d->server_src = (struct moat_source){ fd, on_message, d };
	d->wake_src.ready = on_wake;
	d->wake_src.arg = d;
	return moat_loop_watch(&d->loop, &d->server_src, false);
}

void moat_session_finish(struct moat_device *d)
{
	moat_loop_unwatch(&d->loop, &d->server_src);
	stop_all(d);
	__atomic_store_n(&d->broken, false, __ATOMIC_RELAXED);
	moat_host_memory_forget(d);
	moat_inflight_fini(&d->inflight);
	for (uint32_t i = 0; i < d->config->num_queues; i++) {
		struct moat_queue *q = &d->queues[i];

		moat_fd_close(&q->kick_fd);
		moat_fd_close(&q->call_fd);
		moat_fd_close(&q->err_fd);
		q->num = q->base = 0;
		q->has_addr = q->enabled = false;
	}
	moat_vu_server_close(&d->server);
	moat_host_shmem_channel(d, -1);
	moat_host_shmem_forget(d);
	if (ops_of(d)->reset)
		ops_of(d)->reset(d->config->dev);
	if (ops_of(d)->left)
		ops_of(d)->left(d->config->dev);
}
