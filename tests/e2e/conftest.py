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


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "additional: for `make test-all` only, as it needs newer "
        "peers or takes long")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.name.startswith("test_all_"):
            item.add_marker(pytest.mark.additional)
