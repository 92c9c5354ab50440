# SPDX-License-Identifier: Apache-2.0
"""Packed virtqueues, both sides, written from the virtio specification (2.8),
with the same calls as those of split_ring and raw access to each descriptor.

A position is an index with the wrap counter in bit 15. Flags are written last
and whole, through a memoryview cast.
"""
import struct
from typing import NamedTuple

from split_ring import INDIRECT, NEXT, WRITE, Chain, Desc, DeviceRing as Split
from split_ring import fence

AVAIL = 1 << 7
USED = 1 << 15
WRAP = 1 << 15
START = WRAP
ENABLE, DISABLE, AT_DESC = range(3)

DESC = struct.Struct("=QIHH")


class PackedDesc(NamedTuple):
    addr: int
    len: int
    id: int = 0
    flags: int = 0


def desc_bytes(num):
    return 16 * num


def event_bytes(_num):
    return 4


def step(pos, count, num):
    for _ in range(count):
        pos += 1
        if pos & ~WRAP == num:
            pos = pos & WRAP ^ WRAP
    return pos


def passed(event, old, new, num):
    """2.8.10: whether going from @old to @new passes @event."""
    while old != new:
        if old == event:
            return True
        old = step(old, 1, num)
    return False


def avail_bits(pos):
    return AVAIL if pos & WRAP else USED


def used_bits(pos):
    return AVAIL | USED if pos & WRAP else 0


class PackedView:
    """The three areas of one ring, every field readable and writable."""

    def __init__(self, num, desc, driver, device):
        self.num = num
        self.desc = desc
        self._words = desc.cast("H")
        self.driver_event = driver.cast("H")  # position, flags
        self.device_event = device.cast("H")

    def get_desc(self, pos):
        return PackedDesc(*DESC.unpack_from(self.desc, 16 * (pos & ~WRAP)))

    def get_flags(self, pos):
        return self._words[8 * (pos & ~WRAP) + 7]

    def set_flags(self, pos, flags):
        self._words[8 * (pos & ~WRAP) + 7] = flags

    def set_desc(self, pos, desc, hold=False):
        """@hold: all but the flags."""
        struct.pack_into("=QIH", self.desc, 16 * (pos & ~WRAP), *desc[:3])
        if not hold:
            fence()
            self.set_flags(pos, desc.flags)

    def is_avail(self, pos):
        return self.get_flags(pos) & (AVAIL | USED) == avail_bits(pos)

    def is_used(self, pos):
        return self.get_flags(pos) & (AVAIL | USED) == used_bits(pos)


def wanted(event, old, new, num, event_idx):
    """Whether the other side asked to be told of @old .. @new."""
    flags = event[1]
    if flags == AT_DESC and event_idx:
        return passed(event[0], old, new, num)
    assert flags in (ENABLE, DISABLE), f"event flags {flags:#x}"
    return flags == ENABLE


class DriverRing(PackedView):
    """The driver's side: adds lists, publishes, reaps."""

    def __init__(self, num, desc, driver, device, event_idx=False,
                 base=START | START << 16):
        super().__init__(num, desc, driver, device)
        self.event_idx = event_idx
        self.room = num
        self.free = list(range(num - 1, -1, -1))
        self.chains = {}
        self.next_avail = self.published = base & 0xffff
        self.last_used = base >> 16
        self.held = None
        self.desc[:] = bytes(16 * num)
        self.driver_event[1] = self.device_event[1] = ENABLE

    def add(self, descs):
        """Post a list of (addr, len, flags); returns its buffer id."""
        assert len(descs) <= self.room, "ring full"
        ident = self.free.pop()
        self.put([PackedDesc(addr, length, ident,
                             flags | (NEXT if k + 1 < len(descs) else 0))
                  for k, (addr, length, flags) in enumerate(descs)])
        self.chains[ident] = len(descs)
        self.room -= len(descs)
        return ident

    def put(self, descs):
        """Descriptors as they are, but for AVAIL and USED, which are toggled
        where the flags say otherwise."""
        for d in descs:
            d = d._replace(flags=d.flags ^ avail_bits(self.next_avail))
            hold = self.next_avail == self.published
            self.set_desc(self.next_avail, d, hold)
            if hold:
                self.held = d.flags
            self.next_avail = step(self.next_avail, 1, self.num)

    def publish(self):
        """Makes all visible; returns whether the device wants a kick."""
        old, new = self.published, self.next_avail
        if self.held is None:
            return False
        fence()
        self.set_flags(old, self.held)
        self.held = None
        self.published = new
        fence()
        return wanted(self.device_event, old, new, self.num, self.event_idx)

    def reap(self):
        """All new used descriptors as a list of (id, len)."""
        out = []
        while self.is_used(self.last_used):
            fence()
            d = self.get_desc(self.last_used)
            count = self.chains.pop(d.id, None)
            assert count, f"used id {d.id} is not outstanding"
            assert not d.flags & ~(AVAIL | USED | WRITE), f"{d.flags:#x}"
            self.last_used = step(self.last_used, count, self.num)
            self.room += count
            self.free.append(d.id)
            out.append((d.id, d.len if d.flags & WRITE else 0))
        return out

    @property
    def used_idx(self):
        return self.get_desc(self.last_used)

    def arm(self):
        """Ask for a call at the next used one; False: there is one now."""
        # Never a pair of fields that belong to different wishes.
        self.driver_event[1] = ENABLE
        if self.event_idx:
            self.driver_event[0] = self.last_used
            fence()
            self.driver_event[1] = AT_DESC
        fence()
        return not self.is_used(self.last_used)

    def disarm(self):
        self.driver_event[1] = DISABLE


class DeviceRing(PackedView):
    """The device's side, strict as the one of split_ring."""

    gather = Split.gather
    scatter = Split.scatter

    def __init__(self, num, desc, driver, device, translate, event_idx=False,
                 indirect=False, base=START | START << 16):
        super().__init__(num, desc, driver, device)
        self.translate = translate
        self.event_idx = event_idx
        self.indirect = indirect
        self.last_avail = base & 0xffff
        self.next_used = self.told_used = base >> 16
        self.outstanding = {}  # id -> (chain, descriptors)
        self.held = None

    @property
    def position(self):
        return self.last_avail | self.next_used << 16

    def table(self, d):
        assert self.indirect, "indirect, not negotiated"
        assert not d.flags & (NEXT | WRITE), f"table flags {d.flags:#x}"
        assert d.len and d.len % 16 == 0, f"table length {d.len}"
        raw = self.translate(d.addr, d.len)
        for addr, length, _, flags in DESC.iter_unpack(bytes(raw)):
            assert not flags & ~WRITE, f"flags in a table {flags:#x}"
            yield Desc(addr, length, flags)

    def pop(self):
        """The next list, or None."""
        if not self.is_avail(self.last_avail):
            return None
        fence()
        descs, count, indirect = [], 0, False
        while True:
            d = self.get_desc(self.last_avail)
            assert self.is_avail(self.last_avail), "wrong bits in a list"
            reserved = d.flags & ~(AVAIL | USED | NEXT | WRITE | INDIRECT)
            assert not reserved, f"reserved flags {d.flags:#x}"
            count += 1
            assert count <= self.num, "too long"
            if d.flags & INDIRECT:
                assert count == 1, "table in a list"
                indirect = True
                descs += self.table(d)
            else:
                descs.append(Desc(d.addr, d.len, d.flags & (NEXT | WRITE)))
            self.last_avail = step(self.last_avail, 1, self.num)
            if not d.flags & NEXT:
                break
        writes = [bool(e.flags & WRITE) for e in descs]
        assert writes == sorted(writes), "readable after writable"
        assert d.id < self.num, f"id {d.id} out of range"
        assert d.id not in self.outstanding, f"id {d.id} posted twice"
        chain = Chain(d.id, tuple(descs), indirect)
        self.outstanding[d.id] = chain, count
        return chain

    def enable_notify(self):
        """Ask for kicks; False: lists came meanwhile."""
        self.device_event[1] = ENABLE
        if self.event_idx:
            self.device_event[0] = self.last_avail
            fence()
            self.device_event[1] = AT_DESC
        fence()
        return not self.is_avail(self.last_avail)

    def disable_notify(self):
        self.device_event[1] = DISABLE

    def push(self, ident, length):
        """Write the next used descriptor without publishing it."""
        _, count = self.outstanding.pop(ident)
        self.put(ident, length, used_bits(self.next_used)
                 | (WRITE if length else 0), count)

    def put(self, ident, length, flags, count):
        hold = self.held is None
        d = self.get_desc(self.next_used)
        self.set_desc(self.next_used,
                      PackedDesc(d.addr, length, ident, flags), hold)
        if hold:
            self.held = flags
        self.next_used = step(self.next_used, count, self.num)

    def publish(self):
        """Makes all visible; returns whether the driver wants a call."""
        old, new = self.told_used, self.next_used
        if self.held is None:
            return False
        fence()
        self.set_flags(old, self.held)
        self.held = None
        self.told_used = new
        fence()
        return wanted(self.driver_event, old, new, self.num, self.event_idx)
