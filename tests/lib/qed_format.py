# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""QED images by hand, from the format's description only.

Shares no code with the program under test, and checks nothing: it is
there to make images that break the rules as well as ones that keep them.
"""

import struct

MAGIC = b"QED\0"
BACKING_FILE = 1
NEED_CHECK = 2
NO_PROBE = 4

# Header fields: name -> (offset, format).
FIELDS = {
    "magic": (0, "<I"),
    "cluster_size": (4, "<I"),
    "table_size": (8, "<I"),
    "header_size": (12, "<I"),
    "features": (16, "<Q"),
    "compat_features": (24, "<Q"),
    "autoclear_features": (32, "<Q"),
    "l1_table_offset": (40, "<Q"),
    "image_size": (48, "<Q"),
    "backing_filename_offset": (56, "<I"),
    "backing_filename_size": (60, "<I"),
}


def pread(path, count, offset):
    with open(path, "rb") as f:
        f.seek(offset)
        return f.read(count)


def pwrite(path, data, offset):
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(data)


def get_field(path, name):
    offset, kind = FIELDS[name]
    return struct.unpack(kind, pread(path, struct.calcsize(kind), offset))[0]


def set_field(path, name, value):
    offset, kind = FIELDS[name]
    pwrite(path, struct.pack(kind, value), offset)


class Geometry:
    """Where the tables and clusters of an existing image are."""

    def __init__(self, path):
        self.path = path
        self.cluster_size = get_field(path, "cluster_size")
        self.table_size = get_field(path, "table_size")
        self.image_size = get_field(path, "image_size")
        self.l1_table_offset = get_field(path, "l1_table_offset")
        self.entries = self.cluster_size * self.table_size // 8

    def _entry(self, offset):
        data = pread(self.path, 8, offset)
        return struct.unpack("<Q", data)[0] if len(data) == 8 else 0

    def l1_entry_offset(self, index):
        return self.l1_table_offset + 8 * index

    def l1(self, index):
        return self._entry(self.l1_entry_offset(index))

    def l2_entry_offset(self, cluster):
        """Where in the file the L2 entry of a guest cluster is."""
        table = self.l1(cluster // self.entries)
        if table == 0:
            raise ValueError(f"cluster {cluster} has no L2 table")
        return table + 8 * (cluster % self.entries)

    def l2(self, cluster):
        return self._entry(self.l2_entry_offset(cluster))

    def set_l1(self, index, value):
        pwrite(self.path, struct.pack("<Q", value),
               self.l1_entry_offset(index))

    def set_l2(self, cluster, value):
        pwrite(self.path, struct.pack("<Q", value),
               self.l2_entry_offset(cluster))


def _table(f, offset, entries):
    f.seek(offset)
    data = f.read(8 * entries)
    data += bytes(8 * entries - len(data))
    return struct.unpack(f"<{entries}Q", data)


def check(path, image=None):
    """Walk the tables; return (corruptions, leaks) as lists of lines.

    A judge besides "qemu-img check", which cannot open images of every
    geometry (a table size of 1, for one).  If image is a function it is
    called with guest cluster number, "data" or "zero", and the data's
    file offset.
    """
    corruptions, leaks = [], []
    geometry = Geometry(path)
    cluster_size = geometry.cluster_size
    table_bytes = cluster_size * geometry.table_size
    with open(path, "rb") as f:
        f.seek(0, 2)
        file_clusters = f.tell() // cluster_size
        used = {}

        def use(offset, count, what):
            if offset % cluster_size:
                corruptions.append(f"{what}: {offset} is not aligned")
                return False
            first = offset // cluster_size
            if first + count > file_clusters:
                corruptions.append(f"{what}: {offset} is outside the file")
                return False
            for number in range(first, first + count):
                if number in used:
                    corruptions.append(f"{what}: {offset} is also "
                                       f"{used[number]}")
                    return False
                used[number] = what
            return True

        use(0, get_field(path, "header_size"), "header")
        use(geometry.l1_table_offset, geometry.table_size, "L1 table")
        per_table = geometry.entries * cluster_size
        tables = (geometry.image_size + per_table - 1) // per_table
        for index in range(tables):
            table = geometry.l1(index)
            if table == 0 or not use(table, geometry.table_size,
                                     f"L2 table {index}"):
                continue
            entries = _table(f, table, table_bytes // 8)
            for number, entry in enumerate(entries):
                guest = index * geometry.entries + number
                if entry == 0:
                    continue
                if entry == 1:
                    if image:
                        image(guest, "zero", 0)
                elif use(entry, 1, f"data of cluster {guest}") and image:
                    image(guest, "data", entry)
        leaks = [f"cluster {n} at {n * cluster_size} is not used"
                 for n in range(file_clusters) if n not in used]
    return corruptions, leaks


def trim_storage(path):
    """Cut a copy of fixed-size storage where its last used cluster ends,
    as if it were a file: behind that place nothing can be a leak."""
    geometry = Geometry(path)
    ends = [geometry.l1_table_offset +
            geometry.table_size * geometry.cluster_size]
    for index in range(geometry.entries):
        table = geometry.l1(index)
        if table:
            ends.append(table + geometry.table_size * geometry.cluster_size)
        if (index + 1) * geometry.entries * geometry.cluster_size >= \
                geometry.image_size:
            break
    check(path, lambda guest, kind, offset: ends.append(
        offset + geometry.cluster_size if kind == "data" else 0))
    with open(path, "r+b") as f:
        f.truncate(max(ends))


def content(path, backing=b""):
    """The guest's view of an image over this backing content."""
    size = get_field(path, "image_size")
    cluster_size = get_field(path, "cluster_size")
    view = bytearray(backing[:size]) + bytearray(max(0, size - len(backing)))
    with open(path, "rb") as f:

        def place(guest, kind, offset):
            start = guest * cluster_size
            count = min(cluster_size, size - start)
            if count <= 0:
                return
            if kind == "zero":
                view[start:start + count] = bytes(count)
            else:
                f.seek(offset)
                view[start:start + count] = f.read(count)

        check(path, place)
    return view


def build(path, image_size, cluster_size=4096, table_size=1, clusters=None,
          backing=None, features=0):
    """Write an image.  clusters: guest cluster -> bytes, or "zero"."""
    clusters = clusters or {}
    table_bytes = cluster_size * table_size
    entries = table_bytes // 8
    name = backing.encode() if backing else b""
    if backing:
        features |= BACKING_FILE
    header = struct.pack("<4sIIIQQQQQII", MAGIC, cluster_size, table_size, 1,
                         features, 0, 0, cluster_size, image_size,
                         64 if backing else 0, len(name)) + name
    end = cluster_size + table_bytes
    l1, l2 = {}, {}
    data = []
    for cluster in sorted(clusters):
        index = cluster // entries
        if index not in l1:
            l1[index] = end
            l2[index] = {}
            end += table_bytes
        if clusters[cluster] == "zero":
            l2[index][cluster % entries] = 1
        else:
            l2[index][cluster % entries] = end
            data.append((end, clusters[cluster]))
            end += cluster_size
    with open(path, "wb") as f:
        f.write(header)
        for index, offset in l1.items():
            f.seek(cluster_size + 8 * index)
            f.write(struct.pack("<Q", offset))
            for entry, value in l2[index].items():
                f.seek(offset + 8 * entry)
                f.write(struct.pack("<Q", value))
        for offset, content in data:
            f.seek(offset)
            f.write(content)
        f.truncate(end)
