#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Disks, buffers and remotes of a replication that fail, while requests go on.

    faults.py SCENARIO DIRECTORY

Of a primary, whose guest must not notice:

cut        the remote dies and comes back, several times
stopped    the remote does not answer for a while
errors     the remote answers with errors for a while
full       the remote's file system is full for a while
forwarder  the way to the secondary breaks, under a forwarder
hung       the secondary hangs, with its connection open, under a forwarder

Of a secondary, whose guest must never see the primary's data of the epoch:

disk-write, disk-read     its disk returns errors for a while
hidden-full, active-full  a buffer's file system is full for a while
failover                  its disk returns errors in a failover

DIRECTORY/small is a small file system for what is to be full, which can be
filled up by a file "ballast".  SEED and ROUNDS are taken from the
environment.
"""

import ctypes
import errno
import os
import random
import signal
import subprocess
import sys
import time

import nbd

from qed_server import SANITIZED, ServerError
from qmp_client import QmpError
from byte_model import Mismatch
from flight_model import Client, Mix, Model
from replication_server import (Forwarder, Primary, Remote, Secondary,
                                make_buffer)

UNIT = 512
UNITS = 4096 + 33
SIZE = UNITS * UNIT
DEPTH = 24
CLUSTER = 4096
PRIMARY = [(("primary", "write"), 25), (("primary", "zero"), 4),
           (("primary", "trim"), 2), (("primary", "read"), 4),
           (("primary", "flush"), 1)]
GUEST = [(("guest", "read"), 25), (("guest", "write"), 15),
         (("guest", "zero"), 4), (("guest", "trim"), 2),
         (("guest", "flush"), 1)]


def read_file(name):
    with open(name, "rb") as f:
        return f.read()


def trace_slowly(pid, call, seconds):
    """Let a system call of a process's main thread take longer to return.
    The tracer ends with the process.  (Nobody reads what it says about the
    calls, so it must not go to a pipe, which would be full at some time.)"""
    tracer = subprocess.Popen(
        ["strace", "-o", "/dev/null", "-p", str(pid), "-e", f"trace={call}",
         "-e", f"inject={call}:delay_exit={int(seconds * 1e6)}"],
        stderr=subprocess.PIPE, encoding="utf-8")
    line = tracer.stderr.readline()
    if "attached" not in line:
        raise OSError(f"strace: {line}")
    return tracer


def end_by_main_thread(pid):
    """SIGTERM, but for no other thread, as it happens when the main one is
    traced: nbdkit's nbd plugin bears no signals."""
    if ctypes.CDLL(None).tgkill(pid, pid, signal.SIGTERM) == -1:
        raise OSError("tgkill")


class Round:
    """What the scenarios share."""

    def __init__(self, rng, directory):
        self.rng = rng
        self.dir = directory
        self.model = Model(UNITS, UNIT)
        self.servers = []
        self.failed = {"guest": set(), "primary": set()}
        for name in ("disk", "remote", "small/remote", "active.qed",
                     "hidden.qed", "small/active.qed", "small/hidden.qed",
                     "small/ballast", "fault"):
            if os.path.exists(self.path(name)):
                os.unlink(self.path(name))

    def path(self, name):
        return os.path.join(self.dir, name)

    def run(self, server):
        self.servers.append(server)
        return server

    def log(self):
        return "\n".join(s.log() for s in self.servers)

    def end(self):
        for server in self.servers:
            if server.alive():
                server.kill()

    def write_disk(self, name):
        with open(self.path(name), "wb") as f:
            f.write(self.model.first_content())
        return self.path(name)

    def may_fail(self, side, kind, request, error):
        """Remember which errors were met."""
        self.failed[side].add(error)

    def traffic(self, answers):
        client = self.client
        goal = client.sent - client.in_flight + answers
        while client.sent - client.in_flight < goal:
            while client.in_flight < DEPTH:
                side, kind, first, end, flags = self.mix.next()
                client.send(side, self.rng.randrange(2), kind, first, end,
                            flags)
            client.wait()

    def faults(self, on):
        """The error filters' switch."""
        if on:
            open(self.path("fault"), "w", encoding="ascii").close()
        else:
            os.unlink(self.path("fault"))

    def fill_up(self):
        """Leave no room in the small file system."""
        with open(self.path("small/ballast"), "wb", buffering=0) as f:
            try:
                while f.write(bytes(4096)):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def error_filter(directory, *kinds):
    """nbdkit's filter, switched by a file: options and parameters."""
    parameters = [f"error-file={os.path.join(directory, 'fault')}"]
    for kind in kinds:
        parameters += [f"error-{kind}=EIO", f"error-{kind}-rate=1"]
    return ["--filter=error"], parameters


class PrimaryRound(Round):
    """A primary with a remote that is faulty for a while."""

    remote_name = "remote"
    options = ()
    parameters = ()

    def play(self):
        self.disk = self.write_disk("disk")
        self.write_disk(self.remote_name)
        self.remote = self.run(Remote(self.path(self.remote_name),
                                      self.options, self.parameters))
        self.server = self.run(Primary(self.disk, self.remote.uri))
        self.server.start()
        self.client = Client(self.model, {
            "primary": [self.server.connect() for _ in range(2)]})
        self.mix = Mix(self.rng, self.model, 65536, PRIMARY)
        for _ in range(3):
            self.traffic(self.rng.randrange(1, 200))
            self.fault()
            # More than any queue holds.
            self.traffic(1500)
            self.while_faulty()
            self.traffic(100)
            self.mend()
            self.traffic(self.rng.randrange(1, 200))
            self.client.drain()
            self.checkpoint()
        self.client.close()
        self.server.stop()

    def checkpoint(self):
        """It succeeds as soon as the primary has noticed that all is well
        again."""
        deadline = time.monotonic() + 60
        while True:
            try:
                self.server.checkpoint()
                break
            except QmpError as error:
                if time.monotonic() > deadline:
                    raise Mismatch(f"no checkpoint: {error}") from error
            time.sleep(0.05)
        status = self.server.query()
        if status["dirty-bytes"] or not status["remote-connected"]:
            raise Mismatch(f"after the checkpoint: {status}")
        ours = read_file(self.disk)
        self.model.disk.check_all(ours, "the primary's disk")
        if read_file(self.path(self.remote_name)) != ours:
            raise Mismatch("the remote is not equal after a checkpoint")

    def refuses_checkpoint(self):
        try:
            self.server.checkpoint()
        except QmpError:
            pass
        else:
            raise Mismatch("a checkpoint succeeded without the remote")
        status = self.server.query()
        if not status["error"] or not status["dirty-bytes"]:
            raise Mismatch(f"with a faulty remote: {status}")

    def while_faulty(self):
        self.refuses_checkpoint()


class Cut(PrimaryRound):

    def fault(self):
        self.remote.go()

    def while_faulty(self):
        self.server.wait_for(lambda s: not s["remote-connected"],
                             "the remote is gone")
        super().while_faulty()

    def mend(self):
        self.remote.come_back()


class Stopped(PrimaryRound):

    def fault(self):
        self.remote.stand_still()

    def while_faulty(self):
        """A checkpoint waits, and the guest does not."""
        self.server.qmp.send("replication-checkpoint", {})
        self.traffic(500)

    def mend(self):
        self.remote.go_on()
        self.traffic(100)
        try:
            self.server.qmp.answer()
        except QmpError:
            pass                # it gave the remote up

    def end(self):
        self.remote.go_on()
        super().end()


class Errors(PrimaryRound):

    def __init__(self, rng, directory):
        super().__init__(rng, directory)
        self.options, self.parameters = error_filter(
            directory, "pwrite", "zero", "trim")

    def fault(self):
        self.faults(True)

    def mend(self):
        self.faults(False)


class Full(PrimaryRound):
    """The remote's file has holes, for which there is no room."""

    remote_name = "small/remote"

    def play(self):
        self.write_disk("disk")
        super().play()

    def fault(self):
        # Zero requests of the guest that arrive here make holes, which the
        # ballast takes.
        for first in range(0, UNITS - 256, 256):
            self.client.send("primary", 0, "zero", first, first + 256)
        self.client.drain()
        self.server.checkpoint()
        self.fill_up()

    def mend(self):
        os.unlink(self.path("small/ballast"))


class Forward(Round):
    """The quorum above it must not see that the remote is away."""

    def begin(self):
        """A forwarder that has made a checkpoint."""
        self.remote = self.run(Remote(self.write_disk("remote")))
        server = self.run(Forwarder(self.remote.uri))
        server.start()
        self.client = Client(self.model, {
            "primary": [server.connect() for _ in range(2)]})
        self.mix = Mix(self.rng, self.model, 65536, [
            w for w in PRIMARY if w[0][1] != "read"])
        self.traffic(self.rng.randrange(1, 100))
        self.client.drain()
        server.checkpoint()
        self.model.disk.check_all(read_file(self.path("remote")), "remote")
        return server

    def play(self):
        server = self.begin()
        self.traffic(self.rng.randrange(1, 100))
        self.remote.go()
        self.traffic(200)
        status = server.query()
        if not status["error"] or not status["desc"]:
            raise Mismatch(f"without a remote: {status}")
        try:
            server.checkpoint()
        except QmpError:
            pass
        else:
            raise Mismatch("a checkpoint succeeded without the remote")
        self.traffic(100)
        self.client.drain()
        server.stop_replication(True)
        self.client.close()
        server.stop()


class Hung(Forward):
    """The same, and neither the guest nor the commands wait for ever; nor
    does the end of the server."""

    def play(self):
        server = self.begin()
        self.remote.stand_still()
        self.traffic(500)
        self.client.drain()
        status = server.query()
        if not status["error"] or "no answer" not in status["desc"]:
            raise Mismatch(f"with a remote that hangs: {status}")
        try:
            server.checkpoint()
        except QmpError as error:
            if "lacks writes" not in str(error):
                raise
        else:
            raise Mismatch("a checkpoint succeeded while the remote hangs")
        server.stop_replication(self.rng.choice([False, True]))
        self.client.close()
        self.end_of(server)

    def end_of(self, server):
        """The remote comes back when it has been given up: too late, and
        the server is in the middle of unloading what would get the
        answers, for which it takes its time.  (A sanitizer has thousands
        of such calls.)"""
        tracer = trace_slowly(server.process.pid, "munmap",
                              0 if SANITIZED else 0.2)
        end_by_main_thread(server.process.pid)
        server.wait_for_message("still no answer at the end")
        self.remote.go_on()
        server.stop()
        tracer.wait(60)

    def end(self):
        self.remote.go_on()
        super().end()


class SecondaryRound(Round):
    """A secondary of which something is faulty for a while."""

    active = "active.qed"
    hidden = "hidden.qed"
    below = ()
    parameters = ()
    fails = "primary"           # whose requests may fail
    shown = True                # by the status

    def play(self):
        self.disk = self.write_disk("disk")
        for name in self.active, self.hidden:
            make_buffer(self.path(name), SIZE, CLUSTER)
        self.server = self.run(Secondary(
            self.disk, self.path(self.active), self.path(self.hidden),
            below=self.below, extra=self.parameters))
        self.client = Client(self.model, {
            "guest": [self.server.connect_guest() for _ in range(2)],
            "primary": [self.server.connect_primary() for _ in range(2)]})
        self.mix = Mix(self.rng, self.model, CLUSTER, PRIMARY + GUEST)
        self.server.start()
        for _ in range(3):
            self.traffic(self.rng.randrange(1, 100))
            self.fault()
            self.client.on_error = self.may_fail
            # What was in flight may have met it or not.
            self.traffic(400)
            self.see()
            self.mend()
            self.client.drain()
            self.client.on_error = Client.raise_error
            # Without faults nothing fails, whatever went before.
            self.traffic(300)
            self.checkpoint()
            self.traffic(100)
        self.client.drain()
        self.server.failover()
        self.client.close()
        self.server.stop()
        self.model.guest.check_all(read_file(self.disk), "the disk")

    def checkpoint(self):
        self.client.drain()
        self.model.send_checkpoint()
        self.server.checkpoint()
        self.model.end_checkpoint()

    def see(self):
        other = "guest" if self.fails == "primary" else "primary"
        if self.failed[other]:
            raise Mismatch(f"requests of the {other} failed: {self.failed}")
        if not self.failed[self.fails]:
            raise Mismatch(f"no request of the {self.fails} failed")
        status = self.server.query()
        if status["stage"] != "running":
            raise Mismatch(f"{status}")
        if status["error"] != self.shown or bool(
                status.get("desc")) != self.shown:
            raise Mismatch(f"the error in the status: {status}")
        self.failed = {"guest": set(), "primary": set()}


class DiskErrors(SecondaryRound):

    kinds = ()

    def __init__(self, rng, directory):
        super().__init__(rng, directory)
        self.below, self.parameters = error_filter(directory, *self.kinds)

    def fault(self):
        self.faults(True)

    def mend(self):
        self.faults(False)


class DiskWrite(DiskErrors):
    kinds = ("pwrite", "zero", "trim")


class DiskRead(DiskErrors):
    """Old content cannot be copied, so nothing may replace it; guests
    meet the errors too."""
    kinds = ("pread",)

    def see(self):
        self.failed["guest"].clear()
        super().see()


class HiddenFull(SecondaryRound):
    hidden = full = "small/hidden.qed"

    def fault(self):
        # Checkpoints with nothing between them make the buffer give back
        # the space that it keeps.
        for _ in range(10):
            self.checkpoint()
        self.server.wait_for(lambda _: self.space() <= 256 << 10,
                             "its space to be given back")
        self.fill_up()

    def space(self):
        return os.stat(self.path(self.full)).st_blocks * 512

    def mend(self):
        os.unlink(self.path("small/ballast"))


class ActiveFull(HiddenFull):
    active = full = "small/active.qed"
    hidden = "hidden.qed"
    fails = "guest"
    shown = False


class FailoverFails(DiskErrors):
    """The guest goes on, with all that it had."""

    kinds = ("pwrite", "zero", "trim")

    def play(self):
        self.disk = self.write_disk("disk")
        self.server = self.run(Secondary(
            self.disk, self.path("active.qed"), self.path("hidden.qed"),
            below=self.below, extra=self.parameters))
        self.client = Client(self.model, {
            "guest": [self.server.connect_guest() for _ in range(2)],
            "primary": [self.server.connect_primary() for _ in range(2)]})
        self.mix = Mix(self.rng, self.model, CLUSTER, PRIMARY + GUEST)
        self.server.start()
        self.traffic(300)
        self.client.drain()
        self.faults(True)
        self.server.stop_replication(True)
        self.server.wait_for_stage("failover-failed")
        status = self.server.query()
        if not status["error"] or not status["desc"]:
            raise Mismatch(f"{status}")
        # Writes outside of the buffers go to the disk and may fail.
        self.client.on_error = self.may_fail
        self.mix = Mix(self.rng, self.model, CLUSTER, GUEST)
        self.traffic(300)
        self.client.drain()
        self.faults(False)
        self.client.on_error = Client.raise_error
        self.traffic(300)
        self.client.drain()
        self.after_failure()

    def after_failure(self):
        """A restart finishes it."""
        self.client.close()
        self.server.stop()
        try:
            self.run(Secondary(self.disk, self.path("active.qed"),
                               self.path("hidden.qed")))
        except ServerError as error:
            if "replication-recover" not in str(error):
                raise
        else:
            raise Mismatch("it started without being told what to do")
        how = self.rng.choice(["rollback", "discard"])
        server = self.run(Secondary(
            self.disk, self.path("active.qed"), self.path("hidden.qed"),
            recover=how))
        server.stop()
        self.model.guest.check_all(read_file(self.disk), f"after {how}")


SCENARIOS = {"cut": Cut, "stopped": Stopped, "errors": Errors, "full": Full,
             "forwarder": Forward, "hung": Hung,
             "disk-write": DiskWrite, "disk-read": DiskRead,
             "hidden-full": HiddenFull, "active-full": ActiveFull,
             "failover": FailoverFails}


def main():
    scenario, directory = sys.argv[1:]
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    rounds = int(os.environ.get("ROUNDS") or 2)
    for number in range(rounds):
        this = SCENARIOS[scenario](
            random.Random(f"{seed} {scenario} {number}"), directory)
        try:
            this.play()
        except (Mismatch, OSError, QmpError, ServerError, TimeoutError,
                nbd.Error) as error:
            print(f"{type(error).__name__}: {error}")
            print(this.log())
            print(f"round {number} of SEED={seed} faults.py "
                  f"{scenario}")
            sys.exit(1)
        finally:
            this.end()


if __name__ == "__main__":
    main()
