# SPDX-License-Identifier: Apache-2.0
"""A guest that has a shared folder mapped: QEMU 11.1's device for any backend,
moat-fs with a window, and tests/tools/daxops.c in the guest."""
import contextlib
import os
import shutil
import socket
import time
import zlib

from guard import Guard
from peers import Qemu11, Server, check_well
from procs import Workdir, build_dir, wait_until

DEVICE_FS = 26
TAG = "moat"
PAGE = 4096
MIB = 1 << 20
RDWR, DIRECT = os.O_RDWR, os.O_DIRECT
PERIOD = 251


def pattern(seed, size):
    """What daxops fills with."""
    once = bytes((seed + i) % PERIOD for i in range(PERIOD))
    return (once * (size // PERIOD + 1))[:size]


def crc(data):
    return zlib.crc32(data)


def below(pid):
    """A process and all that it has started."""
    found = [pid]
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as f:
            for child in f.read().split():
                found += below(int(child))
    return found


def command(socket_path, folder, window, *options):
    return [os.path.join(build_dir(), "src/dev/fs/moat-fs"),
            f"--socket-path={socket_path}", f"--shared-dir={folder}",
            f"--tag={TAG}", f"--dax-window={window >> 20}M", *options]


class MoatFs(Server):
    def __init__(self, socket_path, folder, window, *options):
        super().__init__(command(socket_path, folder, window, *options),
                         "moat-fs", socket_path)
        self.expect("listening on")


def differs(a, b):
    return next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), None)


class Dax:
    """Use it with `with`.

    Parameters: whether a guard stands between (it then starts moat-fs); bytes
    of the window; further options of moat-fs, of the guard, or of the guest
    (Qemu11's).
    """

    def __init__(self, guarded, window=256 * MIB, options=(),
                 guard_options=(), check=check_well, **guest):
        self.guarded = guarded
        self.check = check
        self.guard_options = guard_options
        with contextlib.ExitStack() as stack:
            self.work = stack.enter_context(Workdir())
            self.folder = self.work / "share"
            os.mkdir(self.folder)
            for name in ("tests/tools/daxops", "bench/bench-mapread"):
                shutil.copy(os.path.join(build_dir(), name), self.folder)
            self.boot(stack, window, options, guest)
            self.guest.run(f"mount -t virtiofs {TAG} /mnt; "
                           "cp /mnt/daxops /tmp; umount /mnt")
            self.start()
            self.stack = stack.pop_all()

    def boot(self, stack, window, options, guest):
        sock = self.work / "fs.sock"
        if self.guarded:
            self.guard = stack.enter_context(Guard(
                self.work / "guard.sock",
                options=["--device=fs", *self.guard_options],
                command=command("{socket}", self.folder, window, *options)))
            self.daemon, sock = self.guard, self.guard.socket_path
        else:
            self.guard = None
            self.daemon = stack.enter_context(
                MoatFs(sock, self.folder, window, *options))
        self.guest = stack.enter_context(Qemu11([
            "-chardev", f"socket,id=fs,path={sock}", "-device",
            f"vhost-user-test-device-pci,chardev=fs,virtio-id={DEVICE_FS},"
            "num_vqs=2,vq_size=1024,config_size=40",
            "-monitor", f"unix:{self.work / 'monitor'},server=on,wait=off"],
            **guest))
        self.monitor = stack.enter_context(
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        self.monitor.settimeout(60)
        self.monitor.connect(self.work / "monitor")
        self.told()

    def start(self):
        """daxops, which then has nothing open; the share is mounted."""
        self.guest.run(f"""
cp /mnt/daxops /tmp 2>/dev/null || true
mkfifo /tmp/q /tmp/a
/tmp/daxops /tmp/q /tmp/a >/dev/null 2>&1 &
mount -t virtiofs -o dax {TAG} /mnt""")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None and self.guest.running():
                assert self.guest.poweroff() == 0
            if kind is None and self.guard:
                self.check(self.guard)
        finally:
            self.stack.close()

    # -- the monitor

    def told(self):
        text = b""
        while not text.endswith(b"(qemu) "):
            more = self.monitor.recv(4096)
            assert more, "QEMU has gone"
            text += more
        return text.decode()

    def tell(self, what):
        self.monitor.sendall(what.encode() + b"\n")
        return self.told()

    # -- the host's side

    def path(self, name):
        return os.path.join(self.folder, name)

    def make(self, name, data):
        with open(self.path(name), "wb") as f:
            f.write(data)
        return f"/mnt/{name}"

    def host(self, name):
        with open(self.path(name), "rb") as f:
            return f.read()

    def put(self, name, at, data):
        with open(self.path(name), "r+b", buffering=0) as f:
            f.seek(at)
            f.write(data)

    # -- the guest's side

    def ask(self, *lines):
        """Commands of daxops, one after the other; their answers."""
        asked = "".join(f"echo '{line}' >/tmp/q; read -r a </tmp/a; "
                        'echo "$a"\n' for line in lines)
        # QEMU has its say on the same terminal.
        answers = [line for line in self.guest.run(asked).split("\n")
                   if line.split(" ")[0] in ("ok", "error", "bus")]
        assert len(answers) == len(lines), answers
        return answers

    def do(self, *lines):
        """All have to work; the last one's number."""
        answers = self.ask(*lines)
        for line, answer in zip(lines, answers):
            assert answer.startswith("ok"), f"{line}: {answer}"
        return int(answers[-1].split()[1])

    def map(self, slot, name, size, flags=RDWR, prot=3, offset=0):
        self.do(f"open {slot} /mnt/{name} {flags} 0",
                f"map {slot} - {offset} {size} {prot}")

    def get(self, slot, at, size):
        answer, = self.ask(f"get {slot} - {at} {size}")
        assert answer.startswith("ok "), answer
        return bytes.fromhex(answer[3:])

    def sees(self, slot, at, data, what):
        """Soon."""
        wait_until(lambda: self.get(slot, at, len(data)) == data, what)

    def same(self, name, want):
        """Host and guest have @want, by all ways to look; from now on."""
        # A last page takes up to 50 ms, and longer on a busy machine.
        end = time.monotonic() + 5
        while (have := self.host(name)) != want and time.monotonic() < end:
            time.sleep(0.05)
        assert have == want, (
            f"{name} on the host: {len(have)} bytes, {len(want)} wanted, "
            f"the first that differs at {differs(have, want)}")
        size = len(want)
        wait_until(lambda: int(self.guest.run(f"stat -c %s /mnt/{name}"))
                   == size, f"{name} has {size} bytes in the guest")
        ways = [f"open 4000 /mnt/{name} 0 0", f"read 4000 - 0 {size + 9}",
                "close 4000"]
        if size:
            ways += [f"open 4000 /mnt/{name} 0 0", f"map 4000 - 0 {size} 1",
                     f"sum 4000 - 0 {size}", "unmap 4000", "close 4000"]
        answers = self.ask(*ways)
        assert answers[1] == f"ok {crc(want)} {size}", (name, answers)
        if size:
            assert answers[5] == f"ok {crc(want)}", (name, answers)

    def cached(self):
        """Bytes in the guest's page cache."""
        for line in self.guest.run("cat /proc/meminfo").splitlines():
            if line.startswith("Cached:"):
                return int(line.split()[1]) << 10
        raise AssertionError("no Cached")

    def remount(self, options="-o dax"):
        self.guest.run(f"umount /mnt; mount -t virtiofs {options} {TAG} /mnt")
