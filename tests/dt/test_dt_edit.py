# SPDX-License-Identifier: Apache-2.0
"""add-pool, remove-pool and show, read by dtc."""
import os
import stat
import subprocess

import pytest
from trees import (MIB, MOAT, cell_list, dtc, fdtget, findings, moat,
                      number, show)

MMIO = "/virtio@a000000"


def place(path, pool):
    reg = fdtget(path, pool, "reg")
    half = len(reg) // 2
    return number(reg[:half]), number(reg[half:])


def pool_of(path, device):
    """The pool that dtc's tools find by a device's phandle."""
    (phandle,) = fdtget(path, device, "memory-region")
    for pool in show(path)["pools"]:
        if fdtget(path, pool["node"], "phandle") == [phandle]:
            return pool["node"]
    raise AssertionError(f"phandle {phandle} is no pool's")


@pytest.mark.parametrize("cells", [1, 2])
def test_a_pool_is_added_as_linux_wants_it(tree, tmp_path, cells):
    dtb, out = tree(cells=cells, mmio=[""]), str(tmp_path / "out.dtb")
    moat("add-pool", dtb, "-o", out, "--size=32M", f"--device={MMIO}")
    pool = pool_of(out, MMIO)
    assert pool == "/reserved-memory/restricted-dma@7e000000"
    assert place(out, pool) == (0x7e000000, 32 * MIB)
    assert fdtget(out, pool, "compatible", "s") == ["restricted-dma-pool"]
    for node in ("/reserved-memory", "/"):
        assert fdtget(out, node, "#address-cells") == [str(cells)]
        assert fdtget(out, node, "#size-cells") == [str(cells)]
    assert fdtget(out, "/reserved-memory", "ranges") == []
    props = subprocess.run(["fdtget", "-p", out, pool], check=True, text=True,
                           capture_output=True).stdout.split()
    assert sorted(props) == ["compatible", "phandle", "reg"]
    assert findings(out, status=0) == []


def test_dtc_has_nothing_to_say_against_a_new_pool(qemu_tree, tmp_path):
    out = str(tmp_path / "out.dtb")
    moat("add-pool", qemu_tree, "-o", out, "--device=/virtio_mmio@a003e00",
         "--device=/pcie@10000000/virtio@2,1",
         "--device=/pcie@10000000/pci@3,0/virtio@0,0")
    before = set(dtc(qemu_tree).warnings.splitlines())
    after = {w for w in dtc(out).warnings.splitlines() if w not in before}
    assert {w for w in after
            if "reserved" in w or "virtio@" in w or "pci@" in w} == set()


def test_adding_and_removing_is_the_original(qemu_tree, tmp_path):
    out, back = str(tmp_path / "out.dtb"), str(tmp_path / "back.dtb")
    devices = ["/virtio_mmio@a003e00", "/virtio_mmio@a000000", "/pcie@10000000",
               "/pcie@10000000/virtio@2,0",
               "/pcie@10000000/pci@3,0/virtio@0,0"]
    moat("add-pool", qemu_tree, "-o", out, "--size=4M",
         *[f"--device={d}" for d in devices])
    assert len(show(out)["pools"]) == 5
    moat("remove-pool", out, "-o", back, "--all")
    assert dtc(back).source == dtc(qemu_tree).source
    moat("remove-pool", out, "-o", back, *[f"--device={d}" for d in devices])
    assert dtc(back).source == dtc(qemu_tree).source
    moat("remove-pool", out, "-o", back,
         *[f"--pool={p['node']}" for p in show(out)["pools"]])
    assert dtc(back).source == dtc(qemu_tree).source


def test_what_was_reserved_before_stays(tree, tmp_path):
    dtb = tree(head="/memreserve/ 0x7ff00000 0x1000;",
               reserved="fw: firmware@7e000000 { no-map; reg = "
                        f"<{cell_list((0x7e000000, MIB), 2)}>; }};",
               mmio=["memory-region = <&fw>; memory-region-names = \"fw\";"])
    out, back = str(tmp_path / "out.dtb"), str(tmp_path / "back.dtb")
    moat("add-pool", dtb, "-o", out, "--size=4M", f"--device={MMIO}")
    assert len(fdtget(out, MMIO, "memory-region")) == 2
    assert findings(out, status=0) == []
    moat("remove-pool", out, "-o", back, f"--device={MMIO}")
    assert dtc(back).source == dtc(dtb).source
    assert "/memreserve/" in dtc(back).source


def test_a_names_entry_goes_with_its_region(tree, tmp_path):
    dtb = tree(reserved=tree.pool(0x7e000000) + "fw: fw@70000000 { reg = "
                        f"<{cell_list((0x70000000, MIB), 2)}>; }};",
               mmio=["memory-region = <&pool &fw>; "
                     "memory-region-names = \"dma\", \"fw\";"])
    out = str(tmp_path / "out.dtb")
    moat("remove-pool", dtb, "-o", out, "--all")
    assert fdtget(out, MMIO, "memory-region-names", "s") == ["fw"]
    assert fdtget(out, MMIO, "memory-region") == \
        fdtget(out, "/reserved-memory/fw@70000000", "phandle")


def test_room_is_found_around_everything_that_is_taken(tree, tmp_path):
    dtb = tree(head="/memreserve/ 0x7fc00000 0x1000;",
               ram=[(0x40000000, 0x20000000), (0x60000000, 0x10000000),
                    (0x70000000, 0x10000000)],
               reserved=tree.pool(0x7e000000) +
               "x@7d400000 { reg = "
               f"<{cell_list((0x7d400000, 0x1000), 2)}>; }};",
               root="chosen { linux,initrd-start = <0x7ce00000>; "
                    "linux,initrd-end = <0x7d000000>; };",
               mmio=["memory-region = <&pool>;", "", "", ""])
    out = str(tmp_path / "out.dtb")
    moat("add-pool", dtb, "-o", out, "--size=2M",
         *[f"--device=/virtio@a000{n}00" for n in (2, 4, 6)])
    # Left: 0x7fe00000 above /memreserve/, 0x7f... between it and the pool at
    # 0x7e000000-0x7effffff, and so on downwards.
    assert [place(out, pool_of(out, f"/virtio@a000{n}00"))[0]
            for n in (2, 4, 6)] == [0x7fe00000, 0x7fa00000, 0x7f800000]
    moat("add-pool", dtb, "-o", out, "--size=16M", "--device=/virtio@a000200")
    # 16 MiB do not fit above the initrd.
    assert place(out, pool_of(out, "/virtio@a000200"))[0] == 0x7be00000
    assert findings(out, "--device=/virtio@a000200", status=0) == []


def test_room_is_found_in_ram_of_several_pieces(tree, tmp_path):
    dtb = tree(ram=[(0x40000000, 0x10000000), (0x880000000, 0x1000000)],
               mmio=[""])
    out = str(tmp_path / "out.dtb")
    moat("add-pool", dtb, "-o", out, "--size=8M", f"--device={MMIO}")
    assert place(out, pool_of(out, MMIO))[0] == 0x880800000
    moat("add-pool", dtb, "-o", out, "--size=32M", f"--device={MMIO}")
    assert place(out, pool_of(out, MMIO))[0] == 0x4e000000
    moat("add-pool", dtb, "-o", out, "--size=8M", "--below=0x4f000000",
         "--align=16M", f"--device={MMIO}")
    assert place(out, pool_of(out, MMIO))[0] == 0x4e000000
    assert "no room" in moat("add-pool", dtb, "-o", out, "--size=512M",
                             f"--device={MMIO}", status=1)


def test_ram_up_to_the_last_address_is_understood(tree, tmp_path):
    dtb = tree(ram=[(0xffffffff00000000, 0x100000000)], mmio=[""])
    out = str(tmp_path / "out.dtb")
    moat("add-pool", dtb, "-o", out, f"--device={MMIO}")
    assert place(out, pool_of(out, MMIO)) == (0xfffffffffc000000, 64 * MIB)


def test_addresses_are_taken_as_given(tree, tmp_path):
    dtb, out = tree(mmio=["", ""]), str(tmp_path / "out.dtb")
    moat("add-pool", dtb, "-o", out, "--size=4M", "--address=0x50001000",
         f"--device={MMIO}", "--device=/virtio@a000200")
    assert place(out, pool_of(out, MMIO)) == (0x50001000, 4 * MIB)
    assert place(out, pool_of(out, "/virtio@a000200"))[0] == 0x50401000


@pytest.mark.parametrize("args, reason", [
    (["--address=0x80000000"], "outside-ram|does not lie inside the RAM"),
    (["--address=0x7f800000", "--size=16M"], "does not lie inside the RAM"),
    (["--address=0x60000000"], "there already"),
    (["--address=0x60fff000"], "shares memory"),
    (["--address=0x5f000000", "--size=20M"], "shares memory"),
    (["--address=0x50000800"], "not at a page"),
    (["--size=4097"], "not whole pages"),
    (["--size=64K"], "too small"),
    (["--size=1M", "--queues=4"], "too small"),
    (["--size=4M", "--align=3M"], "no power of two"),
    (["--address=0xfffffffffffff000"], "2^64|RAM"),
    (["--size=17179869180G"], "no room"),
    (["--device=/virtio@a000200"], "already has the pool"),
    (["--device=/virtio@b000000"], "no node"),
    (["--device=/memory@40000000"], "no enabled virtio-mmio or PCI"),
    (["--device=virtio@a000000"], "no path"),
    (["--device=/pcie@10000000/virtio@20,0"], "name@slot,function"),
    (["--device=/pcie@10000000/virtio@02"], "name@slot,function"),
    (["--device=/pcie@10000000/other@1,0"], "has the node"),
    (["--device=/pcie@10000000/blk@1,0/x@0,0"], "no node"),
])
def test_a_pool_that_would_not_work_is_not_written(tree, tmp_path, args,
                                                    reason):
    dtb = tree(reserved=tree.pool(0x60000000),
               mmio=["", "memory-region = <&pool>;"],
               pci="blk@1,0 { reg = <0x800 0 0 0 0>; };")
    out = tmp_path / "out.dtb"
    said = moat("add-pool", dtb, "-o", out, f"--device={MMIO}", *args,
                status=1)
    assert any(r in said for r in reason.split("|"))
    assert not out.exists()


def test_a_pool_of_32_bit_cells_lies_below_4_gib(tree, tmp_path):
    dtb, out = tree(cells=1, mmio=[""]), tmp_path / "out.dtb"
    assert "32 bits" in moat("add-pool", dtb, "-o", out,
                             "--address=0x100000000", f"--device={MMIO}",
                             status=1)


def test_each_device_gets_a_pool_of_its_own_unless_shared(tree, tmp_path):
    dtb, out = tree(mmio=["", ""]), str(tmp_path / "out.dtb")
    args = [dtb, "-o", out, f"--device={MMIO}", "--device=/virtio@a000200"]
    moat("add-pool", *args)
    assert [p["users"] for p in show(out)["pools"]] == [1, 1]
    moat("add-pool", *args, "--shared")
    assert [p["users"] for p in show(out)["pools"]] == [2]
    moat("remove-pool", out, "-o", out, f"--device={MMIO}")
    (pool,) = show(out)["pools"]
    assert pool["devices"] == ["/virtio@a000200"]


def test_a_pci_devices_node_says_where_it_is(qemu_tree, tmp_path):
    out = str(tmp_path / "out.dtb")
    moat("add-pool", qemu_tree, "-o", out,
         "--device=/pcie@10000000/virtio@1f,7")
    assert fdtget(out, "/pcie@10000000/virtio@1f,7", "reg") == \
        ["ff00", "0", "0", "0", "0"]


def test_devices_behind_a_host_bridge_inherit_its_pool(tree, tmp_path):
    dtb = tree(pci="blk@1,0 { reg = <0x800 0 0 0 0>; };")
    out = str(tmp_path / "out.dtb")
    moat("add-pool", dtb, "-o", out, "--device=/pcie@10000000")
    devices = {d["node"]: d for d in show(out)["devices"]}
    blk = devices["/pcie@10000000/blk@1,0"]
    assert blk["inherited"] and blk["pool"] == \
        devices["/pcie@10000000"]["pool"]
    # Its own comes first.
    moat("add-pool", out, "-o", out, "--device=/pcie@10000000/blk@1,0")
    devices = {d["node"]: d for d in show(out)["devices"]}
    blk = devices["/pcie@10000000/blk@1,0"]
    assert not blk["inherited"] and blk["pool"] != \
        devices["/pcie@10000000"]["pool"]


def test_phandles_are_not_used_twice(tree, tmp_path):
    dtb = tree(root="x { phandle = <0xfffffffe>; }; y { phandle = <1>; };",
               mmio=["", ""])
    out = str(tmp_path / "out.dtb")
    moat("add-pool", dtb, "-o", out, f"--device={MMIO}",
         "--device=/virtio@a000200")
    assert findings(out, status=0) == []
    assert sorted(fdtget(out, p["node"], "phandle")[0]
                  for p in show(out)["pools"]) == ["2", "3"]


def test_the_input_changes_only_if_it_is_the_output(tree, tmp_path):
    dtb, out = tree(mmio=[""]), str(tmp_path / "out.dtb")
    with open(dtb, "rb") as f:
        before = f.read()
    moat("add-pool", dtb, "-o", out, f"--device={MMIO}")
    with open(dtb, "rb") as f:
        assert f.read() == before
    os.chmod(dtb, 0o640)
    moat("add-pool", dtb, "-o", dtb, f"--device={MMIO}")
    with open(dtb, "rb") as f, open(out, "rb") as g:
        assert f.read() == g.read()
    assert stat.S_IMODE(os.stat(dtb).st_mode) == 0o640


def test_an_output_is_whole_or_absent(tree, tmp_path):
    dtb = tree(mmio=[""])
    out = tmp_path / "folder"
    out.mkdir()
    moat("add-pool", dtb, "-o", "/dev/full", f"--device={MMIO}", status=1)
    (out / "old.dtb").write_text("old")
    # A name that cannot be replaced: a folder.
    moat("add-pool", dtb, "-o", out, f"--device={MMIO}", status=1)
    moat("add-pool", dtb, "-o", out / "old.dtb", f"--device={MMIO}",
         "--size=64K", status=1)
    assert (out / "old.dtb").read_text() == "old"
    moat("add-pool", dtb, "-o", out / "old.dtb", f"--device={MMIO}")
    assert show(out / "old.dtb")["pools"]
    assert os.listdir(out) == ["old.dtb"]


def test_a_link_is_followed_and_a_pipe_is_written_to(tree, tmp_path):
    dtb, link = tree(mmio=[""]), tmp_path / "link"
    link.symlink_to(dtb)
    moat("add-pool", dtb, "-o", link, f"--device={MMIO}")
    assert link.is_symlink() and show(dtb)["pools"]
    assert os.path.exists("/dev/stdout")
    out = subprocess.run(
        ["sh", "-c", '"$0" dt remove-pool "$1" --all -o /dev/stdout | cat',
         MOAT, dtb], check=True, capture_output=True)
    assert out.stdout[:4] == b"\xd0\x0d\xfe\xed"
    assert os.path.exists("/dev/stdout")


def test_show_tells_who_is_unprotected(tree):
    dtb = tree(reserved=tree.pool(0x60000000),
               mmio=["memory-region = <&pool>;", "",
                     "status = \"disabled\";"])
    devices = {d["node"]: d["pool"] for d in show(dtb)["devices"]}
    pool = "/reserved-memory/restricted-dma@60000000"
    assert devices == {MMIO: pool, "/virtio@a000200": None}
    text = moat("show", dtb)
    assert "1 of 2 devices unprotected" in text
    assert "/virtio@a000200  UNPROTECTED" in text
    assert show(dtb)["ram"] == [{"address": 1 << 30, "size": 1 << 30}]
    assert show(dtb)["pools"] == [
        {"node": pool, "address": 0x60000000, "size": 16 * MIB,
         "enabled": True, "users": 1, "devices": [MMIO]}]


@pytest.mark.parametrize("args", [
    [], ["show"], ["bogus", "x"], ["show", "x", "y"], ["show", "x", "-o", "y"],
    ["add-pool", "x", "--device=/y"], ["add-pool", "x", "-o", "y"],
    ["remove-pool", "x", "-o", "y"],
    ["remove-pool", "x", "-o", "y", "--all", "--pool=/z"],
    ["add-pool", "x", "-o", "y", "--device=/y", "--size=0"],
    ["add-pool", "x", "-o", "y", "--device=/y", "--size=-1"],
    ["add-pool", "x", "-o", "y", "--device=/y", "--size=1T"],
    ["add-pool", "x", "-o", "y", "--device=/y", "--address=1", "--align=4K"],
    ["check", "x", "--queue-size=32769"], ["qemu", "x", "--type=a,b"],
])
def test_bad_usage_is_status_2(args):
    moat(*args, status=2)
