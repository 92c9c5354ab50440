# SPDX-License-Identifier: Apache-2.0
"""Signals that another process of the guard's user sends, and its end."""
import ctypes
import os
import pathlib
import platform
import shutil
import signal
import struct
import subprocess
import threading
import time

import pytest

import vhost_user as vu
from vhost_user import Request

RT_SIGQUEUEINFO = {"x86_64": 129, "aarch64": 138}[platform.machine()]
SI_TIMER = -2


def queue_signal(pid, number, code, value):
    """A signal with a made-up origin: the kernel lets a process of the same
    user claim any negative si_code."""
    info = struct.pack("=iiiiiiQ", number, 0, code, 0, 0, 0, value)
    buffer = ctypes.create_string_buffer(info, 128)
    libc = ctypes.CDLL(None, use_errno=True)
    ret = libc.syscall(RT_SIGQUEUEINFO, pid, number, buffer)
    assert ret == 0, ctypes.get_errno()


@pytest.mark.parametrize("build", ["plain", "sanitized"])
def test_signal_that_claims_to_be_the_timer(request, make_scene, build):
    scene = make_scene(request.getfixturevalue(build))
    vmm = scene.running(queues=1)
    for address in (0, 8, 1 << 46, 0xdead_beef_dead_bee0):
        queue_signal(scene.guard.pid, signal.SIGALRM, SI_TIMER, address)
        vmm.queues[0].echo()
    assert not scene.guard.complaints()


def test_sigterm_and_a_backend_that_answers_each_message_late(make_scene,
                                                              plain):
    """Its patience is for all of its queues together."""
    scene = make_scene(plain, "--device=console")
    scene.running(queues=8)
    go_on = threading.Event()

    def late(session, msg):
        go_on.wait(0.8)  # what is late is the point

    scene.device.on_message[Request.GET_VRING_BASE] = late
    before = time.monotonic()
    try:
        assert scene.guard.terminate() == 0
        assert time.monotonic() - before < 4
    finally:
        go_on.set()


def test_backend_that_it_starts_can_not_trace_it(plain, folder):
    """Of a process that can be traced the files in /proc are its user's; of
    one that can not they are root's. The backend looks as soon as it runs."""
    os.chmod(folder, 0o777)
    program = shutil.copy(plain.program, folder)
    user = {"user": 65534} if os.getuid() == 0 else {}
    subprocess.run(
        [program, "guard", f"--socket-path={folder}/g", "--exec", "--", "sh",
         "-c", f"stat -c %u /proc/$PPID/status > {folder}/owner"],
        env=dict(os.environ, XDG_RUNTIME_DIR=folder), timeout=20, **user)
    assert pathlib.Path(folder, "owner").read_text() == "0\n"


def test_backend_that_ends_at_once_is_not_waited_for(plain, folder):
    before = time.monotonic()
    done = subprocess.run(
        [plain.program, "guard", f"--socket-path={folder}/g", "--exec", "--",
         "sh", "-c", "exit 3", "{socket}"], stderr=subprocess.PIPE, text=True,
        env=dict(os.environ, XDG_RUNTIME_DIR=folder), timeout=20)
    assert done.returncode == 1
    assert time.monotonic() - before < 5
    assert "the backend 'sh' has ended" in done.stderr
    assert os.listdir(folder) == []
