#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Differential test of the qed plugin against plain bytes.

    model.py BACKING DIRECTORY

BACKING is none, raw, qed (QED over raw), short (raw, ends inside of a
cluster) or long (raw, longer than the image); or "wide": an image of more
than a GiB, of which windows around the borders of L2 tables are used; or
"nbd", "nbd-aligned", "block": an image in storage of fixed size, namely an
NBD export, one that takes aligned requests only, a block device.
DIRECTORY gets the images; what a failure leaves there can be looked at.

Each round makes an image of another geometry, sends it random requests
over several connections, and compares every answer with a byte array that
was treated the same.  Some requests are in flight at the same time: on
disjoint ranges that share clusters, where the result is certain, and on
overlapping ones, where each byte must be one of the possible values.  The
server is restarted in the middle.  At the end independent judges look at
the image: the reader in qed_format.py, and qemu-img check and convert
where QEMU can open it.

SEED and ROUNDS are taken from the environment; round N of a seed is the
same whatever ROUNDS is.  FIRST skips rounds.
"""

import os
import random
import shutil
import subprocess
import sys

import nbd

import qed_format
from byte_model import Mismatch, compare, learn_trim
from qed_server import Pipeline, Request, Server, ServerError, extents

KIB = 1 << 10
MIB = 1 << 20

CLUSTER_SIZES = [4 * KIB, 8 * KIB, 64 * KIB, 1 * MIB, 2 * MIB]
TABLE_SIZES = [1, 2, 4, 16]
BACKINGS = ["none", "raw", "qed", "short", "long"]
STORAGES = ["nbd", "nbd-aligned", "block"]
STORAGE_SIZE = 320 * MIB


def command(*arguments):
    done = subprocess.run(arguments, capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        raise Mismatch(f"{' '.join(arguments)}: status {done.returncode}\n"
                       f"{done.stdout}{done.stderr}")
    return done.stdout


def qemu_img(*arguments):
    command("qemu-img", *arguments)


class Storage:
    """Storage of fixed size; name is how the plugin is told of it."""

    def __init__(self, kind, directory):
        self.file = os.path.join(directory, "storage")
        with open(self.file, "wb") as f:
            f.truncate(STORAGE_SIZE)
        self.server = None
        if kind == "block":
            self.name = command("losetup", "-f", "--show",
                                self.file).strip()
            return
        options = []
        if kind == "nbd-aligned":
            options = ["--filter=blocksize-policy"]
        self.server = Server(self.file, [] if not options else [
            "blocksize-minimum=4096", "blocksize-error-policy=error"],
            options=options, plugin="file")
        self.name = self.server.uri

    def copy(self, path):
        """What a file would hold in its place."""
        command("cp", "--sparse=always", self.file, path)
        qed_format.trim_storage(path)

    def close(self):
        if self.server:
            self.server.kill()
        else:
            command("losetup", "-d", self.name)


class Round:
    """One image: its geometry, its model, its server."""

    def __init__(self, rng, number, kind, directory):
        self.rng = rng
        self.dir = directory
        self.wide = kind == "wide"
        self.backing_kind = kind
        if kind not in BACKINGS:
            self.backing_kind = rng.choice(["none", "raw"])
        self.history = []
        self.server = None
        self.storage = None

        if self.wide:
            self.cluster_size = rng.choice([4 * KIB, 64 * KIB, 64 * KIB])
            self.table_size = rng.choice([1, 2])
        else:
            # Five rounds see each cluster size, twenty each combination.
            self.cluster_size = CLUSTER_SIZES[number % 5]
            shift = (BACKINGS + STORAGES).index(kind)
            self.table_size = TABLE_SIZES[(number + number // 5 + shift) % 4]
        entries = self.cluster_size * self.table_size // 8
        per_table = entries * self.cluster_size

        if self.wide:
            self.size = 2 * per_table + 512 * rng.randrange(1, 2000)
            if self.cluster_size == 4 * KIB:
                self.size = 100 * per_table + 512 * rng.randrange(1, 2000)
            width = 128 * KIB
            borders = [0, per_table, 2 * per_table, self.size]
            self.windows = [(max(0, b - width), min(self.size, b + width))
                            for b in borders]
            # The last two may touch each other.
            if self.windows[2][1] > self.windows[3][0]:
                self.windows[2:] = [(self.windows[2][0], self.size)]
        else:
            clusters = rng.choice([3, 5, 9]) if self.cluster_size >= MIB \
                else rng.randrange(20, 60)
            if self.cluster_size <= 8 * KIB and rng.random() < 0.5:
                clusters += entries    # a second L2 table
            self.size = clusters * self.cluster_size
            if rng.random() < 0.7:
                self.size -= 512 * rng.randrange(self.cluster_size // 512)
            self.windows = [(0, self.size)]

        # QEMU 7.2 opens no image with a table size of 1, and none whose
        # tables could map more than 64 bits.
        self.qemu_can = (self.table_size > 1 and
                         entries * entries * self.cluster_size < 1 << 64)

        self.params = []
        if rng.random() < 0.5:
            self.params.append(
                f"l2-cache-size={rng.choice(['4k', '8k', '64k'])}")
        self.params.append(
            f"detect-zeroes={rng.choice(['off', 'off', 'on', 'unmap'])}")
        if self.backing_kind != "none" and rng.random() < 0.3:
            self.params.append("copy-on-read=true")
        if rng.random() < 0.2:
            self.params.append("trim=ignore")

        for name in os.listdir(directory):
            os.unlink(self.path(name))
        self.image = self.path("disk.qed")
        self.served = self.image        # what the plugin is told
        self.kind = kind

    def __str__(self):
        return (f"{self.backing_kind} backing, cluster_size="
                f"{self.cluster_size},table_size={self.table_size} size "
                f"{self.size} {' '.join(self.params)}")

    # Images and the model.

    def make_images(self):
        if self.kind in STORAGES:
            self.storage = Storage(self.kind, self.dir)
            self.served = self.storage.name
        backing = self.make_backing()
        if self.storage:
            # The name is relative to no folder, so it must be absolute.
            arguments = ["-o", f"cluster_size={self.cluster_size},"
                         f"table_size={self.table_size}"]
            if backing:
                arguments += ["-b", self.path(backing[0]), "-F", backing[1]]
            command("qed-img", "create", "-q", *arguments, self.served,
                    str(self.size))
        elif not self.qemu_can:
            qed_format.build(self.image, self.size, self.cluster_size, 1,
                             backing=backing and backing[0],
                             features=qed_format.NO_PROBE
                             if backing and backing[1] == "raw" else 0)
        else:
            arguments = ["create", "-q", "-f", "qed", "-o",
                         f"cluster_size={self.cluster_size},"
                         f"table_size={self.table_size}"]
            if backing:
                arguments += ["-b", backing[0], "-F", backing[1]]
            qemu_img(*arguments, self.image, str(self.size))
        self.base = self.path("base.raw") if backing else None
        self.model = []
        for start, end in self.windows:
            content = bytearray(end - start)
            if self.base:
                with open(self.base, "rb") as f:
                    f.seek(start)
                    data = f.read(end - start)
                content[:len(data)] = data
            self.model.append(content)

    def path(self, name):
        return os.path.join(self.dir, name)

    def make_backing(self):
        """Make base.raw, what the overlay sees; returns the name and
        format for the header, relative as users write it."""
        rng = self.rng
        kind = self.backing_kind
        if kind == "none":
            return None
        size = self.size
        if kind == "short":
            size = max(512, size // 2 - 512 * rng.randrange(1, 100))
        elif kind == "long":
            size += 512 * rng.randrange(1, 3000)
        with open(self.path("base.raw"), "wb") as f:
            f.truncate(size)
            for start, end in self.windows:
                end = min(end, size)
                for _ in range(30 if start < end else 0):
                    at = rng.randrange(start, end)
                    f.seek(at)
                    f.write(rng.randbytes(min(end - at,
                                              rng.randrange(1, 70000))))
        if kind != "qed":
            return "base.raw", "raw"
        os.rename(self.path("base.raw"), self.path("low.raw"))
        qemu_img("create", "-q", "-f", "qed", "-b", "low.raw", "-F", "raw",
                 "-o", f"cluster_size={rng.choice([4096, 65536])}",
                 self.path("middle.qed"), str(size))
        commands = []
        for value in range(1, 12):
            at = 512 * rng.randrange(size // 512)
            count = min(size - at, 512 * rng.randrange(1, 300))
            how = "-z" if value % 3 == 0 else f"-P {value}"
            commands += ["-c", f"write {how} {at} {count}"]
        subprocess.run(["qemu-io", "-f", "qed", *commands,
                        self.path("middle.qed")], check=True,
                       stdout=subprocess.DEVNULL)
        qemu_img("convert", "-f", "qed", "-O", "raw",
                 self.path("middle.qed"), self.path("base.raw"))
        return "middle.qed", "qed"

    # Requests.

    def start(self):
        self.server = Server(self.served, self.params)
        self.handles = [self.server.connect() for _ in range(4)]
        self.pipeline = Pipeline(self.handles)
        size = self.handles[0].get_size()
        if size != self.size:
            raise Mismatch(f"served size is {size}")
        self.fast_zero = self.handles[0].can_fast_zero()

    def stop(self):
        for handle in self.handles:
            handle.shutdown()
        self.server.stop()

    def run(self, requests):
        self.history.append([str(r) for r in requests])
        self.pipeline.run(requests)
        self.history[-1] = [str(r) for r in requests]

    def pick_range(self, window, limit=None):
        """A range in a window: often short, often around the border of a
        cluster, sometimes large; offset and length of any alignment."""
        rng = self.rng
        length = len(self.model[window])
        kind = rng.random()
        if kind < 0.4:
            count = rng.randrange(1, 5000)
        elif kind < 0.6:
            count = 512 * rng.randrange(1, 40)
        elif kind < 0.9:
            count = rng.randrange(1, min(3 * self.cluster_size, 300000))
        else:
            count = rng.randrange(1, min(length, 4 * MIB) + 1)
        if limit:
            count = min(count, limit)
        count = min(count, length)
        offset = rng.randrange(length - count + 1)
        align = rng.choice([1, 1, 512, 4096, self.cluster_size])
        start = self.windows[window][0]
        offset = max((start + offset) // align * align - start, 0)
        if align > 1 and rng.random() < 0.7 and count > align:
            count -= count % align
        return offset, count

    def random_data(self, count):
        rng = self.rng
        kind = rng.random()
        if kind < 0.15:
            return bytes(count)
        data = rng.randbytes(count)
        if kind < 0.3:
            data = bytes(count // 2) + data[count // 2:]
        return data

    def random_request(self, window, offset, count):
        """A request that changes something; offset is in the window."""
        rng = self.rng
        absolute = self.windows[window][0] + offset
        flags = nbd.CMD_FLAG_FUA if rng.random() < 0.1 else 0
        kind = rng.random()
        if kind < 0.6:
            return Request("write", absolute, count, self.random_data(count),
                           flags)
        if kind < 0.85:
            if rng.random() < 0.5:
                flags |= nbd.CMD_FLAG_NO_HOLE
            if self.fast_zero and rng.random() < 0.3:
                flags |= nbd.CMD_FLAG_FAST_ZERO
            return Request("zero", absolute, count, flags=flags)
        return Request("trim", absolute, count, flags=flags)

    def settle(self, window, request):
        """Put the effect of an answered request into the model."""
        start = request.offset - self.windows[window][0]
        end = start + request.count
        model = self.model[window]
        if request.error is not None:
            if not (request.flags & nbd.CMD_FLAG_FAST_ZERO and
                    request.error.errno in ("ENOTSUP", "EOPNOTSUPP")):
                raise Mismatch(f"{request}")
        elif request.kind == "write":
            model[start:end] = request.data
        elif request.kind == "zero":
            model[start:end] = bytes(request.count)
        elif request.kind == "trim":
            learn_trim("trim", model, start,
                       self.handles[0].pread(request.count, request.offset),
                       request.offset - start)

    def compare(self, window, offset, data):
        start = self.windows[window][0] + offset
        compare(f"read {start}+{len(data)}", data,
                self.model[window][offset:offset + len(data)], start)

    def one_at_a_time(self, count):
        rng = self.rng
        for _ in range(count):
            window = rng.randrange(len(self.model))
            offset, length = self.pick_range(window)
            absolute = self.windows[window][0] + offset
            kind = rng.random()
            if kind < 0.35:
                request = Request("read", absolute, length)
                self.run([request])
                if request.error is not None:
                    raise Mismatch(f"{request}")
                self.compare(window, offset, request.data)
            elif kind < 0.4:
                self.run([Request("flush", 0, 0)])
            elif kind < 0.45:
                self.run([Request("cache", absolute, length)])
            elif kind < 0.5:
                self.block_status(window)
            else:
                request = self.random_request(window, offset, length)
                self.run([request])
                self.settle(window, request)

    def block_status(self, window):
        start, end = self.windows[window]
        self.history.append([f"block status {start}+{end - start}"])
        for offset, count, flags in extents(self.handles[0], start,
                                            end - start):
            if flags & nbd.STATE_ZERO:
                at = offset - start
                if self.model[window].count(0, at, at + count) != count:
                    raise Mismatch(f"{offset}+{count} is reported as zero "
                                   "and is not")

    def disjoint_in_flight(self):
        """Many small neighbours at once, on all connections."""
        rng = self.rng
        window = rng.randrange(len(self.model))
        length = len(self.model[window])
        piece = rng.choice([512, 1000, 4096, self.cluster_size // 2])
        total = min(length, piece * 40)
        at = rng.randrange(length - total + 1)
        end = at + total
        requests = []
        while at < end:
            count = min(end - at, rng.randrange(1, 2 * piece))
            if rng.random() < 0.2:
                requests.append(Request("read", self.windows[window][0] + at,
                                        count))
            else:
                requests.append(self.random_request(window, at, count))
            at += count
            if rng.random() < 0.1:
                requests.append(Request("flush", 0, 0))
        rng.shuffle(requests)
        self.run(requests)
        for request in requests:
            if request.kind == "read":
                if request.error is not None:
                    raise Mismatch(f"{request}")
                self.compare(window, request.offset - self.windows[window][0],
                             request.data)
        for request in requests:
            if request.kind in ("write", "zero", "trim"):
                self.settle(window, request)

    def overlapping_in_flight(self):
        """Writes and zeroes over each other, with readers in between.  The
        values are chosen so that each byte shows whose it is."""
        rng = self.rng
        window = rng.randrange(len(self.model))
        base = self.windows[window][0]
        length = len(self.model[window])
        area = min(length, rng.choice([3000, 2 * self.cluster_size]), 600000)
        low = rng.randrange(length - area + 1)
        low = min(low // self.cluster_size * self.cluster_size + area,
                  length) - area
        requests = []
        for value in range(1, 13):
            start = rng.randrange(area)
            count = rng.randrange(1, area - start + 1)
            if rng.random() < 0.25:
                request = Request("read", base + low + start, count)
            elif rng.random() < 0.2:
                request = Request("zero", base + low + start, count)
            else:
                request = Request("write", base + low + start, count,
                                  bytes([value]) * count)
            requests.append(request)
        self.run(requests)
        old = self.model[window]
        now = self.handles[0].pread(area, base + low)
        # Cut at every border; inside of a piece all bytes have the same
        # candidates.
        borders = sorted({r.offset - base for r in requests} |
                         {r.end - base for r in requests} |
                         {low, low + area})
        for request in requests:
            if request.error is not None:
                raise Mismatch(f"{request}")
        for start, end in zip(borders, borders[1:]):
            values = {0 if r.kind == "zero" else r.data[0] for r in requests
                      if r.kind != "read" and r.offset - base <= start
                      and r.end - base >= end}
            piece = now[start - low:end - low]
            if values:
                if set(piece) - values:
                    raise Mismatch(
                        f"{base + start}+{end - start} holds "
                        f"{sorted(set(piece))} after writes of "
                        f"{sorted(values)} that overlapped")
            elif piece != old[start:end]:
                raise Mismatch(f"{base + start}+{end - start} changed "
                               "without a write to it")
            for request in requests:
                if request.kind == "read" and \
                        request.offset - base <= start and \
                        request.end - base >= end:
                    at = base + start - request.offset
                    seen = request.data[at:at + end - start]
                    was = old[start:end]
                    if seen != was and any(
                            s != w and s not in values
                            for s, w in zip(seen, was)):
                        raise Mismatch(
                            f"{base + start}+{end - start} read as neither "
                            f"its old bytes nor one of {sorted(values)}")
        self.model[window][low:low + area] = now

    def read_all(self):
        for window, (start, end) in enumerate(self.windows):
            step = 8 * MIB
            for at in range(start, end, step):
                data = self.handles[1].pread(min(step, end - at), at)
                self.compare(window, at - start, data)

    # The judges.

    def judge(self):
        if self.storage:
            self.storage.copy(self.image)
        corruptions, leaks = qed_format.check(self.image)
        if corruptions or leaks:
            raise Mismatch("after a clean stop: " +
                           "; ".join((corruptions + leaks)[:5]))
        features = qed_format.get_field(self.image, "features")
        if features & qed_format.NEED_CHECK:
            raise Mismatch("NEED_CHECK is set after a clean stop")
        if not self.qemu_can:
            self.compare_content()
            return
        if os.path.getsize(self.image) < 4000 * self.cluster_size:
            # QEMU 7.2 invents leaks in files of more small clusters.
            qemu_img("check", "-q", "-f", "qed", self.image)
        model = self.path("model.raw")
        if self.base and not self.wide:
            shutil.copyfile(self.base, model)
        elif self.base:
            subprocess.run(["cp", "--sparse=always", self.base, model],
                           check=True)
        with open(model, "r+b" if self.base else "wb") as f:
            f.truncate(self.size)
            for (start, _), content in zip(self.windows, self.model):
                f.seek(start)
                f.write(content)
        converted = self.path("converted.raw")
        qemu_img("convert", "-f", "qed", "-O", "raw", self.image, converted)
        qemu_img("compare", "-f", "raw", "-F", "raw", converted, model)
        os.unlink(model)
        os.unlink(converted)

    def compare_content(self):
        if self.wide:
            return      # read through the server only: too big for Python
        backing = b""
        if self.base:
            with open(self.base, "rb") as f:
                backing = f.read()
        if qed_format.content(self.image, backing) != self.model[0]:
            raise Mismatch("what the tables say differs from the model")

    def play(self):
        self.make_images()
        self.start()
        for part in range(2):
            for _ in range(4):
                self.one_at_a_time(10)
                self.disjoint_in_flight()
                self.overlapping_in_flight()
            for window in range(len(self.model)):
                self.block_status(window)
            if part == 0:
                self.stop()
                self.judge()
                self.start()
        self.read_all()
        if not self.server.alive():
            raise Mismatch("the server died")
        self.stop()
        self.judge()


def main():
    kind, directory = sys.argv[1:]
    seed = int(os.environ.get("SEED") or 1)
    # Twenty rounds have seen all pairs of cluster size and table size.
    rounds = int(os.environ.get("ROUNDS") or
                 (20 if kind in BACKINGS else 8))
    first = int(os.environ.get("FIRST") or 0)
    for number in range(first, first + rounds):
        rng = random.Random(f"{seed} {kind} {number}")
        this = None
        try:
            this = Round(rng, number, kind, directory)
            this.play()
        except Exception as error:
            print(f"round {number}: {this}")
            for requests in (this.history[-6:] if this else []):
                print("  " + "; ".join(requests))
            if this and this.server:
                if this.server.alive():
                    this.server.kill()
                print(this.server.log())
            print(f"{type(error).__name__}: {error}")
            print(f"again with: SEED={seed} FIRST={number} ROUNDS=1 "
                  f"model.py {kind} DIRECTORY")
            if not isinstance(error, (Mismatch, OSError, nbd.Error,
                                      ServerError)):
                raise
            sys.exit(1)
        finally:
            if this and this.storage:
                this.storage.close()


if __name__ == "__main__":
    main()
