/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The commands that are part of the program `moat` itself, all with main()'s
 * own shape; the others (audit.c, dt.c) are programs beside it, see moat.c.
 * argv[0] is the command's name ("guard"); the return value is the exit
 * status of the process.
 */
#ifndef MOAT_CMD_CMD_H
#define MOAT_CMD_CMD_H

int moat_cmd_guard(int argc, char **argv);

#endif
