# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Plugins, each with the tools of its format.  A folder plugins/NAME holds
# nbdkit-NAME-plugin, which `run` finds there by its name.

if !SANITIZERS
plugin_LTLIBRARIES += plugins/qed/nbdkit-qed-plugin.la
endif
plugins_qed_nbdkit_qed_plugin_la_CFLAGS = $(module_cflags)
plugins_qed_nbdkit_qed_plugin_la_LDFLAGS = $(module_ldflags)
plugins_qed_nbdkit_qed_plugin_la_LIBADD = $(module_libs)
plugins_qed_nbdkit_qed_plugin_la_SOURCES = \
	$(module_sources) \
	plugins/qed/server.c \
	plugins/qed/server.h \
	plugins/qed/qed.c

if !SANITIZERS
plugin_LTLIBRARIES += plugins/logreplay/nbdkit-logreplay-plugin.la
endif
plugins_logreplay_nbdkit_logreplay_plugin_la_CFLAGS = $(module_cflags)
plugins_logreplay_nbdkit_logreplay_plugin_la_LDFLAGS = $(module_ldflags)
plugins_logreplay_nbdkit_logreplay_plugin_la_LIBADD = $(module_libs)
plugins_logreplay_nbdkit_logreplay_plugin_la_SOURCES = \
	$(module_sources) \
	plugins/logreplay/logreplay.c

bin_PROGRAMS += plugins/qed/qed-img
plugins_qed_qed_img_LDADD = $(tool_libs)
plugins_qed_qed_img_SOURCES = \
	plugins/qed/img-check.c \
	plugins/qed/img-commit.c \
	plugins/qed/img-create.c \
	plugins/qed/img-empty.c \
	plugins/qed/img-info.c \
	plugins/qed/img-map.c \
	plugins/qed/img-measure.c \
	plugins/qed/img-options.c \
	plugins/qed/img-rebase.c \
	plugins/qed/img-resize.c \
	plugins/qed/img.h \
	plugins/qed/qed-img.c

bin_PROGRAMS += plugins/logreplay/logwrites
plugins_logreplay_logwrites_LDADD = $(tool_libs) -lm
plugins_logreplay_logwrites_SOURCES = \
	plugins/logreplay/logwrites-info.c \
	plugins/logreplay/logwrites-list.c \
	plugins/logreplay/logwrites-plot.c \
	plugins/logreplay/logwrites-replay.c \
	plugins/logreplay/logwrites-verify.c \
	plugins/logreplay/logwrites.c \
	plugins/logreplay/logwrites.h
