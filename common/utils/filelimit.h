/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A write beyond the limit of the length of files (RLIMIT_FSIZE) is an
 * error, EFBIG, and not the end of the process.
 */

#ifndef BLOCKDRIVERS_FILELIMIT_H
#define BLOCKDRIVERS_FILELIMIT_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

/* Of this header only. */
struct file_limit {
  bool guarded, pending;        /* before */
  sigset_t mask;                /* of the thread, before */
};

/* Let this thread change a file up to this offset without a signal, until
 * the end.  Keeps errno.  What the process does with SIGXFSZ and its main
 * thread are left alone, since a module does not own them.  Other threads
 * keep the signal blocked from their first call on, since to ask for the
 * limit before each write takes a tenth of the time of a short one.
 */
extern struct file_limit file_limit_begin (uint64_t end);
extern void file_limit_end (struct file_limit *l);

/* The same until the end of the current scope. */
#define BEAR_FILE_LIMIT_FOR_CURRENT_SCOPE(end)                          \
  __attribute__ ((cleanup (file_limit_end), unused))                    \
  struct file_limit file_limit_ = file_limit_begin (end)

#endif /* BLOCKDRIVERS_FILELIMIT_H */
