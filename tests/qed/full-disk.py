#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Fill the disk under a server, and check what it had acknowledged.

    full-disk.py fill SOCKET LIST     write at random places, several
                                          at a time, until nothing fits
    full-disk.py write SOCKET LIST    some writes, which must succeed
    full-disk.py verify SOCKET LIST   read what was acknowledged

LIST is a file (in the folder above, which is on another file system)
that remembers the writes: "OFFSET VALUE", each of SIZE bytes.
"""

import random
import os
import sys

import nbd

from qed_server import Pipeline, Request

SIZE = 12288
STRIDE = 16384


def load(name):
    name = os.path.join("..", name)
    if not os.path.exists(name):
        return {}
    with open(name, encoding="ascii") as f:
        return {int(a): int(b) for a, b in (line.split() for line in f)}


def save(name, acknowledged):
    with open(os.path.join("..", name), "w", encoding="ascii") as f:
        for offset, value in acknowledged.items():
            f.write(f"{offset} {value}\n")


def connect(socket):
    handle = nbd.NBD()
    handle.connect_unix(socket)
    return handle


def fill(socket, acknowledged, rng):
    handles = [connect(socket) for _ in range(2)]
    pipeline = Pipeline(handles)
    places = [at for at in range(0, handles[0].get_size() - SIZE, STRIDE)
              if at not in acknowledged]
    rng.shuffle(places)
    failed = 0
    requests = []
    # Go on for a while after the first failure.
    while places and failed < 40:
        batch = [Request("write", at, SIZE, bytes([1 + at // STRIDE % 255])
                         * SIZE) for at in places[:8]]
        del places[:8]
        pipeline.run(batch)
        for request in batch:
            if request.error is None:
                acknowledged[request.offset] = request.data[0]
            elif request.error.errno == "ENOSPC":
                failed += 1
            else:
                sys.exit(f"{request}")
        requests += batch
    if not failed:
        sys.exit("everything fitted: the test is wrong")
    try:
        handles[0].flush()
    except nbd.Error as error:
        sys.exit(f"flush: {error}")


def write(socket, acknowledged):
    handle = connect(socket)
    places = [at for at in range(0, handle.get_size() - SIZE, STRIDE)
              if at not in acknowledged]
    if not places:
        sys.exit("no place left: the test is wrong")
    for at in places[:8]:
        handle.pwrite(bytes([99]) * SIZE, at)
        acknowledged[at] = 99
    handle.flush()


def verify(socket, acknowledged):
    handle = connect(socket)
    for offset, value in acknowledged.items():
        if handle.pread(SIZE, offset) != bytes([value]) * SIZE:
            sys.exit(f"the acknowledged write at {offset} is not there")


def main():
    command, socket, name = sys.argv[1:]
    acknowledged = load(name)
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    print(f"SEED={seed}")
    if command == "fill":
        fill(socket, acknowledged, random.Random(seed))
    elif command == "write":
        write(socket, acknowledged)
    else:
        verify(socket, acknowledged)
    save(name, acknowledged)


if __name__ == "__main__":
    main()
