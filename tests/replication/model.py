#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Random requests to both exports of a secondary, beside a model.

    model.py failover|stop|primary DIRECTORY

Each round starts a secondary whose disk and buffers have another geometry,
and keeps requests to overlapping places in flight on both exports, while
checkpoints are asked for at random.  Each read is compared with what the
model allows at that moment.  The round ends by failover or by stop, while
the guest goes on; then independent readers look at the disk.

With "primary", each round starts a primary with a remote that dies, stands
still and comes back at random.  No request fails, and at checkpoints, some
of which are asked for while requests are in flight, the remote is equal.

SEED, ROUNDS and OPERATIONS (requests a round) are taken from the
environment.  With as many rounds as there are pairs of clusters, which is
what the suite does, each is tried once.
"""

import errno
import os
import random
import subprocess
import sys
import time

import nbd

from qed_server import ServerError
from qmp_client import QmpError
from byte_model import Mismatch, compare
from flight_model import Client, Mix, Model
from replication_server import Primary, Remote, Secondary, make_buffer

DEPTH = 32
WEIGHTS = [(("guest", "read"), 34), (("guest", "write"), 20),
           (("guest", "zero"), 4), (("guest", "trim"), 4),
           (("guest", "flush"), 1),
           (("primary", "write"), 25), (("primary", "zero"), 4),
           (("primary", "trim"), 4), (("primary", "read"), 3),
           (("primary", "flush"), 1)]

# Unit of requests and disk size, in bytes; the model's numbers are units.
GEOMETRIES = [(512, (8 << 20) + 17 * 512), (512, 3 << 20),
              (64, (1 << 20) + 512), (512, (4 << 20) - 512),
              (8, 128 << 10)]
CLUSTERS = [(None, None), (4096, 4096), (65536, 4096), (4096, 65536),
            (65536, 65536), (1 << 20, 8192), (None, None)]


def command(*arguments):
    done = subprocess.run(arguments, capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        raise Mismatch(f"{' '.join(arguments)}: status {done.returncode}\n"
                       f"{done.stdout}{done.stderr}")
    return done.stdout


class SecondaryRound:

    def __init__(self, rng, number, end, directory):
        self.rng = rng
        self.failover = end == "failover"
        self.dir = directory
        unit, size = GEOMETRIES[number % len(GEOMETRIES)]
        self.clusters = CLUSTERS[number % len(CLUSTERS)]
        self.model = Model(size // unit, unit)
        self.disk, self.active, self.hidden = (
            os.path.join(directory, name)
            for name in ("disk", "active.qed", "hidden.qed"))
        with open(self.disk, "wb") as f:
            f.write(self.model.first_content())
        for buffer, cluster in zip((self.active, self.hidden),
                                   self.clusters):
            if os.path.exists(buffer):
                os.unlink(buffer)
            if cluster:
                make_buffer(buffer, size, cluster)
        self.mix = Mix(rng, self.model, self.clusters[0] or 65536, WEIGHTS)
        self.command = None
        self.closed = False     # the primary's export
        self.server = None

    def __str__(self):
        return (f"{self.model.units} units of {self.model.unit} bytes, "
                f"clusters of {self.clusters}")

    # Requests and commands go on side by side.

    def step(self, only=None):
        client = self.client
        while client.in_flight < DEPTH:
            side, kind, first, end, flags = self.mix.next()
            if only and side != only:
                continue
            if side == "primary" and self.closed:
                side = "guest"
            client.send(side, self.rng.randrange(2), kind, first, end,
                        flags)
        control = [self.server.qmp.fileno()] if self.command else []
        if client.wait(control):
            self.answer()

    def ask(self, name, **arguments):
        """The model is told before the command is sent, and after it was
        answered."""
        self.command = name
        if name == "replication-stop":
            if arguments["failover"]:
                # Its requests are refused from some moment on.
                self.client.on_error = self.primary_is_refused
            else:
                self.model.send_checkpoint(stop=True)
        elif name == "replication-checkpoint":
            self.model.send_checkpoint()
        self.server.qmp.send(name, arguments)
        self.arguments = arguments

    def answer(self):
        result = self.server.qmp.answer()
        name, self.command = self.command, None
        if name == "replication-checkpoint":
            self.model.end_checkpoint()
            self.checkpoints += 1
        elif name == "replication-stop":
            self.closed = True
            if not self.arguments["failover"]:
                self.model.end_stop()
                self.closed = False
        elif name == "query-replication":
            self.status = result

    def look(self):
        """While the guest does nothing, a copy of its disk, for which
        block status is asked for, is what it sees, whatever the primary
        does."""
        while self.command:
            self.step("primary")
        self.client.drain_side("guest")
        copy = os.path.join(self.dir, "copy")
        with subprocess.Popen(["nbdcopy", self.server.uri_of("guest"),
                               copy]) as copying:
            while copying.poll() is None:
                self.step("primary")
        if copying.returncode != 0:
            raise Mismatch(f"nbdcopy: status {copying.returncode}")
        with open(copy, "rb") as f:
            self.model.guest.check_all(f.read(), "the guest's copy")

    @staticmethod
    def primary_is_refused(side, kind, request, error):
        if side != "primary" or error != errno.EIO:
            Client.raise_error(side, kind, request, error)

    def play(self, operations):
        self.server = Secondary(self.disk, self.active, self.hidden)
        self.client = Client(self.model, {
            "guest": [self.server.connect_guest() for _ in range(2)],
            "primary": [self.server.connect_primary() for _ in range(2)]})
        self.server.start()
        self.checkpoints = 0
        between = self.rng.choice([50, 300, 2000])
        while self.client.sent < operations:
            self.step()
            if not self.command and self.rng.random() * between < 1:
                self.ask("replication-checkpoint")
            if self.rng.random() * 2000 < 1:
                self.look()
        while self.command:
            self.step()
        status = self.server.query()
        if status["checkpoints"] != self.checkpoints or status["error"]:
            raise Mismatch(f"{self.checkpoints} checkpoints: {status}")
        self.finish()

    def finish(self):
        """The end, under requests."""
        failover = self.failover
        self.ask("replication-stop", failover=failover)
        while self.command:
            self.step()
        if failover:
            self.refused()
        self.status = None
        left = 200
        while left > 0 or not (self.status and
                               self.status["stage"] == "done"):
            if not self.command:
                self.ask("query-replication")
            self.step()
            left -= 1
        while self.command:
            self.step()
        self.client.drain()
        if self.status["error"] or self.status["failover-progress"] != (
                100 if failover else 0):
            raise Mismatch(f"at the end: {self.status}")
        self.judge(failover)

    def refused(self):
        """The old primary cannot write into a promoted secondary."""
        try:
            self.server.connect_primary().pwrite(bytes(512), 0)
        except nbd.Error as error:
            if error.errno != "EIO":
                raise
        else:
            raise Mismatch("the primary wrote after failover")

    def judge(self, failover):
        """All judges see the disk as the model does."""
        expected = self.model.guest
        copy = os.path.join(self.dir, "copy")
        exports = ["guest"] if failover else ["guest", ""]
        for export in exports:
            command("nbdcopy", self.server.uri_of(export), copy)
            with open(copy, "rb") as f:
                expected.check_all(f.read(), f"export \"{export}\"")
        self.client.close()
        self.server.stop()
        with open(self.disk, "rb") as f:
            expected.check_all(f.read(), "disk")
        for buffer in self.active, self.hidden:
            self.empty(buffer)

    def end(self):
        if self.server and self.server.alive():
            self.server.kill()

    @staticmethod
    def empty(buffer):
        command("qemu-img", "check", "-q", "-f", "qed", buffer)
        listing = command("qemu-img", "map", "-f", "qed", "--output=json",
                          "-U", buffer)
        if '"data": true' in listing:
            raise Mismatch(f"{buffer} is not empty: {listing}")


PRIMARY_WEIGHTS = [w for w in WEIGHTS if w[0][0] == "primary"] + [
    (("primary", "read"), 15)]


class PrimaryRound:

    def __init__(self, rng, number, _, directory):
        self.rng = rng
        unit, size = GEOMETRIES[number % len(GEOMETRIES)]
        self.model = Model(size // unit, unit)
        self.disk = os.path.join(directory, "disk")
        self.copy = os.path.join(directory, "remote")
        self.full = rng.random() < 0.3
        with open(self.disk, "wb") as f:
            f.write(self.model.first_content())
        with open(self.copy, "wb") as f:
            f.write(bytes(size) if self.full else self.model.first_content())
        bitmap = os.path.join(directory, "bitmap")
        if os.path.exists(bitmap):
            os.unlink(bitmap)
        self.params = {"bitmap": bitmap} if rng.random() < 0.5 else {}
        self.mix = Mix(rng, self.model, 65536, PRIMARY_WEIGHTS)
        self.server = self.remote = None
        self.asked = False
        self.state = "well"

    def __str__(self):
        return (f"{self.model.units} units of {self.model.unit} bytes, "
                f"{self.params}, full {self.full}, remote {self.state}")

    def step(self):
        client = self.client
        while client.in_flight < DEPTH:
            side, kind, first, end, flags = self.mix.next()
            client.send(side, self.rng.randrange(2), kind, first, end, flags)
        if client.wait([self.server.qmp.fileno()] if self.asked else []):
            self.answer()

    def answer(self):
        """The answer to a checkpoint under requests; it may be a refusal
        if the remote was away."""
        self.asked = False
        try:
            self.server.qmp.answer()
        except QmpError:
            if self.state == "well" and self.since > 2000:
                raise

    def change(self):
        """The remote's state."""
        state = self.rng.choice(["well", "gone", "still"])
        # A remote that stands still in a checkpoint holds up its end.
        if state == self.state or (self.asked and state == "still"):
            return
        if self.state == "gone":
            self.remote.come_back()
        elif self.state == "still":
            self.remote.go_on()
        if state == "gone":
            self.remote.go()
        elif state == "still":
            self.remote.stand_still()
        self.state = state
        self.since = 0

    def well(self):
        """The remote is back."""
        self.remote.go_on()
        self.remote.come_back()
        self.state = "well"
        while self.asked:
            self.step()

    def succeed(self):
        """A checkpoint succeeds as soon as the primary has noticed.  (An
        nbdkit that stood still for long may die of its clients' having
        hung up.)"""
        deadline = time.monotonic() + 60
        while True:
            try:
                self.server.checkpoint()
                return
            except QmpError as error:
                if time.monotonic() > deadline:
                    raise Mismatch(f"no checkpoint: {error}") from error
            time.sleep(0.02)
            self.remote.come_back()

    def checkpoint(self):
        """Nothing is in flight, so the disks must be equal."""
        self.well()
        self.client.drain()
        self.succeed()
        status = self.server.query()
        if status["dirty-bytes"]:
            raise Mismatch(f"after a checkpoint: {status}")
        with open(self.disk, "rb") as f, open(self.copy, "rb") as g:
            ours = f.read()
            self.model.disk.check_all(ours, "disk")
            theirs = g.read()
        compare("the remote", theirs, ours)

    def play(self, operations):
        self.remote = Remote(self.copy)
        self.server = Primary(self.disk, self.remote.uri, **self.params)
        self.client = Client(self.model, {
            "primary": [self.server.connect() for _ in range(2)]})
        rng = self.rng
        self.since = 0
        self.server.start("full" if self.full else None)
        while self.client.sent < operations:
            self.step()
            self.since += 1
            what = rng.random() * 3000
            if what < 6:
                self.change()
            elif what < 12 and not self.asked:
                self.asked = True
                self.server.qmp.send("replication-checkpoint", {})
            elif what < 16:
                self.checkpoint()
        self.checkpoint()
        self.client.close()
        self.server.stop()
        self.remote.kill()

    def end(self):
        if self.remote and self.remote.alive():
            self.remote.go_on()
            self.remote.kill()


def main():
    end, directory = sys.argv[1:]
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    rounds = int(os.environ.get("ROUNDS") or len(CLUSTERS))
    operations = int(os.environ.get("OPERATIONS") or 3000)
    for number in range(rounds):
        this = (PrimaryRound if end == "primary" else SecondaryRound)(
            random.Random(f"{seed} {end} {number}"), number, end, directory)
        try:
            this.play(operations)
        except (Mismatch, OSError, QmpError, ServerError, TimeoutError,
                nbd.Error) as error:
            print(f"{type(error).__name__}: {error}")
            if this.server:
                if this.server.alive():
                    this.server.kill()
                print(this.server.log())
            print(f"{this}, round {number} of SEED={seed} "
                  f"model.py {end}")
            sys.exit(1)
        finally:
            this.end()


if __name__ == "__main__":
    main()
