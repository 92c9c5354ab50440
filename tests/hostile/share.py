# SPDX-License-Identifier: Apache-2.0
"""A folder that moat-fs shares, its clients, and what is beside the folder."""
import os
import time

import fuse
from guard import MoatFs
from split_ring import WRITE

SECRET = b"MOAT-CANARY: never to be read through the share\n"


def tree(path):
    """What every test finds in a shared folder."""
    os.makedirs(f"{path}/dir/deep", exist_ok=True)
    os.makedirs(f"{path}/many", exist_ok=True)
    for where, data in (("file", bytes(range(256)) * 40), ("empty", b""),
                        ("other", b"o" * 5000), ("dir/inner", b"inner")):
        with open(f"{path}/{where}", "wb") as f:
            f.write(data)
    os.symlink("file", f"{path}/link")
    for n in range(50):
        with open(f"{path}/many/entry{n}", "wb"):
            pass


class Share:
    """moat-fs on @folder/share; @folder/outside is nobody's business."""

    def __init__(self, keep, folder, build, *options, under=(), share=None,
                 pass_fds=()):
        self.keep = keep
        self.dir = f"{folder}/share"
        self.outside = f"{folder}/outside"
        tree(self.dir)
        os.mkdir(self.outside)
        with open(f"{self.outside}/secret", "wb") as f:
            f.write(SECRET)
        self.before = self.outside_now()
        self.daemon = keep(MoatFs(build, folder, share or self.dir, *options,
                                  under=under, pass_fds=pass_fds))
        self.fs = self.client()

    def client(self, **kw):
        return self.keep(fuse.Fs(self.daemon.path, **kw))

    def outside_now(self):
        """Names, contents and what stat says of all that is outside."""
        out = {}
        for at, folders, files in os.walk(self.outside):
            for name in folders + files:
                path = os.path.join(at, name)
                st = os.lstat(path)
                out[path] = (st.st_mode, st.st_uid, st.st_nlink, st.st_size,
                             st.st_mtime_ns)
        with open(f"{self.outside}/secret", "rb") as f:
            out["secret"] = f.read()
        return out

    def fine(self):
        """Alive, serves this client and a new one, wrote nothing it may not."""
        assert self.daemon.alive(), self.daemon.lines
        self.fs.works()
        self.fs.vmm.ram.check()
        self.fs.close()
        self.fs = self.client()
        self.fs.works()
        assert not self.daemon.sanitizer_output(), self.daemon.lines
        assert self.outside_now() == self.before, "changed outside"

    def again(self):
        """A new client for one that was cut off."""
        self.fs.close()
        self.fs = self.client()
        return self.fs


def refused(fs, request, room, codes=None, **kw):
    """Posts what is malformed: it comes back, either with nothing or with an
    error (one of @codes). Returns its number, or None."""
    reply = fs.raw(request, room, **kw)
    if reply.used == 0:
        return None
    length, error, unique = fuse.OUT_HEADER.unpack_from(
        reply.data.ljust(fuse.OUT_HEADER.size, b"\0"))
    assert reply.used == length == fuse.OUT_HEADER.size, \
        f"{reply.used} bytes, length {length}: not an error's reply"
    assert unique == int.from_bytes(request[8:16], "little")
    assert -4095 < error < 0, f"error {error}"
    assert codes is None or -error in codes, \
        f"{os.strerror(-error)} ({-error}), not one of {codes}"
    return -error


def answered(fs, request, room, **kw):
    """Posts anything: it comes back with nothing, or a well-formed reply."""
    reply = fs.raw(request, room, **kw)
    if reply.used:
        assert reply.used >= min(room, fuse.OUT_HEADER.size)
    if reply.used >= fuse.OUT_HEADER.size:
        length, error, unique = fuse.OUT_HEADER.unpack_from(reply.data)
        assert length == reply.used, (length, reply.used)
        assert -4095 < error <= 0, error
        assert not error or length == fuse.OUT_HEADER.size
        assert unique == int.from_bytes(request[8:16], "little")
    return reply


def only_writable(fs, room):
    """A request of no readable byte."""
    queue = fs.requests[0]
    at = fs.slots[-1]
    head = queue.ring.add([(at, room, WRITE)])
    queue.publish()
    (got, used), = queue.wait_used()
    assert got == head
    return used


def until(condition, what, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.01)
