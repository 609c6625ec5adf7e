#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Replication between QEMU and us, in both directions.

    qemu.py PRIMARY SECONDARY END DIRECTORY

PRIMARY is qemu (quorum and replication driver), forwarder (QEMU's quorum
over our filter and nbdkit's nbd plugin), or ours (our filter with
replication-remote); SECONDARY is qemu or ours; END is failover or stop.
Both guests write at random, with several requests at a time; what the
secondary's guest reads is compared with a byte array that was treated the
same, and after each checkpoint with the primary's.  At the end qemu-img
compares the disks.

SEED and ROUNDS are taken from the environment.
"""

import os
import random
import subprocess
import sys

import nbd

from byte_model import Mismatch, compare
from qed_server import Pipeline, Request, ServerError
from qmp_client import QmpError
from replication_qemu import PARENT, QemuPrimary, QemuSecondary
from replication_server import Forwarder, Primary, Secondary

SIZE = (3 << 20) + 31 * 512


def compare_disks(*disks):
    done = subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw",
                           *disks], capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        raise Mismatch(f"{disks}: {done.stdout}{done.stderr}")


def is_error(function, *arguments):
    try:
        function(*arguments)
    except nbd.Error:
        return True
    return False


# The four sides, with the same few methods.

class OurSecondary(Secondary):

    def __init__(self, disk, directory):
        super().__init__(disk, os.path.join(directory, "active.qed"),
                         os.path.join(directory, "hidden.qed"))

    remote_export = ""

    def guest(self):
        return self.connect_guest()

    def remote(self):
        return self.uri_of()

    def end(self, failover):
        self.stop_replication(failover)
        self.wait_for_stage("done")
        after = self.connect_primary()
        if failover != is_error(after.pread, 512, 0):
            raise Mismatch("the primary's export after the end")

    def has_error(self):
        return self.query()["error"]


class QemusSecondary(QemuSecondary):

    def __init__(self, disk, directory):
        super().__init__(disk, os.path.join(directory, "active.qcow2"),
                         os.path.join(directory, "hidden.qcow2"))

    remote_export = PARENT

    def guest(self):
        return self.connect()

    def remote(self):
        return self.uri(PARENT)

    def end(self, failover):
        self.stop(failover)
        self.wait_for_failover()

    def has_error(self):
        return self.status()["error"]


class QemusPrimary(QemuPrimary):

    def __init__(self, disk, secondary):
        super().__init__(disk)
        self.attach(secondary.socket, secondary.remote_export)

    def guest(self):
        return self.connect()

    def end(self):
        self.stop(True)

    def has_error(self):
        return self.status()["error"]


class QuorumOverForwarder(QemuPrimary):
    """QEMU's quorum, with our filter in the place of QEMU's driver."""

    def __init__(self, disk, secondary):
        super().__init__(disk)
        self.forwarder = Forwarder(secondary.remote())
        self.command("blockdev-add", driver="nbd", node_name="forwarder",
                     server={"type": "unix", "path": self.forwarder.socket})
        self.command("x-blockdev-change", parent="top", node="forwarder")

    def guest(self):
        return self.connect()

    def start(self):
        # While it has not started, nothing gets through.
        handle = self.forwarder.connect()
        if not is_error(handle.pwrite, bytes(512), 0):
            raise Mismatch("the forwarder forwards before it has started")
        handle.shutdown()
        self.forwarder.start()

    def checkpoint(self):
        self.forwarder.checkpoint()

    def end(self):
        self.forwarder.stop_replication(True)

    def has_error(self):
        return self.forwarder.query()["error"]

    def kill(self):
        self.forwarder.kill()
        super().kill()


class OurPrimary(Primary):

    def __init__(self, disk, secondary):
        super().__init__(disk, secondary.remote())

    def guest(self):
        return self.connect()

    def end(self):
        self.stop_replication(True)

    def has_error(self):
        return self.query()["error"]


PRIMARIES = {"qemu": QemusPrimary, "forwarder": QuorumOverForwarder,
             "ours": OurPrimary}
SECONDARIES = {"qemu": QemusSecondary, "ours": OurSecondary}


class Play:

    def __init__(self, rng, primary, secondary, directory):
        self.rng = rng
        data = rng.randbytes(SIZE)
        self.disks = [os.path.join(directory, name)
                      for name in ("primary.raw", "secondary.raw")]
        for disk in self.disks:
            with open(disk, "wb") as f:
                f.write(data)
        for name in ("active.qed", "hidden.qed"):
            if os.path.exists(os.path.join(directory, name)):
                os.unlink(os.path.join(directory, name))
        self.sides = []
        self.secondary = SECONDARIES[secondary](self.disks[1], directory)
        self.sides.append(self.secondary)
        self.primary = PRIMARIES[primary](self.disks[0], self.secondary)
        self.sides.append(self.primary)
        # What the guests see.
        self.model = [bytearray(data), bytearray(data)]

    def log(self):
        return "\n".join(side.log() for side in self.sides)

    def kill(self):
        for side in reversed(self.sides):
            side.kill()

    def changes(self, which):
        """Requests of one guest, over different parts of its disk, so
        that all may be in flight at once; the model is changed too.  They
        are of whole sectors, as a guest's are: of smaller ones QEMU's own
        pair loses some."""
        rng = self.rng
        requests = []
        at = 512 * rng.randrange(50)
        while at < SIZE and len(requests) < 24:
            count = min(SIZE - at, rng.choice(
                [512, 4096, 4096, 512 * rng.randrange(1, 300), 65536,
                 512 ]))
            if rng.random() < 0.8:
                data = rng.randbytes(count)
                requests.append(Request("write", at, count, data))
            else:
                data = bytes(count)
                requests.append(Request("zero", at, count))
            self.model[which][at:at + count] = data
            at += count + rng.choice([0, 512, 512 * rng.randrange(400)])
        rng.shuffle(requests)
        return requests

    def read(self, which):
        reads = [Request("read", at, min(65536, SIZE - at))
                 for at in range(0, SIZE, 65536)]
        self.guests[which].run(reads)
        failed = [str(r) for r in reads if r.error is not None]
        if failed:
            raise Mismatch(f"{failed}")
        return b"".join(r.data for r in reads)

    def write(self):
        """Both guests at a time."""
        both = [self.changes(0), self.changes(1)]
        for which in 0, 1:
            for number, request in enumerate(both[which]):
                self.guests[which].send(request, number % 2)
        for which in 0, 1:
            while self.guests[which].in_flight():
                self.guests[which].wait()
            failed = [str(r) for r in both[which] if r.error is not None]
            if failed:
                raise Mismatch(f"{failed}")

    def compare(self, when):
        for which, name in enumerate(["primary", "secondary"]):
            compare(f"the {name}'s guest {when}", self.read(which),
                    self.model[which])

    def play(self, failover):
        self.secondary.start()
        self.primary.start()
        self.handles = [[side.guest() for _ in range(2)]
                        for side in (self.primary, self.secondary)]
        self.guests = [Pipeline(handles) for handles in self.handles]
        for _ in range(self.rng.randrange(2, 5)):
            for _ in range(self.rng.randrange(1, 4)):
                self.write()
                self.compare("in an epoch")
            self.primary.checkpoint()
            self.secondary.checkpoint()
            self.model[1] = bytearray(self.model[0])
            self.compare("after a checkpoint")
            for side in self.sides:
                if side.has_error():
                    raise Mismatch("there is an error: " + self.log())
        self.write()
        if failover:
            # A primary that goes on writing would spoil QEMU's promoted
            # secondary; ours refuses.
            ends = [self.primary.end, lambda: self.secondary.end(True)]
            if isinstance(self.secondary, OurSecondary):
                self.rng.shuffle(ends)
            for end in ends:
                end()
        else:
            # The secondary ends with a last checkpoint, so the primary
            # sends what is left first.
            self.primary.checkpoint()
            self.primary.end()
            self.secondary.end(False)
            self.model[1] = bytearray(self.model[0])
        self.compare("after the end")
        for handles in self.handles:
            for handle in handles:
                handle.flush()
                handle.shutdown()
        self.kill()
        for which, disk in enumerate(self.disks):
            with open(disk, "rb") as f:
                compare(disk, f.read(), self.model[which])
        if not failover:
            compare_disks(*self.disks)


def play(primary, secondary, end, directory):
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    rounds = int(os.environ.get("ROUNDS") or 3)
    for number in range(rounds):
        this = Play(random.Random(f"{seed} {number}"), primary, secondary,
                    directory)
        try:
            this.play(end == "failover")
        except (Mismatch, OSError, QmpError, ServerError,
                nbd.Error) as error:
            this.kill()
            sys.exit(f"{type(error).__name__}: {error}\n{this.log()}\n"
                     f"round {number} of SEED={seed}")


if __name__ == "__main__":
    play(*sys.argv[1:])
