# SPDX-License-Identifier: Apache-2.0
"""Split virtqueues, both sides, written from the virtio specification
(2.7), with raw access to every field so that a test can corrupt any of them.

Fields of 16 bits are read and written whole, through memoryview casts: a
peer must never see half an index.
"""
import struct
import threading
from typing import NamedTuple

NEXT = 1
WRITE = 2
INDIRECT = 4
AVAIL_NO_INTERRUPT = 1
USED_NO_NOTIFY = 1

DESC = struct.Struct("=QIHH")
USED_ELEM = struct.Struct("=II")


class Desc(NamedTuple):
    addr: int
    len: int
    flags: int = 0
    next: int = 0


_fence = threading.Lock()


def fence():
    """A full barrier: taking a lock is a locked instruction."""
    with _fence:
        pass


def need_event(event, new, old):
    """2.7.10: whether going from @old to @new passes @event."""
    return (new - event - 1) & 0xffff < (new - old) & 0xffff


def desc_bytes(num):
    return 16 * num


def avail_bytes(num):
    return 6 + 2 * num


def used_bytes(num):
    return 6 + 8 * num


class RingView:
    """The three areas of one ring, every field readable and writable."""

    def __init__(self, num, desc, avail, used):
        self.num = num
        self.desc = desc
        self._avail = avail.cast("H")
        self._used = used.cast("H")
        self._used_raw = used

    def get_desc(self, i):
        return Desc(*DESC.unpack_from(self.desc, 16 * i))

    def set_desc(self, i, desc):
        DESC.pack_into(self.desc, 16 * i, *desc)

    @property
    def avail_flags(self):
        return self._avail[0]

    @avail_flags.setter
    def avail_flags(self, v):
        self._avail[0] = v

    @property
    def avail_idx(self):
        return self._avail[1]

    @avail_idx.setter
    def avail_idx(self, v):
        self._avail[1] = v & 0xffff

    def get_avail(self, i):
        return self._avail[2 + i % self.num]

    def set_avail(self, i, head):
        self._avail[2 + i % self.num] = head

    @property
    def used_event(self):
        return self._avail[2 + self.num]

    @used_event.setter
    def used_event(self, v):
        self._avail[2 + self.num] = v & 0xffff

    @property
    def used_flags(self):
        return self._used[0]

    @used_flags.setter
    def used_flags(self, v):
        self._used[0] = v

    @property
    def used_idx(self):
        return self._used[1]

    @used_idx.setter
    def used_idx(self, v):
        self._used[1] = v & 0xffff

    def get_used(self, i):
        return USED_ELEM.unpack_from(self._used_raw, 4 + 8 * (i % self.num))

    def set_used(self, i, ident, length):
        USED_ELEM.pack_into(self._used_raw, 4 + 8 * (i % self.num), ident,
                            length)

    @property
    def avail_event(self):
        return self._used[2 + 4 * self.num]

    @avail_event.setter
    def avail_event(self, v):
        self._used[2 + 4 * self.num] = v & 0xffff


class DriverRing(RingView):
    """The driver's side: adds chains, publishes, reaps.

    Prepare and publish are apart: add() fills descriptors and the avail ring
    only, publish() moves avail idx.
    """

    def __init__(self, num, desc, avail, used, event_idx=False, base=0):
        super().__init__(num, desc, avail, used)
        self.event_idx = event_idx
        self.free = list(range(num - 1, -1, -1))
        self.chains = {}
        self.next_avail = base
        self.published = base
        self.last_used = base
        self.avail_idx = base
        self.used_idx = base
        self.used_flags = 0
        self.avail_flags = 0
        self.used_event = base
        self.avail_event = base

    def add(self, descs, head=None):
        """Post a chain of (addr, len, flags); NEXT is set here.

        Returns the head. Segments are taken as they are.
        """
        ids = [self.free.pop() for _ in descs]
        for k, i in enumerate(ids):
            addr, length, flags = descs[k][:3]
            nxt = 0
            if k + 1 < len(ids):
                flags |= NEXT
                nxt = ids[k + 1]
            self.set_desc(i, Desc(addr, length, flags, nxt))
        self.chains[ids[0]] = ids
        self.post(ids[0])
        return ids[0]

    def post(self, head):
        """Put any number into the next avail ring entry."""
        self.set_avail(self.next_avail, head)
        self.next_avail = (self.next_avail + 1) & 0xffff

    def publish(self):
        """Moves avail idx; returns whether the device wants a kick."""
        old, new = self.published, self.next_avail
        fence()
        self.avail_idx = new
        self.published = new
        fence()
        if self.event_idx:
            return need_event(self.avail_event, new, old)
        return not self.used_flags & USED_NO_NOTIFY

    def reap(self):
        """All new used entries as a list of (id, len)."""
        out = []
        while self.last_used != self.used_idx:
            ident, length = self.get_used(self.last_used)
            self.last_used = (self.last_used + 1) & 0xffff
            ids = self.chains.pop(ident, None)
            assert ids is not None, f"used id {ident} is not outstanding"
            self.free.extend(reversed(ids))
            out.append((ident, length))
        return out

    def arm(self):
        """Ask for a call at the next used entry; False: there is one now."""
        if self.event_idx:
            self.used_event = self.last_used
        else:
            self.avail_flags = 0
        fence()
        return self.used_idx == self.last_used

    def disarm(self):
        """Ask for no calls, where that can be said."""
        if self.event_idx:
            self.used_event = self.last_used - 1
        else:
            self.avail_flags = AVAIL_NO_INTERRUPT


class Chain(NamedTuple):
    head: int
    descs: tuple  # of Desc, indirect ones resolved
    indirect: bool

    @property
    def readable(self):
        return [d for d in self.descs if not d.flags & WRITE]

    @property
    def writable(self):
        return [d for d in self.descs if d.flags & WRITE]

    @property
    def writable_len(self):
        return sum(d.len for d in self.writable)


class DeviceRing(RingView):
    """The device's side. @translate(addr, len) gives a view of guest memory.

    It is strict: what the guard publishes here must be a perfect ring, so
    each rule of the specification is an assertion.
    """

    def __init__(self, num, desc, avail, used, translate, event_idx=False,
                 indirect=False, base=0):
        super().__init__(num, desc, avail, used)
        self.translate = translate
        self.event_idx = event_idx
        self.indirect = indirect
        self.last_avail = base
        self.next_used = self.used_idx
        self.told_used = self.next_used
        self.outstanding = {}

    @property
    def position(self):
        """Where it stands, as vhost-user has it."""
        return self.last_avail

    def walk(self, head):
        descs = []
        i = head
        table, size, indirect = self.desc, self.num, False
        while True:
            assert i < size, f"next {i} out of range {size}"
            # Drivers exceed 2.7.5.3.1 by indirect tables, and devices take
            # it; a chain of the ring itself can not be longer.
            assert len(descs) < (1024 if indirect else self.num), "too long"
            d = Desc(*DESC.unpack_from(table, 16 * i))
            assert not d.flags & ~7, f"reserved flags {d.flags:#x}"
            if d.flags & INDIRECT:
                assert self.indirect, "indirect, not negotiated"
                assert not indirect, "nested indirect"
                assert not d.flags & NEXT, "indirect with next"
                assert d.len and d.len % 16 == 0, f"table length {d.len}"
                table = self.translate(d.addr, d.len)
                size, indirect, i = d.len // 16, True, 0
                continue
            if descs and descs[-1].flags & WRITE:
                assert d.flags & WRITE, "readable after writable"
            descs.append(d)
            if not d.flags & NEXT:
                return Chain(head, tuple(descs), indirect)
            i = d.next

    def pop(self):
        """The next chain, or None."""
        idx = self.avail_idx
        assert (idx - self.last_avail) & 0xffff <= self.num, "avail jump"
        if idx == self.last_avail:
            return None
        fence()
        head = self.get_avail(self.last_avail)
        self.last_avail = (self.last_avail + 1) & 0xffff
        assert head < self.num, f"head {head} out of range"
        assert head not in self.outstanding, f"head {head} posted twice"
        chain = self.walk(head)
        self.outstanding[head] = chain
        return chain

    def enable_notify(self):
        """Ask for kicks; False: chains came meanwhile."""
        if self.event_idx:
            self.avail_event = self.last_avail
        else:
            self.used_flags = 0
        fence()
        return self.avail_idx == self.last_avail

    def disable_notify(self):
        if not self.event_idx:
            self.used_flags = USED_NO_NOTIFY

    def push(self, ident, length):
        """Fill the next used entry without publishing it."""
        self.set_used(self.next_used, ident, length)
        self.next_used = (self.next_used + 1) & 0xffff
        self.outstanding.pop(ident, None)

    def publish(self):
        """Moves used idx; returns whether the driver wants a call."""
        old, new = self.told_used, self.next_used
        fence()
        self.used_idx = new
        self.told_used = new
        fence()
        if self.event_idx:
            return need_event(self.used_event, new, old)
        return not self.avail_flags & AVAIL_NO_INTERRUPT

    def gather(self, chain):
        return b"".join(bytes(self.translate(d.addr, d.len))
                        for d in chain.readable if d.len)

    def scatter(self, chain, data):
        """Write @data over the writable segments in order."""
        done = 0
        for d in chain.writable:
            part = data[done:done + d.len]
            if not part:
                continue  # an empty segment, or no more data
            self.translate(d.addr, len(part))[:] = part
            done += len(part)
        return done
