#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# How cost grows: the time that 1, 4, 16 and 64 times the work takes,
#
#     make bench            or: ./run bash tests/bench/growth.sh
#
# where the work is the size of an image that is opened, the number of L2
# tables of one that is checked, of overlays that are mapped, of entries of a
# log that is served, of clients that read, and the share of a disk that is
# dirty when the remote comes back.  What is best of some rounds is printed,
# with the memory of the server, and drawn by gnuplot into bench/growth.svg.
#
# BENCH_ROUNDS   measurements of each cell (3)
# BENCH_FOLDER   where the picture goes (bench)

. "$(dirname "${BASH_SOURCE[0]}")/functions.bash"

need nbdkit fio qemu-img qemu-io qed-img gnuplot

PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$(dirname "$0")/../lib" \
  exec /usr/bin/python3 "$(dirname "$0")/growth.py" "${BENCH_FOLDER:-bench}"
