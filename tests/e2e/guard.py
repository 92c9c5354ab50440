# SPDX-License-Identifier: Apache-2.0
"""moat guard as a process of a test."""
import re

from procs import Process, moat


class Guard(Process):
    """A guard that listens on socket_path for the VMM.

    Parameters: the backend's socket, or command for --exec; further options
    as they stand on the command line.  Returns once it listens.
    """

    def __init__(self, socket_path, backend=None, command=None, options=()):
        self.socket_path = str(socket_path)
        argv = [moat(), "guard", f"--socket-path={socket_path}", *options]
        if backend:
            argv.append(f"--backend={backend}")
        if command:
            argv += ["--exec", "--", *command]
        super().__init__(argv, name="moat guard")
        try:
            self.expect("listening on " + re.escape(self.socket_path))
        except BaseException:
            self.kill()
            raise
