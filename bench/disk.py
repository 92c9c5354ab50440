# SPDX-License-Identifier: Apache-2.0
"""A disk, straight and behind a guard.

    driver ----------------> daemon -> disk
    driver ----> guard ----> daemon -> disk

Paths that are compared are alike but for the guard: the same disk, and a daemon
of the same kind each, as an export serves one client at a time.

The driver is qemu-img bench (libblkio) and the disk a file in /dev/shm; or for the
modes that share memory bench-blkdrv and a disk that takes no time.  With a file one
of two equal daemons can be faster than the other for seconds on end, and no
difference of some hundredths be seen (docs/performance.md).
"""
import dataclasses
import json
import os
import re
import resource
import subprocess
import time

from backends import MoatBlk, StorageDaemon
from guard import Guard
from peers import NewStorageDaemon, blkio, in_root
from procs import DEADLINE, Workdir, build_dir

# Where bench-blkdrv has its pool, for the guard.
POOL = "--pool=0x7c000000+0x1000000"


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
    driver_cpu: float           # seconds; qemu-img's with the program's start
    daemon_cpu: float           # those of the set-up included
    guard_cpu: float            # likewise; 0 without a guard
    guard_sleeps: int           # times that the guard gave its processor up
    latency_us: dict            # "median" and "p99", where the driver tells

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
    """User and system time of all threads so far, to the nanosecond: the
    number is that of clock_getcpuclockid()."""
    return time.clock_gettime(~pid << 3 | 2)


def sleeps(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as f:
        return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", f.read(),
                             re.MULTILINE).group(1))


class BenchDaemon(StorageDaemon):
    """Debian 12's daemon with io_uring: its fastest way to a file, which others
    may have open, too."""

    @staticmethod
    def command(*args, **kwargs):
        return [word.replace("aio=threads", "aio=io_uring,locking=off")
                for word in StorageDaemon.command(*args, **kwargs)]


class NewBenchDaemon(NewStorageDaemon):
    """QEMU 11.1's, likewise."""

    @staticmethod
    def command(*args, **kwargs):
        return in_root(*BenchDaemon.command(*args, **kwargs))


def null_disk(daemon):
    """That daemon, with a disk of its own that takes no time; image is its size
    in bytes."""
    class NullDaemon(daemon):
        @staticmethod
        def command(socket_path, image, *args, **kwargs):
            argv = daemon.command(socket_path, image, *args, **kwargs)
            if daemon is MoatBlk:
                return [f"--null={image}" if word.startswith("--blk-file=")
                        else word for word in argv]
            at = argv.index("--blockdev") + 1
            argv[at] = f"driver=null-co,node-name=disk,size={image}"
            return argv
    return NullDaemon


DAEMONS = {"debian12": BenchDaemon, "newer": NewBenchDaemon,
           "moat-blk": MoatBlk}


class Path:
    """One way from a driver to a disk: .run() is one run of the driver, which
    is qemu-img."""
    tells_latency = False

    def __init__(self, stack, daemon, image, size, options=None):
        """options: of the guard; None: there is none."""
        work = stack.enter_context(Workdir("/dev/shm"))
        self.size = size
        self.guard = None
        self.daemon = stack.enter_context(daemon(work / "disk.sock", image))
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

    def drive(self, load, count):
        """What a Sample has of the driver."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        said = output(self.command(load, count))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {"seconds": float(re.search(r"Run completed in ([0-9.]+) seconds",
                                           said).group(1)),
                "driver_cpu": (after.ru_utime + after.ru_stime
                               - before.ru_utime - before.ru_stime),
                "latency_us": {}}

    def run(self, load, count):
        """One run: the driver starts, does count requests and ends."""
        daemon = cpu_seconds(self.daemon.serving_pid)
        guard = cpu_seconds(self.guard.pid) if self.guard else 0
        slept = sleeps(self.guard.pid) if self.guard else 0
        driver = self.drive(load, count)
        return Sample(
            requests=count, **driver,
            daemon_cpu=cpu_seconds(self.daemon.serving_pid) - daemon,
            guard_cpu=cpu_seconds(self.guard.pid) - guard if self.guard else 0,
            guard_sleeps=sleeps(self.guard.pid) - slept if self.guard else 0)


class NativePath(Path):
    """Likewise with bench-blkdrv, which has a pool that can be shared."""
    tells_latency = True

    def __init__(self, stack, kind, size, options=None, rings="pool"):
        """rings: where the driver has them, "pool" or "ram"."""
        super().__init__(stack, null_disk(DAEMONS[kind]), size, size, options)
        self.rings = rings

    def command(self, load, count):
        argv = [os.path.join(build_dir(), "bench/bench-blkdrv"),
                f"--socket={self.socket_path}", f"--count={count}",
                f"--depth={load.depth}", f"--size={load.size}",
                f"--step={load.step(self.size)}", f"--rings={self.rings}"]
        return argv + (["--write"] if load.write else [])

    def drive(self, load, count):
        said = json.loads(output(self.command(load, count)))
        return {"seconds": said["seconds"], "driver_cpu": said["cpu_seconds"],
                "latency_us": {key: said["latency_us"][key]
                               for key in ("median", "p99")}}


def output(argv):
    argv = [str(a) for a in argv]
    done = subprocess.run(argv, text=True, capture_output=True, check=False,
                          stdin=subprocess.DEVNULL, timeout=DEADLINE)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}:\n{done.stdout}{done.stderr}")
    return done.stdout
