# SPDX-License-Identifier: Apache-2.0
"""moat-fs beside virtiofsd, under load, with newer peers, in each cache policy."""
import difflib
import os
import re
import signal

import pytest

from fs import TAG, MoatFs, Shared, host_table, table, virtiofsd
from peers import check_ended
from procs import TOP
from test_fs import FULL, check_load, surprises

# Of stress-ng: what works with files, each of it checking what it does.
STRESSORS = """access chattr chdir chmod chown copy-file dentry dir dirdeep
    dirmany fallocate fcntl fiemap file-ioctl filename flock fpunch fstat
    getdent hdd inode-flags io iomix lease link locka lockf lockofd mknod mmap
    msync open readahead rename seek sendfile sync-file symlink touch utime
    verity xattr""".split()


@pytest.mark.parametrize("guarded", [False, True],
                         ids=["straight", "guarded"])
def test_a_newer_guest_gets_the_host_s_results(guarded):
    """QEMU 11.1, Linux 6.12."""
    with Shared("qemu11", guarded, options=FULL, guard=["--device=fs"]) as s:
        assert surprises(table(s), host_table(s.folder)) == []
        s.guest.run("cd /mnt/w; ../fsops random file 2 150 mmap; "
                    "mkdir tree /tmp/tree; "
                    "../fsops tree tree /tmp/tree 2 500")
        s.well()


# What virtiofsd answers otherwise than the host, and moat-fs does not.
VIRTIOFSD = [
    # It has no TMPFILE: the lines are there, and those of what is done with
    # such a file.
    r".*O_TMPFILE.* = ", r"write\(fd, \"unnamed\"", r"linkat\(AT_FDCWD, path",
    r"named", r"close\(fd\)", r"unlink\(\"named\"\)",
    # Where it leaves a bit to the guest, and moat-fs clears it.
    r"u/open/mine: mode 10[02]644",
]


def test_virtiofsd_and_moat_fs_answer_the_same():
    tables = {}
    for daemon in (MoatFs, virtiofsd):
        with Shared("uml", True, daemon, ["--xattr", "--posix-acl"],
                    guard=["--device=fs", "--once"]) as s:
            tables[daemon] = table(s)
            s.guest.run("umount /mnt")
            assert s.guest.poweroff() == 0
            check_ended(s.guard)
    differs = [line for line in difflib.unified_diff(
        tables[virtiofsd].splitlines(), tables[MoatFs].splitlines(), n=0,
        lineterm="") if line[0] in "+-" and line[:3] not in ("+++", "---")]
    strange = [line for line in differs
               if not any(re.match(e, line[1:]) for e in VIRTIOFSD)]
    assert strange == []


CACHES = {
    "auto": [], "never": ["--cache=never"], "metadata": ["--cache=metadata"],
    "always": ["--cache=always"],
    "writeback": ["--cache=always", "--writeback"],
    "no-threads": ["--thread-pool-size=0", "--no-readdirplus"],
    "direct": ["--allow-direct-io"], "handles": [
        "--inode-file-handles=mandatory", "--sandbox=seccomp"],
}


@pytest.mark.parametrize("cache", CACHES)
def test_each_cache_policy_keeps_data_and_trees_right(cache):
    # Without a cache there is no memory that is shared with others.
    maps = "" if cache in ("never", "metadata") else "mmap"
    with Shared("uml", options=[*CACHES[cache], "--xattr"]) as s:
        s.guest.run(f"""cd /mnt/w; mkdir tree /tmp/tree odd
            ../fsops random file 3 400 {maps}
            ../fsops tree tree /tmp/tree 3 1000
            ../fsops names odd; ../fsops sparse odd""")
        assert os.listdir(s.folder + "/w/odd") == []
        s.well()


def test_a_hundred_thousand_files_are_listed_once_each():
    made, count = 98000, 100000
    with Shared("uml", options=["--inode-file-handles=prefer",
                                "--sandbox=seccomp"]) as s:
        where = os.open(s.folder + "/w", os.O_RDONLY)
        for n in range(made):
            os.close(os.open(f"f{n}", os.O_CREAT, 0o644, dir_fd=where))
        os.close(where)
        s.guest.run(f"/mnt/fsops many /mnt/w {made} {count}", deadline=200)
        assert len(os.listdir(s.folder + "/w")) == count - count // 20
        s.well()


def test_the_stressors_of_stress_ng_find_nothing_wrong():
    """Four at a time, which share the folder. The guest keeps its locks to
    itself: Linux's virtio-fs has no interrupts, so that of two processes one
    that waits for the other's lock outlives its kill, which lockf does."""
    with Shared("uml", options=["--xattr", "--posix-acl"], tools=True,
                memory=512) as s:
        for at in range(0, len(STRESSORS), 4):
            which = " ".join(f"--{n} 1" for n in STRESSORS[at:at + 4])
            said, _, status = s.host(
                f"stress-ng {which} --timeout 1 --verify --no-rand-seed 2>&1; "
                "echo $?", deadline=120).rpartition("\n")
            assert status == "0", said
        assert os.listdir(s.folder + "/w") == []
        s.well()


def test_a_repository_is_cloned_and_built_on_it():
    with Shared("uml", options=["--xattr"], tools=True, memory=512) as s:
        s.host(f"""
            cp -r {TOP}/src {TOP}/include . && git init -q &&
            git add . && git -c user.name=x -c user.email=x@x commit -qm x &&
            git clone -q --no-local . ../w/clone && cd clone &&
            for f in src/core/*.c; do cc -std=gnu17 -O1 -Isrc -c $f &
            done; wait && ar rc core.a *.o && nm core.a >/dev/null &&
            git gc -q && git fsck --strict && git diff --exit-code
        """, deadline=200)
        objects = [n for n in os.listdir(s.folder + "/w/clone")
                   if n.endswith(".o")]
        assert len(objects) > 10
        s.well()


@pytest.mark.parametrize("vmm", ["qemu", "qemu11"])
def test_a_guest_lives_on_when_the_daemon_is_killed(vmm):
    """QEMU does not tell a guest that its file system's other end has gone:
    who waits for it waits. The guest itself goes on, and the host has whole
    files."""
    with Shared(vmm) as s:
        s.guest.run("cd /mnt/w; ../fsops load . 1 2 >/tmp/load 2>&1 &"
                    "until grep -q 'load 1: 63' /tmp/load && "
                    "grep -q 'load 2: 63' /tmp/load; do usleep 10000; done")
        os.kill(s.daemon.pid, signal.SIGKILL)
        s.daemon.wait()
        assert s.guest.run("echo alive; (ls /mnt/w >/dev/null 2>&1 &); "
                           "cat /proc/loadavg").startswith("alive")
        check_load(s.folder + "/w")
        assert s.guest.running()


def test_after_a_kill_a_fresh_daemon_serves_the_next_guest():
    with Shared("uml") as s:
        s.guest.run("cd /mnt/w; echo kept >file; ../fsops load . 1 1 "
                    ">/tmp/load 2>&1 & until grep -q 'load 1: 63' /tmp/load; "
                    "do usleep 10000; done")
        os.kill(s.daemon.pid, signal.SIGKILL)
        s.daemon.wait()
        s.guest.kill()
        with MoatFs(s.socket, s.folder) as again, \
                s.boot([s.socket], 128, 1) as guest:
            assert guest.run(f"mount -t virtiofs {TAG} /mnt; "
                             "cat /mnt/w/file") == "kept"
            assert guest.poweroff() == 0
            assert "error: " not in again.log
