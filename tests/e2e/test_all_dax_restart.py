# SPDX-License-Identifier: Apache-2.0
"""A guest of QEMU 11.1 that has files mapped (DAX), and a moat-fs that is
killed behind `moat guard --restart`: what the guest has mapped stays, and it
can begin anew with all of it."""
import errno
import os
import re

import pytest

from dax import MIB, PAGE, RDWR, Dax, crc, pattern
from procs import wait_until
from test_all_dax import expected
from test_guard_restart import backend_of, family, kill

# Twice as many as are needed.
RESTART = ["--restart=30", "--restart-ms=20000"]
LAPS = 60
# What a program of the guest's is told about files that it had open.
LOST = {f"error {errno.ESTALE}", f"error {errno.EBADF}"}


def ends_well(guard):
    """The only errors are those that were made."""
    assert guard.running(), guard.log
    errors = [line for line in guard.log.splitlines() if "error: " in line]
    others = [line for line in errors if "backend gone" not in line]
    assert not others, others
    assert guard.terminate() == 0, guard.log


def machine(window):
    return Dax(True, window=window, guard_options=RESTART, check=ends_well,
               reboot=True, memory=384)


@pytest.fixture(scope="module", name="dax")
def fixture_dax():
    with machine(64 * MIB) as dax:
        yield dax


def replace(dax):
    """moat-fs is killed, and another one is there."""
    mark = len(dax.guard.log)
    for pid in family(backend_of(dax.guard)):
        kill(pid)
    dax.guard.expect("another backend goes on", mark)


def in_the_window(dax):
    """What QEMU has mapped there, by where."""
    return set(re.findall(r"virtio-shmem-0-\w+", dax.tell("info mtree")))


def lost(dax, *lines):
    answers = dax.ask(*lines)
    assert set(answers) <= LOST, dict(zip(lines, answers))


def give_back(dax, slot):
    """A mapping from before; close says that it was lost."""
    dax.do(f"unmap {slot}")
    lost(dax, f"close {slot}")


def works(dax, name="works"):
    """As with the first moat-fs: mapped, stored, longer, cut, longer."""
    size = 3 * PAGE + 77
    dax.make(name, pattern(1, size))
    dax.map(0, name, 8 * PAGE)
    assert dax.do(f"sum 0 - 0 {size}") == crc(pattern(1, size))
    dax.do(f"fill 0 - 0 {size} 2", "fsync 0")
    dax.same(name, pattern(2, size))
    dax.do(f"write 0 - {size} 5000 6")
    dax.same(name, pattern(2, size) + pattern(6, 5000))
    dax.do(f"truncate 0 - {PAGE + 9}", f"truncate 0 - {2 * PAGE}",
           f"fill 0 - {2 * PAGE - 50} 50 8", "fsync 0")
    want = pattern(2, PAGE + 9) + bytes(PAGE - 59) + pattern(8, 50)
    dax.same(name, want)
    dax.put(name, PAGE + 30, b"by host!")
    dax.sees(0, PAGE + 30, b"by host!", "what the host writes")
    dax.do("unmap 0", "close 0")


def test_whole_pages_stay_the_file(dax):
    """Where the guest had written before: nothing is asked for."""
    dax.make("pages", pattern(1, 4 * PAGE))
    dax.map(1, "pages", 4 * PAGE)
    dax.do(f"fill 1 - {PAGE} 9 3")
    before = in_the_window(dax)
    replace(dax)
    assert before and in_the_window(dax) == before
    dax.do("fill 1 - 50 100 7", f"fill 1 - {3 * PAGE} 100 9")
    assert dax.host("pages")[50:150] == pattern(7, 100)
    assert dax.host("pages")[3 * PAGE:][:100] == pattern(9, 100)
    dax.put("pages", 2 * PAGE, b"by host!")
    assert dax.get(1, 2 * PAGE, 8) == b"by host!"
    # Whoever wants to be certain is told.
    lost(dax, "fsync 1", "msync 1")
    give_back(dax, 1)
    works(dax)


def test_a_last_page_stays_as_it_was(dax):
    """What is stored there then is lost, and fsync and close say so."""
    size = PAGE + 100
    dax.make("tail", pattern(1, size))
    dax.map(1, "tail", 2 * PAGE)
    dax.do(f"fill 1 - {PAGE} 20 3", "fsync 1")
    assert dax.host("tail")[PAGE:][:20] == pattern(3, 20)
    replace(dax)
    want = dax.host("tail")
    dax.do(f"fill 1 - {PAGE + 40} 20 9")
    assert dax.get(1, PAGE + 40, 20) == pattern(9, 20)
    lost(dax, "fsync 1", "msync 1")
    # Beside it, anew: that is the file, also to who reads it.
    dax.map(2, "tail", 2 * PAGE)
    dax.do(f"fill 2 - {PAGE + 60} 20 5", "fsync 2")
    want = want[:PAGE + 60] + pattern(5, 20) + want[PAGE + 80:]
    assert dax.host("tail") == want
    dax.put("tail", PAGE + 5, b"by host!")
    want = want[:PAGE + 5] + b"by host!" + want[PAGE + 13:]
    dax.sees(2, PAGE + 5, b"by host!", "what the host writes")
    assert dax.get(1, PAGE + 5, 8) != b"by host!"
    give_back(dax, 1)
    dax.do("unmap 2", "close 2")
    dax.same("tail", want)
    works(dax)


def test_what_needs_the_old_file_is_an_error(dax):
    """A program that goes on with what it had open ends, and does not hang."""
    dax.make("large", pattern(1, 5 * MIB))
    dax.map(1, "large", 5 * MIB)
    assert dax.get(1, 0, 8) == pattern(1, 8)
    replace(dax)
    assert dax.get(1, MIB, 8) == pattern(1 + MIB, 8)
    # 2 MiB that it has not looked at; what it has only read so far.
    assert dax.ask(f"get 1 - {3 * MIB} 8", "fill 1 - 0 9 1") == ["bus"] * 2
    lost(dax, "truncate 1 - 5", "fallocate 1 - 0 0 9999999", "write 1 - "
         f"{5 * MIB} 100 1")
    give_back(dax, 1)
    dax.same("large", pattern(1, 5 * MIB))
    works(dax)


def test_what_is_given_back_is_gone(dax):
    """Also from QEMU, which would keep a removed file's bytes."""
    dax.remount()
    assert not in_the_window(dax)
    dax.make("removed", pattern(1, 2 * MIB + 100))
    dax.map(1, "removed", 2 * MIB + 100)
    dax.do(f"sum 1 - 0 {2 * MIB + 100}")
    replace(dax)
    assert len(in_the_window(dax)) == 2
    dax.guest.run("rm /mnt/removed")
    give_back(dax, 1)
    wait_until(lambda: not in_the_window(dax), "all is unmapped")
    assert not os.path.exists(dax.path("removed"))
    works(dax)


def test_a_program_goes_on(dax):
    """Its file is a copy, which stays."""
    dax.guest.run("mkfifo /tmp/q2 /tmp/a2; "
                  "/mnt/daxops /tmp/q2 /tmp/a2 >/dev/null 2>&1 & "
                  "echo $! >/tmp/pid2")

    def ask(line):
        return dax.guest.run(f"echo '{line}' >/tmp/q2; read -r a </tmp/a2; "
                             'echo "$a"')
    assert ask("get 5").strip() == "ok"
    for n in range(2):
        replace(dax)
        dax.guest.run(f"echo {n} >/tmp/f{n}")
        assert ask(f"open {n} /tmp/f{n} {RDWR} 0") == "ok 0"
        assert ask(f"map {n} - 0 4096 3") == "ok 0"
        assert ask(f"get {n} - 0 1") == f"ok 3{n}"
    dax.guest.run("kill $(cat /tmp/pid2)")
    works(dax)


def test_one_killed_after_the_other(dax):
    """With mappings of each, which all go when the guest unmounts."""
    for n in range(4):
        dax.make(f"life{n}", pattern(n, PAGE + 10))
        dax.map(n + 10, f"life{n}", 2 * PAGE)
        dax.do(f"fill {n + 10} - 0 20 {n + 1}")
        replace(dax)
    for n in range(4):
        dax.do(f"fill {n + 10} - 30 20 {n + 5}")
        data = dax.host(f"life{n}")
        assert data[:20] == pattern(n + 1, 20)
        assert data[30:50] == pattern(n + 5, 20)
    works(dax)
    for n in range(4):
        give_back(dax, n + 10)
    dax.remount()
    assert not in_the_window(dax)
    works(dax)


def test_killed_while_the_guest_maps(dax):
    """At any moment: what it then sees is the files or an error, and no
    request hangs."""
    os.mkdir(dax.path("many"))
    data = [pattern(n, 2 * PAGE + 1 + 11 * n) for n in range(24)]
    for n, part in enumerate(data):
        dax.make(f"many/{n}", part)
    asked = f"many 0 /mnt/many {len(data)} {3 * PAGE}"
    right = f"ok {expected(data)}"
    assert dax.ask(asked) == [right]
    job = dax.guest.start(f"""
for i in $(seq {LAPS}); do
    echo '{asked}' >/tmp/q; read -r a </tmp/a
    echo "@lap $i"; echo "$a"
done""")
    for n in range(4):
        dax.guest.expect(f"^@lap {(n + 1) * LAPS // 5}$")
        replace(dax)
    answers = [line for line in dax.guest.finish(job).splitlines()
               if line.split(" ")[0] in ("ok", "bus", "error")]
    assert len(answers) == LAPS
    assert {a for a in answers if a.startswith("ok")} == {right}
    assert answers[-1] == right, answers
    dax.remount()
    assert not in_the_window(dax)
    assert dax.ask(asked) == [right]
    works(dax)


@pytest.mark.parametrize("stopped", [False, True], ids=["", "stopped"])
def test_the_guest_starts_again(dax, stopped):
    """It has unmounted, with another moat-fs than the one that mapped: QEMU
    11.1.3 crashes when a device is started after a reset with mappings."""
    dax.make("reset", pattern(1, 2 * MIB + 100))
    dax.map(1, "reset", 2 * MIB + 100)
    dax.do(f"fill 1 - 0 {2 * MIB + 100} 2", "fsync 1")
    if stopped:
        dax.tell("stop")
        dax.tell("cont")
    replace(dax)
    assert len(in_the_window(dax)) >= 2
    give_back(dax, 1)
    dax.guest.run("umount /mnt")
    assert not in_the_window(dax)
    mark = len(dax.guest.log)
    dax.guest.start("reboot -f")
    dax.guest.expect("^@ready$", mark)
    dax.guest.run("mount -t virtiofs moat /mnt; cp /mnt/daxops /tmp; "
                  "umount /mnt")
    dax.start()
    dax.same("reset", pattern(2, 2 * MIB + 100))
    works(dax)


@pytest.mark.parametrize("stopped", [False, True], ids=["", "stopped"])
def test_a_window_smaller_than_what_was_mapped(stopped):
    """Four ranges: the guest takes all for another file, also those that the
    last moat-fs mapped.  Who still uses that one's has an error, not others'
    bytes."""
    with machine(8 * MIB) as dax:
        # With one range free Linux takes back none.
        dax.make("old", pattern(1, 6 * MIB))
        dax.map(1, "old", 6 * MIB)
        dax.do(f"fill 1 - 0 {6 * MIB} 3")
        if stopped:
            dax.tell("stop")
            dax.tell("cont")
        replace(dax)
        assert len(in_the_window(dax)) == 3
        want = pattern(5, 8 * MIB + 33)
        dax.make("other", want)
        dax.same("other", want)
        answers = dax.ask(*(f"get 1 - {n} 8" for n in range(0, 6 * MIB, MIB)))
        for n, answer in enumerate(answers):
            assert answer in ("bus", "ok " + bytes(
                (3 + n * MIB + k) % 251 for k in range(8)).hex())
        assert "bus" in answers
        assert dax.host("old") == pattern(3, 6 * MIB)
        give_back(dax, 1)
        works(dax)
        dax.remount()
        assert not in_the_window(dax)
        works(dax)
