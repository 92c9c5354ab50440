# SPDX-License-Identifier: Apache-2.0
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))

import procs  # noqa: E402


@pytest.fixture
def work():
    """A temporary folder with a short name; gone after the test."""
    with procs.Workdir() as folder:
        yield folder
