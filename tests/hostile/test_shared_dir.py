# SPDX-License-Identifier: Apache-2.0
"""What a device that serves a directory can reach: that directory.  A device of
the tests (tests/tools/shelf.c) does with its descriptors what it is told."""
import errno
import os
import pathlib
import pwd
import re
import stat
import struct
import subprocess

import pytest

from guard import Guard
from guest import Vmm
from split_ring import WRITE

ROOT, PROC = 0, 1
CHOWN, DAC_OVERRIDE, MKNOD = 0, 1, 27


class Shelf(Guard):
    def __init__(self, build, keep, folder, shared, *options, within=()):
        self.path = f"{folder}/shelf.sock"
        program = build.program.replace("src/cmd/moat", "tests/tools/shelf")
        self._start(build, [*within, program, f"--shared-dir={shared}",
                            f"--socket-path={self.path}", *options])
        self.vmm = keep(Vmm.connect(self.path)).setup(queues=1)
        self.next = 2

    def post(self, text):
        """Begins what @text says; returns where the answer comes."""
        queue, ram = self.vmm.queues[0], self.vmm.ram
        question, answer = ram.alloc(256), ram.alloc(8)
        ram.write(question, text.encode())
        ram.device_may_write(answer, 8)
        queue.ring.add([(question, len(text), 0), (answer, 8, WRITE)])
        queue.publish()
        return answer

    def do(self, *words):
        answer = self.post(" ".join(map(str, words)))
        self.vmm.queues[0].wait_used()
        return struct.unpack("<q", self.vmm.ram.read(answer, 8))[0]

    def open(self, place, name):
        """A descriptor of @name in the directory at @place; its place."""
        self.next += 1
        assert self.do("open", place, name, self.next) == 0, name
        return self.next

    def serving(self):
        """The process that serves: in the strict sandbox a child."""
        with open(f"/proc/{self.pid}/task/{self.pid}/children",
                  encoding="ascii") as f:
            children = f.read().split()
        return int(children[0]) if children else self.pid

    def status(self, name):
        text = pathlib.Path(f"/proc/{self.serving()}/status").read_text("ascii")
        return re.search(rf"^{name}:[ \t]*(.*)$", text,
                         re.MULTILINE)[1].strip()


@pytest.fixture(name="shared")
def fixture_shared(folder):
    os.chmod(folder, 0o755)
    shared = pathlib.Path(folder, "shared")
    (shared / "a").mkdir(parents=True)
    (shared / "b").mkdir()
    (shared / "a/file").write_text("text")
    pathlib.Path(folder, "secret").write_text("not shared")
    return shared


@pytest.fixture(name="shelf")
def fixture_shelf(keep, plain, folder, shared):
    return keep(Shelf(plain, keep, folder, shared, "--sandbox=strict"))


def works_with_files(shelf, shared):
    """All that a file server does by descriptors."""
    a, b = shelf.open(ROOT, "a"), shelf.open(ROOT, "b")
    file = shelf.open(a, "file")
    assert shelf.do("reopen", file) == 0
    assert shelf.do("link", file, b, "linked") == 0
    assert shelf.do("rename", a, "file", b, "moved") == 0
    assert shelf.do("truncate", file, 2) == 0
    assert (shared / "b/linked").read_text() == "te"
    assert (shared / "b/moved").samefile(shared / "b/linked")
    for kind, test in (("pipe", stat.S_ISFIFO), ("socket", stat.S_ISSOCK)):
        assert shelf.do("mknod", a, kind, kind) == 0
        found = (shared / "a" / kind).lstat().st_mode
        assert test(found) and found & 0o777 == 0o666, "the umask is 0"
    # A file without a name is still there for who has it open.
    os.unlink(shared / "b/moved")
    os.unlink(shared / "b/linked")
    assert shelf.do("reopen", file) == 0
    assert shelf.do("truncate", file, 0) == 0


@pytest.mark.parametrize("level", ["strict", "namespace", "chroot", "seccomp",
                                   "none"])
def test_files_are_worked_with_in_every_sandbox(keep, plain, folder, shared,
                                                level):
    shelf = keep(Shelf(plain, keep, folder, shared, f"--sandbox={level}"))
    works_with_files(shelf, shared)
    assert not shelf.complaints()


def test_root_gives_files_to_any_user_and_makes_devices(shelf, shared):
    assert shelf.do("mknod", ROOT, "null", "character") == 0
    assert stat.S_ISCHR((shared / "null").stat().st_mode)
    assert shelf.do("chown", ROOT, "a/file", 12345) == 0
    assert (shared / "a/file").stat().st_uid == 12345
    # Yet no device is opened, not even by mistake.
    assert shelf.do("reopen", shelf.open(ROOT, "null")) == -errno.EACCES


def test_the_directory_is_all_there_is(shelf, shared, folder):
    place = pathlib.Path(f"/proc/{shelf.serving()}/root")
    assert place.stat().st_ino == shared.stat().st_ino
    assert sorted(os.listdir(place)) == ["a", "b"]
    assert shelf.do("top", ROOT) == 1 and shelf.do("top", PROC) == 1
    for path in (f"{folder}/secret", "/proc/self/status", "/etc/passwd",
                 "/../etc/passwd"):
        assert shelf.do("absolute", path) == -errno.ENOENT
    with open(f"/proc/{shelf.serving()}/mountinfo", encoding="utf-8") as f:
        assert [line.split()[4] for line in f] == ["/"]
    for name in ("net", "pid", "ipc", "uts", "mnt"):
        assert os.readlink(f"/proc/{shelf.serving()}/ns/{name}") != \
            os.readlink(f"/proc/self/ns/{name}")
    assert os.readlink(f"/proc/{shelf.serving()}/ns/user") == \
        os.readlink("/proc/self/ns/user"), "of the host's users"


def test_it_has_the_capabilities_that_it_asked_for_and_no_others(shelf):
    wanted = 1 << CHOWN | 1 << DAC_OVERRIDE | 1 << MKNOD
    assert shelf.do("caps") == wanted
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(shelf.status(name), 16) == wanted
    assert int(shelf.status("CapInh"), 16) == 0
    assert int(shelf.status("CapAmb"), 16) == 0
    assert shelf.status("Groups") == ""
    assert shelf.status("NoNewPrivs") == "1" and shelf.status("Seccomp") == "2"


def test_a_link_that_leads_out_leads_nowhere(shelf, shared, folder):
    (shared / "out").symlink_to(f"{folder}/secret")
    (shared / "up").symlink_to("../secret")
    for name in ("out", "up"):
        assert shelf.do("absolute", f"/{name}") == -errno.ENOENT


def test_from_what_is_moved_out_no_way_leads_up(shelf, shared, folder):
    a = shelf.open(ROOT, "a")
    os.rename(shared / "a", f"{folder}/a")
    assert shelf.do("open", a, "..", 2) == -errno.ENOENT
    assert shelf.do("link", shelf.open(a, "file"), a, "../x") == -errno.ENOENT
    assert shelf.do("mknod", a, "../pipe", "pipe") == -errno.ENOENT
    os.rename(f"{folder}/a", shared / "a")
    works_with_files(shelf, shared)


def test_where_the_root_can_not_be_changed_landlock_stands(keep, plain, folder,
                                                           shared):
    # Somebody without CAP_SYS_ADMIN in a chroot gets no namespaces.
    os.mkdir(f"{folder}/root")
    within = ["unshare", "--mount", "sh", "-c",
              f"mount --rbind / {folder}/root && exec chroot {folder}/root "
              "setpriv --bounding-set=-sys_admin \"$@\"", "sh"]
    shelf = keep(Shelf(plain, keep, folder, shared, "--sandbox=strict",
                       within=within))
    assert shelf.find("no namespaces of its own")
    works_with_files(shelf, shared)
    assert shelf.do("absolute", f"{folder}/secret") == -errno.EACCES
    (shared / "a/file").write_text("text")
    a = shelf.open(ROOT, "a")
    file = shelf.open(a, "file")
    os.rename(shared / "a", f"{folder}/a")
    for words in (("mkdir", a, "after"), ("reopen", file),
                  ("truncate", file, 1), ("rename", a, "file", ROOT, "got"),
                  ("mknod", a, "../pipe", "pipe")):
        assert shelf.do(*words) in (-errno.EACCES, -errno.EXDEV), words
    above = shelf.open(a, "..")
    assert shelf.do("reopen", shelf.open(above, "secret")) == -errno.EACCES
    assert pathlib.Path(folder, "a/file").read_text() == "text"


def test_what_the_host_mounts_there_later_is_there(keep, plain, folder,
                                                   shared):
    def run(*argv):
        subprocess.run(argv, check=True)
    run("mount", "--bind", folder, folder)
    try:
        run("mount", "--make-shared", folder)
        shelf = keep(Shelf(plain, keep, folder, shared, "--sandbox=strict"))
        run("mount", "-t", "tmpfs", "none", str(shared / "b"))
        try:
            (shared / "b/new").write_text("new")
            file = shelf.open(shelf.open(ROOT, "b"), "new")
            assert shelf.do("reopen", file) == 0
        finally:
            run("umount", "-l", str(shared / "b"))
    finally:
        run("umount", "-l", folder)


def test_what_is_mounted_there_is_shared_and_read_only_stays_so(
        keep, plain, folder, shared):
    subprocess.run(["mount", "-t", "tmpfs", "none", str(shared / "b")],
                   check=True)
    try:
        (shared / "b/x").write_text("x")
        subprocess.run(["mount", "-o", "remount,ro", str(shared / "b")],
                       check=True)
        shelf = keep(Shelf(plain, keep, folder, shared, "--sandbox=strict"))
        b = shelf.open(ROOT, "b")
        assert shelf.do("mkdir", b, "d") == -errno.EROFS
        assert shelf.do("reopen", shelf.open(b, "x")) == -errno.EROFS
        assert shelf.do("mkdir", ROOT, "d") == 0
    finally:
        subprocess.run(["umount", str(shared / "b")], check=True)


def test_the_root_of_the_host_can_be_shared(keep, plain, folder):
    shelf = keep(Shelf(plain, keep, folder, "/", "--sandbox=strict"))
    assert shelf.do("top", ROOT) == 1
    assert shelf.do("reopen", shelf.open(ROOT, "etc/passwd")) == 0
    assert not shelf.complaints()


def test_an_unprivileged_user_serves_what_is_theirs(keep, plain, folder,
                                                    shared):
    user = pwd.getpwnam("nobody")
    for path in (folder, *(str(p) for p in (shared, *shared.rglob("*")))):
        os.chown(path, user.pw_uid, user.pw_gid)
    pathlib.Path(folder, "shared/of-root").write_text("x")
    shelf = keep(Shelf(plain, keep, folder, shared, "--sandbox=strict",
                       within=["setpriv", f"--reuid={user.pw_uid}",
                               f"--regid={user.pw_gid}", "--clear-groups"]))
    assert os.stat(f"/proc/{shelf.serving()}/root").st_ino == \
        shared.stat().st_ino
    works_with_files(shelf, shared)
    assert shelf.do("top", ROOT) == 1 and shelf.do("top", PROC) == 1
    assert shelf.do("absolute", "/proc/self/status") == -errno.ENOENT
    assert shelf.do("reopen", shelf.open(ROOT, "of-root")) == -errno.EACCES
    assert shelf.do("mknod", ROOT, "null", "character") == -errno.EPERM
    assert not shelf.complaints()


def test_a_directory_that_is_not_there_is_said(plain, keep, folder):
    for level in ("strict", "seccomp"):
        with pytest.raises(AssertionError, match="can not open the directory"):
            keep(Shelf(plain, keep, folder, f"{folder}/none",
                       f"--sandbox={level}"))


def test_requests_that_wait_are_given_up_when_their_queue_stops(shelf):
    answer = shelf.post("hold")
    untouched = shelf.vmm.ram.read(answer, 8)
    # It was taken: the next one is answered, and that one is not.
    assert shelf.do("top", ROOT) == 1
    assert shelf.vmm.ram.read(answer, 8) == untouched
    assert shelf.vmm.fe.get_vring_base(0) == 2
    assert struct.unpack("<q", shelf.vmm.ram.read(answer, 8))[0] == \
        -errno.EAGAIN
