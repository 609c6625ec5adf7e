#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Failing back: after a failover both sides change their roles, and only what
differs is copied.

    fail_back.py STORY [SEED]

A story is one of the functions below; its docstring says what is promised.
Whether the disks are equal is seen by their bytes, and what was copied by the
status; what may have been changed is counted here.
"""

import os
import random
import subprocess
import sys


from byte_model import Mismatch, check
from qed_server import ServerError
from qmp_client import QmpError
from replication_server import Primary, Secondary, run_story, stand_still

AREA = 65536
AREAS = 256
SIZE = AREAS * AREA


class Host:
    """A disk with a map, that is served as one side or the other."""

    def __init__(self, desk, name):
        self.desk, self.name = desk, name
        self.server = None
        self.changed = set()    # areas, since both were equal
        with open(self.path("disk"), "wb") as f:
            f.write(desk.content)

    def path(self, what):
        return os.path.join(self.desk.directory, f"{self.name}.{what}")

    @property
    def place(self):
        place = self.path("place").replace(" ", "%20")
        return f"nbd+unix:///?socket={place}"

    def serve(self, kind, *arguments, **params):
        if params.get("bitmap", "") is None:
            del params["bitmap"]
        else:
            params.setdefault("bitmap", self.path("map"))
        self.server = kind(*arguments, **params)
        self.desk.servers.append(self.server)
        new = self.path("new")
        os.symlink(self.server.socket, new)
        os.replace(new, self.path("place"))

    def secondary(self, **params):
        params.setdefault("below", ["-t", "1"])     # its clients die
        self.serve(Secondary, self.path("disk"), self.path("active"),
                   self.path("hidden"), **params)

    def primary(self, remote, **params):
        self.serve(Primary, self.path("disk"), remote.place, **params)

    def end(self, how):
        """Either with a clean end, or without."""
        if how == "kill":
            self.server.kill()
        else:
            self.server.stop()

    def write(self, areas, guest=False):
        """A few bytes in each of these areas."""
        handle = self.server.connect_export("guest" if guest else "")
        for area in areas:
            self.desk.number += 1
            handle.pwrite(f"{self.name[0]}{self.desk.number:07}".encode() * 64,
                          area * AREA + 4096 * (self.desk.number % 16))
        handle.flush()
        handle.shutdown()
        self.changed.update(areas)

    def disk(self):
        with open(self.path("disk"), "rb") as f:
            return f.read()


class Desk:
    """Two hosts with equal disks."""

    def __init__(self, directory):
        self.directory = directory
        self.servers = []
        self.number = 0
        self.rng = random.Random(sys.argv[2] if len(sys.argv) > 2 else 1)
        self.content = self.rng.randbytes(SIZE)
        self.a, self.b = Host(self, "a"), Host(self, "b")

    def end(self):
        for server in reversed(self.servers):
            if server.alive():
                server.process.send_signal(18)
                server.kill()


def areas(*numbers):
    return list(numbers)


def joint_checkpoint(primary, secondary):
    subprocess.run(["blkctl", primary.server.control_path,
                    secondary.server.control_path, "replication-checkpoint"],
                   check=True, stdout=subprocess.DEVNULL)
    check(primary.disk() == secondary.disk(), "the disks differ")
    primary.changed.clear()
    secondary.changed.clear()


def replicate(primary, secondary):
    """From the beginning."""
    secondary.secondary()
    primary.primary(secondary)
    primary.server.start()
    secondary.server.start()
    joint_checkpoint(primary, secondary)


def fail_over(desk, how_a="kill", how_b="end"):
    """A writes, of which B gets a part; B fails over; both write; both end so.
    """
    a, b = desk.a, desk.b
    replicate(a, b)
    a.write(areas(1, 2, 3))
    joint_checkpoint(a, b)
    a.write(areas(3, 4))                # arrives
    a.server.checkpoint()
    b.write(areas(10, 11), guest=True)
    stand_still(b.server.process)
    a.write(areas(4, 5, 6))             # does not
    b.server.process.send_signal(18)
    a.server.stop_replication(True)
    b.server.failover()
    b.write(areas(11, 12), guest=True)
    a.write(areas(6, 7))                # nobody has told its guest
    a.end(how_a)
    b.end(how_b)


def fail_back(old, new, **params):
    """The one that was promoted begins as a primary of the other one; what it
    sees of the copy, when all is equal."""
    wanted = old.changed | new.changed
    old.secondary(**params)
    new.primary(old)
    new.server.start()
    promised = new.disk()
    finish(old, new, promised)
    return new.server.query()["sync"]["total"] // AREA, len(wanted)


def finish(old, new, promised):
    old.server.start()
    joint_checkpoint(new, old)
    check(new.disk() == promised, "the disk that was promoted has changed")
    # And goes on.
    new.write(areas(20))
    joint_checkpoint(new, old)


def copies_only_that(desk):
    """Failing back copies what either side has changed since the checkpoint,
    whether they were killed or have ended, and nothing else."""
    fail_over(desk)
    copied, wanted = fail_back(desk.a, desk.b)
    check(copied == wanted, f"{copied} areas were copied, not {wanted}")


def whatever_ended_how(desk):
    """The same for every end of both, and to and fro."""
    for how_a, how_b in (("kill", "kill"), ("end", "end"), ("end", "kill")):
        desk.a = Host(desk, f"a {how_a} {how_b}")
        desk.b = Host(desk, f"b {how_a} {how_b}")
        fail_over(desk, how_a, how_b)
        copied, wanted = fail_back(desk.a, desk.b)
        check(copied == wanted, f"{copied} areas were copied, not {wanted}")
        # The other way: A is failed over to.
        a, b = desk.a, desk.b
        b.write(areas(30, 31))
        b.server.checkpoint()
        a.write(areas(32), guest=True)
        b.end(how_b)
        a.server.failover()
        a.write(areas(33), guest=True)
        a.end(how_a)
        copied, wanted = fail_back_reset(b, a)
        check(copied == wanted, f"back: {copied} areas, not {wanted}")
        a.end("kill")
        b.end("kill")


def fail_back_reset(old, new):
    """A disk that was promoted once has to be given up first."""
    return fail_back(old, new, recover="reset")


def old_primary_cannot_tell(desk, spoil, copied_areas=AREAS, **params):
    fail_over(desk)
    spoil(desk)
    copied, _ = fail_back(desk.a, desk.b, **params)
    check(copied == copied_areas, f"{copied} areas were copied")


def no_map(desk):
    """Of an old primary without a map everything is copied."""
    old_primary_cannot_tell(desk, lambda desk: None, bitmap=None)


def new_map(desk):
    """The same if the map was lost."""
    old_primary_cannot_tell(desk, lambda desk: os.unlink(desk.a.path("map")))


def torn_map(desk):
    """A file that is no whole map is refused, and left as it is; without it
    everything is copied."""
    fail_over(desk)
    name = desk.a.path("map")
    with open(name, "r+b") as f:
        f.truncate(4096 + 7)
        torn = f.read()
    try:
        desk.a.secondary()
    except ServerError as error:
        check("not a replication bitmap" in str(error), str(error))
    else:
        raise Mismatch("a torn map was used")
    with open(name, "rb") as f:
        check(f.read() == torn, "it has changed")
    os.unlink(name)
    copied, _ = fail_back(desk.a, desk.b)
    check(copied == AREAS, f"{copied} areas were copied")


def unknown_map(desk):
    """And if its host went down while it was in use."""
    old_primary_cannot_tell(desk, lambda desk: other_boot(desk.a))


def unknown_own_map(desk):
    """And if the host of the promoted one did."""
    fail_over(desk, how_b="kill")
    other_boot(desk.b)
    copied, _ = fail_back(desk.a, desk.b)
    check(copied == AREAS, f"{copied} areas were copied")


def other_boot(host):
    with open(host.path("map"), "r+b") as f:
        f.seek(32)
        check(f.read(36).strip(b"\0"), "no boot identifier")
        f.seek(32)
        f.write(b"0" * 36)


def must_be_refused(desk):
    """Failing back is, until sync=full says that all is to be copied."""
    desk.a.secondary()
    desk.b.primary(desk.a)
    try:
        desk.b.server.start()
    except QmpError as error:
        check("map" in str(error), str(error))
        check("sync=full" in str(error), str(error))
    else:
        raise Mismatch("it was not refused")
    promised = desk.b.disk()
    desk.b.server.start("full")
    finish(desk.a, desk.b, promised)


def map_of_another(desk):
    """The disk of another pair's primary is refused, and sync=full overwrites
    it."""
    fail_over(desk)
    c, d = Host(desk, "c"), Host(desk, "d")
    replicate(c, d)
    c.write(areas(5))
    c.end("kill")
    desk.a = c
    must_be_refused(desk)


def map_of_another_disk(desk):
    """The map of another disk is not believed: everything is copied."""
    fail_over(desk)
    c, d = Host(desk, "c"), Host(desk, "d")
    replicate(c, d)
    c.end("kill")
    os.rename(c.path("map"), desk.a.path("map"))
    copied, _ = fail_back(desk.a, desk.b)
    check(copied == AREAS, f"{copied} areas were copied")


def restored_disk(desk):
    """Nor is a map if the old primary's disk was restored meanwhile."""
    backup = desk.a.disk()
    fail_over(desk, how_a="end")
    with open(desk.a.path("disk"), "r+b") as f:
        f.write(backup)
    copied, _ = fail_back(desk.a, desk.b)
    check(copied == AREAS, f"{copied} areas were copied")


def stranger_writes(desk):
    """When others have written to the old primary's disk its map is void."""
    fail_over(desk)
    desk.a.secondary()
    handle = desk.a.server.connect_primary()
    handle.pwrite(b"x" * 512, 77 * AREA)
    handle.shutdown()
    desk.a.end("kill")
    copied, _ = fail_back(desk.a, desk.b)
    check(copied == AREAS, f"{copied} areas were copied")


def guest_of_the_old_one_writes(desk):
    """The same if its own guest has, after a stop."""
    fail_over(desk)
    desk.a.secondary()
    desk.a.server.start()
    desk.a.server.stop_replication(False)
    desk.a.write(areas(78), guest=True)
    desk.a.end("kill")
    copied, _ = fail_back(desk.a, desk.b)
    check(copied == AREAS, f"{copied} areas were copied")


def run_without_map(desk):
    """A run of either side without its map takes back what it says."""
    fail_over(desk)
    desk.b.secondary(bitmap=None)
    desk.b.write(areas(79), guest=True)
    desk.b.end("end")
    desk.b.secondary()
    desk.b.end("end")
    must_be_refused(desk)


def promoted_for_long(desk):
    """The map goes on over restarts of the promoted one, and it can be a
    primary for a while and a promoted one again."""
    fail_over(desk, how_b="kill")
    desk.b.secondary()
    desk.b.write(areas(90), guest=True)
    desk.b.end("kill")
    desk.b.primary(desk.a)
    desk.b.write(areas(91))
    desk.b.end("kill")
    desk.b.secondary()
    desk.b.write(areas(92), guest=True)
    desk.b.end("end")
    copied, wanted = fail_back(desk.a, desk.b)
    check(copied == wanted, f"{copied} areas were copied, not {wanted}")


def killed_while_copying(desk):
    """Either side may be killed in the middle of it."""
    fail_over(desk)
    promised = desk.b.disk()
    for side in "ab", "ba", "b", "a":
        desk.a.secondary(below=["-t", "1", "--filter=delay"],
                         extra=["wdelay=30ms"])
        desk.b.primary(desk.a)
        desk.b.server.start()
        desk.b.server.wait_for(
            lambda s: s["sync"]["running"] and s["sync"]["done"] > 0
            or not s["sync"]["running"], "something is copied")
        for name in side:
            getattr(desk, name).end("kill")
        for host in desk.a, desk.b:
            if host.server.alive():
                host.end("kill")
    desk.a.secondary()
    desk.b.primary(desk.a)
    desk.b.server.start()
    finish(desk.a, desk.b, promised)
    total = desk.b.server.query()["sync"]["total"] // AREA
    check(total < AREAS // 2, f"{total} areas were copied")


def interrupted_failover(desk):
    """A failover that was interrupted and finished later has a map, too."""
    a, b = desk.a, desk.b
    b.secondary(below=["-t", "1", "--filter=delay"], extra=["wdelay=100ms"])
    a.primary(b)
    a.server.start()
    b.server.start()
    joint_checkpoint(a, b)
    a.write(areas(3, 4))
    a.server.checkpoint()
    b.write(areas(*range(40, 80)), guest=True)
    a.end("kill")
    b.server.stop_replication(True)
    b.write(areas(41, 100), guest=True)
    check(b.server.query()["stage"] == "failover", "it is over")
    b.end("kill")
    b.secondary(recover="discard")
    check(b.server.query()["role"] == "promoted", str(b.server.query()))
    b.end("kill")
    copied, wanted = fail_back(a, b)
    check(copied == wanted, f"{copied} areas were copied, not {wanted}")


def any_order(desk):
    """Whatever is written when, and however each ends: the disks are equal
    afterwards, and the promoted one is as it was.  Several times to and fro.
    """
    rng = desk.rng
    primary, secondary = desk.a, desk.b
    recover = {}
    replicate(primary, secondary)

    def some():
        return rng.sample(range(AREAS), rng.randrange(6))

    for _ in range(5):
        for _ in range(rng.randrange(6)):
            what = rng.randrange(5)
            if what == 0:
                joint_checkpoint(primary, secondary)
            elif what == 1:
                secondary.write(some(), guest=True)
            elif what == 2:
                primary.server.checkpoint()
            else:
                primary.write(some())
        if rng.randrange(2):
            stand_still(secondary.server.process)
            primary.write(some())
            secondary.server.process.send_signal(18)
        if rng.randrange(2):
            primary.end(rng.choice(["kill", "end"]))
        secondary.server.command("replication-stop", failover=True,
                                 force=True)
        secondary.server.wait_for_stage("done")
        secondary.write(some(), guest=True)
        if not primary.server.alive():
            primary.primary(secondary, start="true")
        primary.write(some())
        primary.end(rng.choice(["kill", "end"]))
        secondary.end(rng.choice(["kill", "end"]))
        promised = secondary.disk()
        recover = {"recover": "reset"}
        wanted = len(primary.changed | secondary.changed)
        primary.secondary(**recover)
        secondary.primary(primary)
        secondary.server.start()
        check(secondary.disk() == promised, "the promoted disk has changed")
        primary.server.start()
        joint_checkpoint(secondary, primary)
        copied = secondary.server.query()["sync"]["total"] // AREA
        check(copied <= wanted, f"{copied} areas were copied, not {wanted}")
        primary, secondary = secondary, primary


STORIES = [copies_only_that, whatever_ended_how, no_map, new_map, torn_map,
           unknown_map, unknown_own_map, map_of_another, map_of_another_disk,
           restored_disk, stranger_writes, guest_of_the_old_one_writes,
           run_without_map, promoted_for_long, killed_while_copying,
           interrupted_failover, any_order]


if __name__ == "__main__":
    run_story(STORIES, Desk)
