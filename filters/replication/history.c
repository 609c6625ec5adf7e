/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See history.h. */

#include <config.h>

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "filters/replication/history.h"
#include "utils/message.h"

#define DIGITS "0123456789abcdef"

int
history_make (struct history *h)
{
  uint8_t bytes[HISTORY_LEN / 2];

  if (getentropy (bytes, sizeof bytes) == -1) {
    msg_error ("random number for the history of the disk: %m");
    return -1;
  }
  for (size_t i = 0; i < sizeof bytes; ++i)
    snprintf (h->text + i * 2, 3, "%02x", bytes[i]);
  return 0;
}

void
history_set (struct history *h, const void *bytes)
{
  memcpy (h->text, bytes, HISTORY_LEN);
  h->text[HISTORY_LEN] = '\0';
  if (strspn (h->text, DIGITS) != HISTORY_LEN)
    h->text[0] = '\0';
}

bool
history_equal (const struct history *a, const struct history *b)
{
  return a->text[0] && strcmp (a->text, b->text) == 0;
}

bool
pairing_equal (const struct pairing *a, const struct pairing *b)
{
  return history_equal (&a->primary, &b->primary) &&
    history_equal (&a->remote, &b->remote);
}

static uint64_t
time_now (void)
{
  struct timespec now;

  clock_gettime (CLOCK_REALTIME, &now);
  return (uint64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int
moment_make (struct moment *m)
{
  m->time = time_now ();
  return history_make (&m->id);
}

void
moment_set (struct moment *m, const char *id)
{
  *m = (struct moment) { .time = 0 };
  if (strlen (id) != HISTORY_LEN)
    return;
  history_set (&m->id, id);
  if (m->id.text[0])
    m->time = time_now ();
}
