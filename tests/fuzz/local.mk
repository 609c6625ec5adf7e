# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Any file, log, name and byte of a socket, with a model of what is right.
# The suite runs the corpus and some damaged versions of it through plain
# programs; with clang's libFuzzer, which sees coverage:
#
#     make fuzz FUZZ_SECONDS=3600

fuzz_tests = \
	tests/fuzz/fuzz-control \
	tests/fuzz/fuzz-log \
	tests/fuzz/fuzz-names \
	tests/fuzz/fuzz-notes \
	tests/fuzz/fuzz-qed
check_PROGRAMS += $(fuzz_tests)
fuzz_common = tests/fuzz/corpus.c tests/fuzz/fuzz.h
tests_fuzz_fuzz_control_SOURCES = tests/fuzz/fuzz-control.c $(fuzz_common)
tests_fuzz_fuzz_log_SOURCES = tests/fuzz/fuzz-log.c $(fuzz_common)
tests_fuzz_fuzz_names_SOURCES = tests/fuzz/fuzz-names.c $(fuzz_common)
tests_fuzz_fuzz_notes_SOURCES = tests/fuzz/fuzz-notes.c $(fuzz_common)
tests_fuzz_fuzz_qed_SOURCES = tests/fuzz/fuzz-qed.c $(fuzz_common)
fuzz_flags = $(AM_CPPFLAGS) -DCORPUS='"$(abs_srcdir)/tests/fuzz/corpus"'
tests_fuzz_fuzz_control_CPPFLAGS = $(fuzz_flags)
tests_fuzz_fuzz_log_CPPFLAGS = $(fuzz_flags)
tests_fuzz_fuzz_names_CPPFLAGS = $(fuzz_flags)
tests_fuzz_fuzz_notes_CPPFLAGS = $(fuzz_flags)
tests_fuzz_fuzz_qed_CPPFLAGS = $(fuzz_flags)
tests_fuzz_fuzz_control_LDADD = $(LDADD) $(JANSSON_LIBS)

.PHONY: fuzz
fuzz:
	BUILD=$(abs_builddir) bash $(srcdir)/tests/fuzz/build.sh
	bash $(srcdir)/tests/fuzz/run.sh

EXTRA_DIST += \
	tests/fuzz/build.sh \
	tests/fuzz/run.sh \
	tests/fuzz/corpus/control/broken \
	tests/fuzz/corpus/control/deep \
	tests/fuzz/corpus/control/session \
	tests/fuzz/corpus/log/completion.log \
	tests/fuzz/corpus/log/discard.log \
	tests/fuzz/corpus/log/durability.log \
	tests/fuzz/corpus/log/kernel-part.log \
	tests/fuzz/corpus/log/qemu.log \
	tests/fuzz/corpus/names/description \
	tests/fuzz/corpus/names/export \
	tests/fuzz/corpus/names/flat \
	tests/fuzz/corpus/names/former \
	tests/fuzz/corpus/names/json \
	tests/fuzz/corpus/names/number \
	tests/fuzz/corpus/names/path \
	tests/fuzz/corpus/names/protocol \
	tests/fuzz/corpus/names/size \
	tests/fuzz/corpus/names/tls \
	tests/fuzz/corpus/names/uri \
	tests/fuzz/corpus/notes/map \
	tests/fuzz/corpus/notes/note-failover \
	tests/fuzz/corpus/notes/note-promoted \
	tests/fuzz/corpus/notes/note-running \
	tests/fuzz/corpus/qed/dirty.qed \
	tests/fuzz/corpus/qed/ours-1.qed \
	tests/fuzz/corpus/qed/ours-2.qed \
	tests/fuzz/corpus/qed/overlay.qed \
	tests/fuzz/corpus/qed/qemu.qed \
	tests/fuzz/corpus/qed/shared.qed
