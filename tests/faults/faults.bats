# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Each call that a tool or a module makes fails once: no crash, no hang, a
# message that names the file, and files as they were or as they shall be.
# "make faults" lets all of them fail, the suite one in FAULTS_STEP.

load ../lib/functions

@test "a call that fails is told, and does no harm" {
  require_tool qemu-io
  FAULTS_STEP=${FAULTS_STEP:-20} FAULTS_AT=${FAULTS_AT:-3} \
    "$python" "$tests/faults.py" "$builddir/tests/faults/.libs/shim.so"
}
