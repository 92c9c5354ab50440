# SPDX-License-Identifier: Apache-2.0
"""The structure that docs/architecture.md promises, read off the tree."""
import glob
import os
import re
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))

import layering  # noqa: E402

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
BUILD = os.path.join(TOP, os.environ.get("MOAT_BUILD", "build"))
# What a compiler may call on its own, even where there is no C library.
COMPILER_NEEDS = {"memcpy", "memmove", "memset", "memcmp"}
LINKER_MAKES = {"_GLOBAL_OFFSET_TABLE_"}


def tracked():
    """The files that git knows, as paths from the top."""
    out = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, check=True,
                         capture_output=True, text=True).stdout
    files = [f for f in out.split("\0")
             if f and os.path.isfile(os.path.join(TOP, f))]
    assert files
    return files


def text_of(path):
    """The text of a file, or None where it is none."""
    with open(os.path.join(TOP, path), "rb") as f:
        data = f.read()
    return None if b"\0" in data else data.decode("utf-8", "replace")


def test_each_layer_includes_only_the_layers_below_it():
    assert layering.violations(os.path.join(TOP, "src")) == []


@pytest.mark.parametrize("path, line, complaint", [
    ("core/a.c", '#include "os/log.h"', "core may not include"),
    ("core/a.c", "#include <stdlib.h>", "freestanding core"),
    ("relay/a.c", "# include <string.h>", "freestanding relay"),
    ("vu/a.c", '#include "guard/x.h"', "vu may not include"),
    ("guard/a.c", '#include "dev/host/x.h"', "guard may not include"),
    ("guard/a.c", '#include "cmd/x.h"', "guard may not include"),
    ("dev/blk/a.c", '#include "dev/fs/x.h"', "dev/blk may not include"),
    ("dev/blk/a.c", '#include "../fs/x.h"', "dev/blk may not include"),
    ("dev/blk/a.c", '#include "guard/x.h"', "dev/blk may not include"),
    ("dev/host/a.c", '#include "relay/x.h"', "dev/host may not include"),
    ("audit/a.c", '#include "vu/x.h"', "audit may not include"),
    ("new/a.c", "", "no rule for new/"),
])
def test_a_breach_of_the_layers_is_noticed(tmp_path, path, line, complaint):
    for header in ("os/log.h", "guard/x.h", "dev/host/x.h", "dev/fs/x.h",
                   "cmd/x.h", "relay/x.h", "vu/x.h", path):
        file = tmp_path / header
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    (tmp_path / path).write_text(line + "\n")
    found = layering.violations(tmp_path)
    assert len(found) == 1 and complaint in found[0]


def symbols(archive, *options):
    out = subprocess.run(["nm", "--format=posix", *options, archive],
                         check=True, capture_output=True, text=True).stdout
    return {line.split()[0] for line in out.splitlines()
            if line and not line.endswith(":")}


def test_core_relay_and_model_need_no_c_library():
    archives = (glob.glob(f"{BUILD}/src/core/*.a")
                + glob.glob(f"{BUILD}/src/relay/*.a")
                + glob.glob(f"{BUILD}/src/model/*.a"))
    assert len(archives) == 3, f"libraries of the freestanding: {archives}"
    needed, defined = set(), set()
    for archive in archives:
        needed |= symbols(archive, "--undefined-only")
        defined |= symbols(archive, "--defined-only")
    assert defined, "nm shows nothing"
    assert needed - defined - COMPILER_NEEDS - LINKER_MAKES == set()


def test_no_file_names_the_machine_that_it_was_written_on():
    places = re.compile(
        r"(?<![\w.$}{*-])/(work|home|root)/\w|[.][.]/shared\b|[.]library/"
        r"|\bfarm-(bench|studio)\b|\b(deb|security|snapshot|ftp)\.debian\b")
    found = []
    for path in tracked():
        for number, line in enumerate((text_of(path) or "").splitlines(), 1):
            if places.search(line):
                found.append(f"{path}:{number}: {line.strip()[:100]}")
    assert found == []


def test_each_source_file_names_its_licence():
    sources = [f for f in tracked()
               if f.endswith((".c", ".h", ".py", ".sh"))
               or (text_of(f) or "").startswith("#!")]
    assert len(sources) > 10
    bare = [f for f in sources if "SPDX-License-Identifier: Apache-2.0"
            not in "\n".join(text_of(f).splitlines()[:3])]
    assert bare == []
