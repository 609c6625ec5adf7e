# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Hosts whose files lose power, and whose calls fail or are the last one.

A server that is started in a host's environment has tests/unit/lossy.c
preloaded: the regular files in the host's folder remember what was replaced
since they were flushed.  They must be there before (a first run makes them).
"""

import contextlib
import mmap
import os
import struct
import uuid

SECTOR = 512
HEAD = struct.Struct("<QQQ")    # offset, length of the old bytes, file's size

# What becomes of calls from the chosen one on.
(ONCE_BEFORE, ONCE_AFTER, FEW_BEFORE, FEW_AFTER,
 ALWAYS_BEFORE, ALWAYS_AFTER) = range(6)


class Host:
    """A folder, whose files and servers share their fate."""

    def __init__(self, folder, library):
        self.folder = os.path.realpath(folder)
        self.library = library
        os.makedirs(self.folder, exist_ok=True)
        self.control_file = self.path(".control")
        with open(self.control_file, "wb") as f:
            f.truncate(mmap.PAGESIZE)
        with open(self.control_file, "r+b") as f:
            self.control = mmap.mmap(f.fileno(), mmap.PAGESIZE)
        self.boot()

    def path(self, name):
        return os.path.join(self.folder, name)

    def boot(self):
        """The host is started (again): it has another boot identifier."""
        with open(self.path(".boot"), "w", encoding="ascii") as f:
            f.write(f"{uuid.uuid4()}\n")

    @contextlib.contextmanager
    def environment(self):
        """For starting a server of this host."""
        before = dict(os.environ)
        os.environ.update(LD_PRELOAD=self.library, LOSSY_FOLDER=self.folder,
                          LOSSY_CONTROL=self.control_file,
                          LOSSY_BOOT=self.path(".boot"))
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    # What happens to calls that change a file.

    def changes(self):
        return struct.unpack_from("<Q", self.control, 0)[0]

    def arm(self, kill_at=0, fail_at=0, mode=ONCE_BEFORE):
        """Count from now on; kill before, or fail, the call of a number."""
        struct.pack_into("<QQQQ", self.control, 0, 0, kill_at, fail_at, mode)

    # Power.

    def undo_files(self):
        return [name for name in sorted(os.listdir(self.folder))
                if name.endswith(".undo")]

    def lose_power(self, rng):
        """Of what was not flushed an arbitrary part is lost.  The servers
        were killed before."""
        keep = rng.random()
        for name in self.undo_files():
            lose(self.path(name[:-len(".undo")]), self.path(name), keep, rng)
        self.boot()

    def unflushed(self):
        """Can anything be lost at all?"""
        return bool(self.undo_files())


def read_undo(name):
    with open(name, "rb") as f:
        data = f.read()
    at = 0
    while at < len(data):
        offset, length, size = HEAD.unpack_from(data, at)
        at += HEAD.size
        yield offset, data[at:at + length], size
        at += length


def lose(name, undo, keep, rng):
    """Make the file one that a power loss may leave: of each sector that was
    written since the flush any version, and of the lengths one."""
    with open(name, "rb") as f:
        now = f.read()
    versions = {}
    sizes = [len(now)]
    for offset, old, size in reversed(list(read_undo(undo))):
        sizes.append(size)
        for at in range(0, max(len(old), 1), SECTOR):
            sector = (offset + at) // SECTOR
            first = sector * SECTOR
            versions.setdefault(sector, [now[first:first + SECTOR]])
            versions[sector].append(old[at:at + SECTOR])
    size = rng.choice([sizes[0], sizes[-1], rng.choice(sizes)])
    data = bytearray(now[:size].ljust(size, b"\0"))
    for sector, contents in versions.items():
        content = contents[-1]
        for newer in reversed(contents[:-1]):
            if rng.random() < keep:
                content = newer
        first = sector * SECTOR
        if first < size:
            content = content.ljust(SECTOR, b"\0")[:size - first]
            data[first:first + len(content)] = content
    with open(name, "wb") as f:
        f.write(data)
    os.unlink(undo)
