# SPDX-License-Identifier: Apache-2.0
"""A folder that moat-fs shares is to a guest what it is to the host."""
import hashlib
import os
import re
import signal

import pytest

from fs import Shared, different, host_table, table
from procs import wait_until

FULL = ["--xattr", "--posix-acl", "--posix-lock", "--flock"]

# What a table in a guest may differ in from the host's, and why.
EXPECTED = [
    # The daemon has no CAP_SYS_ADMIN, as virtiofsd has none.
    r"setxattr\(\"x\", \"trusted.t\"", r"  trusted\.t",
    # Before Linux 6.3 FUSE does not say the supplementary groups of who
    # creates a file, so that it is made by one who is not of the group.
    r"u/setgid/in: mode 10[02]755",
]
ON_UML = pytest.mark.parametrize("shared", ["uml"], indirect=True)


def surprises(guest, host):
    """The lines that differ and are not expected to."""
    host = [line for line in host.splitlines() if "  trusted.t" not in line]
    return [pair for pair in different(guest, "\n".join(host))
            if not any(re.match(e, pair[0]) for e in EXPECTED)]


@pytest.fixture(scope="module", params=["uml", "qemu"])
def shared(request):
    with Shared(request.param, options=FULL,
                tools=request.param == "uml") as s:
        yield s
        s.well()


def test_operations_have_the_host_s_results(shared):
    assert surprises(table(shared), host_table(shared.folder)) == []


def test_random_operations_on_a_file_agree_with_an_oracle(shared):
    steps = 500 if shared.vmm == "uml" else 150
    shared.guest.run(f"cd /mnt/w; ../fsops random file 1 {steps} mmap")


def test_random_operations_on_a_tree_agree_with_a_local_one(shared):
    steps = 1500 if shared.vmm == "uml" else 500
    shared.guest.run(f"mkdir /mnt/w/tree /tmp/tree; cd /mnt/w; "
                     f"../fsops tree tree /tmp/tree 1 {steps}; rm -r tree")


def test_names_and_sizes_may_be_what_they_like(shared):
    shared.guest.run("mkdir /mnt/w/odd; cd /mnt/w; ../fsops names odd; "
                     "../fsops sparse odd; rmdir odd")


def test_guest_and_host_see_each_other_s_files(shared):
    data = os.urandom(3 << 20)
    with open(shared.folder + "/w/host", "wb") as f:
        f.write(data)
    got = shared.guest.run("""cd /mnt/w; sha256sum <host; mkdir -p made/by
        head -c 3000000 /dev/urandom >made/by/guest
        ln -s by/guest made/link; sha256sum <made/link""").split()
    assert got[0] == hashlib.sha256(data).hexdigest()
    with open(shared.folder + "/w/made/link", "rb") as f:
        assert got[2] == hashlib.sha256(f.read()).hexdigest()
    with open(shared.folder + "/w/host", "r+b") as f:
        f.write(b"changed by the host")
    shared.guest.run("cd /mnt/w; i=0; until grep -q 'changed by' host; do "
                     "i=$((i+1)); [ $i -lt 1000 ]; usleep 10000; done; "
                     "rm -r host made")
    assert sorted(os.listdir(shared.folder + "/w")) == []


@ON_UML
def test_a_compiler_and_git_work_on_it(shared):
    """The host's own, from a second, read-only share of its root."""
    with open(shared.folder + "/w/main.c", "w", encoding="ascii") as f:
        f.write('#include <stdio.h>\nint main(void) { puts("built"); }\n')
    assert shared.host("""
        git init -q repo && cd repo && mv ../main.c . &&
        git add main.c && git -c user.name=x -c user.email=x@x commit -qm x &&
        git clone -q . ../clone && cd ../clone &&
        cc -O1 -o main main.c && ./main && git status --porcelain &&
        git fsck --strict 2>&1 && cd .. && rm -r repo clone
    """).splitlines()[:2] == ["built", "?? main"]


def test_a_guest_goes_on_when_the_daemon_is_killed():
    """User-mode Linux: what comes after the kill fails, and nothing hangs but
    what had been asked before; what is on the host is whole files."""
    with Shared("uml") as s:
        s.guest.run("cd /mnt/w; ../fsops load . 1 2 >/tmp/load 2>&1 &"
                    "until grep -q 'load 2: 63' /tmp/load; do usleep 10000; "
                    "done")
        children = s.daemon.children
        os.kill(s.daemon.pid, signal.SIGKILL)
        wait_until(lambda: not any(map(alive, children)),
                   "the daemon's child ends with it")
        assert "not connected" in s.guest.run(
            "ls /mnt/w 2>&1 || true; echo still here")
        check_load(s.folder + "/w")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as f:
            return f.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def check_load(folder):
    """Each file that was renamed into place is one that was written whole."""
    names = [n for n in os.listdir(folder) if not n.endswith(".new")]
    assert len(names) > 20
    for name in names:
        assert os.path.getsize(os.path.join(folder, name)) % 8 == 0
    # Of those under way there is at most one for each of the processes.
    assert len(os.listdir(folder)) - len(names) <= 2
