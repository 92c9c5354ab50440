# SPDX-License-Identifier: Apache-2.0
"""moat-blk on block devices: loop devices, a SCSI disk with large blocks, one
that fails.

Not every machine has them, nor may everybody make them; a guest's kernel does.
So moat-blk and a driver (blockdev.py) run inside a guest, which has this
machine's files under /host, read-only.
"""
import pytest

from guests import newest
from peers import HOST_FILES, Qemu11, Virtiofsd, inside
from procs import Workdir

MODULES = ["block/loop.ko", "md/dm-mod.ko", "scsi/sd_mod.ko",
           "scsi/scsi_debug.ko dev_size_mb=8 sector_size=4096 lbpu=1 lbpws=1 "
           "delay=0"]
CASES = ["loops", "scsi", "resized", "read_only", "failing"]


@pytest.fixture(scope="module", name="output")
def fixture_output():
    """Of one run in one guest, in which a program takes long to start."""
    drivers = newest(f"{Qemu11.kernel()}/lib/modules/*/kernel/drivers")
    load = "\n".join(f"insmod /host{drivers}/{m}" for m in MODULES)
    with Workdir() as work, \
            Virtiofsd("debian12", work / "fs", "/") as files, \
            Qemu11(Qemu11.share(files.socket_path), 1024) as guest:
        guest.run(HOST_FILES + load)
        yield inside(guest, "blockdev.py", *CASES)
        guest.poweroff()


@pytest.mark.parametrize("case", CASES)
def test_it_serves_a_block_device(output, case):
    assert f"@passed {case}\n" in output + "\n", output
