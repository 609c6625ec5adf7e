#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""The measurements of bench/replication.sh, which see."""

import json
import os
import random
import statistics
import subprocess
import tempfile
import time

from qed_server import Server
from replication_qemu import GUEST, PARENT, QemuSecondary
from replication_server import Primary, Remote, Secondary

SIZE = 512 << 20
CLUSTER = 65536
SECONDS = os.environ.get("BENCH_SECONDS") or "2"
ROUNDS = int(os.environ.get("BENCH_ROUNDS") or 5)
TIMED = ["--time_based", f"--runtime={SECONDS}"]
# A primary sends in passes and rests up to 2 seconds between them.
LONGER = ["--time_based", f"--runtime={4 * float(SECONDS):g}"]

# nbdkit and the 16 requests of 1 MiB of one client, the filter, and what is on
# its way; or tables and copies in 16 threads.  In MiB, from the manual page.
BOUNDS = {"primary": 5 + 16 + 4 + 8 + 40 * SIZE // (1 << 40),
          "secondary": 5 + 16 + 4 + 66 + 1 + 8, "blkctl": 3}

results = {}
memory = dict.fromkeys(BOUNDS, 0)


def note_memory(side, server):
    memory[side] = max(memory[side], server.peak_memory() >> 20)


class Bench:
    """One fresh server of each kind after the other."""

    def __init__(self, directory):
        self.dir = directory
        self.pattern = self.path("pattern")
        with open(self.pattern, "wb") as f:
            block = random.Random(1).randbytes(1 << 20)
            for _ in range(SIZE >> 20):
                f.write(block)

    def path(self, name):
        return os.path.join(self.dir, name)

    def fresh_disk(self, name="disk"):
        subprocess.run(["cp", self.pattern, self.path(name)], check=True)
        return self.path(name)

    def remove(self, *names):
        for name in names:
            if os.path.exists(self.path(name)):
                os.unlink(self.path(name))

    def warm_up(self):
        """Use memory, and give it back.

        Buffers take memory that nobody has used for a while, and in a
        virtual machine the host may have to find it first, which takes
        many times as long as to write to it.
        """
        name = self.path("warm")
        with open(name, "wb") as f:
            for _ in range(3 * SIZE >> 20):
                f.write(bytes(1 << 20))
        os.unlink(name)

    def fio(self, uris, field, *options):
        """Run fio with a job for each URI at the same time, return a field
        of its report: the mean of the jobs."""
        uris = [uris] if isinstance(uris, str) else uris
        report = self.path("fio.json")
        jobs = [option for uri in uris
                for option in ("--name=bench", f"--uri={uri}")]
        subprocess.run(["fio", "--ioengine=nbd", "--iodepth=16",
                        "--randrepeat=0", f"--size={SIZE}",
                        "--output-format=json", f"--output={report}",
                        *options, *jobs], check=True,
                       stdout=subprocess.DEVNULL)
        with open(report, encoding="utf-8") as f:
            text = f.read()
        # fio's engine prints lines of its own before the report.
        report = json.loads(text[text.index("\n{") + 1:]
                            if not text.startswith("{") else text)
        direction, field = field.split(".")
        return statistics.mean(job[direction][field]
                               for job in report["jobs"])

    def secondary(self, kind, primary_uri, guest_uri, checkpoint):
        def put(key, value):
            results.setdefault((key, kind), []).append(value)

        self.warm_up()
        # Each cluster of QEMU's size once, in order: fio's random places
        # repeat themselves, and after a list of places (read_iolog) it
        # hangs up with requests in flight, of which nbdkit may die.
        put("first", self.fio(primary_uri, "write.iops",
                              f"--rw=write:{CLUSTER - 4096}", "--bs=4k",
                              f"--io_size={SIZE // CLUSTER * 4096}"))
        # Clusters may be smaller, so see that none is new from here on.
        self.fio(primary_uri, "write.bw", "--rw=write", "--bs=1M")
        put("again", self.fio(primary_uri, "write.iops", "--rw=randwrite",
                              "--bs=4k", *TIMED))
        put("read-hidden", self.fio(guest_uri, "read.iops", "--rw=randread",
                                    "--bs=4k", *TIMED))
        checkpoint()
        put("read-disk", self.fio(guest_uri, "read.iops", "--rw=randread",
                                  "--bs=4k", *TIMED))
        self.warm_up()
        put("first-1m", self.fio(primary_uri, "write.bw", "--rw=write",
                                 "--bs=1M") / 1024)
        begin = time.monotonic()
        checkpoint()
        put("checkpoint", (time.monotonic() - begin) * 1000)

    def play_file(self):
        server = Server(self.fresh_disk(), plugin="file")
        self.secondary("file", server.uri, server.uri, lambda: None)
        server.kill()

    def play_filter(self):
        """nbdkit file behind a filter that does nothing with a write."""
        server = Server(self.fresh_disk(), plugin="file",
                        options=["--filter=noextents"])
        self.warm_up()
        self.fio(server.uri, "write.bw", "--rw=write", "--bs=1M")
        results.setdefault(("again", "filter"), []).append(
            self.fio(server.uri, "write.iops", "--rw=randwrite", "--bs=4k",
                     *TIMED))
        server.kill()

    def play_ours(self):
        self.remove("active", "hidden")
        server = Secondary(self.fresh_disk(), self.path("active"),
                           self.path("hidden"))
        server.start()
        self.secondary("ours", server.uri_of(), server.uri_of("guest"),
                       server.checkpoint)
        note_memory("secondary", server)
        server.kill()
        self.remove("active", "hidden")

    def play_qemu(self):
        self.remove("active", "hidden")
        server = QemuSecondary(self.fresh_disk(), self.path("active"),
                               self.path("hidden"))
        server.start()
        self.secondary("qemu", server.uri(PARENT), server.uri(GUEST),
                       server.checkpoint)
        server.kill()
        self.remove("active", "hidden")

    def primary_rows(self, kind, uris):
        results.setdefault(("primary", kind), []).append(
            self.fio(uris, "write.iops", "--rw=randwrite", "--bs=4k",
                     *LONGER))
        results.setdefault(("primary-1m", kind), []).append(
            self.fio(uris, "write.bw", "--rw=write", "--bs=1M", *LONGER)
            / 1024)

    def play_primary(self):
        alone = Server(self.fresh_disk(), plugin="file")
        self.primary_rows("file", alone.uri)
        remote = Server(self.fresh_disk("remote"), plugin="file")
        self.primary_rows("two", [alone.uri, remote.uri])
        alone.kill()
        server = Primary(self.fresh_disk(), remote.uri)
        server.start()
        self.primary_rows("ours", server.uri)
        note_memory("primary", server)
        server.kill()
        remote.kill()
        self.remove("remote")

    def memory_of_blkctl(self, server):
        name = self.path("peak")
        subprocess.run(["time", "-q", "-f", "%M", "-o", name, "blkctl",
                        server.control_path, "query-replication"],
                       stdout=subprocess.DEVNULL, check=True)
        with open(name, encoding="ascii") as f:
            return int(f.read()) >> 10

    def play_resync(self):
        """Everything is dirty in areas of 64 KiB when the remote comes
        back; nbdcopy does the same between two servers."""
        remote = Remote(self.fresh_disk("remote"))
        server = Primary(self.fresh_disk(), remote.uri)
        server.start()
        remote.go()
        self.fio(server.uri, "write.bw", "--rw=randwrite", "--bs=64k")
        remote.come_back()
        server.wait_for(lambda s: s["remote-connected"], "connected")
        # It looks for the remote once a second, which is not meant here.
        begin = time.monotonic()
        dirty = server.query()["dirty-bytes"]
        server.wait_for(lambda s: s["dirty-bytes"] == 0, "in step")
        results.setdefault(("resync", "ours"), []).append(
            dirty / (1 << 20) / (time.monotonic() - begin))
        note_memory("primary", server)
        memory["blkctl"] = self.memory_of_blkctl(server)
        server.kill()
        source = Server(self.path("disk"), plugin="file")
        begin = time.monotonic()
        subprocess.run(["nbdcopy", source.uri, remote.uri], check=True)
        results.setdefault(("resync", "file"), []).append(
            SIZE / (1 << 20) / (time.monotonic() - begin))
        source.kill()
        remote.kill()
        self.remove("remote")


def line(key, title, unit, target):
    values = [statistics.median(results[key, kind])
              if (key, kind) in results else None
              for kind in ("file", "ours", "qemu")]
    file, ours, qemu = values
    cells = "".join(f"{v:10.0f}" if v is not None and v >= 100
                    else f"{v:10.1f}" if v is not None else f"{'':10}"
                    for v in values)
    ratios = "".join(f"{ours / v:9.2f}" if v else f"{'':9}"
                     for v in (file, qemu))
    print(f"{title:36}{cells}  {unit:6}{ratios}   {target}")


def limit_of_two(key, title):
    """What no primary on the host of its remote can exceed by much: a
    client that writes to both disks itself."""
    file, two, ours = (statistics.median(results[key, kind])
                       for kind in ("file", "two", "ours"))
    print(f"limit: a client that writes {title} to two plain servers at once "
          f"does {two / file:.2f} of one; the primary does {ours / two:.2f} "
          "of that")


def limit_of_filter(key, title):
    """What no filter can exceed: one that does nothing."""
    file, empty, ours = (statistics.median(results[key, kind])
                         for kind in ("file", "filter", "ours"))
    print(f"limit: nbdkit file behind a filter that does nothing does {title} "
          f"{empty / file:.2f} times as fast as without; the secondary does "
          f"{ours / empty:.2f} of that")


def limit(key, title):
    """What no filter can exceed: nbdkit alone, with the disk only."""
    file, qemu = (statistics.median(results[key, kind])
                  for kind in ("file", "qemu"))
    print(f"limit: nbdkit file, with no filter at all, does {title} "
          f"{file / qemu:.2f} times as fast as QEMU's secondary")


def main():
    with tempfile.TemporaryDirectory(prefix="replication-bench.",
                                     dir="/dev/shm") as directory:
        bench = Bench(directory)
        for _ in range(ROUNDS):
            bench.play_file()
            bench.play_filter()
            bench.play_ours()
            bench.play_qemu()
            bench.play_primary()
            bench.play_resync()
    # Nothing is emptied in a plain file.
    results.pop(("checkpoint", "file"))
    print(f"\nmedians of {ROUNDS} rounds, disk of {SIZE >> 20} MiB in "
          "/dev/shm\n")
    print(f"{'':36}{'file':>10}{'ours':>10}{'qemu':>10}  {'':6}"
          f"{'/file':>9}{'/qemu':>9}   target")
    line("first", "secondary, 4 KiB in each new cluster", "IOPS",
         "0.5 file, 4 qemu")
    line("again", "secondary, 4 KiB random repeated", "IOPS",
         "0.95 file, 4 qemu")
    line("first-1m", "secondary, 1 MiB first touch", "MiB/s", "1.5 qemu")
    line("read-hidden", "guest, 4 KiB random read of buffers", "IOPS",
         "1.7 qemu")
    line("read-disk", "guest, 4 KiB random read of disk", "IOPS",
         "1.7 qemu")
    line("checkpoint", "checkpoint, 512 MiB in the buffers", "ms",
         "under 20")
    line("primary", "primary, 4 KiB random write", "IOPS", "0.85 file")
    line("primary-1m", "primary, 1 MiB sequential write", "MiB/s",
         "0.45 file")
    line("resync", "resync of all (file: nbdcopy)", "MiB/s", "0.8 nbdcopy")
    print()
    limit("first", "4 KiB in each new cluster")
    limit("again", "4 KiB random repeated")
    limit("first-1m", "1 MiB writes")
    limit_of_filter("again", "4 KiB random repeated")
    limit_of_two("primary", "4 KiB")
    limit_of_two("primary-1m", "1 MiB")
    print()
    for side, bound in BOUNDS.items():
        print(f"memory: {side} {memory[side]} MiB (the manual: at most "
              f"{bound})")


if __name__ == "__main__":
    main()
