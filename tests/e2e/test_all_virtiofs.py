# SPDX-License-Identifier: Apache-2.0
"""virtiofsd, the old one in C and the new one in Rust, with QEMU 11.1 and in
user-mode Linux."""
import os

import pytest

from guard import Guard
from guests import UserModeLinux
from peers import (Qemu11, Virtiofsd, check_ended, front, sha256,
                   virtiofsd)
from procs import Workdir

BOTH = pytest.mark.parametrize("guarded", [False, True],
                               ids=["straight", "guarded"])
KINDS = pytest.mark.parametrize("kind", ["debian12", "newer"])
DEVICE_FS = 26
MOUNT = "mkdir -p /mnt; mount -t virtiofs moat /mnt; cd /mnt\n"


def fill(folder, files=100):
    """A tree of small files and one large one; returns what sha256sum would
    say of them."""
    lines = []
    os.makedirs(folder)
    for i in range(files):
        where = f"host/{i % 7}/{i % 3}"
        os.makedirs(os.path.join(folder, where), exist_ok=True)
        name = f"{where}/{i}"
        with open(os.path.join(folder, name), "wb") as f:
            f.write(os.urandom(i * 97))
        lines.append(f"{sha256(os.path.join(folder, name))}  {name}\n")
    with open(os.path.join(folder, "host/large"), "wb") as f:
        f.write(os.urandom(24 << 20))
    lines.append(f"{sha256(os.path.join(folder, 'host/large'))}  host/large\n")
    with open(os.path.join(folder, "host.sums"), "w", encoding="ascii") as f:
        f.writelines(lines)


def read_and_compare(guest):
    """The guest reads what the host made, by pages and in large requests."""
    guest.run(MOUNT + """
sha256sum -c host.sums >/dev/null
echo 3 >/proc/sys/vm/drop_caches
dd if=host/large bs=4M iflag=direct 2>/dev/null | sha256sum | cut -c-64 >/tmp/s
grep -q "^$(cat /tmp/s)  host/large" host.sums
""")
    assert guest.run("cd /mnt/host; find . -type f | wc -l") == "101"


def make_and_compare(guest, folder):
    """The host finds what the guest made, and not what it removed."""
    guest.run(r"""
cd /mnt
mkdir -p guest/deep/er/still gone
for i in $(seq 100); do echo "line $i" >guest/deep/$i; done
for i in $(seq 10); do echo $i >gone/$i; done
dd if=/dev/urandom of=guest/large bs=4M count=5 oflag=direct 2>/dev/null
dd if=/dev/urandom of=guest/odd bs=300001 count=31 2>/dev/null
mv guest/deep/100 guest/deep/er/still/moved
ln -s deep/1 guest/link
ln guest/deep/2 guest/hard
chmod 640 guest/deep/3
truncate -s 12345 guest/deep/4
printf 'more\n' >>guest/deep/5
rm -r gone
sync
cd guest; sha256sum large odd deep/er/still/moved link >../guest.sums
""")
    made = os.path.join(folder, "guest")
    with open(os.path.join(folder, "guest.sums"), encoding="ascii") as f:
        for line in f:
            digest, name = line.split()
            assert sha256(os.path.join(made, name)) == digest, name
    assert os.path.getsize(made + "/large") == 20 << 20
    assert os.path.getsize(made + "/odd") == 300001 * 31
    assert not os.path.exists(folder + "/gone")
    assert not os.path.exists(made + "/deep/100")
    assert os.readlink(made + "/link") == "deep/1"
    assert os.stat(made + "/hard").st_nlink == 2
    assert os.stat(made + "/deep/3").st_mode & 0o777 == 0o640
    assert os.path.getsize(made + "/deep/4") == 12345
    with open(made + "/deep/5", encoding="ascii") as f:
        assert f.read() == "line 5\nmore\n"
    for i in range(6, 100):
        with open(f"{made}/deep/{i}", encoding="ascii") as f:
            assert f.read() == f"line {i}\n"


def share(guest, folder):
    read_and_compare(guest)
    make_and_compare(guest, folder)
    guest.run("cd /; umount /mnt")
    assert guest.poweroff() == 0


@BOTH
@KINDS
def test_qemu_shares_a_folder(kind, guarded):
    with Workdir() as work:
        folder = work / "share"
        fill(folder)
        with Virtiofsd(kind, work / "fs.sock", folder) as backend, \
                front(guarded, work, backend.socket_path,
                      ["--once"]) as socket_path, \
                Qemu11(Qemu11.share(socket_path)) as guest:
            share(guest, folder)


def test_user_mode_linux_shares_a_folder():
    """Guarded only: straight, the old virtiofsd has no configuration space for
    the tag to be read from, and the new one refuses this VMM's SET_MEM_TABLE,
    which is longer than its number of regions says."""
    with Workdir() as work:
        folder = work / "share"
        fill(folder)
        with Virtiofsd("newer", work / "fs.sock", folder) as backend, \
                front(True, work, backend.socket_path,
                      ["--device=fs", "--once"]) as socket_path, \
                UserModeLinux([(socket_path, DEVICE_FS)]) as guest:
            share(guest, folder)


@pytest.mark.parametrize("kind,how", [
    ("debian12", "--socket-path={socket}"), ("newer", "--socket-path={socket}"),
    ("newer", "--fd={listen-fd}")])
def test_virtiofsd_is_started_by_the_guard(kind, how):
    with Workdir() as work:
        folder = work / "share"
        fill(folder)
        with Guard(work / "guard.sock", options=["--device=fs", "--once"],
                   command=virtiofsd(kind, folder, how)) as guard:
            with Qemu11(Qemu11.share(guard.socket_path)) as guest:
                share(guest, folder)
            check_ended(guard)
