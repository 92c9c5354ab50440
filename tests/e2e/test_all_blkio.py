# SPDX-License-Identifier: Apache-2.0
"""libblkio's driver (in QEMU 11.1's qemu-img and qemu-io) against
qemu-storage-daemon: a driver in user space that keeps many requests of any size
in flight, far beyond what a guest's kernel sends."""
import mmap
import os

import pytest

from backends import make_image
from peers import STORAGE_DAEMONS, blkio, front, qemu_tool, sha256
from procs import Workdir

IMAGE = 256 << 20
GAP = 4096
CANARY = 0xC5
LOADS = [(512, 1), (512, 64), (4096, 1), (4096, 32), (65536, 16),
         (128 << 10, 8), (1 << 20, 1), (1 << 20, 64), (2 << 20, 1),
         (2 << 20, 8), (2 << 20, 64)]
LOAD_NAMES = [f"{size}B-x{depth}" for size, depth in LOADS]


class Disk:
    """A disk's file and the socket that its driver connects to."""

    def __init__(self, image, socket_path):
        self.image = image
        self.socket_path = socket_path

    def bench(self, *options):
        return qemu_tool("qemu-img", "bench", "-t", "none", *options,
                         "--image-opts", blkio(self.socket_path))

    def io(self, *commands):
        argv = ["qemu-io", "--image-opts", blkio(self.socket_path)]
        for command in commands:
            argv += ["-c", command]
        output = qemu_tool(*argv)
        # It goes on after a failure, and ends with 0.
        assert "failed" not in output and "error" not in output.lower(), output
        return output

    def open(self):
        fd = os.open(self.image, os.O_RDWR)
        try:
            return mmap.mmap(fd, IMAGE)
        finally:
            os.close(fd)


def places(size, most):
    """Offsets of requests of a size, with gaps between them, over the disk."""
    return list(range(0, IMAGE - size - GAP, size + GAP))[:most]


@pytest.fixture(params=[(daemon, guarded) for daemon in STORAGE_DAEMONS
                        for guarded in (False, True)],
                ids=lambda p: f"{p[0]}-{'guarded' if p[1] else 'straight'}",
                scope="module", name="disk")
def fixture_disk(request):
    daemon, guarded = request.param
    with Workdir() as work:
        image = make_image(work / "disk", IMAGE)
        with STORAGE_DAEMONS[daemon](work / "disk.sock", image) as backend, \
                front(guarded, work, backend.socket_path) as socket_path:
            yield Disk(image, socket_path)


@pytest.mark.parametrize("size,depth", LOADS, ids=LOAD_NAMES)
def test_writes_arrive_and_nothing_else_changes(disk, size, depth):
    offsets = places(size, 1000)
    with disk.open() as data:
        for at in range(0, IMAGE, 1 << 20):
            data[at:at + (1 << 20)] = bytes([CANARY]) * (1 << 20)
        disk.bench("-w", "--pattern", "0x5a", "-c", str(len(offsets)), "-d",
                   str(depth), "-s", str(size), "-S", str(size + GAP))
        block, gap = b"\x5a" * size, bytes([CANARY]) * GAP
        for at in offsets:
            assert data[at:at + size] == block, f"write at {at:#x}"
            assert data[at + size:at + size + GAP] == gap, f"after {at:#x}"
        end = offsets[-1] + size
        assert data[end:IMAGE] == bytes([CANARY]) * (IMAGE - end)


@pytest.mark.parametrize("size,depth", LOADS, ids=LOAD_NAMES)
def test_reads_in_flight_together_each_bring_their_own_data(disk, size, depth):
    offsets = places(size, max(depth, 16))
    with disk.open() as data:
        for i, at in enumerate(offsets):
            data[at:at + size] = bytes([i % 251 + 1]) * size
    commands = []
    for i, at in enumerate(offsets):
        commands.append(f"aio_read -q -P {i % 251 + 1} {at} {size}")
        if (i + 1) % depth == 0:
            commands.append("aio_flush")
    disk.io(*commands, "aio_flush")


@pytest.mark.parametrize("size,depth", LOADS, ids=LOAD_NAMES)
def test_many_reads_all_complete(disk, size, depth):
    count = 5000 if size <= 65536 else 300
    disk.bench("-c", str(count), "-d", str(depth), "-s", str(size))


def test_a_whole_disk_is_copied_in_and_out(disk):
    with Workdir() as work:
        source, copy = work / "source", work / "copy"
        with open(source, "wb") as f:
            for _ in range(16):
                f.write(os.urandom(1 << 20) + bytes(3 << 20))
            f.truncate(IMAGE)
        # -S 0: no "write zeroes" for holes, which this driver sends larger
        # than the device says that it takes.
        qemu_tool("qemu-img", "convert", "-n", "-S", "0", "-W", "-m", "16",
                  "-f", "raw", source, "--target-image-opts",
                  blkio(disk.socket_path))
        assert sha256(disk.image) == sha256(source)
        qemu_tool("qemu-img", "convert", "-W", "-m", "16", "-O", "raw",
                  "--image-opts", blkio(disk.socket_path), copy)
        assert sha256(copy) == sha256(source)


def test_discard_zeroes_and_flush_reach_the_disk(disk):
    with disk.open() as data:
        data[0:8 << 20] = b"\x33" * (8 << 20)
        disk.io("write -z 1M 1M", "discard 4M 2M", "write -P 7 7M 64k", "flush",
                "read -P 0x33 0 1M", "read -P 0 1M 1M", "read -P 0x33 2M 2M",
                "read -P 0 4M 2M", "read -P 0x33 6M 1M", "read -P 7 7M 64k")
        assert data[1 << 20:2 << 20] == bytes(1 << 20)
        assert data[4 << 20:6 << 20] == bytes(2 << 20)
        assert data[7 << 20:(7 << 20) + 65536] == b"\x07" * 65536
        assert data[2 << 20:4 << 20] == b"\x33" * (2 << 20)


@pytest.mark.parametrize("daemon", list(STORAGE_DAEMONS))
def test_a_pool_far_smaller_than_the_load_only_slows_it(daemon):
    """64 times 1 MiB in flight, and 4 MiB to put them."""
    with Workdir() as work:
        image = make_image(work / "disk", IMAGE)
        with STORAGE_DAEMONS[daemon](work / "disk.sock", image) as backend, \
                front(True, work, backend.socket_path,
                      ["--pool-size=4M"]) as socket_path:
            disk = Disk(image, socket_path)
            disk.bench("-w", "--pattern", "0x6b", "-c", "200", "-d", "64",
                       "-s", "1M")
            with disk.open() as data:
                for at in range(0, 200 << 20, 1 << 20):
                    assert data[at:at + (1 << 20)] == b"\x6b" * (1 << 20)
            disk.io(*[f"aio_read -q -P 0x6b {at}M 1M" for at in range(64)],
                    "aio_flush")


def test_drivers_come_and_go_before_one_guard():
    with Workdir() as work:
        image = make_image(work / "disk", IMAGE)
        with STORAGE_DAEMONS["newer"](work / "disk.sock", image) as backend, \
                front(True, work, backend.socket_path) as socket_path:
            disk = Disk(image, socket_path)
            for i in range(1, 11):
                disk.io(f"write -P {i} {i}M 1M")
                disk.io(f"read -P {i} {i}M 1M")
