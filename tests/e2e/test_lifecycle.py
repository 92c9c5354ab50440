# SPDX-License-Identifier: Apache-2.0
"""VMMs come and go, backends die, signals arrive: the guard does what its
manual says, and leaves nothing behind."""
import os
import signal
import socket

import pytest

import guests
from backends import StorageDaemon, make_image
from guard import Guard
from machine import MIB, Machine, audit, ram_reached
from procs import Process, moat, wait_until

VMMS = ["uml", "qemu"]
READ = "dd if=/dev/vda iflag=direct bs=64k count=64 2>/dev/null | sha256sum"


def descriptors(process):
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
        return [int(p) for p in f.read().split()]


def alive(pid):
    """Whether a process, which need not be a child of ours, still runs."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("vmm", [
    "uml", pytest.param("qemu", marks=pytest.mark.additional)])
def test_vmms_come_and_go_at_the_same_guard(vmm):
    with Machine(vmm, boot=False) as m:
        wanted = m.fill(0, 4 * MIB)
        at_rest = descriptors(m.guard)
        mark = 0
        for end in ("poweroff", "kill", "poweroff"):
            guest = m.boot()
            assert guest.run(READ).split()[0] == wanted
            guest.run("dd if=/dev/zero of=/dev/vda seek=64 bs=1M count=4"
                      " conv=fsync 2>/dev/null")
            if end == "kill":   # a crash amid traffic
                guest.start("while :; do dd if=/dev/vda of=/dev/null bs=64k "
                            "count=16 iflag=direct; done")
                guest.kill()
            else:
                guest.poweroff()
            mark = m.guard.expect("VMM has left", mark).end()
            wait_until(lambda: descriptors(m.guard) == at_rest,
                       "the guard closes what the session opened",
                       deadline=10)
        assert m.backend.running()
        assert m.guard.terminate() == 0


def test_a_guest_that_reboots_finds_its_disk_again():
    with Machine("qemu", boot=False) as m:
        wanted = m.fill(0, 4 * MIB)
        argv = guests.Qemu.disk(m.socket)
        # Without -no-reboot, so that the same QEMU resets the device.
        with guests.Qemu(argv, reboot=True) as guest:
            assert guest.run(READ).split()[0] == wanted
            mark = len(guest.log)
            guest.start("reboot -f")
            guest.expect("^@ready$", mark)
            assert guest.run(READ).split()[0] == wanted
            guest.poweroff()


@pytest.mark.parametrize("vmm", VMMS)
def test_a_backend_gone_while_idle_is_reported(vmm):
    with Machine(vmm) as m:
        m.guest.run(READ)
        m.backend.kill()
        assert m.guard.wait() == 1
        line, = (s for s in m.guard.log.splitlines() if "error: " in s)
        assert "backend" in line


def test_sigterm_ends_the_guard_well_with_a_guest_running():
    with Machine("uml") as m:
        m.guest.run(READ)
        assert m.guard.terminate() == 0
        assert not os.path.exists(m.socket)


def test_sigterm_ends_a_guard_that_waits_for_a_vmm():
    with Machine("uml", boot=False) as m:
        assert m.guard.terminate() == 0
        assert not os.path.exists(m.socket)


def test_once_means_one_vmm():
    with Machine("uml", options=["--once"]) as m:
        m.guest.run(READ)
        m.guest.poweroff()
        assert m.guard.wait() == 0


@pytest.mark.parametrize("ending", ["SIGTERM", "the backend dies"])
def test_exec_starts_the_backend_and_leaves_nothing_behind(work, ending):
    image = make_image(work / "disk", 64 * MIB)
    command = StorageDaemon.command("{socket}", image)
    with Guard(work / "guard", command=command) as guard:
        with guests.UserModeLinux([(work / "guard", 2)]) as guest:
            guest.run(READ)
            child, = children(guard.pid)
            # It inherited nothing from which it sees the guest.
            report = audit(child, guest.pid)
            assert ram_reached(report, guest.pid) >= 128 * MIB
            assert ram_reached(report, child) == 0
            if ending == "SIGTERM":
                assert guard.terminate() == 0
            else:
                os.kill(child, signal.SIGKILL)
                assert guard.wait() == 1
                assert "error: " in guard.log
            wait_until(lambda: not alive(child), "the backend is gone")


def test_a_connected_socket_will_do(work):
    image = make_image(work / "disk", 64 * MIB)
    ours, theirs = socket.socketpair()
    with ours, theirs, StorageDaemon(work / "b", image):
        argv = [moat(), "guard", f"--fd={ours.fileno()}",
                f"--backend={work / 'b'}"]
        with Process(argv, pass_fds=[ours.fileno()]) as guard:
            ours.close()
            os.set_inheritable(theirs.fileno(), True)
            with guests.Qemu(["-chardev",
                              f"socket,id=c0,fd={theirs.fileno()}",
                              "-device", "vhost-user-blk-pci,chardev=c0,"
                              "num-queues=1"],
                             pass_fds=[theirs.fileno()]) as guest:
                theirs.close()
                guest.run(READ)
                guest.poweroff()
            assert guard.wait() == 0
