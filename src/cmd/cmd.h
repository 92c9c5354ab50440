/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The commands of moat: one small file each, all with main()'s own shape.
 * argv[0] is the command's name ("guard"); the return value is the exit
 * status of the process.
 */
#ifndef MOAT_CMD_CMD_H
#define MOAT_CMD_CMD_H

int moat_cmd_audit(int argc, char **argv);
int moat_cmd_dt(int argc, char **argv);
int moat_cmd_guard(int argc, char **argv);

#endif
