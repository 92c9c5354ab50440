# SPDX-License-Identifier: Apache-2.0
"""The reset of one queue (VIRTIO_F_RING_RESET) while others have load, as a
VMM passes it on: disabled, stopped, and started again on another ring."""
import os
import struct

import pytest

from backend import FEATURES
from guard import Blk, Guard
from guest import OFFERABLE, Queue, Vmm
from split_ring import WRITE
from vhost_user import Feature, Protocol, mask

PACKED, RESET = mask(Feature.RING_PACKED), mask(Feature.RING_RESET)
IN_ORDER = mask(Feature.IN_ORDER)
SECTORS = 2048
BOTH = pytest.mark.parametrize("ring", [0, PACKED], ids=["split", "packed"])


class Disk:
    """moat-blk, straight or guarded, on a file whose sectors are numbered."""

    def __init__(self, keep, folder, build, *options, guarded=False,
                 features=0):
        image = f"{folder}/disk"
        with open(image, "wb") as f:
            f.write(b"".join(struct.pack("<I", n) * 128
                             for n in range(SECTORS)))
        self.blk = keep(Blk(build, folder, image, "--num-queues=2", *options))
        path = self.blk.path
        if guarded:
            self.guard = keep(Guard(build, folder, path, "--device=blk"))
            path = self.guard.path
        self.vmm = keep(Vmm.connect(path, features=OFFERABLE | features))
        self.vmm.setup(queues=2)

    def post(self, queue, sector):
        """A read of one sector; returns where it goes."""
        ram = queue.ram
        header, into = ram.alloc(16), ram.alloc(513)
        ram.write(header, struct.pack("<IIQ", 0, 0, sector))
        ram.device_may_write(into, 513)
        queue.ring.add([(header, 16, 0), (into, 513, WRITE)])
        return into

    def check(self, queue, sector, into):
        assert queue.ram.read(into, 513) == \
            struct.pack("<I", sector) * 128 + b"\0"


def other_ring(queue, num):
    """A ring of another size at another place for the same queue."""
    fresh = Queue(queue.vmm, queue.index, num)
    for fd in ("kick_fd", "call_fd", "err_fd"):
        os.close(getattr(fresh, fd))
        setattr(fresh, fd, getattr(queue, fd))
    queue.vmm.queues[queue.index] = fresh
    return fresh


@BOTH
@pytest.mark.parametrize("guarded", [False, True],
                         ids=["straight", "guarded"])
@pytest.mark.parametrize("engine", ["uring", "sync"])
def test_a_queue_is_reset_while_the_other_has_load(
        keep, folder, sanitized, engine, guarded, ring):
    disk = Disk(keep, folder, sanitized, "--ring-reset", f"--engine={engine}",
                guarded=guarded, features=ring | RESET)
    vmm = disk.vmm
    assert vmm.features & RESET and vmm.features & PACKED == ring
    if vmm.has(Protocol.CONFIGURE_MEM_SLOTS):
        vmm.ram.next = {n: 4096 * 8 for n in vmm.ram.next}
    for n in range(20):
        bad, busy = vmm.queues
        load = [(s, disk.post(busy, s)) for s in range(16)]
        busy.publish()
        for s in range(4):
            disk.post(bad, s)
        bad.publish()
        # The driver's reset, as a VMM passes it on.
        assert vmm.fe.set_vring_enable(0, 0) == 0
        bad.stop()
        old = [(a, size, bytes(bad.ram.read(a, size))) for a, size in
               ((bad.desc_addr, 16 * bad.num), (bad.used_addr,
                                                bad.used_bytes))]
        fresh = other_ring(bad, (16, 32, 8)[n % 3])
        fresh.start()
        for s in (100 + n, 500 + n):
            into = disk.post(fresh, s)
            fresh.publish()
            fresh.wait_used()
            disk.check(fresh, s, into)
        busy.wait_used(len(load))
        for s, into in load:
            disk.check(busy, s, into)
        for at, size, was in old:
            assert bad.ram.read(at, size) == was, "a reset ring was touched"
    assert not disk.blk.complaints()
    if guarded:
        assert not disk.guard.complaints()
    vmm.ram.check()


def test_it_is_offered_only_when_it_was_asked_for(keep, folder, plain):
    disk = Disk(keep, folder, plain, features=RESET)
    assert not disk.vmm.offered & RESET


@pytest.mark.parametrize("has", [0, RESET])
def test_the_guard_offers_what_the_backend_has(make_scene, plain, has):
    scene = make_scene(plain, features=FEATURES | has | IN_ORDER)
    vmm = scene.vmm(features=OFFERABLE | RESET).setup()
    assert vmm.offered & RESET == has
    assert scene.device.session.features & RESET == has
    assert not vmm.offered & IN_ORDER, "what it relays may be given in batches"


@BOTH
@pytest.mark.parametrize("engine,kept", [("sync", True), ("uring", False)])
def test_in_order_is_offered_where_order_is_kept(keep, folder, sanitized,
                                                 engine, kept, ring):
    disk = Disk(keep, folder, sanitized, f"--engine={engine}",
                features=IN_ORDER | ring)
    assert bool(disk.vmm.features & IN_ORDER) == kept
    queue = disk.vmm.queues[0]
    for n in range(10):
        heads = []
        for s in range(20):
            # Some fail, some have nothing to do: at once, and in turn.
            disk.post(queue, SECTORS + 5 if s % 7 == n % 7 else s)
            heads.append(list(queue.ring.chains)[-1])
        queue.publish()
        used = [head for head, _ in queue.wait_used(20)]
        if kept:
            assert used == heads
