# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Whose data is right, whatever happens to either side, and in whatever order
# they come back: some of the orders of orders.py, chosen by a seed.  "make
# orders" walks through all of them.

load ../lib/replication-functions

@test "after any order of accidents: equal, or refused with a reason" {
  LOSSY=$builddir/tests/unit/.libs/lossy.so ORDERS_DIR=$tmp \
    "$python" "$tests/orders.py" --count="${ORDERS:-40}" --seed="${SEED:-1}"
}
