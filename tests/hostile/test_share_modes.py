# SPDX-License-Identifier: Apache-2.0
"""With a share set the backend gets the guest's pool, never more, and can do
nothing to it that others would feel."""
import errno
import fcntl
import mmap
import os
import subprocess

import pytest

from guest import MIB, Bank, GuestRam, canary
from vhost_user import Region

F_SEAL_FUTURE_WRITE = 0x10
RAM, POOL = 0, 1  # banks
POOL_AT = 0x1000_0000
LAYOUT = (
    Region(0x0000_0000, 2 * MIB, 0x7f31_4560_0000, 0),
    Region(POOL_AT, 2 * MIB, 0x7f31_4500_0000, 0),
)


class PoolBank(Bank):
    """A memory backend of its own, which may be sealed."""

    def __init__(self, region):
        self.region = region
        self.fd = os.memfd_create("guest-pool",
                                  os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, region.size)
        self.map = mmap.mmap(self.fd, region.size)
        self.view = self.file_view = memoryview(self.map)
        self.view[:] = canary("pool", region.size)
        self.shadow = bytearray(canary("pool", region.size))
        self.device_owned = []


class PoolRam(GuestRam):
    def __init__(self):
        self.banks = [Bank(LAYOUT[RAM], 0), PoolBank(LAYOUT[POOL])]
        self.next = {RAM: 4096, POOL: 4096}


@pytest.fixture
def ram(keep):
    return keep(PoolRam())


@pytest.fixture(params=["plain", "sanitized"])
def share(request, make_scene):
    """A scene whose guard has this --share mode and the guest's pool."""
    build = request.getfixturevalue(request.param)
    return lambda mode: make_scene(
        build, "--device=console", "--pool-size=8M", f"--share={mode}",
        f"--pool={POOL_AT:#x}+2M")


def start(vmm, bank):
    queue = vmm.add_queue(bank=bank)
    queue.start()
    return queue


def memory_sent(scene):
    """Names of the memory that the backend was ever sent, in order."""
    return [link.split(":")[1].split(" ")[0]
            for _, link in scene.device.session.regions_seen]


def test_auto_that_bounces_sends_no_pool_of_the_guest(share, ram):
    """Rings outside: the guest did not give the pool to this device, so what
    lies at its address is the guest's own."""
    scene = share("auto")
    vmm = scene.vmm(ram=ram).setup(queues=0)
    start(vmm, RAM).echo()
    start(vmm, RAM).echo(bank=POOL)
    assert memory_sent(scene) == ["moat-pool"]
    scene.guard.wait_line("share=auto: chose bounce")
    ram.check()
    scene.backend_is_happy()


def test_direct_sends_the_pool_and_nothing_else(share, ram):
    scene = share("direct")
    vmm = scene.vmm(ram=ram).setup(queues=0)
    start(vmm, POOL).echo(bank=POOL)
    start(vmm, POOL).echo(bank=POOL)
    assert memory_sent(scene) == ["guest-pool"]
    ram.check()
    scene.backend_is_happy()


def test_direct_refuses_a_queue_outside_the_pool(share, ram):
    scene = share("direct")
    vmm = scene.vmm(ram=ram).setup(queues=0)
    with pytest.raises(AssertionError, match="refused"):
        start(vmm, RAM)
    assert memory_sent(scene) == []
    scene.guard.wait_line("queue 0: share=direct refused")
    start(vmm, POOL).echo(bank=POOL)
    assert len(scene.guard.complaints()) == 1


def test_auto_serves_queues_of_both_kinds_at_once(share, ram):
    scene = share("auto")
    vmm = scene.vmm(ram=ram).setup(queues=0)
    inside = start(vmm, POOL)
    inside.echo(bank=POOL)
    assert memory_sent(scene) == ["guest-pool"]
    outside = start(vmm, RAM)
    outside.echo()
    scene.backend_is_happy()
    assert memory_sent(scene)[1:] == ["moat-pool", "guest-pool"]
    ram.check()


def test_backend_can_not_seal_the_pool_for_others(share, ram):
    """F_SEAL_FUTURE_WRITE would keep every other device's process from mapping
    the guest's memory again."""
    scene = share("direct")
    vmm = scene.vmm(ram=ram).setup(queues=0)
    queue = start(vmm, POOL)
    session = scene.device.session
    pool, = (m for m in session.mem if m.region.guest_address == POOL_AT)
    for seal in (F_SEAL_FUTURE_WRITE, fcntl.F_SEAL_WRITE):
        with pytest.raises(OSError) as e:
            fcntl.fcntl(pool.fd, fcntl.F_ADD_SEALS, seal)
        assert e.value.errno == errno.EPERM
    with pytest.raises(OSError):
        os.ftruncate(pool.fd, 0)
    mmap.mmap(ram.fds[POOL], 2 * MIB).close()
    queue.echo(bank=POOL)


def test_err_fd_replaced_while_direct_reaches_the_backend(share, ram):
    scene = share("direct")
    vmm = scene.vmm(ram=ram).setup(queues=0)
    queue = start(vmm, POOL)
    old, queue.err_fd = queue.err_fd, os.eventfd(
        0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    assert not vmm.fe.set_vring_err(0, queue.err_fd)
    os.close(old)
    device = scene.device
    vring = device.session.vring(0)
    device.run(lambda: os.eventfd_write(vring.err, 1))
    assert queue.erred()


def test_pools_that_overlap_are_a_usage_error(plain):
    done = subprocess.run(
        [plain.program, "guard", "--socket-path=/nowhere/g",
         "--backend=/nowhere/b", "--share=direct", "--pool=0x10000+64K",
         "--pool=0x18000+64K"], capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert "--pool=0x18000+64K" in done.stderr
