# SPDX-License-Identifier: Apache-2.0
"""moat-fs's DAX window behind a guard that starts it again: what the guest has
mapped stays, may be given back, and is in nobody's way.  The guest is one that
does not mount anew."""
import errno
import os
import signal
import struct
import sys

import pytest

import fuse
from dax_guest import READ, SIZE, WRITE, DaxGuest, pattern
from fuse import ROOT, fails
from guard import Guard
from share import until
from window import PAGE, UNMAP, Window


class Dax(DaxGuest):
    """A guest, its VMM's window, a guard, and moat-fs, again and again."""

    def __init__(self, keep, folder, build, *options):
        self.dir = f"{folder}/share"
        os.mkdir(self.dir)
        program = build.program.replace("src/cmd/moat", "src/dev/fs/moat-fs")
        sandbox = [o for o in build.options if o == "--sandbox=none"]
        self.guard = keep(Guard(
            build, folder, None, "--device=fs", "--pool-size=8M",
            "--restart=100", *options, "--exec", "--", sys.executable, "-c",
            # It says who it is.
            "import os, sys; os.write(2, b'pid %d\\n' % os.getpid()); "
            "os.execv(sys.argv[1], sys.argv[1:])",
            program, "--socket-path={socket}", f"--shared-dir={self.dir}",
            f"--dax-window={SIZE >> 20}M", *sandbox))
        # moat-fs says that it listens, too.
        until(lambda: os.path.exists(self.guard.path), "the guard listens")
        self.fs = keep(fuse.Fs(self.guard.path))
        self.window = keep(Window(self.fs.vmm, SIZE))

    def setup(self, node, foffset, length, at, flags=READ | WRITE):
        super().setup(node, foffset, length, at, flags)

    def kill(self):
        """moat-fs; the next one has begun."""
        before = len(self.guard.find("another backend goes on"))
        pid = int(self.guard.find("^pid ")[-1].split()[1])
        os.kill(pid, signal.SIGKILL)
        until(lambda: len(self.guard.find("another backend goes on"))
              > before, "another moat-fs")

    def replace(self):
        """And has answered something."""
        self.kill()
        self.fs.getattr(ROOT)

    def pages(self, *numbers):
        return self.window.pages() == {n * PAGE for n in numbers}

    def fine(self):
        self.maps()
        assert self.guard.alive()
        assert not self.guard.sanitizer_output()


@pytest.fixture(name="dax", params=["plain", "sanitized"])
def fixture_dax(keep, folder, request):
    dax = Dax(keep, folder, request.getfixturevalue(request.param))
    yield dax
    dax.fine()


def test_whole_pages_stay_the_file_and_last_pages_do_not(dax):
    data = pattern(1, 4 * PAGE + 100)
    node = dax.make("a", data)
    dax.setup(node, 0, 8 * PAGE, 0)
    asked = dax.window.asked
    dax.replace()
    assert dax.window.asked == asked and dax.pages(*range(5))
    dax.window.write(PAGE, b"guest")
    assert dax.host("a")[PAGE:][:5] == b"guest"
    dax.window.write(4 * PAGE, b"guest")
    fails(errno.ESTALE, dax.setup, node, 0, 8 * PAGE, 0)
    # The same file, by a node of the new one, elsewhere: the file's.
    node = dax.fs.lookup(ROOT, "a").nodeid
    dax.setup(node, 0, 8 * PAGE, 10 * PAGE)
    assert dax.window.read(14 * PAGE, 5) == data[4 * PAGE:][:5]
    dax.window.write(14 * PAGE, b"again")
    until(lambda: dax.host("a")[4 * PAGE:][:5] == b"again", "stored")
    assert dax.window.read(4 * PAGE, 5) == b"guest"
    dax.fs.destroy()
    assert not dax.window.maps
    dax.fs.init()


@pytest.mark.parametrize("at,length", [
    (0, 8), (2, 3), (0, 1), (7, 1), (-3, 5), (5, 9), (-4, 20), (9, 3)])
def test_what_the_guest_maps_over_the_last_ones_mappings(dax, at, length):
    """They go as wholes, and only those that the range touches; also where
    the new file is shorter than the range."""
    dax.setup(dax.make("a", pattern(1, 4 * PAGE)), 0, 4 * PAGE, 4 * PAGE)
    dax.setup(dax.make("b", pattern(2, 4 * PAGE - 9)), 0, 4 * PAGE, 8 * PAGE)
    dax.replace()
    data = pattern(3, PAGE)
    dax.setup(dax.make("c", data), 0, length * PAGE, (4 + at) * PAGE)
    # Pages of the file, pages of it, and the last.
    old = [range(4, 8), range(8, 11), range(11, 12)]
    new = range(4 + at, 4 + at + length)
    left = {n for r in old if not set(r) & set(new) for n in r}
    assert dax.pages(4 + at, *left)
    assert dax.window.read((4 + at) * PAGE, PAGE) == data
    dax.remove((0, SIZE))
    assert not dax.window.maps


def test_what_the_guest_gives_back_is_unmapped(dax):
    """Once is enough, and it can do so without knowing what there is."""
    for n in range(4):
        dax.setup(dax.make(f"f{n}", pattern(n, 2 * PAGE + 9)), 0, 4 * PAGE,
                  n * 4 * PAGE)
    dax.replace()
    dax.remove((4 * PAGE, 4 * PAGE), (40 * PAGE, PAGE))
    assert dax.pages(0, 1, 2, 8, 9, 10, 12, 13, 14)
    dax.remove((4 * PAGE, 4 * PAGE))
    dax.replace()
    node = dax.make("new", pattern(5, PAGE))
    dax.setup(node, 0, PAGE, 40 * PAGE)
    dax.replace()
    dax.remove((40 * PAGE, PAGE), (12 * PAGE, 4 * PAGE))
    assert dax.pages(0, 1, 2, 8, 9, 10)
    dax.remove((0, SIZE))
    assert not dax.window.maps
    asked = dax.window.asked
    dax.remove((0, SIZE))
    assert dax.window.asked == asked


@pytest.mark.parametrize("how", ["destroy", "init"])
def test_a_guest_that_begins_anew_has_nothing_mapped(dax, how):
    """Neither by this moat-fs nor by those before."""
    for n in range(3):
        dax.setup(dax.make(f"f{n}", pattern(n, 2 * PAGE + 9)), 0, 4 * PAGE,
                  n * 4 * PAGE)
        dax.replace()
    dax.setup(dax.make("own", pattern(7, PAGE)), 0, PAGE, 30 * PAGE)
    assert dax.pages(0, 1, 2, 4, 5, 6, 8, 9, 10, 30)
    if how == "destroy":
        dax.fs.destroy()
        assert not dax.window.maps
    dax.fs.init()
    assert not dax.window.maps
    # From now on it is as any other.
    node = dax.make("a", pattern(1, 2 * PAGE))
    asked = dax.window.asked
    dax.setup(node, 0, 2 * PAGE, 0)
    dax.remove((0, 2 * PAGE))
    assert dax.window.asked == asked + 2


def test_one_that_dies_of_what_the_guest_gives_back(dax):
    """The guest's request is given to the next one, which tells it to try again
    for as long as the VMM does not answer the last one's."""
    for n in range(6):
        dax.setup(dax.make(f"f{n}", pattern(n, PAGE)), 0, PAGE, n * PAGE)
    dax.replace()
    dax.window.hold = True
    ticket = dax.fs.start(fuse.Op.REMOVEMAPPING, ROOT,
                          struct.pack("<IQQ", 1, 0, SIZE))
    until(lambda: dax.window.held, "asked")
    dax.kill()
    fails(errno.EAGAIN, dax.fs.finish, ticket)
    dax.window.release()
    dax.fs.vmm.fe.get_features()
    dax.remove((0, SIZE))
    assert not dax.window.maps


def test_a_pause_before_moat_fs_dies(dax):
    """Whether the VMM still has a mapping then nobody knows; it has."""
    dax.setup(dax.make("a", pattern(1, 3 * PAGE)), 0, 3 * PAGE, 0)
    for queue in dax.fs.vmm.queues:
        queue.stop()
    for queue in dax.fs.vmm.queues:
        queue.start()
    dax.fs.vmm.driver_ok()
    dax.fs.getattr(ROOT)
    dax.replace()
    node = dax.make("b", pattern(2, PAGE))
    dax.setup(node, 0, PAGE, PAGE)
    assert dax.pages(1)
    assert dax.window.read(PAGE, PAGE) == pattern(2, PAGE)


def test_a_vmm_that_refuses_to_unmap(dax):
    """What is there and can not be unmapped is in the way, and no worse."""
    dax.setup(dax.make("a", pattern(1, 3 * PAGE)), 0, 3 * PAGE, 0)
    dax.replace()
    dax.window.refuse = lambda request, f: 22 if request == UNMAP else \
        22 if f[2] < 3 * PAGE else 0
    node = dax.make("b", pattern(2, PAGE))
    fails(errno.EIO, dax.setup, node, 0, PAGE, 0)
    dax.setup(node, 0, PAGE, 5 * PAGE)
    dax.window.refuse = 0
    assert dax.window.read(5 * PAGE, PAGE) == pattern(2, PAGE)


def test_a_moat_fs_that_is_killed_over_and_over(dax):
    """While the guest maps and gives back: in the end all is as it says."""
    nodes = 0
    for n in range(8):
        for k in range(5):
            name = f"f{n}.{k}"
            node = dax.make(name, pattern(n * 5 + k, PAGE * (k + 1) - 7 * k))
            dax.setup(node, 0, 8 * PAGE, (n + k) % 6 * 8 * PAGE)
            nodes += 1
        dax.replace()
        dax.remove((n % 6 * 8 * PAGE, 8 * PAGE))
    for k in range(6):
        data = pattern(100 + k, PAGE * 3 + k)
        dax.setup(dax.make(f"last{k}", data), 0, 8 * PAGE, k * 8 * PAGE)
        assert dax.window.read(k * 8 * PAGE, len(data)) == data
    assert dax.pages(*(8 * k + n for k in range(6)
                       for n in range(3 + (k > 0))))
    dax.fs.destroy()
    assert not dax.window.maps
    dax.fs.init()
