# SPDX-License-Identifier: Apache-2.0
"""Resident memory of an idle guard: before a VM, and with one of 1 to 8 queues.

The VM is a front-end that starts queues and never posts a request.  Memory is
told apart by what is mapped: the pool and guest RAM belong to the VM; code and
libraries are shared with all other guards; the rest is the guard's own.
"""
import contextlib
import mmap
import os
import re
import socket

import vhost_user as vu
from disk import BenchDaemon
from guard import Guard
from backends import make_image
from procs import Workdir, wait_until
from vhost_user import Feature, Protocol, mask

QUEUE = 256             # entries
SPACING = 32 << 10      # from one queue's rings to the next one's
USER = 0x7F00_0000_0000
RAM = 64 << 20
QUEUES = (1, 2, 4, 8)
# Clean pages are those of files: the next guard shares them, if none does yet.
OWN = {"Private_Dirty": "private", "Private_Clean": "shared",
       "Shared_Dirty": "shared", "Shared_Clean": "shared"}


def resident(pid):
    """KiB resident: {"private", "shared", "pool", "ram", "total"}."""
    sums = {"private": 0, "shared": 0, "pool": 0, "ram": 0}
    kind = "own"
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as f:
        for line in f:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                kind = ("pool" if "memfd:moat-pool" in line else
                        "ram" if "memfd:" in line else "own")
                continue
            key, value = line.split(":", 1)
            if kind != "own":
                if key == "Rss":
                    sums[kind] += int(value.split()[0])
            elif key in OWN:
                sums[OWN[key]] += int(value.split()[0])
    sums["total"] = sum(sums.values())
    return sums


class IdleVm:
    """A front-end with queues that are started, and no more."""

    def __init__(self, socket_path, queues):
        self.fds = []
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(socket_path))
        fe = vu.FrontEnd(self.sock)
        features = fe.get_features()
        fe.set_protocol_features(fe.get_protocol_features()
                                 & mask(Protocol.MQ, Protocol.REPLY_ACK))
        fe.set_owner()
        fe.set_features(features & mask(
            Feature.VERSION_1, Feature.PROTOCOL_FEATURES, Feature.INDIRECT_DESC,
            Feature.EVENT_IDX))
        ram = self.keep(os.memfd_create("bench-ram"))
        os.ftruncate(ram, RAM)
        with mmap.mmap(ram, RAM) as view:   # all of it touched, as a VM's
            for at in range(0, RAM, mmap.PAGESIZE):
                view[at] = 0
        fe.set_mem_table([vu.Region(0, RAM, USER, 0)], [ram])
        for i in range(queues):
            at = USER + i * SPACING
            fe.set_vring_num(i, QUEUE)
            fe.set_vring_base(i, 0)
            fe.set_vring_addr(i, at, at + 16384, at + 8192)
            fe.set_vring_call(i, self.keep(os.eventfd(0)))
            fe.set_vring_kick(i, self.keep(os.eventfd(0)))
            assert not fe.set_vring_enable(i, True)
        fe.get_features()   # answered once all of that is done

    def keep(self, fd):
        self.fds.append(fd)
        return fd

    def close(self):
        self.sock.close()
        for fd in self.fds:
            os.close(fd)


def measure():
    """{"before": {...}, "vm": {1: {...}, ...}, "queue_private_kib": ...}"""
    out = {"before": None, "vm": {}}
    with Workdir() as work:
        image = make_image(work / "disk", 1 << 20)
        with BenchDaemon(work / "disk.sock", image,
                         queues=max(QUEUES)) as daemon:
            for queues in QUEUES:
                # A guard of its own: what a session freed must not count.
                with Guard(work / "guard.sock", backend=daemon.socket_path,
                           options=["--device=blk"]) as guard:
                    if out["before"] is None:
                        out["before"] = resident(guard.pid)
                    with contextlib.closing(IdleVm(guard.socket_path, queues)):
                        out["vm"][queues] = resident(guard.pid)
                    guard.expect("the VMM has left")
                    guard.terminate()
                wait_until(lambda: not os.path.exists(work / "guard.sock"),
                           "the guard removed its socket")
    few, many = out["vm"][QUEUES[0]], out["vm"][QUEUES[-1]]
    more = QUEUES[-1] - QUEUES[0]
    out["queue_size"] = QUEUE
    out["queue_private_kib"] = (many["private"] - few["private"]) / more
    out["queue_pool_kib"] = (many["pool"] - few["pool"]) / more
    # Code and libraries are there once, whatever the number of guards.
    out["thousand_mib"] = (few["shared"] + 1000 * few["private"]) / 1024
    out["aim_kib"] = few["private"] + few["shared"]
    return out
