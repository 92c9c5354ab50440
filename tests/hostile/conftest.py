# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the hostile suite.

MOAT names the plain build's program (it runs with its seccomp sandbox, the
default), MOAT_SANITIZED the one built with -Db_sanitize=address,undefined;
build/ and build-asan/ are where they are otherwise.
"""
import pathlib
import shutil
import sys
import tempfile

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from backend import Backend  # noqa: E402
from guard import Guard, find_build  # noqa: E402
from guest import Vmm  # noqa: E402


@pytest.fixture
def folder():
    """A short path, for socket names; gone after the test."""
    path = tempfile.mkdtemp(prefix="moat-")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def keep():
    """Things with close(), closed in reverse order after the test."""
    things = []
    yield lambda thing: things.append(thing) or thing
    errors = []
    for thing in reversed(things):
        try:
            thing.close()
        except AssertionError as e:
            errors.append(e)
        # Seen where the test failed: what the daemon had to say.
        for line in getattr(thing, "lines", [])[-40:]:
            print(line)
    if errors:
        raise errors[0]


@pytest.fixture(scope="session")
def sanitized():
    return find_build("sanitized")


@pytest.fixture(scope="session")
def plain():
    return find_build("plain")


class Scene:
    """A guard with a backend behind it, ready for VMMs."""

    def __init__(self, keep, folder, build, *options, name="",
                 on_message=None, listens=True, **backend):
        """@on_message: how the device answers from the start on; @listens:
        whether it is good enough for the guard to go on."""
        self.keep = keep
        self.device = keep(Backend(f"{folder}/b{name}", **backend))
        self.device.on_message = on_message or {}
        self.guard = keep(Guard(build, folder, self.device.path, *options,
                                name=f"g{name}", listens=listens))

    def vmm(self, **kw):
        return self.keep(Vmm.connect(self.guard.path, **kw))

    def running(self, queues=2, num=64, vmm=None):
        """A VMM with running queues that have each done one request."""
        vmm = self.vmm(**(vmm or {})).setup(queues=queues, num=num)
        for queue in vmm.queues:
            queue.echo()
        return vmm

    def backend_is_happy(self):
        """What the guard did on the backend leg kept every rule."""
        assert not self.device.errors, self.device.errors


@pytest.fixture
def make_scene(keep, folder):
    return lambda build, *options, **kw: Scene(keep, folder, build, *options,
                                               **kw)


@pytest.fixture
def scene(make_scene, sanitized):
    # A console's queues may hold buffers for ever: a stop waits shortly.
    return make_scene(sanitized, "--device=console", "--pool-size=8M")


@pytest.fixture(scope="session")
def witness():
    """Another device of another guard, busy all along."""
    folder = tempfile.mkdtemp(prefix="moat-")
    things = []
    scene = Scene(lambda t: things.append(t) or t, folder,
                  find_build("plain"), "--pool-size=8M")
    vmm = scene.running(queues=1)

    def works():
        vmm.ram.next[0] = 64 * 1024  # its memory is used again and again
        vmm.queues[0].echo()
        scene.backend_is_happy()

    yield works
    vmm.ram.check()
    for thing in reversed(things):
        thing.close()
    shutil.rmtree(folder)
