# SPDX-License-Identifier: Apache-2.0
"""The bench of moat-fs works: its driver does what it says with any daemon, and each
figure is there.  What the figures are is no matter of a test."""
import json
import os
import sys

import pytest

from procs import TOP, Process, Workdir, run, wait_until

sys.path.append(os.path.join(TOP, "bench"))

import share    # noqa: E402

MIB = 1 << 20
KINDS = pytest.mark.parametrize("kind", ["moat-fs", "newer", "debian12"])


@pytest.fixture(name="folder")
def fixture_folder():
    with Workdir("/dev/shm") as work:
        yield share.make_tree(work / "share", 4 * MIB, held=500)


def fsdrv(kind, work, folder, *options):
    with share.Daemon(kind, work / "fs.sock", folder) as daemon:
        done = run(share.driver(daemon.socket_path, *options))
        assert done.returncode == 0, done.stderr + daemon.log
        return json.loads(done.stdout)


@KINDS
def test_the_driver_writes_each_block_once_and_where_it_should(kind, work,
                                                               folder):
    """Offsets go up by the size, and start again at the end of the file."""
    said = fsdrv(kind, work, folder, "--work=write", "--size=8192",
                 "--count=100", "--depth=7", "--seconds=60")
    assert said["operations"] == said["requests"] == 100
    assert said["bytes"] == 100 * 8192
    with open(os.path.join(folder, "out"), "rb") as out, \
            open(os.path.join(folder, "big"), "rb") as big:
        assert out.read(100 * 8192) == big.read(100 * 8192)
        assert out.read() == bytes(4 * MIB - 100 * 8192)


@KINDS
def test_the_driver_notices_data_of_another_place(kind, work, folder):
    assert fsdrv(kind, work, folder, "--work=read", "--count=500",
                 "--random", "--depth=9")["operations"] == 500
    with open(os.path.join(folder, "big"), "r+b") as f:
        f.seek(777 * 4096 % (4 * MIB))
        f.write(b"another!")
    with share.Daemon(kind, work / "fs.sock", folder) as daemon:
        done = run(share.driver(daemon.socket_path, "--work=read",
                                "--count=1024", "--seconds=60"))
    assert done.returncode == 1 and "another place" in done.stderr


@KINDS
@pytest.mark.parametrize("forget", [False, True])
def test_a_daemon_knows_what_the_driver_holds_until_it_forgets(
        kind, forget, work, folder):
    """Seen by its descriptors, of which each of these has one for an inode."""
    with share.Daemon(kind, work / "fs.sock", folder) as daemon:
        before = daemon.descriptors()
        with Process(share.driver(
                daemon.socket_path, "--work=hold", "--folder=many",
                "--files=500", "--depth=8",
                *["--forget"] * forget)) as client:
            client.expect(r"^\{.*\"operations\": 500,.*\}$")
            if forget:
                wait_until(lambda: daemon.descriptors() < before + 100,
                           "the daemon forgot", 30)
            else:
                assert daemon.descriptors() >= before + 500


@KINDS
def test_files_that_the_driver_made_are_gone(kind, work, folder):
    for how in ("create", "unlink"):
        said = fsdrv(kind, work, folder, f"--work={how}", "--count=50",
                     "--depth=3", "--seconds=60")
        assert said["operations"] == 50
        assert said["requests"] == (100 if how == "create" else 50)
        assert os.listdir(os.path.join(folder, "scratch")) == []


@KINDS
def test_the_driver_lists_every_file(kind, work, folder):
    for options in ((), ("--forget",), ("--size=65536",)):
        said = fsdrv(kind, work, folder, "--work=readdirplus", "--count=3",
                     *options)
        assert 3000 <= said["entries"] <= 3006


def test_each_queue_of_moat_fs_has_a_thread_of_its_own(work, folder):
    """So that what is urgent is never behind a slow request."""
    tasks = []
    for queues in (1, 4):
        with share.Daemon("moat-fs", work / "fs.sock", folder,
                          queues) as daemon:
            tasks.append(sum(len(os.listdir(f"/proc/{pid}/task"))
                             for pid in daemon.pids()))
    assert tasks[1] == tasks[0] + 3


def test_the_driver_says_what_it_can_not_do(work, folder):
    with share.Daemon("newer", work / "fs.sock", folder) as daemon:
        here = f"--socket={daemon.socket_path}"
        for options in ([], [here], [here, "--work=fly"],
                        [here, "--work=read", "--size=1000"],
                        [here, "--work=read", "--depth=0"],
                        [here, "--work=read", "--cpu-of=1,none"],
                        [here, "--work=read", "--queues=2"],
                        ["--socket=/nonexistent", "--work=read"],
                        # The last one, as it gets as far as the daemon.
                        [here, "--work=read", "--queues=2", "--depth=2"]):
            done = run([share.driver("x")[0], *options])
            assert done.returncode != 0, options
            assert done.stderr and not done.stdout, options


def test_a_quick_bench_of_moat_fs_measures_each_load_on_both_places(work):
    done = run([os.path.join(TOP, "bench/fs"), "--quick",
                f"--output={work / 'out'}"], deadline=240)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(work / "out/fs.json", encoding="utf-8") as f:
        results = json.load(f)
    assert set(results) == {"ram", "disk"}
    for place in results.values():
        rows = place["loads"]
        assert {r["work"] for r in rows} == {
            "lookup", "getattr", "open", "create", "unlink", "readdirplus",
            "read", "write"}
        assert {(r["size"], r["depth"], r["queues"]) for r in rows
                if r["work"] == "read"} == {
            (size, depth, queues) for size in (4096, MIB)
            for depth, queues in ((1, 1), (32, 1), (32, 4))}
        assert all(r["ratio"] > 0 and r["ours_cpu_us"] > 0
                   and r["theirs_cpu_us"] > 0 and len(r["pairs"]) == 2
                   for r in rows)
    for ways in results["ram"]["memory"].values():
        assert ways and all(m["held"]["private"] > 0 for m in ways.values())
    for words in ("throughput", "memory with known inodes"):
        assert words in done.stdout
