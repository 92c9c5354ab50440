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
from disk_driver import BLOCK, BLOCKS, KINDS, NUM, Driver, seed
from guard import Blk
from vhost_user import Feature, mask

PACKED = mask(Feature.RING_PACKED)
BOTH = pytest.mark.parametrize("ring", [0, PACKED], ids=["split", "packed"])


@BOTH
@pytest.mark.parametrize("options", [
    ["--engine=uring", "--cache=writeback"], ["--engine=sync"],
    ["--engine=uring", "--cache=none"],
    ["--engine=uring", "--registered-buffers=on"]],
    ids="-".join)
def test_no_acknowledged_write_is_lost_when_it_is_killed(
        keep, folder, plain, options, ring):
    image = f"{folder}/disk"
    with open(image, "wb") as f:
        f.truncate(BLOCK * BLOCKS)
    driver = keep(Driver(seed(), ring=ring))
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


@BOTH
@pytest.mark.parametrize("enabled_first", [True, False])
def test_a_call_that_was_not_made_any_more_is_made_by_the_next(
        keep, folder, plain, ring, enabled_first):
    """Killed when the ring showed the last requests, and nobody knew."""
    image = f"{folder}/disk"
    with open(image, "wb") as f:
        f.truncate(BLOCK * BLOCKS)
    driver = keep(Driver(2, ring=ring))
    blk = keep(Blk(plain, folder, image))
    driver.connect(blk.path)
    driver.work(10)
    driver.drain()
    blk.process.kill()
    vu.wait_readable(driver.vmm.fe.sock, vu.deadline_in(10))
    blk.wait()
    while driver.queue.drain_call():    # as if it had not been made
        pass
    blk = keep(Blk(plain, folder, image))
    driver.connect(blk.path, enabled_first=enabled_first)
    vu.wait_readable(driver.queue.call_fd, vu.deadline_in(10))


# (ring, offset, value) of what a record may not say.
NONSENSE = {
    "version": (0, 8, 7), "split_size": (0, 10, 32), "batch": (0, 12, 0xffff),
    "packed_size": (PACKED, 10, 32), "packed_used": (PACKED, 18, NUM),
    "packed_nothing_free": (PACKED, 14, 0xffff),
    "packed_loop": (PACKED, 32 + 2, 0),
}


@pytest.mark.parametrize("ring,at,value", NONSENSE.values(), ids=NONSENSE)
def test_records_that_name_nonsense_are_refused(keep, folder, sanitized, ring,
                                                at, value):
    """The front-end's memory is checked before it is believed."""
    image = f"{folder}/disk"
    with open(image, "wb") as f:
        f.truncate(BLOCK * BLOCKS)
    driver = keep(Driver(2, ring=ring))
    blk = keep(Blk(sanitized, folder, image))
    driver.connect(blk.path)
    driver.work(10)
    driver.drain()
    # A connection that breaks off leaves the record as it is. Before, the last
    # batch may be seen and not be noted yet.
    driver.vmm.fe.close()
    blk.wait_line("VMM has left")
    queue, = driver.vmm.queues
    driver.vmm.fe.close()
    blk.wait_line("the VMM has left")
    os.pwrite(driver.records, struct.pack("=H", value), at)
    if not ring:
        # The used index differs too, so that the last batch is looked at.
        os.pwrite(driver.records, struct.pack(
            "=H", (queue.ring.used_idx - 3) & 0xffff), 14)
    mark = len(blk.lines)
    with pytest.raises(AssertionError, match="refused"):
        driver.connect(blk.path)
    blk.wait_line("queue 0: its in-flight records do not fit", mark)


@BOTH
@pytest.mark.parametrize("how", ["get_vring_base", "reset_device",
                                 "set_status"])
def test_a_queue_that_was_stopped_begins_anew_where_the_driver_says(
        keep, folder, sanitized, ring, how):
    """What a reset queue's record says is of a ring that is no more."""
    image = f"{folder}/disk"
    with open(image, "wb") as f:
        f.truncate(BLOCK * BLOCKS)
    driver = keep(Driver(3, ring=ring))
    blk = keep(Blk(sanitized, folder, image))
    driver.connect(blk.path)
    for _ in range(3):
        driver.work(30)
        driver.drain()
        queue, = driver.vmm.queues
        if how == "get_vring_base":
            queue.stop()
        else:
            fe = driver.vmm.fe
            assert (fe.reset_device() if how == "reset_device" else
                    fe.set_status(0)) == 0
            assert fe.set_features(driver.vmm.features) == 0
        queue.make_ring(driver.first_base)
        queue.start()
    driver.work(30)
    driver.drain()
    driver.vmm.ram.check()
