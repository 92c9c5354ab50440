/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to the scan: objects by identity, and growing arrays.
 */
#ifndef MOAT_AUDIT_SCAN_H
#define MOAT_AUDIT_SCAN_H

#include "audit/audit.h"

/* A private mapping from this size on may be a VMM's guest RAM. */
#define AUDIT_ANON_MIN (16ull << 20)

/* One line of /proc/PID/maps */
struct map_line {
	uint64_t start, end, offset;
	uint64_t dev, ino;
	char perms[4];	  /* "rwxp" */
	const char *name; /* "" if none */
};

/** audit_grow() - make room for one more in an array; -ENOMEM */
int audit_grow(void *array, size_t n, size_t *cap, size_t size);

/** objects_open() - prepare the index of objects */
int objects_open(struct audit *a);
void objects_close(struct audit *a);

/**
 * objects_of_fd() - the object behind a descriptor of a process
 * @path: of /proc/PID/task/TID/fd/N
 * @link: what it points to
 *
 * Return: its index, -ENODEV if it is nothing that can be mapped, or another
 * negative errno (-ENOENT: gone)
 */
int objects_of_fd(struct audit *a, const char *path, const char *link);

/** objects_of_map() - the object behind a mapping of process @pid */
int objects_of_map(struct audit *a, pid_t pid, const struct map_line *m);

/** audit_anon_object() - the private memory of process @p; index or errno */
int audit_anon_object(struct audit *a, const struct process *p);

/** objects_held() - does process @pid hold a descriptor of @o, at this moment?
 */
bool objects_held(const struct object *o, pid_t pid);

/** audit_seals() - find out the seals of an object, once it matters */
void audit_seals(struct object *o);

/** maps_parse() - one line, without its newline; false if it is none */
bool maps_parse(char *line, struct map_line *m);

#endif
