# SPDX-License-Identifier: Apache-2.0
"""What the disk's backend can read of the guest: nothing with the guard,
everything without.  Each test runs both ways with opposite expectations, so none
can pass because it looks at the wrong thing."""
import pytest

from machine import (MIB, Machine, audit, plant_secret, ram_reached,
                     spy_finds)

VMMS = ["uml", "qemu"]


@pytest.fixture(scope="module", params=[
    (vmm, guarded) for vmm in VMMS for guarded in (True, False)],
    ids=lambda p: p[0] + ("-guarded" if p[1] else "-unguarded"))
def scene(request):
    """A guest with a secret, and traffic on its disk behind it."""
    vmm, guarded = request.param
    with Machine(vmm, guarded) as m:
        secret = plant_secret(m.guest)
        wanted = m.fill(0, 16 * MIB)
        assert wanted in m.guest.run(
            "dd if=/dev/vda iflag=direct bs=256k count=64 2>/dev/null"
            " | sha256sum")
        m.guest.run("dd if=/dev/zero of=/dev/vda bs=1M count=16 conv=fsync"
                    " 2>/dev/null")
        yield m, secret


def test_the_backend_reaches_the_guests_secret_only_without_the_guard(scene):
    machine, secret = scene
    # It is there to be found, and the spy knows how.
    assert spy_finds(machine.guest.pid, secret)
    assert spy_finds(machine.backend.pid, secret) == (machine.guard is None)


def test_the_audit_shows_no_guest_ram_only_with_the_guard(scene):
    machine, _ = scene
    report = audit(machine.backend.pid, machine.guest.pid)
    assert ram_reached(report, machine.guest.pid) >= 128 * MIB
    reached = ram_reached(report, machine.backend.pid)
    if machine.guard:
        assert reached == 0
    else:
        assert reached >= 128 * MIB
