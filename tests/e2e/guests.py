# SPDX-License-Identifier: Apache-2.0
"""Guests: a real Linux in user-mode Linux or in QEMU, spoken to over its console.

Both boot the image of scripts/guest-initramfs in a few seconds and answer to
run(): a shell script goes in, its output and status come back.  The guest goes on
between calls, so a test can look at it from outside meanwhile.
"""
import base64
import functools
import glob
import os
import subprocess
import tempfile

from procs import DEADLINE, TOP, Process, build_dir

SCRIPTS = os.path.join(TOP, "scripts")
LINE = 1000     # bytes of a script in one console line, far below a tty's 4095


class GuestError(AssertionError):
    """A script in the guest ended with a status other than 0."""


def initramfs(modules):
    return subprocess.run([os.path.join(SCRIPTS, "guest-initramfs"), modules],
                          check=True, text=True, stdout=subprocess.PIPE
                          ).stdout.strip()


def newest(pattern):
    found = sorted(glob.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{pattern}: run scripts/setup.sh test")
    return found[-1]


class Guest(Process):
    """A booted guest (or, with wait=False, one that may boot).  Leave it with poweroff() or, as a crash, kill()."""

    def __init__(self, argv, name, wait=True, **kwargs):
        super().__init__(argv, name=name, **kwargs)
        self._number = 0
        if not wait:
            return
        try:
            self.expect("^@ready$")
        except BaseException:
            self.kill()
            raise

    def start(self, script):
        """Hands a script to the guest and does not wait; see finish()."""
        self._number += 1
        text = base64.b64encode(script.encode()).decode()
        for at in range(0, len(text), LINE):
            mark = len(self.log)
            self.write("+" + text[at:at + LINE] + "\n")
            self.expect("^@ack$", mark)
        self.write(f"!{self._number}\n")
        return self._number

    def finish(self, number, deadline=DEADLINE, check=True):
        """Waits for the end of a script; returns its output, or with
        check=False the pair (status, output)."""
        begin = self.expect(f"^@begin {number}\n", deadline=deadline)
        end = self.expect(rf"^@end {number} (\d+)$", begin.end(),
                          deadline=deadline)
        status = int(end.group(1))
        output = self.log[begin.end():end.start()].rstrip("\n")
        if not check:
            return status, output
        if status:
            raise GuestError(f"{self.name}: status {status}\n{output}")
        return output

    def run(self, script, deadline=DEADLINE, check=True):
        return self.finish(self.start("set -e\n" + script), deadline, check)

    def poweroff(self):
        """An orderly end; returns the VMM's exit status."""
        if self.running():
            self.start("poweroff -f")
        return self.wait()


@functools.cache
def fixed_addresses():
    """The command before a program that is to have no randomized addresses.
    User-mode Linux adds the random gap behind its own image, up to a GiB, to the
    file that is the guest's memory.  Where containers forbid this, so be it."""
    command = ["setarch", "-R"]
    allowed = subprocess.run([*command, "true"], stderr=subprocess.DEVNULL,
                             check=False).returncode == 0
    return command if allowed else []


class UserModeLinux(Guest):
    """Debian's user-mode-linux; its disk is virtio over vhost-user.

    Parameters: the vhost-user sockets as (path, virtio device id), the
    size of the guest's memory in MiB.
    """
    vmm = "uml"

    def __init__(self, devices, memory=128):
        # Its sockets and pid files; by default they go under ~/.uml.
        self._umldir = tempfile.TemporaryDirectory(prefix="moat-uml-",
                                                   dir="/tmp")
        image = initramfs(newest("/usr/lib/uml/modules/*"))
        argv = [*fixed_addresses(), "linux.uml", f"mem={memory}M",
                f"initrd={image}", "con=null", "con0=fd:0,fd:1", "loglevel=4",
                "panic=-1", f"uml_dir={self._umldir.name}/"]
        argv += [f"virtio_uml.device={path}:{number}"
                 for path, number in devices]
        # Makes it run on processors that are newer than it; see the source.
        shim = os.path.join(build_dir(), "tests/e2e/uml-xstate.so")
        super().__init__(argv, "user-mode Linux",
                         # Its memory is there unless it is told otherwise.
                         env={"LD_PRELOAD": shim, "TMPDIR": "/dev/shm"})

    def kill(self):
        super().kill()
        self._umldir.cleanup()


class Qemu(Guest):
    """Debian 12's QEMU, without hardware virtualisation.

    Parameters: device arguments (see disk()), the memory in MiB, the number
    of processors, whether a reboot of the guest is one or the end of QEMU,
    descriptors that QEMU inherits, further words of the kernel's command line,
    and sizes in bytes that add up to the memory, to have it in so many memory
    backends.
    """
    vmm = "qemu"
    program = ["qemu-system-x86_64"]

    @staticmethod
    def kernel():
        """A folder with boot/vmlinuz-* and lib/modules/*."""
        return subprocess.run([os.path.join(SCRIPTS, "guest-kernel")],
                              check=True, text=True, stdout=subprocess.PIPE
                              ).stdout.strip()

    def __init__(self, devices, memory=256, cpus=1, reboot=False,
                 wait=True, pass_fds=(), append="", banks=()):
        base = self.kernel()
        image = initramfs(newest(f"{base}/lib/modules/*"))
        argv = [*self.program, "-nodefaults", "-no-user-config",
                "-display", "none", "-serial", "stdio",
                "-accel", "tcg,thread=multi", "-cpu", "max",
                "-m", str(memory), "-smp", self.processors(cpus),
                "-machine", "q35",
                *self.backends(banks or [memory << 20]),
                "-kernel", newest(f"{base}/boot/vmlinuz-*"),
                "-initrd", image,
                "-append", "console=ttyS0 loglevel=4 panic=-1 tsc=reliable "
                "mitigations=off " + append]
        if not reboot:
            argv.append("-no-reboot")
        super().__init__(argv + list(devices), "QEMU", wait=wait,
                         pass_fds=pass_fds)

    @staticmethod
    def processors(number):
        """A QEMU that will never have a second processor emulates locked
        instructions without their memory barrier (and 7.2 even mfence): its
        guest then misses an interrupt or a kick now and then, whatever device
        process is at the other end, and waits for ever."""
        return f"{number},maxcpus={max(number, 2)}"

    @staticmethod
    def backends(sizes):
        argv = []
        for n, size in enumerate(sizes):
            argv += ["-object", f"memory-backend-memfd,id=mem{n},share=on,"
                     f"size={size}", "-numa", f"node,nodeid={n},memdev=mem{n}"]
        return argv if len(sizes) > 1 else [*argv[:2], "-machine",
                                            "memory-backend=mem0"]

    @staticmethod
    def disk(socket_path, queues=1, reconnect=False, packed=False):
        again = ",reconnect=1" if reconnect else ""
        return ["-chardev", f"socket,id=c0,path={socket_path}{again}",
                "-device", "vhost-user-blk-pci,chardev=c0,"
                f"num-queues={queues}{',packed=on' if packed else ''}"]


def boot(vmm, socket_path, queues=1, packed=False):
    """A guest of the named kind with one vhost-user disk, /dev/vda; user-mode
    Linux takes packed rings wherever they are offered."""
    if vmm == "uml":
        return UserModeLinux([(socket_path, 2)])
    return Qemu(Qemu.disk(socket_path, queues, packed=packed), cpus=queues)
