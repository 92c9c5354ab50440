# SPDX-License-Identifier: Apache-2.0
"""What the backend is given: the pool, eventfds and sockets, and in the pool
nothing but what the driver posted as readable."""
import fcntl
import json
import mmap
import os
import re
import struct
import sys
import textwrap

import pytest

import vhost_user as vu
from backend import echo
from guard import Guard
from guest import GuestRam, Vmm, canary
from split_ring import WRITE
from vhost_user import Request

SECRET = os.urandom(32)
SEALS = (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)


@pytest.fixture(params=["plain", "sanitized"])
def busy(request, make_scene):
    """A device that has done all sorts of I/O in a guest full of secrets."""
    scene = make_scene(request.getfixturevalue(request.param),
                       "--pool-size=4M")
    scene.leaks = []

    def look(session, vring, chain):
        # All of the pool, before anything is written over in it.
        if SECRET[:16] in pool_of(scene):
            scene.leaks.append(chain)
        echo(session, vring, chain)

    scene.device.on_request = look
    # Everything that the driver posts as readable is of the byte 0x11:
    # nothing else of the guest's memory may ever be seen.
    vmm = scene.vmm()
    vmm.setup(queues=3)
    ram = vmm.ram
    for n in range(60):
        queue = vmm.queues[n % 3]
        size = (1, 63, 512, 4096, 5000, 70000)[n % 6]
        out = ram.alloc(size + 64, bank=n % 2) + 32
        inn = ram.alloc(size + 64, bank=2) + 32
        ram.write(out - 32, SECRET + b"\x11" * size + SECRET)
        # What stands in a writable buffer beforehand is the guest's own.
        old = (SECRET * (size // 32 + 1))[:size]
        ram.write(inn - 32, SECRET + old + SECRET)
        descs = [(out, size, 0), (inn, size, WRITE)]
        if n % 5 == 0:
            descs = [queue.indirect(descs, bank=1)]
        ram.expect(inn, b"\x11" * size)
        head = queue.ring.add(descs)
        queue.publish()
        assert queue.wait_used() == [(head, size)]
        if n % 20 == 19:
            ram.next[2] = 4096
    ram.check()
    scene.backend_is_happy()
    return scene, vmm


def pool_of(scene):
    """The bytes of the whole file that the backend holds, not of its map."""
    mapped, = scene.device.session.mem
    size = os.fstat(mapped.fd).st_size
    with mmap.mmap(mapped.fd, size, prot=mmap.PROT_READ) as pool:
        return pool[:]


def test_backend_sees_no_byte_of_guest_memory_that_was_not_posted(busy):
    scene, vmm = busy
    assert not scene.leaks
    pool = pool_of(scene)
    assert b"\x11" * 70000 in pool, "the search would find what was posted"
    assert SECRET not in pool and SECRET[:16] not in pool
    # The canary, which fills all of RAM, in any alignment.
    seen = set()
    for at in range(0, len(pool), 4096):
        page = pool[at:at + 4096]
        if page.count(0) < 4096 and page.count(0x11) < 4096:
            seen.update(pool[i:i + 8] for i in range(at, at + 4096))
    assert seen
    for n, bank in enumerate(vmm.ram.banks):
        whole = canary(n, len(bank.shadow))
        found = [i for i in range(0, len(whole), 8)
                 if whole[i:i + 8] in seen]
        assert not found, f"bank {n}: canary of {found[0]:#x} is in the pool"


def test_backend_holds_the_sealed_pool_eventfds_and_sockets_only(busy):
    scene, vmm = busy
    session = scene.device.session
    links = [link for msg in session.messages for link in msg.fds]
    assert links
    for link in links:
        assert re.fullmatch(r"/memfd:moat-pool \(deleted\)|"
                            r"anon_inode:\[eventfd\]|socket:\[\d+\]", link)
    (region, link), = session.regions_seen
    assert "moat-pool" in link
    fd = session.mem[0].fd
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    size = os.fstat(fd).st_size
    assert region.mmap_offset + region.size <= size
    for other in (0, size - 4096, size + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, other)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def ranges(scene, vmm):
    """Addresses that must not be told: the guard's, the VMM's."""
    out = []
    for line in scene.guard.mappings():
        low, high = (int(x, 16) for x in line.split()[0].split("-"))
        if high - low < 1 << 32:  # not a sanitizer's shadow
            out.append((low, high))
    for region in vmm.ram.regions:
        out.append((region.user_address, region.user_address + region.size))
    return out


def words(data):
    for at in range(0, len(data) - 7, 4):
        yield struct.unpack_from("=Q", data, at)[0]


def test_no_host_address_reaches_the_backend(busy):
    scene, vmm = busy
    secret = ranges(scene, vmm)

    def is_secret(value):
        return any(low <= value < high for low, high in secret)

    for msg in scene.device.session.messages:
        if msg.request in (Request.SET_FEATURES,
                           Request.SET_PROTOCOL_FEATURES):
            continue  # bit masks
        for value in words(msg.payload):
            assert not is_secret(value), (Request(msg.request), hex(value))
    # Nor does one stand in the pool: what is not payload is ring.
    pool = pool_of(scene)
    for at in range(0, len(pool), 4096):
        page = pool[at:at + 4096]
        if page.count(0) == 4096 or page.count(0x11) == 4096:
            continue
        for value in words(page):
            assert not is_secret(value), (hex(at), hex(value))


def test_ring_and_region_addresses_are_the_guards_own(busy):
    scene, vmm = busy
    session = scene.device.session
    (region, _), = session.regions_seen
    told = {(r.guest_address, r.user_address) for r in vmm.ram.regions}
    assert (region.guest_address, region.user_address) not in told
    for msg in session.messages:
        if msg.request == Request.SET_VRING_ADDR:
            addresses = vu.VRING_ADDR.unpack(msg.payload)
            for address in addresses[2:5]:
                assert 0 <= address - region.user_address < region.size


def test_pool_is_new_for_each_vmm(busy):
    """What one guest posted is not there for the next one's backend."""
    scene, vmm = busy
    old = scene.device.session.mem[0].fd
    inode = os.fstat(old).st_ino
    vmm.close()
    fresh = scene.running(queues=1)
    mapped, = scene.device.session.mem
    assert (os.fstat(mapped.fd).st_ino != inode
            or b"\x11" * 63 not in pool_of(scene))
    fresh.ram.check()


EXECUTED = textwrap.dedent("""
    import json, os, sys
    sys.path.insert(0, sys.argv[1])
    import backend
    out, kind, value = sys.argv[2:5]
    fds = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            fds[fd] = os.readlink("/proc/self/fd/" + fd)
        except FileNotFoundError:
            pass
    with open(out + ".new", "w") as f:
        json.dump(fds, f)
    os.rename(out + ".new", out)
    device = backend.Backend(value)
    device._thread.join()
""")


def test_backend_that_the_guard_starts_inherits_nothing(
        plain, folder, keep):
    here = os.path.dirname(os.path.abspath(__file__))
    script = folder + "/b.py"
    with open(script, "w") as f:
        f.write(EXECUTED)
    ram = GuestRam()
    # A descriptor that the guard itself was started with by mistake.
    leak = os.dup(ram.fds[0])
    os.set_inheritable(leak, True)
    guard = keep(Guard(plain, folder, None, "--exec", "--", sys.executable,
                       script, here, folder + "/fds", "socket", "{socket}",
                       pass_fds=[leak]))
    os.close(leak)
    vmm = keep(Vmm.connect(guard.path, ram=ram))
    vmm.setup(queues=1).queues[0].echo()
    with open(folder + "/fds") as f:
        fds = json.load(f)
    for number, link in fds.items():
        assert "guest-ram" not in link and "moat-pool" not in link, fds
        assert int(number) <= 2 or "socket" not in link, fds
    ram.check()
