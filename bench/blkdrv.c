/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk's driver at native speed, over vhost-user, with its memory laid out as
 * a guest has it that bounces its I/O through a pool of its own:
 *
 *     0x40000000  RAM   all else that a guest has
 *     0x7c000000  pool  rings and buffers, or only the buffers (--rings=ram)
 *
 * Each is a sealed memfd of 16 MiB, so a guard in mode direct or hybrid may
 * share the pool: --pool=0x7c000000+0x1000000. (libblkio's driver can not take
 * part in this: it gives its memory in memfds that nobody can seal.)
 *
 * It works like a guest's driver: handles all that is finished, posts as much
 * anew, kicks if it is wanted and then sleeps until called, as EVENT_IDX has
 * it. Offsets go up by the step and wrap around, as those of qemu-img bench.
 *
 * Prints one JSON object: requests, seconds, the driver's own processor time in
 * the same span, kicks, sleeps, and latencies in microseconds.
 */
#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "core/drvq.h"
#include "os/clock.h"
#include "os/fd.h"
#include "os/log.h"
#include "os/mem.h"
#include "os/sock.h"
#include "vu/client.h"

#define RAM_ADDR UINT64_C(0x40000000)
#define POOL_ADDR UINT64_C(0x7c000000)
#define BANK_SIZE (UINT64_C(16) << 20)
#define NUM 128u	 /* queue size: what QEMU gives a disk */
#define RINGS_SIZE 8192u /* of that many, all three parts */
#define SEGS 3u		 /* of a request: header, data, status */
#define SECTOR 512u
#define PATTERN 0x5a  /* what is written */
#define WAIT_MS 20000 /* patience with one call of the device */
#define LOOKS 32u     /* at the ring between two offers to yield */

#define VIRTIO_BLK_T_IN 0u
#define VIRTIO_BLK_T_OUT 1u

/*
 * One request in flight: a page for the small parts, then the data. All of it
 * is in the same memory, as Linux's DMA layer bounces all of it.
 */
#define HEADER 0u
#define STATUS 16u
#define TABLE 64u
#define DATA 4096u

struct bank {
	uint64_t addr; /* guest address */
	uint8_t *host;
	int fd;
};

struct options {
	const char *socket;
	uint64_t count, depth, size, step;
	bool step_given, write, poll, rings_in_ram, buffers_in_ram;
};

struct driver {
	struct options opt;
	struct moat_log log;
	struct moat_vu_client client;
	struct bank ram, pool;
	struct moat_drvq q;
	struct moat_drvq_desc descs[NUM];
	int kick_fd, call_fd, epoll_fd;
	uint8_t *slots; /* of the requests in flight */
	uint64_t slots_addr, slot_size;
	uint64_t disk;	 /* bytes */
	uint64_t offset; /* of the next request */
	uint64_t posted, done;
	uint64_t begun[NUM]; /* by slot, in ns */
	uint32_t *latency;   /* of each request, in ns */
	uint64_t kicks, sleeps;
};

static void fail(const char *what, int err)
{
	fprintf(stderr, "blkdrv: %s%s%s\n", what, err ? ": " : "",
		err ? strerror(-err) : "");
	exit(1);
}

static void check(int ret, const char *what)
{
	if (ret < 0)
		fail(what, ret);
}

/* ---- memory ---- */

static void make_bank(struct bank *b, const char *name, uint64_t addr)
{
	b->addr = addr;
	b->fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (b->fd < 0 || ftruncate(b->fd, BANK_SIZE) ||
	    fcntl(b->fd, F_ADD_SEALS,
		  F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		fail(name, -errno);
	check(moat_mem_map(b->fd, 0, BANK_SIZE, &b->host), name);
}

/* Rings first, then the requests; both may be in the same bank. */
static void lay_out(struct driver *d)
{
	struct bank *b = d->opt.buffers_in_ram ? &d->ram : &d->pool;

	make_bank(&d->ram, "bench-ram", RAM_ADDR);
	make_bank(&d->pool, "bench-pool", POOL_ADDR);
	d->slot_size = DATA + ((d->opt.size + 4095) & ~UINT64_C(4095));
	if (d->slot_size * d->opt.depth > BANK_SIZE - RINGS_SIZE)
		fail("depth * size does not fit 16 MiB", 0);
	d->slots = b->host + RINGS_SIZE;
	d->slots_addr = b->addr + RINGS_SIZE;
	/* Touched before time is taken. */
	memset(d->slots, PATTERN, d->slot_size * d->opt.depth);
}

/* ---- vhost-user ---- */

static void connect_backend(struct driver *d)
{
	int fd = moat_sock_connect(d->opt.socket);
	struct moat_vu_config config = { .size = 8 };
	uint64_t features;

	check(fd, d->opt.socket);
	moat_log_init(&d->log, "blkdrv", MOAT_LOG_WARN);
	moat_vu_client_init(&d->client, fd, -1, &d->log);
	check(moat_vu_client_negotiate(
		      &d->client,
		      MOAT_BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK) |
			      MOAT_BIT(VHOST_USER_PROTOCOL_F_CONFIG)),
	      "negotiation");
	features =
		d->client.features & (MOAT_BIT(VIRTIO_F_VERSION_1) |
				      MOAT_BIT(VHOST_USER_F_PROTOCOL_FEATURES) |
				      MOAT_BIT(VIRTIO_F_INDIRECT_DESC) |
				      MOAT_BIT(VIRTIO_F_EVENT_IDX) |
				      MOAT_BIT(VIRTIO_F_ACCESS_PLATFORM));
	check(moat_vu_client_set_u64(&d->client, VHOST_USER_SET_FEATURES,
				     features),
	      "SET_FEATURES");
	check(moat_vu_client_get_config(&d->client, &config), "GET_CONFIG");
	memcpy(&d->disk, config.data, sizeof(d->disk));
	d->disk = moat_le64(d->disk) * SECTOR;
	if (d->disk <= d->opt.size)
		fail("the disk is not larger than one request", 0);
	d->q.event_idx = features & MOAT_BIT(VIRTIO_F_EVENT_IDX);
	d->q.indirect = features & MOAT_BIT(VIRTIO_F_INDIRECT_DESC);
}

static void give_memory(struct driver *d)
{
	const struct bank *banks[] = { &d->ram, &d->pool };
	struct moat_vu_mem_region regions[2];
	int fds[2];

	for (int i = 0; i < 2; i++) {
		regions[i] = (struct moat_vu_mem_region){
			.guest_addr = banks[i]->addr,
			.size = BANK_SIZE,
			.user_addr = (uintptr_t)banks[i]->host,
		};
		fds[i] = banks[i]->fd;
	}
	check(moat_vu_client_set_mem(&d->client, regions, 2, fds),
	      "SET_MEM_TABLE");
}

static void watch(struct driver *d, int fd, uint32_t events)
{
	struct epoll_event e = { .events = events, .data.fd = fd };

	if (epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, fd, &e))
		fail("epoll_ctl", -errno);
}

static void start_queue(struct driver *d)
{
	struct moat_vu_client *c = &d->client;
	uint8_t *p = d->opt.rings_in_ram ? d->ram.host : d->pool.host;
	struct moat_vring ring = { .num = NUM, .desc = p };
	struct moat_vu_vring_addr addr = { .desc = (uintptr_t)p };

	ring.avail = p + moat_vring_desc_size(NUM);
	ring.used = p + RINGS_SIZE / 2;
	addr.avail = (uintptr_t)ring.avail;
	addr.used = (uintptr_t)ring.used;
	moat_drvq_init(&d->q, &ring, d->descs, d->q.event_idx, d->q.indirect);
	d->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	d->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	d->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (d->kick_fd < 0 || d->call_fd < 0 || d->epoll_fd < 0)
		fail("eventfd", -errno);
	/* By its edge: nobody needs to read what it counts. */
	watch(d, d->call_fd, EPOLLIN | EPOLLET);
	watch(d, c->conn.fd, EPOLLIN);
	check(moat_vu_client_vring(c, VHOST_USER_SET_VRING_NUM, 0, NUM),
	      "SET_VRING_NUM");
	check(moat_vu_client_vring(c, VHOST_USER_SET_VRING_BASE, 0, 0),
	      "SET_VRING_BASE");
	check(moat_vu_client_vring_addr(c, &addr), "SET_VRING_ADDR");
	check(moat_vu_client_vring_fd(c, VHOST_USER_SET_VRING_CALL, 0,
				      d->call_fd),
	      "SET_VRING_CALL");
	check(moat_vu_client_vring_fd(c, VHOST_USER_SET_VRING_KICK, 0,
				      d->kick_fd),
	      "SET_VRING_KICK");
	check(moat_vu_client_vring(c, VHOST_USER_SET_VRING_ENABLE, 0, 1),
	      "SET_VRING_ENABLE");
}

/* ---- requests ---- */

static void post(struct driver *d, uint32_t slot)
{
	uint8_t *p = d->slots + slot * d->slot_size;
	uint64_t at = d->slots_addr + slot * d->slot_size;
	struct moat_seg segs[SEGS] = {
		{ .addr = at + HEADER, .len = 16 },
		{ .addr = at + DATA, .len = (uint32_t)d->opt.size },
		{ .addr = at + STATUS, .len = 1 },
	};
	uint32_t nread = d->opt.write ? 2 : 1;

	moat_shm_store32(p + HEADER,
			 d->opt.write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN);
	moat_shm_store32(p + HEADER + 4, 0);
	moat_shm_store64(p + HEADER + 8, d->offset / SECTOR);
	p[STATUS] = 0xff;
	/* As Linux does: a table wherever there may be one. */
	moat_drvq_add(&d->q, segs, nread, SEGS - nread, slot,
		      d->q.indirect ? p + TABLE : NULL, at + TABLE);
	d->begun[slot] = moat_now_ns();
	d->offset = (d->offset + d->opt.step) % (d->disk - d->opt.size);
	d->posted++;
}

static void publish(struct driver *d)
{
	if (!moat_drvq_publish(&d->q))
		return;
	moat_eventfd_signal(d->kick_fd);
	d->kicks++;
}

/* Take what is finished, post as much anew; false if there was nothing. */
static bool turn(struct driver *d)
{
	uint32_t slot, len, n = 0;
	int ret;

	while ((ret = moat_drvq_get(&d->q, &slot, &len)) > 0) {
		uint8_t status = d->slots[slot * d->slot_size + STATUS];

		if (status)
			fail("a request failed", 0);
		d->latency[d->done++] =
			(uint32_t)(moat_now_ns() - d->begun[slot]);
		if (d->posted < d->opt.count)
			post(d, slot);
		n++;
	}
	if (ret < 0)
		fail(moat_fault_text(d->q.fault.code), 0);
	publish(d);
	return n;
}

static void sleep_until_called(struct driver *d)
{
	struct epoll_event e;
	int n;

	if (moat_drvq_notify_on(&d->q))
		return;
	d->sleeps++;
	n = epoll_wait(d->epoll_fd, &e, 1, WAIT_MS);
	if (n < 0 && errno != EINTR)
		fail("epoll_wait", -errno);
	if (!n)
		fail("the device does not answer", 0);
	if (n > 0 && e.data.fd == d->client.conn.fd)
		fail("the device is gone", 0);
}

static void look(struct driver *d)
{
	for (unsigned int i = 0; i < LOOKS; i++) {
		if (moat_drvq_pending(&d->q))
			return;
		moat_cpu_relax();
	}
	sched_yield();
}

static void work(struct driver *d)
{
	uint32_t slot = 0;

	while (slot < d->opt.depth && d->posted < d->opt.count)
		post(d, slot++);
	publish(d);
	while (d->done < d->opt.count) {
		if (turn(d))
			continue;
		if (d->opt.poll)
			look(d);
		else
			sleep_until_called(d);
	}
}

/* ---- what came of it ---- */

static double cpu_seconds(void)
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

static void print(const struct driver *d, double seconds, double cpu)
{
	uint64_t n = d->opt.count, sum = 0;

	for (uint64_t i = 0; i < n; i++)
		sum += d->latency[i];
	qsort(d->latency, n, sizeof(*d->latency), by_size);
	printf("{\"requests\": %llu, \"seconds\": %.6f, \"cpu_seconds\": %.6f, "
	       "\"kicks\": %llu, \"sleeps\": %llu, \"latency_us\": "
	       "{\"mean\": %.2f, \"median\": %.2f, \"p99\": %.2f}}\n",
	       (unsigned long long)n, seconds, cpu,
	       (unsigned long long)d->kicks, (unsigned long long)d->sleeps,
	       (double)sum / (double)n / 1e3, d->latency[n / 2] / 1e3,
	       d->latency[n - 1 - n / 100] / 1e3);
}

static const struct argp_option options[] = {
	{ "socket", 's', "PATH", 0, "where the disk listens", 0 },
	{ "count", 'c', "N", 0, "requests (default 10000)", 0 },
	{ "depth", 'd', "N", 0, "requests in flight (default 1, at most 128)",
	  0 },
	{ "size", 'b', "BYTES", 0, "of a request (default 4096)", 0 },
	{ "step", 'S', "BYTES", 0, "from one to the next (default: the size)",
	  0 },
	{ "write", 'w', 0, 0, "write (default: read)", 0 },
	{ "rings", 'r', "pool|ram", 0, "where the rings are (default pool)",
	  0 },
	{ "buffers", 'u', "pool|ram", 0,
	  "where headers and data are (default pool)", 0 },
	{ "poll", 'p', 0, 0, "never sleep (default: until called)", 0 },
	{ 0 },
};

static uint64_t number(const char *arg, uint64_t max, struct argp_state *state)
{
	char *end;
	uint64_t v = strtoull(arg, &end, 0);

	if (end == arg || *end || !v || v > max)
		argp_error(state, "'%s' is no number from 1 to %llu", arg,
			   (unsigned long long)max);
	return v;
}

static bool in_ram(const char *arg, struct argp_state *state)
{
	if (strcmp(arg, "pool") && strcmp(arg, "ram"))
		argp_error(state, "'%s' is neither pool nor ram", arg);
	return !strcmp(arg, "ram");
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case 's':
		o->socket = arg;
		break;
	case 'c':
		o->count = number(arg, UINT32_MAX, state);
		break;
	case 'd':
		o->depth = number(arg, NUM, state);
		break;
	case 'b':
		o->size = number(arg, BANK_SIZE, state);
		break;
	case 'S':
		o->step = number(arg, UINT64_MAX >> 1, state);
		o->step_given = true;
		break;
	case 'w':
		o->write = true;
		break;
	case 'p':
		o->poll = true;
		break;
	case 'r':
		o->rings_in_ram = in_ram(arg, state);
		break;
	case 'u':
		o->buffers_in_ram = in_ram(arg, state);
		break;
	case ARGP_KEY_END:
		if (!o->socket)
			argp_error(state, "--socket is missing");
		if (!o->step_given)
			o->step = o->size;
		if (o->size % SECTOR || o->step % SECTOR)
			argp_error(state,
				   "size and step are in sectors of 512");
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct argp argp = {
		options, parse,
		NULL,	 "A disk's driver over vhost-user, to measure with.",
		NULL,	 NULL,
		NULL
	};
	struct driver d = {
		.opt = { .count = 10000, .depth = 1, .size = 4096 },
	};
	uint64_t begin;
	double seconds, cpu;
	uint32_t base;

	argp_parse(&argp, argc, argv, 0, NULL, &d.opt);
	d.latency = calloc(d.opt.count, sizeof(*d.latency));
	if (!d.latency)
		fail("latencies", -ENOMEM);
	/* Touched, too: calloc() gives pages that are not there yet. */
	memset(d.latency, 0xff, d.opt.count * sizeof(*d.latency));
	lay_out(&d);
	connect_backend(&d);
	give_memory(&d);
	start_queue(&d);

	cpu = cpu_seconds();
	begin = moat_now_ns();
	work(&d);
	seconds = (double)(moat_now_ns() - begin) / MOAT_NS_PER_SEC;
	cpu = cpu_seconds() - cpu;

	check(moat_vu_client_get_vring_base(&d.client, 0, &base),
	      "GET_VRING_BASE");
	moat_vu_client_close(&d.client);
	print(&d, seconds, cpu);
	free(d.latency);
	return 0;
}
