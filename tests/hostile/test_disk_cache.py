# SPDX-License-Identifier: Apache-2.0
"""What stands between a guest's write and the disk: the page cache, or none, and
who says which of the two."""
import mmap
import os
import select
import struct
import time

import pytest

import cut_fs
import vhost_user as vu
from cut_fs import CutFs
from disk import FLUSH, IN, OK, OUT, SECTORS, Disk
from disk_driver import BLOCK, BLOCKS, KINDS, Driver
from guard import Blk
from share import until
from split_ring import WRITE

F_FLUSH, F_CONFIG_WCE = 1 << 9, 1 << 11
WCE = 32    # its place in config space


@pytest.fixture(name="medium")
def fixture_medium(folder):
    os.mkdir(f"{folder}/cut")
    medium = HoldFs(f"{folder}/cut", SECTORS * 512)
    yield medium
    medium.close()


class HoldFs(CutFs):
    """A disk whose reads can be made to take their time."""
    held = None

    def _answer(self, request):
        _, operation, unique, *_ = cut_fs.IN_HEADER.unpack_from(request)
        if operation == cut_fs.READ and self.held is not None:
            _, offset, size = struct.unpack_from(
                "=QQI", request[cut_fs.IN_HEADER.size:])
            self.held.append((unique, bytes(self.cache[offset:offset + size])))
            return
        super()._answer(request)

    def release(self):
        held, self.held = self.held, None
        for unique, data in held:
            os.write(self.fd, cut_fs.OUT_HEADER.pack(
                cut_fs.OUT_HEADER.size + len(data), 0, unique) + data)


class Counted(Disk):
    """moat-blk on a disk that counts what it is told to make stable."""

    def __init__(self, keep, folder, build, medium, without=0):
        self.medium = medium
        self.without = without
        super().__init__(keep, folder, build)

    def make_image(self, folder):
        self.medium.cache[:] = self.data
        return self.medium.path

    def connect(self, features=None, ram=None):
        return super().connect((features or self.features) & ~self.without,
                               ram)

    @property
    def wce(self):
        return self.vmm.fe.get_config(WCE, 1)[0]

    def writes_are_stable(self):
        before = self.medium.syncs
        assert self.ask(OUT, 64, b"w" * 4096)[0] == OK
        return self.medium.syncs > before


def test_a_driver_that_can_not_flush_gets_stable_writes(
        keep, folder, sanitized, medium):
    """Virtio 1.4, 5.2.5.2: also one that may choose, and does not."""
    disk = Counted(keep, folder, sanitized, medium, without=F_FLUSH)
    assert disk.vmm.features & F_CONFIG_WCE
    assert not disk.wce and disk.writes_are_stable()


def test_the_cache_is_shown_before_a_driver_has_agreed_to_anything(
        keep, folder, sanitized, medium):
    """QEMU reads config space then, and never again."""
    disk = Counted(keep, folder, sanitized, medium)
    assert not disk.vmm.fe.reset_device()
    assert disk.wce


@pytest.mark.parametrize("how", ["set_status", "reset_device"])
def test_a_choice_of_write_through_outlives_a_reset(
        keep, folder, sanitized, medium, how):
    """Front-ends keep it, too, and QEMU resets a device for a pause."""
    disk = Counted(keep, folder, sanitized, medium)
    fe = disk.vmm.fe
    assert not disk.writes_are_stable()
    assert not fe.set_config(WCE, b"\0")
    assert disk.writes_are_stable()
    assert not (fe.set_status(0) if how == "set_status" else fe.reset_device())
    assert not fe.set_features(disk.vmm.features)
    for queue in disk.vmm.queues:
        queue.make_ring(0)
        queue.start()
    assert not disk.wce and disk.writes_are_stable()
    # Another guest chooses anew.
    disk.vmm.close()
    disk.vmm = disk.connect()
    assert disk.wce and not disk.writes_are_stable()


def restart(keep, folder, build, driver, blk):
    blk.process.kill()
    vu.wait_readable(driver.vmm.fe.sock, vu.deadline_in(10))
    blk.wait()
    blk = keep(Blk(build, folder, f"{folder}/cut/disk"))
    driver.connect(blk.path)
    return blk


def test_a_choice_of_write_through_outlives_kill_9(keep, folder, plain,
                                                   medium):
    """Nobody tells the next process: QEMU goes on as if it knew."""
    driver = keep(Driver(3, stable_writes=True,
                         kinds=[k for k in KINDS if k != FLUSH]))
    blk = keep(Blk(plain, folder, medium.path))
    driver.connect(blk.path)
    assert not driver.vmm.fe.set_config(WCE, b"\0")
    driver.work(60)
    blk = restart(keep, folder, plain, driver, blk)
    blk.wait_line("flushed until the guest flushes")
    driver.work(60)
    driver.drain()
    blk.process.kill()
    blk.wait()
    driver.check_after_cut(medium.cut())    # what is lost, is found there


def test_after_kill_9_the_first_flush_shows_that_a_guest_knows_the_cache(
        keep, folder, plain, medium):
    driver = keep(Driver(4))
    blk = keep(Blk(plain, folder, medium.path))
    driver.connect(blk.path)
    driver.work(20)
    driver.drain()
    restart(keep, folder, plain, driver, blk)
    driver.kinds = [OUT]
    before = medium.syncs
    driver.work(20)
    driver.drain()
    assert medium.syncs - before >= 20
    driver.kinds = [FLUSH]
    driver.work(1)
    driver.drain()
    driver.kinds = [OUT]
    before = medium.syncs
    driver.work(20)
    driver.drain()
    assert medium.syncs == before


# -- past the page cache

PAGES = 48


def neighbours(disk, round_, slots):
    """One sector to each of two neighbours at once, by a queue each; returns
    what each sector is to hold.  One of the buffers is not aligned."""
    ram, want = disk.vmm.ram, {}
    for page, pair in enumerate(slots):
        for which, (data, header, status) in enumerate(pair):
            sector = 8 * page + which
            want[sector] = struct.pack("<II", round_, sector) * 64
            ram.write(data, want[sector])
            ram.write(header, struct.pack("<IIQ", OUT, 0, sector))
            ram.write(status, b"\xee")
            disk.vmm.queues[which].ring.add(
                [(header, 16, 0), (data, 512, 0), (status, 1, WRITE)])
        if page % 16 == 15:
            for queue in disk.vmm.queues[::-1]:
                queue.publish()
            for queue in disk.vmm.queues:
                queue.wait_used(16)
    assert all(ram.read(status, 1) == b"\0"
               for pair in slots for _, _, status in pair)
    return want


@pytest.mark.parametrize("engine", ["uring", "sync"])
def test_neighbours_of_a_write_whose_buffer_is_not_aligned(keep, folder, plain,
                                                           engine):
    """Some of a page past the page cache and some through it, at once: the
    kernel may write back the old neighbour, and fails the next flush."""
    disk = Disk(keep, folder, plain, f"--engine={engine}")
    os.sync()
    ram = disk.vmm.ram

    def buffers(shift):
        data, header, status = \
            ram.alloc(1024, 512) + shift, ram.alloc(16), ram.alloc(1)
        ram.device_may_write(status, 1)
        return data, header, status

    slots = [(buffers(16), buffers(0)) for _ in range(PAGES)]
    page = mmap.mmap(-1, PAGES * 4096)
    with open(disk.image, "rb", buffering=0,
              opener=lambda p, f: os.open(p, f | os.O_DIRECT)) as image:
        end = time.monotonic() + 1.5
        for round_ in range(10000):
            want = neighbours(disk, round_, slots)
            assert disk.ask(FLUSH)[0] == OK, "of a disk that is well"
            os.sync()
            os.preadv(image.fileno(), [page], 0)
            for sector, data in want.items():
                assert page[sector * 512:sector * 512 + 512] == data, \
                    f"round {round_}: what sector {sector} was given is lost"
            if time.monotonic() > end:
                return


@pytest.mark.parametrize("size", [512, 4096, 300 * 1024, 1 << 20])
def test_data_at_any_address_is_written_as_it_is(keep, folder, sanitized,
                                                 size):
    disk = Disk(keep, folder, sanitized)
    at = disk.vmm.ram.alloc(size + 512, 4096)
    for shift in (1, 4, 16, 511):
        data = os.urandom(size)
        disk.vmm.ram.write(at + shift, data)
        assert disk.ask_at(OUT, 3, at + shift, size) == OK
        disk.data[3 * 512:3 * 512 + size] = data
    disk.file_is_as_meant()


@pytest.mark.parametrize("read_only", [True, False])
def test_a_read_of_a_process_that_was_killed_changes_no_memory_later(
        keep, folder, plain, medium, read_only):
    """Its successor answers the request, and the guest has its buffer back."""
    options = ["--read-only"] if read_only else []
    medium.cache[:] = b"D" * len(medium.cache)
    driver = keep(Driver(2))
    blk = keep(Blk(plain, folder, medium.path, *options))
    driver.connect(blk.path)
    ram, queue = driver.queue.ram, driver.queue
    header, at, status = driver.buffers[0]
    ram.write(header, struct.pack("<IIQ", IN, 0, 0))
    medium.held = []
    queue.ring.add([(header, 16, 0), (at, BLOCK, WRITE), (status, 1, WRITE)])
    queue.publish()
    until(lambda: medium.held, "the read is under way")
    blk.process.kill()
    if select.select([driver.vmm.fe.sock], [], [], 0.5)[0]:
        # It is gone, and its read is not: it must not be served on, then.
        late = keep(Blk(plain, folder, medium.path, *options, listens=False))
        assert late.wait() == 1
        assert late.find("I/O of one that was killed is under way")
        medium.release()
    else:
        # It ends when its read does: that may land until then.
        medium.release()
        vu.wait_readable(driver.vmm.fe.sock, vu.deadline_in(10))
        ram.write(at, b"G" * BLOCK)
        time.sleep(0.2)     # there is no sign of what must not come
        assert ram.read(at, BLOCK) == b"G" * BLOCK
    blk.wait()
    blk = keep(Blk(plain, folder, medium.path, *options))
    driver.connect(blk.path)
    driver.queue.wait_used(1)
    assert ram.read(status, 1) == b"\0" and ram.read(at, BLOCK) == b"D" * BLOCK


assert BLOCK * BLOCKS <= SECTORS * 512  # the driver's disk is a part of it
