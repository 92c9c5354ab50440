# SPDX-License-Identifier: Apache-2.0
"""The notification queue (virtio 1.4, 5.11.6.3): what others on the host change
is told to the guest, whatever its driver does with the queue."""
import errno
import os
import re
import signal
import struct
import time
from typing import NamedTuple

import pytest

import fuse
from fuse import ROOT, fails
from guard import Guard
from share import Share, until
from split_ring import WRITE

SIZE = 16 + 16 + 256  # the longest: of a name of 255 bytes
INVAL_INODE, INVAL_ENTRY = 2, 3


class Inode(NamedTuple):
    """What is kept of a node; with @data, not only its attributes."""
    node: int
    data: bool


class Name(NamedTuple):
    parent: int
    name: bytes


UNUSED = Inode(ROOT, False)


class Notes:
    """The driver's end of the notification queue."""

    def __init__(self, fs):
        self.fs = fs
        self.queue = fs.notifications
        self.posted = {}  # head -> address
        self.free = []
        self.seen = []

    def post(self, count=16, size=SIZE):
        for _ in range(count):
            if size != SIZE or not self.free:
                at = self.fs.ram.alloc(size, 16, bank=1)
                self.fs.ram.device_may_write(at, size)
            else:
                at = self.free.pop()
            self.posted[self.queue.ring.add([(at, size, WRITE)])] = at
        self.queue.publish()

    def parse(self, head, used):
        at = self.posted.pop(head)
        self.free.append(at)
        data = self.fs.ram.read(at, used)
        length, code, unique = fuse.OUT_HEADER.unpack_from(data)
        assert (length, unique) == (used, 0)
        body = data[fuse.OUT_HEADER.size:]
        if code == INVAL_INODE:
            node, off, size = struct.unpack("<Qqq", body)
            assert off in (0, -1) and size == 0
            return Inode(node, off == 0)
        assert code == INVAL_ENTRY
        parent, size, flags = struct.unpack_from("<QII", body)
        assert not flags and len(body) == 16 + size + 1 and body[-1] == 0
        return Name(parent, body[16:-1])

    def take(self, count=1, post=True):
        got = [self.parse(*used) for used in self.queue.wait_used(count)]
        self.seen += got
        if post:
            self.post(len(got))
        return got

    def await_all(self, *expected):
        """Takes and posts until all of these were told."""
        missing = set(expected) - set(self.seen)
        while missing:
            missing -= set(self.take())
        self.seen.clear()

    def settle(self):
        """All that has happened so far was told, and is forgotten here."""
        path = self.fs.share_dir
        os.utime(path)
        self.await_all(Inode(ROOT, False))


@pytest.fixture(name="make")
def fixture_make(keep, folder):
    """A share whose client has a notification queue, and that queue."""
    def make(build, *options, post=16, **kw):
        share = Share(keep, folder, build, "--notify", "--cache=always",
                      *options, **kw)
        share.fs.close()
        share.fs = share.client(notify=True)
        share.fs.share_dir = share.dir
        notes = Notes(share.fs)
        if post:
            notes.post(post)
        return share, notes
    return make


@pytest.fixture(name="told", params=["plain", "sanitized"])
def fixture_told(request, make):
    """With the sandbox, and with sanitizers."""
    return make(request.getfixturevalue(request.param))


@pytest.fixture(name="own")
def fixture_own(sanitized, make):
    return lambda *options, **kw: make(sanitized, *options, **kw)


def text(path, data=b"x", mode="wb"):
    with open(path, mode) as f:
        f.write(data)


def watches(share):
    """Directories that are watched now."""
    total = 0
    for fd, what in share.daemon.fds().items():
        if "inotify" in what:
            with open(f"/proc/{share.daemon.pid}/fdinfo/{fd}") as f:
                total += len(re.findall("^inotify wd:", f.read(), re.M))
    return total


# ---- what is told


def test_device_says_that_it_has_a_notification_queue(own):
    share, _ = own("--num-request-queues=3")
    vmm = share.fs.vmm
    assert vmm.offered & fuse.NOTIFICATION
    assert vmm.queue_num == 2 + 3
    assert struct.unpack("<II", vmm.fe.get_config(36, 8)) == (3, SIZE)


def test_without_the_option_there_is_no_notification_queue(keep, folder,
                                                           sanitized):
    share = Share(keep, folder, sanitized)
    vmm = share.fs.vmm
    assert not vmm.offered & fuse.NOTIFICATION
    assert vmm.queue_num == 1 + 1
    assert struct.unpack("<II", vmm.fe.get_config(36, 8)) == (1, 0)


def test_changes_of_a_file_are_told(told):
    share, notes = told
    node = share.fs.lookup(ROOT, "file").nodeid
    text(f"{share.dir}/file", b"more", "ab")
    notes.await_all(Inode(node, True))
    os.chmod(f"{share.dir}/file", 0o600)
    notes.await_all(Inode(node, False))
    os.truncate(f"{share.dir}/file", 3)
    notes.await_all(Inode(node, True))
    assert share.fs.getattr(node).size == 3
    # To be told of it is not to know it once more.
    share.fs.forget(node)
    fails(errno.ESTALE, share.fs.getattr, node)


def test_names_that_go_and_move_are_told(told):
    share, notes = told
    folder = share.fs.lookup(ROOT, "dir").nodeid
    inner = share.fs.lookup(folder, "inner").nodeid
    deep = share.fs.lookup(folder, "deep").nodeid
    share.fs.listdir(deep)
    os.rename(f"{share.dir}/dir/inner", f"{share.dir}/dir/deep/moved")
    notes.await_all(Name(folder, b"inner"), Name(deep, b"moved"),
                    Inode(folder, True), Inode(deep, True),
                    Inode(inner, True))
    os.unlink(f"{share.dir}/dir/deep/moved")
    notes.await_all(Name(deep, b"moved"), Inode(deep, True))
    os.rmdir(f"{share.dir}/dir/deep")
    notes.await_all(Name(folder, b"deep"), Inode(folder, True))


def test_file_that_takes_the_place_of_another_is_told(told):
    share, notes = told
    node = share.fs.lookup(ROOT, "file").nodeid
    text(f"{share.dir}/new", b"new")
    os.rename(f"{share.dir}/new", f"{share.dir}/file")
    notes.await_all(Name(ROOT, b"file"))
    entry = share.fs.lookup(ROOT, "file")
    assert entry.nodeid != node and entry.attr.size == 3


def test_new_names_are_told_as_a_change_of_their_directory(told):
    share, notes = told
    folder = share.fs.lookup(ROOT, "dir").nodeid
    assert share.fs.listdir(folder)
    text(f"{share.dir}/dir/fresh")
    notes.await_all(Inode(folder, True))
    os.mkdir(f"{share.dir}/dir/below")
    notes.await_all(Inode(folder, True))


def test_link_to_a_known_file_is_told_as_a_change_of_it(told):
    share, notes = told
    node = share.fs.lookup(ROOT, "file").nodeid
    os.link(f"{share.dir}/file", f"{share.dir}/again")
    notes.await_all(Inode(node, False), Inode(ROOT, True))
    assert share.fs.getattr(node).nlink == 2


def test_names_of_all_lengths_are_told(told):
    share, notes = told
    share.fs.listdir(ROOT)
    for name in ("n", "\xff" * 127, "l" * 255):
        text(f"{share.dir}/{name}")
        os.unlink(f"{share.dir}/{name}")
        notes.await_all(Name(ROOT, os.fsencode(name)))


def test_what_was_changed_and_then_moved_is_told(own):
    """The file is not at the name where it was changed any more."""
    share, notes = own()
    node = share.fs.lookup(ROOT, "file").nodeid
    os.kill(share.daemon.pid, signal.SIGSTOP)
    text(f"{share.dir}/file", b"more", "ab")
    os.rename(f"{share.dir}/file", f"{share.dir}/elsewhere")
    os.kill(share.daemon.pid, signal.SIGCONT)
    notes.await_all(Inode(node, True), Name(ROOT, b"file"))


def test_one_thread_serves_all_queues(own):
    share, notes = own("--threads=1")
    node = share.fs.lookup(ROOT, "file").nodeid
    text(f"{share.dir}/file", b"more", "ab")
    notes.await_all(Inode(node, True))
    share.fs.works()


def test_nothing_is_told_of_where_the_guest_has_not_looked(own):
    share, notes = own()
    share.fs.lookup(ROOT, "dir")
    notes.settle()
    text(f"{share.dir}/dir/inner", b"more", "ab")
    os.unlink(f"{share.dir}/dir/inner")
    text(f"{share.dir}/unknown")
    os.unlink(f"{share.dir}/unknown")
    while Name(ROOT, b"unknown") not in notes.seen:
        notes.take()
    # Events come in their order: these are all.
    assert set(notes.seen) <= {Name(ROOT, b"unknown"), Inode(ROOT, True),
                               Inode(ROOT, False)}


def test_forgotten_directories_are_not_watched(own):
    share, _ = own()
    share.fs.listdir(ROOT)
    assert watches(share) == 1
    entries = [share.fs.walk(path) for path in ("dir", "dir/deep", "many")]
    for entry in entries:
        share.fs.listdir(entry.nodeid)
    assert watches(share) == 4
    share.fs.forget(entries[1].nodeid)
    until(lambda: watches(share) == 3, "the watch goes with its node")
    share.fs.destroy()
    until(lambda: watches(share) == 0, "the watches go with the session")


def test_directory_on_two_mounts_is_told_for_both(own, folder):
    """inotify has one watch for both, which must outlive either."""
    share, notes = own(under=(
        "unshare", "-Urm", "sh", "-c",
        'mount --bind "$0/many" "$0/dir/deep" && exec "$@"',
        f"{folder}/share"))
    nodes = [share.fs.walk(path).nodeid for path in ("many", "dir/deep")]
    assert nodes[0] != nodes[1]
    for node in nodes:
        share.fs.lookup(node, "entry1")
    os.unlink(f"{share.dir}/many/entry1")
    notes.await_all(*(Name(node, b"entry1") for node in nodes))
    share.fs.forget(nodes[0])
    os.unlink(f"{share.dir}/many/entry2")
    notes.await_all(Name(nodes[1], b"entry2"))


# ---- what the driver may do wrong


def test_changes_wait_for_buffers(own):
    share, notes = own(post=0)
    node = share.fs.lookup(ROOT, "file").nodeid
    for n in range(2000):
        text(f"{share.dir}/file", b"%d" % n, "ab")
    for n in range(50):
        os.unlink(f"{share.dir}/many/entry{n}")
    os.unlink(f"{share.dir}/file")
    share.fs.lookup(ROOT, "other")
    notes.post(1)
    told = []
    while Name(ROOT, b"file") not in told:
        told += notes.take()
    assert told.count(Inode(node, True)) == 1, "the same is not told again"
    assert not [t for t in told if isinstance(t, Name)][1:]


def test_buffers_that_are_never_posted_cost_a_bounded_amount(own):
    share, notes = own(post=0)
    many = share.fs.lookup(ROOT, "many").nodeid
    known = [share.fs.lookup(many, f"entry{n}").nodeid for n in range(50)]
    with open("/proc/sys/fs/inotify/max_queued_events") as f:
        limit = int(f.read())
    path = f"{share.dir}/many/a"

    def churn(count):
        """Twice as many events of names, none like the one before."""
        for n in range(count):
            name = f"{share.dir}/many/{n:0200}"
            os.rename(path, name)
            os.rename(name, path)

    text(path)
    churn(3000)
    before = share.daemon.memory()
    churn((limit + 20000) // 2)
    assert share.daemon.memory() - before < 8 << 20
    assert share.daemon.idle_cpu() < 0.02, "it waits"
    share.fs.works()
    # All that the guest knows is invalidated in the end, and that is said.
    notes.post(32)
    notes.await_all(*(Inode(node, True) for node in known),
                    Inode(many, True), Inode(ROOT, True))
    lines = share.daemon.find("came faster")
    assert len(lines) == 1 and "--cache" in lines[0]
    text(f"{share.dir}/many/entry3", b"more", "ab")
    notes.await_all(Inode(known[3], True))


@pytest.mark.parametrize("size", [1, 16, SIZE - 1])
def test_small_buffers_break_their_queue_only(own, size):
    share, notes = own(post=2)
    notes.post(1, size=size)
    small = list(notes.posted)[-1]
    assert notes.queue.erred()
    share.daemon.wait_line("notify_buf_size")
    assert share.daemon.find("queue 1 .*notify_buf_size")
    share.fs.works()
    text(f"{share.dir}/file", b"more", "ab")
    share.fs.works()
    notes.queue.stop()
    used = [head for head, _ in notes.queue.ring.reap()]
    assert len(used) == 2 and small not in used
    share.fs.vmm.ram.check()


def test_buffer_may_be_in_pieces_and_larger(own):
    share, notes = own(post=0)
    node = share.fs.lookup(ROOT, "file").nodeid
    at = share.fs.ram.alloc(4096, 16, bank=1)
    share.fs.ram.device_may_write(at, 4096)
    head = notes.queue.ring.add([(at, 5, WRITE), (at + 5, 30, WRITE),
                                 (at + 35, 4000, WRITE)])
    notes.posted[head] = at
    notes.queue.publish()
    text(f"{share.dir}/file", b"more", "ab")
    assert notes.take(post=False) == [Inode(node, True)]


def test_queue_stops_with_buffers_outstanding(told):
    share, notes = told
    node = share.fs.lookup(ROOT, "file").nodeid
    notes.settle()
    begun = time.monotonic()
    taken = notes.queue.stop()
    assert time.monotonic() - begun < 5
    # Each that was taken came back, with a message that does no harm.
    used = notes.queue.ring.reap()
    assert len(used) >= 15 and notes.queue.ring.last_used == taken
    assert {notes.parse(*entry) for entry in used} == {UNUSED}
    # What happens meanwhile is told later.
    text(f"{share.dir}/file", b"more", "ab")
    notes.seen.clear()
    notes.queue.start()
    notes.post(len(used))
    notes.await_all(Inode(node, True))


def test_memory_changes_with_buffers_outstanding(told):
    share, notes = told
    node = share.fs.lookup(ROOT, "file").nodeid
    ram = share.fs.ram
    assert not share.fs.vmm.fe.set_mem_table(ram.regions, ram.fds)
    share.fs.vmm.fe.get_features()
    text(f"{share.dir}/file", b"more", "ab")
    notes.await_all(Inode(node, True))


def test_guest_that_leaves_with_buffers_outstanding_is_forgotten(told):
    share, notes = told
    share.fs.lookup(ROOT, "file")
    text(f"{share.dir}/file", b"more", "ab")
    notes.take()
    share.fs.close()
    text(f"{share.dir}/file", b"more", "ab")
    share.fs = share.client(notify=True)
    share.fs.works()
    notes = Notes(share.fs)
    notes.post()
    node = share.fs.lookup(ROOT, "other").nodeid
    text(f"{share.dir}/other", b"more", "ab")
    notes.await_all(Inode(node, True))


def test_driver_without_notifications_has_requests_in_queue_1(own):
    share, _ = own("--num-request-queues=2")
    share.fs.close()
    share.fs = share.client(queues=2)
    assert [q.index for q in share.fs.requests] == [1, 2]
    for queue in share.fs.requests:
        entry = fuse.Entry.parse(share.fs.call(
            fuse.Op.LOOKUP, ROOT, fuse.name("file"), queue=queue))
        assert entry.attr.size == 256 * 40
    assert watches(share) == 0, "nobody to tell"
    share.fine()


def test_readable_buffers_are_no_requests(own):
    """A FUSE message in the notification queue is not carried out."""
    share, notes = own(post=0)
    request = share.fs.header(fuse.Op.UNLINK, ROOT, 5) + fuse.name("file")
    at = share.fs.ram.alloc(4096, 16, bank=1)
    share.fs.ram.device_may_write(at, 4096)
    share.fs.put(at, request)
    head = notes.queue.ring.add([(at, len(request), 0),
                                 (at + 256, SIZE, WRITE)])
    notes.posted[head] = at + 256
    notes.queue.publish()
    node = share.fs.lookup(ROOT, "file").nodeid
    text(f"{share.dir}/file", b"more", "ab")
    assert notes.take(post=False) == [Inode(node, True)]
    assert os.path.exists(f"{share.dir}/file")


# ---- limits


def test_directories_beyond_the_limit_are_not_watched_and_that_is_said(own):
    few = ("unshare", "-Ur", "sh", "-c",
           'echo 2 > /proc/sys/user/max_inotify_watches && exec "$@"', "sh")
    share, notes = own(under=few)
    for n in range(5):
        os.mkdir(f"{share.dir}/d{n}")
    nodes = [share.fs.lookup(ROOT, f"d{n}").nodeid for n in range(5)]
    for node in nodes:
        share.fs.listdir(node)
    assert watches(share) == 2
    assert len(share.daemon.find("can not watch .*max_user_watches")) == 1
    # One that is forgotten makes room.
    share.fs.forget(nodes[0])
    share.fs.listdir(nodes[4])
    assert watches(share) == 2
    text(f"{share.dir}/d4/fresh")
    notes.await_all(Inode(nodes[4], True))
    assert len(share.daemon.find("can not watch")) == 1


# ---- behind the guard


def test_guard_carries_notifications_and_stops_their_queue_at_once(
        keep, folder, plain):
    share = Share(keep, folder, plain, "--notify")
    share.fs.close()
    guard = keep(Guard(plain, folder, share.daemon.path, "--device=fs"))
    share.fs = keep(fuse.Fs(guard.path, notify=True))
    notes = Notes(share.fs)
    notes.post()
    node = share.fs.lookup(ROOT, "file").nodeid
    text(f"{share.dir}/file", b"more", "ab")
    notes.await_all(Inode(node, True))
    begun = time.monotonic()
    taken = notes.queue.stop()
    # It would wait for 5 s for requests.
    assert time.monotonic() - begun < 4
    used = notes.queue.ring.reap()
    assert notes.queue.ring.last_used == taken
    assert {notes.parse(*entry) for entry in used} <= {UNUSED}
    share.fs.works()
    share.fs.vmm.ram.check()
