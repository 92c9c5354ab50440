#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A pool that is part of a larger memfd, carved out by /dev/udmabuf.

usage: carved.py direct|hybrid|unsealed|shown

Runs where there is a /dev/udmabuf, as test_all_udmabuf.py sees to: a driver
with all of its RAM in one memfd, the guard, an unmodified qemu-storage-daemon.
Ends with 0 if all is as promised.
"""
import fcntl
import json
import os
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE]
sys.path.append(os.path.join(os.path.dirname(HERE), "hostile"))

import test_shmem  # noqa: E402
from arm64 import Pool  # noqa: E402
from backend import Backend  # noqa: E402
from backends import StorageDaemon, make_image  # noqa: E402
from guard import Guard  # noqa: E402
from guest import GuestRam, Vmm  # noqa: E402
from machine import audit, spy_finds  # noqa: E402
from procs import Workdir, run, spy  # noqa: E402
from split_ring import WRITE  # noqa: E402
from vhost_user import Region  # noqa: E402

MIB = 1 << 20
RAM = Region(0x4000_0000, 16 * MIB, 0x7f31_4560_0000, 0)
POOL = Pool(0x4080_0000, 4 * MIB)
IN, OUT, OK = 0, 1, 0


class Driver:
    """A virtio-blk driver; what it allocates lies in the pool, but the rings
    do only with rings_in_pool."""

    def __init__(self, socket_path, rings_in_pool=True, sealed=True):
        ram = GuestRam([RAM])
        if sealed:
            for fd in ram.fds:
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS,
                            fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        # Outside the pool; and the hex digits of it are not in this RAM.
        self.secret = ram.read(0x4020_0000, 32).hex()
        if rings_in_pool:
            ram.next[0] = POOL.address - RAM.guest_address
        self.vmm = Vmm.connect(socket_path, ram=ram)
        self.vmm.setup()
        ram.next[0] = max(ram.next[0], POOL.address - RAM.guest_address)
        self.ram, (self.queue,) = ram, self.vmm.queues

    def request(self, kind, sector, buffer, length):
        header, status = self.ram.alloc(16), self.ram.alloc(1)
        self.ram.write(header, struct.pack("<IIQ", kind, 0, sector))
        self.ram.device_may_write(status, 1)
        self.ram.write(status, b"\xff")
        flags = WRITE if kind == IN else 0
        head = self.queue.ring.add([(header, 16, 0), (buffer, length, flags),
                                    (status, 1, WRITE)])
        self.queue.publish()
        (used, _), = self.queue.wait_used(timeout=60)
        assert used == head
        assert self.ram.read(status, 1)[0] == OK

    def use(self, image, size=512 << 10):
        """Writes, reads back, and looks at the file of the disk."""
        data = os.urandom(size)
        source, target = self.ram.alloc(size), self.ram.alloc(size)
        self.ram.write(source, data)
        self.request(OUT, 8, source, size)
        with open(image, "rb") as f:
            f.seek(8 * 512)
            assert f.read(size) == data
        self.ram.expect(target, data)
        self.request(IN, 8, target, size)
        # No byte of RAM has changed but those that were to.
        self.ram.check()


def machine(share, body, **driver):
    with Workdir("/dev/shm") as work:
        image = make_image(work / "disk", 8 * MIB)
        with StorageDaemon(work / "blk", image) as backend, \
                Guard(work / "guard", backend.socket_path,
                      options=[f"--share={share}", POOL.option]) as guard:
            try:
                d = Driver(guard.socket_path, **driver)
                d.use(image)
                body(d, guard, backend)
                d.vmm.close()
                guard.expect("the VMM has left")
            finally:
                print(guard.log, backend.log)


def reached(backend):
    """Kind and size of what of this process's memory the backend reaches."""
    report = audit(os.getpid(), backend.pid, options=[f"--vmm={os.getpid()}"])
    process, = (p for p in report["processes"] if p["pid"] == backend.pid)
    own = {r["object"] for r in process["reach"]}
    return sorted((o["kind"], o["size"]) for o in report["objects"]
                  if o["id"] in own)


def check_hidden(driver, backend):
    """The backend can not find the secret.  A dma-buf that is only mapped can
    not be opened by the spy; it is the pool, in which the driver can look."""
    assert spy_finds(os.getpid(), driver.secret)
    found = json.loads(run([spy(), backend.pid, driver.secret]).stdout)
    assert not found["found"], found
    assert all(e["where"].startswith("/dmabuf:") for e in found["errors"]), \
        found
    assert (bytes.fromhex(driver.secret)
            not in driver.ram.read(POOL.address, POOL.size))


def direct():
    def body(driver, _, backend):
        assert reached(backend) == [("dmabuf", POOL.size)]
        check_hidden(driver, backend)
    machine("direct", body)


def hybrid():
    """The guard's pool is there for the rings, and for nothing else."""
    def body(driver, guard, backend):
        assert [kind for kind, _ in reached(backend)] == ["dmabuf", "memfd"]
        assert reached(backend)[0][1] == POOL.size
        check_hidden(driver, backend)
        driver.vmm.close()
        said = guard.expect(r"(\d+) bytes bounced, (\d+) bytes by reference")
        assert int(said[1]) == 0 and int(said[2]) > 1 * MIB
    machine("hybrid", body, rings_in_pool=False)


def unsealed():
    """Of a memfd that can shrink nothing is carved; so it bounces."""
    def body(driver, guard, backend):
        guard.expect("chose bounce because udmabuf can not carve")
        assert [kind for kind, _ in reached(backend)] == ["memfd"]
        check_hidden(driver, backend)
    machine("auto", body, sealed=False)


def own_dmabuf(size):
    """Memory of the backend's own, as a dma-buf."""
    memory = os.memfd_create("own", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, size)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with open("/dev/udmabuf", "r+b", buffering=0) as maker:
        # UDMABUF_CREATE: memfd, flags, offset, size
        return fcntl.ioctl(maker, 0x40187542,
                           bytearray(struct.pack("=IIQQ", memory, 0, 0, size)))


def shown():
    """A dma-buf may be shown to the guest in a shared memory region, but not
    the one that the guest's own pool is."""
    with Workdir("/dev/shm") as work:
        device = Backend(work / "b", protocol=test_shmem.SHMEM,
                         shmem=test_shmem.REGIONS)
        with Guard(work / "guard", work / "b", options=[
                "--device=fs", "--share=direct", POOL.option]) as guard:
            try:
                vmm = Vmm.connect(guard.socket_path, ram=GuestRam([RAM]))
                for fd in vmm.ram.fds:
                    fcntl.fcntl(fd, fcntl.F_ADD_SEALS,
                                fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
                vmm.ram.next[0] = POOL.address - RAM.guest_address
                vmm.setup()
                pool, = device.session.mem
                assert os.readlink(f"/proc/self/fd/{pool.fd}") \
                    .startswith("/dmabuf:")
                test_shmem.refused(vmm, device.session, fds=(pool.fd,))
                guard.expect("its fd is guest RAM, or the pool")
                fd = own_dmabuf(test_shmem.PAGE)
                got, = test_shmem.do(vmm, device.session, test_shmem.MAP,
                                     fds=(fd,))
                assert os.path.sameopenfile(got, fd)
                vmm.close()
                device.close()
            finally:
                print(guard.log)


if __name__ == "__main__":
    {"direct": direct, "hybrid": hybrid, "unsealed": unsealed,
     "shown": shown}[sys.argv[1]]()
