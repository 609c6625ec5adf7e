#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Images whose work grows with a number.

    growth.py gaps IMAGE N      N tables with a cluster each, and before each
                                table one cluster that is leaked
    growth.py overlaps IMAGE N  N tables of 16 clusters, each of which begins
                                one cluster behind the one before
    growth.py holes IMAGE N     N tables that are holes of 1 MiB
"""

import struct
import sys

import qed_format as qed


def make(path, cluster_size, table_size, tables, end):
    """An image with these L1 entries, whose file ends there."""
    size = len(tables) * cluster_size * (table_size * cluster_size // 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<4sIIIQQQQQII", qed.MAGIC, cluster_size,
                            table_size, 1, 0, 0, 0, cluster_size, size, 0, 0))
        f.seek(cluster_size)
        f.write(struct.pack(f"<{len(tables)}Q", *tables))
        f.truncate(end)


def gaps(path, n):
    cluster = 4096
    tables = [(3 + 4 * i + 1) * cluster for i in range(n)]
    make(path, cluster, 2, tables, (3 + 4 * n) * cluster)
    with open(path, "r+b") as f:
        for i, table in enumerate(tables):
            f.seek(table)
            f.write(struct.pack("<Q", table + 2 * cluster))
            f.seek(table + 2 * cluster)
            f.write(bytes([i % 251 + 1]) * cluster)


def overlaps(path, n):
    cluster = 65536
    make(path, cluster, 16, [(17 + i) * cluster for i in range(n)],
         (17 + n + 16) * cluster)


def holes(path, n):
    cluster = 65536
    make(path, cluster, 16, [(17 + 16 * i) * cluster for i in range(n)],
         (17 + 16 * n) * cluster)


if __name__ == "__main__":
    kind, name, number = sys.argv[1:]
    {"gaps": gaps, "overlaps": overlaps,
     "holes": holes}[kind](name, int(number))
