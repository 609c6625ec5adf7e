#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""The measurements of bench/growth.sh, which see."""

import os
import random
import subprocess
import sys
import tempfile
import time

import writelog_format as wl
from qed_server import Server
from replication_server import Primary, Remote

ROUNDS = int(os.environ.get("BENCH_ROUNDS") or 3)
WORK = (1, 4, 16, 64)
GIB = 1 << 30


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def create(name, size, *options):
    run("qemu-img", "create", "-q", "-f", "qed", *options, name, str(size))


def remove(*names):
    for name in names:
        if os.path.exists(name):
            os.unlink(name)


class Timer:
    """How long it took, in seconds, and what memory the server needed."""

    def __enter__(self):
        self.begin = time.monotonic()
        self.memory = 0
        return self

    def __exit__(self, *_error):
        self.seconds = time.monotonic() - self.begin

    def stop(self, server):
        self.memory = server.peak_memory()
        server.kill()


def image_size(work):
    """Open an empty image of so many times 16 GiB and read its end."""
    size = work * 16 * GIB
    create("size.qed", size)
    with Timer() as t:
        server = Server("size.qed")
        server.connect().pread(4096, size - 4096)
    t.stop(server)
    return t


def tables(work):
    """Check an image with so many times 64 L2 tables, of 8 clusters
    each."""
    create("tables.qed", work * 32 * GIB, "-o", "table_size=1")
    server = Server("tables.qed")
    handle = server.connect()
    for i in range(work * 512):
        handle.pwrite(b"x" * 4096, i * (64 << 20))
    handle.shutdown()
    server.stop()
    with Timer() as t:
        run("qed-img", "check", "-q", "tables.qed")
    return t


def chain(work):
    """Map so many overlays, of which each has 64 clusters."""
    below = []
    for i in range(work):
        name = f"chain{i}.qed"
        create(name, GIB, *below)
        below = ["-b", name, "-F", "qed"]
        # A new image is written to without those below it.
        run("qemu-io", "-f", "qed", "--cache=unsafe", name,
            *(f"-c write {(j * 67 + i) % 16384 * 65536} 64k"
              for j in range(64)))
    with Timer() as t:
        run("qed-img", "map", "-f", "qed", name)
    return t


def log_length(work):
    """Start logreplay on so many times 15625 entries."""
    random.seed(1)
    with open("log", "wb") as f:
        f.write(wl.make_log([], 32, work * 15625))
        for _ in range(work * 15625):
            f.write(wl.pack_entry(random.randrange(200000), 2,
                                  data=bytes(64), sector_size=32))
    with Timer() as t:
        server = Server("log", plugin="logreplay")
        server.connect().pread(4096, 0)
    t.stop(server)
    return t


def clients(work):
    """So many clients, each of which reads 2000 blocks."""
    if not os.path.exists("clients.qed"):
        create("clients.qed", GIB)
    server = Server("clients.qed")
    with Timer() as t:
        run("fio", "--name=bench", "--ioengine=nbd", f"--uri={server.uri}",
            "--rw=randread", "--bs=4k", "--iodepth=16", "--size=1G",
            "--number_ios=2000", f"--numjobs={work}", "--group_reporting")
    t.stop(server)
    return t


def dirty_share(work):
    """Resynchronise so many 64ths of 1 GiB, in areas all over it."""
    for name in "disk", "remote":
        with open(name, "wb") as f:
            for _ in range(GIB >> 20):
                f.write(b"x" * (1 << 20))
    remote = Remote("remote")
    server = Primary("disk", remote.uri)
    server.start()
    remote.go()
    handle = server.connect_export()
    for i in range(256 * work):
        handle.pwrite(b"y" * 65536, i * (GIB // 256 // work))
    handle.shutdown()
    server.wait_for(lambda s: s["dirty-bytes"] == work * GIB // 64, "dirty")
    with Timer() as t:
        remote.come_back()
        server.wait_for(lambda s: s["dirty-bytes"] == 0 and
                        s["remote-connected"], "in step")
    t.stop(server)
    remote.kill()
    return t


# MiB that a server takes at most, from the manual pages: nbdkit with what is
# in flight, the module, and what grows with the work.
BOUNDS = {"image size": 5 + 36 + 1,
          "log length": 5 + 4 + (180 * 64 * 15625 >> 20),
          "clients": 5 + 36 + 64 * 16 * (20 + 4) // 1024,
          "dirty share": 5 + 1 + 4 + 8 + 1}

KINDS = {"image size": image_size, "tables": tables,
         "chain length": chain, "log length": log_length,
         "clients": clients, "dirty share": dirty_share}


def measure(kind, work):
    best = None
    for _ in range(ROUNDS):
        t = kind(work)
        if best is None or t.seconds < best.seconds:
            best = t
    return best


def main():
    target = os.path.abspath(sys.argv[1])
    os.makedirs(target, exist_ok=True)
    taken = []
    print("\nmilliseconds (and MiB of the server) at 1, 4, 16 and 64 times "
          "the work;\nthe last column is what 64 times takes more than "
          "once\n")
    with tempfile.TemporaryDirectory(prefix="growth-bench.",
                                     dir="/dev/shm") as directory, \
            open(f"{target}/growth.dat", "w", encoding="ascii") as data:
        os.chdir(directory)
        for name, kind in KINDS.items():
            times = []
            most = 0
            line = f"{name:14}"
            print(f'"{name}"', file=data)
            for work in WORK:
                t = measure(kind, work)
                times.append(t.seconds)
                line += f"{1000 * t.seconds:9.1f}"
                most = max(most, t.memory >> 20)
                if t.memory:
                    line += f" ({t.memory >> 20:3})"
                print(work, 1000 * t.seconds, file=data)
            print(f"{line}   {times[-1] / times[0]:8.1f}", flush=True)
            print("\n", file=data)
            remove(*os.listdir("."))
            if most:
                taken.append(f"memory: {name} {most} MiB (the manual: at "
                             f"most {BOUNDS[name]})")
    print("", *taken, sep="\n")
    subprocess.run(["gnuplot"], check=True, text=True, input=f"""
        set terminal svg size 800,600
        set output '{target}/growth.svg'
        set logscale xy
        set xlabel 'times the work'
        set ylabel 'milliseconds'
        set key outside
        set xtics (1, 4, 16, 64)
        plot for [i=0:{len(KINDS) - 1}] '{target}/growth.dat' index i \\
            using 1:2 with linespoints title columnheader(1)
        """)
    print(f"\npicture: {target}/growth.svg")


if __name__ == "__main__":
    main()
