# SPDX-License-Identifier: Apache-2.0
"""The power goes while moat-blk works: what was promised to be stable is there.

The disk is a file system of the test's own that keeps what is not flushed in a
cache, and loses it (cut_fs.py).
"""
import errno
import os

import pytest

import cut_fs
import vhost_user as vu
from cut_fs import CutFs
from disk_driver import BLOCK, BLOCKS, KINDS, Driver, seed
from guard import Blk
from disk import DISCARD, FLUSH, IN, IOERR, OK, OUT, SECTORS, \
    ZEROES, Disk, one_line, seg


@pytest.fixture(name="disk_at")
def fixture_disk_at(folder):
    """Makes such a disk of so many bytes."""
    disks = []

    def make(size, number=0):
        os.mkdir(f"{folder}/cut")
        disks.append(CutFs(f"{folder}/cut", size, number))
        return disks[-1]

    yield make
    for disk in disks:
        disk.close()


def lives(keep, folder, build, disk, driver, options, count):
    """So many times a guest works and the power goes.  Returns in how many
    blocks what was acknowledged and not flushed was lost."""
    lost = 0
    for _ in range(count):
        blk = keep(Blk(build, folder, disk.path, *options))
        driver.connect(blk.path, again=False)
        driver.work(driver.rng.randrange(100, 250))
        driver.fill()
        blk.process.kill()
        vu.wait_readable(driver.vmm.fe.sock, vu.deadline_in(10))
        blk.wait()
        # What came back until then was acknowledged, too.
        for head, _ in driver.queue.ring.reap():
            driver.landed(head)
        lost += driver.check_after_cut(disk.cut())
    return lost


CACHES = [("none", "uring"), ("writeback", "uring"), ("writeback", "sync"),
          ("writethrough", "uring"), ("writethrough", "sync"),
          ("directsync", "uring")]


@pytest.mark.parametrize("cache,engine", CACHES)
def test_what_was_flushed_survives_a_power_cut(
        keep, folder, plain, disk_at, cache, engine):
    stable = cache in ("writethrough", "directsync")
    number = seed()
    disk = disk_at(BLOCK * BLOCKS, number)
    driver = keep(Driver(number, stable_writes=stable))
    lost = lives(keep, folder, plain, disk, driver,
                 [f"--cache={cache}", f"--engine={engine}"], 5)
    assert all(driver.done[kind] for kind in KINDS), driver.done
    if stable:
        assert not lost
    else:
        assert lost, "the cuts took nothing: this showed nothing"


@pytest.mark.parametrize("cache", ["none", "writethrough"])
def test_a_disk_that_does_not_flush_is_found_out(keep, folder, plain, disk_at,
                                                 cache):
    """So the test above can fail."""
    disk = disk_at(BLOCK * BLOCKS)
    disk.deaf = True
    driver = keep(Driver(3, stable_writes=cache != "none"))
    with pytest.raises(AssertionError, match="lost"):
        lives(keep, folder, plain, disk, driver, [f"--cache={cache}"], 5)
    assert disk.syncs


class FailingDisk(Disk):
    """moat-blk on a disk that can be told to fail."""

    def __init__(self, keep, folder, build, medium, *options):
        self.medium = medium
        super().__init__(keep, folder, build, *options)

    def make_image(self, folder):
        self.medium.cache[:] = self.data
        return self.medium.path


FAILURES = {
    "read": (cut_fs.READ, errno.EIO, IN, 64, b"", 4096, "read of"),
    "write": (cut_fs.WRITE, errno.EIO, OUT, 64, b"w" * 4096, 0, "write of"),
    "write_to_a_full_disk": (cut_fs.WRITE, errno.ENOSPC, OUT, 64, b"w" * 4096,
                             0, "write of .* No space left"),
    "flush": (cut_fs.FSYNC, errno.EIO, FLUSH, 0, b"", 0, "flush of"),
    "discard": (cut_fs.FALLOCATE, errno.EIO, DISCARD, 0, seg(64, 8), 0,
                "discard of"),
    "write_zeroes": (cut_fs.FALLOCATE, errno.EIO, ZEROES, 0, seg(64, 8), 0,
                     "write zeroes of"),
}


@pytest.mark.parametrize("options", [
    ["--engine=uring"], ["--engine=sync"],
    ["--engine=uring", "--registered-buffers=on"]], ids="-".join)
@pytest.mark.parametrize("case", FAILURES)
def test_a_failing_disk_is_an_error_in_the_guest_and_one_line(
        keep, folder, sanitized, disk_at, case, options):
    operation, error, kind, sector, data, room, text = FAILURES[case]
    disk = FailingDisk(keep, folder, sanitized, disk_at(SECTORS * 512),
                       *options)
    disk.works(0)
    disk.medium.fail = {operation: error}
    mark = len(disk.blk.lines)
    for queue in (0, 1, 0):
        assert disk.ask(kind, sector, data, room, queue) == \
            (IOERR, bytes(room)), "no stale byte"
    one_line(disk, mark, text)
    # The rest of the disk goes on, and so does this once it is mended.
    disk.medium.fail_from = 32 * 512
    if kind != FLUSH:
        disk.works(1)
    disk.medium.fail = {}
    assert disk.ask(kind, sector, data, room)[0] == OK
    disk.vmm.ram.check()


def test_a_write_is_not_acknowledged_when_its_flush_fails(
        keep, folder, sanitized, disk_at):
    """With stable writes, a failed flush is a failed write."""
    disk = FailingDisk(keep, folder, sanitized, disk_at(SECTORS * 512),
                       "--cache=writethrough")
    disk.medium.fail = {cut_fs.FSYNC: errno.EIO}
    mark = len(disk.blk.lines)
    assert disk.ask(OUT, 64, b"w" * 4096)[0] == IOERR
    one_line(disk, mark, "flush of")
    disk.medium.fail = {}
    disk.works(0)
