# SPDX-License-Identifier: Apache-2.0
"""A hostile VMM against moat-blk: eventfds that block, sizes of another format.

Its own queue may break; the worker goes on with others, and ends when told to.
"""
import fcntl
import os
import signal
import tempfile
import threading
import time

import pytest

from guest import OFFERABLE, Vmm
from test_evil_backend import blocking
from test_evil_disk_driver import BLK, Disk, one_line
from test_packed import PACKED


def plug(fd):
    """Whoever writes to it sleeps: the flag is the open file's, and shared."""
    try:
        os.eventfd_write(fd, 2 ** 64 - 2)
    except BlockingIOError:
        pass  # it was signalled meanwhile: take that back
    else:
        blocking(fd)
        return
    os.eventfd_read(fd)
    plug(fd)


def post_reads(disk, queue, count=3):
    for _ in range(count):
        disk.post(queue, bytes(16), room=512)


@pytest.fixture(name="disk", params=[("sanitized", "uring"),
                                     ("sanitized", "sync"),
                                     ("plain", "uring")], ids="-".join)
def fixture_disk(request, keep, folder):
    build, engine = request.param
    # Both queues are one worker's. The plain build is in its sandbox.
    return Disk(keep, folder, request.getfixturevalue(build), "--threads=1",
                f"--engine={engine}")


def test_full_call_eventfd_does_not_block_the_worker(disk):
    bad = disk.vmm.queues[0]
    mark = len(disk.blk.lines)
    plug(bad.call_fd)
    post_reads(disk, bad)
    for _ in range(3):
        disk.works(1)
    assert bad.erred(), "the err eventfd was not signalled"
    one_line(disk, mark, "queue 0", "call eventfd")
    assert disk.vmm.fe.get_config(0, 8)
    # It costs one look, not one for each request.
    before = time.monotonic()
    post_reads(disk, bad, 16)
    for _ in range(3):
        disk.works(1)
    assert bad.stop() is not None
    assert time.monotonic() - before < 5
    assert disk.blk.idle_cpu() < 0.02


def test_full_call_and_err_eventfds_do_not_keep_it_from_ending(disk):
    bad = disk.vmm.queues[0]
    plug(bad.call_fd)
    plug(bad.err_fd)
    post_reads(disk, bad)
    disk.works(1)
    disk.blk.process.send_signal(signal.SIGTERM)
    assert disk.blk.wait(10) == 0


def test_full_call_eventfd_given_while_it_runs(disk):
    bad = disk.vmm.queues[0]
    plug(bad.call_fd)
    assert disk.vmm.fe.set_vring_call(0, bad.call_fd) == 0
    disk.works(1)
    # A sound one heals what did not break yet, a reset the rest.
    assert disk.vmm.fe.reset_device() == 0
    assert disk.vmm.fe.set_features(disk.vmm.features) == 0
    os.eventfd_read(bad.call_fd)
    for queue in disk.vmm.queues:
        queue.make_ring(queue.base)
        queue.start()
    disk.works(0)
    disk.works(1)


def test_call_eventfd_that_blocks_now_and_then(disk):
    """Plugged and drained at any moment: nothing is lost to others."""
    bad = disk.vmm.queues[0]
    stop = threading.Event()

    def race():
        while not stop.is_set():
            plug(bad.call_fd)
            fcntl.fcntl(bad.call_fd, fcntl.F_SETFL, os.O_RDWR | os.O_NONBLOCK)
            bad.drain_call()

    thread = threading.Thread(target=race)
    thread.start()
    try:
        for _ in range(20):
            post_reads(disk, bad, 1)
            disk.works(1)
    finally:
        stop.set()
        thread.join()
    assert bad.stop() is not None
    disk.works(1)


def test_size_of_a_packed_ring_is_refused_for_a_split_one(keep, disk):
    disk.vmm.close()
    vmm = keep(Vmm.connect(disk.blk.path, features=OFFERABLE | BLK | PACKED))
    vmm.negotiate()
    vmm.share_memory()
    queue = vmm.add_queue(num=11)
    assert vmm.fe.set_vring_num(0, 11) == 0
    assert vmm.fe.set_features(vmm.features & ~PACKED) == 0
    ua = vmm.ram.user_address
    assert vmm.fe.set_vring_addr(0, ua(queue.desc_addr), ua(queue.used_addr),
                                 ua(queue.avail_addr)) == 0
    mark = len(disk.blk.lines)
    assert vmm.fe.set_vring_kick(0, queue.kick_fd) != 0
    one_line(disk, mark, "queue 0", "size 11 is no power of two")


def test_kick_fd_that_is_a_file_is_refused(disk):
    """Nobody would ever hear of a kick."""
    running, other = disk.vmm.queues
    with tempfile.TemporaryFile() as file:
        mark = len(disk.blk.lines)
        assert disk.vmm.fe.set_vring_kick(0, file.fileno()) != 0
        one_line(disk, mark, "queue 0", "its kick fd can not be waited on")
        assert disk.vmm.fe.set_vring_kick(0, running.kick_fd) == 0
        disk.works(0)
        other.stop()
        other.make_ring(other.base)
        mark = len(disk.blk.lines)
        assert disk.vmm.fe.set_vring_kick(1, file.fileno()) != 0
        one_line(disk, mark, "queue 1", "its kick fd can not be waited on")
        other.start()
        disk.works(1)
