#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""moat-blk on real block devices.

usage: blockdev.py NAME...

Runs as root where there are loop devices, scsi_debug and the device mapper, as
test_all_blkdev.py sees to. Says of each NAME "@passed NAME", or why not.
"""
import contextlib
import glob
import os
import signal
import struct
import subprocess
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[0] = os.path.join(os.path.dirname(HERE), "hostile")
sys.path.append(HERE)

from disk import DISCARD, FLUSH, IN, IOERR, OK, OUT, ZEROES, Disk, \
    one_line, seg  # noqa: E402
from guard import find_build  # noqa: E402
from procs import Workdir, wait_until  # noqa: E402

SECTORS = 16384     # 8 MiB
ENGINES = ("--engine=uring", "--engine=sync", "--cache=writeback",
           "--registered-buffers=on")


def run(*command, stdin=None):
    return subprocess.run(list(map(str, command)), check=True, text=True,
                          input=stdin, stdout=subprocess.PIPE).stdout.strip()


class DeviceDisk(Disk):
    """moat-blk on a block device, which is filled first."""

    def __init__(self, keep, folder, device, *options):
        self.device = device
        super().__init__(keep, folder, find_build("plain"), *options)

    def make_image(self, folder):
        with open(self.device, "wb") as f:
            size = f.seek(0, os.SEEK_END)
            f.seek(0)
            self.data = bytearray(os.urandom(64 << 10) * (size >> 16))
            f.write(self.data)
        return self.device

    def file_is_as_meant(self):
        # Past the page cache of this file, which may be older.
        os.sync()
        super().file_is_as_meant()

    def config(self, at, fmt):
        return struct.unpack(fmt, self.vmm.fe.get_config(
            at, struct.calcsize(fmt)))[0]

    def wrote(self, sector, data):
        self.data[sector * 512:sector * 512 + len(data)] = data


@contextlib.contextmanager
def keeping():
    with contextlib.ExitStack() as stack:
        yield lambda thing: stack.enter_context(contextlib.closing(thing))


@contextlib.contextmanager
def loop(folder, sectors=SECTORS, block=512):
    """A loop device on a file in memory; gives (device, file)."""
    path = f"{folder}/backing"
    with open(path, "wb") as f:
        f.truncate(sectors * 512)
    device = run("losetup", "--find", "--show", f"--sector-size={block}", path)
    try:
        yield device, path
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def mapped(name, table):
    """A device-mapper device; gives (device, function to change its table)."""
    run("dmsetup", "create", "--noudevsync", "--noudevrules", name, stdin=table)

    def change(new):
        run("dmsetup", "suspend", "--noflush", "--noudevsync", name)
        run("dmsetup", "load", name, stdin=new)
        run("dmsetup", "resume", "--noudevsync", "--noudevrules", name)
    try:
        yield "/dev/" + run("dmsetup", "info", "--columns", "--noheadings",
                            "-o", "blkdevname", name), change
    finally:
        run("dmsetup", "remove", "--noudevsync", "--retry", name)


def exercise(disk, block):
    """Every request type does on this device what it says."""
    step = block // 512
    assert disk.config(0, "<Q") == len(disk.data) // 512
    assert disk.config(20, "<I") == block
    disk.works(0)
    disk.works(1)
    # Aligned buffers, and a length that a driver of 512-byte blocks may use.
    q = disk.vmm.queues[0]
    at = q.ram.alloc(8192, 4096)
    for sector, length in ((64, 8192), (80, 4096), (101, 512)):
        data = os.urandom(length)
        q.ram.write(at, data)
        assert disk.ask_at(OUT, sector, at, length) == OK
        disk.wrote(sector, data)
        q.ram.device_may_write(at, 8192)
        assert disk.ask_at(IN, sector, at, length) == OK
        assert q.ram.read(at, length) == data
    assert disk.ask(FLUSH)[0] == OK
    for flags in (0, 1):
        assert disk.ask(ZEROES, 0, seg(160, 4 * step, flags)
                        + seg(200, 8 * step))[0] == OK
        disk.wrote(160, bytes(4 * block))
        disk.wrote(200, bytes(8 * block))
        # Not of the device's alignment: done by hand.
        assert disk.ask(ZEROES, 0, seg(301, 3, flags))[0] == OK
        disk.wrote(301, bytes(3 * 512))
        assert disk.ask(IN, 160, room=4 * block) == (OK, bytes(4 * block))
    # Of a discard no more is promised than that nothing else is touched.
    assert disk.ask(DISCARD, 0, seg(320, 16 * step))[0] == OK
    status, now = disk.ask(IN, 320, room=16 * block)
    assert status == OK
    disk.wrote(320, now)
    assert disk.ask(DISCARD, 0, seg(1001, 1))[0] == OK
    disk.wrote(1001, disk.ask(IN, 1001, room=512)[1])
    assert disk.ask(IN, len(disk.data) // 512, room=512)[0] == IOERR
    disk.file_is_as_meant()


def loops():
    """Loop devices, with blocks of either size."""
    for block, engine in [(512, e) for e in ENGINES] + [(4096, ENGINES[0])]:
        with Workdir("/dev/shm") as work, \
                loop(work.path, block=block) as (device, _), \
                keeping() as keep:
            exercise(DeviceDisk(keep, work.path, device, engine), block)


def scsi():
    """A SCSI disk with blocks of 4 KiB that knows UNMAP and WRITE SAME."""
    found = wait_until(lambda: glob.glob(
        "/sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*/block/*"),
        "the disk is there")
    device = "/dev/" + os.path.basename(found[0])
    for engine in ENGINES[:2]:
        with Workdir("/dev/shm") as work, keeping() as keep:
            exercise(DeviceDisk(keep, work.path, device, engine), 4096)


def resized():
    """A device that grows is announced after SIGHUP."""
    with Workdir("/dev/shm") as work, \
            loop(work.path) as (device, path), keeping() as keep:
        disk = DeviceDisk(keep, work.path, device)
        os.truncate(path, (SECTORS + 128) * 512)
        run("losetup", "--set-capacity", device)
        disk.blk.process.send_signal(signal.SIGHUP)
        disk.vmm.config_changed()
        assert disk.config(0, "<Q") == SECTORS + 128
        disk.data += bytes(128 * 512)
        data = os.urandom(512)
        assert disk.ask(OUT, SECTORS + 100, data)[0] == OK
        disk.wrote(SECTORS + 100, data)
        disk.file_is_as_meant()


def read_only():
    with Workdir("/dev/shm") as work, \
            loop(work.path) as (device, _), keeping() as keep:
        disk = DeviceDisk(keep, work.path, device, "--read-only")
        assert disk.vmm.offered & 1 << 5
        assert disk.ask(OUT, 0, b"x" * 512)[0] == IOERR
        assert disk.ask(IN, 8, room=512) == (OK, bytes(disk.data[4096:4608]))
        disk.file_is_as_meant()


def failing():
    """A device with a bad spot, that then fails altogether, and is mended."""
    with Workdir("/dev/shm") as work, loop(work.path) as (under, _), \
            mapped("moat-bad", f"0 {SECTORS} linear {under} 0") as \
            (device, change), keeping() as keep:
        disk = DeviceDisk(keep, work.path, device)
        change(f"0 4096 linear {under} 0\n4096 8 error\n"
               f"4104 {SECTORS - 4104} linear {under} 4104\n")
        mark = len(disk.blk.lines)
        for _ in range(3):
            assert disk.ask(IN, 4096, room=4096) == (IOERR, bytes(4096))
        one_line(disk, mark, "read of .* fails")
        disk.works(0)
        # A device like a drive that was pulled out. This write is not
        # aligned, so goes through the page cache: the flush tells.
        change(f"0 {SECTORS} error\n")
        mark = len(disk.blk.lines)
        assert IOERR in (disk.ask(OUT, 64, b"w" * 4096)[0],
                         disk.ask(FLUSH)[0])
        assert disk.ask(IN, 8192, room=4096) == (IOERR, bytes(4096))
        wait_until(lambda: disk.blk.find("fails", mark), "it says so")
        change(f"0 {SECTORS} linear {under} 0\n")
        wait_until(lambda: disk.ask(FLUSH)[0] == OK, "it is mended")
        disk.works(1)


def main():
    for name in sys.argv[1:]:
        begin = time.monotonic()
        try:
            globals()[name]()
            print("@passed", name)
        except Exception:   # the others are still to be run
            print("@failed", name, traceback.format_exc())
        print(f"{time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
