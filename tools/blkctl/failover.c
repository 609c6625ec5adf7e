/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See failover.h.
 *
 * Notes on the design
 *
 * First all are taken over: from then on no checkpoint begins or ends there
 * but by us, so what they say next stays true.  Then a checkpoint is looked
 * for at which all are, or to which they can go back; and each is told to
 * fail over at that one.  One that was failed over at it before has nothing
 * to do, so what was interrupted can be done again.
 */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tools/blkctl/blkctl.h"
#include "tools/blkctl/failover.h"
#include "tools/blkctl/members.h"
#include "utils/message.h"

#define STOP "replication-stop"
#define ID_LEN 32

struct place {
  char id[ID_LEN + 1], before[ID_LEN + 1]; /* "" for none */
  time_t time;
  bool consistent;
  char doubt[256];              /* why it is not, or "" */
};

static void
get_id (char id[ID_LEN + 1], const json_t *status, const char *key)
{
  const char *text = json_string_value (json_object_get (status, key));

  id[0] = '\0';
  if (text && strlen (text) == ID_LEN)
    memcpy (id, text, ID_LEN + 1);
}

/* Where is it?  -1 after a message if that is no place to fail over from. */
static int
find_place (struct member *m, struct place *place)
{
  json_t *status;
  const char *mode;
  bool is_secondary;

  if (members_query (m, &status) == -1)
    return -1;
  mode = json_string_value (json_object_get (status, "mode"));
  is_secondary = mode && strcmp (mode, "secondary") == 0;
  get_id (place->id, status, "checkpoint-id");
  get_id (place->before, status, "checkpoint-before");
  place->time =
    json_number_value (json_object_get (status, "checkpoint-time"));
  place->consistent = json_is_true (json_object_get (status, "consistent"));
  snprintf (place->doubt, sizeof place->doubt, "%s",
            json_string_value (json_object_get (status, "disk-desc")) ?: "");
  json_decref (status);
  if (is_secondary)
    return 0;
  msg_error ("%s: not the secondary of a replication, so there is nothing to "
             "fail over to", m->client.path);
  return -1;
}

static bool
can_be_at (const struct place *places, int nr, const char *id)
{
  for (int i = 0; i < nr; ++i)
    if (strcmp (places[i].id, id) != 0 && strcmp (places[i].before, id) != 0)
      return false;
  return id[0] != '\0';
}

/* A checkpoint at which all can be, or NULL. */
static const char *
find_common (const struct place *places, int nr)
{
  for (int i = 0; i < nr; ++i) {
    if (can_be_at (places, nr, places[i].id))
      return places[i].id;
    if (can_be_at (places, nr, places[i].before))
      return places[i].before;
  }
  return NULL;
}

static void
tell_places (const struct member *all, const struct place *places, int nr)
{
  for (int i = 0; i < nr; ++i) {
    const struct place *const p = &places[i];
    char when[64] = "";
    struct tm tm;

    if (p->time && gmtime_r (&p->time, &tm))
      strftime (when, sizeof when, " of %Y-%m-%dT%H:%M:%SZ", &tm);
    msg_error ("%s: at %s%s%s%s%s", all[i].client.path,
               p->id[0] ? "checkpoint " : "no checkpoint", p->id, when,
               p->before[0] ? ", and can go back to " : "", p->before);
  }
  msg_error ("the disks are not at the same checkpoint, and none was failed "
             "over; force=true fails each of them over to where it is");
}

static bool
are_consistent (const struct member *all, const struct place *places, int nr,
                const char *common)
{
  bool ok = true;

  for (int i = 0; i < nr; ++i)
    if (!places[i].consistent && strcmp (places[i].id, common) == 0) {
      msg_error ("%s: the disk is not consistent%s%s; force=true fails over "
                 "all the same", all[i].client.path,
                 places[i].doubt[0] ? ": " : "", places[i].doubt);
      ok = false;
    }
  return ok;
}

/* Those that have to go back come first: a guest that has written meanwhile
 * keeps its disk from that.
 */
static int
go_back (struct member *all, const struct place *places, int nr,
         const char *common, json_t *arguments)
{
  for (int i = 0; i < nr; ++i)
    if (strcmp (places[i].id, common) != 0 &&
        members_step (&all[i], 1, WILLING, STOP, arguments) < 1) {
      msg_error ("the disks that stand at %s were not failed over", common);
      return -1;
    }
  return 0;
}

/* After all were taken over. */
static int
fail_over (struct member *all, int nr)
{
  struct place places[nr];
  const char *common;
  json_t *arguments;
  int nr_done;

  for (int i = 0; i < nr; ++i)
    if (find_place (&all[i], &places[i]) == -1)
      return STATUS_FAILED;
  common = find_common (places, nr);
  if (common == NULL) {
    tell_places (all, places, nr);
    return STATUS_FAILED;
  }
  if (!are_consistent (all, places, nr, common))
    return STATUS_FAILED;
  arguments = json_pack ("{s:b, s:s}", "failover", 1, "checkpoint", common);
  members_block_interruptions ();
  nr_done = go_back (all, places, nr, common, arguments) == 0
    ? members_step (all, nr, WILLING, STOP, arguments) : -1;
  json_decref (arguments);
  if (nr_done == nr)
    return EXIT_SUCCESS;
  if (nr_done == -1)
    return STATUS_FAILED;
  for (int i = 0; i < nr; ++i)
    msg_error ("%s: %s checkpoint %s", all[i].client.path, all[i].done
               ? "failed over at" : "not known to have failed over at",
               common);
  return STATUS_FAILED;
}

static int
fail_over_by_force (struct member *all, int nr)
{
  json_t *const arguments =
    json_pack ("{s:b, s:b}", "failover", 1, "force", 1);
  const int nr_done = members_step (all, nr, WILLING, STOP, arguments);

  json_decref (arguments);
  return nr_done == nr ? EXIT_SUCCESS : STATUS_FAILED;
}

int
failover_together (char *sockets[], int nr, bool force)
{
  struct member all[nr];
  int status = STATUS_NOT_SENT;

  if (members_open (all, sockets, nr) == 0) {
    status = STATUS_FAILED;
    if (members_step (all, nr, OTHERS, "replication-take-over", NULL) == nr ||
        force)
      status = force ? fail_over_by_force (all, nr) : fail_over (all, nr);
  }
  members_close (all, nr);
  return status;
}
