/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "guard/messages.h"
#include "guard/restart.h"
#include "guard/session.h"
#include "guard/vring.h"
#include "os/fd.h"
#include "vu/check.h"

static struct moat_vring_ctl *vring_of(struct moat_session *s, uint32_t index)
{
	if (moat_vu_check_index(s->log, index, s->max_vrings))
		return NULL;
	if (!s->vrings[index])
		s->vrings[index] = moat_vring_new(s, index);
	return s->vrings[index];
}

/*
 * Where the session goes on without a backend, what the guard has noted is all
 * that is to be done.
 */
static int noted(const struct moat_session *s, int ret)
{
	bool goes_on = s->orphan || (s->client.dead && s->config->type->fail &&
				     moat_session_any_started(s));

	return goes_on && ret != -EINVAL ? 0 : ret;
}

/* ---- what the VMM says: features ---- */

static int op_get_features(void *dev, uint64_t *features)
{
	struct moat_session *s = dev;

	*features = s->offered;
	return 0;
}

static int op_set_features(void *dev, uint64_t features)
{
	struct moat_session *s = dev;
	bool running = moat_session_any_started(s);
	uint64_t forwarded;
	int ret = moat_vu_check_features(s->log, features, s->offered,
					 s->accepted, running);

	if (ret || running)
		return ret;
	forwarded = moat_policy_accept(s->config->share, s->client.features,
				       features);
	do
		ret = moat_vu_client_set_u64(
			&s->client, VHOST_USER_SET_FEATURES, forwarded);
	while (moat_restart_again(s, ret));
	if (ret)
		return ret;
	s->accepted = features;
	s->forwarded = forwarded;
	return 0;
}

static int op_get_protocol_features(void *dev, uint64_t *features)
{
	struct moat_session *s = dev;

	*features = s->protocol_offered;
	return 0;
}

static int op_set_protocol_features(void *dev, uint64_t features)
{
	struct moat_session *s = dev;

	return moat_vu_check_protocol(s->log, features, s->protocol_offered);
}

static int op_set_owner(void *dev)
{
	/* The backend has its owner already: the guard. */
	(void)dev;
	return 0;
}

/* After messages that do without the backend's answer. */
static int still_there(struct moat_session *s)
{
	int ret;

	do
		ret = s->client.dead ? -EPIPE : 0;
	while (moat_restart_again(s, ret));
	return noted(s, ret);
}

static int op_reset(void *dev)
{
	struct moat_session *s = dev;
	int ret;

	moat_session_stop(s);
	s->status = 0;
	/* A reset device's rings are disabled as well. */
	for (uint32_t i = 0; i < s->max_vrings; i++)
		if (s->vrings[i])
			s->vrings[i]->enabled = false;
	if (!moat_vu_client_has(&s->client, VHOST_USER_PROTOCOL_F_RESET_DEVICE))
		return still_there(s);
	do
		ret = moat_vu_client_simple(&s->client,
					    VHOST_USER_RESET_DEVICE);
	while (moat_restart_again(s, ret));
	return noted(s, ret);
}

static int op_get_queue_num(void *dev, uint64_t *num)
{
	struct moat_session *s = dev;

	*num = s->max_vrings;
	return 0;
}

/* ---- guest memory ---- */

static int op_get_max_mem_slots(void *dev, uint64_t *num)
{
	(void)dev;
	*num = MOAT_VU_MEMORY_MAX;
	return 0;
}

/* Guest RAM changed: find the rings of running queues again. */
static int after_memory_change(struct moat_session *s)
{
	int ret = 0;

	for (uint32_t i = 0; i < s->max_vrings; i++) {
		struct moat_vring_ctl *v = s->vrings[i];

		if (!v || !v->started || !moat_vring_remap(v))
			continue;
		ret = -EFAULT;
		log_err(s->log,
			"queue %u: its ring is no longer in guest memory: the "
			"session ends",
			i);
	}
	if (ret)
		moat_session_finish(s, MOAT_SESSION_VMM_REFUSED);
	/* A backend that has a table is told of the new one at once. */
	else if (s->table_sent)
		do
			ret = noted(s,
				    moat_session_send_table(s, false, false));
		while (moat_restart_again(s, s->client.dead ? -EPIPE : ret));
	return ret;
}

static int op_set_mem_table(void *dev, const struct moat_vu_mem_region *r,
			    uint32_t n, int *fds)
{
	struct moat_session *s = dev;
	int ret = moat_guest_mem_set(&s->mem, r, n, fds);

	/* Not while the backend is asked: it may take its time to answer. */
	for (uint32_t i = 0; i < n; i++)
		moat_fd_close(&fds[i]);
	return ret ? ret : after_memory_change(s);
}

static int op_add_mem_region(void *dev, const struct moat_vu_mem_region *r,
			     int *fd)
{
	struct moat_session *s = dev;
	int ret = moat_guest_mem_add(&s->mem, r, *fd);

	moat_fd_close(fd);
	return ret ? ret : after_memory_change(s);
}

static int op_del_mem_region(void *dev, const struct moat_vu_mem_region *r)
{
	struct moat_session *s = dev;
	int ret = moat_guest_mem_del(&s->mem, r);

	return ret ? ret : after_memory_change(s);
}

/* ---- queues ---- */

/* What only makes sense while a queue is stopped. */
static struct moat_vring_ctl *stopped_vring(struct moat_session *s,
					    uint32_t index, const char *what)
{
	struct moat_vring_ctl *v = vring_of(s, index);

	if (!v || moat_vu_check_stopped(s->log, index, v->started, what))
		return NULL;
	return v;
}

static bool is_packed(const struct moat_session *s)
{
	return s->accepted & MOAT_BIT(VIRTIO_F_RING_PACKED);
}

static int op_set_vring_num(void *dev, uint32_t index, uint32_t num)
{
	struct moat_session *s = dev;
	struct moat_vring_ctl *v = stopped_vring(s, index, "SET_VRING_NUM");

	if (!v || moat_vu_check_num(s->log, index, num, is_packed(s)))
		return -EINVAL;
	v->num = num;
	return 0;
}

static int op_set_vring_addr(void *dev, const struct moat_vu_vring_addr *addr)
{
	struct moat_session *s = dev;
	struct moat_vring_ctl *v = vring_of(s, addr->index);

	if (!v)
		return -EINVAL;
	/* Front-ends repeat it to toggle logging, which was not offered. */
	if (v->started && !memcmp(&v->addr, addr, sizeof(*addr)))
		return 0;
	v = stopped_vring(s, addr->index, "SET_VRING_ADDR");
	if (!v)
		return -EBUSY;
	v->addr = *addr;
	v->has_addr = true;
	return 0;
}

static int op_set_vring_base(void *dev, uint32_t index, uint32_t base)
{
	struct moat_session *s = dev;
	struct moat_vring_ctl *v = stopped_vring(s, index, "SET_VRING_BASE");

	if (!v || moat_vu_check_base(s->log, index, base, is_packed(s)))
		return -EINVAL;
	v->base = base;
	return 0;
}

static int op_get_vring_base(void *dev, uint32_t index, uint32_t *base)
{
	struct moat_session *s = dev;
	struct moat_vring_ctl *v = vring_of(s, index);
	int ret;

	if (!v)
		return -EINVAL;
	if (v->started)
		moat_guard_shmem_stop(s);
	/* What a backend that dies now has not done is for another to do. */
	do
		ret = moat_vring_drain(v);
	while (moat_restart_again(s, ret));
	ret = moat_vring_stop(v);
	if (moat_restart_again(s, ret))
		ret = 0;
	*base = v->base;
	return noted(s, ret);
}

static int op_set_vring_kick(void *dev, uint32_t index, int *fd)
{
	struct moat_session *s = dev;
	struct moat_vring_ctl *v = vring_of(s, index);
	int ret;

	if (!v)
		return -EINVAL;
	ret = moat_vu_check_kick(s->log, index, *fd);
	if (ret)
		return ret;
	ret = moat_vring_set_kick_fd(v, fd);
	if (ret || v->started)
		return moat_session_from_backend(s, ret);
	/* Without PROTOCOL_FEATURES a ring is enabled from the start. */
	if (!(s->accepted & MOAT_BIT(VHOST_USER_F_PROTOCOL_FEATURES)))
		v->enabled = true;
	do
		ret = moat_vring_start(v);
	while (moat_restart_again(s, ret));
	if (!ret)
		moat_guard_shmem_started(s);
	return ret;
}

static int op_set_vring_call(void *dev, uint32_t index, int *fd)
{
	struct moat_vring_ctl *v = vring_of(dev, index);

	if (!v)
		return -EINVAL;
	return moat_session_from_backend(dev, moat_vring_set_call_fd(v, fd));
}

static int op_set_vring_err(void *dev, uint32_t index, int *fd)
{
	struct moat_vring_ctl *v = vring_of(dev, index);

	if (!v)
		return -EINVAL;
	return moat_session_from_backend(dev, moat_vring_set_err_fd(v, fd));
}

static int op_set_vring_enable(void *dev, uint32_t index, bool enable)
{
	struct moat_session *s = dev;
	struct moat_vring_ctl *v = vring_of(s, index);
	int ret;

	if (!v)
		return -EINVAL;
	if (v->started && !enable)
		moat_guard_shmem_disabled(s);
	do
		ret = moat_vring_enable(v, enable);
	while (moat_restart_again(s, ret));
	if (v->started && enable)
		moat_guard_shmem_enabled(s);
	return noted(s, ret);
}

/* ---- config space and status ---- */

/* Bytes of the largest request that any queue will be able to map. */
static uint64_t request_limit(const struct moat_session *s)
{
	uint64_t half = s->config->pool_size / 2;

	/* Rings and cells come out of the common half; so may a table. */
	return half - half / 4 - MOAT_SLOT_SIZE;
}

static int op_get_config(void *dev, struct moat_vu_config *config)
{
	struct moat_session *s = dev;
	const struct moat_device_type *type = s->config->type;
	struct moat_vu_config wide = *config;
	int ret;

	if (s->config->share != MOAT_SHARE_DIRECT)
		moat_policy_config_range(type, &wide.offset, &wide.size);
	do
		ret = moat_vu_client_get_config(&s->client, &wide);
	while (moat_restart_again(s, ret));
	if (ret)
		return ret;
	memcpy(s->config_space + wide.offset, wide.data, wide.size);
	if (s->config_seen < wide.offset + wide.size)
		s->config_seen = wide.offset + wide.size;
	if (s->config->share != MOAT_SHARE_DIRECT)
		moat_policy_config(type, &wide, request_limit(s));
	memcpy(config->data, wide.data + (config->offset - wide.offset),
	       config->size);
	return 0;
}

static int op_set_config(void *dev, const struct moat_vu_config *config)
{
	struct moat_session *s = dev;
	int ret;

	do
		ret = moat_vu_client_set_config(&s->client, config);
	while (moat_restart_again(s, ret));
	if (!ret)
		s->config_set = *config;
	return ret;
}

static int op_set_backend_req_fd(void *dev, int *fd)
{
	struct moat_session *s = dev;

	moat_session_close_vmm_channel(s);
	moat_vu_conn_init(&s->vmm_channel, moat_fd_take(fd));
	return 0;
}

static int op_set_status(void *dev, uint64_t status)
{
	struct moat_session *s = dev;

	if (moat_vu_check_status(s->log, status))
		return -EINVAL;
	/* Writing 0 resets the device (virtio 1.4, 2.1.2). */
	if (!status)
		moat_session_stop(s);
	s->status =
		status ? status | (s->status & VIRTIO_STATUS_NEEDS_RESET) : 0;
	moat_guard_shmem_undo(s);
	return still_there(s);
}

static int op_get_shmem_config(void *dev, uint64_t *sizes)
{
	struct moat_session *s = dev;

	memcpy(sizes, s->shmem.table.sizes, sizeof(s->shmem.table.sizes));
	return 0;
}

static int op_get_status(void *dev, uint64_t *status)
{
	struct moat_session *s = dev;

	*status = s->status;
	return 0;
}

const struct moat_vu_server_ops moat_session_ops = {
	.get_features = op_get_features,
	.set_features = op_set_features,
	.get_protocol_features = op_get_protocol_features,
	.set_protocol_features = op_set_protocol_features,
	.set_owner = op_set_owner,
	.reset = op_reset,
	.get_queue_num = op_get_queue_num,
	.get_max_mem_slots = op_get_max_mem_slots,
	.set_mem_table = op_set_mem_table,
	.add_mem_region = op_add_mem_region,
	.del_mem_region = op_del_mem_region,
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
	.get_shmem_config = op_get_shmem_config,
};
