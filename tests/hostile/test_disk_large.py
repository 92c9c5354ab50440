# SPDX-License-Identifier: Apache-2.0
"""Large reads from memory, of which moat-blk lets a thread of the kernel's do
some: what comes of each is the same as without."""
import glob
import os
import random
import struct
import tempfile

import pytest

from disk import IN, IOERR, OK, SECTORS, Disk
from split_ring import WRITE
from vhost_user import Feature, mask

LARGE, DEPTH = 64 << 10, 15
IN_ORDER, PACKED = mask(Feature.IN_ORDER), mask(Feature.RING_PACKED)
BOTH = pytest.mark.parametrize("ring", [0, PACKED], ids=["split", "packed"])


@pytest.fixture
def tmpfs():
    with tempfile.TemporaryDirectory(prefix="moat-", dir="/dev/shm") as path:
        yield path


class LargeDisk(Disk):
    """Reads go in batches: posted one by one, each would be alone, and done by
    the queue's thread."""

    @staticmethod
    def slot(ram, bank):
        header, room, status = (ram.alloc(n, bank=bank) for n in (16, LARGE, 1))
        ram.device_may_write(room, LARGE)
        ram.device_may_write(status, 1)
        return header, room, status

    def reads(self, sectors, queue=0):
        """Their chains: (head, sector, bytes, status byte, room)."""
        q = self.vmm.queues[queue]
        made = []
        if not hasattr(q, "slots"):
            q.slots = [self.slot(q.ram, queue + 1) for _ in range(DEPTH)]
        for (sector, size), (header, room, status) in zip(sectors, q.slots):
            q.ram.write(header, struct.pack("<IIQ", IN, 0, sector))
            q.ram.write(status, b"\xee")
            half = size // 2
            head = q.ring.add([(header, 16, 0), (room, half, WRITE),
                               (room + half, size - half, WRITE),
                               (status, 1, WRITE)])
            made.append((head, sector, size, status, room))
        q.publish()
        return made

    def check(self, made, queue=0):
        """All have come; in the order in which they did."""
        q = self.vmm.queues[queue]
        used = dict(q.wait_used(len(made)))
        for head, sector, size, status, room in made:
            assert used[head] == size + 1
            assert q.ram.read(status, 1)[0] == OK
            assert q.ram.read(room, size) == \
                self.data[sector * 512:sector * 512 + size]
        return list(used)

    def helpers(self):
        """Threads of the kernel's that the daemon has."""
        names = []
        for pid in [self.blk.pid, *self.below(self.blk.pid)]:
            for path in glob.glob(f"/proc/{pid}/task/*/comm"):
                with open(path, encoding="ascii") as f:
                    names.append(f.read())
        return sum(name.startswith("iou-wrk") for name in names)

    @staticmethod
    def below(pid):
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
            return [int(p) for p in f.read().split()]


def random_reads(rng):
    return [(rng.randrange(SECTORS - LARGE // 512 + 1),
             LARGE if n % 5 else rng.choice((LARGE - 512, 4096)))
            for n in range(DEPTH)]


@BOTH
@pytest.mark.parametrize("options", [
    [], ["--engine=uring", "--cache=writeback"], ["--engine=sync"],
    ["--engine=uring", "--cache=writeback", "--registered-buffers=on"]],
    ids="".join)
@pytest.mark.parametrize("build", ["plain", "sanitized"])
def test_each_reads_what_is_there(keep, tmpfs, build, options, ring, request):
    """The plain one is in its sandbox."""
    disk = LargeDisk(keep, tmpfs, request.getfixturevalue(build), *options,
                     ring=ring)
    rng = random.Random(5)
    for _ in range(12):
        made = [disk.reads(random_reads(rng), queue) for queue in (0, 1)]
        for queue in (0, 1):
            disk.check(made[queue], queue)
    assert bool(disk.helpers()) == ("--engine=sync" not in options)
    disk.works()
    disk.vmm.ram.check()
    # How much may be pinned is the machine's affair, and others' of our user.
    assert not [c for c in disk.blk.complaints() if "be pinned" not in c]


@BOTH
def test_the_order_is_kept_where_it_is_promised(keep, tmpfs, plain, ring):
    disk = LargeDisk(keep, tmpfs, plain, ring=ring)
    disk.vmm.close()
    disk.vmm = disk.connect(features=disk.features | IN_ORDER)
    assert disk.vmm.features & IN_ORDER
    rng = random.Random(6)
    for _ in range(12):
        made = disk.reads(random_reads(rng))
        assert disk.check(made) == [head for head, *_ in made]
    assert not disk.helpers()


def test_a_small_read_waits_for_no_thread(keep, tmpfs, plain):
    disk = LargeDisk(keep, tmpfs, plain)
    for _ in range(20):
        disk.check(disk.reads([(8 * n, 4096) for n in range(DEPTH)]))
        disk.check(disk.reads([(0, LARGE)]))
    assert not disk.helpers()


@pytest.mark.parametrize("options", [
    [], ["--engine=uring", "--cache=writeback"]], ids="".join)
def test_of_a_file_that_is_cut_off_what_is_there_comes(
        keep, tmpfs, sanitized, options):
    disk = LargeDisk(keep, tmpfs, sanitized, *options)
    q = disk.vmm.queues[0]
    os.truncate(disk.image, 3 * LARGE + LARGE // 2)
    for _ in range(5):
        made = disk.reads([(0 if n % 3 else n * LARGE // 512, LARGE)
                           for n in range(DEPTH)])
        assert sorted(head for head, _ in q.wait_used(DEPTH)) == \
            sorted(head for head, *_ in made)
        for _, sector, size, status, room in made:
            whole = sector * 512 + size <= 3 * LARGE + LARGE // 2
            assert q.ram.read(status, 1)[0] == (OK if whole else IOERR)
            if whole:
                assert q.ram.read(room, size) == \
                    disk.data[sector * 512:sector * 512 + size]
    assert disk.helpers()
    assert len(disk.blk.complaints()) >= 1
    disk.vmm.ram.check()
    with open(disk.image, "wb") as f:
        f.write(disk.data)
    disk.works()


def test_a_queue_that_stops_waits_for_them(keep, tmpfs, sanitized):
    disk = LargeDisk(keep, tmpfs, sanitized)
    q = disk.vmm.queues[0]
    for _ in range(30):
        made = disk.reads([(n, LARGE) for n in range(DEPTH)])
        q.stop()
        q.start()
        q.kick()
        disk.check(made)
