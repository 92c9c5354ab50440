# SPDX-License-Identifier: Apache-2.0
"""moat-blk killed in the middle of its work and started again.

The driver keeps its ring and the in-flight records, as QEMU does, and hands
them to the next process. What was acknowledged is on the disk, what was not is
done by the successor, and each request comes back exactly once.
"""
import os
import random
import struct

import pytest

import vhost_user as vu
from guard import Blk
from guest import OFFERABLE, Vmm
from packed_ring import START
from split_ring import WRITE
from vhost_user import Feature, Protocol, Request, mask

BLOCK, BLOCKS, NUM = 4096, 512, 64
IN, OUT = 0, 1
INFLIGHT = struct.Struct("=QQHHI")
PACKED = mask(Feature.RING_PACKED)
BOTH = pytest.mark.parametrize("ring", [0, PACKED], ids=["split", "packed"])


class Driver:
    """Keeps up to NUM/4 requests in flight, over any number of backends, one
    at most for each block; an oracle knows what each block has to hold."""

    def __init__(self, seed, ring=0):
        self.ring = ring
        self.rng = random.Random(seed)
        self.oracle = {}
        self.flying = {}    # head -> (kind, block, data, slot)
        self.done = 0
        self.vmm = self.records = None
        self.slots = list(range(NUM // 4))

    def connect(self, path):
        fresh = Vmm.connect(path, features=OFFERABLE | 0xffffff | self.ring,
                            ram=self.vmm.ram if self.vmm else None)
        fresh.negotiate()
        assert fresh.offered_protocol & mask(Protocol.INFLIGHT_SHMFD)
        fresh.protocol |= mask(Protocol.INFLIGHT_SHMFD)
        fresh.fe.set_protocol_features(fresh.protocol)
        fresh.share_memory()
        if self.records is None:
            self.ask_for_records(fresh)
        fresh.fe.send(Request.SET_INFLIGHT_FD, self.payload,
                      [self.records])
        if self.vmm:
            # A ring and its place in it outlive the connection.
            queue, = self.vmm.queues
            queue.vmm = fresh
            fresh.queues = [queue]
            self.vmm.queues = []
            self.vmm.close()
            # What QEMU says of a backend that is gone: the used index; where
            # there is none, what it said at first.
            queue.base = (START | START << 16 if self.ring
                          else queue.ring.used_idx)
        else:
            queue = fresh.add_queue(num=NUM)
            self.buffers = [(fresh.ram.alloc(16), fresh.ram.alloc(BLOCK, 512),
                             fresh.ram.alloc(1)) for _ in self.slots]
            for header, data, status in self.buffers:
                fresh.ram.device_may_write(header, 16)
                fresh.ram.device_may_write(data, BLOCK)
                fresh.ram.device_may_write(status, 1)
        self.vmm, self.queue = fresh, queue
        queue.start()
        fresh.driver_ok()
        queue.kick()

    def ask_for_records(self, vmm):
        vmm.fe.send(Request.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, 1, NUM, 0))
        msg = vmm.fe.recv()
        self.payload = msg.payload
        self.records, = msg.fds
        size, offset, queues, num, _ = INFLIGHT.unpack(msg.payload)
        assert (offset, queues, num) == (0, 1, NUM)
        assert os.fstat(self.records).st_size >= size >= \
            (32 + 32 * NUM if self.ring else 16 + 16 * NUM)

    def post(self):
        slot = self.slots.pop()
        busy = {block for _, block, _, _ in self.flying.values()}
        block = self.rng.choice([b for b in range(BLOCKS) if b not in busy])
        kind = OUT if self.rng.random() < 0.7 else IN
        data = self.rng.randbytes(BLOCK)
        header, at, status = self.buffers[slot]
        ram = self.queue.ram
        ram.write(header, struct.pack("<IIQ", kind, 0, block * 8))
        ram.write(at, data)
        ram.write(status, b"\xee")
        head = self.queue.ring.add([(header, 16, 0),
                                    (at, BLOCK, 0 if kind == OUT else WRITE),
                                    (status, 1, WRITE)])
        assert head not in self.flying
        self.flying[head] = kind, block, data, slot

    def reap(self, count):
        for head, _ in self.queue.wait_used(count):
            kind, block, data, slot = self.flying.pop(head)
            _, at, status = self.buffers[slot]
            assert self.queue.ram.read(status, 1) == b"\0", "an I/O error"
            if kind == OUT:
                self.oracle[block] = data
            else:
                assert self.queue.ram.read(at, BLOCK) == \
                    self.oracle.get(block, bytes(BLOCK)), f"block {block}"
            self.slots.append(slot)
            self.done += 1

    def work(self, requests):
        for _ in range(requests):
            while self.slots:
                self.post()
            self.queue.publish()
            self.reap(1)


@BOTH
@pytest.mark.parametrize("options", [
    ["--engine=uring"], ["--engine=sync"], ["--engine=uring", "--cache=none"]],
    ids="-".join)
def test_no_acknowledged_write_is_lost_when_it_is_killed(
        keep, folder, plain, options, ring):
    image = f"{folder}/disk"
    with open(image, "wb") as f:
        f.truncate(BLOCK * BLOCKS)
    driver = Driver(1, ring)
    again = 0
    for life in range(12):
        blk = keep(Blk(plain, folder, image, *options))
        driver.connect(blk.path)
        driver.work(driver.rng.randrange(20, 200))
        while driver.slots:
            driver.post()
        driver.queue.publish()
        # Somewhere in the middle of these.
        blk.process.kill()
        vu.wait_readable(driver.vmm.fe.sock, vu.deadline_in(10))
        blk.wait()
        again += bool(blk.find("before the restart"))
    assert again, "never was a request under way: this showed nothing"
    blk = keep(Blk(plain, folder, image, *options))
    driver.connect(blk.path)
    driver.reap(len(driver.flying))
    driver.work(50)
    assert driver.queue.ring.reap() == []
    driver.reap(len(driver.flying))
    with open(image, "rb") as f:
        data = f.read()
    for block, wanted in driver.oracle.items():
        assert data[block * BLOCK:(block + 1) * BLOCK] == wanted
    driver.vmm.ram.check()
    driver.vmm.close()
    os.close(driver.records)


# (offset, value) of what a record may not say.
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
    driver = Driver(2, ring)
    blk = keep(Blk(sanitized, folder, image))
    driver.connect(blk.path)
    driver.work(10)
    driver.reap(len(driver.flying))
    # A connection that breaks off leaves the record as it is.
    queue, = driver.vmm.queues
    os.pwrite(driver.records, struct.pack("=H", value), at)
    if not ring:
        # The used index differs too, so that the last batch is looked at.
        os.pwrite(driver.records, struct.pack(
            "=H", (queue.ring.used_idx - 3) & 0xffff), 14)
    mark = len(blk.lines)
    driver.vmm.fe.close()
    with pytest.raises(AssertionError, match="refused"):
        driver.connect(blk.path)
    blk.wait_line("queue 0: its in-flight records do not fit", mark)
    driver.vmm.close()
    os.close(driver.records)


@BOTH
def test_a_queue_that_was_stopped_begins_anew_where_the_driver_says(
        keep, folder, sanitized, ring):
    """What a reset queue's record says is of a ring that is no more."""
    image = f"{folder}/disk"
    with open(image, "wb") as f:
        f.truncate(BLOCK * BLOCKS)
    driver = Driver(3, ring)
    blk = keep(Blk(sanitized, folder, image))
    driver.connect(blk.path)
    for _ in range(3):
        driver.work(30)
        driver.reap(len(driver.flying))
        queue, = driver.vmm.queues
        queue.stop()
        queue.make_ring(START | START << 16 if ring else 0)
        queue.start()
    driver.work(30)
    driver.reap(len(driver.flying))
    driver.vmm.ram.check()
    driver.vmm.close()
    os.close(driver.records)
