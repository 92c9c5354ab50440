# SPDX-License-Identifier: Apache-2.0
"""Shared memory regions of a guard that outlives its backend: what a dead one
mapped stays for the guest, and neither is in its successor's way nor out of
its reach."""
import errno
import time

import pytest

import vhost_user as vu
from backend import PROTOCOL, Backend
from share import until
from test_restart import Gone, kill, session_ends, start
from test_shmem import (MAP, PAGE, UNMAP, answer, ask, asked, do, memfd,
                        nothing_asked, refused, say)
from vhost_user import Protocol, mask

REGIONS = {0: 64 * PAGE, 2: 16 * PAGE}
SHMEM = {"protocol": PROTOCOL | mask(Protocol.SHMEM_MAP,
                                     Protocol.BACKEND_SEND_FD),
         "shmem": REGIONS}


@pytest.fixture(name="build", params=["plain", "sanitized"])
def fixture_build(request):
    return request.getfixturevalue(request.param)


def begin(make_scene, build, *options):
    return start(make_scene, build, "--shmem=on", *options, **SHMEM)


def shown(vmm, session, fd, *places):
    """Mapped, each of (page, pages)."""
    for at, pages in places:
        vu.close_all(do(vmm, session, MAP, fds=(fd,), offset=at * PAGE,
                        length=pages * PAGE))


def killed(scene, vmm):
    """Another backend has begun; the VMM was asked for nothing."""
    kill(scene)
    vmm.queues[0].echo()
    nothing_asked(vmm)
    return scene.device.session


def unmapped(vmm, *places, status=0):
    """The VMM is asked to, in this order, and answers."""
    for at, pages in places:
        msg, fields = asked(vmm)
        assert msg.request == UNMAP
        assert fields[2:4] == (at * PAGE, pages * PAGE)
        say(vmm, UNMAP, status)


def mapped(vmm, session, at, pages):
    """The same, of a mapping, which the backend hears of."""
    msg, fields = asked(vmm)
    assert msg.request == MAP
    assert fields[2:4] == (at * PAGE, pages * PAGE)
    vu.close_all(msg.fds)
    say(vmm, MAP)
    assert answer(session) == 0


def clear(session, at, pages, **kw):
    ask(session, UNMAP, offset=at * PAGE, length=pages * PAGE, **kw)


def cleared(vmm, session, at, pages, *places):
    """An unmap of a place: it takes all that overlaps, as wholes."""
    clear(session, at, pages)
    unmapped(vmm, *places)
    assert answer(session) == 0
    nothing_asked(vmm)


def pause(vmm):
    """The VMM stops the queues and goes on, as for a snapshot."""
    for queue in vmm.queues:
        queue.stop()
    for queue in vmm.queues:
        queue.start()
    vmm.driver_ok()
    vmm.queues[0].echo()


def rest_is_fine(scene, vmm):
    vmm.queues[0].echo()
    vmm.ram.check()
    assert not [f for f in scene.guard.fds().values() if "shown" in f]


def test_what_a_dead_backend_mapped_goes_when_another_is_mapped_over_it(
        make_scene, build):
    """All of what overlaps, and nothing else."""
    scene, vmm = begin(make_scene, build)
    with memfd() as fd:
        shown(vmm, scene.device.session, fd, (0, 1), (2, 1), (5, 1))
        session = killed(scene, vmm)
        ask(session, MAP, fds=(fd,), offset=0, length=3 * PAGE)
        unmapped(vmm, (0, 1), (2, 1))
        mapped(vmm, session, 0, 3)
        shown(vmm, session, fd, (20, 1))
        # Its own are no predecessor's.
        assert refused(vmm, session, fds=(fd,), offset=2 * PAGE) \
            == errno.EEXIST
        assert refused(vmm, session, UNMAP, offset=PAGE) == errno.ENOENT
        do(vmm, session, UNMAP, length=3 * PAGE)
        cleared(vmm, session, 5, 1, (5, 1))
    rest_is_fine(scene, vmm)


@pytest.mark.parametrize("place,gone", [
    ((0, 64), [(0, 1), (4, 4), (10, 2)]),  # as when a guest unmounts
    ((4, 4), [(4, 4)]),
    ((5, 1), [(4, 4)]),
    ((7, 4), [(4, 4), (10, 2)]),
    ((1, 3), []),
    ((30, 10), []),
], ids=["all", "whole", "part", "parts", "gap", "nothing"])
def test_what_a_dead_backend_mapped_can_be_unmapped_by_place(
        make_scene, build, place, gone):
    """Its successor does not know what there is."""
    scene, vmm = begin(make_scene, build)
    with memfd() as fd:
        session = scene.device.session
        vu.close_all(do(vmm, session, MAP, fds=(fd,), shmid=2))
        shown(vmm, session, fd, (0, 1), (4, 4), (10, 2))
        assert refused(vmm, session, UNMAP, offset=4 * PAGE) == errno.ENOENT
        session = killed(scene, vmm)
        for _ in range(2):
            cleared(vmm, session, *place, *gone)
            gone = []
        # Another region's is another place.
        ask(session, UNMAP, length=16 * PAGE, shmid=2)
        unmapped(vmm, (0, 1))
        assert answer(session) == 0
    rest_is_fine(scene, vmm)


BAD = {
    "not_whole_pages": {"length": PAGE + 1},
    "not_at_a_page": {"offset": 1},
    "nothing": {"length": 0},
    "outside": {"offset": 60 * PAGE, "length": 5 * PAGE},
    "far_outside": {"offset": 2 ** 64 - PAGE},
    "wraps": {"offset": PAGE, "length": 2 ** 64 - PAGE},
    "no_region": {"shmid": 1},
    "over_its_own": {"offset": 0, "length": 64 * PAGE},
    "part_of_its_own": {"offset": 9 * PAGE},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_place_that_is_none_is_not_unmapped(make_scene, build, bad):
    scene, vmm = begin(make_scene, build)
    with memfd() as fd:
        shown(vmm, scene.device.session, fd, (0, 2), (60, 2))
        session = killed(scene, vmm)
        shown(vmm, session, fd, (8, 2))
        assert refused(vmm, session, UNMAP, **bad) == errno.ENOENT
        cleared(vmm, session, 0, 8, (0, 2))
        cleared(vmm, session, 10, 54, (60, 2))
        do(vmm, session, UNMAP, offset=8 * PAGE, length=2 * PAGE)
    rest_is_fine(scene, vmm)


def test_what_dead_backends_mapped_counts(make_scene, build):
    """The guest may be using it: it does not go for something elsewhere."""
    scene, vmm = begin(make_scene, build, "--shmem-mappings=3")
    with memfd() as fd:
        shown(vmm, scene.device.session, fd, (0, 1))
        session = killed(scene, vmm)
        shown(vmm, session, fd, (2, 1))
        session = killed(scene, vmm)
        shown(vmm, session, fd, (4, 1))
        assert refused(vmm, session, fds=(fd,), offset=6 * PAGE) \
            == errno.ENOSPC
        # Over one of them is no one more.
        ask(session, MAP, fds=(fd,), offset=0)
        unmapped(vmm, (0, 1))
        mapped(vmm, session, 0, 1)
        cleared(vmm, session, 2, 2, (2, 1))
        shown(vmm, session, fd, (6, 1))
    rest_is_fine(scene, vmm)


def test_what_may_be_gone_makes_room(make_scene, build):
    """A reset unmaps all, and the guard is not told of one: what may be gone
    is not in the way for ever."""
    scene, vmm = begin(make_scene, build, "--shmem-mappings=2")
    with memfd() as fd:
        shown(vmm, scene.device.session, fd, (0, 1), (2, 1))
        session = killed(scene, vmm)
        pause(vmm)
        ask(session, MAP, fds=(fd,), offset=6 * PAGE)
        unmapped(vmm, (0, 1), status=22)  # whatever the VMM thinks of it
        mapped(vmm, session, 6, 1)
    rest_is_fine(scene, vmm)


@pytest.mark.parametrize("first", ["pause", "kill"])
@pytest.mark.parametrize("status", [0, 22], ids=["kept", "gone"])
def test_a_pause_and_a_dead_backend(make_scene, build, first, status):
    """The VMM has what was mapped before the pause, or has not: in neither
    case is it in the way."""
    scene, vmm = begin(make_scene, build)
    with memfd() as fd:
        shown(vmm, scene.device.session, fd, (0, 2), (4, 2), (8, 2))
        if first == "pause":
            pause(vmm)
        session = killed(scene, vmm)
        if first == "kill":
            pause(vmm)
        ask(session, MAP, fds=(fd,), offset=PAGE, length=2 * PAGE)
        unmapped(vmm, (0, 2), status=status)
        mapped(vmm, session, 1, 2)
        clear(session, 3, 20)
        unmapped(vmm, (4, 2), (8, 2), status=status)
        assert answer(session) == 0
        cleared(vmm, session, 3, 20)
    rest_is_fine(scene, vmm)


def test_a_stop_while_a_place_is_unmapped(make_scene, build):
    """The backend is told to try again, and then the rest goes."""
    scene, vmm = begin(make_scene, build)
    with memfd() as fd:
        shown(vmm, scene.device.session, fd, (0, 1), (2, 1), (4, 1))
        session = killed(scene, vmm)
        clear(session, 0, 64)
        unmapped(vmm, (0, 1))
        asked(vmm)
        vmm.queues[0].stop()
        assert answer(session, 2) == errno.EINTR
        say(vmm, UNMAP)
        nothing_asked(vmm)
        vmm.queues[0].start()
        vmm.driver_ok()
        vmm.queues[0].echo()
        cleared(vmm, session, 0, 64, (4, 1))
    rest_is_fine(scene, vmm)


@pytest.mark.parametrize("what", [MAP, UNMAP], ids=["map", "unmap"])
def test_one_that_dies_while_its_predecessors_mappings_go(make_scene, build,
                                                          what):
    """They go on to be the next one's matter; it is asked nothing twice."""
    scene, vmm = begin(make_scene, build)
    with memfd() as fd:
        shown(vmm, scene.device.session, fd, (0, 1), (2, 1))
        session = killed(scene, vmm)
        ask(session, what, fds=(fd,) if what == MAP else (),
            length=4 * PAGE)
        asked(vmm)
        kill(scene)
        vmm.queues[0].echo()
        say(vmm, UNMAP)
        nothing_asked(vmm)
        session = scene.device.session
        cleared(vmm, session, 0, 4, (2, 1))
        shown(vmm, session, fd, (0, 4))
    rest_is_fine(scene, vmm)


def test_a_vmm_that_waits_for_a_backend_that_unmaps_a_place(make_scene,
                                                            build):
    """It asks for config space, and the backend answers when it has its own
    answer: the guard gives in."""
    scene, vmm = begin(make_scene, build)
    said = []
    with memfd() as fd:
        shown(vmm, scene.device.session, fd, (0, 1), (2, 1))
        session = killed(scene, vmm)

        def config(other, _):
            said.append(answer(other))
            return False

        clear(session, 0, 4)
        asked(vmm)
        scene.device.on_message[vu.Request.GET_CONFIG] = config
        assert vmm.fe.get_config(0, 8) is not None
        scene.device.good()
        assert said == [errno.EINTR]
        say(vmm, UNMAP)
        vmm.fe.get_features()
        cleared(vmm, session, 0, 4, (2, 1))
    rest_is_fine(scene, vmm)


def test_a_vmm_that_is_mute_while_a_place_is_unmapped(make_scene, sanitized):
    scene, vmm = begin(make_scene, sanitized)
    with memfd() as fd:
        shown(vmm, scene.device.session, fd, (0, 1), (2, 1))
        session = killed(scene, vmm)
        clear(session, 0, 4)
        asked(vmm)
        assert answer(session, 15) == errno.ETIMEDOUT
        assert refused_by_now(session) == errno.ENOTCONN
    rest_is_fine(scene, vmm)


def refused_by_now(session):
    clear(session, 0, 4)
    return answer(session)


def test_a_request_without_need_for_a_reply_gets_none(make_scene, build):
    scene, vmm = begin(make_scene, build)
    with memfd() as fd:
        shown(vmm, scene.device.session, fd, (0, 1), (2, 1))
        session = killed(scene, vmm)
        clear(session, 0, 4, need_reply=False)
        unmapped(vmm, (0, 1), (2, 1))
        clear(session, 0, 4, need_reply=False)
        cleared(vmm, session, 0, 4)
        assert not vu.readable(session.channel)
    rest_is_fine(scene, vmm)


def test_a_backend_with_other_regions_is_not_taken(make_scene, build):
    scene, vmm = begin(make_scene, build, "--restart-ms=300")
    scene.device.shmem = {0: 32 * PAGE}
    scene.device.hang_up(scene.device.session)
    session_ends(vmm)
    assert scene.guard.wait() == 1
    assert scene.guard.find("shared memory regions are not those")


def test_a_backend_that_dies_while_the_vmm_maps_leaves_nothing_mapped(
        make_scene, build):
    scene, vmm = begin(make_scene, build)
    with memfd() as fd:
        ask(scene.device.session, MAP, fds=(fd,))
        msg, _ = asked(vmm)
        vu.close_all(msg.fds)
        kill(scene)
        vmm.queues[0].echo()
        say(vmm, MAP, fence=False)  # nobody waits for it any more
        msg, fields = asked(vmm)
        assert msg.request == UNMAP and fields[2:4] == (0, PAGE)
        say(vmm, UNMAP)
        # And is not in the way of the next.
        vmm.fe.get_features()
        shown(vmm, scene.device.session, fd, (0, 1))
    rest_is_fine(scene, vmm)


def test_an_answer_that_comes_during_a_long_restart_counts(make_scene,
                                                           sanitized):
    """The guard did not look for longer than it waits for an answer."""
    scene, vmm = begin(make_scene, sanitized, "--restart-ms=20000")
    with memfd() as fd:
        ask(scene.device.session, MAP, fds=(fd,))
        msg, _ = asked(vmm)
        vu.close_all(msg.fds)
        Gone(scene)
        scene.guard.wait_line("backend gone")
        say(vmm, MAP, fence=False)
        time.sleep(4.2)  # what is late is the point
        scene.device = scene.keep(Backend(scene.device.path, **SHMEM))
        vmm.queues[0].echo()
        # As ever: what nobody waits for any more is taken back.
        unmapped(vmm, (0, 1))
        assert not scene.guard.find("does not answer")
        vmm.fe.get_features()
        shown(vmm, scene.device.session, fd, (0, 1))
    rest_is_fine(scene, vmm)


def test_what_a_new_backend_asks_at_once_is_answered_in_order(make_scene,
                                                              build):
    """Its second request waits, though the guard did not listen to it yet."""
    scene, vmm = begin(make_scene, build)
    with memfd() as fd:
        def pipelined(session, _):
            scene.device.on_message = {}
            ask(session, MAP, fds=(fd,))
            ask(session, UNMAP)
            until(lambda: vu.readable(vmm.channel), "the VMM is asked")
            return False

        scene.device.on_message = {vu.Request.SET_VRING_ENABLE: pipelined}
        kill(scene)
        vmm.queues[0].echo()
        session = scene.device.session
        msg, _ = asked(vmm)
        assert msg.request == MAP
        vu.close_all(msg.fds)
        for _ in range(3):
            nothing_asked(vmm)
        assert not vu.readable(session.channel)
        say(vmm, MAP)
        assert answer(session) == 0
        unmapped(vmm, (0, 1))
        assert answer(session) == 0
    rest_is_fine(scene, vmm)
