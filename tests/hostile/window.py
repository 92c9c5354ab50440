# SPDX-License-Identifier: Apache-2.0
"""A VMM that shows what it is asked to: SHMEM_MAP and SHMEM_UNMAP become
mappings of this process, as QEMU's would be of its guest.

The window is a reservation without access; each mapping lies over its place. A
thread answers the channel, so that the test can wait for a request's reply.
"""
import ctypes
import errno
import mmap
import os
import threading

import vhost_user as vu
from vhost_user import NEED_REPLY, REPLY, VERSION, BackendRequest

MAP, UNMAP = BackendRequest.SHMEM_MAP, BackendRequest.SHMEM_UNMAP
FENCE = BackendRequest.CONFIG_CHANGE_MSG
PAGE = mmap.PAGESIZE
FIXED = 0x10
NORESERVE = 0x4000

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
                      ctypes.c_int, ctypes.c_int, ctypes.c_long)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
NOWHERE = ctypes.c_void_p(-1).value


class Window:
    """@vmm's window of @size bytes.

    refuse: what it answers, if not 0 (or a function of the request and its
    fields); hold: it does not answer; read_only: it can map so. errors: what the
    device did that it may not.
    """

    def __init__(self, vmm, size, read_only=True):
        self.vmm = vmm
        self.size = size
        self.read_only = read_only
        self.base = libc.mmap(None, size, 0, mmap.MAP_PRIVATE
                              | mmap.MAP_ANONYMOUS | NORESERVE, -1, 0)
        assert self.base != NOWHERE
        self.maps = {}  # offset -> (length, writable)
        self.refuse = 0
        self.hold = False
        self.held = []
        self.asked = 0
        self.errors = []
        self.lock = threading.Condition()
        self.stop, self.stopped = os.pipe()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def close(self):
        os.close(self.stopped)
        self.thread.join()
        os.close(self.stop)
        libc.munmap(self.base, self.size)
        assert not self.errors, self.errors

    # -- the channel

    def _run(self):
        channel = self.vmm.channel
        while True:
            ready = vu.readable(channel, self.stop, timeout=None)
            if self.stop in ready:
                return
            try:
                msg = vu.recv_msg(channel, vu.deadline_in(10))
            except (vu.Closed, OSError, ValueError):
                return
            with self.lock:
                self.asked += msg.request != FENCE
                if self.hold:
                    self.held.append(msg)
                else:
                    self._answer(msg)
                self.lock.notify_all()

    def _answer(self, msg):
        if msg.request == FENCE:
            if msg.flags & NEED_REPLY:
                self._say(FENCE, 0)
            return
        fields = vu.MMAP.unpack(msg.payload)
        status = self.refuse(msg.request, fields) if callable(self.refuse) \
            else self.refuse
        if not status:
            status = (self._map if msg.request == MAP else self._unmap)(
                msg.fds, *fields)
        vu.close_all(msg.fds)
        self._say(msg.request, status)

    def _say(self, request, status):
        try:
            vu.send_msg(self.vmm.channel, request, vu.U64.pack(status),
                        flags=VERSION | REPLY)
        except (OSError, vu.Closed):
            pass  # the device has gone

    def release(self):
        """Answers what was held."""
        with self.lock:
            self.hold = False
            while self.held:
                self._answer(self.held.pop(0))

    def wait_asked(self, more=1):
        with self.lock:
            want = self.asked + more
        with self.lock:
            assert self.lock.wait_for(lambda: self.asked >= want or self.held,
                                      10)

    def _bad(self, what):
        self.errors.append(what)
        return errno.EINVAL

    def _map(self, fds, shmid, at, offset, length, flags):
        if shmid or (at | offset | length) % PAGE or not length \
                or offset + length > self.size or len(fds) != 1:
            return self._bad(("map", shmid, at, offset, length))
        for other, (size, _) in self.maps.items():
            if other < offset + length and offset < other + size:
                return self._bad(("overlap", offset, length, other, size))
        if os.fstat(fds[0]).st_size < at + length - PAGE + 1:
            return self._bad(("past the end", at, length))
        writable = bool(flags & vu.WRITABLE)
        if not writable and not self.read_only:
            return 1
        got = libc.mmap(self.base + offset, length,
                        mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0),
                        mmap.MAP_SHARED | FIXED, fds[0], at)
        if got == NOWHERE:
            return self._bad(("mmap", ctypes.get_errno()))
        self.maps[offset] = (length, writable)
        return 0

    def _unmap(self, fds, shmid, _at, offset, length, _flags):
        if fds or shmid or self.maps.get(offset, (None,))[0] != length:
            return self._bad(("unmap", shmid, offset, length))
        del self.maps[offset]
        libc.mmap(self.base + offset, length, 0, mmap.MAP_PRIVATE
                  | mmap.MAP_ANONYMOUS | NORESERVE | FIXED, -1, 0)
        return 0

    # -- the guest's eyes and hands

    def covered(self, at, length=PAGE):
        """Whether all of it is mapped."""
        with self.lock:
            while length > 0:
                for offset, (size, _) in self.maps.items():
                    if offset <= at < offset + size:
                        step = offset + size - at
                        at, length = at + step, length - step
                        break
                else:
                    return False
        return True

    def pages(self):
        with self.lock:
            return {p for offset, (size, _) in self.maps.items()
                    for p in range(offset, offset + size, PAGE)}

    def read(self, at, length):
        assert self.covered(at, length), f"nothing at {at:#x}+{length:#x}"
        return ctypes.string_at(self.base + at, length)

    def write(self, at, data):
        assert self.covered(at, len(data)), f"nothing at {at:#x}"
        ctypes.memmove(self.base + at, data, len(data))
