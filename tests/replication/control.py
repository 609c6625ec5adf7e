#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""The replication filter's control socket, where it is more than a table.

    control.py STORY

A story is one of the functions below; its docstring says what is promised.
"""

import json
import os
import select
import signal
import socket
import subprocess
import threading
import time

import nbd

from byte_model import Mismatch, check
from qmp_client import Qmp, QmpError
from replication_server import Primary, Secondary, run_story, stand_still

SIZE = 4 << 20
CLUSTER = 65536

PREPARE = "replication-checkpoint-prepare"
COMMIT = "replication-checkpoint-commit"
ABORT = "replication-checkpoint-abort"
RELEASE = "replication-checkpoint-release"


def refused(server, name, text, **arguments):
    """The command is refused, with this text in the reason."""
    try:
        server.command(name, **arguments)
    except QmpError as error:
        check(text in str(error), f"{name}: the error is: {error}")
        return
    raise Mismatch(f"{name} is accepted")


class Desk:
    """A folder with what a story needs in it, and its servers."""

    def __init__(self, directory):
        self.directory = directory
        self.servers = []

    def path(self, name):
        return os.path.join(self.directory, name)

    def disk(self, name):
        with open(self.path(name), "wb") as f:
            f.truncate(SIZE)
        return self.path(name)

    def add(self, server):
        self.servers.append(server)
        return server

    def secondary(self, name="s", start=True, **params):
        server = self.add(Secondary(self.disk(name), self.path(name + "-a"),
                                    self.path(name + "-h"), **params))
        if start:
            server.start()
        return server

    def primary(self, remote, name="p", start=True, **params):
        server = self.add(Primary(self.disk(name), remote, **params))
        if start:
            server.start()
        return server

    def end(self):
        # A server that is killed does not wait for the others.
        for server in reversed(self.servers):
            server.kill()


def read_letter(server, export, cluster):
    handle = server.connect_export(export)
    letter = handle.pread(1, cluster * CLUSTER)
    handle.shutdown()
    return letter


class Write:
    """A write that may have to wait, and does not keep us waiting."""

    def __init__(self, server, export, cluster, letter):
        self.handle = server.connect_export(export)
        self.buffer = nbd.Buffer.from_bytearray(bytearray(letter * CLUSTER))
        self.cookie = self.handle.aio_pwrite(self.buffer, cluster * CLUSTER)

    def is_done(self, seconds):
        """Does it end within this time?"""
        deadline = time.monotonic() + seconds
        while not self.handle.aio_command_completed(self.cookie):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.handle.poll(max(1, int(left * 1000)))
        return True

    def is_held(self):
        """It waits; a moment is enough to see that."""
        return not self.is_done(0.2)

    def must_end(self):
        check(self.is_done(60), "the write is held for ever")
        self.handle.shutdown()


def blkctl(*arguments, **keys):
    return subprocess.run(["blkctl", *arguments], capture_output=True,
                          text=True, timeout=120, check=False, **keys)


def is_alive(server):
    """It answers, on the socket and on its exports."""
    check(server.alive(), "the server has ended: " + server.log())
    other = Qmp(server.control_path)
    other.command("query-replication")
    other.close()
    server.connect().shutdown()


# ---- Bad input

def raw(server, data, limit=60):
    """Send bytes on a connection of their own, return the answers."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(limit)
    s.connect(server.control_path)
    s.sendall(b'{"execute": "qmp_capabilities"}\n' + data)
    s.shutdown(socket.SHUT_WR)
    with s.makefile("rb") as f:
        lines = [json.loads(line) for line in f]
    s.close()
    return lines[2:]


def bad_input(desk):
    """Whatever is sent is answered by an error, and the server goes on."""
    server = desk.secondary()
    for data in (b"hello\n", b"{]\n", b"[]\n", b"17\n", b"{}\n",
                 b'{"execute": 3}\n', b"\0\xff\xfe\n",
                 b'{"execute": "replication-fly"}\n',
                 b'{"execute": "replication-start", "arguments": []}\n',
                 b'{"execute": "replication-start", '
                 b'"arguments": {"speed": 1}}\n',
                 b'{"execute": "replication-stop", '
                 b'"arguments": {"failover": 1}}\n',
                 b"[" * 200000 + b"\n",
                 b'{"execute": "' + b"x" * 3000000 + b'"}\n'):
        answers = raw(server, data)
        check(answers and "desc" in answers[0].get("error", {}),
              f"{data[:60]}: {answers}")
        is_alive(server)
    check(server.query()["stage"] == "running", "the stage has changed")


def deaf_client(desk):
    """A client that does not read its answers stops only itself."""
    server = desk.secondary()
    deaf = socket.socket(socket.AF_UNIX)
    deaf.settimeout(2)
    deaf.connect(server.control_path)
    deaf.sendall(b'{"execute": "qmp_capabilities"}')
    try:
        while True:
            deaf.sendall(b'{"execute": "query-replication"}' * 1000)
    except socket.timeout:
        pass
    is_alive(server)
    server.checkpoint()
    deaf.close()
    is_alive(server)


# ---- A checkpoint in two steps

def two_steps(desk):
    """A prepared checkpoint holds guests until it is committed or aborted,
    and keeps other commands out."""
    server = desk.secondary()
    other = Qmp(server.control_path)
    for end in COMMIT, ABORT:
        server.connect_export("").pwrite(b"x" * CLUSTER, 0)
        before = server.query()["checkpoints"]
        server.command(PREPARE)
        write = Write(server, "guest", 1, b"g")
        check(write.is_held(), "the guest is not held")
        for name, arguments in (
                ("replication-start", {}), ("replication-checkpoint", {}),
                ("replication-stop", {}), ("replication-stop",
                                           {"failover": False}),
                ("xen-colo-do-checkpoint", {}),
                ("xen-set-replication", {"enable": True, "primary": False}),
                ("xen-set-replication", {"enable": False,
                                         "primary": False})):
            refused(server, name, "prepared", **arguments)
        for name in PREPARE, "replication-checkpoint":
            try:
                other.command(name)
                raise Mismatch(f"{name} by another client is accepted")
            except QmpError as error:
                check("another client" in str(error), str(error))
        for name in COMMIT, ABORT:
            try:
                other.command(name)
                raise Mismatch(f"{name} by another client is accepted")
            except QmpError as error:
                check("not prepared" in str(error), str(error))
        check(write.is_held(), "the guest is not held any more")
        check(server.query()["stage"] == "running", "not running")
        server.command(PREPARE)     # once more does no harm
        server.command(end)
        write.must_end()
        refused(server, end, "not prepared")
        after = server.query()["checkpoints"]
        check(after - before == (end == COMMIT),
              f"{after - before} checkpoints")
        held = server.query()["hidden-clusters"]
        check((held > 0) == (end == ABORT), f"{end}: {held} clusters")
    other.close()


def late_commit(desk):
    """A client that is stopped holds the guest for 10 seconds at most, and
    its commit comes too late."""
    server = desk.secondary()
    server.command(PREPARE)
    write = Write(server, "guest", 1, b"g")
    write.must_end()
    refused(server, COMMIT, "not prepared")
    check(server.query()["checkpoints"] == 0, "a checkpoint was made")
    server.wait_for_message("given up")
    server.command(PREPARE)
    server.command(COMMIT)


def what_is_held(desk):
    """Who is refused meanwhile is told what is held, and what ends that."""
    server = desk.secondary()
    other = Qmp(server.control_path)
    other.command(PREPARE)
    for command in "replication-stop", PREPARE:
        refused(server, command, f"prepared by another client and waits for "
                f"{COMMIT} or -abort")
    other.command(COMMIT, release=False)
    for command in "replication-stop", PREPARE:
        refused(server, command, f"made by another client, and waits for "
                f"{RELEASE} or -abort")
    other.command(RELEASE)
    other.command("replication-take-over")
    refused(server, PREPARE, "taken over by another client")
    other.close()


def lost_client(desk):
    """A client that disconnects gives up what it has prepared."""
    server = desk.secondary()
    other = Qmp(server.control_path)
    other.command(PREPARE)
    write = Write(server, "guest", 1, b"g")
    check(write.is_held(), "the guest is not held")
    other.close()
    write.must_end()
    check("given up" not in server.log(), "it took the time limit")
    server.checkpoint()
    check(server.query()["checkpoints"] == 1, "not one checkpoint")


def failover_while_held(desk):
    """A failover does not wait for a checkpoint that is prepared."""
    server = desk.secondary()
    server.connect_export("guest").pwrite(b"g" * CLUSTER, 0)
    other = Qmp(server.control_path)
    other.command(PREPARE)
    server.failover()
    try:
        other.command(COMMIT)
        raise Mismatch("the commit is accepted")
    except QmpError as error:
        check("not prepared" in str(error), str(error))
    other.close()
    check(read_letter(server, "guest", 0) == b"g", "the guest's write is gone")


def two_disks(desk):
    """blkctl with several sockets makes a checkpoint of all, or of none."""
    servers = [desk.secondary(name) for name in ("one", "two")]
    sockets = [server.control_path for server in servers]
    for server in servers:
        server.connect_export("").pwrite(b"x" * CLUSTER, 0)
    done = blkctl(*sockets, "replication-checkpoint")
    check(done.returncode == 0, done.stderr)
    for server in servers:
        check(read_letter(server, "guest", 0) == b"x", "no checkpoint")
        server.connect_export("").pwrite(b"y" * CLUSTER, 0)

    # The second cannot: it is prepared for somebody else.
    servers[1].command(PREPARE)
    done = blkctl(*sockets, "replication-checkpoint")
    check(done.returncode == 1, f"{done.returncode}: {done.stderr}")
    check(sockets[1] in done.stderr, done.stderr)
    servers[1].command(ABORT)
    for server in servers:
        check(read_letter(server, "guest", 0) == b"x", "a checkpoint")

    # Nor one that is not there, and one that has not started.
    done = blkctl(sockets[0], desk.path("nobody"), "replication-checkpoint")
    check(done.returncode == 2, f"{done.returncode}: {done.stderr}")
    idle = desk.secondary("three", start=False)
    for order in [idle.control_path, *sockets], [*sockets, idle.control_path]:
        done = blkctl(*order, "replication-checkpoint")
        check(done.returncode == 1, f"{done.returncode}: {done.stderr}")
        check("not running" in done.stderr, done.stderr)
    for server in servers:
        check(read_letter(server, "guest", 0) == b"x", "a checkpoint")


def slow_disk(desk):
    """A disk that takes longer to prepare than the others may be held does
    not lead to a checkpoint of some."""
    pairs = []
    for name in "one", "two":
        secondary = desk.secondary(name)
        pairs.append((desk.primary(secondary.uri, name + "-p"), secondary))
    for primary, _ in pairs:
        handle = primary.connect()
        handle.pwrite(b"x" * CLUSTER, 0)
        handle.shutdown()
    slow = pairs[1][1].process
    stand_still(slow)
    done = []
    checkpoint = threading.Thread(target=lambda: done.append(
        blkctl(*(primary.control_path for primary, _ in pairs),
               "replication-checkpoint")))
    checkpoint.start()
    try:
        # The first has been held for as long as it may be.
        pairs[0][0].wait_for_message("given up")
    finally:
        slow.send_signal(signal.SIGCONT)
        checkpoint.join()
    check(done and done[0].returncode == 0, str(done))
    for primary, _ in pairs:
        check(primary.query()["checkpoints"] == 1, str(primary.query()))


def both_sides(desk):
    """Checkpoints of both sides, in either order, while the primary's guest
    writes: each leaves the secondary's guest with whole writes of one
    moment."""
    secondary = desk.secondary()
    primary = desk.primary(secondary.uri)
    stop = threading.Event()
    failed = []

    # Each round writes its number to all clusters, in order.
    def guest():
        handle = primary.connect()
        number = 0
        try:
            while not stop.is_set():
                number = number % 250 + 1
                for cluster in range(SIZE // CLUSTER):
                    handle.pwrite(bytes([number]) * CLUSTER,
                                  cluster * CLUSTER)
        except nbd.Error as error:
            failed.append(error)

    writer = threading.Thread(target=guest)
    writer.start()
    try:
        for number in range(20):
            sockets = [primary.control_path, secondary.control_path]
            if number % 2:
                sockets.reverse()
            done = blkctl(*sockets, "replication-checkpoint")
            check(done.returncode == 0, done.stderr)
            data = secondary.connect_guest().pread(SIZE, 0)
            numbers = [data[i] for i in range(0, SIZE, CLUSTER)]
            steps = [i for i in range(1, len(numbers))
                     if numbers[i] != numbers[i - 1]]
            check(len(steps) <= 1, f"not of one moment: {numbers}")
            for i in range(0, SIZE, CLUSTER):
                cluster = data[i:i + CLUSTER]
                check(cluster == cluster[:1] * CLUSTER,
                      f"half a write in cluster {i // CLUSTER}")
    finally:
        stop.set()
        writer.join()
    check(not failed, f"the primary's guest: {failed}")
    for server in primary, secondary:
        check(server.query()["checkpoints"] == 20, str(server.query()))
        check(not server.query()["error"], str(server.query()))


# ---- The end

def clean_end(desk):
    """A server that is told to end while replication runs stops it, and
    leaves nothing behind: the disk has the primary's data."""
    secondary = desk.secondary()
    secondary.connect_export("").pwrite(b"p" * CLUSTER, 0)
    secondary.connect_guest().pwrite(b"g" * CLUSTER, 0)
    secondary.qmp.close()
    control = secondary.control_path
    secondary.stop()
    check(not os.path.exists(control), "the control socket is left")
    with open(desk.path("s"), "rb") as f:
        check(f.read(CLUSTER) == b"p" * CLUSTER, "not the primary's data")
    # No recovery is asked for.
    again = desk.add(Secondary(desk.path("s"), desk.path("s-a"),
                               desk.path("s-h")))
    again.start()
    check(read_letter(again, "guest", 0) == b"p", "not the primary's data")


def end_while_held(desk):
    """A prepared checkpoint does not keep a server from ending."""
    server = desk.secondary()
    server.command(PREPARE)
    server.stop()
    with_client = desk.secondary("t")
    with_client.command(PREPARE)
    write = Write(with_client, "guest", 1, b"g")
    check(write.is_held(), "the guest is not held")
    with_client.process.send_signal(signal.SIGTERM)
    write.must_end()
    check(with_client.process.wait(60) == 0, with_client.log())


def has_answer(client):
    """Something has been said to it; a moment is enough to see that."""
    return bool(select.select([client], [], [], 0.2)[0])


def waiting_checkpoint(primary, secondary):
    """A client whose checkpoint waits for a secondary that is stopped."""
    stand_still(secondary.process)
    handle = primary.connect()
    handle.pwrite(b"p" * CLUSTER, 0)
    handle.shutdown()
    client = Qmp(primary.control_path)
    client.send("replication-checkpoint", {})
    # Most commands wait for each other.  That it is not just slow to answer
    # is seen by the queries that it answers meanwhile.
    while True:
        other = Qmp(primary.control_path)
        other.send(ABORT, {})
        for _ in range(4):
            primary.query()
            if has_answer(other):
                break
        else:
            return client
        other.close()


def must_be_interrupted(client):
    """The checkpoint was told to end, and did not just wait for the remote's
    limit."""
    try:
        client.answer()
        raise Mismatch("the checkpoint was made")
    except QmpError as error:
        check("interrupted" in str(error), f"the error is: {error}")
    client.close()


def failover_while_waiting(desk):
    """A failover of the primary does not wait for a checkpoint that waits
    for its remote, nor does a query."""
    for command, arguments in (
            ("replication-stop", {"failover": True}),
            ("xen-set-replication", {"enable": False, "primary": True,
                                     "failover": True})):
        name = command[:3]
        secondary = desk.secondary(name)
        primary = desk.primary(secondary.uri, name + "-p")
        client = waiting_checkpoint(primary, secondary)
        check(primary.query()["stage"] == "running", str(primary.query()))
        check(not primary.command("query-xen-replication-status")["error"],
              str(primary.query()))
        check(not has_answer(client), "the checkpoint does not wait")
        # What will be refused does not disturb it.
        other = Qmp(primary.control_path)
        other.send("xen-set-replication", {"enable": False, "primary": False,
                                           "failover": True})
        check(not has_answer(client), "the checkpoint does not wait")
        primary.command(command, **arguments)
        must_be_interrupted(client)
        other.close()
        check(primary.query()["stage"] == "done", str(primary.query()))
        secondary.process.send_signal(signal.SIGCONT)


def end_while_waiting(desk):
    """A checkpoint that waits for its remote does not keep a server from
    ending."""
    secondary = desk.secondary()
    primary = desk.primary(secondary.uri)
    client = waiting_checkpoint(primary, secondary)
    try:
        primary.stop()
        must_be_interrupted(client)
    finally:
        secondary.process.send_signal(signal.SIGCONT)


STORIES = [bad_input, deaf_client, two_steps, late_commit, lost_client,
           what_is_held,
           failover_while_held, two_disks, slow_disk, both_sides, clean_end,
           end_while_held, end_while_waiting, failover_while_waiting]


run_story(STORIES, Desk)
