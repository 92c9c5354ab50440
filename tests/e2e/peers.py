# SPDX-License-Identifier: Apache-2.0
"""The newer peers: programs of the folder that scripts/peers-root makes, and
Debian 12's old virtiofsd.

front() puts a guard between a backend and a VMM, or nothing, so that each test
can run both ways: when the straight one fails, too, the peer is at fault.
"""
import contextlib
import functools
import hashlib
import os
import re
import shutil
import subprocess

from backends import MoatBlk, StorageDaemon
from guard import Guard
from guests import Qemu
from procs import DEADLINE, TOP, Process, build_dir, listening, run, \
    wait_until

SCRIPTS = os.path.join(TOP, "scripts")


@functools.cache
def root():
    """The folder of newer peers; made now if it is not there yet."""
    return subprocess.run([os.path.join(SCRIPTS, "peers-root")], check=True,
                          text=True, stdout=subprocess.PIPE).stdout.strip()


def in_root(*command):
    """The command line that runs a newer program."""
    root()
    return [os.path.join(SCRIPTS, "peers/in-root"), *map(str, command)]


@contextlib.contextmanager
def front(guarded, work, backend, options=()):
    """The socket for the VMM to connect to: that of a guard before the
    backend's socket, or the latter itself.  The guard has to survive what is
    done meanwhile, without an error, and end well: when told to, or with --once
    by itself, as behind a backend that ends with its VMM."""
    if not guarded:
        yield backend
        return
    with Guard(work / "guard.sock", backend=backend, options=options) as guard:
        yield guard.socket_path
        if "--once" in options:
            check_ended(guard)
        else:
            check_well(guard)


def check_well(guard):
    """A guard that lives, complained of nothing and ends when told to."""
    assert guard.running(), f"the guard ended: {guard.log}"
    assert "error: " not in guard.log, guard.log
    assert guard.terminate() == 0, guard.log


def check_ended(guard):
    """A guard that served its one VMM and complained of nothing."""
    assert guard.wait(30) == 0, guard.log
    assert "error: " not in guard.log, guard.log


class Server(Process):
    """A backend that listens on a Unix socket once it is up."""

    def __init__(self, argv, name, socket_path):
        self.socket_path = str(socket_path)
        super().__init__(argv, name=name)
        try:
            wait_until(lambda: listening(self.socket_path)
                       or not self.running(),
                       f"{name} listens on {socket_path}")
            if not self.running():
                raise self._complain("ended at once")
        except BaseException:
            self.kill()
            raise


class NewStorageDaemon(StorageDaemon):
    """QEMU 11.1's qemu-storage-daemon."""

    @staticmethod
    def command(*args, **kwargs):
        return in_root(*StorageDaemon.command(*args, **kwargs))


STORAGE_DAEMONS = {"debian12": StorageDaemon, "newer": NewStorageDaemon,
                   "moat-blk": MoatBlk}


def virtiofsd(kind, folder, *how):
    """A virtiofsd's command line: "debian12" is QEMU 7.2's in C, "newer" the
    one in Rust; how says where it listens."""
    if kind == "debian12":
        return ["/usr/lib/qemu/virtiofsd", "-f", *how, "-o",
                f"source={folder}", "-o", "sandbox=chroot"]
    return in_root("/usr/libexec/virtiofsd", "--shared-dir", folder, "--tag",
                   "moat", "--sandbox=none", "--inode-file-handles=never", *how)


class Virtiofsd(Server):
    """virtiofsd for one VMM, which shares a folder under the tag "moat"."""

    def __init__(self, kind, socket_path, folder):
        super().__init__(
            virtiofsd(kind, folder, f"--socket-path={socket_path}"),
            f"virtiofsd ({kind})", socket_path)


# Addresses that exist only between passt and its guest: what the guest sends
# to the gateway arrives at this machine's loopback, and the tests send nowhere
# else.
GUEST_IP, GATEWAY_IP = "198.51.100.2", "198.51.100.1"


def passt(*how):
    return in_root("passt", "--vhost-user", "--foreground", "--ipv4-only",
                   "--interface", "lo", "--address", GUEST_IP,
                   "--netmask", "24", "--gateway", GATEWAY_IP,
                   "--map-host-loopback", GATEWAY_IP, "--dns", "none",
                   "--repair-path", "none", *how)


class Passt(Server):
    """passt as a vhost-user backend."""

    def __init__(self, socket_path):
        super().__init__(passt("--socket", socket_path), "passt", socket_path)


LIBSTDBUF = "/usr/libexec/coreutils/libstdbuf.so"


class Dpdk(Process):
    """DPDK's testpmd, without huge pages; spoken to with ask().  vdev is its
    one port: net_vhost0 for a backend, net_virtio_user0 for a driver."""

    def __init__(self, work, vdev, queues=1):
        name = vdev.split(",")[0]
        argv = in_root("dpdk-testpmd", "--no-huge", "-m", "256", "--no-pci",
                       "--no-telemetry", f"--file-prefix={name}", "-l", "0-1",
                       "--vdev", vdev, "--", "-i", "--forward-mode=io",
                       "--total-num-mbufs=8192", f"--rxq={queues}",
                       f"--txq={queues}")
        # It speaks in lines only to a terminal; stdbuf's library, which is
        # not to be seen below another /usr, makes it do so here.
        library = shutil.copy(LIBSTDBUF, work.path)
        super().__init__(argv, name=f"testpmd ({name})",
                         env={"RUNTIME_DIRECTORY": work.path,
                              "LD_PRELOAD": library, "_STDBUF_O": "L"})
        try:
            self.expect("^testpmd> ")
        except BaseException:
            self.kill()
            raise

    def ask(self, command):
        """Gives a command; returns what it printed until the next prompt."""
        start = len(self.log)
        self.write(command + "\n")
        end = self.expect("^testpmd> ", start)
        return self.log[start:end.start()]

    def packets(self):
        """The port's counters as {"RX-packets": number, ...}."""
        text = self.ask("show port stats 0")
        return {key: int(value) for key, value in
                re.findall(r"([RT]X-\w+): +(\d+)", text)}


class Qemu11(Qemu):
    """QEMU 11.1 with a 6.12 guest."""
    vmm = "qemu11"

    @staticmethod
    def kernel():
        return root()

    def __init__(self, devices, memory=256, cpus=1, **kwargs):
        self.program = in_root("qemu-system-x86_64")
        super().__init__(devices, memory, cpus, **kwargs)

    @staticmethod
    def disk(socket_path, queues=1, options="", reconnect=False, packed=False):
        device = Qemu.disk(socket_path, queues, packed=packed)
        device[1] += ",reconnect-ms=1000" if reconnect else ""
        device[-1] += options
        return device

    @staticmethod
    def share(socket_path, queue_size=1024):
        return ["-chardev", f"socket,id=fs,path={socket_path}", "-device",
                f"vhost-user-fs-pci,chardev=fs,tag=moat,"
                f"queue-size={queue_size}"]

    @staticmethod
    def net(socket_path):
        return ["-chardev", f"socket,id=net,path={socket_path}",
                "-netdev", "vhost-user,id=net0,chardev=net",
                "-device", "virtio-net-pci,netdev=net0"]


def qemu_tool(*command, deadline=DEADLINE):
    """Runs qemu-img or qemu-io of QEMU 11.1; returns what it printed."""
    done = run(in_root(*command), deadline=deadline)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{output}"
    return output


def blkio(socket_path):
    """A vhost-user disk as qemu-img's tools name it."""
    return ("driver=virtio-blk-vhost-user,cache.direct=on,"
            f"path={socket_path}")


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# In a guest with a share of "/": this machine's files, with the guest's own
# devices, under /host.
HOST_FILES = """
mkdir -p /host
mount -t virtiofs -o ro moat /host
mount -t proc proc /host/proc
mount -t sysfs sys /host/sys
mount -t devtmpfs dev /host/dev
mkdir -p /host/dev/shm
mount -t tmpfs shm /host/dev/shm
ip link set lo up
"""


# What starts this machine's programs there.
IN_HOST = ("cd /; chroot /host /usr/bin/env -i TMPDIR=/dev/shm "
           "PATH=/usr/bin:/usr/sbin:/bin:/sbin PYTHONDONTWRITEBYTECODE=1 "
           f"MOAT_TEST_DEADLINE={DEADLINE / 2} MOAT_BUILD={build_dir()}")


def inside(guest, script, *words):
    """Runs a script beside this file in a guest that has HOST_FILES, with this
    machine's programs; returns its output."""
    status, output = guest.run(
        f"{IN_HOST} /usr/bin/python3 "
        f"{os.path.join(TOP, 'tests/e2e', script)} {' '.join(words)}",
        deadline=2 * DEADLINE, check=False)
    assert status == 0, output
    return output
