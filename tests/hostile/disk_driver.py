# SPDX-License-Identifier: Apache-2.0
"""A driver of a disk that does random work and knows what has to come of it.

Reads, writes, discards, write-zeroes of one to four blocks each, and flushes;
many in flight, but for each block at most one: so what each block holds is
known.  A block's versions, oldest first, are what a power cut may leave of it:
the last that a flush made stable and all newer ones.
"""
import os
import random
import struct

from guest import OFFERABLE, Vmm
from packed_ring import START
from split_ring import WRITE
from vhost_user import Protocol, Request, mask

BLOCK, BLOCKS, NUM = 4096, 512, 64
SECTOR, SECTORS = 512, BLOCK // 512
MOST = 4    # blocks of a request
IN, OUT, FLUSH, DISCARD, ZEROES = 0, 1, 4, 11, 13
INFLIGHT = struct.Struct("=QQHHI")
ZERO = bytes(BLOCK)
# What a driver asks for, and how often.
KINDS = [IN] * 5 + [OUT] * 10 + [FLUSH] * 2 + [DISCARD] + [ZEROES] * 2


def seed():
    """Another one each time; MOAT_SEED=N does one again."""
    n = int(os.environ.get("MOAT_SEED") or random.randrange(1 << 32))
    print(f"MOAT_SEED={n}")
    return n


class Flying:
    """A request that is under way."""

    def __init__(self, kind, slot, blocks=(), data=b""):
        self.kind = kind
        self.slot = slot
        self.blocks = list(blocks)
        self.data = data    # what is written
        self.seen = {}      # flush: block -> its versions when it was posted


class Driver:
    """Keeps up to NUM/4 requests in flight, over any number of backends."""

    def __init__(self, number, stable_writes=False, ring=0, kinds=KINDS):
        """@stable_writes: what is acknowledged is stable without a flush.
        @ring: the bit of packed rings, or 0 for split ones."""
        self.rng = random.Random(number)
        self.stable_writes = stable_writes
        self.ring = ring
        self.kinds = kinds
        self.versions = {b: [ZERO] for b in range(BLOCKS)}
        self.flying = {}    # head -> Flying
        self.done = dict.fromkeys(KINDS, 0)
        self.records = None
        self.vmm = None
        self.slots = list(range(NUM // 4))

    # -- connections

    def connect(self, path, again=True, enabled_first=False):
        """To a backend; @again: the guest is as it was, and QEMU hands its
        in-flight records over.  Otherwise the guest starts as well."""
        old = self.vmm if again else None
        fresh = Vmm.connect(path, features=OFFERABLE | 0xffffff | self.ring,
                            ram=old.ram if old else None)
        fresh.negotiate()
        assert fresh.offered_protocol & mask(Protocol.INFLIGHT_SHMFD)
        fresh.protocol |= mask(Protocol.INFLIGHT_SHMFD)
        fresh.fe.set_protocol_features(fresh.protocol)
        fresh.share_memory()
        if not old:
            self.forget()
            self.ask_for_records(fresh)
        fresh.fe.send(Request.SET_INFLIGHT_FD, self.payload, [self.records])
        if old:
            # A ring and its place in it outlive the connection.
            queue, = old.queues
            queue.vmm = fresh
            fresh.queues = [queue]
            old.queues = []
            old.close()
            # What QEMU says of a backend that is gone: the used index; where
            # there is none, what it said at first.
            queue.base = self.first_base if self.ring else queue.ring.used_idx
        else:
            queue = fresh.add_queue(num=NUM)
            self.buffers = [(fresh.ram.alloc(16),
                             fresh.ram.alloc(MOST * BLOCK, 4096),
                             fresh.ram.alloc(1)) for _ in self.slots]
            for header, data, status in self.buffers:
                fresh.ram.device_may_write(header, 16)
                fresh.ram.device_may_write(data, MOST * BLOCK)
                fresh.ram.device_may_write(status, 1)
        self.vmm, self.queue = fresh, queue
        if enabled_first:
            assert not fresh.fe.set_vring_enable(0, 1)
        queue.start(enable=not enabled_first)
        fresh.driver_ok()
        queue.kick()

    @property
    def first_base(self):
        """Where a new ring begins."""
        return START | START << 16 if self.ring else 0

    def forget(self):
        """The guest is gone, with all that it had under way."""
        self.flying = {}
        self.slots = list(range(NUM // 4))
        if self.vmm:
            self.vmm.close()
        if self.records is not None:
            os.close(self.records)
        self.vmm = self.records = None

    close = forget

    def ask_for_records(self, vmm):
        vmm.fe.send(Request.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, 1, NUM, 0))
        msg = vmm.fe.recv()
        self.payload = msg.payload
        self.records, = msg.fds
        size, offset, queues, num, _ = INFLIGHT.unpack(msg.payload)
        assert (offset, queues, num) == (0, 1, NUM)
        assert os.fstat(self.records).st_size >= size >= \
            (32 + 32 * NUM if self.ring else 16 + 16 * NUM)

    # -- requests

    def free_run(self):
        """One to four neighbours that nobody is at."""
        busy = {b for f in self.flying.values() for b in f.blocks}
        while True:
            n = self.rng.randint(1, MOST)
            first = self.rng.randrange(BLOCKS - n + 1)
            run = range(first, first + n)
            if busy.isdisjoint(run):
                return list(run)

    def post(self):
        slot = self.slots.pop()
        kind = self.rng.choice(self.kinds)
        ram = self.queue.ram
        header, at, status = self.buffers[slot]
        f = Flying(kind, slot)
        if kind == FLUSH:
            f.seen = {b: v[-1] for b, v in self.versions.items()}
        else:
            f.blocks = self.free_run()
        sector = 0
        if kind in (IN, OUT):
            sector = f.blocks[0] * SECTORS
            f.data = self.rng.randbytes(BLOCK * len(f.blocks))
            ram.write(at, f.data)
        elif kind in (DISCARD, ZEROES):
            # A segment each, in any order.
            f.data = bytes(BLOCK * len(f.blocks))
            segments = [struct.pack("<QII", b * SECTORS, SECTORS,
                                    self.rng.randint(0, kind == ZEROES))
                        for b in f.blocks]
            self.rng.shuffle(segments)
            ram.write(at, b"".join(segments))
        ram.write(header, struct.pack("<IIQ", kind, 0, sector))
        ram.write(status, b"\xee")
        head = self.queue.ring.add(
            [(header, 16, 0), *self.pieces(f, at), (status, 1, WRITE)])
        assert head not in self.flying
        self.flying[head] = f

    def pieces(self, f, at):
        """The data, now and then in two pieces."""
        if f.kind == FLUSH:
            return []
        length = len(f.data) if f.kind in (IN, OUT) else 16 * len(f.blocks)
        cut = self.rng.choice((0, 0, length // 2))
        flag = WRITE if f.kind == IN else 0
        return [(a, n, flag) for a, n in ((at, cut), (at + cut, length - cut))
                if n]

    def landed(self, head):
        f = self.flying.pop(head)
        _, at, status = self.buffers[f.slot]
        assert self.queue.ram.read(status, 1) == b"\0", "an I/O error"
        for n, block in enumerate(f.blocks):
            piece = slice(n * BLOCK, (n + 1) * BLOCK)
            if f.kind == IN:
                got = self.queue.ram.read(at + n * BLOCK, BLOCK)
                assert got == self.versions[block][-1], f"block {block}"
            elif self.stable_writes:
                self.versions[block] = [f.data[piece]]
            else:
                self.versions[block].append(f.data[piece])
        for block, seen in f.seen.items():
            # What had been acknowledged when the flush was posted is stable.
            known = self.versions[block]
            at = [n for n, v in enumerate(known) if v is seen]
            del known[:at[0] if at else 0]
        self.slots.append(f.slot)
        self.done[f.kind] += 1

    def reap(self, count):
        for head, _ in self.queue.wait_used(count):
            self.landed(head)

    def fill(self):
        while self.slots:
            self.post()
        self.queue.publish()

    def work(self, requests):
        for _ in range(requests):
            self.fill()
            self.reap(1)

    def drain(self):
        while self.flying:
            self.reap(1)

    # -- the disk itself

    def check(self, data):
        """The disk holds what was acknowledged last."""
        assert not self.flying
        for block, known in self.versions.items():
            assert data[block * BLOCK:(block + 1) * BLOCK] == known[-1], \
                f"block {block}"

    def check_after_cut(self, data):
        """Each sector of each block is of a version that may be left; from now
        on that is what the block holds.  Returns how many blocks do not hold
        what was acknowledged last."""
        under_way = {b: f.data[n * BLOCK:(n + 1) * BLOCK]
                     for f in self.flying.values() if f.kind != IN
                     for n, b in enumerate(f.blocks)}
        lost = 0
        for block, known in self.versions.items():
            got = data[block * BLOCK:(block + 1) * BLOCK]
            may = known + ([under_way[block]] if block in under_way else [])
            for at in range(0, BLOCK, SECTOR):
                assert any(got[at:at + SECTOR] == v[at:at + SECTOR]
                           for v in may), \
                    f"block {block}, sector {at // SECTOR}: lost"
            lost += got != known[-1] and block not in under_way
            self.versions[block] = [got]
        return lost
