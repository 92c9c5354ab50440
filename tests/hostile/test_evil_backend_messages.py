# SPDX-License-Identifier: Apache-2.0
"""A hostile backend on its sockets: what it answers, what it asks, and when
it does neither."""
import fcntl
import itertools
import os
import socket
import struct

import pytest

import vhost_user as vu
from aftermath import one_line, rest_is_fine
from backend import FEATURES, PROTOCOL
from guest import OFFERABLE
from test_evil_vmm import eventfds, memfd
from vhost_user import (HEADER, NEED_REPLY, REPLY, U64, VERSION, VRING_STATE,
                        BackendRequest, Feature, Protocol, Request, mask)

# -- replies


def raw(request, payload=b"", flags=VERSION | REPLY, size=None, fds=()):
    def answer(session, msg):
        vu.send_msg(session.sock, request, payload, fds, flags=flags,
                    size=size)
        return True
    return answer


def with_fds(n, payload):
    def answer(session, msg):
        with eventfds(n) as fds:
            vu.send_msg(session.sock, msg.request, payload, fds,
                        flags=VERSION | REPLY)
        return True
    return answer


GF = Request.GET_FEATURES
GOOD = U64.pack(FEATURES)

REPLIES = {
    "too_short": (GF, raw(GF, bytes(4))),
    "empty": (GF, raw(GF)),
    "too_long": (GF, raw(GF, GOOD + bytes(8))),
    "size_ffffffff": (GF, raw(GF, GOOD, size=0xffffffff)),
    "size_4096": (GF, raw(GF, GOOD + bytes(4088))),
    "of_another_request": (GF, raw(Request.GET_QUEUE_NUM, GOOD)),
    "of_request_0": (GF, raw(0, GOOD)),
    "of_an_unknown_request": (GF, raw(0xdeadbeef, GOOD)),
    "without_reply_flag": (GF, raw(GF, GOOD, flags=VERSION)),
    "version_0": (GF, raw(GF, GOOD, flags=REPLY)),
    "version_2": (GF, raw(GF, GOOD, flags=2 | REPLY)),
    "with_an_fd": (GF, with_fds(1, GOOD)),
    "with_20_fds": (GF, with_fds(20, GOOD)),
    "with_truncated_control_data": (GF, with_fds(250, GOOD)),
    "without_version_1": (GF, raw(GF, U64.pack(
        FEATURES & ~mask(Feature.VERSION_1)))),
    "protocol_features_too_short": (
        Request.GET_PROTOCOL_FEATURES,
        raw(Request.GET_PROTOCOL_FEATURES, bytes(2))),
    "queue_num_0": (Request.GET_QUEUE_NUM,
                    raw(Request.GET_QUEUE_NUM, U64.pack(0))),
    "queue_num_too_long": (Request.GET_QUEUE_NUM,
                           raw(Request.GET_QUEUE_NUM, bytes(16))),
    "mem_table_ack_that_says_no": (
        Request.SET_MEM_TABLE, raw(Request.SET_MEM_TABLE, U64.pack(1))),
    "mem_table_ack_too_short": (
        Request.SET_MEM_TABLE, raw(Request.SET_MEM_TABLE, bytes(4))),
    "mem_table_ack_of_another_request": (
        Request.SET_MEM_TABLE, raw(Request.SET_OWNER, U64.pack(0))),
}


def try_session(scene, **kw):
    """A VMM does all it can; True if it got as far as an echoed request."""
    vmm = scene.vmm(timeout=8, **kw)
    try:
        vmm.setup(queues=1)
        vmm.queues[0].echo()
        return vmm, True
    except (vu.Closed, AssertionError):
        return vmm, False


# Asked when the guard meets its backend, before any VMM comes.
AT_THE_START = (Request.GET_FEATURES, Request.SET_PROTOCOL_FEATURES,
                Request.GET_PROTOCOL_FEATURES, Request.GET_QUEUE_NUM)


def ends_before_it_serves(scene, mark=0):
    """The backend is of no use: one line says so, the exit status is 1."""
    assert scene.guard.wait(15) == 1, scene.guard.lines
    lines = scene.guard.complaints(mark)
    assert len(lines) == 1 and "backend" in lines[0], lines


@pytest.mark.parametrize("request_,answer", REPLIES.values(),
                         ids=REPLIES.keys())
def test_reply_that_is_wrong_ends_the_session_only(
        make_scene, sanitized, witness, request_, answer):
    if request_ in AT_THE_START:
        scene = make_scene(sanitized, "--device=console",
                           on_message={request_: answer}, listens=False)
        ends_before_it_serves(scene)
        witness()
        return
    scene = make_scene(sanitized, "--device=console")
    mark = len(scene.guard.lines)
    scene.device.on_message[request_] = answer
    vmm, worked = try_session(scene)
    assert not worked
    vmm.close()
    scene.guard.wait_line("error: |warning: ", mark)
    rest_is_fine(scene, witness, vmm.ram)
    one_line(scene, mark)


def test_backend_that_turns_bad_after_its_first_vmm(scene, witness):
    """The guard meets it anew for each VMM."""
    vmm = scene.running(queues=1)
    mark = len(scene.guard.lines)
    scene.device.on_message[GF] = raw(GF, bytes(4))
    vmm.close()
    ends_before_it_serves(scene, mark)
    vmm.ram.check()
    witness()


@pytest.mark.parametrize("value", [300, 2 ** 32, 2 ** 64 - 1])
def test_absurd_queue_num_is_clamped(make_scene, sanitized, witness, value):
    scene = make_scene(sanitized, "--device=console", on_message={
        Request.GET_QUEUE_NUM: raw(Request.GET_QUEUE_NUM, U64.pack(value))})
    vmm, worked = try_session(scene)
    assert worked and vmm.queue_num <= 256
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_unknown_features_are_not_passed_on(make_scene, sanitized, witness):
    device_bits = 0xffffff | mask(50, 51, 52)  # a device's own
    scene = make_scene(sanitized, features=2 ** 64 - 1,
                       protocol=2 ** 64 - 1)
    vmm = scene.vmm()
    offered = vmm.fe.get_features()
    generic = offered & ~device_bits & (2 ** 64 - 1)
    allowed = OFFERABLE | mask(Feature.RING_PACKED, Feature.IN_ORDER,
                               Feature.ORDER_PLATFORM, Feature.RING_RESET)
    assert not generic & ~allowed & ~(((1 << 14) - 1) << 50), hex(generic)
    known = PROTOCOL | mask(Protocol.BACKEND_SEND_FD, Protocol.MTU)
    assert not vmm.fe.get_protocol_features() & ~known
    vmm.close()


CONFIG_REPLIES = {
    "longer_than_asked": lambda o, n: vu.config(o, n + 8),
    "size_field_longer": lambda o, n: vu.CONFIG.pack(o, n + 200, 0)
    + bytes(n),
    "size_field_ffffffff": lambda o, n: vu.CONFIG.pack(o, 0xffffffff, 0)
    + bytes(n),
    "shorter_than_asked": lambda o, n: vu.CONFIG.pack(o, n, 0)
    + bytes(n - 1),
    "another_offset": lambda o, n: vu.config(o + 4, n),
    "header_cut_short": lambda o, n: bytes(7),
    "64_kib": lambda o, n: vu.config(o, 65536),
}


@pytest.mark.parametrize("make", CONFIG_REPLIES.values(),
                         ids=CONFIG_REPLIES.keys())
def test_wrong_config_reply_never_reaches_the_vmm(scene, witness, make):
    vmm = scene.running(queues=1)
    mark = len(scene.guard.lines)

    def answer(session, msg):
        offset, size, _ = vu.CONFIG.unpack_from(msg.payload)
        session.reply(msg, make(offset, size))
        return True

    scene.device.on_message[Request.GET_CONFIG] = answer
    vmm.fe.send(Request.GET_CONFIG, vu.config(0, 16))
    try:
        msg = vmm.fe.recv(8)
        # An error in a form that the specification knows, or nothing.
        assert not msg.payload or (
            len(msg.payload) == 12 + vu.CONFIG.unpack_from(msg.payload)[1]
            and msg.payload[12:] == b""), msg
    except vu.Closed:
        pass
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)
    assert len(scene.guard.complaints(mark)) == 1


VRING_BASES = {
    "other_queue": VRING_STATE.pack(1, 0),
    "queue_ffffffff": VRING_STATE.pack(0xffffffff, 0),
    "base_ffffffff": VRING_STATE.pack(0, 0xffffffff),
    "too_short": bytes(4),
    "too_long": bytes(64),
}


@pytest.mark.parametrize("payload", VRING_BASES.values(),
                         ids=VRING_BASES.keys())
def test_vring_base_that_lies_is_not_the_vmms_base(scene, witness, payload):
    """The driver's base is the guard's own knowledge."""
    vmm = scene.running(queues=2)
    vmm.queues[0].echo()
    scene.device.on_message[Request.GET_VRING_BASE] = raw(
        Request.GET_VRING_BASE, payload)
    vmm.fe.send(Request.GET_VRING_BASE, VRING_STATE.pack(0, 0))
    try:
        msg = vmm.fe.recv(8)
        assert VRING_STATE.unpack(msg.payload) == (0, 2)
    except vu.Closed:
        pass
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_status_that_lies_does_no_harm(scene, witness):
    vmm = scene.running(queues=1)
    scene.device.on_message[Request.GET_STATUS] = raw(
        Request.GET_STATUS, U64.pack(2 ** 64 - 1))
    assert vmm.fe.get_status() < 256
    vmm.queues[0].echo()
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


@pytest.mark.parametrize("message", [
    HEADER.pack(Request.GET_FEATURES, VERSION | REPLY, 8) + GOOD,
    HEADER.pack(Request.GET_CONFIG, VERSION | REPLY, 12) + bytes(12),
    HEADER.pack(0, 0, 0),
    HEADER.pack(BackendRequest.CONFIG_CHANGE_MSG, VERSION, 0),
    HEADER.pack(Request.GET_FEATURES, VERSION | REPLY, 0xffffffff),
    b"\xa5" * 5000,
], ids=["reply", "config_reply", "zeros", "request", "huge", "garbage"])
def test_unsolicited_message_from_the_backend(scene, witness, message):
    vmm = scene.running(queues=2)
    session = scene.device.session
    vu.send_raw(session.sock, message)
    try:
        got = vmm.fe.get_config(0, 8)
        assert got in (None, bytes(scene.device.config[:8])), got
        for queue in vmm.queues:
            queue.echo()
    except vu.Closed:
        scene.guard.wait_line("error: |warning: ")
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def fall_silent(scene, request, half):
    """The device stops to answer; the VMM asks, in vain, and stays."""
    early = request == Request.SET_MEM_TABLE
    vmm = None if early else scene.running(queues=1)

    def silence(session, msg):
        if half:
            vu.send_raw(session.sock, HEADER.pack(
                msg.request, VERSION | REPLY, 8)[:7])
        return True

    scene.device.on_message[request] = silence
    vmm = vmm or scene.vmm()
    if request == Request.GET_CONFIG:
        vmm.fe.send(request, vu.config(0, 8))
    elif request == Request.GET_VRING_BASE:
        vmm.fe.send(request, VRING_STATE.pack(0, 0))
    elif request == Request.SET_MEM_TABLE:
        vmm.negotiate()
        vmm.fe.reply_ack = False  # ask for no answers: there are none
        vmm.share_memory()
        vmm.add_queue().start()
    return vmm


def test_backend_that_never_replies_is_given_up(make_scene, sanitized,
                                                witness):
    """All at once, since each takes as long as the guard has patience."""
    silent = []
    for n, (request, half) in enumerate(itertools.product(
            (Request.SET_MEM_TABLE, Request.GET_CONFIG,
             Request.GET_VRING_BASE), (False, True))):
        scene = make_scene(sanitized, "--device=console", "--pool-size=2M",
                           name=str(n))
        silent.append((scene, fall_silent(scene, request, half)))
    mute = make_scene(sanitized, "--device=console", name="mute",
                      on_message={GF: lambda *_: True}, listens=False)
    for scene in [mute] + [scene for scene, _ in silent]:
        assert scene.guard.idle_cpu() < 0.02
    witness()
    ends_before_it_serves(mute)
    for scene, vmm in silent:
        scene.guard.wait_line("backend stalls", timeout=30)
        try:
            while True:
                vmm.fe.recv(5)
        except vu.Closed:
            pass
        vmm.close()
        assert len(scene.guard.complaints()) == 1, scene.guard.lines
        rest_is_fine(scene, witness, vmm.ram)


@pytest.mark.parametrize("early", [False, True])
def test_guard_ends_on_sigterm_while_the_backend_is_silent(
        make_scene, sanitized, early):
    silence = {GF: lambda *_: True}
    if early:
        scene = make_scene(sanitized, on_message=silence, listens=False)
        scene.device.wait_for(lambda: scene.device.sessions)
    else:
        scene = make_scene(sanitized)
        vmm = scene.running(queues=1)
        scene.device.on_message[Request.GET_CONFIG] = lambda *_: True
        vmm.fe.send(Request.GET_CONFIG, vu.config(0, 4))
        vmm.queues[0].kick()
    assert scene.guard.terminate(timeout=8) == 0
    assert not scene.guard.complaints()


def leave_after(part):
    def leave(session, msg):
        vu.send_raw(session.sock, (HEADER.pack(
            msg.request, VERSION | REPLY, 8) + bytes(8))[:part])
        session.sock.shutdown(socket.SHUT_RDWR)
        return True
    return leave


@pytest.mark.parametrize("request_", [
    Request.GET_FEATURES, Request.SET_PROTOCOL_FEATURES,
    Request.SET_MEM_TABLE, Request.SET_VRING_ADDR, Request.SET_VRING_KICK,
    Request.GET_CONFIG, Request.GET_VRING_BASE], ids=lambda r: r.name)
@pytest.mark.parametrize("part", [0, 7, 14], ids=[
    "silently", "within_a_header", "within_a_payload"])
def test_backend_that_closes_on_a_message(make_scene, sanitized, witness,
                                          request_, part):
    """One line says that the backend is gone; the exit status is 1."""
    hooks = {request_: leave_after(part)}
    if request_ in AT_THE_START:
        scene = make_scene(sanitized, on_message=hooks, listens=False)
        ends_before_it_serves(scene)
        witness()
        return
    scene = make_scene(sanitized)
    scene.device.on_message = hooks
    vmm, worked = try_session(scene)
    if request_ in (Request.GET_CONFIG, Request.GET_VRING_BASE):
        assert worked
        with pytest.raises((vu.Closed, AssertionError)):
            if request_ == Request.GET_CONFIG:
                assert vmm.fe.get_config(0, 8) is not None
            else:
                vmm.fe.get_vring_base(0)
                vmm.fe.recv()
    ends_before_it_serves(scene)
    vmm.ram.check()
    witness()


def test_backend_that_goes_away_while_idle(scene, witness):
    vmm = scene.running(queues=2)
    mark = len(scene.guard.lines)
    scene.device.hang_up(scene.device.session)
    assert scene.guard.wait() == 1
    lines = scene.guard.complaints(mark)
    assert len(lines) == 1 and "backend" in lines[0], lines
    with pytest.raises(vu.Closed):
        vmm.fe.recv()
    vmm.ram.check()
    witness()


# -- the channel for requests of the backend


def channel_message(request, payload=b"", flags=VERSION | NEED_REPLY,
                    size=None, make_fds=None):
    def send(channel):
        if make_fds is None:
            vu.send_msg(channel, request, payload, flags=flags, size=size)
        else:
            with make_fds() as fds:
                vu.send_msg(channel, request, payload, fds, flags=flags,
                            size=size)
    return send


SHMEM = struct.pack("=B7xQQQQ", 0, 0, 0x10000, 4096, 1)
CHANNEL = {
    "unknown_request": channel_message(99),
    "request_0": channel_message(0),
    "request_ffffffff": channel_message(0xffffffff),
    "version_0": channel_message(2, flags=NEED_REPLY),
    "version_3": channel_message(2, flags=3 | NEED_REPLY),
    "reply_that_nobody_asked_for": channel_message(
        2, U64.pack(0), flags=VERSION | REPLY),
    "config_change_with_payload": channel_message(2, bytes(8)),
    "config_change_with_size_ffffffff": channel_message(2, size=0xffffffff),
    "config_change_with_an_fd": channel_message(
        2, make_fds=lambda: eventfds(1)),
    "config_change_with_20_fds": channel_message(
        2, make_fds=lambda: eventfds(20)),
    "truncated_control_data": channel_message(
        2, make_fds=lambda: eventfds(250)),
    "iotlb_msg": channel_message(1, bytes(32)),
    "iotlb_msg_cut_short": channel_message(1, bytes(3)),
    "host_notifier": channel_message(
        3, struct.pack("=QQQ", 0, 4096, 0), make_fds=lambda: memfd(4096)),
    "host_notifier_without_fd": channel_message(
        3, struct.pack("=QQQ", 1 << 8, 0, 0)),
    "in_band_call": channel_message(4, VRING_STATE.pack(0, 0)),
    "in_band_err": channel_message(5, VRING_STATE.pack(9999, 0)),
    "shared_object_lookup": channel_message(8, bytes(16)),
    "shmem_map": channel_message(9, SHMEM, make_fds=lambda: memfd(4096)),
    "shmem_map_without_fd": channel_message(9, SHMEM),
    "shmem_unmap": channel_message(10, SHMEM),
    "half_a_header": lambda channel: vu.send_raw(channel, bytes(5)),
    "garbage": lambda channel: vu.send_raw(channel, b"\xa5" * 4000),
}


@pytest.mark.parametrize("send", CHANNEL.values(), ids=CHANNEL.keys())
def test_malformed_backend_request_stays_at_the_guard(scene, witness, send):
    vmm = scene.running(queues=2)
    mark = len(scene.guard.lines)
    channel = scene.device.session.channel
    try:
        send(channel)
        reply = vu.recv_msg(channel, vu.deadline_in(0.1))
        assert reply.flags & REPLY and not reply.fds, reply
        assert reply.u64 != 0, f"accepted: {reply}"
    except (vu.Closed, vu.Timeout):
        pass
    for queue in vmm.queues:
        queue.echo()
    # Nothing of it reached the VMM: no message, no descriptor.
    vmm.channel.setblocking(False)
    with pytest.raises(BlockingIOError):
        assert vmm.channel.recv(1) == b"", "the VMM was sent something"
        raise BlockingIOError
    # Half a message and garbage that is half a message may be waited for.
    assert len(scene.guard.complaints(mark)) <= 1
    assert scene.guard.idle_cpu() < 0.02
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)
    if send is not CHANNEL["half_a_header"]:
        one_line(scene, mark)


def test_a_request_channel_that_ends_with_answers_unread_is_no_error(
        scene, witness):
    """As when a backend is killed: only that it is gone is worth a line."""
    vmm = scene.running(queues=2)
    mark = len(scene.guard.lines)
    session = scene.device.session
    vu.send_msg(session.channel, 99, b"", flags=VERSION | NEED_REPLY)
    vu.wait_readable(session.channel, vu.deadline_in(vu.PATIENCE))

    def end():
        session.channel.close()
        session.channel = None

    scene.device.run(end)
    for queue in vmm.queues:
        queue.echo()
    one_line(scene, mark, "request 99 .* is not allowed")
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_config_change_is_held_back_until_the_driver_started(scene, witness):
    vmm = scene.vmm()
    vmm.negotiate()
    vmm.fe.get_config(0, 8)
    session = scene.device.session
    assert session.channel, "the guard set no channel up"
    scene.device.run(session.config_change)
    vmm.share_memory()
    vmm.fe.get_config(0, 8)
    vmm.channel.setblocking(False)
    with pytest.raises(BlockingIOError):
        vmm.channel.recv(1)
    vmm.channel.setblocking(True)
    vmm.add_queue().start()
    vmm.driver_ok()
    vmm.queues[0].echo()
    vmm.config_changed()  # it was not lost
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


@pytest.mark.parametrize("need_reply", [False, True])
def test_flood_of_config_changes(scene, witness, need_reply):
    vmm = scene.running(queues=2)
    session = scene.device.session
    message = HEADER.pack(BackendRequest.CONFIG_CHANGE_MSG,
                          VERSION | (NEED_REPLY if need_reply else 0), 0)
    before = scene.guard.memory()
    channel = session.channel
    channel.setblocking(False)
    sent = 0
    for n in range(40):
        try:
            for _ in range(500):
                sent += channel.send(message)
        except BlockingIOError:
            pass
        vmm.queues[n % 2].echo(64)  # nobody reads; I/O goes on
    assert sent >= 12 * 100
    assert scene.guard.memory() - before < 1 << 20
    vmm.config_changed()  # what was sent is still a message
    for queue in vmm.queues:
        queue.echo()
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_backend_that_reads_no_acknowledgements(scene, witness):
    """It asks for acknowledgements and never takes one."""
    vmm = scene.running(queues=1)
    channel = scene.device.session.channel
    channel.setblocking(False)
    message = HEADER.pack(99, VERSION | NEED_REPLY, 0)
    for n in range(20):
        try:
            for _ in range(500):
                channel.send(message)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass
        vmm.queues[0].echo(64)
    assert scene.guard.idle_cpu() < 0.02
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_channel_is_a_plain_blocking_socket(scene):
    """As a backend expects that waits for its acknowledgements there."""
    scene.running(queues=1)
    channel = scene.device.session.channel
    assert not fcntl.fcntl(channel, fcntl.F_GETFL) & os.O_NONBLOCK


def test_backend_that_closes_its_channel(scene, witness):
    vmm = scene.running(queues=2)

    def close():
        scene.device.session.channel.close()
        scene.device.session.channel = None

    scene.device.run(close)
    for queue in vmm.queues:
        queue.echo()
    assert scene.guard.idle_cpu() < 0.02
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)
