# SPDX-License-Identifier: Apache-2.0
"""Shared memory regions of a device on the kit, against a VMM that answers
late, badly or never: tests/tools/window.c does what its requests say."""
import errno
import mmap
import os
import signal
import socket
import struct
import time

import pytest

import vhost_user as vu
from guard import Guard
from guest import MIB, Vmm
from split_ring import WRITE
from test_shmem import FENCE, MAP, PAGE, UNMAP, asked, say
from vhost_user import (REPLY, VERSION, BackendRequest, Protocol, Region,
                        Request, mask)

ORDER = struct.Struct("<IIQQQII")
OP_MAP, OP_UNMAP, OP_USABLE, OP_FORMER = 1, 2, 3, 4
ALL = 2 ** 64 - 1


class Window(Guard):
    def __init__(self, build, folder, *options):
        self.path = f"{folder}/w"
        program = build.program.replace("src/cmd/moat", "tests/tools/window")
        sandbox = [o for o in build.options if o == "--sandbox=none"]
        self._start(build, [program, f"--socket-path={self.path}",
                            "--num-queues=4", "--threads=2", *sandbox,
                            *options])


@pytest.fixture(name="window", params=["plain", "sanitized"])
def fixture_window(keep, folder, request):
    with open(f"{folder}/file", "wb") as f:
        f.write(b"f" * (16 * PAGE))
    return keep(Window(request.getfixturevalue(request.param), folder,
                       f"--file={folder}/file"))


@pytest.fixture(name="vmm")
def fixture_vmm(keep, window):
    return keep(Vmm.connect(window.path)).setup(queues=4)


def order(vmm, operation, offset=0, length=PAGE, at=0, writable=1, shmid=0,
          queue=0):
    """Tells the device what to do; does not wait."""
    queue = vmm.queues[queue]
    src, dst = vmm.ram.alloc(ORDER.size), vmm.ram.alloc(4)
    vmm.ram.write(src, ORDER.pack(operation, shmid, offset, length, at,
                                  writable, 0))
    vmm.ram.device_may_write(dst, 4)
    queue.ring.add([(src, ORDER.size, 0), (dst, 4, WRITE)])
    queue.publish()
    return dst


def result(vmm, dst, queue=0, timeout=10):
    vmm.queues[queue].wait_used(timeout=timeout)
    value, = struct.unpack("<i", vmm.ram.read(dst, 4))
    return value


def tell(vmm, *args, **kw):
    """An order that needs no VMM."""
    return result(vmm, order(vmm, *args, **kw), kw.get("queue", 0))


def do(vmm, operation, status=0, **kw):
    """An order and the VMM's answer: the result, the fds."""
    dst = order(vmm, operation, **kw)
    msg, _ = asked(vmm)
    say(vmm, msg.request, status)
    return result(vmm, dst, kw.get("queue", 0)), msg.fds


def good(vmm, operation=OP_MAP, **kw):
    value, fds = do(vmm, operation, **kw)
    vu.close_all(fds)
    assert value == 0


def quiet(vmm):
    vmm.fe.get_features()
    assert not vu.readable(vmm.channel)


def test_a_device_shows_its_file(window, vmm):
    assert vmm.fe.get_shmem_config() == {0: 1 << 30}
    assert tell(vmm, OP_USABLE) == 1
    dst = order(vmm, OP_MAP, offset=4 * PAGE, length=2 * PAGE, at=PAGE,
                writable=1)
    msg, fields = asked(vmm)
    assert fields == (0, PAGE, 4 * PAGE, 2 * PAGE, vu.WRITABLE)
    say(vmm, MAP)
    assert result(vmm, dst) == 0
    with mmap.mmap(msg.fds[0], 2 * PAGE, offset=PAGE) as shown:
        assert shown[:2] == b"ff"
    vu.close_all(msg.fds)
    good(vmm, OP_UNMAP, offset=4 * PAGE, length=2 * PAGE)
    quiet(vmm)
    assert not window.complaints()


def test_mistakes_are_not_sent(window, vmm):
    good(vmm, offset=0, length=4 * PAGE)
    for kw, error in (
            ({"offset": PAGE}, errno.EEXIST),
            ({"offset": 0, "length": 8 * PAGE}, errno.EEXIST),
            ({"offset": 1 << 30}, errno.EINVAL),
            ({"offset": 8 * PAGE, "length": 0}, errno.EINVAL),
            ({"offset": 8 * PAGE, "length": 5}, errno.EINVAL),
            ({"offset": 8 * PAGE, "at": 5}, errno.EINVAL),
            ({"offset": 8 * PAGE, "at": 2 ** 64 - PAGE}, errno.EINVAL),
            ({"offset": 2 ** 64 - PAGE, "length": 2 * PAGE}, errno.EINVAL),
            ({"shmid": 1}, errno.EINVAL), ({"shmid": 255}, errno.EINVAL)):
        assert tell(vmm, OP_MAP, **kw) == -error, kw
    assert tell(vmm, OP_UNMAP, offset=0) == -errno.ENOENT
    assert tell(vmm, OP_UNMAP, offset=8 * PAGE) == -errno.ENOENT
    quiet(vmm)
    good(vmm, OP_UNMAP, offset=0, length=4 * PAGE)


def test_what_a_former_process_left_is_the_front_ends_matter(window, vmm):
    """It is asked as it is told; only what is this one's is spared."""
    good(vmm, offset=0, length=4 * PAGE)
    for kw, error in (
            ({"offset": 0, "length": 4 * PAGE}, errno.EEXIST),
            ({"offset": 3 * PAGE, "length": 8 * PAGE}, errno.EEXIST),
            ({"offset": 8 * PAGE, "length": 0}, errno.EINVAL),
            ({"offset": 8 * PAGE, "length": 5}, errno.EINVAL),
            ({"offset": 1 << 30}, errno.EINVAL),
            ({"offset": 2 ** 64 - PAGE, "length": 2 * PAGE}, errno.EINVAL),
            ({"shmid": 1}, errno.EINVAL)):
        assert tell(vmm, OP_FORMER, **kw) == -error, kw
    quiet(vmm)
    place = {"offset": 4 * PAGE, "length": 60 * PAGE}
    dst = order(vmm, OP_FORMER, **place)
    msg, fields = asked(vmm)
    assert msg.request == UNMAP
    assert fields == (0, 0, 4 * PAGE, 60 * PAGE, 0)
    say(vmm, UNMAP)
    assert result(vmm, dst) == 0
    for status, error in ((1, errno.EIO), (errno.ENOENT, errno.EIO),
                          (errno.EINTR, errno.EINTR),
                          (errno.ENOTCONN, errno.ENOTCONN)):
        assert do(vmm, OP_FORMER, status=status, **place)[0] == -error
    good(vmm, OP_UNMAP, offset=0, length=4 * PAGE)


def test_a_former_process_and_a_stop(window, vmm):
    """Who waits is let go, and can ask again."""
    dst = order(vmm, OP_FORMER, length=9 * PAGE)
    asked(vmm)
    vmm.queues[1].stop()
    assert result(vmm, dst) == -errno.EINTR
    say(vmm, UNMAP)
    vmm.queues[1].start()
    good(vmm, OP_FORMER, length=9 * PAGE)
    good(vmm)


def test_a_front_end_that_refuses_is_believed(window, vmm):
    value, fds = do(vmm, OP_MAP, status=1)
    vu.close_all(fds)
    assert value == -errno.EIO
    good(vmm)
    assert do(vmm, OP_UNMAP, status=1)[0] == -errno.EIO
    good(vmm, OP_UNMAP)
    # What the guard says has a meaning.
    for error in (errno.EINTR, errno.ENOTCONN, errno.ENOSPC):
        value, fds = do(vmm, OP_MAP, status=error)
        vu.close_all(fds)
        assert value == -error


@pytest.mark.parametrize("without", [Protocol.SHMEM_MAP, Protocol.REPLY_ACK,
                                     Protocol.BACKEND_REQ],
                         ids=lambda p: p.name)
def test_a_front_end_that_can_not_is_not_asked(keep, window, without):
    vmm = keep(Vmm.connect(window.path, protocol=ALL & ~mask(without)))
    vmm.setup(queues=4)
    assert tell(vmm, OP_USABLE) == 0
    assert tell(vmm, OP_MAP) == -errno.ENOTCONN
    assert tell(vmm, OP_UNMAP) == -errno.ENOTCONN


def test_a_device_without_regions_offers_none(keep, folder, plain):
    window = keep(Window(plain, folder, "--size=0"))
    vmm = keep(Vmm.connect(window.path)).setup(queues=1)
    assert not vmm.offered_protocol & mask(Protocol.SHMEM_MAP)
    assert tell(vmm, OP_USABLE) == 0


def test_a_region_that_is_no_pages_is_refused_at_the_start(folder, plain):
    window = Window.__new__(Window)
    window.path = f"{folder}/w"
    window._start(plain, [
        plain.program.replace("src/cmd/moat", "tests/tools/window"),
        f"--socket-path={window.path}", "--size=5000"], listens=False)
    assert window.wait() == 1
    assert window.find("region 0 of 5000 bytes")


STOPS = {
    "get_vring_base": lambda vmm: vmm.queues[0].stop(),
    "status_0": lambda vmm: vmm.fe.set_status(0),
    "reset_device": lambda vmm: vmm.fe.reset_device(),
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_a_stop_does_not_wait_for_an_answer(window, vmm, stop):
    """The VMM waits for the stop and answers nobody: the order is given up.
    When the answer comes late, the mapping is taken back."""
    dst = order(vmm, OP_MAP)
    msg, _ = asked(vmm)
    vu.close_all(msg.fds)
    begin = time.monotonic()
    stop(vmm)
    assert time.monotonic() - begin < 2
    assert result(vmm, dst) == -errno.EINTR
    for queue in vmm.queues:
        if queue.index or stop is not STOPS["get_vring_base"]:
            queue.stop()
        queue.start()
    say(vmm, MAP, fence=False)
    dst = order(vmm, OP_MAP)
    msg, fields = asked(vmm)
    assert msg.request == UNMAP and fields[2:4] == (0, PAGE)
    say(vmm, UNMAP)
    msg, _ = asked(vmm)
    assert msg.request == MAP
    vu.close_all(msg.fds)
    say(vmm, MAP)
    assert result(vmm, dst) == 0
    vmm.ram.check()


def test_while_a_queue_is_stopped_nothing_is_mapped(window, vmm):
    vmm.queues[0].stop()
    assert tell(vmm, OP_MAP, queue=1) == -errno.ENOTCONN
    quiet(vmm)
    vmm.queues[0].start()
    good(vmm, queue=1)


@pytest.mark.parametrize("ask", [
    lambda vmm: vmm.fe.set_mem_table(vmm.ram.regions, vmm.ram.fds),
    lambda vmm: vmm.fe.set_vring_enable(0, 1),
    lambda vmm: vmm.fe.set_vring_call(0, vmm.queues[0].call_fd),
], ids=["set_mem_table", "set_vring_enable", "set_vring_call"])
def test_no_message_waits_long_for_an_answer(window, vmm, ask):
    """A VMM whose one thread waits for the message can not answer."""
    dst = order(vmm, OP_MAP)
    msg, _ = asked(vmm)
    vu.close_all(msg.fds)
    begin = time.monotonic()
    assert ask(vmm) == 0
    assert time.monotonic() - begin < 2
    assert result(vmm, dst) == -errno.EINTR
    say(vmm, MAP, 1)
    good(vmm)


def test_a_front_end_of_several_threads_is_waited_for(window, vmm):
    """Its other thread answers while it waits: nothing is given up."""
    dst = order(vmm, OP_MAP)
    msg, _ = asked(vmm)
    vu.close_all(msg.fds)
    vmm.fe.send(Request.SET_VRING_ENABLE, vu.VRING_STATE.pack(0, 1),
                flags=VERSION | vu.NEED_REPLY)
    say(vmm, MAP)
    assert vmm.fe.recv().u64 == 0
    assert result(vmm, dst) == 0


def test_a_front_end_that_never_answers_is_not_waited_for_ever(window, vmm):
    dst = order(vmm, OP_MAP)
    msg, _ = asked(vmm)
    vu.close_all(msg.fds)
    assert result(vmm, dst, timeout=20) == -errno.ETIMEDOUT
    say(vmm, MAP, fence=False)  # in the end
    dst = order(vmm, OP_MAP)
    assert asked(vmm)[0].request == UNMAP
    say(vmm, UNMAP)
    vu.close_all(asked(vmm)[0].fds)
    say(vmm, MAP)
    assert result(vmm, dst) == 0


ANSWERS = {
    "of_another_request": lambda ch: vu.send_msg(
        ch, UNMAP, vu.U64.pack(0), flags=VERSION | REPLY),
    "not_a_reply": lambda ch: vu.send_msg(ch, MAP, vu.U64.pack(0)),
    "empty": lambda ch: vu.send_msg(ch, MAP, flags=VERSION | REPLY),
    "with_an_fd": lambda ch: vu.send_msg(ch, MAP, bytes(8), (0,),
                                         flags=VERSION | REPLY),
    "garbage": lambda ch: vu.send_raw(ch, b"\xa5" * 5000),
    "closed": lambda ch: ch.shutdown(socket.SHUT_RDWR),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_malformed_answer_ends_the_channel_only(window, vmm, answer):
    dst = order(vmm, OP_MAP)
    msg, _ = asked(vmm)
    vu.close_all(msg.fds)
    answer(vmm.channel)
    assert result(vmm, dst) == -errno.ENOTCONN
    assert tell(vmm, OP_USABLE) == 0
    vmm.channel, theirs = socket.socketpair()
    with theirs:
        assert not vmm.fe.set_backend_req_fd(theirs.fileno())
    good(vmm)


def test_a_vmm_that_leaves_meanwhile_is_followed_by_the_next(keep, window,
                                                             vmm):
    good(vmm, offset=8 * PAGE)
    order(vmm, OP_MAP)
    vu.close_all(asked(vmm)[0].fds)
    vmm.close()
    again = keep(Vmm.connect(window.path)).setup(queues=4)
    good(again)
    good(again, offset=8 * PAGE)  # nothing is left of the first one's
    assert not window.complaints()


def test_config_changes_come_through_meanwhile(window, vmm):
    dst = order(vmm, OP_MAP)
    vu.close_all(asked(vmm)[0].fds)
    window.process.send_signal(signal.SIGHUP)
    msg = vu.recv_msg(vmm.channel, vu.deadline_in(10))
    assert msg.request == BackendRequest.CONFIG_CHANGE_MSG
    say(vmm, MAP)
    assert result(vmm, dst) == 0


def test_threads_of_the_device_take_turns(window, vmm):
    """Four queues on two threads order at once; each answer is its own's."""
    orders = [(q, order(vmm, OP_MAP, offset=16 * PAGE * q, queue=q))
              for q in range(4)]
    for _ in orders:
        msg, fields = asked(vmm)
        vu.close_all(msg.fds)
        say(vmm, MAP, 1 if fields[2] == 16 * PAGE else 0)
    assert [result(vmm, dst, q) for q, dst in orders] \
        == [0, -errno.EIO, 0, 0]


def test_a_reset_forgets_all(window, vmm):
    good(vmm, length=4 * PAGE)
    assert not vmm.fe.set_status(0)
    for queue in vmm.queues:
        queue.stop()
        queue.start()
    # In the way of nobody; and gone whatever the front-end says of it.
    good(vmm, offset=PAGE)
    assert tell(vmm, OP_UNMAP, length=4 * PAGE) == -errno.ENOENT
    assert not vmm.fe.set_status(0)
    for queue in vmm.queues:
        queue.stop()
        queue.start()
    assert do(vmm, OP_UNMAP, offset=PAGE, status=1)[0] == 0
    assert tell(vmm, OP_UNMAP, offset=PAGE) == -errno.ENOENT


def test_memory_comes_and_goes_while_a_mapping_is_waited_for(keep, window):
    """QEMU tells of each mapping as of memory, and answers nothing else until
    we have answered that: the request that it is about must not wait for
    itself."""
    vmm = keep(Vmm.connect(window.path, add_mem_reg=True)).setup(queues=4)
    more = Region(0x2_0000_0000, MIB, 0x7f41_0000_0000, 0)
    memory = os.memfd_create("more", os.MFD_CLOEXEC)
    os.ftruncate(memory, MIB)
    for n in range(100):
        dst = order(vmm, OP_MAP, offset=n * PAGE)
        vu.close_all(asked(vmm)[0].fds)
        assert not vmm.fe.add_mem_reg(more, memory)
        if n % 2:
            assert not vmm.fe.rem_mem_reg(more)
        say(vmm, MAP)
        assert result(vmm, dst) == 0
        # What came is there for the next request, whatever its queue.
        if not n % 2:
            queue = vmm.queues[n % 4]
            os.pwrite(memory, ORDER.pack(OP_USABLE, 0, 0, 0, 0, 0, 0), 64)
            queue.ring.add([(more.guest_address + 64, ORDER.size, 0),
                            (more.guest_address + 128, 4, WRITE)])
            queue.publish()
            queue.wait_used()
            assert os.pread(memory, 4, 128) == struct.pack("<i", 1)
            assert not vmm.fe.rem_mem_reg(more)
    os.close(memory)
    # Nothing of it stays mapped for long.
    tell(vmm, OP_USABLE)
    assert not vmm.fe.add_mem_reg(more, vmm.ram.fds[0])
    end = time.monotonic() + 10
    while len([m for m in window.mappings() if "more" in m]) >= 10:
        assert time.monotonic() < end, window.mappings()
        assert not vmm.fe.rem_mem_reg(more)
        assert not vmm.fe.add_mem_reg(more, vmm.ram.fds[0])


def fence_asked(vmm):
    msg = vu.recv_msg(vmm.channel, vu.deadline_in(10))
    assert msg.request == FENCE and msg.flags & vu.NEED_REPLY, msg


def test_nobody_is_told_of_a_mapping_before_it_can_be_seen(window, vmm):
    """QEMU 11.1 answers first; it has shown it when it answers once more.  Who
    gives up until then has nothing mapped."""
    dst = order(vmm, OP_MAP)
    vu.close_all(asked(vmm)[0].fds)
    say(vmm, MAP, fence=False)
    fence_asked(vmm)
    vmm.fe.get_features()
    assert not vmm.queues[0].ring.reap()
    say(vmm, FENCE)
    assert result(vmm, dst) == 0
    dst = order(vmm, OP_MAP, offset=PAGE)
    vu.close_all(asked(vmm)[0].fds)
    say(vmm, MAP, fence=False)
    fence_asked(vmm)
    vmm.queues[1].stop()
    vmm.queues[0].stop()
    assert result(vmm, dst) == -errno.EINTR
    vmm.queues[0].start()
    say(vmm, FENCE)
    dst = order(vmm, OP_MAP, offset=PAGE)
    assert asked(vmm)[0].request == UNMAP
    say(vmm, UNMAP)
    vu.close_all(asked(vmm)[0].fds)
    say(vmm, MAP)
    assert result(vmm, dst) == 0


def test_without_config_space_there_is_no_second_answer(keep, window):
    vmm = keep(Vmm.connect(window.path,
                           protocol=ALL & ~mask(Protocol.CONFIG)))
    vmm.setup(queues=4)
    dst = order(vmm, OP_MAP)
    vu.close_all(asked(vmm)[0].fds)
    say(vmm, MAP, fence=False)
    assert result(vmm, dst) == 0


def test_behind_a_guard_nothing_changes(keep, folder, window, sanitized):
    guard = keep(Guard(sanitized, folder, window.path, "--device=fs",
                       "--pool-size=8M"))
    vmm = keep(Vmm.connect(guard.path)).setup(queues=4)
    assert vmm.fe.get_shmem_config() == {0: 1 << 30}
    for _ in range(3):
        good(vmm)
        good(vmm, OP_UNMAP)
    # The VMM stops the device, and answers nothing meanwhile.
    order(vmm, OP_MAP, queue=1)
    msg, _ = asked(vmm)
    vu.close_all(msg.fds)
    begin = time.monotonic()
    for queue in vmm.queues:
        queue.stop()
    assert time.monotonic() - begin < 4
    for queue in vmm.queues:
        queue.start()
    vmm.fe.get_features()
    say(vmm, MAP, fence=False)
    assert asked(vmm)[0].request == UNMAP
    say(vmm, UNMAP)
    vmm.fe.get_features()
    good(vmm)
    vmm.ram.check()
    assert not guard.find("error: "), guard.lines
