# SPDX-License-Identifier: Apache-2.0
"""moat-fs's DAX window in QEMU 11.1: what the guest has mapped is the host's
file.  Straight and through the guard, all tests of a kind with one guest."""
import mmap
import os
import shutil
import subprocess
import zlib

import pytest

from dax import DIRECT, MIB, PAGE, RDWR, Dax, below, crc, pattern
from machine import audit, ram_reached
from procs import wait_until

SIZES = [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1]


@pytest.fixture(scope="module", name="dax", params=[False, True],
                ids=["straight", "guarded"])
def fixture_dax(request):
    with Dax(request.param, reboot=True, memory=384) as dax:
        yield dax


def test_whole_pages_are_one_memory(dax):
    """No request is made in between, and nobody waits."""
    dax.make("pages", pattern(1, 4 * PAGE))
    dax.map(0, "pages", 4 * PAGE)
    assert dax.get(0, PAGE, 8) == pattern(1 + PAGE, 8)
    dax.put("pages", PAGE, b"by host!")
    assert dax.get(0, PAGE, 8) == b"by host!"
    dax.do(f"fill 0 - {2 * PAGE + 5} 100 7")
    assert dax.host("pages")[2 * PAGE + 5:][:100] == pattern(7, 100)
    with open(dax.path("pages"), "r+b") as f, \
            mmap.mmap(f.fileno(), 0) as shown:
        shown[:6] = b"mapped"
        assert dax.get(0, 0, 6) == b"mapped"
        dax.do("fill 0 - 100 50 9")
        assert shown[100:150] == pattern(9, 50)
    dax.do("unmap 0", "close 0")


def test_a_last_page_that_is_not_full_is_soon_the_same(dax):
    dax.make("tail", pattern(1, PAGE + 100))
    dax.map(0, "tail", 2 * PAGE)
    dax.put("tail", PAGE + 10, b"by host!")
    dax.sees(0, PAGE + 10, b"by host!", "the guest sees the host's bytes")
    dax.do(f"fill 0 - {PAGE + 50} 50 7")
    wait_until(lambda: dax.host("tail")[PAGE + 50:] == pattern(7, 50),
               "the host sees the guest's bytes")
    # What lies behind the end is nobody's, and does not become the file's.
    dax.do(f"fill 0 - {PAGE + 100} 50 7")
    dax.sees(0, PAGE + 100, bytes(50), "zeroes behind the end")
    # After fsync and msync, and for whoever reads, at once.
    for how in ("fsync 0", "msync 0"):
        dax.do(f"fill 0 - {PAGE} 10 {len(how)}", f"fill 0 - {PAGE + 20} 5 1",
               how)
        assert dax.host("tail")[PAGE:][:10] == pattern(len(how), 10)
    dax.do("unmap 0", "close 0")
    assert len(dax.host("tail")) == PAGE + 100


@pytest.mark.parametrize("size", SIZES)
def test_sizes(dax, size):
    name = f"size{size}"
    dax.make(name, pattern(3, size))
    dax.same(name, pattern(3, size))
    room = size + 2 * PAGE
    dax.map(0, name, room)
    if not size:
        assert dax.ask("get 0 - 0 1") == ["bus"]
    else:
        dax.do(f"fill 0 - 0 {size} 5", "fsync 0")
        dax.same(name, pattern(5, size))
    # Longer, by a write: what is mapped reaches as far.
    dax.do(f"write 0 - {size} 5000 6")
    want = pattern(5, size) + pattern(6, 5000)
    assert dax.do(f"sum 0 - 0 {size + 5000}") == crc(want)
    dax.same(name, want)
    # Cut, and longer again: with zeroes.
    for cut in (size + 3, size // 2):
        dax.do(f"fill 0 - 0 {size} 8", f"truncate 0 - {cut}",
               f"truncate 0 - {size + 100}")
        want = (pattern(8, size) + pattern(6, 100))[:cut]
        want += bytes(size + 100 - len(want))
        assert dax.do(f"sum 0 - 0 {size + 100}") == crc(want)
        dax.same(name, want)
    # The host makes it longer.
    with open(dax.path(name), "ab") as f:
        f.write(pattern(4, PAGE))
    want += pattern(4, PAGE)
    dax.same(name, want)
    assert dax.do(f"sum 0 - 0 {len(want)}") == crc(want)
    dax.do("unmap 0", "close 0")


def test_a_file_that_grows_and_grows(dax):
    """In steps far smaller than what the guest has mapped."""
    dax.make("log", b"")
    want = b""
    dax.map(0, "log", MIB, flags=RDWR | os.O_APPEND)
    for n in range(20):
        step = 700 + 1100 * (n % 5)
        dax.do(*(f"write 0 - 0 {step} {n + k}" for k in range(3)))
        want += b"".join(pattern(n + k, step) for k in range(3))
        assert dax.do(f"sum 0 - 0 {len(want)}") == crc(want), n
        dax.do(f"fill 0 - {len(want) - 500} 20 {n}")
        want = want[:-500] + pattern(n, 20) + want[-480:]
    dax.do("fsync 0")
    dax.same("log", want)
    dax.do("unmap 0", "close 0")


def test_beyond_four_gibibytes(dax):
    size = (5 << 30) + 77
    dax.make("sparse", b"begin")
    os.truncate(dax.path("sparse"), size)
    for slot, at in enumerate((0, (4 << 30) - PAGE, (5 << 30) - PAGE)):
        dax.map(slot, "sparse", 2 * PAGE, offset=at)
    assert dax.get(0, 0, 8) == b"begin\0\0\0"
    dax.put("sparse", (4 << 30) - 4, b"boundary")
    assert dax.get(1, PAGE - 4, 8) == b"boundary"
    dax.do(f"fill 1 - {PAGE - 50} 100 2", f"fill 2 - {PAGE + 50} 20 3",
           "fsync 1")
    with open(dax.path("sparse"), "rb") as f:
        f.seek((4 << 30) - 50)
        assert f.read(100) == pattern(2, 100)
        f.seek((5 << 30) + 50)
        assert f.read() == pattern(3, 20) + bytes(7)
    assert os.stat(dax.path("sparse")).st_blocks * 512 < MIB
    dax.do(*(f"{w} {s}" for s in range(3) for w in ("unmap", "close")))


def test_requests_and_mappings_agree(dax):
    """O_DIRECT and ordinary reads and writes beside a mapping, both sides."""
    size = 3 * PAGE + 200
    want = bytearray(pattern(1, size))
    dax.make("mixed", want)
    dax.map(0, "mixed", 4 * PAGE)
    dax.do(f"open 1 /mnt/mixed {RDWR | DIRECT} 0")
    for n in range(6):
        at = n * 2100
        dax.do(f"fill 0 - {at} 500 {n}")
        want[at:at + 500] = pattern(n, 500)
        answer, = dax.ask(f"read 1 - 0 {4 * PAGE}")
        assert answer == f"ok {crc(want)} {size}", n
        dax.do(f"write 1 - {at + 600} 700 {n + 50}")
        want[at + 600:at + 1300] = pattern(n + 50, 700)
        assert dax.do(f"sum 0 - 0 {size}") == crc(want), n
        dax.put("mixed", at + 1400, pattern(n + 90, 300))
        want[at + 1400:at + 1700] = pattern(n + 90, 300)
        answer, = dax.ask(f"read 1 - 0 {4 * PAGE}")
        assert answer == f"ok {crc(want)} {size}", n
    dax.do("unmap 0", "close 0", "close 1")
    dax.same("mixed", bytes(want))


def test_what_else_is_done_to_a_mapped_file(dax):
    size = 5 * PAGE + 123
    want = bytearray(pattern(1, size))
    dax.make("more", want)
    dax.map(0, "more", 8 * PAGE)
    # A hole, and room.
    dax.do(f"fallocate 0 - 3 {PAGE} {2 * PAGE}",
           f"fallocate 0 - 3 {5 * PAGE + 10} 20",
           f"fallocate 0 - 0 0 {7 * PAGE}")
    want[PAGE:3 * PAGE] = bytes(2 * PAGE)
    want[5 * PAGE + 10:5 * PAGE + 30] = bytes(20)
    want += bytes(7 * PAGE - size)
    assert dax.do(f"sum 0 - 0 {7 * PAGE}") == crc(want)
    # Copied into another that is mapped.
    dax.make("other", pattern(2, PAGE + 9))
    dax.map(1, "other", 2 * PAGE)
    assert dax.do(f"copy 1 - 50 0 {6 * PAGE} {PAGE - 41}") == PAGE - 41
    want[6 * PAGE:7 * PAGE - 41] = pattern(2, PAGE + 9)[50:]
    assert dax.do(f"sum 0 - 0 {7 * PAGE}") == crc(want)
    # Renamed, by either; removed, by either.
    dax.guest.run("mv /mnt/more /mnt/moved")
    os.rename(dax.path("other"), dax.path("by-host"))
    dax.do("fill 0 - 9 9 9", "fill 1 - 9 9 9")
    want[9:18] = pattern(9, 9)
    assert dax.host("moved")[9:18] == pattern(9, 9)
    assert dax.host("by-host")[9:18] == pattern(9, 9)
    dax.same("moved", bytes(want))
    dax.guest.run("rm /mnt/moved")
    os.unlink(dax.path("by-host"))
    dax.do(f"fill 0 - {PAGE} 9 4", f"fill 1 - {PAGE} 9 4", "fsync 0",
           "fsync 1")
    want[PAGE:PAGE + 9] = pattern(4, 9)
    assert dax.do(f"sum 0 - 0 {7 * PAGE}") == crc(want)
    dax.do("unmap 0", "close 0", "unmap 1", "close 1")


@pytest.mark.parametrize("who", ["guest", "host"])
def test_a_file_is_cut_at_open(dax, who):
    name = f"cut-{who}"
    dax.make(name, pattern(1, 3 * PAGE))
    dax.map(0, name, 3 * PAGE)
    dax.get(0, 2 * PAGE, 1)
    if who == "guest":
        dax.do(f"open 1 /mnt/{name} {RDWR | os.O_TRUNC} 0",
               "write 1 - 0 777 5", "close 1")
    else:
        dax.make(name, pattern(5, 777))
    dax.same(name, pattern(5, 777))
    assert dax.do("sum 0 - 0 777") == crc(pattern(5, 777))
    assert dax.ask(f"get 0 - {2 * PAGE} 1") == ["bus"]
    dax.do("unmap 0", "close 0")


def test_the_host_cuts_a_mapped_file(dax):
    """The guest, once moat-fs has seen it, finds no page there, and goes on."""
    dax.make("short", pattern(1, 8 * PAGE))
    dax.make("sign", b"-")
    dax.map(0, "short", 8 * PAGE)
    dax.map(1, "sign", PAGE)
    dax.get(0, 6 * PAGE, 1)
    os.truncate(dax.path("short"), PAGE)
    # Tails are looked after in the same rounds: when the second one that
    # began after the cut has ended, so has the first one.
    for sign in (b"1", b"2"):
        dax.put("sign", 0, sign)
        dax.sees(1, 0, sign, "the syncer has been around")
    assert dax.ask(f"get 0 - {6 * PAGE} 1")[0] in ("bus", "ok 00", "ok ff")
    assert dax.get(0, 0, 8) == pattern(1, 8)
    dax.same("short", pattern(1, PAGE))
    dax.do("unmap 0", "close 0", "unmap 1", "close 1")


def test_the_host_writes_a_mapped_file_anew(dax):
    """As cp and editors do: cut, and filled again. The guest, asleep, hears of
    neither; what it stores then is in the new file."""
    dax.make("sign", b"-")
    dax.map(1, "sign", PAGE)
    for n in range(4):
        dax.make("anew", pattern(n, 2 * MIB + 100))
        dax.map(0, "anew", 2 * MIB + 100)
        dax.do(f"fill 0 - 0 {2 * MIB + 100} {n + 10}")
        if n % 2:
            dax.do("unmap 0", "close 0")
        os.truncate(dax.path("anew"), 0)
        for sign in (b"1", b"2"):  # as above: it has been seen
            dax.put("sign", 0, sign)
            dax.sees(1, 0, sign, "the syncer has been around")
        dax.make("anew", pattern(n + 20, 2 * MIB + 100))
        if n % 2:  # opened anew, seen at once
            dax.map(0, "anew", 2 * MIB + 100)
        else:
            for sign in (b"3", b"4"):
                dax.put("sign", 0, sign)
                dax.sees(1, 0, sign, "the syncer has been around")
        assert dax.get(0, MIB, 8) == pattern(n + 20 + MIB, 8)
        dax.do(f"fill 0 - 0 {2 * MIB + 100} {n + 30}", "unmap 0", "close 0")
        dax.same("anew", pattern(n + 30, 2 * MIB + 100))
    dax.do("unmap 1", "close 1")


def test_a_program_runs_on_both_sides(dax):
    """One file, at the same time; then it is replaced."""
    program = dax.path("busybox")
    shutil.copy("/bin/busybox", program)
    dax.guest.run("/mnt/busybox sleep 1000 >/dev/null 2>&1 &\n"
                  "echo $! >/tmp/sleeper")
    host = subprocess.Popen([program, "sleep", "1000"])
    try:
        assert dax.guest.run("/mnt/busybox echo guest") == "guest"
        done = subprocess.run([program, "echo", "host"], check=True,
                              capture_output=True, text=True)
        assert done.stdout == "host\n"
    finally:
        host.kill()
        host.wait()
    dax.same("busybox", dax.host("busybox"))
    dax.guest.run("kill $(cat /tmp/sleeper)\n"
                  "until umount /mnt 2>/dev/null; do sleep 0.1; done\n"
                  "mount -t virtiofs -o dax moat /mnt")


def test_the_page_cache_does_not_grow(dax):
    size = 64 * MIB
    dax.make("big", pattern(11, size))
    read = "dd if=/mnt/big of=/dev/null bs=1M 2>/dev/null"
    grown = {}
    for options in ("-o dax", ""):
        dax.remount(options)
        dax.guest.run("echo 3 >/proc/sys/vm/drop_caches")
        before = dax.cached()
        dax.guest.run(read)
        dax.map(0, "big", size, prot=1)
        assert dax.do(f"sum 0 - 0 {size}") == crc(pattern(11, size))
        grown[options] = dax.cached() - before
        dax.do("unmap 0", "close 0")
    print(f"page cache grew: {grown}")
    assert grown["-o dax"] < MIB
    assert grown[""] > size - MIB
    dax.remount()


def test_the_backend_reaches_no_guest_ram(dax):
    dax.make("audited", pattern(1, PAGE))
    dax.map(0, "audited", PAGE)
    dax.get(0, 0, 1)
    pids = [p for p in below(dax.daemon.pid) if p != dax.daemon.pid] \
        if dax.guarded else [dax.daemon.pid, *below(dax.daemon.pid)[1:]]
    report = audit(dax.guest.pid, *pids)
    assert ram_reached(report, dax.guest.pid) >= 384 * MIB
    reached = [ram_reached(report, pid) for pid in pids]
    assert reached and (max(reached) == 0) == dax.guarded, reached
    dax.do("unmap 0", "close 0")


def test_many_tails_on_two_sides(dax):
    """300 files of less than a page, mapped at once."""
    os.mkdir(dax.path("few"))
    data = [pattern(n, 100 + 7 * n) for n in range(300)]
    for n, part in enumerate(data):
        dax.make(f"few/{n}", part)
    assert many(dax, "few", data) == expected(data)


def many(dax, folder, data):
    size = -(-max(map(len, data)) // PAGE) * PAGE
    return dax.do(f"many 0 /mnt/{folder} {len(data)} {size}")


def expected(data):
    size = -(-max(map(len, data)) // PAGE) * PAGE
    total = 0
    for part in data:
        total = zlib.crc32(part.ljust(64, b"\0")[:64], total)
    for part in reversed(data):
        total = zlib.crc32(part.ljust(size, b"\0"), total)
    return total


def test_the_vm_is_stopped_and_goes_on(dax):
    """With mappings that go on being the files.  None is made or taken away at
    that moment: QEMU 11.1.3 crashes on that (docs/dax.md)."""
    dax.remount()
    dax.make("stopped", pattern(1, 2 * PAGE + 50))
    dax.map(0, "stopped", 3 * PAGE)
    assert dax.do(f"sum 0 - 0 {2 * PAGE + 50}") \
        == crc(pattern(1, 2 * PAGE + 50))
    number = dax.guest.start("set -e\nfor i in $(seq 30); do\n"
                             "echo 'fill 0 - 100 1000 3' >/tmp/q\n"
                             "read -r a </tmp/a; echo $a\ndone")
    for n in range(10):
        dax.tell("stop")
        dax.put("stopped", PAGE, pattern(n + 20, 30))
        dax.put("stopped", 2 * PAGE, pattern(n + 40, 30))
        dax.tell("cont")
    assert dax.guest.finish(number).split("\n") == ["ok 0"] * 30
    assert dax.get(0, PAGE, 30) == pattern(29, 30)
    dax.sees(0, 2 * PAGE, pattern(49, 30), "the last page")
    dax.do("fill 0 - 0 40 9", f"fill 0 - {2 * PAGE} 40 9", "fsync 0")
    assert dax.host("stopped")[:40] == pattern(9, 40)
    assert dax.host("stopped")[2 * PAGE:][:40] == pattern(9, 40)
    dax.do("unmap 0", "close 0")


def test_mounted_again_and_again(dax):
    dax.make("again", pattern(1, PAGE + 5))
    for n in range(3):
        dax.remount()
        dax.map(0, "again", 2 * PAGE)
        dax.do(f"fill 0 - 0 {PAGE + 5} {n}", "unmap 0", "close 0")
        dax.same("again", pattern(n, PAGE + 5))


@pytest.mark.parametrize("how", ["by itself", "by the VMM"])
def test_the_guest_starts_again(dax, how):
    """The next one maps where the last one did.  It has to unmount: QEMU 11.1.3
    crashes when a device is started after a reset with mappings (docs/dax.md)."""
    dax.make("reset", pattern(1, 2 * MIB + 100))
    dax.map(0, "reset", 2 * MIB + 100)
    dax.do(f"fill 0 - 0 {2 * MIB + 100} 2", "unmap 0", "close 0")
    dax.guest.run("umount /mnt")
    mark = len(dax.guest.log)
    if how == "by itself":
        dax.guest.start("reboot -f")
    else:
        dax.tell("system_reset")
    dax.guest.expect("^@ready$", mark)
    dax.guest.run("mount -t virtiofs moat /mnt; cp /mnt/daxops /tmp; "
                  "umount /mnt")
    dax.start()
    dax.same("reset", pattern(2, 2 * MIB + 100))
    dax.map(0, "reset", 2 * MIB + 100)
    dax.do(f"fill 0 - 0 {2 * MIB + 100} 3", "fsync 0", "unmap 0", "close 0")
    dax.same("reset", pattern(3, 2 * MIB + 100))


# ---- other windows, other shares

def test_a_window_smaller_than_what_is_mapped():
    """8 MiB: four ranges of the guest's, which it takes from one file for the
    next."""
    with Dax(True, window=8 * MIB) as dax:
        os.mkdir(dax.path("many"))
        data = [pattern(n, 2 * PAGE + 1 + 11 * n) for n in range(40)]
        for n, part in enumerate(data):
            dax.make(f"many/{n}", part)
        assert many(dax, "many", data) == expected(data)
        dax.make("large", pattern(1, 24 * MIB + 99))
        dax.same("large", pattern(1, 24 * MIB + 99))
        dax.map(0, "large", 24 * MIB + 99)
        dax.do(f"fill 0 - 0 {24 * MIB + 99} 6", "fsync 0", "unmap 0",
               "close 0")
        dax.same("large", pattern(6, 24 * MIB + 99))
        # Again, with many more that are open.
        assert many(dax, "many", data) == expected(data)


@pytest.mark.parametrize("guarded", [False, True],
                         ids=["straight", "guarded"])
def test_a_read_only_share(guarded):
    with Dax(guarded, options=["--readonly"]) as dax:
        size = 2 * MIB + 300
        dax.make("file", pattern(1, size))
        dax.same("file", pattern(1, size))
        assert dax.ask(f"open 0 /mnt/file {RDWR} 0")[0] == "error 30"
        dax.map(0, "file", size, flags=0, prot=1)
        dax.put("file", PAGE + 5, b"by host!")
        dax.sees(0, PAGE + 5, b"by host!", "the host's change")
        dax.put("file", size - 20, b"by host!")
        dax.sees(0, size - 20, b"by host!", "the host's change at the end")
        assert dax.guest.run("/mnt/daxops || echo $?") == "2"
