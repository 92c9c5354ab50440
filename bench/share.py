# SPDX-License-Identifier: Apache-2.0
"""A folder that is shared by virtio-fs daemons, and what is done to it.

    bench-fsdrv ----> daemon -> folder

Daemons that are compared share the same folder.  Each run has a daemon of its own
that has just started, as those of others end with their VMM.
"""
import dataclasses
import json
import os
import re
import resource
import struct
import subprocess

from peers import Server, virtiofsd
from procs import DEADLINE, Process, build_dir

TAG = "moat"
FILES = 1000            # in the folder "files"
PAGE = 4096
MADE = 8000             # files that one run makes, at most: few enough for daemons
                        # that have a descriptor for each
FILLER = b"\x5a"        # fills a block behind its number; see fswork.h


def make_tree(folder, size, held=0):
    """What bench-fsdrv expects: "big" and "out" of size bytes, "files", "scratch",
    and with held the folder "many" of so many empty files."""
    for name in ("files", "scratch", "many"):
        os.makedirs(os.path.join(folder, name))
    for i in range(FILES):
        with open(os.path.join(folder, f"files/f{i:06d}"), "wb") as f:
            f.write(FILLER * 100)
    for i in range(held):
        os.close(os.open(os.path.join(folder, f"many/f{i:06d}"),
                         os.O_CREAT | os.O_WRONLY, 0o644))
    rest = FILLER * (PAGE - 8)
    with open(os.path.join(folder, "big"), "wb") as big, \
            open(os.path.join(folder, "out"), "wb") as out:
        for block in range(size // PAGE):
            big.write(struct.pack("<Q", block) + rest)
            out.write(bytes(PAGE))
    return folder


def open_to_all(folder):
    """Daemons may give their rights up."""
    for path, _, _ in os.walk(folder):
        os.chmod(path, 0o777)


def moat_fs():
    return os.path.join(build_dir(), "src/dev/fs/moat-fs")


def command(kind, socket_path, folder, queues=1, options=()):
    """A daemon's command line; "moat-fs", or a kind that peers.virtiofsd knows.
    All have their default cache policy (auto) and no extended attributes."""
    if kind != "moat-fs":
        return virtiofsd(kind, folder, f"--socket-path={socket_path}") \
            + list(options)
    return [moat_fs(), f"--socket-path={socket_path}",
            f"--shared-dir={folder}", f"--tag={TAG}",
            f"--num-request-queues={queues}", *options]


def children(pid):
    """A process and all below it."""
    found = [pid]
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children",
                      encoding="ascii") as f:
                for child in f.read().split():
                    found += children(int(child))
    except OSError:
        pass    # ended meanwhile
    return found


class Daemon(Server):
    """One daemon with one client to come."""

    def __init__(self, kind, socket_path, folder, queues=1, options=()):
        if os.path.lexists(socket_path):
            os.unlink(socket_path)
        super().__init__(command(kind, socket_path, folder, queues, options),
                         kind, socket_path)
        if kind == "moat-fs":
            # It listens before it has the process that serves.
            self.expect("listening on")

    def pids(self):
        return children(self.pid)

    def memory(self):
        """KiB of all its processes: {"rss", "pss", "private"}."""
        sums = {"rss": 0, "pss": 0, "private": 0}
        for pid in self.pids():
            with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
                for name, kib in re.findall(r"^(\w+): +(\d+) kB", f.read(),
                                            re.MULTILINE):
                    for key in sums:
                        if name.lower() == key or (
                                key == "private" and
                                name in ("Private_Clean", "Private_Dirty")):
                            sums[key] += int(kib)
        return sums

    def descriptors(self):
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids())


@dataclasses.dataclass(frozen=True)
class Load:
    """What the driver does; unit is what is counted in a second."""
    name: str
    work: str
    unit: str = "operations"
    size: int = PAGE
    depth: int = 1
    queues: int = 1
    scattered: bool = False
    forget: bool = False

    def options(self, queues):
        argv = [f"--work={self.work}", f"--size={self.size}",
                f"--depth={self.depth}", f"--queues={queues}",
                f"--files={FILES}"]
        if self.work in ("create", "unlink"):
            argv.append(f"--count={MADE}")
        return argv + ["--random"] * self.scattered + ["--forget"] * self.forget


def driver(socket_path, *options):
    return [os.path.join(build_dir(), "bench/bench-fsdrv"),
            f"--socket={socket_path}", *map(str, options)]


class Share:
    """One kind of daemon for one folder: .run() is one run of the driver."""

    def __init__(self, kind, socket_path, folder, options=()):
        self.kind, self.folder, self.options = kind, folder, options
        self.socket_path = str(socket_path)

    def daemon(self, queues=1, options=()):
        return Daemon(self.kind, self.socket_path, self.folder, queues,
                      [*self.options, *options])

    def queues(self, load):
        """Both virtiofsds have one request queue."""
        return load.queues if self.kind == "moat-fs" else 1

    def run(self, load, seconds, warm, poll=False):
        """What the driver said, with "rate" in units a second and the daemon's
        processor time in microseconds a unit ("cpu_us")."""
        queues = self.queues(load)
        with self.daemon(queues) as daemon:
            pids = ",".join(map(str, daemon.pids()))
            argv = driver(self.socket_path, f"--cpu-of={pids}",
                          f"--seconds={seconds}", f"--warm={warm}",
                          *load.options(queues), *["--poll"] * poll)
            said = json.loads(output(argv, daemon))
        units = said[load.unit]
        said["rate"] = units / said["seconds"]
        said["cpu_us"] = 1e6 * said["daemon_cpu_seconds"] / units
        return said

    def memory(self, inodes, options=()):
        """Of the daemon before a driver came and with so many known inodes, as
        Daemon.memory() has it.  None if it can not know so many."""
        with self.daemon(options=options) as daemon:
            before = daemon.memory()
            argv = driver(self.socket_path, "--work=hold", "--folder=many",
                          f"--files={inodes}")
            with Process(argv) as client:
                client.expect(r"^\{.*\}$|failed|gone")
                if "operations" not in client.log:
                    return None
                return {"before": before, "inodes": inodes,
                        "held": daemon.memory(),
                        "descriptors": daemon.descriptors()}


def descriptor_limit():
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def output(argv, daemon):
    done = subprocess.run(argv, text=True, capture_output=True, check=False,
                          stdin=subprocess.DEVNULL, timeout=DEADLINE)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}:\n{done.stdout}{done.stderr}"
                           f"--- {' '.join(daemon.argv)}\n{daemon.log}")
    return done.stdout
