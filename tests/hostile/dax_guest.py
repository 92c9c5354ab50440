# SPDX-License-Identifier: Apache-2.0
"""A guest that maps files of a share, and what its VMM shows it of them."""
import os
import random

from fuse import ROOT
from window import PAGE

MIB = 1 << 20
SIZE = 64 * MIB
WRITE, READ = 1, 2


def pattern(seed, size):
    return random.Random(seed).randbytes(size)


class DaxGuest:
    """To be given dir (the host's), fs (fuse.Fs) and window (Window)."""

    def path(self, name):
        return f"{self.dir}/{name}"

    def make(self, name, data, mode=0o644):
        """The node of a new file."""
        with open(self.path(name), "wb") as f:
            f.write(data)
        os.chmod(self.path(name), mode)
        return self.fs.lookup(ROOT, name).nodeid

    def host(self, name):
        with open(self.path(name), "rb") as f:
            return f.read()

    def put(self, name, at, data):
        with open(self.path(name), "r+b", buffering=0) as f:
            f.seek(at)
            f.write(data)

    def setup(self, node, foffset, length, at, flags=READ):
        self.fs.setupmapping(node, 2 ** 64 - 1, foffset, length, at, flags)

    def remove(self, *pairs):
        self.fs.removemapping(ROOT, pairs)

    def maps(self):
        """A file is mapped and given back, as ever."""
        node = self.make("works", pattern(9, 5000))
        self.setup(node, 0, 2 * PAGE, SIZE - 2 * PAGE)
        assert self.window.read(SIZE - 2 * PAGE, 5000) == pattern(9, 5000)
        self.remove((SIZE - 2 * PAGE, 2 * PAGE))
        assert not self.window.covered(SIZE - PAGE)
        assert not self.window.errors, self.window.errors
