# SPDX-License-Identifier: Apache-2.0
"""make bench works: each figure is there and each file is written.  What the
figures are is no matter of a test: machines are shared."""
import json
import os
import sys
import xml.etree.ElementTree

import pytest

from guard import Guard
from procs import TOP, build_dir, run

sys.path.append(os.path.join(TOP, "bench"))

import disk     # noqa: E402

LOADS = {(size, depth, write) for size, depth in ((4096, 1), (4096, 32),
                                                  (131072, 8))
         for write in (False, True)}
MIB = 1 << 20


def blkdrv(socket_path, *options):
    done = run([os.path.join(build_dir(), "bench/bench-blkdrv"),
                f"--socket={socket_path}", *options])
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture(name="daemon")
def fixture_daemon(work):
    with disk.BenchDaemon(work / "disk.sock",
                          disk.fill(work / "disk", 4 * MIB)) as daemon:
        yield daemon


def test_the_native_driver_does_each_request_once_and_where_it_should(
        daemon, work):
    """Offsets wrap one request before the end of the disk, as qemu-img's."""
    with open(work / "disk", "rb") as f:
        before = f.read()
    blocks = 4 * MIB // 4096
    count = blocks // 2 + 3     # each second one, and three after the wrap
    said = blkdrv(daemon.socket_path, f"--count={count}", "--depth=7",
                  "--size=4096", "--step=8192", "--write")
    assert said["requests"] == count and said["seconds"] > 0
    assert 0 < said["kicks"] <= count
    with open(work / "disk", "rb") as f:
        after = f.read()
    for block in range(blocks):
        at = slice(4096 * block, 4096 * block + 4096)
        written = block % 2 == 0 or block in (1, 3, 5)
        assert after[at] == (b"\x5a" * 4096 if written else before[at]), block


def test_the_guard_of_a_direct_disk_does_nothing_for_a_request(daemon, work):
    """It wakes up for messages, so as often for many requests as for one."""
    with Guard(work / "guard.sock", daemon.socket_path,
               options=["--device=blk", "--share=direct", disk.POOL,
                        "--poll-us=0"]) as guard:
        slept = []
        for count in (1, 20000):
            before = disk.sleeps(guard.pid)
            blkdrv(guard.socket_path, f"--count={count}", "--depth=4")
            slept.append(disk.sleeps(guard.pid) - before)
        assert slept[1] < 200, slept


def test_the_native_driver_gives_a_hybrid_guard_nothing_to_bounce(daemon, work):
    with Guard(work / "guard.sock", daemon.socket_path,
               options=["--device=blk", "--share=hybrid", disk.POOL]) as guard:
        blkdrv(guard.socket_path, "--count=1000", "--rings=ram")
        said = guard.expect(r"(\d+) bytes bounced, (\d+) bytes by reference")
        assert int(said[1]) == 0 and int(said[2]) >= 1000 * 4096


def test_the_native_driver_says_what_it_can_not_do(daemon):
    driver = os.path.join(build_dir(), "bench/bench-blkdrv")
    for options in ([], [f"--socket={daemon.socket_path}", "--depth=0"],
                    [f"--socket={daemon.socket_path}", "--size=1000"],
                    [f"--socket={daemon.socket_path}", "--rings=rom"],
                    ["--socket=/nonexistent"]):
        done = run([driver, *options])
        assert done.returncode != 0 and done.stderr and not done.stdout, options


def test_a_quick_bench_measures_each_work_and_writes_table_json_and_plot(work):
    done = run([os.path.join(TOP, "bench/run"), "--quick", "--output",
                work.path])
    assert done.returncode == 0, done.stdout + done.stderr

    with open(work / "bench.json", encoding="utf-8") as f:
        results = json.load(f)
    for part in ("disk", "direct", "hybrid"):
        assert {(d["size"], d["depth"], d["write"])
                for d in results[part]} == LOADS
        for d in results[part]:
            assert d["pairs"] and all(p["ratio"] > 0 for p in d["pairs"])
            assert all(p["theirs"]["requests"] == p["ours"]["requests"] > 0
                       for p in d["pairs"])
    for part in ("direct", "hybrid"):
        assert all(p["latency"]["median"] > 0 and p["latency"]["p99"] > 0
                   for d in results[part] for p in d["pairs"])
    assert {p["bytes"] for p in results["pool"]} == {512, 4096, 65536, 1 << 20}
    assert all(p["ratio"] > 0 for p in results["pool"])
    assert results["relay"]
    assert results["memory"]["before"]["private"] > 0
    one, eight = (results["memory"]["vm"][n] for n in ("1", "8"))
    assert 0 < one["pool"] < eight["pool"]

    for heading in ("guarded / unguarded disk", "direct / unguarded disk",
                    "hybrid / bounce", "pool map+copy+unmap",
                    "the core alone", "memory of an idle guard"):
        assert heading in done.stdout
    plot = xml.etree.ElementTree.parse(work / "bench.svg").getroot()
    assert plot.tag.endswith("svg") and len(plot)


def test_the_bench_of_moat_blk_measures_each_load_on_both_disks(work):
    done = run([os.path.join(TOP, "bench/blk"), "--quick", f"--output={work / 'out'}"])
    assert done.returncode == 0, done.stdout + done.stderr
    with open(work / "out/blk.json", encoding="utf-8") as f:
        results = json.load(f)
    assert set(results) == {f"{where}, {driver}"
                            for where in ("a file on RAM", "no file")
                            for driver in ("bench-blkdrv", "qemu-img")}
    for rows in results.values():
        assert {r["depth"] for r in rows} == {1, 8, 32, 64}
        assert all(r["ratio"] > 0 and len(r["ratios"]) == 2 and
                   r["ours_cpu_us"] > 0 for r in rows)
