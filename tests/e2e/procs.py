# SPDX-License-Identifier: Apache-2.0
"""Processes of a test: started with a captured log, waited for with a deadline,
ended for certain.

Nothing here sleeps to wait: a reader thread takes each program's output and wakes
whoever waits for it; for what does not speak (a file, a process) wait_until()
polls.  Deadlines are generous, as machines are shared; they are for hangs.
"""
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
DEADLINE = float(os.environ.get("MOAT_TEST_DEADLINE", "90"))


def build_dir():
    """The build under test: $MOAT_BUILD, else build/."""
    return os.path.join(TOP, os.environ.get("MOAT_BUILD", "build"))


def moat():
    return os.path.join(build_dir(), "src/cmd/moat")


def spy():
    return os.path.join(build_dir(), "tests/tools/spy")


class Timeout(AssertionError):
    """A deadline passed; says what was waited for."""


def wait_until(condition, what, deadline=DEADLINE):
    """Polls until condition() is true and returns its value."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Timeout(f"not within {deadline:.0f} s: {what}")
        time.sleep(0.01)


def listening(path):
    """True once somebody listens on a Unix socket, told from the kernel's
    table: a trial connection would use up a server that takes one client."""
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as f:
        for line in f:
            fields = line.split()
            # Num RefCount Protocol Flags Type St Inode Path;
            # flag 0x10000 is SO_ACCEPTCON
            if len(fields) == 8 and fields[7] == path:
                if int(fields[3], 16) & 0x10000:
                    return True
    return False


class Workdir:
    """A temporary folder with a name short enough for AF_UNIX's 107 bytes."""

    def __init__(self, folder="/tmp"):
        self.path = tempfile.mkdtemp(prefix="moat-", dir=folder)

    def __truediv__(self, name):
        return os.path.join(self.path, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)


class Process:
    """A running program: its output in .log, text goes to it with write()."""

    def __init__(self, argv, name=None, pass_fds=(), env=None, cwd=None):
        self.argv = [str(a) for a in argv]
        self.name = name or os.path.basename(self.argv[0])
        self._log = ""
        self._done = False
        self._heard = time.monotonic()
        self._news = threading.Condition()
        # One socket for both ways: user-mode Linux wants descriptors that
        # can raise SIGIO, which a plain file can not.
        ours, theirs = socket.socketpair()
        self._socket = ours
        environ = dict(os.environ, **(env or {}))
        # A session of its own, so that kill() takes what it started, too
        # (user-mode Linux has a process for each of the guest's).
        self._popen = subprocess.Popen(
            self.argv, stdin=theirs, stdout=theirs, stderr=theirs,
            pass_fds=pass_fds, env=environ, cwd=cwd, start_new_session=True)
        theirs.close()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        there = select.poll()
        there.register(self._socket, select.POLLIN)
        while not self._done:
            there.poll()
            with self._news:
                self._take()
                self._news.notify_all()

    def _take(self):
        """What it has said to this moment."""
        while not self._done:
            try:
                data = self._socket.recv(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self._done = not data
            self._heard = time.monotonic()
            self._log += data.decode("utf-8", "replace").replace("\r", "")

    @property
    def pid(self):
        return self._popen.pid

    @property
    def log(self):
        with self._news:
            self._take()
            return self._log

    def write(self, text):
        self._socket.sendall(text.encode())

    def running(self):
        return self._popen.poll() is None

    def _complain(self, why):
        tail = "\n".join(self.log.splitlines()[-40:])
        return Timeout(f"{self.name}: {why}\n--- {' '.join(self.argv)}\n"
                       f"{tail}\n--- end of its output, exit status "
                       f"{self._popen.poll()}")

    def expect(self, pattern, start=0, deadline=DEADLINE):
        """Waits until the output from position start on matches; returns
        the match, whose positions count from the log's beginning."""
        regex = re.compile(pattern, re.MULTILINE)
        end = time.monotonic() + deadline
        with self._news:
            while True:
                match = regex.search(self._log, start)
                if match:
                    return match
                if self._done:
                    break
                left = end - time.monotonic()
                if left <= 0 or not self._news.wait(left):
                    break
            silent = time.monotonic() - self._heard
        why = "ended" if self._done else (
            f"{deadline:.0f} s went by, silent for the last {silent:.0f},")
        raise self._complain(f"{why} before it said /{pattern}/")

    def wait(self, deadline=DEADLINE):
        """Waits for the end of the program; returns its exit status."""
        try:
            status = self._popen.wait(deadline)
        except subprocess.TimeoutExpired:
            raise self._complain(
                f"did not end within {deadline:.0f} s") from None
        # What it said last may still be in the socket, which a child that
        # outlives it can keep open: so not for ever.
        self._reader.join(5)
        return status

    def terminate(self, deadline=DEADLINE):
        """SIGTERM, then waits; returns the exit status."""
        if self.running():
            self._popen.send_signal(signal.SIGTERM)
        return self.wait(deadline)

    def kill(self):
        """SIGKILL to the program and to what it started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._popen.wait(DEADLINE)
        if self._reader.is_alive():  # what it started may have escaped
            self._socket.shutdown(socket.SHUT_RDWR)
            self._reader.join(5)
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def run(argv, deadline=DEADLINE, **kwargs):
    """A command from start to end: the finished process with .returncode,
    .stdout and .stderr as text."""
    return subprocess.run([str(a) for a in argv], text=True,
                          capture_output=True, timeout=deadline,
                          stdin=subprocess.DEVNULL, check=False, **kwargs)
