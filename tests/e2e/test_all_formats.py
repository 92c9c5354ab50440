# SPDX-License-Identifier: Apache-2.0
"""qemu-storage-daemon behind the guard with what moat-blk leaves to it: images
in a format, and disks on the network."""
import contextlib
import hashlib

import pytest

from backends import StorageDaemon
from guard import Guard
from guests import UserModeLinux
from machine import MIB, audit, ram_reached
from peers import Server
from procs import Workdir, run

SIZE = 64 * MIB


def format_daemon(blockdev):
    """A daemon that serves this node in place of a raw file."""
    class FormatDaemon(StorageDaemon):
        @staticmethod
        def command(*args, **kwargs):
            argv = StorageDaemon.command(*args, **kwargs)
            argv[argv.index("--blockdev") + 1] = f"node-name=disk,{blockdev}"
            # It calls itself write-through: guests send no flush, then, and
            # what is in its caches would be lost with it.
            argv[-1] += ",writethrough=on"
            return argv
    return FormatDaemon


@contextlib.contextmanager
def qcow2(work):
    image = work / "disk.qcow2"
    done = run(["qemu-img", "create", "-f", "qcow2", image, str(SIZE)])
    assert done.returncode == 0, done.stderr
    yield (f"driver=qcow2,file.driver=file,file.filename={image}", image,
           "qcow2")


@contextlib.contextmanager
def nbd(work):
    image = work / "disk.raw"
    with open(image, "wb") as f:
        f.truncate(SIZE)
    with Server(["qemu-nbd", "--format=raw", "--persistent", "--cache=writeback",
                 f"--socket={work / 'nbd.sock'}", str(image)], "qemu-nbd",
                work / "nbd.sock") as server:
        yield (f"driver=nbd,server.type=unix,server.path={server.socket_path}",
               image, "raw")


@pytest.mark.parametrize("kind", [qcow2, nbd], ids=lambda k: k.__name__)
def test_other_disks_work_behind_the_guard(kind):
    with Workdir() as work:
        with kind(work) as (blockdev, image, name), \
                format_daemon(blockdev)(work / "disk.sock", image) as daemon, \
                Guard(work / "guard.sock", backend=daemon.socket_path,
                      options=["--device=blk"]) as guard:
            with UserModeLinux([(guard.socket_path, 2)]) as guest:
                wrote = guest.run("""
                    head -c 8388608 /dev/urandom >/tmp/data
                    dd if=/tmp/data of=/dev/vda bs=64k seek=100 conv=fsync \
                        2>/dev/null
                    echo 3 >/proc/sys/vm/drop_caches
                    dd if=/dev/vda iflag=direct bs=64k skip=100 count=128 \
                        2>/dev/null | cmp - /tmp/data
                    sha256sum </tmp/data""").split()[0]
                assert ram_reached(audit(daemon.pid), daemon.pid) == 0
                guest.poweroff()
            assert "error: " not in guard.log, guard.log
            assert guard.terminate() == 0
        # All of them are gone, none was asked to end well: it is there.
        done = run(["qemu-img", "convert", "-f", name, "-O", "raw", image,
                    work / "copy"])
        assert done.returncode == 0, done.stderr
        with open(work / "copy", "rb") as f:
            f.seek(100 * 65536)
            assert hashlib.sha256(f.read(8 * MIB)).hexdigest() == wrote
