# SPDX-License-Identifier: Apache-2.0
"""A guest does not notice that moat-blk was killed and started again."""
import hashlib

import pytest

from backends import MoatBlk, make_image
from guests import Qemu
from machine import MIB
from peers import Qemu11
from procs import Workdir, wait_until

KILLS = 3
AREAS = 40
DEBUG = ["--log-level=debug"]
pytestmark = pytest.mark.additional


@pytest.mark.parametrize("vmm,packed,laps", [
    (Qemu, False, 150), (Qemu, True, 150), (Qemu11, True, 40)],
    ids=["split", "packed", "packed-qemu11"])
def test_a_guest_sees_no_error_and_loses_no_write_over_kills(vmm, packed, laps):
    with Workdir() as work:
        image = make_image(work / "disk", 64 * MIB)
        socket = work / "disk.sock"
        backend = MoatBlk(socket, image, options=DEBUG)
        with vmm(vmm.disk(socket, reconnect=True, packed=packed)) as guest:
            try:
                # Each lap is written past the guest's cache and read back.
                job = guest.start(f"""
                    set -e
                    for i in $(seq {laps}); do
                        head -c 262144 /dev/urandom >/tmp/lap
                        dd if=/tmp/lap of=/dev/vda oflag=direct bs=4k \
                            seek=$((i % {AREAS} * 64)) conv=notrunc 2>/dev/null
                        dd if=/dev/vda iflag=direct bs=4k count=64 \
                            skip=$((i % {AREAS} * 64)) 2>/dev/null | \
                            cmp - /tmp/lap
                        cat /tmp/lap >/tmp/last$((i % {AREAS}))
                        echo @lap $i
                    done
                    for i in $(seq 0 {AREAS - 1}); do cat /tmp/last$i; done | sha256sum
                    dmesg | grep -ci 'i/o error' || true""")
                for kill in range(KILLS):
                    lap = f"@lap {(kill + 1) * laps // (KILLS + 1)}"
                    # What was read back wrongly ends the laps.
                    assert guest.expect(f"^(@end .*|{lap})$").group() == lap, \
                        guest.log
                    backend.kill()
                    backend = MoatBlk(socket, image, options=DEBUG)
                    wait_until(lambda: "VMM has connected" in backend.log,
                               "QEMU connects again")
                lines = guest.finish(job).splitlines()
            finally:
                # For whoever looks into a failure.
                print(backend.log)
                backend.kill()
        assert lines[-1] == "0", "I/O errors in the guest"
        with open(image, "rb") as f:
            wanted = hashlib.sha256(f.read(AREAS * 262144)).hexdigest()
        assert lines[-2].split()[0] == wanted
