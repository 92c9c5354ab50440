# SPDX-License-Identifier: Apache-2.0
"""Set-ID bits go from files that a guest's users write to or cut; but for what is
no right, as on the host."""
import os
import stat

import pytest

from fuse import ROOT
from share import Share

USER, GROUP, FOREIGN = 4321, 567, 568
MODE = 0o6644  # no execution for the group: the bit is no right
FATTR_SIZE, FATTR_FH, FATTR_KILL = 1 << 3, 1 << 6, 1 << 11
WRITE_KILL, OPEN_KILL = 1 << 2, 1 << 0


@pytest.fixture(name="share")
def fixture_share(keep, folder, sanitized):
    share = Share(keep, folder, sanitized)
    yield share
    share.fine()


def truncate(fs, node, fh):
    del fh
    fs.setattr(node, FATTR_SIZE | FATTR_KILL, size=100)


def ftruncate(fs, node, fh):
    fs.setattr(node, FATTR_SIZE | FATTR_FH | FATTR_KILL, fh, size=100)


def write(fs, node, fh):
    fs.write(node, fh, 0, b"x", flags=WRITE_KILL)


def open_to_cut(fs, node, fh):
    del fh
    fs.release(node, fs.open(node, os.O_RDWR | os.O_TRUNC,
                             open_flags=OPEN_KILL))


def host(path, group):
    """What the host itself makes of it."""
    pid = os.fork()
    if not pid:
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(USER, USER, USER)
        os.truncate(path, 100)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("change", [truncate, ftruncate, write, open_to_cut],
                         ids=lambda f: f.__name__)
def test_group_bit_that_is_no_right_stays(share, change):
    fs, path = share.fs, f"{share.dir}/file"
    os.chmod(os.path.dirname(share.dir), 0o755)
    os.chown(path, USER, GROUP)
    node = fs.lookup(ROOT, "file").nodeid
    fh = fs.open(node)

    def change_as(user, group, before):
        os.chmod(path, before)
        fs.uid, fs.gid = 0, 0
        assert stat.S_IMODE(fs.getattr(node).mode) == before
        fs.uid, fs.gid = user, group
        change(fs, node, fh)
        after = mode(path)
        # Others' files are theirs all the same.
        fs.uid, fs.gid = 99, 98
        fs.release(*reversed(made(fs, share)))
        return after

    for _ in range(3):
        got = change_as(USER, GROUP, MODE)
        os.chmod(path, MODE)
        host(path, GROUP)
        assert got == mode(path) == 0o2644, f"{got:o}"
        # By a supplementary group, for all that one is told.
        assert change_as(USER, FOREIGN, MODE) == 0o2644
        assert change_as(USER, GROUP, 0o6654) == 0o654
        assert change_as(FOREIGN, FOREIGN, 0o6775) == 0o775
    # What was changed on the host since it was looked at is no way round.
    os.chmod(path, MODE)
    fs.getattr(node)
    os.chmod(path, 0o6755)
    fs.uid, fs.gid = USER, GROUP
    change(fs, node, fh)
    assert mode(path) == 0o755
    fs.uid = fs.gid = 0


def made(fs, share):
    entry, fh = fs.create(ROOT, "made")
    st = os.stat(f"{share.dir}/made")
    assert (st.st_uid, st.st_gid) == (99, 98)
    fs.unlink(ROOT, "made")
    return fh, entry.nodeid


def test_who_may_keep_the_bits_does(share):
    fs, path = share.fs, f"{share.dir}/file"
    os.chown(path, USER, GROUP)
    node = fs.lookup(ROOT, "file").nodeid
    fh = fs.open(node)
    for _ in range(3):
        fs.uid, fs.gid = USER, GROUP
        os.chmod(path, 0o6755)
        write(fs, node, fh)
        assert mode(path) == 0o755
        fs.uid = fs.gid = 0
        os.chmod(path, 0o6755)
        fs.write(node, fh, 0, b"x")
        fs.truncate(node, 50)
        fs.fallocate(node, fh, 0, 0, 100)
        assert mode(path) == 0o6755
        fs.uid, fs.gid = USER, GROUP
        fs.fallocate(node, fh, 0, 0, 200)
        assert mode(path) == 0o755
        fs.uid = fs.gid = 0
