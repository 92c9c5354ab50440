/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The front-end's end of a vhost-user connection: faces an untrusted backend.
 *
 * Calls are synchronous and bounded in time: a backend that does not answer
 * within reply_ms is as bad as one that answers nonsense. Either way
 * the call fails, the cause is logged, and the connection is dead.
 *
 * While a call waits, the backend may itself be waiting for an answer on its
 * own channel (SET_BACKEND_REQ_FD): that channel is served meanwhile.
 *
 * What the backend may ask for there: a config change to be passed on, and
 * mappings in its shared memory regions, each with its feature negotiated.
 */
#ifndef MOAT_VU_CLIENT_H
#define MOAT_VU_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "os/log.h"
#include "vu/conn.h"

#define MOAT_VU_REPLY_MS 10000u
/*
 * And in all: whoever talks to us waits as well. A backend spends its credit by
 * being slow and gets a tenth of the time that passes back.
 */
#define MOAT_VU_CREDIT_MS 30000u
#define MOAT_VU_CREDIT_LEAST_MS 200u
#define MOAT_VU_STALL_MS 50u

#define MOAT_VU_LATER (-1)

struct moat_vu_client {
	struct moat_vu_conn conn;
	struct moat_vu_conn channel; /* requests of the backend; fd -1: none */
	uint64_t features;	     /* offered by the backend */
	uint64_t protocol_features;  /* negotiated */
	int abort_fd; /* readable: give up waiting with -EINTR; -1: none */
	uint64_t credit_ns; /* left at credit_at_ns, see MOAT_VU_CREDIT_MS */
	uint64_t credit_at_ns;
	uint32_t reply_ms; /* patience; MOAT_VU_REPLY_MS from the start */
	uint64_t end_ns;   /* no wait lasts longer; 0: no such end */
	bool dead;
	bool hold;	   /* leave the channel alone while a call waits */
	bool said_refused; /* that the backend asks for what it may not */
	struct moat_log *log;
	/* The backend says that its config space changed. */
	void (*config_changed)(void *arg);
	/*
	 * The backend wants something mapped (SHMEM_MAP, with an fd: set it to
	 * -1 to keep it) or unmapped (SHMEM_UNMAP, @fd -1). Its form is
	 * checked, its values are not. Returns the backend's answer, 0 or an
	 * error number; MOAT_VU_LATER to give it with moat_vu_client_answer(),
	 * if @reply.
	 */
	int (*shmem)(void *arg, uint32_t request, const struct moat_vu_mmap *m,
		     int *fd, bool reply);
	/* A call has waited MOAT_VU_STALL_MS: is it we who are waited for? */
	void (*stalled)(void *arg);
	/* The channel's fd is about to be closed: do not watch it any more. */
	void (*channel_ends)(void *arg);
	void *arg;
};

/**
 * moat_vu_client_hurry() - from now on all waits together last @ms at most
 *
 * Nor is abort_fd looked at any more.
 */
void moat_vu_client_hurry(struct moat_vu_client *c, uint32_t ms);

/** moat_vu_client_init() - over @fd, which the client owns from now on */
void moat_vu_client_init(struct moat_vu_client *c, int fd, int abort_fd,
			 struct moat_log *log);
void moat_vu_client_close(struct moat_vu_client *c);

/**
 * moat_vu_client_negotiate() - features, protocol features, owner, channel
 * @protocol: protocol features that the caller can use
 *
 * Return: 0 or a negative errno.
 */
int moat_vu_client_negotiate(struct moat_vu_client *c, uint64_t protocol);

/** moat_vu_client_has() - was protocol feature @bit negotiated? */
static inline bool moat_vu_client_has(const struct moat_vu_client *c,
				      unsigned int bit)
{
	return c->protocol_features & MOAT_BIT(bit);
}

/*
 * One message each. Return: 0 or a negative errno; -EIO if the backend refused
 * (only seen where REPLY_ACK was negotiated).
 */
int moat_vu_client_get_u64(struct moat_vu_client *c, uint32_t request,
			   uint64_t *value);
int moat_vu_client_set_u64(struct moat_vu_client *c, uint32_t request,
			   uint64_t value);
int moat_vu_client_simple(struct moat_vu_client *c, uint32_t request);
/* @n regions, at most MOAT_VU_REGIONS_MAX, with an fd each */
int moat_vu_client_set_mem(struct moat_vu_client *c,
			   const struct moat_vu_mem_region *regions, uint32_t n,
			   const int *fds);
int moat_vu_client_vring(struct moat_vu_client *c, uint32_t request,
			 uint32_t index, uint32_t num);
int moat_vu_client_vring_addr(struct moat_vu_client *c,
			      const struct moat_vu_vring_addr *addr);
/* @fd -1 sends the message without one */
int moat_vu_client_vring_fd(struct moat_vu_client *c, uint32_t request,
			    uint32_t index, int fd);
int moat_vu_client_get_vring_base(struct moat_vu_client *c, uint32_t index,
				  uint32_t *base);
/* offset and size of @config say what to read or write */
int moat_vu_client_get_config(struct moat_vu_client *c,
			      struct moat_vu_config *config);
int moat_vu_client_set_config(struct moat_vu_client *c,
			      const struct moat_vu_config *config);

/**
 * moat_vu_client_get_shmem_config() - sizes of its regions, by shmid
 * @sizes: MOAT_VU_SHMEM_MAX of them; as the backend says, unchecked
 *
 * Return: 0 or a negative errno.
 */
int moat_vu_client_get_shmem_config(struct moat_vu_client *c, uint64_t *sizes);

/**
 * moat_vu_client_input() - the backend sent something without being asked
 *
 * Nothing is legal there but the end of the connection.
 *
 * Return: 0 if there was nothing; -EPIPE if the backend left; another negative
 * errno otherwise.
 */
int moat_vu_client_input(struct moat_vu_client *c);

/**
 * moat_vu_client_channel() - serve one request of the backend, if there is one
 *
 * Whatever is not legal is refused, and the channel closed if its framing is
 * broken. The number of requests taken is bounded by the caller.
 *
 * Return: 1 if there was one, 0 if not, a negative errno if the channel ended.
 */
int moat_vu_client_channel(struct moat_vu_client *c);

/**
 * moat_vu_client_answer() - answer a request of the backend
 * @status: 0 or an error number
 *
 * The backend has to read: nobody waits for it.
 *
 * Return: 0, or -EPIPE with the channel closed, logged.
 */
int moat_vu_client_answer(struct moat_vu_client *c, uint32_t request,
			  uint64_t status);

#endif
