/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line, with virtiofsd's names where they mean the same.
 */
#ifndef MOAT_DEV_FS_OPTIONS_H
#define MOAT_DEV_FS_OPTIONS_H

#include "dev/fs/fs.h"

struct fs_args {
	struct moat_device_config config;
	struct fs_options fs;
};

/**
 * fs_options_parse() - fill in @args, with what it has set before
 *
 * Ends the program after --help and the like.
 *
 * Return: 0, or 2 for bad usage, which was said.
 */
int fs_options_parse(struct fs_args *args, int argc, char **argv);

/**
 * fs_compat_args() - the command line, with what is virtiofsd's older way in
 * ours
 *
 * Return: another @argv, whose parts are never freed, with *@argc set; NULL
 * without memory.
 */
char **fs_compat_args(int *argc, char **argv);

#endif
