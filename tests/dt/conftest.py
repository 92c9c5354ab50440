# SPDX-License-Identifier: Apache-2.0
import pytest
from trees import Tree, dump


@pytest.fixture
def tree(tmp_path):
    """Makes a device tree out of parts; see trees.Tree."""
    return Tree(tmp_path)


@pytest.fixture(scope="session")
def qemu_tree(tmp_path_factory):
    """The tree of QEMU's virt machine with 1 GiB; not to be changed."""
    return dump(tmp_path_factory.mktemp("qemu") / "virt.dtb", "-m", "1024")
