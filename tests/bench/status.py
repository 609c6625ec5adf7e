#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""The measurements of bench/status.sh, which see."""

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time

from qed_server import Server
from replication_server import Primary, Remote

ROUNDS = int(os.environ.get("BENCH_ROUNDS") or 3)
MIB = 1 << 20
SIZE = 1 << 30
CLUSTER = 65536
BLOCK = 4096


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def fill(name, kind):
    """A raw file with the extents of its kind."""
    block = random.Random(1).randbytes(MIB)
    with open(name, "wb", buffering=0) as f:
        f.truncate(SIZE)
        for offset in range(0, SIZE, MIB * (16 if kind == "sparse" else 1)):
            if kind == "fragments":
                for at in range(0, MIB, 2 * BLOCK):
                    os.pwrite(f.fileno(), block[at:at + BLOCK], offset + at)
            else:
                os.pwrite(f.fileno(), block, offset)
        os.fsync(f.fileno())


def overlay(name, base, every=0):
    """An image over a base, with 4 KiB of its own in each so many
    clusters."""
    run("qed-img", "create", "-q", "-b", base, "-F", "raw", name)
    if every:
        server = Server(name)
        handle = server.connect()
        for offset in range(0, SIZE, CLUSTER * every):
            handle.pwrite(b"y" * BLOCK, offset)
        handle.shutdown()
        server.stop()


class Work:
    """What is timed, with what stands before and after it."""

    def __init__(self, base, copy):
        self.base = base        # not to be changed
        self.copy = copy        # the name of one that may be

    def prepare(self):
        pass

    def run(self):
        raise NotImplementedError

    read_instead = None         # what else reads all

    def clean(self):
        for name in "over.qed", "other.qed", "log", "remote", self.copy:
            if os.path.exists(name):
                os.unlink(name)

    def new_copy(self):
        run("cp", "--sparse=auto", self.base, self.copy)


class Image(Work):
    """With an overlay, and a server for it if there are params."""

    every = 0
    params = None
    server = None

    def prepare(self):
        overlay("over.qed", self.base, self.every)
        if self.params is not None:
            self.server = Server("over.qed", params=self.params)

    def clean(self):
        if self.server:
            self.server.kill()
        super().clean()


class CopyUp(Image):
    """4 KiB written in every cluster"""
    params = ()

    def run(self):
        run("fio", "--name=bench", "--ioengine=nbd",
            f"--uri={self.server.uri}", "--iodepth=16", f"--size={SIZE}",
            f"--rw=write:{CLUSTER - BLOCK}", f"--bs={BLOCK}",
            f"--io_size={SIZE // CLUSTER * BLOCK}")


class CopyOnRead(Image):
    """copy-on-read of all"""
    params = ("copy-on-read=on",)

    def run(self):
        run("nbdcopy", "--no-extents", self.server.uri, "null:")


class Extents(Image):
    """block status of all"""
    params = ()

    def run(self):
        run("nbdinfo", "--map", self.server.uri)

    def read_instead(self):
        run("nbdcopy", "--no-extents", self.server.uri, "null:")


class Map(Image):
    """qed-img map"""

    def run(self):
        run("qed-img", "map", "over.qed")

    def read_instead(self):
        run("dd", "status=none", "bs=256k", f"if={self.base}", "of=/dev/null")


class Convert(Work):
    """qed-img convert to QED"""

    def run(self):
        run("qed-img", "convert", "-q", "-f", "raw", self.base, "over.qed")


class Commit(Image):
    """qed-img commit of 4 KiB in every 8th cluster"""
    every = 8

    def prepare(self):
        self.new_copy()
        overlay("over.qed", self.copy, self.every)

    def run(self):
        run("qed-img", "commit", "-q", "over.qed")


class Rebase(Image):
    """qed-img rebase to another base"""

    def prepare(self):
        self.new_copy()
        super().prepare()

    def run(self):
        run("qed-img", "rebase", "-q", "-b", self.copy, "-F", "raw",
            "over.qed")


class FirstCopy(Work):
    """first copy to a remote"""
    remote = server = None

    def prepare(self):
        with open("remote", "wb") as f:
            f.truncate(SIZE)
        self.new_copy()
        self.remote = Remote("remote")
        self.server = Primary(self.copy, self.remote.uri)

    def run(self):
        self.server.start("full")
        self.server.wait_for(lambda s: s["dirty-bytes"] == 0, "in step")

    def clean(self):
        self.server.kill()
        self.remote.kill()
        super().clean()


class Resync(FirstCopy):
    """resynchronisation of every 4th cluster"""

    def prepare(self):
        super().prepare()
        self.server.start()
        self.remote.go()
        handle = self.server.connect_export()
        for offset in range(0, SIZE, 4 * CLUSTER):
            handle.trim(CLUSTER, offset)
        handle.shutdown()
        self.server.wait_for(lambda s: s["dirty-bytes"] == SIZE // 4, "dirty")

    def run(self):
        self.remote.come_back()
        self.server.wait_for(lambda s: s["dirty-bytes"] == 0 and
                             s["remote-connected"], "in step")


class LogTrims(Work):
    """trims of a cluster, logged"""
    server = handle = None

    def prepare(self):
        self.new_copy()
        self.server = Server(self.copy, plugin="file", params=["log=log"],
                             options=["--filter=blklogwrites"])
        self.handle = self.server.connect()

    def ask(self, offset):
        self.handle.trim(CLUSTER, offset)

    def run(self):
        for offset in range(0, SIZE, 4 * CLUSTER):
            self.ask(offset)

    def clean(self):
        self.server.kill()
        super().clean()


class LogZeroes(LogTrims):
    """zeroes of a cluster, logged"""

    def ask(self, offset):
        self.handle.zero(CLUSTER, offset)


WORKS = (CopyUp, CopyOnRead, Extents, Map, Convert, Commit, Rebase,
         FirstCopy, Resync, LogTrims, LogZeroes)
KINDS = ("full", "sparse", "fragments")


def seconds(work, shim):
    if shim:
        os.environ["LD_PRELOAD"] = shim
    try:
        work.prepare()
        begin = time.monotonic()
        if shim and work.read_instead:
            work.read_instead()
        else:
            work.run()
        return time.monotonic() - begin
    finally:
        os.environ.pop("LD_PRELOAD", None)
        work.clean()


def main():
    shim, disk = sys.argv[1:]
    print(f"\nseconds with block status, and in parts of those without; "
          f"medians of {ROUNDS}\n")
    print(f"{'':48}" + "".join(f"{kind:>14}" for kind in KINDS))
    worst = 0
    for folder in "/dev/shm", disk:
        with tempfile.TemporaryDirectory(prefix="status-bench.",
                                         dir=folder) as directory:
            os.chdir(directory)
            for kind in KINDS:
                fill(kind, kind)
            for kind in WORKS:
                line = ""
                for base in KINDS:
                    asked, read = [], []
                    for _ in range(ROUNDS):
                        asked.append(seconds(kind(base, "copy"), None))
                        read.append(seconds(kind(base, "copy"), shim))
                    asked = statistics.median(asked)
                    ratio = asked / statistics.median(read)
                    worst = max(worst, ratio)
                    line += f"{asked:8.2f} {ratio:5.2f}"
                where = "memory" if folder == "/dev/shm" else "disk"
                print(f"{where + ', ' + kind.__doc__:48}{line}", flush=True)
            os.chdir("/")
    print(f"\nthe most is {worst:.2f} (target: 1, and what noise adds)")


if __name__ == "__main__":
    main()
