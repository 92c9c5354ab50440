# SPDX-License-Identifier: Apache-2.0
"""Who may include whom under src/ (docs/architecture.md has the reasons)."""
import os
import re

# Folder -> the folders beside itself whose headers it may include.
LAYERS = {
    "core": set(),
    "relay": {"core"},
    "model": {"core"},
    "os": {"core"},
    "vu": {"core", "os"},
    "guard": {"core", "relay", "os", "vu"},
    "dev": {"core", "os", "vu"},
    "audit": {"core", "os"},
    "dt": set(),
    "cmd": {"core", "relay", "model", "os", "vu", "guard", "dev", "audit",
            "dt"},
}
# These run without an operating system or a C library.
FREESTANDING = {"core", "relay", "model"}
FREESTANDING_HEADERS = {"float.h", "iso646.h", "limits.h", "stdalign.h",
                        "stdarg.h", "stdatomic.h", "stdbool.h", "stddef.h",
                        "stdint.h", "stdnoreturn.h"}
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]', re.MULTILINE)


def room(path):
    """The layer of a file below src/; each device is a room of its own."""
    parts = path.split("/")
    if parts[0] == "dev" and len(parts) > 2:
        return "dev/" + parts[1]
    return parts[0]


def may_include(source, target):
    """Whether a file of one room may include one of the other."""
    if source == target:
        return True
    layer, other = source.split("/")[0], target.split("/")[0]
    if layer == other == "dev":
        # The harness serves the devices; devices do not know each other.
        return target in ("dev", "dev/host")
    return other in LAYERS.get(layer, set())


def violations(src):
    """One line for each rule that a file below the folder src breaks."""
    found = []
    for folder, _, names in sorted(os.walk(src)):
        for name in sorted(names):
            if not name.endswith((".c", ".h")):
                continue
            path = os.path.relpath(os.path.join(folder, name), src)
            with open(os.path.join(folder, name), encoding="utf-8") as f:
                found += check_file(src, path, f.read())
    return found


def check_file(src, path, text):
    source = room(path)
    layer = source.split("/")[0]
    if layer not in LAYERS:
        return [f"{path}: no rule for {layer}/, see tests/lint/layering.py"]
    found = []
    for kind, name in INCLUDE.findall(text):
        if kind == "<":
            if layer in FREESTANDING and name not in FREESTANDING_HEADERS:
                found.append(f"{path}: <{name}> in freestanding {layer}")
            continue
        beside = os.path.normpath(os.path.join(os.path.dirname(path), name))
        if os.path.exists(os.path.join(src, beside)):
            target = beside
        elif os.path.exists(os.path.join(src, name)):
            target = os.path.normpath(name)
        else:
            found.append(f"{path}: \"{name}\" is not below src/")
            continue
        if not may_include(source, room(target)):
            found.append(f"{path}: {source} may not include \"{name}\"")
    return found
