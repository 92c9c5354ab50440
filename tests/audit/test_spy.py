# SPDX-License-Identifier: Apache-2.0
"""The spy finds what can be reached, and never takes a look that failed for
a look that found nothing."""
import os
import shutil
import subprocess
import time

import pytest

from conftest import MIB, POWERLESS, SPY
from test_output import AS_NOBODY

SECRET = os.urandom(32)
# Its digits are in arguments of processes, its bytes are not.
HEX = SECRET.hex()


def test_it_finds_a_secret_behind_a_held_descriptor(scene):
    ram = scene.memfd(8 * MIB)
    os.pwrite(ram, SECRET, 5 * MIB + 123)
    status, report = scene.spy(scene.actor([ram]), HEX)
    assert status == 0
    found, = (o for o in report["objects"] if o["match_count"])
    assert found["via"] == "fd" and found["matches"] == [5 * MIB + 123]


def test_it_does_not_find_what_is_not_there(scene):
    ram = scene.memfd(8 * MIB)
    status, report = scene.spy(scene.actor([ram]), HEX)
    assert status == 1
    assert report["complete"] and report["errors"] == []
    assert report["searched_bytes"] > 0


def test_it_finds_a_secret_that_is_mapped_without_a_descriptor(scene):
    ram = scene.memfd(8 * MIB)
    os.pwrite(ram, SECRET, 4 * MIB + 1)
    actor = scene.actor([ram], plan={"map": [[ram, 4 * MIB, MIB, "rw"]],
                                     "drop": [ram]})
    status, report = scene.spy(actor, HEX, "--no-grow")
    assert status == 0
    found, = (o for o in report["objects"] if o["match_count"])
    assert found["via"] == "mapped" and found["matches"] == [4 * MIB + 1]


def test_it_follows_a_mapping_as_far_as_mremap_would(scene):
    ram = scene.memfd(8 * MIB)
    os.pwrite(ram, SECRET, 7 * MIB)
    actor = scene.actor([ram], plan={"map": [[ram, 4 * MIB, MIB, "r"]],
                                     "drop": [ram]})
    assert scene.spy(actor, HEX)[0] == 0
    assert scene.spy(actor, HEX, "--no-grow")[0] == 1


def test_it_does_not_look_before_a_mapping(scene):
    ram = scene.memfd(8 * MIB)
    os.pwrite(ram, SECRET, MIB)
    actor = scene.actor([ram], plan={"map": [[ram, 4 * MIB, MIB, "r"]],
                                     "drop": [ram]})
    assert scene.spy(actor, HEX)[0] == 1


def test_it_finds_a_copy_in_private_memory_unless_told_not_to_look(scene):
    actor = scene.actor(plan={"private": HEX})
    status, report = scene.spy(actor, HEX)
    assert status == 0
    assert [o["via"] for o in report["objects"] if o["match_count"]] == [
        "private"]
    assert scene.spy(actor, HEX, "--no-private")[0] == 1


def test_it_finds_what_lies_across_its_own_chunks(scene):
    ram = scene.memfd(8 * MIB)
    os.pwrite(ram, b"\xff" * (8 * MIB), 0)
    places = [MIB - 1, 2 * MIB - 31, 3 * MIB - 16, 4 * MIB, 8 * MIB - 32]
    for at in places:
        os.pwrite(ram, SECRET, at)
    _, report = scene.spy(scene.actor([ram]), HEX, "--no-private")
    found, = (o for o in report["objects"] if o["match_count"])
    assert found["matches"] == places


def test_it_finds_a_pattern_that_ends_in_a_hole(scene):
    ram = scene.memfd(8 * MIB)
    pattern = b"head of it" + bytes(40)
    os.pwrite(ram, pattern[:10], 4096 - 10)
    status, report = scene.spy(scene.actor([ram]), pattern.hex(),
                               "--no-private")
    assert status == 0
    found, = (o for o in report["objects"] if o["match_count"])
    assert found["matches"] == [4096 - 10]


def test_holes_cost_no_time(scene):
    ram = scene.memfd(1 << 40)
    os.pwrite(ram, SECRET, (1 << 40) - 4096)
    actor = scene.actor([ram])
    begin = time.monotonic()
    assert scene.spy(actor, HEX)[0] == 0
    assert time.monotonic() - begin < 20


def test_it_takes_a_pattern_from_a_file(scene):
    ram = scene.memfd(MIB)
    os.pwrite(ram, SECRET, 77)
    with open(f"{scene.folder}/pattern", "wb") as f:
        f.write(SECRET)
    assert scene.spy(scene.actor([ram]), f"@{scene.folder}/pattern")[0] == 0


def test_a_descriptor_in_the_table_of_one_thread_is_searched(scene):
    ram = scene.memfd(MIB)
    os.pwrite(ram, SECRET, 77)
    actor = scene.actor([ram], plan={"thread_only": [ram]})
    assert scene.spy(actor, HEX, "--no-private")[0] == 0


def test_what_it_may_not_read_is_no_search(scene):
    spy = shutil.copy(SPY, f"{scene.folder}/spy")
    actor = scene.actor()
    done = subprocess.run([*AS_NOBODY, spy, str(actor.pid), HEX],
                          capture_output=True, check=False,
                          env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})
    assert done.returncode == 2


def test_a_search_that_is_not_whole_is_not_taken_for_one(scene):
    # Without capabilities it may not follow what is only mapped.
    ram = scene.memfd(8 * MIB)
    actor = scene.actor([ram], prefix=POWERLESS, plan={
        "map": [[ram, 0, MIB, "r"]], "drop": [ram]})
    status, report = scene.spy(actor, HEX, prefix=POWERLESS)
    assert status == 2
    assert not report["complete"]
    assert any("guest-ram" in e["where"] for e in report["errors"])


@pytest.mark.parametrize("args", [
    [], ["1"], ["x", HEX], ["1", "zz"], ["1", "ab"], ["1", "@/nonexistent"],
    ["4194305", HEX], ["--odd", "1", HEX]])
def test_bad_usage_and_no_process_have_the_status_of_a_failure(args):
    done = subprocess.run([SPY, *args], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stdout == b""
