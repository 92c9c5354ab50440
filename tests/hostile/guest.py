# SPDX-License-Identifier: Apache-2.0
"""A small VMM and driver: guest RAM full of a canary, queues, a session.

Every byte of RAM is compared in the end: what the driver wrote and what the
device was allowed to write are known, anything else must be the canary.
"""
import mmap
import os
import random
import socket

import packed_ring
import split_ring
import vhost_user as vu
from split_ring import INDIRECT, WRITE
from vhost_user import Feature, Protocol, Region, mask

MIB = 1 << 20

# Guest addresses: two adjacent regions, a hole, one above 4 GiB. User
# addresses are in another order, so that mixing the two kinds shows. The last
# region begins inside its file.
LAYOUT = (
    Region(0x0000_0000, 2 * MIB, 0x7f31_4560_0000, 0),
    Region(0x0020_0000, 2 * MIB, 0x7f31_4500_0000, 0),
    Region(0x1_0000_0000, 2 * MIB, 0x7f31_4400_0000, 1 * MIB),
)
HOLE = 0x0080_0000  # a guest address in no region

OFFERABLE = mask(Feature.INDIRECT_DESC, Feature.EVENT_IDX,
                 Feature.PROTOCOL_FEATURES, Feature.VERSION_1,
                 Feature.ACCESS_PLATFORM)

_canaries = {}


def canary(seed, size):
    if (seed, size) not in _canaries:
        _canaries[seed, size] = random.Random(seed).randbytes(size)
    return _canaries[seed, size]


class Bank:
    """One region's memory: its file, its bytes, what they should be."""

    def __init__(self, region, seed):
        self.region = region
        size = region.mmap_offset + region.size
        self.fd = os.memfd_create(f"guest-ram-{seed}", os.MFD_CLOEXEC
                                  | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        self.map = mmap.mmap(self.fd, size)
        self.file_view = memoryview(self.map)
        self.file_view[:] = canary(seed, size)
        self.view = self.file_view[region.mmap_offset:]
        self.shadow = bytearray(canary(seed, size))
        self.device_owned = []  # (offset in file, length): not compared

    def move(self, fd):
        """To another file, as if it had been there from the start."""
        os.pwrite(fd, self.file_view, 0)
        self.view.release()
        self.file_view.release()
        self.map.close()
        size = os.fstat(fd).st_size
        os.dup2(fd, self.fd, inheritable=False)
        self.map = mmap.mmap(self.fd, size)
        self.file_view = memoryview(self.map)
        self.view = self.file_view[self.region.mmap_offset:]

    def close(self):
        try:
            self.view.release()
            self.file_view.release()
            self.map.close()
        except BufferError:
            pass  # views die with their owners
        os.close(self.fd)


class GuestRam:
    def __init__(self, layout=LAYOUT):
        self.banks = [Bank(r, n) for n, r in enumerate(layout)]
        self.next = {n: 4096 for n in range(len(self.banks))}

    def close(self):
        for bank in self.banks:
            bank.close()
        self.banks = []

    @property
    def regions(self):
        return [b.region for b in self.banks]

    @property
    def fds(self):
        return [b.fd for b in self.banks]

    def parts(self, addr, length):
        """(bank, offset in its view, length): may cross regions."""
        while length:
            for bank in self.banks:
                off = addr - bank.region.guest_address
                if 0 <= off < bank.region.size:
                    part = min(length, bank.region.size - off)
                    yield bank, off, part
                    addr += part
                    length -= part
                    break
            else:
                raise vu.AddressError(f"{addr:#x}+{length:#x}")

    def write(self, addr, data):
        """The driver writes; the new bytes are expected from now on."""
        done = 0
        for bank, off, part in self.parts(addr, len(data)):
            piece = data[done:done + part]
            bank.view[off:off + part] = piece
            f = bank.region.mmap_offset + off
            bank.shadow[f:f + part] = piece
            done += part

    def read(self, addr, length):
        return b"".join(bytes(bank.view[off:off + part])
                        for bank, off, part in self.parts(addr, length))

    def expect(self, addr, data):
        """The device was to write @data at @addr."""
        done = 0
        for bank, off, part in self.parts(addr, len(data)):
            f = bank.region.mmap_offset + off
            bank.shadow[f:f + part] = data[done:done + part]
            done += part

    def device_may_write(self, addr, length):
        """Leave this range out of the comparison."""
        for bank, off, part in self.parts(addr, length):
            bank.device_owned.append((bank.region.mmap_offset + off, part))

    def view(self, addr, length):
        (bank, off, part), = self.parts(addr, length)
        return bank.view[off:off + part]

    def user_address(self, addr):
        (bank, off, _), = self.parts(addr, 1)
        return bank.region.user_address + off

    def alloc(self, length, align=16, bank=0):
        """Guest memory that nobody else gets, a gap of canary before it."""
        at = -(-(self.next[bank] + 32) // align) * align
        assert at + length <= self.banks[bank].region.size - 8192, "RAM full"
        self.next[bank] = at + length
        return self.banks[bank].region.guest_address + at

    def check(self):
        """No byte differs from what it has to be."""
        for n, bank in enumerate(self.banks):
            # One look at all of it: the device may be writing its own.
            now = bank.map[:]
            for off, length in bank.device_owned:
                bank.shadow[off:off + length] = now[off:off + length]
            if now == bank.shadow:
                continue
            bad = [i for i, byte in enumerate(now) if byte != bank.shadow[i]]
            off = bad[0] - bank.region.mmap_offset
            raise AssertionError(
                f"{len(bad)} bytes of guest memory changed in bank {n}, the "
                f"first at {bank.region.guest_address + off:#x}, the last "
                f"{bad[-1] - bad[0]} bytes on")


class Queue:
    """One virtqueue of the driver with its eventfds."""

    def __init__(self, vmm, index, num=64, bank=0, event_idx=None, base=0):
        self.vmm = vmm
        self.ram = ram = vmm.ram
        self.index = index
        self.num = num
        self.packed = bool(vmm.features & mask(Feature.RING_PACKED))
        if self.packed and not base:
            base = packed_ring.START | packed_ring.START << 16
        self.avail_bytes = 4 if self.packed else split_ring.avail_bytes(num)
        self.used_bytes = 4 if self.packed else split_ring.used_bytes(num)
        self.desc_addr = ram.alloc(split_ring.desc_bytes(num), 16, bank)
        self.avail_addr = ram.alloc(self.avail_bytes,
                                    4 if self.packed else 2, bank)
        self.used_addr = ram.alloc(self.used_bytes, 4, bank)
        if event_idx is None:
            event_idx = bool(vmm.features & mask(Feature.EVENT_IDX))
        # The driver's own areas are its to write; the used ring is written
        # by the device. Neither is compared.
        ram.device_may_write(self.desc_addr, split_ring.desc_bytes(num))
        ram.device_may_write(self.avail_addr, self.avail_bytes)
        ram.device_may_write(self.used_addr, self.used_bytes)
        self.event_idx = event_idx
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.err_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.make_ring(base)

    def make_ring(self, base):
        view = self.ram.view
        num = self.num
        make = (packed_ring if self.packed else split_ring).DriverRing
        self.ring = make(
            num, view(self.desc_addr, split_ring.desc_bytes(num)),
            view(self.avail_addr, self.avail_bytes),
            view(self.used_addr, self.used_bytes),
            self.event_idx, base)
        self.base = base

    def close(self):
        """Once: a number that was closed may be another's by then."""
        fds = {self.kick_fd, self.call_fd, self.err_fd} - {None}
        vu.close_all(fds)
        self.kick_fd = self.call_fd = self.err_fd = None

    def start(self, enable=True):
        fe, ua = self.vmm.fe, self.ram.user_address
        steps = [
            lambda: fe.set_vring_num(self.index, self.num),
            lambda: fe.set_vring_base(self.index, self.base),
            lambda: fe.set_vring_addr(self.index, ua(self.desc_addr),
                                      ua(self.used_addr),
                                      ua(self.avail_addr)),
            lambda: fe.set_vring_call(self.index, self.call_fd),
            lambda: fe.set_vring_err(self.index, self.err_fd),
            lambda: fe.set_vring_kick(self.index, self.kick_fd),
        ]
        if enable and self.vmm.features & mask(Feature.PROTOCOL_FEATURES):
            steps.append(lambda: fe.set_vring_enable(self.index, 1))
        for step in steps:
            assert not step(), f"queue {self.index}: set-up was refused"

    def stop(self):
        self.base = self.vmm.fe.get_vring_base(self.index)
        return self.base

    def kick(self):
        os.eventfd_write(self.kick_fd, 1)

    def publish(self):
        if self.ring.publish():
            self.kick()

    def drain_call(self):
        try:
            return os.eventfd_read(self.call_fd)
        except BlockingIOError:
            return 0

    def wait_used(self, count=1, timeout=vu.PATIENCE):
        """@count used entries, waited for as a driver does: by the call."""
        deadline = vu.deadline_in(timeout)
        out = []
        while True:
            out += self.ring.reap()
            if len(out) >= count:
                return out
            if not self.ring.arm():
                continue
            try:
                vu.wait_readable(self.call_fd, deadline, self.vmm.fe.sock)
            except vu.Timeout:
                raise AssertionError(
                    f"queue {self.index}: {len(out)} of {count} requests "
                    f"came back; used idx {self.ring.used_idx}, reaped to "
                    f"{self.ring.last_used}") from None
            self.drain_call()

    def erred(self, timeout=5):
        """Whether the err eventfd was signalled."""
        try:
            vu.wait_readable(self.err_fd, vu.deadline_in(timeout))
        except vu.Timeout:
            return False
        os.eventfd_read(self.err_fd)
        return True

    def indirect(self, descs, bank=0):
        """A table of (addr, len, flags); returns the descriptor for it."""
        table = self.ram.alloc(16 * len(descs), 16, bank)
        self.write_table(table, descs)
        return (table, 16 * len(descs), INDIRECT)

    def write_table(self, table, descs):
        raw = b""
        for k, (addr, length, flags) in enumerate(descs):
            last = k + 1 == len(descs)
            raw += split_ring.DESC.pack(
                addr, length, flags if last else flags | split_ring.NEXT,
                0 if last else k + 1)
        self.ram.write(table, raw)

    def echo(self, size=512, data=None, bank=0):
        """One good request to an echo device, checked to the last byte."""
        data = os.urandom(size) if data is None else data
        src = self.ram.alloc(len(data), bank=bank)
        dst = self.ram.alloc(len(data), bank=bank)
        self.ram.write(src, data)
        head = self.ring.add([(src, len(data), 0), (dst, len(data), WRITE)])
        self.publish()
        used = self.wait_used()
        assert used == [(head, len(data))], used
        self.ram.expect(dst, data)
        assert self.ram.read(dst, len(data)) == data


class Vmm:
    """A VMM session: connects, negotiates, shares RAM, starts queues."""

    def __init__(self, sock, ram=None, features=OFFERABLE,
                 protocol=None, add_mem_reg=False, timeout=vu.PATIENCE):
        self.fe = vu.FrontEnd(sock, timeout)
        self.ram = ram or GuestRam()
        self.want = features
        self.want_protocol = protocol
        self.add_mem_reg = add_mem_reg
        self.features = 0
        self.protocol = 0
        self.queues = []
        self.channel = None
        self.closed = False

    @classmethod
    def connect(cls, path, **kw):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        return cls(sock, **kw)

    def negotiate(self):
        """Features, protocol features, owner; no memory yet."""
        fe = self.fe
        offered = fe.get_features()
        self.offered = offered
        assert offered & mask(Feature.VERSION_1), f"{offered:#x}"
        if offered & self.want & mask(Feature.PROTOCOL_FEATURES):
            self.offered_protocol = fe.get_protocol_features()
            self.protocol = self.offered_protocol
            if self.want_protocol is not None:
                self.protocol &= self.want_protocol
            self.protocol &= mask(
                Protocol.MQ, Protocol.REPLY_ACK, Protocol.BACKEND_REQ,
                Protocol.CONFIG, Protocol.RESET_DEVICE,
                Protocol.CONFIGURE_MEM_SLOTS, Protocol.STATUS,
                Protocol.SHMEM_MAP, Protocol.BACKEND_SEND_FD)
            fe.set_protocol_features(self.protocol)
        if self.has(Protocol.MQ):
            self.queue_num = fe.get_queue_num()
        assert not fe.set_owner()
        if self.has(Protocol.BACKEND_REQ):
            self.channel, theirs = socket.socketpair()
            with theirs:
                assert not fe.set_backend_req_fd(theirs.fileno())
        self.features = offered & self.want
        assert not fe.set_features(self.features)

    def has(self, bit):
        return bool(self.protocol & mask(bit))

    def share_memory(self):
        if self.add_mem_reg and self.has(Protocol.CONFIGURE_MEM_SLOTS):
            assert self.fe.get_max_mem_slots() >= len(self.ram.banks)
            for bank in self.ram.banks:
                assert not self.fe.add_mem_reg(bank.region, bank.fd)
        else:
            assert not self.fe.set_mem_table(self.ram.regions, self.ram.fds)

    def add_queue(self, **kw):
        queue = Queue(self, len(self.queues), **kw)
        self.queues.append(queue)
        return queue

    def driver_ok(self):
        if self.has(Protocol.STATUS):
            assert not self.fe.set_status(0xf)

    def setup(self, queues=1, **kw):
        """Everything up to running queues."""
        self.negotiate()
        self.share_memory()
        for _ in range(queues):
            self.add_queue(**kw)
        for queue in self.queues:
            queue.start()
        self.driver_ok()
        # Nothing may still be on its way to the device.
        self.fe.get_features()
        return self

    def close(self):
        if self.closed:
            return
        self.closed = True
        self.fe.close()
        if self.channel:
            self.channel.close()
        for queue in self.queues:
            queue.close()

    def config_changed(self, timeout=5):
        """Waits for a CONFIG_CHANGE_MSG on the back-end channel."""
        msg = vu.recv_msg(self.channel, vu.deadline_in(timeout))
        assert msg.request == vu.BackendRequest.CONFIG_CHANGE_MSG, msg
        if msg.flags & vu.NEED_REPLY:
            vu.send_msg(self.channel, msg.request, vu.U64.pack(0),
                        flags=vu.VERSION | vu.REPLY)
        return msg

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
        self.ram.close()
