# SPDX-License-Identifier: Apache-2.0
"""--registered-buffers=on: what is pinned, and what is not any more."""
import os
import re

import pytest

from guest import Bank, GuestRam
from disk import IN, OK, OUT, Disk
from vhost_user import Protocol, Region

KIB = 1 << 10
# Little, as other processes of the same user may have locked memory, too.
SMALL = (Region(0x0000_0000, 256 * KIB, 0x7f31_4560_0000, 0),
         Region(0x0004_0000, 256 * KIB, 0x7f31_4500_0000, 0),
         Region(0x1_0000_0000, 256 * KIB, 0x7f31_4400_0000, 256 * KIB))
SIZE = sum(r.size for r in SMALL)
BUFFERS = ("--registered-buffers=on", "--engine=uring")


def pinned(disk):
    """Bytes that the serving process has pinned, says the kernel."""
    pid = disk.blk.pid
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
        pid = (f.read().split() or [pid])[0]
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return int(re.search(r"VmPin:\s+(\d+)", f.read()).group(1)) << 10


@pytest.mark.parametrize("build", ["plain", "sanitized"])
def test_all_of_guest_memory_is_pinned_and_nothing_else(
        keep, folder, build, request):
    disk = Disk(keep, folder, request.getfixturevalue(build), *BUFFERS,
                "--threads=1", ram=GuestRam(SMALL))
    assert disk.vmm.has(Protocol.CONFIGURE_MEM_SLOTS)
    assert pinned(disk) == SIZE
    late = Bank(Region(0x2_0000_0000, 128 * KIB, 0x7f31_5400_0000, 0), 9)
    for _ in range(3):
        assert disk.vmm.fe.add_mem_reg(late.region, late.fd) == 0
        assert pinned(disk) == SIZE + 128 * KIB
        disk.works(0)
        assert disk.vmm.fe.rem_mem_reg(late.region) == 0
        assert pinned(disk) == SIZE, "not unpinned with its region"
    late.close()
    # Each buffer is aligned and in one piece: no copy in between.
    q = disk.vmm.queues[0]
    for kind in (OUT, IN):
        data, at = os.urandom(4096), q.ram.alloc(4096, 4096)
        q.ram.write(at, data)
        q.ram.device_may_write(at, 4096)
        assert disk.ask_at(kind, 64, at, 4096) == OK
        if kind == OUT:
            disk.data[64 * 512:72 * 512] = wanted = data
        assert q.ram.read(at, 4096) == wanted
    disk.file_is_as_meant()
    disk.vmm.close()
    disk.blk.wait_line("VMM has left")
    assert pinned(disk) == 0
    # And the next VMM's, elsewhere in memory.
    disk.vmm = disk.connect(ram=GuestRam(SMALL))
    assert pinned(disk) == SIZE
    disk.works(1)


def test_each_thread_has_its_own_pins(keep, folder, plain):
    disk = Disk(keep, folder, plain, *BUFFERS, "--threads=2",
                ram=GuestRam(SMALL))
    assert pinned(disk) == 2 * SIZE
    disk.works(0)
    disk.works(1)


def test_a_limit_on_locked_memory_is_said_once_and_harmless(
        keep, folder, plain):
    # Enough for the rings themselves and less than the guest has.
    disk = Disk(keep, folder, plain, *BUFFERS, "--threads=2", under=[
        "prlimit", f"--memlock={4096 * KIB}", "unshare", "--map-root-user"])
    for _ in range(2):
        disk.works(0)
        disk.works(1)
        disk.vmm.close()
        disk.vmm = disk.connect(ram=GuestRam(SMALL))
    assert len(disk.blk.find("can not be pinned: .*ulimit -l")) == 1
    assert len(disk.blk.complaints()) == 1, disk.blk.lines


def test_memory_that_can_not_be_pinned_is_used_as_it_is(keep, folder, plain):
    """A guest's memory on a file of a disk."""
    disk = Disk(keep, folder, plain, *BUFFERS, ram=GuestRam(SMALL))
    mark = len(disk.blk.lines)
    disk.vmm.close()
    ram = GuestRam(SMALL)
    for n, bank in enumerate(ram.banks):
        with open(f"{folder}/ram{n}", "w+b") as f:
            f.truncate(bank.region.mmap_offset + bank.region.size)
            bank.move(f.fileno())
    disk.vmm = disk.connect(ram=ram)
    disk.works(0)
    disk.works(1)
    assert len(disk.blk.find("can not be pinned", mark)) == 1, disk.blk.lines
    disk.vmm.ram.check()


def test_nothing_is_pinned_unasked(keep, folder, plain):
    disk = Disk(keep, folder, plain, "--engine=uring")
    disk.works(0)
    assert pinned(disk) == 0
