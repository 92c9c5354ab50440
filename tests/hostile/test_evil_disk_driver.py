# SPDX-License-Identifier: Apache-2.0
"""A hostile guest against moat-blk: rings and requests.

A malformed ring breaks its queue, a malformed request gets the right status;
either way there is one line, and the disk goes on.
"""
import os
import struct

import pytest

import test_evil_driver
import test_packed
from disk import BLK, DISCARD, FLUSH, GET_ID, IN, IOERR, OK, OUT, SECTORS, \
    UNSUPP, ZEROES, Disk, one_line, seg
from guard import Blk
from guest import HOLE, OFFERABLE, Vmm
from split_ring import WRITE
from test_packed import PACKED
from vhost_user import Protocol


@pytest.fixture(name="disk", params=["--engine=uring", "--engine=sync",
                                     "--threads=1",
                                     "--registered-buffers=on", "packed"])
def fixture_disk(request, keep, folder, sanitized):
    if request.param == "packed":
        return Disk(keep, folder, sanitized, ring=PACKED)
    return Disk(keep, folder, sanitized, request.param)


# A disk request of its own kind has been outstanding only for an instant.
RING_ATTACKS = [a for a in test_evil_driver.ATTACKS
                if a is not test_evil_driver.same_head_twice_at_once]


# Nor has a packed one; and one without a status byte breaks its queue anyhow.
PACKED_ATTACKS = [a for a in test_packed.ATTACKS
                  if a not in (test_packed.list_that_runs_into_one_outstanding,
                               test_packed.id_twice,
                               test_packed.reserved_event_flags)]


@pytest.mark.parametrize("ring,attack", [(0, a) for a in RING_ATTACKS]
                         + [(PACKED, a) for a in PACKED_ATTACKS],
                         ids=lambda a: getattr(a, "__name__", a))
def test_malformed_ring_breaks_its_queue_only(keep, folder, sanitized, ring,
                                              attack):
    disk = Disk(keep, folder, sanitized, ring=ring)
    bad = disk.vmm.queues[0]
    mark = len(disk.blk.lines)
    texts = attack(bad)
    bad.ring.publish()
    bad.kick()
    assert bad.erred(), "the err eventfd was not signalled"
    disk.works()
    one_line(disk, mark, r"queue 0\b", *texts)
    bad.kick()
    disk.works()
    assert len(disk.blk.complaints(mark)) == 1
    assert bad.ring.reap() == [], "a broken ring was written"
    assert disk.vmm.fe.get_status() & 0x40, "DEVICE_NEEDS_RESET"
    disk.vmm.config_changed()
    disk.file_is_as_meant()
    # A reset heals it.
    assert disk.vmm.fe.reset_device() == 0
    assert disk.vmm.fe.set_features(disk.vmm.features) == 0
    for queue in disk.vmm.queues:
        queue.make_ring(queue.base)
        queue.start()
    disk.works(0)
    disk.works(1)


REFUSED = {
    "read_past_the_end": (IN, SECTORS, b"", 512, IOERR, "past the end"),
    "read_across_the_end": (IN, SECTORS - 1, b"", 1024, IOERR, "past the end"),
    "sector_that_wraps": (IN, 2 ** 64 - 1, b"", 1024, IOERR, "past the end"),
    "sector_whose_byte_offset_wraps": (IN, 2 ** 55, b"", 512, IOERR,
                                       "past the end"),
    "read_of_an_odd_length": (IN, 0, b"", 511, IOERR, "multiple of 512"),
    "write_past_the_end": (OUT, SECTORS, b"x" * 512, 0, IOERR, "past the end"),
    "write_of_an_odd_length": (OUT, 0, b"x" * 513, 0, IOERR, "multiple of 512"),
    "write_across_the_end": (OUT, SECTORS - 1, b"x" * 1024, 0, IOERR,
                             "past the end"),
    "write_whose_sector_wraps": (OUT, 2 ** 64 - 1, b"x" * 1024, 0, IOERR,
                                 "past the end"),
    "write_whose_byte_offset_wraps": (OUT, 2 ** 55, b"x" * 512, 0, IOERR,
                                      "past the end"),
    "unknown_type": (77, 0, b"", 0, UNSUPP, "not supported"),
    "secure_erase": (14, 0, seg(0, 8), 0, UNSUPP, "not supported"),
    "huge_type": (0xffffffff, 0, b"", 16, UNSUPP, "not supported"),
    "discard_of_nothing": (DISCARD, 0, b"", 0, IOERR, "bytes of segments"),
    "discard_of_half_a_segment": (DISCARD, 0, bytes(8), 0, IOERR,
                                  "bytes of segments"),
    "discard_of_too_many_segments": (DISCARD, 0, seg(0, 8) * 17, 0, IOERR,
                                     "bytes of segments"),
    "discard_past_the_end": (DISCARD, 0, seg(SECTORS - 1, 2), 0, IOERR,
                             "past the end"),
    "discard_that_wraps": (DISCARD, 0, seg(2 ** 64 - 1, 2), 0, IOERR,
                           "past the end"),
    "discard_with_the_unmap_flag": (DISCARD, 0, seg(0, 8, 1), 0, UNSUPP,
                                    "flags"),
    "discard_of_too_many_sectors": (DISCARD, 0, seg(0, 2 ** 32 - 1), 0, IOERR,
                                    "too many sectors"),
    "discard_of_a_byte_more": (DISCARD, 0, seg(0, 8) + b"x", 0, IOERR,
                               "bytes of segments"),
    "zeroes_of_nothing": (ZEROES, 0, b"", 0, IOERR, "bytes of segments"),
    "zeroes_of_too_many_segments": (ZEROES, 0, seg(0, 8) * 17, 0, IOERR,
                                    "bytes of segments"),
    "zeroes_past_the_end": (ZEROES, 0, seg(SECTORS, 1), 0, IOERR,
                            "past the end"),
    "zeroes_that_wrap": (ZEROES, 0, seg(2 ** 64 - 8, 8, 1), 0, IOERR,
                         "past the end"),
    "zeroes_of_too_many_sectors": (ZEROES, 0, seg(0, 2 ** 32 - 1), 0, IOERR,
                                   "too many sectors"),
    "zeroes_with_unknown_flags": (ZEROES, 0, seg(0, 8, 2), 0, UNSUPP, "flags"),
    "bad_segment_after_a_good_one": (ZEROES, 0, seg(0, 8) + seg(SECTORS, 1), 0,
                                     IOERR, "past the end"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_malformed_request_gets_a_status_and_changes_nothing(disk, case):
    kind, sector, data, room, status, text = REFUSED[case]
    mark = len(disk.blk.lines)
    got, read = disk.ask(kind, sector, data, room)
    assert got == status
    assert read == bytes(room), "no stale byte"
    one_line(disk, mark, "queue 0", text)
    disk.works(0)
    disk.file_is_as_meant()


@pytest.mark.parametrize("size", [1, 15])
def test_short_header_gets_an_error(disk, size):
    mark = len(disk.blk.lines)
    assert disk.ask(IN, room=512, header=bytes(size))[0] == IOERR
    one_line(disk, mark, "header")
    disk.works(0)


STATUSES = {
    "missing": (lambda ram: [], "status"),
    "not_writable": (lambda ram: [(ram.alloc(1), 1, 0)], "status"),
    "empty": (lambda ram: [(ram.alloc(1), 0, WRITE)], "status"),
    "outside_of_memory": (lambda ram: [(HOLE, 1, WRITE)], "outside"),
    "not_writable_after_data_that_is": (
        lambda ram: [(ram.alloc(512), 512, WRITE), (ram.alloc(1), 1, 0)],
        "after"),
}


@pytest.mark.parametrize("case", STATUSES)
def test_request_without_a_status_byte_breaks_its_queue(disk, case):
    status, text = STATUSES[case]
    mark = len(disk.blk.lines)
    bad = disk.vmm.queues[0]
    at, data = bad.ram.alloc(16), bad.ram.alloc(512)
    bad.ram.write(at, struct.pack("<IIQ", OUT, 0, 0))
    bad.ring.add([(at, 16, 0), (data, 512, 0), *status(bad.ram)])
    bad.publish()
    assert bad.erred()
    one_line(disk, mark, "queue 0", text)
    disk.works(1)
    disk.file_is_as_meant()


def test_each_request_type_does_what_it_says(disk):
    disk.works(0)
    assert disk.ask(GET_ID, room=20) == (OK, b"moat-serial".ljust(20, b"\0"))
    assert disk.ask(FLUSH) == (OK, b"")
    assert disk.ask(ZEROES, 0, seg(16, 8) + seg(100, 1, 1))[0] == OK
    disk.data[16 * 512:24 * 512] = bytes(4096)
    disk.data[100 * 512:101 * 512] = bytes(512)
    assert disk.ask(DISCARD, 0, seg(64, 16))[0] == OK
    disk.data[64 * 512:80 * 512] = bytes(8192)
    assert disk.ask(IN, 64, room=8192) == (OK, bytes(8192))
    disk.file_is_as_meant()


def test_a_request_may_lie_in_any_pieces(disk):
    """Header, data and status cut where the driver likes, across regions."""
    q = disk.vmm.queues[0]
    ram = q.ram
    header = struct.pack("<IIQ", IN, 0, 40)
    at = [ram.alloc(n) for n in (1, 9, 6)]
    ram.write(at[0], header[:1])
    ram.write(at[1], header[1:10])
    ram.write(at[2], header[10:])
    into = [ram.alloc(n, align=1) for n in (3, 700)]
    # 321 bytes of data and the status cross from one region into the next.
    edge = 0x20_0000 - 100
    for addr, n in ((into[0], 3), (into[1], 700), (edge, 322)):
        ram.device_may_write(addr, n)
    q.ring.add([(at[0], 1, 0), (at[1], 9, 0), (at[2], 6, 0),
                (into[0], 3, WRITE), (into[1], 700, WRITE), (edge, 322, WRITE)])
    q.publish()
    assert q.wait_used()[0][1] == 1025
    got = ram.read(into[0], 3) + ram.read(into[1], 700) + ram.read(edge, 322)
    assert got == bytes(disk.data[40 * 512:42 * 512]) + b"\0"
    ram.check()


def test_a_file_that_shrinks_is_an_error_and_not_a_hang(disk):
    disk.works(0)
    os.truncate(disk.image, 1024 * 512)
    mark = len(disk.blk.lines)
    for _ in range(3):
        assert disk.ask(IN, 2048, room=4096) == (IOERR, bytes(4096))
    one_line(disk, mark, "shorter than the disk")
    assert disk.ask(IN, 8, room=512)[0] == OK


# A file system of 1 MiB in which the disk of 4 MiB is nothing but a hole.
FULL = ["unshare", "--map-root-user", "--mount", "sh", "-ec", """
    for arg; do
        case $arg in --blk-file=*) image=${arg#--blk-file=} ;; esac
    done
    mount -t tmpfs -o size=1m none "${image%/*}/full"
    truncate -s 4M "${image%/*}/full/disk"
    mount --bind "${image%/*}/full/disk" "$image"
    exec "$@" """, "sh"]


@pytest.mark.parametrize("engine", ["--engine=uring", "--engine=sync"])
def test_a_full_file_system_is_an_error_until_there_is_room(
        keep, folder, sanitized, engine):
    os.mkdir(f"{folder}/full")
    disk = Disk(keep, folder, sanitized, engine, under=FULL)
    mark = len(disk.blk.lines)
    got = [disk.ask(OUT, n * 8, b"d" * 4096)[0] for n in range(300)]
    assert got[:100] == [OK] * 100 and got[-20:] == [IOERR] * 20, got
    one_line(disk, mark, "write of .* fails: No space left")
    assert disk.ask(IN, 0, room=4096) == (OK, b"d" * 4096)
    assert disk.ask(DISCARD, 0, seg(0, 512))[0] == OK
    assert disk.ask(OUT, 2392, b"d" * 4096)[0] == OK
    disk.vmm.ram.check()


def test_read_only_disk_is_not_written(keep, folder, sanitized):
    disk = Disk(keep, folder, sanitized, "--read-only")
    assert disk.vmm.offered & 1 << 5, "VIRTIO_BLK_F_RO"
    for kind, data in ((OUT, b"x" * 512), (DISCARD, seg(0, 8)),
                       (ZEROES, seg(0, 8))):
        assert disk.ask(kind, 0, data)[0] in (IOERR, UNSUPP)
    assert disk.ask(IN, 0, room=512) == (OK, bytes(disk.data[:512]))
    disk.file_is_as_meant()


def test_config_space_says_what_the_disk_is_and_takes_only_wce(disk):
    fe = disk.vmm.fe
    assert struct.unpack("<Q", fe.get_config(0, 8))[0] == SECTORS
    assert struct.unpack("<I", fe.get_config(20, 4))[0] == 512
    assert struct.unpack("<H", fe.get_config(34, 2))[0] == 2, "num_queues"
    assert fe.get_config(32, 1) == b"\1"
    assert fe.set_config(32, b"\0") == 0
    assert fe.get_config(32, 1) == b"\0"
    disk.works(0)
    assert fe.set_config(0, b"\xff" * 8) != 0, "capacity is not the driver's"
    assert struct.unpack("<Q", fe.get_config(0, 8))[0] == SECTORS


def test_a_grown_file_is_announced(keep, folder, plain):
    disk = Disk(keep, folder, plain)
    os.truncate(disk.image, (SECTORS + 64) * 512)
    disk.blk.process.send_signal(1)
    disk.vmm.config_changed()
    assert struct.unpack("<Q", disk.vmm.fe.get_config(0, 8))[0] == SECTORS + 64
    disk.data += bytes(64 * 512)
    assert disk.ask(OUT, SECTORS, b"n" * 512)[0] == OK
    disk.data[SECTORS * 512:(SECTORS + 1) * 512] = b"n" * 512
    disk.file_is_as_meant()


def test_memory_that_goes_away_ends_only_that_session(disk):
    vmm = disk.vmm
    assert vmm.has(Protocol.CONFIGURE_MEM_SLOTS)
    bank = vmm.ram.banks[0]
    assert vmm.fe.rem_mem_reg(bank.region) != 0, "its rings were there"
    disk.vmm = disk.connect()
    disk.works(0)


def test_two_processes_do_not_serve_one_file(keep, folder, plain):
    disk = Disk(keep, folder, plain)
    with pytest.raises(AssertionError, match="another process has it locked"):
        Blk(plain, folder, disk.image, name="second")


def test_the_strict_sandbox_leaves_nothing(keep, folder, plain):
    """What /proc says of the process that serves the disk."""
    disk = Disk(keep, folder, plain)
    disk.works(0)
    parent = disk.blk.pid
    with open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as f:
        child, = f.read().split()
    with open(f"/proc/{child}/status", encoding="ascii") as f:
        status = dict(line.split(":\t", 1) for line in f.read().splitlines()
                      if ":\t" in line)
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    for task in os.listdir(f"/proc/{child}/task"):
        with open(f"/proc/{child}/task/{task}/status", encoding="ascii") as f:
            assert "Seccomp:\t2" in f.read(), "each thread"
    for kind in ("user", "mnt", "net", "pid", "ipc", "uts"):
        assert os.readlink(f"/proc/{child}/ns/{kind}") != \
            os.readlink(f"/proc/self/ns/{kind}"), kind
    assert os.listdir(f"/proc/{child}/root") == []
    assert not disk.blk.find("sandbox: ")


def test_many_vmms_leave_it_in_its_sandbox(keep, folder, plain):
    """What a queue's memory is given back with is allowed, too."""
    disk = Disk(keep, folder, plain, "--threads=1")
    for num in (128, 128, 1024, 64, 128):
        disk.vmm.close()
        disk.vmm = keep(Vmm.connect(disk.blk.path, features=OFFERABLE | BLK))
        disk.vmm.setup(queues=2, num=num)
        disk.works(0)
        disk.works(1)
