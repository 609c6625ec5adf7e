#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""kill -9 during allocating writes.

    crash.py none|raw DIRECTORY

Each round writes to an image over several connections, 16 requests deep,
kills the server at a random moment, and then asks: does qemu-img check
find corruption, is each acknowledged write there, is everything else as
it was?  Afterwards the plugin must open and close the image cleanly.

SEED and ROUNDS are taken from the environment.
"""

import os
import random
import shutil
import subprocess
import sys

import nbd

import qed_format
from qed_server import Pipeline, Request, Server, ServerError

CONNECTIONS = 4
DEPTH = 16                      # for each connection
CLUSTER_SIZE = 65536
SIZE = 96 * CLUSTER_SIZE + 512


class Loss(Exception):
    """The image does not hold what it must."""


class Slot:
    """A range that is written again and again, one request at a time."""

    def __init__(self, start, end, base):
        self.start = start
        self.end = end
        self.now = base         # acknowledged
        self.next = None        # in flight


class Crash:

    def __init__(self, rng, backing, directory):
        self.rng = rng
        self.image = os.path.join(directory, "disk.qed")
        self.copy = os.path.join(directory, "copy.qed")
        self.server = None
        base = bytes(SIZE)
        arguments = []
        if backing == "raw":
            # Ends inside of the image, and of a cluster.
            base = rng.randbytes(SIZE * 3 // 4) + bytes(SIZE - SIZE * 3 // 4)
            with open(os.path.join(directory, "base.raw"), "wb") as f:
                f.write(base[:SIZE * 3 // 4 // 512 * 512])
            base = base[:SIZE * 3 // 4 // 512 * 512]
            base += bytes(SIZE - len(base))
            arguments = ["-b", "base.raw", "-F", "raw"]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qed", *arguments,
                        self.image, str(SIZE)], check=True)
        # Slots of odd sizes, several a cluster, some over its border, with
        # gaps that nobody writes to.
        self.base = base
        self.slots = []
        at = 0
        while at < SIZE - 70000:
            at += rng.choice([0, 0, 1, 512, 3000])
            count = rng.choice([1, 512, 4096, 4096, 10000, 65536])
            self.slots.append(Slot(at, at + count, base[at:at + count]))
            at += count

    def writes_until_killed(self):
        rng = self.rng
        self.server = Server(self.image)
        handles = [self.server.connect() for _ in range(CONNECTIONS)]
        pipeline = Pipeline(handles)
        idle = list(self.slots)
        busy = {}
        left = rng.randrange(1, 400)    # acknowledged writes until the kill
        while left > 0:
            for which in range(CONNECTIONS):
                while pipeline.in_flight(which) < DEPTH and idle:
                    slot = idle.pop(rng.randrange(len(idle)))
                    count = slot.end - slot.start
                    if rng.random() < 0.1:
                        slot.next = bytes(count)
                        request = Request("zero", slot.start, count)
                    else:
                        slot.next = rng.randbytes(count)
                        request = Request("write", slot.start, count,
                                          slot.next)
                    pipeline.send(request, which)
                    busy[request] = slot
            for request in pipeline.wait():
                if request.error is not None:
                    raise Loss(f"{request}")
                slot = busy.pop(request)
                slot.now, slot.next = slot.next, None
                idle.append(slot)
                left -= 1
        self.server.kill()

    def compare(self, data, where):
        at = 0
        for slot in self.slots:
            if data[at:slot.start] != self.base[at:slot.start]:
                raise Loss(f"{where}: bytes {at} to {slot.start} changed "
                           "without a write to them")
            seen = data[slot.start:slot.end]
            if seen != slot.now:
                if slot.next is None:
                    raise Loss(f"{where}: the acknowledged write "
                               f"{slot.start}+{slot.end - slot.start} is "
                               "not there")
                # In flight when the server died: each byte old or new.
                for i, (got, old, new) in enumerate(zip(seen, slot.now,
                                                        slot.next)):
                    if got not in (old, new):
                        raise Loss(f"{where}: byte {slot.start + i} is "
                                   f"neither old nor new")
            at = slot.end
        if data[at:] != self.base[at:]:
            raise Loss(f"{where}: bytes from {at} changed without a write")

    def qemu_img_check(self, path):
        done = subprocess.run(["qemu-img", "check", "-f", "qed", path],
                              capture_output=True, text=True, check=False)
        if done.returncode not in (0, 3):
            raise Loss(f"qemu-img check: status {done.returncode}\n"
                       f"{done.stdout}{done.stderr}")

    def read_by_server(self, read_only):
        self.server = Server(self.image, read_only=read_only)
        handle = self.server.connect()
        if handle.is_read_only() != read_only:
            raise Loss("served read-only:\n" + self.server.log())
        data = b"".join(handle.pread(min(1 << 20, SIZE - at), at)
                        for at in range(0, SIZE, 1 << 20))
        handle.shutdown()
        self.server.stop()
        return data

    def play(self):
        self.writes_until_killed()

        shutil.copyfile(self.image, self.copy)
        self.qemu_img_check(self.copy)
        corruptions, _ = qed_format.check(self.copy)
        if corruptions:
            raise Loss("; ".join(corruptions[:5]))
        self.compare(qed_format.content(self.copy, self.base), "in the file")

        self.compare(self.read_by_server(True), "read-only")
        self.compare(self.read_by_server(False), "after a writable open")
        self.qemu_img_check(self.image)
        features = qed_format.get_field(self.image, "features")
        if features & qed_format.NEED_CHECK:
            raise Loss("NEED_CHECK is set after a clean close")
        self.compare(qed_format.content(self.image, self.base),
                     "after a clean close")


def main():
    backing, directory = sys.argv[1:]
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    rounds = int(os.environ.get("ROUNDS") or 20)
    for number in range(rounds):
        this = Crash(random.Random(f"{seed} {backing} {number}"), backing,
                     directory)
        try:
            this.play()
        except (Loss, OSError, ServerError, nbd.Error) as error:
            print(f"{type(error).__name__}: {error}")
            if this.server:
                if this.server.alive():
                    this.server.kill()
                print(this.server.log())
            print(f"round {number} of SEED={seed} crash.py {backing}")
            sys.exit(1)


if __name__ == "__main__":
    main()
