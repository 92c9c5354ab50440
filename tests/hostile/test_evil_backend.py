# SPDX-License-Identifier: Apache-2.0
"""A hostile backend: everything that it can put into the pool, and what it
can do to the descriptors that it was given.

A used entry that lies breaks its queue; a length that lies is clamped; guest
memory changes in outstanding writable buffers and nowhere else.
"""
import fcntl
import os
import subprocess
import sys
import threading

import pytest

import vhost_user as vu
from aftermath import one_line, rest_is_fine
from backend import FEATURES, echo
from split_ring import WRITE
from test_evil_driver import NUM, good_chain, value
from vhost_user import Feature, mask

def take(vring):
    """All chains posted so far."""
    out = []
    while (chain := vring.ring.pop()) is not None:
        out.append(chain)
    return out


def give(session, vring, *entries, idx=None):
    """Write used entries as they are, and used idx; then call."""
    ring = vring.ring
    at = ring.next_used
    for k, (ident, length) in enumerate(entries):
        ring.set_used(at + k, ident, length)
    ring.used_idx = at + len(entries) if idx is None else idx
    session.call(vring)


# Each is a kick handler for queue 0, which has one request outstanding; with
# it goes what the log line has to name.

def used_id_unknown(session, vring):
    (chain,) = take(vring)
    taken = {chain.head}
    give(session, vring, (next(i for i in range(NUM - 1, 0, -1)
                               if i not in taken), 64))


def used_id_of_a_descriptor_that_is_no_head(session, vring):
    (chain,) = take(vring)
    give(session, vring, (vring.ring.get_desc(chain.head).next, 64))


def used_id_out_of_range(session, vring):
    take(vring)
    give(session, vring, (NUM, 64))


def used_id_ffffffff(session, vring):
    take(vring)
    give(session, vring, (0xffffffff, 64))


def used_id_that_is_right_in_16_bits(session, vring):
    (chain,) = take(vring)
    give(session, vring, (0x10000 | chain.head, 64))


def used_id_twice_at_once(session, vring):
    (chain,) = take(vring)
    give(session, vring, (chain.head, 64), (chain.head, 64))


def used_idx_jumps(session, vring):
    take(vring)
    give(session, vring, idx=vring.ring.next_used + NUM)


def used_idx_jumps_by_one_ring_and_one(session, vring):
    take(vring)
    give(session, vring, idx=vring.ring.next_used + NUM + 1)


def used_idx_runs_backwards(session, vring):
    take(vring)
    give(session, vring, idx=vring.ring.next_used - 1)


def used_idx_one_too_far(session, vring):
    (chain,) = take(vring)
    give(session, vring, (chain.head, 64), idx=vring.ring.next_used + 2)


LIES = [  # and what the log line has to name
    (used_id_unknown, ("not outstanding",)),
    (used_id_of_a_descriptor_that_is_no_head, ("not outstanding",)),
    (used_id_out_of_range, ("out of range", value(NUM))),
    (used_id_ffffffff, ("out of range", value(0xffffffff))),
    (used_id_that_is_right_in_16_bits,
     ("out of range", "value 0x100[0-9a-f]{2}\\b")),
    (used_id_twice_at_once, ("used idx|not outstanding",)),
    (used_idx_jumps, ("used idx", value(NUM))),
    (used_idx_jumps_by_one_ring_and_one, ("used idx", value(NUM + 1))),
    (used_idx_runs_backwards, ("used idx", value(0xffff))),
    (used_idx_one_too_far, ("used idx", value(2))),
]


@pytest.mark.parametrize("lie,texts", LIES, ids=[f.__name__ for f, _ in LIES])
def test_used_entry_that_lies_breaks_its_queue_only(
        make_scene, sanitized, witness, lie, texts):
    # Without tables, so that chains have more than one descriptor.
    scene = make_scene(sanitized, "--device=console", "--pool-size=8M",
                       features=FEATURES & ~mask(Feature.INDIRECT_DESC))
    vmm = scene.running(queues=2)
    bad, other = vmm.queues
    mark = len(scene.guard.lines)
    scene.device.on_kick = lambda s, v: (
        lie(s, v) if v.index == 0 else s.process(v))
    src, dst = good_chain(bad)
    bad.ring.add([(src, 64, 0), (dst, 64, WRITE)])
    bad.publish()
    assert bad.erred(), "the err eventfd was not signalled"
    other.echo()
    one_line(scene, mark, r"queue 0\b", *texts)
    assert vmm.fe.get_status() & 0x40, "DEVICE_NEEDS_RESET"
    # What it does on that queue from now on is nobody's concern.
    session = scene.device.session
    for _ in range(50):
        scene.device.run(lambda: give(session, session.vrings[0], (0, 64)))
    other.echo()
    assert len(scene.guard.complaints(mark)) == 1
    assert len(bad.ring.reap()) <= 1
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


@pytest.mark.parametrize("side", ["driver", "backend"])
def test_requests_that_wait_in_a_broken_ring_cost_nothing(
        make_scene, sanitized, witness, side):
    scene = make_scene(sanitized, "--device=console", "--pool-size=1M")
    vmm = scene.running(queues=2)
    bad, other = vmm.queues
    scene.device.on_request = lambda s, v, c: (
        None if v.index == 0 else echo(s, v, c))
    for _ in range(20):  # more than the pool holds
        src = vmm.ram.alloc(65536)
        bad.ring.add([(src, 65536, 0)])
    if side == "driver":
        bad.ring.post(0xffff)
    bad.publish()
    other.echo()
    if side == "backend":
        session = scene.device.session
        scene.device.run(lambda: give(session, session.vrings[0],
                                      (0xffff, 0)))
    else:
        # The room that the first ones leave lets the bad one come forward.
        def finish():
            vring = scene.device.session.vrings[0]
            for head in list(vring.ring.outstanding):
                vring.ring.push(head, 0)
            vring.ring.publish()
            scene.device.session.call(vring)
        scene.device.on_request = echo
        scene.device.run(finish)
    assert bad.erred()
    bad.kick()
    other.echo()
    assert scene.guard.idle_cpu(0.2) < 0.02
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_used_id_again_after_it_came_back(scene, witness):
    vmm = scene.running(queues=2)
    bad, other = vmm.queues
    mark = len(scene.guard.lines)
    seen = []

    def replay(session, vring, chain):
        seen.append(chain.head)
        if len(seen) == 1:
            echo(session, vring, chain)
            return
        # Two are outstanding now; the first id, long back, comes again.
        ghost = next(i for i in range(NUM - 1, 0, -1)
                     if i not in vring.ring.outstanding)
        vring.ring.push(ghost, 64)

    scene.device.on_request = lambda s, v, c: (
        replay if v.index == 0 else echo)(s, v, c)
    bad.echo()
    src, dst = good_chain(bad)
    bad.ring.add([(src, 64, 0), (dst, 64, WRITE)])
    bad.publish()
    assert bad.erred()
    other.echo()
    one_line(scene, mark, r"queue 0\b", "not outstanding")
    assert bad.ring.reap() == []
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


@pytest.mark.parametrize("length", [65, 4096, 0x7fffffff, 0xffffffff])
def test_used_len_beyond_the_buffer_is_clamped(scene, witness, length):
    vmm = scene.running(queues=2)
    queue, other = vmm.queues
    mark = len(scene.guard.lines)

    def lie(session, vring, chain):
        vring.ring.scatter(chain, b"\x77" * chain.writable_len)
        vring.ring.push(chain.head, length)

    scene.device.on_request = lie
    src, dst = vmm.ram.alloc(64), vmm.ram.alloc(64)
    head = queue.ring.add([(src, 64, 0), (dst, 64, WRITE)])
    queue.publish()
    assert queue.wait_used() == [(head, 64)]
    vmm.ram.expect(dst, b"\x77" * 64)
    # A request with nothing to write to.
    head = queue.ring.add([(src, 64, 0)])
    queue.publish()
    assert queue.wait_used() == [(head, 0)]
    vmm.ram.check()
    scene.device.good()
    queue.echo()
    other.echo()
    assert not scene.guard.complaints(mark)
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_used_len_0_copies_nothing(scene):
    vmm = scene.running(queues=1)
    queue = vmm.queues[0]

    def lie(session, vring, chain):
        vring.ring.scatter(chain, b"\x77" * chain.writable_len)
        vring.ring.push(chain.head, 0)

    scene.device.on_request = lie
    dst = vmm.ram.alloc(64)
    head = queue.ring.add([(dst, 64, WRITE)])
    queue.publish()
    assert queue.wait_used() == [(head, 0)]
    vmm.ram.check()


def test_writes_to_readable_buffers_do_not_reach_the_guest(scene, witness):
    vmm = scene.running(queues=1)
    queue = vmm.queues[0]

    def evil(session, vring, chain):
        for d in chain.descs:
            session.translate(d.addr, d.len)[:] = b"\x66" * d.len
        vring.ring.push(chain.head, chain.writable_len)

    scene.device.on_request = evil
    src, dst = vmm.ram.alloc(5000), vmm.ram.alloc(100)
    head = queue.ring.add([(src, 5000, 0), (dst, 100, WRITE)])
    queue.publish()
    assert queue.wait_used() == [(head, 100)]
    vmm.ram.expect(dst, b"\x66" * 100)
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_writes_after_completion_do_not_reach_the_guest(scene, witness):
    vmm = scene.running(queues=1)
    queue = vmm.queues[0]
    buffers = []

    def remember(session, vring, chain):
        buffers.extend(session.translate(d.addr, d.len)
                       for d in chain.writable)
        echo(session, vring, chain)

    scene.device.on_request = remember
    for _ in range(8):
        queue.echo(3000)
    scene.device.good()
    for view in buffers:
        view[:] = b"\x99" * len(view)
    vmm.ram.check()
    buffers.clear()
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_spurious_calls_are_harmless(scene, witness):
    vmm = scene.running(queues=2)
    session = scene.device.session
    for n in range(2000):
        os.eventfd_write(session.vrings[n % 2].call, 1)
    os.eventfd_write(session.vrings[0].call, 2 ** 63)
    for queue in vmm.queues:
        queue.echo()
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_calls_before_start_are_harmless(scene, witness):
    vmm = scene.vmm()
    vmm.negotiate()
    vmm.share_memory()
    queue = vmm.add_queue()
    queue.start(enable=False)
    vmm.fe.get_features()
    for vring in scene.device.session.vrings.values():
        if vring.call is not None:
            os.eventfd_write(vring.call, 7)
    assert vmm.fe.set_vring_enable(0, 1) == 0
    queue.echo()
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_notifications_turned_off_are_the_backends_own_loss(scene, witness):
    vmm = scene.running(queues=2)
    session = scene.device.session

    def lie():
        ring = session.vrings[0].ring
        ring.used_flags = 0xffff
        ring.avail_event = 0x7000
        ring.avail_idx = 0x1234
        for i in range(NUM):
            ring.set_avail(i, 0xffff)
            ring.set_desc(i, (2 ** 64 - 1, 0xffffffff, 0xffff, 0xffff))

    scene.device.run(lie)
    src, dst = good_chain(vmm.queues[0])
    vmm.queues[0].ring.add([(src, 64, 0), (dst, 64, WRITE)])
    vmm.queues[0].publish()
    vmm.queues[1].echo()
    vmm.close()
    scene.device.errors.clear()  # its own scribbles
    rest_is_fine(scene, witness, vmm.ram)


def blocking(fd):
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)


def test_full_kick_eventfd_does_not_block_the_guard(scene, witness):
    """File status flags are shared: the backend can clear O_NONBLOCK."""
    vmm = scene.running(queues=2)
    bad, other = vmm.queues
    session = scene.device.session
    kick = session.vrings[0].kick

    def plug():
        scene.device.unwatch(kick)
        try:
            while True:
                os.eventfd_read(kick)
        except BlockingIOError:
            pass
        blocking(kick)
        os.eventfd_write(kick, 2 ** 64 - 2)

    mark = len(scene.guard.lines)
    scene.device.run(plug)
    for _ in range(3):
        src, dst = good_chain(bad)
        bad.ring.add([(src, 64, 0), (dst, 64, WRITE)])
        bad.ring.publish()
        bad.kick()
        other.echo()
    assert vmm.fe.get_config(0, 8)
    assert bad.erred()
    one_line(scene, mark, r"queue 0\b", "kick eventfd")
    assert scene.guard.idle_cpu() < 0.02
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_call_eventfd_that_is_drained_under_the_guard(scene, witness):
    vmm = scene.running(queues=2)
    session = scene.device.session
    call = session.vrings[0].call
    blocking(call)
    stop = threading.Event()

    def race():
        poller = vu.select.poll()
        poller.register(call, vu.select.POLLIN)
        while not stop.is_set():
            os.eventfd_write(call, 1)
            if poller.poll(0):
                fcntl.fcntl(call, fcntl.F_SETFL, os.O_RDWR | os.O_NONBLOCK)
                try:
                    os.eventfd_read(call)
                except BlockingIOError:
                    pass
                blocking(call)

    # A queue that stops while requests are out waits for calls.
    scene.device.on_request = lambda s, v, c: (
        None if v.index == 0 else echo(s, v, c))
    thread = threading.Thread(target=race)
    thread.start()
    try:
        for _ in range(100):
            vmm.queues[1].echo(64)
        src, dst = good_chain(vmm.queues[0])
        vmm.queues[0].ring.add([(src, 64, 0), (dst, 64, WRITE)])
        vmm.queues[0].publish()
        vmm.queues[1].echo(64)
        vmm.queues[0].stop()
    finally:
        stop.set()
        thread.join()
    vmm.queues[1].echo()
    assert vmm.fe.get_config(0, 8)
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


@pytest.mark.parametrize("what", ["kick", "call"])
def test_backend_that_never_takes_or_closes_its_eventfds(scene, witness,
                                                         what):
    vmm = scene.running(queues=2)
    session = scene.device.session
    vring = session.vrings[0]

    def close():
        fd = getattr(vring, what)
        scene.device.unwatch(fd)
        os.close(fd)
        setattr(vring, what, None)

    scene.device.run(close)
    bad, other = vmm.queues
    for _ in range(NUM // 2):
        src, dst = good_chain(bad)
        bad.ring.add([(src, 64, 0), (dst, 64, WRITE)])
    bad.ring.publish()
    bad.kick()
    other.echo()
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_backend_that_finishes_nothing_blocks_only_its_queue(scene, witness):
    vmm = scene.running(queues=2)
    bad, other = vmm.queues
    scene.device.on_request = lambda s, v, c: (
        None if v.index == 0 else echo(s, v, c))
    for _ in range(NUM // 2):
        src, dst = good_chain(bad, 1024)
        bad.ring.add([(src, 1024, 0), (dst, 1024, WRITE)])
        bad.publish()
    for _ in range(10):
        other.echo(2000)
    assert scene.guard.idle_cpu() < 0.02
    # The queue can be stopped all the same.
    bad.stop()
    other.echo()
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


SCRIBBLER = """
import mmap, os, random, sys
fd, size, seed = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
pool = mmap.mmap(fd, size)
rng = random.Random(seed)
block = rng.randbytes(1 << 20)
print("on", flush=True)
hot = 64 * 1024
while True:
    for _ in range(50):
        at = rng.randrange(hot - 256)
        off = rng.randrange(len(block) - 256)
        pool[at:at + 256] = block[off:off + 256]
    off = rng.randrange(len(block) - hot)
    pool[:hot] = block[off:off + hot]
    at = rng.randrange(size - len(block) + 1)
    pool[at:at + len(block)] = block
"""


@pytest.mark.parametrize("seed", range(3))
def test_scribbling_over_the_whole_pool(scene, witness, seed):
    """Every byte of the pool changes all the time while the driver works."""
    vmm = scene.running(queues=4)
    for queue in vmm.queues:
        queue.buffers = [good_chain(queue, 2048) for _ in range(8)]
    session = scene.device.session
    mapped = session.mem[0]
    scene.device.on_kick = lambda s, v: s.call(v)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIBBLER, str(mapped.fd),
         str(mapped.region.size), str(seed)],
        pass_fds=[mapped.fd], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"on\n"
        rounds = 0
        deadline = vu.deadline_in(1.0)  # how long the attack lasts
        while vu.time.monotonic() < deadline:
            rounds += 1
            for queue in vmm.queues:
                # A queue may break at any time: then it is begun anew.
                if rounds % 20 == 0:
                    queue.stop()
                    queue.make_ring(0)
                    queue.start()
                if len(queue.ring.free) >= 2:
                    src, dst = queue.buffers[rounds % 8]
                    queue.ring.add([(src, 2048, 0), (dst, 2048, WRITE)])
                    queue.ring.publish()
                queue.kick()
                queue.ring.reap()
            scene.device.run(lambda: [
                session.call(v) for v in session.vrings.values()])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert rounds > 20
    vmm.close()
    scene.device.errors.clear()  # its rings were scribbled over, by itself
    rest_is_fine(scene, witness, vmm.ram)


def test_requests_that_race_with_scribbled_data_keep_to_their_buffers(
        scene, witness):
    """The device answers properly, but other bytes than it wrote may arrive:
    in the writable buffers, and nowhere else."""
    vmm = scene.running(queues=1, num=16)
    queue = vmm.queues[0]
    stop = threading.Event()
    views = []

    def scribble():
        n = 0
        while not stop.is_set():
            n += 1
            for view in list(views):
                view[:] = bytes([n & 0xff]) * len(view)

    def collect(s, vring, chain):
        views[:] = [s.translate(d.addr, d.len) for d in chain.descs]
        echo(s, vring, chain)

    scene.device.on_request = collect
    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        src, dst = good_chain(queue, 8192)
        for _ in range(100):
            head = queue.ring.add([(src, 8192, 0), (dst, 8192, WRITE)])
            queue.publish()
            assert queue.wait_used() == [(head, 8192)]
    finally:
        stop.set()
        thread.join()
        views.clear()
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)
