# SPDX-License-Identifier: Apache-2.0
"""The kit as somebody else meets it: installed, found by pkg-config, a program
of a page built on it."""
import json
import os
import signal
import struct
import subprocess
import time

import pytest

import vhost_user as vu
from guard import ROOT, Guard
from guest import HOLE, Vmm
from split_ring import WRITE, Desc
from vhost_user import Protocol, Request, mask

EXAMPLE = ROOT / "examples/moat-rng.c"


def build_folder(build):
    return build.program[:-len("/src/cmd/moat")]


class Rng(Guard):
    def __init__(self, build, folder, program, *options):
        self.path = f"{folder}/r"
        self._start(build, [program, f"--socket-path={self.path}", *options])


@pytest.fixture(name="installed", scope="module")
def fixture_installed(plain, tmp_path_factory):
    """The example, built as its first lines say, against an installed kit."""
    place = tmp_path_factory.mktemp("kit")
    env = dict(os.environ, DESTDIR=str(place),
               PATH="/usr/bin:" + os.environ["PATH"])
    subprocess.run(["meson", "install", "-C", build_folder(plain),
                    "--no-rebuild", "--quiet"], env=env, check=True)
    pc, = place.rglob("moat.pc")
    env = dict(os.environ, PKG_CONFIG_PATH=str(pc.parent),
               PKG_CONFIG_SYSROOT_DIR=str(place))
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "--static",
                            "moat"], env=env, check=True, text=True,
                           stdout=subprocess.PIPE).stdout.split()
    program = place / "moat-rng"
    subprocess.run(["cc", EXAMPLE, *flags, "-o", program], check=True)
    return place, str(program)


def bytes_of(vmm, size):
    queue, = vmm.queues
    at = vmm.ram.alloc(size)
    vmm.ram.device_may_write(at, size)
    head = queue.ring.add([(at, size, WRITE)])
    queue.publish()
    (ident, length), = queue.wait_used()
    assert ident == head and length == min(size, 4096)
    return vmm.ram.read(at, length)


def test_a_program_of_a_page_is_a_backend(keep, folder, plain, installed):
    with open(EXAMPLE, encoding="utf-8") as f:
        assert len(f.readlines()) < 150
    rng = keep(Rng(plain, folder, installed[1]))
    for _ in range(3):
        vmm = keep(Vmm.connect(rng.path)).setup(queues=1)
        first, second = bytes_of(vmm, 4096), bytes_of(vmm, 4096)
        assert first != second and first.count(0) < 100
        assert len(bytes_of(vmm, 10000)) == 4096
        vmm.ram.check()
        vmm.close()
    assert rng.terminate() == 0
    assert not os.path.exists(rng.path), "its socket is gone with it"
    assert not rng.complaints()


def test_a_bad_ring_and_a_bad_request_break_its_queue(keep, folder, plain,
                                                      installed):
    rng = keep(Rng(plain, folder, installed[1]))
    for desc, text in ((Desc(HOLE, 64, WRITE), "outside guest memory"),
                       (Desc(4096, 64), "can only read")):
        vmm = keep(Vmm.connect(rng.path)).setup(queues=1)
        queue, = vmm.queues
        mark = len(rng.lines)
        queue.ring.set_desc(0, desc)
        queue.ring.post(0)
        queue.ring.publish()
        queue.kick()
        assert queue.erred()
        rng.wait_line("queue 0.*" + text, mark)
        assert vmm.fe.get_status() & 0x40
        vmm.close()


def test_a_frontend_is_refused_what_it_may_not_ask(keep, folder, plain,
                                                   installed):
    rng = keep(Rng(plain, folder, installed[1]))
    vmm = keep(Vmm.connect(rng.path)).setup(queues=1)
    fe = vmm.fe
    assert fe.set_features(vmm.features | 1 << 50)
    assert fe.set_vring_num(0, 64), "it runs"
    assert fe.set_vring_num(1, 64), "there is no such queue"
    assert fe.set_config(0, b"x"), "there is no config space"
    assert fe.get_vring_base(0) == 0
    assert fe.set_vring_num(0, 63)
    assert fe.set_vring_base(0, 0x10000)


@pytest.mark.parametrize("how", ["reset_device", "set_status"])
def test_a_reset_disables_queues(keep, folder, plain, installed, how):
    """vhost-user, RESET_DEVICE; a kick alone starts no queue, then."""
    rng = keep(Rng(plain, folder, installed[1]))
    vmm = keep(Vmm.connect(rng.path)).setup(queues=1)
    queue, = vmm.queues
    assert len(bytes_of(vmm, 64)) == 64
    assert not (vmm.fe.set_status(0) if how == "set_status"
                else vmm.fe.reset_device())
    assert not vmm.fe.set_features(vmm.features)
    queue.make_ring(0)
    queue.start(enable=False)
    at = vmm.ram.alloc(64)
    vmm.ram.device_may_write(at, 64)
    queue.ring.add([(at, 64, WRITE)])
    queue.publish()
    queue.kick()
    time.sleep(0.1)     # there is no sign of what must not come
    assert not queue.ring.reap()
    assert not vmm.fe.set_vring_enable(0, 1)
    assert len(queue.wait_used()) == 1


def stop_process(pid):
    os.kill(pid, signal.SIGSTOP)
    deadline = vu.deadline_in(10)
    while True:
        with open(f"/proc/{pid}/stat", encoding="ascii") as f:
            if f.read().rpartition(")")[2].split()[0] == "T":
                return
        assert vu.deadline_in(0) < deadline, "it does not stop"


def records_of(num, heads):
    """In-flight records of a split ring in which @heads were begun."""
    fd = os.memfd_create("records")
    data = struct.pack("=QHHHH", 0, 1, num, 0, 0)
    for n in range(num):
        data += struct.pack("=B5xHQ", n in heads, 0, n)
    os.write(fd, data.ljust(-(-len(data) // 64) * 64, b"\0"))
    return fd


def test_what_was_begun_is_done_again_in_memory_that_came_just_before(
        keep, folder, plain, installed):
    """Its thread may hear of a region only with the queue that needs it."""
    rng = keep(Rng(plain, folder, installed[1], "--sandbox=seccomp"))
    for _ in range(10):
        vmm = keep(Vmm.connect(rng.path,
                               protocol=~mask(Protocol.REPLY_ACK)))
        vmm.negotiate()
        vmm.fe.set_protocol_features(vmm.protocol |
                                     mask(Protocol.INFLIGHT_SHMFD))
        queue = vmm.add_queue(num=64)
        at = vmm.ram.alloc(4096)
        vmm.ram.device_may_write(at, 4096)
        head = queue.ring.add([(at, 4096, WRITE)])
        queue.publish()
        records = records_of(64, [head])
        payload = struct.pack("=QQHHI", os.fstat(records).st_size, 0, 1, 64, 0)
        vmm.fe.send(Request.SET_INFLIGHT_FD, payload, [records])
        os.close(records)
        assert vmm.fe.get_max_mem_slots() >= len(vmm.ram.banks)
        # All of it is there when the process goes on.
        stop_process(rng.pid)
        for bank in vmm.ram.banks:
            vmm.fe.add_mem_reg(bank.region, bank.fd)
        queue.start()
        os.kill(rng.pid, signal.SIGCONT)
        assert queue.wait_used() == [(head, 4096)]
        vmm.ram.check()
        vmm.close()
    assert not rng.complaints()


def test_the_description_file_names_an_installed_program(installed):
    place, _ = installed
    found, = place.rglob("50-moat-blk.json")
    with open(found, encoding="utf-8") as f:
        entry = json.load(f)
    assert entry["type"] == "block"
    program = str(place) + entry["binary"]
    said = json.loads(subprocess.run(
        [program, "--print-capabilities"], check=True, text=True,
        stdout=subprocess.PIPE).stdout)
    assert said == {"type": "block", "features": ["read-only", "blk-file"]}


@pytest.mark.parametrize("options", [
    [], ["--socket-path=/x"], ["--blk-file=/x"],
    ["--blk-file=/x", "--null=1M", "--socket-path=/x"],
    ["--null=1Q", "--socket-path=/x"], ["--null=1M", "--fd=99"],
    ["--null=1M", "--socket-path=/x", "--num-queues=0"],
    ["--null=1M", "--socket-path=/x", "--cache=fast"],
    ["--null=1M", "--socket-path=/x", "--sandbox=loose"],
    ["--null=1M", "--socket-path=/x", "--serial=" + "x" * 21],
    ["--null=1M", "--socket-path=/x", "--block-size=1000"]], ids=" ".join)
def test_bad_usage_is_status_2_and_says_why(plain, options):
    done = subprocess.run([f"{build_folder(plain)}/src/dev/blk/moat-blk",
                           *options], text=True, capture_output=True,
                          timeout=20, check=False)
    assert done.returncode == 2 and "moat-blk: " in done.stderr, done


@pytest.mark.parametrize("path", ["/nonexistent", "/dev/null", "/tmp"])
def test_what_is_no_disk_is_refused(folder, plain, path):
    done = subprocess.run([f"{build_folder(plain)}/src/dev/blk/moat-blk",
                           f"--blk-file={path}", f"--socket-path={folder}/s"],
                          text=True, capture_output=True, timeout=20,
                          check=False)
    assert done.returncode == 1, done
    assert done.stderr.count("error: ") == 1 and path in done.stderr
    assert not os.path.exists(f"{folder}/s")
