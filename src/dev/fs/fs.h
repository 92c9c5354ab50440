/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moat-fs: a directory of the host for a virtual machine (virtio 1.4, 5.11).
 *
 *     queue --request--> dispatch --handler--> kernel, beneath the root
 *       ^                   |  ^
 *       '----- reply -------'  '-- defer: a thread, for what may take long
 *
 *     table     ids that the guest holds: looked up without a lock, and an old
 *               one is never taken for a new one
 *     node      files the guest knows, by node id; handle: files it has open
 *     request   one FUSE message: its parts copied once, its answer
 *     dispatch  which handler, what it needs; what it returns becomes the reply
 *     session   INIT: what both sides agree on
 *     name      from names to nodes: lookup, create, link, rename, remove
 *     attr      attributes; file: open files; data: their bytes; dir: readdir
 *     xattr     extended attributes; lock: locks
 *     dax       files in the window; window, tail, syncer: see dax.h
 *     notify    what others change, told to the guest; watch: inotify; notice:
 *               what waits to be told
 *     ids       whose rights a request has: users, groups, their translation
 *     defer     threads for what blocks
 *
 * A file is named by a descriptor that was opened with O_PATH, one for each
 * node, and by single names below such a descriptor: no path is ever walked, so
 * there is none that could lead out. What a node is (its type) never changes,
 * and only regular files and directories are opened for more than O_PATH.
 *
 * A thread that carries out requests has a struct fs_thread: the queues' own
 * workers, and those of defer. Its working directory is /proc/self/fd, so that
 * "17" names descriptor 17 where a system call wants a path.
 */
#ifndef MOAT_DEV_FS_H
#define MOAT_DEV_FS_H

#include <moat/device.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "dev/fs/defer.h"
#include "dev/fs/proto.h"
#include "dev/fs/table.h"

#define FS_TAG_MAX 36u
#define FS_QUEUES_MAX 64u
#define FS_HEADER ((uint32_t)sizeof(struct fuse_in_header))
#define FS_REPLY ((uint32_t)sizeof(struct fuse_out_header))
/* The largest arguments beside data: an extended attribute and its name. */
#define FS_ARGS_MAX (65536u + 4096u)
#define FS_EXT_MAX 8192u /* bytes of extensions behind them */
#define FS_IOV 1024u	 /* IOV_MAX: pieces of one system call */
#define FS_SAVED 96u	 /* the largest structure of what can be deferred */
/* Bytes of one read or write, in the largest. */
#define FS_DATA_MAX (1u << 20)

enum fs_cache { FS_CACHE_AUTO, FS_CACHE_ALWAYS, FS_CACHE_NEVER, FS_CACHE_META };

enum fs_handles { FS_HANDLES_NEVER, FS_HANDLES_PREFER, FS_HANDLES_MANDATORY };

/** struct fs_id_map - one rule of --translate-uid or --translate-gid */
struct fs_id_map {
	enum {
		FS_ID_GUEST,	    /* guest to host */
		FS_ID_HOST,	    /* host to guest */
		FS_ID_BOTH,	    /* "map": both */
		FS_ID_SQUASH_GUEST, /* all of a guest range to one of the host
				     */
		FS_ID_SQUASH_HOST,  /* the other way */
		FS_ID_FORBID_GUEST, /* these may not make anything */
	} kind;
	uint32_t from, to, count;
};

#define FS_ID_MAPS 32u

struct fs_ids {
	struct fs_id_map uid[FS_ID_MAPS], gid[FS_ID_MAPS];
	uint32_t nuid, ngid;
};

/** struct fs_options - from the command line; fixed */
struct fs_options {
	const char *shared_dir;
	const char *tag;
	uint32_t num_request_queues;
	enum fs_cache cache;
	bool writeback, read_only, xattr, posix_acl, submounts;
	bool posix_lock, flock, direct_io, readdirplus, notify;
	uint32_t threads; /* of defer */
	uint64_t files;	  /* descriptors, at most */
	enum fs_handles handles;
	uint64_t dax_window;		 /* bytes; 0: none */
	uint32_t dax_mappings;		 /* in it, at most */
	struct fs_xattrmap *xattr_rules; /* NULL: names are the same */
	struct fs_ids ids;
};

/**
 * struct fs_node - a file that the guest knows
 * @slot: its place in the table, with its id
 * @lookups: how many times the guest was told of it and has not forgotten;
 *	under its bucket's lock
 * @fd: O_PATH; of a node with a handle: -1 while no request works with it
 * @by_handle: opens the file where it has no descriptor of its own, or NULL
 * @pins: requests that work with it; under its bucket's lock
 * @dev, @ino, @mount: which file it is
 * @type: S_IFMT bits
 * @setgid: of a set-group-ID file that the group may not execute: its group,
 *and 1; as it was when last looked at, atomic
 * @locks: of lock.c
 * @watch: of watch.c, or NULL; atomic
 */
struct fs_node {
	struct fs_slot slot;
	struct fs_node *next; /* in the bucket */
	uint64_t lookups;
	uint64_t ino, mount;
	dev_t dev;
	int fd;
	mode_t type;
	uint64_t setgid;
	struct fs_by_handle *by_handle;
	uint32_t pins;
	struct fs_locks *locks;
	struct fs_watch *watch;
	/* of dax.c; atomic but the last, which its lock guards */
	uint32_t ranges, tails;
	uint64_t shown; /* a size that all its ranges are covered up to */
	uint32_t first_tail;
};

/**
 * struct fs_handle - a file that the guest has open
 * @node: held for as long as this is open
 * @fd: the open file
 * @flags: open(2)'s
 * @slow: reads have to be left to a thread: they may block and can not be
 *	asked not to; atomic
 * @closed: the guest has closed it; only requests that came before still use it
 * @dir_lock, @dir_at: of a directory: where its descriptor stands, so that it
 *	need not be moved
 */
struct fs_handle {
	struct fs_slot slot;
	struct fs_node *node;
	int fd;
	int flags;
	bool slow;
	bool closed; /* atomic */
	pthread_mutex_t dir_lock;
	uint64_t dir_at;
};

/* Lists of nodes, so that a million files are some ten a list, and locks. */
#define FS_BUCKETS (1u << 17)
#define FS_LOCKS 256u

#define FS_MOUNTS 64u

struct fs_mount {
	uint64_t id;
	int fd;
};

/** struct fs - the file system that is shared */
struct fs {
	const struct fs_options *opt;
	struct moat_log *log;
	struct moat_device *device;
	int root_fd, proc_fd; /* proc_fd: /proc/self/fd */
	bool privileged;      /* may act as any user */
	uid_t uid;	      /* that it runs as */
	gid_t gid;
	bool in_memory; /* the root is on tmpfs: reads never wait */

	struct fs_table nodes, handles;
	struct fs_node *root;
	struct fs_node **buckets; /* FS_BUCKETS, by file */
	pthread_mutex_t locks[FS_LOCKS];
	uint64_t fd_nodes; /* nodes with a descriptor, atomic */
	pthread_mutex_t mounts_lock;
	struct fs_mount mounts[FS_MOUNTS];
	uint32_t nmounts;
	struct fs_defer *defer;
	struct fs_dax *dax;
	struct fs_lockers *lockers;
	struct fs_notify *notify; /* NULL: without --notify */
	uint64_t accepted;    /* virtio features that the driver took; atomic */
	uint32_t lock_owners; /* atomic, as the next ones */
	uint32_t lock_ranges;
	uint64_t lock_news; /* how many times a range was locked */

	/* agreed by INIT; atomic */
	bool inited;
	uint64_t flags; /* FUSE_... of INIT that both have */
	bool said_full; /* that there are no more descriptors */
};

/** struct fs_thread - what a thread that carries out requests has */
struct fs_thread {
	struct fs *fs;
	uint8_t *args;	   /* FS_ARGS_MAX and a NUL */
	uint8_t *ext;	   /* FS_EXT_MAX: extensions */
	uint8_t *data;	   /* FS_ARGS_MAX, for an answer */
	struct iovec *iov; /* FS_IOV: pieces of guest memory */
	/* of ids.c: what the thread is at the moment */
	uid_t uid;
	gid_t gid;
	bool fsetid;
	bool caps_known;
	uint64_t caps; /* permitted ones */
	uint32_t umask, ngroups;
	struct fs_worker *worker; /* NULL in a thread of defer */
};

/** struct fs_req - one FUSE message; in moat_request.data */
struct fs_req {
	struct moat_request *mr;
	struct fs *fs;
	struct fs_thread *thread; /* that carries it out now */
	struct fs_worker *home;	  /* on whose thread it has to be answered */
	const struct fs_op *op;
	struct fuse_in_header in;
	uint32_t nargs; /* bytes at @thread->args, which a NUL follows */
	uint32_t fixed; /* of these, the opcode's structure */
	uint32_t ext;	/* bytes of extensions at @thread->ext */
	uint32_t out;	/* bytes of answer behind the header, so far */
	int error;	/* of a deferred one */
	int notify;	/* FUSE_NOTIFY_...: the message it is to carry */
	struct fs_req *next;
	/* of one that goes on in another thread: its structure, and as far as
	 * it came */
	uint8_t saved[FS_SAVED];
	bool resumed;
	uint64_t moved;
};

/*
 * What a handler returns: 0, the answer is made; a negative errno; or one of
 * these.
 */
enum {
	FS_LATER = 1,	/* somebody else will call fs_req_finish() */
	FS_DEFER = 2,	/* call me again on a thread that may block */
	FS_NO_REPLY = 3 /* there is nothing to say */
};

/** struct fs_op - how an opcode is handled */
struct fs_op {
	const char *name;
	int (*handle)(struct fs_req *r);
	uint32_t size;	/* bytes of its structure ... */
	uint32_t least; /* ... of which so many have to be there; 0: all */
	uint8_t names;	/* NUL-terminated strings behind it */
	bool data;	/* what follows is data, which stays where it is */
	bool blob;	/* what follows is copied, as it is */
	bool changes;	/* nothing for a read-only share */
	bool before_init;
	bool no_reply;
	bool blocks; /* always deferred */
};

/** fs_flags() - what INIT has agreed on: FUSE_... */
static inline uint64_t fs_flags(const struct fs *fs)
{
	return __atomic_load_n(&fs->flags, __ATOMIC_RELAXED);
}

/* ---- request ---- */

/** fs_req_args() - the opcode's structure: private, complete, zero-extended */
static inline const void *fs_req_args(const struct fs_req *r)
{
	return r->thread->args;
}

/**
 * fs_req_name() - the @n-th string behind the structure
 *
 * Dispatch has checked that there are as many as the opcode has.
 */
const char *fs_req_name(const struct fs_req *r, unsigned int n);

/**
 * fs_may_block() - is this a thread that may wait?
 *
 * If not, a handler that would have to returns FS_DEFER and is called again.
 */
static inline bool fs_may_block(const struct fs_req *r)
{
	return !r->thread->worker || !r->fs->opt->threads;
}

/** fs_req_put() - append to the answer; -ERANGE if there is no room */
int fs_req_put(struct fs_req *r, const void *data, uint32_t len);

/** fs_req_room() - bytes that the answer may still take */
uint64_t fs_req_room(const struct fs_req *r);

/** fs_req_begin() - the header; true if it is one that can be gone on with */
bool fs_req_begin(struct fs_req *r, struct fs *fs, struct moat_request *mr);

/** fs_req_parse() - copy and check what follows the header, into @thread */
int fs_req_parse(struct fs_req *r);

/** fs_req_finish() - give it back; on the thread of its queue */
void fs_req_finish(struct fs_req *r, int error);

/** struct fs_worker - the thread of a queue */
struct fs_worker {
	struct fs_thread thread;
	struct fs_half half;
	/* requests that other threads have carried out */
	pthread_mutex_t lock;
	struct fs_req *done; /* atomic */
	bool signalled;
	int event_fd;
	uint32_t taken; /* requests since it last looked at those */
};

/** fs_thread_init() - a thread that carries out requests begins, on it */
int fs_thread_init(struct fs_thread *t, struct fs *fs);
void fs_thread_fini(struct fs_thread *t);

/* ---- dispatch ---- */

/** fs_op() - NULL for an opcode that does not exist here */
const struct fs_op *fs_op(uint32_t opcode);

/** fs_run() - carry out; as a handler returns */
int fs_run(struct fs_req *r, struct fs_thread *t);

void fs_request(void *dev, void *worker, struct moat_request *mr);
int fs_worker_start(void *dev, void **worker, int *fd);
bool fs_worker_poll(void *dev, void *worker);
void fs_worker_stop(void *dev, void *worker);

/* ---- node ---- */

/** fs_nodes_init() - with the root, from fs->root_fd; 0 or a negative errno */
int fs_nodes_init(struct fs *fs);
void fs_nodes_fini(struct fs *fs);
/** fs_nodes_forget_all() - but the root */
void fs_nodes_forget_all(struct fs *fs);

/**
 * fs_node_get() - by id, held and pinned: its fd can be worked with
 *
 * Return: NULL if there is none, or its file is gone.
 */
struct fs_node *fs_node_get(struct fs *fs, uint64_t id);
/** fs_node_put() - what fs_node_get() gave */
void fs_node_put(struct fs *fs, struct fs_node *node);
/** fs_node_pin() - one that is held, for its fd; 0 or a negative errno */
int fs_node_pin(struct fs *fs, struct fs_node *node);
void fs_node_unpin(struct fs *fs, struct fs_node *node);
/** fs_node_hold() - one that is held already, once more; not its fd */
void fs_node_hold(struct fs_node *node);
/** fs_node_drop() - what fs_node_hold(), known() or enter() gave */
void fs_node_drop(struct fs *fs, struct fs_node *node);
/** fs_node_forget() - the guest forgets @n lookups of it */
void fs_node_forget(struct fs *fs, uint64_t id, uint64_t n);

/**
 * fs_node_known() - the node of the file that @sx describes, looked up once
 * more
 *
 * Return: held; NULL if the guest does not know that file, or only its
 * descriptor can tell whether it does: see fs_node_enter().
 */
struct fs_node *fs_node_known(struct fs *fs, const struct statx *sx);

/** fs_node_of() - the same, but not looked up once more */
struct fs_node *fs_node_of(struct fs *fs, const struct statx *sx);
/** fs_node_seen() - what the file is now, for fs_fsetid() */
void fs_node_seen(struct fs_node *node, const struct statx *sx);

/** fs_node_probable() - does the guest know a file @ino beside @dir? */
bool fs_node_probable(struct fs *fs, const struct fs_node *dir, uint64_t ino);

/**
 * fs_node_enter() - the node of the file at @fd, looked up once more
 * @fd: O_PATH; taken, also on failure
 *
 * Return: 0 with *@node held, or a negative errno.
 */
int fs_node_enter(struct fs *fs, int fd, const struct statx *sx,
		  struct fs_node **node);

/**
 * fs_node_open() - a descriptor for more than O_PATH
 *
 * Only of regular files and directories: others are the guest's own business.
 *
 * Return: the fd or a negative errno.
 */
int fs_node_open(struct fs *fs, const struct fs_node *node, int flags);

/** fs_fd_name() - "17", in @buf: a path, in the thread's working directory */
const char *fs_fd_name(int fd, char buf[16]);

/* ---- byhandle ---- */

/** fs_by_handle_new() - of the file at @fd; NULL if it is to have a descriptor
 */
struct fs_by_handle *fs_by_handle_new(struct fs *fs, int fd,
				      const struct statx *sx);
/** fs_by_handle_is() - is @fd that very file, not one with its inode number? */
bool fs_by_handle_is(const struct fs_by_handle *by, int fd);
/** fs_by_handle_open() - an O_PATH fd, or a negative errno */
int fs_by_handle_open(struct fs_by_handle *by);

/* ---- handle ---- */

/**
 * fs_handle_new() - for @fd, which is taken, also on failure
 *
 * Return: 0 with *@id set, or a negative errno.
 */
int fs_handle_new(struct fs *fs, struct fs_node *node, int fd, int flags,
		  uint64_t *id);
/** fs_handle_get() - by id, held; NULL if it is none of that node */
struct fs_handle *fs_handle_get(struct fs *fs, uint64_t id, uint64_t nodeid);
void fs_handle_put(struct fs *fs, struct fs_handle *handle);
/** fs_handle_close() - the guest has closed it */
int fs_handle_close(struct fs *fs, uint64_t id, uint64_t nodeid);
void fs_handles_close_all(struct fs *fs);

/* ---- attr ---- */

#define FS_STATX_MASK (STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID)

/** fs_statx() - of what @fd is; 0 or a negative errno */
int fs_statx(int fd, struct statx *sx);
/** fs_node_stat() - of a node, to tell the guest */
int fs_node_stat(struct fs *fs, struct fs_node *node, struct statx *sx);
/** fs_attr() - as the guest is to see it */
void fs_attr(const struct fs *fs, const struct statx *sx, struct fuse_attr *a);
/** fs_valid() - how long, in seconds, names and attributes may be kept */
uint64_t fs_valid(const struct fs *fs);

/* ---- name ---- */

/** fs_name_ok() - may it be the name of a file? */
bool fs_name_ok(const char *name);

/**
 * fs_lookup() - the node of a name in a directory, looked up once more
 * @hint: the inode number that readdir gave, or 0
 * @out: filled in; its nodeid is 0 on failure
 *
 * Return: 0 or a negative errno.
 */
int fs_lookup(struct fs *fs, struct fs_node *dir, const char *name,
	      uint64_t hint, struct fuse_entry_out *out);

/**
 * fs_enter() - the node of the open file @fd, looked up once more
 * @dir: where it was made
 * @out: filled in
 *
 * Return: 0 with *@node held, or a negative errno.
 */
int fs_enter(struct fs *fs, const struct fs_node *dir, int fd,
	     struct fs_node **node, struct fuse_entry_out *out);

/* ---- ids ---- */

/** fs_ids_start() - find out whether it may act as any user; before others */
void fs_ids_start(struct fs *fs);
/** fs_ids_parse() - one argument of --translate-uid; 0 or -EINVAL */
int fs_ids_parse(const char *arg, struct fs_id_map *maps, uint32_t *n);
uint32_t fs_uid_to_guest(const struct fs *fs, uint32_t uid);
uint32_t fs_gid_to_guest(const struct fs *fs, uint32_t gid);
/** fs_uid_to_host() - 0, or -EPERM for one that is forbidden */
int fs_uid_to_host(const struct fs *fs, uint32_t guest, uint32_t *uid);
int fs_gid_to_host(const struct fs *fs, uint32_t guest, uint32_t *gid);

/**
 * fs_become() - act as the request's user from here on, to make a file
 *
 * With the supplementary group that the request names, and its umask where the
 * guest leaves that to us (@umask; FUSE_DONT_MASK). fs_become_self() has to
 * follow, also after an error.
 *
 * Return: 0 or a negative errno.
 */
int fs_become(struct fs_req *r, uint32_t umask);
void fs_become_self(struct fs_req *r);

/**
 * fs_fsetid() - have CAP_FSETID, or not, for what is done to @node
 *
 * Without, the kernel clears set-user-ID bits when a file is written to or
 * cut, which FUSE_HANDLE_KILLPRIV_V2 asks for by request; the set-group-ID bit
 * only where the group may execute it. Linux since 6.2 clears that always, but
 * for who is in the file's group: so the thread is.
 */
void fs_fsetid(struct fs_req *r, const struct fs_node *node, bool have);

/* ---- xattr ---- */

/**
 * fs_xattr_moves_capability() - do rules move security.capability?
 *
 * Then the kernel does not remove it when a file is written to: the guest has
 * to, so FUSE_HANDLE_KILLPRIV_V2 must not be agreed on.
 */
bool fs_xattr_moves_capability(const struct fs *fs);

/* ---- lock ---- */

int fs_lockers_start(struct fs *fs);
void fs_lockers_stop(struct fs *fs);
/** fs_lock_release() - drop what an owner has locked of a file (FLUSH) */
void fs_lock_release(struct fs *fs, struct fs_node *node, uint64_t owner);
/** fs_locks_free() - the node goes away */
void fs_locks_free(struct fs_locks *locks);
/** fs_locks_drop() - all locks of the node, which may still be in use */
void fs_locks_drop(struct fs_node *node);
/** fs_lock_interrupt() - a request that waits for a lock gives up; if it does
 */
void fs_lock_interrupt(struct fs *fs, uint64_t unique);
/** fs_lock_hurry() - with EAGAIN, all that wait for locks give up: their queues
 * are to stop
 */
void fs_lock_hurry(struct fs *fs);

/* ---- dax ---- */

int fs_dax_start(struct fs *fs);
void fs_dax_stop(struct fs *fs);
/**
 * fs_dax_cover() - before the guest is told that a file has @size bytes
 *
 * Return: 0 or a negative errno: it must not be told.
 */
int fs_dax_cover(struct fs *fs, struct fs_node *node, uint64_t size);
/** fs_dax_opened() - the same of a file that was opened, as it is now */
int fs_dax_opened(struct fs *fs, struct fs_node *node, int fd);
/** fs_dax_expect() - the guest itself makes it that short now */
void fs_dax_expect(struct fs_node *node, uint64_t size);
/** fs_dax_sync() - before and after a request that reads or changes data */
void fs_dax_sync(struct fs *fs, const struct fs_node *node);
/**
 * fs_dax_flush() - the same, where data shall have arrived
 *
 * Return: 0, or the error that what the guest wrote could not be stored with,
 * once.
 */
int fs_dax_flush(struct fs *fs, const struct fs_node *node);
/** fs_dax_sync_all() - of all nodes */
void fs_dax_sync_all(struct fs *fs);
/** fs_dax_clear() - unmap all that is mapped */
void fs_dax_clear(struct fs *fs);
/** fs_dax_succeed() - a process before this one may have left mappings */
void fs_dax_succeed(struct fs *fs);
/** fs_dax_reset() - the front-end is gone, and the window with it */
void fs_dax_reset(struct fs *fs);

/* ---- session ---- */

/**
 * fs_assume_session() - a guest goes on that has mounted before this process
 *
 * Its files are unknown here (ESTALE) until it looks them up again.
 */
void fs_assume_session(struct fs *fs);
/** fs_end_session() - the guest holds nothing any more */
void fs_end_session(struct fs *fs);

#endif
