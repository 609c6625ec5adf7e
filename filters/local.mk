# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Filters, and the tool for their control sockets.  A folder filters/NAME
# holds nbdkit-NAME-filter, which `run` finds there by its name.

bin_PROGRAMS += filters/blkctl/blkctl
filters_blkctl_blkctl_LDADD = $(tool_libs)
filters_blkctl_blkctl_SOURCES = \
	filters/blkctl/blkctl.c \
	filters/blkctl/blkctl.h \
	filters/blkctl/checkpoint.c \
	filters/blkctl/client.c \
	filters/blkctl/client.h
