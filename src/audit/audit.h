/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moat audit: which bytes of which guest's RAM each process can reach.
 *
 *     /proc --- scan ---> processes, objects, reaches --- classify ---> VMs
 *                                                           |
 *                              table, JSON, SVG <-----------+
 *
 * An *object* is a piece of memory that has an identity across processes:
 * the inode of a memfd, a tmpfs or hugetlbfs file, a dma-buf, a mapped file.
 * A *reach* is what one process can get at of one object: ranges that it maps,
 * or all of it through a held file descriptor. A *VM* is one or more
 * processes of a VMM and the objects that hold its RAM; its *pool* is what
 * its devices are meant to see: a memfd of a guard's, or a piece of the VMM's
 * own memory that a guard gives away whole. A pool is for one guard's backend.
 *
 * The scan knows nothing of VMs and the classification nothing of /proc, so
 * each can be judged alone: audit_scan() fills the first three arrays,
 * audit_classify() the rest, and the writers only read.
 */
#ifndef MOAT_AUDIT_AUDIT_H
#define MOAT_AUDIT_AUDIT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "audit/ranges.h"

enum object_kind {
	OBJ_MEMFD,
	OBJ_TMPFS,
	OBJ_HUGETLB,
	OBJ_DMABUF,
	OBJ_FILE, /* of any other file system */
	OBJ_ANON, /* private memory of one process */
};

enum object_class {
	CLASS_OTHER, /* nothing of a guest's */
	CLASS_RAM,
	CLASS_POOL,
};

struct object {
	uint64_t dev; /* with ino: the identity; 0 for OBJ_ANON */
	uint64_t ino;
	enum object_kind kind;
	enum object_class class;
	const char *why;    /* of the class */
	char *name;	    /* as /proc shows it, unescaped */
	uint64_t size;	    /* bytes */
	uint64_t allocated; /* bytes that hold data */
	bool statted;	    /* false: size is the highest mapped offset */
	bool deleted;	    /* has no name in a file system */
	bool device; /* a dma-buf of a device's memory, not of a memfd's */
	uint32_t mode;
	uint32_t uid;
	int seals;   /* F_SEAL_*; -1 not known */
	pid_t owner; /* OBJ_ANON */
	bool given;  /* CLASS_POOL: memory of the VMM's, not of a guard's */
	uint32_t *givers; /* CLASS_POOL: the guards that hold it */
	size_t ngivers;
	uint32_t *strangers; /* CLASS_POOL: who reaches it and should not */
	size_t nstrangers;
	char *open_path;	   /* a /proc path that opens it */
	uint32_t id;		   /* in the output; 0: not shown */
	uint32_t seen_by, seen_at; /* private to scan: the latest reach */
};

#define REACH_FDS 8

struct reach {
	uint32_t obj;		  /* index into audit.objs */
	struct ranges mapped;	  /* offsets, any permission */
	struct ranges writable;	  /* the part mapped shared and writable */
	bool shared;		  /* a mapping is MAP_SHARED */
	bool fd_r, fd_w, fd_path; /* how it was opened; O_PATH */
	uint32_t nfds;
	int fds[REACH_FDS]; /* the first few numbers */
};

struct process {
	pid_t pid;
	pid_t ppid;
	uint32_t uid;
	uint64_t start; /* clock ticks after boot: with pid, an identity */
	uint64_t caps;	/* effective */
	char *comm;
	char *exe; /* NULL: not known */
	uint64_t exe_dev, exe_ino;
	char *args; /* NUL separated, ends with two */
	size_t args_len;
	bool kvm;	     /* holds /dev/kvm or a KVM VM */
	bool kernel;	     /* a kernel thread */
	bool asked;	     /* named by --pid or --name */
	int vm;		     /* index of the VM that it is a part of, or -1 */
	bool looks_vmm;	     /* has a VMM's name, or its program has */
	const char *guard;   /* why it is a guard, or NULL */
	const char *not_vmm; /* why it is none although it looks like one */
	struct ranges anon;  /* addresses: large private mappings */
	struct reach *reach;
	size_t nreach, cap_reach;
	int err; /* negative errno: could not be read whole */
	const char *err_what;
};

enum role {
	ROLE_NONE,
	ROLE_VMM,
	ROLE_GUARD,
	ROLE_BACKEND,
	ROLE_OTHER_VMM, /* the VMM of another VM */
};

/* One process as one VM sees it; the first of a VM is the VM itself. */
struct seat {
	uint32_t proc;
	enum role role;
	const char *why;
	uint64_t ram;	/* bytes of guest RAM reached now */
	uint64_t could; /* and with mremap(2) on what it maps */
	uint64_t ram_mapped;
	uint64_t ram_fd;
	uint64_t pool;	  /* of the pools that are meant for it */
	uint64_t foreign; /* of those that are not */
	uint64_t outside; /* RAM and foreign pools that it should not reach */
	bool write;	  /* may write some of it as things are */
};

struct vm {
	uint32_t proc;	  /* the VMM */
	const char *kind; /* "qemu", ... */
	const char *why;
	uint32_t *members; /* processes, the VMM first */
	size_t nmembers;
	uint32_t *objs; /* RAM, then pools */
	size_t nobjs;
	struct seat *seats;
	size_t nseats;
	uint64_t ram;	     /* bytes */
	uint64_t ram_mapped; /* by the VM's own processes */
	uint64_t pool;
	size_t outside; /* seats that reach what they should not */
};

struct audit {
	struct object *objs;
	size_t nobjs, cap_objs;
	struct process *procs;
	size_t nprocs, cap_procs;
	struct vm *vms;
	size_t nvms;
	void *index;	   /* private to scan: (dev, ino) -> object */
	bool powerful;	   /* we have CAP_SYS_PTRACE ourselves */
	bool narrow;	   /* the question concerns the asked processes alone */
	size_t incomplete; /* processes whose reach is not known */
};

struct audit_request {
	const pid_t *pids;
	size_t npids;
	char *const *names;
	size_t nnames;
	const pid_t *vmms; /* processes to be taken for VMMs */
	size_t nvmms;
};

/**
 * audit_run() - look at all processes, and find the VMs and who reaches them
 * @a: zeroed; to be given to audit_free() whatever the result
 * @req: which processes are asked for (all, if it names none)
 * @err: on failure, a buffer of 256 bytes for a sentence
 *
 * Return: 0, -ESRCH if a process asked for does not exist, another errno
 */
int audit_run(struct audit *a, const struct audit_request *req, char *err);
void audit_free(struct audit *a);

/** audit_scan() - read /proc; negative errno */
int audit_scan(struct audit *a);

/** audit_classify() - VMs, RAM, pools, roles, figures; negative errno */
int audit_classify(struct audit *a, const struct audit_request *req);

/** audit_table() - for people; 0 or -EIO */
int audit_table(const struct audit *a, FILE *f);

/** audit_json() - the schema of docs/audit.md; 0, -ENOMEM or -EIO */
int audit_json(const struct audit *a, FILE *f);

/** audit_svg() - the memory map; 0 or a negative errno */
int audit_svg(const struct audit *a, const char *path);

/* What the writers share (names.c) */

/**
 * audit_escape() - a name that others chose, safe for terminals and files
 * @buf: gets printable ASCII, all else and '\\' as \xNN; ends with "..." if
 *       @size was too small
 */
const char *audit_escape(const char *s, char *buf, size_t size);

/** audit_starts() - does @s begin with @prefix? */
bool audit_starts(const char *s, const char *prefix);

/** audit_size() - "512.0 MiB"; @buf of 24 bytes */
const char *audit_size(uint64_t bytes, char *buf);

const char *audit_kind_name(enum object_kind kind);
const char *audit_class_name(enum object_class class);
const char *audit_role_name(enum role role);

/** audit_name() - the program's name: that of its file, else its comm */
const char *audit_name(const struct process *p);

/** audit_object_title() - "memfd:pool", "/dev/shm/x", "private memory" */
const char *audit_object_title(const struct object *o);

#define GIVERS_TEXT 48

/** audit_givers() - "given by the guard 12"; @buf of GIVERS_TEXT bytes */
const char *audit_givers(const struct audit *a, const struct object *o,
			 char *buf);

/** audit_can_ptrace() - reaches all memory by ptrace(2) whatever it holds */
bool audit_can_ptrace(const struct process *p);

/** audit_can_reopen() - can turn a mapping into a descriptor of the whole */
bool audit_can_reopen(const struct process *p);

/**
 * audit_matters() - @p could not be read, and the answer depends on it
 *
 * A process that can ptrace reaches everything whatever it holds, so that its
 * list of mappings changes no verdict, unless it is itself a VMM. That much
 * trust in names is for root alone: to anybody else nearly all is unreadable.
 */
bool audit_matters(const struct audit *a, const struct process *p);

/**
 * audit_seat_reach() - what a seat reaches of an object, clipped to its size
 * @out: filled with the union over all processes of the VM for its own seat;
 *       to be given to audit_reach_free()
 *
 * Return: 1 if it reaches any of it, 0 if not, -ENOMEM
 */
int audit_seat_reach(const struct audit *a, const struct vm *vm,
		     const struct seat *s, uint32_t obj, struct reach *out);
void audit_reach_free(struct reach *r);

/** audit_outside() - a seat that reaches guest RAM or pools and should not */
bool audit_outside(const struct seat *s);

/** audit_foreign() - is pool @obj meant for others than this seat? */
bool audit_foreign(const struct audit *a, const struct seat *s, uint32_t obj);

#endif
