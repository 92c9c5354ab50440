# SPDX-License-Identifier: Apache-2.0
"""The figures of the audit, in situations that are known to the byte."""
import fcntl
import os

import pytest

from conftest import MIB, POWERLESS, ranges, row

SIZE = 8 * MIB


def test_a_held_descriptor_reaches_all_of_the_ram(scene):
    ram = scene.memfd(SIZE)
    vmm = scene.vmm(ram, SIZE)
    backend = scene.actor([ram])
    report = scene.audit(f"--vmm={vmm.pid}")
    assert row(report, backend)["role"] == "backend"
    assert row(report, backend)["outside_bytes"] == SIZE
    assert ranges(report, backend, "fd") == [(0, SIZE)]
    assert ranges(report, backend, "mapped") == []
    assert report["vms"][0]["ram_bytes"] == SIZE
    assert report["vms"][0]["ram_mapped_bytes"] == SIZE
    assert report["vms"][0]["outside_processes"] == 1


def test_a_mapping_reaches_its_range_and_no_more(scene):
    ram = scene.memfd(SIZE)
    vmm = scene.vmm(ram, SIZE)
    backend = scene.actor([ram], plan={
        "map": [[ram, SIZE // 2, SIZE // 2, "rw"]], "drop": [ram]})
    report = scene.audit(f"--vmm={vmm.pid}")
    assert row(report, backend)["outside_bytes"] == SIZE // 2
    assert ranges(report, backend, "mapped") == [(SIZE // 2, SIZE)]
    assert ranges(report, backend, "fd") == []


def test_a_mapping_can_grow_to_the_end_of_the_object(scene):
    ram = scene.memfd(SIZE)
    vmm = scene.vmm(ram, SIZE)
    backend = scene.actor([ram], prefix=POWERLESS, plan={
        "map": [[ram, 2 * MIB, MIB, "r"]], "drop": [ram]})
    report = scene.audit(f"--vmm={vmm.pid}")
    seat, = row(report, backend)["vms"]
    assert seat["ram_bytes"] == MIB
    assert seat["ram_could_reach_bytes"] == SIZE - 2 * MIB
    assert not seat["write"]
    assert not row(report, backend)["can_ptrace"]
    assert not row(report, backend)["can_reopen_mappings"]


def test_what_is_mapped_twice_counts_once(scene):
    ram = scene.memfd(SIZE)
    vmm = scene.vmm(ram, SIZE)
    backend = scene.actor([ram], plan={
        "map": [[ram, 0, 3 * MIB, "rw"], [ram, MIB, 3 * MIB, "r"],
                [ram, 2 * MIB, MIB, "rw"]], "drop": [ram]})
    report = scene.audit(f"--vmm={vmm.pid}")
    assert row(report, backend)["outside_bytes"] == 4 * MIB
    perms = {(r["start"], r["end"]): r["perms"]
             for r in row(report, backend)["reach"]}
    assert perms == {(0, 3 * MIB): "rw", (3 * MIB, 4 * MIB): "r"}


def test_mapped_and_held_is_told_as_both_and_counted_once(scene):
    ram = scene.memfd(SIZE)
    vmm = scene.vmm(ram, SIZE)
    backend = scene.actor([ram], plan={"map": [[ram, 0, MIB, "rw"]]})
    seat, = row(scene.audit(f"--vmm={vmm.pid}"), backend)["vms"]
    assert seat["ram_bytes"] == SIZE
    assert seat["ram_mapped_bytes"] == MIB
    assert seat["ram_fd_bytes"] == SIZE


def test_a_private_mapping_of_the_ram_is_a_way_to_read_it(scene):
    ram = scene.memfd(SIZE)
    vmm = scene.vmm(ram, SIZE)
    backend = scene.actor([ram], plan={"map": [[ram, 0, SIZE, "cow"]],
                                       "drop": [ram]})
    seat, = row(scene.audit(f"--vmm={vmm.pid}"), backend)["vms"]
    assert seat["outside_bytes"] == SIZE
    assert not seat["write"]


def test_a_mapping_beyond_the_end_of_the_object_reaches_nothing_there(scene):
    ram = scene.memfd(SIZE)
    vmm = scene.vmm(ram, SIZE)
    backend = scene.actor([ram], plan={
        "map": [[ram, SIZE - MIB, 16 * MIB, "rw"]], "drop": [ram]})
    assert row(scene.audit(f"--vmm={vmm.pid}"),
               backend)["outside_bytes"] == MIB


def test_a_process_without_the_memory_reaches_nothing(scene):
    ram = scene.memfd(SIZE)
    vmm = scene.vmm(ram, SIZE)
    other = scene.actor()
    report = scene.audit(f"--vmm={vmm.pid}")
    assert [p["pid"] for p in report["processes"]] == [vmm.pid]
    report = scene.audit(f"--vmm={vmm.pid}", f"--pid={other.pid}")
    assert row(report, other)["role"] == "none"
    assert row(report, other)["ram_bytes"] == 0
    assert report["vms"] == []


def test_a_descriptor_in_the_table_of_one_thread_is_found(scene):
    ram = scene.memfd(SIZE)
    vmm = scene.vmm(ram, SIZE)
    backend = scene.actor([ram], plan={"thread_only": [ram]})
    assert not any("guest-ram" in os.readlink(f"/proc/{backend.pid}/fd/{n}")
                   for n in os.listdir(f"/proc/{backend.pid}/fd"))
    report = scene.audit(f"--vmm={vmm.pid}")
    assert row(report, backend)["outside_bytes"] == SIZE


def test_thousands_of_small_mappings_are_counted_exactly(scene):
    ram = scene.memfd(SIZE * 4)
    vmm = scene.vmm(ram, SIZE * 4)
    backend = scene.actor([ram], plan={
        "map": [[ram, n * 8192, 4096, "rw"] for n in range(4000)],
        "drop": [ram]})
    report = scene.audit(f"--vmm={vmm.pid}", f"--svg={scene.folder}/m.svg")
    assert row(report, backend)["outside_bytes"] == 4000 * 4096
    assert len(ranges(report, backend, "mapped")) == 4000
    assert os.path.getsize(f"{scene.folder}/m.svg") < 2 * MIB


def guarded(scene, leak=False):
    ram = scene.memfd(SIZE)
    pool = scene.memfd(2 * MIB, "moat-pool",
                       os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(pool, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK |
                fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    vmm = scene.vmm(ram, SIZE)
    guard = scene.guard([ram, pool], {"map": [[ram, 0, SIZE, "rw"],
                                              [pool, 0, 2 * MIB, "rw"]]})
    fds = [pool, ram] if leak else [pool]
    backend = scene.actor(fds, plan={"map": [[pool, 0, 2 * MIB, "rw"]]})
    return vmm, guard, backend


def test_a_guarded_backend_reaches_the_pool_and_0_bytes_of_ram(scene):
    vmm, guard, backend = guarded(scene)
    report = scene.audit(f"--vmm={vmm.pid}", "--check")
    assert row(report, backend)["outside_bytes"] == 0
    assert row(report, backend)["ram_bytes"] == 0
    assert row(report, backend)["pool_bytes"] == 2 * MIB
    assert row(report, guard)["role"] == "guard"
    assert row(report, guard)["outside_bytes"] == 0
    assert row(report, guard)["ram_bytes"] == SIZE
    assert "by name" in row(report, guard)["why"]
    assert report["vms"][0]["pool_bytes"] == 2 * MIB
    pool, = (o for o in report["objects"] if o["class"] == "pool")
    assert pool["seals"] == ["seal", "shrink", "grow"]
    assert pool["name"] == "memfd:moat-pool"


def test_check_fails_when_a_backend_behind_a_guard_got_the_ram_too(scene):
    vmm, _, backend = guarded(scene, leak=True)
    report = scene.audit(f"--vmm={vmm.pid}", "--check", status=3)
    assert row(report, backend)["outside_bytes"] == SIZE
    assert row(report, backend)["pool_bytes"] == 2 * MIB


def test_a_backend_does_not_pass_for_a_guard_by_what_it_calls_itself(scene):
    ram = scene.memfd(SIZE)
    vmm = scene.vmm(ram, SIZE)
    backend = scene.guard([ram], {}, name="backend")  # argv: moat guard
    report = scene.audit(f"--vmm={vmm.pid}", "--check", status=3)
    assert row(report, backend)["role"] == "backend"
    assert row(report, backend)["outside_bytes"] == SIZE


def test_asked_for_the_backend_alone_its_vm_and_guard_are_shown(scene):
    vmm, guard, backend = guarded(scene)
    report = scene.audit(f"--vmm={vmm.pid}", f"--pid={backend.pid}",
                         "--check")
    assert [p["role"] for p in report["vms"][0]["processes"]] == [
        "vmm", "guard", "backend"]
    assert row(report, backend)["asked"]
    assert not row(report, guard)["asked"]


def test_a_sealed_object_cannot_be_written_by_who_holds_it_for_reading(scene):
    ram = scene.memfd(SIZE, flags=os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    vmm = scene.vmm(ram, SIZE)
    fcntl.fcntl(ram, fcntl.F_ADD_SEALS, 0x10)  # F_SEAL_FUTURE_WRITE
    backend = scene.actor([ram])
    reach, = row(scene.audit(f"--vmm={vmm.pid}"), backend)["reach"]
    assert reach["could_write"] is False


def test_a_named_tmpfs_file_is_ram_once_mapped_and_its_name_is_told(scene):
    path = f"/dev/shm/moat-audit-{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(fd, SIZE)
        scene.fds[fd] = True
        vmm = scene.vmm(fd, SIZE)
        backend = scene.actor(plan={"open": [path]})
        report = scene.audit(f"--vmm={vmm.pid}")
        ram, = report["objects"]
        assert ram["has_path"] and ram["kind"] == "tmpfs"
        assert row(report, backend)["outside_bytes"] == SIZE
    finally:
        os.unlink(path)


@pytest.mark.parametrize("name", ["vhost-inflight", "pulseaudio"])
def test_known_memory_that_is_no_guests_is_not_called_ram(scene, name):
    ram = scene.memfd(SIZE)
    other = scene.memfd(2 * MIB, name)
    vmm = scene.actor([ram, other], plan={
        "map": [[ram, 0, SIZE, "rw"], [other, 0, 2 * MIB, "rw"]]})
    peer = scene.actor([other])
    report = scene.audit(f"--vmm={vmm.pid}", "--check")
    assert report["vms"][0]["ram_bytes"] == SIZE
    assert peer.pid not in [p["pid"] for p in report["processes"]]


def test_holding_kvm_does_not_make_a_backend_a_vmm(scene):
    ram = scene.memfd(SIZE)
    vmm = scene.vmm(ram, SIZE)
    kvm = ["/dev/kvm"] if os.path.exists("/dev/kvm") else []
    backend = scene.actor([ram], plan={"open": kvm})
    report = scene.audit(f"--vmm={vmm.pid}", "--check", status=3)
    assert row(report, backend)["role"] == "backend"


def test_two_vms_are_kept_apart(scene):
    rams = [scene.memfd(SIZE), scene.memfd(2 * SIZE)]
    vmms = [scene.vmm(rams[0], SIZE), scene.vmm(rams[1], 2 * SIZE)]
    backend = scene.actor(rams)
    report = scene.audit(*(f"--vmm={v.pid}" for v in vmms))
    assert {v["pid"]: v["ram_bytes"] for v in report["vms"]} == {
        vmms[0].pid: SIZE, vmms[1].pid: 2 * SIZE}
    assert row(report, backend)["outside_bytes"] == 3 * SIZE
    assert len(row(report, backend)["vms"]) == 2


def test_a_second_vmm_with_the_same_memory_fails_the_check(scene):
    ram = scene.memfd(SIZE)
    vmms = [scene.vmm(ram, SIZE), scene.vmm(ram, SIZE)]
    report = scene.audit(*(f"--vmm={v.pid}" for v in vmms), "--check",
                         status=3)
    roles = [p["role"] for p in report["vms"][0]["processes"]]
    assert roles == ["vmm", "other-vmm"]
