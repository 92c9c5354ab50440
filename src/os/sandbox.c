/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <linux/capability.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "os/sandbox.h"

int moat_sandbox_hide(void)
{
	return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) ? -errno : 0;
}

int moat_sandbox_privileges(uint64_t keep)
{
	struct __user_cap_header_struct head = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct cap[2] = { { 0 } };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
		return -errno;
	/* Fails without CAP_SETPCAP: then there is nothing to drop either. */
	for (unsigned int i = 0; i <= CAP_LAST_CAP; i++)
		if (!(keep >> i & 1))
			prctl(PR_CAPBSET_DROP, i, 0, 0, 0);
	if (syscall(SYS_capget, &head, cap))
		return -errno;
	for (unsigned int i = 0; i < 2; i++) {
		cap[i].permitted &= (uint32_t)(keep >> 32 * i);
		cap[i].effective = cap[i].permitted;
		cap[i].inheritable = 0;
	}
	if (syscall(SYS_capset, &head, cap))
		return -errno;
	return 0;
}

static int allow(scmp_filter_ctx ctx, const struct moat_syscall *s)
{
	int nr = seccomp_syscall_resolve_name(s->name);

	if (nr == __NR_SCMP_ERROR || nr < 0)
		return 0;
	if (s->arg)
		return seccomp_rule_add(ctx, SCMP_ACT_ALLOW, nr, 1,
					SCMP_CMP(s->arg - 1, SCMP_CMP_EQ,
						 s->value));
	return seccomp_rule_add(ctx, SCMP_ACT_ALLOW, nr, 0);
}

int moat_sandbox_syscalls(const struct moat_syscall *list)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
	int ret;

	if (!ctx)
		return -ENOMEM;
	ret = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);
	if (!ret)
		ret = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
				       SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC,
					       0));
	if (!ret)
		ret = seccomp_rule_add(
			ctx, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
			SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	for (; !ret && list->name; list++)
		ret = allow(ctx, list);
	if (!ret)
		ret = seccomp_load(ctx);
	seccomp_release(ctx);
	return ret;
}
