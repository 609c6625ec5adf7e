# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Calls that fail, one after the other, in all tools and modules.  The suite
# tries some of them; all of them:
#
#     make faults
#
# and the same commands under valgrind's memcheck:
#
#     make check-valgrind

faults_tests = tests/faults/faults.bats
if !SANITIZERS
check_LTLIBRARIES += tests/faults/shim.la
endif
tests_faults_shim_la_SOURCES = tests/faults/shim.c
tests_faults_shim_la_CFLAGS = -std=gnu11 -pthread
tests_faults_shim_la_CPPFLAGS = $(AM_CPPFLAGS)
tests_faults_shim_la_LDFLAGS = -module -avoid-version -shared -rpath /nowhere
tests_faults_shim_la_LIBADD = -ldl
EXTRA_DIST += $(faults_tests) tests/faults/faults.py

.PHONY: faults check-valgrind
faults: all tests/faults/shim.la
	$(top_builddir)/run python3 $(srcdir)/tests/faults/faults.py \
	    tests/faults/.libs/shim.so
check-valgrind: all
	$(top_builddir)/run python3 $(srcdir)/tests/faults/faults.py --valgrind
