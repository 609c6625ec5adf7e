/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Running gnuplot, which draws pictures. */

#ifndef BLOCKDRIVERS_LOGWRITES_GNUPLOT_H
#define BLOCKDRIVERS_LOGWRITES_GNUPLOT_H

#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>

/* Print a text, which may be any bytes, as a string of gnuplot's, so that
 * none of it has a meaning there; at most max_chars of it.
 */
extern void gnuplot_print_text (FILE *gnuplot, const char *text,
                                unsigned max_chars);

/* Start it with its standard output in a file.  Returns the stream to
 * its standard input, or NULL after a message.
 */
extern FILE *gnuplot_start (int output, pid_t *pid);

/* What kind of picture: PNG or SVG. */
extern void gnuplot_set_terminal (FILE *gnuplot, bool png);

/* Close the stream and wait.  What was wrong, if anything, it has said on
 * standard error, and then -1 is returned after a message.
 */
extern int gnuplot_end (FILE *gnuplot, pid_t pid);

/* Copy the picture, a file that is open, to a file with this name, which is
 * there only when it is complete.  -1 after a message.
 */
extern int gnuplot_save (int picture, const char *name);

#endif /* BLOCKDRIVERS_LOGWRITES_GNUPLOT_H */
