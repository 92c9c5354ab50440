# SPDX-License-Identifier: Apache-2.0
"""A file system of one file, "disk", whose power can be cut.

What is written is in a cache that the disk loses with its power; fsync puts it
on the medium.  Reads, writes and fsyncs can be made to fail.  It is served by a
thread of the test itself, in FUSE's own protocol (linux/fuse.h), so that the
test decides what happens when.  Needs /dev/fuse and the right to mount, or fusermount3.
"""
import ctypes
import errno
import os
import random
import select
import socket
import stat
import struct
import subprocess
import threading

PAGE = 4096
IN_HEADER = struct.Struct("=IIQQIIII")
OUT_HEADER = struct.Struct("=IiQ")
ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
ROOT, DISK = 1, 2

LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, \
    FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET, \
    FALLOCATE = (1, 2, 3, 4, 14, 15, 16, 17, 18, 20, 25, 26, 27, 28, 29, 36,
                 42, 43)
PUNCH_HOLE, ZERO_RANGE = 2, 16
ASYNC_DIO = 1 << 15

libc = ctypes.CDLL(None, use_errno=True)


def mount(where):
    """Returns the file system's descriptor. Who may not mount has fusermount3
    do it."""
    if os.geteuid() == 0:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        options = f"fd={fd},rootmode=40755,user_id=0,group_id=0"
        if libc.mount(b"cut", os.fsencode(where), b"fuse", 0,
                      options.encode()):
            raise OSError(ctypes.get_errno(), f"mount on {where}")
        return fd
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subprocess.run(["fusermount3", "--", where], check=True,
                       pass_fds=[theirs.fileno()],
                       env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())})
        _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
    os.set_blocking(fd, False)
    return fd


def unmount(where):
    if os.geteuid() == 0:
        libc.umount2(os.fsencode(where), 2)
    else:
        subprocess.run(["fusermount3", "-u", "-q", "-z", "--", where],
                       check=True)


class CutFs:
    """Mounted at @where until close().

    fail: operation -> errno with which it fails, for what lies beyond fail_from
    deaf: fsync is answered and does nothing
    """

    def __init__(self, where, size, seed=0):
        self.where = where
        self.path = f"{where}/disk"
        self.medium = bytearray(size)
        self.cache = bytearray(size)    # what a reader sees
        self.dirty = []     # (offset, bytes), in order, not on the medium
        self.fail = {}
        self.fail_from = 0
        self.deaf = False
        self.syncs = 0
        self.rng = random.Random(seed)
        self.lock = threading.Lock()
        self._mount()

    # -- what a test does

    def cut(self):
        """The power goes, and comes again: of what was not on the medium any
        part may be there, whole or torn, in whatever order the disk liked.
        Returns what the disk holds from then on."""
        self.close()    # whoever is left can write no more
        self.rng.shuffle(self.dirty)
        for offset, data in self.dirty:
            kept = self.rng.choice((0, len(data), self.rng.randrange(
                0, len(data) + 1, 512)))
            self.medium[offset:offset + kept] = data[:kept]
        self.dirty = []
        self.cache[:] = self.medium
        self._mount()
        return bytes(self.medium)

    def close(self):
        """Who still uses it gets errors."""
        unmount(self.where)
        self.down = True
        os.eventfd_write(self.stop_fd, 1)
        self.thread.join()
        os.close(self.fd)
        os.close(self.stop_fd)

    def _mount(self):
        self.down = False
        self.fd = mount(self.where)
        self.stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    # -- FUSE

    def _serve(self):
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        poller.register(self.stop_fd, select.POLLIN)
        while not self.down:
            poller.poll()
            try:
                self._answer(os.read(self.fd, 1 << 21))
            except OSError as e:
                if e.errno == errno.ENODEV:
                    return      # unmounted
                if e.errno not in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    raise

    def _answer(self, request):
        _, op, unique, node, *_ = IN_HEADER.unpack_from(request)
        if op in (FORGET, BATCH_FORGET, INTERRUPT):
            return
        try:
            with self.lock:
                answer, error = self._do(op, node, request[IN_HEADER.size:]), 0
        except OSError as e:
            answer, error = b"", -e.errno
        os.write(self.fd, OUT_HEADER.pack(
            OUT_HEADER.size + len(answer), error, unique) + answer)

    def _attr(self, node):
        folder = node == ROOT
        mode = stat.S_IFDIR | 0o755 if folder else stat.S_IFREG | 0o644
        size = 0 if folder else len(self.cache)
        return ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1,
                         os.getuid(), 0, 0, PAGE, 0)

    def _do(self, op, node, body):
        handler = self.HANDLERS.get(op)
        if not handler:
            raise OSError(errno.ENOSYS, "")
        return handler(self, node, body)

    def _check(self, op, offset=0, length=1):
        if op in self.fail and offset + length > self.fail_from:
            raise OSError(self.fail[op], "")

    def _init(self, _, body):
        major, minor, ahead, flags = struct.unpack_from("=IIII", body)
        assert major == 7 and minor >= 31
        return struct.pack("=IIIIHHIIHHI28x", 7, 31, ahead, flags & ASYNC_DIO,
                           16, 12, 1 << 20, 1, 0, 0, 0)

    def _lookup(self, _, body):
        if body.rstrip(b"\0") != b"disk":
            raise OSError(errno.ENOENT, "")
        return struct.pack("=QQQQII", DISK, 1, 1, 1, 0, 0) + self._attr(DISK)

    def _getattr(self, node, _):
        return struct.pack("=QII", 1, 0, 0) + self._attr(node)

    def _open(self, _node, _body):
        return struct.pack("=QII", 1, 0, 0)

    def _read(self, _, body):
        _, offset, size = struct.unpack_from("=QQI", body)
        self._check(READ, offset, size)
        return bytes(self.cache[offset:offset + size])

    def _write(self, _, body):
        _, offset, size, *_ = struct.unpack_from("=QQIIQII", body)
        self._check(WRITE, offset, size)
        self._put(offset, body[40:40 + size])
        return struct.pack("=II", size, 0)

    def _put(self, offset, data):
        assert offset + len(data) <= len(self.cache)
        self.cache[offset:offset + len(data)] = data
        self.dirty.append((offset, data))

    def _fallocate(self, _, body):
        _, offset, length, mode = struct.unpack_from("=QQQI", body)
        self._check(FALLOCATE, offset, length)
        if not mode & (PUNCH_HOLE | ZERO_RANGE):
            raise OSError(errno.EOPNOTSUPP, "")
        if offset < len(self.cache):    # beyond: somebody asks if it is there
            self._put(offset, bytes(min(length, len(self.cache) - offset)))
        return b""

    def _fsync(self, _node, _body):
        self._check(FSYNC, length=1 << 62)
        self.syncs += 1
        if self.deaf:
            return b""
        for offset, data in self.dirty:
            self.medium[offset:offset + len(data)] = data
        self.dirty = []
        return b""

    def _nothing(self, _node, _body):
        return b""

    def _statfs(self, _node, _body):
        return struct.pack("=QQQQQIIII24x", len(self.cache) // PAGE, 0, 0, 1, 0,
                           PAGE, 255, PAGE, 0)

    HANDLERS = {INIT: _init, LOOKUP: _lookup, GETATTR: _getattr, OPEN: _open,
                READ: _read, WRITE: _write, FALLOCATE: _fallocate,
                FSYNC: _fsync, FLUSH: _nothing, RELEASE: _nothing,
                STATFS: _statfs}
