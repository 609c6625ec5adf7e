# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Filters, and the tool for their control sockets.  A folder filters/NAME
# holds nbdkit-NAME-filter, which `run` finds there by its name.

if !SANITIZERS
filter_LTLIBRARIES += filters/blklogwrites/nbdkit-blklogwrites-filter.la
endif
filters_blklogwrites_nbdkit_blklogwrites_filter_la_CFLAGS = $(module_cflags)
filters_blklogwrites_nbdkit_blklogwrites_filter_la_LDFLAGS = $(module_ldflags)
filters_blklogwrites_nbdkit_blklogwrites_filter_la_LIBADD = $(module_libs)
filters_blklogwrites_nbdkit_blklogwrites_filter_la_SOURCES = \
	$(module_sources) \
	filters/blklogwrites/blklogwrites.c \
	filters/blklogwrites/commands.c \
	filters/blklogwrites/commands.h

bin_PROGRAMS += filters/blkctl/blkctl
filters_blkctl_blkctl_LDADD = $(tool_libs)
filters_blkctl_blkctl_SOURCES = \
	filters/blkctl/blkctl.c \
	filters/blkctl/blkctl.h \
	filters/blkctl/checkpoint.c \
	filters/blkctl/client.c \
	filters/blkctl/client.h

if !SANITIZERS
filter_LTLIBRARIES += filters/replication/nbdkit-replication-filter.la
endif
filters_replication_nbdkit_replication_filter_la_CFLAGS = $(module_cflags)
filters_replication_nbdkit_replication_filter_la_LDFLAGS = $(module_ldflags)
filters_replication_nbdkit_replication_filter_la_LIBADD = \
	$(module_libs) $(JANSSON_LIBS)
filters_replication_nbdkit_replication_filter_la_SOURCES = \
	$(module_sources) \
	$(next_node_sources) \
	filters/replication/commands.c \
	filters/replication/commands.h \
	filters/replication/params.c \
	filters/replication/params.h \
	filters/replication/replication.c \
	filters/replication/requests.c \
	filters/replication/requests.h \
	filters/replication/side.c \
	filters/replication/side.h
