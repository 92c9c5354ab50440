# SPDX-License-Identifier: Apache-2.0
"""Pools that a guard gives to its backend out of the VMM's own memory
(`moat guard --share=direct --pool=ADDR+SIZE`): they are no leak, and each is
for one backend."""
import xml.etree.ElementTree as ElementTree

import pytest

from conftest import MIB, row
from test_output import lanes

SIZE = 8 * MIB
POOL = 2 * MIB
SHARE = ["--share=direct", "--pool=0x7c000000+2M"]


def whole(fd, size):
    return [fd, 0, size, "rw"]


class Direct:
    """A VMM with RAM in two objects and a pool for each device."""

    def __init__(self, scene, devices=1, seal=True):
        self.scene = scene
        self.rams = [scene.sealed(SIZE), scene.sealed(SIZE)]
        make = scene.sealed if seal else scene.memfd
        self.pools = [make(POOL, "memory-backend-memfd")
                      for _ in range(devices)]
        self.maps = [*(whole(fd, SIZE) for fd in self.rams),
                     *(whole(fd, POOL) for fd in self.pools)]
        self.vmm = scene.actor(self.fds, plan={"map": self.maps})

    @property
    def fds(self):
        return [*self.rams, *self.pools]

    def guard(self, pools, options=(), name="moat", **plan):
        """It has mapped all, and keeps descriptors of `pools`."""
        drop = [fd for fd in self.fds if fd not in pools]
        return self.scene.guard(
            self.fds, {"map": self.maps, "drop": drop, **plan}, name=name,
            options=options or SHARE)

    def backend(self, *fds):
        return self.scene.actor(fds, plan={"map": [whole(fd, POOL)
                                                   for fd in fds]})

    def audit(self, status=0):
        return self.scene.audit(f"--vmm={self.vmm.pid}", "--check",
                                status=status)


def pools_of(report):
    return [o for o in report["objects"] if o["class"] == "pool"]


def child_of(parent):
    path = f"/proc/{parent.pid}/task/{parent.pid}/children"
    with open(path, encoding="ascii") as f:
        return int(f.read())


def foreign_lanes(path):
    return sorted(int(lane.get("pid"))
                  for lane in ElementTree.parse(path).iter(
                      "{urn:moat:audit:1}lane")
                  if lane.get("foreign") == "yes" and lane.get("bytes") != "0")


def outside(report):
    return {p["pid"]: p["outside_bytes"] for p in report["processes"]
            if p["outside_bytes"]}


def test_a_pool_that_a_guard_gives_is_no_ram_within_reach(scene):
    vm = Direct(scene)
    guard = vm.guard(vm.pools)
    backend = vm.backend(*vm.pools)
    report = vm.audit()
    assert report["vms"][0]["ram_bytes"] == 2 * SIZE
    assert report["vms"][0]["pool_bytes"] == POOL
    assert row(report, backend)["role"] == "backend"
    assert row(report, backend)["outside_bytes"] == 0
    assert row(report, backend)["ram_bytes"] == 0
    assert row(report, backend)["pool_bytes"] == POOL
    assert row(report, backend)["foreign_pool_bytes"] == 0
    assert row(report, guard)["ram_bytes"] == 2 * SIZE
    pool, = pools_of(report)
    assert pool["name"] == "memfd:memory-backend-memfd"
    assert pool["given"] and pool["guards"] == [guard.pid]
    assert {"shrink", "grow"} <= set(pool["seals"])


def test_table_and_picture_show_the_given_pool_as_a_pool(scene):
    vm = Direct(scene)
    guard = vm.guard(vm.pools)
    backend = vm.backend(*vm.pools)
    path = f"{scene.folder}/map.svg"
    done = scene.run(f"--vmm={vm.vmm.pid}", f"--svg={path}")
    pool, = (line for line in done.stdout.splitlines()
             if line.startswith("  pool"))
    assert "2.0 MiB" in pool and f"given by the guard {guard.pid}" in pool
    assert "=> 0 bytes of guest RAM outside the pool" in done.stdout
    assert [(*lane[:4],) for lane in lanes(path)
            if lane[1] == backend.pid] == [
        ("ram", backend.pid, "backend", 0),
        ("ram", backend.pid, "backend", 0),
        ("pool", backend.pid, "backend", POOL)]


def test_ram_beside_the_given_pool_is_still_counted(scene):
    vm = Direct(scene)
    vm.guard(vm.pools)
    backend = vm.backend(*vm.pools, vm.rams[1])
    assert outside(vm.audit(status=3)) == {backend.pid: SIZE}


def test_an_object_that_can_be_shrunk_is_no_pool(scene):
    vm = Direct(scene, seal=False)
    vm.guard(vm.pools)
    backend = vm.backend(*vm.pools)
    report = vm.audit(status=3)
    assert outside(report) == {backend.pid: POOL}
    assert pools_of(report) == []


@pytest.mark.parametrize("options", [
    ["--pool-size=64M"], ["--share=bounce", "--pool=0x7c000000+2M"],
    ["--pool=0x7c000000+1M"], ["--pool=0x7c000000"],
    ["--", "--pool=0x7c000000+2M"]])
def test_a_guard_gives_no_more_than_it_was_told_to(scene, options):
    vm = Direct(scene)
    vm.guard(vm.pools, options)
    backend = vm.backend(*vm.pools)
    assert outside(vm.audit(status=3)) == {backend.pid: POOL}


@pytest.mark.parametrize("options", [
    ["--pool", "4096+2048K"], ["--pool=1+4K", "--pool=0x1000+0x200000"],
    ["--dtb=x", "--device=y"], ["--share=hybrid", "--pool=0x0+1G"]])
def test_what_a_guard_was_told_to_give_is_read_from_its_options(scene,
                                                                options):
    vm = Direct(scene)
    vm.guard(vm.pools, options)
    vm.backend(*vm.pools)
    assert outside(vm.audit()) == {}


def test_what_a_guard_only_maps_is_no_pool(scene):
    vm = Direct(scene)
    vm.guard([])
    backend = vm.backend(*vm.pools)
    assert outside(vm.audit(status=3)) == {backend.pid: POOL}


def test_what_a_guard_holds_at_the_first_look_only_is_no_pool(scene):
    # The second look is at the table of the process, not of its threads.
    vm = Direct(scene)
    vm.guard(vm.pools, thread_only=vm.pools)
    backend = vm.backend(*vm.pools)
    assert outside(vm.audit(status=3)) == {backend.pid: POOL}


def test_a_program_that_is_not_moat_gives_no_pool(scene):
    vm = Direct(scene)
    other = vm.guard(vm.pools, name="backend")
    report = vm.audit(status=3)
    assert row(report, other)["role"] == "backend"
    assert row(report, other)["outside_bytes"] == 2 * SIZE + POOL


def test_a_guard_by_name_only_is_told_as_such(scene):
    vm = Direct(scene)
    guard = vm.guard(vm.pools)
    done = scene.run(f"--vmm={vm.vmm.pid}", "--check")
    assert done.returncode == 0
    assert f"note: {guard.pid} is taken for a guard by its name only" in (
        done.stdout)


def test_memory_that_is_all_given_away_is_ram(scene):
    ram = scene.sealed(SIZE)
    vmm = scene.vmm(ram, SIZE)
    scene.guard([ram], {"map": [whole(ram, SIZE)]},
                options=["--pool=0x40000000+8M"])
    backend = scene.actor([ram])
    report = scene.audit(f"--vmm={vmm.pid}", "--check", status=3)
    assert outside(report) == {backend.pid: SIZE}


def test_a_vmm_may_share_the_pool_alone_and_keep_its_ram_private(scene):
    pool = scene.sealed(POOL)
    vmm = scene.actor([pool], plan={"map": [whole(pool, POOL)],
                                    "anon": 32 * MIB})
    scene.guard([pool], {"map": [whole(pool, POOL)]}, options=SHARE)
    backend = scene.actor([pool])
    report = scene.audit(f"--vmm={vmm.pid}", "--check")
    assert outside(report) == {}
    assert row(report, backend)["pool_bytes"] == POOL
    assert report["vms"][0]["ram_bytes"] >= 32 * MIB


def test_two_devices_have_a_pool_each(scene):
    vm = Direct(scene, devices=2)
    guards = [vm.guard([pool]) for pool in vm.pools]
    backends = [vm.backend(pool) for pool in vm.pools]
    report = vm.audit()
    assert sorted(p["guards"] for p in pools_of(report)) == sorted(
        [g.pid] for g in guards)
    assert [row(report, b)["pool_bytes"] for b in backends] == [POOL, POOL]


def test_a_backend_that_reaches_another_devices_pool_is_reported(scene):
    vm = Direct(scene, devices=2)
    for pool in vm.pools:
        vm.guard([pool])
    thief = vm.backend(*vm.pools)
    robbed = vm.backend(vm.pools[1])
    report = vm.audit(status=3)
    # Nothing tells which of the two the second pool is for.
    assert outside(report) == {thief.pid: POOL, robbed.pid: POOL}
    assert row(report, thief)["pool_bytes"] == POOL
    assert row(report, thief)["foreign_pool_bytes"] == POOL
    path = f"{scene.folder}/map.svg"
    done = scene.run(f"--vmm={vm.vmm.pid}", f"--svg={path}")
    assert foreign_lanes(path) == sorted([thief.pid, robbed.pid])
    assert f"({thief.pid}) can reach 2.0 MiB of pools that are not" in (
        done.stdout)
    assert "=> 0 bytes" not in done.stdout


def test_whom_the_guard_started_is_its_backend_and_others_are_not(scene):
    vm = Direct(scene)
    guard = vm.guard(vm.pools, child={"fds": vm.pools, "plan": {}})
    report = vm.audit()
    child = child_of(guard)
    assert [p["pool_bytes"] for p in report["processes"]
            if p["pid"] == child] == [POOL]


def test_a_stranger_beside_the_backend_that_the_guard_started(scene):
    vm = Direct(scene)
    vm.guard(vm.pools, child={"fds": vm.pools, "plan": {}})
    stranger = vm.backend(*vm.pools)
    assert outside(vm.audit(status=3)) == {stranger.pid: POOL}


def test_the_backend_that_one_guard_started_has_no_right_to_anothers(scene):
    vm = Direct(scene, devices=2)
    first = vm.guard(vm.pools[:1], child={"fds": vm.pools, "plan": {}})
    vm.guard(vm.pools[1:])
    robbed = vm.backend(vm.pools[1])
    report = vm.audit(status=3)
    assert outside(report) == {child_of(first): POOL}
    assert row(report, robbed)["pool_bytes"] == POOL


def test_all_processes_of_one_backend_may_reach_its_pool(scene):
    vm = Direct(scene)
    vm.guard(vm.pools)
    backend = scene.actor(vm.pools, plan={
        "child": {"fds": vm.pools, "plan": {
            "child": {"fds": vm.pools, "plan": {}}}}})
    report = vm.audit()
    assert outside(report) == {}
    assert row(report, backend)["pool_bytes"] == POOL
    assert len(report["processes"]) == 5


def test_two_guards_may_give_one_pool_to_a_backend_each(scene):
    vm = Direct(scene)
    guards = [vm.guard(vm.pools), vm.guard(vm.pools)]
    vm.backend(*vm.pools)
    vm.backend(*vm.pools)
    pool, = pools_of(vm.audit())
    assert pool["guards"] == [g.pid for g in guards]


def test_a_third_backend_of_two_guards_is_reported(scene):
    vm = Direct(scene)
    vm.guard(vm.pools)
    vm.guard(vm.pools)
    backends = [vm.backend(*vm.pools) for _ in range(3)]
    assert outside(vm.audit(status=3)) == {b.pid: POOL for b in backends}


def test_another_vms_vmm_has_no_right_to_a_pool(scene):
    vm = Direct(scene)
    vm.guard(vm.pools)
    ram = scene.memfd(SIZE)
    other = scene.actor([ram, *vm.pools], plan={
        "map": [whole(ram, SIZE), whole(vm.pools[0], POOL)]})
    report = scene.audit(f"--vmm={vm.vmm.pid}", f"--vmm={other.pid}",
                         "--check", status=3)
    seat, = (p for p in report["vms"][0]["processes"]
             if p["pid"] == other.pid)
    assert seat["role"] == "other-vmm"
    assert seat["foreign_pool_bytes"] == POOL


def test_a_guards_own_pool_is_for_one_backend_too(scene):
    vm = Direct(scene)
    own = scene.sealed(POOL, "moat-pool")
    scene.guard([*vm.rams, own], {"map": [whole(own, POOL), *vm.maps[:2]],
                                  "drop": vm.rams})
    vm.backend(own)
    report = vm.audit()
    assert outside(report) == {}
    pool, = pools_of(report)
    assert not pool["given"] and len(pool["guards"]) == 1


def test_a_second_backend_at_a_guards_own_pool_is_reported(scene):
    vm = Direct(scene)
    own = scene.sealed(POOL, "moat-pool")
    scene.guard([*vm.rams, own], {"map": [whole(own, POOL), *vm.maps[:2]],
                                  "drop": vm.rams})
    backends = [vm.backend(own), vm.backend(own)]
    assert outside(vm.audit(status=3)) == {b.pid: POOL for b in backends}


def test_a_pool_smaller_than_any_ram_is_shown(scene):
    vm = Direct(scene)
    small = scene.sealed(65536)
    vmm = scene.actor([*vm.rams, small], plan={
        "map": [*vm.maps[:2], whole(small, 65536)]})
    scene.guard([small], {}, options=SHARE)
    scene.actor([small])
    report = scene.audit(f"--vmm={vmm.pid}")
    assert [p["size"] for p in pools_of(report)] == [65536]
