# SPDX-License-Identifier: Apache-2.0
"""Large reads, of which moat-fs lets another thread do a half: the reply is the
file's bytes, as many as there are, whoever read them."""
import fcntl
import os
import random
import signal
import struct
import tempfile
import threading

import pytest

from fuse import OUT_HEADER, ROOT, Op
from share import Share
from split_ring import WRITE

KIB = 1 << 10
ROOM, SIZE = 768 * KIB, 1700 * KIB + 77
HALVED = 512 * KIB  # and more
F_SETSIG = 10
DATA = random.Random(1).randbytes(SIZE)


@pytest.fixture(name="place", params=["tmpfs", "disk"])
def fixture_place(request, folder):
    if request.param == "disk":
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="moat-", dir="/dev/shm") as path:
        yield path


class Large(Share):
    def __init__(self, keep, folder, build, *options):
        super().__init__(keep, folder, build, *options)
        with open(f"{self.dir}/large", "wb") as f:
            f.write(DATA)
        fs = self.fs
        self.node = fs.lookup(ROOT, "large").nodeid
        self.fh = fs.open(self.node)
        self.at = fs.ram.alloc(ROOM + 4096, 4096, bank=1)
        fs.ram.device_may_write(self.at, ROOM + 4096)

    def post(self, offset, size, rng=None):
        fs = self.fs
        request = fs.header(Op.READ, self.node, 40) + struct.pack(
            "<QQIIQII", self.fh, offset, size, 0, 0, 0, 0)
        at = fs.ram.alloc(len(request), bank=0)
        fs.ram.write(at, request)
        edges = {0, 16, 16 + size}
        if rng:
            edges |= {rng.randrange(17, 16 + size) for _ in range(20)}
        edges = sorted(edges)
        fs.put(self.at, bytes(16 + size))
        fs.requests[0].ring.add(
            [(at, len(request), 0)] + [(self.at + a, b - a, WRITE)
                                       for a, b in zip(edges, edges[1:])])
        fs.requests[0].publish()

    def reply(self):
        """The bytes that were read."""
        (_, used), = self.fs.requests[0].wait_used()
        length, error, _ = OUT_HEADER.unpack(
            self.fs.ram.read(self.at, OUT_HEADER.size))
        assert (length, error) == (used, 0)
        return self.fs.ram.read(self.at + 16, used - 16)

    def read(self, offset, size, rng=None):
        self.post(offset, size, rng)
        return self.reply()


@pytest.mark.parametrize("threads", [[], ["--thread-pool-size=0"],
                                     ["--thread-pool-size=1"]], ids="".join)
def test_a_large_read_has_what_the_file_has(keep, place, sanitized, threads):
    share = Large(keep, place, sanitized, *threads)
    rng = random.Random(2)
    ends = [(SIZE - n, HALVED) for n in
            (0, 1, HALVED // 2 - 1, HALVED // 2, HALVED // 2 + 1, HALVED - 1,
             HALVED, HALVED + 1)]
    for offset, size in ends + [(SIZE + 5, ROOM), (0, ROOM), (1 << 62, ROOM)]:
        assert share.read(offset, size) == DATA[offset:offset + size]
    for _ in range(60):
        offset, size = rng.randrange(SIZE), rng.randrange(HALVED, ROOM)
        assert share.read(offset, size, rng) == DATA[offset:offset + size]
    share.fine()


def test_who_is_busy_is_not_waited_for(keep, folder, plain):
    """The only thread that could help is held up by a lease."""
    share = Large(keep, folder, plain, "--thread-pool-size=1")
    node = share.fs.lookup(ROOT, "other").nodeid
    with open(f"{share.dir}/other", "rb") as f:
        fcntl.fcntl(f, F_SETSIG, signal.SIGURG)
        fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        waits = share.fs.start(Op.OPEN, node, os.O_RDWR.to_bytes(8, "little"))
        for n in range(20):
            assert share.read(n, ROOM) == DATA[n:n + ROOM]
        assert waits.serial not in share.fs.done
        fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    share.fs.finish(waits)
    share.fine()


def test_a_file_that_changes_its_size_meanwhile(keep, place, sanitized):
    """What comes was the file's, from the beginning on and without a gap that
    was never there: zeroes are what an extension shows before it is filled."""
    share = Large(keep, place, sanitized)
    stop = threading.Event()

    def work():
        rng = random.Random(3)
        with open(f"{share.dir}/large", "r+b", buffering=0) as f:
            while not stop.is_set():
                cut = rng.randrange(1, SIZE)
                os.ftruncate(f.fileno(), cut)
                os.pwrite(f.fileno(), DATA[cut:], cut)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(150):
            got = share.read(SIZE // 2, ROOM)
            assert all(a in (0, b) for a, b in zip(got, DATA[SIZE // 2:])
                       if a != b)
    finally:
        stop.set()
        worker.join()
    assert share.read(0, ROOM) == DATA[:ROOM]
    share.fine()


@pytest.mark.parametrize("size", [HALVED, HALVED + 4 * KIB, HALVED + 12 * KIB,
                                  HALVED + 512])
def test_a_read_past_the_page_cache_is_halved_at_a_sector(keep, folder,
                                                          sanitized, size):
    share = Large(keep, folder, sanitized, "--allow-direct-io")
    fs = share.fs
    os.sync()
    share.fh = fs.open(share.node, os.O_RDONLY | os.O_DIRECT)
    share.at += 4096 - 16   # where the data begins is aligned as well
    for offset in (0, 4096, 64 * KIB):
        assert share.read(offset, size) == DATA[offset:offset + size]
    share.fine()
