# SPDX-License-Identifier: Apache-2.0
"""A disk on RAM, straight and behind a guard, driven by qemu-img bench.

    driver (qemu-img, libblkio) ----------------> daemon -> file in /dev/shm
    driver (qemu-img, libblkio) ----> guard ----> daemon -> file in /dev/shm

The two paths are alike but for the guard: a daemon and a file of the same kind
each, as an export serves one client at a time.
"""
import contextlib
import dataclasses
import os
import re
import subprocess

from backends import MoatBlk, StorageDaemon
from guard import Guard
from peers import NewStorageDaemon, blkio, in_root
from procs import DEADLINE, Workdir

TICK = 1.0 / os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True)
class Load:
    """What the driver does.  Offsets go up by step bytes and wrap around at the
    end of the disk: qemu-img bench knows no random ones."""
    name: str
    size: int       # bytes of a request
    depth: int      # requests in flight
    write: bool
    scattered: bool

    def step(self, disk):
        """For scattered ones about 0.618 of the disk: neighbours in time are
        far apart, and each block comes once before any comes again."""
        if not self.scattered:
            return self.size
        blocks = disk // self.size
        step = int(blocks * 0.6180339887)
        while gcd(step, blocks - 1) != 1:
            step += 1
        return step * self.size


def gcd(a, b):
    while b:
        a, b = b, a % b
    return a


@dataclasses.dataclass
class Sample:
    """One run of the driver."""
    seconds: float
    requests: int
    driver_cpu: float           # seconds, the program's start included
    daemon_cpu: float
    guard_cpu: float            # 0 without a guard
    guard_sleeps: int           # times that the guard gave its processor up

    @property
    def rate(self):
        return self.requests / self.seconds


def fill(path, size):
    """A file of real pages, so that no read meets a hole."""
    block = os.urandom(1 << 20)
    with open(path, "wb") as f:
        for _ in range(size >> 20):
            f.write(block)
    return path


def cpu_seconds(pid):
    """User and system time of all threads so far."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


def sleeps(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as f:
        return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", f.read(),
                             re.MULTILINE).group(1))


class BenchDaemon(StorageDaemon):
    """Debian 12's daemon with io_uring: its fastest way to a file."""

    @staticmethod
    def command(*args, **kwargs):
        return [word.replace("aio=threads", "aio=io_uring")
                for word in StorageDaemon.command(*args, **kwargs)]


class NewBenchDaemon(NewStorageDaemon):
    """QEMU 11.1's, likewise."""

    @staticmethod
    def command(*args, **kwargs):
        return in_root(*BenchDaemon.command(*args, **kwargs))


DAEMONS = {"debian12": BenchDaemon, "newer": NewBenchDaemon,
           "moat-blk": MoatBlk}


class Path:
    """One way from a driver to a disk: .run() is one run of the driver."""

    def __init__(self, stack, kind, size, options=None):
        """options: of the guard; None: there is none."""
        work = stack.enter_context(Workdir("/dev/shm"))
        image = fill(work / "disk", size)
        self.size = size
        self.guard = None
        self.daemon = stack.enter_context(DAEMONS[kind](work / "disk.sock", image))
        self.socket_path = self.daemon.socket_path
        if options is not None:
            self.guard = stack.enter_context(
                Guard(work / "guard.sock", backend=self.socket_path,
                      options=["--device=blk", *options]))
            self.socket_path = self.guard.socket_path

    def command(self, load, count):
        argv = in_root("qemu-img", "bench", "-t", "none", "-c", count,
                       "-d", load.depth, "-s", load.size,
                       "-S", load.step(self.size))
        if load.write:
            argv += ["-w", "--pattern", "0x5a"]
        return argv + ["--image-opts", blkio(self.socket_path)]

    def run(self, load, count):
        """One run: the driver starts, does count requests and ends."""
        daemon = cpu_seconds(self.daemon.serving_pid)
        guard = cpu_seconds(self.guard.pid) if self.guard else 0
        slept = sleeps(self.guard.pid) if self.guard else 0
        before = os.times()
        argv = self.command(load, count)
        done = subprocess.run(argv, text=True, capture_output=True, check=False,
                              stdin=subprocess.DEVNULL, timeout=DEADLINE)
        after = os.times()
        found = re.search(r"Run completed in ([0-9.]+) seconds", done.stdout)
        if done.returncode or not found:
            raise RuntimeError(f"{' '.join(argv)}:\n{done.stdout}{done.stderr}")
        return Sample(
            seconds=float(found.group(1)), requests=count,
            driver_cpu=(after.children_user + after.children_system
                        - before.children_user - before.children_system),
            daemon_cpu=cpu_seconds(self.daemon.serving_pid) - daemon,
            guard_cpu=cpu_seconds(self.guard.pid) - guard if self.guard else 0,
            guard_sleeps=sleeps(self.guard.pid) - slept if self.guard else 0)


@contextlib.contextmanager
def paths(kind, size, *option_lists):
    """The straight path and a guarded one for each list of guard options."""
    with contextlib.ExitStack() as stack:
        yield [Path(stack, kind, size),
               *[Path(stack, kind, size, options) for options in option_lists]]
