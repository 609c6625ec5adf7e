# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Media that fail, lie and lose power under many threads, against models.
# The suite runs a few fixed seeds; for longer with new ones, and 5,000 power
# losses of a pair:
#
#     make chaos CHAOS_SECONDS=600
#     make chaos-pair

chaos_tests = tests/chaos/chaos tests/chaos/pair
check_PROGRAMS += $(chaos_tests)
tests_chaos_chaos_SOURCES = \
	tests/chaos/chaos.c \
	tests/chaos/chaos.h \
	tests/chaos/clock.c \
	tests/chaos/clock.h \
	tests/chaos/divert.c \
	tests/chaos/divert.h \
	tests/chaos/load.c \
	tests/chaos/load.h \
	tests/chaos/log.c \
	tests/chaos/medium.c \
	tests/chaos/medium.h \
	tests/chaos/model.c \
	tests/chaos/model.h \
	tests/chaos/primary.c \
	tests/chaos/qed.c \
	tests/chaos/secondary.c \
	tests/chaos/wire.c \
	tests/chaos/wire.h
# Names of files lead to media, the remote's URI to a wire, and time is short.
tests_chaos_chaos_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=file_node_open \
	-Wl,--wrap=node_create_file -Wl,--wrap=boot_id_read \
	-Wl,--wrap=node_open -Wl,--wrap=clock_gettime \
	-Wl,--wrap=clock_nanosleep -Wl,--wrap=pthread_cond_timedwait
tests_chaos_pair_SOURCES = \
	tests/chaos/chaos.h \
	tests/chaos/divert.c \
	tests/chaos/divert.h \
	tests/chaos/medium.c \
	tests/chaos/medium.h \
	tests/chaos/model.h \
	tests/chaos/pair-folder.c \
	tests/chaos/pair-world.c \
	tests/chaos/pair.c \
	tests/chaos/pair.h \
	tests/chaos/wire.c \
	tests/chaos/wire.h
# The remote's URI leads to the secondary in the same process; names of files
# are changed in a folder that fails and forgets.
tests_chaos_pair_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=file_node_open \
	-Wl,--wrap=node_create_file -Wl,--wrap=boot_id_read \
	-Wl,--wrap=node_open -Wl,--wrap=rename -Wl,--wrap=link \
	-Wl,--wrap=linkat -Wl,--wrap=unlink -Wl,--wrap=fsync \
	-Wl,--wrap=note_read -Wl,--wrap=note_put -Wl,--wrap=note_settle

.PHONY: chaos chaos-pair
chaos: all $(chaos_tests)
	CHAOS_SECONDS=$${CHAOS_SECONDS:-600} tests/chaos/chaos

chaos-pair: tests/chaos/pair
	tests/chaos/pair --states=5000
