#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""The tables of stages and commands of the replication filter.

    table.py io|commands MODE [STAGE...]

MODE is secondary, remote (a primary with a disk of its own) or forwarder;
STAGE is one that the mode has, as in WORLDS (all by default).  io reads and
writes on every export in every stage; commands gives every command in every
stage, under our names and QEMU's, looks at the answer and at the stage
after it, and then does the same as io.

What must come out stands in the tables below, as in the manual page, and in
a model of the disks: arrays of one letter a cluster.
"""

import errno
import os
import shlex
import sys
import tempfile

import nbd

from byte_model import check
from qmp_client import QmpError
from replication_server import Forwarder, Primary, Secondary

CLUSTER = 65536
CLUSTERS = 16
SIZE = CLUSTERS * CLUSTER

NOT_RUNNING = "Block replication is not running"
RUNNING_OR_DONE = "Block replication is running or done"

# ---- The table of stages.  For each export: what it reads, and which of the
# disks of the model a write changes.  None is EIO.

IO = {
    "secondary none": {"guest": (None, None), "": ("disk", ["disk"])},
    "secondary running": {"guest": ("guest", ["guest"]),
                          "": ("disk", ["disk"])},
    "secondary failover": {"guest": ("guest", ["guest"]), "": (None, None)},
    "secondary failover-failed": {"guest": ("guest", ["guest"]),
                                  "": (None, None)},
    "secondary stopped": {"guest": ("disk", ["disk"]),
                          "": ("disk", ["disk"])},
    "secondary promoted": {"guest": ("guest", ["guest"]), "": (None, None)},
    "remote none": {"": ("disk", ["disk"])},
    "remote running": {"": ("disk", ["disk", "remote"])},
    "remote stopped": {"": ("disk", ["disk"])},
    "forwarder none": {"": (None, None)},
    "forwarder running": {"": (None, ["remote"])},
    "forwarder stopped": {"": (None, None)},
}

# What query-replication calls them.
STAGES = {"stopped": "done", "promoted": "done"}

# What the status says after a failover that failed.
COMMIT_FAILED = "committing the buffers into the secondary disk: Input/output"

# ---- The table of commands.  In each stage: None if the command is accepted
# and changes nothing, the name of the stage after it, or the error in a
# list.  First QEMU's commands, then where ours say more than "accepted".

COMMANDS = {
    "start": {
        "none": "running",
        "running": [RUNNING_OR_DONE],
        "failover-failed": [COMMIT_FAILED],
    },
    "checkpoint": {
        "secondary none": ["not running"],
        "secondary running": "running",
        "failover-failed": [COMMIT_FAILED],
    },
    "stop": {
        "none": [NOT_RUNNING],
        "running": "stopped",
        "failover-failed": [COMMIT_FAILED],
    },
    "failover": {
        "none": [NOT_RUNNING],
        "secondary running": "promoted",
        "running": "stopped",
        "failover-failed": [NOT_RUNNING],
    },
}


OURS = {
    "start": {
        "stopped": "running",
        "secondary promoted": ["was promoted by a failover"],
    },
    "checkpoint": {
        "remote none": ["not running"],
        "remote stopped": ["was stopped"],
        "forwarder none": ["not running"],
        "forwarder stopped": ["was stopped"],
    },
}


def expected(command, mode, stage, ours):
    tables = [OURS.get(command, {})] if ours else []
    for table in tables + [COMMANDS[command]]:
        for key in f"{mode} {stage}", stage:
            if key in table:
                return table[key]
    return None


def is_eio(function, *arguments):
    try:
        function(*arguments)
    except nbd.Error as error:
        check(error.errnum == errno.EIO, f"not EIO: {error}")
        return True
    return False


def letters(data):
    """A letter for each cluster, ? if its bytes differ."""
    return "".join(chr(c[0]) if c == c[:1] * CLUSTER else "?"
                   for c in (data[i:i + CLUSTER]
                             for i in range(0, len(data), CLUSTER)))


class World:
    """Servers in a stage, and the model of what their disks hold."""

    def __init__(self, stage, directory):
        self.stage = stage
        self.directory = directory
        self.extra = []         # other servers
        self.model = {}         # a list of letters for each disk
        self.next_cluster = 6   # for the writes of check_io

    def path(self, name):
        return os.path.join(self.directory, name)

    def make_disk(self, name, letter):
        with open(self.path(name), "wb") as f:
            f.write(letter.encode() * SIZE)
        return self.path(name)

    def end(self):
        self.server.kill()
        for server in self.extra:
            server.kill()

    def write(self, export, cluster, letter):
        handle = self.server.connect_export(export)
        handle.pwrite(letter.encode() * CLUSTER, cluster * CLUSTER)
        handle.shutdown()

    def note(self, disks, cluster, letter):
        for disk in disks:
            self.model[disk][cluster] = letter

    def query_stage(self):
        return self.server.query()["stage"]

    def check_stage(self):
        status = self.server.query()
        want = STAGES.get(self.stage, self.stage)
        check(status["stage"] == want,
              f"stage {status['stage']}, not {want}")
        check(status["mode"] == self.mode, f"mode {status['mode']}")
        check(status["error"] == (self.stage == "failover-failed"),
              f"error: {status}")
        if self.stage == "none":
            check(status.get("desc") == NOT_RUNNING, f"desc: {status}")
        if self.stage == "failover-failed":
            check(COMMIT_FAILED in status["desc"], f"desc: {status}")
        qemus = self.server.command("query-xen-replication-status")
        want = {k: status[k] for k in ("error", "desc") if k in status}
        want["error"] |= self.stage == "none"
        check(qemus == want, f"QEMU's status: {qemus}")

    def check_io(self):
        """Read and write on every export."""
        for export, (reads, writes) in IO[f"{self.name} {self.stage}"].items():
            what = f"export '{export}'"
            handle = self.server.connect_export(export)
            if reads is None:
                check(is_eio(handle.pread, CLUSTER, 0), f"{what} can be read")
            else:
                got = letters(handle.pread(SIZE, 0))
                want = "".join(self.model[reads])
                check(got == want, f"{what} reads {got}, not {want}")
            # Nobody waits for what cannot come; what fails changes nothing.
            cluster = self.next_cluster
            self.next_cluster += 1
            data = b"W" * CLUSTER
            if writes is None:
                check(is_eio(handle.pwrite, data, cluster * CLUSTER),
                      f"{what} can be written")
            else:
                handle.pwrite(data, cluster * CLUSTER)
                handle.flush()
                self.note(writes, cluster, "W")
            handle.shutdown()
        self.check_disks()

    def check_file(self, disk, name):
        with open(self.path(name), "rb") as f:
            got = letters(f.read())
        want = "".join(self.model[disk])
        check(got == want, f"{name} holds {got}, not {want}")


class SecondaryWorld(World):
    """A secondary.  From running on the primary has written p to the
    clusters 1 and 2, and the guest g to 2 and 3."""

    name = mode = "secondary"
    stages = ("none", "running", "failover", "failover-failed", "stopped",
              "promoted")

    def __init__(self, stage, directory):
        super().__init__(stage, directory)
        disk = self.make_disk("disk", "d")
        self.model["disk"] = list("d" * CLUSTERS)
        self.model["guest"] = list("d" * CLUSTERS)
        if stage == "failover":
            plugin = self.holding_disk(disk)
        elif stage == "failover-failed":
            plugin = self.failing_disk(disk)
        else:
            plugin = {}
        self.server = Secondary(plugin.pop("image", disk),
                                self.path("active"), self.path("hidden"),
                                **plugin)
        self.reach()

    # Writes to cluster 2 wait as long as there is a file "hold".
    def holding_disk(self, disk):
        disk = shlex.quote(disk)
        hold = shlex.quote(self.path("hold"))
        return {
            "plugin": "eval",
            "image": f"get_size=echo {SIZE}",
            "extra": [
                "thread_model=echo parallel",
                f"pread=dd if={disk} iflag=skip_bytes,count_bytes bs=64k "
                "skip=$4 count=$3 status=none",
                f"pwrite=while [ $4 = {2 * CLUSTER} ] && [ -e {hold} ]; do "
                f"sleep 0.05; done; dd of={disk} conv=notrunc "
                "oflag=seek_bytes iflag=fullblock bs=64k seek=$4 status=none",
                "can_write=true", "can_flush=true", "flush=true",
            ]}

    # Writes fail as long as there is a file "fail".
    def failing_disk(self, disk):
        extra = []
        for call in "pwrite", "zero":
            extra += [f"error-{call}-rate=100%",
                      f"error-{call}-file={self.path('fail')}"]
        return {"below": ["--filter=error"], "extra": extra}

    def touch(self, name):
        with open(self.path(name), "wb"):
            pass

    def reach(self):
        if self.stage == "none":
            return
        self.server.start()
        self.fill()
        if self.stage == "stopped":
            self.server.stop_replication(False)
            self.after("stopped")
        elif self.stage == "promoted":
            self.server.failover()
            self.after("promoted")
        elif self.stage == "failover":
            self.touch("hold")
            self.server.stop_replication(True)
        elif self.stage == "failover-failed":
            self.touch("fail")
            self.server.stop_replication(True)
            self.server.wait_for_stage("failover-failed")
            os.unlink(self.path("fail"))

    def fill(self):
        for cluster in 1, 2:
            self.write("", cluster, "p")
            self.note(["disk"], cluster, "p")
        for cluster in 2, 3:
            self.write("guest", cluster, "g")
            self.note(["guest"], cluster, "g")

    def after(self, stage):
        """The model after a command that led here."""
        if stage == "running" and self.stage == "none":
            self.model["guest"] = list(self.model["disk"])
        elif stage in ("running", "stopped"):
            self.model["guest"] = list(self.model["disk"])
        elif stage == "promoted":
            self.server.wait_for_stage("done")
            self.model["disk"] = self.model["guest"]
        self.stage = stage

    def check_disks(self):
        if self.stage not in ("failover", "failover-failed"):
            self.check_file("disk", "disk")

    def end_well(self):
        """A failover that was held ends with the guest's disk."""
        if self.stage == "failover":
            os.unlink(self.path("hold"))
            self.after("promoted")
            self.check_stage()
            self.check_io()


class PrimaryWorld(World):
    """A primary of either kind, with a remote that takes everything."""

    mode = "primary"
    stages = ("none", "running", "stopped")

    def __init__(self, stage, directory):
        super().__init__(stage, directory)
        self.make_disk("disk", "d")
        self.make_disk("remote", "d")
        self.model = {"disk": list("d" * CLUSTERS),
                      "remote": list("d" * CLUSTERS)}
        remote = Secondary(self.path("remote"), self.path("active"),
                           self.path("hidden"))
        self.extra.append(remote)
        self.server = self.make_server(remote.uri)
        if stage in ("running", "stopped"):
            self.server.start()
            self.write("", 1, "p")
            self.note(IO[f"{self.name} running"][""][1], 1, "p")
            self.server.checkpoint()
        if stage == "stopped":
            self.server.stop_replication(False)

    def after(self, stage):
        self.stage = stage

    def check_disks(self):
        if self.stage == "running":
            self.server.checkpoint()
        self.check_file("disk", "disk")
        self.check_file("remote", "remote")

    def end_well(self):
        pass


class RemoteWorld(PrimaryWorld):
    """With a disk of its own."""

    name = "remote"

    def make_server(self, uri):
        return Primary(self.path("disk"), uri)


class ForwarderWorld(PrimaryWorld):
    """Over the nbd plugin."""

    name = "forwarder"

    def make_server(self, uri):
        return Forwarder(uri)


WORLDS = {world.name: world
          for world in (SecondaryWorld, RemoteWorld, ForwarderWorld)}


def ours(command):
    if command == "start":
        return "replication-start", {}
    if command == "checkpoint":
        return "replication-checkpoint", {}
    return "replication-stop", {"failover": command == "failover"}


def qemus(command, mode):
    primary = mode == "primary"
    if command == "checkpoint":
        return "xen-colo-do-checkpoint", {}
    if command == "start":
        return "xen-set-replication", {"enable": True, "primary": primary}
    return "xen-set-replication", {"enable": False, "primary": primary,
                                   "failover": command == "failover"}


def give(world, name, arguments, want):
    """Give a command and look at the answer."""
    try:
        answer = world.server.command(name, **arguments)
    except QmpError as error:
        check(isinstance(want, list), f"refused: {error}")
        check(want[0] in str(error), f"the error is: {error}")
        return
    check(not isinstance(want, list), "accepted")
    check(answer == {}, f"the answer is {answer}")
    if want is not None:
        world.after(want)


def give_wrong(world):
    """Commands that no stage accepts; the wrong mode is ignored when all is
    over, since QEMU's tools call a promoted secondary so."""
    other = {"primary": "secondary", "secondary": "primary"}[world.mode]
    over = world.query_stage() in ("failover", "done")
    for enable in False, True:
        try:
            world.server.command("xen-set-replication", enable=enable,
                                 primary=world.mode != "primary")
            check(over, "the wrong mode is accepted")
        except QmpError as error:
            check(not over and world.mode in str(error) and
                  "primary" in str(error), f"wrong mode {other}: {error}")
    for name, arguments, want in (
            ("xen-set-replication",
             {"enable": True, "primary": world.mode == "primary",
              "failover": True},
             "Parameter 'failover' is only for stopping replication"),
            ("replication-start", {"sync": "half"}, "half"),
            ("replication-start", {"sync": True}, "sync"),
            ("replication-stop", {"failover": "yes"}, "failover"),
            ("xen-set-replication", {"primary": True}, "enable")):
        give(world, name, arguments, [want])
    if world.name != "remote":
        give(world, "replication-start", {"sync": "full"}, ["sync=full"])


def run(world_class, stage, *commands):
    """In a new world of this stage give one command, then look."""
    with tempfile.TemporaryDirectory(prefix="table.") as directory:
        world = world_class(stage, directory)
        try:
            world.check_stage()
            for name, arguments, want in commands:
                give(world, name, arguments, want)
                world.check_stage()
            world.check_io()
            world.check_stage()
            if commands:
                give_wrong(world)
                world.check_stage()
            world.end_well()
        except Exception:
            print(world.server.log(), file=sys.stderr)
            raise
        finally:
            world.end()


def run_commands(world_class, stage):
    """Returns how many commands failed."""
    failures = 0
    for command in COMMANDS:
        for is_ours, (name, arguments) in (
                (True, ours(command)),
                (False, qemus(command, world_class.mode))):
            want = expected(command, world_class.name, stage, is_ours)
            what = f"{world_class.name} {stage}: {name} {arguments}"
            print(what, "->", want)
            try:
                run(world_class, stage, (name, arguments, want))
            except Exception as error:
                print(f"{what}: {error}", file=sys.stderr)
                failures += 1
    return failures


def main():
    what, mode, *stages = sys.argv[1:]
    world_class = WORLDS[mode]
    failures = 0
    for stage in stages or world_class.stages:
        if what == "io":
            print(mode, stage)
            run(world_class, stage)
        else:
            failures += run_commands(world_class, stage)
    sys.exit(failures > 0)


main()
