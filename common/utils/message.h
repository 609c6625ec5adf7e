/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Messages to people: the one way for everything below the glue to say
 * something.  In a module the glue hands them to nbdkit, in a tool they
 * go to standard error.
 *
 * The rule of the house is one message an error: the function that
 * meets the error (usually a node) prints it, with file, offset and
 * cause; its callers return -1 and keep errno.
 */

#ifndef BLOCKDRIVERS_MESSAGE_H
#define BLOCKDRIVERS_MESSAGE_H

#include <stdarg.h>

enum msg_level { MSG_ERROR, MSG_WARNING, MSG_DEBUG };

/* Called with each message, from any thread.  %m in the format is the
 * errno at the time of the call.
 */
typedef void (*msg_handler) (enum msg_level level, const char *fs,
                             va_list args);

/* Set the handler (while there are no other threads).  Without one (NULL),
 * errors and warnings go to standard error as "PROGRAM: MESSAGE" and debug
 * messages are dropped.
 */
extern void msg_set_handler (msg_handler handler);

/* One line, without a newline at its end: what was tried, on what, and
 * why it failed.  Lower case, but for what scripts know from qemu-img:
 * "Could not open 'NAME': ...".  All three leave errno alone.
 */
extern void msg_error (const char *fs, ...)
  __attribute__ ((format (printf, 1, 2)));
extern void msg_warning (const char *fs, ...)
  __attribute__ ((format (printf, 1, 2)));
extern void msg_debug (const char *fs, ...)
  __attribute__ ((format (printf, 1, 2)));

#endif /* BLOCKDRIVERS_MESSAGE_H */
