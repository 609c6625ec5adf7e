#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""The replication filter over layers of all kinds.

    layer.py SIZE PLUGIN [FILTER-OR-PARAMETER...]

A secondary runs over this plugin: %SIZE% in an argument stands for the size.
Requests of any place and length go to both exports, with checkpoints and at
the end a failover, and what is read is compared with byte arrays.  SEED and
ROUNDS (of 100 requests) come from the environment.
"""

import os
import random
import sys
import tempfile

from byte_model import compare, learn_trim
from replication_server import Secondary


class Disk:
    """An export, and what it must hold."""

    def __init__(self, handle, content):
        self.handle = handle
        self.content = content

    def place(self, rng):
        size = len(self.content)
        count = min(rng.choice((1, 511, 512, 4096, 65536, 300000)), size)
        count = rng.randint(1, count)
        return rng.randint(0, size - count), count

    def request(self, rng):
        offset, count = self.place(rng)
        end = offset + count
        kind = rng.choice(("read", "write", "write", "zero", "trim", "flush",
                           "status"))
        if kind == "read":
            compare("read", self.handle.pread(count, offset),
                    self.content[offset:end], offset)
        elif kind == "write":
            data = rng.randbytes(count)
            self.handle.pwrite(data, offset)
            self.content[offset:end] = data
        elif kind == "zero":
            self.handle.zero(count, offset)
            self.content[offset:end] = bytes(count)
        elif kind == "trim":
            self.handle.trim(count, offset)
            learn_trim("trim", self.content, offset,
                       self.handle.pread(count, offset))
        elif kind == "flush":
            self.handle.flush()
        else:
            self.handle.block_status(count, offset, lambda *_: 0)

    def compare(self, what):
        compare(what, self.handle.pread(len(self.content), 0), self.content)


def main():
    size, plugin, *arguments = sys.argv[1:]
    seed = int(os.environ.get("SEED", "1"))
    rng = random.Random(seed)
    size = int(size)
    arguments = [a.replace("%SIZE%", str(size)) for a in arguments]
    filters = [a for a in arguments if a.startswith("--filter")]
    params = [a for a in arguments if not a.startswith("--filter")]
    with tempfile.TemporaryDirectory(prefix="layer.") as directory:
        server = Secondary(params[0], os.path.join(directory, "a"),
                           os.path.join(directory, "h"), plugin=plugin,
                           below=filters, extra=params[1:])
        try:
            primary = Disk(server.connect_primary(), bytearray(size))
            guest = Disk(server.connect_guest(), bytearray(size))
            server.start()
            for _ in range(int(os.environ.get("ROUNDS", "4"))):
                for _ in range(100):
                    rng.choice((primary, guest)).request(rng)
                primary.compare("the primary's export")
                guest.compare("the guest's export")
                if rng.random() < 0.5:
                    server.checkpoint()
                    guest.content = bytearray(primary.content)
            server.failover()
            for _ in range(50):
                guest.request(rng)
            guest.compare("after the failover")
        except Exception:
            print(f"SEED={seed}\n{server.log()}", file=sys.stderr)
            raise
        finally:
            server.kill()


main()
