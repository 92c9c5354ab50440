# SPDX-License-Identifier: Apache-2.0
"""A Linux guest that chose "write through" and so sends no flush: what it was
told is stable is, whatever happens to its device in between."""
import os
import socket
import sys

import pytest

from backends import MoatBlk
from guests import Qemu
from peers import Qemu11
from procs import wait_until

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../hostile"))
from cut_fs import CutFs  # noqa: E402

SYNCED = "dd if=/dev/urandom of=/dev/vda oflag=direct bs=4k count=4 " \
    "conv=fsync 2>/dev/null"


class Scene:
    """A guest whose disk's flushes are counted."""

    def __init__(self, work, qemu):
        self.work, self.qemu = work, qemu
        os.mkdir(work / "cut")
        self.disk = CutFs(str(work / "cut"), 16 << 20)
        self.backend = self.start()

    def start(self):
        return MoatBlk(self.work / "disk.sock", self.disk.path)

    def boot(self):
        return self.qemu(self.qemu.disk(self.work / "disk.sock",
                                        reconnect=True) +
                         ["-qmp", f"unix:{self.work / 'qmp'},server=on,wait=off"])

    def synced(self, guest):
        before = self.disk.syncs
        guest.run(SYNCED)
        return self.disk.syncs - before

    def kill(self, _guest):
        self.backend.kill()
        self.backend = self.start()
        wait_until(lambda: "a VMM has connected" in self.backend.log,
                   "QEMU comes again")

    def rebind(self, guest):
        guest.run("""cd /sys/bus/virtio/drivers/virtio_blk
            name=$(ls -d virtio*)
            echo $name >unbind
            echo $name >bind""")
        wait_until(lambda: guest.run("test -b /dev/vda", check=False)[0] == 0,
                   "the disk is there again")

    def pause(self, _guest):
        with socket.socket(socket.AF_UNIX) as qmp:
            qmp.connect(str(self.work / "qmp"))
            answers = qmp.makefile("r")
            answers.readline()
            for command in ("qmp_capabilities", "stop", "cont"):
                qmp.sendall(b'{"execute": "%s"}\n' % command.encode())
                while '"return"' not in answers.readline():
                    pass

    def close(self):
        self.backend.kill()
        self.disk.close()


@pytest.mark.parametrize("qemu", [Qemu, Qemu11], ids=["qemu", "qemu11"])
def test_write_through_stays_what_the_guest_chose(work, qemu):
    scene = Scene(work, qemu)
    try:
        with scene.boot() as guest:
            assert scene.synced(guest) == 1, "a flush, and no more"
            guest.run("echo 'write through' >/sys/block/vda/cache_type")
            wanted = scene.synced(guest)
            assert wanted >= 4, "each write"
            for change in (scene.pause, scene.kill, scene.rebind, scene.kill,
                           scene.pause):
                change(guest)
                assert guest.run("cat /sys/block/vda/cache_type").strip() == \
                    "write through"
                assert scene.synced(guest) == wanted, change.__name__
    finally:
        scene.close()
