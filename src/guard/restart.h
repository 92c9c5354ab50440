/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session that outlives its backend (--restart).
 *
 *     backend dies, stalls or breaks the protocol
 *       lose     fetch what it had finished; believe nothing of it any more
 *       another  a new one is started, or connected to, within some seconds
 *       meet     it has to be what the old one was: features, queues, regions
 *       resume   fresh pool, empty rings, the same queues and requests
 *
 * The VMM and the guest see none of it but the time it takes: requests that are
 * in the guest's ring stay there, and what the old backend had taken and not
 * given back is given to the new one, in the order in which it was taken. So a
 * request is done at least once, and completed exactly once.
 *
 * Meanwhile no message of the VMM is looked at. A call of the old backend that
 * failed is made again (moat_restart_again()).
 *
 * A queue that went straight to the backend (direct) can not be given to
 * another: only the old one knows what it has taken.
 */
#ifndef MOAT_GUARD_RESTART_H
#define MOAT_GUARD_RESTART_H

#include <stdbool.h>
#include <stdint.h>

struct moat_session;

/** struct moat_restart_ops - where other backends come from */
struct moat_restart_ops {
	void *arg;
	/* May there be one more? */
	bool (*left)(void *arg);
	/*
	 * One more. @idle: the one before has finished no request. Gives up at
	 * @end_ns (moat_now_ns()), or when @vmm_fd hangs up.
	 *
	 * Returns a connected fd, or a negative errno, logged: -EINTR if the
	 * process was told to end, -ECONNABORTED if the VMM has left.
	 */
	int (*another)(void *arg, bool idle, uint64_t end_ns, int vmm_fd);
	uint32_t wait_ms; /* for which a VMM may have to wait */
};

/** moat_restart_possible() - could the session go on with another backend? */
bool moat_restart_possible(const struct moat_session *s);

/**
 * moat_restart() - go on with another backend, if that is why the session ended
 *
 * Return: 0 if it goes on; a negative errno, logged, if it has ended.
 */
int moat_restart(struct moat_session *s);

/**
 * moat_restart_orphan() - go on without a backend, where requests can fail
 *
 * So that nobody waits for ever in a guest whose VMM can not connect again.
 *
 * Return: 0, or a negative errno: the session has ended.
 */
int moat_restart_orphan(struct moat_session *s);

/**
 * moat_restart_again() - is a call of the backend to be made once more?
 * @ret: what it returned
 *
 * If the backend is gone, another one takes its place first.
 */
bool moat_restart_again(struct moat_session *s, int ret);

#endif
