# SPDX-License-Identifier: Apache-2.0
"""A hostile guest against moat-fs: numbers that overflow or mean nothing, the
beginning and the end of a session, waiting, limits and leaks."""
import errno
import os
import struct
import threading

import pytest

import fuse
from fuse import ROOT, Op, fails, name
from fuse_requests import (  # noqa: F401 fixtures are among them
    SMALLEST, Open, clean, fixture_own, fixture_share, lock_in, read_in,
    reused, valid)
from share import Share, answered, until
from split_ring import WRITE

U32, U64 = 2 ** 32 - 1, 2 ** 64 - 1
BIG = 2 ** 63


# -- sizes, offsets and other numbers

@pytest.mark.parametrize("size", [0, 1, 101, 4096, 2 ** 20 + 1, 2 ** 31, U32])
def test_read_never_exceeds_its_room(share, size):
    fs = share.fs
    o = Open(fs)
    for room in (0, 1, 100, 5000):
        reply = answered(fs, fs.header(Op.READ, o.file, 40)
                         + read_in(o.fh, 0, size), SMALLEST + room)
        if reply.used and reply.error == 0:
            assert len(reply.payload) <= min(size, room)
            data = bytes(range(256)) * 40
            assert reply.payload == data[:len(reply.payload)]


OFFSETS = (BIG - 1, BIG, U64, U64 - 4095, 2 ** 44)


def test_offsets_that_overflow_are_errors_or_ends(share):
    fs = share.fs
    o = Open(fs)
    for offset in OFFSETS:
        reply = answered(fs, fs.header(Op.READ, o.file, 40)
                         + read_in(o.fh, offset), SMALLEST + 100)
        assert reply.error or reply.used == SMALLEST, "read past the end"
    for offset in OFFSETS[:4]:
        fails((), fs.write, o.other, o.other_fh, offset, b"x" * 4096)
        fails((), fs.fallocate, o.other, o.other_fh, 0, offset, 4096)
        fails((), fs.fallocate, o.other, o.other_fh, 0, 4096, offset)
        fails((), fs.lseek, o.file, o.fh, offset, os.SEEK_DATA)
        for length in (1, 4096, U64):
            fails_or_zero(fs.copy_file_range, o.file, o.fh, offset, o.other,
                          o.other_fh, 0, length)
            fails_or_zero(fs.copy_file_range, o.file, o.fh, 0, o.other,
                          o.other_fh, offset, length)
        fails((), fs.truncate, o.other, offset if offset != BIG - 1 else BIG)
    assert os.path.getsize(f"{share.dir}/other") == 5000
    fs.works()


def fails_or_zero(function, *args):
    try:
        assert function(*args) == 0
    except OSError:
        pass


def test_write_that_says_more_than_it_brings_is_refused(share):
    fs = share.fs
    o = Open(fs)
    before = fs.getattr(o.other).size
    for size in (101, 4096, 2 ** 31, U32):
        fails((errno.EINVAL, errno.EIO), fs.write, o.other, o.other_fh, before,
              bytes(100), size=size)
    assert fs.getattr(o.other).size == before
    # Less is either that much or an error; none is none.
    try:
        assert fs.write(o.other, o.other_fh, 0, b"o" * 100, size=10) == 10
    except OSError as e:
        assert e.errno in (errno.EINVAL, errno.EIO)
    assert fs.write(o.other, o.other_fh, 0, b"") == 0
    fs.works()


REFUSED = {
    "lock that ends before it starts": lambda fs, o: fs.lock(
        o.file, o.fh, 0, 10, 5),
    "lock beyond all offsets": lambda fs, o: fs.lock(
        o.file, o.fh, 0, BIG, BIG + 10),
    "lock of an unknown type": lambda fs, o: fs.lock(o.file, o.fh, 99),
    "lock asked for, of an unknown type": lambda fs, o: fs.lock(
        o.file, o.fh, U32, op=Op.GETLK),
    "flock of an unknown type": lambda fs, o: fs.lock(o.file, o.fh, 77,
                                                      flags=1),
    "lseek with an unknown whence": lambda fs, o: fs.lseek(o.file, o.fh, 0, 99),
    "fallocate with unknown modes": lambda fs, o: fs.fallocate(
        o.other, o.other_fh, 0x40000000, 0, 4096),
    "punch that changes the size": lambda fs, o: fs.fallocate(
        o.other, o.other_fh, 2, 0, 4096),
    "fallocate of nothing": lambda fs, o: fs.fallocate(
        o.other, o.other_fh, 0, 0, 0),
    "copy with unknown flags": lambda fs, o: fs.copy_file_range(
        o.file, o.fh, 0, o.other, o.other_fh, 0, 10, flags=0xff),
    "rename with unknown flags": lambda fs, o: fs.rename2(
        ROOT, "file", ROOT, "new", 0x80),
    "rename, both exchanged and not replacing": lambda fs, o: fs.rename2(
        ROOT, "file", ROOT, "other", 3),
    "a folder into itself": lambda fs, o: fs.rename(ROOT, "dir", o.dir, "x"),
    "readlink of a file": lambda fs, o: fs.readlink(o.file),
    "open of a link": lambda fs, o: fs.open(o.link),
    "a file opened as a folder": lambda fs, o: fs.opendir(o.file),
    "a folder opened for writing": lambda fs, o: fs.open(o.dir),
    "lookup in a file": lambda fs, o: fs.lookup(o.file, "x"),
    "create in a file": lambda fs, o: fs.create(o.file, "x"),
    "link of a folder": lambda fs, o: fs.link(o.dir, ROOT, "new"),
    "unlink of a folder": lambda fs, o: fs.unlink(ROOT, "dir"),
    "rmdir of a file": lambda fs, o: fs.rmdir(ROOT, "file"),
    "rmdir of what is not empty": lambda fs, o: fs.rmdir(ROOT, "dir"),
    "mknod of a folder": lambda fs, o: fs.mknod(ROOT, "new", 0o040755),
    "mknod of a link": lambda fs, o: fs.mknod(ROOT, "new", 0o120777),
    "truncate of a folder": lambda fs, o: fs.truncate(o.dir, 0),
    "truncate of a link": lambda fs, o: fs.truncate(o.link, 0),
    "write into a folder": lambda fs, o: fs.write(o.dir, o.dir_fh, 0, b"x"),
    "a folder read as a file": lambda fs, o: fs.read(o.dir, o.dir_fh, 0, 100),
    "an attribute without a name": lambda fs, o: fs.setxattr(o.other, "", b"x"),
    "an attribute in no class": lambda fs, o: fs.setxattr(o.other, "x", b"x"),
    "an attribute with a long name": lambda fs, o: fs.setxattr(
        o.other, "user." + "x" * 251, b"x"),
    "an attribute with a longer name": lambda fs, o: fs.getxattr(
        o.other, "user." + "x" * 60000),
    "an attribute that says more than it brings": lambda fs, o: fs.setxattr(
        o.other, "user.x", b"x", size=100),
    "an attribute of 4 GiB": lambda fs, o: fs.setxattr(
        o.other, "user.x", b"x", size=U32),
    "an attribute of 65537 bytes": lambda fs, o: fs.setxattr(
        o.other, "user.x", b"x" * 65537),
    "an attribute with unknown flags": lambda fs, o: fs.setxattr(
        o.other, "user.x", b"x", flags=0x40),
    "an attribute that is not there": lambda fs, o: fs.getxattr(
        o.other, "user.nothing"),
    "removal of what is not there": lambda fs, o: fs.removexattr(
        o.other, "user.nothing"),
    "a symlink to nothing": lambda fs, o: fs.symlink(ROOT, "new", ""),
    "a symlink to a long way": lambda fs, o: fs.symlink(ROOT, "new",
                                                        "x" * 5000),
    "mapping without a window": lambda fs, o: fs.setupmapping(
        o.file, o.fh, 0, 4096, 0),
}


@pytest.mark.parametrize("case", REFUSED)
def test_request_that_means_nothing_is_refused(share, case):
    fs = share.fs
    fails((), REFUSED[case], fs, Open(fs))
    assert not os.path.lexists(f"{share.dir}/new")
    assert os.path.getsize(f"{share.dir}/file") == 10240
    assert os.path.getsize(f"{share.dir}/other") >= 5000


@pytest.mark.parametrize("case", [
    "bits", "bad_handle", "uid", "size_and_everything"])
def test_setattr_with_strange_bits_is_no_harm(share, case):
    fs = share.fs
    entry = fs.mknod(ROOT, "attr")
    fields = {"bits": (U32 & ~(1 << 6), 0), "bad_handle": (1 << 6 | 1, 7777),
              "uid": (6, 0), "size_and_everything": (0x7ff & ~(1 << 6), 0)}
    valid_bits, fh = fields[case]
    payload = fuse.SETATTR.pack(valid_bits, 0, fh, 100, 1, U64, U64, U64, U32,
                                U32, U32, U32, 0, U32, U32, 0)
    answered(fs, fs.header(Op.SETATTR, entry.nodeid, len(payload)) + payload,
             SMALLEST + 104)
    fs.unlink(ROOT, "attr")
    fs.works()


@pytest.mark.parametrize("plus", [False, True], ids=["readdir", "plus"])
def test_readdir_from_any_offset_ends(share, plus):
    fs = share.fs
    node = fs.lookup(ROOT, "many").nodeid
    fh = fs.opendir(node)
    for offset in (1, 2, 3, 1000, 2 ** 31, 2 ** 32, BIG - 1, BIG, U64, 0):
        for size in (0, 1, 23, 32, 200, 4096, 2 ** 31):
            payload = read_in(fh, offset, size)
            op = Op.READDIRPLUS if plus else Op.READDIR
            reply = answered(fs, fs.header(op, node, len(payload)) + payload,
                             SMALLEST + 4096)
            if reply.used and reply.error == 0:
                assert len(reply.payload) <= min(size, 4096)
                fuse.dirents(reply.payload, plus)
    names = [d.name for d in fs.listdir(node, plus, size=300)]
    assert len(names) == len(set(names)) == 52
    fs.release(node, fh, directory=True)
    fs.works()


def test_getxattr_says_how_long_it_is_and_never_more_than_was_asked(share):
    fs = share.fs
    node = fs.lookup(ROOT, "empty").nodeid
    fs.setxattr(node, "user.some", b"0123456789")
    assert fs.getxattr(node, "user.some") == b"0123456789"
    assert fs.getxattr(node, "user.some", 0) == 10
    fails(errno.ERANGE, fs.getxattr, node, "user.some", 9)
    fails(errno.ERANGE, fs.listxattr, node, 3)
    assert b"user.some" in fs.listxattr(node).split(b"\0")
    for op, tail in ((Op.GETXATTR, name("user.some")), (Op.LISTXATTR, b"")):
        for size in (1, 16, 2 ** 20, U32):
            payload = struct.pack("<II", size, 0) + tail
            answered(fs, fs.header(op, node, len(payload)) + payload,
                     SMALLEST + 16)
    fs.removexattr(node, "user.some")


def test_special_file_is_never_opened_by_the_daemon(share):
    """A FIFO would block it, a device is the host's."""
    fs = share.fs
    for what, mode, rdev in (("fifo", 0o010644, 0), ("sock", 0o140644, 0),
                             ("zero", 0o020666, 1 << 8 | 5)):
        try:
            node = fs.mknod(ROOT, what, mode, rdev).nodeid
        except PermissionError:
            continue
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            fails((), fs.open, node, flags)
        fails((), fs.create, ROOT, what)
        fails((), fs.truncate, node, 0)
        fs.unlink(ROOT, what)
    fs.works()


@pytest.mark.parametrize("flags", [0o100, 0o1100, 0o300, 0o20000000 | 0o200000
                                   | 2, 0o10000000, 0o200000, 3, 0xffffffff,
                                   0o40000, 0o20000])
def test_open_with_strange_flags_is_no_harm(share, flags):
    """O_CREAT, O_EXCL, O_TMPFILE, O_PATH, O_DIRECTORY, O_DIRECT, O_ASYNC..."""
    fs = share.fs
    before = set(os.listdir(share.dir))
    for where in (fs.lookup(ROOT, "empty").nodeid, ROOT):
        for op in (Op.OPEN, Op.OPENDIR):
            payload = struct.pack("<II", flags, 0)
            reply = answered(fs, fs.header(op, where, 8) + payload,
                             SMALLEST + 16)
            if reply.used and reply.error == 0:
                fh, = struct.unpack_from("<Q", reply.payload)
                fs.release(where, fh, directory=op == Op.OPENDIR)
    assert set(os.listdir(share.dir)) == before
    fs.works()


# -- life: INIT, DESTROY, INTERRUPT

def test_requests_before_init_are_no_harm(share):
    """They are refused or, as after a VMM's reconnection, served."""
    ready = valid(Open(share.fs))
    share.fs.close()
    fs = share.fs = share.client(init=False)
    for op, (node, payload, room) in ready.items():
        answered(fs, fs.header(op, node, len(payload)) + payload,
                 SMALLEST + room)
        clean(share)
    fs.forget(2, 1)
    fs.destroy()
    fs.init()
    share.fine()


def test_init_twice_is_no_harm(share):
    fs = share.fs
    o = Open(fs)
    answered(fs, fs.header(Op.INIT, 0, 64) + fuse.INIT_IN.pack(7, 38, 0, U32,
                                                              0),
             SMALLEST + 64)
    answered(fs, fs.header(Op.GETATTR, o.file, 16) + bytes(16),
             SMALLEST + 104)
    share.fine()


@pytest.mark.parametrize("major,minor", [(6, 38), (0, 0), (7, 0), (7, 5),
                                         (7, 26), (7, 27), (7, U32)])
def test_init_of_another_version_is_settled(share, major, minor):
    share.fs.close()
    fs = share.fs = share.client(init=False)
    try:
        got = fs.init(major=major, minor=minor)
        assert got["major"] == 7 and major == 7
    except OSError as e:
        assert e.errno in (errno.EPROTO, errno.EINVAL, errno.EOPNOTSUPP)
    share.again()
    share.fine()


@pytest.mark.parametrize("major", [8, U32])
def test_init_of_a_newer_major_gets_ours_and_then_works(share, major):
    share.fs.close()
    fs = share.fs = share.client(init=False)
    reply = answered(fs, fs.header(Op.INIT, 0, 64)
                     + fuse.INIT_IN.pack(major, 0, 0, 0, 0), SMALLEST + 64)
    assert reply.error == 0
    assert struct.unpack_from("<I", reply.payload)[0] == 7
    fs.init()
    share.fine()


@pytest.mark.parametrize("size", [0, 4, 8, 15, 16, 17, 63, 100])
def test_init_of_any_length_is_settled(share, size):
    share.fs.close()
    fs = share.fs = share.client(init=False)
    payload = fuse.INIT_IN.pack(7, 38, 0, U32, U32).ljust(size, b"\xff")[:size]
    answered(fs, fs.header(Op.INIT, 0, size) + payload, SMALLEST + 64)
    share.again()
    share.fine()


def test_init_offers_nothing_that_was_not_asked_for(share):
    share.fs.close()
    fs = share.fs = share.client(flags=0)
    assert fs.init_out["flags"] & ~(1 << 22) == 0, hex(fs.init_out["flags"])
    assert fs.init_out["flags2"] == 0
    share.fine()


def test_destroy_while_requests_run_lets_go_of_all(own):
    share = own()
    fs = share.fs
    before = len(share.daemon.fds())
    for _ in range(3):
        o = Open(fs)
        tickets = [fs.start(Op.READ, o.file, read_in(o.fh, 0, 10000), 10000)
                   for _ in range(8)]
        tickets += [fs.start(Op.LOOKUP, ROOT, name("file")) for _ in range(4)]
        end = fs.start(Op.DESTROY, 0)
        for ticket in [*tickets, end]:
            fs.wait(ticket)
        fs.init()
        fails((), fs.read, o.file, o.fh, 0, 10)
        fs.works()
    assert len(share.daemon.fds()) <= before + 2, share.daemon.fds()
    share.fine()


def test_interrupt_of_what_is_not_there_is_no_harm(share):
    fs = share.fs
    for unique in (0, 1, fs.unique, fs.unique + 2, BIG, U64):
        fs.interrupt(unique)
    payload = struct.pack("<Q", 1)
    fs.raw(fs.header(Op.INTERRUPT, 0, 8) + payload, 0, queue=fs.hiprio)
    fs.works()


def held_lock(share):
    """A write lock of owner 1, and a SETLKW of owner 2 that waits for it."""
    fs = share.fs
    node = fs.lookup(ROOT, "file").nodeid
    fh = fs.open(node)
    fs.lock(node, fh, 1, owner=1)
    waiter = fs.start(Op.SETLKW, node, lock_in(fh, 0, 10, kind=1, owner=2))
    return fs, node, fh, waiter


def test_lock_that_waits_holds_up_nobody(own):
    share = own()
    fs, node, fh, waiter = held_lock(share)
    for _ in range(3):
        fs.works()
    assert waiter.serial not in fs.done, "waits"
    fs.lock(node, fh, 2, owner=1)
    fs.finish(waiter)
    share.fine()


def test_lock_that_waits_can_be_interrupted(own):
    share = own()
    fs, node, fh, waiter = held_lock(share)
    fs.interrupt(waiter.unique)
    fails(errno.EINTR, fs.finish, waiter)
    # It is not taken later, either.
    fs.lock(node, fh, 2, owner=1)
    fs.lock(node, fh, 1, owner=3)
    share.fine()


def test_locks_that_wait_for_each_other_are_told(own):
    """Linux's virtio-fs never interrupts: who waits for ever can not be
    killed. So the last of a circle does not wait."""
    share = own()
    fs = share.fs
    node = fs.lookup(ROOT, "file").nodeid
    fh = fs.open(node)
    for owner in (1, 2, 3):
        fs.lock(node, fh, 1, owner * 100, owner * 100 + 10, owner)
    waiters = [fs.start(Op.SETLKW, node, lock_in(
        fh, other * 100, other * 100, 1, owner)) for owner, other in
               ((1, 2), (2, 3))]
    fails(errno.EDEADLK, fs.lock, node, fh, 1, 105, 106, 3, op=Op.SETLKW)
    fs.lock(node, fh, 2, owner=3)
    fs.finish(waiters[1])
    fs.lock(node, fh, 2, owner=2)
    fs.finish(waiters[0])
    share.fine()


def test_many_locks_that_wait_hold_up_nobody(own):
    share = own()
    fs, node, fh, waiter = held_lock(share)
    more = [fs.start(Op.SETLKW, node, lock_in(fh, 0, 10, kind=1,
                                              owner=10 + n))
            for n in range(20)]
    fs.works()
    for ticket in [waiter, *more]:
        fs.interrupt(ticket.unique)
    for ticket in [waiter, *more]:
        fails((errno.EINTR, errno.ENOLCK, errno.EAGAIN), fs.finish, ticket)
    share.fine()


def test_client_may_go_while_a_lock_waits(own):
    share = own()
    held_lock(share)
    fs = share.again()
    node = fs.lookup(ROOT, "file").nodeid
    fs.lock(node, fs.open(node), 1, owner=5)
    share.fine()


# -- limits and leaks

def test_handles_run_out_and_come_back(keep, folder, sanitized):
    share = Share(keep, folder, sanitized, "--rlimit-nofile=200")
    fs = share.fs
    node = fs.lookup(ROOT, "file").nodeid
    handles = []
    with pytest.raises(OSError) as e:
        for _ in range(400):
            handles.append(fs.open(node))
    assert e.value.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    assert len(handles) > 50
    assert fs.read(node, handles[0], 0, 1) == b"\0", "goes on"
    for fh in handles:
        fs.release(node, fh)
    share.fine()


def test_a_client_that_left_leaves_nothing_behind(own):
    share = own()
    fs = share.fs
    fs.works()
    before = sorted(share.daemon.fds().values())
    for _ in range(3):
        o = Open(fs)
        for _ in range(20):
            fs.open(o.file)
            fs.opendir(o.dir)
        for d in fs.listdir(fs.lookup(ROOT, "many").nodeid, plus=True):
            assert d.name
        fs.lock(o.file, o.fh, 1)
        fs = share.again()
        fs.works()
        # Eventfds and memory are the new client's.
        until(lambda: len(share.daemon.fds()) <= len(before) + 2,
              "its descriptors are closed")
    share.fine()


def test_request_that_changes_after_it_was_posted_is_read_once(own):
    """Header and name change all the time; each reply is to one of the two."""
    share = own()
    fs = share.fs
    with open(f"{share.dir}/AAAA", "wb") as f:
        f.write(b"a" * 111)
    stop = threading.Event()
    slot = fs.slots[-1] + fuse.SLOT - 4096
    texts = (name("AAAA"), b"../o", b"AA/A", b"\0" * 4, b"AAA\0")
    queue = fs.requests[0]
    room = fs.slots[-1]
    header = fs.header(Op.LOOKUP, ROOT, 5)
    fs.put(slot, header + texts[0])

    def flip():
        n = 0
        while not stop.is_set():
            n += 1
            fs.put(slot + fuse.IN_HEADER.size, texts[n % len(texts)])
            fs.put(slot, struct.pack("<I", (45, 0, U32, 41)[n % 4]))
    thread = threading.Thread(target=flip)
    thread.start()
    try:
        for _ in range(300):
            head = queue.ring.add([(slot, 45, 0), (room, 144, WRITE)])
            queue.publish()
            (got, used), = queue.wait_used()
            assert got == head
            if used == 144:
                data = fs.ram.read(room, used)
                entry = fuse.Entry.parse(data[16:])
                assert entry.attr.size == 111
                fs.forget(entry.nodeid)
            else:
                assert used in (0, 16)
    finally:
        stop.set()
        thread.join()
    share.fine()
