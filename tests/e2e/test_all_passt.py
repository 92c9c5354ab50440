# SPDX-License-Identifier: Apache-2.0
"""passt: a guest's TCP through vhost-user to servers on this machine's
loopback; nothing leaves the machine."""
import hashlib
import os
import socket
import threading

import pytest

from guard import Guard
from guests import UserModeLinux
from peers import (GATEWAY_IP, GUEST_IP, Passt, Qemu11, check_ended, front,
                   passt)
from procs import DEADLINE, Workdir

SIZE = 16 << 20
DEVICE_NET = 1
BOTH = pytest.mark.parametrize("guarded", [False, True],
                               ids=["straight", "guarded"])


class Peer:
    """A server on the loopback that sends data to the first who connects, and
    takes in what the second sends."""

    def __init__(self, data):
        self._data = data
        self.received = None
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(DEADLINE)
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self._serve()
        except OSError:     # shut down before its time; received stays None
            pass

    def _serve(self):
        connection, _ = self._socket.accept()
        with connection:
            connection.sendall(self._data)
        connection, _ = self._socket.accept()
        digest = hashlib.sha256()
        with connection:
            while block := connection.recv(1 << 16):
                digest.update(block)
        self.received = digest.hexdigest()

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        if failed:
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)
        self._socket.close()


def transfer(guest):
    """Takes data in and sends them back, compared at both ends."""
    data = os.urandom(SIZE)
    digest = hashlib.sha256(data).hexdigest()
    with Peer(data) as peer:
        guest.run(f"""
ip link set lo up
ip link set eth0 up
ip addr add {GUEST_IP}/24 dev eth0
""")
        got = guest.run(f"nc {GATEWAY_IP} {peer.port} </dev/null >/tmp/data; "
                        "sha256sum </tmp/data")
        assert got.split()[0] == digest
        guest.run(f"nc {GATEWAY_IP} {peer.port} </tmp/data")
    assert peer.received == digest
    lost = guest.run("cat /sys/class/net/eth0/statistics/rx_errors "
                     "/sys/class/net/eth0/statistics/tx_errors")
    assert lost.split() == ["0", "0"]


@BOTH
def test_qemu_moves_megabytes_both_ways(guarded):
    with Workdir() as work:
        with Passt(work / "net.sock") as backend, \
                front(guarded, work, backend.socket_path) as socket_path, \
                Qemu11(Qemu11.net(socket_path)) as guest:
            transfer(guest)
            assert guest.poweroff() == 0


def test_user_mode_linux_moves_megabytes_both_ways():
    """Guarded only: straight, this VMM finds no interrupt for a backend that
    does not offer BACKEND_REQ, as passt does not."""
    with Workdir() as work:
        with Passt(work / "net.sock") as backend, \
                front(True, work, backend.socket_path) as socket_path, \
                UserModeLinux([(socket_path, DEVICE_NET)]) as guest:
            transfer(guest)
            guest.poweroff()


def test_a_second_guest_gets_a_working_network_from_the_same_guard():
    with Workdir() as work:
        with Passt(work / "net.sock") as backend, \
                front(True, work, backend.socket_path) as socket_path:
            for _ in range(2):
                with Qemu11(Qemu11.net(socket_path)) as guest:
                    transfer(guest)
                    guest.poweroff()


@pytest.mark.parametrize("how", [["--socket", "{socket}"], ["--fd", "{fd}"]],
                         ids=["socket", "fd"])
def test_passt_is_started_by_the_guard(how):
    with Workdir() as work:
        with Guard(work / "guard.sock", options=["--device=net", "--once"],
                   command=passt(*how)) as guard:
            with Qemu11(Qemu11.net(guard.socket_path)) as guest:
                transfer(guest)
                guest.poweroff()
            check_ended(guard)
