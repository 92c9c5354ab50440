# SPDX-License-Identifier: Apache-2.0
"""Locks of a guest's processes that wait for each other: Linux's virtio-fs never
interrupts, so a request that waits for ever is a process that can not be killed.
"""
import errno

import pytest

from fuse import ROOT, Op, fails
from share import Share
from fuse_requests import lock_in

READ, WRITE, UNLOCK = 0, 1, 2


@pytest.fixture(name="share")
def fixture_share(keep, folder, sanitized):
    share = Share(keep, folder, sanitized, "--posix-lock", "--flock")
    yield share
    share.fine()


def opened(fs, what):
    node = fs.lookup(ROOT, what).nodeid
    return node, fs.open(node)


def wait_for(fs, file, start, end, owner, kind=WRITE):
    """SETLKW, not waited for; it has to wait."""
    ticket = fs.start(Op.SETLKW, file[0], lock_in(file[1], start, end, kind,
                                                  owner))
    fs.access(ROOT, 0)
    assert (ticket.queue.index, ticket.head) not in fs.done, "waits"
    return ticket


def test_two_owners_that_wait_for_each_other(share):
    fs = share.fs
    file = opened(fs, "file")
    fs.lock(*file, WRITE, 0, 10, owner=1)
    fs.lock(*file, WRITE, 20, 30, owner=2)
    first = wait_for(fs, file, 20, 30, owner=1)
    fails(errno.EDEADLK, fs.lock, *file, WRITE, 0, 10, owner=2, op=Op.SETLKW)
    # Who was told so keeps what it has, until it closes the file.
    fails(errno.EAGAIN, fs.lock, *file, READ, 30, 30, owner=3)
    fs.flush(*file, owner=2)
    fs.finish(first)


def test_a_ring_of_owners_over_several_files(share):
    fs = share.fs
    files = [opened(fs, what) for what in ("file", "other", "empty")]
    ring = 20
    for n in range(ring):
        fs.lock(*files[n % 3], WRITE, n, n, owner=100 + n)
    tickets = [wait_for(fs, files[(n + 1) % 3], n + 1, n + 1, 100 + n, READ)
               for n in range(ring - 1)]
    fails(errno.EDEADLK, fs.lock, *files[0], READ, 0, 0, owner=100 + ring - 1,
          op=Op.SETLKW)
    for n in reversed(range(ring - 1)):
        fs.flush(*files[(n + 1) % 3], owner=101 + n)
        fs.finish(tickets[n])


def test_a_forgotten_deadlock_is_none(share):
    """What the session before had locked is in nobody's way."""
    fs = share.fs
    file = opened(fs, "file")
    fs.lock(*file, WRITE, 0, 10, owner=1)
    fs.lock(*file, WRITE, 20, 30, owner=2)
    first = wait_for(fs, file, 20, 30, owner=1)
    fs.destroy()
    fails((errno.EAGAIN, errno.EINTR), fs.finish, first)
    fs.init()
    file = opened(fs, "file")
    fs.lock(*file, WRITE, 0, 10, owner=2, op=Op.SETLKW)
    fs.lock(*file, WRITE, 20, 30, owner=1, op=Op.SETLKW)


def test_crowds_that_wait_for_each_other_end(share):
    """Many ways that lead nowhere, and one that leads back."""
    fs = share.fs
    file = opened(fs, "file")
    owners = [2 ** 64 - 1 - n for n in range(20)]
    for owner in owners:
        fs.lock(*file, READ, 0, 2 ** 63 - 1, owner=owner)
    tickets, told = [], 0
    for n, owner in enumerate(owners):
        if n == 0:
            tickets.append(wait_for(fs, file, n, n, owner))
            continue
        fails(errno.EDEADLK, fs.lock, *file, WRITE, n, n, owner=owner,
              op=Op.SETLKW)
        told += 1
        fs.lock(*file, UNLOCK, owner=owner)
    assert told == len(owners) - 1
    fs.finish(tickets[0])


def test_what_is_locked_in_pieces_goes_with_the_file(share):
    fs = share.fs
    files = [opened(fs, what) for what in ("file", "other", "empty")]
    for n in range(300):
        fs.lock(*files[n % 3], n % 2, 3 * n, 3 * n + 1, owner=n % 7)
    for file in files:
        fails(errno.EAGAIN, fs.lock, *file, WRITE, owner=99)
        for owner in range(7):
            fs.flush(*file, owner=owner)
        fs.lock(*file, WRITE, owner=99)
