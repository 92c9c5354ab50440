# SPDX-License-Identifier: Apache-2.0
"""Linux itself as the judge: the pool that show tells for each device is the
one that the guest's kernel assigns, and what check complains about the kernel
does not take. A boot takes a second: it ends where the root file system would
be needed."""
import os
import re
import subprocess

import pytest
from trees import QEMU, TOP, dump, fdtget, findings, moat, show

MMIO = [f"/virtio_mmio@{0xa000000 + 0x200 * i:x}" for i in range(32)]
DISKS = 6


@pytest.fixture(scope="session")
def kernel():
    folder = subprocess.run([os.path.join(TOP, "scripts/arm64-guest")],
                            check=True, text=True,
                            stdout=subprocess.PIPE).stdout.strip()
    return os.path.join(folder, "Image")


def device_name(node):
    """What Linux calls the device of a node of QEMU's virt machine."""
    parts = node.split("/")[1:]
    if parts[0].startswith("virtio_mmio@"):
        return parts[0].split("@")[1] + ".virtio_mmio"
    slot = int(parts[-1].split("@")[1].split(",")[0], 16)
    return f"0000:{len(parts) - 2:02x}:{slot:02x}.0"


class Boot:
    """One boot of a tree with disks at so many of its places: QEMU's own, for
    the guest's side is the same."""

    def __init__(self, kernel, dtb, devices, tmp_path):
        image = tmp_path / "disk"
        image.write_bytes(bytes(1 << 20))
        argv = [QEMU, "-machine", "virt", "-cpu", "max,pauth-impdef=on", "-m",
                "512", "-nodefaults", "-display", "none", "-serial", "stdio",
                "-no-reboot", "-kernel", kernel, "-append",
                "console=ttyAMA0 panic=-1", "-dtb", dtb,
                "-global", "virtio-mmio.force-legacy=false"]
        if any("bus=port1" in d for d in devices):
            argv += ["-device", "pcie-root-port,id=port1,addr=3,chassis=1"]
        for i, device in enumerate(devices):
            argv += ["-drive", f"if=none,id=d{i},file={image},format=raw,"
                     "readonly=on", "-device",
                     f"{device},drive=d{i},iommu_platform=on"]
        self.log = subprocess.run(argv, check=True, text=True, timeout=120,
                                  stdin=subprocess.DEVNULL,
                                  capture_output=True).stdout
        # It came as far as to look for its root on the disks.
        assert "Unable to mount root fs" in self.log, self.log
        assert f"[vd{chr(ord('a') + len(devices) - 1)}]" in self.log
        self.pools = dict(re.findall(
            r"(\S+): assigned reserved memory node (\S+)", self.log))


def mmio_disk(place):
    return f"virtio-blk-device,bus=virtio-mmio-bus.{place}"


def pci_disk(where):
    return f"virtio-blk-pci,disable-legacy=on,{where}"


def fdtput(path, node, prop, *values, kind="x"):
    subprocess.run(["fdtput", "-t", kind, path, node, prop, *values],
                   check=True, timeout=60)


@pytest.fixture
def dtb(tmp_path):
    """A tree of 512 MiB with a pool for each of some virtio-mmio nodes; the
    pool of MMIO[i] is at 0x50000000 + i * 16 MiB."""
    path = dump(tmp_path / "virt.dtb", "-m", "512")
    moat("add-pool", path, "-o", path, "--size=16M", "--address=0x50000000",
         *[f"--device={d}" for d in MMIO[:DISKS]])
    return path


def name_of(i):
    return f"restricted-dma@{0x50000000 + i * 0x1000000:x}"


def pool_node(i):
    return f"/reserved-memory/{name_of(i)}"


def test_linux_assigns_the_pools_that_show_tells(kernel, dtb, tmp_path):
    nodes = ["/pcie@10000000/virtio@2,0", "/pcie@10000000",
             "/pcie@10000000/pci@3,0/virtio@0,0"]
    moat("add-pool", dtb, "-o", dtb, "--size=16M",
         *[f"--device={n}" for n in nodes])
    boot = Boot(kernel, dtb, [
        mmio_disk(0), mmio_disk(1), mmio_disk(DISKS), pci_disk("addr=1"),
        pci_disk("addr=2"), pci_disk("bus=port1")], tmp_path)
    told = {d["node"]: d["pool"].split("/")[-1]
            for d in show(dtb)["devices"] if d["pool"]}
    # An mmio device is there even if nothing is plugged in.
    used = [*MMIO[:DISKS], nodes[0], nodes[2]]
    expected = {device_name(n): told[n] for n in used}
    # One without a node has the bridge's, one without a pool has none.
    expected["0000:00:01.0"] = told["/pcie@10000000"]
    assert {k: v for k, v in boot.pools.items()
            if k.endswith(".virtio_mmio") or k.startswith("0000:")} == expected
    assert len(set(expected.values())) == DISKS + 3
    assert findings(dtb, *[f"--device={n}" for n in used], status=0) == []


def test_linux_takes_no_pool_that_check_finds_fault_with(kernel, dtb,
                                                         tmp_path):
    fdtput(dtb, pool_node(0), "no-map")
    fdtput(dtb, pool_node(1), "reusable")
    fdtput(dtb, pool_node(2), "status", "disabled", kind="s")
    fdtput(dtb, MMIO[3], "memory-region", "7777")
    # A phandle that dangles, then two pools: Linux takes the first pool.
    fdtput(dtb, MMIO[4], "memory-region", "7777",
           *fdtget(dtb, MMIO[5], "memory-region"),
           *fdtget(dtb, MMIO[4], "memory-region"))
    assert set(findings(dtb, *[f"--device={d}" for d in MMIO[:DISKS]])) == {
        ("refused-property", pool_node(0)), ("refused-property", pool_node(1)),
        ("disabled", MMIO[2]), ("no-pool", MMIO[2]),
        ("dangling-phandle", MMIO[3]), ("no-pool", MMIO[3]),
        ("unused-pool", pool_node(3)), ("dangling-phandle", MMIO[4]),
        ("several-pools", MMIO[4]), ("unused-pool", pool_node(4)),
        ("shared-pool", pool_node(5))}
    boot = Boot(kernel, dtb, [mmio_disk(i) for i in range(DISKS)], tmp_path)
    assert boot.pools == {device_name(MMIO[4]): name_of(5),
                          device_name(MMIO[5]): name_of(5)}


@pytest.mark.parametrize("damage, code", [
    (["#address-cells", "1"], "wrong-cells"), (None, "no-ranges")])
def test_linux_ignores_reserved_memory_as_check_says(kernel, dtb, tmp_path,
                                                     damage, code):
    if damage:
        fdtput(dtb, "/reserved-memory", *damage)
    else:
        subprocess.run(["fdtput", "-d", dtb, "/reserved-memory", "ranges"],
                       check=True, timeout=60)
    assert code in {c for c, _ in findings(dtb, f"--device={MMIO[0]}")}
    boot = Boot(kernel, dtb, [mmio_disk(0)], tmp_path)
    assert boot.pools == {}
