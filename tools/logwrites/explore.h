/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* logwrites explore: what its files share. */

#ifndef BLOCKDRIVERS_LOGWRITES_EXPLORE_H
#define BLOCKDRIVERS_LOGWRITES_EXPLORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "writelog/explore/plan.h"
#include "writelog/explore/pool.h"
#include "writelog/explore/shrink.h"

enum explore_format { EXPLORE_HUMAN, EXPLORE_JSON, EXPLORE_TAP };

/* Of a state whose command did not succeed. */
struct explore_note {
  char *why;                    /* may be NULL */
  char *tail;                   /* the last lines of its output */
};

/* What bad states have in common. */
struct finding {
  size_t state;                 /* the first of them, in the plan */
  size_t count;
  struct least least;
  char *why, *tail;             /* of the least state */
  char *output;                 /* all that is kept of it; may be NULL */
  size_t output_len;
  char *name;                   /* logreplay's of the least state */
  char **names;                 /* what the file system says of each piece;
                                   as many as least.nr_lost, NULL in it */
};

struct explore {
  /* The command line. */
  const char *log, *base, *from, *to, *tear, *name_command, *report;
  int64_t given_size;           /* -1: none */
  uint64_t shrink;
  unsigned jobs;
  int64_t timeout;              /* milliseconds */
  bool disk, list;
  enum explore_format format;
  char *command;                /* owned */
  struct plan_wish wish;

  /* What is explored. */
  struct writelog_index *index;
  struct writelog_totals totals;
  uint64_t size;                /* bytes of the disk */
  enum try_disk disk_kind;      /* what $disk is */
  struct plan plan;

  /* What came of it: each state's verdict, or NOT_TRIED, and notes. */
  uint8_t *verdicts;
  struct explore_note **notes;  /* NULL for good ones */
  uint64_t nr[TRY_UNTOLD + 1];  /* states of each verdict */
  size_t passed, nr_printed;    /* states, in their order */
  bool interrupted, cannot_run;
  bool broken;                  /* it could not go on */

  struct finding *findings;
  size_t nr_findings, allocated;
  uint64_t shrink_runs;
};

#define EXPLORE_NOT_TRIED (TRY_UNTOLD + 1)

/* ---- explore-run.c */

/* Try all states, and find out what the bad ones come down to.  -1 after a
 * message if nothing could be tried.
 */
extern int explore_run (struct explore *e);

/* ---- explore-print.c */

/* What stands before the states, each state (in their order, as far as they
 * are done; or all that were tried), and what stands at the end.
 */
extern void explore_print_start (const struct explore *e);
extern void explore_print_states (struct explore *e, bool all);
extern int explore_print_end (struct explore *e);

/* The list of states. */
extern int explore_print_list (const struct explore *e);

/* Over and over on one line, if standard error is a terminal. */
extern void explore_print_progress (const struct explore *e,
                                    const char *what, uint64_t done,
                                    uint64_t total, int64_t started);
extern void explore_clear_progress (void);

/* A line for the shell that repeats a state; to be freed. */
extern char *explore_repeat (const struct explore *e,
                             const struct finding *finding);

/* "23 states, 20 distinct: ..."; to be freed. */
extern char *explore_summary (const struct explore *e);

/* "entry 5, a write (fua,metadata)". */
extern void explore_print_entry (FILE *fp, const struct explore *e,
                                 uint64_t entry);

/* ---- explore-page.c */

/* Make the folder of --report, before anything is tried, and fill it.  -1
 * after a message.
 */
extern int explore_report_begin (const struct explore *e);
extern int explore_report (const struct explore *e);

#endif /* BLOCKDRIVERS_LOGWRITES_EXPLORE_H */
