# SPDX-License-Identifier: Apache-2.0
"""A region whose file is shortened while it is in use.

A guest can do that to what it sees through a DAX window, which QEMU has in its
memory table: each access behind the new end is a SIGBUS."""
import mmap
import os

import pytest

from split_ring import WRITE
from vhost_user import Region

SIZE = 1 << 20
LATE = Region(0x2_0000_0000, SIZE, 0x7f31_5000_0000, 0)
PAGE = mmap.PAGESIZE


@pytest.mark.parametrize("build", ["plain", "sanitized"])
def test_memory_that_is_cut_off_reads_as_zeroes_and_harms_nobody(
        request, make_scene, build):
    scene = make_scene(request.getfixturevalue(build))
    vmm = scene.running(queues=2, vmm={"add_mem_reg": True})
    fd = os.memfd_create("cut-off")
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, b"x" * SIZE, 0)
    assert vmm.fe.add_mem_reg(LATE, fd) == 0
    queue, other = vmm.queues
    ram = queue.ram
    for cut in range(3):
        # What was mapped of it anew is not the file's any more.
        os.ftruncate(fd, SIZE >> 1 >> cut)
        base = LATE.guest_address + SIZE - (cut + 1) * 4 * PAGE
        dst = ram.alloc(2 * PAGE)
        head = queue.ring.add([(base, 2 * PAGE, 0), (dst, 2 * PAGE, WRITE)])
        queue.publish()
        assert queue.wait_used() == [(head, 2 * PAGE)]
        ram.expect(dst, bytes(2 * PAGE))
        assert ram.read(dst, 2 * PAGE) == bytes(2 * PAGE)
        # And as what the device writes to.
        data = os.urandom(2 * PAGE)
        src = ram.alloc(2 * PAGE)
        ram.write(src, data)
        head = queue.ring.add([(src, 2 * PAGE, 0),
                               (base + 2 * PAGE, 2 * PAGE, WRITE)])
        queue.publish()
        assert queue.wait_used() == [(head, 2 * PAGE)]
        other.echo()
        queue.echo()
    assert os.fstat(fd).st_size == SIZE >> 3
    assert any("were cut off while they were in use" in line
               for line in scene.guard.lines)
    assert vmm.fe.rem_mem_reg(LATE) == 0
    queue.echo()
    os.close(fd)
    ram.check()
