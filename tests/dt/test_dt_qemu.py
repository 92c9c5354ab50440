# SPDX-License-Identifier: Apache-2.0
"""moat dt qemu, with QEMU itself as the judge."""
import json
import re
import subprocess
import time

import pytest
from trees import QEMU, MIB, dump, fdtget, findings, memory_nodes, moat, show

DEVICES = ["/virtio_mmio@a003e00", "/virtio_mmio@a000000",
           "/pcie@10000000/virtio@2,0"]


def qemu_args(path, *options):
    return json.loads(moat("qemu", "--json", path, *options))["args"]


def machine_part(args):
    """Without the devices, whose sockets are not there."""
    at = args.index("-chardev")
    return args[:at]


@pytest.fixture
def pooled(qemu_tree, tmp_path):
    """Three pools with room between them and above."""
    out = str(tmp_path / "pooled.dtb")
    moat("add-pool", qemu_tree, "-o", out, "--address=0x70000000",
         f"--device={DEVICES[0]}", "--size=4M")
    moat("add-pool", out, "-o", out, "--address=0x60000000",
         f"--device={DEVICES[1]}", "--size=8M")
    moat("add-pool", out, "-o", out, f"--device={DEVICES[2]}", "--size=16M")
    return out


def test_qemu_lays_each_pool_into_a_backend_of_its_own(pooled, tmp_path):
    args = machine_part(qemu_args(pooled))
    made = dump(tmp_path / "made.dtb", *args)
    nodes = memory_nodes(made)
    pools = [(p["address"], p["size"]) for p in show(pooled)["pools"]]
    assert len(pools) == 3 and set(pools) <= set(nodes)
    assert nodes == [(0x40000000, 0x20000000), (0x60000000, 8 * MIB),
                     (0x60800000, 0xf800000), (0x70000000, 4 * MIB),
                     (0x70400000, 0xec00000), (0x7f000000, 16 * MIB)]
    # What QEMU hands to the guest is still right.
    assert findings(made, *[f"--device={d}" for d in DEVICES], status=0) == []
    assert sum("memory-backend-memfd" in a and "share=on" in a
               for a in args) == 6


def test_ram_is_covered_whatever_the_pools_size(qemu_tree, tmp_path):
    out = str(tmp_path / "out.dtb")
    moat("add-pool", qemu_tree, "-o", out, "--size=1028K",
         f"--device={DEVICES[0]}")
    made = dump(tmp_path / "made.dtb", *machine_part(qemu_args(out)))
    pool = (0x7fe00000, 1028 << 10)
    assert memory_nodes(made) == [(0x40000000, 0x3fe00000), pool,
                                  (0x7ff01000, 0xff000)]


def test_devices_are_plugged_where_the_tree_says(pooled):
    args = qemu_args(pooled)
    devices = [args[i + 1] for i, a in enumerate(args) if a == "-device"]
    assert all("iommu_platform=on" in d for d in devices)
    assert [d[d.index("bus="):] for d in devices] == [
        "bus=virtio-mmio-bus.0", "bus=virtio-mmio-bus.31",
        "bus=pcie.0,addr=2.0"]
    tree = subprocess.run(
        [QEMU, "-machine", "virt", "-S", "-display", "none", "-monitor",
         "stdio", "-serial", "none"], input="info qtree\nquit\n", text=True,
        capture_output=True, timeout=60, check=True).stdout
    buses = dict(re.findall(
        r"mmio 0*([0-9a-f]+)/0*200\s+bus: (virtio-mmio-bus\.\d+)", tree))
    assert len(buses) == 32
    assert buses["a003e00"] == "virtio-mmio-bus.31"
    assert buses["a000000"] == "virtio-mmio-bus.0"


@pytest.fixture
def disks(tmp_path):
    """A folder with the sockets of three disks, as moat dt numbers them."""
    argv = ["qemu-storage-daemon"]
    for i in range(3):
        image = tmp_path / f"disk{i}"
        image.write_bytes(bytes(MIB))
        argv += ["--blockdev", f"file,filename={image},node-name=d{i}",
                 "--export", f"vhost-user-blk,id=e{i},node-name=d{i},"
                 f"addr.type=unix,addr.path={tmp_path}/moat{i}.sock"]
    pid = tmp_path / "pid"
    with subprocess.Popen([*argv, "--pidfile", pid]) as daemon:
        # The pid file is written once all exports listen.
        deadline = time.monotonic() + 30
        while not pid.exists():
            assert daemon.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        yield tmp_path
        daemon.terminate()


def test_qemu_starts_with_these_options(qemu_tree, tmp_path, disks):
    out = str(tmp_path / "out.dtb")
    moat("add-pool", qemu_tree, "-o", out, "--device=/virtio_mmio@a003c00",
         "--device=/pcie@10000000/virtio@2,0",
         "--device=/pcie@10000000/pci@3,0/virtio@0,0")
    # It is the guard that offers ACCESS_PLATFORM, not such a disk.
    args = [a.replace("iommu_platform=on", "iommu_platform=off")
            for a in qemu_args(out, f"--sockets={disks}")]
    done = subprocess.run(
        [QEMU, "-machine", "virt", "-S", "-display", "none", "-monitor",
         "stdio", "-serial", "none", "-nodefaults", *args], check=False,
        input="info qtree\nquit\n", text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("dev: vhost-user-blk,") == 3
    assert "bus: virtio-mmio-bus.30\n          type virtio-mmio-bus\n" \
        "          dev: vhost-user-blk," in re.sub(r"(?m)^ +", "          ",
                                                 done.stdout)
    assert sorted(re.findall(
        r"dev: (vhost-user-blk-pci|pcie-root-port).*?addr = (\d\d\.\d)",
        done.stdout, re.DOTALL)) == [
            ("pcie-root-port", "03.0"), ("vhost-user-blk-pci", "00.0"),
            ("vhost-user-blk-pci", "02.0")]


def test_a_device_behind_a_root_port_gets_the_port(qemu_tree, tmp_path):
    out = str(tmp_path / "out.dtb")
    moat("add-pool", qemu_tree, "-o", out,
         "--device=/pcie@10000000/pci@3,0/virtio@0,0")
    args = qemu_args(out, "--type=fs")
    port, device = [args[i + 1] for i, a in enumerate(args) if a == "-device"]
    assert port == ("pcie-root-port,id=moat-port0,bus=pcie.0,addr=3.0,"
                    "chassis=1")
    assert device == ("vhost-user-fs-pci,chardev=moat-chr0,tag=moat0,"
                      "iommu_platform=on,disable-legacy=on,bus=moat-port0,"
                      "addr=0")
    assert fdtget(out, "/pcie@10000000/pci@3,0", "device_type", "s") == ["pci"]
    assert show(out)["devices"][-1]["pool"]


@pytest.mark.parametrize("kind, name", [
    ("blk", "vhost-user-blk,chardev=moat-chr0"),
    ("fs", "vhost-user-fs-device,chardev=moat-chr0"),
    ("net", "virtio-net-device,netdev=moat-net0"),
])
def test_qemu_knows_the_devices_options(qemu_tree, tmp_path, kind, name):
    out = str(tmp_path / "out.dtb")
    moat("add-pool", qemu_tree, "-o", out, f"--device={DEVICES[0]}")
    args = qemu_args(out, f"--type={kind}", "--sockets=/run/x")
    assert any(a.startswith(name) for a in args)
    assert "socket,id=moat-chr0,path=/run/x/moat0.sock" in args
    model, *options = args[-1].split(",")
    listed = subprocess.run([QEMU, "-device", f"{model},help"], text=True,
                            capture_output=True, timeout=60, check=True).stdout
    for option in options:
        name = option.split("=")[0]
        assert name == "bus" or f"  {name}=" in listed, option


def test_the_words_survive_a_shell(pooled):
    text = moat("qemu", pooled)
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' $(cat <<'END'\n{text}END\n)"],
        check=True, capture_output=True, text=True).stdout.split("\n")[:-1]
    assert words == qemu_args(pooled)


def test_a_name_that_a_shell_takes_apart_needs_json(pooled, tmp_path):
    odd = tmp_path / "a b.dtb"
    with open(pooled, "rb") as f:
        odd.write_bytes(f.read())
    assert "--json" in moat("qemu", odd, status=1)
    assert str(odd) in qemu_args(odd)


def test_what_qemu_cannot_be_is_refused(tree, qemu_tree):
    assert "no pool" in moat("qemu", qemu_tree, status=1)
    uses = ["memory-region = <&pool>;"]
    holes = tree(ram=[(0x40000000, 0x10000000), (0x60000000, 0x10000000)],
                 reserved=tree.pool(0x60000000), mmio=uses)
    assert "2 pieces" in moat("qemu", holes, status=1)
    outside = tree(reserved=tree.pool(0x90000000), mmio=uses)
    assert "moat dt check" in moat("qemu", outside, status=1)
