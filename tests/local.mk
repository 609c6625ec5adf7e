# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The suite, run by "make check".  Every single test is counted: tests/tap.sh
# runs a test program and makes its output one TAP stream, which automake's
# TAP driver reads.
#
#   tests/unit/test-*.c   C tests of common/, written with cmocka
#   tests/ROOM/*.bats     tests of modules and tools, one file a promise:
#                         qed/, qed-img/, writelog/, control/, replication/,
#                         and house/ for what the tree and its build promise
#   tests/ROOM/*.sh       tests that are neither
#   tests/lib/            what these share: bash functions and Python modules

# To add a unit test, add its name here and its sources below if it needs
# more than the .c file of its name.  The first ones take the longest.
slow_unit_tests = \
	tests/unit/test-qed-powerloss \
	tests/unit/test-replication-crash

quick_unit_tests = \
	tests/unit/test-align \
	tests/unit/test-block-status \
	tests/unit/test-claim \
	tests/unit/test-control \
	tests/unit/test-drain \
	tests/unit/test-file-node \
	tests/unit/test-flush \
	tests/unit/test-job \
	tests/unit/test-nbd-connections \
	tests/unit/test-nbd-requests \
	tests/unit/test-nbd-status \
	tests/unit/test-qed-buffer \
	tests/unit/test-qed-faults \
	tests/unit/test-qed-locks \
	tests/unit/test-qed-operations \
	tests/unit/test-qed-scan \
	tests/unit/test-qed-threads \
	tests/unit/test-replication-bitmap \
	tests/unit/test-replication-dirty \
	tests/unit/test-replication-faults \
	tests/unit/test-replication-forwarder \
	tests/unit/test-replication-meeting \
	tests/unit/test-replication-mirror \
	tests/unit/test-replication-powerloss \
	tests/unit/test-replication-primary \
	tests/unit/test-replication-secondary \
	tests/unit/test-replication-stages \
	tests/unit/test-replication-threads \
	tests/unit/test-scratch \
	tests/unit/test-serial \
	tests/unit/test-utils \
	tests/unit/test-writelog-hold \
	tests/unit/test-writelog-index \
	tests/unit/test-writelog-reader \
	tests/unit/test-writelog-record \
	tests/unit/test-writelog-writer

unit_tests = $(slow_unit_tests) $(quick_unit_tests)

bats_tests = \
	tests/control/control.bats \
	tests/house/arrows.bats \
	tests/house/bounds.bats \
	tests/house/frame.bats \
	tests/house/lengths.bats \
	tests/house/modules.bats \
	tests/house/sources.bats \
	tests/qed-img/callers.bats \
	tests/qed-img/calls.bats \
	tests/qed-img/completion.bats \
	tests/qed-img/convert.bats \
	tests/qed-img/data.bats \
	tests/qed-img/fixed-size.bats \
	tests/qed-img/growth.bats \
	tests/qed-img/kill.bats \
	tests/qed-img/qed-img.bats \
	tests/qed/bad-input.bats \
	tests/qed/crash.bats \
	tests/qed/damage.bats \
	tests/qed/full-disk.bats \
	tests/qed/guestfish.bats \
	tests/qed/lock.bats \
	tests/qed/model.bats \
	tests/qed/nbd.bats \
	tests/qed/needcheck.bats \
	tests/qed/params.bats \
	tests/qed/power-loss.bats \
	tests/qed/probed-raw.bats \
	tests/qed/read.bats \
	tests/replication/control.bats \
	tests/replication/events.bats \
	tests/replication/evidence.bats \
	tests/replication/fail-back.bats \
	tests/replication/faults.bats \
	tests/replication/heartbeat.bats \
	tests/replication/history.bats \
	tests/replication/hosts.bats \
	tests/replication/joint.bats \
	tests/replication/kill.bats \
	tests/replication/layer.bats \
	tests/replication/model.bats \
	tests/replication/orders.bats \
	tests/replication/params.bats \
	tests/replication/qemu.bats \
	tests/replication/sync.bats \
	tests/replication/table.bats \
	tests/replication/walkthrough.bats \
	tests/replication/whose-data.bats \
	tests/writelog/blklogwrites.bats \
	tests/writelog/crash-recipe.bats \
	tests/writelog/explore.bats \
	tests/writelog/log-note.bats \
	tests/writelog/logreplay.bats \
	tests/writelog/logwrites.bats \
	tests/writelog/planted.bats \
	tests/writelog/scripts.bats \
	tests/writelog/sqlite-recipe.bats

# Slow ones stand first, so that they do not run alone at the end.
if SANITIZERS
TESTS = $(unit_tests) $(chaos_tests) $(fuzz_tests)
else
TESTS = tests/house/sanitizers.sh $(slow_unit_tests) $(faults_tests) \
	$(bats_tests) $(chaos_tests) $(quick_unit_tests) $(fuzz_tests)
endif

# Each unit test is linked with the library.  The others are run by tests.
check_PROGRAMS += $(unit_tests) tests/unit/control-server
.PHONY: unit-tests
unit-tests: $(unit_tests)
AM_CPPFLAGS += $(CMOCKA_CFLAGS)
# Preloaded into servers by tests/lib/lossy.py.
check_LTLIBRARIES += tests/unit/lossy.la
tests_unit_lossy_la_SOURCES = tests/unit/lossy.c
# Without sanitizers, because it is preloaded into any program.
tests_unit_lossy_la_CFLAGS = -std=gnu11 -pthread $(WARNING_CFLAGS)
tests_unit_lossy_la_LDFLAGS = -module -avoid-version -shared -rpath /nowhere
# Preloaded by bench/status.sh.
check_LTLIBRARIES += tests/bench/nohole.la
tests_bench_nohole_la_SOURCES = tests/bench/nohole.c
tests_bench_nohole_la_CFLAGS = -std=gnu11 $(WARNING_CFLAGS)
tests_bench_nohole_la_LDFLAGS = -module -avoid-version -shared -rpath /nowhere
# A filter of bench/blklogwrites.sh.
check_LTLIBRARIES += tests/bench/twice.la
tests_bench_twice_la_SOURCES = tests/bench/twice.c
tests_bench_twice_la_CFLAGS = -std=gnu11 $(WARNING_CFLAGS)
tests_bench_twice_la_LDFLAGS = -module -avoid-version -shared -rpath /nowhere
# Preloaded with a sanitizer's runtime by tests/sanitized.sh.
if SANITIZERS
check_LTLIBRARIES += tests/unit/keep.la
endif
tests_unit_keep_la_SOURCES = tests/unit/keep.c
tests_unit_keep_la_CFLAGS = -std=gnu11 $(WARNING_CFLAGS)
tests_unit_keep_la_LDFLAGS = \
	-module -avoid-version -shared -rpath /nowhere
# One of its tests is without memory.
tests_unit_test_writelog_hold_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=realloc
# In these the medium of a file takes its time (see LINKED_AS in next.h).
tests_unit_test_qed_buffer_LDFLAGS = $(AM_LDFLAGS) \
	-Wl,--wrap=fallocate,--wrap=fallocate64
tests_unit_test_replication_dirty_LDFLAGS = $(AM_LDFLAGS) \
	-Wl,--wrap=pwrite,--wrap=pwrite64

LDADD = \
	filters/replication/libreplication.la \
	common/libblockdrivers.la \
	$(CMOCKA_LIBS)

# One driver and one way to run them all, whatever the extension.
TEST_EXTENSIONS = .bats .sh
tap_driver = env AM_TAP_AWK='$(AWK)' $(SHELL) $(top_srcdir)/build-aux/tap-driver.sh
tap_run = $(top_builddir)/run bash $(srcdir)/tests/tap.sh
LOG_DRIVER = $(tap_driver)
LOG_COMPILER = $(tap_run)
BATS_LOG_DRIVER = $(tap_driver)
BATS_LOG_COMPILER = $(tap_run)
SH_LOG_DRIVER = $(tap_driver)
SH_LOG_COMPILER = $(tap_run)

EXTRA_DIST += \
	$(bats_tests) \
	$(benches) \
	tests/bench/functions.bash \
	tests/bench/growth.py \
	tests/bench/replication.py \
	tests/bench/status.py \
	tests/demo.sh \
	tests/house/arrows.py \
	tests/house/bounds.py \
	tests/house/sanitizers.sh \
	tests/builds.sh \
	tests/matrix.sh \
	tests/sanitized.sh \
	tests/smoke.sh \
	tests/writelog/data/README \
	tests/lib/answers.bash \
	tests/lib/byte_model.py \
	tests/lib/complete.zsh \
	tests/lib/control-ask.py \
	tests/lib/flight_model.py \
	tests/lib/functions.bash \
	tests/lib/guestfs.bash \
	tests/lib/lossy.py \
	tests/lib/next.h \
	tests/lib/preload.h \
	tests/lib/qed-functions.bash \
	tests/lib/qed-image.py \
	tests/lib/qed-img-functions.bash \
	tests/lib/qed_format.py \
	tests/lib/qed_server.py \
	tests/lib/qmp_client.py \
	tests/lib/replication-functions.bash \
	tests/lib/roots.bash \
	tests/lib/replication_qemu.py \
	tests/lib/replication_server.py \
	tests/lib/spoiled_image.py \
	tests/lib/writelog_format.py \
	tests/qed-img/growth.py \
	tests/qed-img/kill.py \
	tests/qed-img/repair-kill.py \
	tests/qed/crash.py \
	tests/qed/damage.py \
	tests/qed/errors.py \
	tests/qed/full-disk.py \
	tests/qed/fuzz.py \
	tests/qed/model.py \
	tests/qed/try-image.py \
	tests/replication/control.py \
	tests/replication/events.py \
	tests/replication/fail_back.py \
	tests/replication/faults.py \
	tests/replication/history.py \
	tests/replication/joint.py \
	tests/replication/kill.py \
	tests/replication/layer.py \
	tests/replication/model.py \
	tests/replication/moments.py \
	tests/replication/orders.py \
	tests/replication/qemu.py \
	tests/replication/table.py \
	tests/memory.py \
	tests/soak.sh \
	tests/surroundings.sh \
	tests/tap.sh \
	tests/testing.pod \
	tests/unit/folder.h \
	tests/unit/medium.h \
	tests/unit/memory-node.h \
	tests/unit/nbd-unit.h \
	tests/unit/primary-unit.h \
	tests/unit/qemu-judge.h \
	tests/unit/replication-unit.h \
	tests/unit/server.h \
	tests/unit/unit.h \
	tests/writelog/blklogwrites.py \
	tests/writelog/explore.py \
	tests/writelog/data/kernel-ext4.log.xz \
	tests/writelog/data/kernel-ext4.states \
	tests/writelog/logreplay.py \
	tests/writelog/logwrites-model.py \
	tests/writelog/planted.py

# Long campaigns, of which the suite runs a short form: more of the random
# models and more killed servers; more damaged images and logs, and more
# requests that make no sense.  ROUNDS says how many; a failure prints the
# SEED that repeats it.

.PHONY: soak campaigns damage bench
soak_bats = \
	tests/qed-img/kill.bats \
	tests/qed/crash.bats \
	tests/qed/damage.bats \
	tests/qed/model.bats \
	tests/qed/nbd.bats \
	tests/replication/faults.bats \
	tests/replication/kill.bats \
	tests/replication/model.bats \
	tests/replication/qemu.bats \
	tests/writelog/blklogwrites.bats \
	tests/writelog/explore.bats \
	tests/writelog/logreplay.bats
soak_units = \
	tests/unit/test-replication-crash \
	tests/unit/test-replication-threads
campaigns: all $(soak_units)
	SEED=$${SEED:-$$(date +%N)} ROUNDS=$${ROUNDS:-100} \
	    DAMAGE_SEEDS=$${DAMAGE_SEEDS:-500} \
	    $(top_builddir)/run bats $(soak_bats:%=$(srcdir)/%)
	@for t in $(soak_units); do \
	    SEED=$${SEED:-$$(date +%s)} ROUNDS=$${ROUNDS:-100} $$t || exit 1; \
	done
damage: all tests/unit/test-control tests/unit/test-writelog-reader
	ROUNDS=$${ROUNDS:-20000} \
	    $(top_builddir)/run bats -f "random damage" \
	    $(srcdir)/tests/qed/bad-input.bats
	SEED=$${SEED:-$$(date +%s)} ROUNDS=$${ROUNDS:-20000} \
	    tests/unit/test-control
	SEED=$${SEED:-$$(date +%s)} ROUNDS=$${ROUNDS:-1000000} \
	    tests/unit/test-writelog-reader

# Chaos, fuzz, faults and odd surroundings side by side for SOAK_MINUTES, with
# new seeds.

soak: all $(chaos_tests) $(fuzz_tests) tests/faults/shim.la
	bash $(srcdir)/tests/soak.sh

# The .bats files against modules and tools with sanitizers; all, or those of
# SANITIZED_FILES.

.PHONY: check-asan check-tsan
check-asan: all
	bash $(srcdir)/tests/sanitized.sh address,undefined $(SANITIZED_FILES)
check-tsan: all
	bash $(srcdir)/tests/sanitized.sh thread $(SANITIZED_FILES)

# What is installed works, as far as a user can tell without QEMU.

installcheck-local:
	@if test -f $(DESTDIR)$(plugindir)/nbdkit-qed-plugin.so; then \
	    PATH="$(DESTDIR)$(bindir):$$PATH" NBDKIT="$(NBDKIT)" \
	        VERSION="$(VERSION)" bash $(srcdir)/tests/smoke.sh \
	        "$(DESTDIR)$(plugindir)" "$(DESTDIR)$(filterdir)"; \
	fi

# The suite on each release of Debian; see the head of the script.

.PHONY: matrix tests/matrix
matrix tests/matrix:
	@bash $(srcdir)/tests/matrix.sh

# Other compilers, options and processors; see the head of the script.

.PHONY: builds
builds:
	@bash $(srcdir)/tests/builds.sh

# Speed, side by side with the reference; see the head of each script.

benches = \
	tests/bench/blklogwrites.sh \
	tests/bench/explore.sh \
	tests/bench/growth.sh \
	tests/bench/logreplay.sh \
	tests/bench/overlay.sh \
	tests/bench/qed-img.sh \
	tests/bench/qed.sh \
	tests/bench/replication.sh \
	tests/bench/status.sh \
	tests/bench/tables.sh
bench: all tests/bench/nohole.la tests/bench/twice.la
	@for b in $(benches); do \
	    $(top_builddir)/run bash $(srcdir)/$$b || exit 1; \
	done

# Every order of accidents and restarts of a pair, which takes some minutes.
orders: $(check_LTLIBRARIES) all
	LOSSY=$(abs_builddir)/tests/unit/.libs/lossy.so \
	PYTHONPATH=$(srcdir)/tests/lib PYTHONDONTWRITEBYTECODE=1 \
	$(top_builddir)/run /usr/bin/python3 $(srcdir)/tests/replication/orders.py \
	  --verbose $(ORDERS)

# Power losses, and calls that fail, at 5,000 moments of a pair.
moments: $(check_LTLIBRARIES) all
	for kind in power fail; do \
	  LOSSY=$(abs_builddir)/tests/unit/.libs/lossy.so \
	  PYTHONPATH=$(srcdir)/tests/lib PYTHONDONTWRITEBYTECODE=1 \
	  $(top_builddir)/run /usr/bin/python3 \
	    $(srcdir)/tests/replication/moments.py --kind=$$kind \
	    --states=5000 $(MOMENTS) || exit 1; \
	done
.PHONY: moments orders
