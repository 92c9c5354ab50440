# SPDX-License-Identifier: Apache-2.0
"""What tests with malformed FUSE requests start from: fixtures with moat-fs, and
a right request of each kind."""
import os
import struct

import pytest

import fuse
from fuse import ROOT, Op, name
from share import Share
from vhost_user import Closed


@pytest.fixture(scope="module")
def reused(sanitized, tmp_path_factory):
    """A daemon for all tests that leave it as it was, [Share], and what ends
    it; a test that fails empties the list."""
    things, shares = [], []

    def get():
        if not shares:
            end()
            folder = tmp_path_factory.mktemp("fs")
            shares.append(Share(lambda t: things.append(t) or t, str(folder),
                                sanitized, "--xattr",
                                "--posix-lock", "--flock"))
        return shares.pop()

    def end():
        while things:
            things.pop().close()
    yield get, shares.append
    end()


@pytest.fixture(name="share")
def fixture_share(reused):
    get, give_back = reused
    share = get()
    share.fs.destroy()
    share.fs.init()
    yield share
    assert len(share.fs.slots) == fuse.SLOTS, "a request did not come back"
    share.fs.vmm.ram.check()
    assert share.daemon.alive() and not share.daemon.sanitizer_output()
    give_back(share)


@pytest.fixture(name="own")
def fixture_own(keep, folder, sanitized):
    """A daemon of the test's own."""
    return lambda *options, **kw: Share(keep, folder, sanitized, "--posix-lock",
                                        *options, **kw)


class Open:
    """What valid requests are about: nodes and handles of the tree."""

    def __init__(self, fs):
        self.file = fs.lookup(ROOT, "file").nodeid
        self.other = fs.lookup(ROOT, "other").nodeid
        self.link = fs.lookup(ROOT, "link").nodeid
        self.dir = fs.lookup(ROOT, "dir").nodeid
        self.fh = fs.open(self.file)
        self.other_fh = fs.open(self.other)
        self.dir_fh = fs.opendir(self.dir)


def read_in(fh, offset=0, size=100):
    return struct.pack("<QQIIQII", fh, offset, size, 0, 0, 0, 0)


def lock_in(fh, start=0, end=10, kind=0, owner=1, flags=0):
    return struct.pack("<QQQQIIII", fh, owner, start, end, kind, 1, flags, 0)


def valid(o):
    """Opcode -> (node, payload, room behind the header) of a right request."""
    return {
        Op.LOOKUP: (ROOT, name("file"), 128),
        Op.GETATTR: (o.file, struct.pack("<IIQ", 1, 0, o.fh), 104),
        Op.SETATTR: (o.other, fuse.SETATTR.pack(
            1 << 6 | 1, 0, o.other_fh, 0, 0, 0, 0, 0, 0, 0, 0, 0o644, 0, 0, 0,
            0), 104),
        Op.READLINK: (o.link, b"", 4096),
        Op.SYMLINK: (ROOT, name("new") + name("target"), 128),
        Op.MKNOD: (ROOT, struct.pack("<IIII", 0o100644, 0, 0, 0)
                   + name("new"), 128),
        Op.MKDIR: (ROOT, struct.pack("<II", 0o755, 0) + name("new"), 128),
        Op.UNLINK: (ROOT, name("nothing"), 0),
        Op.RMDIR: (ROOT, name("nothing"), 0),
        Op.RENAME: (ROOT, struct.pack("<Q", ROOT) + name("nothing")
                    + name("new"), 0),
        Op.LINK: (ROOT, struct.pack("<Q", o.file) + name("new"), 128),
        Op.OPEN: (o.file, struct.pack("<II", os.O_RDWR, 0), 16),
        Op.READ: (o.file, read_in(o.fh), 100),
        Op.WRITE: (o.other, read_in(o.other_fh) + bytes(100), 8),
        Op.STATFS: (ROOT, b"", 80),
        Op.RELEASE: (o.file, struct.pack("<QIIQ", 2 ** 40, 0, 0, 0), 0),
        Op.FSYNC: (o.file, struct.pack("<QII", o.fh, 0, 0), 0),
        Op.SETXATTR: (o.other, struct.pack("<IIII", 3, 0, 0, 0)
                      + name("user.x") + b"abc", 0),
        Op.GETXATTR: (o.other, struct.pack("<II", 100, 0) + name("user.y"),
                      100),
        Op.LISTXATTR: (o.other, struct.pack("<II", 100, 0), 100),
        Op.REMOVEXATTR: (o.other, name("user.y"), 0),
        Op.FLUSH: (o.file, struct.pack("<QIIQ", o.fh, 0, 0, 1), 0),
        Op.OPENDIR: (o.dir, struct.pack("<II", os.O_DIRECTORY, 0), 16),
        Op.READDIR: (o.dir, read_in(o.dir_fh, 0, 1024), 1024),
        Op.RELEASEDIR: (o.dir, struct.pack("<QIIQ", 2 ** 40, 0, 0, 0), 0),
        Op.FSYNCDIR: (o.dir, struct.pack("<QII", o.dir_fh, 0, 0), 0),
        Op.GETLK: (o.file, lock_in(o.fh), 24),
        Op.SETLK: (o.file, lock_in(o.fh, kind=2), 0),
        Op.ACCESS: (o.file, struct.pack("<II", 4, 0), 0),
        Op.CREATE: (ROOT, struct.pack("<IIII", os.O_RDWR | os.O_CREAT,
                                      0o644, 0, 0) + name("new"), 144),
        Op.INTERRUPT: (0, struct.pack("<Q", 4242), 0),
        Op.BMAP: (o.file, struct.pack("<QII", 0, 512, 0), 8),
        Op.IOCTL: (o.file, struct.pack("<QIIQII", o.fh, 0, 0x5401, 0, 0, 64),
                   80),
        Op.POLL: (o.file, struct.pack("<QQII", o.fh, 1, 0, 1), 8),
        Op.FALLOCATE: (o.other, struct.pack("<QQQII", o.other_fh, 0, 4096, 1,
                                            0), 0),
        Op.READDIRPLUS: (o.dir, read_in(o.dir_fh, 0, 1024), 1024),
        Op.RENAME2: (ROOT, struct.pack("<QII", ROOT, 1, 0) + name("nothing")
                     + name("new"), 0),
        Op.LSEEK: (o.file, struct.pack("<QQII", o.fh, 0, 3, 0), 8),
        Op.COPY_FILE_RANGE: (o.file, struct.pack(
            "<QQQQQQQ", o.fh, 0, o.other, o.other_fh, 0, 100, 0), 8),
        Op.SETUPMAPPING: (o.file, struct.pack("<QQQQQ", o.fh, 0, 4096, 2, 0),
                          0),
        Op.REMOVEMAPPING: (o.file, struct.pack("<IQQ", 1, 0, 4096), 0),
        Op.SYNCFS: (ROOT, bytes(8), 0),
        Op.TMPFILE: (ROOT, struct.pack("<IIII", os.O_RDWR, 0o600, 0, 0)
                     + name("#"), 144),
    }


OPS = sorted(set(Op) - {Op.FORGET, Op.BATCH_FORGET, Op.SETLKW, Op.INIT,
                        Op.DESTROY, Op.NOTIFY_REPLY, Op.STATX})
BY_OP = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name.lower())
SMALLEST = fuse.OUT_HEADER.size


def clean(share):
    """Removes what a request that was let through may have made."""
    for made in ("new",):
        path = f"{share.dir}/{made}"
        if os.path.isdir(path):
            os.rmdir(path)
        elif os.path.lexists(path):
            os.unlink(path)


def comes_back(fs, ticket):
    """Whether a request came back; else its queue has to be a broken one."""
    try:
        reply = fs.wait(ticket, timeout=2)
    except (AssertionError, Closed):
        assert ticket.queue.erred(), "neither used nor refused: it hangs"
        return False
    if reply.used >= fuse.OUT_HEADER.size:
        assert fuse.OUT_HEADER.unpack_from(reply.data)[1] < 0
    return True
