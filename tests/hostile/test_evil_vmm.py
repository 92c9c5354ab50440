# SPDX-License-Identifier: Apache-2.0
"""Malformed and misplaced messages on the socket that faces the VMM.

A refused message is answered with a nonzero acknowledgement where that can
be, else the connection is closed; there is one log line; the next VMM is
served, and no descriptor stays behind.
"""
import os
import struct
import tempfile

import pytest

import vhost_user as vu
from aftermath import one_line, rest_is_fine
from guest import LAYOUT, MIB, Queue
from vhost_user import (CONFIG, HEADER, NEED_REPLY, NOFD, REPLY, U64, VERSION,
                        VRING_ADDR, VRING_STATE, Feature, Protocol, Region,
                        Request, mask)

ATTACKS = []
FEW, MANY = 5, 20  # descriptors: too many for a message; for most servers


def attack(stage, *texts):
    """Register an attack on a VMM session at @stage: "fresh" is connected
    only, "negotiated" has features, "shared" memory too, "running" queues."""
    def register(function):
        ATTACKS.append(pytest.param(stage, function, texts,
                                    id=function.__name__))
        return function
    return register


def ask(vmm, request, payload=b"", fds=(), **kw):
    vmm.fe.send(request, payload, fds, flags=VERSION | NEED_REPLY, **kw)


def state(index, num):
    return VRING_STATE.pack(index, num)


class Fds:
    """Descriptors of some kind, closed when the message is sent."""

    def __init__(self, *fds):
        self.fds = fds

    def __enter__(self):
        return self.fds

    def __exit__(self, *exc):
        vu.close_all(self.fds)


def eventfds(n):
    return Fds(*[os.eventfd(0, os.EFD_CLOEXEC) for _ in range(n)])


def memfd(size):
    fd = os.memfd_create("evil", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return Fds(fd)


# -- the header

@attack("negotiated")
def version_0(vmm):
    vmm.fe.send(Request.SET_OWNER, flags=0 | NEED_REPLY)


@attack("negotiated")
def version_2(vmm):
    vmm.fe.send(Request.SET_OWNER, flags=2 | NEED_REPLY)


@attack("fresh")
def version_3_as_first_message(vmm):
    vmm.fe.send(Request.GET_FEATURES, flags=3)


@attack("negotiated")
def reply_flag_on_a_request(vmm):
    vmm.fe.send(Request.SET_OWNER, flags=VERSION | REPLY | NEED_REPLY)


@attack("negotiated", "99")
def unknown_request(vmm):
    ask(vmm, 99)


@attack("negotiated")
def request_0(vmm):
    ask(vmm, 0)


@attack("negotiated")
def request_ffffffff(vmm):
    ask(vmm, 0xffffffff)


@attack("fresh")
def size_ffffffff(vmm):
    vmm.fe.send(Request.GET_FEATURES, size=0xffffffff)


@attack("negotiated")
def size_ffffffff_of_a_mem_table(vmm):
    ask(vmm, Request.SET_MEM_TABLE, bytes(4096), size=0xffffffff)


@attack("negotiated")
def size_100000(vmm):
    ask(vmm, Request.SET_CONFIG, bytes(100000))


@attack("negotiated")
def short_payload(vmm):
    ask(vmm, Request.SET_FEATURES, bytes(4))


@attack("negotiated")
def no_payload(vmm):
    ask(vmm, Request.SET_FEATURES)


@attack("negotiated")
def long_payload(vmm):
    ask(vmm, Request.SET_FEATURES, U64.pack(vmm.features) + bytes(8))


@attack("negotiated")
def payload_where_there_is_none(vmm):
    ask(vmm, Request.SET_OWNER, bytes(8))


@attack("negotiated")
def short_vring_state(vmm):
    ask(vmm, Request.SET_VRING_NUM, bytes(7))


@attack("negotiated")
def short_vring_addr(vmm):
    ask(vmm, Request.SET_VRING_ADDR, bytes(39))


@attack("negotiated")
def mem_table_shorter_than_its_count(vmm):
    payload = vu.mem_table(vmm.ram.regions)
    ask(vmm, Request.SET_MEM_TABLE, payload[:-1], vmm.ram.fds)


@attack("negotiated")
def mem_table_of_ffffffff_regions(vmm):
    ask(vmm, Request.SET_MEM_TABLE, struct.pack("=II", 0xffffffff, 0)
        + bytes(256), vmm.ram.fds)


@attack("negotiated")
def mem_table_of_2_to_the_27_regions_whose_size_wraps(vmm):
    # 8 + 32 * 2^27 is 8 in 32 bits.
    ask(vmm, Request.SET_MEM_TABLE, struct.pack("=II", 1 << 27, 0))


# -- descriptors

@attack("negotiated")
def mem_table_without_fds(vmm):
    ask(vmm, Request.SET_MEM_TABLE, vu.mem_table(vmm.ram.regions))


@attack("negotiated")
def mem_table_with_an_fd_missing(vmm):
    ask(vmm, Request.SET_MEM_TABLE, vu.mem_table(vmm.ram.regions),
        vmm.ram.fds[:-1])


@attack("negotiated")
def mem_table_with_surplus_fds(vmm):
    with eventfds(FEW) as fds:
        ask(vmm, Request.SET_MEM_TABLE, vu.mem_table(vmm.ram.regions),
            (*vmm.ram.fds, *fds))


@attack("negotiated")
def more_fds_than_any_message_has(vmm):
    with eventfds(MANY) as fds:
        ask(vmm, Request.SET_OWNER, b"", fds)


@attack("negotiated")
def truncated_control_data(vmm):
    with eventfds(250) as fds:
        ask(vmm, Request.SET_MEM_TABLE, vu.mem_table(vmm.ram.regions), fds)


@attack("fresh")
def fds_on_get_features(vmm):
    with eventfds(FEW) as fds:
        vmm.fe.send(Request.GET_FEATURES, b"", fds)


@attack("shared")
def kick_without_fd(vmm):
    ask(vmm, Request.SET_VRING_KICK, U64.pack(0))


@attack("shared")
def kick_with_two_fds(vmm):
    with eventfds(2) as fds:
        ask(vmm, Request.SET_VRING_KICK, U64.pack(0), fds)


@attack("shared")
def kick_with_an_fd_and_the_flag_for_none(vmm):
    with eventfds(1) as fds:
        ask(vmm, Request.SET_VRING_KICK, U64.pack(0 | NOFD), fds)


@attack("shared")
def kick_with_reserved_bits(vmm):
    with eventfds(1) as fds:
        ask(vmm, Request.SET_VRING_KICK, U64.pack(1 << 40), fds)


@attack("negotiated")
def add_mem_reg_without_fd(vmm):
    ask(vmm, Request.ADD_MEM_REG, U64.pack(0) + LAYOUT[0].pack())


@attack("negotiated")
def add_mem_reg_with_two_fds(vmm):
    ask(vmm, Request.ADD_MEM_REG, U64.pack(0) + LAYOUT[0].pack(),
        vmm.ram.fds[:2])


@attack("negotiated")
def backend_req_fd_without_fd(vmm):
    ask(vmm, Request.SET_BACKEND_REQ_FD)


@attack("negotiated")
def backend_req_fd_twice_in_one_message(vmm):
    with eventfds(2) as fds:
        ask(vmm, Request.SET_BACKEND_REQ_FD, b"", fds)


# -- memory

def table(vmm, *regions):
    """A table over copies of bank 0's file."""
    ask(vmm, Request.SET_MEM_TABLE, vu.mem_table(regions),
        [vmm.ram.fds[0]] * len(regions))


def add(vmm, region, fd=None):
    ask(vmm, Request.ADD_MEM_REG, U64.pack(0) + region.pack(),
        (vmm.ram.fds[0] if fd is None else fd,))


R = LAYOUT[0]
FAR = R._replace(guest_address=1 << 40, user_address=1 << 41, size=MIB)


@attack("negotiated")
def overlapping_guest_addresses(vmm):
    table(vmm, R, FAR._replace(guest_address=R.guest_address + MIB))


@attack("negotiated")
def overlapping_user_addresses(vmm):
    table(vmm, R, FAR._replace(user_address=R.user_address + MIB))


@attack("negotiated")
def region_within_a_region(vmm):
    table(vmm, R, R._replace(guest_address=R.guest_address + 4096,
                             user_address=R.user_address + 4096, size=4096))


@attack("negotiated")
def same_region_twice(vmm):
    table(vmm, R, R)


@attack("negotiated")
def guest_addresses_wrap(vmm):
    table(vmm, R._replace(guest_address=2 ** 64 - MIB))


@attack("negotiated")
def user_addresses_wrap(vmm):
    table(vmm, R._replace(user_address=2 ** 64 - MIB))


@attack("negotiated")
def mmap_offset_plus_size_wraps(vmm):
    table(vmm, R._replace(mmap_offset=2 ** 64 - MIB))


@attack("negotiated")
def region_of_size_0(vmm):
    table(vmm, R._replace(size=0))


@attack("negotiated")
def region_of_size_2_to_the_63(vmm):
    table(vmm, R._replace(size=1 << 63))


@attack("negotiated")
def region_of_all_addresses(vmm):
    table(vmm, Region(0, 2 ** 64 - 1, 0, 0))


@attack("negotiated")
def region_fd_shorter_than_the_region(vmm):
    table(vmm, R._replace(size=R.size + 4096))


@attack("negotiated")
def region_fd_shorter_by_its_offset(vmm):
    table(vmm, R._replace(mmap_offset=4096))


@attack("negotiated")
def region_fd_is_empty(vmm):
    with memfd(0) as (fd,):
        ask(vmm, Request.SET_MEM_TABLE, vu.mem_table([R]), (fd,))


@attack("negotiated")
def region_fd_is_an_eventfd(vmm):
    with eventfds(1) as fds:
        ask(vmm, Request.SET_MEM_TABLE, vu.mem_table([R]), fds)


@attack("negotiated")
def region_fd_is_a_pipe(vmm):
    with Fds(*os.pipe()) as fds:
        ask(vmm, Request.SET_MEM_TABLE, vu.mem_table([R]), fds[:1])


@attack("negotiated")
def region_fd_is_a_folder(vmm):
    with Fds(os.open("/", os.O_RDONLY)) as fds:
        ask(vmm, Request.SET_MEM_TABLE, vu.mem_table([R]), fds)


@attack("negotiated")
def region_fd_is_read_only(vmm):
    with tempfile.NamedTemporaryFile() as f:
        f.truncate(R.size)
        with Fds(os.open(f.name, os.O_RDONLY)) as fds:
            ask(vmm, Request.SET_MEM_TABLE, vu.mem_table([R]), fds)


@attack("negotiated")
def good_region_before_a_bad_one(vmm):
    table(vmm, R, FAR._replace(size=1 << 50))


@attack("shared")
def add_overlapping_region(vmm):
    add(vmm, R._replace(user_address=1 << 41))


@attack("shared")
def add_region_with_a_short_fd(vmm):
    add(vmm, FAR._replace(size=64 * MIB))


@attack("shared")
def add_region_that_wraps(vmm):
    add(vmm, FAR._replace(guest_address=2 ** 64 - 4096))


@attack("shared")
def remove_a_region_that_is_not_there(vmm):
    ask(vmm, Request.REM_MEM_REG, U64.pack(0) + FAR.pack())


@attack("shared")
def remove_part_of_a_region(vmm):
    ask(vmm, Request.REM_MEM_REG, U64.pack(0)
        + R._replace(size=R.size // 2).pack())


# -- queues

@attack("shared", "200")
def queue_that_does_not_exist(vmm):
    ask(vmm, Request.SET_VRING_NUM, state(200, 64))


@attack("shared")
def queue_ffffffff(vmm):
    ask(vmm, Request.SET_VRING_NUM, state(0xffffffff, 64))


@attack("shared")
def base_of_a_queue_that_does_not_exist(vmm):
    ask(vmm, Request.SET_VRING_BASE, state(0x80000000, 0))


@attack("shared")
def enable_a_queue_that_does_not_exist(vmm):
    ask(vmm, Request.SET_VRING_ENABLE, state(300, 1))


@attack("shared")
def addr_of_a_queue_that_does_not_exist(vmm):
    ask(vmm, Request.SET_VRING_ADDR, VRING_ADDR.pack(
        256, 0, R.user_address, R.user_address, R.user_address, 0))


@attack("shared")
def kick_for_a_queue_that_does_not_exist(vmm):
    with eventfds(1) as fds:
        ask(vmm, Request.SET_VRING_KICK, U64.pack(255), fds)


@attack("shared")
def call_for_a_queue_that_does_not_exist(vmm):
    with eventfds(1) as fds:
        ask(vmm, Request.SET_VRING_CALL, U64.pack(255), fds)


@attack("shared")
def err_for_a_queue_that_does_not_exist(vmm):
    with eventfds(1) as fds:
        ask(vmm, Request.SET_VRING_ERR, U64.pack(255), fds)


@attack("shared")
def stop_a_queue_that_does_not_exist(vmm):
    vmm.fe.send(Request.GET_VRING_BASE, state(77777, 0))


@attack("shared")
def queue_size_0(vmm):
    ask(vmm, Request.SET_VRING_NUM, state(0, 0))


@attack("shared", "48")
def queue_size_48(vmm):
    ask(vmm, Request.SET_VRING_NUM, state(0, 48))


@attack("shared", "65536")
def queue_size_65536(vmm):
    ask(vmm, Request.SET_VRING_NUM, state(0, 65536))


@attack("shared")
def queue_size_80000000(vmm):
    ask(vmm, Request.SET_VRING_NUM, state(0, 0x80000000))


@attack("shared")
def base_beyond_65535(vmm):
    ask(vmm, Request.SET_VRING_BASE, state(0, 65536))


def addresses(vmm, desc=0, avail=0, used=0, **kw):
    """Ring addresses that are right but for the given offsets."""
    queue = Queue(vmm, 0, bank=1)
    vmm.queues.append(queue)
    ua = vmm.ram.user_address
    assert vmm.fe.set_vring_num(0, queue.num) == 0
    code = vmm.fe.set_vring_addr(
        0, kw.get("desc_at", ua(queue.desc_addr) + desc),
        kw.get("used_at", ua(queue.used_addr) + used),
        kw.get("avail_at", ua(queue.avail_addr) + avail))
    # Refused at once, or when the queue is to start.
    return code or vmm.fe.set_vring_kick(0, queue.kick_fd)


@attack("shared")
def misaligned_descriptor_table(vmm):
    return addresses(vmm, desc=8)


@attack("negotiated")
def region_that_misaligns_every_ring(vmm):
    # Aligned for the front-end, but 8 bytes off where it is mapped.
    region = R._replace(user_address=R.user_address + 8)
    assert vmm.fe.set_mem_table([region], vmm.ram.fds[:1]) == 0
    return addresses(vmm, desc_at=R.user_address + 4096,
                     avail_at=R.user_address + 8192,
                     used_at=R.user_address + 12288)


@attack("shared")
def misaligned_avail_ring(vmm):
    return addresses(vmm, avail=1)


@attack("shared")
def misaligned_used_ring(vmm):
    return addresses(vmm, used=2)


@attack("shared")
def descriptor_table_outside_memory(vmm):
    return addresses(vmm, desc_at=0x1234_5678_0000)


@attack("shared")
def avail_ring_outside_memory(vmm):
    return addresses(vmm, avail_at=0x1234_5678_0000)


@attack("shared")
def used_ring_outside_memory(vmm):
    return addresses(vmm, used_at=0x1234_5678_0000)


@attack("shared")
def guest_addresses_where_user_addresses_belong(vmm):
    return addresses(vmm, desc_at=LAYOUT[1].guest_address + 4096)


@attack("shared")
def descriptor_table_over_the_end_of_a_region(vmm):
    return addresses(vmm, desc_at=R.user_address + R.size - 16)


@attack("shared")
def used_ring_over_the_end_of_a_region(vmm):
    return addresses(vmm, used_at=R.user_address + R.size - 512)


@attack("shared")
def avail_ring_over_the_end_of_a_region(vmm):
    return addresses(vmm, avail_at=R.user_address + R.size - 128)


@attack("shared")
def descriptor_table_that_wraps(vmm):
    return addresses(vmm, desc_at=2 ** 64 - 16)


@attack("shared")
def used_ring_that_wraps(vmm):
    return addresses(vmm, used_at=2 ** 64 - 4)


# -- order

@attack("negotiated")
def ring_addresses_before_memory(vmm):
    return addresses(vmm)


@attack("shared")
def start_before_addresses(vmm):
    assert vmm.fe.set_vring_num(0, 64) == 0
    with eventfds(1) as fds:
        return vmm.fe.set(Request.SET_VRING_KICK, U64.pack(0), fds)


@attack("shared")
def start_before_size(vmm):
    with eventfds(1) as fds:
        return vmm.fe.set(Request.SET_VRING_KICK, U64.pack(0), fds)


@attack("shared")
def kick_fd_is_a_file(vmm):
    queue = Queue(vmm, 0)
    vmm.queues.append(queue)
    ua = vmm.ram.user_address
    assert vmm.fe.set_vring_num(0, queue.num) == 0
    assert vmm.fe.set_vring_addr(0, ua(queue.desc_addr), ua(queue.used_addr),
                                 ua(queue.avail_addr)) == 0
    with memfd(8) as fds:
        return vmm.fe.set(Request.SET_VRING_KICK, U64.pack(0), fds)


@attack("running")
def features_change_while_running(vmm):
    ask(vmm, Request.SET_FEATURES, U64.pack(
        vmm.features & ~mask(Feature.EVENT_IDX)))


@attack("negotiated")
def features_that_were_not_offered(vmm):
    ask(vmm, Request.SET_FEATURES, U64.pack(
        vmm.features | mask(Feature.RING_PACKED, 63)))


@attack("negotiated")
def features_without_version_1(vmm):
    ask(vmm, Request.SET_FEATURES, U64.pack(
        vmm.features & ~mask(Feature.VERSION_1)))


@attack("negotiated")
def protocol_features_that_were_not_offered(vmm):
    ask(vmm, Request.SET_PROTOCOL_FEATURES, U64.pack(
        vmm.protocol | mask(Protocol.PAGEFAULT, Protocol.CRYPTO_SESSION, 60)))


@attack("negotiated", "INFLIGHT|31")
def inflight_that_was_not_negotiated(vmm):
    vmm.fe.send(Request.GET_INFLIGHT_FD, bytes(24))


@attack("negotiated")
def set_inflight_that_was_not_negotiated(vmm):
    with memfd(4096) as fds:
        ask(vmm, Request.SET_INFLIGHT_FD, bytes(24), fds)


@attack("negotiated")
def log_base_that_was_not_negotiated(vmm):
    with memfd(4096) as fds:
        ask(vmm, Request.SET_LOG_BASE, struct.pack("=QQ", 4096, 0), fds)


@attack("negotiated")
def postcopy(vmm):
    vmm.fe.send(Request.POSTCOPY_ADVISE)


@attack("negotiated")
def gpu_socket(vmm):
    with Fds(*os.pipe()) as fds:
        ask(vmm, Request.GPU_SET_SOCKET, b"", fds[:1])


@attack("negotiated")
def iotlb_without_access_platform(vmm):
    ask(vmm, Request.IOTLB_MSG, bytes(32))


@attack("running")
def queue_size_change_while_running(vmm):
    ask(vmm, Request.SET_VRING_NUM, state(0, 1024))


@attack("running")
def ring_addresses_change_to_nowhere_while_running(vmm):
    ask(vmm, Request.SET_VRING_ADDR, VRING_ADDR.pack(
        0, 0, 0x123450000, 0x123460000, 0x123470000, 0))


# -- configuration space

@attack("negotiated")
def config_offset_plus_size_wraps(vmm):
    vmm.fe.send(Request.GET_CONFIG, CONFIG.pack(0xfffffff0, 0x20, 0)
                + bytes(0x20))


@attack("negotiated")
def config_size_ffffffff(vmm):
    vmm.fe.send(Request.GET_CONFIG, CONFIG.pack(0, 0xffffffff, 0))


@attack("negotiated")
def config_size_larger_than_the_payload(vmm):
    vmm.fe.send(Request.GET_CONFIG, CONFIG.pack(0, 64, 0) + bytes(8))


@attack("negotiated")
def config_size_smaller_than_the_payload(vmm):
    vmm.fe.send(Request.GET_CONFIG, CONFIG.pack(0, 4, 0) + bytes(64))


@attack("negotiated")
def config_header_cut_short(vmm):
    vmm.fe.send(Request.GET_CONFIG, bytes(11))


@attack("negotiated")
def config_of_64_kib(vmm):
    vmm.fe.send(Request.GET_CONFIG, vu.config(0, 65536))


@attack("negotiated")
def set_config_offset_plus_size_wraps(vmm):
    ask(vmm, Request.SET_CONFIG, vu.config(0xfffffff0, 0x20))


@attack("negotiated")
def set_config_size_larger_than_the_payload(vmm):
    ask(vmm, Request.SET_CONFIG, CONFIG.pack(0, 256, 0) + bytes(8))


OWN_REPLY = (Request.GET_CONFIG, Request.GET_VRING_BASE,
             Request.GET_INFLIGHT_FD, Request.POSTCOPY_ADVISE)


def outcome(vmm):
    """"error" for an error reply, else "closed"; anything else fails.

    An attack that has seen its refusal itself returns that instead."""
    try:
        msg = vmm.fe.recv(5)
    except vu.Closed:
        return "closed"
    assert msg.flags & vu.REPLY, msg
    if msg.request in OWN_REPLY:
        # An error in a reply of its own kind: no payload.
        assert not msg.payload or msg.request == Request.GET_CONFIG \
            and CONFIG.unpack_from(msg.payload)[1] == 0, msg
    else:
        assert msg.u64 != 0, f"accepted: {msg}"
    return "error"


@pytest.mark.parametrize("stage,evil,texts", ATTACKS)
def test_malformed_message_is_refused(scene, witness, stage, evil, texts):
    vmm = scene.vmm()
    if stage != "fresh":
        vmm.negotiate()
    if stage in ("shared", "running"):
        vmm.share_memory()
    if stage == "running":
        for _ in range(2):
            vmm.add_queue().start()
        vmm.driver_ok()
        for queue in vmm.queues:
            queue.echo()
    mark = len(scene.guard.lines)
    refused = evil(vmm)
    assert refused != 0, "accepted"
    if refused is None:
        refused = outcome(vmm) == "error"
    if refused and stage == "running":
        vmm.queues[1].echo()
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)
    one_line(scene, mark, *texts)


def test_mem_table_may_be_longer_than_its_count(scene):
    """User-mode Linux sends room for regions that it does not have."""
    vmm = scene.vmm()
    vmm.negotiate()
    ask(vmm, Request.SET_MEM_TABLE,
        vu.mem_table(vmm.ram.regions) + bytes(32), vmm.ram.fds)
    assert vmm.fe.recv().u64 == 0
    vmm.add_queue().start()
    vmm.driver_ok()
    vmm.queues[0].echo()
    vmm.ram.check()


CUTS = {
    "nothing": b"",
    "one byte": b"\x01",
    "half a header": HEADER.pack(1, VERSION, 0)[:6],
    "header without payload": HEADER.pack(2, VERSION, 8),
    "half a payload": HEADER.pack(2, VERSION, 8) + bytes(4),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_vmm_closes_in_the_middle(scene, witness, cut):
    vmm = scene.vmm()
    vmm.negotiate()
    if cut:
        vu.send_raw(vmm.fe.sock, cut)
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_message_in_single_bytes_is_understood(scene):
    vmm = scene.vmm()
    for byte in HEADER.pack(Request.GET_FEATURES, VERSION, 0):
        vu.send_raw(vmm.fe.sock, bytes([byte]))
    assert vmm.fe.recv().request == Request.GET_FEATURES


def test_half_a_message_does_not_stop_running_queues(scene):
    vmm = scene.running(queues=2)
    vu.send_raw(vmm.fe.sock, HEADER.pack(Request.SET_CONFIG, VERSION, 64)
                + bytes(5))
    for queue in vmm.queues:
        queue.echo()
    # And it costs nothing to wait for the rest.
    assert scene.guard.idle_cpu() < 0.02
    vmm.ram.check()


def test_kick_before_start_does_nothing(scene, witness):
    vmm = scene.vmm()
    vmm.negotiate()
    vmm.share_memory()
    queue = vmm.add_queue()
    other = vmm.add_queue()
    other.start()
    queue.start(enable=False)
    src, dst = vmm.ram.alloc(64), vmm.ram.alloc(64)
    vmm.ram.write(src, bytes(64))
    head = queue.ring.add([(src, 64, 0), (dst, 64, 2)])
    queue.ring.publish()
    for _ in range(100):
        queue.kick()
    other.echo()
    assert queue.ring.used_idx == 0
    assert vmm.fe.set_vring_enable(0, 1) == 0
    assert queue.wait_used() == [(head, 64)]
    vmm.ram.expect(dst, bytes(64))
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_second_vmm_waits_for_the_first(scene):
    first = scene.running(queues=1)
    second = scene.vmm()
    second.fe.send(Request.GET_FEATURES)
    first.queues[0].echo()
    first.close()
    assert second.fe.recv().request == Request.GET_FEATURES
    second.setup(queues=1).queues[0].echo()
    second.ram.check()


def test_vmm_that_reads_no_replies_and_leaves(scene, witness):
    vmm = scene.vmm()
    sock = vmm.fe.sock
    sock.setblocking(False)
    message = HEADER.pack(Request.GET_FEATURES, VERSION, 0)
    try:
        for _ in range(20000):
            sock.send(message)
    except BlockingIOError:
        pass  # both directions are full: the guard waits for us
    assert scene.guard.idle_cpu() < 0.02
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_garbage_on_the_backend_channel_of_the_vmm(scene, witness):
    """The VMM answers where nothing was asked."""
    vmm = scene.running(queues=2)
    for _ in range(3):
        try:
            vu.send_raw(vmm.channel, os.urandom(300))
        except vu.Closed:
            break
    vmm.queues[0].echo()
    vmm.queues[1].echo()
    assert scene.guard.idle_cpu() < 0.02
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_backend_channel_that_the_vmm_closes(scene, witness):
    vmm = scene.running(queues=1)
    vmm.channel.close()
    scene.device.run(scene.device.session.config_change)
    vmm.queues[0].echo()
    assert scene.guard.idle_cpu() < 0.02
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_backend_channel_that_nobody_reads(scene, witness):
    """The guard waits for no VMM: what does not fit comes later."""
    vmm = scene.vmm()
    vmm.setup(queues=1)
    ours, theirs = vu.socket.socketpair()
    # The least that the kernel allows; and nothing makes it non-blocking.
    theirs.setsockopt(vu.socket.SOL_SOCKET, vu.socket.SO_SNDBUF, 1)
    with theirs:
        assert vmm.fe.set_backend_req_fd(theirs.fileno()) == 0
    vmm.channel.close()
    vmm.channel = ours
    queue = vmm.queues[0]
    deadline = vu.deadline_in(0.5)  # how long the attack lasts
    scene.device.session.channel.setblocking(False)
    while vu.time.monotonic() < deadline:
        try:
            scene.device.run(scene.device.session.config_change)
        except BlockingIOError:
            pass  # the guard takes only so many at once
        before = vu.time.monotonic()
        queue.echo(16)
        assert vu.time.monotonic() - before < 0.5, "the queue had to wait"
    assert vmm.fe.get_config(0, 8)
    vmm.config_changed()
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_backend_channel_that_is_no_socket(scene, witness):
    vmm = scene.running(queues=1)
    with eventfds(1) as fds:
        ask(vmm, Request.SET_BACKEND_REQ_FD, b"", fds)
    try:
        vmm.fe.recv()
        vmm.queues[0].echo()
        scene.device.run(scene.device.session.config_change)
        vmm.queues[0].echo()
    except vu.Closed:
        pass
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)
