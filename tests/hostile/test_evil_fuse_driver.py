# SPDX-License-Identifier: Apache-2.0
"""A hostile guest against moat-fs: FUSE requests malformed in every field.

A request comes back with an error or with nothing; a ring that is no ring
breaks its queue. Whatever it was, moat-fs goes on with this client and the next.
"""
import errno
import os
import struct

import pytest

import fuse
import test_evil_driver
from fuse import ROOT, Op, fails, name
from fuse_requests import (  # noqa: F401 fixtures are among them
    BY_OP, SMALLEST, Open, clean, comes_back, fixture_own, fixture_share,
    read_in, reused, valid)
from share import Share, answered, only_writable, refused
from vhost_user import Closed

U32, U64 = 2 ** 32 - 1, 2 ** 64 - 1
BIG = 2 ** 63


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
