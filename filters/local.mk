# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Filters.  A folder filters/NAME holds nbdkit-NAME-filter, which `run` finds there by its name.

if MODULES
filter_LTLIBRARIES += filters/blklogwrites/nbdkit-blklogwrites-filter.la
endif
filters_blklogwrites_nbdkit_blklogwrites_filter_la_CFLAGS = $(module_cflags)
filters_blklogwrites_nbdkit_blklogwrites_filter_la_LDFLAGS = \
	$(module_ldflags) $(EXPORTS_OF)filters/blklogwrites/blklogwrites.map
EXTRA_filters_blklogwrites_nbdkit_blklogwrites_filter_la_DEPENDENCIES = \
	filters/blklogwrites/blklogwrites.map
EXTRA_DIST += filters/blklogwrites/blklogwrites.map
filters_blklogwrites_nbdkit_blklogwrites_filter_la_LIBADD = $(module_libs)
filters_blklogwrites_nbdkit_blklogwrites_filter_la_SOURCES = \
	$(module_sources) \
	$(next_node_sources) \
	filters/blklogwrites/blklogwrites.c \
	filters/blklogwrites/commands.c \
	filters/blklogwrites/commands.h \
	filters/blklogwrites/ending.c \
	filters/blklogwrites/ending.h

if MODULES
filter_LTLIBRARIES += filters/replication/nbdkit-replication-filter.la
endif
filters_replication_nbdkit_replication_filter_la_CFLAGS = $(module_cflags)
filters_replication_nbdkit_replication_filter_la_LDFLAGS = \
	$(module_ldflags) $(EXPORTS_OF)filters/replication/replication.map
EXTRA_filters_replication_nbdkit_replication_filter_la_DEPENDENCIES = \
	filters/replication/replication.map
EXTRA_DIST += filters/replication/replication.map
filters_replication_nbdkit_replication_filter_la_LIBADD = \
	filters/replication/libreplication.la $(module_libs) $(JANSSON_LIBS)
filters_replication_nbdkit_replication_filter_la_SOURCES = \
	$(module_sources) \
	$(next_node_sources) \
	$(export_sources) \
	filters/replication/commands.c \
	filters/replication/commands.h \
	filters/replication/holding.c \
	filters/replication/holding.h \
	filters/replication/params.c \
	filters/replication/params.h \
	filters/replication/replication.c \
	filters/replication/requests.c \
	filters/replication/requests.h \
	filters/replication/side.c \
	filters/replication/side.h \
	filters/replication/status-json.c \
	filters/replication/status-json.h

# What does not need nbdkit, so that unit tests can link it, too.
noinst_LTLIBRARIES += filters/replication/libreplication.la
filters_replication_libreplication_la_SOURCES = \
	filters/replication/below.c \
	filters/replication/below.h \
	filters/replication/dirty.c \
	filters/replication/dirty.h \
	filters/replication/dirtyfile.c \
	filters/replication/dirtyfile.h \
	filters/replication/history.c \
	filters/replication/history.h \
	filters/replication/meeting.c \
	filters/replication/meeting.h \
	filters/replication/primary/forward-work.c \
	filters/replication/primary/forward-work.h \
	filters/replication/primary/forward.c \
	filters/replication/primary/forward.h \
	filters/replication/primary/link.c \
	filters/replication/primary/link.h \
	filters/replication/primary/mirror.c \
	filters/replication/primary/mirror.h \
	filters/replication/primary/mirror-state.h \
	filters/replication/primary/primary.c \
	filters/replication/primary/primary.h \
	filters/replication/primary/requests.c \
	filters/replication/primary/requests.h \
	filters/replication/primary/send.c \
	filters/replication/primary/send.h \
	filters/replication/primary/state.h \
	filters/replication/primary/sync.c \
	filters/replication/primary/sync.h \
	filters/replication/primary/verify.c \
	filters/replication/secondary/buffers.c \
	filters/replication/secondary/buffers.h \
	filters/replication/secondary/checkpoint.c \
	filters/replication/secondary/checkpoint.h \
	filters/replication/secondary/commit.c \
	filters/replication/secondary/commit.h \
	filters/replication/secondary/evidence.c \
	filters/replication/secondary/evidence.h \
	filters/replication/secondary/guest.c \
	filters/replication/secondary/guest.h \
	filters/replication/secondary/heard.c \
	filters/replication/secondary/heard.h \
	filters/replication/secondary/incoming.c \
	filters/replication/secondary/map.c \
	filters/replication/secondary/map.h \
	filters/replication/secondary/note.c \
	filters/replication/secondary/note.h \
	filters/replication/secondary/recover.c \
	filters/replication/secondary/recover.h \
	filters/replication/secondary/request.c \
	filters/replication/secondary/request.h \
	filters/replication/secondary/secondary.c \
	filters/replication/secondary/secondary.h \
	filters/replication/secondary/state.c \
	filters/replication/secondary/state.h \
	filters/replication/report.c \
	filters/replication/report.h \
	filters/replication/stages.c \
	filters/replication/stages.h \
	filters/replication/status.c \
	filters/replication/status.h
