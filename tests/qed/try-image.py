#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Serve a spoiled version of "qed-image.py good" and print what happens.

    try-image.py [-r] [-w] IMAGE [PARAMETER...]

-r serves read-only, -w writes to it if the server lets us.  Prints
"refused", "served read-only" or "served writable", then "cluster N: X" for
some clusters, X being the value of all of its bytes, "mixed" or "EIO",
then the server's messages.  Exit status 2 when something happened that
must not (see spoiled_image.py).
"""

import sys

from spoiled_image import Attempt, Bad


def main():
    arguments = sys.argv[1:]
    options = set()
    while arguments and arguments[0] in ("-r", "-w"):
        options.add(arguments.pop(0))
    try:
        attempt = Attempt(arguments[0], arguments[1:],
                          read_only="-r" in options, write="-w" in options)
    except Bad as bad:
        print(f"BAD: {bad}")
        sys.exit(2)
    print(f"served {attempt.served}" if attempt.served else "refused")
    for cluster, what in attempt.clusters.items():
        print(f"cluster {cluster}: {what}")
    print(attempt.messages)


if __name__ == "__main__":
    main()
