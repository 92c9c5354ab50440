# SPDX-License-Identifier: Apache-2.0
"""However a session ends, the backend sees an orderly stop."""
import os

import pytest

import vhost_user as vu


@pytest.fixture(params=["plain", "sanitized"])
def running(request, make_scene):
    scene = make_scene(request.getfixturevalue(request.param))
    return scene, scene.running(queues=3)


def stopped_in_order(session, queues):
    """Each queue was stopped by a message, before the connection closed."""
    assert session.closed.wait(10), session.events
    stops = [e for e in session.events if e.startswith("stop ")]
    asked = session.events.count("GET_VRING_BASE")
    assert asked == queues, session.events
    assert sorted(stops) == [f"stop {n}" for n in range(queues)]
    assert session.events.index("closed") > max(
        session.events.index(s) for s in stops)


def test_vmm_that_goes_away(running):
    scene, vmm = running
    session = scene.device.session
    vmm.close()
    stopped_in_order(session, 3)
    assert scene.guard.alive()
    scene.backend_is_happy()


def test_vmm_that_stops_first_is_not_stopped_twice(running):
    scene, vmm = running
    session = scene.device.session
    for queue in vmm.queues:
        queue.stop()
    vmm.close()
    stopped_in_order(session, 3)
    scene.backend_is_happy()


def test_sigterm(running):
    scene, vmm = running
    session = scene.device.session
    assert scene.guard.terminate() == 0
    stopped_in_order(session, 3)
    with pytest.raises(vu.Closed):
        vmm.fe.recv()
    assert not os.path.exists(scene.guard.path)
    vmm.ram.check()
    scene.backend_is_happy()


def test_sigterm_without_a_vmm(make_scene, plain):
    scene = make_scene(plain)
    assert scene.guard.terminate() == 0
    assert not scene.guard.complaints()


def test_once_ends_with_its_vmm(make_scene, plain):
    scene = make_scene(plain, "--once")
    vmm = scene.running(queues=1)
    vmm.close()
    assert scene.guard.wait() == 0
    assert not scene.guard.complaints()


def test_good_sessions_leave_no_complaints(running):
    scene, vmm = running
    vmm.close()
    scene.running(queues=1).close()
    assert scene.guard.terminate() == 0
    assert not scene.guard.complaints()
