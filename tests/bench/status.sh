#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Is it quicker to ask a file where it has data than to read it?
#
#     make bench            or: ./run bash tests/bench/status.sh
#
# Whatever asks for block status is done over a raw file of 1 GiB that has data
# all over ("full"), in one MiB of 16 ("sparse"), or in every second 4 KiB
# ("fragments", 131072 extents), in memory and on a disk (which lies in the page
# cache, so that reading costs least): twice in turn, as it is, and with
# lseek(2) that knows no SEEK_DATA (tests/bench/nohole.c), so that all is read;
# what only tells the status is compared with a client or program that reads.
# Printed is the one time in parts of the other, medians: what is above 1 would
# better have read.
#
# BENCH_ROUNDS   measurements of each cell (3)
# BENCH_DISK     a folder on a disk (/var/tmp)

. "$(dirname "${BASH_SOURCE[0]}")/functions.bash"

need nbdkit nbdcopy nbdinfo fio qed-img

PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$(dirname "$0")/../lib" \
  exec /usr/bin/python3 "$(dirname "$0")/status.py" \
       "$PWD/tests/bench/.libs/nohole.so" "${BENCH_DISK:-/var/tmp}"
