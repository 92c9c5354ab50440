# SPDX-License-Identifier: Apache-2.0
"""Files that somebody made to harm: an error with a reason, at once, and no
crash. The fuzz target beside this goes through the damaged ones."""
import os
import random
import struct
import subprocess

import pytest
from trees import MOAT, SANITIZED, moat

BEGIN, END, PROP, FINISH = 1, 2, 3, 9


def pack(*words):
    return struct.pack(f">{len(words)}I", *words)


def text(s):
    s = s.encode() + b"\0"
    return s + b"\0" * (-len(s) % 4)


def blob(structure, strings=b"", rsv=bytes(16), size=None, version=17):
    """A tree of a structure block as it comes."""
    at_rsv = 40
    at_struct = at_rsv + len(rsv)
    at_strings = at_struct + len(structure)
    total = at_strings + len(strings)
    return pack(0xd00dfeed, total if size is None else size, at_struct,
                at_strings, at_rsv, version, 16, 0, len(strings),
                len(structure)) + rsv + structure + strings


def nodes(n):
    return b"".join(pack(BEGIN) + text(f"n{i}") + pack(END) for i in range(n))


ROOT = pack(BEGIN) + text("")
TAIL = pack(END, FINISH)
PROPS = b"reg\0device_type\0#address-cells\0#size-cells\0"


def prop(name, value):
    return pack(PROP, len(value), PROPS.index(name.encode() + b"\0")) + \
        value + b"\0" * (-len(value) % 4)


CELLS = prop("#address-cells", pack(2)) + prop("#size-cells", pack(2))
FILES = {
    "nothing": (b"", "not a flattened device tree"),
    "source": (b"/dts-v1/; / { };" * 10, "dtc"),
    "header only": (blob(b"")[:40], "cut off"),
    "cut off": (blob(ROOT + nodes(9) + TAIL)[:-8], "cut off"),
    # libfdt 1.6.1 reads the root's name at address 0.
    "old version": (blob(ROOT + TAIL, version=3), "too old"),
    "no end": (blob(ROOT + nodes(9)), "damaged"),
    "too deep": (blob((pack(BEGIN) + text("n")) * 100000), "damaged|deep"),
    "deep": (blob(ROOT + (pack(BEGIN) + text("n")) * 50 + pack(END) * 50 +
                  TAIL), "deep"),
    "too many nodes": (blob(ROOT + nodes(70000) + TAIL), "65536 nodes"),
    "two roots": (blob(ROOT + pack(END) + ROOT + TAIL), "damaged|root"),
    "long name": (blob(ROOT + pack(BEGIN) + text("n" * 4000) + pack(END) +
                       TAIL), "127"),
    "escape in a name": (blob(ROOT + pack(BEGIN) + text("\033[2J") +
                              pack(END) + TAIL), "0x1b"),
    "slash in a name": (blob(ROOT + pack(BEGIN) + text("a/b") + pack(END) +
                             TAIL), "0x2f"),
    "too big": (blob(ROOT + TAIL) + bytes(5 << 20), "too many"),
    "size of a lie": (blob(ROOT + TAIL, size=0xffffffff), "cut off"),
    "endless reservations": (blob(ROOT + TAIL, rsv=b"\0" * 8 + b"\1" * 8),
                             "damaged"),
    "many reservations": (blob(ROOT + CELLS + TAIL, PROPS,
                               rsv=b"\1" * 16 * 300 + bytes(16)), "256"),
    "many banks": (blob(ROOT + CELLS + pack(BEGIN) + text("memory") +
                        prop("device_type", b"memory\0") +
                        prop("reg", pack(0, 1, 0, 1) * 300) +
                        pack(END) + TAIL, PROPS), "256"),
}


@pytest.mark.parametrize("action", ["show", "check", "qemu", "add-pool",
                                    "remove-pool"])
@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_an_error(tmp_path, name, action):
    data, reasons = FILES[name]
    path, out = tmp_path / "x.dtb", tmp_path / "out.dtb"
    path.write_bytes(data)
    args = {"add-pool": ["-o", out, "--device=/a"],
            "remove-pool": ["-o", out, "--all"]}.get(action, [])
    said = moat(action, path, *args, status=1)
    assert any(r in said for r in reasons.split("|")), said
    assert not out.exists()


def test_what_is_no_readable_file_is_an_error(tmp_path):
    assert "No such file" in moat("show", tmp_path / "x", status=1)
    assert "directory" in moat("show", tmp_path, status=1)
    assert "too many" in moat("show", "/dev/zero", status=1)


def test_names_at_the_limits_are_taken(tmp_path):
    name = "n" * 127
    path = tmp_path / "x.dtb"
    path.write_bytes(blob(ROOT + CELLS + (pack(BEGIN) + text(name)) * 31 +
                          pack(END) * 31 + TAIL, PROPS))
    moat("show", path)
    moat("check", path)
    # A reason that is too long is cut, not overrun.
    for length in (32 * 128 - 1, 32 * 128, 100000):
        moat("remove-pool", path, "-o", path, "--device=/" + "n" * length,
             status=1)


def test_real_trees_damaged_at_random_never_crash(qemu_tree, tmp_path):
    """What the fuzz target does with its own trees, with QEMU's; few of them,
    as each is a process."""
    good = tmp_path / "good.dtb"
    moat("add-pool", qemu_tree, "-o", good, "--device=/virtio_mmio@a003e00")
    data = good.read_bytes()
    rng = random.Random(1)
    path, out = tmp_path / "bad.dtb", tmp_path / "out.dtb"
    seen = set()
    for _ in range(60):
        bad = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            struct.pack_into(">I", bad, rng.randrange(0, len(bad) - 4) & ~3,
                             rng.choice([0, 1, 2, 3, 4, 9, 0x7fffffff,
                                         0xffffffff, rng.getrandbits(32)]))
        path.write_bytes(bad)
        for args in (["check"], ["remove-pool", "-o", out, "--all"]):
            done = subprocess.run([MOAT, "dt", args[0], path, *args[1:]],
                                  capture_output=True, timeout=60,
                                  env=SANITIZED, check=False)
            assert done.returncode in (0, 1, 3), done.stderr
            seen.add(done.returncode)
    assert seen == {0, 1, 3}
    assert os.path.exists(out)
