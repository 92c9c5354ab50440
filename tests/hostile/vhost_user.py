# SPDX-License-Identifier: Apache-2.0
"""The vhost-user wire format, both ends, written from the specification.

This is independent of moat's C code on purpose: what two implementations
agree on was not misread the same way twice. Nothing here checks what it is
told to send; a test may set any field to anything.
"""
import array
import enum
import mmap
import os
import select
import socket
import struct
import time
from typing import NamedTuple

VERSION = 0x1
REPLY = 1 << 2
NEED_REPLY = 1 << 3
NOFD = 1 << 8  # "invalid FD flag" of SET_VRING_KICK, _CALL and _ERR
MAX_FDS = 32  # what recv_msg() makes room for

HEADER = struct.Struct("=III")
U64 = struct.Struct("=Q")
VRING_STATE = struct.Struct("=II")
VRING_ADDR = struct.Struct("=IIQQQQ")
REGION = struct.Struct("=QQQQ")
MEM_HEADER = struct.Struct("=II")
CONFIG = struct.Struct("=III")
SHMEM_HEADER = struct.Struct("=II")
# shmid, offset in the file, offset in the region, length, flags
MMAP = struct.Struct("=B7xQQQQ")
WRITABLE = 1


class Request(enum.IntEnum):
    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class BackendRequest(enum.IntEnum):
    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class Protocol(enum.IntEnum):
    """Protocol feature bits (numbers of bits, not masks)."""
    MQ = 0
    LOG_SHMFD = 1
    RARP = 2
    REPLY_ACK = 3
    MTU = 4
    BACKEND_REQ = 5
    CROSS_ENDIAN = 6
    CRYPTO_SESSION = 7
    PAGEFAULT = 8
    CONFIG = 9
    BACKEND_SEND_FD = 10
    HOST_NOTIFIER = 11
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    INBAND_NOTIFICATIONS = 14
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16
    XEN_MMAP = 17
    SHARED_OBJECT = 18
    DEVICE_STATE = 19
    SHMEM_MAP = 22


class Feature(enum.IntEnum):
    """Feature bits that are not a device's own (numbers, not masks)."""
    LOG_ALL = 26
    INDIRECT_DESC = 28
    EVENT_IDX = 29
    PROTOCOL_FEATURES = 30
    VERSION_1 = 32
    ACCESS_PLATFORM = 33
    RING_PACKED = 34
    IN_ORDER = 35
    ORDER_PLATFORM = 36
    SR_IOV = 37
    NOTIFICATION_DATA = 38
    RING_RESET = 40


def mask(*bits):
    return sum(1 << b for b in bits)


class Closed(Exception):
    """The other end closed the connection."""


# Seconds to wait for what has to come; more inside a slow guest.
PATIENCE = float(os.environ.get("MOAT_TEST_DEADLINE", "10"))


class Timeout(Exception):
    """The deadline passed."""


class Msg(NamedTuple):
    request: int
    flags: int
    payload: bytes
    fds: tuple = ()
    truncated: bool = False

    @property
    def u64(self):
        return U64.unpack(self.payload)[0]


class Region(NamedTuple):
    """One memory region; fields and order are the specification's."""
    guest_address: int
    size: int
    user_address: int
    mmap_offset: int

    def pack(self):
        return REGION.pack(*(v & (2 ** 64 - 1) for v in self))


def deadline_in(seconds):
    return time.monotonic() + seconds


def readable(*fds, timeout=0):
    """Those that are readable within @timeout seconds (None: as long as it
    takes); select.select() would not take numbers over 1023."""
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    ready = {n for n, _ in poller.poll(
        None if timeout is None else timeout * 1000)}
    return [fd for fd in fds
            if (fd if isinstance(fd, int) else fd.fileno()) in ready]


def wait_readable(fd, deadline, connection=None):
    """Wait until @fd is readable (or hung up); raises Timeout, or Closed if
    @connection is hung up before that."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if connection is not None:
        poller.register(connection, 0)
    left = max(0, deadline - time.monotonic())
    ready = [n for n, _ in poller.poll(left * 1000)]
    if not ready:
        raise Timeout
    if connection is not None and ready == [connection.fileno()]:
        raise Closed


def recv_exactly(sock, length, deadline, fds):
    """@length bytes, adding received descriptors to @fds."""
    out = b""
    truncated = False
    room = socket.CMSG_SPACE(4 * MAX_FDS)
    while len(out) < length:
        wait_readable(sock, deadline)
        try:
            data, anc, flags, _ = sock.recvmsg(
                length - len(out), room,
                socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        except ConnectionResetError:
            raise Closed from None
        truncated = truncated or bool(flags & socket.MSG_CTRUNC)
        for level, kind, raw in anc:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                got = array.array("i")
                got.frombytes(raw[:len(raw) - len(raw) % 4])
                fds.extend(got)
        if not data:
            raise Closed
        out += data
    return out, truncated


def recv_msg(sock, deadline):
    fds = []
    try:
        head, cut1 = recv_exactly(sock, HEADER.size, deadline, fds)
        request, flags, size = HEADER.unpack(head)
        payload, cut2 = recv_exactly(sock, size, deadline, fds)
    except (Closed, Timeout):
        close_all(fds)
        raise
    return Msg(request, flags, payload, tuple(fds), cut1 or cut2)


def send_raw(sock, data, fds=()):
    """Send bytes as they are, with @fds in the ancillary data."""
    anc = []
    if fds:
        anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    try:
        sent = sock.sendmsg([data], anc)
        if sent < len(data):
            sock.sendall(data[sent:])
    except (BrokenPipeError, ConnectionResetError):
        raise Closed from None


def send_msg(sock, request, payload=b"", fds=(), flags=VERSION, size=None):
    """@size overrides the length that the header tells."""
    send_raw(sock, HEADER.pack(request, flags,
                               len(payload) if size is None else size)
             + payload, fds)


def close_all(fds):
    for fd in fds:
        os.close(fd)


def mem_table(regions):
    return MEM_HEADER.pack(len(regions), 0) + b"".join(
        r.pack() for r in regions)


def config(offset, size, flags=0, data=None):
    """A config space description; @data defaults to @size zero bytes."""
    return CONFIG.pack(offset, size, flags) + (
        bytes(size) if data is None else data)


def shmem_config(regions, count=None, entries=256):
    """@regions: {shmid: size}."""
    return SHMEM_HEADER.pack(len(regions) if count is None else count, 0) \
        + b"".join(U64.pack(regions.get(n, 0)) for n in range(entries))


class FrontEnd:
    """The VMM's end: one method a message, named after it.

    Setters ask for an acknowledgement where REPLY_ACK is on and return its
    value, else None.
    """

    def __init__(self, sock, timeout=10):
        self.sock = sock
        self.timeout = timeout
        self.reply_ack = False

    def close(self):
        self.sock.close()

    def recv(self, timeout=None):
        return recv_msg(self.sock, deadline_in(timeout or self.timeout))

    def send(self, request, payload=b"", fds=(), **kw):
        send_msg(self.sock, request, payload, fds, **kw)

    def call(self, request, payload=b"", fds=()):
        """A request that has a reply of its own."""
        self.send(request, payload, fds)
        msg = self.recv()
        assert msg.request == request, msg
        assert msg.flags & 0x7 == VERSION | REPLY, msg
        assert not msg.fds and not msg.truncated, msg
        return msg.payload

    def set(self, request, payload=b"", fds=()):
        if not self.reply_ack:
            self.send(request, payload, fds)
            return None
        self.send(request, payload, fds, flags=VERSION | NEED_REPLY)
        msg = self.recv()
        assert msg.request == request, msg
        assert msg.flags & 0x7 == VERSION | REPLY, msg
        return msg.u64

    def get_u64(self, request):
        return U64.unpack(self.call(request))[0]

    def get_features(self):
        return self.get_u64(Request.GET_FEATURES)

    def set_features(self, bits):
        return self.set(Request.SET_FEATURES, U64.pack(bits))

    def get_protocol_features(self):
        return self.get_u64(Request.GET_PROTOCOL_FEATURES)

    def set_protocol_features(self, bits):
        # Not acknowledged: REPLY_ACK is not on before this message.
        self.send(Request.SET_PROTOCOL_FEATURES, U64.pack(bits))
        self.reply_ack = bool(bits & mask(Protocol.REPLY_ACK))

    def set_owner(self):
        return self.set(Request.SET_OWNER)

    def get_queue_num(self):
        return self.get_u64(Request.GET_QUEUE_NUM)

    def get_max_mem_slots(self):
        return self.get_u64(Request.GET_MAX_MEM_SLOTS)

    def set_mem_table(self, regions, fds):
        return self.set(Request.SET_MEM_TABLE, mem_table(regions), fds)

    def add_mem_reg(self, region, fd):
        return self.set(Request.ADD_MEM_REG, U64.pack(0) + region.pack(),
                        (fd,))

    def rem_mem_reg(self, region):
        return self.set(Request.REM_MEM_REG, U64.pack(0) + region.pack())

    def set_vring_num(self, index, num):
        return self.set(Request.SET_VRING_NUM, VRING_STATE.pack(index, num))

    def set_vring_base(self, index, num):
        return self.set(Request.SET_VRING_BASE, VRING_STATE.pack(index, num))

    def get_vring_base(self, index):
        got, num = VRING_STATE.unpack(
            self.call(Request.GET_VRING_BASE, VRING_STATE.pack(index, 0)))
        assert got == index
        return num

    def set_vring_addr(self, index, descriptor, used, available, flags=0,
                       log=0):
        return self.set(Request.SET_VRING_ADDR, VRING_ADDR.pack(
            index, flags, descriptor, used, available, log))

    def set_vring_fd(self, request, index, fd):
        if fd is None:
            return self.set(request, U64.pack(index | NOFD))
        return self.set(request, U64.pack(index), (fd,))

    def set_vring_kick(self, index, fd):
        return self.set_vring_fd(Request.SET_VRING_KICK, index, fd)

    def set_vring_call(self, index, fd):
        return self.set_vring_fd(Request.SET_VRING_CALL, index, fd)

    def set_vring_err(self, index, fd):
        return self.set_vring_fd(Request.SET_VRING_ERR, index, fd)

    def set_vring_enable(self, index, on):
        return self.set(Request.SET_VRING_ENABLE,
                        VRING_STATE.pack(index, int(on)))

    def set_backend_req_fd(self, fd):
        return self.set(Request.SET_BACKEND_REQ_FD, b"", (fd,))

    def get_config(self, offset, size):
        """The bytes, or None where the back-end told an error."""
        reply = self.call(Request.GET_CONFIG, config(offset, size))
        if len(reply) == 0 or CONFIG.unpack_from(reply)[1] == 0:
            return None
        assert CONFIG.unpack_from(reply)[:2] == (offset, size)
        assert len(reply) == CONFIG.size + size
        return reply[CONFIG.size:]

    def set_config(self, offset, data, flags=0):
        return self.set(Request.SET_CONFIG,
                        config(offset, len(data), flags, data))

    def reset_device(self):
        return self.set(Request.RESET_DEVICE)

    def set_status(self, status):
        return self.set(Request.SET_STATUS, U64.pack(status))

    def get_status(self):
        return self.get_u64(Request.GET_STATUS)

    def get_shmem_config(self):
        """Sizes of the regions, as {shmid: size}."""
        reply = self.call(Request.GET_SHMEM_CONFIG)
        count, _ = SHMEM_HEADER.unpack_from(reply)
        assert len(reply) == SHMEM_HEADER.size + 256 * U64.size
        sizes = [U64.unpack_from(reply, 8 + 8 * n)[0] for n in range(256)]
        regions = {n: size for n, size in enumerate(sizes) if size}
        assert len(regions) == count
        return regions


class MappedRegion:
    """A region as a back-end maps it."""

    def __init__(self, region, fd):
        self.region = region
        self.fd = fd
        # The offset need not be page aligned: map the file from its start.
        self.map = mmap.mmap(fd, region.mmap_offset + region.size)
        self.view = memoryview(self.map)[region.mmap_offset:]

    def close(self):
        try:
            self.view.release()
            self.map.close()
        except BufferError:
            pass  # a ring still has a view of it; goes with the ring
        os.close(self.fd)


class AddressError(Exception):
    """An address that lies in no region."""


def lookup(regions, address, length, user):
    """A view of @length bytes at @address, which must lie in one region."""
    for mapped in regions:
        base = (mapped.region.user_address if user
                else mapped.region.guest_address)
        off = address - base
        if 0 <= off and off + length <= mapped.region.size:
            return mapped.view[off:off + length]
    raise AddressError(f"{address:#x}+{length:#x}")
