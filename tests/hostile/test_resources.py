# SPDX-License-Identifier: Apache-2.0
"""Repeated a thousand times, no attack makes the guard grow."""

import pytest

import test_evil_backend_messages as evil_backend
import test_evil_vmm as evil
import vhost_user as vu
from guest import GuestRam, Vmm
from vhost_user import Request

TIMES = 1000
WARM = 50


def held(guard):
    """Open descriptors, and private memory in bytes."""
    return len(guard.fds()), guard.memory()


def connected(scene):
    """As held(), at the start of a VMM's session: all before it is gone."""
    fe = vu.FrontEnd(vu.socket.socket(vu.socket.AF_UNIX))
    fe.sock.connect(scene.guard.path)
    fe.get_features()
    result = held(scene.guard)
    fe.close()
    return result


def steady(scene, once, measure=None):
    """@once TIMES times; descriptors and private memory stay as they were
    after the first few. @measure brings the guard to a state that can be
    compared and returns held() of it; not needed if @once leaves it in one.
    """
    measure = measure or (lambda: held(scene.guard))
    for _ in range(WARM):
        once()
    fds, memory = measure()
    for _ in range(TIMES - WARM):
        once()
    assert scene.guard.alive()
    fds_after, memory_after = measure()
    assert fds_after == fds, scene.guard.fds()
    grown = memory_after - memory
    assert grown < 256 * 1024, f"grew by {grown} bytes"


@pytest.fixture
def plain_scene(make_scene, plain):
    return make_scene(plain, "--pool-size=1M")


@pytest.fixture
def ram(keep):
    return keep(GuestRam())


REPEATED = [
    evil.more_fds_than_any_message_has, evil.truncated_control_data,
    evil.mem_table_with_surplus_fds, evil.mem_table_with_an_fd_missing,
    evil.good_region_before_a_bad_one, evil.region_fd_shorter_than_the_region,
    evil.overlapping_guest_addresses, evil.kick_with_two_fds,
    evil.kick_for_a_queue_that_does_not_exist,
    evil.set_inflight_that_was_not_negotiated,
    evil.backend_req_fd_twice_in_one_message, evil.size_ffffffff,
    evil.add_overlapping_region,
]


@pytest.mark.parametrize("attack", REPEATED, ids=lambda a: a.__name__)
def test_refused_messages_leave_nothing_behind(plain_scene, ram, attack):
    state = []

    def begin():
        if not state:
            vmm = Vmm.connect(plain_scene.guard.path, ram=ram)
            vmm.negotiate()
            vmm.share_memory()
            state.append(vmm)

    def once():
        begin()
        vmm = state[0]
        attack(vmm)
        if evil.outcome(vmm) == "closed":
            state.pop().close()

    def measure():
        begin()
        return held(plain_scene.guard)

    steady(plain_scene, once, measure)
    for vmm in state:
        vmm.close()
    plain_scene.running(queues=1).ram.check()


def test_eventfds_set_again_and_again(plain_scene, ram):
    vmm = plain_scene.vmm(ram=ram)
    vmm.setup(queues=1)
    queue = vmm.queues[0]

    def once():
        assert vmm.fe.set_vring_call(0, queue.call_fd) == 0
        assert vmm.fe.set_vring_err(0, queue.err_fd) == 0
        queue.echo(16)
        ram.next[0] = 65536

    steady(plain_scene, once)


def test_backend_channel_set_again_and_again(plain_scene, ram):
    vmm = plain_scene.vmm(ram=ram)
    vmm.setup(queues=1)

    def once():
        ours, theirs = vu.socket.socketpair()
        with theirs:
            assert vmm.fe.set_backend_req_fd(theirs.fileno()) == 0
        vmm.channel.close()
        vmm.channel = ours

    steady(plain_scene, once)
    vmm.queues[0].echo()
    plain_scene.device.run(plain_scene.device.session.config_change)
    vmm.config_changed()


def test_memory_added_and_removed_again_and_again(plain_scene, ram):
    late = ram.banks.pop()
    vmm = plain_scene.vmm(ram=ram, add_mem_reg=True)
    vmm.setup(queues=1)

    def once():
        assert vmm.fe.add_mem_reg(late.region, late.fd) == 0
        assert vmm.fe.rem_mem_reg(late.region) == 0

    steady(plain_scene, once)
    vmm.queues[0].echo()
    ram.banks.append(late)


def test_memory_table_set_again_and_again(plain_scene, ram):
    vmm = plain_scene.vmm(ram=ram)
    vmm.setup(queues=1)

    def once():
        assert vmm.fe.set_mem_table(ram.regions, ram.fds) == 0

    steady(plain_scene, once)
    vmm.queues[0].echo()


def test_queues_stopped_and_started_again_and_again(plain_scene, ram):
    vmm = plain_scene.vmm(ram=ram)
    vmm.setup(queues=2)

    def once():
        queue = vmm.queues[0]
        queue.stop()
        queue.start()
        queue.kick()
        queue.echo(16)
        ram.next[0] = 65536

    steady(plain_scene, once)
    vmm.queues[1].echo()


def test_vmms_that_come_and_go(plain_scene, ram):
    def once():
        vmm = Vmm.connect(plain_scene.guard.path, ram=ram)
        ram.next[0] = 65536
        ram.banks[0].device_owned.clear()
        vmm.setup(queues=2)
        vmm.close()

    steady(plain_scene, once, lambda: connected(plain_scene))


@pytest.mark.parametrize("name", [
    "with_20_fds", "with_truncated_control_data", "too_long"])
def test_wrong_replies_leave_nothing_behind(plain_scene, ram, name):
    """Each ends a session; the guard meets the backend anew."""
    payload = bytes(12 if name == "too_long" else 8)
    answers = {
        "with_20_fds": evil_backend.with_fds(20, payload),
        "with_truncated_control_data": evil_backend.with_fds(250, payload),
        "too_long": evil_backend.raw(Request.SET_FEATURES, payload)}
    plain_scene.device.on_message[Request.SET_FEATURES] = answers[name]

    def once():
        vmm = Vmm.connect(plain_scene.guard.path, ram=ram)
        with pytest.raises((vu.Closed, AssertionError)):
            vmm.negotiate()
            vmm.fe.recv()
        vmm.close()

    steady(plain_scene, once, lambda: connected(plain_scene))


def test_backend_requests_with_fds_leave_nothing_behind(plain_scene, ram):
    vmm = plain_scene.vmm(ram=ram)
    vmm.setup(queues=1)
    send = evil_backend.channel_message(
        9, evil_backend.SHMEM, make_fds=lambda: evil.memfd(4096))
    channel = plain_scene.device.session.channel

    def once():
        try:
            send(channel)
            vu.recv_msg(channel, vu.deadline_in(5))
        except vu.Closed:
            pass

    steady(plain_scene, once)
    vmm.queues[0].echo()
