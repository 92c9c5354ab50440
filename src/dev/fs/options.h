/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line, with virtiofsd's names where they mean the same.
 */
#ifndef MOAT_DEV_FS_OPTIONS_H
#define MOAT_DEV_FS_OPTIONS_H

#include "dev/fs/fs.h"

/** struct fs_compat - a command line; @made: what of it was made here */
struct fs_compat {
	char **argv, **made;
	int argc, nmade;
};

/**
 * fs_compat_args() - the command line, with virtiofsd's older way put in ours
 *
 * Return: 0, or -ENOMEM. Option values point into it until fs_compat_free().
 */
int fs_compat_args(struct fs_compat *c, int argc, char **argv);
void fs_compat_free(struct fs_compat *c);

struct fs_args {
	struct moat_device_config config;
	struct fs_options fs;
	struct fs_compat compat; /* what the options point into */
};

/**
 * fs_options_parse() - fill in @args, with what it has set before
 *
 * Ends the program after --help and the like.
 *
 * Return: 0, or 2 for bad usage, which was said.
 */
int fs_options_parse(struct fs_args *args, int argc, char **argv);

#endif
