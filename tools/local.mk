# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The command-line tools, a folder each.

bin_PROGRAMS += tools/blkctl/blkctl
tools_blkctl_blkctl_LDADD = $(tool_libs)
tools_blkctl_blkctl_SOURCES = \
	tools/blkctl/blkctl.c \
	tools/blkctl/blkctl.h \
	tools/blkctl/checkpoint.c \
	tools/blkctl/checkpoint.h \
	tools/blkctl/client.c \
	tools/blkctl/client.h \
	tools/blkctl/every.c \
	tools/blkctl/every.h \
	tools/blkctl/metrics.c \
	tools/blkctl/metrics.h \
	tools/blkctl/watch.c \
	tools/blkctl/watch.h \
	tools/blkctl/failover.c \
	tools/blkctl/failover.h \
	tools/blkctl/members.c \
	tools/blkctl/members.h

bin_PROGRAMS += tools/logwrites/logwrites
tools_logwrites_logwrites_LDADD = $(tool_libs) -lm
tools_logwrites_logwrites_SOURCES = \
	tools/logwrites/explore-page.c \
	tools/logwrites/explore-print.c \
	tools/logwrites/explore-run.c \
	tools/logwrites/explore.c \
	tools/logwrites/explore.h \
	tools/logwrites/gnuplot.c \
	tools/logwrites/gnuplot.h \
	tools/logwrites/info.c \
	tools/logwrites/list.c \
	tools/logwrites/logwrites.c \
	tools/logwrites/logwrites.h \
	tools/logwrites/lost.c \
	tools/logwrites/lost.h \
	tools/logwrites/plot.c \
	tools/logwrites/plot.h \
	tools/logwrites/print.c \
	tools/logwrites/replay.c \
	tools/logwrites/verify.c

bin_PROGRAMS += tools/qed-img/qed-img
tools_qed_img_qed_img_LDADD = $(tool_libs)
tools_qed_img_qed_img_SOURCES = \
	tools/qed-img/arguments.c \
	tools/qed-img/chain.c \
	tools/qed-img/chain.h \
	tools/qed-img/check.c \
	tools/qed-img/commit.c \
	tools/qed-img/convert.c \
	tools/qed-img/create.c \
	tools/qed-img/empty.c \
	tools/qed-img/info.c \
	tools/qed-img/map.c \
	tools/qed-img/measure.c \
	tools/qed-img/new-image.c \
	tools/qed-img/object.c \
	tools/qed-img/options.c \
	tools/qed-img/qed-img.c \
	tools/qed-img/qed-img.h \
	tools/qed-img/rebase.c \
	tools/qed-img/resize.c
