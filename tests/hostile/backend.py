# SPDX-License-Identifier: Apache-2.0
"""A small echo device as a vhost-user back-end, to be good or evil with.

Its queues return what is readable in what is writable. A test makes it evil
by replacing how it answers a message (`on_message`), what it does with a kick
(`on_kick`) or with one request (`on_request`), or by taking its session and
writing into the rings itself. Everything that it was ever given is recorded:
messages, descriptors, memory.
"""
import os
import selectors
import socket
import threading

import packed_ring
import split_ring
import vhost_user as vu
from vhost_user import Feature, Protocol, Request, mask

FEATURES = mask(Feature.VERSION_1, Feature.EVENT_IDX, Feature.INDIRECT_DESC,
                Feature.PROTOCOL_FEATURES)
PROTOCOL = mask(Protocol.MQ, Protocol.REPLY_ACK, Protocol.CONFIG,
                Protocol.BACKEND_REQ, Protocol.RESET_DEVICE, Protocol.STATUS,
                Protocol.CONFIGURE_MEM_SLOTS)


class Vring:
    def __init__(self, index):
        self.index = index
        self.num = 0
        self.base = 0
        self.addr = None
        self.kick = self.call = self.err = None
        self.enabled = False
        self.ring = None


class Session:
    """One connection from a front-end (the guard, or a VMM itself)."""

    def __init__(self, backend, sock):
        self.backend = backend
        self.sock = sock
        self.features = 0
        self.protocol = 0
        self.status = 0
        self.mem = []
        self.vrings = {}
        self.channel = None
        self.messages = []  # everything received, in order
        self.regions_seen = []  # (Region, link of its fd) ever received
        self.events = []  # names of what happened, in order
        self.closed = threading.Event()

    # -- replies

    def reply(self, msg, payload, **kw):
        vu.send_msg(self.sock, msg.request, payload,
                    flags=vu.VERSION | vu.REPLY, **kw)

    def ack(self, msg, value=0):
        if (msg.flags & vu.NEED_REPLY
                and self.protocol & mask(Protocol.REPLY_ACK)):
            self.reply(msg, vu.U64.pack(value))

    # -- messages

    def handle(self, msg):
        self.messages.append(msg._replace(fds=tuple(
            os.readlink(f"/proc/self/fd/{fd}") for fd in msg.fds)))
        try:
            name = Request(msg.request).name
        except ValueError:
            name = f"REQUEST_{msg.request}"
        self.events.append(name)
        hook = self.backend.on_message.get(msg.request)
        if hook and hook(self, msg):
            vu.close_all(msg.fds)
            return
        handler = getattr(self, "do_" + name.lower(), None)
        if handler is None:
            vu.close_all(msg.fds)
            self.ack(msg, 1)
            return
        if handler(msg) is None:
            self.ack(msg)

    def vring(self, index):
        return self.vrings.setdefault(index, Vring(index))

    def do_get_features(self, msg):
        self.reply(msg, vu.U64.pack(self.backend.features))
        return True

    def do_set_features(self, msg):
        self.features = msg.u64

    def do_get_protocol_features(self, msg):
        self.reply(msg, vu.U64.pack(self.backend.protocol))
        return True

    def do_set_protocol_features(self, msg):
        self.protocol = msg.u64

    def do_set_owner(self, msg):
        pass

    def do_reset_owner(self, msg):
        pass

    def do_get_queue_num(self, msg):
        self.reply(msg, vu.U64.pack(self.backend.queue_num))
        return True

    def do_get_max_mem_slots(self, msg):
        self.reply(msg, vu.U64.pack(32))
        return True

    def map_region(self, region, fd):
        self.regions_seen.append((region, os.readlink(f"/proc/self/fd/{fd}")))
        self.mem.append(vu.MappedRegion(region, fd))

    def do_set_mem_table(self, msg):
        n, _ = vu.MEM_HEADER.unpack_from(msg.payload)
        assert len(msg.payload) == 8 + 32 * n and len(msg.fds) == n, msg
        self.drop_memory()
        for k in range(n):
            self.map_region(vu.Region(*vu.REGION.unpack_from(
                msg.payload, 8 + 32 * k)), msg.fds[k])

    def do_add_mem_reg(self, msg):
        assert len(msg.fds) == 1 and len(msg.payload) == 40, msg
        self.map_region(vu.Region(*vu.REGION.unpack_from(msg.payload, 8)),
                        msg.fds[0])

    def do_rem_mem_reg(self, msg):
        vu.close_all(msg.fds)
        want = vu.REGION.unpack_from(msg.payload, 8)[:3]
        for mapped in self.mem:
            if mapped.region[:3] == want:
                self.mem.remove(mapped)
                mapped.close()
                return None
        self.ack(msg, 1)
        return True

    def do_set_vring_num(self, msg):
        index, num = vu.VRING_STATE.unpack(msg.payload)
        self.vring(index).num = num

    def do_set_vring_base(self, msg):
        index, base = vu.VRING_STATE.unpack(msg.payload)
        self.vring(index).base = base

    def do_set_vring_addr(self, msg):
        index, _, desc, used, avail, _ = vu.VRING_ADDR.unpack(msg.payload)
        self.vring(index).addr = (desc, avail, used)

    def do_get_vring_base(self, msg):
        index, _ = vu.VRING_STATE.unpack(msg.payload)
        vring = self.vring(index)
        self.stop(vring)
        self.reply(msg, vu.VRING_STATE.pack(index, vring.base))
        return True

    def vring_fd(self, msg, what):
        index = msg.u64 & 0xff
        vring = self.vring(index)
        fd = None if msg.u64 & vu.NOFD else msg.fds[0]
        old = getattr(vring, what)
        if old is not None:
            if what == "kick":
                self.backend.unwatch(old)
            os.close(old)
        setattr(vring, what, fd)
        return vring, fd

    def do_set_vring_kick(self, msg):
        vring, fd = self.vring_fd(msg, "kick")
        if fd is not None:
            self.backend.watch(fd, lambda: self.kicked(vring))

    def do_set_vring_call(self, msg):
        self.vring_fd(msg, "call")

    def do_set_vring_err(self, msg):
        self.vring_fd(msg, "err")

    def do_set_vring_enable(self, msg):
        index, on = vu.VRING_STATE.unpack(msg.payload)
        vring = self.vring(index)
        vring.enabled = bool(on)
        if on and vring.ring:
            self.backend.on_kick(self, vring)

    def do_set_backend_req_fd(self, msg):
        if self.channel:
            self.channel.close()
        self.channel = socket.socket(fileno=msg.fds[0])

    def do_get_config(self, msg):
        offset, size, flags = vu.CONFIG.unpack_from(msg.payload)
        data = bytes(self.backend.config[offset:offset + size])
        if len(data) < size:
            self.reply(msg, b"")
        else:
            self.reply(msg, vu.config(offset, size, flags, data))
        return True

    def do_set_config(self, msg):
        offset, size, _ = vu.CONFIG.unpack_from(msg.payload)
        data = msg.payload[vu.CONFIG.size:]
        assert len(data) == size
        if offset + size > len(self.backend.config):
            self.ack(msg, 1)
            return True
        self.backend.config[offset:offset + size] = data
        return None

    def do_get_shmem_config(self, msg):
        self.reply(msg, vu.shmem_config(self.backend.shmem))
        return True

    def do_reset_device(self, msg):
        for vring in self.vrings.values():
            self.stop(vring)
            vring.enabled = False
        self.status = 0

    def do_set_status(self, msg):
        self.status = msg.u64

    def do_get_status(self, msg):
        self.reply(msg, vu.U64.pack(self.status))
        return True

    # -- rings

    def translate(self, address, length):
        return vu.lookup(self.mem, address, length, user=False)

    def start(self, vring):
        desc, avail, used = vring.addr
        num = vring.num

        def area(address, length):
            return vu.lookup(self.mem, address, length, user=True)

        packed = self.features & mask(Feature.RING_PACKED)
        make = (packed_ring if packed else split_ring).DeviceRing
        vring.ring = make(
            num, area(desc, split_ring.desc_bytes(num)),
            area(avail, 4 if packed else split_ring.avail_bytes(num)),
            area(used, 4 if packed else split_ring.used_bytes(num)),
            self.translate,
            event_idx=bool(self.features & mask(Feature.EVENT_IDX)),
            indirect=bool(self.features & mask(Feature.INDIRECT_DESC)),
            base=vring.base)
        self.events.append(f"start {vring.index}")

    def stop(self, vring):
        if vring.ring:
            vring.base = vring.ring.position
            vring.ring = None
            self.events.append(f"stop {vring.index}")
        if vring.kick is not None:
            self.backend.unwatch(vring.kick)
            os.close(vring.kick)
            vring.kick = None

    def kicked(self, vring):
        try:
            os.eventfd_read(vring.kick)
        except BlockingIOError:
            return
        if vring.ring is None:
            self.start(vring)
        enabled = (vring.enabled or
                   not self.features & mask(Feature.PROTOCOL_FEATURES))
        if enabled:
            self.backend.on_kick(self, vring)

    def process(self, vring):
        """Serve all that is there: the good device's kick handler."""
        ring = vring.ring
        while True:
            ring.disable_notify()
            while True:
                chain = ring.pop()
                if chain is None:
                    break
                self.backend.served += 1
                self.backend.on_request(self, vring, chain)
            self.flush(vring)
            if ring.enable_notify():
                return

    def flush(self, vring):
        ring = vring.ring
        if ring.next_used != ring.told_used and ring.publish():
            self.call(vring)

    def call(self, vring):
        if vring.call is not None:
            os.eventfd_write(vring.call, 1)

    def config_change(self, need_reply=False):
        vu.send_msg(self.channel, vu.BackendRequest.CONFIG_CHANGE_MSG,
                    flags=vu.VERSION | (vu.NEED_REPLY if need_reply else 0))

    def drop_memory(self):
        for mapped in self.mem:
            mapped.close()
        self.mem = []

    def shut(self):
        for vring in self.vrings.values():
            self.stop(vring)
            for what in ("call", "err"):
                fd = getattr(vring, what)
                if fd is not None:
                    os.close(fd)
                    setattr(vring, what, None)
        self.drop_memory()
        if self.channel:
            self.channel.close()
        self.sock.close()
        self.events.append("closed")
        self.closed.set()


def echo(session, vring, chain):
    """The good device: what is readable goes into what is writable."""
    ring = vring.ring
    data = ring.gather(chain)
    room = chain.writable_len
    if data and room:
        data = (data * (room // len(data) + 1))[:room]
    ring.push(chain.head, ring.scatter(chain, data))


class Backend:
    """Listens on @path and serves every connection, in one thread."""

    def __init__(self, path, features=FEATURES, protocol=PROTOCOL,
                 queue_num=8, shmem=None):
        self.path = path
        self.features = features
        self.protocol = protocol
        self.queue_num = queue_num
        self.shmem = shmem or {}
        self.config = bytearray(range(64))
        self.sessions = []
        self.errors = []  # broken promises of the front-end, and own bugs
        self.served = 0
        self.good()
        self._cond = threading.Condition()
        self._sel = selectors.DefaultSelector()
        self._handlers = {}
        self._jobs = []
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(16)
        self._running = True
        self.watch(self._listener.fileno(), self._accept)
        self.watch(self._wake, self._run_jobs)
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def good(self):
        """Be the good device again."""
        self.on_message = {}
        self.on_kick = Session.process
        self.on_request = echo
        self.on_connect = None

    # -- the thread

    def watch(self, fd, handler):
        self._handlers[fd] = handler
        self._sel.register(fd, selectors.EVENT_READ)

    def unwatch(self, fd):
        if self._handlers.pop(fd, None):
            self._sel.unregister(fd)

    def _loop(self):
        while self._running:
            for key, _ in self._sel.select():
                handler = self._handlers.get(key.fd)
                if handler is None:
                    continue
                try:
                    handler()
                except Exception as e:  # recorded; the test fails on it
                    self.errors.append(e)

    def _run_jobs(self):
        os.eventfd_read(self._wake)
        while self._jobs:
            self._jobs.pop(0)()

    def _accept(self):
        sock, _ = self._listener.accept()
        session = Session(self, sock)
        self.watch(sock.fileno(), lambda: self._receive(session))
        with self._cond:
            self.sessions.append(session)
            self._cond.notify_all()
        if self.on_connect:
            self.on_connect(session)

    def _receive(self, session):
        fd = session.sock.fileno()
        try:
            msg = vu.recv_msg(session.sock, vu.deadline_in(5))
            session.handle(msg)
        except (vu.Closed, OSError, vu.Timeout):
            self.unwatch(fd)
            session.shut()
        with self._cond:
            self._cond.notify_all()

    # -- for the test's thread

    def run(self, job):
        """Run @job in the device's thread and wait for its result."""
        done = threading.Event()
        result = []

        def wrapped():
            try:
                result.append((job(), None))
            except Exception as e:
                result.append((None, e))
            done.set()

        self._jobs.append(wrapped)
        os.eventfd_write(self._wake, 1)
        assert done.wait(10), "the device's thread is stuck"
        value, error = result[0]
        if error:
            raise error
        return value

    def hang_up(self, session):
        """Close the connection of @session from this end."""
        def job():
            fd = session.sock.fileno()
            if fd >= 0:
                self.unwatch(fd)
                session.shut()
        self.run(job)

    def wait_for(self, condition, timeout=10):
        """Wait until @condition() holds; looked at after each message."""
        with self._cond:
            assert self._cond.wait_for(condition, timeout), "never happened"

    @property
    def session(self):
        return self.sessions[-1]

    def close(self):
        if not self._running:
            return

        def job():
            for session in self.sessions:
                fd = session.sock.fileno()
                if fd >= 0:
                    self.unwatch(fd)
                    session.shut()
            self._running = False
        self.run(job)
        self._thread.join(10)
        self._listener.close()
        os.close(self._wake)
        self._sel.close()
