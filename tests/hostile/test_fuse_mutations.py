# SPDX-License-Identifier: Apache-2.0
"""Random mutations of FUSE requests against moat-fs, several in flight, for some
seconds from a seed.

MOAT_FUZZ_SECONDS and MOAT_FUZZ_SEED choose others; a failure names its seed.
"""
import os
import random
import shutil
import struct
import time

import pytest

import fuse
from fuse import IN_HEADER, ROOT, Op
from fuse_requests import Open, valid
from share import Share, answered, tree

SECONDS = float(os.environ.get("MOAT_FUZZ_SECONDS", "3"))
SEED = int(os.environ.get("MOAT_FUZZ_SEED", "1"))
WORDS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 39, 40, 255, 256, 4095, 4096, 4097,
         2 ** 15, 2 ** 16 - 1, 2 ** 16, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1,
         2 ** 32, 2 ** 63 - 1, 2 ** 63, 2 ** 64 - 1)
OPCODE, LENGTH = slice(4, 8), slice(0, 4)


class Mutator:
    def __init__(self, fs, rng):
        self.fs, self.rng = fs, rng
        self.refresh()

    def refresh(self):
        """The nodes and handles that right requests are about."""
        o = Open(self.fs)
        self.base = valid(o)
        self.base[Op.FORGET] = (o.link, struct.pack("<Q", 1), 0)
        self.base[Op.BATCH_FORGET] = (0, struct.pack("<IIQQ", 1, 0, o.link, 1),
                                      0)
        self.base[Op.INIT] = (0, fuse.INIT_IN.pack(7, 38, 0, 0xffffffff, 0),
                              64)
        self.interesting = [ROOT, *vars(o).values()]

    def number(self, size):
        pick = self.rng.random()
        if pick < 0.6:
            value = self.rng.choice(WORDS)
        elif pick < 0.8:
            value = self.rng.choice(self.interesting)
        else:
            value = self.rng.getrandbits(64)
        return (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def request(self):
        """(bytes, room, cuts, cuts of the room)"""
        rng = self.rng
        op = rng.choice(list(self.base))
        node, payload, room = self.base[op]
        data = bytearray(self.fs.header(op, node, len(payload)) + payload)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
            self.mutate(data)
        if rng.random() < 0.2:
            del data[rng.randrange(1, len(data) + 1):]
        elif rng.random() < 0.2:
            data += rng.randbytes(rng.choice((1, 8, 100, 5000)))
        if rng.random() < 0.7:
            data[LENGTH] = struct.pack("<I", len(data))[:len(data)]
        if len(data) >= IN_HEADER.size:
            self.tame(data)
        room = rng.choice((16 + room, 16 + room, 16 + room, 16, 0, 1, 15, 17,
                           128, 5000))
        cuts = [rng.randrange(len(data)) for _ in range(rng.randrange(4))]
        out_cuts = [rng.randrange(room + 1) for _ in range(rng.randrange(4))]
        return bytes(data), room, cuts, out_cuts

    def mutate(self, data):
        rng = self.rng
        size = rng.choice((1, 2, 4, 8))
        at = rng.randrange(max(1, len(data) - size + 1))
        if size > 1 and rng.random() < 0.8:
            at -= at % min(size, 4)
        data[at:at + size] = (self.number(size) if rng.random() < 0.8
                              else rng.randbytes(size))[:len(data) - at]

    def tame(self, data):
        """Not what would rightly wait for ever, or fill the disk."""
        op, = struct.unpack_from("<I", data, 4)
        if op in (Op.SETLKW, Op.DESTROY):
            data[OPCODE] = struct.pack("<I", Op.SETLK)
        if op == Op.FALLOCATE and len(data) >= IN_HEADER.size + 24:
            data[IN_HEADER.size + 19:IN_HEADER.size + 24] = bytes(5)


def test_mutated_requests_are_all_answered(keep, folder, sanitized):
    rng = random.Random(SEED)
    share = Share(keep, folder, sanitized, "--xattr", "--posix-lock",
                  "--flock")
    count = 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if not os.path.exists(f"{share.dir}/other"):
            # A mutation has renamed or removed what the rest is about.
            rebuild(share)
        fs = share.fs
        mutator = Mutator(fs, rng)
        for _ in range(40):
            flight = []
            for _ in range(rng.randrange(1, 12)):
                data, room, cuts, out_cuts = mutator.request()
                queue = rng.choice((*fs.requests, *fs.requests, fs.hiprio))
                flight.append(fs.submit(data, room, queue, cuts, out_cuts))
            for ticket in flight:
                reply = fs.wait(ticket)
                assert reply.used == 0 or reply.used >= min(
                    16, sum(n for _, n in ticket.out)), f"seed {SEED}"
            count += len(flight)
        fs.destroy()
        fs.init()
        if not intact(share):
            rebuild(share)
    rebuild(share)
    share.fine()
    assert count > 200


def intact(share):
    """Whether all that Open() looks for is there and of its kind."""
    try:
        return (os.path.isfile(f"{share.dir}/file")
                and os.path.isfile(f"{share.dir}/other")
                and os.path.islink(f"{share.dir}/link")
                and not os.path.islink(f"{share.dir}/file")
                and os.path.isfile(f"{share.dir}/dir/inner")
                and os.lstat(f"{share.dir}/dir").st_mode & 0o700 == 0o700)
    except OSError:
        return False


def rebuild(share):
    for name in os.listdir(share.dir.encode()):
        path = os.path.join(share.dir.encode(), name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    tree(share.dir)


@pytest.mark.parametrize("seed", range(4))
def test_noise_is_all_answered(keep, folder, sanitized, seed):
    """Bytes that are no request at all, but for a length now and then."""
    rng = random.Random(seed)
    share = Share(keep, folder, sanitized)
    fs = share.fs
    for _ in range(150):
        data = bytearray(rng.randbytes(rng.choice((1, 16, 40, 41, 80, 4096))))
        if rng.random() < 0.8 and len(data) >= 40:
            data[:4] = struct.pack("<I", len(data))
            data[4:8] = struct.pack("<I", rng.choice(
                [op for op in Op if op != Op.SETLKW]))
        answered(fs, bytes(data), rng.choice((0, 16, 200)))
    fs.init()
    share.fine()
