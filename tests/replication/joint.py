#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Checkpoints and failovers of several disks of one guest.

    joint.py STORY

A story is one of the functions below; its docstring says what is promised.
The judge is the content of the disks' files.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time

from byte_model import Mismatch, check
from qmp_client import Qmp, QmpError
from replication_server import Secondary

SIZE = 4 << 20
CLUSTER = 65536
NAMES = ("one", "two", "three")

STEP = "replication-checkpoint-"


def blkctl(*arguments):
    return subprocess.run(["blkctl", *arguments], capture_output=True,
                          check=False, text=True, timeout=60)


class Desk:
    """Secondaries in a folder of their own."""

    def __init__(self, directory, nr=2):
        self.directory = directory
        self.servers = []
        for name in NAMES[:nr]:
            with open(self.path(name), "wb") as file:
                file.truncate(SIZE)
            self.servers.append(self.begin(name))

    def path(self, name):
        return os.path.join(self.directory, name)

    def begin(self, name, start=True, **params):
        server = Secondary(self.path(name), self.path(name + "-a"),
                           self.path(name + "-h"), **params)
        if start:
            server.start()
        return server

    @property
    def sockets(self):
        return [server.control_path for server in self.servers]

    def write(self, letter, servers=None):
        """The primaries write to all of the disks."""
        for server in servers or self.servers:
            handle = server.connect_primary()
            handle.pwrite(letter * CLUSTER, 0)
            handle.shutdown()

    def checkpoint(self):
        done = blkctl(*self.sockets, "replication-checkpoint")
        check(done.returncode == 0, done.stderr)

    def failover(self, *arguments):
        return blkctl(*self.sockets, "replication-stop", "failover=true",
                      *arguments)

    def letters(self):
        """What stands on the disks when the failover is complete."""
        letters = []
        for server, name in zip(self.servers, NAMES):
            server.wait_for_stage("done")
            with open(self.path(name), "rb") as file:
                content = file.read(CLUSTER)
            check(content == content[:1] * CLUSTER, f"{name} is a mixture")
            letters.append(content[:1])
        return b"".join(letters)

    def ids(self):
        return [server.query().get("checkpoint-id")
                for server in self.servers]

    def end(self):
        for server in self.servers:
            server.kill()


ID = "0123456789abcdef0123456789abcdef"


def die_after(desk, nr):
    """A client makes a joint checkpoint and is gone after so many steps."""
    clients = [Qmp(path) for path in desk.sockets]
    steps = [(client, STEP + step, arguments) for step, arguments in
             (("prepare", {"id": ID}), ("commit", {"release": False}),
              ("release", {})) for client in clients]
    for client, step, arguments in steps[:nr]:
        client.command(step, **arguments)
    for client in clients:
        client.close()


def every_death(desk):
    """However far a joint checkpoint has come when whoever makes it dies, a
    failover of all finds them at the same moment."""
    letters = []
    for nr in range(7):
        with tempfile.TemporaryDirectory() as directory:
            inner = Desk(directory)
            try:
                inner.write(b"a")
                inner.checkpoint()
                inner.write(b"b")
                die_after(inner, nr)
                # What comes later does not matter.
                inner.write(b"c")
                done = inner.failover()
                check(done.returncode == 0, f"{nr}: {done.stderr}")
                letters.append(inner.letters())
                ids = inner.ids()
                check(ids[0] == ids[1], f"{nr}: {ids}")
                check((ids[0] == ID) == (letters[-1] == b"bb"), f"{nr}")
            finally:
                inner.end()
    # At one moment each, and the new one if anybody went on from it.
    check(all(both in (b"aa", b"bb") for both in letters), str(letters))
    check(letters[0] == b"aa" and letters[5:] == [b"bb", b"bb"],
          str(letters))


def one_commits(desk):
    """One that alone has committed can go back, or stays if its guest has
    written since; then nothing is failed over, and it is said which is
    where."""
    desk.write(b"a")
    desk.checkpoint()
    first = desk.ids()[0]
    desk.write(b"b")
    die_after(desk, 3)
    status = desk.servers[0].query()
    check(status["checkpoint-id"] == ID, str(status))
    check(status["checkpoint-before"] == first, str(status))
    check(desk.ids()[1] == first, str(desk.ids()))
    guest = desk.servers[0].connect_guest()
    check(guest.pread(1, 0) == b"b", "the checkpoint was not made")
    guest.pwrite(b"g" * CLUSTER, CLUSTER)
    guest.flush()
    done = desk.failover()
    check(done.returncode == 1, str(done))
    check(f"{desk.sockets[0]}: at checkpoint {ID}" in done.stderr
          and f"{desk.sockets[1]}: at checkpoint {first}" in done.stderr,
          done.stderr)
    try:
        desk.servers[0].command("replication-stop", failover=True,
                                checkpoint=first)
        raise Mismatch("the guest's write is dropped")
    except QmpError as error:
        check("its guest has written" in str(error), str(error))
    for server in desk.servers:
        check(server.query()["stage"] == "running", "failed over")
    check(guest.pread(1, CLUSTER) == b"g", "the guest's write is gone")


def in_doubt_again(desk):
    """A new joint checkpoint ends all doubt, and leaves no files behind."""
    desk.write(b"a")
    desk.checkpoint()
    desk.write(b"b")
    die_after(desk, 3)
    # The server notices in its own time that the client is gone.
    deadline = time.monotonic() + 60
    while len(os.listdir(desk.directory)) != 7:
        check(time.monotonic() < deadline, "nothing is kept")
        time.sleep(0.01)
    desk.write(b"c")
    desk.checkpoint()
    check(len(os.listdir(desk.directory)) == 6, "what is kept stays")
    check(len(set(desk.ids())) == 1, str(desk.ids()))
    done = desk.failover()
    check(done.returncode == 0, done.stderr)
    check(desk.letters() == b"cc", "not at the checkpoint")
    # Once more is no harm.
    done = desk.failover()
    check(done.returncode == 0, done.stderr)


def different_checkpoints(desk):
    """Disks at different checkpoints are not failed over together, and it is
    said which is where; force fails each over."""
    desk.write(b"a")
    desk.checkpoint()
    desk.servers[1].checkpoint()
    ids = desk.ids()
    check(ids[0] != ids[1], str(ids))
    done = desk.failover()
    check(done.returncode == 1, str(done))
    for server, its_id in zip(desk.servers, ids):
        check(f"{server.control_path}: at checkpoint {its_id} of 20"
              in done.stderr, done.stderr)
        check(server.query()["stage"] == "running", "failed over")
    # Neither is one alone, if it is asked for another one.
    try:
        desk.servers[1].command("replication-stop", failover=True,
                                checkpoint=ids[0])
        raise Mismatch("a failover to another checkpoint")
    except QmpError as error:
        check(ids[1] in str(error), str(error))
    done = desk.failover("force=true")
    check(done.returncode == 0, done.stderr)
    check(desk.letters() == b"aa", "not failed over")


def stopped_client(desk):
    """A client that stands still in the middle of a checkpoint does not keep
    a failover of all from finding one moment."""
    desk.write(b"a")
    desk.checkpoint()
    desk.write(b"b")
    clients = [Qmp(path) for path in desk.sockets]
    for client in clients:
        client.command(STEP + "prepare", id=ID)
    clients[0].command(STEP + "commit", release=False)
    done = desk.failover()
    check(done.returncode == 0, done.stderr)
    check(desk.letters() == b"aa", "not at the checkpoint of both")
    for client, step in (clients[0], "release"), (clients[1], "commit"):
        try:
            client.command(STEP + step)
            raise Mismatch(f"a late {step} is accepted")
        except QmpError as error:
            check("given up" in str(error), str(error))


def promoted_member(desk):
    """There is no checkpoint of several disks with one that was promoted."""
    desk.write(b"a")
    desk.checkpoint()
    desk.servers[0].failover()
    before = desk.ids()
    done = blkctl(*desk.sockets, "replication-checkpoint")
    check(done.returncode == 1, str(done))
    check(desk.ids() == before, "a checkpoint of one disk alone")
    done = desk.failover()
    check(done.returncode == 0, done.stderr)
    check(desk.letters() == b"aa", "not at the same")


def killed_servers(desk):
    """After a rollback the note says of which checkpoint the disk is, also
    if the server was killed in the middle of one."""
    desk.write(b"a")
    desk.checkpoint()
    first = desk.ids()[0]
    desk.write(b"b")
    for nr, letter, its_id in (2, b"a", first), (4, b"b", ID):
        clients = [Qmp(path) for path in desk.sockets]
        for client in clients:
            client.command(STEP + "prepare", id=ID)
        if nr > 2:
            for client in clients:
                client.command(STEP + "commit", release=False)
        for i, name in enumerate(NAMES[:2]):
            # Or it would see its clients hang up.
            desk.servers[i].process.send_signal(signal.SIGKILL)
            desk.servers[i].kill()
            desk.servers[i] = desk.begin(name, start=False,
                                         recover="rollback")
            with open(desk.path(name), "rb") as file:
                check(file.read(1) == letter, f"{nr}: {name}")
        check(desk.ids() == [its_id] * 2, f"{nr}: {desk.ids()}")
        # A disk that is written to is of no checkpoint.
        desk.write(b"x")
        check(desk.ids() == [None] * 2, f"{nr}: {desk.ids()}")
        if nr == 2:
            for server in desk.servers:
                server.start()
            desk.write(b"a")
            desk.checkpoint()
            desk.write(b"b")


STORIES = [every_death, one_commits, in_doubt_again, different_checkpoints,
           stopped_client, promoted_member, killed_servers]


def main():
    story = {story.__name__: story for story in STORIES}[sys.argv[1]]
    with tempfile.TemporaryDirectory() as directory:
        desk = Desk(directory)
        try:
            story(desk)
        except BaseException:
            for server in desk.servers:
                print(server.log(), file=sys.stderr)
            raise
        finally:
            desk.end()


if __name__ == "__main__":
    main()
