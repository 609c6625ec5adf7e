# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Plugins.  A folder plugins/NAME holds
# nbdkit-NAME-plugin, which `run` finds there by its name.

if MODULES
plugin_LTLIBRARIES += plugins/qed/nbdkit-qed-plugin.la
endif
plugins_qed_nbdkit_qed_plugin_la_CFLAGS = $(module_cflags)
plugins_qed_nbdkit_qed_plugin_la_LDFLAGS = \
	$(module_ldflags) $(EXPORTS_OF)plugins/qed/qed.map
EXTRA_plugins_qed_nbdkit_qed_plugin_la_DEPENDENCIES = \
	plugins/qed/qed.map
EXTRA_DIST += plugins/qed/qed.map
plugins_qed_nbdkit_qed_plugin_la_LIBADD = $(module_libs)
plugins_qed_nbdkit_qed_plugin_la_SOURCES = \
	$(module_sources) \
	$(export_sources) \
	plugins/qed/server.c \
	plugins/qed/server.h \
	plugins/qed/qed.c

if MODULES
plugin_LTLIBRARIES += plugins/logreplay/nbdkit-logreplay-plugin.la
endif
plugins_logreplay_nbdkit_logreplay_plugin_la_CFLAGS = $(module_cflags)
plugins_logreplay_nbdkit_logreplay_plugin_la_LDFLAGS = \
	$(module_ldflags) $(EXPORTS_OF)plugins/logreplay/logreplay.map
EXTRA_plugins_logreplay_nbdkit_logreplay_plugin_la_DEPENDENCIES = \
	plugins/logreplay/logreplay.map
EXTRA_DIST += plugins/logreplay/logreplay.map
plugins_logreplay_nbdkit_logreplay_plugin_la_LIBADD = $(module_libs)
plugins_logreplay_nbdkit_logreplay_plugin_la_SOURCES = \
	$(module_sources) \
	$(export_sources) \
	plugins/logreplay/logreplay.c
