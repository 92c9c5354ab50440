# SPDX-License-Identifier: Apache-2.0
"""Good peers on both ends: what goes through the guard arrives, byte for
byte, and not a byte more."""
import itertools
import os

import pytest

import vhost_user as vu
from backend import FEATURES, echo
from guest import HOLE, LAYOUT, OFFERABLE, GuestRam
from split_ring import INDIRECT as INDIRECT_FLAG
from split_ring import WRITE
from vhost_user import Feature, Protocol, mask

EVENT_IDX = mask(Feature.EVENT_IDX)
INDIRECT = mask(Feature.INDIRECT_DESC)


def request(queue, out, inn, data=None, used=None, indirect=False):
    """Post @out/@inn as [(addr, len)]; the answer is the echo of the bytes.

    Returns (head, expected answer). @used: what the device will report.
    """
    ram = queue.ram
    for addr, length in out:
        if length:
            ram.write(addr, os.urandom(length))
    sent = b"".join(ram.read(a, n) for a, n in out)
    room = sum(n for _, n in inn)
    answer = (sent * (room // max(1, len(sent)) + 1))[:room] if sent else b""
    descs = ([(a, n, 0) for a, n in out] + [(a, n, WRITE) for a, n in inn])
    head = queue.ring.add([queue.indirect(descs)] if indirect else descs)
    done = 0
    for addr, length in inn:
        piece = answer[done:done + length]
        ram.expect(addr, piece)
        done += len(piece)
    return head, len(answer)


def round_trip(queue, out, inn, **kw):
    head, length = request(queue, out, inn, **kw)
    queue.publish()
    assert queue.wait_used() == [(head, length)]
    queue.ram.check()


@pytest.fixture(params=["plain", "sanitized"])
def both(request, make_scene):
    """A scene on each build."""
    build = request.getfixturevalue(request.param)
    return lambda *options, **kw: make_scene(build, *options, **kw)


@pytest.mark.parametrize("driver_bits,device_bits", [
    (a | b, c | d) for a, b, c, d in itertools.product(
        (0, EVENT_IDX), (0, INDIRECT), (0, EVENT_IDX), (0, INDIRECT))])
def test_ring_features_of_the_two_legs_are_independent(
        make_scene, plain, driver_bits, device_bits):
    ring_bits = EVENT_IDX | INDIRECT
    scene = make_scene(plain, "--pool-size=8M",
                       features=FEATURES & ~ring_bits | device_bits)
    vmm = scene.vmm(features=OFFERABLE & ~ring_bits | driver_bits)
    vmm.setup(queues=1, num=16)
    # Events are the guard's own on each leg; tables are offered where chains
    # longer than a ring can be passed on.
    assert vmm.offered & ring_bits == EVENT_IDX | device_bits & INDIRECT
    assert scene.device.session.features & ring_bits == device_bits
    queue = vmm.queues[0]
    for n in range(40):
        a, b, c = (vmm.ram.alloc(100 + 50 * n, bank=k) for k in range(3))
        round_trip(queue, [(a, 100 + n), (b, 7)], [(c, 90 + 40 * n)],
                   indirect=bool(vmm.features & INDIRECT and n % 2))
    scene.backend_is_happy()


@pytest.mark.parametrize("event_idx", [False, True])
def test_indices_wrap_at_65536(make_scene, plain, event_idx):
    bits = OFFERABLE & ~(0 if event_idx else EVENT_IDX)
    scene = make_scene(plain, "--pool-size=8M",
                       features=FEATURES & bits | mask(Feature.VERSION_1))
    vmm = scene.vmm(features=bits)
    vmm.negotiate()
    vmm.share_memory()
    # The driver's leg starts close to the end and wraps twice; the device's
    # leg begins at 0 and wraps once.
    queue = vmm.add_queue(num=256, base=65000)
    queue.start()
    ram, ring = vmm.ram, queue.ring
    slots = {}
    src, dst = ram.alloc(256 * 8), ram.alloc(256 * 8)
    ram.device_may_write(dst, 256 * 8)
    ram.write(src, bytes(256 * 8))
    src_view, dst_view = ram.view(src, 256 * 8), ram.view(dst, 256 * 8)
    ram.device_may_write(src, 256 * 8)
    free = list(range(128))
    posted = reaped = 0
    total = 65536 + 3000
    while reaped < total:
        while free and posted < total:
            k = free.pop()
            value = posted.to_bytes(8, "little")
            src_view[8 * k:8 * k + 8] = value
            head = ring.add([(src + 8 * k, 8, 0), (dst + 8 * k, 8, WRITE)])
            slots[head] = (k, value)
            posted += 1
        queue.publish()
        for head, length in queue.wait_used():
            k, value = slots.pop(head)
            assert length == 8 and dst_view[8 * k:8 * k + 8] == value
            free.append(k)
            reaped += 1
    assert ring.used_idx == (65000 + total) & 0xffff
    assert scene.device.served == total
    ram.check()
    scene.backend_is_happy()


def test_requests_complete_out_of_order(both):
    scene = both()
    vmm = scene.vmm().setup(queues=1)
    queue = vmm.queues[0]
    held = []
    scene.device.on_request = lambda s, v, chain: held.append((s, v, chain))
    posted = {}
    for n in range(20):
        src, dst = vmm.ram.alloc(300), vmm.ram.alloc(300)
        head, length = request(queue, [(src, 300)], [(dst, 300)])
        posted[head] = length
    queue.publish()

    def finish():
        for s, v, chain in held[::-2] + held[-2::-2]:
            echo(s, v, chain)
        held[0][0].flush(held[0][1])

    deadline = vu.deadline_in(10)
    while scene.device.run(lambda: len(held)) < 20:
        assert vu.time.monotonic() < deadline
    scene.device.run(finish)
    used = queue.wait_used(20)
    assert dict(used) == posted
    assert [h for h, _ in used] != list(posted)
    vmm.ram.check()
    scene.backend_is_happy()


@pytest.mark.parametrize("shape", [
    "first_readable", "last_readable", "first_writable", "last_writable",
    "address_in_a_hole", "readable_only", "writable_only"])
def test_empty_segments_are_legal(both, shape):
    scene = both()
    vmm = scene.vmm().setup(queues=1)
    a, b = vmm.ram.alloc(64), vmm.ram.alloc(64)
    out, inn = [(a, 64)], [(b, 64)]
    if shape == "first_readable":
        out.insert(0, (a, 0))
    elif shape == "last_readable":
        out.append((a, 0))
    elif shape == "first_writable":
        inn.insert(0, (b, 0))
    elif shape == "last_writable":
        inn.append((b, 0))
    elif shape == "readable_only":
        inn = [(b, 0)]
    elif shape == "writable_only":
        out = [(a, 0)]
    descs = [(x, n, 0) for x, n in out] + [(x, n, WRITE) for x, n in inn]
    if shape == "address_in_a_hole":
        descs.insert(1, (HOLE, 0, 0))
    queue = vmm.queues[0]
    data = os.urandom(64)
    vmm.ram.write(a, data)
    head = queue.ring.add(descs)
    queue.publish()
    both_ways = all(sum(n for _, n in part) for part in (out, inn))
    assert queue.wait_used() == [(head, 64 if both_ways else 0)]
    if both_ways:
        vmm.ram.expect(b, data)
    queue.echo()
    vmm.ram.check()
    scene.backend_is_happy()


def test_a_request_of_nothing_but_empty_segments_comes_back(both):
    scene = both()
    vmm = scene.vmm().setup(queues=1)
    queue = vmm.queues[0]
    a = vmm.ram.alloc(64)
    # More often than the ring has descriptors: none may leak.
    for n in range(100):
        head = queue.ring.add([(a, 0, 0), (a, 0, WRITE)])
        queue.publish()
        assert queue.wait_used() == [(head, 0)]
    queue.echo()
    vmm.ram.check()
    scene.backend_is_happy()


def test_buffers_and_tables_may_cross_memory_regions(both):
    scene = both()
    vmm = scene.vmm().setup(queues=1)
    queue = vmm.queues[0]
    seam = LAYOUT[1].guest_address
    round_trip(queue, [(seam - 1000, 3000)], [(vmm.ram.alloc(3000), 3000)])
    round_trip(queue, [(vmm.ram.alloc(900), 900)], [(seam - 11, 900)])
    # Entries of 16 bytes, one of them cut by the seam.
    a, b = vmm.ram.alloc(64), vmm.ram.alloc(64, bank=2)
    table = seam - 24
    queue.write_table(table, [(a, 32, 0), (a + 32, 32, 0), (b, 64, WRITE)])
    data = os.urandom(64)
    vmm.ram.write(a, data)
    vmm.ram.expect(b, data)
    head = queue.ring.add([(table, 48, INDIRECT_FLAG)])
    queue.publish()
    assert queue.wait_used() == [(head, 64)]
    vmm.ram.check()
    scene.backend_is_happy()


def test_device_ignores_write_on_a_descriptor_that_refers_to_a_table(both):
    scene = both()
    vmm = scene.vmm().setup(queues=1)
    queue = vmm.queues[0]
    a, b = vmm.ram.alloc(64), vmm.ram.alloc(64)
    data = os.urandom(64)
    vmm.ram.write(a, data)
    vmm.ram.expect(b, data)
    addr, length, flags = queue.indirect([(a, 64, 0), (b, 64, WRITE)])
    head = queue.ring.add([(addr, length, flags | WRITE)])
    queue.publish()
    assert queue.wait_used() == [(head, 64)]
    vmm.ram.check()


def test_a_table_may_follow_direct_descriptors(both):
    scene = both()
    vmm = scene.vmm().setup(queues=1)
    queue = vmm.queues[0]
    a, b = vmm.ram.alloc(64), vmm.ram.alloc(64)
    data = os.urandom(64)
    vmm.ram.write(a, data)
    vmm.ram.expect(b, data)
    head = queue.ring.add([(a, 32, 0), queue.indirect(
        [(a + 32, 32, 0), (b, 64, WRITE)])])
    queue.publish()
    assert queue.wait_used() == [(head, 64)]
    vmm.ram.check()


@pytest.mark.parametrize("num", [1, 2, 4, 1024])
def test_queue_sizes(both, num):
    scene = both()
    vmm = scene.vmm().setup(queues=1, num=num)
    queue = vmm.queues[0]
    for n in range(2 * num if num < 5 else 8):
        a, b = vmm.ram.alloc(40), vmm.ram.alloc(40)
        if num == 1:
            round_trip(queue, [(a, 40)], [(b, 40)], indirect=True)
        else:
            round_trip(queue, [(a, 40)], [(b, 40)])
    scene.backend_is_happy()


def test_full_ring_of_single_descriptor_requests(both):
    scene = both()
    vmm = scene.vmm().setup(queues=1, num=128)
    queue = vmm.queues[0]
    for _ in range(3):
        descs = []
        for n in range(128):
            a, b = vmm.ram.alloc(32), vmm.ram.alloc(32)
            descs.append(request(queue, [(a, 16), (a + 16, 16)],
                                 [(b, 8), (b + 8, 24)], indirect=True))
        queue.publish()
        assert sorted(queue.wait_used(128)) == sorted(descs)
    vmm.ram.check()
    scene.backend_is_happy()


def test_eight_queues_at_once(both):
    scene = both()
    vmm = scene.vmm().setup(queues=8)
    for _ in range(3):
        heads = []
        for queue in vmm.queues:
            a, b = vmm.ram.alloc(500), vmm.ram.alloc(500, bank=1)
            heads.append(request(queue, [(a, 500)], [(b, 500)]))
            queue.publish()
        for queue, head in zip(vmm.queues, heads):
            assert queue.wait_used() == [head]
    vmm.ram.check()
    scene.backend_is_happy()


@pytest.mark.parametrize("add_mem_reg", [False, True])
def test_memory_by_table_or_region_by_region(both, add_mem_reg):
    scene = both()
    vmm = scene.vmm(add_mem_reg=add_mem_reg).setup(queues=2)
    for bank in range(3):
        vmm.queues[bank % 2].echo(3000, bank=bank)
    vmm.ram.check()
    # Either way the backend was told of one region: the pool.
    assert len(scene.device.session.mem) == 1


def test_memory_is_added_and_removed_under_running_queues(both):
    scene = both("--pool-size=8M")
    ram = GuestRam(LAYOUT[:2])
    vmm = scene.vmm(ram=ram, add_mem_reg=True).setup(queues=2)
    late = GuestRam(LAYOUT[2:])
    bank = late.banks[0]
    queue = vmm.queues[0]
    for _ in range(3):
        assert vmm.fe.add_mem_reg(bank.region, bank.fd) == 0
        ram.banks.append(bank)
        ram.next[2] = late.next[0]
        queue.echo(1000, bank=2)
        ram.check()
        ram.banks.pop()
        assert vmm.fe.rem_mem_reg(bank.region) == 0
        queue.echo(1000)
    # Gone is gone: what lay there is an address outside memory now.
    mark = len(scene.guard.lines)
    queue.ring.add([(bank.region.guest_address, 64, 0)])
    queue.publish()
    scene.guard.wait_line(r"queue 0.*0x100000000", mark)
    vmm.queues[1].echo()
    ram.check()
    late.check()
    late.close()


@pytest.mark.parametrize("used", [0, 1, 99, 100, 101, 4095, 4096])
def test_used_len_is_how_much_is_copied_back(both, used):
    scene = both()
    vmm = scene.vmm().setup(queues=1)
    queue = vmm.queues[0]
    # The device fills everything, and says that it wrote less.
    fill = bytes([0xdb]) * 4096

    def short(session, vring, chain):
        vring.ring.scatter(chain, fill)
        vring.ring.push(chain.head, used)

    scene.device.on_request = short
    a, b = vmm.ram.alloc(100), vmm.ram.alloc(3996, bank=2)
    head = queue.ring.add([(a, 100, WRITE), (b, 3996, WRITE)])
    queue.publish()
    assert queue.wait_used() == [(head, used)]
    vmm.ram.expect(a, fill[:min(100, used)])
    vmm.ram.expect(b, fill[:max(0, used - 100)])
    vmm.ram.check()


def test_queues_stop_and_go_on_where_they_were(both):
    scene = both()
    vmm = scene.vmm().setup(queues=2)
    done = 0
    for _ in range(4):
        for _ in range(5):
            vmm.queues[0].echo()
            done += 1
        assert vmm.queues[0].stop() == done
        vmm.queues[1].echo()  # is not concerned
        # A stopped queue does nothing.
        src, dst = vmm.ram.alloc(64), vmm.ram.alloc(64)
        head, length = request(vmm.queues[0], [(src, 64)], [(dst, 64)])
        vmm.queues[0].ring.publish()
        vmm.queues[0].kick()
        vmm.queues[1].echo()
        assert vmm.queues[0].ring.used_idx == done
        # What was posted meanwhile is found at the start.
        vmm.queues[0].start()
        vmm.queues[0].kick()
        assert vmm.queues[0].wait_used() == [(head, length)]
        done += 1
    vmm.ram.check()
    scene.backend_is_happy()


def test_queues_restart_at_other_addresses_and_sizes(both):
    scene = both()
    vmm = scene.vmm().setup(queues=1, num=16)
    for num in (32, 64, 8):
        vmm.queues[0].echo()
        vmm.queues[0].stop()
        vmm.queues.pop().close()
        queue = vmm.add_queue(num=num)
        queue.start()
        queue.echo()
    vmm.ram.check()
    scene.backend_is_happy()


def test_device_reset_begins_anew(both):
    scene = both()
    vmm = scene.vmm().setup(queues=2)
    assert vmm.has(Protocol.RESET_DEVICE)
    for _ in range(3):
        for queue in vmm.queues:
            queue.echo()
        assert vmm.fe.reset_device() == 0
        assert vmm.fe.set_features(vmm.features) == 0
        for queue in vmm.queues:
            queue.make_ring(0)
            queue.start()
        vmm.driver_ok()
    for queue in vmm.queues:
        queue.echo()
    vmm.ram.check()
    scene.backend_is_happy()


def test_config_space_is_the_backends(both):
    scene = both()
    vmm = scene.vmm().setup(queues=1)
    device = scene.device
    for offset, size in ((0, 1), (0, 64), (13, 9), (63, 1)):
        assert vmm.fe.get_config(offset, size) == bytes(
            device.config[offset:offset + size])
    assert vmm.fe.set_config(5, b"moat") in (0, None)
    vmm.queues[0].echo()
    assert bytes(device.config[5:9]) == b"moat"
    assert vmm.fe.get_config(4, 6) == bytes(device.config[4:10])
    # Beyond the end is the backend's to refuse; the session goes on.
    assert vmm.fe.get_config(60, 8) is None
    vmm.queues[0].echo()


@pytest.mark.parametrize("need_reply", [False, True])
def test_config_changes_reach_the_vmm(both, need_reply):
    scene = both()
    vmm = scene.vmm().setup(queues=1)
    for _ in range(3):
        scene.device.run(
            lambda: scene.device.session.config_change(need_reply))
        vmm.config_changed()
        if need_reply:
            reply = vu.recv_msg(scene.device.session.channel,
                                vu.deadline_in(5))
            assert reply.request == vu.BackendRequest.CONFIG_CHANGE_MSG
            assert reply.flags & vu.REPLY and reply.u64 == 0
    vmm.queues[0].echo()


def test_a_disabled_queue_waits(both):
    scene = both()
    vmm = scene.vmm().setup(queues=2)
    queue, other = vmm.queues
    queue.echo()
    assert vmm.fe.set_vring_enable(0, 0) == 0
    src, dst = vmm.ram.alloc(64), vmm.ram.alloc(64)
    head, length = request(queue, [(src, 64)], [(dst, 64)])
    queue.ring.publish()
    queue.kick()
    other.echo()
    other.echo()
    assert queue.ring.used_idx == 1
    assert vmm.fe.set_vring_enable(0, 1) == 0
    assert queue.wait_used() == [(head, length)]
    vmm.ram.check()
    scene.backend_is_happy()


def test_a_vmm_without_protocol_features(both):
    scene = both()
    vmm = scene.vmm(features=OFFERABLE & ~mask(Feature.PROTOCOL_FEATURES))
    vmm.setup(queues=2)
    for queue in vmm.queues:
        queue.echo()
    vmm.ram.check()
    scene.backend_is_happy()


def test_a_backend_without_protocol_features(both):
    scene = both(features=FEATURES & ~mask(Feature.PROTOCOL_FEATURES))
    vmm = scene.vmm().setup(queues=1)
    vmm.queues[0].echo()
    vmm.ram.check()
    scene.backend_is_happy()


def test_one_vmm_after_another(both):
    scene = both()
    for n in range(5):
        vmm = scene.vmm().setup(queues=2)
        for queue in vmm.queues:
            queue.echo()
        vmm.ram.check()
        if n % 2:  # an orderly end, or none
            for queue in vmm.queues:
                queue.stop()
        session = scene.device.session
        vmm.close()
        vmm.ram.close()
        assert session.closed.wait(10)
    assert len(scene.device.sessions) >= 5
    scene.backend_is_happy()


def test_a_pool_of_1_mib_carries_4_mib_of_requests(both):
    scene = both("--pool-size=1M")
    vmm = scene.vmm().setup(queues=2, num=128)
    queue, other = vmm.queues
    heads = []
    size = 32 * 1024
    ram = vmm.ram
    for n in range(60):
        src = ram.alloc(size, bank=n % 2)
        heads.append(request(queue, [(src, size)], []))
    queue.publish()
    other.echo()  # is not starved
    assert sorted(queue.wait_used(60)) == sorted((h, 0) for h, _ in heads)
    ram.check()
    scene.backend_is_happy()


def test_a_request_that_never_fits_names_the_size_it_needs(both):
    scene = both("--pool-size=1M")
    vmm = scene.vmm().setup(queues=2)
    queue, other = vmm.queues
    mark = len(scene.guard.lines)
    src = vmm.ram.alloc(3 << 19)
    queue.ring.add([(src, 3 << 19, 0)])
    queue.publish()
    line = scene.guard.wait_line(r"queue 0\b", mark)
    assert "--pool-size" in line, line
    other.echo()
    assert scene.guard.complaints(mark) == [line]
    vmm.ram.check()
    scene.backend_is_happy()
