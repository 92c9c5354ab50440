# SPDX-License-Identifier: Apache-2.0
"""A shared memory region in QEMU 11.1: what a backend maps through the guard
is a guest's memory, behind a BAR, and the guest's RAM is not the backend's."""
import contextlib
import os
import signal

import pytest

from machine import audit, ram_reached
from peers import Qemu11, Server, front
from procs import Workdir, build_dir, wait_until

PAGE = 4096
AT = 0x10000  # in the region
SIZE = 64 << 20
LET_US = "iomem=relaxed"  # see through the region that a driver has claimed
DEVICE_FS = 26  # its driver starts the queues


def window(work, *options, size=4 * PAGE):
    """The device of tests/tools/window.c: it maps its file once it may."""
    path = work / "shown"
    with open(path, "wb") as f:
        f.write(b"from the host..." * (-(-size // 16)))
    os.truncate(path, size)
    return Server([os.path.join(build_dir(), "tests/tools/window"),
                   f"--socket-path={work / 'w.sock'}", f"--file={path}",
                   f"--size={SIZE}", "--num-queues=2", f"--at={AT}",
                   *options], "window", work / "w.sock")


def test_device(socket_path):
    return ["-chardev", f"socket,id=w,path={socket_path}", "-device",
            f"vhost-user-test-device-pci,chardev=w,virtio-id={DEVICE_FS},"
            "num_vqs=2,vq_size=64,config_size=40"]


test_device.__test__ = False  # it is QEMU's name

FIND = r"""
cd /sys/bus/pci/devices
for d in *; do
    [ $(cat $d/device) = 0x105a ] || continue
    n=0
    while read start end flags; do
        [ $n = 4 ] && echo $start $end
        n=$((n + 1))
    done <$d/resource
done
"""


class Bar:
    def __init__(self, guest):
        self.guest = guest
        words = guest.run(FIND).split()
        assert len(words) == 2, words
        self.start, end = (int(w, 16) for w in words)
        assert self.start and end + 1 - self.start == SIZE

    def read(self, offset, length):
        """Bytes of the region, eight at a time."""
        out = self.guest.run(
            f"i=0; while [ $i -lt {length} ]; do "
            f"busybox devmem $(({self.start + offset} + i)) 64; "
            "i=$((i + 8)); done")
        return b"".join(int(word, 16).to_bytes(8, "little")
                        for word in out.split())

    def write(self, offset, data):
        assert len(data) == 8
        value = int.from_bytes(data, "little")
        self.guest.run(f"busybox devmem $(({self.start + offset})) 64 {value}")


@contextlib.contextmanager
def machine(guarded, *options, size=4 * PAGE):
    with Workdir() as work, \
            window(work, *options, size=size) as backend, \
            front(guarded, work, backend.socket_path,
                  ["--device=fs"]) as socket_path, \
            Qemu11(test_device(socket_path), append=LET_US) as guest:
        backend.expect(r"mapped: (-?\d+)")
        yield guest, backend, work
        assert guest.poweroff() == 0


@pytest.mark.parametrize("guarded", [False, True],
                         ids=["straight", "guarded"])
def test_guest_and_host_see_one_memory(guarded):
    with machine(guarded, f"--len={4 * PAGE}") as (guest, backend, work):
        assert "mapped: 0\n" in backend.log
        bar = Bar(guest)
        assert bar.read(AT, 32) == b"from the host..." * 2
        assert bar.read(AT + 4 * PAGE - 16, 16) == b"from the host..."
        with open(work / "shown", "r+b", buffering=0) as f:
            os.pwrite(f.fileno(), b"changed!", PAGE)
            assert bar.read(AT + PAGE, 8) == b"changed!"
            bar.write(AT + 2 * PAGE, b"by guest")
            wait_until(lambda: os.pread(f.fileno(), 8, 2 * PAGE)
                       == b"by guest", "the guest's write in the file")


@pytest.mark.parametrize("guarded", [False, True],
                         ids=["straight", "guarded"])
def test_what_is_shown_is_not_written_only_with_the_guard(guarded):
    """QEMU 11.1.3 maps what is to be read-only in a way that the guest can
    write.  (Of an fd that is not open for writing it maps nothing at all.)"""
    with machine(guarded, f"--len={4 * PAGE}", "--show-only") as (
            guest, backend, work):
        assert f"mapped: {-5 if guarded else 0}\n" in backend.log
        bar = Bar(guest)
        bar.write(AT, b"by guest")
        bar.read(AT, 8)
        with open(work / "shown", "rb") as f:
            assert f.read(8) == (b"from the" if guarded else b"by guest")


def test_the_backend_reaches_no_guest_ram():
    with machine(True, f"--len={4 * PAGE}") as (guest, backend, _):
        report = audit(guest.pid, backend.pid)
        assert ram_reached(report, guest.pid) >= 128 << 20
        assert ram_reached(report, backend.pid) == 0


@pytest.mark.parametrize("guarded", [False, True],
                         ids=["straight", "guarded"])
def test_what_is_unmapped_is_gone_and_may_come_again(guarded):
    with machine(guarded, f"--len={4 * PAGE}") as (guest, backend, _):
        bar = Bar(guest)
        for _ in range(3):
            assert bar.read(AT, 8) == b"from the"
            mark = len(backend.log)
            os.kill(backend.pid, signal.SIGHUP)
            assert backend.expect(r"unmapped: (-?\d+)", mark)[1] == "0"
            assert bar.read(AT, 8) != b"from the"
            mark = len(backend.log)
            os.kill(backend.pid, signal.SIGHUP)
            assert backend.expect(r" mapped: (-?\d+)", mark)[1] == "0"


def test_a_reset_device_is_mapped_into_again():
    """The guest's driver lets go of the device and takes it again.  With
    something mapped QEMU 11.1.3 does not survive that, nor a reboot, with or
    without a guard; so nothing is."""
    with machine(True, f"--len={4 * PAGE}") as (guest, backend, _):
        bar = Bar(guest)
        assert bar.read(AT, 8) == b"from the"
        mark = len(backend.log)
        os.kill(backend.pid, signal.SIGHUP)
        assert backend.expect(r"unmapped: (-?\d+)", mark)[1] == "0"
        guest.run("""
cd /sys/bus/virtio/drivers/virtiofs
for d in virtio*; do echo $d >unbind; echo $d >bind; done
""")
        mark = len(backend.log)
        os.kill(backend.pid, signal.SIGHUP)
        assert backend.expect(r" mapped: (-?\d+)", mark)[1] == "0"
        assert bar.read(AT, 8) == b"from the"
