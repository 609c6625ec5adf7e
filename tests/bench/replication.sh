#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Speed of a secondary, ours beside QEMU's (qcow2 buffers) and beside a plain
# file, and of a primary with a healthy remote beside its disk alone:
#
#   ./run bash tests/bench/replication.sh
#
# All disks are in /dev/shm.  Servers take turns, so that a machine that
# gets slower does so for all.  From the environment:
#
#   BENCH_SECONDS   seconds of each measurement that is limited by time (2)
#   BENCH_ROUNDS    measurements of each cell (5)

. "$(dirname "${BASH_SOURCE[0]}")/functions.bash"

need nbdkit nbdcopy qemu-system-x86_64 qemu-img fio time

PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$(dirname "$0")/../lib" \
  exec /usr/bin/python3 "$(dirname "$0")/replication.py"
