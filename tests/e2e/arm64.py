# SPDX-License-Identifier: Apache-2.0
"""An arm64 guest whose device tree gives each device a pool of its own.

QEMU 11.1's "virt" machine with the kernel of scripts/arm64-guest.  The guest's
RAM is one memory backend, each pool another, right behind it:

    0x40000000            0x50000000   0x52000000
    | ram (fd 1) ........ | pool 0 (2) | pool 1 (3) | ...

The tree that QEMU would make up is dumped, the pools are put into it with `moat
dt`, and the guest boots with that.
"""
import os
import subprocess
from typing import NamedTuple

from guests import SCRIPTS, Guest
from peers import in_root
from procs import moat, run

MIB = 1 << 20
RAM_AT = 0x40000000
RAM = 256 * MIB
POOL = 32 * MIB


class Pool(NamedTuple):
    """A stretch of guest addresses, in bytes."""
    address: int
    size: int

    @property
    def option(self):
        """The guard's option that names it."""
        return f"--pool={self.address:#x}+{self.size:#x}"


def pool(number, size=POOL):
    return Pool(RAM_AT + RAM + number * size, size)


class Device(NamedTuple):
    """One virtio device of the guest.

    Parameters: QEMU's name without the transport ("vhost-user-blk"), the
    socket, "mmio" or "pci", its place there (from 1), further properties as
    they stand behind -device; access_platform is what the device offers.
    """
    kind: str
    socket_path: str
    transport: str
    place: int
    properties: str = ""
    access_platform: bool = True

    @property
    def node(self):
        """Its node in the device tree."""
        if self.transport == "mmio":
            return f"/virtio_mmio@{0xa000000 + 0x200 * self.place:x}"
        return f"/pcie@10000000/device@{self.place:x},0"

    @property
    def name(self):
        """What Linux calls it."""
        if self.transport == "mmio":
            return f"{0xa000000 + 0x200 * self.place:x}.virtio_mmio"
        return f"0000:00:{self.place:02x}.0"

    def arguments(self):
        """Its part of QEMU's command line."""
        name = f"{self.transport}{self.place}"
        if self.transport == "mmio":
            # Of all devices this one has no -device in its name.
            suffix = "" if self.kind == "vhost-user-blk" else "-device"
            where = f"{self.kind}{suffix},bus=virtio-mmio-bus.{self.place}"
        else:
            where = f"{self.kind}-pci,addr={self.place:x},disable-legacy=on"
        argv = ["-chardev", f"socket,id={name},path={self.socket_path}"]
        peer = f"chardev={name}"
        if self.kind == "virtio-net":
            argv += ["-netdev", f"vhost-user,id=net-{name},chardev={name}"]
            peer = f"netdev=net-{name}"
        platform = "on" if self.access_platform else "off"
        return [*argv, "-device", f"{where},{peer},iommu_platform={platform}"
                + self.properties]


def disk(socket_path, transport, place, properties="", queues=1, **kwargs):
    """A disk."""
    return Device("vhost-user-blk", socket_path, transport, place,
                  f",num-queues={queues}" + properties, **kwargs)


def guest_dir():
    """The folder that scripts/arm64-guest made."""
    return subprocess.run([os.path.join(SCRIPTS, "arm64-guest")], check=True,
                          text=True, stdout=subprocess.PIPE).stdout.strip()


def machine(pools, pool_size, dumpdtb=""):
    """QEMU's command line up to the devices: RAM, and so many pools."""
    size = (RAM + pools * pool_size) // MIB
    argv = in_root("qemu-system-aarch64", "-nodefaults", "-no-user-config",
                   "-display", "none", "-machine", "virt" + dumpdtb,
                   "-cpu", "max,pauth-impdef=on", "-smp", "2",
                   "-accel", "tcg,thread=multi", "-m", f"{size}M",
                   "-global", "virtio-mmio.force-legacy=false",
                   "-object", f"memory-backend-memfd,id=ram,size={RAM},"
                   "share=on")
    if not pools:
        return [*argv, "-machine", "memory-backend=ram"]
    argv += ["-numa", "node,nodeid=0,memdev=ram"]
    for n in range(pools):
        argv += ["-object",
                 f"memory-backend-memfd,id=pool{n},size={pool_size},share=on",
                 "-numa", f"node,nodeid={n + 1},memdev=pool{n}"]
    return argv


def device_tree(path, banks, given=(), size=POOL):
    """QEMU's own tree for a machine with so many banks, of that size, behind
    the RAM, with a pool for each device of the pairs (pool, device)."""
    done = run(machine(banks, size, f",dumpdtb={path}"))
    assert done.returncode == 0, done.stderr
    for where, device in given:
        done = run([moat(), "dt", "add-pool", f"--address={where.address:#x}",
                    f"--size={where.size}", f"--device={device.node}",
                    f"--output={path}", path])
        assert done.returncode == 0, done.stdout + done.stderr
    return path


def kernel():
    """QEMU's command line for what the machine boots."""
    base = guest_dir()
    image = subprocess.run(
        [os.path.join(SCRIPTS, "guest-initramfs"),
         f"--busybox={base}/busybox"], check=True, text=True,
        stdout=subprocess.PIPE).stdout.strip()
    return ["-serial", "stdio", "-no-reboot", "-kernel", f"{base}/Image",
            "-initrd", image,
            "-append", "console=ttyAMA0 loglevel=4 panic=-1"]


class Arm64(Guest):
    """A guest with so many banks, of that size, behind its RAM, the device
    tree at dtb and these devices."""

    def __init__(self, devices, dtb, banks, size=POOL, wait=True):
        argv = [*machine(banks, size), "-dtb", dtb, *kernel()]
        for device in devices:
            argv += device.arguments()
        super().__init__(argv, "QEMU (arm64)", wait=wait)
