# SPDX-License-Identifier: Apache-2.0
"""What reaches the VMM and the log is as it should be, whatever comes."""
import struct
import time

import pytest

import vhost_user as vu
from vhost_user import BackendRequest, Protocol, Request, mask

ALL_BUT_CONFIG = mask(Protocol.MQ, Protocol.REPLY_ACK, Protocol.BACKEND_REQ,
                      Protocol.STATUS)


@pytest.fixture(params=["plain", "sanitized"])
def build(request):
    return request.getfixturevalue(request.param)


def test_limits_are_the_same_read_in_parts_or_whole(make_scene, build):
    """Drivers read the fields of virtio_blk_config one by one."""
    scene = make_scene(build, "--device=blk", "--pool-size=1M")
    scene.device.config[8:16] = struct.pack("<II", 0xffffffff, 0xffff)
    vmm = scene.vmm()
    vmm.negotiate()
    whole = vmm.fe.get_config(0, 60)
    size_max, seg_max = struct.unpack_from("<II", whole, 8)
    assert 4096 <= size_max < 1 << 20 and 1 <= seg_max < 256
    for offset, size in ((8, 4), (12, 4), (8, 8), (0, 12), (10, 4), (12, 40),
                         (16, 4), (0, 8), (15, 1)):
        assert (vmm.fe.get_config(offset, size)
                == whole[offset:offset + size]), (offset, size)


def test_vmm_without_config_hears_of_no_config_change(make_scene, build):
    scene = make_scene(build, "--device=console")
    vmm = scene.running(queues=2, vmm={"protocol": ALL_BUT_CONFIG})
    queue = vmm.queues[0]
    queue.ring.add([(1 << 60, 512, 0)])
    queue.publish()
    assert queue.erred()
    assert vmm.fe.get_status() & 0x40, "DEVICE_NEEDS_RESET"
    vmm.queues[1].echo()
    with pytest.raises(vu.Timeout):
        vmm.config_changed(timeout=0.1)  # ten times its longest delay


def test_channel_that_ends_inside_a_message_costs_no_queue(make_scene, build):
    """Its number becomes that of an eventfd while an event for it is still
    in hand."""
    scene = make_scene(build, "--device=console")
    vmm = scene.vmm()
    vmm.negotiate()
    vmm.share_memory()

    def end(session, msg):
        if session.channel:
            session.channel.close()
            session.channel = None

    scene.device.on_message[Request.SET_MEM_TABLE] = end
    for _ in range(4):
        queue = vmm.add_queue()
        queue.start()
        queue.echo()
    for queue in vmm.queues:
        queue.echo()
    scene.backend_is_happy()


def test_refused_requests_do_not_drown_other_lines(make_scene, build):
    scene = make_scene(build, "--device=console")
    vmm = scene.running(queues=2)
    channel = scene.device.session.channel
    for _ in range(200):
        vu.send_msg(channel, BackendRequest.IOTLB_MSG, bytes(8))
        vmm.queues[1].echo(64)
    vmm.queues[0].ring.add([(1 << 60, 512, 0)])
    vmm.queues[0].publish()
    assert vmm.queues[0].erred()
    scene.guard.wait_line("queue 0 broken")
    assert len(scene.guard.find("is not allowed")) == 1


def test_backend_that_never_reads_its_channel_stalls_nothing(make_scene,
                                                             build):
    """The replies that it asks for fill its channel: that is its end."""
    scene = make_scene(build, "--device=console")
    vmm = scene.running(queues=1)
    channel = scene.device.session.channel
    channel.setblocking(False)
    slowest = 0
    deadline = vu.deadline_in(20)
    while True:
        assert time.monotonic() < deadline, "its channel is still open"
        try:
            vu.send_msg(channel, BackendRequest.IOTLB_MSG, bytes(8),
                        flags=vu.VERSION | vu.NEED_REPLY)
        except BlockingIOError:
            pass
        except vu.Closed:
            break
        vmm.ram.next[0] = 64 * 1024
        before = time.monotonic()
        vmm.queues[0].echo(64)
        slowest = max(slowest, time.monotonic() - before)
    assert slowest < 1, slowest
    scene.guard.wait_line("does not read its request channel")
    vmm.queues[0].echo()
