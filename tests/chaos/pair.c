/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A primary and its secondary lose power, together or one while the other is
 * killed, after any change of any of their files in the middle of a command,
 * on media that lose any subset of what was not flushed: both disks, both
 * buffers, the bitmap.  Or any one of these changes fails, before or after it
 * was done, or all do from there on, and both are killed.  They come back with
 * the same command lines: then the disks are equal after a checkpoint, or the
 * link is refused with a reason, and what a guest had flushed on the side that
 * won is there (replication.md, "Whose data is right").
 *
 *     pair [--states=N] [--seed=N] [--command=N --kind=N --at=N]
 *
 * Each life of the pair is a process, so that it ends at the very moment.
 * What is on the media, and what guests were told, stands in shared memory.
 */

#include <config.h>

#include <getopt.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "filters/replication/primary/primary.h"
#include "tests/chaos/chaos.h"
#include "tests/chaos/divert.h"
#include "tests/chaos/model.h"
#include "tests/chaos/pair.h"
#include "tests/chaos/wire.h"
#include "utils/rounding.h"

#define LIFE_SECONDS 60
#define REMOTE "nbd+unix:///?socket=chaos"

struct chaos_figures *chaos_figures;

void
chaos_trace (const char *fs, ...)
{
  (void) fs;
}

static const char *const kind_names[KINDS] = {
  "power is lost", "the primary loses power", "the secondary loses power",
  "a change fails", "a change is done and fails",
  "all changes fail", "all changes are done and fail",
};

static char active_name[64], hidden_name[64], bitmap_name[64];

static struct primary *primary;
static struct node *p_disk, *s_disk, *p_guest, *s_guest;
static struct replication_refusal refusal;

/* ---- Guests */

static void
guest_write (struct guest *g, struct node *n, unsigned sectors)
{
  const unsigned first = random_below (&seed, SECTORS - sectors);
  const unsigned value = account->value = account->value % 60 + 1;
  CLEANUP_FREE uint8_t *buf = malloc (sectors * MEDIUM_SECTOR);
  int r;

  CHECK (buf);
  memset (buf, value, sectors * MEDIUM_SECTOR);
  for (unsigned i = first; i < first + sectors; ++i)
    g->allowed[i] |= BIT (value);
  r = node_pwrite (n, buf, sectors * MEDIUM_SECTOR,
                   (uint64_t) first * MEDIUM_SECTOR);
  for (unsigned i = first; i < first + sectors; ++i)
    g->live[i] = r == 0 ? BIT (value) : g->live[i] | BIT (value);
}

/* A few sectors or many, then a flush, and one that is not flushed. */
static void
guest_writes (struct guest *g, struct node *n)
{
  for (unsigned i = 0; i < 3; ++i)
    guest_write (g, n, 1 + random_below (&seed, 40));
  if (node_flush (n) == 0)
    memcpy (g->allowed, g->live, sizeof g->allowed);
  guest_write (g, n, 1 + random_below (&seed, 20));
}

/* The secondary's guest sees the primary's data; or perhaps not. */
static void
guest_follows (bool surely)
{
  for (unsigned i = 0; i < SECTORS; ++i) {
    account->s.live[i] = account->p.live[i] |
      (surely ? 0 : account->s.live[i]);
    account->s.allowed[i] = account->p.live[i] |
      (surely ? 0 : account->s.allowed[i]);
  }
}

static void
must_be_on (const struct guest *g, unsigned side)
{
  struct content c = medium_now (disks[side]);

  for (unsigned i = 0; i < DISK_SIZE; ++i) {
    const unsigned value = i < c.len ? c.data[i] : 0;

    if (value > 62 || !(g->allowed[i / MEDIUM_SECTOR] & BIT (value))) {
      fprintf (stderr, "%s: byte %u is %u, not of %" PRIx64 "\n",
               disks[side]->name, i, value, g->allowed[i / MEDIUM_SECTOR]);
      CHECK (!"what was flushed is there");
    }
  }
  free (c.data);
}

/* ---- Commands */

static struct replication_status
query_primary (void)
{
  struct replication_status status;

  primary_query (primary, &status);
  return status;
}

static struct replication_status
query_secondary (void)
{
  struct replication_status status;

  secondary_query (secondary, &status);
  return status;
}

/* As blkctl does with both.  Returns whether it was made. */
static bool
checkpoint (void)
{
  struct moment moment;

  CHECK (moment_make (&moment) == 0);
  if (primary_checkpoint_prepare (primary, &moment, &refusal) == -1)
    return false;
  if (secondary_checkpoint_prepare (secondary, &moment, &refusal) == 0) {
    guest_follows (false);
    if (secondary_checkpoint_commit (secondary, &refusal) == 0 &&
        primary_checkpoint_commit (primary, &refusal) == 0) {
      guest_follows (true);
      secondary_checkpoint_release (secondary);
      primary_checkpoint_release (primary);
      return true;
    }
  }
  secondary_checkpoint_abort (secondary);
  primary_checkpoint_release (primary);
  return false;
}

static void
await_link (void)
{
  const char *link;

  do {
    usleep (200);
    link = query_primary ().link;
  } while (strcmp (link, "connected") != 0 && strcmp (link, "refused") != 0);
}

/* Returns whether it was accepted. */
static bool
fail_over (bool force)
{
  account->promotion = IS_ASKED;
  if (secondary_stop (secondary, true, force, &refusal) == -1)
    return false;
  account->promotion = IS_DONE;
  return true;
}

static void
await_failover (void)
{
  while (query_secondary ().stage == REPLICATION_FAILOVER)
    usleep (200);
}

static void
stop_secondary (void)
{
  guest_follows (false);
  for (unsigned i = 0; i < SECTORS; ++i)
    account->s.allowed[i] |= account->p.allowed[i];
  account->accepted = secondary_stop (secondary, false, false, &refusal) == 0;
}

static void
to_running (void)
{
  guest_writes (&account->p, p_guest);
  CHECK (checkpoint ());
  guest_writes (&account->p, p_guest);
  guest_writes (&account->s, s_guest);
}

static void
go_on_after_failover (void)
{
  if (account->accepted)
    guest_writes (&account->s, s_guest);
  await_failover ();
  if (account->accepted)
    guest_writes (&account->s, s_guest);
}

static void
do_failover (void)
{
  account->accepted = fail_over (false);
  go_on_after_failover ();
}

static void
do_checkpoint (void)
{
  account->accepted = checkpoint ();
}

/* What the guest takes is what has arrived, so all is to have. */
static void
await_arrival (void)
{
  while (query_primary ().dirty_bytes > 0)
    usleep (200);
}

static void
to_stop (void)
{
  to_running ();
  await_arrival ();
}

/* The guest sees what nobody has flushed. */
static void
to_unflushed (void)
{
  to_running ();
  await_arrival ();
  CHECK (secondary_checkpoint (secondary, &refusal) == 0);
  guest_follows (true);
  guest_writes (&account->s, s_guest);
}

/* Of its checkpoint the primary has said nothing. */
static void
do_unflushed (void)
{
  account->accepted = fail_over (true);
  go_on_after_failover ();
}

static void
do_stop (void)
{
  stop_secondary ();
  if (account->accepted) {
    guest_follows (true);
    for (unsigned i = 0; i < SECTORS; ++i)
      account->s.allowed[i] |= account->p.allowed[i];
    guest_write (&account->s, s_guest, 10);
    if (node_flush (s_guest) == 0) {
      memcpy (account->s.allowed, account->s.live, sizeof account->s.live);
      account->wrote_alone = true;
    }
  }
}

static void
to_stopped (void)
{
  to_running ();
  CHECK (secondary_stop (secondary, false, false, &refusal) == 0);
  guest_writes (&account->p, p_guest);
}

static void
do_start (void)
{
  account->accepted = secondary_start (secondary, &refusal) == 0;
  guest_writes (&account->p, p_guest);
  if (account->accepted)
    checkpoint ();
}

static void
to_done (void)
{
  to_running ();
  CHECK (primary_stop (primary, false, &refusal) == 0);
  guest_writes (&account->p, p_guest);
}

static void
do_copy (void)
{
  account->copy = IS_ASKED;
  account->accepted = primary_start (primary, true, &refusal) == 0;
  guest_writes (&account->p, p_guest);
  if (account->accepted)
    checkpoint ();
}

static void
to_behind (void)
{
  to_running ();
  wire_cut ();
  guest_writes (&account->p, p_guest);
}

static void
do_resync (void)
{
  /* What goes over it until now was lost. */
  wire_mend ();
  guest_writes (&account->p, p_guest);
  account->accepted = checkpoint ();
}

static void
to_promoted (void)
{
  to_running ();
  CHECK (fail_over (false));
  await_failover ();
  guest_writes (&account->s, s_guest);
}

static void
do_reset (void)
{
  account->reset = IS_ASKED;
  account->accepted = secondary_reset (secondary, &refusal) == 0;
  if (account->accepted)
    account->reset = IS_DONE;
}

static void do_first_start (void);

static const struct command {
  const char *name;
  void (*prepare) (void);       /* NULL: nothing was ever started */
  void (*run) (void);
} commands[] = {
  { "failover", to_running, do_failover },
  { "checkpoint", to_running, do_checkpoint },
  { "stop", to_stop, do_stop },
  { "start", to_stopped, do_start },
  { "full copy", to_done, do_copy },
  { "resynchronisation", to_behind, do_resync },
  { "reset", to_promoted, do_reset },
  { "unflushed failover", to_unflushed, do_unflushed },
  { "first start", NULL, do_first_start },
};
#define COMMANDS (sizeof commands / sizeof commands[0])

/* ---- Lives */

/* With replication-start=true and this replication-recover. */
static bool
begin_secondary (enum secondary_recover recover)
{
  const struct secondary_options options = {
    .active = active_name, .hidden = hidden_name, .recover = recover
  };

  s_disk = medium_open (disks[1]);
  secondary = secondary_open (&options);
  if (secondary == NULL || secondary_begin (secondary, s_disk) == -1) {
    secondary_close (secondary);
    node_close (s_disk);
    return false;
  }
  s_guest = secondary_guest_node (secondary);
  if (!secondary_is_promoted (secondary) &&
      secondary_start (secondary, &refusal) == -1) {
    secondary_close (secondary);
    node_close (s_disk);
    return false;
  }
  wire_mend ();
  return true;
}

static bool
begin_primary (void)
{
  const struct primary_options options = {
    .remote = REMOTE, .bitmap = bitmap_name
  };

  p_disk = medium_open (disks[0]);
  primary = primary_open (&options);
  if (primary == NULL || primary_begin (primary, p_disk) == -1)
    return false;
  p_guest = primary_node (primary);
  primary_launch (primary, &refusal);
  return true;
}

/* Files are made; servers that cannot make them do not come up. */
static void
do_first_start (void)
{
  const bool is_there = begin_secondary (RECOVER_FAIL);

  if (!begin_primary ())
    return;
  guest_writes (&account->p, p_guest);
  if (is_there)
    account->accepted = checkpoint ();
}

/* A refusal says what to do. */
static void
begin_secondary_somehow (void)
{
  forget_messages ();
  if (begin_secondary (RECOVER_FAIL))
    return;
  CHECK (strstr (messages.last, "replication-recover"));
  if (random_below (&seed, 2) && begin_secondary (RECOVER_ROLLBACK))
    return;
  CHECK (begin_secondary (RECOVER_DISCARD));
}

static void
live (const struct command *c)
{
  begin_world ();
  if (c->prepare) {
    CHECK (begin_secondary (RECOVER_FAIL) && begin_primary ());
    await_link ();
    c->prepare ();
  }
  arm (true);
  c->run ();
  arm (false);
  keep_media (false);
  _exit (0);
}

/* Equal, or refused with a reason. */
static bool
is_refused (void)
{
  for (;;) {
    const struct replication_status status = query_primary ();

    if (strcmp (status.link, "refused") == 0) {
      CHECK (status.error && status.link_desc[0]);
      CHECK (!checkpoint ());
      return true;
    }
    if (checkpoint ())
      return false;
    usleep (200);
  }
}

static void
judge (void)
{
  const bool promoted = secondary_is_promoted (secondary);
  static struct guest s;
  bool refused;

  s = account->s;
  CHECK (account->promotion != IS_DONE || account->reset != IS_OFF ||
         promoted);
  CHECK (account->promotion != IS_OFF || !promoted);
  CHECK (account->reset != IS_DONE || !promoted);
  await_failover ();
  refused = is_refused ();
  must_be_on (&account->p, 0);
  account->s = s;
  if (promoted || account->wrote_alone) {
    CHECK (refused);
    must_be_on (&account->s, 1);
  }
  else if (!refused) {
    struct content a = medium_now (disks[0]), b = medium_now (disks[1]);

    CHECK (memcmp (a.data, b.data, DISK_SIZE) == 0);
    CHECK (query_secondary ().consistent);
    free (a.data);
    free (b.data);
  }
}

static void
come_back (const struct command *c)
{
  (void) c;
  begin_world ();
  arm (true);
  if (random_below (&seed, 2)) {
    CHECK (begin_primary ());
    begin_secondary_somehow ();
  }
  else {
    begin_secondary_somehow ();
    CHECK (begin_primary ());
  }
  judge ();
  _exit (0);
}

/* Returns whether it was cut short. */
static bool
in_child (void (*run) (const struct command *c), const struct command *c)
{
  const pid_t pid = fork ();
  int status;

  CHECK (pid != -1);
  if (pid == 0) {
    alarm (LIFE_SECONDS);
    run (c);
  }
  CHECK (waitpid (pid, &status, 0) == pid);
  if (status != 0 && !(WIFEXITED (status) && WEXITSTATUS (status) == KILLED))
    return fprintf (stderr, "status %d\n", status), exit (1), true;
  return status != 0;
}

/* ---- States */

static void
begin_state (uint64_t number)
{
  folders_empty ();
  account->nr_media = account->value = 0;
  account->promotion = account->reset = account->copy = IS_OFF;
  account->wrote_alone = account->accepted = false;
  account->changes = 0;
  for (unsigned i = 0; i < SECTORS; ++i)
    account->p.live[i] = account->p.allowed[i] = account->s.live[i] =
      account->s.allowed[i] = BIT (0);
  seed = chaos_mix (number, 11, 0);
}

/* In a process of its own, which fails if it is bad. */
static void
one_state (const struct command *c, enum kind k, uint64_t nr, uint64_t number)
{
  begin_state (number);
  kind = k;
  at = nr;
  in_child (live, c);
  adjust_files ();
  for (unsigned i = 0; i < MACHINES; ++i)
    if (loses_power (k, i))
      divert_boot (i);
  /* Coming back may be cut short as well. */
  kind = POWER;
  at = number % 3 == 0 ? 1 + number / 3 % 20 : 0;
  account->changes = 0;
  while (in_child (come_back, c)) {
    adjust_files ();
    divert_boot (OF_PRIMARY);
    divert_boot (OF_SECONDARY);
    at = 0;
    account->changes = 0;
  }
  _exit (0);
}

static bool
state_is_good (const struct command *c, enum kind k, uint64_t nr,
               uint64_t number)
{
  const pid_t pid = fork ();
  int status;

  CHECK (pid != -1);
  if (pid == 0)
    one_state (c, k, nr, number);
  CHECK (waitpid (pid, &status, 0) == pid);
  if (status != 0)
    printf ("# %s, change %" PRIu64 ", %s: bad; again: --command=%td "
            "--kind=%d --at=%" PRIu64 " --seed=%" PRIu64 "\n", c->name, nr,
            kind_names[k], c - commands, k, nr, number);
  return status == 0;
}

/* How many changes are there in a command? */
static uint64_t
count_changes (const struct command *c)
{
  begin_state (1);
  kind = POWER;
  at = 0;
  in_child (live, c);
  return account->changes;
}

/* Each change in turn, until there were so many states; of failures, which
 * leave one state each, no more than there are.
 */
static unsigned
walk (const struct command *c, enum kind k, unsigned most, uint64_t first)
{
  const uint64_t changes = count_changes (c);
  const uint64_t states = is_power_loss (k) ? most : MIN (most / 4, changes);
  unsigned bad = 0;

  for (unsigned i = 0; i < states; ++i)
    bad += !state_is_good (c, k, 1 + (states < changes
                                      ? i * changes / states : i % changes),
                           first + i);
  printf ("# %s, %s: %" PRIu64 " changes, %" PRIu64 " states, %u bad\n",
          c->name, kind_names[k], changes, states, bad);
  fflush (stdout);
  return bad;
}

static void
name_files (void)
{
  snprintf (bitmap_name, sizeof bitmap_name, "%s/bitmap",
            folders[OF_PRIMARY]);
  snprintf (active_name, sizeof active_name, "%s/active.qed",
            folders[OF_SECONDARY]);
  snprintf (hidden_name, sizeof hidden_name, "%s/hidden.qed",
            folders[OF_SECONDARY]);
}

int
main (int argc, char **argv)
{
  static const struct option longs[] = {
    { "states", required_argument, NULL, 'n' },
    { "seed", required_argument, NULL, 's' },
    { "command", required_argument, NULL, 'c' },
    { "kind", required_argument, NULL, 'k' },
    { "at", required_argument, NULL, 'a' },
    { 0 }
  };
  uint64_t first = 1, nr = 0;
  unsigned states = 112 / ONE_IN, nr_command = 0, nr_kind = 0, failed = 0;
  int c;

  while ((c = getopt_long (argc, argv, "", longs, NULL)) != -1)
    switch (c) {
    case 'n': states = atoi (optarg); break;
    case 's': first = strtoull (optarg, NULL, 0); break;
    case 'c': nr_command = atoi (optarg); break;
    case 'k': nr_kind = atoi (optarg); break;
    case 'a': nr = strtoull (optarg, NULL, 0); break;
    default: exit (2);
    }
  CHECK (nr_command < COMMANDS && nr_kind < KINDS);
  folders_make ();
  name_files ();
  account = mmap (NULL, sizeof *account, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  chaos_figures = calloc (1, sizeof *chaos_figures);
  CHECK (account != MAP_FAILED && chaos_figures);
  msg_set_handler (collect_message);
  if (nr)
    failed = !state_is_good (&commands[nr_command], nr_kind, nr, first);
  else
    for (enum kind k = 0; k < KINDS; ++k) {
      unsigned bad = 0;

      for (unsigned i = 0; i < COMMANDS; ++i)
        bad += walk (&commands[i], k, states / COMMANDS, first);
      printf ("%sok %u - a pair comes back when %s\n", bad ? "not " : "",
              k + 1, kind_names[k]);
      failed += bad;
    }
  if (!nr)
    printf ("1..%u\n", KINDS);
  folders_remove ();
  return failed > 0;
}
