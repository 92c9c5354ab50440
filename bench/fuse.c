/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/fuse.h"

#define RAM_ADDR UINT64_C(0x40000000)
#define OUT_HEADER 0u
#define OUT_ARG 64u
#define OUT_NAME 512u
#define IN_HEADER 2048u
#define IN_RESULT 2112u
#define RESULT_MAX 1024u
#define TABLE FS_PAGE
#define TABLE_SIZE (3 * FS_PAGE) /* of FS_SEGS_MAX descriptors */
#define HEAD (TABLE + TABLE_SIZE)
#define FORGET_CELL 64u

/* As Linux 6.1 asks for, less what would change how requests look. */
#define INIT_FLAGS                                                       \
	(FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES |       \
	 FUSE_DONT_MASK | FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS |   \
	 FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | \
	 FUSE_MAX_PAGES | FUSE_INIT_EXT)

/* ---- requests ---- */

uint8_t *fs_data(const struct fs_slot *s)
{
	return s->mem + HEAD;
}

static void add_data(struct moat_seg *segs, uint32_t *n, uint64_t addr,
		     uint32_t len)
{
	/* A guest's pages are scattered, so it names each. */
	for (uint32_t at = 0; at < len; at += FS_PAGE)
		segs[(*n)++] = (struct moat_seg){
			.addr = addr + at,
			.len = len - at < FS_PAGE ? len - at : FS_PAGE,
		};
}

static void put_header(const struct fs *fs, struct fs_slot *s,
		       const struct fs_request *r)
{
	struct fuse_in_header h = {
		.len = (uint32_t)sizeof(h) + r->arg_len + r->data_out,
		.opcode = r->opcode,
		.unique = fs->requests * 2 + 2, /* odd ones are interrupts */
		.nodeid = r->node,
		.uid = getuid(),
		.gid = getgid(),
		.pid = 1,
	};

	if (r->name)
		h.len += (uint32_t)strlen(r->name) + 1;
	s->unique = h.unique;
	memcpy(s->mem + OUT_HEADER, &h, sizeof(h));
	memset(s->mem + IN_HEADER, 0xff, sizeof(struct fuse_out_header));
}

void fs_post(struct fs *fs, struct fs_slot *s, const struct fs_request *r)
{
	struct moat_seg segs[FS_SEGS_MAX];
	struct moat_drvq *q = &fs->queues[s->queue].q;
	uint32_t n = 0, nread;

	put_header(fs, s, r);
	segs[n++] = (struct moat_seg){ .addr = s->addr + OUT_HEADER,
				       .len = sizeof(struct fuse_in_header) };
	if (r->arg_len) {
		memcpy(s->mem + OUT_ARG, r->arg, r->arg_len);
		segs[n++] = (struct moat_seg){ .addr = s->addr + OUT_ARG,
					       .len = r->arg_len };
	}
	if (r->name) {
		uint32_t len = (uint32_t)strlen(r->name) + 1;

		memcpy(s->mem + OUT_NAME, r->name, len);
		segs[n++] = (struct moat_seg){ .addr = s->addr + OUT_NAME,
					       .len = len };
	}
	add_data(segs, &n, s->addr + HEAD, r->data_out);
	nread = n;
	segs[n++] = (struct moat_seg){ .addr = s->addr + IN_HEADER,
				       .len = sizeof(struct fuse_out_header) };
	if (r->result_len)
		segs[n++] = (struct moat_seg){ .addr = s->addr + IN_RESULT,
					       .len = r->result_len };
	add_data(segs, &n, s->addr + HEAD, r->data_in);
	s->data_in = r->data_in;
	/* As Linux does: a table wherever there may be one. */
	if (!q->indirect && !moat_drvq_room(q, n))
		bench_fail("no indirect descriptors, and the ring is full", 0);
	moat_drvq_add(q, segs, nread, n - nread, s->index,
		      q->indirect ? s->mem + TABLE : NULL, s->addr + TABLE);
	fs->requests++;
}

void fs_publish(struct fs *fs)
{
	for (uint32_t i = 1; i <= fs->nqueues; i++)
		bench_publish(&fs->queues[i]);
}

static void broken(const struct bench_queue *q)
{
	bench_fail(moat_fault_text(q->q.fault.code), 0);
}

struct fs_slot *fs_get(struct fs *fs, uint32_t queue, uint32_t *data_len)
{
	struct bench_queue *q = &fs->queues[queue];
	struct fuse_out_header h;
	struct fs_slot *s;
	uint32_t cookie, len, result;
	int ret = moat_drvq_get(&q->q, &cookie, &len);

	if (ret < 0)
		broken(q);
	if (!ret)
		return NULL;
	s = &fs->slots[cookie];
	memcpy(&h, s->mem + IN_HEADER, sizeof(h));
	if (h.unique != s->unique)
		bench_fail("an answer has not the number of its request", 0);
	if (h.error) {
		struct fuse_in_header in;
		char text[80];

		memcpy(&in, s->mem + OUT_HEADER, sizeof(in));
		snprintf(text, sizeof(text), "request %u of node %llu failed",
			 in.opcode, (unsigned long long)in.nodeid);
		bench_fail(text, h.error);
	}
	/* What is neither header nor data is the result's structure. */
	if (h.len < sizeof(h))
		bench_fail("an answer is shorter than its header", 0);
	result = h.len - (uint32_t)sizeof(h);
	*data_len = s->data_in ? result : 0;
	if (*data_len > s->data_in)
		bench_fail("an answer is longer than there was room for", 0);
	return s;
}

const void *fs_result(const struct fs_slot *s)
{
	return s->mem + IN_RESULT;
}

void fs_wait(struct fs *fs)
{
	bench_wait(&fs->front, fs->queues + 1, fs->nqueues);
}

uint32_t fs_call(struct fs *fs, const struct fs_request *r)
{
	struct fs_slot *s = &fs->slots[0];
	uint32_t len = 0;

	fs_post(fs, s, r);
	fs_publish(fs);
	while (!fs_get(fs, s->queue, &len))
		fs_wait(fs);
	return len;
}

/* ---- forgetting ---- */

static void reap_forgets(struct fs *fs)
{
	struct bench_queue *q = &fs->queues[0];
	uint32_t cookie, len;
	int ret;

	while ((ret = moat_drvq_get(&q->q, &cookie, &len)) > 0)
		fs->forget_free[fs->nforget_free++] = (uint16_t)cookie;
	if (ret < 0)
		broken(q);
}

void fs_forget(struct fs *fs, uint64_t node, uint64_t n)
{
	struct fuse_in_header h = {
		.len = sizeof(h) + sizeof(struct fuse_forget_in),
		.opcode = FUSE_FORGET,
		.nodeid = node,
	};
	struct fuse_forget_in arg = { .nlookup = n };
	struct moat_seg seg = { .len = h.len };
	uint16_t cell;

	reap_forgets(fs);
	while (!fs->nforget_free) {
		bench_wait(&fs->front, fs->queues, 1);
		reap_forgets(fs);
	}
	cell = fs->forget_free[--fs->nforget_free];
	memcpy(fs->forgets + cell * FORGET_CELL, &h, sizeof(h));
	memcpy(fs->forgets + cell * FORGET_CELL + sizeof(h), &arg, sizeof(arg));
	seg.addr = fs->forgets_addr + cell * FORGET_CELL;
	moat_drvq_add(&fs->queues[0].q, &seg, 1, 0, cell, NULL, 0);
	bench_publish(&fs->queues[0]);
}

void fs_forgotten(struct fs *fs)
{
	for (;;) {
		reap_forgets(fs);
		if (fs->nforget_free == FS_QUEUE_SIZE)
			return;
		bench_wait(&fs->front, fs->queues, 1);
	}
}

/* ---- single requests ---- */

struct fuse_entry_out fs_lookup(struct fs *fs, uint64_t parent,
				const char *name)
{
	struct fs_request r = {
		.opcode = FUSE_LOOKUP,
		.node = parent,
		.name = name,
		.result_len = sizeof(struct fuse_entry_out),
	};
	struct fuse_entry_out e;

	fs_call(fs, &r);
	memcpy(&e, fs_result(&fs->slots[0]), sizeof(e));
	return e;
}

uint64_t fs_open_file(struct fs *fs, uint32_t opcode, uint64_t node,
		      uint32_t flags)
{
	struct fuse_open_in arg = { .flags = flags };
	struct fs_request r = {
		.opcode = opcode,
		.node = node,
		.arg = &arg,
		.arg_len = sizeof(arg),
		.result_len = sizeof(struct fuse_open_out),
	};
	struct fuse_open_out out;

	fs_call(fs, &r);
	memcpy(&out, fs_result(&fs->slots[0]), sizeof(out));
	return out.fh;
}

struct fs_request fs_release(uint32_t opcode, uint64_t node,
			     struct fuse_release_in *arg, uint64_t fh)
{
	*arg = (struct fuse_release_in){ .fh = fh };
	return (struct fs_request){ .opcode = opcode,
				    .node = node,
				    .arg = arg,
				    .arg_len = sizeof(*arg) };
}

/* ---- beginning and end ---- */

static void say_init(struct fs *fs)
{
	struct fuse_init_in arg = {
		.major = FUSE_KERNEL_VERSION,
		.minor = FUSE_KERNEL_MINOR_VERSION,
		.max_readahead = 1u << 20,
		.flags = INIT_FLAGS,
	};
	struct fs_request r = {
		.opcode = FUSE_INIT,
		.arg = &arg,
		.arg_len = sizeof(arg),
		.result_len = sizeof(struct fuse_init_out),
	};
	struct fuse_init_out out;

	fs_call(fs, &r);
	memcpy(&out, fs_result(&fs->slots[0]), sizeof(out));
	if (out.major != FUSE_KERNEL_VERSION || out.minor < 31)
		bench_fail("the device's FUSE is older than 7.31", 0);
	fs->init_flags = out.flags;
	fs->max_write = out.max_write;
}

static void check_queues(struct fs *fs)
{
	struct moat_vu_config config = { .size = 40 };
	uint32_t has;

	/* The old virtiofsd has no configuration; it has one queue. */
	if (!moat_vu_client_has(&fs->front.client,
				VHOST_USER_PROTOCOL_F_CONFIG))
		return;
	bench_check(moat_vu_client_get_config(&fs->front.client, &config),
		    "GET_CONFIG");
	memcpy(&has, config.data + 36, sizeof(has));
	if (moat_le32(has) < fs->nqueues)
		bench_fail("the device has not as many request queues", 0);
}

/* Rings, the cells of those to forget, then the slots. */
static void lay_out(struct fs *fs, uint32_t data)
{
	uint64_t rings = bench_rings_size(FS_QUEUE_SIZE) * (fs->nqueues + 1);
	uint64_t cells = FS_QUEUE_SIZE * FORGET_CELL;

	fs->slot_size = HEAD + ((data + FS_PAGE - 1) & ~(FS_PAGE - 1));
	bench_bank_make(&fs->ram, "bench-ram", RAM_ADDR,
			rings + cells + fs->slot_size * fs->nslots);
	fs->forgets = fs->ram.host + rings;
	fs->forgets_addr = RAM_ADDR + rings;
	for (uint32_t i = 0; i < fs->nslots; i++) {
		uint64_t at = rings + cells + i * fs->slot_size;

		fs->slots[i] = (struct fs_slot){
			.mem = fs->ram.host + at,
			.addr = RAM_ADDR + at,
			.index = i,
			.queue = 1 + i % fs->nqueues,
		};
	}
	for (uint32_t i = 0; i < FS_QUEUE_SIZE; i++)
		fs->forget_free[fs->nforget_free++] = (uint16_t)i;
	/* Touched before time is taken. */
	memset(fs->ram.host, 0, fs->ram.size);
}

void fs_open(struct fs *fs, const char *socket, uint32_t nqueues,
	     uint32_t depth, uint32_t data, bool poll)
{
	const struct bench_bank *bank = &fs->ram;
	uint64_t rings = bench_rings_size(FS_QUEUE_SIZE);

	fs->nqueues = nqueues;
	fs->nslots = depth;
	fs->queues = calloc(nqueues + 1, sizeof(*fs->queues));
	fs->slots = calloc(depth, sizeof(*fs->slots));
	fs->forget_free = calloc(FS_QUEUE_SIZE, sizeof(*fs->forget_free));
	if (!fs->queues || !fs->slots || !fs->forget_free)
		bench_fail("queues and slots", -ENOMEM);
	lay_out(fs, data);
	bench_connect(&fs->front, socket,
		      MOAT_BIT(VHOST_USER_PROTOCOL_F_MQ) |
			      MOAT_BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK) |
			      MOAT_BIT(VHOST_USER_PROTOCOL_F_CONFIG),
		      MOAT_BIT(VIRTIO_F_VERSION_1) |
			      MOAT_BIT(VHOST_USER_F_PROTOCOL_FEATURES) |
			      MOAT_BIT(VIRTIO_F_INDIRECT_DESC) |
			      MOAT_BIT(VIRTIO_F_EVENT_IDX),
		      poll);
	check_queues(fs);
	bench_give_memory(&fs->front, &bank, 1);
	for (uint32_t i = 0; i <= nqueues; i++)
		bench_start_queue(&fs->front, &fs->queues[i], i, FS_QUEUE_SIZE,
				  fs->ram.host + i * rings);
	say_init(fs);
}

void fs_close(struct fs *fs)
{
	bench_disconnect(&fs->front, fs->nqueues + 1);
	for (uint32_t i = 0; i <= fs->nqueues; i++)
		free(fs->queues[i].descs);
	free(fs->queues);
	free(fs->slots);
	free(fs->forget_free);
}
