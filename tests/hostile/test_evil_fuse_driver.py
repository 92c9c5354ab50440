# SPDX-License-Identifier: Apache-2.0
"""A hostile guest against moat-fs: FUSE requests malformed in every field.

A request comes back with an error or with nothing; a ring that is no ring
breaks its queue. Whatever it was, moat-fs goes on with this client and the next.
"""
import errno
import os
import struct
import threading

import pytest

import fuse
import test_evil_driver
from fuse import ROOT, Op, fails, name
from share import Share, answered, only_writable, refused, until
from split_ring import WRITE
from vhost_user import Closed

U32, U64 = 2 ** 32 - 1, 2 ** 64 - 1
BIG = 2 ** 63


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


# -- rings: those of a device are the kit's

@pytest.mark.parametrize("attack", ["address_in_a_hole", "avail_idx_jumps",
                                    "nested_indirect",
                                    "writable_before_readable_in_a_table"])
def test_malformed_ring_breaks_its_queue_only(keep, folder, sanitized, attack):
    share = Share(keep, folder, sanitized, "--num-request-queues=2")
    share.fs.close()
    fs = share.fs = share.client(queues=2)
    getattr(test_evil_driver, attack)(fs.requests[1])
    fs.requests[1].ring.publish()
    fs.requests[1].kick()
    assert fs.requests[1].erred(), "the err eventfd was not signalled"
    fs.works()
    share.fs.close()
    share.fs = share.client(queues=2)
    share.fine()


# -- headers

HEADERS = {
    "length_smaller": ({"len": 44}, (errno.EINVAL, errno.EIO)),
    "length_larger": ({"len": 60}, (errno.EINVAL, errno.EIO)),
    "length_zero": ({"len": 0}, (errno.EINVAL, errno.EIO)),
    "length_below_a_header": ({"len": 39}, (errno.EINVAL, errno.EIO)),
    "length_huge": ({"len": U32}, (errno.EINVAL, errno.EIO)),
    "extensions_longer_than_the_request": ({"ext": 0xffff},
                                           (errno.EINVAL, errno.EIO)),
}


@pytest.mark.parametrize("case", HEADERS)
def test_header_that_lies_is_refused(share, case):
    fields, codes = HEADERS[case]
    fs = share.fs
    request = fs.header(Op.LOOKUP, ROOT, 5, **fields) + name("file")
    refused(fs, request, 4096, codes)
    fs.works()


@pytest.mark.parametrize("size", [1, 4, 8, 16, 24, 39])
def test_header_that_is_cut_comes_back_without_harm(own, size):
    share = own()
    fs = share.fs
    request = fs.header(Op.GETATTR, ROOT, 0)[:size]
    ticket = fs.submit(request, 4096)
    if not comes_back(fs, ticket):
        share.again()
    share.fine()


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


def test_request_with_nothing_to_read_comes_back_without_harm(own):
    share = own()
    try:
        assert only_writable(share.fs, 128) in (0, SMALLEST)
    except (AssertionError, Closed):
        assert share.fs.requests[0].erred(timeout=1)
        share.again()
    share.fine()


@pytest.mark.parametrize("opcode", [0, 7, 19, 53, 99, 4096, 1 << 20,
                                    436207616, U32])
def test_unknown_opcode_is_enosys(share, opcode):
    fs = share.fs
    request = fs.header(opcode, ROOT, 64) + bytes(64)
    assert refused(fs, request, 4096, (errno.ENOSYS, errno.EOPNOTSUPP)) \
        is not None
    fs.works()


# -- payloads and rooms, for each opcode

@BY_OP
def test_payload_that_is_cut_is_no_harm(share, op):
    fs = share.fs
    node, payload, room = valid(Open(fs))[op]
    for size in range(len(payload) if len(payload) < 90 else 60):
        answered(fs, fs.header(op, node, size) + payload[:size],
                 SMALLEST + room)
        clean(share)
    fs.works()


@BY_OP
def test_room_that_is_small_is_never_exceeded(share, op):
    fs = share.fs
    node, payload, room = valid(Open(fs))[op]
    for size in {1, 8, 15, 16, 17, SMALLEST + room // 2,
                 max(1, SMALLEST + room - 1)}:
        answered(fs, fs.header(op, node, len(payload)) + payload, size)
        clean(share)
    fs.works()


@BY_OP
def test_request_without_room_for_a_reply_comes_back(share, op):
    fs = share.fs
    node, payload, _ = valid(Open(fs))[op]
    ticket = fs.submit(fs.header(op, node, len(payload)) + payload, 0)
    alive = comes_back(fs, ticket)
    clean(share)
    assert alive, "its queue broke"
    fs.works()


@BY_OP
def test_request_may_be_cut_anywhere(share, op):
    """By each byte of its header and reply, and it is answered all the same
    as when it is whole."""
    fs = share.fs
    node, payload, room = valid(Open(fs))[op]

    def ask(**kw):
        reply = answered(fs, fs.header(op, node, len(payload)) + payload,
                         SMALLEST + room, **kw)
        clean(share)
        return reply.used and (reply.error, reply.used)
    whole = ask()
    size = fuse.IN_HEADER.size + len(payload)
    assert ask(cuts=range(1, size, 5), out_cuts=range(1, 30, 3)) == whole
    assert ask(cuts=(39, 41), out_cuts=(1, 15, 17, 40)) == whole
    assert ask(cuts=(1, 2, 3), out_cuts=(SMALLEST + room - 1,)) == whole


NODES = (0, 2, 12345678, 2 ** 31, 2 ** 32 + 1, BIG, U64)


@BY_OP
def test_node_that_does_not_exist_is_an_error(share, op):
    fs = share.fs
    _, payload, room = valid(Open(fs))[op]
    known = {ROOT, *vars(Open(fs)).values()}
    for node in NODES:
        if node in known:
            continue
        reply = answered(fs, fs.header(op, node, len(payload)) + payload,
                         SMALLEST + room)
        if op not in (Op.STATFS, Op.INTERRUPT, Op.SYNCFS, Op.REMOVEMAPPING):
            assert not reply.used or reply.error < 0, f"node {node:#x}"
        clean(share)
    fs.works()


@BY_OP
def test_forgotten_node_is_an_error(share, op):
    fs = share.fs
    _, payload, room = valid(Open(fs))[op]
    entry, fh = fs.create(ROOT, "forgotten")
    fs.release(entry.nodeid, fh)
    fs.forget(entry.nodeid)
    fs.unlink(ROOT, "forgotten")
    reply = answered(fs, fs.header(op, entry.nodeid, len(payload)) + payload,
                     SMALLEST + room)
    if op not in (Op.STATFS, Op.INTERRUPT, Op.SYNCFS, Op.REMOVEMAPPING):
        assert not reply.used or reply.error < 0
    clean(share)
    fs.works()


BY_FH = {Op.READ: 0, Op.WRITE: 0, Op.RELEASE: 0, Op.FSYNC: 0, Op.FLUSH: 0,
         Op.READDIR: 0, Op.READDIRPLUS: 0, Op.RELEASEDIR: 0, Op.FSYNCDIR: 0,
         Op.GETLK: 0, Op.SETLK: 0, Op.FALLOCATE: 0, Op.LSEEK: 0,
         Op.COPY_FILE_RANGE: 0, Op.SETUPMAPPING: 0}


@pytest.mark.parametrize("op", BY_FH, ids=lambda op: op.name.lower())
def test_handle_that_is_wrong_is_an_error(share, op):
    """One that never was, that is closed, another file's, of a folder for
    that of a file or the other way round."""
    fs = share.fs
    o = Open(fs)
    node, payload, room = valid(o)[op]
    at = BY_FH[op]
    gone = fs.open(o.file)
    fs.release(o.file, gone)
    third = fs.open(fs.lookup(ROOT, "empty").nodeid)
    wrong = [gone, 0xdead, 2 ** 32 + o.fh, BIG, U64]
    # Whose handle it is must be known where something is done with it.
    wrong.append(o.fh if node == o.dir else o.dir_fh)
    if op not in (Op.FLUSH, Op.FSYNC, Op.FSYNCDIR, Op.LSEEK):
        wrong.append(third)
    if op in (Op.RELEASE, Op.RELEASEDIR):
        wrong = wrong[:5]
    for fh in wrong:
        data = payload[:at] + struct.pack("<Q", fh & U64) + payload[at + 8:]
        reply = answered(fs, fs.header(op, node, len(data)) + data,
                         SMALLEST + room)
        assert not reply.used or reply.error < 0, f"handle {fh:#x}"
    assert fs.read(o.file, o.fh, 0, 4) == bytes(range(4))
    fs.works()


def test_handle_says_what_it_may_be_used_for(share):
    fs = share.fs
    node = fs.lookup(ROOT, "file").nodeid
    reader = fs.open(node, os.O_RDONLY)
    fails((errno.EBADF, errno.EINVAL), fs.write, node, reader, 0, b"x")
    fails((errno.EBADF, errno.EINVAL), fs.fallocate, node, reader, 0, 0, 1)
    writer = fs.open(node, os.O_WRONLY)
    # moat-fs may open more than was asked for, as writeback wants it.
    answered(fs, fs.header(Op.READ, node, 40) + read_in(writer), 116)
    fs.release(node, reader)
    fs.release(node, writer)


# -- names

NAMED = {
    Op.LOOKUP: b"", Op.MKNOD: struct.pack("<IIII", 0o100644, 0, 0, 0),
    Op.MKDIR: struct.pack("<II", 0o755, 0), Op.UNLINK: b"", Op.RMDIR: b"",
    Op.CREATE: struct.pack("<IIII", os.O_RDWR | os.O_CREAT, 0o644, 0, 0),
    Op.LINK: None, Op.SYMLINK: None, Op.RENAME: struct.pack("<Q", ROOT),
    Op.RENAME2: struct.pack("<QII", ROOT, 0, 0),
}
NAMES = {
    "no_nul": b"file", "nothing": b"", "empty": b"\0",
    "slash": b"/\0", "dot": b".\0", "dot_dot": b"..\0", "path": b"dir/inner\0",
    "absolute": b"/etc/passwd\0", "trailing_slash": b"dir/\0",
    "up_and_in": b"../share/file\0", "up_and_out": b"../outside/secret\0",
    "dot_slash": b"./file\0", "256_bytes": b"n" * 256 + b"\0",
    "4096_bytes": b"n" * 4096 + b"\0", "100000_bytes": b"n" * 100000 + b"\0",
    "no_nul_100000_bytes": b"n" * 100000,
}


def with_name(op, o, what):
    """The payload of @op with that name in the first place of one."""
    if op == Op.LINK:
        return struct.pack("<Q", o.file) + what
    if op == Op.SYMLINK:
        return what + name("target")
    if op in (Op.RENAME, Op.RENAME2):
        return NAMED[op] + what + name("new")
    return NAMED[op] + what


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("op", NAMED, ids=lambda op: op.name.lower())
def test_name_that_is_none_is_refused(share, op, case):
    fs = share.fs
    what = NAMES[case]
    payload = with_name(op, Open(fs), what)
    request = fs.header(op, ROOT, len(payload)) + payload
    if op == Op.LOOKUP and case in ("dot", "dot_dot"):
        # An export over NFS may ask for these; the root's parent is itself.
        reply = answered(fs, request, SMALLEST + 128)
        if reply.error == 0:
            assert fuse.Entry.parse(reply.payload).nodeid == ROOT
    elif op == Op.SYMLINK and case in ("no_nul", "nothing",
                                       "no_nul_100000_bytes"):
        answered(fs, request, SMALLEST + 128)  # the target takes its place
        clean(share)
    else:
        refused(fs, request, SMALLEST + 144)
    clean(share)
    share.fs.works()
    assert share.outside_now() == share.before


@pytest.mark.parametrize("op", [Op.RENAME, Op.RENAME2],
                         ids=lambda op: op.name.lower())
@pytest.mark.parametrize("case", NAMES)
def test_new_name_that_is_none_is_refused(share, op, case):
    fs = share.fs
    with open(f"{share.dir}/old", "wb"):
        pass
    payload = NAMED[op] + name("old") + NAMES[case]
    refused(fs, fs.header(op, ROOT, len(payload)) + payload, SMALLEST)
    os.unlink(f"{share.dir}/old")
    assert share.outside_now() == share.before


def test_name_ends_at_its_nul(share):
    """What is behind it is nobody's name; it is an error, or ignored."""
    fs = share.fs
    payload = b"file\0/../../etc/passwd\0"
    reply = answered(fs, fs.header(Op.LOOKUP, ROOT, len(payload)) + payload,
                     SMALLEST + 128)
    if reply.error == 0:
        assert (fuse.Entry.parse(reply.payload).nodeid
                == fs.lookup(ROOT, "file").nodeid)
    payload = struct.pack("<II", 0o755, 0) + b"new\0\0../out\0"
    answered(fs, fs.header(Op.MKDIR, ROOT, len(payload)) + payload,
             SMALLEST + 128)
    clean(share)


def test_name_of_255_bytes_is_one(share):
    fs = share.fs
    long = bytes(range(1, 47)) + bytes(range(48, 256)) + b"x"
    assert len(long) == 255
    fs.mkdir(ROOT, long)
    assert long in {d.name for d in fs.listdir(ROOT, plus=True)}
    fs.rmdir(ROOT, long)
    fails(errno.ENAMETOOLONG, fs.mkdir, ROOT, long + b"x")


# -- forget

def test_forget_of_more_than_was_looked_up_is_no_underflow(share):
    fs = share.fs
    for count in (2, 2 ** 32, BIG, U64):
        node = fs.lookup(ROOT, "file").nodeid
        assert fs.forget(node, count).used == 0
        again = fs.lookup(ROOT, "file").nodeid
        assert fs.getattr(again).size == 10240
        fs.forget(again, 0)
        assert fs.getattr(again).size == 10240
    fs.works()


def test_root_can_not_be_forgotten(share):
    fs = share.fs
    for count in (1, 100, U64):
        fs.forget(ROOT, count)
        fs.batch_forget([(ROOT, count)] * 3)
        assert fs.getattr(ROOT).mode & 0o170000 == 0o040000
    fs.works()


def test_forget_of_nodes_that_do_not_exist_is_ignored(share):
    fs = share.fs
    for node in NODES:
        if node != fs.lookup(ROOT, "dir").nodeid:
            fs.forget(node, 1)
            fs.batch_forget([(node, U64)])
    fs.works()


@pytest.mark.parametrize("count", [0, 1, 3, 1000, 2 ** 28, U32])
def test_batch_that_lies_about_its_count_is_no_harm(share, count):
    fs = share.fs
    node = fs.lookup(ROOT, "file").nodeid
    fs.lookup(ROOT, "file")
    assert fs.batch_forget([(node, 1), (999999, 1)], count=count).used == 0
    share.fs.works()


def test_forget_with_room_for_a_reply_gets_none(share):
    fs = share.fs
    node = fs.lookup(ROOT, "file").nodeid
    for queue in (fs.hiprio, fs.requests[0]):
        request = fs.header(Op.FORGET, node, 8) + struct.pack("<Q", 0)
        assert fs.raw(request, 128, queue=queue).used in (0, SMALLEST)
    for cut in (0, 1, 7):
        request = fs.header(Op.FORGET, node, cut) + bytes(cut)
        fs.raw(request, 0, queue=fs.hiprio)
    fs.works()


def test_requests_on_the_fast_queue_come_back(share):
    fs = share.fs
    o = Open(fs)
    for op, (node, payload, room) in valid(o).items():
        answered(fs, fs.header(op, node, len(payload)) + payload,
                 SMALLEST + room, queue=fs.hiprio)
        clean(share)
    fs.works()


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
    fs.works()


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
