/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The NEED_CHECK bit: who sets it (emptying an image does so itself, in one
 * write of the header), who clears it, and what is done when updates of
 * metadata pause.
 */

#ifndef BLOCKDRIVERS_QED_NEED_CHECK_H
#define BLOCKDRIVERS_QED_NEED_CHECK_H

#include "qed/image/image.h"

/* Bracket an update of metadata, inside a request: the bit is not cleared
 * meanwhile, and is on the medium where it has to be.
 */
extern int need_check_begin (struct qed *s);
extern void need_check_end (struct qed *s);

/* Updates have paused: make all durable, cut the file, clear the bit. */
extern int need_check_rest (struct qed *s);

/* Do that some seconds after each last update, in a thread; end it. */
extern int need_check_start (struct qed *s);
extern void need_check_stop (struct qed *s);

/* All has been checked, or made anew, and is durable: clear the bit, and
 * return when that is durable too if flush is set.  While no update is in
 * flight.
 */
extern int need_check_clear (struct qed *s, bool flush);

/* An image that was opened: if the bit is set, nobody has checked it. */
extern void need_check_keep (struct qed *s);

/* The layer has been emptied, so none of what was wrong is left. */
extern void need_check_forget (struct qed *s);

#endif /* BLOCKDRIVERS_QED_NEED_CHECK_H */
