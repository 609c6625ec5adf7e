#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Make and spoil QED images from the command line (see qed_format.py).

    qed-image.py good IMAGE                 the image that the tests spoil
    qed-image.py build IMAGE SIZE CLUSTER_SIZE TABLE_SIZE CLUSTER=WHAT...
                                            WHAT: a byte's value, or "zero"
    qed-image.py content IMAGE RAW          what its tables say, as a raw
                                            file (no backing image)
    qed-image.py check IMAGE                exit status 1 after naming errors
                                            and leaks
    qed-image.py get IMAGE FIELD            print a header field
    qed-image.py set IMAGE FIELD=VALUE...   set header fields
    qed-image.py l1 IMAGE INDEX [VALUE]     print or set an L1 entry
    qed-image.py l2 IMAGE CLUSTER [VALUE]   print or set an L2 entry
    qed-image.py backing IMAGE NAME         write a backing name, any bytes
                                            (backslash escapes are read)

VALUE is a Python expression of numbers; the names cluster_size,
table_size, image_size, l1_table_offset, file_size, header fields, and
l1(INDEX), l2(CLUSTER) stand for what the image has now.
"""

import os
import sys

import qed_format as qed


def good(path):
    """12 MiB with clusters of 4 KiB: three L2 tables, each in use.

    Guest cluster 1024 i + k of each table (i = 0 to 2): data for k = 0
    and 1 (bytes of the value 16 i + k + 1), a zero cluster for k = 2,
    nothing elsewhere.  The file is less than 64 KiB long.
    """
    clusters = {}
    for table in range(3):
        for k in range(2):
            clusters[1024 * table + k] = bytes([16 * table + k + 1]) * 4096
        clusters[1024 * table + 2] = "zero"
    qed.build(path, 12 << 20, table_size=2, clusters=clusters)


def evaluate(path, expression):
    geometry = qed.Geometry(path)
    names = {name: qed.get_field(path, name) for name in qed.FIELDS}
    names.update(file_size=os.path.getsize(path), l1=geometry.l1,
                 l2=geometry.l2)
    return eval(expression, {"__builtins__": {}}, names)


def main(arguments):
    command, path, *rest = arguments
    if command == "good":
        good(path)
    elif command == "build":
        size, cluster_size, table_size = map(int, rest[:3])
        clusters = {}
        for assignment in rest[3:]:
            cluster, what = assignment.split("=")
            if what != "zero":
                what = bytes([int(what)]) * cluster_size
            clusters[int(cluster)] = what
        qed.build(path, size, cluster_size, table_size, clusters)
    elif command == "content":
        with open(rest[0], "wb") as f:
            f.write(qed.content(path))
    elif command == "check":
        corruptions, leaks = qed.check(path)
        if corruptions or leaks:
            sys.exit("\n".join(corruptions + leaks))
    elif command == "get":
        print(qed.get_field(path, rest[0]))
    elif command == "set":
        for assignment in rest:
            name, value = assignment.split("=", 1)
            qed.set_field(path, name, evaluate(path, value))
    elif command in ("l1", "l2"):
        geometry = qed.Geometry(path)
        index = int(rest[0])
        if len(rest) == 1:
            print(getattr(geometry, command)(index))
        else:
            getattr(geometry, "set_" + command)(index,
                                                evaluate(path, rest[1]))
    elif command == "backing":
        name = rest[0].encode("latin-1").decode("unicode_escape")
        name = name.encode("latin-1")
        qed.pwrite(path, name, 64)
        qed.set_field(path, "backing_filename_offset", 64)
        qed.set_field(path, "backing_filename_size", len(name))
        qed.set_field(path, "features",
                      qed.get_field(path, "features") | qed.BACKING_FILE)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1:])
