/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* logwrites: what its sub-commands share. */

#ifndef BLOCKDRIVERS_LOGWRITES_H
#define BLOCKDRIVERS_LOGWRITES_H

#include <stdint.h>

#include "tool/tool.h"
#include "writelog/reader.h"

extern const struct tool_command logwrites_info_command;
extern const struct tool_command logwrites_list_command;
extern const struct tool_command logwrites_replay_command;
extern const struct tool_command logwrites_verify_command;
extern const struct tool_command logwrites_plot_command;
extern const struct tool_command logwrites_explore_command;

/* ---- print.c */

/* A number on the command line, in hex with 0x; does not return for
 * mistakes.
 */
extern uint64_t logwrites_parse_number (const char *option, const char *arg);

/* The only argument, after all options. */
extern const char *logwrites_one_log (int argc, char *argv[]);

/* One line of list. */
extern void logwrites_print_entry (const struct writelog_item *item);

/* Print a mark's text, which may be any bytes, on one line. */
extern void logwrites_print_text (const char *text);

/* ---- info.c */

struct logwrites_totals {
  uint64_t entries;
  uint64_t writes;              /* entries with data */
  uint64_t flushes, fuas, discards, marks; /* entries with this flag */
  uint64_t bytes;               /* of the log, super block included */
  uint64_t start, end;          /* sectors of the disk: the lowest, and the
                                   one behind the highest; both 0 if no
                                   entry has sectors */
};

/* Walk all entries, and rewind.  -1 after a message. */
extern int logwrites_count (struct writelog_reader *log,
                            struct logwrites_totals *totals);

#endif /* BLOCKDRIVERS_LOGWRITES_H */
