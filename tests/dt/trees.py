# SPDX-License-Identifier: Apache-2.0
"""Trees for the tests of moat dt: written as source, compiled and read back by
dtc, which knows nothing of moat; and those that QEMU itself writes."""
import json
import os
import re
import subprocess
import types

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.join(TOP, os.environ.get("MOAT_BUILD", "build"))
MOAT = os.path.join(BUILD, "src/cmd/moat")
QEMU = "qemu-system-aarch64"
MIB = 1 << 20
# A sanitizer's report is neither of the statuses that moat dt has.
SANITIZED = dict(os.environ, ASAN_OPTIONS="exitcode=99",
                 UBSAN_OPTIONS="halt_on_error=1:exitcode=98")


def moat(*args, status=0):
    """Runs moat dt, which has to end with a status, and with a reason for
    each failure; returns what it wrote."""
    done = subprocess.run([MOAT, "dt", *map(str, args)], capture_output=True,
                          text=True, stdin=subprocess.DEVNULL, timeout=60,
                          check=False, env=SANITIZED)
    assert done.returncode == status, done.stdout + done.stderr
    assert bool(done.stderr) == (status in (1, 2)), done.stderr
    return done.stderr if status in (1, 2) else done.stdout


def show(path):
    return json.loads(moat("show", "--json", path))


def findings(path, *args, status=3):
    """What check finds: (code, node) of each finding."""
    out = json.loads(moat("check", "--json", *args, path, status=status))
    assert all(f["text"] and f["cure"] for f in out["findings"])
    return [(f["code"], f["node"]) for f in out["findings"]]


def dtc(path, *options):
    """dtc's own reading of a tree, and what it warns of."""
    done = subprocess.run(["dtc", "-I", "dtb", "-O", "dts", *options, path],
                          capture_output=True, text=True, timeout=60,
                          check=True)
    return types.SimpleNamespace(source=done.stdout, warnings=done.stderr)


def compile_tree(path, source):
    subprocess.run(["dtc", "-q", "-f", "-I", "dts", "-O", "dtb", "-o", path],
                   input=source, text=True, check=True, timeout=60,
                   capture_output=True)
    return path


def fdtget(path, node, prop, kind="x"):
    out = subprocess.run(["fdtget", "-t", kind, path, node, prop], check=True,
                         capture_output=True, text=True, timeout=60).stdout
    return out.split()


def number(cells):
    return int("".join(c.rjust(8, "0") for c in cells), 16)


def cell_list(values, cells):
    return " ".join(f"{v >> 32:#x} {v & 0xffffffff:#x}" if cells == 2
                    else f"{v:#x}" for v in values)


class Tree:
    """A source of a tree with the parts that a test does not care for."""

    def __init__(self, folder):
        self.folder = folder
        self.count = 0

    def __call__(self, *, cells=2, ram=((0x40000000, 0x40000000),), head="",
                 reserved="", reserved_head=None, root="", pci="", mmio=()):
        """Makes a .dtb: mmio are the inner parts of virtio-mmio nodes."""
        self.count += 1
        banks = "".join(
            f"memory@{start:x} {{ device_type = \"memory\"; reg = "
            f"<{cell_list((start, size), cells)}>; }};"
            for start, size in ram)
        devices = "".join(
            f"virtio@{0xa000000 + 0x200 * i:x} {{ compatible = \"virtio,mmio\";"
            f" reg = <{cell_list((0xa000000 + 0x200 * i, 0x200), cells)}>;"
            f" {inner} }};" for i, inner in enumerate(mmio))
        if reserved_head is None:
            reserved_head = (f"#address-cells = <{cells}>; "
                             f"#size-cells = <{cells}>; ranges;")
        if reserved:
            reserved = f"reserved-memory {{ {reserved_head} {reserved} }};"
        if pci:
            pci = ("pcie@10000000 { device_type = \"pci\"; "
                   f"#address-cells = <3>; #size-cells = <2>; {pci} }};")
        return compile_tree(
            os.path.join(self.folder, f"tree{self.count}.dtb"),
            f"/dts-v1/; {head} / {{ #address-cells = <{cells}>; "
            f"#size-cells = <{cells}>; {banks} {reserved} {devices} {pci} "
            f"{root} }};")

    @staticmethod
    def pool(address, size=16 * MIB, label="pool", cells=2, extra=""):
        return (f"{label}: restricted-dma@{address:x} {{ compatible = "
                "\"restricted-dma-pool\"; reg = "
                f"<{cell_list((address, size), cells)}>; {extra} }};")


def dump(path, *options, machine="virt"):
    """The tree that QEMU makes for its machine."""
    subprocess.run([QEMU, "-machine", f"{machine},dumpdtb={path}", "-display",
                    "none", *options], check=True, capture_output=True,
                   timeout=60)
    return str(path)


def memory_nodes(path):
    """(start, size) of each memory node, by dtc."""
    found = []
    for body in re.findall(r"memory@[0-9a-f]+ \{(.*?)\};",
                           dtc(path).source, re.DOTALL):
        cells = [int(c, 16) for c in
                 re.search(r"reg = <(.*?)>", body).group(1).split()]
        found.append((cells[0] << 32 | cells[1], cells[2] << 32 | cells[3]))
    return sorted(found)
