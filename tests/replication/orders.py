#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Whose data is right, over every order of accidents and restarts.

    orders.py [--count=N] [--seed=N] [--part=I/N] [--order=NUMBER] [--list]

An order is a line of a table that is generated from

  stage    where a pair is when it happens
  accident kill, end, stop (SIGSTOP, SIGCONT), partition (connections are
           cut), drop (nothing gets through, and what was sent arrives when
           it is over), power
  hit      the side to which it happens, or both, in this order; guests write
           meanwhile, and with "promote" an operator fails over when the
           primary is away
  first    the side that comes back first, with the same command line
  bitmap   whether the primary has one

At the end of each the disks are equal after a checkpoint, or the link is
refused and the status says why; and what a guest has flushed on the side
that won is there.  LOSSY names the library of tests/unit/lossy.c.
"""

import argparse
import contextlib
import itertools
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time

import nbd

from byte_model import Mismatch, check
from lossy import Host
from qed_server import ServerError
from qmp_client import QmpError
from replication_server import Primary, Secondary, stand_still

SIZE = 2 << 20
BLOCK = 32768
BLOCKS = SIZE // BLOCK

STAGES = ("none", "behind", "copying", "running", "guest", "stopped",
          "failover", "promoted", "reset")
ACCIDENTS = ("kill", "end", "stop", "partition", "drop", "power")

# Seconds without a word after which a partner is lost, where that happens.
TIMEOUT = 3
HITS = ("p", "s", "ps", "sp", "p promote")


def table():
    """All orders.  One of both sides can be followed by either first."""
    for stage, accident, hit, bitmap in itertools.product(
            STAGES, ACCIDENTS, HITS, (True, False)):
        if "promote" in hit and stage not in ("running", "guest"):
            continue
        for first in "ps" if len(hit) == 2 else hit[0]:
            yield stage, accident, hit, first, bitmap


class Network:
    """Between the primary and its remote: a socket that hands on to the one
    where the secondary just is, or cuts and refuses, or is silent."""

    def __init__(self, place):
        self.uri = f"nbd+unix:///?socket={place}"
        self.target = None
        self.lock = threading.Lock()
        self.pipes = []
        self.cut = False
        self.flows = threading.Event()
        self.flows.set()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(place)
        self.listener.listen(16)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                here, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.connect, args=(here,),
                             daemon=True).start()

    def connect(self, here):
        self.flows.wait()
        there = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with self.lock:
            try:
                if self.cut:
                    raise OSError("cut")
                there.connect(self.target)
            except OSError:
                here.close()
                there.close()
                return
            self.pipes.append((here, there))
        for a, b in ((here, there), (there, here)):
            threading.Thread(target=self.pump, args=(a, b),
                             daemon=True).start()

    def pump(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                self.flows.wait()
                sink.sendall(data)
        self.flows.wait()       # the end of a connection is a packet, too
        for end in source, sink:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def drop(self, dropped):
        if dropped:
            self.flows.clear()
        else:
            self.flows.set()

    def partition(self, cut):
        with self.lock:
            self.cut = cut
            for pipe in self.pipes if cut else ():
                for end in pipe:
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.partition(True)
        self.drop(False)
        self.listener.close()


class Guest:
    """Writes blocks that nobody else writes, and knows which it has
    flushed."""

    def __init__(self, rng, mark):
        self.rng = rng
        self.mark = mark
        self.number = 0
        self.flushed = {}       # block: content
        self.unsure = {}        # block: contents, none of them flushed

    def write(self, handle, blocks):
        """A number of blocks, then a flush.  Returns whether it worked."""
        try:
            for block in self.rng.sample(range(BLOCKS), blocks):
                self.number += 1
                content = f"{self.mark}{self.number:07}".encode() * (BLOCK // 8)
                self.unsure.setdefault(block, []).append(content)
                handle.pwrite(content, block * BLOCK)
            handle.flush()
        except nbd.Error:
            return False
        for block, contents in self.unsure.items():
            self.flushed[block] = contents[-1]
        self.unsure = {}
        return True

    def forget(self):
        """The disk is not this guest's any more."""
        self.flushed, self.unsure = {}, {}

    def must_be_on(self, disk, where):
        for block, content in self.flushed.items():
            found = disk[block * BLOCK:(block + 1) * BLOCK]
            check(found == content or found in self.unsure.get(block, ()),
                  f"{where}: block {block} has {found[:16]}, and not "
                  f"{content[:8]}, which was flushed")


class Pair:
    """Both hosts, and what is promised to whom."""

    def __init__(self, directory, library, order, rng):
        (self.stage, self.accident, self.hit, self.first,
         self.bitmap) = order
        self.rng = rng
        self.hosts = {side: Host(os.path.join(directory, side), library)
                      for side in "ps"}
        self.network = Network(os.path.join(directory, "net"))
        self.servers = {"p": None, "s": None}
        self.old = []           # that were killed or have ended
        self.guests = {"p": Guest(rng, "p"), "s": Guest(rng, "s")}
        self.promoted = False
        self.slow = self.stage in ("behind", "copying", "failover")
        for side in "ps":
            with open(self.path(side, "disk"), "wb") as f:
                f.write(b"\0" * SIZE)

    def path(self, side, name):
        return self.hosts[side].path(name)

    def disk(self, side):
        with open(self.path(side, "disk"), "rb") as f:
            return f.read()

    # ---- Servers; always with the same command line

    def launch(self, side, **more):
        if self.accident == "drop":
            more["timeout"] = TIMEOUT
        with self.hosts[side].environment():
            if side == "p":
                if self.bitmap:
                    more["bitmap"] = self.path("p", "bitmap")
                server = Primary(self.path("p", "disk"), self.network.uri,
                                 start="true", **more)
            else:
                # Its clients die.
                more["below"] = ["-t", "1"]
                if self.slow:
                    more["below"] += ["--filter=delay"]
                    more["extra"] = ["wdelay=4ms"]
                server = Secondary(*(self.path("s", name) for name in
                                     ("disk", "active", "hidden")),
                                   start="true", **more)
                self.network.target = server.socket
        self.servers[side] = server
        return server

    def make_files(self):
        """A first run, so that files do not appear later."""
        self.network.target = self.path("s", "nowhere")
        for side in "sp":
            server = self.launch(side)
            server.stop()
            self.old.append(server)

    def come_back(self, side):
        """With the same command line.  A secondary that wants to be told what
        to do is told one or the other."""
        if self.servers[side]:
            return
        try:
            self.launch(side)
        except ServerError as error:
            check(side == "s" and "replication-recover" in str(error),
                  str(error))
            try:
                self.launch(side, recover=self.rng.choice(
                    ["rollback", "discard"]))
            except ServerError as other:
                # After a power loss there may be nothing to go back to.
                check("replication-recover=discard" in str(other), str(other))
                self.launch(side, recover="discard")

    # ---- Guests

    def connect(self, side):
        server = self.servers[side]
        return server.connect() if side == "p" else server.connect_guest()

    def guest_writes(self, side, blocks=2):
        """If its server is there and serves it."""
        if self.servers[side] is None or (side in self.stopped):
            return
        handle = self.connect(side)
        self.guests[side].write(handle, blocks)
        with contextlib.suppress(nbd.Error):
            handle.shutdown()

    def joint_checkpoint(self):
        run = subprocess.run(
            ["blkctl", *(self.servers[side].control_path for side in "ps"),
             "replication-checkpoint"],
            capture_output=True, text=True, check=False)
        if run.returncode == 0:
            # The secondary's guest is made equal to the primary's.
            self.guests["s"].forget()
        return run.returncode == 0, run.stderr

    def must_checkpoint(self):
        deadline = time.monotonic() + 30
        while True:
            made, why = self.joint_checkpoint()
            if made:
                return
            check(time.monotonic() < deadline, why)
            time.sleep(0.02)

    # ---- Getting there

    def prepare(self):
        self.stopped = set()
        self.make_files()
        if self.stage == "behind":
            self.launch("p")
            self.guest_writes("p", 20)
            self.launch("s")
            return
        self.launch("s")
        if self.stage == "none":
            # The secondary has not begun.
            self.servers["s"].stop_replication(False)
        self.launch("p")
        if self.stage == "none":
            self.guest_writes("p")
            return
        self.guest_writes("p")
        self.must_checkpoint()
        self.guest_writes("p")
        getattr(self, "to_" + self.stage)()

    def to_running(self):
        """Nothing else."""

    def to_copying(self):
        primary = self.servers["p"]
        primary.stop_replication(False)
        self.guest_writes("p", 20)
        primary.start("full")

    def to_guest(self):
        self.guest_writes("s", 10)

    def to_stopped(self):
        self.servers["s"].stop_replication(False)
        self.guests["s"].forget()
        self.guest_writes("s")

    def to_failover(self):
        self.guest_writes("s", 20)
        self.fail_over()

    def to_promoted(self):
        self.guest_writes("s")
        self.fail_over()
        self.servers["s"].wait_for_stage("done")
        self.guest_writes("s")

    def to_reset(self):
        self.to_promoted()
        self.servers["s"].command("replication-reset")
        self.promoted = False
        self.guests["s"].forget()

    def fail_over(self):
        """It may be refused, as the disk is not consistent."""
        try:
            self.servers["s"].command("replication-stop", failover=True)
            self.promoted = True
        except QmpError as error:
            check("not consistent" in str(error), str(error))

    # ---- The accident

    def happen(self, side):
        server = self.servers[side]
        if self.accident == "partition":
            self.network.partition(True)
            return
        if self.accident == "drop":
            self.network.drop(True)
            return
        if self.accident == "stop":
            stand_still(server.process)
            self.stopped.add(side)
            return
        if self.accident == "end":
            server.stop()
        else:
            server.kill()
        self.old.append(server)
        self.servers[side] = None
        if self.accident == "power":
            self.hosts[side].lose_power(self.rng)
            for guest in (self.guests[side],):
                guest.unsure = {b: c for b, c in guest.unsure.items()}
        if side == "s" and not self.promoted:
            # As the memory of a guest without its disk is gone.
            self.guests["s"].forget()

    def recover(self, side):
        if self.accident == "partition":
            self.network.partition(False)
        elif self.accident == "drop":
            self.network.drop(False)
        elif self.accident == "stop":
            self.servers[side].process.send_signal(18)
            self.stopped.discard(side)
        else:
            self.come_back(side)

    def play(self):
        self.prepare()
        sides = self.hit.split()[0]
        for side in sides:
            self.happen(side)
            for other in "ps":
                self.guest_writes(other)
            if "promote" in self.hit:
                self.fail_over()
                self.guest_writes("s")
        for side in self.first + sides.replace(self.first, ""):
            self.recover(side)
            for other in "ps":
                self.guest_writes(other)
        self.judge()

    # ---- The end

    def judge(self):
        primary, secondary = self.servers["p"], self.servers["s"]
        deadline = time.monotonic() + 60
        why = ""
        while True:
            at_p, at_s = primary.query(), secondary.query()
            check(self.promoted == (at_s["role"] == "promoted"), str(at_s))
            if at_p["link"] == "refused":
                check(at_p["link-desc"] and at_p["error"], str(at_p))
                made, _ = self.joint_checkpoint()
                check(not made, f"a checkpoint is made: {at_p}")
                outcome = "refused"
                break
            made, why = self.joint_checkpoint()
            if made:
                check(self.disk("p") == self.disk("s"),
                      "a checkpoint is made, and the disks differ")
                check(not self.promoted, "a checkpoint of a promoted disk")
                check(secondary.query()["consistent"], str(secondary.query()))
                outcome = "equal"
                break
            check(time.monotonic() < deadline,
                  f"neither equal nor refused: {why}\n{at_p}\n{at_s}")
            time.sleep(0.02)
        if self.promoted:
            secondary.wait_for_stage("done")
            check(outcome == "refused", outcome)
        self.guests["p"].must_be_on(self.disk("p"), "the primary's disk")
        # If it was refused, what the guest of the secondary has flushed while
        # it had the disk is there.
        if self.promoted or (outcome == "refused" and
                             secondary.query()["stage"] == "done"):
            self.guests["s"].must_be_on(self.disk("s"),
                                        "the secondary's disk")
        self.outcome = outcome

    def log(self):
        return "\n".join(
            f"--- {type(server).__name__}\n{server.log()}"
            for server in [*self.old, *self.servers.values()] if server)

    def end(self):
        self.network.close()
        for server in self.servers.values():
            if server and server.alive():
                server.process.send_signal(18)
                server.kill()


def run_order(number, order, seed, library):
    """Returns how it ended; prints why if it did not as it should."""
    rng = random.Random(f"{seed} {number}")
    with tempfile.TemporaryDirectory(prefix="o.", dir=os.environ.get(
            "ORDERS_DIR")) as directory:
        pair = Pair(directory, library, order, rng)
        try:
            pair.play()
            return pair.outcome
        except Exception as error:
            print(f"order {number}, seed {seed}: {order}\n{error!r}\n"
                  f"{pair.log()}", file=sys.stderr, flush=True)
            if not isinstance(error, (Mismatch, ServerError, QmpError, OSError,
                                      TimeoutError, nbd.Error)):
                raise
            return "failed"
        finally:
            pair.end()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, help="so many, chosen by seed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--order", type=int, action="append")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()

    orders = list(enumerate(table()))
    if options.list:
        for number, order in orders:
            print(number, *order)
        return 0
    if options.order:
        orders = [orders[number] for number in options.order]
    if options.count:
        orders = random.Random(options.seed).sample(orders, options.count)
    part, parts = map(int, options.part.split("/"))
    outcomes = {}
    for number, order in orders[part - 1::parts]:
        begin = time.monotonic()
        outcome = run_order(number, order, options.seed,
                            os.environ["LOSSY"])
        outcomes.setdefault(outcome, []).append(number)
        if options.verbose:
            print(number, *order, outcome, f"{time.monotonic() - begin:.1f}",
                  flush=True)
    for outcome, numbers in sorted(outcomes.items()):
        print(f"{len(numbers)} {outcome}")
    if "failed" in outcomes:
        print("failed:", *outcomes["failed"])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
