# SPDX-License-Identifier: Apache-2.0
"""A guard that outlives its backend (--restart): each request is completed
exactly once towards the guest, with the right data, whatever becomes of the
backends.
"""
import errno
import os
import random
import signal
import struct
import sys
import threading
import time

import pytest

import vhost_user as vu
from backend import FEATURES, PROTOCOL, Backend, echo
from guard import Guard
from guest import OFFERABLE, Vmm
from split_ring import WRITE
from test_share_modes import POOL, POOL_AT, RAM, PoolRam, memory_sent
from vhost_user import Feature, Request, mask

NUM = 64
PACKED = mask(Feature.RING_PACKED)
LEGS = pytest.mark.parametrize("front, back", [
    (0, 0), (PACKED, 0), (0, PACKED), (PACKED, PACKED)],
    ids=["split-split", "packed-split", "split-packed", "packed-packed"])


@pytest.fixture(params=["plain", "sanitized"])
def build(request):
    """The plain one is in its sandbox, and can start nothing by itself."""
    return request.getfixturevalue(request.param)


def hold(session, vring, chain):
    """A backend that takes requests and gives none back."""
    session.held = getattr(session, "held", [])
    session.held.append((vring, chain))


class Requests:
    """Requests of a driver, and what has to become of each."""

    def __init__(self, queue):
        self.queue = queue
        self.ram = queue.ram
        self.due = {}

    def add(self, count, size=700, bank=0):
        for _ in range(count):
            data = os.urandom(size)
            src = self.ram.alloc(size, bank=bank)
            dst = self.ram.alloc(size, bank=bank)
            self.ram.write(src, data)
            head = self.queue.ring.add([(src, size, 0), (dst, size, WRITE)])
            assert head not in self.due
            self.due[head] = (dst, data)
        self.queue.publish()
        return self

    def finish(self):
        """Each comes back once, with what the good device makes of it."""
        for head, length in self.queue.wait_used(len(self.due)):
            dst, data = self.due.pop(head)
            assert length == len(data)
            self.ram.expect(dst, data)
            assert self.ram.read(dst, length) == data
        assert not self.due
        assert not self.queue.ring.reap()


def start(make_scene, build, *options, queues=1, front=0, back=0, **kw):
    scene = make_scene(build, "--pool-size=8M", "--restart=1000", *options,
                       features=FEATURES | back, **kw)
    vmm = scene.running(queues=queues, num=NUM,
                        vmm={"features": OFFERABLE | front})
    return scene, vmm


def held(scene, count):
    """Wait until the last backend has taken @count requests."""
    deadline = vu.deadline_in(vu.PATIENCE)
    while scene.device.run(lambda: len(getattr(
            scene.device.session, "held", ()))) < count:
        assert time.monotonic() < deadline, "they never came"


def kill(scene):
    """The backend dies; returns once there is another."""
    lives = len(scene.device.sessions)
    scene.device.hang_up(scene.device.session)
    scene.device.wait_for(lambda: len(scene.device.sessions) > lives)


def session_ends(vmm, timeout=vu.PATIENCE):
    with pytest.raises((vu.Closed, ConnectionError)):
        vmm.fe.recv(timeout)


@LEGS
def test_what_a_dead_backend_had_taken_is_done_by_the_next(
        make_scene, sanitized, front, back):
    scene, vmm = start(make_scene, sanitized, queues=2, front=front, back=back)
    for _ in range(3):
        scene.device.on_request = hold
        work = [Requests(q).add(20) for q in vmm.queues]
        held(scene, 40)
        scene.device.on_request = echo
        kill(scene)
        for requests in work:
            requests.finish()
    for queue in vmm.queues:
        queue.echo()
    vmm.ram.check()
    scene.backend_is_happy()


@LEGS
def test_requests_are_given_again_in_the_order_in_which_they_were_taken(
        make_scene, sanitized, front, back):
    scene, vmm = start(make_scene, sanitized, front=front, back=back)
    queue = vmm.queues[0]
    scene.device.run(lambda: setattr(scene.device, "on_request", hold))
    requests = Requests(queue).add(30)
    held(scene, 30)

    def some():
        """Give back every third one; what is left, in order."""
        session = scene.device.session
        left = []
        for n, (vring, chain) in enumerate(session.held):
            if n % 3 == 1:
                echo(session, vring, chain)
            else:
                left.append(vring.ring.gather(chain))
        session.flush(vring)
        return left
    left = scene.device.run(some)
    for head, length in queue.wait_used(10):
        dst, data = requests.due.pop(head)
        requests.ram.expect(dst, data)
    requests.add(5)
    held(scene, 35)
    kill(scene)
    held(scene, 25)

    def again():
        session = scene.device.session
        out = [session.vrings[0].ring.gather(c) for _, c in session.held]
        for vring, chain in session.held:
            echo(session, vring, chain)
        session.flush(session.vrings[0])
        return out
    assert scene.device.run(again)[:20] == left
    requests.finish()
    vmm.ram.check()


def test_what_was_given_back_but_not_yet_fetched_is_not_done_again(
        make_scene, sanitized):
    scene, vmm = start(make_scene, sanitized)
    scene.device.run(lambda: setattr(scene.device, "on_request", hold))
    requests = Requests(vmm.queues[0]).add(8)
    held(scene, 8)
    scene.device.on_request = echo
    served = scene.device.served

    def finish_and_die():
        session = scene.device.session
        for vring, chain in session.held[:5]:
            echo(session, vring, chain)
        session.held[0][0].ring.publish()  # and no call
        scene.device.unwatch(session.sock.fileno())
        session.shut()
    scene.device.run(finish_and_die)
    requests.finish()
    assert scene.device.served - served == 3
    vmm.ram.check()


@pytest.mark.parametrize("lie", ["jump", "unknown", "range"])
def test_a_backend_that_breaks_its_ring_is_replaced(make_scene, sanitized,
                                                    lie):
    scene, vmm = start(make_scene, sanitized, queues=2)
    since = len(scene.guard.lines)
    scene.device.run(lambda: setattr(scene.device, "on_request", hold))
    requests = Requests(vmm.queues[0]).add(8)
    held(scene, 8)
    scene.device.on_request = echo

    def break_it():
        session = scene.device.session
        vring, chain = session.held[0]
        ring = vring.ring
        if lie == "jump":
            ring.used_idx = ring.next_used + NUM
        else:
            ring.set_used(ring.next_used, NUM if lie == "range" else NUM - 1,
                          4)
            ring.used_idx = ring.next_used + 1
        session.call(vring)
    scene.device.run(break_it)
    requests.finish()
    vmm.queues[1].echo()
    vmm.ram.check()
    assert not vmm.queues[0].erred(0.1)
    assert len(scene.guard.complaints(since)) == 2  # why, and that it goes on


def test_garbage_left_by_a_dead_backend_is_not_believed(make_scene,
                                                        sanitized):
    scene, vmm = start(make_scene, sanitized)
    scene.device.run(lambda: setattr(scene.device, "on_request", hold))
    requests = Requests(vmm.queues[0]).add(8)
    held(scene, 8)
    scene.device.on_request = echo

    def scribble_and_die():
        session = scene.device.session
        for mapped in session.mem:
            mapped.view[:] = os.urandom(1 << 16) * (len(mapped.view) >> 16)
        scene.device.unwatch(session.sock.fileno())
        session.shut()
    scene.device.run(scribble_and_die)
    requests.finish()
    vmm.ram.check()


LIFE = [Request.GET_FEATURES, Request.GET_PROTOCOL_FEATURES,
        Request.SET_PROTOCOL_FEATURES, Request.SET_OWNER,
        Request.SET_BACKEND_REQ_FD, Request.GET_QUEUE_NUM,
        Request.SET_FEATURES, Request.SET_MEM_TABLE, Request.SET_VRING_NUM,
        Request.SET_VRING_BASE, Request.SET_VRING_ADDR,
        Request.SET_VRING_CALL, Request.SET_VRING_KICK,
        Request.SET_VRING_ENABLE]


@pytest.mark.parametrize("how", ["dies", "refuses", "lies"])
@pytest.mark.parametrize("where", LIFE, ids=[r.name for r in LIFE])
def test_a_second_life_that_fails_is_followed_by_a_third(
        make_scene, sanitized, where, how):
    scene, vmm = start(make_scene, sanitized, queues=2)
    scene.device.on_request = hold
    work = [Requests(q).add(8) for q in vmm.queues]
    held(scene, 16)
    scene.device.on_request = echo
    lives = len(scene.device.sessions)

    def fail(session, msg):
        scene.device.on_message = {}
        if how == "dies":
            raise vu.Closed
        if how == "refuses":
            session.reply(msg, vu.U64.pack(1))
        else:
            session.reply(msg, b"nonsense, not 8 bytes")
        return True
    scene.device.on_message = {where: fail}
    kill(scene)
    for requests in work:
        requests.finish()
    assert scene.device.on_message == {}
    assert len(scene.device.sessions) >= lives + 2
    vmm.ram.check()


@pytest.mark.parametrize("lack", ["features", "protocol", "queue_num"])
def test_a_backend_that_can_less_is_not_taken(make_scene, sanitized, lack):
    scene, vmm = start(make_scene, sanitized)
    scene.device.run(lambda: setattr(scene.device, "on_request", hold))
    requests = Requests(vmm.queues[0]).add(8)
    held(scene, 8)
    scene.device.on_request = echo
    good = getattr(scene.device, lack)
    setattr(scene.device, lack, 1 if lack == "queue_num" else
            (FEATURES & ~mask(Feature.EVENT_IDX) if lack == "features" else
             PROTOCOL & ~mask(vu.Protocol.CONFIG)))

    def enough(session):
        if len(scene.device.sessions) > 3:
            setattr(scene.device, lack, good)
    scene.device.on_connect = enough
    kill(scene)
    requests.finish()
    assert scene.guard.find("the new backend (lacks|has)")
    vmm.ram.check()


def test_the_vmm_hears_of_a_config_space_that_is_another(make_scene,
                                                         sanitized):
    scene, vmm = start(make_scene, sanitized)
    assert vmm.fe.get_config(0, 8) == bytes(range(8))
    kill(scene)
    vmm.queues[0].echo()
    with pytest.raises(vu.Timeout):
        vmm.config_changed(timeout=0.2)
    scene.device.config[0] = 99
    kill(scene)
    vmm.queues[0].echo()
    vmm.config_changed()
    assert vmm.fe.get_config(0, 1) == bytes([99])


def test_what_the_vmm_wrote_to_config_space_is_written_again(make_scene,
                                                             sanitized):
    scene, vmm = start(make_scene, sanitized)
    assert not vmm.fe.set_config(4, b"\x55")
    scene.device.config[:] = bytes(range(64))
    kill(scene)
    vmm.queues[0].echo()
    assert scene.device.config[4] == 0x55


MESSAGES = {
    "config": lambda vmm: vmm.fe.get_config(0, 8) == bytes(range(8)),
    "enable": lambda vmm: not vmm.fe.set_vring_enable(0, 1),
    "memory": lambda vmm: not vmm.fe.set_mem_table(vmm.ram.regions,
                                                   vmm.ram.fds),
    "features": lambda vmm: vmm.fe.get_features() & mask(Feature.VERSION_1),
    "status": lambda vmm: not vmm.fe.set_status(0xf),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_answered_though_the_backend_dies_of_it(
        make_scene, sanitized, name):
    scene, vmm = start(make_scene, sanitized)
    requests = {Request.GET_CONFIG, Request.SET_VRING_ENABLE,
                Request.SET_MEM_TABLE}

    def die(session, msg):
        scene.device.on_message = {}
        raise vu.Closed
    scene.device.on_message = {r: die for r in requests}
    assert MESSAGES[name](vmm)
    vmm.queues[0].echo()
    vmm.ram.check()


@pytest.mark.parametrize("when", [Request.GET_VRING_BASE, None],
                         ids=["at the end", "before"])
def test_a_queue_that_is_stopped_while_its_backend_dies_loses_nothing(
        make_scene, sanitized, when):
    scene, vmm = start(make_scene, sanitized, "--device=blk")
    queue = vmm.queues[0]

    def die(session, msg):
        scene.device.on_message = {}
        raise vu.Closed
    if when:
        scene.device.on_message = {when: die}
        requests = Requests(queue).add(8)
    else:
        scene.device.on_request = hold
        requests = Requests(queue).add(8)
        held(scene, 8)
        scene.device.on_request = echo
        threading.Timer(0.2, kill, (scene,)).start()
    # What was not taken yet when the queue stopped is still in the ring.
    queue.stop()
    queue.start()
    queue.kick()
    requests.finish()
    queue.echo()
    vmm.ram.check()


def test_a_ring_that_breaks_while_its_queue_is_stopped(make_scene, build):
    """What the backend had is done by the next, nothing of it is lost."""
    scene, vmm = start(make_scene, build, "--device=blk")
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
    threading.Timer(0.2, scene.device.run, (break_it,)).start()
    queue.stop()
    queue.start()
    queue.kick()
    requests.finish()
    queue.echo()
    assert len(scene.guard.find("the backend broke its ring")) == 1
    assert len(scene.device.sessions) == 2
    vmm.ram.check()


class Gone:
    """The backend's socket is not there for a while."""

    def __init__(self, scene):
        self.scene = scene
        path = scene.device.path
        scene.device.close()
        os.unlink(path)

    def back(self):
        self.scene.device = self.scene.keep(Backend(self.scene.device.path))


def test_a_guest_that_goes_on_meanwhile_is_served_afterwards(make_scene,
                                                             sanitized):
    scene, vmm = start(make_scene, sanitized, queues=2)
    scene.device.on_request = hold
    work = [Requests(q).add(8) for q in vmm.queues]
    held(scene, 16)
    gone = Gone(scene)
    scene.guard.wait_line("backend gone")
    for requests in work:
        requests.add(20)
    gone.back()
    for requests in work:
        requests.finish()
    vmm.ram.check()


def test_a_backend_that_does_not_come_back_ends_the_session_in_time(
        make_scene, sanitized):
    scene, vmm = start(make_scene, sanitized, "--restart-ms=300")
    Gone(scene)
    session_ends(vmm)
    assert scene.guard.wait() == 1
    assert scene.guard.find("can not connect to the backend")


def test_a_vmm_that_leaves_meanwhile_makes_room_for_the_next(make_scene,
                                                             sanitized):
    scene, vmm = start(make_scene, sanitized, "--restart-ms=20000")
    gone = Gone(scene)
    scene.guard.wait_line("backend gone")
    vmm.close()
    scene.guard.wait_line("the VMM has left")
    gone.back()
    vmm = scene.running(queues=1)
    vmm.ram.check()


def test_sigterm_ends_the_wait_for_a_backend(make_scene, sanitized):
    scene, vmm = start(make_scene, sanitized, "--restart-ms=60000")
    Gone(scene)
    scene.guard.wait_line("backend gone")
    scene.guard.process.send_signal(signal.SIGTERM)
    assert scene.guard.wait(10) == 0


def test_a_crash_loop_ends(make_scene, sanitized):
    scene = make_scene(sanitized, "--pool-size=8M", "--restart=4")
    vmm = scene.running(queues=1, num=NUM)
    since = len(scene.guard.lines)
    # In its thread: then it is not still serving the one before.
    scene.device.run(lambda: setattr(scene.device, "on_kick", die_at_once))
    Requests(vmm.queues[0]).add(1)
    session_ends(vmm)
    assert len(scene.device.sessions) == 5
    # Two lines a life, and one in the end.
    assert scene.guard.wait() == 1
    assert len(scene.guard.complaints(since)) <= 2 * 5 + 1
    # The last one may have died while it was told of the queue.
    assert scene.guard.find("as often as --restart allows|no backend takes")


def die_at_once(session, vring):
    fd = session.sock.fileno()
    if fd >= 0:
        session.backend.unwatch(fd)
        session.shut()


def test_a_thousand_restarts_leave_nothing_behind(make_scene, sanitized,
                                                  plain):
    scene, vmm = start(make_scene, plain, queues=2)
    fds = memory = None
    for n in range(1000):
        scene.device.on_request = hold if n % 10 == 0 else echo
        work = [Requests(q).add(3, 64) for q in vmm.queues]
        if n % 10 == 0:
            held(scene, 6)
            scene.device.on_request = echo
        kill(scene)
        for requests in work:
            requests.finish()
        vmm.ram.next[0] = 256 * 1024  # its memory is used again and again
        if n == 100:
            fds, memory = scene.guard.fds(), scene.guard.memory()
    assert len(scene.guard.fds()) <= len(fds) + 1
    assert scene.guard.memory() <= memory + 256 * 1024
    vmm.ram.check()


def test_pools_of_backends_that_were_given_up_hold_no_pages(make_scene,
                                                            build):
    """One that is alive may keep the descriptor for ever."""
    scene, vmm = start(make_scene, build)
    kept = []
    for _ in range(3):
        Requests(vmm.queues[0]).add(30, 16000).finish()
        session = scene.device.session
        kept.append(scene.device.run(lambda: os.dup(session.mem[0].fd)))
        assert os.fstat(kept[-1]).st_blocks
        kill(scene)
        vmm.queues[0].echo()
        vmm.ram.next[0] = 256 * 1024  # its memory is used again and again
    assert not any(os.fstat(fd).st_blocks for fd in kept)
    vu.close_all(kept)
    vmm.ram.check()


def test_without_the_option_a_session_ends_with_its_backend(make_scene,
                                                            sanitized):
    scene = make_scene(sanitized)
    vmm = scene.running(queues=1)
    scene.device.hang_up(scene.device.session)
    session_ends(vmm)
    assert scene.guard.wait() == 1


# -- with a share set


def sharing(make_scene, keep, build, mode, bank):
    scene = make_scene(build, "--device=console", "--pool-size=8M",
                       f"--share={mode}", f"--pool={POOL_AT:#x}+2M",
                       "--restart=10", "--restart-ms=500")
    vmm = scene.vmm(ram=keep(PoolRam())).setup(queues=0)
    queue = vmm.add_queue(bank=bank)
    queue.start()
    return scene, vmm, queue


def test_a_guests_pool_goes_to_the_next_backend_as_well(make_scene, keep,
                                                        sanitized):
    scene, vmm, queue = sharing(make_scene, keep, sanitized, "hybrid", RAM)
    for bank in (RAM, POOL):
        queue.echo(bank=bank)
    scene.device.run(lambda: setattr(scene.device, "on_request", hold))
    requests = Requests(queue)
    requests.add(4)
    requests.add(4, bank=POOL)
    held(scene, 8)
    scene.device.on_request = echo
    kill(scene)
    requests.finish()
    queue.echo(bank=POOL)
    assert memory_sent(scene) == ["moat-pool", "guest-pool"]
    vmm.ram.check()


@pytest.mark.parametrize("mode", ["direct", "auto"])
def test_a_queue_that_went_direct_ends_with_its_backend(make_scene, keep,
                                                        sanitized, mode):
    scene, vmm, queue = sharing(make_scene, keep, sanitized, mode, POOL)
    queue.echo(bank=POOL)
    scene.device.hang_up(scene.device.session)
    session_ends(vmm)
    assert scene.guard.wait() == 1
    assert scene.guard.find("does not help queues that went direct")


# -- no other backend: a file system's requests end with an error


class Fuse(Requests):
    """Requests as a virtio-fs driver makes them."""
    HEADER = struct.Struct("<IIQQIIIHH")

    def add(self, count, room=4096):
        for n in range(count):
            unique = random.getrandbits(64)
            head = self.HEADER.pack(40, 15, unique, 1, 0, 0, 0, 0, 0)
            src, dst = self.ram.alloc(40), self.ram.alloc(16 + room)
            self.ram.write(src, head)
            # A header may be in pieces, and the answer's place as well.
            cut = 1 + n % 39
            segs = [(src, cut, 0), (src + cut, 40 - cut, 0),
                    (dst, 1 + n % 15, WRITE),
                    (dst + 1 + n % 15, 15 - n % 15 + room, WRITE)]
            self.due[self.queue.ring.add(segs)] = (dst, unique)
        self.queue.publish()
        return self

    def forget(self):
        """A request that nobody answers."""
        src = self.ram.alloc(48)
        self.ram.write(src, self.HEADER.pack(48, 2, 0, 1, 0, 0, 0, 0, 0)
                       + bytes(8))
        head = self.queue.ring.add([(src, 48, 0)])
        self.queue.publish()
        assert self.queue.wait_used() == [(head, 0)]

    def fail(self):
        for head, length in self.queue.wait_used(len(self.due)):
            dst, unique = self.due.pop(head)
            assert length == 16
            answer_ = struct.pack("<IiQ", 16, -errno.ENOTCONN, unique)
            self.ram.expect(dst, answer_)
            assert self.ram.read(dst, 16) == answer_
        assert not self.due and not self.queue.ring.reap()


def orphan(make_scene, build, *options, front=0):
    scene = make_scene(build, "--pool-size=8M", "--device=fs", "--shmem=off",
                       *options)
    vmm = scene.running(queues=2, num=NUM,
                        vmm={"features": OFFERABLE | front})
    scene.device.run(lambda: setattr(scene.device, "on_request", hold))
    work = [Fuse(q).add(8) for q in vmm.queues]
    held(scene, 16)
    return scene, vmm, work


@pytest.mark.parametrize("front", [0, PACKED], ids=["split", "packed"])
@pytest.mark.parametrize("build", ["plain", "sanitized"], indirect=True)
def test_without_another_backend_a_file_systems_requests_fail(
        make_scene, build, front):
    scene, vmm, work = orphan(make_scene, build, front=front)
    scene.device.hang_up(scene.device.session)
    for requests in work:
        requests.fail()
        for _ in range(20):
            requests.add(5)
            requests.fail()
        requests.forget()
    vmm.config_changed()
    assert vmm.fe.get_status() & 0x40  # NEEDS_RESET
    assert scene.guard.idle_cpu() < 0.04
    # The VMM gets its answers, and can take the device down in order.
    assert not vmm.fe.set_mem_table(vmm.ram.regions, vmm.ram.fds)
    assert not vmm.fe.set_vring_enable(0, 0)
    for queue in vmm.queues:
        queue.stop()
    assert not vmm.fe.set_status(0)
    assert vmm.queues[0].base
    vmm.ram.check()
    vmm.close()
    assert scene.guard.wait() == 1


def test_a_malformed_ring_is_one_without_a_backend_as_well(make_scene,
                                                           sanitized):
    scene, vmm, work = orphan(make_scene, sanitized)
    scene.device.hang_up(scene.device.session)
    for requests in work:
        requests.fail()
    ring = vmm.queues[0].ring
    ring.avail_idx = ring.avail_idx + NUM + 5
    vmm.queues[0].kick()
    scene.guard.wait_line("queue 0 broken: avail idx jumped")
    work[1].add(5)
    work[1].fail()
    vmm.close()
    assert scene.guard.wait() == 1


@pytest.mark.parametrize("back", [False, True], ids=["gone", "back"])
def test_a_malformed_ring_is_no_reason_to_look_for_a_backend(
        make_scene, build, back):
    """It is the guest's, and the session goes on without one."""
    scene, vmm = start(make_scene, build, "--device=fs", "--restart-ms=300")
    gone = Gone(scene)
    scene.guard.wait_line("without a backend")
    if back:
        gone.back()
    since = len(scene.guard.lines)
    queue = vmm.queues[0]
    queue.ring.add([(0xdead_0000_0000, 64, 0)])
    queue.publish()
    scene.guard.wait_line("queue 0 broken", since)
    before = time.monotonic()
    for _ in range(20):
        vmm.fe.get_features()
    assert time.monotonic() - before < 1
    assert scene.guard.idle_cpu(0.2) < 0.04
    assert len(scene.guard.complaints(since)) == 1
    assert not back or not scene.device.sessions
    vmm.close()
    assert scene.guard.wait() == 1


def test_requests_fail_once_the_backends_are_used_up(make_scene, sanitized):
    scene, vmm, work = orphan(make_scene, sanitized, "--restart=2")
    for _ in range(2):
        kill(scene)
        held(scene, 16)
    scene.device.hang_up(scene.device.session)
    for requests in work:
        requests.fail()
    assert scene.guard.find("as often as --restart allows")
    assert scene.guard.terminate() == 0


def test_a_request_that_ends_a_file_systems_backend_in_a_message(make_scene,
                                                                 sanitized):
    scene, vmm, work = orphan(make_scene, sanitized)

    def die(session, msg):
        raise vu.Closed
    scene.device.on_message = {Request.SET_VRING_ENABLE: die}
    assert not vmm.fe.set_vring_enable(0, 1)
    for requests in work:
        requests.fail()
    vmm.close()
    assert scene.guard.wait() == 1


# -- backends that the guard starts

SLOW = """
import os, sys, signal
os.write(2, b"pid %d\\n" % os.getpid())
sys.path.insert(0, {here!r})
import backend
device = backend.Backend(sys.argv[1])
if sys.argv[2:]:  # ends with its first VMM
    device.wait_for(lambda: device.sessions and
                    device.sessions[0].closed.is_set(), None)
    os._exit(0)
signal.pause()
"""


class Started:
    """A guard that starts its backend: the good device, in Python."""

    def __init__(self, keep, folder, build, *options, words=()):
        here = os.path.dirname(os.path.abspath(__file__))
        script = f"{folder}/device.py"
        with open(script, "w", encoding="ascii") as f:
            f.write(SLOW.format(here=here))
        self.guard = keep(Guard(build, folder, None, "--pool-size=8M",
                                *options, "--exec", "--", sys.executable,
                                script, "{socket}", *words))
        self.keep = keep
        self.vmm = self.connect()

    def connect(self):
        return self.keep(Vmm.connect(self.guard.path)).setup(num=NUM)

    def pids(self):
        return [int(line.split()[1]) for line in self.guard.find("^pid ")]

    def signal(self, number):
        os.kill(self.pids()[-1], number)


def test_a_command_is_started_again_by_a_guard_in_its_sandbox(keep, folder,
                                                              build):
    scene = Started(keep, folder, build, "--restart=10")
    scene.vmm.queues[0].echo()
    for n in range(4):
        since = len(scene.guard.lines)
        scene.signal(signal.SIGKILL)
        scene.vmm.queues[0].echo()
        scene.guard.wait_line("another backend goes on", since)
    assert len(scene.pids()) == 5
    scene.vmm.ram.check()
    last = scene.pids()[-1]
    assert scene.guard.terminate() == 0
    assert not os.path.exists(f"/proc/{last}")


def state_of(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        return f.read().rpartition(")")[2].split()[0]


def test_a_command_that_stalls_is_ended_before_another_is_started(
        keep, folder, sanitized):
    scene = Started(keep, folder, sanitized, "--restart=10")
    scene.vmm.queues[0].echo()
    stopped = scene.pids()[-1]
    requests = Requests(scene.vmm.queues[0])
    scene.signal(signal.SIGSTOP)
    end = time.monotonic() + 10
    while state_of(stopped) != "T":
        assert time.monotonic() < end
    requests.add(8)
    # An answer that does not come is what tells.
    scene.vmm.fe.timeout = 30
    assert not scene.vmm.fe.set_vring_enable(0, 1)
    requests.finish()
    assert not os.path.exists(f"/proc/{stopped}")
    assert scene.guard.find("backend stalls")


def test_a_command_that_ends_with_its_vmm_is_started_for_the_next(
        keep, folder, plain):
    scene = Started(keep, folder, plain, "--restart=5", words=["once"])
    for n in range(3):
        scene.vmm.queues[0].echo()
        scene.vmm.close()
        scene.vmm = scene.connect()
    scene.vmm.queues[0].echo()
    assert len(scene.pids()) == 4
    assert not scene.guard.complaints() or \
        all(line.startswith("pid") for line in scene.guard.complaints())


def test_a_command_that_fails_at_once_is_not_tried_for_ever(keep, folder,
                                                            plain):
    scene = Started(keep, folder, plain, "--restart=5")
    script = f"{folder}/device.py"
    with open(script, "w", encoding="ascii") as f:
        f.write("import os; os.write(2, b'pid %d\\n' % os.getpid())\n")
    scene.signal(signal.SIGKILL)
    session_ends(scene.vmm)
    assert scene.guard.wait() == 1
    assert len(scene.pids()) == 6
    assert scene.guard.find("has ended and listens nowhere")


def test_a_guard_that_is_killed_takes_its_command_along(keep, folder, plain):
    scene = Started(keep, folder, plain, "--restart=5")
    scene.vmm.queues[0].echo()
    os.kill(scene.guard.pid, signal.SIGKILL)
    scene.guard.wait()
    deadline = vu.deadline_in(vu.PATIENCE)
    while os.path.exists(f"/proc/{scene.pids()[-1]}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
