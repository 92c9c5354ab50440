# SPDX-License-Identifier: Apache-2.0
"""moat-blk killed in the middle of its work and started again.

The driver keeps its ring and the in-flight records, as QEMU does, and hands
them to the next process. What was acknowledged is on the disk, what was not is
done by the successor, and each request comes back exactly once.
"""
import os
import struct

import pytest

import vhost_user as vu
from disk_driver import BLOCK, BLOCKS, KINDS, Driver, seed
from guard import Blk


@pytest.mark.parametrize("options", [
    ["--engine=uring", "--cache=writeback"], ["--engine=sync"],
    ["--engine=uring", "--cache=none"],
    ["--engine=uring", "--registered-buffers=on"]],
    ids="-".join)
def test_no_acknowledged_write_is_lost_when_it_is_killed(
        keep, folder, plain, options):
    image = f"{folder}/disk"
    with open(image, "wb") as f:
        f.truncate(BLOCK * BLOCKS)
    driver = keep(Driver(seed()))
    again = 0
    for _ in range(12):
        blk = keep(Blk(plain, folder, image, *options))
        driver.connect(blk.path)
        driver.work(driver.rng.randrange(20, 200))
        driver.fill()
        # Somewhere in the middle of these.
        blk.process.kill()
        vu.wait_readable(driver.vmm.fe.sock, vu.deadline_in(10))
        blk.wait()
        again += bool(blk.find("before the restart"))
    assert again, "never was a request under way: this showed nothing"
    blk = keep(Blk(plain, folder, image, *options))
    driver.connect(blk.path)
    driver.drain()
    driver.work(50)
    driver.drain()
    assert driver.queue.ring.reap() == []
    assert all(driver.done[kind] for kind in KINDS), driver.done
    with open(image, "rb") as f:
        driver.check(f.read())
    driver.vmm.ram.check()


def test_records_that_name_nonsense_are_refused(keep, folder, plain):
    """The front-end's memory is checked before it is believed."""
    image = f"{folder}/disk"
    with open(image, "wb") as f:
        f.truncate(BLOCK * BLOCKS)
    blk = keep(Blk(plain, folder, image))
    for at, value, text in ((8, 7, "records"), (10, 32, "records"),
                            (12, 0xffff, "records")):
        os.truncate(image, 0)   # as its oracle believes
        os.truncate(image, BLOCK * BLOCKS)
        driver = keep(Driver(2))
        driver.connect(blk.path)
        driver.work(10)
        driver.drain()
        assert driver.queue.stop() == driver.queue.ring.used_idx
        mark = len(blk.lines)
        # The used index differs too, so that the last batch is looked at.
        os.pwrite(driver.records, struct.pack("=H", value), at)
        os.pwrite(driver.records, struct.pack(
            "=H", (driver.queue.ring.used_idx - 3) & 0xffff), 14)
        assert driver.vmm.fe.set_vring_kick(0, driver.queue.kick_fd) != 0
        blk.wait_line(text, mark)
        driver.close()
