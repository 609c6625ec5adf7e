#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""A repair that is killed at each of its steps.

    repair-kill.py DIRECTORY

qed-img check -r all is run again and again on copies of one damaged image,
and strace kills it at the first, second, third... system call that changes
the file.  The next repair must come to the result of one that nobody
interrupted, whatever the damage: qemu-img compares what they read.  And
whatever QEMU has written in between must still be there.
"""

import os
import shutil
import subprocess
import sys

import qed_format as qed

CLUSTER = 4096
ENTRIES = 1024
MIB = 1 << 20
CALLS = "pwrite64", "pwritev", "ftruncate", "fallocate", "fdatasync"
REPAIR = ["qed-img", "check", "-q", "-r", "all"]
SIGKILL = 9


class Wrong(Exception):
    """The image is not as it must be."""


def quietly(*command):
    return subprocess.run(command, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, check=False).returncode


def require(condition, text):
    if not condition:
        raise Wrong(text)


def damage(image):
    """Ten L2 tables, each with data in its clusters 0 to 63."""
    geometry = qed.Geometry(image)

    # One bit of an entry is wrong, and its cluster is lost.
    geometry.set_l2(5, geometry.l2(5) ^ (1 << 45))
    # Clusters with two users.
    for i in range(0, 20, 2):
        geometry.set_l2(ENTRIES + i, geometry.l2(2 * ENTRIES + i))
    # Data in tables: twice in its own one, in another one, in one that
    # points back.
    for i in range(2):
        geometry.set_l2(3 * ENTRIES + i, geometry.l1(3) + i * CLUSTER)
        geometry.set_l2(3 * ENTRIES + 4 + i, geometry.l1(4))
        geometry.set_l2(4 * ENTRIES + i, geometry.l1(3))
    # One table for two parts of the disk.
    geometry.set_l1(6, geometry.l1(7))
    # Behind the end of the file, where a repair puts its copies.
    end = os.path.getsize(image)
    for i in range(40):
        geometry.set_l2(8 * ENTRIES + i, end + i * CLUSTER)
    with open(image, "ab") as f:
        f.truncate(end + CLUSTER // 2)


def make(image, base):
    with open(base, "wb") as f:
        f.write(b"b" * 40 * MIB)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qed", "-b", base, "-F",
                    "raw", "-o", "cluster_size=4k,table_size=2", image,
                    "40M"], check=True)
    for i in range(10):
        subprocess.run(["qemu-io", "-f", "qed", "-c",
                        f"write -P {i + 1} {i * 4}M 256k", image],
                       stdout=subprocess.DEVNULL, check=True)
    damage(image)


def repair_and_kill(image, call, number):
    """Was it killed?"""
    status = quietly("strace", "-f", "-o", "/dev/null", "-e",
                     f"trace={call}", "-e",
                     f"inject={call}:signal=KILL:when={number}", *REPAIR,
                     image)
    return status in (-SIGKILL, 128 + SIGKILL)


def is_repaired(image, expected):
    require(quietly(*REPAIR, image) == 0, "the second repair fails")
    require(quietly("qemu-img", "check", "-f", "qed", image) == 0,
            "QEMU finds faults")
    require(qed.check(image) == ([], []), f"{qed.check(image)}")
    require(qed.get_field(image, "autoclear_features") == 0,
            "a bit of autoclear_features is left")
    require(quietly("qemu-img", "compare", "-f", "qed", "-F", "raw", image,
                    expected) == 0, "the result is another one")


def kill_everywhere(call, expected):
    number = killed = 0
    while True:
        # Each of the first, and of the many later ones that are alike some.
        number += 1 + number // 20
        shutil.copy("damaged.qed", "disk.qed")
        if not repair_and_kill("disk.qed", call, number):
            return killed
        killed += 1
        try:
            # And once more, in the second repair.
            if number % 2:
                repair_and_kill("disk.qed", "pwrite64", 1 + number % 7)
            is_repaired("disk.qed", expected)
        except Wrong as error:
            raise Wrong(f"killed at {call} {number}: {error}") from error


def qemu_writes(number):
    """QEMU knows nothing of what a killed repair has planned."""
    pattern = "-P 200 39M 64k"
    shutil.copy("damaged.qed", "disk.qed")
    require(repair_and_kill("disk.qed", "pwrite64", number),
            f"there is no write {number}")
    for command in f"write {pattern}", f"read {pattern}":
        done = subprocess.run(["qemu-io", "-f", "qed", "-c", command,
                               "disk.qed"], capture_output=True, text=True,
                              check=True)
        require("failed" not in done.stdout, done.stdout)
        if command.startswith("write"):
            require(quietly(*REPAIR, "disk.qed") == 0, "the repair fails")
            require(qed.check("disk.qed") == ([], []), "it leaves faults")


def main():
    os.chdir(sys.argv[1])
    try:
        make("damaged.qed", "base")
        shutil.copy("damaged.qed", "repaired.qed")
        require(quietly(*REPAIR, "repaired.qed") == 0, "the repair fails")
        subprocess.run(["qemu-img", "convert", "-f", "qed", "-O", "raw",
                        "repaired.qed", "expected.raw"], check=True)
        killed = {call: kill_everywhere(call, "expected.raw")
                  for call in CALLS}
        require(killed["pwrite64"] > 10 and killed["ftruncate"] > 2,
                f"too few kills: {killed}")
        for number in range(1, killed["pwrite64"] + 1, 7):
            qemu_writes(number)
    except (Wrong, OSError, subprocess.SubprocessError) as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(1)
    print("killed at", ", ".join(f"{n} {call}"
                                 for call, n in killed.items()))


main()
