/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the VMM's messages do to a session: one op each, in the order features,
 * guest memory, queues, config space, status. The server (vu/server.h) has
 * checked their form; what they mean in the session's state is checked here.
 */
#ifndef MOAT_GUARD_MESSAGES_H
#define MOAT_GUARD_MESSAGES_H

#include "vu/server.h"

/* Their device is a struct moat_session. */
extern const struct moat_vu_server_ops moat_session_ops;

#endif
