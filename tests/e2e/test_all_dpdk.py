# SPDX-License-Identifier: Apache-2.0
"""DPDK at both ends: testpmd's vhost port is the backend, testpmd's virtio-user
port the driver; both poll, so the guard sees no notification from either."""
import pytest

from peers import Dpdk, front
from procs import Workdir, listening, wait_until

BOTH = pytest.mark.parametrize("guarded", [False, True],
                               ids=["straight", "guarded"])
ENOUGH = 20000


@BOTH
@pytest.mark.parametrize("queues,options", [
    (1, ""), (2, ""), (1, ",packed_vq=1"), (1, ",queue_size=1024"),
    (1, ",mrg_rxbuf=0,in_order=0")],
    ids=["plain", "2-queues", "packed", "queue-size-1024", "not-mergeable"])
def test_packets_go_round_and_none_is_lost(queues, options, guarded):
    with Workdir() as work:
        backend_socket = work / "net.sock"
        with Dpdk(work, f"net_vhost0,iface={backend_socket},"
                     f"queues={queues}", queues) as backend:
            wait_until(lambda: listening(backend_socket), "testpmd listens")
            with front(guarded, work, backend_socket,
                       ["--device=net"]) as socket_path, \
                    Dpdk(work, f"net_virtio_user0,path={socket_path},"
                            f"queues={queues}{options}", queues) as driver:
                backend.ask("start")
                # A few bursts, which both ends send round and round.
                driver.ask("start tx_first 2")
                wait_until(lambda: driver.packets()["RX-packets"] > ENOUGH,
                           "packets come back to the driver")
                driver.ask("stop")
                sent = driver.packets()
                wait_until(lambda: backend.packets()["RX-packets"]
                           == sent["TX-packets"], "the backend has them all")
                assert backend.packets()["RX-bytes"] == sent["TX-bytes"]
                assert sent["RX-errors"] == sent["TX-errors"] == 0
                driver.write("quit\n")
                assert driver.wait() == 0
            # Not told to quit: net_vhost crashes then, straight as well.
            assert backend.running()
