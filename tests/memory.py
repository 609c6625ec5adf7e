#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Does the memory of servers that work for long stay what it was?

    PYTHONPATH=tests/lib ./run /usr/bin/python3 tests/memory.py [MINUTES]

For so many minutes (60) a server of each module has clients that come, work
and go without a pause, each on a disk of bounded size: qed over a backing
image, the log filter, logreplay at moments all over a log, both sides of a
replication with checkpoints, and with a remote that goes and comes back.  The
resident memory of each is read twice a second.  Printed is, for each, the peak of the first
fifth of the time, of the last fifth, and what was asked; exit status 1 if the
last is higher than the first by more than a tenth and 2 MiB.  "make soak"
runs it beside the rest.
"""

import os
import random
import resource
import subprocess
import sys
import tempfile
import time

import nbd

from qed_server import Server
from replication_server import GUEST, Primary, Remote, Secondary

MIB = 1 << 20
SIZE = 64 * MIB
BLOCK = 4096
AT_ONCE = 50                    # requests of a client in its turn
PAUSE = 0.01                    # seconds between two clients
WHEN = (0.2, 0.8)               # the shares of the time that are compared


def resident(server):
    with open(f"/proc/{server.process.pid}/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * resource.getpagesize()


def raw(name, size=SIZE):
    with open(name, "wb") as f:
        f.truncate(size)
    return name


def work(handle):
    """What a client does in its turn; returns how much it asked."""
    size = handle.get_size()
    for _ in range(AT_ONCE):
        count = BLOCK * random.choice((1, 1, 1, 4, 32))
        offset = random.randrange((size - count) // 512) * 512
        kind = random.random()
        if kind < 0.4 or handle.is_read_only():
            handle.pread(count, offset)
        elif kind < 0.8:
            handle.pwrite(random.randbytes(count), offset)
        elif kind < 0.9:
            handle.zero(count, offset)
        elif kind < 0.95:
            handle.trim(count, offset)
        else:
            handle.flush()
    return AT_ONCE


class Client:
    """Comes, works and goes."""

    def __init__(self, server, name=None):
        self.server = server
        self.name = name or server.__class__.__name__.lower()
        self.asked = 0
        self.turns = 0

    def uri(self):
        return self.server.uri

    def turn(self):
        self.turns += 1
        handle = nbd.NBD()
        handle.connect_uri(self.uri())
        self.asked += work(handle)
        handle.shutdown()

    def end(self):
        self.server.kill()


class Moments(Client):
    """The disk as it was at any moment."""

    def uri(self):
        moment = random.randrange(5000)
        return f"nbd+unix:///entry/{moment}?socket={self.server.socket}"


class Checkpoints(Client):
    """The guest and the primary of a secondary."""

    def turn(self):
        super().turn()
        if self.turns % 20 == 0:
            self.server.checkpoint()

    def uri(self):
        return self.server.uri_of(random.choice(("", GUEST)))


class ComesAndGoes(Client):
    """A primary whose remote is away at times."""

    def __init__(self, server, remote):
        super().__init__(server)
        self.remote = remote

    def turn(self):
        super().turn()
        if self.turns % 50 == 20:
            self.remote.go()
        elif self.turns % 50 == 40:
            self.remote.come_back()

    def end(self):
        super().end()
        self.remote.kill()


def qed():
    subprocess.run(["qed-img", "create", "-q", "-b", raw("base"), "-F", "raw",
                    "disk.qed"], check=True)
    return Client(Server("disk.qed"), "qed")


def log_filter():
    return Client(Server(raw("logged"), plugin="file", params=["log=log"],
                         options=["--filter=blklogwrites"]), "blklogwrites")


def log_replay():
    """A log of 5000 writes."""
    server = Server(raw("replayed"), plugin="file", params=["log=replay"],
                    options=["--filter=blklogwrites"])
    handle = server.connect()
    for _ in range(5000):
        handle.pwrite(random.randbytes(512),
                      random.randrange(SIZE // 512) * 512)
    handle.shutdown()
    server.stop()
    return Moments(Server("replay", plugin="logreplay"), "logreplay")


def secondary():
    server = Secondary(raw("secondary"), "active", "hidden")
    server.start()
    return Checkpoints(server)


def primary():
    remote = Remote(raw("remote"))
    server = Primary(raw("primary"), remote.uri)
    server.start()
    return ComesAndGoes(server, remote)


def main():
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    bad = False
    with tempfile.TemporaryDirectory(prefix="memory.") as folder:
        os.chdir(folder)
        clients = [make() for make in (qed, log_filter, log_replay, secondary,
                                       primary)]
        peaks = {client: [0, 0] for client in clients}
        begin = time.monotonic()
        looked = begin
        while (share := (time.monotonic() - begin) / (60 * minutes)) < 1:
            for client in clients:
                client.turn()
                time.sleep(PAUSE)
            if time.monotonic() > looked + 0.5:
                looked = time.monotonic()
                for client, peak in peaks.items():
                    if share < WHEN[0]:
                        peak[0] = max(peak[0], resident(client.server))
                    elif share > WHEN[1]:
                        peak[1] = max(peak[1], resident(client.server))
        for client, (first, last) in peaks.items():
            grows = not first or last > first * 1.1 + 2 * MIB
            bad = bad or grows
            print(f"{'GROWS' if grows else 'flat':5} {client.name:12} "
                  f"{first / MIB:6.1f} MiB, at the end {last / MIB:6.1f} MiB, "
                  f"{client.turns} clients, {client.asked} requests",
                  flush=True)
            client.end()
    sys.exit(bad)


if __name__ == "__main__":
    main()
