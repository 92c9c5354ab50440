/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A backend that moat starts itself, and how it is told of its socket.
 *
 * In the command's arguments these words are replaced:
 *   {socket}     a path where the backend has to listen
 *   {listen-fd}  the number of an inherited socket that listens already
 *   {fd}         the number of an inherited socket, connected to us
 * A command with none of them gets "--fd=N" appended, the vhost-user
 * specification's convention for backend programs.
 *
 * The child inherits that socket and standard input, output and error; every
 * other fd of ours is close-on-exec. It dies with us (PR_SET_PDEATHSIG).
 */
#ifndef MOAT_OS_CHILD_H
#define MOAT_OS_CHILD_H

#include <stdbool.h>
#include <sys/types.h>

struct moat_child {
	pid_t pid;     /* 0: none */
	int pidfd;     /* readable when it has ended */
	int fd;	       /* connected to it, if it got {fd} */
	bool has_path; /* it is reached at @path instead */
	char dir[64];  /* private folder that holds the socket */
	char path[96];
};

/** moat_child_start() - start @argv; 0 or a negative errno, nothing held */
int moat_child_start(struct moat_child *child, char *const argv[]);

/**
 * moat_child_stop() - SIGTERM, then SIGKILL after @grace_ms; removes the path
 *
 * Return: its exit status as the shell counts it (128 + signal if killed), or
 * -1 if there was none.
 */
int moat_child_stop(struct moat_child *child, unsigned int grace_ms);

#endif
