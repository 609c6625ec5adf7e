# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""QEMU as either side of a replication: the reference.

A QEMU without a machine runs the drivers that COLO uses, as its manual
sets them up.  There is no guest; what a guest would do comes in by NBD.
"""

import os
import subprocess
import tempfile
import time

import nbd

from qmp_client import Qmp

GUEST = "guest"                 # the guest's export on both sides
PARENT = "parent0"              # the secondary's export for the primary


class Qemu:
    """One QEMU with a NBD server and no machine."""

    def __init__(self):
        self.dir = tempfile.TemporaryDirectory(prefix="qemu.")
        self.socket = self.path("nbd")
        self.log_name = self.path("log")
        for last in False, False, True:
            try:
                self.begin()
                break
            except TimeoutError:
                # Now and then QEMU never answers the first command of a
                # client that connects while it starts.
                self.kill()
                if last:
                    raise
            except Exception:
                self.kill()
                raise

    def begin(self):
        with open(self.log_name, "wb") as log:
            self.process = subprocess.Popen(
                ["qemu-system-x86_64", "-M", "none", "-S", "-nodefaults",
                 "-display", "none", "-qmp",
                 f"unix:{self.path('qmp')},server=on,wait=off"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.qmp = Qmp(self.path("qmp"), self.process)
        self.command("nbd-server-start", addr={
            "type": "unix", "data": {"path": self.socket}})

    def path(self, name):
        return os.path.join(self.dir.name, name)

    def log(self):
        with open(self.log_name, encoding="utf-8", errors="replace") as f:
            return f.read()

    def command(self, name, /, **arguments):
        return self.qmp.command(name, **arguments)

    def uri(self, export=GUEST):
        return f"nbd+unix:///{export}?socket={self.socket}"

    def connect(self, export=GUEST):
        handle = nbd.NBD()
        handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        handle.connect_uri(self.uri(export))
        return handle

    def export(self, node, name):
        self.command("block-export-add", id=f"export-{name}", type="nbd",
                     node_name=node, name=name, writable=True)

    # The commands of replication, and what they say.

    def start(self):
        self.command("xen-set-replication", enable=True,
                     primary=self.primary)

    def checkpoint(self):
        self.command("xen-colo-do-checkpoint")

    def stop(self, failover):
        self.command("xen-set-replication", enable=False,
                     primary=self.primary, failover=failover)

    def status(self):
        return self.command("query-xen-replication-status")

    def alive(self):
        return self.process.poll() is None

    def kill(self):
        self.process.kill()
        self.process.wait()


class QemuSecondary(Qemu):
    """A secondary: disk is raw, the buffers are qcow2 (made here)."""

    primary = False

    def __init__(self, disk, active, hidden):
        for buffer in active, hidden:
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2",
                            buffer, str(os.path.getsize(disk))], check=True)
        super().__init__()
        self.command("blockdev-add", driver="raw", node_name=PARENT,
                     file={"driver": "file", "filename": disk})
        # Start wants the node of top-id above the driver's.
        self.command("blockdev-add", driver="replication", mode="secondary",
                     node_name="childs0", top_id="top", file={
                         "driver": "qcow2",
                         "file": {"driver": "file", "filename": active},
                         "backing": {
                             "driver": "qcow2",
                             "file": {"driver": "file", "filename": hidden},
                             "backing": PARENT}})
        self.command("blockdev-add", driver="quorum", node_name="top",
                     read_pattern="fifo", vote_threshold=1,
                     children=["childs0"])
        self.export(PARENT, PARENT)
        self.export("top", GUEST)

    def wait_for_failover(self, limit=60):
        """Failover is a job of the driver, a commit, which is gone when
        it has ended."""
        deadline = time.monotonic() + limit
        while self.command("query-block-jobs"):
            if time.monotonic() > deadline:
                raise TimeoutError("QEMU's failover does not end")
            time.sleep(0.01)


class QemuPrimary(Qemu):
    """A primary: a quorum of its raw disk and, once attached, the way to
    a secondary."""

    primary = True

    def __init__(self, disk):
        super().__init__()
        self.command("blockdev-add", driver="raw", node_name="local",
                     file={"driver": "file", "filename": disk})
        self.command("blockdev-add", driver="quorum", node_name="top",
                     read_pattern="fifo", vote_threshold=1,
                     children=["local"])
        self.export("top", GUEST)

    def attach(self, socket, export):
        self.command("blockdev-add", driver="replication", mode="primary",
                     node_name="replication0", file={
                         "driver": "nbd", "export": export,
                         "server": {"type": "unix", "path": socket}})
        self.command("x-blockdev-change", parent="top",
                     node="replication0")
