#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""kill -9 at random moments of what qed-img does to an image.

    kill.py OPERATION DIRECTORY

Each round starts with fresh copies of the same files, runs the operation,
and kills it at a moment of its usual duration.  Then the image must be as
before or as afterwards, and running the command again must complete it.
What the images read is judged by qemu-img compare with raw files that QEMU
made before, and whether they are sound by qemu-img check and qed_format.
A round in which the program was faster than the kill does not count.  What is
usual follows the load of the machine.

SEED and ROUNDS are taken from the environment.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import qed_format as qed

MIB = 1 << 20


class Wrong(Exception):
    """The images are not as they must be."""


def qemu_img(*arguments, good=(0,)):
    done = subprocess.run(["qemu-img", *arguments], capture_output=True,
                          text=True, check=False)
    if done.returncode not in good:
        raise Wrong(f"qemu-img {' '.join(arguments)}: status "
                    f"{done.returncode}: {done.stdout}{done.stderr}")
    return done.returncode, done.stdout


def qemu_io(image, *commands):
    arguments = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "qed", *arguments, image],
                   stdout=subprocess.DEVNULL, check=True)


def create(image, size, *options):
    qemu_img("create", "-q", "-f", "qed", *options, image, str(size))


def to_raw(image, raw):
    qemu_img("convert", "-f", "qed", "-O", "raw", image, raw)


def same(image, raw):
    """Does the image read as this raw file, and is it as large?"""
    return (qed.get_field(image, "image_size") == os.path.getsize(raw) and
            reads(image, raw))


def reads(image, raw):
    """The same, but one may be longer if the rest reads as zeroes."""
    return qemu_img("compare", "-q", "-f", "qed", "-F", "raw", image, raw,
                    good=(0, 1))[0] == 0


def require(condition, text):
    if not condition:
        raise Wrong(text)


def not_corrupt(image):
    qemu_img("check", "-f", "qed", image, good=(0, 3))


def clean(image):
    qemu_img("check", "-f", "qed", image)
    found = qed.check(image)
    require(found == ([], []), f"{image}: {found}")
    require(not qed.get_field(image, "features") & qed.NEED_CHECK,
            f"{image}: NEED_CHECK is set")


def sound(image):
    """The same, but for clusters that a killed run had allocated."""
    qemu_img("check", "-f", "qed", image, good=(0, 3))
    corruptions, _ = qed.check(image)
    require(corruptions == [], f"{image}: {corruptions}")
    require(not qed.get_field(image, "features") & qed.NEED_CHECK,
            f"{image}: NEED_CHECK is set")


def info(image):
    return json.loads(qemu_img("info", "-f", "qed", "--output=json",
                               image)[1])


def empty(image):
    mapped = []
    qed.check(image, lambda guest, kind, offset: mapped.append(guest))
    return not mapped


def scattered(rng, count, size):
    """Commands of qemu-io that fill parts of a disk."""
    return [f"write -P {rng.randrange(1, 256)} "
            f"{rng.randrange(size // MIB * 4 - 1) * 256}k 160k"
            for _ in range(count)]


class Operation:
    """make: the files in the current folder, before.  command: what is
    killed.  old_or_new: what holds after the kill; returns "old", "new" or
    another word for the state.  complete: what holds after the second run."""

    def make(self, rng):
        raise NotImplementedError

    def old_or_new(self):
        raise NotImplementedError

    def complete(self):
        raise NotImplementedError


class Commit(Operation):
    command = ["commit", "top.qed"]

    def make(self, rng):
        create("base.qed", 48 * MIB)
        qemu_io("base.qed", *scattered(rng, 40, 48 * MIB))
        create("top.qed", 64 * MIB, "-b", "base.qed", "-F", "qed")
        qemu_io("top.qed", *scattered(rng, 120, 64 * MIB),
                "write -z 10M 1M")
        to_raw("top.qed", "expected.raw")

    def old_or_new(self):
        not_corrupt("base.qed")
        not_corrupt("top.qed")
        require(same("top.qed", "expected.raw"), "the disk has changed")
        return "new" if empty("top.qed") else "old"

    def complete(self):
        sound("base.qed")
        clean("top.qed")
        require(empty("top.qed"), "the image is not empty")
        require(same("base.qed", "expected.raw"), "not all was committed")
        require(same("top.qed", "expected.raw"), "the disk has changed")


class CommitRaw(Commit):
    def make(self, rng):
        with open("base.raw", "wb") as f:
            f.write(rng.randbytes(20 * MIB))
        create("top.qed", 24 * MIB, "-b", "base.raw", "-F", "raw", "-o",
               "cluster_size=4k,table_size=2")
        qemu_io("top.qed", *scattered(rng, 100, 24 * MIB))
        to_raw("top.qed", "expected.raw")

    def old_or_new(self):
        not_corrupt("top.qed")
        require(same("top.qed", "expected.raw"), "the disk has changed")
        return "new" if empty("top.qed") else "old"

    def complete(self):
        clean("top.qed")
        require(empty("top.qed"), "the image is not empty")
        subprocess.run(["cmp", "base.raw", "expected.raw"], check=True)


class Rebase(Operation):
    command = ["rebase", "-b", "new.qed", "-F", "qed", "top.qed"]

    def make(self, rng):
        for name in "old.qed", "new.qed":
            create(name, 48 * MIB)
            qemu_io(name, *scattered(rng, 60, 48 * MIB))
        create("top.qed", 64 * MIB, "-b", "old.qed", "-F", "qed")
        qemu_io("top.qed", *scattered(rng, 40, 64 * MIB))
        to_raw("top.qed", "expected.raw")

    def old_or_new(self):
        not_corrupt("top.qed")
        require(same("top.qed", "expected.raw"), "the disk has changed")
        name = info("top.qed").get("backing-filename")
        require(name in ("old.qed", self.target()), f"backing image {name}")
        return "old" if name == "old.qed" else "new"

    def target(self):
        return self.command[2] or None

    def complete(self):
        sound("top.qed")
        require(same("top.qed", "expected.raw"), "the disk has changed")
        name = info("top.qed").get("backing-filename")
        require(name == self.target(), f"backing image {name}")


class Flatten(Rebase):
    command = ["rebase", "-b", "", "top.qed"]


class Resize(Operation):
    """What is new must not show the longer backing image."""

    command = ["resize", "disk.qed", "40M"]

    def make(self, rng):
        with open("base.raw", "wb") as f:
            f.write(rng.randbytes(48 * MIB))
        create("disk.qed", 8 * MIB, "-b", "base.raw", "-F", "raw", "-o",
               "cluster_size=4k,table_size=2")
        qemu_io("disk.qed", *scattered(rng, 10, 8 * MIB))
        to_raw("disk.qed", "old.raw")
        shutil.copy("old.raw", "new.raw")
        os.truncate("new.raw", 40 * MIB)

    def old_or_new(self):
        not_corrupt("disk.qed")
        if same("disk.qed", "old.raw"):
            return "old"
        require(same("disk.qed", "new.raw"), "neither old nor new")
        return "new"

    def complete(self):
        sound("disk.qed")
        require(same("disk.qed", "new.raw"), "not what was asked for")


class Create(Operation):
    command = ["create", "-q", "disk.qed", "64T"]

    def make(self, rng):
        open("other", "wb").close()

    def old_or_new(self):
        if not os.path.exists("disk.qed"):
            return "old"
        if os.path.getsize("disk.qed") == 0:
            return "an empty file"
        if qed.pread("disk.qed", 4, 0) != qed.MAGIC:
            return "a file without a header"
        self.complete()
        return "new"

    def complete(self):
        clean("disk.qed")
        require(info("disk.qed")["virtual-size"] == 64 << 40, "the size")
        require(empty("disk.qed"), "not empty")


class CreateOver(Create):
    def make(self, rng):
        create("disk.qed", 32 * MIB)
        qemu_io("disk.qed", *scattered(rng, 60, 32 * MIB))
        to_raw("disk.qed", "old.raw")

    def old_or_new(self):
        if (os.path.getsize("disk.qed") > 0 and
                qed.pread("disk.qed", 4, 0) == qed.MAGIC and
                qed.get_field("disk.qed", "image_size") == 32 * MIB):
            not_corrupt("disk.qed")
            require(same("disk.qed", "old.raw"), "neither old nor new")
            return "old"
        return super().old_or_new()


class Repair(Operation):
    """Entries outside of the file, entries that share clusters, two L1
    entries that share a table, and leaked clusters."""

    command = ["check", "-q", "-r", "all", "disk.qed"]

    def make(self, rng):
        create("disk.qed", 64 * MIB, "-o", "cluster_size=4k,table_size=2")
        for at in range(0, 40 * MIB, 4 * MIB):
            qemu_io("disk.qed", f"write -P {at // MIB + 1} {at} 1M")
        geometry = qed.Geometry("disk.qed")
        # Clusters 0 to 255 of each 1024 have data.
        for guest in range(0, 200, 2):
            geometry.set_l2(1024 + guest, geometry.l2(2048 + guest))
        for guest in range(0, 50):
            geometry.set_l2(3072 + guest, (1 << 40) + 4096 * guest)
        geometry.set_l1(7, geometry.l1(8))
        with open("disk.qed", "ab") as f:
            f.write(rng.randbytes(100 * 4096))
        shutil.copy("disk.qed", "repaired.qed")
        subprocess.run(["qed-img", "check", "-q", "-r", "all",
                        "repaired.qed"], stderr=subprocess.DEVNULL,
                       check=True)
        to_raw("repaired.qed", "expected.raw")
        # What reads as before: all that no damaged entry maps.
        for at in (0, 2, 4, 5, 8, 9):
            qemu_io("repaired.qed", f"read -P {4 * at + 1} {4 * at}M 1M")

    def old_or_new(self):
        # Half repaired is no harm, and QEMU need not like it.
        return "new" if qed.check("disk.qed") == ([], []) else "between"

    def complete(self):
        clean("disk.qed")
        require(same("disk.qed", "expected.raw"), "not the same result")


class Empty(Operation):
    command = ["empty", "-q", "top.qed"]

    def make(self, rng):
        create("base.qed", 48 * MIB)
        qemu_io("base.qed", *scattered(rng, 30, 48 * MIB))
        create("top.qed", 64 * MIB, "-b", "base.qed", "-F", "qed")
        qemu_io("top.qed", *scattered(rng, 200, 64 * MIB))
        to_raw("top.qed", "old.raw")
        to_raw("base.qed", "new.raw")

    def old_or_new(self):
        not_corrupt("top.qed")
        if same("top.qed", "old.raw"):
            return "old"
        require(reads("top.qed", "new.raw"), "neither old nor new")
        return "new"

    def complete(self):
        clean("top.qed")
        require(empty("top.qed"), "not empty")
        require(reads("top.qed", "new.raw"), "not what is below")


OPERATIONS = {
    "commit": Commit, "commit-raw": CommitRaw, "rebase": Rebase,
    "flatten": Flatten, "resize": Resize, "create": Create,
    "create-over": CreateOver, "repair": Repair, "empty": Empty,
}


class Play:

    def __init__(self, operation, directory, rng):
        self.operation = operation
        self.rng = rng
        self.files = os.path.join(directory, "files")
        self.here = os.path.join(directory, "here")
        os.mkdir(self.files)
        os.chdir(self.files)
        operation.make(rng)
        self.duration = self.usual_duration()

    def fresh_files(self):
        os.chdir("/")
        shutil.rmtree(self.here, ignore_errors=True)
        subprocess.run(["cp", "-a", "--sparse=always", self.files, self.here],
                       check=True)
        os.chdir(self.here)

    def start(self):
        return subprocess.Popen(["qed-img", *self.operation.command],
                                stderr=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL)

    def run_again(self):
        done = subprocess.run(["qed-img", *self.operation.command],
                              capture_output=True, text=True, check=False)
        require(done.returncode == 0, f"the second run: status "
                f"{done.returncode}: {done.stdout}{done.stderr}")

    def usual_duration(self):
        durations = []
        for _ in range(3):
            self.fresh_files()
            begin = time.monotonic()
            process = self.start()
            require(process.wait() == 0, "the operation fails")
            durations.append(time.monotonic() - begin)
        self.operation.complete()
        return sorted(durations)[1]

    def round(self):
        """None if the kill came too late.  At the right duration one in
        eleven does."""
        self.fresh_files()
        delay = self.rng.uniform(0, 1.1 * self.duration)
        begin = time.monotonic()
        process = self.start()
        while time.monotonic() - begin < delay:
            time.sleep(0.0001)
        process.kill()
        if process.wait() != -9:
            self.duration *= 0.95
            return None
        self.duration *= 1.005
        state = self.operation.old_or_new()
        self.run_again()
        self.operation.complete()
        return state


def main():
    name, directory = sys.argv[1:]
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    rounds = int(os.environ.get("ROUNDS") or 12)
    states = {}
    attempts = killed = 0
    try:
        play = Play(OPERATIONS[name](), directory,
                    random.Random(f"{seed} {name}"))
        while killed < rounds:
            attempts += 1
            require(attempts < 20 * rounds, "no kill comes in time")
            state = play.round()
            if state:
                killed += 1
                states[state] = states.get(state, 0) + 1
    except (Wrong, OSError, subprocess.SubprocessError) as error:
        print(f"{type(error).__name__}: {error}")
        print(f"attempt {attempts} of SEED={seed} kill.py {name}")
        sys.exit(1)
    found = ", ".join(f"{state} {count}"
                      for state, count in sorted(states.items()))
    print(f"{name}: {killed} kills in {play.duration * 1000:.0f} ms, "
          f"{attempts - killed} too late: {found}")


if __name__ == "__main__":
    main()
