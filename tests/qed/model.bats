# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# A disk in a QED image behaves like plain bytes, whatever its geometry
# and its backing image.  SEED and ROUNDS choose how long it is tried.

load ../lib/qed-functions

model ()
{
  mkdir model
  run "$python" "$tests/model.py" "$1" "$tmp/model"
  assert_success
}

@test "an image without backing behaves like plain bytes" {
  model none
}

@test "an image over a raw file behaves like plain bytes" {
  model raw
}

@test "an image over a QED image over a raw file behaves like plain bytes" {
  model qed
}

@test "an image over a shorter raw file behaves like plain bytes" {
  model short
}

@test "an image over a longer raw file behaves like plain bytes" {
  model long
}

@test "a large image behaves like plain bytes where its L2 tables meet" {
  model wide
}
