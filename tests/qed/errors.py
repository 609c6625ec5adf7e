#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Use a disk whose storage fails one request in some.

    errors.py URI TRIGGER

While the file TRIGGER exists the storage under the image returns errors
(nbdkit's error filter).  A request that fails may have been done in part;
every other one must be there, meanwhile and afterwards.  Prints the
number of failures.  SEED chooses the requests.
"""

import os
import random
import sys

import nbd

SECTOR = 512
REQUESTS = 1500


class Disk:
    """The disk, and for each sector which values it may have."""

    def __init__(self, uri):
        self.handle = nbd.NBD()
        self.handle.connect_uri(uri)
        self.size = self.handle.get_size()
        self.allowed = [{sector[0]} for sector in self.sectors(0, self.size)]

    def sectors(self, offset, count):
        data = self.handle.pread(count, offset)
        for at in range(0, count, SECTOR):
            sector = data[at:at + SECTOR]
            if sector != sector[:1] * SECTOR:
                sys.exit(f"the sector at {offset + at} is torn")
            yield sector

    def check(self, offset, count):
        for i, sector in enumerate(self.sectors(offset, count)):
            allowed = self.allowed[offset // SECTOR + i]
            if sector[0] not in allowed:
                sys.exit(f"the sector at {offset + i * SECTOR} has the value "
                         f"{sector[0]}, expected {sorted(allowed)}")

    def change(self, offset, count, value):
        """Returns whether it failed."""
        where = range(offset // SECTOR, (offset + count) // SECTOR)
        try:
            if value:
                self.handle.pwrite(bytes([value]) * count, offset)
            else:
                self.handle.zero(count, offset)
        except nbd.Error:
            for i in where:
                self.allowed[i].add(value)
            return True
        for i in where:
            self.allowed[i] = {value}
        return False


def one_request(disk, rng):
    count = rng.choice([1, 3, 8, 128, 200]) * SECTOR
    offset = rng.randrange((disk.size - count) // SECTOR) * SECTOR
    kind = rng.random()
    if kind < 0.3:
        disk.check(offset, count)
        return False
    return disk.change(offset, count,
                       rng.randrange(1, 256) if kind < 0.8 else 0)


def main():
    uri, trigger = sys.argv[1:]
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    print(f"again with: SEED={seed}")
    rng = random.Random(seed)
    disk = Disk(uri)

    with open(trigger, "wb"):
        pass
    failed = sum(one_request(disk, rng) for _ in range(REQUESTS))
    os.unlink(trigger)
    print(f"{failed} failed")
    if failed < REQUESTS // 100:
        sys.exit("the storage did not fail")

    disk.check(0, disk.size)
    for offset in range(0, disk.size, 65536):
        if disk.change(offset, SECTOR, 77):
            sys.exit("a write fails when the storage is good again")
    disk.handle.flush()
    disk.check(0, disk.size)


main()
