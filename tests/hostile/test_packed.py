# SPDX-License-Identifier: Apache-2.0
"""Packed rings on either leg: good peers, a hostile driver and a hostile
backend. What goes on beside the ring is the same as with split rings, and is
tested there."""
import itertools
import os

import pytest

from aftermath import one_line, rest_is_fine
from backend import FEATURES
from guest import OFFERABLE
from packed_ring import (AVAIL, DESC, INDIRECT, NEXT, START, USED, WRITE,
                         PackedDesc, step)
from test_evil_driver import NUM, good_chain, value
from test_traffic import round_trip
from vhost_user import Feature, mask

PACKED = mask(Feature.RING_PACKED)
EVENT_IDX = mask(Feature.EVENT_IDX)
TABLES = mask(Feature.INDIRECT_DESC)


# ---- good peers ----

@pytest.mark.parametrize("front,back,ring_bits", [
    (a, b, c | d) for a, b, c, d in itertools.product(
        (0, PACKED), (0, PACKED), (0, EVENT_IDX), (0, TABLES)) if a | b])
def test_the_two_legs_have_formats_of_their_own(make_scene, plain, front, back,
                                                ring_bits):
    keep = ~(EVENT_IDX | TABLES) | ring_bits
    scene = make_scene(plain, "--pool-size=8M",
                       features=FEATURES & keep | back)
    vmm = scene.vmm(features=OFFERABLE & keep | front)
    # Only a packed ring may have a size that is no power of two.
    vmm.setup(queues=1, num=11 if front else 16)
    assert vmm.offered & PACKED
    assert vmm.features & PACKED == front
    assert scene.device.session.features & PACKED == back
    queue = vmm.queues[0]
    for n in range(60):
        a, b, c = (vmm.ram.alloc(100 + 50 * n, bank=k) for k in range(3))
        round_trip(queue, [(a, 100 + n), (b, 7)], [(c, 90 + 40 * n)],
                   indirect=False)
    ring = scene.device.session.vrings[0].ring
    assert ring.num == (11 if front and back else 16)
    scene.backend_is_happy()


@pytest.mark.parametrize("num", [1, 2, 3, 100, 1024])
def test_queue_sizes(make_scene, sanitized, num):
    scene = make_scene(sanitized, "--pool-size=16M", features=FEATURES | PACKED)
    vmm = scene.vmm(features=OFFERABLE | PACKED).setup(queues=2, num=num)
    for queue in vmm.queues:
        src, dst = queue.ram.alloc(8 * num), queue.ram.alloc(8 * num)
        for _ in range(3):
            data = os.urandom(8 * num)
            queue.ram.write(src, data)
            # A full ring of requests of one descriptor, for they are tables.
            for i in range(num):
                entries = DESC.pack(src + 8 * i, 8, 0, 0) + DESC.pack(
                    dst + 8 * i, 8, 0, WRITE)
                table = queue.ram.alloc(32)
                queue.ram.write(table, entries)
                queue.ring.add([(table, 32, INDIRECT)])
            queue.publish()
            assert len(queue.wait_used(num)) == num
            queue.ram.expect(dst, data)
    vmm.ram.check()
    scene.backend_is_happy()


@pytest.mark.parametrize("front,back", [(PACKED, 0), (0, PACKED),
                                        (PACKED, PACKED)])
def test_queues_stop_and_go_on_where_they_were(make_scene, sanitized, front,
                                               back):
    scene = make_scene(sanitized, "--pool-size=8M", features=FEATURES | back)
    vmm = scene.vmm(features=OFFERABLE | front).setup(queues=1, num=8)
    queue = vmm.queues[0]
    pos = START
    for n in range(10):
        for _ in range(n % 4):
            queue.echo()
            pos = step(pos, 2, 8)
        base = queue.stop()
        if front:
            assert base == pos | pos << 16
        queue.start()
    vmm.ram.check()
    scene.backend_is_happy()


def test_what_the_backend_never_took_is_served_after_a_restart(make_scene,
                                                               sanitized):
    scene = make_scene(sanitized, "--device=console", "--pool-size=8M",
                       features=FEATURES | PACKED)
    vmm = scene.vmm(features=OFFERABLE | PACKED).setup(queues=1, num=16)
    queue = vmm.queues[0]
    queue.echo()
    scene.device.on_kick = lambda session, vring: None
    scene.device.run(lambda: None)  # a kick is not being served any more
    data = os.urandom(64)
    src, dst = queue.ram.alloc(64), queue.ram.alloc(64)
    queue.ram.write(src, data)
    for _ in range(3):
        queue.ring.add([(src, 64, 0), (dst, 64, WRITE)])
    queue.publish()
    assert queue.stop() == (START + 2) | (START + 2) << 16
    scene.device.good()
    queue.start()
    queue.ram.expect(dst, data)
    assert [n for _, n in queue.wait_used(3)] == [64] * 3
    vmm.ram.check()
    scene.backend_is_happy()


# ---- a hostile driver ----
# Each prepares the ring and returns what the log line has to name.

def list_longer_than_the_ring(queue):
    src, _ = good_chain(queue)
    queue.ring.put([PackedDesc(src, 1, 0, NEXT)] * NUM)
    return "loops or is too long", f"limit {NUM:#x}\\b"


def list_whose_rest_is_not_available(queue):
    src, _ = good_chain(queue)
    queue.ring.put([PackedDesc(src, 1, 0, NEXT),
                    PackedDesc(src, 1, 0, AVAIL | USED)])
    return ("wrong AVAIL or USED bits",)


def list_whose_rest_is_used(queue):
    src, _ = good_chain(queue)
    queue.ring.put([PackedDesc(src, 1, 0, NEXT), PackedDesc(src, 1, 0, USED)])
    return ("wrong AVAIL or USED bits",)


def list_that_runs_into_one_outstanding(queue):
    src, _ = good_chain(queue)
    # The rest of the ring and more, with one list at the backend.
    queue.vmm.hold()
    queue.ring.put([PackedDesc(src, 1, 5)])
    queue.publish()
    queue.vmm.taken()
    queue.ring.put([PackedDesc(src, 1, 6, NEXT)] * NUM)
    return "more descriptors available than are free", f"limit {NUM - 1:#x}\\b"


def id_out_of_range(queue):
    src, _ = good_chain(queue)
    queue.ring.put([PackedDesc(src, 1, NUM)])
    return "buffer id", value(NUM)


def id_ffff(queue):
    src, _ = good_chain(queue)
    queue.ring.put([PackedDesc(src, 1, 0xffff)])
    return "buffer id", value(0xffff)


def id_twice(queue):
    src, _ = good_chain(queue)
    queue.vmm.hold()
    queue.ring.put([PackedDesc(src, 1, 7)])
    queue.publish()
    queue.vmm.taken()
    queue.ring.put([PackedDesc(src, 1, 7)])
    return "still outstanding", value(7)


def table_in_a_list(queue):
    src, _ = good_chain(queue)
    queue.ring.put([PackedDesc(src, 16, 0, NEXT),
                    PackedDesc(src, 16, 0, INDIRECT)])
    return ("indirect descriptor with NEXT",)


def table_before_a_list(queue):
    src, _ = good_chain(queue)
    queue.ring.put([PackedDesc(src, 16, 0, INDIRECT | NEXT),
                    PackedDesc(src, 16)])
    return ("indirect descriptor with NEXT",)


def table_of_no_whole_descriptors(queue):
    src, _ = good_chain(queue)
    queue.ring.put([PackedDesc(src, 40, 0, INDIRECT)])
    return "length of an indirect table", value(40)


def table_of_nothing(queue):
    src, _ = good_chain(queue)
    queue.ring.put([PackedDesc(src, 0, 0, INDIRECT)])
    return "length of an indirect table", value(0)


def table_of_more_than_any_device_takes(queue):
    table = queue.ram.alloc(16 * 2000)
    queue.ring.put([PackedDesc(table, 16 * 2000, 0, INDIRECT)])
    return "too long", "limit 0x400\\b"


def readable_after_writable(queue):
    src, dst = good_chain(queue)
    queue.ring.put([PackedDesc(dst, 1, 0, WRITE | NEXT), PackedDesc(src, 1)])
    return ("readable descriptor after a writable one",)


def address_outside_memory(queue):
    queue.ring.put([PackedDesc(0x7fff_0000_0000, 1)])
    return "outside guest memory", value(0x7fff_0000_0000)


def length_ffffffff(queue):
    src, _ = good_chain(queue)
    queue.ring.put([PackedDesc(src, 0xffffffff)])
    return "outside guest memory", value(src)


def reserved_event_flags(queue):
    src, _ = good_chain(queue)
    queue.ring.put([PackedDesc(src, 1)])
    queue.ring.driver_event[1] = 3
    return "driver's event structure", value(3)


ATTACKS = [list_longer_than_the_ring, list_whose_rest_is_not_available,
           list_whose_rest_is_used, list_that_runs_into_one_outstanding,
           id_out_of_range, id_ffff, id_twice, table_in_a_list,
           table_before_a_list, table_of_no_whole_descriptors,
           table_of_nothing, table_of_more_than_any_device_takes,
           readable_after_writable, address_outside_memory, length_ffffffff,
           reserved_event_flags]


@pytest.fixture
def packed(make_scene, sanitized):
    """A scene with packed rings on both legs, and two running queues."""
    scene = make_scene(sanitized, "--device=console", "--pool-size=8M",
                       features=FEATURES | PACKED)
    vmm = scene.running(queues=2, num=NUM,
                        vmm={"features": OFFERABLE | PACKED})

    def hold():
        """The backend keeps what it takes from queue 0."""
        def on_request(session, vring, chain):
            if vring.index:
                session.backend.good_request(session, vring, chain)

        scene.device.good_request = scene.device.on_request
        scene.device.on_request = on_request
        scene.device.run(lambda: None)
        vmm.served = scene.device.served

    def taken():
        scene.device.run(lambda: None)
        for _ in range(1000):
            if scene.device.served > vmm.served:
                return
            vmm.fe.get_features()
        raise AssertionError("the backend took nothing")

    vmm.hold, vmm.taken = hold, taken
    return scene, vmm


@pytest.mark.parametrize("attack", ATTACKS, ids=[f.__name__ for f in ATTACKS])
def test_malformed_ring_breaks_its_queue_only(packed, witness, attack):
    scene, vmm = packed
    bad, other = vmm.queues
    mark = len(scene.guard.lines)
    texts = attack(bad)
    bad.ring.publish()
    bad.kick()
    assert bad.erred(), "the err eventfd was not signalled"
    other.echo()
    one_line(scene, mark, r"queue 0\b", *texts)
    assert vmm.fe.get_status() & 0x40, "DEVICE_NEEDS_RESET"
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


# ---- a hostile backend ----

def give(session, vring, *used):
    """Used descriptors as they are; the next one begins @count on."""
    for ident, length, flags, count in used:
        pos = vring.ring.next_used
        bits = AVAIL | USED if pos & START else 0
        vring.ring.put(ident, length, flags | bits, count)
    vring.ring.publish()
    session.call(vring)


def used_id_unknown(session, vring):
    chain = vring.ring.pop()
    give(session, vring, ((chain.head + 1) % NUM, 64, WRITE, 2))


def used_id_out_of_range(session, vring):
    vring.ring.pop()
    give(session, vring, (NUM, 64, WRITE, 2))


def used_id_ffff(session, vring):
    vring.ring.pop()
    give(session, vring, (0xffff, 64, WRITE, 2))


def used_id_twice(session, vring):
    chain = vring.ring.pop()
    _, count = vring.ring.outstanding[chain.head]
    give(session, vring, (chain.head, 64, WRITE, count),
         (chain.head, 64, WRITE, count))


def used_where_nothing_was_posted(session, vring):
    chain = vring.ring.pop()
    vring.ring.push(chain.head, 64)
    give(session, vring, (0, 0, 0, 1))




LIES = [
    (used_id_unknown, ("not outstanding",)),
    (used_id_out_of_range, ("out of range", value(NUM))),
    (used_id_ffff, ("out of range", value(0xffff))),
    (used_id_twice, ("not outstanding",)),
    (used_where_nothing_was_posted, ("not outstanding",)),
]


@pytest.mark.parametrize("lie,texts", LIES, ids=[f.__name__ for f, _ in LIES])
def test_used_descriptor_that_lies_breaks_its_queue_only(
        packed, witness, lie, texts):
    scene, vmm = packed
    bad, other = vmm.queues
    mark = len(scene.guard.lines)
    scene.device.on_kick = lambda s, v: (
        lie(s, v) if v.index == 0 else s.process(v))
    scene.device.run(lambda: None)
    src, dst = good_chain(bad)
    bad.ring.add([(src, 64, 0), (dst, 64, WRITE)])
    bad.publish()
    assert bad.erred(), "the err eventfd was not signalled"
    other.echo()
    one_line(scene, mark, r"queue 0\b", *texts)
    assert vmm.fe.get_status() & 0x40, "DEVICE_NEEDS_RESET"
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_reserved_event_flags_of_the_backend_break_its_queue_only(
        packed, witness):
    scene, vmm = packed
    bad, other = vmm.queues
    mark = len(scene.guard.lines)
    scene.device.run(lambda: scene.device.session.vrings[0]
                     .ring.device_event.__setitem__(1, 3))
    src, dst = good_chain(bad)
    bad.ring.add([(src, 64, 0), (dst, 64, WRITE)])
    bad.kick()
    bad.publish()
    bad.kick()
    assert bad.erred(), "the err eventfd was not signalled"
    other.echo()
    one_line(scene, mark, r"queue 0\b", "device's event structure", value(3))
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


@pytest.mark.parametrize("length,flags,copied", [
    (0xffffffff, WRITE, 64), (65, WRITE, 64), (10, WRITE, 10), (0, WRITE, 0),
    (64, 0, 0), (64, WRITE | NEXT | INDIRECT, 64)])
def test_used_length_is_clamped_and_counts_with_write_only(
        packed, length, flags, copied):
    scene, vmm = packed
    queue = vmm.queues[0]

    def on_request(session, vring, chain):
        ring = vring.ring
        ring.scatter(chain, bytes(64))
        _, count = ring.outstanding.pop(chain.head)
        give(session, vring, (chain.head, length, flags, count))

    scene.device.on_request = on_request
    src, dst = queue.ram.alloc(64), queue.ram.alloc(64)
    head = queue.ring.add([(src, 64, 0), (dst, 64, WRITE)])
    queue.ram.expect(dst, bytes(copied))
    queue.publish()
    assert queue.wait_used() == [(head, copied)]
    vmm.ram.check()
    scene.backend_is_happy()
