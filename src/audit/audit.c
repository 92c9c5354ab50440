/* SPDX-License-Identifier: Apache-2.0 */
#include "audit/audit.h"

#include <errno.h>
#include <string.h>

#define ERR_SIZE 256

static const char *base_name(const char *s)
{
	const char *slash = s ? strrchr(s, '/') : NULL;

	return slash ? slash + 1 : s;
}

static bool is_named(const struct process *p, const char *name)
{
	const char *arg0 = p->args_len ? base_name(p->args) : NULL;

	return !strcmp(audit_name(p), name) ||
	       (p->comm && !strcmp(p->comm, name)) ||
	       (arg0 && !strcmp(arg0, name));
}

static bool pid_exists(const struct audit *a, pid_t pid)
{
	for (size_t i = 0; i < a->nprocs; i++)
		if (a->procs[i].pid == pid)
			return true;
	return false;
}

static int no_such_pid(pid_t pid, char *err)
{
	snprintf(err, ERR_SIZE, "there is no process %d", (int)pid);
	return -ESRCH;
}

static int mark_asked(struct audit *a, const struct audit_request *req,
		      char *err)
{
	for (size_t k = 0; k < req->nvmms; k++)
		if (!pid_exists(a, req->vmms[k]))
			return no_such_pid(req->vmms[k], err);
	for (size_t k = 0; k < req->npids; k++) {
		if (!pid_exists(a, req->pids[k]))
			return no_such_pid(req->pids[k], err);
		for (size_t i = 0; i < a->nprocs; i++)
			a->procs[i].asked |= a->procs[i].pid == req->pids[k];
	}
	for (size_t k = 0; k < req->nnames; k++) {
		bool found = false;

		for (size_t i = 0; i < a->nprocs; i++)
			if (is_named(&a->procs[i], req->names[k]))
				a->procs[i].asked = found = true;
		if (!found) {
			char name[128];

			snprintf(err, ERR_SIZE, "there is no process named %s",
				 audit_escape(req->names[k], name,
					      sizeof(name)));
			return -ESRCH;
		}
	}
	return 0;
}

int audit_run(struct audit *a, const struct audit_request *req, char *err)
{
	int rc = audit_scan(a);

	if (rc) {
		snprintf(err, ERR_SIZE, "cannot read /proc: %s", strerror(-rc));
		return rc;
	}
	rc = mark_asked(a, req, err);
	if (rc)
		return rc;
	rc = audit_classify(a, req);
	if (rc)
		snprintf(err, ERR_SIZE, "cannot classify what was found: %s",
			 strerror(-rc));
	return rc;
}
