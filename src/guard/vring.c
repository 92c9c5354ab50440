/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>

#include "guard/direct.h"
#include "guard/relayed.h"
#include "guard/session.h"
#include "guard/vring.h"
#include "os/fd.h"

struct moat_vring_ctl *moat_vring_new(struct moat_session *s, uint32_t index)
{
	struct moat_vring_ctl *v = calloc(1, sizeof(*v));

	if (!v)
		return NULL;
	v->index = index;
	v->session = s;
	v->kick_fd = v->call_fd = v->err_fd = v->back_call_fd = -1;
	v->rq.kick.fd = v->rq.call.fd = v->rq.kick_fd = v->rq.call_fd = -1;
	return v;
}

void moat_vring_free(struct moat_vring_ctl *v)
{
	if (!v)
		return;
	moat_vring_stop(v);
	moat_fd_close(&v->kick_fd);
	moat_fd_close(&v->call_fd);
	moat_fd_close(&v->err_fd);
	free(v);
}

/* Find and check the guest's ring. */
static int find_ring(struct moat_vring_ctl *v, struct moat_vring *ring)
{
	bool packed = v->session->accepted & MOAT_BIT(VIRTIO_F_RING_PACKED);

	return moat_vu_find_ring(&v->session->mem.mapped, v->index,
				 v->has_addr ? &v->addr : NULL, v->num, packed,
				 ring);
}

int moat_vring_tell_backend(struct moat_vring_ctl *v,
			    const struct moat_vu_vring_addr *addr, uint32_t num,
			    uint32_t base, int kick_fd, int call_fd, int err_fd)
{
	struct moat_session *s = v->session;
	struct moat_vu_client *c = &s->client;
	uint32_t i = v->index;
	int ret;

	ret = moat_vu_client_vring(c, VHOST_USER_SET_VRING_NUM, i, num);
	if (!ret)
		ret = moat_vu_client_vring(c, VHOST_USER_SET_VRING_BASE, i,
					   base);
	if (!ret)
		ret = moat_vu_client_vring_addr(c, addr);
	if (!ret && err_fd >= 0)
		ret = moat_vu_client_vring_fd(c, VHOST_USER_SET_VRING_ERR, i,
					      err_fd);
	if (!ret)
		ret = moat_vu_client_vring_fd(c, VHOST_USER_SET_VRING_CALL, i,
					      call_fd);
	if (!ret)
		ret = moat_vu_client_vring_fd(c, VHOST_USER_SET_VRING_KICK, i,
					      kick_fd);
	if (!ret && moat_session_has_enable(s))
		ret = moat_vu_client_vring(c, VHOST_USER_SET_VRING_ENABLE, i,
					   v->enabled);
	return ret;
}

/* In mode `hybrid` all works without a share set: it is only slower. */
static void say_hybrid(struct moat_session *s)
{
	if (!s->mem.share.n && !s->mode_said)
		log_warn(s->log, "share=hybrid: all is bounced, because %s",
			 s->mem.share.why);
	s->mode_said = 1;
}

/* Relayed or direct? 0 with @direct set, or a negative errno, logged. */
static int decide(struct moat_vring_ctl *v, bool *direct)
{
	struct moat_session *s = v->session;
	enum moat_share_mode mode = s->config->share;
	char why[320] = "its rings lie in the pool";

	*direct = false;
	if (mode == MOAT_SHARE_HYBRID)
		say_hybrid(s);
	if (mode != MOAT_SHARE_DIRECT && mode != MOAT_SHARE_AUTO)
		return 0;
	*direct = moat_direct_possible(v, why, sizeof(why));
	if (mode == MOAT_SHARE_DIRECT && !*direct) {
		log_err(s->log, "queue %u: share=direct refused: %s", v->index,
			why);
		return -EPERM;
	}
	if (mode == MOAT_SHARE_AUTO && s->mode_said != (*direct ? 1 : 2)) {
		log_info(s->log, "queue %u: share=auto: chose %s because %s",
			 v->index, *direct ? "direct" : "bounce", why);
		s->mode_said = *direct ? 1 : 2;
	}
	return 0;
}

int moat_vring_start(struct moat_vring_ctl *v)
{
	struct moat_session *s = v->session;
	struct moat_vring front;
	int ret = find_ring(v, &front);

	if (!ret)
		ret = decide(v, &v->direct);
	if (!ret)
		ret = moat_session_send_table(
			s, !v->direct,
			v->direct || s->config->share == MOAT_SHARE_HYBRID);
	if (!ret)
		ret = v->direct ? moat_direct_start(v)
				: moat_relayed_start(v, &front);
	if (ret)
		return ret;
	v->started = true;
	log_debug(s->log, "queue %u: started %s, %s, size %u, base 0x%x%s",
		  v->index, v->direct ? "direct" : "relayed",
		  front.packed ? "packed" : "split", v->num, v->base,
		  v->enabled ? "" : ", disabled");
	return 0;
}

int moat_vring_stop(struct moat_vring_ctl *v)
{
	int ret;

	if (!v->started)
		return 0;
	ret = v->direct ? moat_direct_stop(v) : moat_relayed_stop(v);
	v->started = false;
	return ret;
}

int moat_vring_drain(struct moat_vring_ctl *v)
{
	const struct moat_session *s = v->session;

	if (v->started && !v->direct)
		moat_relayed_drain(v);
	return s->client.dead ? -EPIPE : 0;
}

int moat_vring_enable(struct moat_vring_ctl *v, bool enable)
{
	struct moat_session *s = v->session;

	v->enabled = enable;
	if (!v->started)
		return 0;
	if (!v->direct) {
		v->rq.relay.enabled = enable;
		moat_runner_wake(&s->runner, &v->rq);
	}
	if (!moat_session_has_enable(s))
		return 0;
	return moat_vu_client_vring(&s->client, VHOST_USER_SET_VRING_ENABLE,
				    v->index, enable);
}

int moat_vring_remap(struct moat_vring_ctl *v)
{
	struct moat_vring front;
	char why[320];
	int ret = find_ring(v, &front);

	if (v->direct)
		return ret || !moat_direct_possible(v, why, sizeof(why))
			       ? -EFAULT
			       : 0;
	if (!ret)
		v->rq.relay.dev.ring = front;
	else
		/* Requests may still come back: not to this ring. */
		moat_fault_set(&v->rq.relay.dev.fault, MOAT_FAULT_ADDRESS,
			       v->addr.used, 0);
	return ret;
}

int moat_vring_set_kick_fd(struct moat_vring_ctl *v, int *fd)
{
	struct moat_session *s = v->session;
	bool relayed = v->started && !v->direct;
	int ret = 0;

	if (relayed)
		moat_loop_unwatch(s->loop, &v->rq.kick);
	moat_fd_close(&v->kick_fd);
	v->kick_fd = moat_fd_take(fd);
	if (v->started && v->direct)
		return moat_vu_client_vring_fd(&s->client,
					       VHOST_USER_SET_VRING_KICK,
					       v->index, v->kick_fd);
	if (!relayed)
		return 0;
	v->rq.kick.fd = v->kick_fd;
	if (v->kick_fd >= 0 && !v->rq.said_broken)
		ret = moat_loop_watch(s->loop, &v->rq.kick, true);
	moat_runner_wake(&s->runner, &v->rq);
	return ret;
}

int moat_vring_set_call_fd(struct moat_vring_ctl *v, int *fd)
{
	moat_fd_close(&v->call_fd);
	v->call_fd = moat_fd_take(fd);
	if (!v->started)
		return 0;
	if (v->direct)
		return moat_vu_client_vring_fd(&v->session->client,
					       VHOST_USER_SET_VRING_CALL,
					       v->index, v->call_fd);
	v->rq.call_fd = v->call_fd;
	/* A call that went to the old fd may have been lost. */
	moat_eventfd_signal(v->call_fd);
	return 0;
}

int moat_vring_set_err_fd(struct moat_vring_ctl *v, int *fd)
{
	moat_fd_close(&v->err_fd);
	v->err_fd = moat_fd_take(fd);
	/* A relayed queue's errors are found and signalled here. */
	if (!v->started || !v->direct)
		return 0;
	return moat_vu_client_vring_fd(&v->session->client,
				       VHOST_USER_SET_VRING_ERR, v->index,
				       v->err_fd);
}
