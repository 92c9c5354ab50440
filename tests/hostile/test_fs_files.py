# SPDX-License-Identifier: Apache-2.0
"""What a guest's programs count on when they work with files, by single
requests; and others on the host who work with the same files."""
import errno
import fcntl
import os
import signal
import stat

import pytest

from fuse import ROOT, SETATTR, Init, Op
from share import Share

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
    was = signal.signal(signal.SIGIO, signal.SIG_IGN)
    node = fs.lookup(ROOT, "file").nodeid
    with open(f"{share.dir}/file", "rb") as f:
        fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        waits = fs.start(op, node, payload)
        fs.works()
        assert waits.serial not in fs.done
        fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    fs.finish(waits)
    signal.signal(signal.SIGIO, was)
    share.fine()
