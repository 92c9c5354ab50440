# SPDX-License-Identifier: Apache-2.0
"""All queues at once, with requests that pull the ground from under each other.

Nodes are forgotten and handles closed while others work with them, the session
ends and begins, and somebody on the host changes the tree meanwhile. Each request
comes back, and moat-fs goes on."""
import os
import random
import struct
import threading

import pytest

from fuse import INIT_IN, LINUX, OUT_HEADER, ROOT, SETATTR, Op, name
from share import Share, until

COUNT = 6000
AT_ONCE = 24
NAMES = ("file", "other", "empty", "link", "dir", "many", "new0", "new1",
         "new2")


class Storm:
    def __init__(self, share, seed):
        self.share, self.fs = share, share.fs
        self.rng = random.Random(seed)
        self.nodes, self.handles = [ROOT], [(ROOT, 1)]
        self.flying = []

    def one(self):
        """An opcode, a node, a payload, and room; of what is known, or was."""
        rng = self.rng
        node, fh = rng.choice(self.handles)
        if rng.random() < .3:
            node = rng.choice(self.nodes)
        what = name(rng.choice(NAMES))
        owner = rng.randrange(1, 4)
        read = struct.pack("<QQIIQII", fh, rng.choice((0, 4000)), 4096, 0, 0,
                           0, 0)
        lock = struct.pack("<QQQQIIII", fh, owner, 0, rng.randrange(1, 9),
                           rng.randrange(3), 1, rng.randrange(2), 0)
        size = rng.randrange(9000)
        return rng.choice((
            (Op.LOOKUP, ROOT, what), (Op.LOOKUP, node, what),
            (Op.LOOKUP, ROOT, what), (Op.GETATTR, node, bytes(16)),
            (Op.OPEN, node, struct.pack("<II", os.O_RDWR, 0)),
            (Op.OPEN, node, struct.pack("<II", os.O_RDWR | os.O_TRUNC, 0)),
            (Op.OPENDIR, node, bytes(8)), (Op.OPENDIR, ROOT, bytes(8)),
            (Op.CREATE, ROOT, struct.pack("<IIII", os.O_RDWR | os.O_CREAT,
                                          0o100644, 0, 0) + what),
            (Op.READ, node, read), (Op.READDIR, node, read),
            (Op.READDIRPLUS, node, read), (Op.READDIRPLUS, node, read),
            (Op.WRITE, node, read + bytes(4096)),
            (Op.RELEASE, node, struct.pack("<QIIQ", fh, 0, 2, owner)),
            (Op.RELEASEDIR, node, struct.pack("<QIIQ", fh, 0, 0, 0)),
            (Op.FLUSH, node, struct.pack("<QIIQ", fh, 0, 0, owner)),
            (Op.FSYNC, node, struct.pack("<QII", fh, 0, 0)),
            (Op.FORGET, node, struct.pack("<Q", rng.randrange(1, 4))),
            (Op.FORGET, node, struct.pack("<Q", 99)),
            (Op.SETATTR, node, SETATTR.pack(8, 0, 0, size, *(0,) * 12)),
            (Op.FALLOCATE, node, struct.pack("<QQQII", fh, 0, size + 1, 0, 0)),
            (Op.COPY_FILE_RANGE, node, struct.pack("<QQQQQQQ", fh, 0, node, fh,
                                                   5000, 100, 0)),
            (Op.SETLK, node, lock), (Op.SETLKW, node, lock),
            (Op.GETLK, node, lock), (Op.READLINK, node, b""),
            (Op.UNLINK, ROOT, what), (Op.RENAME, ROOT,
                                      struct.pack("<Q", ROOT) + what
                                      + name("new1")),
            (Op.GETXATTR, node, struct.pack("<II", 100, 0) + name("user.x")),
            (Op.STATFS, node, b""), (Op.INTERRUPT, node, struct.pack(
                "<Q", self.fs.unique - rng.randrange(9) * 2)),
        ))

    def post(self, op, node, payload):
        queue = self.rng.choice((self.fs.hiprio, *self.fs.requests))
        ticket = self.fs.start(op, node, payload, queue=queue)
        self.flying.append((op, node, ticket))

    def reap(self):
        op, node, ticket = self.flying.pop(self.rng.randrange(
            len(self.flying)))
        if op == Op.SETLKW:     # it may wait for a lock that nobody gives back
            self.fs.interrupt(ticket.unique)
        reply = self.fs.wait(ticket, timeout=60)
        if reply.used <= OUT_HEADER.size or reply.error:
            return
        if op in (Op.LOOKUP, Op.CREATE):
            node = struct.unpack_from("<Q", reply.payload)[0]
            self.nodes = self.nodes[-30:] + [node]
        if op in (Op.OPEN, Op.OPENDIR, Op.CREATE):
            at = 0 if op != Op.CREATE else 128
            fh = struct.unpack_from("<Q", reply.payload, at)[0]
            self.handles = self.handles[-30:] + [(node, fh)]

    def run(self, count):
        for n in range(count):
            if n % 300 == 299:
                if self.rng.random() < .5:
                    self.post(Op.DESTROY, ROOT, b"")
                self.post(Op.INIT, 0, INIT_IN.pack(7, 38, 1 << 17, LINUX, 0))
                self.nodes, self.handles = [ROOT], [(ROOT, 1)]
            self.post(*self.one())
            while len(self.flying) >= AT_ONCE:
                self.reap()
        self.post(Op.DESTROY, ROOT, b"")
        while self.flying:
            self.reap()


@pytest.mark.parametrize("options", [
    (), ("--inode-file-handles=mandatory",), ("--thread-pool-size=0",)],
    ids=["usual", "by_handle", "no_pool"])
def test_requests_against_each_other_all_come_back(keep, folder, sanitized,
                                                   options):
    share = Share(keep, folder, sanitized, "--xattr", "--posix-lock",
                  "--flock", "--num-request-queues=4", *options)
    share.fs.close()
    share.fs = share.client(queues=4)
    stop = threading.Event()

    def host():
        rng = random.Random(5)
        while not stop.wait(.002):
            what = f"{share.dir}/{rng.choice(NAMES)}"
            try:
                if os.path.isdir(what) and not os.path.islink(what):
                    os.rename(what, f"{share.dir}/moved")
                    os.rename(f"{share.dir}/moved", what)
                else:
                    with open(what, "r+b" if rng.random() < .8 else "wb"):
                        os.unlink(what)
                        with open(what, "wb") as f:
                            f.truncate(rng.randrange(9000))
            except OSError:
                pass
    other = threading.Thread(target=host)
    other.start()
    try:
        Storm(share, 7).run(COUNT)
    finally:
        stop.set()
        other.join()
    share.fs.close()
    until(lambda: share.daemon.find("the VMM has left"), "it goes")
    share.fs = share.client()
    share.fine()
