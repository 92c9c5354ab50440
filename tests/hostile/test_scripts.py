# SPDX-License-Identifier: Apache-2.0
"""The suite's own ends are right: without the guard, with each other and with
a disk served by qemu-storage-daemon. What fails here is not moat's fault."""
import os
import struct
import subprocess

import vhost_user as vu
from backend import Backend
from guest import OFFERABLE, Vmm
from split_ring import WRITE
from vhost_user import Feature, mask

T_IN, T_OUT = 0, 1


def blk(queue, kind, sector, data):
    """One virtio-blk request; returns (status, used len)."""
    ram = queue.ram
    head = ram.alloc(16)
    buf = ram.alloc(len(data))
    status = ram.alloc(1)
    ram.write(head, struct.pack("=IIQ", kind, 0, sector))
    if kind == T_OUT:
        ram.write(buf, data)
    queue.ring.add([(head, 16, 0),
                    (buf, len(data), WRITE if kind == T_IN else 0),
                    (status, 1, WRITE)])
    queue.publish()
    (_, length), = queue.wait_used()
    ram.expect(status, b"\0")
    if kind == T_IN:
        ram.expect(buf, data)
    return ram.read(status, 1)[0], length


def test_driver_and_backend_agree_without_a_guard(folder, keep):
    device = keep(Backend(folder + "/b"))
    for features in (OFFERABLE, OFFERABLE & ~mask(Feature.EVENT_IDX)):
        with Vmm.connect(folder + "/b", features=features) as vmm:
            vmm.setup(queues=2)
            for queue in vmm.queues:
                for bank in range(3):
                    queue.echo(700, bank=bank)
            assert vmm.fe.get_config(3, 4) == bytes(device.config[3:7])
            vmm.ram.check()
    assert not device.errors


def test_driver_reads_and_writes_a_qemu_storage_daemon_disk(folder, keep):
    disk = os.urandom(1 << 20)
    with open(folder + "/disk", "wb") as f:
        f.write(disk)
    listener = keep(vu.socket.socket(vu.socket.AF_UNIX))
    listener.bind(folder + "/s")
    listener.listen(1)
    listener.set_inheritable(True)
    daemon = subprocess.Popen([
        "qemu-storage-daemon", "--blockdev",
        f"driver=file,filename={folder}/disk,node-name=d0",
        "--export", "type=vhost-user-blk,id=e0,node-name=d0,writable=on,"
        f"num-queues=2,addr.type=fd,addr.str={listener.fileno()}"],
        pass_fds=[listener.fileno()])
    try:
        with Vmm.connect(folder + "/s") as vmm:
            vmm.setup(queues=2)
            for n, queue in enumerate(vmm.queues):
                at = n * 4096
                assert blk(queue, T_IN, at // 512,
                           disk[at:at + 4096]) == (0, 4097)
                new = os.urandom(8192)
                assert blk(queue, T_OUT, 128 + 16 * n, new)[0] == 0
                with open(folder + "/disk", "rb") as f:
                    f.seek((128 + 16 * n) * 512)
                    assert f.read(8192) == new
            capacity, = struct.unpack("=Q", vmm.fe.get_config(0, 8))
            assert capacity == len(disk) // 512
            vmm.ram.check()
    finally:
        daemon.terminate()
        daemon.wait(10)
