# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Faults that are planted to see that they are found:
#
#     make check-the-checks

EXTRA_DIST += \
	tests/planted/check.sh \
	tests/planted/epoch-not-drained.patch \
	tests/planted/hidden-copy-late.patch \
	tests/planted/l2-before-data.patch \
	tests/planted/lock-not-taken.patch \
	tests/planted/missing-l1-flush.patch \
	tests/planted/note-not-flushed.patch \
	tests/planted/remote-not-flushed.patch \
	tests/planted/short-claim.patch \
	tests/planted/stale-slice.patch \
	tests/planted/super-block-early.patch \
	tests/planted/unchecked-pwrite.patch

.PHONY: check-the-checks
check-the-checks: all $(chaos_tests)
	bash $(srcdir)/tests/planted/check.sh
