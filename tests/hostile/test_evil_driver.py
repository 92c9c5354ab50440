# SPDX-License-Identifier: Apache-2.0
"""A hostile guest: everything that it can put into a ring.

The queue it happens on breaks, with one log line; nothing else does.
"""
import os

import pytest

import vhost_user as vu
from aftermath import one_line, rest_is_fine
from backend import FEATURES, echo
from guest import HOLE, LAYOUT, MIB, OFFERABLE, GuestRam
from split_ring import DESC, INDIRECT, NEXT, WRITE, Desc
from vhost_user import Feature, mask

NUM = 64


def value(n):
    """How a log line tells the value that was found."""
    return f"value {n:#x}\\b"


def good_chain(queue, size=64):
    """Addresses of a readable and a writable buffer; the latter is noted as
    one that the device may write."""
    src, dst = queue.ram.alloc(size), queue.ram.alloc(size)
    queue.ram.device_may_write(dst, size)
    return src, dst


def raw_chain(queue, *descs):
    """Put descriptors at 0, 1, .. exactly as given and post head 0."""
    for i, desc in enumerate(descs):
        queue.ring.set_desc(i, desc)
    queue.ring.post(0)


def raw_table(queue, *descs):
    """An indirect table exactly as given; returns its address."""
    table = queue.ram.alloc(16 * len(descs))
    queue.ram.write(table, b"".join(DESC.pack(*d) for d in descs))
    return table


# Each attack prepares the ring and returns what the log line has to name.
# Publishing is done by the caller.

def descriptor_that_names_itself(queue):
    src, _ = good_chain(queue)
    raw_chain(queue, Desc(src, 64, NEXT, 0))
    return "loops or is too long", f"limit {NUM:#x}\\b"


def descriptors_in_a_circle(queue):
    src, _ = good_chain(queue)
    raw_chain(queue, Desc(src, 64, NEXT, 1), Desc(src, 64, NEXT, 2),
              Desc(src, 64, NEXT, 1))
    return "loops or is too long", f"limit {NUM:#x}\\b"


def circle_of_empty_descriptors(queue):
    src, _ = good_chain(queue)
    raw_chain(queue, Desc(src, 0, NEXT, 1), Desc(src, 0, NEXT, 0))
    return "loops or is too long", f"limit {NUM:#x}\\b"


def circle_of_writable_descriptors(queue):
    _, dst = good_chain(queue)
    raw_chain(queue, Desc(dst, 64, NEXT | WRITE, 1),
              Desc(dst, 64, NEXT | WRITE, 0))
    return "loops or is too long", f"limit {NUM:#x}\\b"


def circle_in_an_indirect_table(queue):
    src, _ = good_chain(queue)
    table = raw_table(queue, Desc(src, 8, NEXT, 1), Desc(src, 8, NEXT, 0))
    raw_chain(queue, Desc(table, 32, INDIRECT))
    return "loops or is too long", "limit 0x2\\b"


def circle_of_empty_descriptors_in_a_table(queue):
    src, _ = good_chain(queue)
    table = raw_table(queue, Desc(src, 0, NEXT, 1), Desc(src, 0, NEXT, 0))
    raw_chain(queue, Desc(table, 32, INDIRECT))
    return "loops or is too long", "limit 0x2\\b"


def head_out_of_range(queue):
    queue.ring.post(NUM)
    return "head", value(NUM)


def head_ffff(queue):
    queue.ring.post(0xffff)
    return "head", value(0xffff)


def next_out_of_range(queue):
    src, _ = good_chain(queue)
    raw_chain(queue, Desc(src, 64, NEXT, NUM))
    return "next", value(NUM)


def next_ffff(queue):
    src, _ = good_chain(queue)
    raw_chain(queue, Desc(src, 64, NEXT, 0xffff))
    return "next", value(0xffff)


def next_out_of_range_in_a_table(queue):
    src, _ = good_chain(queue)
    # 3 is a descriptor of the ring, but not one of the table.
    table = raw_table(queue, Desc(src, 8, NEXT, 3), Desc(src, 8))
    raw_chain(queue, Desc(table, 32, INDIRECT))
    return "next", value(3)


def chain_of_more_descriptors_than_any_device_takes(queue):
    src, _ = good_chain(queue)
    n = 2000
    table = raw_table(queue, *[Desc(src, 1, NEXT if i + 1 < n else 0,
                                    (i + 1) % n) for i in range(n)])
    raw_chain(queue, Desc(table, 16 * n, INDIRECT))
    return "too long", "limit 0x400\\b"


def length_ffffffff(queue):
    src, _ = good_chain(queue)
    raw_chain(queue, Desc(src, 0xffffffff))
    return ("outside guest memory", value(src))


def two_lengths_that_sum_over_4_gib(queue):
    src, dst = good_chain(queue)
    raw_chain(queue, Desc(src, 64, NEXT, 1),
              Desc(dst, 0xffffffff, WRITE))
    return ("2\\^32|outside guest memory",)


def address_plus_length_wraps(queue):
    raw_chain(queue, Desc(2 ** 64 - 4096, 8192))
    return "outside guest memory", value(0xfffffffffffff000)


def address_plus_length_wraps_writable(queue):
    raw_chain(queue, Desc(2 ** 64 - 4096, 8192, WRITE))
    return "outside guest memory", value(0xfffffffffffff000)


def address_plus_length_is_2_to_the_64(queue):
    raw_chain(queue, Desc(2 ** 64 - 4096, 4096, WRITE))
    return "outside guest memory", value(0xfffffffffffff000)


def address_outside_memory(queue):
    raw_chain(queue, Desc(0xdead_0000_0000, 64, WRITE))
    return "outside guest memory", value(0xdead00000000)


def address_in_a_hole(queue):
    raw_chain(queue, Desc(HOLE, 64, WRITE))
    return "outside guest memory", value(HOLE)


def address_in_a_hole_readable(queue):
    raw_chain(queue, Desc(HOLE, 64))
    return "outside guest memory", value(HOLE)


def buffer_that_runs_from_memory_into_a_hole(queue):
    end = LAYOUT[1].guest_address + LAYOUT[1].size
    raw_chain(queue, Desc(end - 32, 64, WRITE))
    return "outside guest memory", value(end - 32)


def user_address_in_a_descriptor(queue):
    raw_chain(queue, Desc(LAYOUT[0].user_address + 4096, 64, WRITE))
    return "outside guest memory", value(LAYOUT[0].user_address + 4096)


def good_segments_before_a_bad_one(queue):
    src, dst = good_chain(queue)
    raw_chain(queue, Desc(src, 64, NEXT, 1), Desc(dst, 64, WRITE | NEXT, 2),
              Desc(HOLE, 64, WRITE))
    return "outside guest memory", value(HOLE)


def writable_before_readable(queue):
    src, dst = good_chain(queue)
    raw_chain(queue, Desc(dst, 64, WRITE | NEXT, 1), Desc(src, 64))
    return ("readable descriptor after a writable",)


def writable_before_readable_in_a_table(queue):
    src, dst = good_chain(queue)
    table = raw_table(queue, Desc(dst, 64, WRITE | NEXT, 1), Desc(src, 64))
    raw_chain(queue, Desc(table, 32, INDIRECT))
    return ("readable descriptor after a writable",)


def readable_table_after_writable(queue):
    src, dst = good_chain(queue)
    table = raw_table(queue, Desc(src, 64))
    raw_chain(queue, Desc(dst, 64, WRITE | NEXT, 1),
              Desc(table, 16, INDIRECT))
    return ("readable descriptor after a writable",)


def nested_indirect(queue):
    src, _ = good_chain(queue)
    inner = raw_table(queue, Desc(src, 64))
    table = raw_table(queue, Desc(src, 8, NEXT, 1), Desc(inner, 16, INDIRECT))
    raw_chain(queue, Desc(table, 32, INDIRECT))
    return ("inside an indirect",)


def table_that_refers_to_itself(queue):
    table = queue.ram.alloc(16)
    queue.ram.write(table, DESC.pack(table, 16, INDIRECT, 0))
    raw_chain(queue, Desc(table, 16, INDIRECT))
    return ("inside an indirect",)


def indirect_with_next(queue):
    src, _ = good_chain(queue)
    table = raw_table(queue, Desc(src, 64))
    raw_chain(queue, Desc(table, 16, INDIRECT | NEXT, 1), Desc(src, 64))
    return ("indirect descriptor with NEXT",)


def table_of_length(length):
    def attack(queue):
        src, _ = good_chain(queue)
        table = raw_table(queue, Desc(src, 64), Desc(src, 64))
        raw_chain(queue, Desc(table, length, INDIRECT))
        return "length of an indirect table", value(length)
    attack.__name__ = f"indirect_table_of_{length}_bytes"
    return attack


def table_in_a_hole(queue):
    raw_chain(queue, Desc(HOLE, 32, INDIRECT))
    return "outside guest memory", value(HOLE)


def table_that_runs_into_a_hole(queue):
    end = LAYOUT[1].guest_address + LAYOUT[1].size
    src, _ = good_chain(queue)
    # Only its second half is missing, and the first does not refer to it.
    queue.ram.write(end - 16, DESC.pack(src, 8, 0, 0))
    raw_chain(queue, Desc(end - 16, 32, INDIRECT))
    return "outside guest memory", value(end - 16)


def table_that_wraps(queue):
    raw_chain(queue, Desc(2 ** 64 - 16, 32, INDIRECT))
    return "outside guest memory", value(0xfffffffffffffff0)


def avail_idx_jumps(queue):
    queue.ring.next_avail += NUM + 1
    return "avail idx", value(NUM + 1)


def avail_idx_runs_backwards(queue):
    queue.ring.next_avail -= 1
    return "avail idx", value(0xffff)


def same_head_twice_at_once(queue):
    src, dst = good_chain(queue)
    raw_chain(queue, Desc(src, 64, NEXT, 1), Desc(dst, 64, WRITE))
    queue.ring.post(0)
    return ("head posted while",)


ATTACKS = [
    descriptor_that_names_itself, descriptors_in_a_circle,
    circle_of_empty_descriptors, circle_of_writable_descriptors,
    circle_in_an_indirect_table, circle_of_empty_descriptors_in_a_table,
    head_out_of_range, head_ffff, next_out_of_range, next_ffff,
    next_out_of_range_in_a_table,
    chain_of_more_descriptors_than_any_device_takes,
    length_ffffffff,
    two_lengths_that_sum_over_4_gib, address_plus_length_wraps,
    address_plus_length_wraps_writable, address_plus_length_is_2_to_the_64,
    address_outside_memory, address_in_a_hole, address_in_a_hole_readable,
    buffer_that_runs_from_memory_into_a_hole, user_address_in_a_descriptor,
    good_segments_before_a_bad_one, writable_before_readable,
    writable_before_readable_in_a_table, readable_table_after_writable,
    nested_indirect, table_that_refers_to_itself, indirect_with_next,
    *map(table_of_length, (0, 8, 15, 17, 24, 0xffffffff, 0x80000010)),
    table_in_a_hole, table_that_runs_into_a_hole, table_that_wraps,
    avail_idx_jumps, avail_idx_runs_backwards, same_head_twice_at_once,
]


def hold_requests(scene):
    """The device takes requests and finishes none."""
    scene.device.on_request = lambda *_: None


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.__name__)
def test_malformed_ring_breaks_its_queue_only(scene, witness, attack):
    vmm = scene.running(queues=2)
    bad, other = vmm.queues
    mark = len(scene.guard.lines)
    if attack is same_head_twice_at_once:
        hold_requests(scene)
    texts = attack(bad)
    bad.ring.publish()
    bad.kick()
    assert bad.erred(), "the err eventfd was not signalled"
    scene.device.good()
    other.echo()
    one_line(scene, mark, r"queue 0\b", *texts)
    # The broken queue stays broken, however often it is kicked, and says no
    # more; its neighbour goes on.
    bad.kick()
    other.echo()
    bad.kick()
    other.echo()
    assert len(scene.guard.complaints(mark)) == 1
    assert bad.ring.used_idx == 1, "a broken ring was written"
    vmm.ram.check()
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


@pytest.mark.parametrize("attack", [
    head_ffff, avail_idx_jumps, address_in_a_hole],
    ids=lambda a: a.__name__)
def test_device_needs_reset_is_shown_and_reset_heals(scene, attack):
    vmm = scene.running(queues=2)
    bad, other = vmm.queues
    attack(bad)
    bad.ring.publish()
    bad.kick()
    assert bad.erred()
    assert vmm.fe.get_status() & 0x40, "DEVICE_NEEDS_RESET"
    vmm.config_changed()  # 2.1.2: a config notification tells of it
    assert vmm.fe.reset_device() == 0
    assert not vmm.fe.get_status() & 0x40
    assert vmm.fe.set_features(vmm.features) == 0
    for queue in vmm.queues:
        queue.make_ring(0)
        queue.start()
    vmm.driver_ok()
    for queue in vmm.queues:
        queue.echo()
    vmm.ram.check()
    scene.backend_is_happy()


def test_broken_queue_heals_by_stop_and_start(scene):
    vmm = scene.running(queues=2)
    bad, other = vmm.queues
    head_ffff(bad)
    bad.ring.publish()
    bad.kick()
    assert bad.erred()
    bad.stop()
    other.echo()
    bad.make_ring(0)
    bad.start()
    bad.echo()
    other.echo()
    vmm.ram.check()
    scene.backend_is_happy()


def test_requests_before_the_malformed_one_come_back_or_stay(scene, witness):
    """What was in flight may finish; nothing is finished twice."""
    vmm = scene.running(queues=2)
    bad, other = vmm.queues
    hold_requests(scene)
    heads = []
    for _ in range(5):
        src, dst = good_chain(bad)
        heads.append(bad.ring.add([(src, 64, 0), (dst, 64, WRITE)]))
    bad.publish()
    scene.device.good()
    other.echo()
    bad.ring.post(0xffff)
    bad.ring.publish()
    bad.kick()
    assert bad.erred()
    # The device finishes them late: on a queue that is broken by now.
    vring = scene.device.session.vrings[0]

    def finish():
        for chain in list(vring.ring.outstanding.values()):
            echo(scene.device.session, vring, chain)
        vring.ring.publish()
        scene.device.session.call(vring)

    scene.device.run(finish)
    other.echo()
    ids = [ident for ident, _ in bad.ring.reap()]
    assert set(ids) <= set(heads) and len(ids) == len(set(ids))
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_total_length_over_4_gib(scene, witness):
    size = 16 * MIB
    ram = GuestRam((*LAYOUT, LAYOUT[2]._replace(
        guest_address=0x2_0000_0000, size=size, user_address=0x7e << 40)))
    vmm = scene.running(queues=2, vmm={"ram": ram})
    bad, other = vmm.queues
    mark = len(scene.guard.lines)
    n = 257
    table = raw_table(bad, *[Desc(0x2_0000_0000, size,
                                  NEXT if i + 1 < n else 0, (i + 1) % n)
                             for i in range(n)])
    raw_chain(bad, Desc(table, 16 * n, INDIRECT))
    bad.ring.publish()
    bad.kick()
    assert bad.erred()
    other.echo()
    one_line(scene, mark, r"queue 0\b", r"2\^32")
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_indirect_that_was_not_negotiated(scene, witness):
    vmm = scene.running(queues=2, vmm={
        "features": OFFERABLE & ~mask(Feature.INDIRECT_DESC)})
    bad, other = vmm.queues
    mark = len(scene.guard.lines)
    src, _ = good_chain(bad)
    table = raw_table(bad, Desc(src, 64))
    raw_chain(bad, Desc(table, 16, INDIRECT))
    bad.ring.publish()
    bad.kick()
    assert bad.erred()
    other.echo()
    one_line(scene, mark, r"queue 0\b", "indirect descriptor, not negotiated")
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_chain_that_the_backends_ring_can_not_hold(make_scene, sanitized,
                                                   witness):
    """A backend without INDIRECT_DESC can not be given a chain longer than
    its ring: then the driver is not offered tables, and may not use them."""
    scene = make_scene(
        sanitized, "--device=console",
        features=FEATURES & ~mask(Feature.INDIRECT_DESC))
    vmm = scene.running(queues=2, num=16)
    assert not vmm.offered & mask(Feature.INDIRECT_DESC)
    bad, other = vmm.queues
    mark = len(scene.guard.lines)
    src, _ = good_chain(bad)
    n = 40
    table = raw_table(bad, *[Desc(src, 1, NEXT if i + 1 < n else 0,
                                  (i + 1) % n) for i in range(n)])
    raw_chain(bad, Desc(table, 16 * n, INDIRECT))
    bad.ring.publish()
    bad.kick()
    assert bad.erred(), "it can never fit: waiting would be for ever"
    other.echo()
    one_line(scene, mark, r"queue 0\b", "not negotiated")
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


@pytest.mark.parametrize("what", ["avail_event", "used_flags", "used_ring"])
def test_driver_that_writes_the_used_ring_harms_itself_only(
        scene, witness, what):
    vmm = scene.running(queues=2)
    bad, other = vmm.queues
    ring = bad.ring
    if what == "avail_event":
        ring.avail_event = 0x7fff
    elif what == "used_flags":
        ring.used_flags = 0xffff
    else:
        ring.used_idx = 0x5555
        for i in range(NUM):
            ring.set_used(i, 0xffffffff, 0xffffffff)
    src, dst = good_chain(bad)
    ring.add([(src, 64, 0), (dst, 64, WRITE)])
    ring.publish()
    bad.kick()
    other.echo()
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_used_event_and_avail_flags_may_hold_anything(scene):
    vmm = scene.running(queues=2)
    bad, other = vmm.queues
    for n in range(200):
        bad.ring.used_event = n * 331
        bad.ring.avail_flags = n * 77 & 0xffff
        src, dst = good_chain(bad)
        bad.ring.add([(src, 64, 0), (dst, 64, WRITE)])
        bad.publish()
        # It polls: a driver that lies about events gets what it asks for.
        deadline = vu.deadline_in(10)
        while not bad.ring.reap():
            assert vu.time.monotonic() < deadline
    other.echo()
    vmm.ram.check()
    scene.backend_is_happy()


def test_kick_storm_does_not_starve_the_other_queue(scene, witness):
    vmm = scene.running(queues=2)
    bad, other = vmm.queues
    for _ in range(2000):
        bad.kick()
        if _ % 100 == 0:
            other.echo()
    os.eventfd_write(bad.kick_fd, 2 ** 63)
    other.echo()
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_rings_that_overlap(scene, witness):
    """The used ring on top of the descriptors: refused, or its own harm."""
    vmm = scene.vmm()
    vmm.negotiate()
    vmm.share_memory()
    for _ in range(2):
        vmm.add_queue()
    bad, other = vmm.queues
    other.start()
    ua = vmm.ram.user_address
    fe = vmm.fe
    assert fe.set_vring_num(0, NUM) == 0
    assert fe.set_vring_base(0, 0) == 0
    refused = (fe.set_vring_addr(0, ua(bad.desc_addr), ua(bad.desc_addr),
                                 ua(bad.avail_addr))
               or fe.set_vring_kick(0, bad.kick_fd))
    if not refused:
        fe.set_vring_call(0, bad.call_fd)
        fe.set_vring_enable(0, 1)
        src, dst = good_chain(bad)
        for _ in range(NUM // 2):
            bad.ring.add([(src, 64, 0), (dst, 64, WRITE)])
        bad.ring.publish()
        bad.kick()
    other.echo()
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


@pytest.mark.parametrize("by_table", [False, True])
@pytest.mark.parametrize("busy", [False, True])
def test_memory_of_a_running_ring_is_taken_away(scene, witness, busy,
                                                by_table):
    """The VMM's own fault: the session may end, the guard may not."""
    vmm = scene.vmm(add_mem_reg=True).setup(queues=1)
    vmm.queues[0].echo()
    vmm.add_queue(bank=2).start()
    bad, other = vmm.queues[1], vmm.queues[0]
    bad.echo()
    bank = vmm.ram.banks[2]
    src, dst = good_chain(other)
    if busy:
        # The device finishes these only when its queue is to stop.
        held = []
        scene.device.on_request = lambda s, v, c: held.append((s, v, c))
        for _ in range(4):
            bad.ring.add([(src, 64, 0), (dst, 64, WRITE)])
            bad.publish()
        deadline = vu.deadline_in(10)
        while scene.device.run(lambda: len(held)) < 4:
            assert vu.time.monotonic() < deadline

        def finish(session, msg):
            while held:
                echo(*held.pop())
            vring = session.vrings[1]
            if vring.ring:
                session.flush(vring)
            return False

        scene.device.on_message[vu.Request.GET_VRING_BASE] = finish
        # And some of them at once.
        scene.device.run(lambda: (echo(*held.pop()), None)[1])
    try:
        if by_table:
            vmm.fe.set_mem_table(vmm.ram.regions[:2], vmm.ram.fds[:2])
        else:
            vmm.fe.rem_mem_reg(bank.region)
        if not busy:
            bad.ring.add([(src, 64, 0), (dst, 64, WRITE)])
            bad.ring.publish()
        bad.kick()
        vmm.fe.get_features()
    except vu.Closed:
        pass
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)
