# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Write logs by hand, from the format's description only: a second reader.

Shares no code with the program under test.  read_log raises BadLog for
what breaks a rule; make_log and pack_entry check nothing, so that they can
make logs that break the rules as well as ones that keep them.
"""

import collections
import lzma
import struct

MAGIC = 0x6A736677736872
VERSION = 1
FLUSH, FUA, DISCARD, MARK, METADATA = 1, 2, 4, 8, 16
SUPER = struct.Struct("<QQQI")
ENTRY = struct.Struct("<QQQQ")

Super = collections.namedtuple("Super", "nr_entries sector_size")

# offset is that of the entry's own sector in the log, in bytes; data is None
# without data; mark is None but for marks.
Entry = collections.namedtuple(
    "Entry", "offset sector nr flags data_len data mark")


class BadLog(Exception):
    pass


def read_super(log):
    if len(log) < SUPER.size:
        raise BadLog("no super block")
    magic, version, nr_entries, sector_size = SUPER.unpack_from(log)
    if (magic, version) != (MAGIC, VERSION):
        raise BadLog("not a log")
    if sector_size < 32 or sector_size & (sector_size - 1):
        raise BadLog("sector size %d" % sector_size)
    return Super(nr_entries, sector_size)


def read_entry(log, size, number, offset):
    """Entry and offset of the next one."""
    def check(condition, what):
        if not condition:
            raise BadLog("entry %d at %d: %s" % (number, offset, what))

    check(offset + size <= len(log), "beyond the end")
    sector, nr, flags, data_len = ENTRY.unpack_from(log, offset)
    check(flags < 32, "flags %#x" % flags)
    data = mark = None
    end = offset + size
    if flags & MARK:
        check(nr == 0 and data_len <= size - ENTRY.size, "mark")
        start = offset + ENTRY.size
        mark = log[start:start + data_len].split(b"\0")[0]
    elif nr and not flags & DISCARD:
        end += nr * size
        check(end <= len(log), "data beyond the end")
        data = log[offset + size:end]
    return Entry(offset, sector, nr, flags, data_len, data, mark), end


def parse_log(log):
    """Super block, entries, and the offset behind the last one."""
    top = read_super(log)
    entries, offset = [], top.sector_size
    for number in range(top.nr_entries):
        entry, offset = read_entry(log, top.sector_size, number, offset)
        entries.append(entry)
    return top, entries, offset


def load(path):
    with (lzma.open if str(path).endswith(".xz") else open)(path, "rb") as f:
        return f.read()


def read_log(path):
    """Super block and entries of a log, which may be compressed by xz."""
    return parse_log(load(path))[:2]


def replay(entries, disk, sector_size=512):
    """Do to a bytearray what the entries say.  A disk whose size is no
    multiple of the sector size has a last sector that is cut short.
    """
    size = len(disk)
    for e in entries:
        start, count = e.sector * sector_size, e.nr * sector_size
        data = bytes(count) if e.flags & DISCARD else e.data
        if data:
            disk[start:start + count] = data[:max(0, size - start)]
    assert len(disk) == size, "the log goes beyond the disk"


def pack_entry(sector=0, nr=0, flags=0, data=b"", sector_size=512,
               data_len=None):
    """An entry with its data, or its text if it is a mark."""
    if data_len is None:
        data_len = len(data) if flags & MARK else 0
    head = ENTRY.pack(sector, nr, flags, data_len)
    if flags & MARK:
        return (head + data).ljust(sector_size, b"\0")
    return head.ljust(sector_size, b"\0") + data


def make_log(entries, sector_size=512, nr_entries=None):
    """A log of entries made by pack_entry."""
    if nr_entries is None:
        nr_entries = len(entries)
    top = SUPER.pack(MAGIC, VERSION, nr_entries, sector_size)
    return top.ljust(sector_size, b"\0") + b"".join(entries)
