#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The speed and the memory of nbdkit-logreplay-plugin with logs of a million
# entries:
#
#     make bench            or: ./run bash tests/bench/logreplay.sh
#
# apart:   writes of one sector, none of them beside another one
# random:  writes of 1 to 8 sectors to 200000 sectors, so that each sector
#          is written some 20 times
# nested:  discards, each within the one before: the most memory
#
# start:   until the server is ready; the log is read and indexed
# open:    connect to a moment that nobody has asked for before, and read
#          4 KiB; the median and the longest of 200.  nbdkit's memory plugin
#          stands beside it, which has nothing to look for
# crash:   the same for power losses
# memory:  what the server takes more than with an empty log, in bytes an
#          entry: at its highest, and when all is open.  Pages of the log
#          that the kernel keeps are not counted
#
# Sectors have 32 bytes.  The logs are in /dev/shm, where they take 400 MiB.

. "$(dirname "${BASH_SOURCE[0]}")/functions.bash"

lib=$(cd "$(dirname "${BASH_SOURCE[0]}")/../lib" && pwd)
python=/usr/bin/python3
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$lib

need nbdkit logwrites time
make_folder logreplay-bench
cd "$dir"

"$python" - <<'EOP'
import random
import statistics
import subprocess
import time

import nbd

import writelog_format as wl
from qed_server import Server

COUNT = 1000000
SIZE = 32


def apart(i):
    return wl.pack_entry(i * 7919 % COUNT * 2, 1, flush(i), bytes(SIZE), SIZE)


def overlapping(i):
    nr = random.randrange(1, 9)
    return wl.pack_entry(random.randrange(200000), nr, flush(i),
                         bytes(nr * SIZE), SIZE)


def nested(i):
    return wl.pack_entry(i, 2 * (COUNT - i), wl.DISCARD | flush(i),
                         sector_size=SIZE)


def flush(i):
    return wl.FLUSH if i % 100 == 99 else 0


def make(name, entry, count=COUNT):
    random.seed(1)
    with open(name, "wb") as f:
        f.write(wl.make_log([], SIZE, count))
        for i in range(count):
            f.write(entry(i))


def memory(server, key):
    with open(f"/proc/{server.process.pid}/status", encoding="ascii") as f:
        for line in f:
            if line.startswith(key):
                return int(line.split()[1]) * 1024


def visit(server, names):
    times = []
    for name in names:
        before = time.monotonic()
        h = nbd.NBD()
        h.set_export_name(name)
        h.connect_unix(server.socket)
        h.pread(4096, random.randrange(h.get_size() // 4096) * 4096)
        times.append(1000 * (time.monotonic() - before))
        h.shutdown()
    return statistics.median(times), max(times)


def start(image, plugin="logreplay"):
    before = time.monotonic()
    server = Server(image, plugin=plugin)
    return server, 1000 * (time.monotonic() - before)


make("empty", None, 0)
server, _ = start("empty")
empty = {key: memory(server, key) for key in ("VmHWM", "VmRSS")}
server.stop()

highest = 0
print("\na million entries; milliseconds, and bytes an entry\n")
print("%-10s %8s %8s %8s %8s %8s %8s %8s" %
      ("", "start", "open", "longest", "crash", "longest", "highest",
       "memory"))
for name, entry in (("apart", apart), ("random", overlapping),
                    ("nested", nested)):
    make(name, entry)
    server, begin = start(name)
    moments = [f"entry/{random.randrange(COUNT + 1)}" for _ in range(200)]
    losses = [f"crash/{random.randrange(COUNT // 100)}/{i}"
              for i in range(200)]
    row = (begin, *visit(server, moments), *visit(server, losses),
           *((memory(server, key) - empty[key]) / COUNT
             for key in ("VmHWM", "VmRSS")))
    print("%-10s %8.0f %8.2f %8.2f %8.2f %8.2f %8.0f %8.0f" % (name, *row))
    highest = max(highest, memory(server, "VmHWM") >> 20)
    server.stop()

taken = {}
with open("disk", "wb") as f:
    f.truncate(2 * COUNT * SIZE)
for command in ("list", "verify"):
    subprocess.run(["time", "-q", "-f", "%M", "-o", "peak", "logwrites",
                    command, "apart",
                    *(["disk"] if command == "verify" else [])],
                   stdout=subprocess.DEVNULL, check=command == "list")
    with open("peak", encoding="ascii") as f:
        taken[command] = int(f.read()) >> 10

server, begin = start("32M", plugin="memory")
print("%-10s %8.0f %8.2f %8.2f" %
      ("memory", begin, *visit(server, ["x"] * 200)))
server.stop()
print("\ntargets: start below 300 ms, open below 50 ms, memory below 400 "
      "bytes an entry\n")
index = 180 * COUNT >> 20
for what, peak, bound in (("nbdkit logreplay", highest, 5 + 3 + 1 + index),
                          ("logwrites list", taken["list"], 10),
                          ("logwrites verify", taken["verify"], 10 + index)):
    print(f"memory: {what} {peak} MiB (the manual: at most {bound})")
EOP
