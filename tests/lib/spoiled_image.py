# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Serve an image that may be spoiled, and see that nothing bad happens.

Bad is: a crash, a hang, a time limit passed, memory out of proportion, an
error other than those that a client can expect, a changed file after a
refusal or a read-only run, a refusal that does not name the file.
"""

import hashlib
import os
import random
import resource

import nbd

from qed_server import SANITIZED, Server, ServerError, extents

MEMORY = 100 << 20
SECONDS = 20
CLUSTER_SIZE = 4096

# Of "qed-image.py good": data, data, zero and nothing in each L2 table.
CLUSTERS = [1024 * table + k for table in range(3) for k in range(4)]


class Bad(Exception):
    """What must never happen."""


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


class Attempt:
    """The outcome: served ("writable", "read-only" or None for a refusal),
    the server's messages, and what each cluster reads as ("EIO", "mixed",
    or the value of its bytes)."""

    def __init__(self, image, params=(), read_only=False, write=True,
                 seed=0):
        self.image = image
        self.rng = random.Random(seed)
        self.served = None
        self.clusters = {}
        before = digest(image)
        try:
            server = Server(image, params, read_only, limit=SECONDS)
        except ServerError as error:
            self.messages = str(error)
            if "exit status 1\n" not in self.messages:
                raise Bad(f"no refusal: {error}") from error
            if os.path.basename(image) not in self.messages:
                raise Bad(f"the file is not named: {error}") from error
        else:
            try:
                self.use(server, write)
                if not server.alive():
                    raise Bad("the server died")
                if server.peak_memory() > MEMORY:
                    raise Bad(f"peak memory {server.peak_memory()}")
                server.stop(SECONDS)
            except (nbd.Error, ConnectionError, TimeoutError,
                    ServerError) as error:
                raise Bad(f"{error}\n{server.log()}") from error
            finally:
                if server.alive():
                    server.kill()
                self.messages = server.log()
        # The most that any server of this process has taken.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        if peak > MEMORY and not SANITIZED:
            raise Bad(f"peak memory {peak}")
        if (not self.served or read_only) and digest(image) != before:
            raise Bad("the file has changed\n" + self.messages)

    def use(self, server, write):
        handle = server.connect()
        size = handle.get_size()
        read_only = handle.is_read_only()
        self.served = "read-only" if read_only else "writable"

        for cluster in CLUSTERS:
            if (cluster + 1) * CLUSTER_SIZE <= size:
                self.clusters[cluster] = self.read(handle, cluster)
        for _ in range(20):
            if size == 0:
                break
            offset = self.rng.randrange(size)
            count = min(self.rng.randrange(1, 100000), size - offset)
            self.expect(("EIO",), handle.pread, count, offset)
            self.expect(("EIO",), extents, handle, offset, count)
        if size:
            self.expect(("EIO",), extents, handle, 0, min(size, 16 << 20))
        if write and not read_only and size:
            for _ in range(20):
                offset = self.rng.randrange(size)
                count = min(self.rng.randrange(1, 10000), size - offset)
                self.expect(("EIO", "EROFS", "EPERM", "ENOSPC"),
                            self.rng.choice([
                                lambda: handle.pwrite(bytes([170]) * count,
                                                      offset),
                                lambda: handle.zero(count, offset),
                                lambda: handle.trim(count, offset)]))
            self.expect(("EIO", "ENOSPC"), handle.flush)
        handle.shutdown()

    def read(self, handle, cluster):
        data = self.expect(("EIO",), handle.pread, CLUSTER_SIZE,
                           cluster * CLUSTER_SIZE)
        if data is None:
            return "EIO"
        return str(data[0]) if len(set(data)) == 1 else "mixed"

    @staticmethod
    def expect(errors, function, *arguments):
        """Call it; None after one of these errors, which are answers of
        the server and not a lost connection."""
        try:
            return function(*arguments)
        except nbd.Error as error:
            if error.errno in errors:
                return None
            raise
