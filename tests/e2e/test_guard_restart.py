# SPDX-License-Identifier: Apache-2.0
"""A guest does not notice that its backend was killed: the guard starts
another one, or connects to it (--restart)."""
import contextlib
import hashlib
import os
import re
import signal

import pytest

import guests
from backends import MoatBlk, StorageDaemon, make_image
from guard import Guard
from machine import MIB
from procs import Workdir, build_dir, wait_until

KILLS = 4
LAPS = 100
OPTIONS = ["--restart=20", "--restart-ms=20000"]

# Each lap is written past the guest's cache and read back.
LOAD = f"""
set -e
for i in $(seq {LAPS}); do
    head -c 262144 /dev/urandom >/tmp/lap
    dd if=/tmp/lap of=/dev/vda oflag=direct bs=4k \
        seek=$((i % 50 * 64)) conv=notrunc 2>/dev/null
    dd if=/dev/vda iflag=direct bs=4k count=64 \
        skip=$((i % 50 * 64)) 2>/dev/null | cmp - /tmp/lap
    cat /tmp/lap >/tmp/last$((i % 50))
    echo @lap $i
done
for i in $(seq 0 49); do cat /tmp/last$i; done | sha256sum
dmesg | grep -ci 'i/o error' || true"""


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
        return [int(p) for p in f.read().split()]


def family(pid):
    """A process and all below it, the youngest first."""
    out = [pid]
    for child in children(pid):
        out = family(child) + out
    return out


def backend_of(guard):
    """Starter, command: its pid, once it is there."""
    def look():
        for starter in children(guard.pid):
            for child in children(starter):
                return child
        return None
    return wait_until(look, "the backend runs")


def kill(pid):
    """It may end by itself, once one of its family has."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def loaded(guest, image, kill_one):
    """The guest works while backends are killed; nothing is lost."""
    job = guest.start(LOAD)
    for n in range(KILLS):
        guest.expect(f"^@lap {(n + 1) * LAPS // (KILLS + 1)}$")
        kill_one()
    lines = guest.finish(job).splitlines()
    assert lines[-1] == "0", "I/O errors in the guest"
    with open(image, "rb") as f:
        wanted = hashlib.sha256(f.read(50 * 262144)).hexdigest()
    assert lines[-2].split()[0] == wanted


@pytest.mark.parametrize("backend", [
    pytest.param(StorageDaemon, id="qemu-storage-daemon",
                 marks=pytest.mark.additional),
    pytest.param(MoatBlk, id="moat-blk")])
@pytest.mark.parametrize("vmm", [
    "uml", pytest.param("qemu", marks=pytest.mark.additional)])
def test_a_guest_sees_no_error_while_the_guard_starts_others(vmm, backend):
    with Workdir() as work:
        image = make_image(work / "disk", 64 * MIB)
        with Guard(work / "guard", command=backend.command("{socket}", image),
                   options=["--device=blk", *OPTIONS]) as guard:
            with guests.boot(vmm, guard.socket_path) as guest:
                loaded(guest, image,
                       lambda: kill(family(backend_of(guard))[0]))
                assert guest.poweroff() == 0
            goes_on = "another backend goes on"
            assert len(re.findall(goes_on, guard.log)) == KILLS
            starter, = children(guard.pid)
            below = family(starter)
            assert guard.terminate() == 0
            wait_until(lambda: not any(os.path.exists(f"/proc/{p}")
                                       for p in below),
                       "starter and backend end with the guard")


@pytest.mark.additional
def test_a_guest_sees_no_error_while_others_are_connected_to():
    with Workdir() as work:
        image = make_image(work / "disk", 64 * MIB)
        path = work / "backend"
        backend = [StorageDaemon(path, image)]

        def replace():
            backend[0].kill()
            os.unlink(path)
            backend[0] = StorageDaemon(path, image)
        try:
            with Guard(work / "guard", path,
                       options=["--device=blk", *OPTIONS]) as guard, \
                    guests.boot("uml", guard.socket_path) as guest:
                loaded(guest, image, replace)
        finally:
            backend[0].kill()


FS = 26
# Two that read and write all the time, past the cache; they say how it went.
FS_LOAD = """
mkdir -p /mnt; mount -t virtiofs moat /mnt
(n=0; while [ ! -e /tmp/stop ]; do
    dd if=/mnt/large of=/dev/null bs=64k iflag=direct 2>/dev/null || n=$((n+1))
done; echo $n >/tmp/reader) &
(n=0; while [ ! -e /tmp/stop ]; do
    { echo $n >/mnt/small$((n % 5)); } 2>/dev/null || true; n=$((n+1))
done; echo $n >/tmp/writer) &
"""

BOTH_END = """
while [ ! -s /tmp/reader ] || [ ! -s /tmp/writer ]; do sleep 0.1; done"""


def moat_fs(folder):
    return [os.path.join(build_dir(), "src/dev/fs/moat-fs"),
            f"--shared-dir={folder}", "--socket-path={socket}"]


@pytest.mark.parametrize("whole", [False, True], ids=["child", "all"])
def test_no_process_of_a_guest_hangs_when_moat_fs_is_killed(whole):
    with Workdir() as work:
        folder = work / "share"
        os.mkdir(folder)
        data = os.urandom(8 * MIB)
        with open(folder + "/large", "wb") as f:
            f.write(data)
        with Guard(work / "guard", command=moat_fs(folder),
                   options=["--device=fs", *OPTIONS]) as guard, \
                guests.UserModeLinux([(guard.socket_path, FS)]) as guest:
            guest.run(FS_LOAD)
            for _ in range(KILLS):
                guest.run("sleep 0.3")  # of work
                pids = family(backend_of(guard))
                mark = len(guard.log)
                for pid in pids if whole else pids[:1]:
                    kill(pid)
                guard.expect("another backend goes on", mark)
            guest.run("touch /tmp/stop\n" + BOTH_END)
            stuck = guest.run("ps | grep ' D ' | grep -v grep || true")
            assert not stuck, stuck
            # What a new one gets is moat-fs's matter; it ends.
            guest.run("ls /mnt >/dev/null 2>&1 || true")
        with open(folder + "/large", "rb") as f:
            assert f.read() == data


@pytest.mark.parametrize("restart", [False, True],
                         ids=["without restart", "restarts used up"])
def test_without_another_moat_fs_all_processes_of_a_guest_end(restart):
    with Workdir() as work:
        folder = work / "share"
        os.mkdir(folder)
        make_image(folder + "/large", 8 * MIB)
        options = ["--device=fs"] + (["--restart=1"] if restart else [])
        with Guard(work / "guard", command=moat_fs(folder),
                   options=options) as guard, \
                guests.UserModeLinux([(guard.socket_path, FS)]) as guest:
            guest.run(FS_LOAD)
            for _ in range(1 + restart):
                guest.run("sleep 0.3")  # of work
                pid = backend_of(guard) if restart else children(guard.pid)[0]
                mark = len(guard.log)
                for one in family(pid):
                    kill(one)
                guard.expect("another backend goes on|without a backend", mark)
            guard.expect("without a backend")
            guest.run("touch /tmp/stop\n" + BOTH_END)
            status, output = guest.run("ls /mnt/", check=False)
            assert status and "not connected" in output, output
            guest.run("umount /mnt")
            guest.poweroff()
            assert guard.wait() == 1
