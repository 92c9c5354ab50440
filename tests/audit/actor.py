# SPDX-License-Identifier: Apache-2.0
"""A process in a known situation.  Does what the JSON in its last argument says
and prints READY; ends when its standard input does.

fds: descriptors to keep.  map: [fd, offset, length, "rw" | "r" | "cow"] each.
drop: descriptors to close after mapping.  write: [fd, offset, hex] each.
thread_only: descriptors that only a thread with its own table keeps.
private: hex to keep in private memory.  anon: so many bytes of private memory.
child: {"fds": [...], "plan": {...}}, another such process, started by this one.
open: paths to open.  odd: hold a
descriptor of many kinds.
"""
import ctypes
import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import threading

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
                      ctypes.c_int, ctypes.c_int, ctypes.c_long]
PROT_READ, PROT_WRITE, SHARED, PRIVATE, CLONE_FILES = 1, 2, 1, 2, 0x400


def map_range(fd, offset, length, how):
    prot = PROT_READ if how == "r" else PROT_READ | PROT_WRITE
    kind = PRIVATE if how == "cow" else SHARED
    at = LIBC.mmap(None, length, prot, kind, fd, offset)
    assert at != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())


def hide_in_thread(fds):
    """A thread with a table of its own keeps them; all others lose them."""
    own = threading.Event()
    dropped = threading.Event()

    def keep():
        assert LIBC.unshare(CLONE_FILES) == 0
        own.set()
        dropped.wait()
        threading.Event().wait()

    threading.Thread(target=keep, daemon=True).start()
    own.wait()
    for fd in fds:
        os.close(fd)
    dropped.set()


def odd_descriptors():
    left, right = socket.socketpair()
    empty = os.memfd_create("empty")
    listener = socket.socket()
    return [left, right, empty, listener, os.pipe(), select.epoll(),
            os.open("/", os.O_PATH), os.open("/dev/null", os.O_RDWR),
            os.open("/proc/self/maps", os.O_RDONLY), os.openpty(),
            signal.pidfd_send_signal and os.pidfd_open(os.getpid()),
            os.eventfd(0)]


def start_child(fds, plan):
    child = subprocess.Popen(
        ["/usr/bin/python3", __file__, json.dumps(plan)], pass_fds=fds,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"READY\n"
    return child


def main():
    plan = json.loads(sys.argv[-1])
    kept = []
    for fd, offset, text in plan.get("write", []):
        os.pwrite(fd, bytes.fromhex(text), offset)
    for entry in plan.get("map", []):
        map_range(*entry)
    if plan.get("child"):
        kept.append(start_child(**plan["child"]))
    if plan.get("anon"):
        kept.append(mmap.mmap(-1, plan["anon"], flags=mmap.MAP_PRIVATE))
    for fd in plan.get("drop", []):
        os.close(fd)
    if plan.get("thread_only"):
        hide_in_thread(plan["thread_only"])
    if plan.get("private"):
        kept.append(ctypes.create_string_buffer(
            bytes.fromhex(plan["private"])))
    # Only its meaning may be found, not these digits.
    kept += [os.open(path, os.O_RDWR) for path in plan.get("open", [])]
    if plan.get("odd"):
        kept += odd_descriptors()
    print("READY", flush=True)
    sys.stdin.read()


main()
