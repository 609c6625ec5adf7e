/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A repair whose changes are made all or not at all, also if it is
 * killed: see plan.c.
 */

#ifndef BLOCKDRIVERS_QED_PLAN_H
#define BLOCKDRIVERS_QED_PLAN_H

#include "qed/image/image.h"

struct plan;

/* From now on s->file holds back what is written to the image.  *plan is
 * NULL, and changes are made at once, where there is no place for the
 * record that a plan needs.
 */
extern int plan_new (struct qed *s, struct plan **plan);

/* What is written from this offset of the file on is new, and nothing
 * refers to it yet; such writes need not be held back.  The first call
 * counts.  NULL is ignored, here and below.
 */
extern void plan_set_end (struct plan *plan, uint64_t end);

/* Does it hold back so much that it should be carried out now? */
extern bool plan_is_large (const struct plan *plan);

/* Make all changes that have been held back. */
extern int plan_carry_out (struct plan *plan);

/* Carry it out if r is 0, otherwise take it back: the image is as
 * before.  Then free the plan and give s its file back.  Returns r, or -1
 * after a message.
 */
extern int plan_finish (struct plan *plan, int r);

/* Complete a plan, or take it back, if that is what a killed program has
 * left in this file.  A file that is no QED image is not touched.
 */
extern int plan_resume (struct node *file);

#endif /* BLOCKDRIVERS_QED_PLAN_H */
