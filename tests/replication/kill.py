#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""kill -9 of either side of a replication, at random moments.

    kill.py SCENARIO DIRECTORY

running    the secondary dies while both sides write; rollback restores the
           disk of the last checkpoint, discard keeps the primary's writes
failover   it dies in a failover; the restart finishes that
recovery   it dies in the recovery from one of these, several times
primary    a primary with a bitmap file dies, its remote perhaps being
           away; a restart brings the remote up to date
pair       either side of a pair dies; the other's guest loses nothing

SEED and ROUNDS are taken from the environment.
"""

import errno
import os
import random
import shutil
import subprocess
import sys
import time

import nbd

from qed_server import ServerError
from qmp_client import QmpError
from byte_model import Mismatch
from flight_model import Client, Mix, Model
from replication_server import Primary, Remote, Secondary, make_buffer

UNIT = 512
DEPTH = 24
PRIMARY = [(("primary", "write"), 25), (("primary", "zero"), 4),
           (("primary", "trim"), 2), (("primary", "flush"), 1)]
GUEST = [(("guest", "read"), 12), (("guest", "write"), 20),
         (("guest", "zero"), 4), (("guest", "trim"), 2),
         (("guest", "flush"), 1)]
FILES = ["disk", "active.qed", "hidden.qed"]
SLOW = {"below": ["--filter=delay"], "extra": ["wdelay=2ms"]}


def read_file(name):
    with open(name, "rb") as f:
        return f.read()


class Round:
    """What the scenarios share."""

    def __init__(self, rng, directory):
        self.rng = rng
        self.dir = directory
        for name in os.listdir(directory):
            if os.path.isdir(self.path(name)):
                shutil.rmtree(self.path(name))
            else:
                os.unlink(self.path(name))
        self.cluster = rng.choice([4096, 16384, 65536])
        # A shorter last cluster.
        units = rng.choice([2048, 4096, 8192]) + rng.randrange(100)
        self.model = Model(units, UNIT)
        self.size = units * UNIT
        self.servers = []
        self.story = []

    def path(self, *names):
        return os.path.join(self.dir, *names)

    def write_disk(self, name):
        with open(self.path(name), "wb") as f:
            f.write(self.model.first_content())

    def run(self, server):
        self.servers.append(server)
        return server

    def log(self):
        return "\n".join(self.story + [s.log() for s in self.servers[-4:]])

    def end(self):
        for server in self.servers:
            if server.alive():
                server.kill()

    def make_secondary_files(self):
        self.write_disk("disk")
        for name in FILES[1:]:
            make_buffer(self.path(name), self.size, self.cluster)

    def secondary(self, where="", **options):
        return self.run(Secondary(*(self.path(where, name)
                                    for name in FILES), **options))

    def traffic(self, client, mix, answers, hook=lambda: None):
        """Keep requests in flight until so many were answered."""
        goal = client.sent - client.in_flight + answers
        while client.sent - client.in_flight < goal:
            while client.in_flight < DEPTH:
                side, kind, first, end, flags = mix.next()
                client.send(side, self.rng.randrange(2), kind, first, end,
                            flags)
            client.wait()
            hook()

    def copy_files(self, where):
        os.mkdir(self.path(where))
        for name in FILES:
            shutil.copyfile(self.path(name), self.path(where, name))

    def refuses(self, where):
        """Started with the files as they were left, the secondary must
        refuse and say why; unless nothing was left."""
        before = read_file(self.path(where, "disk"))
        try:
            server = self.secondary(where)
        except ServerError as error:
            if "did not start: exit status 1" not in str(error):
                raise
            if "replication-recover" not in str(error):
                raise Mismatch(f"what to do is not said: {error}") \
                    from error
            if before != read_file(self.path(where, "disk")):
                raise Mismatch("the refusal changed the disk") from error
            return True
        server.stop()
        return False

    def recovered(self, where, how, tries=0):
        """The disk after recovery; tries says how often that is killed
        before it may go on."""
        for _ in range(tries):
            try:
                server = self.secondary(
                    where, recover=how, control=False,
                    limit=self.rng.random() * 0.08, **SLOW)
                server.kill()
            except ServerError as error:
                if "did not start in" not in str(error):
                    raise
        server = self.secondary(where, recover=how)
        # After a failover it is the guest's, else the primary's.
        handle = server.connect_guest() \
            if server.query()["stage"] == "done" else server.connect_primary()
        data = b"".join(
            handle.pread(min(1 << 20, self.size - at), at)
            for at in range(0, self.size, 1 << 20))
        handle.shutdown()
        server.stop()
        if read_file(self.path(where, "disk")) != data:
            raise Mismatch(f"after {how} the file is not what was served")
        for name in FILES[1:]:
            subprocess.run(["qemu-img", "check", "-q", "-f", "qed",
                            self.path(where, name)], check=True)
        # Nothing is left that could stop the next start.
        if self.refuses(where):
            raise Mismatch(f"after {how} something is left")
        return data


def shows_one_of(data, disks, what):
    """The data must be wholly one of these disks."""
    errors = []
    for disk in disks:
        try:
            disk.check_all(data, what)
            return
        except Mismatch as error:
            errors.append(str(error))
    raise Mismatch("\nnor: ".join(errors))


def has_aborted(server):
    """A fault of nbdkit 1.32: it may abort when a client hangs up with
    requests in flight."""
    return "raw_send_socket: Assertion" in server.log()


class Running(Round):
    """The secondary, both sides writing."""

    slow = {}
    tries = 0

    def play(self):
        rng = self.rng
        self.make_secondary_files()
        server = self.secondary(**self.slow)
        client = self.client = Client(self.model, {
            "guest": [server.connect_guest() for _ in range(2)],
            "primary": [server.connect_primary() for _ in range(2)]})
        mix = self.mix = Mix(rng, self.model, self.cluster, PRIMARY + GUEST)
        server.start()
        self.exact = read_file(self.path("disk"))
        for _ in range(rng.randrange(4)):
            self.traffic(client, mix, rng.randrange(1, 150))
            self.checkpoint(server)
        self.traffic(client, mix, rng.randrange(1, 150))
        self.last_moments(server)
        server.kill()
        for where in "rollback", "discard":
            self.copy_files(where)
        refused = self.refuses("rollback")
        self.story.append(f"start refused: {refused}")
        self.judge()

    def checkpoint(self, server):
        """Now and then nothing is in flight, so that it is certain what
        the last checkpoint was."""
        still = self.rng.random() < 0.5
        if still:
            self.client.drain()
        self.model.send_checkpoint()
        server.checkpoint()
        self.model.end_checkpoint()
        self.exact = read_file(self.path("disk")) if still else None
        self.story.append(f"checkpoint, still: {still}")

    def last_moments(self, server):
        """Often it dies in a checkpoint."""
        if self.rng.random() < 0.5:
            self.model.send_checkpoint()
            server.qmp.send("replication-checkpoint", {})
            time.sleep(self.rng.random() * 0.004)
            self.story.append("killed in a checkpoint")

    def judge(self):
        open_one = self.model.open
        rollback = [self.model.last]
        if open_one:
            new = open_one.disk.copy()
            for change in open_one.primary:
                new.send(change)
            rollback.append(new)
        data = self.recovered("rollback", "rollback", self.tries)
        shows_one_of(data, rollback, "after rollback")
        if self.exact and not open_one and data != self.exact:
            raise Mismatch("after rollback the disk is not exactly that of "
                           "the last checkpoint")
        data = self.recovered("discard", "discard", self.tries)
        self.model.disk.check_all(data, "after discard")


class Failover(Running):
    """It dies while the buffers are committed, the guest writing."""

    slow = SLOW

    def last_moments(self, server):
        rng = self.rng
        client = self.client
        client.on_error = self.primary_is_refused
        server.qmp.send("replication-stop", {"failover": True})
        self.mix = Mix(rng, self.model, self.cluster, GUEST)
        end = time.monotonic() + rng.random() ** 2 * 0.3
        self.answered = False
        while time.monotonic() < end:
            while client.in_flight < DEPTH:
                side, kind, first, last, flags = self.mix.next()
                client.send(side, rng.randrange(2), kind, first, last,
                            flags)
            control = [] if self.answered else [server.qmp.fileno()]
            if client.wait(control):
                server.qmp.answer()
                self.answered = True
        self.story.append(f"failover answered: {self.answered}")

    @staticmethod
    def primary_is_refused(side, kind, request, error):
        if side != "primary" or error != errno.EIO:
            Client.raise_error(side, kind, request, error)

    def judge(self):
        for how, other in (("rollback", self.model.last),
                           ("discard", self.model.disk)):
            disks = [self.model.guest]
            if not self.answered:
                disks.append(other)
            data = self.recovered(how, how, self.tries)
            shows_one_of(data, disks, f"failover, then {how}")


class RecoveryRunning(Running):
    tries = 3


class RecoveryFailover(Failover):
    tries = 3


def recovery(rng, directory):
    return rng.choice([RecoveryRunning, RecoveryFailover])(rng, directory)


class PrimaryDies(Round):

    def primary(self):
        return self.run(Primary(self.path("disk"), self.remote.uri,
                                bitmap=self.path("bitmap")))

    def play(self):
        try:
            self.live_and_die()
        except (Mismatch, QmpError):
            if not has_aborted(self.remote):
                raise
            self.story.append("nbdkit aborted")

    def live_and_die(self):
        rng = self.rng
        self.write_disk("disk")
        self.write_disk("remote")
        self.remote = self.run(Remote(self.path("remote")))
        mix = Mix(rng, self.model, 65536, PRIMARY)
        server = self.primary()
        server.start()
        for life in range(rng.randrange(1, 4)):
            client = Client(self.model, {
                "primary": [server.connect() for _ in range(2)]})
            self.traffic(client, mix, rng.randrange(1, 300))
            if rng.random() < 0.4:
                self.story.append(f"life {life}: the remote goes")
                self.remote.go()
                self.traffic(client, mix, rng.randrange(1, 100))
                if rng.random() < 0.3:
                    self.remote.come_back()
                    self.story.append("and comes back")
                    self.traffic(client, mix, rng.randrange(1, 100))
            server.kill()
            self.model.changes["primary"].clear()
            self.remote.come_back()
            server = self.primary()
            server.start()
        server.checkpoint()
        status = server.query()
        if status["dirty-bytes"] or status["error"]:
            raise Mismatch(f"after the checkpoint: {status}")
        ours = read_file(self.path("disk"))
        self.model.disk.check_all(ours, "the primary's disk")
        if read_file(self.path("remote")) != ours:
            self.model.disk.check_all(read_file(self.path("remote")),
                                      "the remote")
            raise Mismatch("the remote is not equal")
        server.stop()
        if read_file(self.path("remote")) != read_file(self.path("disk")):
            raise Mismatch("not equal after the end")


class Pair(Round):
    """Either side dies."""

    def play(self):
        rng = self.rng
        self.make_secondary_files()
        self.write_disk("primary")
        secondary = self.secondary()
        primary = self.run(Primary(self.path("primary"),
                                   secondary.uri_of(),
                                   bitmap=self.path("bitmap")))
        secondary.start()
        primary.start()
        client = Client(self.model, {
            "guest": [secondary.connect_guest() for _ in range(2)],
            "primary": [primary.connect() for _ in range(2)]})
        mix = Mix(rng, self.model, self.cluster, PRIMARY + GUEST)
        for _ in range(rng.randrange(1, 4)):
            self.traffic(client, mix, rng.randrange(1, 150))
            # As COLO does it: both guests pause.
            client.drain()
            self.model.send_checkpoint()
            primary.checkpoint()
            secondary.checkpoint()
            self.model.end_checkpoint()
        self.traffic(client, mix, rng.randrange(1, 150))
        if rng.random() < 0.5:
            self.primary_dies(primary, secondary, client)
        else:
            self.secondary_dies(primary, secondary, client)

    def primary_dies(self, primary, secondary, client):
        self.story.append("the primary dies")
        client.drain_side("guest")
        primary.kill()
        alone = client.only("guest")
        mix = Mix(self.rng, self.model, self.cluster, GUEST)
        try:
            self.traffic(alone, mix, 50)
            secondary.failover()
        except (ConnectionError, nbd.Error):
            if not has_aborted(secondary):
                raise
            self.story.append("nbdkit aborted")
            return
        self.traffic(alone, mix, 50)
        alone.close()
        secondary.stop()
        self.model.guest.check_all(read_file(self.path("disk")),
                                   "the promoted secondary")

    def secondary_dies(self, primary, secondary, client):
        self.story.append("the secondary dies")
        client.drain_side("primary")
        place = secondary.socket
        secondary.kill()
        alone = client.only("primary")
        mix = Mix(self.rng, self.model, self.cluster, PRIMARY)
        self.traffic(alone, mix, 50)
        how = self.rng.choice(["rollback", "discard"])
        again = self.secondary(recover=how)
        again.start()
        os.unlink(place)
        os.symlink(again.socket, place)
        self.traffic(alone, mix, 50)
        alone.drain()
        deadline = time.monotonic() + 60
        while True:
            try:
                primary.checkpoint()
                break
            except QmpError as error:
                # It has not noticed yet that the remote is back.
                if time.monotonic() > deadline:
                    raise Mismatch(f"no checkpoint: {error}") from error
            time.sleep(0.05)
        again.checkpoint()
        ours = read_file(self.path("primary"))
        self.model.disk.check_all(ours, "the primary's disk")
        if read_file(self.path("disk")) != ours:
            raise Mismatch(f"after {how} and a resynchronisation the disks "
                           "are not equal")


# In the suite; some 25 moments for either side.
ROUNDS = {"running": 12, "failover": 8, "recovery": 5,
          "primary": 15, "pair": 10}

SCENARIOS = {"running": Running, "failover": Failover, "recovery": recovery,
             "primary": PrimaryDies, "pair": Pair}


def main():
    scenario, directory = sys.argv[1:]
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    rounds = int(os.environ.get("ROUNDS") or ROUNDS[scenario])
    for number in range(rounds):
        this = SCENARIOS[scenario](
            random.Random(f"{seed} {scenario} {number}"), directory)
        try:
            this.play()
        except (Mismatch, OSError, QmpError, ServerError, TimeoutError,
                subprocess.CalledProcessError, nbd.Error) as error:
            print(f"{type(error).__name__}: {error}")
            print(this.log())
            print(f"round {number} of SEED={seed} kill.py "
                  f"{scenario}, clusters of {this.cluster}")
            sys.exit(1)
        finally:
            this.end()


if __name__ == "__main__":
    main()
