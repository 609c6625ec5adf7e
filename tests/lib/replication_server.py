# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""nbdkit with the replication filter, as either side of a replication."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

import nbd

from qed_server import Server, ServerError
from qmp_client import Qmp

GUEST = "guest"                 # replication-top-id of our secondaries


def stand_still(process):
    """Stop a child: a signal takes effect some time after it was sent, and
    what is asked meanwhile could still be answered."""
    process.send_signal(signal.SIGSTOP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        raise ServerError(f"it does not stand still: {status}")


class Replication(Server):
    """nbdkit with the filter over PLUGIN IMAGE, and a connection to its
    control socket.  params are the filter's, less the "replication-";
    below are filters and parameters between it and the plugin."""

    def __init__(self, image, plugin="file", below=(), extra=(), control=True,
                 limit=60, **params):
        # The control socket has a folder of its own: a server that is
        # killed leaves its socket, the next one has another.
        self.control_dir = tempfile.TemporaryDirectory(prefix="control.")
        self.control_path = os.path.join(self.control_dir.name, "sock")
        self.qmp = None
        params.setdefault("control", self.control_path)
        super().__init__(
            image, plugin=plugin, limit=limit,
            options=["--filter=replication", *below],
            params=[*extra, *(f"replication-{key.replace('_', '-')}={value}"
                              for key, value in params.items())])
        # nbdkit writes its pid file before the filter has begun.
        try:
            if control:
                self.qmp = Qmp(params["control"], self.process, limit)
            else:
                self.wait_for_export(limit)
        except OSError as error:
            self.give_up(error, limit)

    def wait_for_export(self, limit):
        """Until the server says something to a client."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(max(limit, 0.001))
            client.connect(self.socket)
            if not client.recv(1):
                raise ConnectionError("the server hung up")

    def give_up(self, error, limit):
        """It ended, or took too long."""
        try:
            status = self.process.wait(0 if isinstance(error, TimeoutError)
                                       else 5)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerError(f"did not start in {limit} s\n{self.log()}") \
                from error
        raise ServerError(f"did not start: exit status {status}\n"
                          f"{self.log()}") from error

    def kill(self):
        if self.qmp:
            self.qmp.close()
            self.qmp = None
        super().kill()

    def uri_of(self, export=""):
        return f"nbd+unix:///{export}?socket={self.socket}"

    def connect_export(self, export=""):
        handle = nbd.NBD()
        handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        handle.connect_uri(self.uri_of(export))
        return handle

    # The commands of replication, and what they say.

    def command(self, name, /, **arguments):
        return self.qmp.command(name, **arguments)

    def start(self, sync=None):
        arguments = {"sync": sync} if sync else {}
        self.command("replication-start", **arguments)

    def checkpoint(self):
        self.command("replication-checkpoint")

    def stop_replication(self, failover):
        self.command("replication-stop", failover=failover)

    def query(self):
        return self.command("query-replication")

    def wait_for(self, condition, what, limit=60):
        """Wait until a status fulfils the condition; returns it."""
        deadline = time.monotonic() + limit
        while True:
            status = self.query()
            if condition(status):
                return status
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {limit} s: {status}")
            time.sleep(0.005)

    def wait_for_stage(self, stage, limit=60):
        return self.wait_for(lambda s: s["stage"] == stage, stage, limit)


class Secondary(Replication):
    """Our secondary: its guest's export is GUEST, the primary's the
    default one."""

    def __init__(self, disk, active, hidden, **params):
        super().__init__(disk, mode="secondary", active=active,
                         hidden=hidden, top_id=GUEST, **params)

    def connect_guest(self):
        return self.connect_export(GUEST)

    def connect_primary(self):
        return self.connect_export()

    def failover(self):
        self.stop_replication(True)
        self.wait_for_stage("done")


class Primary(Replication):
    """Our primary with a disk of its own."""

    def __init__(self, disk, remote, **params):
        super().__init__(disk, mode="primary", remote=remote, **params)


class Forwarder(Replication):
    """Our primary over nbdkit's nbd plugin, for use under a quorum."""

    def __init__(self, remote, **params):
        super().__init__(f"uri={remote}", plugin="nbd", mode="primary",
                         **params)


class Remote:
    """A plain server on a disk, that can go and come back at the same
    place."""

    def __init__(self, disk, options=(), params=()):
        self.arguments = {"options": options, "params": params,
                          "plugin": "file"}
        self.disk = disk
        self.server = Server(disk, **self.arguments)
        self.place = self.server.socket
        self.first = self.server    # which owns the folder of the place

    @property
    def uri(self):
        return f"nbd+unix:///?socket={self.place}"

    def go(self):
        self.server.kill()

    def stand_still(self):
        stand_still(self.server.process)

    def go_on(self):
        self.server.process.send_signal(signal.SIGCONT)

    def come_back(self):
        """The new one makes its socket elsewhere."""
        if not self.server.alive():
            self.server = Server(self.disk, **self.arguments)
            os.unlink(self.place)
            os.symlink(self.server.socket, self.place)

    def alive(self):
        return self.server.alive()

    def kill(self):
        self.server.kill()

    def log(self):
        return self.server.log()


def make_buffer(path, size, cluster_size=None):
    """A buffer of a geometry of our choice, made by QEMU."""
    options = ["-o", f"cluster_size={cluster_size}"] if cluster_size else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qed", *options, path,
                    str(size)], check=True)


def run_story(stories, desk_class):
    """Play the story that the command line names, on a desk in a folder of
    its own.  If it fails, what the servers have said is printed."""
    story = {s.__name__: s for s in stories}[sys.argv[1]]
    with tempfile.TemporaryDirectory(prefix="story.") as directory:
        desk = desk_class(directory)
        try:
            story(desk)
        except Exception:
            for server in desk.servers:
                print("---\n" + server.log(), file=sys.stderr)
            raise
        finally:
            desk.end()
