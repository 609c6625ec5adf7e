/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* One checkpoint of several disks at one moment.
 *
 * Notes on the design
 *
 * Each server prepares its checkpoint: it does all that may fail, and
 * from then on makes its guest wait.  When all are prepared all commit;
 * if one refuses, or cannot be asked, those that are prepared abort and
 * nothing has changed anywhere.  A server whose client hangs up aborts by
 * itself, so that this program may end at any moment before the first
 * commit.  During the commits it does not let itself be interrupted.
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

#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/blkctl/blkctl.h"
#include "tools/blkctl/checkpoint.h"
#include "utils/cleanup.h"
#include "utils/clock.h"
#include "tools/blkctl/client.h"
#include "utils/message.h"
#include "tool/tool.h"

/* Milliseconds that may lie between the first preparation and the commit: less
 * than servers hold a guest, which is 10 s.
 */
#define ROUND_LIMIT 5000

struct participant {
  struct client client;
  bool is_primary;              /* of a replication */
  bool sent;                    /* the step, which waits for its answer */
  bool done;                    /* the step */
};

void
refuse_twins (char *sockets[], int nr)
{
  struct stat a, b;

  for (int i = 0; i < nr; ++i)
    for (int j = 0; j < i; ++j)
      if (stat (sockets[i], &a) == 0 && stat (sockets[j], &b) == 0 &&
          a.st_dev == b.st_dev && a.st_ino == b.st_ino)
        tool_usage_error ("'%s' and '%s' are the same socket", sockets[j],
                          sockets[i]);
}

/* Wait for the answer of one. */
static void
receive_step (struct participant *p)
{
  CLEANUP_FREE char *refusal = NULL;
  json_t *const value = client_receive (&p->client, &refusal);

  if (refusal)
    msg_error ("%s: %s", p->client.path, refusal);
  p->done = value != NULL;
  json_decref (value);
}

/* Who is to take a step. */
enum whom { PRIMARIES, OTHERS, PREPARED };

static bool
is_asked (const struct participant *p, enum whom whom)
{
  return whom == PREPARED ? p->done : p->is_primary == (whom == PRIMARIES);
}

/* Let some of them take a step.  Returns how many of all have now done
 * the last one that they were to take; the others have been told of.
 */
static int
take_step (struct participant *all, int nr, enum whom whom,
           const char *step)
{
  int nr_done = 0;

  for (int i = 0; i < nr; ++i) {
    all[i].sent = false;
    if (is_asked (&all[i], whom)) {
      all[i].sent = client_send (&all[i].client, step, NULL) == 0;
      all[i].done = false;
    }
  }
  for (int i = 0; i < nr; ++i) {
    if (all[i].sent)
      receive_step (&all[i]);
    nr_done += all[i].done;
  }
  return nr_done;
}

/* Which of them are primaries?  One that is no replication at all will
 * refuse the checkpoint, too.  Returns how many there are, or -1 after a
 * message.
 */
static int
find_primaries (struct participant *all, int nr)
{
  int nr_primaries = 0;

  for (int i = 0; i < nr; ++i) {
    CLEANUP_FREE char *refusal = NULL;
    json_t *status;
    const char *mode;

    if (client_send (&all[i].client, "query-replication", NULL) == -1)
      return -1;
    status = client_receive (&all[i].client, &refusal);
    if (status == NULL && refusal == NULL)
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
count_connected (struct participant *all, int nr)
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

static void
block_interruptions (void)
{
  sigset_t set;

  sigemptyset (&set);
  sigaddset (&set, SIGHUP);
  sigaddset (&set, SIGINT);
  sigaddset (&set, SIGTERM);
  sigprocmask (SIG_BLOCK, &set, NULL);
}

/* The worst case: say of each where it is now. */
static void
tell_what_was_made (const struct participant *all, int nr)
{
  for (int i = 0; i < nr; ++i)
    msg_error ("%s: %s", all[i].client.path,
               all[i].done ? "the checkpoint was made"
               : "it is not known to have made the checkpoint");
}

/* Each of them once, primaries first. */
static bool
first_round (struct participant *all, int nr)
{
  const int nr_primaries = find_primaries (all, nr);

  return nr_primaries >= 0 &&
    take_step (all, nr, PRIMARIES, CHECKPOINT "-prepare") == nr_primaries &&
    take_step (all, nr, OTHERS, CHECKPOINT "-prepare") == nr;
}

/* All of them once more, which is soon done. */
static bool
second_round (struct participant *all, int nr)
{
  const int64_t start = clock_ms ();

  if (take_step (all, nr, PREPARED, CHECKPOINT "-prepare") < nr)
    return false;
  if (clock_ms () - start < ROUND_LIMIT)
    return true;
  msg_error ("the servers take too long to prepare the checkpoint");
  return false;
}

static bool
prepare (struct participant *all, int nr)
{
  const int64_t start = clock_ms ();

  return first_round (all, nr) &&
    (clock_ms () - start < ROUND_LIMIT || second_round (all, nr)) &&
    count_connected (all, nr) == nr;
}

static int
checkpoint (struct participant *all, int nr)
{
  if (!prepare (all, nr)) {
    take_step (all, nr, PREPARED, CHECKPOINT "-abort");
    msg_error ("no checkpoint was made");
    return STATUS_FAILED;
  }
  block_interruptions ();
  if (take_step (all, nr, PREPARED, CHECKPOINT "-commit") < nr) {
    tell_what_was_made (all, nr);
    return STATUS_FAILED;
  }
  return EXIT_SUCCESS;
}

int
checkpoint_together (char *sockets[], int nr)
{
  struct participant all[nr];
  int status = EXIT_SUCCESS;

  refuse_twins (sockets, nr);
  for (int i = 0; i < nr; ++i)
    all[i] = (struct participant) { .client = CLIENT_NONE };
  for (int i = 0; i < nr && status == EXIT_SUCCESS; ++i)
    if (client_open_patiently (&all[i].client, sockets[i]) == -1)
      status = STATUS_NOT_SENT;
  if (status == EXIT_SUCCESS)
    status = checkpoint (all, nr);
  for (int i = 0; i < nr; ++i)
    client_close (&all[i].client);
  return status;
}
