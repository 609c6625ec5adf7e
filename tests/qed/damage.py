#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Damage QED images, let qed-img repair them, and see what is saved.

    damage.py [--seeds N] [--first SEED] [--keep FOLDER]

Each seed makes an image of known content and damages it.  After
"qed-img check -r all"

- qemu-img check calls the image clean, and so does qed_format.check;
- every cluster of the disk that the damage did not touch reads as before;
- another repair finds nothing to do and changes nothing.

The same damage is repaired by "qemu-img check -r all" as well.  The last
lines of the output say for each kind of damage how many clusters with
data could be read as before after the one and after the other.

What a damage touches:

- a changed L2 entry: its cluster of the disk;
- a changed L1 entry: all clusters of its table;
- a cut: clusters whose data, or whose entries, are (also in part) behind
  it;
- a changed bit of the header: nothing, since all of it can be told from
  the rest of the file, save image_size: what is beyond the new size.
  Unknown bits of "features" make every program refuse the image: then it
  must not be changed.

Exit status 1 if a seed failed, after naming it.
"""

import argparse
import collections
import hashlib
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile

import qed_format as qed

# cluster size, table size, clusters of the disk
GEOMETRIES = [(4096, 2, 3072), (4096, 4, 5000), (8192, 2, 4500),
              (16384, 4, 9000)]


class Failure(Exception):
    pass


class Reader:
    """Reads clusters of the disk as far as entries point to something."""

    def __init__(self, path):
        with open(path, "rb") as f:
            self.data = f.read()
        fields = {name: struct.unpack_from(kind, self.data, offset)[0]
                  for name, (offset, kind) in qed.FIELDS.items()}
        self.cluster_size = fields["cluster_size"]
        self.entries = self.cluster_size * fields["table_size"] // 8
        self.image_size = fields["image_size"]
        self.l1 = fields["l1_table_offset"]

    def _entry(self, offset):
        if offset + 8 > len(self.data):
            raise IndexError
        return struct.unpack_from("<Q", self.data, offset)[0]

    def cluster(self, number):
        """Its bytes, or None where they cannot be read."""
        size = self.cluster_size
        try:
            table = self._entry(self.l1 + number // self.entries * 8)
            if table == 0:
                return bytes(size)
            if table % size or table + self.entries * 8 > len(self.data):
                return None
            entry = self._entry(table + number % self.entries * 8)
        except IndexError:
            return None
        if entry < 2:
            return bytes(size)
        if entry % size or entry + size > len(self.data):
            return None
        return self.data[entry:entry + size]


class Image:
    """A good image, and damages to it."""

    def __init__(self, path, rng):
        self.path = path
        self.rng = rng
        size, table_size, count = rng.choice(GEOMETRIES)
        self.size, self.count = size, count
        self.entries = size * table_size // 8
        clusters = {}
        for _ in range(rng.randrange(1, 8)):
            start = rng.randrange(count)
            for number in range(start, min(count, start +
                                           rng.randrange(1, 12))):
                clusters[number] = self._content(number)
        qed.build(path, count * size, size, table_size, clusters)
        # Shuffle where data is, so that swaps and cuts hit anything.
        self.geometry = qed.Geometry(path)
        self.expected = {n: bytes(size) if c == "zero" else c
                         for n, c in clusters.items()}
        self.mapped = sorted(self.expected)
        self.touched = set()
        self.refused = False

    def _content(self, number):
        kind = self.rng.randrange(12)
        if kind == 0:
            return "zero"
        if kind == 1:           # looks like a table
            step = self.size * self.rng.randrange(1, 3)
            return struct.pack(f"<{self.size // 8}Q",
                               *(i * step for i in range(self.size // 8)))
        if kind == 2:
            return bytes(self.size)
        return self.rng.randbytes(self.size)

    def tables(self):
        return [i for i in range((self.count + self.entries - 1) //
                                 self.entries) if self.geometry.l1(i)]

    def _touch_table(self, index):
        self.touched.update(range(index * self.entries,
                                  (index + 1) * self.entries))

    # Each damage returns nothing, and notes what it touches.

    def l2_flip(self):
        number = self.rng.choice(self.mapped)
        self.geometry.set_l2(number, self.geometry.l2(number) ^
                             1 << self.rng.randrange(64))
        self.touched.add(number)

    def l2_flip_low(self):
        """A bit that may well lead to another cluster of the file."""
        number = self.rng.choice(self.mapped)
        bits = os.path.getsize(self.path).bit_length()
        self.geometry.set_l2(number, self.geometry.l2(number) ^
                             1 << self.rng.randrange(bits))
        self.touched.add(number)

    def l1_flip(self):
        index = self.rng.choice(self.tables())
        self.geometry.set_l1(index, self.geometry.l1(index) ^
                             1 << self.rng.randrange(64))
        self._touch_table(index)

    def l1_flip_low(self):
        index = self.rng.choice(self.tables())
        bits = os.path.getsize(self.path).bit_length()
        self.geometry.set_l1(index, self.geometry.l1(index) ^
                             1 << self.rng.randrange(bits))
        self._touch_table(index)

    def l2_duplicate(self):
        one, other = self.rng.choice(self.mapped), self.rng.choice(self.mapped)
        self.geometry.set_l2(one, self.geometry.l2(other))
        self.touched.add(one)

    def l2_into_table(self):
        number = self.rng.choice(self.mapped)
        table = self.geometry.l1(self.rng.choice(self.tables()))
        self.geometry.set_l2(number, self.rng.choice(
            [table, table + self.size, self.geometry.l1_table_offset]))
        self.touched.add(number)

    def l1_duplicate(self):
        tables = self.tables()
        one, other = self.rng.choice(tables), self.rng.choice(tables)
        self.geometry.set_l1(one, self.geometry.l1(other))
        self._touch_table(one)

    def l1_into_data(self):
        index = self.rng.choice(self.tables())
        self.geometry.set_l1(index, max(
            self.geometry.l2(self.rng.choice(self.mapped)) // self.size,
            1) * self.size)
        self._touch_table(index)

    def l1_beyond_disk(self):
        """QEMU reads such entries when it checks."""
        first = (self.count + self.entries - 1) // self.entries
        self.geometry.set_l1(self.rng.randrange(first, self.entries),
                             self.geometry.l1(self.rng.choice(self.tables())))

    def l2_swap(self):
        one, other = self.rng.choice(self.mapped), self.rng.choice(self.mapped)
        entries = self.geometry.l2(one), self.geometry.l2(other)
        self.geometry.set_l2(one, entries[1])
        self.geometry.set_l2(other, entries[0])
        self.touched.update((one, other))

    def l1_swap(self):
        tables = self.tables()
        one, other = self.rng.choice(tables), self.rng.choice(tables)
        entries = self.geometry.l1(one), self.geometry.l1(other)
        self.geometry.set_l1(one, entries[1])
        self.geometry.set_l1(other, entries[0])
        self._touch_table(one)
        self._touch_table(other)

    def swap_levels(self):
        """An L1 entry and an L2 entry."""
        number = self.rng.choice(self.mapped)
        index = self.rng.choice(self.tables())
        place = self.geometry.l2_entry_offset(number)
        entries = self.geometry.l1(index), self.geometry.l2(number)
        qed.pwrite(self.path, struct.pack("<Q", entries[0]), place)
        self.geometry.set_l1(index, entries[1])
        self._touch_table(index)
        self.touched.add(number)

    def leak(self):
        number = self.rng.choice(self.mapped)
        self.geometry.set_l2(number, 0)
        self.touched.add(number)

    def leak_table(self):
        index = self.rng.choice(self.tables())
        self.geometry.set_l1(index, 0)
        self._touch_table(index)

    def cut(self):
        g = self.geometry
        length = self.rng.randrange(
            g.l1_table_offset, os.path.getsize(self.path))
        for number in self.mapped:
            if g.l1_entry_offset(number // self.entries) + 8 > length or \
                    g.l2_entry_offset(number) + 8 > length or \
                    (g.l2(number) > 1 and g.l2(number) + self.size > length):
                self.touched.add(number)
        os.truncate(self.path, length)

    def header_flip(self):
        name = self.rng.choice(
            ["magic", "cluster_size", "table_size", "header_size",
             "l1_table_offset", "l1_table_offset"])
        self._flip_field(name)

    def size_flip(self):
        self._flip_field("image_size")
        self.touched.update(n for n in self.mapped if (n + 1) * self.size >
                            qed.get_field(self.path, "image_size"))

    def features_flip(self):
        name = self.rng.choice(
            ["features", "compat_features", "autoclear_features",
             "backing_filename_offset"])
        self._flip_field(name)
        self.refused = qed.get_field(self.path, "features") > 7

    def _flip_field(self, name):
        _, kind = qed.FIELDS[name]
        bits = struct.calcsize(kind) * 8
        qed.set_field(self.path, name, qed.get_field(self.path, name) ^
                      1 << self.rng.randrange(bits))


# The kinds, each with how often it is drawn.
KINDS = {
    "l2_flip": 3, "l2_flip_low": 4, "l1_flip": 3, "l1_flip_low": 4,
    "l2_duplicate": 4, "l1_duplicate": 3, "l2_into_table": 2,
    "l1_into_data": 3, "l1_beyond_disk": 1, "l2_swap": 1, "l1_swap": 1,
    "swap_levels": 3, "leak": 2, "leak_table": 2, "cut": 5,
    "header_flip": 4, "size_flip": 1, "features_flip": 1, "several": 4,
}
SEVERAL = ["l2_flip", "l2_flip_low", "l2_duplicate", "l2_into_table",
           "leak"]


def run(*command):
    return subprocess.run(command, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False)


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).digest()


def saved(path, image):
    """Clusters with data that read as before; names of untouched others."""
    count, lost = 0, []
    try:
        reader = Reader(path)
    except struct.error:
        reader = None
    for number in range(image.count):
        expected = image.expected.get(number)
        if expected is None and number in image.touched:
            continue
        try:
            now = reader and reader.cluster(number)
        except (ZeroDivisionError, OverflowError, MemoryError):
            now = None
        if expected is None:
            expected = bytes(image.size)
        elif now == expected and any(expected):
            count += 1
        if now != expected and number not in image.touched:
            lost.append(number)
    return count, lost


def repair(path, image):
    before = digest(path)
    result = run("qed-img", "check", "-r", "all", path)
    if image.refused:
        if result.returncode != 1 or digest(path) != before:
            raise Failure(f"unknown features: exit {result.returncode}\n"
                          f"{result.stdout}")
        return
    if result.returncode != 0:
        raise Failure(f"qed-img: exit {result.returncode}\n{result.stdout}")
    judge = run("qemu-img", "check", "-f", "qed", path)
    if judge.returncode != 0 or "No errors were found" not in judge.stdout:
        raise Failure(f"qemu-img says:\n{judge.stdout}\n"
                      f"qed-img said:\n{result.stdout}")
    corruptions, leaks = qed.check(path)
    if corruptions or leaks:
        raise Failure("\n".join(corruptions + leaks))
    before = digest(path)
    again = run("qed-img", "check", "-r", "all", path)
    if again.returncode != 0 or digest(path) != before:
        raise Failure(f"the second repair changed it:\n{again.stdout}")


def run_seed(seed, folder, totals):
    rng = random.Random(seed)
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    ours = os.path.join(folder, "ours.qed")
    theirs = os.path.join(folder, "theirs.qed")
    image = Image(ours, rng)
    if kind == "several":
        for _ in range(rng.randrange(2, 6)):
            try:
                getattr(image, rng.choice(SEVERAL))()
            except ValueError:  # an entry that damage took away
                pass
    else:
        getattr(image, kind)()
    shutil.copyfile(ours, os.path.join(folder, "damaged.qed"))
    shutil.copyfile(ours, theirs)
    total = totals[kind]
    total["damages"] += 1
    total["clusters"] += sum(any(c) for c in image.expected.values())

    run("qemu-img", "check", "-f", "qed", "-r", "all", theirs)
    clean = run("qemu-img", "check", "-f", "qed", theirs).returncode == 0
    total["QEMU clean"] += clean
    if image.refused or qed.get_field(theirs, "magic") != \
            struct.unpack("<I", qed.MAGIC)[0] or \
            run("qemu-img", "info", "-f", "qed", theirs).returncode != 0:
        count = 0               # it does not open
    else:
        count, _ = saved(theirs, image)
    total["QEMU saved"] += count

    try:
        repair(ours, image)
        if image.refused:
            total["refused"] += 1
            return None
        total["clean"] += 1
        count, lost = saved(ours, image)
        total["saved"] += count
        if lost:
            raise Failure(f"untouched clusters are lost: {lost[:20]}")
    except Failure as failure:
        return f"seed {seed} ({kind}): {failure}"
    return None


COLUMNS = ["damages", "refused", "clean", "QEMU clean", "clusters", "saved",
           "QEMU saved"]


def print_table(totals):
    print("# " + "kind".ljust(16) + "".join(c.rjust(12) for c in COLUMNS))
    everything = collections.Counter()
    for kind in sorted(totals):
        everything.update(totals[kind])
    for kind in sorted(totals) + ["all"]:
        total = totals[kind] if kind != "all" else everything
        print("# " + kind.ljust(16) +
              "".join(str(total[c]).rjust(12) for c in COLUMNS))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--keep", help="folder for the images of failures")
    arguments = parser.parse_args()

    totals = collections.defaultdict(collections.Counter)
    failures = 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            failure = run_seed(seed, folder, totals)
            if failure:
                failures += 1
                print(failure)
                if arguments.keep:
                    shutil.copytree(folder, os.path.join(
                        arguments.keep, str(seed)), dirs_exist_ok=True)
    print_table(totals)
    print(f"{arguments.seeds} damages, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
