# SPDX-License-Identifier: Apache-2.0
"""A FUSE client over virtio-fs, to be correct or malformed with.

Written from the specification (virtio 1.4, 5.11) and the numbers of Linux's FUSE
protocol 7.38, independently of moat's C code. Fs.raw() posts any bytes as a
request with any room for the reply; each opcode has a method on top of it that
raises OSError for a negative reply.
"""
import enum
import errno
import os
import struct
from typing import NamedTuple

import vhost_user as vu
from guest import OFFERABLE, GuestRam, Vmm
from split_ring import WRITE
from vhost_user import Region

MIB = 1 << 20
ROOT = 1
# Rings are in the first, requests in the last; a hole is where guest.HOLE is.
LAYOUT = (Region(0x0000_0000, 1 * MIB, 0x7f31_4560_0000, 0),
          Region(0x0010_0000, 1 * MIB, 0x7f31_4500_0000, 0),
          Region(0x1_0000_0000, 5 * MIB, 0x7f31_4400_0000, 4096))

IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
ENTRY = struct.Struct("<QQQQII")
ATTR_OUT = struct.Struct("<QII")
INIT_IN = struct.Struct("<IIIII44x")
INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
SETATTR = struct.Struct("<IIQQQQQQIIIIIIII")
DIRENT = struct.Struct("<QQII")
LOCK = struct.Struct("<QQII")
STATFS = struct.Struct("<QQQQQIIII24x")

SLOT = 160 << 10  # of memory for one request and its reply
SLOTS = 30
GAP = 64  # bytes around each segment that the device must not touch
FILL = 0xee


class Op(enum.IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


NOTIFICATION = 1 << 0  # the feature bit
NO_REPLY = (Op.FORGET, Op.BATCH_FORGET)


class Init(enum.IntFlag):
    """What a kernel offers in INIT: the bits of flags, then of flags2."""
    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    FLOCK_LOCKS = 1 << 10
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30


# Linux 6.12 offers about this to virtio-fs.
LINUX = (Init.ASYNC_READ | Init.POSIX_LOCKS | Init.ATOMIC_O_TRUNC
         | Init.EXPORT_SUPPORT | Init.BIG_WRITES | Init.DONT_MASK
         | Init.FLOCK_LOCKS | Init.AUTO_INVAL_DATA | Init.DO_READDIRPLUS
         | Init.READDIRPLUS_AUTO | Init.ASYNC_DIO | Init.WRITEBACK_CACHE
         | Init.NO_OPEN_SUPPORT | Init.PARALLEL_DIROPS | Init.HANDLE_KILLPRIV
         | Init.POSIX_ACL | Init.ABORT_ERROR | Init.MAX_PAGES
         | Init.CACHE_SYMLINKS | Init.NO_OPENDIR_SUPPORT
         | Init.EXPLICIT_INVAL_DATA | Init.MAP_ALIGNMENT | Init.SUBMOUNTS
         | Init.HANDLE_KILLPRIV_V2 | Init.SETXATTR_EXT | Init.INIT_EXT)


class Attr(NamedTuple):
    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class Entry(NamedTuple):
    nodeid: int
    generation: int
    entry_valid: int
    attr_valid: int
    attr: Attr

    @classmethod
    def parse(cls, data):
        node, gen, entry, attr, _, _ = ENTRY.unpack_from(data)
        return cls(node, gen, entry, attr,
                   Attr(*ATTR.unpack_from(data, ENTRY.size)))


ENTRY_SIZE = ENTRY.size + ATTR.size


class Dirent(NamedTuple):
    ino: int
    off: int
    type: int
    name: bytes
    entry: Entry = None


class Ticket(NamedTuple):
    """A request on its way: what wait() wants."""
    queue: object
    head: int
    slot: int
    out: tuple  # (address, length) of its writable segments
    guards: tuple  # (address, length) that must stay as filled
    unique: int
    serial: int  # no other has it, while heads are used again


class Reply(NamedTuple):
    """What came back: used.len, and that many bytes of the room."""
    used: int
    data: bytes

    @property
    def error(self):
        return OUT_HEADER.unpack_from(self.data)[1]

    @property
    def payload(self):
        return self.data[OUT_HEADER.size:]

    def check(self, unique):
        """A well-formed reply to @unique; raises the error that it tells."""
        length, error, got = OUT_HEADER.unpack_from(self.data)
        assert got == unique, (got, unique)
        assert length == self.used == len(self.data), (length, self.used)
        assert -4095 < error <= 0, error
        if error:
            assert length == OUT_HEADER.size, "an error has no payload"
            raise OSError(-error, os.strerror(-error))
        return self.payload


def name(text):
    """A name as FUSE has it: with its NUL."""
    return (text.encode() if isinstance(text, str) else text) + b"\0"


def dirents(data, plus):
    out, at = [], 0
    while at < len(data):
        entry = None
        if plus:
            entry = Entry.parse(data[at:])
            at += ENTRY_SIZE
        ino, off, length, kind = DIRENT.unpack_from(data, at)
        at += DIRENT.size
        assert at + length <= len(data), "a cut record"
        out.append(Dirent(ino, off, kind, data[at:at + length], entry))
        at += -(-length // 8) * 8
        assert at <= len(data), "a record without its padding"
    return out


class Fs:
    """One mounted client of a daemon that listens at @path.

    Its queues are the high-priority one and @queues for requests; with @notify
    there is one for notifications, too. With init=False no INIT is sent.
    Requests of the methods go to queue @queue.
    """

    def __init__(self, path, queues=1, init=True, features=OFFERABLE, num=64,
                 flags=LINUX, timeout=10, vmm=None, notify=False):
        ram = None if vmm else GuestRam(LAYOUT)
        if notify:
            features |= NOTIFICATION
        self.vmm = vmm or Vmm.connect(path, ram=ram, features=features)
        self.timeout = timeout
        try:
            self.vmm.setup(queues=1 + notify + queues, num=num)
        except BaseException:
            self.close()
            raise
        self.ram = self.vmm.ram
        self.hiprio, *self.requests = self.vmm.queues
        self.notifications = self.requests.pop(0) if notify else None
        self.slots = []
        for _ in range(SLOTS):
            at = self.ram.alloc(SLOT, 4096, bank=2)
            self.ram.device_may_write(at, SLOT)
            self.slots.append(at)
        self.serial = 0
        self.live = {}  # (queue's index, head) -> the ticket's serial
        self.done = {}  # serial -> used.len
        self.unique = 2
        self.uid = self.gid = 0
        self.pid = 4711
        self.init_out = None
        if init:
            self.init_out = self.init(flags=flags)

    def close(self):
        if not self.vmm.closed:
            self.vmm.close()
            self.vmm.ram.close()

    # -- bytes in, bytes out

    def next_unique(self):
        self.unique += 2
        return self.unique

    def submit(self, request, room=0, queue=None, cuts=(), out_cuts=()):
        """Posts @request's bytes and @room writable ones; a Ticket. @cuts and
        @out_cuts: where the two are cut into descriptors."""
        queue = queue or self.requests[0]
        slot = self.slots.pop()
        at, segs, guards, out = slot + GAP, [], [], []

        def pieces(length, where):
            edges = [0, *sorted(c for c in where if 0 < c < length), length]
            return [b - a for a, b in zip(edges, edges[1:]) if b > a]

        done = 0
        for length in pieces(len(request), cuts):
            self.put(at, request[done:done + length])
            segs.append((at, length, 0))
            done += length
            at += -(-length // 8) * 8 + GAP
        for length in pieces(room, out_cuts):
            self.put(at - GAP, bytes([FILL]) * (length + 2 * GAP))
            guards += [(at - GAP, GAP), (at + length, GAP)]
            segs.append((at, length, WRITE))
            out.append((at, length))
            at += length + GAP
        assert at <= slot + SLOT, "no room in a slot"
        assert segs, "a request of nothing"
        head = queue.ring.add(segs)
        self.serial += 1
        self.live[queue.index, head] = self.serial
        queue.publish()
        unique = int.from_bytes(request[8:16].ljust(8, b"\0"), "little")
        return Ticket(queue, head, slot, tuple(out), tuple(guards), unique,
                      self.serial)

    def put(self, at, data):
        """Into memory that is not compared."""
        for bank, off, part in self.ram.parts(at, len(data)):
            bank.view[off:off + part] = data[:part]
            data = data[part:]

    def wait(self, ticket, timeout=None):
        """The Reply; it also must have been written where it may."""
        deadline = vu.deadline_in(timeout or self.timeout)
        while ticket.serial not in self.done:
            left = max(0.001, deadline - vu.deadline_in(0))
            for head, used in ticket.queue.wait_used(timeout=left):
                serial = self.live.pop((ticket.queue.index, head), None)
                self.done[serial] = used
        used = self.done.pop(ticket.serial)
        room = sum(length for _, length in ticket.out)
        assert used <= room, f"used.len {used} of {room}"
        for at, length in ticket.guards:
            assert self.ram.read(at, length) == bytes([FILL]) * length, \
                "written outside its buffers"
        data = b"".join(self.ram.read(*part) for part in ticket.out)
        self.slots.append(ticket.slot)
        return Reply(used, data[:used])

    def raw(self, request, room=0, **kw):
        return self.wait(self.submit(request, room, **kw))

    def header(self, opcode, nodeid, length, **fields):
        """A request's header; @fields replaces what is right."""
        right = {"len": IN_HEADER.size + length, "opcode": opcode,
                 "unique": self.next_unique(), "nodeid": nodeid,
                 "uid": self.uid, "gid": self.gid, "pid": self.pid,
                 "ext": 0, "padding": 0}
        assert not fields.keys() - right.keys(), fields
        return IN_HEADER.pack(*{**right, **fields}.values())

    def start(self, opcode, nodeid=ROOT, payload=b"", room=4096, queue=None,
              **fields):
        """A request with a right header, not waited for."""
        out = 0 if opcode in NO_REPLY else OUT_HEADER.size + room
        return self.submit(self.header(opcode, nodeid, len(payload), **fields)
                           + payload, out, queue=queue)

    def finish(self, ticket, timeout=None):
        return self.wait(ticket, timeout).check(ticket.unique)

    def call(self, opcode, nodeid=ROOT, payload=b"", room=4096, queue=None,
             **fields):
        """A request with a right header; the reply's payload, or OSError."""
        return self.finish(self.start(opcode, nodeid, payload, room, queue,
                                      **fields))

    # -- the opcodes

    def init(self, major=7, minor=38, flags=LINUX, flags2=0, readahead=1 << 17):
        data = self.call(Op.INIT, 0, INIT_IN.pack(
            major, minor, readahead, flags & 0xffffffff, flags2),
            room=INIT_OUT.size)
        assert len(data) >= 24, "init_out of 7.23 and later has 64 bytes"
        names = ("major", "minor", "max_readahead", "flags", "max_background",
                 "congestion", "max_write", "time_gran", "max_pages",
                 "map_alignment", "flags2")
        return dict(zip(names, INIT_OUT.unpack(data.ljust(INIT_OUT.size,
                                                          b"\0"))))

    def destroy(self):
        """Its reply, if any, says nothing."""
        ticket = self.start(Op.DESTROY)
        reply = self.wait(ticket)
        if reply.used:
            reply.check(ticket.unique)

    def lookup(self, parent, what):
        return Entry.parse(self.call(Op.LOOKUP, parent, name(what)))

    def walk(self, path, parent=ROOT):
        """The Entry at the end of a relative path."""
        entry = None
        for part in path.split("/"):
            entry = self.lookup(parent, part)
            parent = entry.nodeid
        return entry

    def forget(self, node, count=1, queue=None):
        """Has no reply; comes back as a used buffer."""
        return self.wait(self.start(Op.FORGET, node, struct.pack("<Q", count),
                                    queue=queue or self.hiprio))

    def batch_forget(self, pairs, count=None, queue=None):
        payload = struct.pack("<II", len(pairs) if count is None else count, 0)
        payload += b"".join(struct.pack("<QQ", *pair) for pair in pairs)
        return self.wait(self.start(Op.BATCH_FORGET, 0, payload,
                                    queue=queue or self.hiprio))

    def getattr(self, node, fh=None):
        data = self.call(Op.GETATTR, node, struct.pack(
            "<IIQ", int(fh is not None), 0, fh or 0))
        return Attr(*ATTR.unpack_from(data, ATTR_OUT.size))

    def setattr(self, node, valid, fh=0, size=0, owner=0, atime=0, mtime=0,
                ctime=0, mode=0, uid=0, gid=0):
        data = self.call(Op.SETATTR, node, SETATTR.pack(
            valid, 0, fh, size, owner, atime, mtime, ctime, 0, 0, 0, mode, 0,
            uid, gid, 0))
        return Attr(*ATTR.unpack_from(data, ATTR_OUT.size))

    def truncate(self, node, size, fh=None):
        return self.setattr(node, 1 << 3 | (0 if fh is None else 1 << 6),
                            fh or 0, size)

    def readlink(self, node):
        return self.call(Op.READLINK, node)

    def symlink(self, parent, what, target):
        return Entry.parse(self.call(Op.SYMLINK, parent,
                                     name(what) + name(target)))

    def mknod(self, parent, what, mode=0o100644, rdev=0, umask=0):
        return Entry.parse(self.call(Op.MKNOD, parent, struct.pack(
            "<IIII", mode, rdev, umask, 0) + name(what)))

    def mkdir(self, parent, what, mode=0o755, umask=0):
        return Entry.parse(self.call(Op.MKDIR, parent, struct.pack(
            "<II", mode, umask) + name(what)))

    def unlink(self, parent, what):
        self.call(Op.UNLINK, parent, name(what))

    def rmdir(self, parent, what):
        self.call(Op.RMDIR, parent, name(what))

    def rename(self, parent, old, newparent, new):
        self.call(Op.RENAME, parent, struct.pack("<Q", newparent)
                  + name(old) + name(new))

    def rename2(self, parent, old, newparent, new, flags=0):
        self.call(Op.RENAME2, parent, struct.pack("<QII", newparent, flags, 0)
                  + name(old) + name(new))

    def link(self, node, newparent, new):
        return Entry.parse(self.call(Op.LINK, newparent, struct.pack("<Q", node)
                                     + name(new)))

    def open(self, node, flags=os.O_RDWR, directory=False, open_flags=0):
        """The handle."""
        op = Op.OPENDIR if directory else Op.OPEN
        return struct.unpack("<QII", self.call(op, node, struct.pack(
            "<II", flags, open_flags)))[0]

    def opendir(self, node):
        return self.open(node, os.O_RDONLY | os.O_DIRECTORY, True)

    def create(self, parent, what, flags=os.O_RDWR, mode=0o100644, umask=0):
        """The pair (Entry, handle)."""
        data = self.call(Op.CREATE, parent, struct.pack(
            "<IIII", flags | os.O_CREAT, mode, umask, 0) + name(what))
        return Entry.parse(data), struct.unpack_from("<Q", data, ENTRY_SIZE)[0]

    def tmpfile(self, parent, flags=os.O_RDWR, mode=0o100600):
        data = self.call(Op.TMPFILE, parent, struct.pack(
            "<IIII", flags, mode, 0, 0) + name("#tmp"))
        return Entry.parse(data), struct.unpack_from("<Q", data, ENTRY_SIZE)[0]

    def read(self, node, fh, offset, size, room=None):
        return self.call(Op.READ, node, struct.pack(
            "<QQIIQII", fh, offset, size, 0, 0, 0, 0),
            room=size if room is None else room)

    def write(self, node, fh, offset, data, size=None, flags=0):
        """How many bytes were written."""
        return struct.unpack("<II", self.call(Op.WRITE, node, struct.pack(
            "<QQIIQII", fh, offset, len(data) if size is None else size,
            flags, 0, 0, 0) + data))[0]

    def statfs(self, node=ROOT):
        return STATFS.unpack(self.call(Op.STATFS, node))

    def release(self, node, fh, directory=False, owner=0, flags=0):
        self.call(Op.RELEASEDIR if directory else Op.RELEASE, node,
                  struct.pack("<QIIQ", fh, 0, flags, owner))

    def flush(self, node, fh, owner=0):
        self.call(Op.FLUSH, node, struct.pack("<QIIQ", fh, 0, 0, owner))

    def fsync(self, node, fh, datasync=0, directory=False):
        self.call(Op.FSYNCDIR if directory else Op.FSYNC, node,
                  struct.pack("<QII", fh, datasync, 0))

    def setxattr(self, node, key, value, flags=0, size=None, ext=True):
        """@ext: the longer struct of SETXATTR_EXT."""
        self.call(Op.SETXATTR, node, struct.pack(
            "<II", len(value) if size is None else size, flags)
            + (bytes(8) if ext else b"") + name(key) + value)

    def getxattr(self, node, key, size=4096):
        """The value, or with size=0 how long it is."""
        data = self.call(Op.GETXATTR, node, struct.pack("<II", size, 0)
                         + name(key), room=max(size, 8))
        return data if size else struct.unpack("<II", data)[0]

    def listxattr(self, node, size=4096):
        data = self.call(Op.LISTXATTR, node, struct.pack("<II", size, 0),
                         room=max(size, 8))
        return data if size else struct.unpack("<II", data)[0]

    def removexattr(self, node, key):
        self.call(Op.REMOVEXATTR, node, name(key))

    def readdir(self, node, fh, offset=0, size=4096, plus=False):
        data = self.call(Op.READDIRPLUS if plus else Op.READDIR, node,
                         struct.pack("<QQIIQII", fh, offset, size, 0, 0, 0, 0),
                         room=size)
        assert len(data) <= size
        return dirents(data, plus)

    def listdir(self, node, plus=False, size=4096):
        """All entries of a directory, by as many requests as that takes."""
        fh, out, offset = self.opendir(node), [], 0
        while part := self.readdir(node, fh, offset, size, plus):
            out += part
            offset = part[-1].off
        self.release(node, fh, directory=True)
        return out

    def lock(self, node, fh, kind, start=0, end=2 ** 63 - 1, owner=1, op=None,
             flags=0, pid=1):
        """SETLK, or GETLK: then what is in the way as (start, end, type,
        pid)."""
        op = op or Op.SETLK
        data = self.call(op, node, struct.pack("<QQ", fh, owner) + LOCK.pack(
            start, end, kind, pid) + struct.pack("<II", flags, 0))
        return LOCK.unpack(data) if op == Op.GETLK else None

    def access(self, node, mask):
        self.call(Op.ACCESS, node, struct.pack("<II", mask, 0))

    def interrupt(self, unique):
        """Its reply, if any, says nothing; it goes by the fast queue."""
        request = self.header(Op.INTERRUPT, 0, 8) + struct.pack("<Q", unique)
        return self.raw(request, OUT_HEADER.size, queue=self.hiprio)

    def fallocate(self, node, fh, mode, offset, length):
        self.call(Op.FALLOCATE, node, struct.pack("<QQQII", fh, offset, length,
                                                  mode, 0))

    def lseek(self, node, fh, offset, whence):
        return struct.unpack("<Q", self.call(Op.LSEEK, node, struct.pack(
            "<QQII", fh, offset, whence, 0)))[0]

    def copy_file_range(self, node, fh, offset, node_to, fh_to, offset_to,
                        length, flags=0):
        return struct.unpack("<II", self.call(
            Op.COPY_FILE_RANGE, node, struct.pack(
                "<QQQQQQQ", fh, offset, node_to, fh_to, offset_to, length,
                flags)))[0]

    def setupmapping(self, node, fh, foffset, length, moffset, flags=2):
        self.call(Op.SETUPMAPPING, node, struct.pack(
            "<QQQQQ", fh, foffset, length, flags, moffset))

    def removemapping(self, node, pairs, count=None):
        self.call(Op.REMOVEMAPPING, node, struct.pack(
            "<I", len(pairs) if count is None else count)
            + b"".join(struct.pack("<QQ", *pair) for pair in pairs))

    def syncfs(self, node=ROOT):
        self.call(Op.SYNCFS, node, bytes(8))

    # -- a correct client, to prove that the daemon still serves one

    def works(self, label="works"):
        """A file is made, written, read, listed, renamed, removed."""
        text = os.urandom(70000)
        entry, fh = self.create(ROOT, label)
        node = entry.nodeid
        assert self.write(node, fh, 0, text) == len(text)
        assert self.read(node, fh, 0, len(text)) == text
        assert self.getattr(node).size == len(text)
        listed = {d.name: d for d in self.listdir(ROOT)}
        assert {b".", b"..", label.encode()} <= listed.keys()
        again = self.lookup(ROOT, label)
        assert again.nodeid == node, "one inode has one id"
        self.rename(ROOT, label, ROOT, label + "2")
        self.unlink(ROOT, label + "2")
        assert self.read(node, fh, 5, 5) == text[5:10], "unlinked, yet open"
        self.flush(node, fh)
        self.release(node, fh)
        assert self.forget(node, 2).used == 0
        fails(errno.ENOENT, self.lookup, ROOT, label)


def fails(codes, function, *args, **kw):
    """@function must raise OSError with one of these numbers; returns it."""
    codes = codes if isinstance(codes, tuple) else (codes,)
    try:
        got = function(*args, **kw)
    except OSError as e:
        assert not codes or e.errno in codes, \
            f"{errno.errorcode.get(e.errno)}, not " + \
            "/".join(errno.errorcode[c] for c in codes)
        return e.errno
    raise AssertionError(f"succeeded with {got!r}")
