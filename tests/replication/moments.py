#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Both hosts lose power at a moment of a command.

    moments.py [--states=N] [--seed=N] [--kind=power|fail]

A pair is brought to where a failover, a checkpoint, a stop, a start, a
resynchronisation or a reset can be asked for.  Then, with power, one side is
killed before a call that changes or flushes a file, the other one, too, and
both lose any part of what was not flushed; with fail a call fails, before or
after its work was done, or all do from there on, and both are killed without a
loss.  They come back with the same command lines: what holds at the end of each
of the orders of orders.py must hold here.
"""

import argparse
import os
import random
import sys
import tempfile
import time

import nbd

from byte_model import Mismatch, check
from orders import Pair
from qed_server import ServerError
from qmp_client import QmpError

# What is asked for: where the pair must be before, of which side, the command.
COMMANDS = {
    "failover": ("guest", "s", "replication-stop", {"failover": True}),
    "checkpoint of the secondary": ("guest", "s", "replication-checkpoint",
                                    {}),
    "checkpoint of the primary": ("running", "p", "replication-checkpoint",
                                  {}),
    "stop of the secondary": ("guest", "s", "replication-stop", {}),
    "stop of the primary": ("running", "p", "replication-stop", {}),
    "start of the secondary": ("stopped", "s", "replication-start", {}),
    "full copy": ("done", "p", "replication-start", {"sync": "full"}),
    "resynchronisation": ("behind", "p", "replication-checkpoint", {}),
    "reset": ("promoted", "s", "replication-reset", {}),
}


class Moment(Pair):
    """A pair, and the command in the middle of which something happens."""

    def __init__(self, directory, library, command, rng):
        stage, self.side, self.name, self.arguments = COMMANDS[command]
        super().__init__(directory, library,
                         (stage, "power", "ps", rng.choice("ps"), True), rng)
        self.slow = False

    def to_done(self):
        self.servers["p"].stop_replication(False)
        self.guest_writes("p")

    def dies(self, side):
        """Is its server gone, or just going?"""
        deadline = time.monotonic() + 10
        while self.servers[side].alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self.servers[side].alive()

    def play_moment(self, kind):
        self.prepare()
        # The host whose calls count need not be that of the command.
        host = self.hosts[self.rng.choice(self.side * 3 + "ps")]
        number = self.rng.randrange(1, self.rng.choice([4, 8, 16, 40]))
        before = self.promoted
        if kind == "power":
            host.arm(kill_at=number)
        else:
            host.arm(fail_at=number, mode=self.rng.randrange(6))
        acked = self.acked = False
        try:
            self.servers[self.side].command(self.name, **self.arguments)
            acked = self.acked = True
        except (QmpError, OSError, ValueError):
            pass
        if acked and self.name == "replication-stop" and \
                self.arguments.get("failover"):
            self.promoted = True
            try:
                self.guest_writes("s")
            except (nbd.Error, OSError):
                # Its host may lose power only now.
                if kind != "power" or not self.dies("s"):
                    raise
        for side in "ps":
            server = self.servers[side]
            server.kill()
            self.old.append(server)
            self.servers[side] = None
        for side in "ps":
            if kind == "power":
                self.hosts[side].lose_power(self.rng)
            self.hosts[side].arm()
        if not self.promoted:
            # Nothing of it is promised before that.
            self.guests["s"].forget()
        for side in self.first + "ps".replace(self.first, ""):
            self.come_back(side)
        role = self.servers["s"].query()["role"] == "promoted"
        if not acked and self.name in ("replication-stop",
                                       "replication-reset"):
            # It may have been done, or not.
            if before and not role:
                self.guests["s"].forget()
            self.promoted = role
        elif acked and self.name == "replication-reset":
            self.promoted = False
            self.guests["s"].forget()
        check(self.promoted == role,
              f"promoted {role}, {self.name} {acked}")
        self.guest_writes("p")
        self.judge()


def one_state(number, command, seed, kind):
    rng = random.Random(f"{seed} {number} {command} {kind}")
    with tempfile.TemporaryDirectory(
            prefix="m.", dir=os.environ.get("ORDERS_DIR")) as directory:
        pair = Moment(directory, os.environ["LOSSY"], command, rng)
        try:
            pair.play_moment(kind)
            return "done" if pair.acked else "cut short"
        except (Mismatch, ServerError, QmpError, OSError, TimeoutError,
                nbd.Error) as error:
            print(f"state {number}, seed {seed}, {kind}: {command}\n"
                  f"{error!r}\n{pair.log()}", file=sys.stderr, flush=True)
            return "bad"
        finally:
            pair.end()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--states", type=int, default=18)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--state", type=int)
    parser.add_argument("--kind", default="power", choices=["power", "fail"])
    options = parser.parse_args()

    commands = list(COMMANDS)
    numbers = range(options.states) if options.state is None \
        else [options.state]
    states = {}
    for number in numbers:
        state = one_state(number, commands[number % len(commands)],
                          options.seed, options.kind)
        states.setdefault(state, []).append(number)
    for state, which in sorted(states.items()):
        print(len(which), state, *which)
    return 1 if "bad" in states else 0


if __name__ == "__main__":
    sys.exit(main())
