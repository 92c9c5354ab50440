# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the hostile suite.

MOAT names the plain build's program (seccomp sandbox, the default) and
MOAT_SANITIZED the one built with -Db_sanitize=address,undefined.
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import backend as backend_module  # noqa: E402
import guard as guard_module  # noqa: E402
import guest  # noqa: E402


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
    for thing in reversed(things):
        thing.close()


@pytest.fixture(scope="session", params=["plain", "sanitized"])
def build(request):
    return guard_module.find_build(request.param)


@pytest.fixture(scope="session")
def sanitized():
    return guard_module.find_build("sanitized")


@pytest.fixture(scope="session")
def plain():
    return guard_module.find_build("plain")
