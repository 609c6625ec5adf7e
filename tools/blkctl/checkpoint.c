/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* One checkpoint of several disks at one moment.
 *
 * Notes on the design
 *
 * Each server prepares its checkpoint: it does all that may fail, and
 * from then on makes its guest wait.  When all are prepared all commit; if
 * one refuses, or cannot be asked, or does not commit, all abort and nothing
 * has changed anywhere.  When all have committed they are released, and only
 * then a guest goes on.  A server whose client hangs up before it commits
 * aborts by itself; one that has committed then keeps the checkpoint before as
 * well, for a failover of all to the same one.  So this program may end at any
 * moment.
 * No server holds its guest for ever, so if the first one had to wait for
 * the last one all are asked once more, which renews their time.
 *
 * The primaries of a replication come first.  A primary has prepared
 * when its secondary has everything, and a secondary that has prepared
 * takes nothing any more.
 *
 * All connections are made before the first prepare, and otherwise each
 * step is sent to all servers before the first answer is waited for, as
 * guests stand still meanwhile.
 */

#include <config.h>

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/blkctl/blkctl.h"
#include "tools/blkctl/checkpoint.h"
#include "tools/blkctl/members.h"
#include "utils/clock.h"
#include "utils/message.h"

#define PREPARE CHECKPOINT "-prepare"

/* Milliseconds that may lie between the first preparation and the commit: less
 * than servers hold a guest, which is 10 s.
 */
#define ROUND_LIMIT 5000

/* Which of them are primaries?  One that is no replication at all will
 * refuse the checkpoint, too.  Returns how many there are, or -1 after a
 * message.
 */
static int
find_primaries (struct member *all, int nr)
{
  int nr_primaries = 0;

  for (int i = 0; i < nr; ++i) {
    json_t *status;
    const char *mode;

    if (members_query (&all[i], &status) == -1)
      return -1;
    mode = json_string_value (json_object_get (status, "mode"));
    all[i].is_primary = mode && strcmp (mode, "primary") == 0;
    nr_primaries += all[i].is_primary;
    json_decref (status);
  }
  return nr_primaries;
}

/* One that has gone while others prepared has aborted.  Returns how many
 * are left; the others have been told of.
 */
static int
count_connected (struct member *all, int nr)
{
  int nr_connected = 0;

  for (int i = 0; i < nr; ++i) {
    if (all[i].done && !client_is_connected (&all[i].client)) {
      msg_error ("%s: the server hung up before the checkpoint",
                 all[i].client.path);
      all[i].done = false;
    }
    nr_connected += all[i].done;
  }
  return nr_connected;
}

/* The worst case: say of each where it is now. */
static void
tell_what_was_made (const struct member *all, int nr)
{
  for (int i = 0; i < nr; ++i)
    msg_error ("%s: %s", all[i].client.path,
               all[i].done ? "the checkpoint was made"
               : "the checkpoint was made, but may be in doubt");
}

/* Each of them once, primaries first. */
static bool
first_round (struct member *all, int nr, json_t *id)
{
  const int nr_primaries = find_primaries (all, nr);

  return nr_primaries >= 0 &&
    members_step (all, nr, PRIMARIES, PREPARE, id) == nr_primaries &&
    members_step (all, nr, OTHERS, PREPARE, id) == nr;
}

/* All of them once more, which is soon done. */
static bool
second_round (struct member *all, int nr, json_t *id)
{
  const int64_t start = clock_ms ();

  if (members_step (all, nr, WILLING, PREPARE, id) < nr)
    return false;
  if (clock_ms () - start < ROUND_LIMIT)
    return true;
  msg_error ("the servers take too long to prepare the checkpoint");
  return false;
}

static bool
prepare (struct member *all, int nr, json_t *id)
{
  const int64_t start = clock_ms ();

  return first_round (all, nr, id) &&
    (clock_ms () - start < ROUND_LIMIT || second_round (all, nr, id)) &&
    count_connected (all, nr) == nr;
}

static int
checkpoint (struct member *all, int nr, json_t *id, json_t *wait)
{
  if (!prepare (all, nr, id)) {
    members_step (all, nr, WILLING, CHECKPOINT "-abort", NULL);
    msg_error ("no checkpoint was made");
    return STATUS_FAILED;
  }
  members_block_interruptions ();
  if (members_step (all, nr, WILLING, CHECKPOINT "-commit", wait) < nr) {
    members_step (all, nr, WILLING, CHECKPOINT "-abort", NULL);
    msg_error ("no checkpoint was made, but perhaps by those that did not "
               "answer");
    return STATUS_FAILED;
  }
  if (members_step (all, nr, WILLING, CHECKPOINT "-release", NULL) < nr) {
    tell_what_was_made (all, nr);
    return STATUS_FAILED;
  }
  return EXIT_SUCCESS;
}

/* A name that no other checkpoint has. */
static json_t *
make_id (void)
{
  uint8_t bytes[16];
  char text[sizeof bytes * 2 + 1];

  if (getentropy (bytes, sizeof bytes) == -1) {
    msg_error ("random number for the checkpoint: %m");
    return NULL;
  }
  for (size_t i = 0; i < sizeof bytes; ++i)
    snprintf (text + i * 2, 3, "%02x", bytes[i]);
  return json_pack ("{s:s}", "id", text);
}

int
checkpoint_together (char *sockets[], int nr)
{
  struct member all[nr];
  json_t *const id = make_id ();
  json_t *const wait = json_pack ("{s:b}", "release", 0);
  int status = STATUS_FAILED;

  if (id && wait) {
    if (members_open (all, sockets, nr) == 0)
      status = checkpoint (all, nr, id, wait);
    else {
      msg_error ("no checkpoint was made");
      status = STATUS_NOT_SENT;
    }
    members_close (all, nr);
  }
  json_decref (id);
  json_decref (wait);
  return status;
}
