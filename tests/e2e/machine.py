# SPDX-License-Identifier: Apache-2.0
"""A guest, its disk's backend and, when guarded, the guard between them."""
import hashlib
import json
import os
import random
from contextlib import ExitStack

import guests
from backends import StorageDaemon, make_image
from guard import Guard
from procs import Workdir, moat, run, spy

MIB = 1 << 20


class Machine:
    """What a test about a disk starts from; use it with `with`.

    Parameters: the kind of VMM ("uml" or "qemu"), whether a guard stands
    between it and the disk's backend, the queues that backend and driver are
    told to use, the disk's size in bytes, further options of the guard.
    With boot=False the guest is not there yet; boot() starts it, or the next
    one.  The disk and the sockets lie below folder.
    """

    def __init__(self, vmm, guarded=True, queues=1, size=256 * MIB,
                 options=(), fail_flush=False, boot=True, folder="/tmp",
                 backend=None, packed=False):
        """backend: what serves the disk, in place of qemu-storage-daemon; made
        from a socket's path, an image and a number of queues. packed: QEMU is
        to offer packed rings."""
        self.vmm = vmm
        self.packed = packed
        self.queues = queues
        self.guest = self.guard = None
        with ExitStack() as stack:
            self.work = stack.enter_context(Workdir(folder))
            self.image = make_image(self.work / "disk", size)
            self.backend = stack.enter_context(
                backend(self.work / "backend", self.image, queues) if backend
                else StorageDaemon(self.work / "backend", self.image, queues,
                                   fail_flush))
            self.socket = self.work / "backend"
            if guarded:
                self.socket = self.work / "guard"
                self.guard = stack.enter_context(Guard(
                    self.socket, self.work / "backend", options=options))
            self._stack = stack
            if boot:
                self.boot()
            self._stack = stack.pop_all()

    def boot(self):
        self.guest = self._stack.enter_context(
            guests.boot(self.vmm, self.socket, self.queues, self.packed))
        return self.guest

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def fill(self, offset, size, seed=1):
        """Random bytes into the image, by the host; returns their sum."""
        data = random.Random(seed).randbytes(size)
        with open(self.image, "r+b") as f:
            f.seek(offset)
            f.write(data)
        return hashlib.sha256(data).hexdigest()

    def checksum(self, offset, size):
        """What is in the image now, as the host reads it."""
        with open(self.image, "rb") as f:
            f.seek(offset)
            return hashlib.sha256(f.read(size)).hexdigest()

    def allocated(self):
        """Bytes that the image takes on the host."""
        return os.stat(self.image).st_blocks * 512


SECRET_BYTES = 32


def plant_secret(guest):
    """A secret that the guest draws itself and keeps in a file in its memory;
    returned as hex digits.  Its bytes never were outside the guest's RAM: what
    crossed the console is text."""
    secret = guest.run(f"head -c {SECRET_BYTES} /dev/urandom >/tmp/secret\n"
                       "od -An -v -tx1 /tmp/secret | tr -d ' \\n'")
    assert len(bytes.fromhex(secret)) == SECRET_BYTES
    return secret


def spy_finds(pid, secret):
    """Whether the secret is in what the process maps or holds a
    descriptor of."""
    done = run([spy(), pid, secret])
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


def audit(*pids, options=()):
    """What `moat audit` says about some processes, as its JSON says it
    (docs/audit.md)."""
    done = run([moat(), "audit", *(f"--pid={pid}" for pid in pids), "--json",
                *options])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ram_reached(report, pid):
    """The bytes of guest RAM, the pool not counted, that a process of an audit
    maps or holds a descriptor of."""
    process, = (p for p in report["processes"] if p["pid"] == pid)
    assert process["complete"], "the audit could not read all"
    return process["ram_bytes"]
