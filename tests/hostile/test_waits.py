# SPDX-License-Identifier: Apache-2.0
"""Who waits for whom: neither a descriptor, nor a backend, nor a VMM that takes
its time makes the guard stand, nor is anybody blamed who could not answer."""
import os
import select
import socket
import struct
import threading
import time

import pytest

import vhost_user as vu
from backend import Backend, echo
from test_restart import NUM, Gone, Requests, held, hold, kill, start
from test_restart_shmem import SHMEM, begin
from test_shmem import MAP, PAGE, UNMAP, answer, ask, asked, do, memfd, say
from vhost_user import Request


def goes_on(scene, vmm):
    """Messages are answered, or the session has ended; and so does the guard
    when it is told to."""
    vmm.fe.timeout = 8
    try:
        vmm.fe.get_features()
    except (vu.Closed, ConnectionError):
        pass
    begin_s = time.monotonic()
    scene.guard.terminate()
    assert time.monotonic() - begin_s < 5


@pytest.fixture(name="lingering")
def fixture_lingering():
    """A socket whose close() waits for a peer that does not read."""
    with socket.create_server(("127.0.0.1", 0)) as server, \
            socket.create_connection(server.getsockname()) as near:
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
        yield near
        far.close()


@pytest.mark.parametrize("via", ["channel", "reply"])
def test_closing_a_descriptor_of_the_backends_does_not_wait(
        make_scene, plain, lingering, via):
    """The guard's is the last descriptor of it."""
    scene = make_scene(plain, "--device=console", "--pool-size=8M")
    vmm = scene.running(queues=1)
    time.sleep(0.6)     # whatever was done before is over
    if via == "channel":
        vu.send_msg(scene.device.session.channel, 99, b"",
                    (lingering.fileno(),))
        lingering.close()
        scene.guard.wait_line("backend request 99")
    else:
        def lie(session, msg):
            session.reply(msg, b"", fds=(lingering.fileno(),))
            lingering.close()
            return True
        scene.device.on_message = {Request.GET_CONFIG: lie}
        vmm.fe.send(Request.GET_CONFIG, vu.config(0, 8, 0, bytes(8)))
        scene.guard.wait_line("backend broke the protocol")
    goes_on(scene, vmm)


def test_a_call_eventfd_that_is_full_from_the_beginning(make_scene, plain):
    """It is written to when it is set, if no queue has work as well."""
    scene = make_scene(plain, "--device=console", "--pool-size=8M")
    vmm = scene.running(queues=1)
    time.sleep(0.6)     # whatever was done before is over
    full = os.eventfd(2 ** 32 - 1, os.EFD_CLOEXEC)
    os.eventfd_write(full, 2 ** 64 - 2 ** 32 - 1)
    assert not select.select([], [full], [], 0)[1]
    vmm.fe.send(Request.SET_VRING_CALL, vu.U64.pack(0), (full,))
    os.close(full)
    goes_on(scene, vmm)


def test_queues_that_stop_are_waited_for_together(make_scene, plain):
    """A backend that gives one request back now and then had 10 s for each."""
    scene = make_scene(plain, "--device=blk", "--pool-size=8M")
    vmm = scene.running(queues=3)
    scene.device.run(lambda: setattr(scene.device, "on_request", hold))
    for queue in vmm.queues:
        Requests(queue).add(2)
    held(scene, 6)
    over = threading.Event()

    def one():
        session = scene.device.session
        if session.held:
            item = min(session.held, key=lambda i: i[0].index)
            session.held.remove(item)
            echo(session, *item)
            session.flush(item[0])

    def drip():
        while not over.wait(4.6):
            scene.device.run(one)

    dripping = threading.Thread(target=drip)
    dripping.start()
    vmm.fe.timeout = 60
    begin_s = time.monotonic()
    try:
        vmm.fe.reset_device()
    finally:
        over.set()
        dripping.join()
    assert time.monotonic() - begin_s < 13


# -- mappings

def shmem_scene(make_scene, build):
    scene = make_scene(build, "--device=console", "--pool-size=8M",
                       "--shmem=on", **SHMEM)
    return scene, scene.running(queues=1)


def test_a_vmm_that_waits_for_a_backend_that_maps_late(make_scene, plain):
    """The one waits for the other, until the guard says to try again."""
    scene, vmm = shmem_scene(make_scene, plain)
    took = []

    def config(session, _):
        time.sleep(0.2)
        begin_s = time.monotonic()
        ask(session, MAP, fds=(fd,))
        took.append((answer(session, 7), time.monotonic() - begin_s))
        return False
    with memfd() as fd:
        scene.device.on_message[Request.GET_CONFIG] = config
        vmm.fe.get_config(0, 8)
    (status, seconds), = took
    assert status and seconds < 1


def test_a_stop_begins_with_a_queue_that_is_disabled(make_scene, plain):
    """QEMU takes no more requests then, and reads them too late."""
    scene, vmm = shmem_scene(make_scene, plain)
    answers = []

    def disabled(session, _):
        ask(session, MAP, fds=(fd,))
        answers.append(answer(session, 5))
        return False
    with memfd() as fd:
        scene.device.on_message[Request.SET_VRING_ENABLE] = disabled
        assert not vmm.fe.set_vring_enable(0, 0)
        scene.device.good()
        assert answers[0]
        assert not vu.readable(vmm.channel)
        # It was none: after a while, or when the queue is enabled again.
        time.sleep(1.1)
        vu.close_all(do(vmm, scene.device.session, MAP, fds=(fd,)))
        assert not vmm.fe.set_vring_enable(0, 0)
        assert not vmm.fe.set_vring_enable(0, 1)
        vu.close_all(do(vmm, scene.device.session, MAP, fds=(fd,),
                        offset=8 * PAGE))
        assert not vmm.fe.set_vring_enable(0, 0)
        vmm.queues[0].stop()
        ask(scene.device.session, MAP, fds=(fd,), offset=16 * PAGE)
        assert answer(scene.device.session, 5)


def test_what_the_vmm_answered_during_a_restart_counts(make_scene, plain):
    """The guard was at something else for longer than it waits for answers."""
    scene, vmm = begin(make_scene, plain, "--restart-ms=20000")
    with memfd() as fd:
        ask(scene.device.session, MAP, fds=(fd,))
        msg, _ = asked(vmm)
        vu.close_all(msg.fds)
        Gone(scene)
        scene.guard.wait_line("backend gone")
        say(vmm, MAP, fence=False)
        time.sleep(4.2)
        scene.device = scene.keep(Backend(scene.device.path, **SHMEM))
        scene.guard.wait_line("another backend goes on")
        vmm.queues[0].echo()
        assert not scene.guard.find("does not answer")
        # The mapping that nobody knows of is undone.
        assert asked(vmm)[0].request == UNMAP
        say(vmm, UNMAP)
        vu.close_all(do(vmm, scene.device.session, MAP, fds=(fd,),
                        offset=8 * PAGE))


def test_answers_come_in_order_after_a_restart(make_scene, plain):
    """Also to requests that came while the guard told of the queues."""
    scene, vmm = begin(make_scene, plain)

    def pipelined(session, _):
        scene.device.on_message = {}
        ask(session, MAP, fds=(fd,))
        ask(session, UNMAP)
        time.sleep(0.02)
        return False
    with memfd() as fd:
        scene.device.on_message = {Request.SET_VRING_ENABLE: pipelined}
        kill(scene)
        vmm.queues[0].echo()
        session = scene.device.session
        msg, _ = asked(vmm)
        vu.close_all(msg.fds)
        assert not vu.readable(session.channel)
        say(vmm, MAP)
        assert answer(session) == 0
        assert asked(vmm)[0].request == UNMAP
        say(vmm, UNMAP)
        assert answer(session) == 0


# -- backends that were given up

def test_pools_of_backends_that_were_given_up_hold_no_pages(make_scene, plain):
    """Who is alive keeps the descriptor; the memory is the guard's account."""
    scene, vmm = start(make_scene, plain)
    Requests(vmm.queues[0]).add(30, 16000).finish()
    session = scene.device.session
    kept = scene.device.run(lambda: os.dup(session.mem[0].fd))
    assert os.fstat(kept).st_blocks
    kill(scene)
    vmm.queues[0].echo()
    assert not os.fstat(kept).st_blocks
    os.close(kept)


def test_a_ring_that_breaks_while_its_queue_is_drained(make_scene, plain):
    """What the backend had taken is done by the next."""
    scene, vmm = start(make_scene, plain, "--device=blk")
    queue = vmm.queues[0]
    scene.device.run(lambda: setattr(scene.device, "on_request", hold))
    requests = Requests(queue).add(8)
    held(scene, 8)
    scene.device.on_request = echo

    def break_it():
        session = scene.device.session
        vring, _ = session.held[0]
        vring.ring.used_idx = vring.ring.next_used + NUM
        session.call(vring)
    threading.Timer(0.3, lambda: scene.device.run(break_it)).start()
    queue.stop()
    queue.start()
    queue.kick()
    requests.finish()


@pytest.mark.parametrize("back", [False, True])
def test_a_session_without_backends_looks_for_none(make_scene, plain, back):
    """A guest that breaks its ring is not taken for a backend that does."""
    scene, vmm = start(make_scene, plain, "--device=fs", "--restart-ms=700")
    gone = Gone(scene)
    scene.guard.wait_line("without a backend")
    if back:
        gone.back()
    since = len(scene.guard.lines)
    queue = vmm.queues[0]
    queue.ring.add([(0xdead_0000_0000, 64, 0)])
    queue.publish()
    scene.guard.wait_line("queue 0 broken", since)
    begin_s = time.monotonic()
    for _ in range(20):
        vmm.fe.get_features()
    assert time.monotonic() - begin_s < 2
    assert len(scene.guard.complaints(since)) == 1
    assert scene.guard.idle_cpu(0.3) < 0.1
    vmm.close()
    assert scene.guard.wait() == 1
