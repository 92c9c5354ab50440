# SPDX-License-Identifier: Apache-2.0
"""moat-fs behind the guard in each share mode: what it serves is right, and of the
guest it reaches the pool."""
import os
from contextlib import ExitStack

import pytest

from arm64 import Device, pool
from fs import TAG, MoatFs
from guard import Guard
from machine import audit, plant_secret, ram_reached, spy_finds
from peers import Qemu11, front
from procs import Workdir, run
from test_all_direct import Scene
from test_all_hybrid import KERNEL, MEMORY, MIB, swiotlb

# What any guest can do, whose programs are busybox.
WORK = """
mkdir -p /mnt; mount -t virtiofs moat /mnt; cd /mnt
mkdir -p guest/deep
for i in $(seq 60); do echo "line $i" >guest/deep/$i; done
head -c 9300031 /dev/urandom >guest/large
ln -s large guest/link; ln guest/deep/1 guest/hard
mv guest/deep/60 guest/moved
rm guest/deep/59
sync; echo 3 >/proc/sys/vm/drop_caches
sha256sum guest/link guest/moved guest/hard guest/deep/* >guest.sums
cat guest.sums | wc -l
"""


def check_work(guest, folder):
    assert guest.run(WORK) == "61"
    checked = run(["sha256sum", "-c", "--quiet", "guest.sums"], cwd=folder)
    assert checked.returncode == 0, checked.stdout
    assert len(os.listdir(folder + "/guest/deep")) == 58


def hidden(guest, daemon):
    """The guest's secret is not in what any process of the daemon reaches."""
    secret = plant_secret(guest)
    assert spy_finds(guest.pid, secret)
    for pid in (daemon.pid, *daemon.children):
        assert not spy_finds(pid, secret)


@pytest.fixture(name="work")
def fixture_work():
    with Workdir() as work:
        yield work


def test_a_guest_without_a_pool_is_bounced(work):
    os.mkdir(work / "share")
    with MoatFs(work / "fs", work / "share") as daemon, \
            front(True, work, daemon.socket_path,
                  ["--device=fs", "--share=auto",
                   "--pool=0x100000000+0x100000"]) as path, \
            Qemu11(Qemu11.share(path)) as guest:
        check_work(guest, work / "share")
        hidden(guest, daemon)
        report = audit(guest.pid, *daemon.children)
        for pid in daemon.children:
            assert ram_reached(report, pid) == 0
        assert guest.poweroff() == 0


def test_a_pool_of_the_device_is_shared_directly(work):
    """arm64, a restricted pool in the device tree."""
    os.mkdir(work / "share")
    with ExitStack() as stack:
        s = Scene(stack)
        daemon = MoatFs(work / "fs", work / "share")
        s.add(Device("vhost-user-fs", s.socket(), "mmio", 31, f",tag={TAG}"),
              daemon)
        guard = s.guard(0, "--share=direct", "--device=fs", pool(0).option)
        s.boot(s.own_pools())
        check_work(s.guest, work / "share")
        hidden(s.guest, daemon)
        assert s.guest.poweroff() == 0
        assert "error: " not in guard.log, guard.log


def test_the_guest_s_global_pool_passes_by_reference(work):
    os.mkdir(work / "share")
    with MoatFs(work / "fs", work / "share") as daemon:
        argv = ["-chardev", f"socket,id=fs,path={work / 'guard'}", "-device",
                f"vhost-user-fs-pci,chardev=fs,tag={TAG},queue-size=1024,"
                "iommu_platform=on"]
        with Guard(work / "guard", daemon.socket_path,
                   options=["--device=fs", "--access-platform=on"]), \
                Qemu11(argv, MEMORY, append=KERNEL) as guest:
            where = swiotlb(guest)
            guest.poweroff()
        banks = (where.address, where.size,
                 MEMORY * MIB - where.address - where.size)
        with Guard(work / "guard", daemon.socket_path, options=[
                "--device=fs", "--share=hybrid", where.option]) as guard, \
                Qemu11(argv, MEMORY, append=KERNEL, banks=banks) as guest:
            assert swiotlb(guest) == where
            check_work(guest, work / "share")
            hidden(guest, daemon)
            assert guest.poweroff() == 0
            said = guard.expect(r"(\d+) bytes bounced, (\d+) bytes by ref")
            assert int(said[2]) > 18 * MIB and int(said[1]) < int(said[2])
