/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process of ours that starts a command again, for one that can not any more.
 *
 *     main process --number--> starter --fork, exec--> child
 *     main process <--number, pidfd, fd or path--
 *
 * It is forked before the sandbox and keeps what the command may need: rights,
 * system calls. It holds no descriptor but its end of the socket and standard
 * streams, reads nothing but single bytes, and can do nothing but end its child
 * and start the one command that it was made with. It ends with the main
 * process, and its child with it.
 */
#ifndef MOAT_OS_STARTER_H
#define MOAT_OS_STARTER_H

#include <stdint.h>
#include <sys/types.h>

#include "os/child.h"

struct moat_starter {
	pid_t pid; /* 0: none */
	int pidfd;
	int fd;		    /* to it */
	uint32_t answer_ms; /* it is waited for so long */
	uint8_t asked;	    /* the number of the latest order */
};

/**
 * moat_starter_init() - fork the starter of @argv
 *
 * Return: 0 or a negative errno, with nothing held.
 */
int moat_starter_init(struct moat_starter *s, char *const argv[]);

/**
 * moat_starter_start() - end the child that there is, and start another
 * @child: its @pid stays 0, for it is the starter's; fds in it are closed first
 *
 * Return: 0 or a negative errno, with nothing held.
 */
int moat_starter_start(struct moat_starter *s, struct moat_child *child);

/** moat_starter_end() - the child ends within @grace_ms, and the starter */
void moat_starter_end(struct moat_starter *s, struct moat_child *child,
		      unsigned int grace_ms);

#endif
