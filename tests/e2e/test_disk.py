# SPDX-License-Identifier: Apache-2.0
"""A guest's disk works through the guard as it does without."""
import hashlib
import re

import pytest

from backends import MoatBlk
from machine import MIB, Machine
from procs import run, wait_until

VMMS = ["uml", "qemu"]


# The disk's backend, whether the guard stands before it, and whether QEMU has
# packed rings.
DISKS = {"guarded": (None, True, False), "moat-blk": (MoatBlk, False, False),
         "moat-blk-guarded": (MoatBlk, True, False),
         "moat-blk-packed": (MoatBlk, False, True),
         "moat-blk-packed-guarded": (MoatBlk, True, True)}


def param(name, value, always):
    """What is not in @always is left to `make test-all`."""
    return pytest.param(value, id=name, marks=[] if name in always
                        else [pytest.mark.additional])


def kinds():
    """Of VMM and disk; packed rings are asked for in QEMU only."""
    for disk, (_, _, packed) in DISKS.items():
        for vmm in VMMS:
            if vmm == "qemu" or not packed:
                yield param(f"{vmm}-{disk}", (vmm, disk),
                            ["uml-guarded", "uml-moat-blk-guarded",
                             "qemu-moat-blk-guarded"])


@pytest.fixture(scope="module", params=kinds())
def machine(request):
    vmm, disk = request.param
    backend, guarded, packed = DISKS[disk]
    with Machine(vmm, guarded, backend=backend, packed=packed) as m:
        yield m
        if guarded:
            assert "error: " not in m.guard.log, m.guard.log
        if backend:
            assert "error: " not in m.backend.log, m.backend.log


def test_a_file_system_is_made_written_remounted_and_checked(machine):
    sums = machine.guest.run("""
        /sbin/mke2fs -q -t ext4 /dev/vda
        mount /dev/vda /mnt
        for size in 1 511 4096 65537 1048577 16777216; do
            head -c $size /dev/urandom >/mnt/file$size
        done
        mkdir /mnt/many
        for i in $(seq 200); do echo "this is $i" >/mnt/many/$i; done
        cd /mnt
        sha256sum file* many/* >/tmp/sums
        cd /
        umount /mnt
        mount /dev/vda /mnt
        cd /mnt
        sha256sum -c -s /tmp/sums
        cd /
        umount /mnt
        cat /tmp/sums""")
    # The same bytes, as the host reads them from the image.
    assert run(["/sbin/e2fsck", "-fn", machine.image]).returncode == 0
    checked = 0
    for line in sums.splitlines():
        wanted, name = line.split()
        if not name.startswith("file"):
            continue
        out = machine.work / name
        run(["/sbin/debugfs", "-R", f"dump /{name} {out}", machine.image])
        with open(out, "rb") as f:
            assert hashlib.sha256(f.read()).hexdigest() == wanted, name
        checked += 1
    assert checked == 6


# Of a request, and how much is moved with it.
SIZES = [("512", MIB), ("4k", 4 * MIB), ("60k", 4 * MIB), ("128k", 4 * MIB),
         ("1M", 12 * MIB), ("4M", 12 * MIB)]


def test_requests_of_all_sizes_read_what_the_host_wrote(machine):
    for seed, (size, total) in enumerate(SIZES):
        wanted = machine.fill(64 * MIB, total, seed)
        got = machine.guest.run(f"""
            dd if=/dev/vda iflag=direct,skip_bytes,count_bytes bs={size} \
                skip={64 * MIB} count={total} 2>/dev/null | sha256sum""")
        assert got.split()[0] == wanted, size


def test_requests_of_all_sizes_write_what_the_guest_meant(machine):
    for n, (size, total) in enumerate(SIZES):
        offset = (96 + 16 * n) * MIB
        wanted = machine.guest.run(f"""
            head -c {total} /dev/urandom >/tmp/data
            dd if=/tmp/data of=/dev/vda oflag=direct,seek_bytes bs={size} \
                seek={offset} conv=notrunc 2>/dev/null
            sha256sum </tmp/data""").split()[0]
        # The tail of a size that does not divide it goes the buffered way.
        machine.guest.run("sync")
        assert machine.checksum(offset, total) == wanted, size


def test_discard_gives_the_space_back(machine):
    machine.guest.run(f"""
        dd if=/dev/urandom of=/dev/vda bs=1M seek=200 count=32 conv=fsync \
            2>/dev/null""")
    before = machine.allocated()
    machine.guest.run(f"blkdiscard -o {200 * MIB} -l {32 * MIB} /dev/vda")
    wait_until(lambda: machine.allocated() <= before - 31 * MIB,
               "the image shrinks", deadline=10)


def test_a_flush_reaches_the_disk_and_its_status_the_guest(machine):
    # The daemon starts as write-through; the driver's switch is a write to
    # the device's configuration space.
    switch = "echo 'write back' >/sys/block/vda/cache_type\n"
    write = "dd if=/dev/zero of=/dev/vda oflag=direct bs=4k count=1 2>&1"
    machine.guest.run(switch + write + " conv=fsync")
    with Machine(machine.vmm, fail_flush=True) as faulty:
        faulty.guest.run(switch + write)
        status, output = faulty.guest.run(write + " conv=fsync", check=False)
        assert status != 0 and "error" in output, output


@pytest.mark.parametrize("disk", [
    param(disk, disk, ["guarded", "moat-blk-packed-guarded"])
    for disk in DISKS])
def test_two_queues_carry_requests_where_the_driver_asks_for_them(disk):
    backend, guarded, packed = DISKS[disk]
    with Machine("qemu", guarded, queues=2, backend=backend,
                 packed=packed) as m:
        wanted = m.fill(0, 16 * MIB)
        sums, counts = m.guest.run("""
            for cpu in 1 2; do
                taskset $cpu dd if=/dev/vda iflag=direct bs=64k count=256 \
                    2>/dev/null | sha256sum >/tmp/$cpu &
            done
            wait
            cat /tmp/1 /tmp/2
            echo ---
            grep virtio0-req /proc/interrupts""").split("---")
        assert sums.split()[::2] == [wanted] * 2
        calls = [int(a) + int(b) for a, b in
                 re.findall(r"^ *\d+: +(\d+) +(\d+) ", counts, re.MULTILINE)]
        assert len(calls) == 2 and min(calls) > 100, counts
