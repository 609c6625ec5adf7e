#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Is the most memory that the manual pages name the most that is taken?

    bounds.py CASE

Each case makes what could take much: tables, dirty areas, buffers, entries.
The judge is the kernel, which keeps the most that a process has had.
"""

import array
import socket
import struct
import subprocess
import sys
import threading

import nbd

import qed_format as qed
import writelog_format as wl
from qed_server import SANITIZED, Server
from replication_server import GUEST, Forwarder, Primary, Remote, Secondary

MIB = 1 << 20
TIB = 1 << 40
IN_FLIGHT = 64

# What the pages say, in MiB.
NBDKIT = 5
BLKCTL = 3
QED = 3
FILTER = 4
INDEX = 180                     # bytes an entry
EXPLORE = 500                   # the same

ROOM = 3                        # the libraries of others may be larger


def at_most(what, taken, bound):
    print(f"{what}: {taken / MIB:.1f} MiB, at most {bound:.1f}")
    assert SANITIZED or taken <= (bound + ROOM) * MIB, what


def tool(bound, *command, status=0):
    """Run it to its end; it is started by a small program, since what its
    parent has would count as well."""
    with open("said", "wb") as said:
        r = subprocess.run(["time", "-q", "-f", "%M", "-o", "peak", *command],
                           stdout=subprocess.DEVNULL, stderr=said,
                           check=False)
    assert r.returncode == status, command
    with open("peak", encoding="ascii") as f:
        taken = int(f.read()) * 1024
    at_most(" ".join(command[:2]), taken, bound)
    return taken


def sparse(name, size):
    with open(name, "wb") as f:
        f.truncate(size)
    return name


def each(uri, send, offsets):
    """Many requests, some at a time."""
    handle = nbd.NBD()
    handle.connect_uri(uri)
    for i in range(0, len(offsets), IN_FLIGHT):
        for offset in offsets[i:i + IN_FLIGHT]:
            send(handle, offset)
        while handle.aio_in_flight():
            handle.poll(-1)
    handle.shutdown()


def read(handle, offset):
    handle.aio_pread(nbd.Buffer(512), offset)


def write(handle, offset):
    handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"x" * 512)),
                      offset)


def many_tables(name, size=TIB, data=b""):
    """A cluster in every seventh 4 KiB of the 8192 tables of an image of 1
    TiB, or of 256 GiB: in 73 MiB of them."""
    qed.build(name, size, *((16384, 4) if size == TIB else (4096, 16)),
              {i * 7 * 512: data for i in range((1 << 17) // 7)})


def qed_server():
    """L2 tables in a cache of 4 MiB, and of 32 by default."""
    many_tables("disk.qed")
    offsets = range(0, TIB, 8 * MIB)[:16384]
    for params, cache in (["l2-cache-size=4M"], 4), ([], 33):
        server = Server("disk.qed", params=params)
        each(server.uri, read, offsets)
        at_most("qed", server.peak_memory(), NBDKIT + QED + 1 + cache)
        server.stop()


def qed_img():
    """All that goes over the tables."""
    many_tables("disk.qed")
    tool(12, "qed-img", "check", "-q", "disk.qed")
    tool(41, "qed-img", "map", "disk.qed")
    tool(41, "qed-img", "measure", "disk.qed", "-O", "qed")
    for name in b"base.qed", b"disk.qed":
        many_tables(name, TIB // 4, name)
    subprocess.run(["qed-img", "rebase", "-u", "-b", "base.qed", "-F", "qed",
                    "disk.qed"], check=True)
    tool(82, "qed-img", "convert", "-O", "qed", "base.qed", "copy.qed")
    subprocess.run(["cp", "--sparse=always", "disk.qed", "over.qed"],
                   check=True)
    tool(111, "qed-img", "rebase", "-t", "unsafe", "-b", "copy.qed",
         "-F", "qed", "over.qed")
    tool(78, "qed-img", "commit", "-q", "-t", "unsafe", "disk.qed")


def clusters(name, number, step):
    """An image of so many clusters, with others between them."""
    tables = -(-number // 8192)
    data = 17 + 16 * tables
    with open(name, "wb") as f:
        f.write(struct.pack("<4sIIIQQQQQ", b"QED\0", 4096, 16, 1, 0, 0, 0,
                            4096, tables * 8192 * 4096))
        for at, first, n, between in ((1, 17, tables, 16),
                                      (17, data, number, step)):
            f.seek(at * 4096)
            f.write(array.array("Q", range(first * 4096, (
                first + between * n) * 4096, between * 4096)))
        f.truncate((data + step * number) * 4096)


def lone_clusters():
    """A quarter of a byte for each of 4 million clusters side by side, and
    140 for each of 100000 that stand alone."""
    clusters("one", 1, 1)
    clusters("side", 4 * MIB, 1)
    clusters("alone", 100000, 512)
    one = tool(12, "qed-img", "check", "-q", "one")
    side = tool(12, "qed-img", "check", "-q", "side")
    alone = tool(12 + 140 * 100000 / MIB, "qed-img", "check", "-q", "alone",
                 status=3)
    assert SANITIZED or side - one <= 1.25 * MIB
    assert SANITIZED or alone - one <= 140 * 100000


def repair():
    """12 MiB, and 50 bytes for each of 32000 clusters that are copied."""
    number, real = 40000, 8000
    clusters("disk.qed", number, 1)
    data = 17 + 16 * -(-number // 8192)
    with open("disk.qed", "r+b") as f:
        f.seek(17 * 4096)
        f.write(array.array("Q", ((data + i % real) * 4096
                                  for i in range(number))))
        f.truncate((data + real) * 4096)
        f.seek(data * 4096)
        for i in range(real):
            f.write(b"%4096d" % i)
    check = tool(12, "qed-img", "check", "-q", "disk.qed", status=2)
    thorough = tool(8 + 12 + 50 * (number - real) / MIB, "qed-img", "check",
                    "-q", "-T", "unsafe", "-r", "all", "disk.qed")
    assert SANITIZED or thorough - check <= 12 * MIB + 50 * (number - real)
    tool(12, "qed-img", "check", "-q", "disk.qed")


def primary():
    """40 KiB for each GiB of a disk that is dirty all over, and 4 for its
    bitmap; next to nothing before."""
    size = 4 * TIB
    remote = Remote(sparse("remote", size))
    for params, clean, dirty in ({}, 0, 160), ({"bitmap": "map"}, 8, 176):
        server = Primary(sparse("disk", size), remote.uri, **params)
        at_most("primary", server.peak_memory(), NBDKIT + FILTER + clean)
        server.start(sync="full")
        at_most("primary, dirty", server.peak_memory(),
                NBDKIT + FILTER + 8 + dirty)
        assert SANITIZED or server.peak_memory() > dirty * 0.8 * MIB
        server.kill()
    remote.kill()


def forwarder():
    """The queue for a secondary that stands still, and its buffers."""
    remote = Remote(sparse("remote", 256 * MIB))
    server = Forwarder(remote.uri, timeout=1)
    server.start()
    pieces = range(0, 128 * MIB, MIB // 4)

    def write_piece(handle, offset):
        handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(MIB // 4)),
                          offset)

    each(server.uri, write_piece, pieces)
    remote.stand_still()
    each(server.uri, write_piece, pieces)
    # nbdkit's nbd plugin takes more than its file plugin.
    at_most("forwarder", server.peak_memory(),
            NBDKIT + 16 / 4 + FILTER + 33 + 2)
    server.kill()
    remote.go_on()
    remote.kill()


def secondary():
    """What is written all over a large disk is in the files."""
    size = 8 * TIB
    server = Secondary(sparse("disk", size), "active", "hidden")
    server.start()
    at_most("secondary", server.peak_memory(), NBDKIT + FILTER + 1)
    # Clusters have 16 KiB there, so 4 KiB of a table are for 8 MiB of disk.
    step = 63 * 8 * MIB
    for uri in server.uri_of(), server.uri_of(GUEST):
        each(uri, write, range(0, size, step))
    at_most("secondary", server.peak_memory(),
            NBDKIT + FILTER + 1 + 66 + 16 * 0.5)
    server.kill()
    # A new bitmap, and one that says that all is dirty.
    for kib in 4, 44:
        server = Secondary(sparse("disk", 2 * TIB), "new", "buffers",
                           bitmap="map")
        at_most("secondary with a bitmap", server.peak_memory(),
                NBDKIT + FILTER + 1 + kib * 2 * TIB / (1 << 40))
        server.kill()


def make_log(name, number):
    """Writes of a sector that do not touch each other."""
    with open(name, "wb") as f:
        f.write(wl.make_log([], 32, number))
        for i in range(number):
            f.write(wl.pack_entry(i * 7919 % number * 2, 1,
                                  wl.FLUSH if i % 100 == 99 else 0,
                                  b"%032d" % i, 32))
    return name


def logs():
    """100000 entries."""
    number = 100000
    make_log("log", number)
    sparse("disk", 2 * 32 * number)
    index = INDEX * number / MIB
    tool(10, "logwrites", "info", "log")
    tool(10, "logwrites", "list", "log")
    tool(10, "logwrites", "replay", "--log", "log", "--replay", "disk")
    tool(10 + index, "logwrites", "verify", "log", "disk")
    tool(10 + EXPLORE * number / MIB, "logwrites", "explore", "--list", "log")
    server = Server("log", plugin="logreplay")
    each(server.uri, read, range(0, 32 * number, 8192))
    at_most("logreplay", server.peak_memory(), NBDKIT + 3 + 1 + index)
    server.stop()


def held():
    """What a flush has to log takes 16 MiB, and what was trimmed 4."""
    server = Server(sparse("disk", 256 * MIB), plugin="file",
                    params=["log=log", "log-order=durability"],
                    options=["--filter=blklogwrites"])

    def write_4k(handle, offset):
        handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(4096)), offset)

    def trim(handle, offset):
        handle.aio_trim(512, offset)

    each(server.uri, write_4k, range(0, 64 * MIB, 4096))
    each(server.uri, trim, range(128 * MIB, 192 * MIB, 1024))
    at_most("blklogwrites", server.peak_memory(), NBDKIT + FILTER + 16 + 4)
    server.stop()


def answers():
    """An answer of 16 MB to blkctl: 3 times as much of text, 30 of numbers,
    50 of lists."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("sock")
    listener.listen()
    size = 16000000
    kinds = ((b'"' + b"x" * size + b'"', 3), (b"[" + b"0," * (size // 16) +
                                              b"0]", 30 / 8),
             (b"[" + b"[]," * (size // 24) + b"0]", 50 / 8))

    def serve():
        for value, _ in kinds:
            client, _ = listener.accept()
            client.sendall(b'{"QMP": {}}\n')
            client.recv(65536)
            client.sendall(b'{"return": {}}\n')
            client.recv(65536)
            client.sendall(b'{"return": ' + value + b"}\n")
            client.recv(65536)
            client.close()

    threading.Thread(target=serve, daemon=True).start()
    for _, factor in kinds:
        tool(BLKCTL + factor * size / MIB, "blkctl", "./sock", "query")


if __name__ == "__main__":
    cases = (qed_server, qed_img, lone_clusters, repair, primary,
             forwarder, secondary, logs, held, answers)
    {f.__name__: f for f in cases}[sys.argv[1]]()
