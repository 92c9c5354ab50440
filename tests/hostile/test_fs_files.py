# SPDX-License-Identifier: Apache-2.0
"""What a guest's programs count on when they work with files, by single
requests; and others on the host who work with the same files."""
import errno
import fcntl
import os
import signal
import stat

import pytest

from fuse import ROOT, SETATTR, Init, Op, fails
from guard import MoatFs
from share import Share

F_SETSIG = 10       # of Linux, which Python does not name
WRITE_CACHE = 1     # FUSE_WRITE_CACHE: pages that the guest's kernel writes back


@pytest.fixture(name="share")
def fixture_share(keep, folder, sanitized):
    return Share(keep, folder, sanitized)


def test_pages_that_are_written_back_go_where_they_belong(share):
    """Linux writes back what was changed in a shared mapping by any open file,
    also by one that appends."""
    fs = share.fs
    node = fs.lookup(ROOT, "other").nodeid
    fh = fs.open(node, os.O_RDWR | os.O_APPEND)
    assert fs.write(node, fh, 10, b"mapped", flags=WRITE_CACHE) == 6
    with open(f"{share.dir}/other", "rb") as f:
        assert f.read() == b"o" * 10 + b"mapped" + b"o" * (5000 - 16)
    assert fs.write(node, fh, 5000, b"appended") == 8
    with open(f"{share.dir}/other", "rb") as f:
        assert f.read()[5000:] == b"appended"
    share.fine()


@pytest.mark.parametrize("user", [0, 1000])
def test_set_user_id_goes_with_a_change_of_data_by_another_user(share, user):
    fs = share.fs
    assert fs.init_out["flags"] & Init.HANDLE_KILLPRIV_V2
    other = fs.lookup(ROOT, "other").nodeid
    source = fs.open(other)
    for n, change in enumerate((
            lambda node, fh: fs.fallocate(node, fh, 0, 0, 9000),
            lambda node, fh: fs.copy_file_range(other, source, 0, node, fh, 0,
                                                100))):
        entry, fh = fs.create(ROOT, f"suid{n}", mode=0o100755)
        for earlier in (0, 1):  # whatever the thread has done before
            fs.setattr(entry.nodeid, 1, mode=0o104755)
            fs.write(entry.nodeid, fh, 0, b"x", flags=4 * earlier)
            fs.setattr(entry.nodeid, 1, mode=0o104755)
            fs.uid = user
            change(entry.nodeid, fh)
            fs.uid = 0
            mode = fs.getattr(entry.nodeid).mode
            assert bool(mode & stat.S_ISUID) == (not user), oct(mode)
        fs.release(entry.nodeid, fh)
        fs.unlink(ROOT, f"suid{n}")
    share.fine()


def test_files_that_are_known_leave_room_for_open_ones(keep, folder, sanitized):
    """A guest that has looked at as many files as there may be can still open
    and make files."""
    share = Share(keep, folder, sanitized, "--rlimit-nofile=300")
    for n in range(400):
        with open(f"{share.dir}/known{n}", "wb"):
            pass
    fs = share.fs
    node = fs.lookup(ROOT, "file").nodeid
    last = fs.lookup(ROOT, "known0").nodeid
    with pytest.raises(OSError) as e:
        for n in range(400):
            last = fs.lookup(ROOT, f"known{n}").nodeid
    assert e.value.errno == errno.ENFILE
    handles = [fs.open(node) for _ in range(20)]
    fs.read(node, handles[0], 0, 10)
    fs.flush(node, handles[0])
    # One that it forgets is room for another.
    fs.forget(last)
    made, fh = fs.create(ROOT, "made")
    handles += [fs.open(made.nodeid) for _ in range(5)]
    for each in handles[:20]:
        fs.release(node, each)
    fs.unlink(ROOT, "made")
    share.again()
    share.fine()


@pytest.mark.parametrize("op,payload", [
    (Op.OPEN, os.O_RDWR.to_bytes(8, "little")),
    (Op.OPEN, (os.O_RDWR | os.O_TRUNC).to_bytes(8, "little")),
    (Op.SETATTR, SETATTR.pack(1 << 3, 0, 0, 5, *(0,) * 12))],
    ids=["open", "cut", "truncate"])
def test_a_lease_of_the_host_holds_up_one_request_alone(share, op, payload):
    """Who has leased a file has some 45 seconds to let others open it."""
    fs = share.fs
    node = fs.lookup(ROOT, "file").nodeid
    with open(f"{share.dir}/file", "rb") as f:
        # Told by a signal that does nothing: SIGIO ends a process.
        fcntl.fcntl(f, F_SETSIG, signal.SIGURG)
        fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        waits = fs.start(op, node, payload)
        fs.works()
        assert waits.serial not in fs.done
        fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    fs.finish(waits)
    share.fine()


def test_a_lease_of_the_host_does_not_hold_up_who_would_create_a_file(share):
    """Linux looks again, then, and opens it: that may wait."""
    fs = share.fs
    with open(f"{share.dir}/file", "rb") as f:
        fcntl.fcntl(f, F_SETSIG, signal.SIGURG)
        fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fails(errno.ESTALE, fs.create, ROOT, "file")
        fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    _, fh = fs.create(ROOT, "file")
    assert fh
    share.fine()


def test_who_would_create_a_file_that_came_meanwhile_gets_no_more_rights(share):
    """The guest's kernel saw none, and so did not ask whether they may."""
    fs = share.fs
    os.chmod(share.dir, 0o777)
    os.chmod(f"{share.dir}/file", 0o600)
    fs.uid = fs.gid = 1000
    fails(errno.ESTALE, fs.create, ROOT, "file")
    fails(errno.EEXIST, fs.create, ROOT, "file", os.O_RDWR | os.O_EXCL)
    fs.uid = fs.gid = 0
    share.fine()


@pytest.mark.parametrize("threads", [0, 256])
def test_any_number_of_threads_fits_into_the_sandbox(keep, folder, plain,
                                                     threads):
    share = Share(keep, folder, plain, f"--thread-pool-size={threads}")
    share.fine()


@pytest.mark.parametrize("plus", [False, True])
def test_what_is_above_the_root_has_no_number(share, plus):
    fs = share.fs
    root = fs.getattr(ROOT).ino
    dots = [d.ino for d in fs.listdir(ROOT, plus) if d.name in (b".", b"..")]
    assert dots == [root, root]
    inside = fs.lookup(ROOT, "dir").nodeid
    assert root in [d.ino for d in fs.listdir(inside, plus) if d.name == b".."]
    share.fine()


def test_what_an_earlier_process_gave_out_finds_nothing(keep, folder,
                                                        sanitized):
    """A guest goes on with another moat-fs (moat guard --restart), and what it
    has of the one before is not taken for other files."""
    share = Share(keep, folder, sanitized)
    many = share.fs.lookup(ROOT, "many").nodeid
    old = [share.fs.lookup(many, f"entry{n}").nodeid for n in range(20)]
    handles = [share.fs.open(node) for node in old]
    share.fs.close()
    os.kill(share.daemon.pid, signal.SIGKILL)
    share.daemon.process.wait()
    share.daemon = keep(MoatFs(sanitized, folder, share.dir, name="next"))
    fs = share.fs = share.client(init=False)
    many = fs.lookup(ROOT, "many").nodeid
    new = [fs.lookup(many, f"entry{n}").nodeid for n in range(49, 20, -1)]
    for node in new:
        fs.open(node)
    assert not set(new) & set(old)
    for node, fh in zip(old, handles):
        fails(errno.ESTALE, fs.getattr, node)
        fails((errno.ESTALE, errno.EBADF), fs.write, node, fh, 0, b"x")
        for other in new:
            fails(errno.EBADF, fs.write, other, fh, 0, b"x")
    share.fine()
