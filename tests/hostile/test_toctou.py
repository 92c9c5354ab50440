# SPDX-License-Identifier: Apache-2.0
"""A guest that changes descriptors after it published them, from another
processor, while requests flow."""
import random
import subprocess
import sys

import pytest

import vhost_user as vu
from aftermath import rest_is_fine
from guest import HOLE
from split_ring import DESC, INDIRECT, NEXT, WRITE, Desc

# Writes one of several 16-byte patterns to one of several places, for ever.
FLIPPER = """
import mmap, sys
fd, size = int(sys.argv[1]), int(sys.argv[2])
ram = mmap.mmap(fd, size)
turns = []
for arg in sys.argv[3:]:
    at, pattern = arg.split(":")
    turns.append((int(at), bytes.fromhex(pattern)))
view = memoryview(ram).cast("Q")
turns = [(at // 8, int.from_bytes(p[:8], "little"),
          int.from_bytes(p[8:], "little")) for at, p in turns]
print("on", flush=True)
while True:
    for at, low, high in turns:
        view[at] = low
        view[at + 1] = high
"""


class Flipper:
    def __init__(self, bank, turns):
        """@turns: (guest address, 16 bytes), all in @bank."""
        region = bank.region
        args = [f"{a - region.guest_address + region.mmap_offset}:{p.hex()}"
                for a, p in turns]
        self.process = subprocess.Popen(
            [sys.executable, "-c", FLIPPER, str(bank.fd),
             str(region.mmap_offset + region.size), *args],
            pass_fds=[bank.fd], stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"on\n"

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def test_buffers_that_move_after_publication(scene, witness, keep):
    """Every combination of what is flipped is legal; none may be mixed with
    what was checked: a length checked and a longer one used would show."""
    vmm = scene.running(queues=2)
    bad, other = vmm.queues
    ram = vmm.ram
    src, small, large = ram.alloc(16), ram.alloc(4096), ram.alloc(4096)
    ram.device_may_write(small, 4096)
    ram.device_may_write(large, 4096)
    head = bad.ring.add([(src, 16, 0), (small, 64, WRITE)])
    last = bad.ring.chains[head][1]
    bad.publish()
    bad.wait_used()
    bad.ring.set_desc(head, Desc(src, 16, NEXT, last))
    bad.ring.free = [i for i in range(64) if i not in (head, last)]
    flipper = keep(Flipper(ram.banks[0], [
        (bad.desc_addr + 16 * last, DESC.pack(small, 64, WRITE, 0)),
        (bad.desc_addr + 16 * last, DESC.pack(large, 4096, WRITE, 0))]))
    lengths = set()
    deadline = vu.deadline_in(1.0)  # how long the attack lasts
    while vu.time.monotonic() < deadline:
        bad.ring.chains[head] = [head, last]
        bad.ring.post(head)
        bad.ring.publish()
        bad.kick()
        (_, length), = bad.wait_used()
        lengths.add(length)
    flipper.close()
    assert lengths == {64, 4096}, "the flips did not come through"
    other.echo()
    vmm.close()
    rest_is_fine(scene, witness, ram)


def chaos(queue, rng):
    """Patterns for a descriptor: good, and bad in each way."""
    ram = queue.ram
    src, dst = ram.alloc(512), ram.alloc(8192)
    ram.device_may_write(dst, 8192)
    table = ram.alloc(64)
    ram.device_may_write(table, 64)  # it is flipped as well
    good = DESC.pack(src, 512, 0, 0)
    patterns = [
        good,
        DESC.pack(dst, 4096, WRITE, 0),
        DESC.pack(dst, 4096, WRITE | NEXT, 1),
        DESC.pack(src, 512, NEXT, 1),
        DESC.pack(src, 512, NEXT, 0xffff),
        DESC.pack(HOLE, 64, WRITE, 0),
        DESC.pack(2 ** 64 - 64, 4096, WRITE, 0),
        DESC.pack(dst, 0xffffffff, WRITE, 0),
        DESC.pack(table, 32, INDIRECT, 0),
        DESC.pack(table, 17, INDIRECT, 0),
        DESC.pack(table, 32, INDIRECT | NEXT, 1),
        DESC.pack(dst, 0, WRITE, 0),
    ]
    places = [queue.desc_addr, queue.desc_addr + 16, table, table + 16]
    turns = []
    for place in places:
        for pattern in rng.sample(patterns, 6) + [good]:
            # Within the table no pattern may name what is not allowed.
            turns.append((place, pattern))
    rng.shuffle(turns)
    return turns


@pytest.mark.parametrize("seed", range(4))
def test_descriptors_and_tables_in_chaos(scene, witness, keep, seed):
    vmm = scene.running(queues=2)
    bad, other = vmm.queues
    rng = random.Random(seed)
    flipper = keep(Flipper(vmm.ram.banks[0], chaos(bad, rng)))
    broken = 0
    deadline = vu.deadline_in(0.7)  # how long the attack lasts
    poller = vu.select.poll()
    poller.register(bad.err_fd, vu.select.POLLIN)
    poller.register(bad.call_fd, vu.select.POLLIN)
    while vu.time.monotonic() < deadline:
        bad.ring.arm()
        bad.ring.post(0)
        bad.ring.publish()
        bad.kick()
        poller.poll(1000)  # it came back, or the queue broke
        bad.drain_call()
        bad.ring.last_used = bad.ring.used_idx
        if bad.erred(timeout=0):
            broken += 1
            bad.stop()
            bad.make_ring(0)
            bad.start()
            bad.drain_call()
    flipper.close()
    assert broken > 0, "the flips did not come through"
    other.echo()
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


def test_avail_ring_that_changes_after_publication(scene, witness, keep):
    """Heads flip between good ones and nonsense."""
    vmm = scene.running(queues=2, num=8)
    bad, other = vmm.queues
    ram = vmm.ram
    dst = ram.alloc(64 * 8)
    ram.device_may_write(dst, 64 * 8)
    for i in range(8):
        bad.ring.set_desc(i, Desc(dst + 64 * i, 64, WRITE))
    at = -(-(bad.avail_addr + 4) // 8) * 8
    ram.device_may_write(at, 16)  # the flipper may, that is
    flipper = keep(Flipper(ram.banks[0], [
        (at, bytes([1, 0] * 8)), (at, bytes([2, 0, 3, 0] * 4)),
        (at, b"\xff\xff" * 8), (at, bytes([8, 0, 0, 0] * 4))]))
    deadline = vu.deadline_in(0.5)  # how long the attack lasts
    broken = 0
    while vu.time.monotonic() < deadline:
        bad.ring.avail_idx = bad.ring.used_idx + rng_step(broken)
        bad.kick()
        other.echo(32)
        if bad.erred(timeout=0):
            broken += 1
            bad.stop()
            bad.make_ring(0)
            for i in range(8):
                bad.ring.set_desc(i, Desc(dst + 64 * i, 64, WRITE))
            bad.start()
    flipper.close()
    assert broken > 0
    other.echo()
    vmm.close()
    rest_is_fine(scene, witness, ram)


def rng_step(n):
    return 1 + n % 8
