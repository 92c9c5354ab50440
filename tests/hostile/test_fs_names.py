# SPDX-License-Identifier: Apache-2.0
"""Names of the host that no ordinary file system has.

Whoever may mount below the shared folder (by FUSE any user may) decides what
getdents tells; and FAT has names of 255 characters, not bytes."""
import os
import struct

import pytest

from cut_fs import OPENDIR, READDIR, CutFs
from fuse import DIRENT, ROOT
from share import Share

LENGTHS = (1, 200, 255, 256, 280, 300, 600, 1000, 1024)


class LongNames(CutFs):
    """Its folder has names of those lengths, and more than an answer holds."""
    names = [b"%c" % (ord("a") + n) * length
             for n, length in enumerate(LENGTHS * 3)]

    def _readdir(self, _node, body):
        _, offset, size = struct.unpack_from("=QQI", body)
        out = b""
        for n in range(offset, len(self.names)):
            entry = DIRENT.pack(100 + n, n + 1, len(self.names[n]), 8)
            entry += self.names[n]
            entry += bytes(-len(entry) % 8)
            if len(out) + len(entry) > size:
                break
            out += entry
        return out

    HANDLERS = {**CutFs.HANDLERS, OPENDIR: CutFs._open, READDIR: _readdir}


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("size", [1200, 4096, 65536])
def test_long_names_of_the_host_are_listed(folder, keep, sanitized, plus, size):
    os.makedirs(f"{folder}/share/long")
    names = keep(LongNames(f"{folder}/share/long", 4096))
    share = Share(keep, folder, sanitized)
    fs = share.fs
    node = fs.lookup(ROOT, "long").nodeid
    listed = [d.name for d in fs.listdir(node, plus, size)]
    assert listed == names.names
    fs.close()
    share.fs = share.client()
    share.fine()


@pytest.mark.parametrize("make", ["mknod", "create", "mkdir"])
def test_a_file_with_the_inode_number_of_one_that_is_gone_is_another(
        keep, folder, sanitized, make):
    """Without descriptors nothing keeps a number from being given again; most
    file systems do so at once."""
    share = Share(keep, folder, sanitized, "--inode-file-handles=mandatory")
    fs, inos = share.fs, set()

    def entry_of(what):
        if make == "create":
            entry, fh = fs.create(ROOT, what)
            fs.release(entry.nodeid, fh)
            return entry
        return getattr(fs, make)(ROOT, what)

    # None of them is forgotten. What the first few had may be given again.
    for n in range(40):
        what = f"again{n}"
        entry = entry_of(what)
        again = fs.lookup(ROOT, what)
        assert again.nodeid == entry.nodeid
        assert fs.getattr(entry.nodeid).ino == entry.attr.ino
        inos.add(entry.attr.ino)
        if make == "mkdir":
            assert fs.listdir(entry.nodeid)
            fs.rmdir(ROOT, what)
        else:
            fs.unlink(ROOT, what)
    assert len(inos) < 40, "each number was new: nothing was tested"
    share.fine()
