#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Compare the states that logwrites explore tries with a model of them.

    explore.py SECTOR-SIZE SEED    a random log, all kinds of states
    explore.py disk                as a command of explore: do with its disk
                                   what clients do, on two connections

The model makes them by the manual's words, with a disk that knows of each
sector which entry it comes from.
"""

import hashlib
import json
import os
import random
import subprocess
import sys

import nbd

import writelog_format as wl
from logreplay import Cut

KINDS = "flush,mark,fua,entry,single,only,torn,random:3"
SECTORS = 24


# ---- The model, a page

class Model:
    def __init__(self, log):
        self.log = log
        self.found = []         # (entries, where each sector comes from)
        for kind in (self.prefixes, self.singles, self.onlies, self.torn,
                     self.randoms):
            self.found += kind()

    def state(self, entries, is_lost):
        disk = [None] * SECTORS
        for i, e in enumerate(self.log[:entries]):
            for s in range(e.sector, e.sector + e.nr):
                if not is_lost(i, s):
                    disk[s] = None if e.flags & wl.DISCARD else i
        return entries, tuple(disk)

    def flag(self, i, flag):
        return bool(self.log[i].flags & flag)

    def intervals(self):
        """Of each the number, where it starts, and where it ends."""
        flushes = [i for i in range(len(self.log)) if self.flag(i, wl.FLUSH)]
        starts = [0] + [i + 1 for i in flushes]
        return list(zip(range(len(starts)), starts, flushes + [len(self.log)]))

    def prefixes(self):
        wanted = list(range(len(self.log) + 1))
        for flag in (wl.FLUSH, wl.FUA, wl.MARK):
            wanted += [i + 1 for i in range(len(self.log))
                       if self.flag(i, flag)]
        return [self.state(n, lambda i, s: False) for n in wanted]

    def singles(self):
        return [self.state(end, lambda i, s, e=e: i == e)
                for n, start, end in self.intervals()
                for e in range(max(start - 1, 0), end)
                if self.log[e].nr and not self.flag(e, wl.FUA) and
                (e >= start or n)]

    def onlies(self):
        return [self.state(e + 1, lambda i, s, e=e, start=start:
                           start <= i < e and not self.flag(i, wl.FUA))
                for n, start, end in self.intervals()
                for e in range(start, end) if self.log[e].nr]

    def torn(self):
        result = []
        for i, e in enumerate(self.log):
            if e.nr > 1:
                cut = e.sector + e.nr // 2
                for lost in (range(e.sector, cut),
                             range(cut, e.sector + e.nr)):
                    result.append(self.state(
                        i + 1, lambda j, s, i=i, lost=lost:
                        i == j and s in lost))
        return result

    def randoms(self):
        result = []
        for n, start, end in self.intervals():
            first = start - 1 if n and self.log[start - 1].nr and \
                not self.flag(start - 1, wl.FUA) else start
            if not any(e.nr for e in self.log[first:end + 1]):
                continue
            for seed in range(1, 4):
                cut = Cut(self.log, n, seed)
                begin = min(cut.start, cut.first)
                result.append(self.state(
                    cut.end, lambda i, s, cut=cut, begin=begin:
                    i >= begin and not cut.has(self.log, i, s)))
        return result

    def marks(self, entries):
        return sum(self.flag(i, wl.MARK) for i in range(entries))

    def distinct(self):
        """Of each content the most marks that were before it."""
        result = {}
        for entries, disk in self.found:
            result[disk] = max(result.get(disk, 0), self.marks(entries))
        return result

    def bytes_of(self, disk, size):
        out = bytearray()
        for s, i in enumerate(disk):
            at = 0 if i is None else (s - self.log[i].sector) * size
            out += bytes(size) if i is None else self.log[i].data[at:at + size]
        return bytes(out)


# ---- The log, and what explore does with it

def random_entry(rng, size):
    sector = rng.randrange(SECTORS)
    nr = min(rng.choice((1, 1, 2, 3, 5)), SECTORS - sector)
    kind = rng.randrange(12)
    if kind == 0:
        return wl.pack_entry(flags=wl.FLUSH, sector_size=size)
    if kind == 1:
        return wl.pack_entry(flags=wl.MARK, data=b"m", sector_size=size)
    if kind == 2:
        return wl.pack_entry(sector, nr, wl.DISCARD, sector_size=size)
    flags = rng.choice((0, 0, 0, 0, wl.METADATA, wl.FUA, wl.FLUSH,
                        wl.FLUSH | wl.FUA))
    return wl.pack_entry(sector, nr, flags, rng.randbytes(nr * size), size)


def explore(*arguments):
    return subprocess.run(["logwrites", "explore", f"--states={KINDS}",
                           *arguments], check=True, capture_output=True,
                          text=True).stdout


def main(size, seed):
    rng = random.Random(seed)
    with open("log", "wb") as f:
        f.write(wl.make_log([random_entry(rng, size) for _ in range(40)],
                            size))
    model = Model(wl.read_log("log")[1])
    wanted = {hashlib.sha256(model.bytes_of(disk, size)).hexdigest(): marks
              for disk, marks in model.distinct().items()}

    report = json.loads(explore(
        f"--size={SECTORS * size}", "--output=json", "log", "--",
        'nbdcopy "$uri" - | sha256sum >>sums.$entry.$$ &&'
        'echo "$exportname $(cut -d" " -f1 sums.$entry.$$)" >>sums'))
    with open("sums", encoding="ascii") as f:
        sums = dict(line.split() for line in f)
    assert report["summary"]["states"] == len(model.found), \
        (report["summary"], len(model.found))
    tried = {sums[s["state"]]: model.marks(s["entry"])
             for s in report["states"]}
    assert len(tried) == len(report["states"]), "a content was tried twice"
    assert tried == wanted, (len(tried), len(wanted))
    print(len(model.found), "states,", len(wanted), "distinct")


# ---- A client

def connect():
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    h.set_strict_mode(0)
    h.connect_uri(os.environ["uri"])
    return h


def read_all(h):
    size = h.get_size()
    return b"".join(h.pread(min(1 << 20, size - at), at)
                    for at in range(0, size, 1 << 20))


def must_fail(call, *arguments):
    try:
        call(*arguments)
    except nbd.Error:
        return
    sys.exit(f"{call} {arguments[1:]} did not fail")


def check_extents(h, disk):
    at = 0

    def extents(context, offset, entries, error):
        nonlocal at
        for length, flags in zip(entries[::2], entries[1::2]):
            assert not (flags & nbd.STATE_ZERO and any(disk[at:at + length]))
            at += length

    while at < len(disk):
        h.block_status(len(disk) - at, at, extents)


def use_disk():
    rng = random.Random(os.environ["entry"])
    hs = [connect(), connect()]
    disk = bytearray(read_all(hs[0]))
    size = len(disk)
    for _ in range(300):
        h = rng.choice(hs)
        at = rng.randrange(size)
        n = min(rng.choice((1, 511, 4096, 70000, size)), size - at)
        data = bytes(n)
        kind = rng.randrange(5)
        if kind == 0:
            assert h.pread(n, at) == disk[at:at + n]
            continue
        if kind == 1:
            h.zero(n, at, rng.choice((0, nbd.CMD_FLAG_NO_HOLE,
                                      nbd.CMD_FLAG_FAST_ZERO)))
        elif kind == 2:
            h.trim(n, at)
        else:
            data = rng.randbytes(n)
            h.pwrite(data, at, rng.choice((0, nbd.CMD_FLAG_FUA)))
        disk[at:at + n] = data
    for h in hs:
        h.flush()
        for bad in ((h.pread, 2, size - 1), (h.pwrite, b"xx", size - 1),
                    (h.zero, 1, size), (h.trim, 1, size)):
            must_fail(*bad)
        assert read_all(h) == disk
        check_extents(h, disk)
        h.shutdown()


if __name__ == "__main__":
    if sys.argv[1] == "disk":
        use_disk()
    else:
        main(*map(int, sys.argv[1:]))
