# SPDX-License-Identifier: Apache-2.0
"""All guest RAM in one memfd: /dev/udmabuf carves the pool out of it.

Not every machine has one, but Debian's guest kernels do.  So the guard, the
backend and a driver (carved.py) run inside a guest, which has this machine's
files under /host, read-only."""
import pytest

from peers import HOST_FILES, Qemu11, Virtiofsd, inside
from procs import Workdir

MEMORY = 1024


@pytest.fixture(scope="module", name="guest")
def fixture_guest():
    with Workdir() as work, \
            Virtiofsd("debian12", work / "fs", "/") as files, \
            Qemu11(Qemu11.share(files.socket_path), MEMORY) as guest:
        guest.run(HOST_FILES + "[ -c /dev/udmabuf ]")
        yield guest
        guest.poweroff()


def test_a_pool_carved_out_of_all_ram_is_all_that_a_backend_gets(guest):
    inside(guest, "carved.py", "direct")


def test_buffers_in_a_carved_pool_pass_by_reference(guest):
    inside(guest, "carved.py", "hybrid")


def test_of_ram_that_can_shrink_nothing_is_carved_and_auto_bounces(guest):
    inside(guest, "carved.py", "unsealed")


def test_a_dma_buf_may_be_shown_to_the_guest_but_not_its_own_pool(guest):
    inside(guest, "carved.py", "shown")
