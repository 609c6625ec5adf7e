#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""The history of a secondary's disk, and primaries that learn of it.

    history.py STORY

A story is one of the functions below; its docstring says what is promised.
"""

import os

import nbd

from byte_model import check
from replication_server import Primary, Secondary, run_story

SIZE = 4 << 20
CLUSTER = 65536
CHANGED = "rolled back"         # in the error of a primary that has noticed


class Pair:
    """A secondary that can be restarted at the same place, and a primary."""

    def __init__(self, directory):
        self.directory = directory
        self.servers = []
        for name in "p", "s":
            with open(self.path(name), "wb") as f:
                f.truncate(SIZE)
        self.place = self.path("place")
        self.secondary = None
        self.primary = None
        self.start_secondary()

    def path(self, name):
        return os.path.join(self.directory, name)

    def start_secondary(self, **params):
        self.secondary = Secondary(self.path("s"), self.path("a"),
                                   self.path("h"), **params)
        self.servers.append(self.secondary)
        # It makes its socket elsewhere.
        os.symlink(self.secondary.socket, self.path("new"))
        os.replace(self.path("new"), self.place)

    def start_primary(self, **params):
        self.primary = Primary(self.path("p"),
                               f"nbd+unix:///?socket={self.place}", **params)
        self.servers.append(self.primary)
        self.primary.start()

    def history(self):
        """What the secondary tells; nothing else of it may change."""
        handle = nbd.NBD()
        handle.set_full_info(True)
        handle.connect_uri(self.secondary.uri_of())
        description = handle.get_export_description()
        handle.shutdown()
        before, _, history = description.partition("; history ")
        check("for the primary's writes" in before and len(history) == 32,
              description)
        return history

    def write(self, cluster, letter):
        handle = self.primary.connect()
        handle.pwrite(letter * CLUSTER, cluster * CLUSTER)
        handle.shutdown()

    def file(self, name):
        with open(self.path(name), "rb") as f:
            return f.read()

    def connected(self):
        self.primary.wait_for(lambda s: s["remote-connected"], "connected")

    def must_be_equal(self):
        self.primary.checkpoint()
        check(self.file("p") == self.file("s"), "the disks differ")

    def error(self):
        status = self.primary.query()
        return status["desc"] if status["error"] else ""

    def end(self):
        for server in reversed(self.servers):
            if server.alive():
                server.kill()


def roll_back(pair):
    """What was on both sides is on the secondary no more."""
    pair.start_primary()
    pair.secondary.start()
    pair.write(0, b"a")
    pair.primary.checkpoint()
    pair.secondary.checkpoint()
    pair.write(0, b"b")
    pair.primary.checkpoint()
    check(pair.file("s")[:1] == b"b", "not at the secondary")
    pair.secondary.kill()


def rollback_is_noticed(pair):
    """A primary that goes on notices that its secondary was rolled back, says
    so, and copies the disk again."""
    roll_back(pair)
    pair.start_secondary(recover="rollback")
    check(pair.file("s")[:1] == b"a", "not rolled back")
    pair.primary.wait_for(lambda s: CHANGED in s.get("desc", ""), "noticed")
    check("all of it is copied" in pair.primary.log(), pair.primary.log())
    pair.must_be_equal()


def rollback_is_noticed_after_restart(pair):
    """So does one with a bitmap that is started again; and one that has
    copied everything knows the disk from then on."""
    pair.start_primary(bitmap=pair.path("bitmap"))
    pair.primary.stop()
    roll_back_with_bitmap(pair)
    pair.start_secondary(recover="rollback")
    check(pair.file("s")[:1] == b"a", "not rolled back")
    pair.start_primary(bitmap=pair.path("bitmap"))
    check(CHANGED in pair.error(), str(pair.primary.query()))
    pair.must_be_equal()
    pair.primary.stop()
    pair.start_primary(bitmap=pair.path("bitmap"))
    check(pair.error() == "", str(pair.primary.query()))


def roll_back_with_bitmap(pair):
    pair.start_primary(bitmap=pair.path("bitmap"))
    check(pair.error() == "", str(pair.primary.query()))
    pair.secondary.start()
    pair.write(0, b"a")
    pair.primary.checkpoint()
    pair.secondary.checkpoint()
    pair.write(0, b"b")
    pair.primary.checkpoint()
    pair.primary.stop()
    pair.secondary.kill()


def killed_primary(pair):
    """A primary with a bitmap that is killed before it has copied everything
    again has not forgotten that it must."""
    pair.start_primary(bitmap=pair.path("bitmap"))
    pair.primary.stop()
    roll_back_with_bitmap(pair)
    # The copy does not get far.
    pair.start_secondary(
        recover="rollback", below=["--filter=error"],
        extra=["error-pwrite=EIO", "error-pwrite-rate=1",
               f"error-pwrite-file={pair.path('fault')}"])
    with open(pair.path("fault"), "wb"):
        pair.start_primary(bitmap=pair.path("bitmap"))
    check(pair.error() != "", str(pair.primary.query()))
    pair.primary.kill()
    os.unlink(pair.path("fault"))
    pair.start_primary(bitmap=pair.path("bitmap"))
    pair.must_be_equal()


def ordinary_restarts(pair):
    """The history stays the same as long as only the primary writes, so
    nothing is copied without need."""
    first = pair.history()
    pair.start_primary(bitmap=pair.path("bitmap"))
    pair.secondary.start()
    pair.write(0, b"a")
    pair.must_be_equal()
    check(pair.history() == first, "changed by a write")

    pair.secondary.kill()
    pair.start_secondary(recover="discard")
    check(pair.history() == first, "changed by discard")
    pair.connected()
    # It is not all dirty: what only the primary's disk has stays there.
    with open(pair.path("p"), "r+b") as f:
        f.seek(5 * CLUSTER)
        f.write(b"x")
    pair.write(1, b"b")
    pair.primary.checkpoint()
    check(pair.file("s")[CLUSTER] == ord("b"), "not copied")
    check(pair.file("s")[5 * CLUSTER] == 0, "copied without need")
    pair.primary.stop()

    pair.secondary.start()
    pair.secondary.stop()
    pair.start_secondary()
    check(pair.history() == first, "changed by a clean end")
    pair.secondary.start()
    pair.secondary.kill()
    pair.start_secondary()
    check(pair.history() == first, "changed by a death with empty buffers")
    pair.secondary.start()
    pair.secondary.kill()
    pair.start_secondary(recover="rollback")
    check(pair.history() == first, "changed by a rollback of nothing")

    pair.start_primary(bitmap=pair.path("bitmap"))
    check(pair.error() == "", str(pair.primary.query()))
    pair.primary.checkpoint()
    check(pair.file("s")[5 * CLUSTER] == 0, "copied without need")


def other_writers(pair):
    """A failover, what the guest writes after a stop, and a hidden buffer
    that is new begin another history, which lasts as long."""
    seen = [pair.history()]

    def is_new(what):
        history = pair.history()
        check(history not in seen, f"the same after {what}")
        seen.append(history)

    def is_same(what):
        check(pair.history() == seen[-1], f"another one after {what}")

    # A stop does not, but its guest does, once.
    pair.secondary.start()
    pair.secondary.stop_replication(False)
    is_same("a stop")
    guest = pair.secondary.connect_guest()
    guest.pwrite(b"g", 0)
    is_new("a write of the guest")
    guest.pwrite(b"h", 0)
    guest.shutdown()
    is_same("another write")
    pair.secondary.stop()
    pair.start_secondary()
    is_same("a restart")

    pair.secondary.start()
    pair.secondary.failover()
    is_new("a failover")
    pair.secondary.stop()
    pair.start_secondary()
    is_same("a restart")

    pair.secondary.stop()
    os.unlink(pair.path("h"))
    pair.start_secondary()
    is_new("the hidden buffer was removed")


def old_bitmap(pair):
    """A bitmap of a version that knew no histories is trusted once."""
    bitmap = pair.path("bitmap")
    pair.start_primary(bitmap=bitmap)
    pair.primary.stop()
    with open(bitmap, "r+b") as f:
        f.seek(68)
        check(f.read(32).decode() == pair.history(), "not in the bitmap")
        f.seek(68)
        f.write(bytes(32))
    # What only the primary's disk has tells whether everything is copied.  The
    # bitmap must not notice.
    before = os.stat(pair.path("p"))
    with open(pair.path("p"), "r+b") as f:
        f.seek(5 * CLUSTER)
        f.write(b"x")
    os.utime(pair.path("p"), ns=(before.st_atime_ns, before.st_mtime_ns))
    pair.start_primary(bitmap=bitmap)
    check(pair.error() == "", str(pair.primary.query()))
    pair.primary.checkpoint()
    check(pair.file("s")[5 * CLUSTER] == 0, "copied without need")
    pair.primary.stop()
    with open(bitmap, "rb") as f:
        f.seek(68)
        check(f.read(32).decode() == pair.history(), "not in the bitmap")


def full_copy(pair):
    """A full copy that is asked for is no error, and the disk is known from
    then on."""
    pair.start_primary(bitmap=pair.path("bitmap"))
    pair.primary.stop()
    roll_back_with_bitmap(pair)
    pair.start_secondary(recover="rollback")
    primary = Primary(pair.path("p"), f"nbd+unix:///?socket={pair.place}",
                      bitmap=pair.path("bitmap"))
    pair.servers.append(primary)
    pair.primary = primary
    primary.start("full")
    check(pair.error() == "", str(primary.query()))
    pair.must_be_equal()
    primary.stop()
    pair.start_primary(bitmap=pair.path("bitmap"))
    check(pair.error() == "", str(pair.primary.query()))


STORIES = [rollback_is_noticed, rollback_is_noticed_after_restart,
           killed_primary, ordinary_restarts, other_writers, old_bitmap,
           full_copy]


run_story(STORIES, Pair)
