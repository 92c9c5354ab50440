# SPDX-License-Identifier: Apache-2.0
"""One global pool: an x86 guest of QEMU 11.1 that has no device tree bounces
all I/O through its swiotlb buffer (swiotlb=force).  The guard shadows the rings
and passes what lies in that buffer by reference.

The buffer's address follows from the guest's memory and kernel, so a first boot
tells it.  The second has memory backends cut at its ends: so it is an fd of its
own, and the guest, which does not look at NUMA, sees no difference."""
import functools
import re
from contextlib import ExitStack

import pytest

from arm64 import Pool
from backends import StorageDaemon, make_image
from guard import Guard
from machine import MIB, audit, plant_secret, ram_reached, spy_finds
from peers import Qemu11
from procs import Workdir, run
from test_all_qemu import CHECK, MAKE

MEMORY = 256
SWIOTLB = 64 * MIB
KERNEL = (f"nokaslr numa=off memblock=debug swiotlb={SWIOTLB // 2048},force")
# What the read is to do by reference, at least.
WANTED = 0.95


def device(socket_path):
    return Qemu11.disk(socket_path,
                       options=",iommu_platform=on,disable-legacy=on")


def swiotlb(guest):
    """Where the guest has its buffer."""
    log = guest.run("dmesg | grep -A1 swiotlb_init_remap")
    found = re.search(f"alloc_try_nid: {SWIOTLB} bytes .*\n.*memblock_reserve: "
                      r"\[0x([0-9a-f]+)-0x([0-9a-f]+)\]", log)
    assert found, log
    start, end = int(found[1], 16), int(found[2], 16) + 1
    return Pool(start, end - start)


def boot(stack, where, *options):
    """A guest with its buffer there in a memory backend of its own, or with
    all memory in one if that is None, its guard and its backend."""
    work = stack.enter_context(Workdir())
    backend = stack.enter_context(StorageDaemon(
        work / "blk", make_image(work / "disk", 192 * MIB)))
    guard = stack.enter_context(Guard(work / "guard", backend.socket_path,
                                      options=options))
    banks = where and (where.address, where.size,
                       (MEMORY * MIB) - where.address - where.size)
    guest = stack.enter_context(Qemu11(
        device(guard.socket_path), MEMORY, append=KERNEL, banks=banks))
    return guest, guard, backend, work / "disk"


@functools.cache
def learn():
    """A boot only to learn the address."""
    with ExitStack() as stack:
        guest, *_ = boot(stack, None, "--access-platform=on")
        where = swiotlb(guest)
        guest.poweroff()
    return where


def figures(guard):
    """Bytes bounced and passed by reference, as the guard says in the end."""
    said = guard.expect(r"(\d+) bytes bounced, (\d+) bytes by reference")
    return int(said[1]), int(said[2])


@pytest.fixture(scope="module", name="scene")
def fixture_scene():
    where = learn()
    with ExitStack() as stack:
        guest, guard, backend, image = boot(
            stack, where, "--share=hybrid", where.option)
        assert swiotlb(guest) == where
        yield guest, guard, backend, image


def test_a_file_system_is_made_remounted_and_checked(scene):
    guest, _, _, image = scene
    guest.run(MAKE)
    assert guest.run(CHECK).splitlines()[-1] == "200"
    checked = run(["/sbin/e2fsck", "-f", "-n", image])
    assert checked.returncode == 0, checked.stdout


def test_the_backend_reaches_the_buffer_and_no_other_memory(scene):
    guest, _, backend, _ = scene
    secret = plant_secret(guest)
    assert spy_finds(guest.pid, secret)
    assert not spy_finds(backend.pid, secret)
    report = audit(guest.pid, backend.pid)
    assert ram_reached(report, backend.pid) == 0
    process, = (p for p in report["processes"] if p["pid"] == backend.pid)
    sizes = [o["size"] for o in report["objects"]
             if o["id"] in {r["object"] for r in process["reach"]}
             and o["name"] != "memfd:moat-pool"]
    assert sizes == [SWIOTLB]


def test_a_sequential_read_passes_by_reference():
    """Told by the guard when its guest has gone."""
    where, size = learn(), 128 * MIB
    with ExitStack() as stack:
        guest, guard, _, _ = boot(stack, where, "--share=hybrid", where.option)
        guest.run(f"dd if=/dev/vda of=/dev/null bs=1M count={size // MIB} "
                  "iflag=direct 2>/dev/null")
        assert guest.poweroff() == 0
        bounced, referred = figures(guard)
        assert referred >= size
        assert referred / (bounced + referred) > WANTED
        assert "warning: " not in guard.log and "error: " not in guard.log


def test_a_guest_without_a_pool_is_bounced():
    """Hybrid needs nothing: what is not in the pool is copied."""
    with ExitStack() as stack:
        guest, guard, backend, _ = boot(
            stack, None, "--share=hybrid", "--pool=0x100000000+0x100000")
        guest.run(MAKE)
        assert guest.run(CHECK).splitlines()[-1] == "200"
        assert ram_reached(audit(guest.pid, backend.pid), backend.pid) == 0
        assert guest.poweroff() == 0
        guard.expect("warning: share=hybrid: all is bounced, because the VMM "
                     "has no memory at the pool's address 0x100000000")
        bounced, referred = figures(guard)
        assert bounced > 24 * MIB and referred == 0
