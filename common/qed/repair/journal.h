/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A repair whose changes are made all or not at all, also if it is
 * killed: see journal.c.
 */

#ifndef BLOCKDRIVERS_QED_JOURNAL_H
#define BLOCKDRIVERS_QED_JOURNAL_H

#include "qed/image/image.h"

struct journal;

/* From now on s->file holds back what is written to the image.  *journal is
 * NULL, and changes are made at once, where there is no place for the
 * record that it needs.
 */
extern int journal_new (struct qed *s, struct journal **journal);

/* What is written from this offset of the file on is new, and nothing
 * refers to it yet; such writes need not be held back.  The first call
 * counts.  NULL is ignored, here and below.
 */
extern void journal_set_end (struct journal *journal, uint64_t end);

/* Does it hold back so much that it should be carried out now? */
extern bool journal_is_large (const struct journal *journal);

/* Make all changes that have been held back. */
extern int journal_carry_out (struct journal *journal);

/* Carry it out if r is 0, otherwise take it back: the image is as
 * before.  Then free it and give s its file back.  Returns r, or -1
 * after a message.
 */
extern int journal_finish (struct journal *journal, int r);

/* Complete a repair, or take it back, if that is what a killed program has
 * left in this file.  A file that is no QED image is not touched.
 */
extern int journal_resume (struct node *file);

#endif /* BLOCKDRIVERS_QED_JOURNAL_H */
