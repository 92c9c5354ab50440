# SPDX-License-Identifier: Apache-2.0
"""moat-blk with a driver of two queues that makes one request at a time."""
import os
import re
import struct

from guard import Blk
from guest import OFFERABLE, Vmm
from split_ring import WRITE

SECTORS = 8192
BLK = 0xffffff  # every device-specific feature that is offered
OK, IOERR, UNSUPP = 0, 1, 2
IN, OUT, FLUSH, GET_ID, DISCARD, ZEROES = 0, 1, 4, 8, 11, 13


class Disk:
    """moat-blk, a driver with two queues, and the file under it."""

    def __init__(self, keep, folder, build, *options, under=(), ram=None,
                 ring=0):
        """@ring: the bit of packed rings, or 0 for split ones."""
        self.features = OFFERABLE | BLK | ring
        self.data = bytearray(os.urandom(SECTORS * 512))
        self.image = self.make_image(folder)
        self.keep = keep
        self.blk = keep(Blk(build, folder, self.image, "--num-queues=2",
                            "--serial=moat-serial", *options, under=under))
        self.guard = self.blk  # what one_line() looks at
        self.vmm = self.connect(ram=ram)
        assert not ring & ~self.vmm.features, "not offered"

    def make_image(self, folder):
        path = f"{folder}/disk"
        with open(path, "wb") as f:
            f.write(self.data)
        return path

    def connect(self, features=None, ram=None):
        vmm = self.keep(Vmm.connect(
            self.blk.path, features=features or self.features, ram=ram))
        return vmm.setup(queues=2)

    def post(self, queue, header, data=b"", room=0):
        """A request as it stands; returns (status byte's address, room's)."""
        ram, segs = queue.ram, []
        for part in (header, data):
            if part:
                at = ram.alloc(len(part))
                ram.write(at, part)
                segs.append((at, len(part), 0))
        into = ram.alloc(room) if room else 0
        if room:
            ram.device_may_write(into, room)
            segs.append((into, room, WRITE))
        at = ram.alloc(1)
        ram.write(at, b"\xee")
        ram.device_may_write(at, 1)
        segs.append((at, 1, WRITE))
        queue.ring.add(segs)
        queue.publish()
        return at, into

    def ask(self, kind, sector=0, data=b"", room=0, queue=0, header=None):
        """(status, bytes written to the room) of one request."""
        q = self.vmm.queues[queue]
        if header is None:
            header = struct.pack("<IIQ", kind, 0, sector)
        at, into = self.post(q, header, data, room)
        (_, length), = q.wait_used()
        assert length == room + 1, "used.len covers all that is writable"
        return q.ram.read(at, 1)[0], q.ram.read(into, room) if room else b""

    def ask_at(self, kind, sector, at, length):
        """The status of a request whose data lies where the test has it."""
        q = self.vmm.queues[0]
        header, status = q.ram.alloc(16), q.ram.alloc(1)
        q.ram.write(header, struct.pack("<IIQ", kind, 0, sector))
        q.ram.device_may_write(status, 1)
        q.ring.add([(header, 16, 0), (at, length, WRITE if kind == IN else 0),
                    (status, 1, WRITE)])
        q.publish()
        q.wait_used()
        return q.ram.read(status, 1)[0]

    def works(self, queue=1):
        data = os.urandom(4096)
        assert self.ask(OUT, 8, data, queue=queue)[0] == OK
        self.data[8 * 512:16 * 512] = data
        assert self.ask(IN, 8, room=4096, queue=queue) == (OK, data)

    def file_is_as_meant(self):
        with open(self.image, "rb") as f:
            assert f.read() == bytes(self.data)
        self.vmm.ram.check()


def one_line(disk, mark, *texts):
    disk.blk.wait_line(r": (error|warning): (?!runs without)", mark)
    lines = disk.blk.complaints(mark)
    assert len(lines) == 1, lines
    for text in ("^moat-blk: ", *texts):
        assert re.search(text, lines[0]), (text, lines[0])


def seg(sector, count, flags=0):
    return struct.pack("<QII", sector, count, flags)
