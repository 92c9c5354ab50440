/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libmoat, device side: a vhost-user backend in a page of code.
 *
 *     VMM --socket--> control thread: config space, features, start and stop
 *     guest --ring--> worker thread: ops->request() ... moat_request_done()
 *
 * A program fills in struct moat_device_ops and struct moat_device_config and
 * calls moat_device_serve(), which listens, sandboxes the process, serves one
 * VMM after the other and returns the program's exit status. examples/ has a
 * whole backend.
 *
 * Each queue belongs to one worker thread for as long as the program runs: all
 * that happens to its requests happens there, so a device needs no locks for
 * what it keeps for each queue or worker. Guest memory is hostile: it changes
 * while it is read. Copy what you interpret (moat_iov_read()), check the copy,
 * and look at nothing twice.
 */
#ifndef MOAT_DEVICE_H
#define MOAT_DEVICE_H

#include <argp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

/** struct moat_device - the harness of a device that is being served */
struct moat_device;

/** struct moat_log - where its log lines go */
struct moat_log;

/**
 * struct moat_request - one request of the driver
 * @data: ops->request_size bytes of the device's own; what an earlier request
 *	left there, zero at first
 * @readable: pieces of guest memory that the driver wrote, in its order; the
 *	array (not the memory) is private and may be changed
 * @writable: pieces that the device may write
 * @nreadable: pieces, none of them empty
 * @nwritable: pieces, none of them empty
 * @read_len: bytes of all readable pieces
 * @write_len: bytes of all writable pieces
 * @queue: number of the queue
 * @head: private
 * @owner: private
 */
struct moat_request {
	void *data;
	struct iovec *readable;
	struct iovec *writable;
	uint32_t nreadable;
	uint32_t nwritable;
	uint64_t read_len;
	uint64_t write_len;
	uint16_t queue;
	uint16_t head;
	void *owner;
};

/**
 * moat_request_done() - give a request back to the driver
 * @req: not to be used from then on
 * @written: bytes written to the writable pieces, from the first byte on
 *
 * On the worker thread of the request's queue only. The driver is notified
 * once for a batch, when the worker has nothing more at hand.
 */
void moat_request_done(struct moat_request *req, uint32_t written);

/**
 * moat_request_broken() - the driver broke the device's rules; give up
 * @why: half a sentence for the log, and what to do about it
 *
 * For a request that can not be answered at all. Its queue is served no more
 * until the driver resets the device; other queues go on.
 */
void moat_request_broken(struct moat_request *req, const char *why);

/**
 * moat_iov_read() - copy bytes out of pieces of guest memory, once
 * @skip: bytes to leave out at the beginning
 *
 * Return: bytes copied, less than @len where the pieces end.
 */
size_t moat_iov_read(const struct iovec *iov, uint32_t n, uint64_t skip,
		     void *dst, size_t len);

/** moat_iov_write() - copy bytes to pieces of guest memory; as moat_iov_read()
 */
size_t moat_iov_write(const struct iovec *iov, uint32_t n, uint64_t skip,
		      const void *src, size_t len);

/** moat_iov_zero() - write zeroes to @len bytes; as moat_iov_read() */
size_t moat_iov_zero(const struct iovec *iov, uint32_t n, uint64_t skip,
		     size_t len);

/**
 * moat_iov_cut() - leave out the first @len bytes of an array of pieces
 *
 * Changes the first piece that stays.
 *
 * Return: the pieces that are left, at *@iov.
 */
uint32_t moat_iov_cut(struct iovec **iov, uint32_t n, uint64_t len);

/**
 * struct moat_device_ops - what a device implements
 * @type: for --print-capabilities: "block", "net", ...
 * @request_size: bytes of @data that each request has
 * @features: device-specific feature bits that are offered; the harness adds
 *	those of the ring and of the transport
 * @accepted: the driver's choice, before queues start; control thread
 * @get_config: fill in @len bytes of config space from @offset on; control
 *	thread. What lies beyond its end reads as zeroes
 * @set_config: the driver writes config space; 0 or a negative errno, with
 *	which the message is refused; may be NULL
 * @worker_start: a worker thread begins, on it; sets its context, and an fd
 *	that is readable when @worker_poll has something to do, or -1; returns
 *	0 or a negative errno, logged; may be NULL
 * @worker_poll: submit what was begun and complete what is done, without
 *	waiting; true if anything was completed. Called often; may be NULL
 * @worker_memory: guest memory is these @n pieces from now on, and no other:
 *	nothing of earlier ones may be kept when this returns, as they are
 *	unmapped then. On the worker thread, none of its requests outstanding;
 *	@iov ends with the call; may be NULL
 * @worker_stop: the worker thread ends, with no requests outstanding; may be
 *	NULL
 * @request: a request has come. It is done now or later, from @worker_poll
 * @resumed: a queue goes on where a backend before this one was cut off (by its
 *	in-flight record), and the driver knows nothing of that: what it told
 *	that one in config space is not repeated. Before the first request; on a
 *	worker thread, while the control thread waits; may be NULL
 * @reset: the driver forgets all it agreed with the device, or another comes;
 *	control thread; queues are stopped; may be NULL
 * @left: the front-end has gone, and the guest with it, where a reset may be a
 *	pause (QEMU resets a device when it stops the guest for a while);
 *	control thread; queues are stopped; may be NULL
 * @reload: SIGHUP came; control thread; may be NULL
 * @attached: the harness of the device, once, before workers start, for those
 *	that need it (moat_shmem_map()); may be NULL
 * @entered: for a device that serves a directory (@shared_dir of the config):
 *	the process has only that directory left, and runs no other thread yet.
 *	@root_fd is the directory, O_PATH; @proc_fd is /proc/self/fd of this
 *	process, O_PATH, so that "17" beneath it names descriptor 17. Both are
 *	the device's from here on. Returns 0 or a negative errno, logged
 * @hurry: the control thread waits for queues to have no request outstanding:
 *	those that may wait without bound have to be given up soon. Called again
 *	and again until they are done, only if it takes a while; control thread;
 *	may be NULL
 *
 * @dev is the pointer from struct moat_device_config.
 */
struct moat_device_ops {
	const char *type;
	size_t request_size;
	uint64_t (*features)(void *dev);
	void (*accepted)(void *dev, uint64_t features);
	void (*get_config)(void *dev, uint32_t offset, void *buf, uint32_t len);
	int (*set_config)(void *dev, uint32_t offset, const void *buf,
			  uint32_t len);
	int (*worker_start)(void *dev, void **worker, int *fd);
	bool (*worker_poll)(void *dev, void *worker);
	void (*worker_memory)(void *dev, void *worker, const struct iovec *iov,
			      uint32_t n);
	void (*worker_stop)(void *dev, void *worker);
	void (*request)(void *dev, void *worker, struct moat_request *req);
	void (*resumed)(void *dev);
	void (*reset)(void *dev);
	void (*left)(void *dev);
	void (*reload)(void *dev, struct moat_device *device);
	void (*attached)(void *dev, struct moat_device *device);
	int (*entered)(void *dev, int root_fd, int proc_fd);
	void (*hurry)(void *dev);
};

/* Shared memory regions that a device can have: shmid 0 to 7. */
#define MOAT_SHMEM_REGIONS 8

/** enum moat_sandbox_level - how much the process gives up */
enum moat_sandbox_level {
	MOAT_SANDBOX_NONE,
	MOAT_SANDBOX_SECCOMP, /* capabilities, privileges and system calls */
	MOAT_SANDBOX_STRICT,  /* and namespaces, Landlock, limits */
};

/**
 * struct moat_device_config - one device, set up by the program
 *
 * A device that serves a directory has ops->entered and sets @shared_dir: in
 * the strict sandbox that directory is the root of its process, and Landlock
 * keeps it there. It runs with umask 0 and, as root, without supplementary
 * groups.
 */
struct moat_device_config {
	const struct moat_device_ops *ops;
	void *dev;		     /* handed to each op */
	const char *name;	     /* of the program, for log lines */
	const char *const *syscalls; /* that the device needs; NULL ends it */
	uint32_t max_queues;	     /* how many --num-queues may ask for */
	/* bytes of the shared memory region with that shmid, whole pages; 0:
	 * there is none */
	uint64_t shmem[MOAT_SHMEM_REGIONS];
	const char *shared_dir; /* NULL: it opens no files in the sandbox */
	uint64_t capabilities;	/* 1 << CAP_...: that it keeps if it has them */
	uint32_t files;		/* descriptors that it needs */
	uint64_t heap;		/* bytes that it allocates */
	bool no_landlock;	/* it opens files by their handles */
	/* each queue's requests are done in the order in which they came:
	 * VIRTIO_F_IN_ORDER is offered */
	bool in_order;
	/* set by moat_device_argp(), from the command line */
	const char *socket_path;
	int fd; /* a connection, or -1 */
	uint32_t num_queues;
	uint32_t threads; /* 0: as many as queues */
	uint32_t poll_us;
	bool once;
	bool ring_reset; /* VIRTIO_F_RING_RESET is offered */
	bool print_capabilities;
	enum moat_sandbox_level sandbox;
	struct moat_log *log; /* for moat_device_log() */
};

/**
 * moat_device_defaults() - values of all that the command line may change
 * @config: ops, dev, name and the like are set; called first of all
 *
 * Return: 0 or a negative errno.
 */
int moat_device_defaults(struct moat_device_config *config);

/**
 * moat_device_argp() - parser of the options that each backend has
 *
 * For struct argp's children; its input is the struct moat_device_config.
 * --socket-path, --fd, --num-queues, --threads, --poll-us, --once, --sandbox,
 * --ring-reset, --log-level, --print-capabilities.
 */
const struct argp *moat_device_argp(void);

/**
 * moat_device_number() - the number that an option is given; for its parser
 * @arg: as it stands on the command line
 * @name: of the option
 * @size: it may be hexadecimal, and K, M or G may stand behind it
 * @min: the least that is allowed
 * @max: the most
 *
 * Return: it; a bad one ends the program by argp_error().
 */
uint64_t moat_device_number(const char *arg, const char *name, bool size,
			    uint64_t min, uint64_t max,
			    struct argp_state *state);

/**
 * moat_device_word() - which of @names an option is given; NULL ends them
 *
 * Return: its index; a bad word ends the program by argp_error().
 */
int moat_device_word(const char *arg, const char *name,
		     const char *const *names, struct argp_state *state);

/**
 * moat_device_serve() - be a backend until told to end
 *
 * What the device opens has to be open before: in the sandbox nothing can be
 * opened any more. Starts threads; with the strict sandbox the device runs in
 * a child process.
 *
 * Return: exit status: 0, or 1 after a failure, which was logged.
 */
int moat_device_serve(const struct moat_device_config *config);

/** moat_device_config_changed() - tell the driver; control thread only */
void moat_device_config_changed(struct moat_device *device);

/**
 * moat_shmem_usable() - can anything be mapped now?
 *
 * The front-end has to know SHMEM_MAP, and a queue to run. From any thread.
 */
bool moat_shmem_usable(const struct moat_device *device);

/**
 * moat_shmem_map() - show the guest part of a file in a shared memory region
 * @shmid: of the region (virtio 1.4, 2.10)
 * @offset: in the region, bytes; a whole number of pages, as are @len and
 *	@fd_offset
 * @fd: stays the caller's, who may close it afterwards
 * @writable: the guest may write; @fd has to be open for that
 *
 * From any thread but the control thread. Asks the front-end and waits for its
 * answer, a few seconds at most. A front-end that stops the queues waits for us
 * meanwhile, and is not made to: then the wait ends with -EINTR. What was under
 * way then, or when time ran out, is undone as soon as the front-end answers.
 *
 * Once the driver's queues were stopped nobody can tell what is still mapped:
 * a reset unmaps all, a pause of the machine nothing, and a front-end need not
 * say which it was. Such mappings are in nobody's way here and can be unmapped,
 * which then succeeds in either case; the front-end has the last word on what
 * is mapped over them.
 *
 * Return: 0; -ENOTCONN: the front-end does not know SHMEM_MAP, or no queue
 *runs; -EINVAL: no such region, not whole pages of it, no fd; -EEXIST:
 *something is mapped there; -ENOSPC: too many mappings; -EIO: the front-end
 *refused; -ETIMEDOUT; -EINTR; -ENOMEM.
 */
int moat_shmem_map(struct moat_device *device, uint8_t shmid, uint64_t offset,
		   uint64_t len, int fd, uint64_t fd_offset, bool writable);

/**
 * moat_shmem_unmap() - take a mapping away again
 * @offset: and @len: as it was mapped; parts can not be unmapped
 *
 * Return: as moat_shmem_map(); -ENOENT: there is no such mapping.
 */
int moat_shmem_unmap(struct moat_device *device, uint8_t shmid, uint64_t offset,
		     uint64_t len);

/**
 * moat_shmem_unmap_former() - unmap what a process before this one has left
 * @offset: of a place that has no mapping of this process; as is @len
 *
 * Behind `moat guard --restart` a device can take the place of one that has
 * died. What that one had mapped stays, for the driver may be using it, and
 * nobody knows of it but the guard: all that overlaps this place goes, as
 * wholes. To map over it has the same effect. Not for other front-ends, which
 * refuse it.
 *
 * Return: 0, also if nothing was there; else as moat_shmem_map().
 */
int moat_shmem_unmap_former(struct moat_device *device, uint8_t shmid,
			    uint64_t offset, uint64_t len);

/** enum moat_device_log_level - see moat_device_log() */
enum moat_device_log_level {
	MOAT_DEVICE_ERROR,
	MOAT_DEVICE_WARNING,
	MOAT_DEVICE_INFO,
};

/**
 * moat_device_log() - one line to standard error, from any thread
 *
 * Lines are limited in number, as peers can cause them.
 */
void moat_device_log(struct moat_log *log, enum moat_device_log_level level,
		     const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#ifdef __cplusplus
}
#endif

#endif
