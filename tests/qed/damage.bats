# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# A repair saves what can be saved: 50 seeded damages to images of known
# content, and 500 in "make campaigns".  DAMAGE_SEEDS and DAMAGE_FIRST choose
# others.

load ../lib/qed-functions

@test "check -r all saves every cluster that a damage did not touch" {
  run "$python" "$tests/damage.py" --seeds "${DAMAGE_SEEDS:-50}" \
      --first "${DAMAGE_FIRST:-0}"
  assert_success
  # How many clusters were saved by us, and by QEMU.
  grep '^#' <<<"$output" >&3
}
