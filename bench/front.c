/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>

#include "bench/front.h"
#include "os/clock.h"
#include "os/fd.h"
#include "os/mem.h"
#include "os/sock.h"

#define WAIT_MS 20000 /* patience with one call of the device */
#define LOOKS 32u     /* at the rings between two offers to yield */
#define CHECK 1024u   /* yields between two looks whether the device is there */

void bench_fail(const char *what, int err)
{
	fprintf(stderr, "%s: %s%s%s\n", program_invocation_short_name, what,
		err ? ": " : "", err ? strerror(-err) : "");
	exit(1);
}

void bench_check(int ret, const char *what)
{
	if (ret < 0)
		bench_fail(what, ret);
}

void bench_bank_make(struct bench_bank *b, const char *name, uint64_t addr,
		     uint64_t size)
{
	b->addr = addr;
	b->size = size;
	b->fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (b->fd < 0 || ftruncate(b->fd, (off_t)size) ||
	    fcntl(b->fd, F_ADD_SEALS,
		  F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		bench_fail(name, -errno);
	bench_check(moat_mem_map(b->fd, 0, size, &b->host), name);
}

/* ---- vhost-user ---- */

static void watch(struct bench_front *f, int fd, uint32_t events)
{
	struct epoll_event e = { .events = events, .data.fd = fd };

	if (epoll_ctl(f->epoll_fd, EPOLL_CTL_ADD, fd, &e))
		bench_fail("epoll_ctl", -errno);
}

void bench_connect(struct bench_front *f, const char *socket, uint64_t protocol,
		   uint64_t features, bool poll)
{
	int fd = moat_sock_connect(socket);

	bench_check(fd, socket);
	f->poll = poll;
	f->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (f->epoll_fd < 0)
		bench_fail("epoll_create1", -errno);
	moat_log_init(&f->log, program_invocation_short_name, MOAT_LOG_WARN);
	moat_vu_client_init(&f->client, fd, -1, &f->log);
	bench_check(moat_vu_client_negotiate(&f->client, protocol),
		    "negotiation");
	watch(f, fd, EPOLLIN);
	f->features = f->client.features & features;
	bench_check(moat_vu_client_set_u64(&f->client, VHOST_USER_SET_FEATURES,
					   f->features),
		    "SET_FEATURES");
}

void bench_give_memory(struct bench_front *f,
		       const struct bench_bank *const *banks, int n)
{
	struct moat_vu_mem_region regions[2];
	int fds[2];

	for (int i = 0; i < n; i++) {
		regions[i] = (struct moat_vu_mem_region){
			.guest_addr = banks[i]->addr,
			.size = banks[i]->size,
			.user_addr = (uintptr_t)banks[i]->host,
		};
		fds[i] = banks[i]->fd;
	}
	bench_check(moat_vu_client_set_mem(&f->client, regions, (uint32_t)n,
					   fds),
		    "SET_MEM_TABLE");
}

/* Where the used ring begins, behind the two others. */
static uint32_t used_offset(uint32_t num)
{
	return (moat_vring_desc_size(num) + moat_vring_avail_size(num) + 63) &
	       ~63u;
}

uint64_t bench_rings_size(uint32_t num)
{
	return (used_offset(num) + moat_vring_used_size(num) + 4095) & ~4095u;
}

void bench_start_queue(struct bench_front *f, struct bench_queue *q,
		       uint32_t index, uint16_t num, uint8_t *rings)
{
	struct moat_vu_client *c = &f->client;
	struct moat_vring ring = {
		.num = num,
		.desc = rings,
		.avail = rings + moat_vring_desc_size(num),
		.used = rings + used_offset(num),
	};
	struct moat_vu_vring_addr addr = {
		.index = index,
		.desc = (uintptr_t)ring.desc,
		.avail = (uintptr_t)ring.avail,
		.used = (uintptr_t)ring.used,
	};

	q->descs = calloc(num, sizeof(*q->descs));
	q->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	q->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!q->descs || q->kick_fd < 0 || q->call_fd < 0)
		bench_fail("a queue's memory and eventfds", -errno);
	moat_drvq_init(&q->q, &ring, q->descs,
		       f->features & MOAT_BIT(VIRTIO_F_EVENT_IDX),
		       f->features & MOAT_BIT(VIRTIO_F_INDIRECT_DESC));
	/* By its edge: nobody needs to read what it counts. */
	watch(f, q->call_fd, EPOLLIN | EPOLLET);
	bench_check(moat_vu_client_vring(c, VHOST_USER_SET_VRING_NUM, index,
					 num),
		    "SET_VRING_NUM");
	bench_check(moat_vu_client_vring(c, VHOST_USER_SET_VRING_BASE, index,
					 0),
		    "SET_VRING_BASE");
	bench_check(moat_vu_client_vring_addr(c, &addr), "SET_VRING_ADDR");
	bench_check(moat_vu_client_vring_fd(c, VHOST_USER_SET_VRING_CALL, index,
					    q->call_fd),
		    "SET_VRING_CALL");
	bench_check(moat_vu_client_vring_fd(c, VHOST_USER_SET_VRING_KICK, index,
					    q->kick_fd),
		    "SET_VRING_KICK");
	bench_check(moat_vu_client_vring(c, VHOST_USER_SET_VRING_ENABLE, index,
					 1),
		    "SET_VRING_ENABLE");
}

void bench_disconnect(struct bench_front *f, unsigned int n)
{
	uint32_t base;

	for (unsigned int i = 0; i < n; i++)
		bench_check(moat_vu_client_get_vring_base(&f->client, i, &base),
			    "GET_VRING_BASE");
	moat_vu_client_close(&f->client);
}

/* ---- waiting ---- */

void bench_publish(struct bench_queue *q)
{
	if (!moat_drvq_publish(&q->q))
		return;
	moat_eventfd_signal(q->kick_fd);
	q->kicks++;
}

static void sleep_until_called(struct bench_front *f, int timeout_ms)
{
	struct epoll_event e[4];
	int n = epoll_wait(f->epoll_fd, e, 4, timeout_ms);

	if (n < 0 && errno != EINTR)
		bench_fail("epoll_wait", -errno);
	if (!n && timeout_ms)
		bench_fail("the device does not answer", 0);
	for (int i = 0; i < n; i++)
		if (e[i].data.fd == f->client.conn.fd)
			bench_fail("the device is gone", 0);
}

static void look(struct bench_front *f, const struct bench_queue *queues,
		 unsigned int n)
{
	for (unsigned int i = 0; i < LOOKS; i++) {
		for (unsigned int j = 0; j < n; j++) {
			if (moat_drvq_pending(&queues[j].q)) {
				f->idle = 0;
				return;
			}
		}
		moat_cpu_relax();
	}
	if (++f->idle % CHECK == 0)
		sleep_until_called(f, 0);
	sched_yield();
}

void bench_wait(struct bench_front *f, struct bench_queue *queues,
		unsigned int n)
{
	bool some = false;

	if (f->poll) {
		look(f, queues, n);
		return;
	}
	for (unsigned int i = 0; i < n; i++)
		some |= moat_drvq_notify_on(&queues[i].q);
	if (some)
		return;
	f->sleeps++;
	sleep_until_called(f, WAIT_MS);
}

/* ---- figures ---- */

double bench_cpu_seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / MOAT_NS_PER_SEC;
}

static int by_size(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

struct bench_latency bench_latency(uint32_t *ns, uint64_t n)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < n; i++)
		sum += ns[i];
	qsort(ns, n, sizeof(*ns), by_size);
	return (struct bench_latency){
		.mean = (double)sum / (double)n / 1e3,
		.median = ns[n / 2] / 1e3,
		.p99 = ns[n - 1 - n / 100] / 1e3,
	};
}
