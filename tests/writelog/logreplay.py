#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Compare what nbdkit-logreplay-plugin serves with logs replayed here.

    logreplay.py random DIR        random logs over random bases, each moment
                                   and some power losses of it
    logreplay.py names LOG         each flush, each FUA write and each mark
    logreplay.py crashes LOG       power losses behind each flush
    logreplay.py occurs LOG        all that may be lost is lost sometimes
    logreplay.py inflight FILE     what cut/N/SEED has besides, in a log
                                   that it makes
    logreplay.py many FILE         make a log of a million entries

LOG may be compressed by xz; its disk is zeroes before.  ROUNDS and SEED
choose how many random logs there are, and which.  Nothing here knows how
the plugin works: states are made with writelog_format.py, and those after a
power loss by the rules in the plugin's manual.
"""

import os
import random
import sys

import nbd

import writelog_format as wl
from byte_model import compare as compare_bytes
from qed_server import Server

CHANCES = (1, 8, 16, 32, 48, 56, 63, 64)
MASK = (1 << 64) - 1
PIECE = 1 << 16


def mix(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


class Loss:
    """A power loss, by the manual."""

    def __init__(self, log, n, seed, unit=1):
        self.unit = unit
        flushes = [i for i, e in enumerate(log) if e.flags & wl.FLUSH]
        self.start = self.first = flushes[n - 1] + 1 if n else 0
        count = (flushes + [len(log)])[n] - self.start
        self.key = mix((mix(seed) + n) & MASK)
        r = self.draw(1)
        if seed == 0 or count == 0:
            self.end = self.start
        elif r % 4 == 0:
            self.end = self.start + count
        else:
            self.end = self.start + r // 4 % (count + 1)
        self.chance = CHANCES[self.draw(2) % 8]
        self.whole = self.draw(3) % 2 == 1 or unit is None

    def draw(self, n):
        return mix((self.key + n) & MASK)

    def has(self, log, entry, sector):
        if log[entry].flags & wl.FUA:
            return True
        unit = 0 if self.whole else sector // self.unit
        coin = mix((self.draw(entry) + unit) & MASK)
        return coin % 64 < self.chance

    def replay(self, log, disk, size):
        """Do it to a disk as it was at the flush."""
        for i in range(self.start, self.end):
            e = log[i]
            for s in range(e.sector, e.sector + e.nr):
                if s * size < len(disk) and self.has(log, i, s):
                    at = (s - e.sector) * size
                    data = bytes(size) if e.flags & wl.DISCARD \
                        else e.data[at:at + size]
                    room = len(disk) - s * size
                    disk[s * size:(s + 1) * size] = data[:room]


class Cut(Loss):
    """A power loss by the wider rules of the manual."""

    def __init__(self, log, n, seed, unit=1):
        super().__init__(log, n, seed, unit)
        flushes = [i for i, e in enumerate(log) if e.flags & wl.FLUSH]
        behind = log[self.start:]
        self.last = None
        if seed == 0:
            self.end = self.start
            return
        if n < len(flushes):
            nxt = flushes[n]
            behind = log[self.start:nxt + (log[nxt].nr > 0)]
        r = self.draw(1)
        up_to = len(behind) if r % 4 == 0 else r // 4 % (len(behind) + 1)
        if self.draw(4) % 4 == 0:
            ends = [i + 1 for i, e in enumerate(behind[:up_to])
                    if e.flags & (wl.FUA | wl.FLUSH)]
            up_to = ends[-1] if ends else up_to
        self.end = self.start + up_to
        self.last = self.end - 1 if up_to else None
        if up_to and log[self.last].flags & wl.FLUSH:
            self.first = self.last
        elif n and not log[self.start - 1].flags & wl.FUA:
            self.first = self.start - 1

    def has(self, log, entry, sector):
        if entry < self.first:
            return True
        if entry == self.last:
            log = {entry: log[entry]._replace(flags=0)}
        return super().has(log, entry, sector)

    def replay(self, log, disk, size):
        self.start = min(self.start, self.first)
        super().replay(log, disk, size)


def states(log, disk, size):
    """The disk before the log and after each entry, with its number."""
    yield 0, disk
    for i, entry in enumerate(log):
        wl.replay([entry], disk, size)
        yield i + 1, disk


def connect(server, name):
    h = nbd.NBD()
    h.set_export_name(name)
    h.add_meta_context("base:allocation")
    h.connect_unix(server.socket)
    return h


def compare(server, name, disk):
    h = connect(server, name)
    if h.get_size() != len(disk):
        sys.exit(f"{name}: {h.get_size()} bytes, not {len(disk)}")
    disk = memoryview(disk)
    for at in range(0, len(disk), PIECE):
        wanted = disk[at:at + PIECE]
        compare_bytes(name, h.pread(len(wanted), at), wanted, at)
    h.shutdown()


def check_extents(server, name, disk):
    """What is said to be zero is."""
    h = connect(server, name)
    at = 0

    def extent(context, offset, entries, error):
        nonlocal at
        for length, flags in zip(entries[::2], entries[1::2]):
            if flags & nbd.STATE_ZERO and any(disk[at:at + length]):
                sys.exit(f"{name}: {length} bytes at {at} are not zero")
            at += length

    while at < len(disk):
        h.block_status(len(disk) - at, at, extent)
    h.shutdown()


# ---- Random logs

def random_entry(rng, sectors, size):
    sector = rng.randrange(sectors)
    nr = min(rng.choice((1, 1, 2, 3, 8, sectors)), sectors - sector)
    kind = rng.randrange(10)
    if kind == 0:
        return wl.pack_entry(flags=wl.FLUSH, sector_size=size)
    if kind == 1:
        return wl.pack_entry(flags=wl.MARK, data=b"m"[:size - 32],
                             sector_size=size)
    if kind < 4:
        return wl.pack_entry(sector, nr, wl.DISCARD, sector_size=size)
    flags = rng.choice((0, 0, 0, wl.METADATA, wl.FUA, wl.FLUSH,
                        wl.FLUSH | wl.FUA))
    return wl.pack_entry(sector, nr, flags, rng.randbytes(nr * size), size)


def random_round(rng, folder):
    size = rng.choice((32, 512, 4096))
    sectors = rng.randrange(1, 100)
    log_file, base_file = (os.path.join(folder, f) for f in ("log", "base"))
    with open(log_file, "wb") as f:
        f.write(wl.make_log([random_entry(rng, sectors, size)
                             for _ in range(rng.randrange(80))], size))
    log = wl.read_log(log_file)[1]
    # The last sector of the log may reach behind the disk.
    disk_size = sectors * size - rng.choice((0, rng.randrange(size)))
    base = rng.randbytes(rng.choice((disk_size, rng.randrange(disk_size))))
    with open(base_file, "wb") as f:
        f.write(base)
    server = Server(log_file, [f"base={base_file}", f"size={disk_size}"],
                    plugin="logreplay")
    base += bytes(disk_size - len(base))

    for n, disk in states(log, bytearray(base), size):
        compare(server, f"entry/{n}", disk)
        check_extents(server, f"entry/{n}", disk)
    compare(server, "", disk)
    flushes = sum(1 for e in log if e.flags & wl.FLUSH)
    for n in range(flushes + 1):
        for seed in (0, rng.randrange(1 << 64)):
            compare_loss(server, log, bytearray(base), size, n, seed)
    for _ in range(6):
        compare_lost(server, log, bytearray(base), size, rng)
    server.stop()
    random_tear(rng, log, log_file, base_file, base, size)


def random_tear(rng, log, log_file, base_file, base, size):
    """A unit of loss that is not the log's sector."""
    unit = rng.choice((1, 2, 8, None))
    server = Server(log_file, [
        f"base={base_file}", f"size={len(base)}",
        f"tear={unit * size if unit else 'entry'}"], plugin="logreplay")
    for n in range(1 + sum(1 for e in log if e.flags & wl.FLUSH)):
        seed = rng.randrange(1, 1 << 64)
        compare_loss(server, log, bytearray(base), size, n, seed, unit)
    server.stop()


def compare_lost(server, log, disk, size, rng):
    """The first entries without a random set of writes and parts of them."""
    n = rng.randrange(len(log) + 1)
    lost, items = set(), []
    for i in range(n):
        nr = log[i].nr
        if not nr or rng.random() < 0.5:
            continue
        if rng.random() < 0.5:
            items.append(f"{i}")
            first, last = 0, nr - 1
        else:
            first = rng.randrange(nr)
            last = rng.randrange(first, nr)
            items.append(f"{i}:{first}-{last}")
        lost |= {(i, s) for s in range(first, last + 1)}
    whole = [i for i in range(n - 1) if log[i].nr and log[i + 1].nr]
    if whole and rng.random() < 0.5:
        i = rng.choice(whole)
        items.append(f"{i}-{i + 1}")
        lost |= {(e, s) for e in (i, i + 1) for s in range(log[e].nr)}
    if not items:
        return
    rng.shuffle(items)
    for i in range(n):
        e = log[i]
        for s in range(e.nr):
            at = (e.sector + s) * size
            if (i, s) not in lost and at < len(disk):
                data = bytes(size) if e.flags & wl.DISCARD \
                    else e.data[s * size:(s + 1) * size]
                disk[at:at + size] = data[:len(disk) - at]
    compare(server, f"lost/{n}/{','.join(items)}", disk)
    check_extents(server, f"lost/{n}/{','.join(items)}", disk)


def compare_loss(server, log, disk, size, n, seed, unit=1):
    before = bytes(disk)
    for kind, loss in (("crash", Loss(log, n, seed, unit)),
                       ("cut", Cut(log, n, seed, unit))):
        disk[:] = before
        wl.replay(log[:min(loss.start, loss.first)], disk, size)
        loss.replay(log, disk, size)
        compare(server, f"{kind}/{n}/{seed}", disk)
        check_extents(server, f"{kind}/{n}/{seed}", disk)


def command_random(folder):
    seed = os.environ.get("SEED", "1")
    for i in range(int(os.environ.get("ROUNDS", "12"))):
        print(f"SEED={seed}, round {i}")
        random_round(random.Random(f"{seed} {i}"), folder)


# ---- A given log

def open_log(path):
    top, log = wl.read_log(path)
    end = max(e.sector + e.nr for e in log) * top.sector_size
    return log, top.sector_size, bytearray(end)


def unpacked(path):
    """The log's file as the plugin can read it."""
    if not path.endswith(".xz"):
        return path
    with open("unpacked.log", "wb") as f:
        f.write(wl.load(path))
    return "unpacked.log"


def command_names(path):
    log, size, disk = open_log(path)
    server = Server(unpacked(path), plugin="logreplay")
    flushes = fuas = 0
    marks = set()
    for n, disk in states(log, disk, size):
        entry = log[n - 1] if n else None
        if n and entry.flags & wl.FLUSH:
            flushes += 1
            compare(server, f"flush/{flushes}", disk)
        if n and entry.flags & wl.FUA:
            fuas += 1
            compare(server, f"fua/{fuas}", disk)
        if n and entry.mark is not None and entry.mark not in marks:
            marks.add(entry.mark)
            compare(server, "mark/" + entry.mark.decode(), disk)
    server.stop()
    print(f"{flushes} flushes, {fuas} FUA writes, {len(marks)} marks")


def command_crashes(path):
    """The rules, and what they are for: each sector that is not as at the
    flush was written in the interval.
    """
    log, size, disk = open_log(path)
    server = Server(unpacked(path), plugin="logreplay")
    changed = done = 0
    for n in range(0, 1 + sum(1 for e in log if e.flags & wl.FLUSH), 6):
        loss = Loss(log, n, 0)
        wl.replay(log[done:loss.start], disk, size)
        done = loss.start
        compare(server, f"crash/{n}/0", disk)
        if n:
            compare(server, f"flush/{n}", disk)
        for seed in (n + 1, n + 1000, MASK):
            loss = Loss(log, n, seed)
            after = bytearray(disk)
            loss.replay(log, after, size)
            compare(server, f"crash/{n}/{seed}", after)
            changed += after != disk
            may_change = {s for e in log[loss.start:loss.end]
                          for s in range(e.sector, e.sector + e.nr)}
            for at in range(0, len(disk), size):
                if after[at:at + size] != disk[at:at + size]:
                    assert at // size in may_change
    server.stop()
    print(f"{changed} of them differ from the flush")


def occurs(server, log, size, disk, n):
    """Over many seeds: which writes behind flush n are there wholly, partly
    and not at all?
    """
    loss = Loss(log, n, 0)
    end = next((i for i in range(loss.start, len(log))
                if log[i].flags & wl.FLUSH), len(log))
    seen = {i: set() for i in range(loss.start, end) if log[i].nr}
    # A write can be told only by sectors that no other one of the interval
    # writes, and that it changes.
    own = {}
    for i in seen:
        e = log[i]
        others = {s for j in seen if j != i for s in
                  range(log[j].sector, log[j].sector + log[j].nr)}
        own[i] = {}
        for s in set(range(e.sector, e.sector + e.nr)) - others:
            at = (s - e.sector) * size
            new = bytes(size) if e.flags & wl.DISCARD \
                else e.data[at:at + size]
            if new != disk[s * size:(s + 1) * size]:
                own[i][s] = new
    for seed in range(1, 150):
        h = connect(server, f"crash/{n}/{seed}")
        for i, sectors in own.items():
            if sectors:
                there = [h.pread(size, s * size) == new
                         for s, new in sectors.items()]
                seen[i].add("all" if all(there) else
                            "part" if any(there) else "none")
        h.shutdown()
    for i, sectors in own.items():
        wanted = {"all", "none"}
        if len(sectors) > 1 and not log[i].flags & wl.FUA:
            wanted.add("part")
        if sectors and seen[i] != wanted:
            sys.exit(f"flush {n}, entry {i}: only {seen[i]}")
    return sum(1 for s in own.values() if s)


def command_occurs(path):
    log, size, disk = open_log(path)
    server = Server(unpacked(path), plugin="logreplay")
    total = done = 0
    flushes = sum(1 for e in log if e.flags & wl.FLUSH)
    for n in range(1, flushes, 7):
        start = Loss(log, n, 0).start
        wl.replay(log[done:start], disk, size)
        done = start
        total += occurs(server, log, size, disk, n)
    server.stop()
    assert total > 20
    print(f"{total} writes")


def command_inflight(path):
    """What cut/N/SEED has and crash/N/SEED has not: a FUA write that is
    torn, and data of a flush that are torn, before and after its reply.
    """
    size, new = 512, b"n" * 1024
    log = [wl.pack_entry(0, 2, wl.FUA, new, size),
           wl.pack_entry(8, 1, 0, new[:512], size),
           wl.pack_entry(2, 2, wl.FLUSH, new, size),
           wl.pack_entry(4, 2, wl.FUA, new, size),
           wl.pack_entry(6, 1, 0, new[:512], size)]
    with open(path, "wb") as f:
        f.write(wl.make_log(log, size))
    server = Server(path, plugin="logreplay")

    def seen(kind, n):
        states = set()
        for seed in range(1, 200):
            h = connect(server, f"{kind}/{n}/{seed}")
            states.add("".join("n" if b else "-"
                               for b in h.pread(9 * size, 0)[::size]))
            h.shutdown()
        return states

    old, cut = seen("crash", 0), seen("cut", 0)
    assert old == {"-" * 9, "nn-------", "nn------n"}, old
    # FUA lost and torn; the flush, torn only when all before it is there.
    assert cut == old | {"n--------", "-n-------", "nnn-----n",
                         "nn-n----n", "nnnn----n"}, cut
    old, cut = seen("crash", 1), seen("cut", 1)
    assert all(s.startswith("nnnn") for s in old), old
    assert {s[4:6] for s in old} == {"--", "nn"}, old
    assert {s[2:4] for s in cut} == {"--", "n-", "-n", "nn"}, cut
    assert {s[4:6] for s in cut} == {"--", "n-", "-n", "nn"}, cut
    # Once it has been acknowledged it is there.
    assert all(s[4:6] == "nn" for s in cut if s[6] == "n"), cut
    server.stop()


def command_many(path):
    """Entry N writes sector N * 7919 modulo a million, with its number; each
    hundredth is a flush.
    """
    count = 1000000
    with open(path, "wb") as f:
        f.write(wl.make_log([], 32, count))
        for i in range(count):
            if i % 100 == 99:
                f.write(wl.pack_entry(flags=wl.FLUSH, sector_size=32))
            else:
                f.write(wl.pack_entry(i * 7919 % count, 1, 0,
                                      b"%032d" % i, 32))


if __name__ == "__main__":
    globals()["command_" + sys.argv[1]](sys.argv[2])
