# SPDX-License-Identifier: Apache-2.0
"""Each finding of moat dt check, provoked; and clean trees."""
from trees import MIB, cell_list, findings, moat

MMIO = "/virtio@a000000"
POOL = "/reserved-memory/restricted-dma@60000000"
USES = "memory-region = <&pool>;"


def test_a_good_tree_has_no_finding(tree):
    dtb = tree(reserved=tree.pool(0x60000000), mmio=[USES])
    assert findings(dtb, status=0) == []
    assert moat("check", dtb) == ""


def test_the_text_has_path_code_and_cure(tree):
    out = moat("check", tree(mmio=[""]), status=3)
    first, second = out.splitlines()
    assert first.startswith(f"{MMIO}: no-pool: ")
    assert second.startswith(f"  cure: `moat dt add-pool --device={MMIO}`")


def test_a_device_with_no_pool(tree):
    dtb = tree(reserved=tree.pool(0x60000000), mmio=[USES, ""],
               pci="blk@1,0 { reg = <0x800 0 0 0 0>; };")
    assert findings(dtb) == [
        ("no-pool", "/virtio@a000200"), ("no-pool", "/pcie@10000000"),
        ("no-pool", "/pcie@10000000/blk@1,0")]


def test_only_the_devices_that_are_named_need_a_pool(tree):
    dtb = tree(reserved=tree.pool(0x60000000), mmio=[USES, ""])
    assert findings(dtb, f"--device={MMIO}", status=0) == []
    assert findings(dtb, f"--device={MMIO}", "--device=/virtio@a000200") == [
        ("no-pool", "/virtio@a000200")]
    moat("check", dtb, "--device=/virtio@b000000", status=1)


def test_a_disabled_device_needs_no_pool(tree):
    dtb = tree(mmio=["status = \"disabled\";"],
               root="soc { status = \"disabled\"; virtio { compatible = "
                    "\"virtio,mmio\"; }; };")
    assert findings(dtb, status=0) == []


def test_overlap_with_each_kind_of_reserved_memory(tree):
    other = (f"x@60800000 {{ reg = <{cell_list((0x60800000, 4096), 2)}>; }};")
    second = ("x@10000000 { reg = <"
              f"{cell_list((0x10000000, 4096, 0x60fff000, 4096), 2)}>; }};")
    for parts in ({"reserved": tree.pool(0x60000000) + other},
                  {"reserved": tree.pool(0x60000000) + second},
                  {"reserved": tree.pool(0x60000000),
                   "head": "/memreserve/ 0x60100000 0x10;"},
                  {"reserved": tree.pool(0x60000000),
                   "root": "chosen { linux,initrd-start = <0 0x5f000000>; "
                           "linux,initrd-end = <0 0x60000001>; };"}):
        assert findings(tree(mmio=[USES], **parts)) == [("overlap", POOL)]


def test_overlap_of_two_pools_is_told_once(tree):
    dtb = tree(reserved=tree.pool(0x60000000) +
               tree.pool(0x60fff000, label="b"),
               mmio=[USES, "memory-region = <&b>;"])
    assert findings(dtb) == [("overlap", POOL)]


def test_memory_that_only_touches_is_no_overlap(tree):
    dtb = tree(head="/memreserve/ 0x5ffff000 0x1000;",
               reserved=tree.pool(0x60000000) +
               tree.pool(0x61000000, label="b"),
               mmio=[USES, "memory-region = <&b>;"])
    assert findings(dtb, status=0) == []


def test_a_pool_outside_ram(tree):
    for ram in ([(0x40000000, 0x20000000)], [(0x40000000, 0x20800000)],
                [(0x60800000, 0x10000000)],
                [(0x40000000, 0x20800000), (0x60801000, 0x10000000)]):
        dtb = tree(ram=ram, reserved=tree.pool(0x60000000), mmio=[USES])
        assert findings(dtb) == [("outside-ram", POOL)]


def test_a_pool_may_lie_across_banks_that_touch(tree):
    dtb = tree(ram=[(0x60800000, 0x800000), (0x40000000, 0x20800000)],
               reserved=tree.pool(0x60000000), mmio=[USES])
    assert findings(dtb, status=0) == []


def test_disabled_memory_is_no_ram(tree):
    dtb = tree(ram=[(0x40000000, 0x1000000)], mmio=[USES],
               reserved=tree.pool(0x60000000),
               root="memory@60000000 { device_type = \"memory\"; status = "
                    "\"disabled\"; reg = "
                    f"<{cell_list((0x60000000, 0x10000000), 2)}>; }};")
    assert findings(dtb) == [("outside-ram", POOL)]


def test_a_pool_shared_by_devices(tree):
    dtb = tree(reserved=tree.pool(0x60000000), mmio=[USES, USES])
    assert findings(dtb) == [("shared-pool", POOL)]


def test_a_pool_too_small_for_its_queues(tree):
    # One queue of 256: 12 KiB of rings, 512 KiB of slots, one mapping of 256.
    small = tree(reserved=tree.pool(0x60000000, 776 * 1024), mmio=[USES])
    enough = tree(reserved=tree.pool(0x60000000, 780 * 1024), mmio=[USES])
    assert findings(small) == [("too-small", POOL)]
    assert findings(enough, status=0) == []
    assert findings(enough, "--queues=2") == [("too-small", POOL)]
    assert findings(enough, "--queue-size=512") == [("too-small", POOL)]
    assert findings(small, "--queue-size=128", status=0) == []


def test_a_shared_pool_is_measured_for_all_its_devices(tree):
    dtb = tree(reserved=tree.pool(0x60000000, MIB), mmio=[USES, USES])
    assert findings(dtb) == [("shared-pool", POOL), ("too-small", POOL)]


def test_wrong_cells(tree):
    pool = tree.pool(0x60000000)
    other = "#address-cells = <1>; #size-cells = <1>; ranges;"
    dtb = tree(reserved=tree.pool(0x60000000, cells=1), reserved_head=other,
               mmio=[USES])
    assert findings(dtb) == [("wrong-cells", "/reserved-memory")]
    for reg in ("<0x60000000 0x1000000>", "<>", "<0 0x60000000 0 0>",
                "<0xffffffff 0xfffff000 0 0x2000>"):
        dtb = tree(reserved=pool.replace(
            f"<{cell_list((0x60000000, 16 * MIB), 2)}>", reg), mmio=[USES])
        assert ("wrong-cells", POOL) in findings(dtb), reg
    dtb = tree(reserved=pool, mmio=[USES], root="memory@0 { device_type = "
               "\"memory\"; reg = <0 0 1>; };")
    assert findings(dtb) == [("wrong-cells", "/memory@0")]
    dtb = tree(reserved=pool, mmio=[USES, "memory-region = [00 00 01];"])
    assert ("wrong-cells", "/virtio@a000200") in findings(dtb)
    dtb = tree(reserved=pool, pci="blk@1,0 { reg = <0x800>; " + USES + "};")
    assert ("wrong-cells", "/pcie@10000000/blk@1,0") in findings(dtb)


def test_a_root_whose_cells_cannot_be_read(tree):
    dtb = tree(cells=3, mmio=[""])
    assert findings(dtb) == [("wrong-cells", "/"), ("no-pool", MMIO)]
    said = moat("add-pool", dtb, "-o", dtb, "--device=" + MMIO, status=1)
    assert "#address-cells" in said


def test_a_dangling_phandle(tree):
    dtb = tree(reserved=tree.pool(0x60000000), root=f"other {{ {USES} }};",
               mmio=["memory-region = <0x77>;"])
    assert findings(dtb) == [("dangling-phandle", MMIO), ("no-pool", MMIO)]
    # Linux goes on behind it.
    dtb = tree(reserved=tree.pool(0x60000000),
               mmio=["memory-region = <0x77 &pool>;"])
    assert findings(dtb) == [("dangling-phandle", MMIO)]


def test_a_phandle_that_two_nodes_have(tree):
    dtb = tree(reserved=tree.pool(0x60000000, extra="phandle = <9>;"),
               mmio=["memory-region = <9>;"], root="x { y = <1>; };")
    assert findings(dtb, status=0) == []
    dtb = tree(reserved=tree.pool(0x60000000, extra="phandle = <9>;"),
               mmio=["memory-region = <9>;"], root="x { phandle = <9>; };")
    assert findings(dtb) == [("duplicate-phandle", "/x")]


def test_a_region_that_is_no_reserved_memory(tree):
    dtb = tree(root="x: x { compatible = \"restricted-dma-pool\"; };",
               mmio=["memory-region = <&x>;"])
    assert findings(dtb) == [("no-region", MMIO), ("no-pool", MMIO)]


def test_each_property_for_which_linux_refuses_a_pool(tree):
    for name in ("no-map", "reusable", "linux,cma-default",
                 "linux,dma-default"):
        dtb = tree(reserved=tree.pool(0x60000000, extra=name + ";"),
                   mmio=[USES])
        assert findings(dtb) == [("refused-property", POOL)]
        assert name in moat("check", dtb, status=3)


def test_a_pool_whose_place_only_the_guest_knows(tree):
    dtb = tree(reserved="pool: pool { compatible = \"restricted-dma-pool\"; "
                        "size = <0 0x1000000>; };", mmio=[USES])
    assert findings(dtb) == [("no-address", "/reserved-memory/pool")]


def test_a_pool_that_is_not_whole_pages(tree):
    for start, size in ((0x60000800, 16 * MIB), (0x60000000, 16 * MIB + 8)):
        dtb = tree(reserved=tree.pool(start, size), mmio=[USES])
        assert findings(dtb) == [
            ("unaligned", f"/reserved-memory/restricted-dma@{start:x}")]


def test_a_disabled_pool_protects_nobody(tree):
    dtb = tree(reserved=tree.pool(0x60000000, extra="status = \"disabled\";"),
               mmio=[USES])
    assert findings(dtb) == [("disabled", MMIO), ("no-pool", MMIO)]


def test_reserved_memory_that_linux_ignores(tree):
    cells = "#address-cells = <2>; #size-cells = <2>;"
    dtb = tree(reserved=tree.pool(0x60000000), reserved_head=cells,
               mmio=[USES])
    assert findings(dtb) == [("no-ranges", "/reserved-memory")]
    moat("add-pool", dtb, "-o", dtb, "--device=" + MMIO, status=1)


def test_a_pool_that_nobody_uses(tree):
    dtb = tree(reserved=tree.pool(0x60000000), mmio=["status = \"fail\";"])
    assert findings(dtb) == [("unused-pool", POOL)]


def test_a_device_that_is_not_virtio_may_use_a_pool(tree):
    dtb = tree(reserved=tree.pool(0x60000000), root=f"wifi {{ {USES} }};")
    assert findings(dtb, status=0) == []


def test_a_device_that_names_several_pools(tree):
    dtb = tree(reserved=tree.pool(0x60000000) +
               tree.pool(0x61000000, label="b"),
               mmio=["memory-region = <&pool &b>;"])
    assert findings(dtb) == [
        ("several-pools", MMIO),
        ("unused-pool", "/reserved-memory/restricted-dma@61000000")]


def test_a_pool_of_several_ranges(tree):
    reg = cell_list((0x60000000, 16 * MIB, 0x70000000, 16 * MIB), 2)
    dtb = tree(reserved="pool: restricted-dma@60000000 { compatible = "
                        f"\"restricted-dma-pool\"; reg = <{reg}>; }};",
               mmio=[USES])
    assert findings(dtb) == [("several-ranges", POOL)]


def test_more_regions_than_linux_keeps(tree):
    dtb = tree(reserved=tree.pool(0x60000000) + "".join(
        f"x@{0x50000000 + 4096 * i:x} {{ reg = "
        f"<{cell_list((0x50000000 + 4096 * i, 4096), 2)}>; }};"
        for i in range(64)), mmio=[USES])
    assert findings(dtb) == [("too-many-regions", "/reserved-memory")]


def test_a_bridge_does_not_pass_its_pool_on(tree):
    dtb = tree(reserved=tree.pool(0x60000000),
               pci="pci@1,0 { device_type = \"pci\"; reg = <0x800 0 0 0 0>; "
                   "#address-cells = <3>; #size-cells = <2>; ranges; " + USES +
                   " blk@0,0 { reg = <0 0 0 0 0>; }; };")
    device = "/pcie@10000000/pci@1,0/blk@0,0"
    assert findings(dtb, f"--device={device}") == [
        ("pool-on-bridge", "/pcie@10000000/pci@1,0"), ("no-pool", device)]


def test_a_device_behind_an_iommu_does_not_use_its_pool(tree):
    dtb = tree(reserved=tree.pool(0x60000000), mmio=[USES + "iommus = <1>;"])
    assert findings(dtb) == [("behind-iommu", MMIO)]
    dtb = tree(reserved=tree.pool(0x60000000),
               pci="iommu-map = <0 1 0 0x10000>; " + USES)
    assert findings(dtb) == [("behind-iommu", "/pcie@10000000")]
