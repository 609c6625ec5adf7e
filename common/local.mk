# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The library under the modules, the tools and the unit tests.  It is
# linked into each of them and not installed.  Lower rooms first.

noinst_LTLIBRARIES += common/libblockdrivers.la
common_libblockdrivers_la_LIBADD = $(LIBNBD_LIBS) $(JANSSON_LIBS)
common_libblockdrivers_la_SOURCES = \
	common/utils/bitmap.c \
	common/utils/bitmap.h \
	common/utils/bootid.c \
	common/utils/bootid.h \
	common/utils/byteorder.h \
	common/utils/cleanup.h \
	common/utils/clock.h \
	common/utils/filelimit.c \
	common/utils/filelimit.h \
	common/utils/iovec.h \
	common/utils/iszero.h \
	common/utils/jsontext.c \
	common/utils/jsontext.h \
	common/utils/message.c \
	common/utils/message.h \
	common/utils/rounding.h \
	common/utils/sockets.h \
	common/utils/sizes.c \
	common/utils/sizes.h \
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
	common/node/align.c \
	common/node/align.h \
	common/node/direct.c \
	common/node/direct.h \
	common/node/file.c \
	common/node/file.h \
	common/node/known-data.h \
	common/node/lock.c \
	common/node/lock.h \
	common/node/nbd-conn.c \
	common/node/nbd-conn.h \
	common/node/nbd-handle.c \
	common/node/nbd-handle.h \
	common/node/nbd-linger.c \
	common/node/nbd-linger.h \
	common/node/nbd-status.c \
	common/node/nbd-status.h \
	common/node/nbd-vector.c \
	common/node/nbd-vector.h \
	common/node/nbd.c \
	common/node/new-file.c \
	common/node/node.h \
	common/node/open.c \
	common/node/scratch.c \
	common/node/scratch.h \
	common/node/serve.c \
	common/node/serve.h \
	common/node/uri.c \
	common/control/command.c \
	common/control/command.h \
	common/control/control.c \
	common/control/control.h \
	common/control/event.c \
	common/control/event.h \
	common/control/qmp.c \
	common/control/qmp.h \
	common/control/socket.c \
	common/control/socket.h \
	common/control/state.h \
	common/control/stream.c \
	common/control/stream.h \
	common/qed/buffer.c \
	common/qed/chain.c \
	common/qed/chain.h \
	common/qed/commit.c \
	common/qed/copy.c \
	common/qed/copy.h \
	common/qed/create.c \
	common/qed/create.h \
	common/qed/empty.c \
	common/qed/empty.h \
	common/qed/format.c \
	common/qed/format.h \
	common/qed/measure.c \
	common/qed/names.c \
	common/qed/names.h \
	common/qed/open.c \
	common/qed/open.h \
	common/qed/parallel.c \
	common/qed/parallel.h \
	common/qed/qed.h \
	common/qed/rebase.c \
	common/qed/guard.c \
	common/qed/guard.h \
	common/qed/image/cache.c \
	common/qed/image/cache.h \
	common/qed/image/file.h \
	common/qed/image/image.c \
	common/qed/image/image.h \
	common/qed/image/map.c \
	common/qed/image/map.h \
	common/qed/image/need-check.c \
	common/qed/image/need-check.h \
	common/qed/image/scan.c \
	common/qed/image/scan.h \
	common/qed/image/space.c \
	common/qed/image/space.h \
	common/qed/image/table.c \
	common/qed/image/table.h \
	common/qed/io/allocate.c \
	common/qed/io/allocate.h \
	common/qed/io/backing.c \
	common/qed/io/backing.h \
	common/qed/io/extents.c \
	common/qed/io/io.h \
	common/qed/io/read.c \
	common/qed/io/resize.c \
	common/qed/io/write.c \
	common/qed/io/zero.c \
	common/qed/io/zero.h \
	common/qed/repair/check.c \
	common/qed/repair/check.h \
	common/qed/repair/compact.c \
	common/qed/repair/compact.h \
	common/qed/repair/entries.c \
	common/qed/repair/entries.h \
	common/qed/repair/header.c \
	common/qed/repair/header.h \
	common/qed/repair/journal.c \
	common/qed/repair/journal.h \
	common/writelog/format.c \
	common/writelog/format.h \
	common/writelog/reader.c \
	common/writelog/reader.h \
	common/writelog/record/held.c \
	common/writelog/record/held.h \
	common/writelog/record/open.c \
	common/writelog/record/pending.c \
	common/writelog/record/pending.h \
	common/writelog/record/recorder.c \
	common/writelog/record/recorder.h \
	common/writelog/record/room.c \
	common/writelog/record/room.h \
	common/writelog/record/spool.c \
	common/writelog/record/spool.h \
	common/writelog/record/stale.c \
	common/writelog/record/stale.h \
	common/writelog/record/start.c \
	common/writelog/record/start.h \
	common/writelog/record/disknote.c \
	common/writelog/record/disknote.h \
	common/writelog/record/store.c \
	common/writelog/record/store.h \
	common/writelog/record/writer.c \
	common/writelog/record/writer.h \
	common/writelog/moments/cover.c \
	common/writelog/moments/cover.h \
	common/writelog/moments/index.c \
	common/writelog/moments/index.h \
	common/writelog/moments/base.c \
	common/writelog/moments/base.h \
	common/writelog/moments/loss.c \
	common/writelog/moments/loss.h \
	common/writelog/moments/moment.c \
	common/writelog/moments/moment.h \
	common/writelog/moments/moments.h \
	common/writelog/moments/state.c \
	common/writelog/moments/state.h \
	common/writelog/explore/children.c \
	common/writelog/explore/children.h \
	common/writelog/explore/content.c \
	common/writelog/explore/content.h \
	common/writelog/explore/disk.c \
	common/writelog/explore/disk.h \
	common/writelog/explore/names.c \
	common/writelog/explore/plan.c \
	common/writelog/explore/plan.h \
	common/writelog/explore/pool.c \
	common/writelog/explore/pool.h \
	common/writelog/explore/runs.c \
	common/writelog/explore/runs.h \
	common/writelog/explore/shrink.c \
	common/writelog/explore/shrink.h \
	common/writelog/explore/try.c \
	common/writelog/explore/try.h \
	common/writelog/explore/worker.c \
	common/writelog/explore/worker.h

# What the modules share besides: it needs nbdkit, so it is among the
# sources of each that uses it.
module_sources = \
	common/module/module.c \
	common/module/module.h

# A node as an export.
export_sources = \
	common/module/export.c \
	common/module/export.h

# The node of the layer below an nbdkit filter.
next_node_sources = \
	common/module/next.c \
	common/module/next.h
EXTRA_DIST += $(next_node_sources)

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
zshcompletions_DATA = \
	common/completions/_blkctl \
	common/completions/_logwrites \
	common/completions/_qed-img
CLEANFILES += $(completions_DATA) $(zshcompletions_DATA)
EXTRA_DIST += common/tool/completion.bash common/tool/completion.zsh

$(completions_DATA): common/tool/completion.bash
	$(AM_V_GEN)$(MKDIR_P) $(@D) && cp $(srcdir)/common/tool/completion.bash $@
$(zshcompletions_DATA): common/tool/completion.zsh
	$(AM_V_GEN)$(MKDIR_P) $(@D) && name=$(@F) && \
	    $(SED) "s/@TOOL@/$${name#_}/" \
	        $(srcdir)/common/tool/completion.zsh >$@.new && mv $@.new $@
