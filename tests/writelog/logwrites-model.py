#!/usr/bin/env python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""What logwrites should say and do, from the second reader; and logs.

  info LOG, list LOG           what logwrites prints with --output=json
  states LOG SIZE              the SHA-256 of a disk of zeroes after the
                               first N entries, for each N
  replay LOG DISK [FIRST END]  entries FIRST..END-1 onto an existing disk;
                               with --no-discard as the last word without
                               its discards
  random LOG SECTORS [SIZE]    make a log: random entries for a disk of so
                               many sectors, of SIZE bytes
  many LOG N                   make a log of N entries of all kinds
  marks LOG NAME...            make a log: a write and a mark of each name,
                               which may have escapes as in Python
  set LOG ENTRY FIELD VALUE    spoil a field of an entry: sector, nr, flags
                               or data_len; of entry -1: nr_entries
"""

import hashlib
import json
import random
import struct
import sys

import writelog_format as wf

FLAGS = {"flush": 1, "fua": 2, "discard": 4, "mark": 8, "metadata": 16}


def text(mark):
    return None if mark is None else mark.decode("utf-8", "replace")


def info(path):
    top, entries, end = wf.parse_log(wf.load(path))
    count = lambda flag: sum(1 for e in entries if e.flags & flag)
    return {
        "entries": top.nr_entries,
        "sector-size": top.sector_size,
        "bytes": end,
        "highest-sector": max(
            (e.sector + e.nr - 1 for e in entries if e.nr), default=None),
        "writes": sum(1 for e in entries if e.data),
        "flushes": count(wf.FLUSH),
        "fuas": count(wf.FUA),
        "discards": count(wf.DISCARD),
        "marks": [{"entry": i, "name": text(e.mark)}
                  for i, e in enumerate(entries) if e.mark is not None],
    }


def list_entries(path):
    return [{
        "entry": i,
        "offset": e.offset,
        "sector": e.sector,
        "nr-sectors": e.nr,
        "flags": [name for name, flag in FLAGS.items() if e.flags & flag],
        "data-len": e.data_len,
        "mark": text(e.mark),
    } for i, e in enumerate(wf.read_log(path)[1])]


def states(path, size):
    top, entries = wf.read_log(path)
    disk = bytearray(size)
    digest = hashlib.sha256(disk).hexdigest()
    print(0, digest)
    for i, e in enumerate(entries):
        if e.nr:
            wf.replay([e], disk, top.sector_size)
            digest = hashlib.sha256(disk).hexdigest()
        print(i + 1, digest)


def replay(path, disk_path, first=0, end=None, discards=True):
    top, entries = wf.read_log(path)
    with open(disk_path, "r+b") as f:
        disk = bytearray(f.read())
        wf.replay([e for e in entries[first:end]
                   if discards or not e.flags & wf.DISCARD],
                  disk, top.sector_size)
        f.seek(0)
        f.write(disk)


def write(path, entries, size=512):
    with open(path, "wb") as f:
        f.write(wf.make_log(entries, size))


def make_random(path, sectors, size=512):
    rnd = random.Random(sectors * size)
    entries = []
    for i in range(200):
        nr = rnd.randrange(1, min(sectors, 64))
        sector = rnd.randrange(sectors - nr + 1)
        flags = rnd.choice((0, 0, 0, 0, wf.FUA, wf.METADATA, wf.FLUSH))
        if i % 20 == 19:
            entries.append(wf.pack_entry(0, 0, wf.MARK, b"m%d" % i, size))
        elif rnd.random() < 0.1:
            entries.append(wf.pack_entry(0, 0, wf.FLUSH, b"", size))
        elif rnd.random() < 0.2:
            entries.append(wf.pack_entry(sector, nr, wf.DISCARD, b"", size))
        else:
            data = bytes([i]) * (nr * size)
            entries.append(wf.pack_entry(sector, nr, flags, data, size))
    write(path, entries, size)


def make_many(path, n):
    rnd = random.Random(n)
    with open(path, "wb") as f:
        f.write(wf.make_log([], nr_entries=n))
        for i in range(n):
            kind = rnd.random()
            if i % 100 == 50:
                entry = wf.pack_entry(0, 0, wf.MARK, b"mark %d" % i)
            elif kind < 0.1:
                entry = wf.pack_entry(0, 0, wf.FLUSH)
            elif kind < 0.2:
                entry = wf.pack_entry(rnd.randrange(1 << 20), 512, wf.DISCARD)
            else:
                flags = rnd.choice((0, wf.FUA, wf.METADATA))
                entry = wf.pack_entry(rnd.randrange(1 << 20), 1, flags,
                                      bytes(512))
            f.write(entry)


def make_marks(path, names):
    entries = []
    for i, name in enumerate(names):
        data = name.encode().decode("unicode_escape").encode("latin-1")
        entries.append(wf.pack_entry(8 * i, 1, 0, bytes(512)))
        entries.append(wf.pack_entry(0, 0, wf.MARK, data))
    write(path, entries)


def set_field(path, number, field, value):
    if number == -1:
        offset = 16
    else:
        log = wf.load(path)
        offset = (wf.parse_log(log)[1][number].offset +
                  8 * ("sector", "nr", "flags", "data_len").index(field))
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(struct.pack("<Q", value))


def main(command, path, *args):
    if command == "info":
        print(json.dumps(info(path)))
    elif command == "list":
        print(json.dumps(list_entries(path)))
    elif command == "states":
        states(path, int(args[0]))
    elif command == "replay":
        discards = args[-1] != "--no-discard"
        numbers = args[1:] if discards else args[1:-1]
        replay(path, args[0], *map(int, numbers), discards=discards)
    elif command == "random":
        make_random(path, *map(int, args))
    elif command == "many":
        make_many(path, int(args[0]))
    elif command == "marks":
        make_marks(path, args)
    elif command == "set":
        set_field(path, int(args[0]), args[1], int(args[2], 0))
    else:
        sys.exit(__doc__)


main(*sys.argv[1:])
