/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Comes first in each file of test_inflight_kill, those of src/dev/host
 * included: tells the test of each store to a record.
 */
#ifndef MOAT_TESTS_INFLIGHT_KILL_H
#define MOAT_TESTS_INFLIGHT_KILL_H

#include "dev/host/record.h"

void killed_now(void);

#define moat_rec_set8(p, v) (moat_rec_set8(p, v), killed_now())
#define moat_rec_set16(p, v) (moat_rec_set16(p, v), killed_now())
#define moat_rec_set32(p, v) (moat_rec_set32(p, v), killed_now())
#define moat_rec_set64(p, v) (moat_rec_set64(p, v), killed_now())

#endif
