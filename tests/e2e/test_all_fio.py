# SPDX-License-Identifier: Apache-2.0
"""fio writes and verifies in a guest while moat-blk is killed and restarted.

The guest has this machine's files under /host, so its fio is this machine's; and
the same fio looks at the disk's file once more when the guest is gone.
"""
import os

import pytest

from backends import MoatBlk, make_image
from guests import Qemu
from machine import MIB
from peers import HOST_FILES, IN_HOST, Qemu11, Virtiofsd
from procs import Workdir, run, wait_until

KILLS = 3
SIZE = 32   # MiB, half of it for each job

def fio(file, *options):
    return ["fio", f"--filename={file}", "--ioengine=libaio", "--direct=1",
            "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0",
            "--rw=randwrite", f"--size={SIZE // 2}M", *options,
            "--name=small", "--bs=4k", "--iodepth=32", "--name=large",
            "--bs=64k", "--iodepth=8", f"--offset={SIZE // 2}M"]


ERRORS = "dmesg | grep -ciE 'i/o error|hung task' || true"


@pytest.mark.parametrize("vmm", [Qemu, Qemu11], ids=lambda v: v.vmm)
def test_fio_sees_no_error_over_kills(vmm):
    with Workdir() as work, \
            Virtiofsd("debian12", work / "fs", "/") as files:
        image = make_image(work / "disk", SIZE * MIB)
        socket = work / "disk.sock"
        options = ["--num-queues=2"]
        backend = MoatBlk(socket, image, options=options)
        with vmm([*vmm.disk(socket, queues=2, reconnect=True),
                  *Qemu11.share(files.socket_path)], memory=512,
                 cpus=2) as guest:
            try:
                guest.run(HOST_FILES)
                job = guest.start(
                    f"set -e\n{IN_HOST} "
                    f"{' '.join(fio('/dev/vda', '--verify_backlog=64'))}\n"
                    f"{ERRORS}")
                for kill in range(KILLS):
                    # So much of it was written for the first time.
                    wait_until(lambda k=kill: os.stat(image).st_blocks * 512 >
                               (k + 1) * SIZE * MIB // (KILLS + 1)
                               or "@end 2" in guest.log, "fio goes on")
                    assert "@end 2" not in guest.log, guest.log
                    backend.kill()
                    backend = MoatBlk(socket, image, options=options)
                    wait_until(lambda: "VMM has connected" in backend.log,
                               "QEMU connects again")
                output = guest.finish(job)
                assert output.splitlines()[-1] == "0", "I/O errors in the guest"
                assert output.count(": err= 0:") == 2, output
                guest.poweroff()
            finally:
                backend.kill()
        done = run(fio(image, "--verify_only"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count(": err= 0:") == 2, done.stdout
        # And it would have told.
        with open(image, "r+b") as f:
            f.seek(SIZE * MIB // 4 + 2000)
            byte = f.read(1)
            f.seek(-1, os.SEEK_CUR)
            f.write(bytes([byte[0] ^ 1]))
        assert run(fio(image, "--verify_only")).returncode != 0
