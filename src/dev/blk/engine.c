/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Carries steps out.
 *
 * On a disk, by io_uring: what a batch of requests needs is one system call. On
 * a file in memory (tmpfs) at once: the kernel would hand such a step to a
 * thread of its own, which costs more than the copy that it is.
 *
 * Unless it is a large one. Reading from memory is copying, in either case here
 * and now: so while a driver has large reads as fast as they are done, a thread
 * of the kernel's is given one whenever it has none. Writes to a file wait for
 * each other. Where no processor is idle that thread takes one from us, or from
 * the driver: it is slow then, and the next one is tried later, and later.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "dev/blk/blk.h"
#include "dev/blk/buffers.h"

#define ENTRIES 256u
#define SHARED_BYTES 65536u /* that a thread is worth being woken for */
#define BACKLOG 8u /* done in one turn: the driver does not wait for us */
#define SLOW 3u	   /* done here in the time of one done there */
#define PAUSE_MIN 16u
#define PAUSE_MAX 4096u

#define COPY_BYTES (256u << 10) /* at a time; kept by each worker, if used */

enum { BUFFERED, DIRECT }; /* registered files */

struct engine {
	struct blk_disk *disk;
	struct io_uring ring;
	bool has_ring;
	uint8_t *copy;		     /* COPY_BYTES that O_DIRECT takes */
	struct blk_buffers *buffers; /* NULL: none are registered */
	struct blk_req *shared;	     /* that another thread has */
	uint32_t large;		     /* reads since the last poll ... */
	uint32_t beside;	     /* ... since the shared one */
	uint32_t pause, longer;	     /* reads until one is shared again */
	uint32_t unsubmitted;
	struct blk_req *waiting, **last; /* for room in the ring */
};

/* What one system call takes; the rest is another step. */
static unsigned int pieces(const struct blk_req *r)
{
	return r->niov < IOV_MAX ? r->niov : IOV_MAX;
}

/* ---- at once ---- */

static int now(const struct blk_disk *d, const struct blk_req *r)
{
	int fd = r->direct ? d->direct_fd : d->fd;
	off_t at = (off_t)r->offset, len = (off_t)r->len;
	ssize_t n = -1;

	if (d->null)
		return r->step == BLK_READ || r->step == BLK_WRITE
			       ? (int)(r->len < INT_MAX ? r->len : INT_MAX)
			       : 0;
	switch (r->step) {
	case BLK_READ:
		n = preadv(fd, r->iov, (int)pieces(r), at);
		break;
	case BLK_WRITE:
		n = pwritev(fd, r->iov, (int)pieces(r), at);
		break;
	case BLK_SYNC:
		n = fdatasync(fd);
		break;
	case BLK_PUNCH:
		n = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      at, len);
		break;
	case BLK_ZERO:
		n = fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
			      at, len);
		break;
	}
	return n < 0 ? -errno : (int)n;
}

/* Its memory is not aligned as O_DIRECT needs it; of drivers that is rare. */
static int copy_out(struct engine *e, const struct blk_req *r)
{
	struct iovec copy = { e->copy, COPY_BYTES };
	ssize_t n;

	copy.iov_len = moat_iov_read(r->iov, r->niov, 0, e->copy,
				     r->len < COPY_BYTES ? (size_t)r->len
							 : COPY_BYTES);
	n = pwritev(e->disk->direct_fd, &copy, 1, (off_t)r->offset);
	return n < 0 ? -errno : (int)n;
}

/* ---- by io_uring ---- */

/* A read or write; of memory that is registered, if it is in one piece. */
static void prepare_data(struct engine *e, struct io_uring_sqe *sqe,
			 struct blk_req *r, int fd)
{
	int slot = -1;

	if (e->buffers && r->niov == 1)
		slot = blk_buffers_find(e->buffers, r->iov);
	if (slot >= 0 && r->step == BLK_READ)
		io_uring_prep_read_fixed(sqe, fd, r->iov->iov_base,
					 (unsigned int)r->len, r->offset, slot);
	else if (slot >= 0)
		io_uring_prep_write_fixed(sqe, fd, r->iov->iov_base,
					  (unsigned int)r->len, r->offset,
					  slot);
	else if (r->step == BLK_READ)
		io_uring_prep_readv(sqe, fd, r->iov, pieces(r), r->offset);
	else
		io_uring_prep_writev(sqe, fd, r->iov, pieces(r), r->offset);
}

static void prepare(struct engine *e, struct io_uring_sqe *sqe,
		    struct blk_req *r)
{
	int fd = r->direct ? DIRECT : BUFFERED;

	switch (r->step) {
	case BLK_READ:
	case BLK_WRITE:
		prepare_data(e, sqe, r, fd);
		break;
	case BLK_SYNC:
		io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
		break;
	case BLK_PUNCH:
		io_uring_prep_fallocate(
			sqe, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			(off_t)r->offset, (off_t)r->len);
		break;
	case BLK_ZERO:
		io_uring_prep_fallocate(
			sqe, fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
			(off_t)r->offset, (off_t)r->len);
		break;
	}
	io_uring_sqe_set_flags(sqe, r == e->shared
					    ? IOSQE_FIXED_FILE | IOSQE_ASYNC
					    : IOSQE_FIXED_FILE);
	io_uring_sqe_set_data(sqe, r);
}

static bool queue(struct engine *e, struct blk_req *r)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&e->ring);

	if (!sqe)
		return false;
	prepare(e, sqe, r);
	e->unsubmitted++;
	return true;
}

static void submit(struct engine *e)
{
	while (e->waiting && queue(e, e->waiting)) {
		e->waiting = e->waiting->next;
		if (!e->waiting)
			e->last = &e->waiting;
	}
	/* What the kernel does not take now (EAGAIN, EBUSY) goes later. */
	if (e->unsubmitted) {
		int n = io_uring_submit(&e->ring);

		if (n > 0)
			e->unsubmitted -= (uint32_t)n;
	}
}

/* Did it help? */
static void shared_is_done(struct engine *e)
{
	e->shared = NULL;
	if (e->beside <= SLOW) {
		e->longer = 0;
		return;
	}
	e->longer = e->longer ? e->longer * 2 : PAUSE_MIN;
	if (e->longer > PAUSE_MAX)
		e->longer = PAUSE_MAX;
	e->pause = e->longer;
}

static bool may_share(const struct engine *e, const struct blk_req *r)
{
	return r->len >= SHARED_BYTES && r->step == BLK_READ && !r->direct &&
	       e->has_ring &&
	       !__atomic_load_n(&e->disk->in_order, __ATOMIC_RELAXED);
}

static void share(struct engine *e, struct blk_req *r)
{
	if (!may_share(e, r))
		return;
	if (e->shared) {
		e->beside++;
	} else if (e->pause) {
		e->pause--;
	} else if (e->large++ >= BACKLOG) {
		e->beside = 0;
		e->shared = r;
	}
}

static void start(struct engine *e, struct blk_req *r)
{
	share(e, r);
	while (r->copied)
		if (!blk_result(e->disk, r, copy_out(e, r)))
			return;
	if (e->disk->in_memory && r != e->shared) {
		while (blk_result(e->disk, r, now(e->disk, r)))
			;
		return;
	}
	if (e->waiting || !queue(e, r)) {
		r->next = NULL;
		*e->last = r;
		e->last = &r->next;
	}
	/* Whom it is shared with is to begin now. */
	if (e->disk->in_memory)
		submit(e);
}

/* All that is done. */
static bool reap(struct engine *e)
{
	struct io_uring_cqe *cqe;
	bool any = false;

	while (!io_uring_peek_cqe(&e->ring, &cqe)) {
		struct blk_req *r = io_uring_cqe_get_data(cqe);
		int res = cqe->res;

		io_uring_cqe_seen(&e->ring, cqe);
		if (r == e->shared)
			shared_is_done(e);
		if (blk_result(e->disk, r, res))
			start(e, r);
		any = true;
	}
	return any;
}

void blk_request(void *dev, void *worker, struct moat_request *req)
{
	struct engine *e = worker;

	if (!blk_plan(dev, req))
		return;
	/* A driver that keeps up has more before we are polled. */
	if (e->shared && may_share(e, req->data)) {
		submit(e);
		reap(e);
	}
	start(e, req->data);
}

bool blk_worker_poll(void *dev, void *worker)
{
	struct engine *e = worker;
	bool any;

	(void)dev;
	e->large = 0;
	if (!e->has_ring || (e->disk->in_memory && !e->shared))
		return false;
	submit(e);
	any = reap(e);
	/* Never asleep with work that the kernel has not seen. */
	return any || e->unsubmitted || e->waiting;
}

/* Debian 12's liburing declares functions for these two and exports none. */
static int ring_register(struct io_uring *ring, unsigned int what, void *arg,
			 unsigned int n)
{
	return syscall(SYS_io_uring_register, ring->ring_fd, what, arg, n)
		       ? -errno
		       : 0;
}

/* Only what is used: io_uring passes by the system call filter. */
static int restrict_ring(struct engine *e)
{
	static const uint8_t ops[] = {
		IORING_OP_READV,     IORING_OP_WRITEV,	   IORING_OP_FSYNC,
		IORING_OP_FALLOCATE, IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED
	};
	/* The last two, and filling the table, only where there is one. */
	unsigned int n = e->buffers ? sizeof(ops) : sizeof(ops) - 2;
	struct io_uring_restriction r[sizeof(ops) + 3];

	memset(r, 0, sizeof(r));
	for (unsigned int i = 0; i < n; i++) {
		r[i].opcode = IORING_RESTRICTION_SQE_OP;
		r[i].sqe_op = ops[i];
	}
	r[n].opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
	r[n++].sqe_flags = IOSQE_FIXED_FILE;
	r[n].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
	r[n++].sqe_flags = IOSQE_ASYNC;
	if (e->buffers) {
		r[n].opcode = IORING_RESTRICTION_REGISTER_OP;
		r[n++].register_op = IORING_REGISTER_BUFFERS_UPDATE;
	}
	return ring_register(&e->ring, IORING_REGISTER_RESTRICTIONS, r, n);
}

/* Without them it works as well: said, and gone on. */
static void open_buffers(struct engine *e)
{
	int ret = -ENOMEM;

	if (!e->disk->register_buffers)
		return;
	e->buffers = malloc(sizeof(*e->buffers));
	if (e->buffers)
		ret = blk_buffers_open(e->buffers, &e->ring);
	if (!ret)
		return;
	moat_device_log(e->disk->log, MOAT_DEVICE_WARNING,
			"--registered-buffers: this kernel has none that can "
			"change: %s; goes on without",
			strerror(-ret));
	free(e->buffers);
	e->buffers = NULL;
}

static int open_ring(struct engine *e)
{
	struct blk_disk *d = e->disk;
	int files[2] = { d->fd, d->direct_fd };
	unsigned int flags = IORING_SETUP_R_DISABLED | IORING_SETUP_CLAMP;
	/* The kernel may be older than these (5.19, 6.0). */
	unsigned int n = d->in_memory ? 1 : ENTRIES;
	int ret = io_uring_queue_init(n, &e->ring,
				      flags | IORING_SETUP_COOP_TASKRUN |
					      IORING_SETUP_TASKRUN_FLAG |
					      IORING_SETUP_SINGLE_ISSUER);

	if (ret == -EINVAL)
		ret = io_uring_queue_init(n, &e->ring, flags);
	if (ret)
		return ret;
	ret = io_uring_register_files(&e->ring, files,
				      d->direct_fd >= 0 ? 2 : 1);
	if (!ret)
		open_buffers(e);
	if (!ret)
		ret = restrict_ring(e);
	if (!ret)
		ret = ring_register(&e->ring, IORING_REGISTER_ENABLE_RINGS,
				    NULL, 0);
	if (ret)
		io_uring_queue_exit(&e->ring);
	return ret;
}

void blk_worker_memory(void *dev, void *worker, const struct iovec *iov,
		       uint32_t n)
{
	struct engine *e = worker;
	struct blk_disk *d = dev;
	uint64_t bytes = 0;
	int ret;

	if (!e->buffers)
		return;
	ret = blk_buffers_set(e->buffers, iov, n, &bytes);
	if (!ret && n)
		moat_device_log(d->log, MOAT_DEVICE_INFO,
				"%" PRIu64 " bytes of guest memory are pinned "
				"(--registered-buffers=on)",
				bytes);
	if (ret &&
	    !__atomic_exchange_n(&d->said_unpinned, true, __ATOMIC_RELAXED))
		moat_device_log(
			d->log, MOAT_DEVICE_WARNING,
			"--registered-buffers: guest memory can not be pinned: "
			"%s (%" PRIu64 " bytes are); requests go on without%s",
			strerror(-ret), bytes,
			ret == -ENOMEM ? "; raise the limit on locked memory "
					 "(ulimit -l, LimitMEMLOCK=), for each "
					 "thread as much as the guest has"
				       : "");
}

int blk_worker_start(void *dev, void **worker, int *fd)
{
	struct engine *e = calloc(1, sizeof(*e));
	const struct blk_disk *d = dev;
	size_t align = d->mem_align > 4096 ? d->mem_align : 4096;
	int ret = 0;

	if (!e)
		return -ENOMEM;
	e->disk = dev;
	e->last = &e->waiting;
	if (d->direct_fd >= 0 &&
	    posix_memalign((void **)&e->copy, align, COPY_BYTES)) {
		free(e);
		return -ENOMEM;
	}
	if (!d->sync)
		ret = open_ring(e);
	e->has_ring = !d->sync && !ret;
	/* Without one, all is done here. */
	if (ret && !d->in_memory) {
		moat_device_log(d->log, MOAT_DEVICE_ERROR,
				"no io_uring here: %s; --engine=sync does "
				"without",
				strerror(-ret));
		free(e->buffers);
		free(e->copy);
		free(e);
		return ret;
	}
	*worker = e;
	*fd = e->has_ring ? e->ring.ring_fd : -1;
	return 0;
}

void blk_worker_stop(void *dev, void *worker)
{
	struct engine *e = worker;

	(void)dev;
	if (e->has_ring)
		io_uring_queue_exit(&e->ring);
	free(e->buffers);
	free(e->copy);
	free(e);
}
