# SPDX-License-Identifier: Apache-2.0
"""No peer puts the guard to sleep: not with a descriptor that sleeps when it
is written to or closed, nor with requests that it gives back now and then."""
import os
import socket
import struct
import threading
import time

import pytest

import vhost_user as vu
from backend import echo
from guest import Queue
from share import until
from test_restart import Requests, held, hold
from test_share_modes import POOL, POOL_AT, RAM, PoolRam
from vhost_user import Request

FULL = 2 ** 64 - 2  # the most that an eventfd counts to


@pytest.fixture(name="build", params=["plain", "sanitized"])
def fixture_build(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(name="lingering")
def fixture_lingering():
    """A socket whose last close() sleeps: nobody reads what it has sent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    near.setblocking(False)
    try:
        while True:
            near.send(bytes(65536))
    except BlockingIOError:
        pass
    near.setblocking(True)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                    struct.pack("ii", 1, 1000))
    with near, far:  # the last is closed first
        yield near


def begin(make_scene, build):
    scene = make_scene(build, "--device=console", "--pool-size=8M")
    vmm = scene.running(queues=1)
    idle(scene)
    return scene, vmm


def idle(scene):
    """Until nothing wakes it up any more, not a signal either."""
    until(lambda: not scene.guard.idle_cpu(0.3), "it does nothing at all")


def goes_on(scene, message):
    """The VMM has its answer or is cut off, and SIGTERM is obeyed."""
    try:
        message()
    except (vu.Closed, ConnectionError):
        pass
    scene.guard.terminate(4)


def hand_over(sock, request, flags, size, last):
    """A message with @last in it, once ours is closed: the other's is the
    last descriptor of it."""
    vu.send_raw(sock, vu.HEADER.pack(request, flags, size), (last.fileno(),))
    last.close()
    vu.send_raw(sock, bytes(size))


def test_a_socket_that_lingers_in_a_request(make_scene, build, lingering):
    scene, vmm = begin(make_scene, build)
    hand_over(scene.device.session.channel, 99, vu.VERSION, 8, lingering)
    scene.guard.wait_line("backend request 99")
    goes_on(scene, vmm.fe.get_features)


def test_a_socket_that_lingers_in_a_reply(make_scene, build, lingering):
    scene, vmm = begin(make_scene, build)

    def lie(session, msg):
        hand_over(session.sock, msg.request, vu.VERSION | vu.REPLY, 8,
                  lingering)
        return True

    scene.device.on_message[Request.GET_CONFIG] = lie
    goes_on(scene, lambda: vmm.fe.get_config(0, 8))


def test_a_call_eventfd_of_the_vmm_that_is_full(make_scene, build):
    """It is signalled when it is set, though no queue has work."""
    scene, vmm = begin(make_scene, build)
    full = os.eventfd(0, os.EFD_CLOEXEC)
    os.eventfd_write(full, FULL)
    vmm.fe.send(Request.SET_VRING_CALL, vu.U64.pack(0), (full,))
    os.close(full)
    goes_on(scene, vmm.fe.get_features)


def test_a_call_eventfd_that_a_backend_has_kept(make_scene, keep, build):
    """One that was direct once has the VMM's, which comes back to the guard
    when the guest masks its vector."""
    scene = make_scene(build, "--device=console", "--pool-size=8M",
                       "--share=auto", f"--pool={POOL_AT:#x}+2M")
    vmm = scene.vmm(ram=keep(PoolRam())).setup(queues=0)
    direct = vmm.add_queue(bank=POOL)
    direct.start()
    direct.echo(bank=POOL)
    vring = scene.device.session.vrings[0]
    kept = scene.device.run(lambda: os.dup(vring.call))
    direct.stop()
    bounced = Queue(vmm, 0, bank=RAM)
    vmm.queues.append(bounced)
    bounced.start()
    bounced.echo(bank=RAM)
    scene.guard.wait_line("share=auto: chose bounce")
    idle(scene)
    direct.drain_call()
    os.set_blocking(kept, True)
    os.eventfd_write(kept, FULL)
    os.close(kept)
    vmm.fe.send(Request.SET_VRING_CALL, vu.U64.pack(0), (direct.call_fd,))
    goes_on(scene, vmm.fe.get_features)


def test_queues_that_stop_are_waited_for_together(make_scene, plain):
    """Of each the backend gives a request back before patience ends."""
    scene = make_scene(plain, "--device=blk", "--pool-size=8M")
    vmm = scene.running(queues=3)
    scene.device.run(lambda: setattr(scene.device, "on_request", hold))
    for queue in vmm.queues:
        Requests(queue).add(2)
    held(scene, 6)
    over = threading.Event()

    def give_one():
        session = scene.device.session
        if session.held:
            item = min(session.held, key=lambda held_: held_[0].index)
            session.held.remove(item)
            echo(session, *item)
            session.flush(item[0])

    def give():
        while not over.wait(4.6):
            scene.device.run(give_one)

    giving = threading.Thread(target=give)
    giving.start()
    vmm.fe.timeout = 14
    try:
        before = time.monotonic()
        assert not vmm.fe.reset_device()
        assert time.monotonic() - before < 14
    finally:
        over.set()
        giving.join()
