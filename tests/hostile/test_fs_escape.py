# SPDX-License-Identifier: Apache-2.0
"""Nothing outside of the shared folder is reached, by whatever way.

Beside the folder lies another with a secret in it. A hostile guest follows links
and "..", and races its lookups against somebody on the host who moves folders out
of the tree and in again. Whatever it is told is compared with the secret's inode,
and what is outside with what was there before.
"""
import ctypes
import errno
import os
import random
import shutil
import struct
import subprocess
import threading
import time

import pytest

from fuse import ROOT, Op, fails, name
from share import SECRET, Share

RACE = 0.8  # seconds of each race

# In a mount namespace of its own a test may mount; the daemon starts in it.
NAMESPACE = ["unshare", "--map-root-user", "--mount", "--propagation",
             "private"]


@pytest.fixture(name="make")
def fixture_make(keep, folder, sanitized):
    return lambda *options, **kw: Share(keep, folder, sanitized, "--xattr",
                                        *options, **kw)


class Watch:
    """Knows the inodes outside, and what a guest may never be told."""

    def __init__(self, share):
        self.share = share
        self.inodes = set()
        for at, folders, files in os.walk(share.outside):
            for path in (at, *(os.path.join(at, n) for n in folders + files)):
                self.inodes.add(os.lstat(path).st_ino)

    def entry(self, entry):
        assert entry.attr.ino not in self.inodes, "an inode from outside"
        return entry

    def read_all(self, fs, node):
        """What a file or folder holds; never the secret."""
        mode = fs.getattr(node).mode & 0o170000
        if mode == 0o100000:
            fh = fs.open(node, os.O_RDONLY)
            try:
                data = fs.read(node, fh, 0, 4096)
            finally:
                fs.release(node, fh)
            assert SECRET not in data, "the secret was read"
            return data
        if mode == 0o040000:
            fh = fs.opendir(node)
            try:
                for d in fs.readdir(node, fh, plus=True):
                    assert d.name != b"secret", "the secret was listed"
            finally:
                fs.release(node, fh, directory=True)
        return b""

    def end(self):
        assert self.share.outside_now() == self.share.before
        self.share.fine()


LINKS = {
    "absolute": lambda share: f"{share.outside}/secret",
    "relative": lambda share: "../outside/secret",
    "to_the_folder": lambda share: "../outside",
    "up": lambda share: "..",
    "root": lambda share: "/",
    "proc": lambda share: "/proc/self/root",
    "descriptor": lambda share: "/proc/self/fd/3",
    "cwd": lambda share: "/proc/self/cwd",
    "through_itself": lambda share: "bad/secret",
}


@pytest.mark.parametrize("maker", ["host", "guest"])
@pytest.mark.parametrize("case", LINKS)
def test_link_is_never_followed(make, case, maker):
    """Lookups give the link, not its target; nothing opens or changes it."""
    share = make()
    watch, fs = Watch(share), share.fs
    target = LINKS[case](share)
    if maker == "host":
        os.symlink(target, f"{share.dir}/bad")
        os.symlink("bad", f"{share.dir}/chained")
    else:
        fs.symlink(ROOT, "bad", target)
        fs.symlink(ROOT, "chained", "bad")
    for what in ("bad", "chained"):
        entry = watch.entry(fs.lookup(ROOT, what))
        node = entry.nodeid
        assert entry.attr.mode & 0o170000 == 0o120000
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC,
                      os.O_RDONLY | os.O_DIRECTORY, os.O_PATH):
            fails((), fs.open, node, flags)
        fails((), fs.opendir, node)
        fails((), fs.truncate, node, 0)
        for below in ("secret", "share", ".", "..", "outside", "etc"):
            fails((), fs.lookup, node, below)
            fails((), fs.create, node, below)
            fails((), fs.mkdir, node, below)
            fails((), fs.unlink, node, below)
            fails((), fs.rename, ROOT, "file", node, below)
            fails((), fs.rename, node, below, ROOT, "stolen")
            fails((), fs.link, fs.lookup(ROOT, "file").nodeid, node, below)
        fails((), fs.rmdir, ROOT, what)
        fails((), fs.create, ROOT, what, os.O_RDWR | os.O_EXCL)
        fails((), fs.create, ROOT, what, os.O_RDWR | os.O_TRUNC)
        # On the link itself, not on its target.
        fs.setattr(node, 6, uid=1234, gid=1234)
        for call in ((fs.setxattr, node, "user.x", b"x"),
                     (fs.getxattr, node, "user.x"),
                     (fs.setattr, node, 1)):
            try:
                call[0](*call[1:])
            except OSError:
                pass
        fs.setattr(node, 0x30, atime=1, mtime=1)
    fs.link(fs.lookup(ROOT, "bad").nodeid, ROOT, "hard")
    assert os.readlink(f"{share.dir}/hard") == target
    for what in ("bad", "chained", "hard"):
        fs.unlink(ROOT, what)
    watch.end()


def test_no_name_leads_up(make):
    share = make()
    watch, fs = Watch(share), share.fs
    inner = fs.lookup(ROOT, "dir").nodeid
    for node in (ROOT, inner):
        for what in ("../outside", "../../outside/secret", "..//outside",
                     "./../outside", "/", "//", "deep/../../../outside",
                     share.outside, f"{share.outside}/secret"):
            fails((), fs.lookup, node, what)
            fails((), fs.create, node, what + "/new")
            fails((), fs.mkdir, node, what + "/new")
            fails((), fs.symlink, node, what + "/new", "x")
            fails((), fs.unlink, node, what)
            fails((), fs.rename, node, what, ROOT, "stolen")
            fails((), fs.rename, ROOT, "file", node, what)
    for node in (ROOT, inner):
        for what in (".", ".."):
            try:
                entry = watch.entry(fs.lookup(node, what))
            except OSError:
                continue
            watch.read_all(fs, entry.nodeid)
    # In the listing the root's parent is nothing from outside either.
    for plus in (False, True):
        for d in fs.listdir(ROOT, plus):
            if d.name != b"..":
                assert d.ino not in watch.inodes
    watch.end()


def test_a_shared_folder_may_be_named_by_a_link(keep, folder, sanitized):
    """The link is resolved once; what it says later does not matter."""
    os.symlink("share", f"{folder}/named")
    share = Share(keep, folder, sanitized, share=f"{folder}/named")
    watch, fs = Watch(share), share.fs
    assert fs.lookup(ROOT, "file").attr.size == 10240
    os.unlink(f"{folder}/named")
    os.symlink("outside", f"{folder}/named")
    fails(errno.ENOENT, fs.lookup, ROOT, "secret")
    assert fs.lookup(ROOT, "file").attr.size == 10240
    fs = share.again()
    assert fs.lookup(ROOT, "file").attr.size == 10240
    watch.end()


def test_a_hard_link_to_outside_is_what_the_host_made_it(make):
    """A hard link is inside as much as outside: the host's to make. The guest
    can make none: it has no name for what is outside."""
    share = make()
    fs = share.fs
    for node in (2, 3, 10, 1000, os.lstat(f"{share.outside}/secret").st_ino):
        fails((), fs.link, node, ROOT, "stolen")
    share.fine()


def test_folder_moved_out_is_no_way_out(make):
    """The guest keeps its node; what is beside it there is not reached."""
    share = make()
    fs = share.fs
    node = fs.lookup(ROOT, "dir").nodeid
    fh = fs.opendir(node)
    os.mkdir(f"{share.outside}/moved")
    os.rename(f"{share.dir}/dir", f"{share.outside}/moved/dir")
    share.before = share.outside_now()
    for what in ("..", "../secret", "../../secret"):
        try:
            entry = fs.lookup(node, what)
        except OSError:
            continue
        assert entry.nodeid == ROOT or entry.attr.ino == fs.getattr(node).ino
    for what in ("secret", "moved", "outside"):
        fails((), fs.lookup, node, what)
    for d in fs.readdir(node, fh, plus=True):
        if d.entry.nodeid and d.name == b"..":
            assert d.entry.nodeid in (ROOT, node)
    fs.release(node, fh, directory=True)
    # What the guest knew it may still use; but nothing new is outside.
    assert share.outside_now() == share.before
    fails(errno.ENOENT, fs.lookup, ROOT, "dir")
    assert share.outside_now()["secret"] == SECRET


class Race:
    """Somebody on the host who does the same over and over."""

    def __init__(self, step):
        self.step, self.stop, self.error = step, threading.Event(), None
        self.count = 0
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            while not self.stop.is_set():
                self.step()
                self.count += 1
        except OSError as e:
            self.error = e

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def race(share, watch, step, seconds=RACE):
    """The guest's part: it walks, reads and makes whatever it can reach."""
    fs, rng = share.fs, random.Random(1)
    names = ("a", "b", "swap", "secret", "..", "share", "outside", "in")
    reached = 0
    with Race(step) as host:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            node, known = ROOT, []
            try:
                for _ in range(rng.randrange(1, 6)):
                    node = watch.entry(
                        fs.lookup(node, rng.choice(names))).nodeid
                    known.append(node)
                    reached += 1
                    if rng.random() < 0.5:
                        watch.read_all(fs, node)
                if rng.random() < 0.5:
                    fs.mkdir(node, "made")
                    fs.rmdir(node, "made")
                if rng.random() < 0.3:
                    _, fh = fs.create(node, "made-file")
                    fs.release(node, fh)
                    fs.unlink(node, "made-file")
                if rng.random() < 0.3:
                    fs.rename(node, "secret", ROOT, "stolen")
            except OSError:
                pass
            for node in known:
                fs.forget(node)
        assert host.error is None, host.error
        assert host.count > 20 and reached > 100, (host.count, reached)


def test_lookups_raced_by_a_link_in_place_of_a_folder(make):
    share = make()
    watch = Watch(share)
    os.makedirs(f"{share.dir}/a/in")
    os.symlink("../outside", f"{share.dir}/b")

    def step():
        """a is a folder, then a link to outside."""
        exchange(f"{share.dir}/a", f"{share.dir}/b")
    race(share, watch, step)
    watch.end()


def exchange(one, other):
    """Exchanges two names in one step."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, one.encode(), -100, other.encode(), 2):
        raise OSError(ctypes.get_errno(), "renameat2")


def test_lookups_raced_by_renames_out_of_the_tree(make):
    """A folder goes out and comes back; what the guest makes in it meanwhile
    is its own, but nothing else outside is seen or touched."""
    share = make()
    watch = Watch(share)
    os.makedirs(f"{share.dir}/a/swap/in/b")
    os.mkdir(f"{share.outside}/place")
    share.before = share.outside_now()
    watch = Watch(share)
    out = f"{share.outside}/place/swap"

    def step():
        os.rename(f"{share.dir}/a/swap", out)
        os.rename(out, f"{share.dir}/a/swap")
    race(share, watch, step)
    shutil.rmtree(f"{share.outside}/place")
    os.mkdir(f"{share.outside}/place")
    now = share.outside_now()
    assert now["secret"] == SECRET
    path = f"{share.outside}/secret"
    assert now[path] == share.before[path]
    share.before = now
    share.fine()


def test_lookups_raced_by_a_deep_tree_that_moves(make):
    """The classic: the guest stands deep inside and walks up while what it
    stands in is moved out of the root."""
    share = make()
    watch = Watch(share)
    deep = f"{share.dir}/a/b/in/swap/a/b"
    os.makedirs(deep)
    os.mkdir(f"{share.outside}/place")
    share.before = share.outside_now()
    watch = Watch(share)
    fs = share.fs
    nodes = [fs.walk("a/b/in").nodeid, fs.walk("a/b/in/swap").nodeid,
             fs.walk("a/b/in/swap/a/b").nodeid]

    def step():
        os.rename(f"{share.dir}/a/b/in", f"{share.outside}/place/in")
        os.rename(f"{share.outside}/place/in", f"{share.dir}/a/b/in")
    with Race(step) as host:
        end = time.monotonic() + RACE
        while time.monotonic() < end:
            for node in nodes:
                up = node
                for _ in range(8):
                    try:
                        up = watch.entry(fs.lookup(up, "..")).nodeid
                    except OSError:
                        break
                for what in ("secret", "place"):
                    fails((), fs.lookup, up, what)
        assert host.error is None and host.count > 20
    os.rmdir(f"{share.outside}/place")
    now = share.outside_now()
    assert now["secret"] == SECRET
    share.before = now
    share.fine()


def test_paths_of_requests_in_flight_change_under_them(make):
    """Two queues of the guest itself: one renames, the other looks up."""
    share = make("--num-request-queues=2")
    share.fs.close()
    fs = share.fs = share.client(queues=2)
    watch = Watch(share)
    fs.mkdir(ROOT, "a")
    fs.symlink(ROOT, "b", "../outside")
    a = fs.lookup(ROOT, "a").nodeid
    swap = struct.pack("<QII", ROOT, 2, 0) + name("a") + name("b")
    create = struct.pack("<IIII", os.O_RDWR | os.O_CREAT, 0o644, 0, 0)
    for n in range(200):
        flight = [fs.start(Op.RENAME2, ROOT, swap, queue=fs.requests[n % 2])]
        for op, node, payload in (
                (Op.LOOKUP, ROOT, name("a")), (Op.LOOKUP, a, name("secret")),
                (Op.CREATE, a, create + name("x")),
                (Op.UNLINK, a, name("x"))):
            flight.append(fs.start(op, node, payload,
                                   queue=fs.requests[(n + 1) % 2]))
        for ticket in flight:
            try:
                fs.finish(ticket)
            except OSError:
                pass
    watch.end()


# -- mounts, in a namespace of the daemon's own

MOUNTS = NAMESPACE + ["sh", "-ec", """
    mount -t tmpfs none "$0/share/mounted"
    mkdir "$0/share/mounted/inside"
    echo mounted >"$0/share/mounted/text"
    mount --bind "$0/share/dir" "$0/share/bound"
    exec "$@"
    """]


@pytest.mark.parametrize("announce", [True, False],
                         ids=["announced", "quiet"])
def test_mounts_in_the_tree_are_entered_and_not_left(keep, folder, sanitized,
                                                     announce):
    os.makedirs(f"{folder}/share/mounted")
    os.makedirs(f"{folder}/share/bound")
    option = ("--announce-submounts" if announce
              else "--no-announce-submounts")
    share = Share(keep, folder, sanitized, option, under=[*MOUNTS, folder])
    watch, fs = Watch(share), share.fs
    mounted = fs.lookup(ROOT, "mounted")
    assert bool(mounted.attr.flags & 1) == announce, "FUSE_ATTR_SUBMOUNT"
    text = fs.lookup(mounted.nodeid, "text")
    assert watch.read_all(fs, text.nodeid) == b"mounted\n"
    bound = fs.lookup(ROOT, "bound")
    assert bool(bound.attr.flags & 1) == announce
    for node in (mounted.nodeid, bound.nodeid):
        for what in ("..", "../outside", "../../outside"):
            try:
                entry = watch.entry(fs.lookup(node, what))
            except OSError:
                continue
            watch.read_all(fs, entry.nodeid)
    # Across mounts nothing is renamed or linked.
    fails((errno.EXDEV, errno.EBUSY), fs.rename, ROOT, "file", mounted.nodeid,
          "file")
    fails((errno.EXDEV,), fs.link, fs.lookup(ROOT, "file").nodeid,
          mounted.nodeid, "file")
    fails((errno.EBUSY,), fs.rmdir, ROOT, "mounted")
    watch.end()


def test_a_daemon_that_runs_sees_no_new_mounts_from_outside(keep, folder,
                                                            sanitized):
    """What somebody mounts over the tree later, in the host's namespace, is
    either not seen by a daemon in a sandbox of its own or harmless."""
    share = Share(keep, folder, sanitized)
    watch, fs = Watch(share), share.fs
    os.makedirs(f"{share.dir}/a")
    os.makedirs(f"{share.dir}/b/in")
    step = ["mount", "--bind", f"{share.dir}/b", f"{share.dir}/a"]
    back = ["umount", "-l", f"{share.dir}/a"]

    def mounts():
        done = subprocess.run(step, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise OSError(errno.EPERM, done.stderr)
        subprocess.run(back, check=True)
    names = ("a", "b", "in", "..", "secret")
    rng = random.Random(2)
    with Race(mounts) as host:
        end = time.monotonic() + RACE
        while time.monotonic() < end:
            node = ROOT
            try:
                for _ in range(4):
                    node = watch.entry(fs.lookup(node,
                                                 rng.choice(names))).nodeid
                    watch.read_all(fs, node)
                fs.mkdir(node, "made")
                fs.rmdir(node, "made")
            except OSError:
                pass
    assert host.error is None or os.getuid(), host.error
    watch.end()


def test_read_only_share_is_never_written(make):
    share = make("--readonly")
    fs = share.fs
    node = fs.lookup(ROOT, "file").nodeid
    before = snapshot(share.dir)
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC):
        fails(errno.EROFS, fs.open, node, flags)
    fh = fs.open(node, os.O_RDONLY)
    for call in (
            (fs.write, node, fh, 0, b"x"), (fs.create, ROOT, "new"),
            (fs.mkdir, ROOT, "new"), (fs.mknod, ROOT, "new"),
            (fs.symlink, ROOT, "new", "x"), (fs.link, node, ROOT, "new"),
            (fs.unlink, ROOT, "file"), (fs.rmdir, ROOT, "many"),
            (fs.rename, ROOT, "file", ROOT, "new"),
            (fs.rename2, ROOT, "file", ROOT, "other", 2),
            (fs.truncate, node, 0), (fs.truncate, node, 0, fh),
            (fs.setattr, node, 1), (fs.setattr, node, 6), (fs.setattr, node,
                                                           0x30),
            (fs.setxattr, node, "user.x", b"x"),
            (fs.removexattr, node, "user.x"), (fs.tmpfile, ROOT),
            (fs.fallocate, node, fh, 0, 0, 100000),
            (fs.copy_file_range, node, fh, 0, node, fh, 5000, 10)):
        fails((), *call)
    assert fs.read(node, fh, 0, 4) == bytes(range(4))
    assert snapshot(share.dir) == before
    assert share.outside_now() == share.before


def snapshot(path):
    out = {}
    for at, folders, files in os.walk(path):
        for entry in folders + files:
            st = os.lstat(os.path.join(at, entry))
            out[os.path.join(at, entry)] = (st.st_mode, st.st_uid, st.st_size,
                                            st.st_mtime_ns, st.st_ctime_ns)
    return out
