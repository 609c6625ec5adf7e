# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Manual pages: one .pod a page, all of section 1.  Add man/NAME.pod here.

manual_pages = \
	man/blkctl.pod \
	man/logwrites.pod \
	man/nbdkit-blklogwrites-filter.pod \
	man/nbdkit-logreplay-plugin.pod \
	man/nbdkit-qed-plugin.pod \
	man/nbdkit-replication-filter.pod \
	man/qed-img.pod

man_MANS += $(manual_pages:.pod=.1)
EXTRA_DIST += $(manual_pages)
CLEANFILES += $(man_MANS)
DISTCLEANFILES += man/man1

# pod2man indents nothing where one list ends another, which some say is odd.
SUFFIXES = .pod .1
.pod.1:
	$(AM_V_GEN)$(MKDIR_P) $(@D) && \
	$(POD2MAN) --utf8 --section=1 --name="`basename $* | tr a-z A-Z`" \
	    --center=nbdkit-blockdrivers \
	    --release="nbdkit-blockdrivers $(VERSION)" $< $@-t && \
	$(SED) '/^\.RS 4$$/{N;/\n\.RE$$/d;}' $@-t >$@-s && \
	rm -f $@-t && mv $@-s $@
