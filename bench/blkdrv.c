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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/front.h"
#include "os/clock.h"

#define RAM_ADDR UINT64_C(0x40000000)
#define POOL_ADDR UINT64_C(0x7c000000)
#define BANK_SIZE (UINT64_C(16) << 20)
#define NUM 128u /* queue size: what QEMU gives a disk */
#define SEGS 3u	 /* of a request: header, data, status */
#define SECTOR 512u
#define PATTERN 0x5a /* what is written */

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

struct options {
	const char *socket;
	uint64_t count, depth, size, step;
	bool step_given, write, poll, rings_in_ram, buffers_in_ram;
};

struct driver {
	struct options opt;
	struct bench_front front;
	struct bench_bank ram, pool;
	struct bench_queue queue;
	uint8_t *slots; /* of the requests in flight */
	uint64_t slots_addr, slot_size;
	uint64_t disk;	 /* bytes */
	uint64_t offset; /* of the next request */
	uint64_t posted, done;
	uint64_t begun[NUM]; /* by slot, in ns */
	uint32_t *latency;   /* of each request, in ns */
};

/* Rings first, then the requests; both may be in the same bank. */
static void lay_out(struct driver *d)
{
	struct bench_bank *b = d->opt.buffers_in_ram ? &d->ram : &d->pool;
	uint64_t rings = bench_rings_size(NUM);

	bench_bank_make(&d->ram, "bench-ram", RAM_ADDR, BANK_SIZE);
	bench_bank_make(&d->pool, "bench-pool", POOL_ADDR, BANK_SIZE);
	d->slot_size = DATA + ((d->opt.size + 4095) & ~UINT64_C(4095));
	if (d->slot_size * d->opt.depth > BANK_SIZE - rings)
		bench_fail("depth * size does not fit 16 MiB", 0);
	d->slots = b->host + rings;
	d->slots_addr = b->addr + rings;
	/* Touched before time is taken. */
	memset(d->slots, PATTERN, d->slot_size * d->opt.depth);
}

static void connect_backend(struct driver *d)
{
	const struct bench_bank *banks[] = { &d->ram, &d->pool };
	struct moat_vu_config config = { .size = 8 };

	bench_connect(&d->front, d->opt.socket,
		      MOAT_BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK) |
			      MOAT_BIT(VHOST_USER_PROTOCOL_F_CONFIG),
		      MOAT_BIT(VIRTIO_F_VERSION_1) |
			      MOAT_BIT(VHOST_USER_F_PROTOCOL_FEATURES) |
			      MOAT_BIT(VIRTIO_F_INDIRECT_DESC) |
			      MOAT_BIT(VIRTIO_F_EVENT_IDX) |
			      MOAT_BIT(VIRTIO_F_ACCESS_PLATFORM),
		      d->opt.poll);
	bench_check(moat_vu_client_get_config(&d->front.client, &config),
		    "GET_CONFIG");
	memcpy(&d->disk, config.data, sizeof(d->disk));
	d->disk = moat_le64(d->disk) * SECTOR;
	if (d->disk <= d->opt.size)
		bench_fail("the disk is not larger than one request", 0);
	bench_give_memory(&d->front, banks, 2);
	bench_start_queue(&d->front, &d->queue, 0, NUM,
			  d->opt.rings_in_ram ? d->ram.host : d->pool.host);
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
	moat_drvq_add(&d->queue.q, segs, nread, SEGS - nread, slot,
		      d->queue.q.indirect ? p + TABLE : NULL, at + TABLE);
	d->begun[slot] = moat_now_ns();
	d->offset = (d->offset + d->opt.step) % (d->disk - d->opt.size);
	d->posted++;
}

/* Take what is finished, post as much anew; false if there was nothing. */
static bool turn(struct driver *d)
{
	uint32_t slot, len, n = 0;
	int ret;

	while ((ret = moat_drvq_get(&d->queue.q, &slot, &len)) > 0) {
		uint8_t status = d->slots[slot * d->slot_size + STATUS];

		if (status)
			bench_fail("a request failed", 0);
		d->latency[d->done++] =
			(uint32_t)(moat_now_ns() - d->begun[slot]);
		if (d->posted < d->opt.count)
			post(d, slot);
		n++;
	}
	if (ret < 0)
		bench_fail(moat_fault_text(d->queue.q.fault.code), 0);
	bench_publish(&d->queue);
	return n;
}

static void work(struct driver *d)
{
	uint32_t slot = 0;

	while (slot < d->opt.depth && d->posted < d->opt.count)
		post(d, slot++);
	bench_publish(&d->queue);
	while (d->done < d->opt.count) {
		if (!turn(d))
			bench_wait(&d->front, &d->queue, 1);
	}
}

/* ---- what came of it ---- */

static void print(struct driver *d, double seconds, double cpu)
{
	struct bench_latency l = bench_latency(d->latency, d->opt.count);

	printf("{\"requests\": %llu, \"seconds\": %.6f, \"cpu_seconds\": %.6f, "
	       "\"kicks\": %llu, \"sleeps\": %llu, \"latency_us\": "
	       "{\"mean\": %.2f, \"median\": %.2f, \"p99\": %.2f}}\n",
	       (unsigned long long)d->opt.count, seconds, cpu,
	       (unsigned long long)d->queue.kicks,
	       (unsigned long long)d->front.sleeps, l.mean, l.median, l.p99);
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

	argp_parse(&argp, argc, argv, 0, NULL, &d.opt);
	d.latency = calloc(d.opt.count, sizeof(*d.latency));
	if (!d.latency)
		bench_fail("latencies", -ENOMEM);
	/* Touched, too: calloc() gives pages that are not there yet. */
	memset(d.latency, 0xff, d.opt.count * sizeof(*d.latency));
	lay_out(&d);
	connect_backend(&d);

	cpu = bench_cpu_seconds();
	begin = moat_now_ns();
	work(&d);
	seconds = (double)(moat_now_ns() - begin) / MOAT_NS_PER_SEC;
	cpu = bench_cpu_seconds() - cpu;

	bench_disconnect(&d.front, 1);
	print(&d, seconds, cpu);
	free(d.latency);
	return 0;
}
