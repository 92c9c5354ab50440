# SPDX-License-Identifier: Apache-2.0
"""What a guest sees of a shared folder.

measure(): user-mode Linux, a guard, a daemon, and ordinary commands on the mount;
two such guests take turns.  Straight it would take neither virtiofsd
(tests/e2e/test_all_virtiofs.py says why), so both have a guard.

measure_dax(): QEMU 11 shows the guest the daemon's shared memory region.  The same
file is read through it, through requests, and from the guest's page cache.
The guest is emulated, so its figures are to be compared with one another only.
"""
import contextlib
import os
import re
import shutil
import statistics
import time

import report
from guard import Guard
from guests import UserModeLinux
from peers import Qemu11
from procs import build_dir
from share import FILES, TAG

DEVICE_FS = 26
MIB = 1 << 20
CACHE_AIM = 0.95        # of the page cache's speed: a tie, to within noise
# The guest's kernel copies with an instruction for each 8 bytes then; TCG works on
# "rep movsb" byte by byte, which would hide all else.
COPIES = "clearcpuid=erms,fsrm"
DROP = "sync; echo 3 >/proc/sys/vm/drop_caches\n"


def works(quick):
    """Name -> (made ready with, what is timed)."""
    few = 20 if quick else 500
    mib = 8 if quick else 128
    small = "for i in $(seq %d); do %%s; done" % few
    many = "mkdir -p /mnt/scratch/s; " + small % "echo $i >/mnt/scratch/s/$i"
    return {
        "read a large file": (DROP, "dd if=/mnt/big of=/dev/null bs=1M "
                              f"count={mib} 2>/dev/null"),
        "write a large file": (
            "rm -f /mnt/scratch/w", "dd if=/dev/zero of=/mnt/scratch/w bs=1M "
            f"count={mib} conv=fsync 2>/dev/null"),
        "read 4 KiB, O_DIRECT": (
            DROP, "dd if=/mnt/big of=/dev/null bs=4k iflag=direct "
            f"count={few * 8} 2>/dev/null"),
        f"ls -l of {FILES} files": (DROP, "ls -l /mnt/files >/dev/null"),
        "read all of them": (DROP, "cat /mnt/files/* >/dev/null"),
        f"make {few} small files": ("rm -rf /mnt/scratch/s", many),
        "remove them": (many, "rm -r /mnt/scratch/s"),
    }


def boot(stack, shared):
    """A guest with the share mounted, behind a guard."""
    daemon = stack.enter_context(shared.daemon())
    guard = stack.enter_context(Guard(
        shared.socket_path + ".guard", backend=daemon.socket_path,
        options=["--device=fs", "--once"]))
    guest = stack.enter_context(UserModeLinux(
        [(guard.socket_path, DEVICE_FS)], memory=512))
    guest.run(f"mkdir -p /mnt; mount -t virtiofs {TAG} /mnt")
    return guest


def timed(guest, ready, script):
    guest.run(ready)
    begin = time.monotonic()
    guest.run(script)
    return time.monotonic() - begin


def measure(shares, args):
    """Seconds of each work for both, in turns."""
    rows = []
    with contextlib.ExitStack() as stack:
        guests = [boot(stack, s) for s in shares]
        for name, (ready, script) in works(args.quick).items():
            pairs = []
            for turn in range(args.pairs):
                took = [0.0, 0.0]
                for which in (0, 1) if turn % 2 else (1, 0):
                    took[which] = timed(guests[which], ready, script)
                pairs.append(took)
            ratios = [b / a for a, b in pairs]
            rows.append({"name": name, "ratio": statistics.median(ratios),
                         "min": min(ratios), "max": max(ratios),
                         "ours": statistics.median(a for a, _ in pairs),
                         "theirs": statistics.median(b for _, b in pairs),
                         "pairs": pairs})
        for guest in guests:
            guest.run("rm -rf /mnt/scratch/*; umount /mnt")
            guest.poweroff()
    return rows


def show(place, rows):
    print(f"\na guest's view of a folder on {place} (user-mode Linux, a guard "
          "each): speed, and seconds\n"
          f"{'':28}{'seen':>7}{'range':>14}{'ours':>9}{'theirs':>9}")
    for r in rows:
        span = f"{r['min']:.2f}..{r['max']:.2f}"
        print(f"{r['name']:28}{r['ratio']:7.2f}{span:>14}{r['ours']:9.3f}"
              f"{r['theirs']:9.3f}")


# ---- DAX ----

class DaxGuest(Qemu11):
    """A guest to which QEMU shows whatever the backend is."""

    @staticmethod
    def device(socket_path):
        return ["-chardev", f"socket,id=fs,path={socket_path}", "-device",
                f"vhost-user-test-device-pci,chardev=fs,virtio-id={DEVICE_FS},"
                "num_vqs=2,vq_size=1024,config_size=40"]


def cached(guest):
    """KiB in the guest's page cache."""
    return int(re.search(r"^Cached: +(\d+) kB", guest.run("cat /proc/meminfo"),
                         re.MULTILINE).group(1))


def read_once(guest, how):
    said = guest.run(f"/tmp/mapread {how} /mnt/big")
    found = re.search(r"bytes (\d+) ns (\d+) sum (\d+)", said)
    assert found, said
    size, ns, total = map(int, found.groups())
    return {"mib_s": size / MIB / (ns / 1e9), "sum": total}


def one_way(guest, how, options):
    """Mounted with the options: read for the first time and again, and by how
    much the page cache grew with it."""
    guest.run(f"mount -t virtiofs {options} {TAG} /mnt\n{DROP}")
    before = cached(guest)
    out = {"first": read_once(guest, how), "again": read_once(guest, how)}
    out["again"]["cache_kib"] = cached(guest) - before
    guest.run("umount /mnt")
    return out


def one_round(shared, how, size):
    """DAX and requests, one after the other in one guest; which may keep what it
    has cached from one open() to the next."""
    with shared.daemon(options=[f"--dax-window={2 * size >> 20}M",
                                "--cache=always"]) as daemon, \
            DaxGuest(DaxGuest.device(daemon.socket_path), append=COPIES,
                     memory=(size >> 20) * 2 + 256) as guest:
        guest.run(f"mkdir -p /mnt; mount -t virtiofs {TAG} /mnt\n"
                  "cp /mnt/mapread /tmp; umount /mnt")
        out = {"dax": one_way(guest, how, "-o dax"),
               "requests": one_way(guest, how, "")}
        assert guest.poweroff() == 0
    return out


def measure_dax(shared, args):
    size = os.path.getsize(os.path.join(shared.folder, "big"))
    shutil.copy(os.path.join(build_dir(), "bench/bench-mapread"),
                os.path.join(shared.folder, "mapread"))
    rounds = {how: [one_round(shared, how, size)
                    for _ in range(min(args.pairs, 3))]
              for how in ("read", "mmap")}
    sums = {seen["sum"] for ways in rounds.values() for way in ways
            for times in way.values() for seen in times.values()}
    assert len(sums) == 1, f"not all ways read the same: {sums}"
    return [dax_row(how, rounds[how]) for how in rounds]


def dax_row(how, rounds):
    """MiB a second through DAX, through requests (the first time without
    DAX) and from the page cache (again without DAX)."""
    def speed(way, when):
        return statistics.median(r[way][when]["mib_s"] for r in rounds)

    def ratio(when):
        return statistics.median(r["dax"][when]["mib_s"]
                                 / r["requests"][when]["mib_s"] for r in rounds)

    return {"how": how, "rounds": rounds,
            "dax_first": speed("dax", "first"),
            "dax_again": speed("dax", "again"),
            "requests": speed("requests", "first"),
            "cache": speed("requests", "again"),
            "first_to_requests": ratio("first"),
            "again_to_cache": ratio("again"),
            "cache_kib": {way: statistics.median(
                r[way]["again"]["cache_kib"] for r in rounds)
                for way in ("dax", "requests")}}


def show_dax(rows):
    print("\nDAX in an emulated guest, MiB/s (aim: DAX again as fast as the "
          f"page cache, >= {CACHE_AIM:.2f})\n"
          f"{'':6}{'DAX, first':>12}{'requests':>10}{'ratio':>7}"
          f"{'DAX, again':>12}{'page cache':>12}{'ratio':>7} {'':8}"
          f"{'cache grew, KiB: DAX':>22}{'requests':>10}")
    for r in rows:
        print(f"{r['how']:6}{r['dax_first']:12,.0f}{r['requests']:10,.0f}"
              f"{r['first_to_requests']:7.2f}{r['dax_again']:12,.0f}"
              f"{r['cache']:12,.0f}{r['again_to_cache']:7.2f} "
              f"{report.verdict(r['again_to_cache'] >= CACHE_AIM):8}"
              f"{r['cache_kib']['dax']:22,.0f}"
              f"{r['cache_kib']['requests']:10,.0f}")
