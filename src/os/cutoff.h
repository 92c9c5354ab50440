/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of a peer's that is cut off while it is mapped here.
 *
 * Who can shorten the file behind a mapping makes every access behind the new
 * end a SIGBUS. Guest RAM is the VMM's, whom we trust; but a guest can shorten
 * the files that it sees through a DAX window, and QEMU has those in its memory
 * table, too. So what moat_mem_map() has mapped is watched over: a page that is
 * not there any more becomes one of zeroes of our own, and what is written to
 * it goes nowhere. That is the fault of whoever cut it off, and his loss.
 */
#ifndef MOAT_OS_CUTOFF_H
#define MOAT_OS_CUTOFF_H

#include <stdint.h>

/* Mappings that can be watched over at the same time, in this process. */
#define MOAT_CUTOFF_MAX 2048u

/** moat_cutoff_init() - once a process; 0 or a negative errno */
int moat_cutoff_init(void);

/** moat_cutoff_watch() - a mapping; of too many some are not watched over */
void moat_cutoff_watch(const uint8_t *at, uint64_t size);

/** moat_cutoff_forget() - it is about to be unmapped */
void moat_cutoff_forget(const uint8_t *at, uint64_t size);

/** moat_cutoff_pages() - how many pages were lost so far */
uint64_t moat_cutoff_pages(void);

#endif
