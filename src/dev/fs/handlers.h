/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The handlers of all opcodes, for the table in dispatch.c. Each returns as
 * struct fs_op's handle does (fs.h).
 */
#ifndef MOAT_DEV_FS_HANDLERS_H
#define MOAT_DEV_FS_HANDLERS_H

struct fs_req;

int fs_op_init(struct fs_req *r);
int fs_op_destroy(struct fs_req *r);

int fs_op_lookup(struct fs_req *r);
int fs_op_forget(struct fs_req *r);
int fs_op_batch_forget(struct fs_req *r);
int fs_op_mknod(struct fs_req *r);
int fs_op_mkdir(struct fs_req *r);
int fs_op_symlink(struct fs_req *r);
int fs_op_link(struct fs_req *r);
int fs_op_unlink(struct fs_req *r);
int fs_op_rmdir(struct fs_req *r);
int fs_op_rename(struct fs_req *r);
int fs_op_rename2(struct fs_req *r);
int fs_op_readlink(struct fs_req *r);

int fs_op_getattr(struct fs_req *r);
int fs_op_setattr(struct fs_req *r);
int fs_op_statx(struct fs_req *r);
int fs_op_statfs(struct fs_req *r);
int fs_op_access(struct fs_req *r);

int fs_op_open(struct fs_req *r);
int fs_op_create(struct fs_req *r);
int fs_op_tmpfile(struct fs_req *r);
int fs_op_flush(struct fs_req *r);
int fs_op_release(struct fs_req *r);
int fs_op_fsync(struct fs_req *r);
int fs_op_syncfs(struct fs_req *r);

int fs_op_read(struct fs_req *r);
int fs_op_write(struct fs_req *r);
int fs_op_fallocate(struct fs_req *r);
int fs_op_lseek(struct fs_req *r);
int fs_op_copy_file_range(struct fs_req *r);

int fs_op_opendir(struct fs_req *r);
int fs_op_readdir(struct fs_req *r);
int fs_op_readdirplus(struct fs_req *r);

int fs_op_setxattr(struct fs_req *r);
int fs_op_getxattr(struct fs_req *r);
int fs_op_listxattr(struct fs_req *r);
int fs_op_removexattr(struct fs_req *r);

int fs_op_getlk(struct fs_req *r);
int fs_op_setlk(struct fs_req *r);
int fs_op_setlkw(struct fs_req *r);
int fs_op_interrupt(struct fs_req *r);

int fs_op_setupmapping(struct fs_req *r);
int fs_op_removemapping(struct fs_req *r);

#endif
