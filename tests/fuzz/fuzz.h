/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What fuzz targets share.  Each is one function that libFuzzer calls with an
 * input; corpus.c calls it with the files of its folder instead.
 */

#ifndef BLOCKDRIVERS_FUZZ_H
#define BLOCKDRIVERS_FUZZ_H

#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "utils/cleanup.h"
#include "utils/message.h"

extern int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* Its failure is a finding. */
#define WANT(condition)                                                 \
  do {                                                                  \
    if (!(condition)) {                                                 \
      fprintf (stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__,       \
               #condition);                                             \
      abort ();                                                         \
    }                                                                   \
  } while (0)

static inline void __attribute__ ((format (printf, 2, 0)))
fuzz_drop_message (enum msg_level level, const char *fs, va_list args)
{
  char text[256];

  vsnprintf (text, sizeof text, fs, args);
}

/* In memory, where a flush takes no time, if there is such a folder. */
static char fuzz_folder[] = "/dev/shm/fuzz-XXXXXX";

static inline void
fuzz_end (void)
{
  static const char *const names[] = {
    "image.qed", "base.raw", "fuzz.log", "map", "active.qed", "hidden.qed"
  };

  for (size_t i = 0; i < sizeof names / sizeof names[0]; ++i)
    unlink (names[i]);
  if (chdir ("/") == 0)
    rmdir (fuzz_folder);
}

/* In a folder of our own, with messages formatted and dropped. */
static inline void
fuzz_begin (void)
{
  static bool begun;

  if (begun)
    return;
  begun = true;
  msg_set_handler (fuzz_drop_message);
  if (access ("/dev/shm", W_OK) == -1)
    strcpy (fuzz_folder, "/tmp/fuzz-XXXXXX");
  WANT (mkdtemp (fuzz_folder) && chdir (fuzz_folder) == 0);
  atexit (fuzz_end);
}

static inline void
fuzz_write (const char *name, const void *data, size_t size)
{
  CLEANUP_CLOSE int fd = open (name, O_WRONLY | O_CREAT | O_TRUNC, 0600);

  WANT (fd >= 0 && write (fd, data, size) == (ssize_t) size);
}

/* What is to be done with an input stands in its last bytes, which are part
 * of it as well, so that any image or log is one.
 */
struct script {
  const uint8_t *next, *end;
};

static inline struct script
fuzz_script (const uint8_t *data, size_t size)
{
  return (struct script) {
    .next = data + (size > 96 ? size - 96 : 0), .end = data + size
  };
}

/* The next byte; 0 at the end. */
static inline unsigned
fuzz_byte (struct script *s)
{
  return s->next < s->end ? *s->next++ : 0;
}

static inline bool
fuzz_more (const struct script *s)
{
  return s->next < s->end;
}

#endif /* BLOCKDRIVERS_FUZZ_H */
