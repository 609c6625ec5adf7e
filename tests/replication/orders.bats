# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Whose data is right, whatever happens to either side, and in whatever order
# they come back: some of the orders of orders.py, chosen by a seed.  "make
# orders" walks through all of them, and "make moments" through moments.py.

load ../lib/replication-functions

@test "after any order of accidents: equal, or refused with a reason" {
  LOSSY=$builddir/tests/unit/.libs/lossy.so ORDERS_DIR=$tmp \
    "$python" "$tests/orders.py" --count="${ORDERS:-24}" --seed="${SEED:-1}"
}

# moments KIND
moments ()
{
  LOSSY=$builddir/tests/unit/.libs/lossy.so ORDERS_DIR=$tmp \
    "$python" "$tests/moments.py" --states="${MOMENTS:-18}" \
    --seed="${SEED:-1}" --kind="$1"
}

@test "both hosts lose power at a moment of a command" {
  moments power
}

@test "a call that changes a file fails in the middle of a command" {
  moments fail
}
