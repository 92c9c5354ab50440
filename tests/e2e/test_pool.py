# SPDX-License-Identifier: Apache-2.0
"""A pool that is smaller than the load makes I/O slower, not wrong."""
import re

import pytest

import guests
from machine import MIB, Machine

# Four times 16 MiB wanted at once, each as one direct request of the program.
PARTS = 4
PART = 16 * MIB


@pytest.mark.parametrize("vmm", [
    "uml", pytest.param("qemu", marks=pytest.mark.additional)])
def test_a_load_of_64_times_the_pool_goes_on_correctly(vmm):
    with Machine(vmm, options=["--pool-size=1M"]) as m:
        read = [m.fill(n * PART, PART, seed=n) for n in range(PARTS)]
        out = m.guest.run(f"""
            for n in $(seq 0 {PARTS - 1}); do
                (dd if=/dev/vda iflag=direct bs={PART} skip=$n count=1 \
                    2>/dev/null | sha256sum >/tmp/read$n) &
            done
            wait
            cat /tmp/read*
            head -c {PART} /dev/urandom >/tmp/data
            for n in $(seq {PARTS} {2 * PARTS - 1}); do
                dd if=/tmp/data of=/dev/vda oflag=direct bs={PART} seek=$n \
                    count=1 2>/dev/null &
            done
            wait
            sync
            sha256sum </tmp/data""", deadline=240).split()[::2]
        assert out[:PARTS] == read
        for n in range(PARTS, 2 * PARTS):
            assert m.checksum(n * PART, PART) == out[PARTS]
        assert m.guard.running()


def four_large_queues(socket_path):
    """Arguments of QEMU for a disk whose queues want much of a pool.  They are
    as large as its BIOS makes them, which probes the disk before Linux does."""
    device = guests.Qemu.disk(socket_path, queues=4)
    return device[:-1] + [device[-1] + ",queue-size=256"]


def test_a_pool_too_small_for_the_queues_is_refused_with_the_size_needed():
    with Machine("qemu", queues=4, boot=False,
                 options=["--pool-size=64K"]) as m:
        # QEMU goes on without its backend; its guest does not come far.
        with guests.Qemu(four_large_queues(m.socket), cpus=4, wait=False):
            line = m.guard.expect(r"^.*too small for its queues.*\n").group(0)
        assert "error: " in line and "64 KiB" in line
        size = re.search(r"--pool-size=(\d+[KMG])\b", line).group(1)
        # It refused that VMM, not the next; nor is it gone.
        assert m.guard.running()

    # And the size that it named is enough.
    with Machine("qemu", queues=4, boot=False,
                 options=[f"--pool-size={size}"]) as m:
        wanted = m.fill(0, 4 * MIB)
        with guests.Qemu(four_large_queues(m.socket), cpus=4) as guest:
            assert wanted in guest.run(
                "for cpu in 1 2 4 8; do taskset $cpu dd if=/dev/vda bs=64k "
                "count=64 iflag=direct 2>/dev/null | sha256sum; done")
