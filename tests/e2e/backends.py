# SPDX-License-Identifier: Apache-2.0
"""The unmodified disk backend: Debian's qemu-storage-daemon."""
import os

from procs import Process, build_dir, listening, wait_until


class StorageDaemon(Process):
    """qemu-storage-daemon that exports one file as a vhost-user disk.

    Parameters: the socket to listen on, the file, the number of queues;
    fail_flush lets each flush that reaches the disk fail with EIO, to prove that
    flushes do get there.
    """

    def __init__(self, socket_path, image, queues=1, fail_flush=False):
        self.socket_path = str(socket_path)
        super().__init__(self.command(self.socket_path, image, queues,
                                      fail_flush), name="qemu-storage-daemon")
        try:
            wait_until(lambda: listening(self.socket_path)
                       or not self.running(),
                       f"qemu-storage-daemon listens on {socket_path}")
            if not self.running():
                raise self._complain("ended at once")
        except BaseException:
            self.kill()
            raise

    @property
    def serving_pid(self):
        return self.pid

    @staticmethod
    def command(socket_path, image, queues=1, fail_flush=False):
        node = "disk"
        argv = ["qemu-storage-daemon", "--blockdev",
                f"driver=file,filename={image},node-name=disk,"
                "discard=unmap,aio=threads"]
        if fail_flush:
            node = "faulty"
            argv += ["--blockdev", "driver=blkdebug,node-name=faulty,"
                     "image=disk,discard=unmap,inject-error.0.event=none,"
                     "inject-error.0.iotype=flush,inject-error.0.errno=5"]
        return argv + ["--export", "type=vhost-user-blk,id=export,"
                       f"node-name={node},addr.type=unix,"
                       f"addr.path={socket_path},writable=on,"
                       f"num-queues={queues}"]


class MoatBlk(Process):
    """Our own disk backend; the parameters are those of StorageDaemon, and
    further options as they stand on the command line."""

    def __init__(self, socket_path, image, queues=1, options=()):
        self.socket_path = str(socket_path)
        super().__init__(self.command(self.socket_path, image, queues, options),
                         name="moat-blk")
        try:
            self.expect("listening on")
        except BaseException:
            self.kill()
            raise

    @property
    def serving_pid(self):
        """In its sandbox it serves from a child."""
        with open(f"/proc/{self.pid}/task/{self.pid}/children",
                  encoding="ascii") as f:
            children = f.read().split()
        return int(children[0]) if children else self.pid

    @staticmethod
    def program():
        return os.path.join(build_dir(), "src/dev/blk/moat-blk")

    @classmethod
    def command(cls, socket_path, image, queues=1, options=()):
        return [cls.program(), f"--socket-path={socket_path}",
                f"--blk-file={image}", f"--num-queues={queues}", *options]


def make_image(path, size):
    """A sparse raw disk image."""
    with open(path, "wb") as f:
        f.truncate(size)
    return path
