/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the drivers of `make bench` share: a vhost-user front-end whose memory
 * is in sealed memfds and whose queues are core's driver side.
 *
 * It works like a guest's driver: handles all that is finished, posts as much
 * anew, kicks if it is wanted and then sleeps until called, as EVENT_IDX has
 * it; or never sleeps (poll).
 *
 * Nothing here goes on after an error: the program ends with one line.
 */
#ifndef MOAT_BENCH_FRONT_H
#define MOAT_BENCH_FRONT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/drvq.h"
#include "os/log.h"
#include "vu/client.h"

/** struct bench_bank - a stretch of guest memory, one memfd */
struct bench_bank {
	uint64_t addr; /* guest address */
	uint64_t size; /* bytes */
	uint8_t *host;
	int fd;
};

struct bench_queue {
	struct moat_drvq q;
	struct moat_drvq_desc *descs;
	int kick_fd, call_fd;
	uint64_t kicks;
};

struct bench_front {
	struct moat_log log;
	struct moat_vu_client client;
	uint64_t features; /* negotiated */
	bool poll;
	int epoll_fd;
	unsigned int idle; /* looks in vain since something was found */
	uint64_t sleeps;
};

/** bench_fail() - one line, with @err's text unless it is 0; the end */
void bench_fail(const char *what, int err) __attribute__((noreturn));

/** bench_check() - bench_fail() if @ret is a negative errno */
void bench_check(int ret, const char *what);

/** bench_bank_make() - zeroed memory, sealed against growing and shrinking */
void bench_bank_make(struct bench_bank *b, const char *name, uint64_t addr,
		     uint64_t size);

/** bench_connect() - connects to @socket and negotiates */
void bench_connect(struct bench_front *f, const char *socket, uint64_t protocol,
		   uint64_t features, bool poll);

/** bench_give_memory() - SET_MEM_TABLE with @n banks, at most 2 */
void bench_give_memory(struct bench_front *f,
		       const struct bench_bank *const *banks, int n);

/** bench_rings_size() - bytes that the three parts of a ring take, in pages */
uint64_t bench_rings_size(uint32_t num);

/** bench_start_queue() - queue @index of @num entries; its rings at @rings */
void bench_start_queue(struct bench_front *f, struct bench_queue *q,
		       uint32_t index, uint16_t num, uint8_t *rings);

/** bench_publish() - shows the device what was added, with a kick if wanted */
void bench_publish(struct bench_queue *q);

/**
 * bench_wait() - until a queue has something, or may have
 *
 * To be called when none had.
 */
void bench_wait(struct bench_front *f, struct bench_queue *queues,
		unsigned int n);

/** bench_disconnect() - stops queues 0 to @n - 1 and closes the connection */
void bench_disconnect(struct bench_front *f, unsigned int n);

/** bench_cpu_seconds() - processor time of this process so far */
double bench_cpu_seconds(void);

/** struct bench_latency - in microseconds */
struct bench_latency {
	double mean, median, p99;
};

/** bench_latency() - of @n > 0 times in ns; sorts them */
struct bench_latency bench_latency(uint32_t *ns, uint64_t n);

#endif
