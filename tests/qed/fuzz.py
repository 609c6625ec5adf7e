#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Random damage: serve many spoiled images, see that nothing bad happens.

    fuzz.py DIRECTORY

Each round takes a good image, changes some bytes of its header and tables
or cuts it, and serves it (see spoiled_image.py).  SEED and ROUNDS are taken
from the environment.  A seed's round N is the same whatever ROUNDS is, and
FIRST skips rounds.
"""

import importlib
import os
import random
import struct
import sys

import qed_format as qed
from spoiled_image import Attempt, Bad

good = importlib.import_module("qed-image").good

INTERESTING = [0, 1, 2, 8, 511, 512, 4095, 4096, 8192, 12288, 20480, 61440,
               65536, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40,
               (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1]
FORMATS = {"<I": 32, "<Q": 64}


def value(rng, bits):
    kind = rng.random()
    if kind < 0.5:
        number = rng.choice(INTERESTING)
    elif kind < 0.8:
        number = rng.randrange(18) * 4096     # somewhere in the file
    else:
        number = rng.getrandbits(bits)
    return number & ((1 << bits) - 1)


def spoil(rng, path):
    """Change the image; returns what was done, for a message."""
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        kind = rng.random()
        if kind < 0.35:
            name = rng.choice(list(qed.FIELDS)[1:])
            bits = FORMATS[qed.FIELDS[name][1]]
            number = value(rng, bits)
            if rng.random() < 0.2:
                number = qed.get_field(path, name) ^ (
                    1 << rng.randrange(bits))
            qed.set_field(path, name, number)
            done.append(f"{name}={number:#x}")
        elif kind < 0.5:
            at = 4096 + 8 * rng.randrange(4)
            number = value(rng, 64)
            qed.pwrite(path, struct.pack("<Q", number), at)
            done.append(f"L1 at {at}: {number:#x}")
        elif kind < 0.8:
            at = rng.choice([12288, 28672, 45056]) + 8 * rng.randrange(5)
            number = value(rng, 64)
            qed.pwrite(path, struct.pack("<Q", number), at)
            done.append(f"L2 at {at}: {number:#x}")
        elif kind < 0.9:
            length = rng.randrange(os.path.getsize(path) + 1)
            os.truncate(path, length)
            done.append(f"cut at {length}")
        elif os.path.getsize(path):
            at = rng.randrange(min(os.path.getsize(path), 61440))
            data = rng.randbytes(rng.randrange(1, 64))
            qed.pwrite(path, data, at)
            done.append(f"{len(data)} random bytes at {at}")
        if rng.random() < 0.3:
            features = rng.randrange(8)
            qed.set_field(path, "features", features)
            done.append(f"features={features}")
        if os.path.getsize(path) < 64:
            break
    return "; ".join(done)


def main():
    path = os.path.join(sys.argv[1], "disk.qed")
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    rounds = int(os.environ.get("ROUNDS") or 150)
    first = int(os.environ.get("FIRST") or 0)
    for number in range(first, first + rounds):
        rng = random.Random(f"{seed} {number}")
        if os.path.exists(path):
            os.unlink(path)
        good(path)
        done = spoil(rng, path)
        params = [rng.choice(["repair=auto", "repair=always",
                              "repair=never"])]
        read_only = rng.random() < 0.3
        try:
            Attempt(path, params, read_only, seed=number)
        except Bad as bad:
            print(f"{done}; {params[0]}{' -r' if read_only else ''}: {bad}")
            print(f"again with: SEED={seed} FIRST={number} ROUNDS=1 "
                  "fuzz.py DIRECTORY")
            sys.exit(1)


if __name__ == "__main__":
    main()
