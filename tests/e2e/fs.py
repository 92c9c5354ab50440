# SPDX-License-Identifier: Apache-2.0
"""Shared folders: moat-fs or virtiofsd, a guest that mounts one, and the program
that tries it (tests/tools/fsops).

The host's own programs run in the guest, too: a second, read-only share is the
host's root folder, the guest makes that its root and finds the folder that is
tested at /tmp/w.
"""
import os
import shlex
import shutil
from contextlib import ExitStack

import peers
from guard import Guard
from guests import Qemu, UserModeLinux
from procs import Process, Workdir, build_dir, run

DEVICE_FS = 26
TAG, TOOLS = "moat", "tools"


def fsops(build=None):
    return os.path.join(build or build_dir(), "tests/tools/fsops/fsops")


class MoatFs(Process):
    """moat-fs on a folder, up and listening."""

    def __init__(self, socket_path, folder, *options, tag=TAG, **kwargs):
        self.socket_path = str(socket_path)
        super().__init__(self.command(folder, f"--socket-path={socket_path}",
                                      f"--tag={tag}", *options),
                         name="moat-fs", **kwargs)
        try:
            self.expect("listening on")
        except BaseException:
            self.kill()
            raise

    @staticmethod
    def command(folder, *how):
        return [os.path.join(build_dir(), "src/dev/fs/moat-fs"),
                f"--shared-dir={folder}", *how]

    @property
    def children(self):
        """Its processes: in its sandbox it serves from a child."""
        with open(f"/proc/{self.pid}/task/{self.pid}/children",
                  encoding="ascii") as f:
            return [int(pid) for pid in f.read().split()]


def virtiofsd(socket_path, folder, *options):
    """The one in Rust, with what moat-fs is told in its words."""
    return peers.Server(peers.in_root(
        "/usr/libexec/virtiofsd", f"--shared-dir={folder}", f"--tag={TAG}",
        "--sandbox=none", "--inode-file-handles=never",
        f"--socket-path={socket_path}", *options), "virtiofsd", socket_path)


class Shared:
    """A shared folder and a guest that has it mounted at /mnt; use it with
    `with`.

    Parameters: the kind of VMM ("uml", "qemu" or "qemu11"), whether a guard
    stands between, what serves the folder (MoatFs or virtiofsd) and its
    options, the guard's, whether the host's programs are there, too, and
    mount's options.  With mount=None the guest is booted and no more.
    """

    def __init__(self, vmm="uml", guarded=False, daemon=MoatFs, options=(),
                 guard=(), tools=False, mount="", memory=256, queues=1):
        self.vmm = vmm
        with ExitStack() as stack:
            self.work = stack.enter_context(Workdir())
            os.chmod(self.work.path, 0o755)
            self.folder = self.work / "share"
            os.makedirs(self.folder + "/w")
            shutil.copy(fsops(), self.folder + "/fsops")
            self.socket = self.work / "fs.sock"
            self.daemon = stack.enter_context(daemon(
                self.socket, self.folder, *options))
            self.guard = None
            sockets = [self.socket]
            if guarded:
                sockets = [self.work / "guard.sock"]
                self.guard = stack.enter_context(Guard(
                    sockets[0], self.socket, options=[*guard]))
            if tools:
                self.tools = stack.enter_context(MoatFs(
                    self.work / "tools.sock", "/", "--readonly",
                    "--cache=always", "--announce-submounts", tag=TOOLS))
                sockets.append(self.tools.socket_path)
            self.guest = stack.enter_context(self.boot(
                sockets, memory, queues))
            self._stack = stack.pop_all()
        try:
            if mount is not None:
                self.mount(mount)
            if tools:
                self.guest.run(TOOLBOX)
        except BaseException:
            self._stack.close()
            raise

    def boot(self, sockets, memory, queues):
        if self.vmm == "uml":
            return UserModeLinux([(path, DEVICE_FS) for path in sockets],
                                 memory=memory)
        make = Qemu if self.vmm == "qemu" else peers.Qemu11
        return make(devices(sockets, queues), memory=memory, cpus=queues)

    def mount(self, options=""):
        self.guest.run(f"mkdir -p /mnt; mount -t virtiofs "
                       f"{options and '-o ' + options} {TAG} /mnt")

    def host(self, command, deadline=90):
        """Runs a command of the host's in the guest, in the shared folder."""
        return self.guest.run(
            "chroot /host /bin/sh -c "
            + shlex.quote("cd /tmp/w; export HOME=/tmp; " + command),
            deadline=deadline)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def well(self):
        """Unmounts, powers off; nobody complained."""
        self.guest.run("cd /; umount -l /host 2>/dev/null || true; umount /mnt")
        assert self.guest.poweroff() == 0
        for process in filter(None, (self.guard, self.daemon)):
            if not isinstance(process, peers.Server):
                assert process.running(), process.log
            assert "error: " not in process.log, process.log


TOOLBOX = f"""
mkdir -p /host
mount -t virtiofs -o ro {TOOLS} /host
mount -t tmpfs tmp /host/tmp
mkdir /host/tmp/w
mount --bind /mnt/w /host/tmp/w
mount -t proc proc /host/proc
mount -t sysfs sys /host/sys
mount -t devtmpfs dev /host/dev
"""


def devices(sockets, queues=1):
    """QEMU's arguments for shares, the first with the tag "moat"."""
    argv = []
    for n, (path, tag) in enumerate(zip(sockets, (TAG, TOOLS))):
        argv += ["-chardev", f"socket,id=fs{n},path={path}", "-device",
                 f"vhost-user-fs-pci,chardev=fs{n},tag={tag},"
                 f"num-request-queues={queues},queue-size=1024"]
    return argv


def table(shared):
    """What the table is in the guest's folder."""
    return shared.guest.run("mkdir /mnt/w/table; /mnt/fsops table "
                            "/mnt/w/table; rm -rf /mnt/w/table")


def host_table(folder):
    """What the table is on the host, in a folder of the same file system."""
    where = os.path.join(folder, "host-table")
    os.mkdir(where)
    done = run([fsops(), "table", where])
    assert done.returncode == 0, done.stderr
    shutil.rmtree(where)
    return done.stdout.rstrip("\n")


def different(one, other):
    """The lines in which two tables differ, as (operation, one, other)."""
    pairs = zip(one.splitlines(), other.splitlines(), strict=True)
    return [(a, b) for a, b in pairs if a != b]
