# SPDX-License-Identifier: Apache-2.0
"""What is written, for whom it is written, and the exit status."""
import ctypes
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

from conftest import MIB, MOAT, TOP, row
from test_figures import SIZE, guarded

EVIL = "a\n\x1b[31m<&\"\\é'"
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def lanes(path):
    tree = ElementTree.parse(path)
    assert tree.getroot().tag == "{http://www.w3.org/2000/svg}svg"
    return [(lane.get("class"), int(lane.get("pid")), lane.get("role"),
             int(lane.get("bytes")), lane.get("fd"))
            for lane in tree.iter("{urn:moat:audit:1}lane")]


def test_the_table_names_each_process_its_role_and_its_reach(scene):
    vmm, guard, backend = guarded(scene, leak=True)
    done = scene.run(f"--vmm={vmm.pid}")
    lines = {int(line.split()[0]): line for line in done.stdout.splitlines()
             if line.split() and line.split()[0].isdigit()}
    assert done.returncode == 0
    assert set(lines) == {vmm.pid, guard.pid, backend.pid}
    assert " vmm " in lines[vmm.pid] and "8.0 MiB" in lines[vmm.pid]
    assert " guard " in lines[guard.pid]
    assert "OUTSIDE" not in lines[guard.pid]
    assert "8.0 MiB 100.0% fd" in lines[backend.pid]
    assert "OUTSIDE" in lines[backend.pid]


def test_the_table_of_a_guarded_vm_says_0_bytes(scene):
    vmm, _, _ = guarded(scene)
    done = scene.run(f"--vmm={vmm.pid}", "--check")
    assert done.returncode == 0
    assert "=> 0 bytes of guest RAM outside the pool" in done.stdout
    assert "OUTSIDE" not in done.stdout


def test_the_picture_has_one_lane_for_each_object_and_process(scene):
    vmm, guard, backend = guarded(scene)
    path = f"{scene.folder}/map.svg"
    assert scene.run(f"--vmm={vmm.pid}", f"--svg={path}").returncode == 0
    assert sorted(lanes(path)) == sorted([
        ("ram", vmm.pid, "vmm", SIZE, "yes"),
        ("ram", guard.pid, "guard", SIZE, "yes"),
        ("ram", backend.pid, "backend", 0, "no"),
        ("pool", vmm.pid, "vmm", 0, "no"),
        ("pool", guard.pid, "guard", 2 * MIB, "yes"),
        ("pool", backend.pid, "backend", 2 * MIB, "yes")])


def test_hostile_names_reach_neither_terminal_nor_markup(scene):
    ram = scene.memfd(SIZE, EVIL)
    vmm = scene.vmm(ram, SIZE)
    backend = scene.actor([ram], program=scene.program(EVIL))
    path = f"{scene.folder}/map.svg"
    done = scene.run(f"--vmm={vmm.pid}", f"--svg={path}")
    assert done.returncode == 0
    assert str(backend.pid) in done.stdout
    assert all(c == "\n" or " " <= c <= "~" for c in done.stdout)
    assert len(lanes(path)) == 2
    report = scene.audit(f"--vmm={vmm.pid}")
    assert row(report, backend)["name"].startswith("a\\x0a\\x1b[31m<&\"")


def detached_tmpfs():
    """A mount that is nowhere: what is in it has the path "/NAME"."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.argtypes = [ctypes.c_long] * 6
    name = ctypes.create_string_buffer(b"tmpfs")
    context = libc.syscall(430, ctypes.addressof(name), 0, 0, 0, 0)  # fsopen
    assert libc.syscall(431, context, 6, 0, 0, 0) == 0  # FSCONFIG_CMD_CREATE
    mount = libc.syscall(432, context, 0, 0, 0, 0)  # fsmount
    assert mount >= 0, os.strerror(ctypes.get_errno())
    os.close(context)
    return mount


def test_a_file_that_is_named_like_a_pools_memfd_is_no_pool(scene):
    mount = detached_tmpfs()
    name = "memfd:moat-pool"
    fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o600, dir_fd=mount)
    os.unlink(name, dir_fd=mount)
    os.close(mount)
    os.ftruncate(fd, SIZE)
    assert os.readlink(f"/proc/self/fd/{fd}") == f"/{name} (deleted)"
    scene.fds[fd] = True
    vmm = scene.vmm(fd, SIZE)
    backend = scene.actor([fd])
    report = scene.audit(f"--vmm={vmm.pid}", "--check", status=3)
    assert row(report, backend)["outside_bytes"] == SIZE
    assert report["objects"][0]["kind"] == "tmpfs"


def test_descriptors_of_odd_kinds_do_no_harm(scene):
    ram = scene.memfd(SIZE)
    vmm = scene.vmm(ram, SIZE)
    backend = scene.actor([ram], plan={"odd": True})
    report = scene.audit(f"--vmm={vmm.pid}")
    assert row(report, backend)["outside_bytes"] == SIZE
    assert row(report, backend)["complete"]


def test_processes_can_be_asked_for_by_name(scene):
    ram = scene.memfd(SIZE)
    vmm = scene.vmm(ram, SIZE)
    backend = scene.actor([ram], program=scene.program("odd-backend"))
    scene.actor([ram])
    report = scene.audit("--name=odd-backend", f"--vmm={vmm.pid}")
    assert [p["pid"] for p in report["processes"] if p["asked"]] == [
        backend.pid]
    assert len(report["processes"]) == 2


def test_without_permission_the_audit_says_that_it_is_incomplete(scene):
    # A copy: the build's folder may be closed to others.
    moat = shutil.copy(MOAT, f"{scene.folder}/moat")
    shutil.copy(f"{MOAT}-audit", f"{scene.folder}/moat-audit")
    actor = scene.actor()
    args = [f"--pid={actor.pid}", "--json"]
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = scene.run(*args, prefix=AS_NOBODY, moat=moat, env=env)
    assert done.returncode == 1
    assert "incomplete" in done.stderr
    report = json.loads(done.stdout)
    assert report["complete"] is False
    assert {"pid": actor.pid, "error": "no permission", "matters": True}.items(
        ) <= next(e for e in report["incomplete"]
                  if e["pid"] == actor.pid).items()
    done = scene.run(*args[:1], prefix=AS_NOBODY, moat=moat, env=env)
    assert f"({actor.pid}): no look at" in done.stdout


def test_a_check_without_the_right_to_look_never_passes(scene):
    moat = shutil.copy(MOAT, f"{scene.folder}/moat")
    shutil.copy(f"{MOAT}-audit", f"{scene.folder}/moat-audit")
    done = scene.run("--all", "--check", prefix=AS_NOBODY, moat=moat,
                     env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})
    assert done.returncode == 1
    assert "no virtual machine found" in done.stdout
    assert "INCOMPLETE" in done.stdout


@pytest.mark.parametrize("args", [
    [], ["--pid=x"], ["--pid=0"], ["--pid=-1"], ["--pid=99999999999999"],
    ["--pid="], ["--name="], ["--nonsense"], ["word"], ["--all", "--pid=1"],
    ["--svg"]])
def test_bad_usage_is_refused_with_status_2(scene, args):
    done = scene.run(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("moat audit: ")


@pytest.mark.parametrize("args", [
    ["--pid=4194305"], ["--vmm=4194305"], ["--name=no\nsuch"]])
def test_who_does_not_exist_is_an_error(scene, args):
    done = scene.run(*args)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_a_picture_that_cannot_be_written_is_an_error(scene):
    actor = scene.actor()
    done = scene.run(f"--pid={actor.pid}", "--svg=/nonexistent/x.svg")
    assert done.returncode == 1
    assert "/nonexistent/x.svg" in done.stderr


def test_output_that_cannot_be_written_is_an_error(scene):
    actor = scene.actor()
    with open("/dev/full", "wb") as full:
        for option in ["--json", "--check"]:
            done = subprocess.run([MOAT, "audit", f"--pid={actor.pid}",
                                   option], stdout=full,
                                  stderr=subprocess.PIPE, check=False)
            assert done.returncode == 1


def test_help_tells_the_options_and_the_exit_status(scene):
    done = scene.run("--help")
    assert done.returncode == 0
    for word in ["--pid", "--name", "--all", "--vmm", "--json", "--svg",
                 "--check", "Exit status"]:
        assert word in done.stdout


def keys_of(value):
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    return set()


def test_every_key_of_the_json_is_documented(scene):
    vmm, _, _ = guarded(scene, leak=True)
    with open(os.path.join(TOP, "docs/audit.md"), encoding="utf-8") as f:
        documented = set(re.findall(r"`\.?(\w+)(?:\[\])?`", f.read()))
    keys = keys_of(scene.audit(f"--vmm={vmm.pid}"))
    assert len(keys) > 40
    assert keys <= documented
