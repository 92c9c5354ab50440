# SPDX-License-Identifier: Apache-2.0
"""Shared memory regions through the guard: what the backend may map into the
guest, what it may not, and a VMM that answers late, badly or never."""
import contextlib
import errno
import fcntl
import mmap
import os
import socket
import tempfile
import time

import pytest

import vhost_user as vu
from aftermath import rest_is_fine
from backend import PROTOCOL
from guard import Guard
from vhost_user import (NEED_REPLY, REPLY, VERSION, BackendRequest, Protocol,
                        Request, mask)

MAP, UNMAP = BackendRequest.SHMEM_MAP, BackendRequest.SHMEM_UNMAP
FENCE = BackendRequest.CONFIG_CHANGE_MSG
PAGE = mmap.PAGESIZE
REGIONS = {0: 1 << 30, 3: 64 * PAGE}
SHMEM = PROTOCOL | mask(Protocol.SHMEM_MAP, Protocol.BACKEND_SEND_FD)


@pytest.fixture(name="shmem")
def fixture_shmem(make_scene, sanitized):
    return make_scene(sanitized, "--device=console", "--pool-size=8M",
                      "--shmem=on", "--shmem-mappings=8", protocol=SHMEM,
                      shmem=REGIONS)


@contextlib.contextmanager
def memfd(pages=4, fill=b"m"):
    fd = os.memfd_create("shown", os.MFD_CLOEXEC)
    os.write(fd, fill * (pages * PAGE))
    try:
        yield fd
    finally:
        os.close(fd)


def ask(session, request, offset=0, length=PAGE, fds=(), shmid=0, at=0,
        flags=vu.WRITABLE, need_reply=True):
    vu.send_msg(session.channel, request,
                vu.MMAP.pack(shmid, at, offset, length, flags), fds,
                flags=VERSION | (NEED_REPLY if need_reply else 0))


def answer(session, timeout=10):
    """What the backend is told."""
    msg = vu.recv_msg(session.channel, vu.deadline_in(timeout))
    assert msg.flags & REPLY and msg.request in (MAP, UNMAP), msg
    assert not msg.fds
    return msg.u64


def next_message(vmm, timeout=10):
    msg = vu.recv_msg(vmm.channel, vu.deadline_in(timeout))
    while msg.request == FENCE and msg.flags == VERSION:
        # A device on the kit waits for mappings, too; the guard answers, and
        # tells us some milliseconds later.
        msg = vu.recv_msg(vmm.channel, vu.deadline_in(timeout))
    return msg


def asked(vmm, timeout=10):
    """What the VMM is asked: the message, the fields of its payload."""
    msg = next_message(vmm, timeout)
    assert msg.flags == VERSION | NEED_REPLY, msg
    return msg, vu.MMAP.unpack(msg.payload)


def say(vmm, request, status=0, fence=True):
    """The VMM's answer; a mapping that somebody waits for is followed by one
    more request, which is answered once the guest can see it."""
    vu.send_msg(vmm.channel, request, vu.U64.pack(status),
                flags=VERSION | REPLY)
    if request == MAP and not status and fence:
        msg = next_message(vmm)
        assert (msg.request, msg.flags, msg.payload) \
            == (FENCE, VERSION | NEED_REPLY, b"") and not msg.fds, msg
        vu.send_msg(vmm.channel, FENCE, vu.U64.pack(0), flags=VERSION | REPLY)


def nothing_asked(vmm):
    """Once the guard has done all that came before this."""
    vmm.fe.get_features()
    assert not vu.readable(vmm.channel)


def do(vmm, session, request, status=0, fds=(), **kw):
    """The whole way; returns the fds that the VMM got."""
    ask(session, request, fds=fds, **kw)
    msg, _ = asked(vmm)
    assert msg.request == request and len(msg.fds) == len(fds)
    say(vmm, request, status)
    assert answer(session) == status
    return msg.fds


def refused(vmm, session, request=MAP, **kw):
    ask(session, request, **kw)
    status = answer(session)
    assert status, "accepted"
    nothing_asked(vmm)
    return status


def complaint(scene):
    """Its only one."""
    scene.guard.wait_line(": (error|warning): (?!runs without)")
    line, = scene.guard.complaints()
    return line


def start(scene, **kw):
    vmm = scene.running(**kw)
    return vmm, scene.device.session


def finish(scene, witness, vmm):
    for queue in vmm.queues:
        queue.echo()
    vmm.close()
    rest_is_fine(scene, witness, vmm.ram)


# -- the legal way


def test_a_mapping_reaches_the_vmm_and_is_one_memory(shmem, witness):
    vmm, session = start(shmem)
    assert vmm.fe.get_shmem_config() == REGIONS
    with memfd() as fd:
        ask(session, MAP, 2 * PAGE, 2 * PAGE, (fd,), at=PAGE,
            flags=vu.WRITABLE)
        msg, fields = asked(vmm)
        assert fields == (0, PAGE, 2 * PAGE, 2 * PAGE, vu.WRITABLE)
        say(vmm, MAP)
        assert answer(session) == 0
        got, = msg.fds
        with mmap.mmap(got, 2 * PAGE, offset=PAGE) as shown:
            assert shown[:4] == b"mmmm"
            os.pwrite(fd, b"host", PAGE)
            assert shown[:4] == b"host"
            shown[PAGE:PAGE + 5] = b"guest"
            assert os.pread(fd, 5, 2 * PAGE) == b"guest"
        os.close(got)
    do(vmm, session, UNMAP, offset=2 * PAGE, length=2 * PAGE)
    assert not shmem.guard.complaints()
    assert not [f for f in shmem.guard.fds().values() if "shown" in f]
    finish(shmem, witness, vmm)


def test_read_only_stays_read_only(shmem, witness):
    """What is shown read-only has an fd with which nobody can do else: a VMM
    may forget the flag."""
    vmm, session = start(shmem)
    with memfd() as fd:
        only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        refused(vmm, session, fds=(only,), flags=vu.WRITABLE)
        refused(vmm, session, fds=(fd,), flags=0)
        ask(session, MAP, fds=(only,), flags=0)
        msg, fields = asked(vmm)
        assert fields[-1] == 0
        say(vmm, MAP)
        assert answer(session) == 0
        assert fcntl.fcntl(msg.fds[0], fcntl.F_GETFL) & os.O_ACCMODE \
            == os.O_RDONLY
        with pytest.raises(PermissionError):
            mmap.mmap(msg.fds[0], PAGE)
        vu.close_all((only, *msg.fds))
    complaint(shmem)
    finish(shmem, witness, vmm)


@pytest.mark.parametrize("kind", ["memfd", "file", "unlinked"])
def test_files_and_memfds_may_be_mapped(shmem, witness, folder, kind):
    vmm, session = start(shmem)
    with contextlib.ExitStack() as stack:
        if kind == "memfd":
            fd = stack.enter_context(memfd())
        elif kind == "file":
            f = stack.enter_context(open(f"{folder}/file", "w+b"))
            f.write(b"x" * PAGE)
            fd = f.fileno()
        else:
            f = stack.enter_context(tempfile.TemporaryFile())
            fd = f.fileno()
        vu.close_all(do(vmm, session, MAP, fds=(fd,), flags=vu.WRITABLE))
    assert not shmem.guard.complaints()
    finish(shmem, witness, vmm)


def test_without_need_reply_the_backend_hears_nothing(shmem, witness):
    vmm, session = start(shmem)
    with memfd() as fd:
        ask(session, MAP, fds=(fd,), need_reply=False)
        msg, _ = asked(vmm)
        vu.close_all(msg.fds)
        say(vmm, MAP)
        # The next answer is the next request's.
        assert refused(vmm, session, fds=(fd,))
    do(vmm, session, UNMAP)
    finish(shmem, witness, vmm)


# -- what is refused

GOOD = {"offset": 4 * PAGE, "length": PAGE}
TOP = 2 ** 64

BAD_MAPS = {
    "no_such_region": {"shmid": 1},
    "region_255": {"shmid": 255},
    "nothing": {"length": 0},
    "less_than_a_page": {"length": 100},
    "unaligned_offset": {"offset": 100},
    "unaligned_file_offset": {"at": 512},
    "beyond_the_end": {"offset": REGIONS[0]},
    "over_the_end": {"offset": REGIONS[0] - PAGE, "length": 2 * PAGE},
    "larger_than_its_region": {"shmid": 3, "offset": 0, "length": 65 * PAGE},
    "wraps": {"offset": PAGE, "length": TOP - PAGE},
    "wraps_to_good": {"offset": TOP - PAGE, "length": 2 * PAGE},
    "huge_offset": {"offset": TOP - PAGE},
    "huge_file_offset": {"at": TOP - PAGE},
    "negative_file_offset": {"at": 2 ** 63},
    "file_offset_wraps": {"at": 2 ** 63 - PAGE, "length": 2 * PAGE},
    "flag_2": {"flags": 2},
    "all_flags": {"flags": TOP - 1},
    "over_a_mapping": {"offset": 0},
    "into_a_mapping": {"offset": PAGE},
    "around_a_mapping": {"offset": 0, "length": 8 * PAGE},
    "before_into_a_mapping": {"offset": 0, "length": 2 * PAGE},
}


@pytest.mark.parametrize("bad", BAD_MAPS.values(), ids=BAD_MAPS)
def test_a_bad_mapping_is_refused(shmem, witness, bad):
    vmm, session = start(shmem)
    with memfd() as fd:
        vu.close_all(do(vmm, session, MAP, offset=0, length=4 * PAGE,
                        fds=(fd,)))
        refused(vmm, session, fds=(fd,), **{**GOOD, **bad})
        refused(vmm, session, fds=(fd,), **{**GOOD, **bad})
        vu.close_all(do(vmm, session, MAP, fds=(fd,), **GOOD))
    assert "SHMEM_MAP" in complaint(shmem)
    finish(shmem, witness, vmm)


BAD_UNMAPS = {
    "nothing_there": {"offset": 8 * PAGE, "length": PAGE},
    "its_beginning": {"offset": 0, "length": PAGE},
    "its_end": {"offset": PAGE, "length": 3 * PAGE},
    "more_than_it": {"offset": 0, "length": 5 * PAGE},
    "of_another_region": {"offset": 0, "length": 4 * PAGE, "shmid": 3},
    "of_no_region": {"offset": 0, "length": 4 * PAGE, "shmid": 9},
    "zero_length": {"offset": 0, "length": 0},
    "wraps": {"offset": 0, "length": TOP - 1},
}


@pytest.mark.parametrize("bad", BAD_UNMAPS.values(), ids=BAD_UNMAPS)
def test_only_a_whole_mapping_is_unmapped(shmem, witness, bad):
    vmm, session = start(shmem)
    with memfd() as fd:
        vu.close_all(do(vmm, session, MAP, offset=0, length=4 * PAGE,
                        fds=(fd,)))
    refused(vmm, session, UNMAP, **bad)
    do(vmm, session, UNMAP, offset=0, length=4 * PAGE)
    refused(vmm, session, UNMAP, offset=0, length=4 * PAGE)
    complaint(shmem)
    finish(shmem, witness, vmm)


def sysfs():
    return os.open("/sys/kernel/mm/transparent_hugepage/enabled", os.O_RDONLY)


NO_FILES = {
    "pipe": lambda folder: os.pipe()[0],
    "eventfd": lambda folder: os.eventfd(0),
    "socket": lambda folder: socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM).detach(),
    "folder": lambda folder: os.open(folder, os.O_RDONLY),
    "device": lambda folder: os.open("/dev/zero", os.O_RDWR),
    "procfs": lambda folder: os.open("/proc/self/mem", os.O_RDWR),
    "sysfs": lambda folder: sysfs(),
    "path_only": lambda folder: os.open(__file__, os.O_PATH),
    "write_only": lambda folder: os.open(
        f"{folder}/w", os.O_WRONLY | os.O_CREAT, 0o600),
}


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_memory_is_not_mapped(shmem, witness, folder, make):
    vmm, session = start(shmem)
    fd = make(folder)
    refused(vmm, session, fds=(fd,))
    refused(vmm, session, fds=(fd,), flags=0)
    os.close(fd)
    assert "fd" in complaint(shmem)
    finish(shmem, witness, vmm)


def test_guest_ram_and_the_pool_are_not_mapped(shmem, witness):
    vmm, session = start(shmem)
    for bank in vmm.ram.banks:
        refused(vmm, session, fds=(bank.fd,))
        ours = os.open(f"/proc/self/fd/{bank.fd}", os.O_RDONLY)
        refused(vmm, session, fds=(ours,), flags=0)
        os.close(ours)
    pool, = [m.fd for m in session.mem]
    refused(vmm, session, fds=(pool,))
    again = os.open(f"/proc/self/fd/{pool}", os.O_RDONLY)
    refused(vmm, session, fds=(again,), flags=0)
    os.close(again)
    assert "guest RAM, or the pool" in complaint(shmem)
    finish(shmem, witness, vmm)


def test_guest_ram_that_comes_later_is_known_too(shmem, witness):
    vmm, session = start(shmem, vmm={"add_mem_reg": True})
    with memfd(16) as fd:
        vu.close_all(do(vmm, session, MAP, fds=(fd,)))
        region = vu.Region(1 << 33, 16 * PAGE, 1 << 40, 0)
        assert vmm.fe.add_mem_reg(region, fd) == 0
        refused(vmm, session, fds=(fd,), **GOOD)
        assert vmm.fe.rem_mem_reg(region) == 0
        vu.close_all(do(vmm, session, MAP, fds=(fd,), **GOOD))
    finish(shmem, witness, vmm)


FORMS = {
    "no_fd": (MAP, vu.MMAP.size, 0),
    "two_fds": (MAP, vu.MMAP.size, 2),
    "eight_fds": (MAP, vu.MMAP.size, 8),
    "short": (MAP, vu.MMAP.size - 1, 1),
    "empty": (MAP, 0, 1),
    "long": (MAP, vu.MMAP.size + 8, 1),
    "unmap_with_an_fd": (UNMAP, vu.MMAP.size, 1),
    "unmap_short": (UNMAP, 8, 0),
}


@pytest.mark.parametrize("request_,size,nfds", FORMS.values(), ids=FORMS)
def test_a_message_of_the_wrong_form_is_refused(shmem, witness, request_,
                                                size, nfds):
    vmm, session = start(shmem)
    payload = (vu.MMAP.pack(0, 0, 0, PAGE, 0) + bytes(64))[:size]
    with memfd() as fd:
        vu.send_msg(session.channel, request_, payload, (fd,) * nfds,
                    flags=VERSION | NEED_REPLY)
        assert answer(session)
    nothing_asked(vmm)
    complaint(shmem)
    finish(shmem, witness, vmm)


def test_the_number_of_mappings_is_bounded(shmem, witness):
    vmm, session = start(shmem)
    with memfd() as fd:
        for n in range(8):
            vu.close_all(do(vmm, session, MAP, offset=n * PAGE, fds=(fd,)))
        refused(vmm, session, offset=8 * PAGE, fds=(fd,))
        do(vmm, session, UNMAP, offset=3 * PAGE)
        vu.close_all(do(vmm, session, MAP, offset=8 * PAGE, fds=(fd,)))
        refused(vmm, session, offset=3 * PAGE, fds=(fd,))
    assert "--shmem-mappings" in complaint(shmem)
    finish(shmem, witness, vmm)


# -- when


def test_nothing_is_mapped_before_the_driver_has_started(shmem, witness):
    vmm = shmem.vmm()
    vmm.negotiate()
    session = shmem.device.session
    with memfd() as fd:
        refused(vmm, session, fds=(fd,))
        vmm.share_memory()
        queue = vmm.add_queue()
        refused(vmm, session, fds=(fd,))
        queue.start()
        vmm.fe.get_features()
        vu.close_all(do(vmm, session, MAP, fds=(fd,)))
    assert "not started" in complaint(shmem)
    finish(shmem, witness, vmm)


RESETS = {
    "status_0": lambda vmm: vmm.fe.set_status(0),
    "reset_device": lambda vmm: vmm.fe.reset_device(),
    "reset_owner": lambda vmm: vmm.fe.set(Request.RESET_OWNER),
}


@pytest.mark.parametrize("reset", RESETS.values(), ids=RESETS)
@pytest.mark.parametrize("kept", [False, True], ids=["gone", "kept"])
def test_a_reset_unmaps_all(shmem, witness, reset, kept):
    """A VMM that only stopped the device has kept it; both are served."""
    vmm, session = start(shmem, queues=1)
    with memfd() as fd:
        vu.close_all(do(vmm, session, MAP, length=4 * PAGE, fds=(fd,)))
        assert not reset(vmm)
        refused(vmm, session, fds=(fd,), offset=8 * PAGE)
        vmm.queues[0].stop()
        vmm.queues[0].start()
        vmm.driver_ok()
        vmm.fe.get_features()
        if kept:
            do(vmm, session, UNMAP, length=4 * PAGE)
        else:  # it is unmapped, whatever the VMM says
            ask(session, UNMAP, length=4 * PAGE)
            asked(vmm)
            say(vmm, UNMAP, 1)
            assert answer(session) == 0
        refused(vmm, session, UNMAP, length=4 * PAGE)
        # In another place: the old one is in nobody's way.
        vu.close_all(do(vmm, session, MAP, offset=PAGE, fds=(fd,)))
        assert not reset(vmm)
        vmm.queues[0].stop()
        vmm.queues[0].start()
        vmm.driver_ok()
        vmm.fe.get_features()
        vu.close_all(do(vmm, session, MAP, length=4 * PAGE, fds=(fd,)))
        refused(vmm, session, UNMAP, offset=PAGE)
    finish(shmem, witness, vmm)


def test_nothing_is_mapped_while_queues_stop(shmem, witness):
    """The backend asks just when the VMM stops the first of two queues: the
    VMM must not find that among its messages, as it has stopped by then."""
    vmm, session = start(shmem, queues=2)
    said = []

    with memfd() as fd:
        def stopping(other, msg):
            ask(other, MAP, fds=(fd,))
            said.append(answer(other))
            return False

        shmem.device.on_message[Request.GET_VRING_BASE] = stopping
        for queue in vmm.queues:
            queue.stop()
        shmem.device.good()
        nothing_asked(vmm)
        assert len(said) == 2 and all(said), said
        for queue in vmm.queues:
            queue.start()
        vu.close_all(do(vmm, session, MAP, fds=(fd,)))
    finish(shmem, witness, vmm)


def test_nothing_is_mapped_once_a_queue_is_disabled(shmem, witness):
    """QEMU's stop begins with that, for all queues: what it is asked then it
    finds when it has stopped."""
    vmm, session = start(shmem, queues=2)
    said = []

    with memfd() as fd:
        def stopping(other, msg):
            ask(other, MAP, fds=(fd,))
            said.append(answer(other))
            return False

        for request in (Request.SET_VRING_ENABLE, Request.GET_VRING_BASE):
            shmem.device.on_message[request] = stopping
        for queue in vmm.queues:
            assert not vmm.fe.set_vring_enable(queue.index, 0)
        for queue in vmm.queues:
            queue.stop()
        shmem.device.good()
        nothing_asked(vmm)
        assert len(said) == 4 and all(said), said
        for queue in vmm.queues:
            queue.start()
        vu.close_all(do(vmm, session, MAP, fds=(fd,)))
    finish(shmem, witness, vmm)


@pytest.mark.parametrize("enable", [False, True], ids=["time", "enable"])
def test_a_queue_that_is_disabled_need_not_be_a_stop(shmem, witness, enable):
    """Drivers do that as well: after a second, or once the queue is enabled,
    mappings are made, and those that were under way are taken back."""
    vmm, session = start(shmem)
    with memfd() as fd:
        in_the_way(vmm, session, fd)
        assert not vmm.fe.set_vring_enable(1, 0)
        assert answer(session, 1) == errno.EINTR
        say(vmm, MAP, fence=False)
        nothing_asked(vmm)
        assert refused(vmm, session, fds=(fd,))
        if enable:
            assert not vmm.fe.set_vring_enable(1, 1)
        msg, fields = asked(vmm, 0.5 if enable else 3)
        assert msg.request == UNMAP and fields[2:4] == (0, PAGE)
        say(vmm, UNMAP)
        vmm.fe.get_features()
        vu.close_all(do(vmm, session, MAP, fds=(fd,)))
        assert enable or not vmm.fe.set_vring_enable(1, 1)
    finish(shmem, witness, vmm)


def test_a_vmm_without_shared_memory_is_never_asked(shmem, witness):
    for without in (Protocol.SHMEM_MAP, Protocol.REPLY_ACK,
                    Protocol.BACKEND_REQ):
        vmm = shmem.vmm(protocol=SHMEM & ~mask(without)).setup()
        with memfd() as fd:
            ask(shmem.device.session, MAP, fds=(fd,))
            assert answer(shmem.device.session)
        if vmm.channel:
            nothing_asked(vmm)
        finish(shmem, witness, vmm)


@pytest.mark.parametrize("options", [["--device=console"],
                                     ["--device=fs", "--shmem=off"]])
def test_switched_off_there_are_no_regions(make_scene, sanitized, options):
    scene = make_scene(sanitized, *options, protocol=SHMEM, shmem=REGIONS)
    vmm, session = start(scene)
    assert not vmm.offered_protocol & mask(Protocol.SHMEM_MAP)
    assert not session.protocol & mask(Protocol.SHMEM_MAP)
    with memfd() as fd:
        refused(vmm, session, fds=(fd,))
    for queue in vmm.queues:
        queue.echo()
    vmm.ram.check()


def test_a_file_system_has_regions_by_itself(make_scene, sanitized):
    scene = make_scene(sanitized, "--device=fs", protocol=SHMEM,
                       shmem=REGIONS)
    vmm, _ = start(scene)
    assert vmm.fe.get_shmem_config() == REGIONS


@pytest.mark.parametrize("regions", [
    {0: PAGE + 1}, {0: 2 ** 41}, {n: 2 ** 40 for n in range(9)},
    {7: 2 ** 64 - PAGE}, {255: 1}], ids=str)
def test_absurd_regions_are_not_offered(make_scene, sanitized, regions):
    scene = make_scene(sanitized, "--device=fs", protocol=SHMEM,
                       shmem=regions)
    vmm, _ = start(scene)
    assert not vmm.offered_protocol & mask(Protocol.SHMEM_MAP)
    complaint(scene)


@pytest.mark.parametrize("reply", [
    b"", bytes(4), vu.shmem_config({}, count=257),
    vu.shmem_config({}, count=2 ** 32 - 1), vu.shmem_config({0: PAGE}, 9, 8),
    vu.shmem_config({}) + bytes(8)], ids=range(6))
def test_malformed_region_config_ends_the_backend(make_scene, sanitized,
                                                  reply):
    def lie(session, msg):
        session.reply(msg, reply)
        return True
    scene = make_scene(sanitized, "--device=fs", protocol=SHMEM, listens=False,
                       on_message={Request.GET_SHMEM_CONFIG: lie})
    assert scene.guard.wait(15) == 1
    complaint(scene)


# -- the VMM's answers


def test_a_vmm_that_refuses_is_believed(shmem, witness):
    vmm, session = start(shmem)
    with memfd() as fd:
        for _ in range(2):
            vu.close_all(do(vmm, session, MAP, status=1, fds=(fd,)))
        vu.close_all(do(vmm, session, MAP, fds=(fd,)))
        do(vmm, session, UNMAP, status=77)
        do(vmm, session, UNMAP)
    complaint(shmem)
    finish(shmem, witness, vmm)


def test_the_queues_go_on_while_the_vmm_thinks(shmem, witness):
    vmm, session = start(shmem, queues=2)
    with memfd() as fd:
        ask(session, MAP, fds=(fd,))
        msg, _ = asked(vmm)
        vu.close_all(msg.fds)
        # The backend's further requests wait their turn.
        ask(session, UNMAP)
        for _ in range(20):
            for queue in vmm.queues:
                queue.echo()
        assert shmem.guard.idle_cpu() < 0.02
        nothing_asked(vmm)
        say(vmm, MAP)
        assert answer(session) == 0
        msg, _ = asked(vmm)
        assert msg.request == UNMAP
        say(vmm, UNMAP)
        assert answer(session) == 0
    assert not shmem.guard.complaints()
    finish(shmem, witness, vmm)


def test_a_vmm_that_never_answers_is_asked_no_more(shmem, witness):
    vmm, session = start(shmem)
    with memfd() as fd:
        ask(session, MAP, fds=(fd,))
        assert answer(session, 15)
        for queue in vmm.queues:
            queue.echo()
        ask(session, MAP, fds=(fd,))
        assert answer(session)
    assert shmem.guard.idle_cpu() < 0.02
    assert len(shmem.guard.find("does not answer")) == 1
    finish(shmem, witness, vmm)


def in_the_way(vmm, session, fd):
    """The VMM is asked for a mapping and does not answer yet."""
    ask(session, MAP, fds=(fd,))
    msg, _ = asked(vmm)
    vu.close_all(msg.fds)


def test_a_backend_is_told_when_the_guest_can_see_it(shmem, witness):
    """QEMU 11.1 answers before that, and then once more."""
    vmm, session = start(shmem)
    with memfd() as fd:
        in_the_way(vmm, session, fd)
        say(vmm, MAP, fence=False)
        msg = vu.recv_msg(vmm.channel, vu.deadline_in(10))
        assert msg.request == FENCE and msg.flags & NEED_REPLY
        vmm.fe.get_features()
        assert not vu.readable(session.channel)
        say(vmm, FENCE)
        assert answer(session) == 0
    do(vmm, session, UNMAP)
    finish(shmem, witness, vmm)


@pytest.mark.parametrize("stop", ["vring_base", "status", "reset_device"])
def test_a_vmm_that_stops_is_not_waited_for(shmem, witness, stop):
    """Its thread is busy with the stop and answers later, perhaps with yes:
    then the mapping is taken back, for the backend knows nothing of it."""
    vmm, session = start(shmem, queues=1)
    queue, = vmm.queues
    with memfd() as fd:
        in_the_way(vmm, session, fd)
        if stop == "status":
            assert not vmm.fe.set_status(0)
        if stop == "reset_device":
            assert not vmm.fe.reset_device()
        queue.stop()
        assert answer(session, 1), "it was told before the stop was through"
        say(vmm, MAP, fence=False)
        nothing_asked(vmm)
        queue.start()
        vmm.driver_ok()
        msg, fields = asked(vmm)
        assert msg.request == UNMAP and fields[2:4] == (0, PAGE)
        assert refused_now(session, fd)
        say(vmm, UNMAP)
        vmm.fe.get_features()
        vu.close_all(do(vmm, session, MAP, fds=(fd,)))
    finish(shmem, witness, vmm)


def refused_now(session, fd):
    ask(session, MAP, fds=(fd,))
    return answer(session, 2)


def test_a_vmm_that_waits_for_the_backend_is_not_waited_for(shmem, witness):
    """It asks for config space; the backend answers that only when it has its
    mapping: somebody has to give in, and soon."""
    vmm, session = start(shmem)
    said = []

    with memfd() as fd:
        def config(other, msg):
            said.append(answer(other))
            return False

        in_the_way(vmm, session, fd)
        shmem.device.on_message[Request.GET_CONFIG] = config
        assert vmm.fe.get_config(0, 8) is not None
        shmem.device.good()
        assert said and said[0]
        say(vmm, MAP, fence=False)  # late: taken back
        msg, _ = asked(vmm)
        assert msg.request == UNMAP
        say(vmm, UNMAP)
        vmm.fe.get_features()
        vu.close_all(do(vmm, session, MAP, fds=(fd,)))
    finish(shmem, witness, vmm)


def test_a_backend_that_asks_late_in_a_message_is_told_soon(shmem, witness):
    """However long the VMM has waited by then."""
    vmm, session = start(shmem)
    said = []

    with memfd() as fd:
        def config(other, msg):
            time.sleep(0.2)  # what is late is the point
            before = time.monotonic()
            ask(other, MAP, fds=(fd,))
            said.append(answer(other))
            assert time.monotonic() - before < 1
            return False

        shmem.device.on_message[Request.GET_CONFIG] = config
        assert vmm.fe.get_config(0, 8) is not None
        shmem.device.good()
        assert said == [errno.EINTR]
        msg, _ = asked(vmm)
        vu.close_all(msg.fds)
        say(vmm, MAP, fence=False)  # late: taken back
        msg, _ = asked(vmm)
        assert msg.request == UNMAP
        say(vmm, UNMAP)
        vmm.fe.get_features()
        vu.close_all(do(vmm, session, MAP, fds=(fd,)))
    finish(shmem, witness, vmm)


ANSWERS = {
    "of_another_request": lambda ch: vu.send_msg(
        ch, UNMAP, vu.U64.pack(0), flags=VERSION | REPLY),
    "not_a_reply": lambda ch: vu.send_msg(ch, MAP, vu.U64.pack(0)),
    "empty": lambda ch: vu.send_msg(ch, MAP, flags=VERSION | REPLY),
    "too_long": lambda ch: vu.send_msg(ch, MAP, bytes(16),
                                       flags=VERSION | REPLY),
    "wrong_version": lambda ch: vu.send_msg(ch, MAP, bytes(8), flags=REPLY),
    "garbage": lambda ch: vu.send_raw(ch, b"\xa5" * 5000),
    "with_fds": lambda ch: vu.send_msg(ch, MAP, bytes(8), (0, 1),
                                       flags=VERSION | REPLY),
    "closed": lambda ch: ch.shutdown(socket.SHUT_RDWR),
}


@pytest.mark.parametrize("reply", ANSWERS.values(), ids=ANSWERS)
def test_a_malformed_answer_ends_the_channel_only(shmem, witness, reply):
    vmm, session = start(shmem)
    with memfd() as fd:
        in_the_way(vmm, session, fd)
        reply(vmm.channel)
        assert answer(session)
        ask(session, MAP, fds=(fd,))
        assert answer(session)
    finish(shmem, witness, vmm)


def test_a_vmm_that_leaves_meanwhile_leaves_nothing(shmem, witness):
    vmm, session = start(shmem)
    with memfd() as fd:
        in_the_way(vmm, session, fd)
        vmm.close()
        assert session.closed.wait(10)
    rest_is_fine(shmem, witness, vmm.ram)
    assert not [f for f in shmem.guard.fds().values() if "shown" in f]


def test_a_new_channel_takes_the_place_of_the_old(shmem, witness):
    vmm, session = start(shmem)
    with memfd() as fd:
        in_the_way(vmm, session, fd)
        old, (vmm.channel, theirs) = vmm.channel, socket.socketpair()
        assert not vmm.fe.set_backend_req_fd(theirs.fileno())
        theirs.close()
        assert answer(session)
        vu.close_all(do(vmm, session, MAP, fds=(fd,), **GOOD))
        old.close()
    finish(shmem, witness, vmm)


def test_a_flood_of_mappings_starves_nobody(shmem, witness):
    vmm, session = start(shmem, queues=2)
    before = shmem.guard.memory()
    session.channel.setblocking(False)
    message = vu.HEADER.pack(MAP, VERSION | NEED_REPLY, vu.MMAP.size) \
        + vu.MMAP.pack(200, 0, 0, PAGE, 0)
    with memfd() as fd:
        for n in range(40):
            try:
                for _ in range(500):
                    vu.send_raw(session.channel, message, (fd,))
            except (BlockingIOError, vu.Closed):
                pass
            vmm.queues[n % 2].echo(64)
    assert shmem.guard.memory() - before < 1 << 20
    finish(shmem, witness, vmm)


def test_bad_options_are_usage_errors(plain, folder):
    for bad in ("--shmem=maybe", "--shmem-mappings=0",
                "--shmem-mappings=99999", "--shmem-mappings=x"):
        guard = Guard(plain, folder, f"{folder}/none", bad, listens=False)
        assert guard.wait() == 2 and bad[:8] in "".join(guard.lines)
