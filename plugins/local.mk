# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Plugins, each with the tools of its format.  A folder plugins/NAME holds
# nbdkit-NAME-plugin, which `run` finds there by its name.

# What the tools share.
tool_sources = \
	plugins/progress.c \
	plugins/progress.h \
	plugins/tool.c \
	plugins/tool.h

if !SANITIZERS
plugin_LTLIBRARIES += plugins/qed/nbdkit-qed-plugin.la
endif
plugins_qed_nbdkit_qed_plugin_la_CFLAGS = $(module_cflags)
plugins_qed_nbdkit_qed_plugin_la_LDFLAGS = $(module_ldflags)
plugins_qed_nbdkit_qed_plugin_la_LIBADD = $(module_libs)
plugins_qed_nbdkit_qed_plugin_la_SOURCES = \
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
	plugins/logreplay/logreplay.c

bin_PROGRAMS += plugins/qed/qed-img
plugins_qed_qed_img_LDADD = common/libblockdrivers.la $(JANSSON_LIBS)
plugins_qed_qed_img_SOURCES = \
	$(tool_sources) \
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
plugins_logreplay_logwrites_LDADD = \
	common/libblockdrivers.la $(JANSSON_LIBS) -lm
plugins_logreplay_logwrites_SOURCES = \
	$(tool_sources) \
	plugins/logreplay/logwrites-info.c \
	plugins/logreplay/logwrites-list.c \
	plugins/logreplay/logwrites-plot.c \
	plugins/logreplay/logwrites-replay.c \
	plugins/logreplay/logwrites-verify.c \
	plugins/logreplay/logwrites.c \
	plugins/logreplay/logwrites.h

# The shell completes the options of each tool.  Add a tool here that knows
# --completions.
completions_DATA = \
	plugins/completions/blkctl \
	plugins/completions/logwrites \
	plugins/completions/qed-img
CLEANFILES += $(completions_DATA)
EXTRA_DIST += plugins/completion.bash

$(completions_DATA): plugins/completion.bash
	$(AM_V_GEN)$(MKDIR_P) $(@D) && cp $(srcdir)/plugins/completion.bash $@
