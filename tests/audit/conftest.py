# SPDX-License-Identifier: Apache-2.0
"""Situations that are known to the byte, and the audit of them."""
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.join(TOP, os.environ.get("MOAT_BUILD", "build"))
MOAT = os.path.join(BUILD, "src/cmd/moat")
SPY = os.path.join(BUILD, "tests/tools/spy")
PYTHON = os.path.realpath("/usr/bin/python3")
# Runs a program as root without a capability.
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
MIB = 1 << 20
# For a build with AddressSanitizer: fontconfig keeps what it allocated.
os.environ.setdefault("LSAN_OPTIONS", "print_suppressions=0:suppressions="
                      + os.path.join(HERE, "lsan.supp"))


class Actor:
    """A process that actor.py describes; `name` is that of its program."""

    def __init__(self, fds=(), plan=None, program=PYTHON, prefix=(),
                 argv0=None, script=None, cwd=None, options=()):
        argv = [argv0 or program, script or os.path.join(HERE, "actor.py"),
                *options, json.dumps(plan or {})]
        self.process = subprocess.Popen(
            [*prefix, *([program] if prefix else argv[:1]), *argv[1:]],
            executable=None if prefix else program, pass_fds=list(fds),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=cwd)
        assert self.process.stdout.readline() == b"READY\n"
        self.pid = self.process.pid

    def end(self):
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Scene:
    """Actors and the memory that they share, which the test does not hold."""

    def __init__(self):
        self.actors = []
        self.fds = {}
        self.folder = tempfile.mkdtemp(prefix="moat-audit-")
        os.chmod(self.folder, 0o755)

    def memfd(self, size, name="guest-ram", flags=os.MFD_CLOEXEC):
        fd = os.memfd_create(name, flags)
        os.ftruncate(fd, size)
        self.fds[fd] = True
        return fd

    def sealed(self, size, name="guest-ram"):
        """As QEMU's memory-backend-memfd."""
        fd = self.memfd(size, name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK |
                    fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return fd

    def actor(self, fds=(), **kwargs):
        made = Actor(fds, **kwargs)
        self.actors.append(made)
        return made

    def vmm(self, ram, size, extra=()):
        """A process that maps RAM as a VMM does and keeps the descriptor."""
        return self.actor([ram, *extra], plan={"map": [[ram, 0, size, "rw"]]})

    def program(self, name):
        """Python under another name."""
        path = os.path.join(self.folder, name)
        shutil.copy(PYTHON, path)
        return path

    def guard(self, fds, plan, name="moat", options=()):
        """A process that looks like `moat guard`, if it has that name."""
        shutil.copy(os.path.join(HERE, "actor.py"),
                    os.path.join(self.folder, "guard"))
        program = os.path.join(self.folder, name)
        if not os.path.exists(program):
            self.program(name)
        return self.actor(fds, plan=plan, program=program, argv0="moat",
                          script="guard", cwd=self.folder, options=options)

    def release(self):
        """The test itself must not be one of those who hold the memory."""
        for fd in self.fds:
            os.close(fd)
        self.fds = {}

    def run(self, *args, prefix=(), moat=MOAT, env=None):
        self.release()
        return subprocess.run([*prefix, moat, "audit", *map(str, args)],
                              capture_output=True, text=True, timeout=60,
                              env=env)

    def audit(self, *args, status=0):
        done = self.run(*args, "--json")
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout)

    def spy(self, actor, pattern, *options, prefix=()):
        self.release()
        done = subprocess.run([*prefix, SPY, *options, str(actor.pid),
                               pattern], capture_output=True, text=True,
                              timeout=60)
        return done.returncode, (json.loads(done.stdout) if done.stdout
                                 else None)

    def end(self):
        self.release()
        for actor in self.actors:
            actor.end()
        shutil.rmtree(self.folder)


@pytest.fixture
def scene():
    made = Scene()
    yield made
    made.end()


def row(report, actor):
    """What the report says about a process."""
    found = [p for p in report["processes"] if p["pid"] == actor.pid]
    assert len(found) == 1, report["processes"]
    return found[0]


def ranges(report, actor, how):
    return sorted((r["start"], r["end"]) for r in row(report, actor)["reach"]
                  if r["how"] == how)


sys.path.insert(0, HERE)
