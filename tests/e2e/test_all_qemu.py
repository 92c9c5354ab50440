# SPDX-License-Identifier: Apache-2.0
"""QEMU 11.1 with Linux 6.12, a disk of qemu-storage-daemon behind it."""
import pytest

from backends import MoatBlk, make_image
from guard import Guard
from peers import STORAGE_DAEMONS, Qemu11, check_well, front
from procs import Workdir, run

IMAGE = 192 << 20
BOTH = pytest.mark.parametrize("guarded", [False, True],
                               ids=["straight", "guarded"])
DAEMONS = pytest.mark.parametrize("daemon", list(STORAGE_DAEMONS))

MAKE = """
/sbin/mke2fs -q -t ext4 /dev/vda
mount -t ext4 /dev/vda /mnt
dd if=/dev/urandom of=/mnt/data bs=1M count=24 2>/dev/null
mkdir -p /mnt/tree/a/b/c
for i in $(seq 200); do echo "file $i" >/mnt/tree/a/b/c/$i; done
cd /mnt; sha256sum data tree/a/b/c/* >sums; cd /
umount /mnt
"""
CHECK = """
echo 3 >/proc/sys/vm/drop_caches
/sbin/e2fsck -f -n /dev/vda
mount -t ext4 /dev/vda /mnt
cd /mnt; sha256sum -c sums >/dev/null; ls tree/a/b/c | wc -l; cd /
umount /mnt
"""


@BOTH
@DAEMONS
def test_a_file_system_is_made_remounted_and_checked(daemon, guarded):
    """Twice in one guest, then in a second one before the same guard, then on
    the host."""
    with Workdir() as work:
        image = make_image(work / "disk", IMAGE)
        with STORAGE_DAEMONS[daemon](work / "disk.sock", image) as backend, \
                front(guarded, work, backend.socket_path) as socket_path:
            with Qemu11(Qemu11.disk(socket_path)) as guest:
                guest.run(MAKE)
                assert guest.run(CHECK).splitlines()[-1] == "200"
                guest.poweroff()
            with Qemu11(Qemu11.disk(socket_path)) as guest:
                assert guest.run(CHECK).splitlines()[-1] == "200"
                guest.poweroff()
        checked = run(["/sbin/e2fsck", "-f", "-n", image])
        assert checked.returncode == 0, checked.stdout


@BOTH
def test_two_processors_use_two_queues(guarded):
    with Workdir() as work:
        image = make_image(work / "disk", IMAGE)
        with STORAGE_DAEMONS["newer"](work / "disk.sock", image,
                                      queues=2) as backend, \
                front(guarded, work, backend.socket_path) as socket_path, \
                Qemu11(Qemu11.disk(socket_path, queues=2), cpus=2) as guest:
            assert guest.run("ls /sys/block/vda/mq").split() == ["0", "1"]
            guest.run(MAKE)
            # Both at once, each processor on its queue.
            sums = guest.run("""
mount -t ext4 /dev/vda /mnt
for cpu in 0 1; do
	taskset $((cpu + 1)) dd if=/dev/urandom of=/mnt/cpu$cpu bs=256k \\
		count=40 oflag=direct 2>/tmp/dd$cpu &
done
wait
umount /mnt; mount -t ext4 /dev/vda /mnt
for cpu in 0 1; do
	taskset $((cpu + 1)) sha256sum /mnt/cpu$cpu >/tmp/sum$cpu &
done
wait
cat /tmp/sum0 /tmp/sum1
sha256sum /mnt/cpu0 /mnt/cpu1
umount /mnt
""").splitlines()
            assert len(sums) == 4 and sums[:2] == sums[2:]
            guest.run(CHECK)
            # "req.0" and "req.1": both have had interrupts.
            for queue in (0, 1):
                counts = guest.run(f"grep 'virtio0-req.{queue}' "
                                   "/proc/interrupts").split()[1:3]
                assert sum(map(int, counts)) > 10, counts
            guest.poweroff()


@pytest.mark.parametrize("options", [
    ",packed=on", ",event_idx=off", ",indirect_desc=off",
    ",event_idx=off,indirect_desc=off", ",queue-size=1024", ",queue-size=4"],
    ids=lambda o: o[1:].replace(",", "-"))
def test_a_disk_works_with_device_options(options):
    """What the guest asks for and the guard does not offer it does without."""
    with Workdir() as work:
        image = make_image(work / "disk", IMAGE)
        with STORAGE_DAEMONS["newer"](work / "disk.sock", image) as backend, \
                front(True, work, backend.socket_path) as socket_path, \
                Qemu11(Qemu11.disk(socket_path, options=options)) as guest:
            guest.run(MAKE)
            assert guest.run(CHECK).splitlines()[-1] == "200"
            guest.poweroff()


@BOTH
@pytest.mark.parametrize("queues", [1, 4])
def test_moat_blk_serves_packed_rings(queues, guarded):
    with Workdir() as work:
        image = make_image(work / "disk", IMAGE)
        with MoatBlk(work / "disk.sock", image, queues,
                     ["--log-level=debug"]) as backend, \
                front(guarded, work, backend.socket_path) as socket_path, \
                Qemu11(Qemu11.disk(socket_path, queues, ",packed=on"),
                       cpus=queues) as guest:
            guest.run(MAKE)
            guest.run("""
mount -t ext4 /dev/vda /mnt
for cpu in $(ls /sys/block/vda/mq); do
	taskset $((1 << cpu)) dd if=/mnt/data of=/mnt/cpu$cpu bs=64k \\
		oflag=direct 2>/dev/null &
done
wait
for copy in /mnt/cpu*; do cmp /mnt/data $copy; done
umount /mnt
""")
            assert guest.run(CHECK).splitlines()[-1] == "200"
            guest.poweroff()
            for queue in range(queues):
                assert f"queue {queue}: started, packed" in backend.log
            assert "error: " not in backend.log


@BOTH
def test_a_driver_lets_go_of_its_disk_and_takes_it_again(guarded):
    """The device is reset and set up anew over one connection."""
    with Workdir() as work:
        image = make_image(work / "disk", IMAGE)
        with STORAGE_DAEMONS["newer"](work / "disk.sock", image) as backend, \
                front(guarded, work, backend.socket_path) as socket_path, \
                Qemu11(Qemu11.disk(socket_path)) as guest:
            guest.run(MAKE)
            for _ in range(5):
                guest.run("""
cd /sys/bus/virtio/drivers/virtio_blk
echo virtio0 >unbind
[ ! -e /dev/vda ]
echo virtio0 >bind
[ -b /dev/vda ]
""")
                assert guest.run(CHECK).splitlines()[-1] == "200"
            guest.poweroff()


def test_a_guest_that_is_killed_leaves_the_disk_to_the_next():
    with Workdir() as work:
        image = make_image(work / "disk", IMAGE)
        with STORAGE_DAEMONS["newer"](work / "disk.sock", image) as backend, \
                front(True, work, backend.socket_path) as socket_path:
            with Qemu11(Qemu11.disk(socket_path)) as guest:
                guest.run(MAKE)
                guest.start("while :; do dd if=/dev/zero of=/dev/vda bs=64k "
                            "seek=2500 count=300 oflag=direct; done")
                guest.expect(r"records out")
                guest.kill()
            with Qemu11(Qemu11.disk(socket_path)) as guest:
                guest.run("mount -t ext4 -o ro,noload /dev/vda /mnt; cd /mnt; "
                          "sha256sum -c sums >/dev/null")
                guest.poweroff()


def test_a_daemon_is_started_by_the_guard():
    with Workdir() as work:
        image = make_image(work / "disk", IMAGE)
        command = STORAGE_DAEMONS["newer"].command("{socket}", image)
        with Guard(work / "guard.sock", command=command) as guard:
            with Qemu11(Qemu11.disk(guard.socket_path)) as guest:
                guest.run(MAKE)
                assert guest.run(CHECK).splitlines()[-1] == "200"
                guest.poweroff()
            check_well(guard)
