#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Small programs with one mistake each, which logwrites explore must find.

    planted.py [NAME...]

Each writes through nbdkit-blklogwrites-filter as a file system or a database
does, but for one mistake about what a power loss may take.  The default
states must find it, and shrink what is lost to the very write that the
mistake is about; the same program without the mistake must pass.  Prints a
table of what was tried.

A sector holds a line of text.  A check is awk's: s[N] is that of sector N,
mark the last mark, and it says bad (...) if the disk is not what the program
promises.  It counts from "formatted" in the last sector on.
"""

import json
import subprocess
import sys
import time

import writelog_format as wl
from qed_server import Server
from qmp_client import Qmp

import nbd

SECTOR, LAST = 512, 63

CHECK = """nbdcopy "$uri" - | tr '\\000' ' ' | fold -w 512 |
awk -v mark="$mark" '
  function bad (what) { print what; exit 1 }
  { sub (/ +$/, ""); s[NR - 1] = $0 }
  END {
    if (s[63] != "formatted") exit
    split (mark, m, " "); split (s[0], super, " ")
    %s
  }'"""


class Disk:
    """What a program writes to, and what the mistake is about."""

    def __init__(self, name, fixed):
        self.log = f"{name}.{'fixed' if fixed else 'fault'}.log"
        self.fixed = fixed
        self.server = Server("32k", plugin="memory",
                             options=["--filter=blklogwrites"],
                             params=[f"log={self.log}", "log-control=ctl"])
        self.h = self.server.connect()
        self.control = Qmp("ctl", self.server.process)
        self.nr = 0             # entries
        self.guilty = None      # the entry that has to be lost
        self.first_bad = None   # or the first that makes it bad

    def entry(self, guilty):
        if guilty:
            self.guilty = self.nr
        self.nr += 1

    def write(self, sector, text, nr=1, fua=False, guilty=False):
        self.entry(guilty)
        self.h.pwrite(text.encode().ljust(SECTOR) * nr, sector * SECTOR,
                      nbd.CMD_FLAG_FUA if fua else 0)

    def trim(self, sector, guilty=False):
        self.entry(guilty)
        self.h.trim(SECTOR, sector * SECTOR)

    def zero(self, sector, guilty=False):
        self.entry(guilty)
        self.h.zero(SECTOR, sector * SECTOR)

    def flush(self):
        self.nr += 1
        self.h.flush()

    def flush_if_fixed(self):
        if self.fixed:
            self.flush()

    def mark(self, name):
        self.nr += 1
        self.control.command("log-mark", name=name)

    def formatted(self):
        self.flush()
        self.write(LAST, "formatted")
        self.flush()

    def close(self):
        self.flush()
        self.control.close()
        self.h.shutdown()
        self.server.stop()
        assert len(wl.read_log(self.log)[1]) == self.nr


# ---- The programs.  What is written by "guilty" must be found.

def commit_without_flush(d):
    """The data of a commit record are not flushed before it."""
    d.write(8, "data 1", 2)
    d.write(0, "commit 1")
    d.formatted()
    d.write(16, "data 2", 2, guilty=True)
    d.write(24, "of another")
    d.flush_if_fixed()
    d.write(0, "commit 2")


COMMIT = """
    for (i = 0; i < 2; i++)
      if (s[8 * super[2] + i] != "data " super[2]) bad("commit without data")
"""


def fua_commit(d):
    """FUA makes a commit block durable, not the data before it."""
    d.write(8, "data 1", 2)
    d.write(0, "commit 1")
    d.formatted()
    d.write(16, "data 2", 2, guilty=True)
    d.flush_if_fixed()
    d.write(0, "commit 2", fua=True)


def torn_record(d):
    """A record of two sectors is written over the old one."""
    d.write(2, "state 1", 2)
    d.formatted()
    if d.fixed:                 # in turn with another copy
        d.write(4, "state 2", 2)
    else:
        d.write(2, "state 2", 2, guilty=True)


TORN = """
    if (s[2] != s[3] && (s[4] == "" || s[4] != s[5])) bad("no whole state")
"""


def torn_fua_record(d):
    """The same with FUA, which does not make a write atomic."""
    d.write(2, "state 1", 2)
    d.formatted()
    if d.fixed:
        d.write(4, "state 2", 2, fua=True)
    else:
        d.write(2, "state 2", 2, fua=True, guilty=True)


def super_block_first(d):
    """The newer of two super blocks is written before what it points to."""
    d.write(8, "tree 1")
    d.write(0, "super 1")
    d.formatted()
    if d.fixed:
        d.write(16, "tree 2")
        d.flush()
        d.write(1, "super 2")
    else:
        d.first_bad = d.nr
        d.write(1, "super 2")
        d.write(16, "tree 2")


SUPER = """
    if (s[1] == "super 2" && s[16] != "tree 2") bad("no tree")
"""


def home_before_journal(d):
    """A block is changed in place while its old content may be lost."""
    d.write(32, "home 1")
    d.formatted()
    d.write(16, "old: home 1", guilty=True)
    d.flush_if_fixed()
    d.write(32, "home 2")
    d.flush()
    d.write(0, "done 2")


HOME = """
    if (s[32] == "home 2" && s[0] != "done 2" && s[16] == "")
      bad("it cannot be rolled back")
"""


def journal_cleared_early(d):
    """The journal is cleared before the blocks in place are flushed."""
    d.write(32, "home 1")
    d.write(16, "journal 2")
    d.formatted()
    d.write(32, "home 2", guilty=True)
    d.flush_if_fixed()
    d.write(16, "empty")


CLEARED = """
    if (s[16] == "empty" && s[32] != "home 2") bad("an update is gone")
"""


def discard_before_pointer(d):
    """Old data are discarded while the pointer to the new may be lost."""
    d.write(8, "data 1")
    d.write(0, "at 8")
    d.formatted()
    d.write(16, "data 2")
    d.flush()
    d.write(0, "at 16", guilty=True)
    d.flush_if_fixed()
    d.trim(8)


POINTER = """
    if (s[super[2]] == "") bad("the data are discarded")
"""


def acknowledged_early(d):
    """A row is acknowledged before it is flushed."""
    d.write(8, "row 1")
    d.formatted()
    d.mark("row 1")
    d.write(9, "row 2", guilty=True)
    d.flush_if_fixed()
    d.mark("row 2")


ROWS = """
    for (i = 1; i <= m[2]; i++)
      if (s[7 + i] != "row " i) bad("row " i " is gone")
"""


def half_acknowledged(d):
    """Of two rows only the first is FUA, and both are acknowledged."""
    d.formatted()
    d.write(8, "row 1", fua=True)
    d.write(9, "row 2", fua=d.fixed, guilty=not d.fixed)
    d.mark("rows 2")


def header_with_body(d):
    """An entry counts by its first sector, written with all others."""
    d.formatted()
    if d.fixed:
        d.write(17, "entry 2", 3)
        d.flush()
        d.write(16, "entry 2")
    else:
        d.write(16, "entry 2", 4, guilty=True)


ENTRY = """
    for (i = 17; i < 20; i++)
      if (s[16] != "" && s[i] != s[16]) bad("an entry without its body")
"""


def reuse_before_free(d):
    """A block is given to another before it is known to be free."""
    d.write(8, "of a")
    d.write(0, "a 8")
    d.formatted()
    d.write(0, "a none", guilty=True)
    d.flush_if_fixed()
    d.write(8, "of b")
    d.flush()
    d.write(1, "b 8")


REUSE = """
    if (s[0] == "a 8" && s[8] != "of a") bad("a has what is of b")
"""


def discard_not_flushed(d):
    """A log is called empty while the discard of its entries may be lost."""
    d.write(40, "old entry")
    d.write(0, "log used")
    d.formatted()
    d.trim(40, guilty=True)
    d.flush_if_fixed()
    d.write(0, "log empty", fua=True)


EMPTY = """
    if (s[0] == "log empty" && s[40] != "") bad("an old entry is back")
"""


def zeroes_not_flushed(d):
    """A file grows over a block whose zeroes may be lost."""
    d.write(9, "a secret")
    d.write(0, "size 1")
    d.formatted()
    d.zero(9, guilty=True)
    d.flush_if_fixed()
    d.write(0, "size 2")


GROWN = """
    if (super[2] == 2 && s[9] != "") bad("a secret is shown")
"""

PROGRAMS = (
    (commit_without_flush, COMMIT), (fua_commit, COMMIT),
    (torn_record, TORN), (torn_fua_record, TORN),
    (super_block_first, SUPER), (home_before_journal, HOME),
    (journal_cleared_early, CLEARED), (discard_before_pointer, POINTER),
    (acknowledged_early, ROWS), (half_acknowledged, ROWS),
    (header_with_body, ENTRY), (reuse_before_free, REUSE),
    (discard_not_flushed, EMPTY), (zeroes_not_flushed, GROWN),
)


# ---- Trying them

def explore(log, check):
    run = subprocess.run(
        ["logwrites", "explore", "--output=json", log, "--", CHECK.replace("%s", check)],
        stdout=subprocess.PIPE, text=True, check=False)
    return run.returncode, json.loads(run.stdout)


def try_program(program, check, fixed):
    d = Disk(program.__name__, fixed)
    try:
        program(d)
    finally:
        d.close()
    start = time.monotonic()
    status, report = explore(d.log, check)
    seconds = time.monotonic() - start
    found = [sorted({piece["entry"] for piece in f["lost"]})
             or f"first bad {f.get('first-bad-entry')}"
             for f in report["findings"]]
    summary = report["summary"]
    print("%-24s %-7s %7d %5d %8.2f  %s" % (
        program.__name__, "fixed" if fixed else "fault",
        summary["good"] + summary["bad"], summary["bad"], seconds,
        found if found else "-"), flush=True)

    if fixed:
        assert status == 0 and not found, report["findings"]
        return
    assert status == 2, status
    if d.first_bad is None:
        wanted = [d.guilty]
    else:
        wanted = f"first bad {d.first_bad}"
    # A write that is torn has two ends, each of which may be lost.
    assert found and all(f == wanted for f in found), (wanted, found)
    assert all(f["least"] for f in report["findings"])


def main(names):
    print("%-24s %-7s %7s %5s %8s  %s" % ("program", "", "states", "bad",
                                         "seconds", "entries lost"))
    for program, check in PROGRAMS:
        if not names or program.__name__ in names:
            for fixed in (False, True):
                try_program(program, check, fixed)


if __name__ == "__main__":
    main(sys.argv[1:])
