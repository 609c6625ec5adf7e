/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See members.h. */

#include <config.h>

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/blkctl/blkctl.h"
#include "tools/blkctl/members.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "tool/tool.h"

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
receive_step (struct member *p)
{
  CLEANUP_FREE char *refusal = NULL;
  json_t *const value = client_receive (&p->client, &refusal);

  if (refusal)
    msg_error ("%s: %s", p->client.path, refusal);
  p->done = value != NULL;
  json_decref (value);
}

static bool
is_asked (const struct member *p, enum whom whom)
{
  return whom == WILLING ? p->done : p->is_primary == (whom == PRIMARIES);
}

int
members_step (struct member *all, int nr, enum whom whom, const char *step,
              json_t *arguments)
{
  int nr_done = 0;

  for (int i = 0; i < nr; ++i) {
    all[i].sent = false;
    if (is_asked (&all[i], whom)) {
      all[i].sent = client_send (&all[i].client, step, arguments) == 0;
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

int
members_query (struct member *m, json_t **status)
{
  CLEANUP_FREE char *refusal = NULL;

  if (client_send (&m->client, "query-replication", NULL) == -1)
    return -1;
  *status = client_receive (&m->client, &refusal);
  return *status == NULL && refusal == NULL ? -1 : 0;
}

int
members_open (struct member *all, char *sockets[], int nr)
{
  refuse_twins (sockets, nr);
  for (int i = 0; i < nr; ++i)
    all[i] = (struct member) { .client = CLIENT_NONE };
  for (int i = 0; i < nr; ++i)
    if (client_open_patiently (&all[i].client, sockets[i]) == -1)
      return -1;
  return 0;
}

void
members_close (struct member *all, int nr)
{
  for (int i = 0; i < nr; ++i)
    client_close (&all[i].client);
}

void
members_block_interruptions (void)
{
  sigset_t set;

  sigemptyset (&set);
  sigaddset (&set, SIGHUP);
  sigaddset (&set, SIGINT);
  sigaddset (&set, SIGTERM);
  sigprocmask (SIG_BLOCK, &set, NULL);
}
