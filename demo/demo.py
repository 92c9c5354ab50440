#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What a disk's backend can read of a guest, without moat and with it.

Boots user-mode Linux twice with a disk served by an unmodified
qemu-storage-daemon: straight, then with `moat guard` between them.  Each time the
guest draws a secret and keeps it in its memory, does real I/O that is checked
byte for byte, and a spy looks for the secret in all that the daemon can reach.
In the end both are measured by turns, so that what else the machine does hits
both.  Needs a build (`make demo` does that first); writes memory maps to out/.

Exit status: 0 if the demo shows what it promises, 1 if not.
"""
import hashlib
import os
import sys
import time
from contextlib import ExitStack

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(TOP, "tests/e2e"))

from machine import (MIB, Machine, audit, plant_secret,  # noqa: E402
                     ram_reached, spy_finds)
from procs import run  # noqa: E402

OUT = os.path.join(TOP, "out")
ROUNDS = 5      # by turns; the best one counts
# What is read of the disk in one round, in requests of which size.
LARGE, SMALL = (128, 2048), (4, 8192)   # KiB, how many


class Problem(Exception):
    """Why the demo cannot go on; a text for the user."""


class Steps:
    """Lines of progress with the time since the start."""

    def __init__(self):
        self.begin = time.monotonic()

    def __call__(self, text):
        print(f"  {time.monotonic() - self.begin:5.1f} s  {text}", flush=True)


def on_tmpfs(path):
    """Whether a folder is a mounted tmpfs, which user-mode Linux keeps its
    guest's memory in."""
    with open("/proc/mounts", encoding="utf-8") as f:
        kinds = [line.split()[2] for line in f if line.split()[1] == path]
    return bool(kinds) and kinds[-1] == "tmpfs"


def check_machine():
    if not on_tmpfs("/dev/shm"):
        raise Problem(
            "/dev/shm is not a tmpfs; user-mode Linux keeps its guest's memory "
            "there.\n      As root: mount -t tmpfs tmpfs /dev/shm")
    free = os.statvfs("/dev/shm")
    if free.f_bavail * free.f_frsize < 1024 * MIB:
        raise Problem("/dev/shm has less than 1 GiB free; the guests' "
                      "memory and disks lie there")


def check_io(machine):
    """A file system made, written, remounted; its file compared by guest and
    host.  Returns the number of bytes compared."""
    size = 64 * MIB
    inside = machine.guest.run(f"""
        /sbin/mke2fs -q -t ext4 /dev/vda
        mount /dev/vda /mnt
        head -c {size // 4} /dev/urandom >/tmp/data
        cat /tmp/data /tmp/data /tmp/data /tmp/data >/mnt/file
        rm /tmp/data
        before=$(sha256sum </mnt/file)
        umount /mnt
        echo 3 >/proc/sys/vm/drop_caches
        mount /dev/vda /mnt
        after=$(sha256sum </mnt/file)
        umount /mnt
        [ "$before" = "$after" ]
        echo $after""").split()[0]
    copy = machine.work / "file"
    run(["/sbin/debugfs", "-R", f"dump /file {copy}", machine.image])
    with open(copy, "rb") as f:
        data = f.read()
    if len(data) != size or hashlib.sha256(data).hexdigest() != inside:
        raise Problem("the file that the guest wrote is not what the host "
                      "finds on the disk")
    os.unlink(copy)
    return size


def read_seconds(machine, kib, count):
    """How long the guest takes for so many reads past its cache."""
    begin = time.monotonic()
    machine.guest.run(f"dd if=/dev/vda of=/dev/null iflag=direct bs={kib}k "
                      f"count={count} 2>/dev/null")
    return time.monotonic() - begin


def measure(machines, results):
    for key, (kib, count) in (("large", LARGE), ("small", SMALL)):
        seconds = [[read_seconds(m, kib, count) for m in machines]
                   for _ in range(ROUNDS)]
        for n, result in enumerate(results):
            result[key] = count / min(s[n] for s in seconds)


def show(machine, step):
    """What the daemon of one machine can reach; returns the figures."""
    guarded = machine.guard is not None
    step("user-mode Linux is up, its disk is served by qemu-storage-daemon"
         + (" behind moat guard" if guarded else ""))
    secret = plant_secret(machine.guest)
    step(f"the guest keeps a secret in its memory: {secret[:16]}...")
    size = check_io(machine)
    step(f"ext4 made, {size // MIB} MiB written, remounted: the same bytes in "
         "the guest and on the host")

    if not spy_finds(machine.guest.pid, secret):
        raise Problem("the spy does not even find the secret in the guest "
                      "itself")
    found = spy_finds(machine.backend.pid, secret)
    step("the spy, with all that the daemon can reach, "
         + ("FINDS the secret" if found else "does not find the secret"))

    svg = os.path.join(OUT, "demo-guarded.svg" if guarded
                       else "demo-unguarded.svg")
    pids = [machine.backend.pid, machine.guest.pid]
    if guarded:
        pids.append(machine.guard.pid)
    report = audit(*pids, options=[f"--svg={svg}"])
    ram = ram_reached(report, machine.guest.pid)
    reach = ram_reached(report, machine.backend.pid)
    step(f"the daemon can reach {reach / MIB:.1f} MiB of the guest's "
         f"{ram / MIB:.1f} MiB; map in " + os.path.relpath(svg, TOP))
    return {"found": found, "reach": reach}


def table(straight, guarded):
    def ratio(key):
        return f"{guarded[key] / straight[key]:.2f}"

    rows = [
        ("what the disk's backend has", "straight", "with moat", ""),
        ("guest RAM it can reach", f"{straight['reach']:,} B",
         f"{guarded['reach']:,} B", ""),
        ("the guest's secret", "found" if straight["found"] else "not found",
         "found" if guarded["found"] else "not found", ""),
        ("128 KiB reads", f"{straight['large'] / 8:.0f} MiB/s",
         f"{guarded['large'] / 8:.0f} MiB/s", ratio("large")),
        ("4 KiB reads, one by one", f"{straight['small']:.0f}/s",
         f"{guarded['small']:.0f}/s", ratio("small")),
    ]
    print()
    for n, (what, one, two, three) in enumerate(rows):
        print(f"  {what:28} {one:>16} {two:>16} {three:>6}".rstrip())
        if n == 0:
            print("  " + "-" * 69)
    print()


def main():
    if sys.argv[1:]:
        print(__doc__)
        return 0 if sys.argv[1:] in (["-h"], ["--help"]) else 2
    try:
        check_machine()
        os.makedirs(OUT, exist_ok=True)
        step = Steps()
        with ExitStack() as stack:
            def machine(guarded):
                return stack.enter_context(
                    Machine("uml", guarded, folder="/dev/shm"))

            print("\nStraight: the daemon is given the guest's memory",
                  flush=True)
            machines = [machine(guarded=False)]
            straight = show(machines[0], step)
            print("\nGuarded: moat guard stands between", flush=True)
            machines.append(machine(guarded=True))
            guarded = show(machines[1], step)
            print("\nSpeed: both by turns", flush=True)
            measure(machines, [straight, guarded])
            step(f"{ROUNDS} rounds of {LARGE[1]} and {SMALL[1]} reads")
    except KeyboardInterrupt:
        return 130
    except (Problem, AssertionError, OSError) as e:
        print(f"demo: {e}", file=sys.stderr)
        return 1
    table(straight, guarded)
    if guarded["reach"] or guarded["found"]:
        print("demo: the guard leaked", file=sys.stderr)
        return 1
    if not straight["found"] or not straight["reach"]:
        print("demo: nothing to see without the guard: the spy or the audit "
              "looked at the wrong thing", file=sys.stderr)
        return 1
    print("Memory maps: out/demo-unguarded.svg, out/demo-guarded.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
