# SPDX-License-Identifier: Apache-2.0
"""moat-fs's DAX window: SETUPMAPPING and REMOVEMAPPING by the specification's
rules, and by guests and VMMs that keep none."""
import errno
import fcntl
import os
import random
import resource
import signal
import struct
import threading
import time

import pytest

from dax_guest import MIB, READ, SIZE, WRITE, DaxGuest, pattern
from fuse import ROOT, Op, fails
from share import Share, until
from window import MAP, PAGE, UNMAP, Window

F_SETSIG = 10       # of Linux, which Python does not name


class Dax(DaxGuest):
    def __init__(self, keep, folder, build, *options, read_only=True,
                 size=SIZE):
        self.share = Share(keep, folder, build, f"--dax-window={size >> 20}M",
                           *options)
        self.dir, self.fs = self.share.dir, self.share.fs
        self.window = keep(Window(self.fs.vmm, size, read_only))

    def synced(self, node):
        """All that a request would sync."""
        self.fs.setattr(node, 0)

    def works(self):
        self.maps()
        assert self.share.daemon.alive()
        assert not self.share.daemon.sanitizer_output()


@pytest.fixture(name="dax")
def fixture_dax(keep, folder, sanitized):
    dax = Dax(keep, folder, sanitized)
    yield dax
    dax.works()


# -- the specification's rules

@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE, PAGE + 1,
                                  2 * MIB - 1, 2 * MIB, 2 * MIB + 1])
def test_a_file_is_shown_as_far_as_it_reaches(dax, size):
    data = pattern(1, size)
    node = dax.make("f", data)
    dax.setup(node, 0, 2 * MIB, 0)
    shown = min(size, 2 * MIB)
    assert dax.window.read(0, shown) == data[:shown]
    pages = -(-shown // PAGE)
    assert dax.window.pages() == {n * PAGE for n in range(pages)}
    rest = pages * PAGE - shown
    assert dax.window.read(shown, rest) == bytes(rest)


@pytest.mark.parametrize("at,length", [
    (0, 4), (4, 4), (2, 3), (-2, 4), (6, 4), (-2, 16), (0, 8)])
def test_a_mapping_over_others(dax, at, length):
    """The part that is not laid over stays, and shows what it did."""
    one, two = pattern(1, 8 * PAGE - 50), pattern(2, 32 * PAGE)
    dax.setup(dax.make("a", one), 0, 8 * PAGE, 4 * PAGE, READ | WRITE)
    dax.setup(dax.make("b", two), 8 * PAGE, length * PAGE, (4 + at) * PAGE)
    want = {4 + n: one.ljust(8 * PAGE, b"\0")[n * PAGE:(n + 1) * PAGE]
            for n in range(8)}
    want |= {4 + at + n: two[(8 + n) * PAGE:(9 + n) * PAGE]
             for n in range(length)}
    for page, data in want.items():
        assert dax.window.read(page * PAGE, PAGE) == data, page
    assert dax.window.pages() == {p * PAGE for p in want}


@pytest.mark.parametrize("at,length", [
    (0, 8), (2, 3), (0, 1), (7, 1), (-3, 5), (5, 9), (-4, 20), (9, 3)])
def test_any_part_is_unmapped(dax, at, length):
    data = pattern(1, 8 * PAGE - 50)
    dax.setup(dax.make("a", data), 0, 8 * PAGE, 4 * PAGE, READ | WRITE)
    dax.remove(((4 + at) * PAGE, length * PAGE))
    left = {n for n in range(8) if not at <= n < at + length}
    assert dax.window.pages() == {(4 + n) * PAGE for n in left}
    for n in left:
        assert dax.window.read((4 + n) * PAGE, PAGE) \
            == data.ljust(8 * PAGE, b"\0")[n * PAGE:(n + 1) * PAGE]


def test_what_is_mapped_again_stays_where_it_is(dax):
    node = dax.make("a", pattern(1, 4 * PAGE + 9))
    dax.setup(node, 0, 8 * PAGE, 0)
    asked = dax.window.asked
    dax.setup(node, 0, 8 * PAGE, 0)
    dax.setup(node, 0, 8 * PAGE, 0, READ | WRITE)
    dax.setup(node, PAGE, PAGE, PAGE)
    assert dax.window.asked == asked
    dax.window.write(0, b"written")
    assert dax.host("a")[:7] == b"written"


BAD = {
    "unaligned_length": ((0, 100, 0), {}),
    "unaligned_place": ((0, PAGE, 100), {}),
    "unaligned_offset": ((100, PAGE, 0), {}),
    "nothing": ((0, 0, 0), {}),
    "past_the_end": ((0, PAGE, SIZE), {}),
    "over_the_end": ((0, 2 * PAGE, SIZE - PAGE), {}),
    "larger": ((0, SIZE + PAGE, 0), {}),
    "wraps": ((0, 2 ** 64 - PAGE, 2 * PAGE), {}),
    "wrapping_place": ((0, 2 * PAGE, 2 ** 64 - PAGE), {}),
    "offset_over_63_bits": ((2 ** 63, PAGE, 0), {}),
    "offset_wraps": ((2 ** 63 - PAGE, 2 * PAGE, 0), {}),
    "no_flags": ((0, PAGE, 0), {"flags": 0}),
    "unknown_flags": ((0, PAGE, 0), {"flags": 7}),
    "high_flags": ((0, PAGE, 0), {"flags": 2 ** 63 | READ}),
}


@pytest.mark.parametrize("args,kw", BAD.values(), ids=BAD)
def test_a_malformed_setup_maps_nothing(dax, args, kw):
    fails(errno.EINVAL, dax.setup, dax.make("a", pattern(1, PAGE)), *args,
          **kw)
    assert not dax.window.asked


@pytest.mark.parametrize("pairs", [
    [(0, 0)], [(0, 100)], [(100, PAGE)], [(SIZE, PAGE)],
    [(SIZE - PAGE, 2 * PAGE)], [(2 ** 64 - PAGE, 2 * PAGE)],
    [(PAGE, 2 ** 64 - PAGE)]], ids=str)
def test_a_malformed_removal_removes_nothing(dax, pairs):
    dax.setup(dax.make("a", pattern(1, PAGE)), 0, PAGE, 0)
    fails(errno.EINVAL, dax.remove, *pairs)
    fails(errno.EINVAL, dax.fs.removemapping, ROOT, [(0, PAGE)], count=2)
    fails(errno.EINVAL, dax.fs.removemapping, ROOT, [(0, PAGE)], count=0)
    fails(errno.EINVAL, dax.fs.removemapping, ROOT, [(0, PAGE)],
          count=2 ** 32 - 1)
    assert dax.window.pages() == {0}


@pytest.mark.parametrize("what", ["dir", "link"])
def test_only_files_are_mapped(dax, what):
    node = dax.fs.lookup(ROOT, what).nodeid
    fails(errno.EINVAL, dax.setup, node, 0, PAGE, 0)
    fails(errno.ESTALE, dax.setup, 2 ** 40 + 5, 0, PAGE, 0)
    fails(errno.EINVAL, dax.setup, ROOT, 0, PAGE, 0)
    assert not dax.window.asked


def test_without_a_window_nothing_is_mapped(keep, folder, sanitized):
    share = Share(keep, folder, sanitized)
    node = share.fs.lookup(ROOT, "file").nodeid
    fails(errno.ENOSYS, share.fs.setupmapping, node, 0, 0, PAGE, 0)
    fails(errno.ENOSYS, share.fs.removemapping, node, [(0, PAGE)])
    share.fs.works()


# -- both sides

def test_tails_are_kept_equal(dax):
    node = dax.make("a", pattern(1, PAGE + 100))
    dax.setup(node, 0, 2 * MIB, 0, READ | WRITE)
    dax.put("a", PAGE + 5, b"host")
    dax.window.write(PAGE + 50, b"guest")
    until(lambda: dax.window.read(PAGE + 5, 4) == b"host", "the host's")
    until(lambda: dax.host("a")[PAGE + 50:][:5] == b"guest", "the guest's")
    # At once for a request; and what is behind the end is not the file's.
    dax.window.write(PAGE + 90, b"x" * 100)
    fh = dax.fs.open(node)
    assert dax.fs.read(node, fh, PAGE + 80, 500)[10:] == b"x" * 10
    assert len(dax.host("a")) == PAGE + 100
    dax.synced(node)
    assert dax.window.read(PAGE + 100, 90) == bytes(90)
    dax.fs.write(node, fh, PAGE + 95, b"y" * 100)
    assert dax.window.read(PAGE + 90, 110) == b"x" * 5 + b"y" * 100 + bytes(5)
    dax.fs.truncate(node, PAGE + 10, fh)
    assert dax.window.read(PAGE + 10, 200) == bytes(200)
    dax.window.write(PAGE + 20, b"junk")
    dax.fs.truncate(node, 3 * PAGE, fh)
    assert dax.window.read(PAGE + 10, 2 * PAGE - 10) == bytes(2 * PAGE - 10)


def test_a_file_that_grows_takes_few_mappings(dax):
    node = dax.make("a", b"")
    dax.setup(node, 0, 2 * MIB, 0, READ | WRITE)
    fh, want = dax.fs.open(node), b""
    while len(want) < 400 * 1000:
        step = pattern(len(want), 3000)
        dax.fs.write(node, fh, len(want), step)
        want += step
        assert dax.window.read(len(want) - 3000, 3000) == step
    assert dax.window.asked <= 12
    assert dax.window.read(0, len(want)) == want
    dax.window.write(300 * 1000, b"guest")
    dax.put("a", 310 * 1000, b"host")
    dax.fs.fsync(node, fh)
    assert dax.host("a")[300 * 1000:][:5] == b"guest"
    assert dax.window.read(310 * 1000, 4) == b"host"


@pytest.mark.parametrize("left", [0, 100, PAGE, 5 * PAGE, 5 * PAGE + 9])
def test_what_the_host_cuts_off_is_soon_not_there(dax, left):
    """To touch it would be the end of a VMM; the rest stays, and what comes
    back is shown once the guest hears of it."""
    data = pattern(1, 16 * PAGE + 5)
    node = dax.make("a", data)
    dax.setup(node, 0, 8 * PAGE, 0, READ | WRITE)
    dax.setup(node, 8 * PAGE, 16 * PAGE, 8 * PAGE, READ | WRITE)
    os.truncate(dax.path("a"), left)
    pages = -(-left // PAGE)
    until(lambda: {p for p in dax.window.pages() if p < 16 * PAGE}
          == {p * PAGE for p in range(pages)}, "only what is left")
    assert dax.window.read(0, pages * PAGE) \
        == data[:left].ljust(pages * PAGE, b"\0")
    with open(dax.path("a"), "ab") as f:
        f.write(data[left:])
    assert dax.fs.getattr(node).size == len(data)
    assert dax.window.read(0, len(data)) == data
    dax.window.write(7 * PAGE + 3, b"guest")
    dax.synced(node)
    assert dax.host("a")[7 * PAGE + 3:][:5] == b"guest"


@pytest.mark.parametrize("left", [0, 3 * PAGE + 7])
def test_what_the_host_writes_anew_is_there_again(dax, left):
    """cp and editors cut a file and fill it again. A guest that was asleep
    meanwhile, and has its size from before, asks for nothing: by mmap it sees
    the new file soon, by open at once, and what it stores is not lost."""
    data = pattern(1, 16 * PAGE + 5)
    node = dax.make("a", data)
    dax.setup(node, 0, 8 * PAGE, 0, READ | WRITE)
    dax.setup(node, 8 * PAGE, 16 * PAGE, 8 * PAGE, READ | WRITE)
    gone = {p * PAGE for p in range(-(-left // PAGE), 17)}
    for n in range(10):
        os.truncate(dax.path("a"), left)
        until(lambda: not gone & dax.window.pages(), "it is cut")
        new = pattern(10 + n, len(data))
        dax.put("a", 0, new)
        if n % 2:
            dax.fs.release(node, dax.fs.open(node))
        until(lambda: gone <= dax.window.pages(), "it is there again",
              0 if n % 2 else 10)
        dax.window.write(7 * PAGE + 3, b"guest")
        # Where the last page was, a copy goes on.
        until(lambda: dax.host("a")[7 * PAGE + 3:][:5] == b"guest", "stored",
              10 if left % PAGE else 0)
        new = new[:7 * PAGE + 3] + b"guest" + new[7 * PAGE + 8:]
        until(lambda: dax.window.read(0, len(new)) == new, "all is shown")


def test_what_the_guest_cuts_off_is_not_mapped_anew(dax):
    node = dax.make("a", pattern(1, 16 * PAGE))
    fh = dax.fs.open(node)
    dax.setup(node, 0, 16 * PAGE, 0, READ | WRITE)
    for how in (lambda: dax.fs.truncate(node, 5 * PAGE, fh),
                lambda: dax.fs.truncate(node, 5 * PAGE),
                lambda: dax.fs.open(node, os.O_RDWR | os.O_TRUNC)):
        how()
        dax.fs.truncate(node, 16 * PAGE)
        os.truncate(dax.path("a"), 16 * PAGE)
    asked = dax.window.asked
    other = dax.make("b", pattern(1, 9))
    dax.setup(other, 0, PAGE, 20 * PAGE, READ | WRITE)
    dax.window.write(20 * PAGE, b"g")
    until(lambda: dax.host("b")[:1] == b"g", "the syncer has been around")
    assert dax.window.asked == asked + 1


def test_a_guest_that_begins_anew_has_nothing_mapped(dax):
    """INIT without DESTROY, after a reset of the device or not."""
    for n in range(2):
        node = dax.make("a", pattern(n, 3 * PAGE + 5))
        dax.setup(node, 0, 8 * PAGE, 0)
        if n:
            for queue in dax.fs.vmm.queues:
                queue.stop()
            dax.fs.vmm.fe.set_status(0)
            for queue in dax.fs.vmm.queues:
                queue.start()
            dax.fs.vmm.driver_ok()
            dax.fs.vmm.fe.get_features()
        dax.fs.init()
        assert not dax.window.maps


def test_programs_stay_programs(dax):
    """Mapped for reading, the host can run them."""
    node = dax.make("p", b"#!/bin/true\n" + bytes(2 * PAGE), 0o755)
    dax.setup(node, 0, 2 * MIB, 0)
    os.close(os.open(dax.path("p"), os.O_RDWR))
    assert not dax.window.maps[0][1]
    dax.setup(node, 0, 2 * MIB, 0, READ | WRITE)
    dax.window.write(5, b"changed")
    assert dax.host("p")[5:12] == b"changed"


@pytest.mark.parametrize("able", [True, False], ids=["able", "unable"])
def test_a_read_only_share_is_not_written(keep, folder, sanitized, able):
    """Whether or not the front-end can map so; where it can not, a guest may
    write, to a copy."""
    dax = Dax(keep, folder, sanitized, "--readonly", read_only=able)
    data = pattern(1, 5 * PAGE + 70)
    node = dax.make("a", data)
    fails(errno.EROFS, dax.setup, node, 0, 2 * MIB, 0, READ | WRITE)
    dax.setup(node, 0, 2 * MIB, 0)
    assert dax.window.read(0, len(data)) == data
    for at, (_, writable) in dict(dax.window.maps).items():
        if writable:
            dax.window.write(at + 9, b"guest")
    dax.put("a", PAGE + 5, b"host")
    until(lambda: dax.window.read(PAGE + 5, 4) == b"host", "the host's")
    with open(dax.path("a"), "ab") as f:
        f.write(pattern(3, 2 * PAGE))
    want = dax.host("a")
    assert dax.fs.getattr(node).size == len(want)
    until(lambda: dax.window.read(0, len(want)) == want, "all of it")
    assert want[9:14] == data[9:14]
    assert not dax.window.errors


def test_what_can_not_be_stored_is_told(dax):
    """The file may not be that long: fsync says so; later it is stored."""
    node = dax.make("a", b"")
    os.truncate(dax.path("a"), 100)
    dax.setup(node, 0, PAGE, 0, READ | WRITE)
    fh = dax.fs.open(node)
    pid = dax.share.daemon.pid
    was = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (10, was[1]))
    dax.window.write(50, b"guest")
    fails(errno.EFBIG, dax.fs.fsync, node, fh)
    assert dax.window.read(50, 5) == b"guest"
    assert dax.host("a") == bytes(100)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, was)
    until(lambda: dax.host("a")[50:55] == b"guest", "stored in the end")


# -- the VMM

def test_a_front_end_that_refuses(dax):
    node = dax.make("a", pattern(1, 3 * PAGE + 5))
    dax.window.refuse = 1
    fails(errno.EIO, dax.setup, node, 0, 8 * PAGE, 0)
    # The second piece only: nothing of the first stays.
    dax.window.refuse = lambda request, f: request == MAP and f[2] == 3 * PAGE
    fails(errno.EIO, dax.setup, node, 0, 8 * PAGE, 0)
    assert not dax.window.maps
    dax.window.refuse = 0
    dax.setup(node, 0, 8 * PAGE, 0)
    # It is not unmapped, and can be in the end.
    dax.window.refuse = lambda request, f: request == UNMAP
    fails(errno.EIO, dax.remove, (0, 8 * PAGE))
    dax.window.refuse = 0
    assert dax.window.read(0, 3 * PAGE) == pattern(1, 3 * PAGE + 5)[:3 * PAGE]
    dax.setup(node, 0, 8 * PAGE, 0)
    dax.remove((0, 8 * PAGE))
    assert not dax.window.maps


def test_what_was_to_stay_comes_back(dax):
    """The middle is taken out, and the front-end refuses the rest for now."""
    data = pattern(1, 8 * PAGE)
    node = dax.make("a", data)
    dax.setup(node, 0, 8 * PAGE, 0, READ | WRITE)
    dax.window.refuse = lambda request, f: errno.EINTR if request == MAP else 0
    dax.remove((3 * PAGE, PAGE))
    assert not dax.window.maps
    dax.window.refuse = 0
    until(lambda: len(dax.window.pages()) == 7, "the rest is mapped")
    assert dax.window.read(0, 3 * PAGE) == data[:3 * PAGE]
    assert dax.window.read(4 * PAGE, 4 * PAGE) == data[4 * PAGE:]


def test_nothing_is_left_in_the_way(dax):
    """Set up half way, and what is there can not be unmapped either; nor can
    it when the guest unmounts."""
    node = dax.make("a", pattern(1, 3 * PAGE + 5))
    dax.window.refuse = lambda request, f: errno.EINTR \
        if request == UNMAP or f[2] == 3 * PAGE else 0
    fails(errno.EAGAIN, dax.setup, node, 0, 8 * PAGE, 0)
    assert dax.window.maps
    dax.window.refuse = 0
    dax.setup(node, 0, 8 * PAGE, 0)
    dax.window.refuse = lambda request, f: errno.EINTR if request == UNMAP \
        else 0
    dax.fs.destroy()
    dax.fs.init()
    dax.window.refuse = 0
    assert dax.window.maps
    node = dax.make("b", pattern(2, 3 * PAGE + 5))
    dax.setup(node, 0, 8 * PAGE, 0)
    assert dax.window.read(0, 3 * PAGE + 5) == pattern(2, 3 * PAGE + 5)
    dax.remove((0, SIZE))
    assert not dax.window.maps


def test_a_stop_while_a_mapping_is_under_way(dax):
    """The request comes back with EAGAIN, and works the next time."""
    node = dax.make("a", pattern(1, PAGE))
    dax.window.hold = True
    ticket = dax.fs.start(Op.SETUPMAPPING, node, setup_in(0, PAGE, 0))
    until(lambda: dax.window.held, "asked")
    begin = time.monotonic()
    dax.fs.requests[0].stop()
    assert time.monotonic() - begin < 3
    fails(errno.EAGAIN, dax.fs.finish, ticket)
    dax.fs.requests[0].start()
    dax.fs.vmm.fe.get_features()
    dax.window.release()
    dax.setup(node, 0, PAGE, 0)
    assert dax.window.read(0, PAGE) == pattern(1, PAGE)


def setup_in(foffset, length, at, flags=READ):
    return struct.pack("<QQQQQ", 2 ** 64 - 1, foffset, length, flags, at)


def test_growth_while_the_vmm_is_stopped_is_shown_later(dax):
    """The write itself does not fail for it."""
    node = dax.make("a", pattern(1, PAGE))
    fh = dax.fs.open(node)
    dax.setup(node, 0, 8 * PAGE, 0, READ | WRITE)
    dax.window.refuse = lambda request, f: errno.EINTR
    assert dax.fs.write(node, fh, PAGE, b"z" * PAGE) == PAGE
    dax.window.refuse = 0
    until(lambda: dax.window.covered(PAGE), "covered")
    assert dax.window.read(PAGE, PAGE) == b"z" * PAGE


def test_a_front_end_that_never_answers(keep, folder, sanitized):
    dax = Dax(keep, folder, sanitized)
    node = dax.make("a", pattern(1, PAGE + 5))
    dax.setup(node, 0, 2 * PAGE, 0)
    dax.window.hold = True
    other = dax.make("b", pattern(1, PAGE))
    ticket = dax.fs.start(Op.SETUPMAPPING, other, setup_in(0, PAGE, 4 * PAGE))
    fails(errno.EAGAIN, dax.fs.finish, ticket, timeout=20)
    dax.fs.works()


def test_the_next_vmm_begins_with_nothing(keep, folder, sanitized):
    dax = Dax(keep, folder, sanitized)
    node = dax.make("a", pattern(1, 3 * PAGE + 5))
    dax.setup(node, 0, 8 * PAGE, 0)
    fds = len(dax.share.daemon.fds())
    dax.fs.vmm.close()
    dax.fs = dax.share.client()
    dax.window = keep(Window(dax.fs.vmm, SIZE))
    node = dax.make("a", pattern(2, 3 * PAGE + 5))
    dax.setup(node, 0, 8 * PAGE, 0)
    assert dax.window.read(0, 3 * PAGE) == pattern(2, 3 * PAGE + 5)[:3 * PAGE]
    dax.remove((0, SIZE))
    assert len(dax.share.daemon.fds()) <= fds
    dax.works()


# -- the guest

def test_a_file_is_mapped_thousands_of_times(keep, folder, plain):
    """Until there is an error, and nobody else has one."""
    dax = Dax(keep, folder, plain, "--dax-mappings=16384")
    node = dax.make("a", pattern(1, 100))
    before = dax.share.daemon.memory()
    dax.fs.timeout = 100
    for n in range(SIZE // PAGE - 2):
        try:
            dax.setup(node, 0, PAGE, n * PAGE)
        except OSError as e:
            assert e.errno in (errno.ENOSPC, errno.EMFILE), e
            break
    else:
        raise AssertionError("no bound")
    assert n > 1000
    assert dax.share.daemon.memory() - before < 128 * MIB
    dax.window.write(0, b"guest")
    dax.synced(node)
    assert dax.host("a")[:5] == b"guest"
    dax.fs.works("others")
    dax.remove((0, SIZE))
    assert not dax.window.maps
    dax.works()


def test_no_more_is_mapped_than_a_front_end_bears(keep, folder, sanitized):
    """What is given back can be used again, and others have their share."""
    dax = Dax(keep, folder, sanitized, "--dax-mappings=20")
    node = dax.make("a", pattern(1, 100))
    for n in range(20):
        dax.setup(node, 0, PAGE, n * PAGE)
    fails(errno.ENOSPC, dax.setup, node, 0, PAGE, 20 * PAGE)
    assert len(dax.window.maps) == 20
    dax.fs.works("others")
    dax.setup(node, 0, PAGE, 5 * PAGE, READ | WRITE)
    dax.remove((7 * PAGE, PAGE))
    dax.setup(node, 0, PAGE, 20 * PAGE)
    dax.remove((0, SIZE))
    dax.works()


def test_a_guest_that_scribbles_over_tails(dax):
    """At any time: the files are never longer, and in the end they have what
    was there last."""
    nodes = [dax.make(f"t{n}", bytes(1000)) for n in range(8)]
    for n, node in enumerate(nodes):
        dax.setup(node, 0, PAGE, n * PAGE, READ | WRITE)
    stop = threading.Event()

    def scribble():
        rng = random.Random(3)
        while not stop.is_set():
            dax.window.write(rng.randrange(8) * PAGE, rng.randbytes(PAGE))
    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for n in range(60):
            node = nodes[n % 8]
            size = 900 + 13 * n
            if n % 3:
                os.truncate(dax.path(f"t{n % 8}"), size)
            else:
                dax.fs.truncate(node, size)
            assert dax.fs.getattr(node).size == size
    finally:
        stop.set()
        thread.join()
    for n, node in enumerate(nodes):
        dax.synced(node)
        dax.synced(node)
        size = os.path.getsize(dax.path(f"t{n}"))
        assert dax.window.read(n * PAGE, PAGE) \
            == dax.host(f"t{n}") + bytes(PAGE - size)


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_shows_the_files(keep, folder, sanitized, seed):
    """A random one, against an oracle of what is mapped where."""
    rng = random.Random(seed)
    dax = Dax(keep, folder, sanitized, read_only=seed % 2 == 0)
    files = [f"f{n}" for n in range(4)]
    sizes = [0, 5000, 3 * PAGE, 40 * PAGE + 3]
    nodes = [dax.make(f, pattern(n, s), 0o755 if n == 2 else 0o644)
             for n, (f, s) in enumerate(zip(files, sizes))]
    fhs = [dax.fs.open(n) for n in nodes]
    pages = 64
    shows = [None] * pages  # (file, page of it)

    def sets(k):
        at, n = rng.randrange(pages), rng.randrange(1, 20)
        n = min(n, pages - at)
        first = rng.choice((0, 0, rng.randrange(30)))
        dax.setup(nodes[k], first * PAGE, n * PAGE, at * PAGE,
                  READ | rng.randrange(2))
        shows[at:at + n] = [(k, first + i) for i in range(n)]

    def removes(_):
        at = rng.randrange(pages)
        n = min(rng.randrange(1, 12), pages - at)
        dax.remove((at * PAGE, n * PAGE))
        shows[at:at + n] = [None] * n

    def guest_writes(k):
        if k != 2:
            dax.fs.write(nodes[k], fhs[k], rng.randrange(30 * PAGE),
                         rng.randbytes(rng.randrange(1, 9000)))

    def host_writes(k):
        dax.put(files[k], rng.randrange(20 * PAGE),
                rng.randbytes(rng.randrange(1, 9000)))

    def grows(k):
        with open(dax.path(files[k]), "ab") as f:
            f.write(rng.randbytes(rng.randrange(1, 7000)))

    def cuts(k):
        dax.fs.truncate(nodes[k], rng.randrange(30 * PAGE), fhs[k])

    def scribbles(_):
        page = rng.randrange(pages)
        if not shows[page]:
            return
        k, n = shows[page]
        size = os.path.getsize(dax.path(files[k])) - n * PAGE
        piece = [(at, s, w) for at, (s, w) in dax.window.maps.items()
                 if at <= page * PAGE < at + s]
        if size > 0 and piece and piece[0][2] and k != 2:
            at = rng.randrange(min(size, PAGE))
            data = rng.randbytes(min(size, PAGE) - at)
            # Others may show the same page: they are to agree before.
            dax.synced(nodes[k])
            dax.window.write(page * PAGE + at, data)
            dax.synced(nodes[k])
            assert dax.host(files[k])[n * PAGE + at:][:len(data)] == data

    def check():
        known = [dax.fs.getattr(n).size for n in nodes]
        for node in nodes:
            dax.synced(node)
            dax.synced(node)
        hosts = [dax.host(f) for f in files]
        covered = dax.window.pages()
        for page, shown in enumerate(shows):
            if not shown:
                assert page * PAGE not in covered, page
                continue
            k, n = shown
            want = hosts[k][n * PAGE:(n + 1) * PAGE]
            if n * PAGE < known[k]:
                got = dax.window.read(page * PAGE, PAGE)
                assert got == want.ljust(PAGE, b"\0"), (page, shown)

    for _ in range(150):
        rng.choice((sets, sets, removes, guest_writes, host_writes, grows,
                    cuts, scribbles))(rng.randrange(4))
        check()
    dax.remove((0, SIZE))
    assert not dax.window.maps
    assert [dax.fs.getattr(n).size for n in nodes] \
        == [os.path.getsize(dax.path(f)) for f in files]
    assert dax.share.daemon.alive() and not dax.window.errors


# -- what can not be done at once

@pytest.mark.parametrize("status", [errno.EINTR, errno.EAGAIN])
@pytest.mark.parametrize("times", [1, 4])
def test_a_cut_that_the_vmm_does_not_unmap_at_once_is_unmapped_later(
        dax, times, status):
    """Nobody asks for it again: the syncer has to. Whoever touches what lies
    beyond the end hangs, in some VMMs."""
    node = dax.make("f", pattern(1, 2 * MIB))
    dax.setup(node, 0, 2 * MIB, 0, READ | WRITE)
    left = [status] * times
    dax.window.refuse = lambda request, _: \
        left.pop() if request == UNMAP and left else 0
    os.truncate(dax.path("f"), MIB)
    until(lambda: not left and not dax.window.covered(MIB + PAGE) and
          dax.window.covered(0, MIB), "the rest of the file is shown, no more")


def test_what_the_vmm_does_not_unmap_is_not_taken_for_unmapped(dax):
    """Else the guest would map another file there, and could not."""
    node = dax.make("f", pattern(1, 4 * PAGE))
    other = dax.make("g", pattern(2, 4 * PAGE))
    dax.setup(node, 0, 4 * PAGE, 0, READ | WRITE)
    dax.window.refuse = lambda request, _: \
        errno.EINTR if request == UNMAP else 0
    for _ in range(3):
        fails(errno.EAGAIN, dax.remove, (0, 4 * PAGE))
        assert dax.window.covered(0, 4 * PAGE)
    dax.window.refuse = 0
    dax.setup(other, 0, 4 * PAGE, 0, READ | WRITE)
    assert dax.window.read(0, 4 * PAGE) == pattern(2, 4 * PAGE)


def test_a_file_that_the_host_has_leased_keeps_no_other_from_the_window(dax):
    """It is opened anew to be mapped, and then the kernel waits, 45 s."""
    node = dax.make("leased", pattern(1, 2 * PAGE))
    other = dax.make("other", pattern(2, 5000))
    dax.setup(other, 0, 2 * MIB, 4 * MIB, READ | WRITE)
    with open(dax.path("leased"), "rb") as f:
        fcntl.fcntl(f, F_SETSIG, signal.SIGURG)
        fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        waits = dax.fs.start(Op.SETUPMAPPING, node, struct.pack(
            "<QQQQQ", 2 ** 64 - 1, 0, 2 * MIB, READ, 0))
        dax.put("other", 4096, b"HOST")
        until(lambda: dax.window.read(4 * MIB + 4096, 4) == b"HOST",
              "the other file's tail is as the host wrote it", seconds=3)
        fails(errno.EAGAIN, dax.fs.finish, waits, timeout=3)
        fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    dax.setup(node, 0, 2 * MIB, 0, READ)
    assert dax.window.read(0, 2 * PAGE) == pattern(1, 2 * PAGE)


def test_what_the_guest_has_stored_is_no_hole(dax):
    """Of a last page it is in the file when somebody asks, at the latest."""
    node = dax.make("f", b"")
    os.truncate(dax.path("f"), 5000)
    fh = dax.fs.open(node, os.O_RDWR)
    dax.setup(node, 0, 2 * MIB, 0, READ | WRITE)
    fails(errno.ENXIO, dax.fs.lseek, node, fh, 0, os.SEEK_DATA)
    dax.window.write(4096, b"stored")
    assert dax.fs.lseek(node, fh, 0, os.SEEK_DATA) == 4096
