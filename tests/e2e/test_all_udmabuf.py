# SPDX-License-Identifier: Apache-2.0
"""All guest RAM in one memfd: /dev/udmabuf carves the pool out of it.

Not every machine has one, but Debian's guest kernels do.  So the guard, the
backend and a driver (carved.py) run inside a guest, which has this machine's
files under /host, read-only."""
import os

import pytest

from peers import Qemu11, Virtiofsd
from procs import TOP, Workdir, build_dir

MEMORY = 1024


@pytest.fixture(scope="module", name="guest")
def fixture_guest():
    with Workdir() as work, \
            Virtiofsd("debian12", work / "fs", "/") as files, \
            Qemu11(Qemu11.share(files.socket_path), MEMORY) as guest:
        guest.run("""
mkdir -p /host
mount -t virtiofs -o ro moat /host
mount -t proc proc /host/proc
mount -t sysfs sys /host/sys
mount -t devtmpfs dev /host/dev
mkdir -p /host/dev/shm
mount -t tmpfs shm /host/dev/shm
ip link set lo up
[ -c /dev/udmabuf ]
""")
        yield guest
        guest.poweroff()


def inside(guest, what):
    """Runs carved.py there, with this machine's programs."""
    script = os.path.join(TOP, "tests/e2e/carved.py")
    status, output = guest.run(
        "cd /; chroot /host /usr/bin/env -i TMPDIR=/dev/shm "
        "PATH=/usr/bin:/usr/sbin:/bin:/sbin PYTHONDONTWRITEBYTECODE=1 "
        f"MOAT_BUILD={build_dir()} /usr/bin/python3 {script} {what}",
        check=False)
    assert status == 0, output


def test_a_pool_carved_out_of_all_ram_is_all_that_a_backend_gets(guest):
    inside(guest, "direct")


def test_buffers_in_a_carved_pool_pass_by_reference(guest):
    inside(guest, "hybrid")


def test_of_ram_that_can_shrink_nothing_is_carved_and_auto_bounces(guest):
    inside(guest, "unsealed")


def test_a_dma_buf_may_be_shown_to_the_guest_but_not_its_own_pool(guest):
    inside(guest, "shown")
