# SPDX-License-Identifier: Apache-2.0
"""Real virtual machines without a guard: the audit shows what they expose."""
import os
import subprocess
import sys
import time

import pytest

from conftest import MIB, TOP, ranges, row

sys.path.insert(0, os.path.join(TOP, "tests/e2e"))

import backends  # noqa: E402
import guests  # noqa: E402


@pytest.fixture
def uml(tmp_path):
    """A guest in user-mode Linux with a disk from qemu-storage-daemon."""
    sock = tmp_path / "disk.sock"
    image = backends.make_image(tmp_path / "disk", 64 * MIB)
    with backends.StorageDaemon(sock, image) as daemon:
        guest = guests.UserModeLinux([(sock, 2)], memory=128)
        with guest:
            guest.run("dd if=/dev/vda of=/dev/null bs=64k count=4")
            yield guest, daemon


def test_the_storage_daemon_reaches_all_ram_of_user_mode_linux(scene, uml):
    guest, daemon = uml
    report = scene.audit(f"--pid={guest.pid}", "--check", status=3)
    vm, = report["vms"]
    ram, = report["objects"]
    assert vm["kind"] == "user-mode-linux"
    assert vm["pid"] == guest.pid
    assert ram["kind"] == "tmpfs" and not ram["has_path"]
    assert vm["ram_bytes"] == ram["size"] >= 128 * MIB
    assert row(report, daemon)["role"] == "backend"
    assert row(report, daemon)["outside_bytes"] == ram["size"]
    assert ranges(report, daemon, "mapped") == [(0, ram["size"])]
    assert vm["outside_processes"] == 1


def children_of(parent):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", encoding="latin-1") as f:
                if int(f.read().rsplit(")", 1)[1].split()[1]) == parent:
                    yield int(pid)
        except (FileNotFoundError, ProcessLookupError):
            pass


def test_the_processes_of_user_mode_linux_are_one_vm(scene, uml):
    guest, daemon = uml
    report = scene.audit(f"--pid={daemon.pid}")
    vm, = report["vms"]
    children = set(children_of(guest.pid))
    assert len(children) >= 2
    assert children <= set(vm["members"])
    assert {p["pid"] for p in vm["processes"]} == {guest.pid, daemon.pid}


def test_a_secret_of_user_mode_linux_is_found_in_its_backend(scene, uml):
    guest, daemon = uml
    digits = guest.run("head -c 32 /dev/urandom >/tmp/secret\n"
                       "od -An -v -tx1 /tmp/secret | tr -d ' \\n'").strip()
    status, report = scene.spy(daemon, digits)
    assert status == 0
    assert any(o["via"] == "mapped" and o["match_count"]
               for o in report["objects"])
    assert scene.spy(daemon, os.urandom(32).hex())[0] == 1


@pytest.fixture
def qemu(request):
    """QEMU with its guest's processor stopped: the memory is all there."""
    process = subprocess.Popen(
        ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-S",
         "-monitor", "stdio", *request.param], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 30
    seen = b""
    while b"(qemu)" not in seen:
        assert time.monotonic() < deadline, seen
        byte = process.stdout.read(1)
        assert byte, seen
        seen += byte
    yield process
    process.stdin.close()
    process.kill()
    process.wait()
    process.stdout.close()


SHARED = ["-machine", "q35,memory-backend=mem", "-m", "96M", "-object",
          "memory-backend-memfd,id=mem,size=96M,share=on"]


@pytest.mark.parametrize("qemu", [SHARED], indirect=True)
def test_a_memfd_of_qemu_is_its_guests_ram(scene, qemu):
    report = scene.audit(f"--pid={qemu.pid}", "--check")
    vm, = report["vms"]
    ram, = report["objects"]
    assert vm["kind"] == "qemu"
    assert vm["ram_bytes"] == vm["ram_mapped_bytes"] == 96 * MIB
    assert (ram["kind"], ram["name"]) == ("memfd",
                                          "memfd:memory-backend-memfd")
    assert [p["role"] for p in vm["processes"]] == ["vmm"]


@pytest.mark.parametrize("qemu", [["-m", "96M"]], indirect=True)
def test_memory_that_qemu_shares_with_nobody_is_called_private(scene, qemu):
    report = scene.audit(f"--pid={qemu.pid}", "--check")
    vm, = report["vms"]
    ram, = report["objects"]
    assert ram["kind"] == "anon"
    assert vm["ram_bytes"] >= 96 * MIB
    assert vm["outside_processes"] == 0
