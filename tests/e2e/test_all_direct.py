# SPDX-License-Identifier: Apache-2.0
"""Restricted pools, shared as they are: an arm64 guest of QEMU 11.1 bounces
each device's I/O through a pool of its own, and the device's backend gets that
pool, rings and buffers, and nothing else.  The guard does not touch the data."""
import hashlib
import os
import random
import re
from contextlib import ExitStack

import pytest

from arm64 import (MIB, POOL, RAM, RAM_AT, Arm64, Device, Pool, device_tree,
                   disk, kernel, pool)
from backends import StorageDaemon, make_image
from guard import Guard
from guests import Guest
from machine import audit, plant_secret, ram_reached, spy_finds
from peers import Passt, Virtiofsd, in_root
from procs import Workdir, moat, run
from test_all_passt import transfer
from test_all_virtiofs import fill

IMAGE = 96 * MIB
BOUNCE_POOL = 64 * MIB      # the guard's own, by default
SLOT = 2048     # bytes that Linux's counters count by


class Scene:
    """A guest, its devices, and a guard and a backend for each of them.  The
    memory banks behind the guest's RAM, one a device, have pool_size bytes."""

    def __init__(self, stack, pool_size=POOL):
        self.stack = stack
        self.pool_size = pool_size
        self.work = stack.enter_context(Workdir())
        self.devices = []
        self.guards = []
        self.backends = []
        self.images = []
        self.guest = None

    def socket(self):
        """Of the guard for the next device."""
        return self.work / f"guard{len(self.devices)}"

    def add(self, device, backend):
        self.devices.append(device)
        self.backends.append(self.stack.enter_context(backend))

    def add_disk(self, transport, place, properties="", queues=1, **kwargs):
        number = len(self.images)
        image = make_image(self.work / f"disk{number}", IMAGE)
        self.images.append(image)
        device = disk(self.socket(), transport, place, properties, queues,
                      **kwargs)
        self.add(device, StorageDaemon(self.work / f"blk{number}", image,
                                       queues))

    def guard(self, number, *options):
        """The guard of a device; its pool is named by the options."""
        self.guards.append(self.stack.enter_context(Guard(
            self.devices[number].socket_path,
            self.backends[number].socket_path, options=options)))
        return self.guards[-1]

    def boot(self, pools, banks=None, wait=True):
        """A guest whose tree has these pools: (pool, device)."""
        if banks is None:
            banks = len(self.devices)
        self.guest = self.stack.enter_context(Arm64(
            self.devices, device_tree(self.work / "dtb", banks, pools,
                                      self.pool_size),
            banks, self.pool_size, wait))

    def own_pools(self):
        """Each device with a bank of its own."""
        return [(pool(n, self.pool_size), device)
                for n, device in enumerate(self.devices)]


def block_device(guest, device):
    """The name of a device's disk."""
    return guest.run("ls -d /sys/devices/platform/*/virtio*/block/* "
                     "/sys/devices/platform/*/pci*/*/virtio*/block/* "
                     f"2>/dev/null | grep {device.name} | sed s,.*/,,")


def counter(guest, number, name):
    """A counter of the guest for a pool."""
    return int(guest.run(
        "mount -t debugfs debug /sys/kernel/debug 2>/dev/null || true\n"
        f"cat /sys/kernel/debug/restricted-dma@{pool(number).address:x}/"
        f"io_tlb_{name}"))


def objects(report, pid):
    """Identity and size of the memory of a guest, its pools included, that a
    process of an audit reaches."""
    process, = (p for p in report["processes"] if p["pid"] == pid)
    reached = {r["object"] for r in process["reach"]}
    return {(o["dev"], o["ino"]): o["size"] for o in report["objects"]
            if o["id"] in reached}


def use(guest, name, image):
    """A file system is made, written, remounted and checked."""
    guest.run(f"""
mke2fs -F /dev/{name} >/dev/null
mkdir -p /tmp/{name}
mount -t ext4 /dev/{name} /tmp/{name}
cd /tmp/{name}
for size in 1 511 4096 65537 1048577 8388608; do
	head -c $size /dev/urandom >file$size
done
mkdir many
for i in $(seq 100); do echo "this is $i" >many/$i; done
sha256sum file* many/* >/tmp/sums
cd /
umount /tmp/{name}
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/{name} /tmp/{name}
cd /tmp/{name}
sha256sum -c -s /tmp/sums
cd /
umount /tmp/{name}
""")
    checked = run(["/sbin/e2fsck", "-f", "-n", image])
    assert checked.returncode == 0, checked.stdout


MMIO, PCI, LONG, SHORT, SHARE, NET = range(6)
DISKS = pytest.mark.parametrize("number", [MMIO, PCI], ids=["mmio", "pci"])


@pytest.fixture(scope="module", name="scene")
def fixture_scene():
    """Four disks, a shared folder and a network card, all direct."""
    with ExitStack() as stack:
        s = Scene(stack)
        s.add_disk("mmio", 31)
        s.add_disk("pci", 1)
        s.add_disk("pci", 2, ",queue-size=1024", queues=2)
        s.add_disk("mmio", 30, ",queue-size=4")
        s.folder = s.work / "share"
        fill(s.folder)
        s.add(Device("vhost-user-fs", s.socket(), "mmio", 29, ",tag=moat"),
              Virtiofsd("newer", s.work / "fs", s.folder))
        s.add(Device("virtio-net", s.socket(), "pci", 3),
              Passt(s.work / "net"))
        # Both ways to say which pool; the tree is the very same one later.
        dtb = device_tree(s.work / "dtb", len(s.devices), s.own_pools())
        for n, device in enumerate(s.devices):
            if n % 2:
                s.guard(n, "--share=direct", f"--dtb={dtb}",
                        f"--device={device.node}")
            else:
                s.guard(n, "--share=direct", pool(n).option)
        s.boot(s.own_pools())
        yield s


@DISKS
def test_a_file_system_is_made_written_and_checked(scene, number):
    name = block_device(scene.guest, scene.devices[number])
    use(scene.guest, name, scene.images[number])


@pytest.mark.parametrize("number", [MMIO, PCI, LONG, SHORT],
                         ids=["mmio", "pci", "queue-1024", "queue-4"])
def test_requests_of_all_sizes_arrive_unchanged(scene, number):
    """Also those above 256 KiB, which is the most that Linux maps at once."""
    name = block_device(scene.guest, scene.devices[number])
    data = random.Random(number).randbytes(8 * MIB)
    with open(scene.images[number], "r+b") as f:
        f.seek(64 * MIB)
        f.write(data)
    for block in (512, 4096, 61440, 131072, 1 << 20, 4 << 20):
        size = MIB // 2 if block == 512 else 8 * MIB
        sums = scene.guest.run(f"""
echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/{name} bs={block} skip={64 * MIB} count={size} \
	iflag=direct,skip_bytes,count_bytes 2>/dev/null | sha256sum
dd if=/dev/urandom of=/tmp/data bs={size // 2} count=1 2>/dev/null
dd if=/tmp/data of=/dev/{name} bs={block} seek={32 * MIB} \
	oflag=direct,seek_bytes 2>/dev/null
sha256sum </tmp/data
rm /tmp/data
""").split()
        assert sums[0] == hashlib.sha256(data[:size]).hexdigest(), block
        with open(scene.images[number], "rb") as f:
            f.seek(32 * MIB)
            got = hashlib.sha256(f.read(size // 2)).hexdigest()
        assert got == sums[2], block


def test_two_processors_use_two_queues(scene):
    name = block_device(scene.guest, scene.devices[LONG])
    virtio = scene.guest.run(f"readlink /sys/block/{name}/device | sed s,.*/,,")
    assert scene.guest.run(f"ls /sys/block/{name}/mq").split() == ["0", "1"]
    scene.guest.run(f"""
for cpu in 1 2; do
	taskset $cpu dd if=/dev/{name} bs=64k count=64 skip=$((cpu * 64)) \
		iflag=direct 2>/dev/null | sha256sum >/tmp/cpu$cpu &
done
wait
for cpu in 1 2; do
	dd if=/dev/{name} bs=1M count=4 skip=$((cpu * 4)) iflag=direct \
		2>/dev/null | sha256sum | cmp - /tmp/cpu$cpu
done
""")
    for queue in range(2):
        counts = scene.guest.run(f"grep '{virtio}-req.{queue}$' "
                                 "/proc/interrupts").split()[1:3]
        assert sum(map(int, counts)) > 10, counts


@DISKS
def test_a_driver_lets_go_of_its_disk_and_takes_it_again(scene, number):
    """The device is reset and set up anew over one connection."""
    name = block_device(scene.guest, scene.devices[number])
    virtio = scene.guest.run(f"readlink /sys/block/{name}/device | sed s,.*/,,")
    read = (f"dd if=/dev/{name} bs=1M count=4 iflag=direct 2>/dev/null"
            " | sha256sum")
    wanted = scene.guest.run(read)
    for _ in range(3):
        scene.guest.run(f"""
cd /sys/bus/virtio/drivers/virtio_blk
echo {virtio} >unbind
[ ! -e /dev/{name} ]
echo {virtio} >bind
[ -b /dev/{name} ]
""")
        assert scene.guest.run(read) == wanted


def test_a_folder_is_shared(scene):
    """No O_DIRECT here: its bit is another flag's in the host's open(2), and
    FUSE passes it on as it is."""
    scene.guest.run("""
mkdir -p /tmp/share
mount -t virtiofs moat /tmp/share
cd /tmp/share
sha256sum -c -s host.sums
mkdir -p guest/deep
for i in $(seq 100); do echo "line $i" >guest/deep/$i; done
head -c 9300031 /dev/urandom >guest/large
mv guest/deep/100 guest/moved
rm guest/deep/99
sha256sum guest/large guest/moved guest/deep/* >guest.sums
cd /
umount /tmp/share
""")
    checked = run(["sha256sum", "-c", "--quiet", "guest.sums"],
                  cwd=scene.folder)
    assert checked.returncode == 0, checked.stdout
    assert len(os.listdir(os.path.join(scene.folder, "guest/deep"))) == 98


def test_a_network_moves_megabytes_both_ways(scene):
    transfer(scene.guest)


def test_the_guest_says_which_pool_each_device_has(scene):
    log = scene.guest.run("dmesg")
    for n, device in enumerate(scene.devices):
        address = pool(n).address
        assert re.search(r"created restricted DMA pool at "
                         f"0x0*{address:x}, size {POOL // MIB} MiB", log)
        assert (f"{device.name}: assigned reserved memory node "
                f"restricted-dma@{address:x}\n") in log


@DISKS
def test_the_pool_is_what_the_guest_bounces_through(scene, number):
    """Rings are in it all the time, and a read of 64 KiB takes as much more."""
    name = block_device(scene.guest, scene.devices[number])
    rings = counter(scene.guest, number, "used")
    assert rings > 0
    scene.guest.run("echo 0 >/sys/kernel/debug/restricted-dma@"
                    f"{pool(number).address:x}/io_tlb_used_hiwater")
    scene.guest.run(f"dd if=/dev/{name} of=/dev/null bs=64k count=1 "
                    "iflag=direct 2>/dev/null")
    assert (counter(scene.guest, number, "used_hiwater")
            >= rings + (64 << 10) // SLOT)


def test_each_backend_reaches_its_own_pool_and_no_other_memory(scene):
    report = audit(scene.guest.pid, *(b.pid for b in scene.backends))
    assert ram_reached(report, scene.guest.pid) >= RAM
    seen = {}
    for backend in scene.backends:
        assert ram_reached(report, backend.pid) == 0
        own = objects(report, backend.pid)
        assert list(own.values()) == [POOL], own
        seen.update(own)
    # ... and no two the same one.
    assert len(seen) == len(scene.backends)
    assert set(seen) < set(objects(report, scene.guest.pid))


def test_no_backend_reaches_the_guests_secret(scene):
    secret = plant_secret(scene.guest)
    assert spy_finds(scene.guest.pid, secret)
    for backend in scene.backends:
        assert not spy_finds(backend.pid, secret)


def test_the_guards_have_nothing_to_say(scene):
    """Runs last: they live, complain of nothing, copied nothing, and end."""
    assert scene.guest.poweroff() == 0
    for guard in scene.guards:
        guard.expect("0 bytes bounced")
        assert guard.running()
        assert "error: " not in guard.log and "warning: " not in guard.log
        assert guard.terminate() == 0


def test_without_a_guard_a_backend_reaches_all():
    """The same guest, straight: what the tests above look for is there."""
    with ExitStack() as stack:
        s = Scene(stack)
        s.add_disk("mmio", 31)
        s.devices[0] = s.devices[0]._replace(
            socket_path=s.backends[0].socket_path)
        s.boot(s.own_pools())
        secret = plant_secret(s.guest)
        assert spy_finds(s.backends[0].pid, secret)
        report = audit(s.guest.pid, s.backends[0].pid)
        assert ram_reached(report, s.backends[0].pid) >= RAM


# What keeps a device from having its pool, and what is said of it.  The last
# one's pool is part of the memfd that is all of the guest's RAM.
NO_POOL, NO_PLATFORM, NO_BANK = range(3)
WHY = {
    NO_POOL: r"its rings .* lie outside the pool at 0x50000000; "
             ".*memory-region",
    NO_PLATFORM: r"its rings .* lie outside the pool at 0x52000000; "
                 ".*iommu_platform=on",
    NO_BANK: r"the pool at 0x4c000000 is part of a larger fd of guest RAM and "
             "there is no /dev/udmabuf to carve it out; .*memory backend",
}
PART = Pool(RAM_AT + 192 * MIB, POOL)


def unfit(scene):
    """Three disks that can not be direct; returns the tree's pools."""
    scene.add_disk("mmio", 31)
    scene.add_disk("mmio", 30, access_platform=False)
    scene.add_disk("mmio", 29)
    return [(pool(NO_PLATFORM), scene.devices[NO_PLATFORM]),
            (PART, scene.devices[NO_BANK])]


def pool_option(number):
    return (PART if number == NO_BANK else pool(number)).option


@pytest.mark.parametrize("number", list(WHY), ids=[
    "no-pool-in-the-tree", "no-access-platform", "no-fd-of-its-own"])
def test_direct_refuses_a_device_without_a_pool(number):
    if number == NO_BANK and os.path.exists("/dev/udmabuf"):
        return      # can be direct here: see test_all_udmabuf.py
    with ExitStack() as stack:
        s = Scene(stack)
        pools = unfit(s)
        for n in range(3):
            s.guard(n, f"--share={'direct' if n == number else 'auto'}",
                    pool_option(n))
        # This guest waits for its disk for ever.
        s.boot(pools, wait=False)
        s.guards[number].expect("error: queue 0: share=direct refused: "
                                + WHY[number])
        report = audit(s.guest.pid, s.backends[number].pid)
        assert not objects(report, s.backends[number].pid)


def test_auto_bounces_for_a_device_without_a_pool():
    """It says why, all works, and its backend has the guard's pool; but not
    what was to be the guest's: there the guest keeps data of its own now."""
    with ExitStack() as stack:
        s = Scene(stack)
        pools = unfit(s)
        for n in range(3):
            s.guard(n, "--share=auto", pool_option(n))
        s.boot(pools)
        secret = plant_secret(s.guest)
        for n in WHY:
            if n == NO_BANK and os.path.exists("/dev/udmabuf"):
                continue
            s.guards[n].expect("share=auto: chose bounce because " + WHY[n])
            use(s.guest, block_device(s.guest, s.devices[n]), s.images[n])
            report = audit(s.guest.pid, s.backends[n].pid)
            own = objects(report, s.backends[n].pid)
            assert list(own.values()) == [BOUNCE_POOL], own
            assert not spy_finds(s.backends[n].pid, secret)
        assert spy_finds(s.guest.pid, secret)


def test_auto_is_direct_for_a_device_with_a_pool():
    with ExitStack() as stack:
        s = Scene(stack)
        s.add_disk("mmio", 31)
        guard = s.guard(0, pool(0).option)
        for _ in range(2):      # one guest after the other
            mark = len(guard.log)
            s.boot(s.own_pools())
            guard.expect("share=auto: chose direct because its rings lie in "
                         "the pool", mark)
            use(s.guest, block_device(s.guest, s.devices[0]), s.images[0])
            report = audit(s.guest.pid, s.backends[0].pid)
            assert list(objects(report, s.backends[0].pid).values()) == [POOL]
            s.guest.poweroff()


def test_a_load_that_wants_more_than_the_pool_goes_on_correctly():
    """The guest waits for room, as it does with any restricted pool."""
    part, parts = 4 * MIB, 16
    with ExitStack() as stack:
        s = Scene(stack, pool_size=2 * MIB)
        s.add_disk("mmio", 31)
        s.guard(0, "--share=direct", pool(0, s.pool_size).option)
        data = random.Random(0).randbytes(part * parts)
        with open(s.images[0], "r+b") as f:
            f.write(data)
        s.boot(s.own_pools())
        sums = s.guest.run(f"""
for n in $(seq 0 {parts - 1}); do
	(dd if=/dev/vda bs={part} skip=$n count=1 iflag=direct 2>/dev/null |
		sha256sum >/tmp/read$n) &
done
wait
for n in $(seq 0 {parts - 1}); do cat /tmp/read$n; done
dmesg | grep -c 'swiotlb buffer is full'
""").split()
        assert sums[:-1:2] == [
            hashlib.sha256(data[n * part:(n + 1) * part]).hexdigest()
            for n in range(parts)]
        assert int(sums[-1]) > 0


def test_the_options_that_moat_dt_prints_boot_a_protected_guest():
    """As docs/dt.md tells it: QEMU's tree of a plain machine, pools where
    there is room, the options for them, and a guard for each device."""
    nodes = "/virtio_mmio@a003e00", "/pcie@10000000/virtio@2,0"
    plain = in_root("qemu-system-aarch64", "-nodefaults", "-display", "none",
                    "-cpu", "max,pauth-impdef=on", "-smp", "1")
    with ExitStack() as stack:
        work = stack.enter_context(Workdir())
        tree, pooled = work / "virt.dtb", work / "pooled.dtb"
        given = [f"--device={node}" for node in nodes]
        for command in (
                [*plain, "-machine", f"virt,dumpdtb={tree}", "-m", "256"],
                [moat(), "dt", "add-pool", tree, "-o", pooled, "--size=16M",
                 *given],
                [moat(), "dt", "check", pooled, *given]):
            done = run(command)
            assert done.returncode == 0, done.stdout + done.stderr
        options = run([moat(), "dt", "qemu", pooled,
                       f"--sockets={work.path}"]).stdout.split()
        backends = []
        for n, node in enumerate(nodes):
            backends.append(stack.enter_context(StorageDaemon(
                work / f"blk{n}", make_image(work / f"disk{n}", IMAGE))))
            stack.enter_context(Guard(
                work / f"moat{n}.sock", backends[n].socket_path,
                options=["--share=direct", f"--dtb={pooled}",
                         f"--device={node}"]))
        guest = stack.enter_context(Guest(
            [*plain, "-machine", "virt", *options, *kernel()],
            "QEMU (arm64)"))
        report = audit(guest.pid, *(b.pid for b in backends))
        for n, name in enumerate(("vda", "vdb")):
            use(guest, name, work / f"disk{n}")
            own = objects(report, backends[n].pid)
            assert list(own.values()) == [16 * MIB], own


def scribble(backend, size, seed):
    """Random bytes all over the pool, as the backend could write them itself:
    through its own mapping.  False if it has none any more."""
    with open(f"/proc/{backend.pid}/maps", encoding="ascii") as f:
        ranges = [re.match("([0-9a-f]+)-([0-9a-f]+) rw-s .*memfd:", line)
                  for line in f]
    found = [(int(r[1], 16), int(r[2], 16)) for r in ranges if r]
    if not found:
        return False
    assert sum(end - start for start, end in found) == size, found
    data = random.Random(seed).randbytes(size)
    with open(f"/proc/{backend.pid}/mem", "r+b", buffering=0) as f:
        for start, end in found:
            f.seek(start)
            assert f.write(data[:end - start]) == end - start
    return True


def test_a_backend_that_writes_all_over_its_pool_breaks_its_own_device_only():
    """While that device is at work."""
    with ExitStack() as stack:
        s = Scene(stack)
        s.add_disk("mmio", 31)
        s.add_disk("pci", 1)
        for n in range(2):
            s.guard(n, "--share=direct", pool(n).option)
        s.boot(s.own_pools())
        evil, good = (block_device(s.guest, d) for d in s.devices)
        s.guest.run(f"""
dd if=/dev/urandom of=/tmp/canary bs=1M count=32 2>/dev/null
sha256sum /tmp/canary >/tmp/canary.sum
while :; do
	dd if=/dev/{evil} of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null
	echo >>/tmp/rounds
done >/dev/null 2>&1 &
until [ -s /tmp/rounds ]; do usleep 10000; done
""")
        for seed in range(2):
            # One that finds its rings broken may hang up.
            assert scribble(s.backends[0], POOL, seed) or seed
            rounds = s.guest.run("wc -c </tmp/rounds")
            use(s.guest, good, s.images[1])
        # It is broken indeed, and that is all.
        assert s.guest.run("wc -c </tmp/rounds") == rounds
        s.guest.run("sha256sum -c -s /tmp/canary.sum")
        assert s.guards[1].running()
        assert "error: " not in s.guards[1].log
