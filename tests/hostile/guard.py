# SPDX-License-Identifier: Apache-2.0
"""`moat guard` as a child process, and what /proc says about it."""
import os
import pathlib
import re
import select
import signal
import subprocess
import threading
import time

from vhost_user import PATIENCE

ROOT = pathlib.Path(__file__).resolve().parents[2]

# One line a cause; these are not causes.
ROUTINE = re.compile(r"moat(-\w+| guard)(\[\w+\])?: (?!error: |warning: )"
                     r"|.*runs without its sandbox")
SANITIZER = re.compile(r"Sanitizer|runtime error:|^==\d+==")


class Build:
    def __init__(self, name, program, options, env):
        self.name = name
        self.program = program
        self.options = options
        self.env = env


def find_build(name):
    if name == "plain":
        program = os.environ.get("MOAT", ROOT / "build/src/cmd/moat")
        build = Build(name, str(program), ["--sandbox=seccomp"], {})
    else:
        program = os.environ.get("MOAT_SANITIZED",
                                 ROOT / "build-asan/src/cmd/moat")
        # The sanitizers need system calls that the sandbox forbids.
        build = Build(name, str(program), ["--sandbox=none"], {
            "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=1",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"})
    assert os.access(build.program, os.X_OK), f"{build.program} is not built"
    return build


class Guard:
    """A guard between @folder/g (for VMMs) and @backend_path, or what
    @options say in its place."""

    def __init__(self, build, folder, backend_path, *options, name="g",
                 pass_fds=(), listens=True):
        self.path = f"{folder}/{name}"
        backend = [f"--backend={backend_path}"] if backend_path else []
        self._start(build, [build.program, "guard",
                            f"--socket-path={self.path}", *backend,
                            *build.options, *options], pass_fds, listens)

    def _start(self, build, argv, pass_fds=(), listens=True):
        self.build = build
        self._lines = []
        self._begun = b""  # of a line whose end is not there
        self._ended = False
        self._cond = threading.Condition()
        env = dict(os.environ, **build.env)
        self.process = subprocess.Popen(
            argv, pass_fds=pass_fds, stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL, env=env)
        os.set_blocking(self.process.stderr.fileno(), False)
        self.pid = self.process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if listens:
            self.wait_line("listening on")

    def _read(self):
        """So that it never waits for room to log, and wait_line() hears."""
        there = select.poll()
        there.register(self.process.stderr, select.POLLIN)
        while not self._ended:
            there.poll()
            with self._cond:
                self._take()
                self._cond.notify_all()

    def _take(self):
        while not self._ended:
            try:
                data = os.read(self.process.stderr.fileno(), 1 << 16)
            except BlockingIOError:
                return
            *lines, self._begun = (self._begun + data).split(b"\n")
            if not data:
                self._ended = True
                lines = [self._begun] if self._begun else []
            self._lines += [line.decode(errors="replace") for line in lines]

    # -- log

    @property
    def lines(self):
        """What it has logged, to this moment: also what no thread of ours
        has read. What it did after it logged is seen after its line, so."""
        with self._cond:
            self._take()
            return list(self._lines)

    def find(self, text, since=0):
        return [line for line in self.lines[since:] if re.search(text, line)]

    def wait_line(self, text, since=0, timeout=PATIENCE):
        """The first line from @since on that matches the expression."""
        def there():
            return (self.find(text, since) or not self._reader.is_alive()
                    or self.process.poll() is not None)
        with self._cond:
            self._cond.wait_for(there, timeout)
        if not self.find(text, since) and self.process.poll() is not None:
            self._reader.join(5)
        found = self.find(text, since)
        assert found, f"no line like {text!r} in {self.lines[since:]}"
        return found[0]

    def complaints(self, since=0):
        """What it logged as a warning or an error."""
        return [line for line in self.lines[since:]
                if not ROUTINE.match(line)]

    def sanitizer_output(self):
        return [line for line in self.lines if SANITIZER.search(line)]

    # -- process

    def alive(self):
        return self.process.poll() is None

    def fds(self):
        out = {}
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            try:
                out[int(fd)] = os.readlink(f"/proc/{self.pid}/fd/{fd}")
            except FileNotFoundError:
                pass
        return out

    def cpu(self):
        """Seconds of processor time so far, of all threads."""
        total = 0
        for task in os.listdir(f"/proc/{self.pid}/task"):
            with open(f"/proc/{self.pid}/task/{task}/schedstat") as f:
                total += int(f.read().split()[0])
        return total / 1e9

    def memory(self):
        """Private resident bytes: heap and stack, not shared mappings."""
        with open(f"/proc/{self.pid}/status") as f:
            for line in f:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
        raise AssertionError("no RssAnon")

    def mappings(self):
        with open(f"/proc/{self.pid}/maps") as f:
            return f.read().splitlines()

    def idle_cpu(self, span=0.05):
        """Processor seconds used during @span seconds of nothing to do."""
        before = self.cpu()
        time.sleep(span)  # the span itself is what is measured
        return self.cpu() - before

    def terminate(self, timeout=PATIENCE):
        """SIGTERM; returns the exit status."""
        if self.alive():
            self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout=PATIENCE):
        code = self.process.wait(timeout)
        self._reader.join(5)
        return code

    def close(self):
        """End it; it must have lived well."""
        try:
            alive = self.alive()
            code = self.terminate()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("SIGTERM was ignored") from None
        finally:
            self.process.stderr.close() if not self._reader.is_alive() else 0
        assert not self.sanitizer_output(), "\n".join(self.lines)
        if alive:
            assert code == 0, (code, self.lines)


class Blk(Guard):
    """moat-blk on a file, listening at @folder/b."""

    def __init__(self, build, folder, image, *options, name="b", under=(),
                 listens=True):
        """@under: the command that starts it."""
        self.path = f"{folder}/{name}"
        program = build.program.replace("src/cmd/moat", "src/dev/blk/moat-blk")
        # The sanitizers do not bear the sandbox; else the strictest is tested.
        sandbox = [o for o in build.options if o == "--sandbox=none"]
        self._start(build, [*under, program, f"--socket-path={self.path}",
                            f"--blk-file={image}", *sandbox, *options],
                    listens=listens)


class MoatFs(Guard):
    """moat-fs on a folder, listening at @folder/f."""

    def __init__(self, build, folder, shared, *options, name="f", under=(),
                 pass_fds=()):
        """@under: the command that starts it."""
        self.path = f"{folder}/{name}"
        program = build.program.replace("src/cmd/moat", "src/dev/fs/moat-fs")
        sandbox = [o for o in build.options if o == "--sandbox=none"]
        self._start(build, [*under, program, f"--socket-path={self.path}",
                            f"--shared-dir={shared}", "--tag=moat", *sandbox,
                            *options], pass_fds)
