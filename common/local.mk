# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The library under the modules, the tools and the unit tests.  It is
# linked into each of them and not installed.  Lower rooms first.

# The node of the layer below an nbdkit filter needs nbdkit, so it is not in
# the library; each filter has it among its own sources.
next_node_sources = \
	common/node/next.c \
	common/node/next.h
EXTRA_DIST += $(next_node_sources)

noinst_LTLIBRARIES += common/libblockdrivers.la
common_libblockdrivers_la_LIBADD = $(LIBNBD_LIBS) $(JANSSON_LIBS)
common_libblockdrivers_la_SOURCES = \
	common/utils/bitmap.c \
	common/utils/bitmap.h \
	common/utils/byteorder.h \
	common/utils/cleanup.h \
	common/utils/clock.h \
	common/utils/iszero.h \
	common/utils/jsontext.c \
	common/utils/jsontext.h \
	common/utils/message.c \
	common/utils/message.h \
	common/utils/rounding.h \
	common/utils/sizes.c \
	common/utils/sizes.h \
	common/node/file.c \
	common/node/lock.c \
	common/node/lock.h \
	common/node/nbd.c \
	common/node/node.c \
	common/node/node.h \
	common/node/uri.c \
	common/request/align.c \
	common/request/align.h \
	common/request/claim.c \
	common/request/claim.h \
	common/request/drain.c \
	common/request/drain.h \
	common/request/flush.c \
	common/request/flush.h \
	common/request/job.c \
	common/request/job.h \
	common/request/serial.c \
	common/request/serial.h \
	common/control/control.c \
	common/control/control.h \
	common/control/qmp.c \
	common/control/qmp.h \
	common/control/socket.c \
	common/control/socket.h \
	common/control/stream.c \
	common/control/stream.h \
	common/qed/alloc.c \
	common/qed/buffer.c \
	common/qed/cache.c \
	common/qed/chain.c \
	common/qed/chain.h \
	common/qed/check.c \
	common/qed/commit.c \
	common/qed/compact.c \
	common/qed/create.c \
	common/qed/empty.c \
	common/qed/format.c \
	common/qed/format.h \
	common/qed/hold.c \
	common/qed/image.h \
	common/qed/map.c \
	common/qed/measure.c \
	common/qed/mend.c \
	common/qed/open.c \
	common/qed/parallel.c \
	common/qed/parallel.h \
	common/qed/plan.c \
	common/qed/plan.h \
	common/qed/qed.h \
	common/qed/read.c \
	common/qed/rebase.c \
	common/qed/relink.c \
	common/qed/resize.c \
	common/qed/scan.c \
	common/qed/scan.h \
	common/qed/settle.c \
	common/qed/write.c \
	common/replication/dirty.c \
	common/replication/dirty.h \
	common/replication/dirtyfile.c \
	common/replication/dirtyfile.h \
	common/replication/forward.c \
	common/replication/forward.h \
	common/replication/history.c \
	common/replication/history.h \
	common/replication/mirror.c \
	common/replication/mirror.h \
	common/replication/primary.c \
	common/replication/primary.h \
	common/replication/secondary-commit.c \
	common/replication/secondary-export.c \
	common/replication/secondary-recover.c \
	common/replication/secondary-state.h \
	common/replication/secondary.c \
	common/replication/secondary.h \
	common/replication/status.c \
	common/replication/status.h \
	common/writelog/cover.c \
	common/writelog/cover.h \
	common/writelog/format.c \
	common/writelog/format.h \
	common/writelog/hold.c \
	common/writelog/hold.h \
	common/writelog/index.c \
	common/writelog/index.h \
	common/writelog/moment.c \
	common/writelog/moments.h \
	common/writelog/reader.c \
	common/writelog/reader.h \
	common/writelog/record.c \
	common/writelog/record.h \
	common/writelog/spool.c \
	common/writelog/spool.h \
	common/writelog/stale.c \
	common/writelog/stale.h \
	common/writelog/state.c \
	common/writelog/writer.c \
	common/writelog/writer.h

# What the modules share besides: it needs nbdkit, so it is among the
# sources of each.
module_sources = \
	common/module/module.c \
	common/module/module.h

# What the command-line tools share besides.
noinst_LTLIBRARIES += common/libblockdrivers-tool.la
common_libblockdrivers_tool_la_SOURCES = \
	common/tool/progress.c \
	common/tool/progress.h \
	common/tool/tool.c \
	common/tool/tool.h

# The shell completes the options of each tool.  Add a tool here that knows
# --completions.
completions_DATA = \
	common/completions/blkctl \
	common/completions/logwrites \
	common/completions/qed-img
CLEANFILES += $(completions_DATA)
EXTRA_DIST += common/tool/completion.bash

$(completions_DATA): common/tool/completion.bash
	$(AM_V_GEN)$(MKDIR_P) $(@D) && cp $(srcdir)/common/tool/completion.bash $@
