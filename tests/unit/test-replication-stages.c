/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A secondary in each stage gets each command, and answers as the table of
 * stages.c says; and a guest that polls does not fill the log.
 */

#include <config.h>

#include "filters/replication/stages.h"
#include "tests/unit/replication-unit.h"
#include "tests/unit/unit.h"

#define SIZE (UINT64_C (256) * 1024)

/* ---- The stages */

static enum replication_stage
status_of (struct bench *b)
{
  secondary_query (b->s, &b->status);
  return b->status.stage;
}

static void
enter_none (struct bench *b)
{
  (void) b;
}

static void
enter_running (struct bench *b)
{
  assert_int_equal (secondary_start (b->s, &b->refusal), 0);
}

static void
enter_stopped (struct bench *b)
{
  enter_running (b);
  assert_int_equal (secondary_stop (b->s, false, false, &b->refusal), 0);
}

static void
enter_promoted (struct bench *b)
{
  enter_running (b);
  assert_int_equal (secondary_stop (b->s, true, false, &b->refusal), 0);
  await_failover (b);
}

static void
enter_failed (struct bench *b)
{
  enter_running (b);
  write_byte (b->guest, 'g', 4096, 0);
  atomic_store (&b->disk->fail_after[MEMORY_WRITE], 0);
  assert_int_equal (secondary_stop (b->s, true, false, &b->refusal), 0);
  await_failover (b);
}

static const struct {
  void (*enter) (struct bench *b);
  enum replication_stage stage;
  bool promoted;
} places[] = {
  { enter_none, REPLICATION_NONE, false },
  { enter_running, REPLICATION_RUNNING, false },
  { enter_failed, REPLICATION_FAILOVER_FAILED, false },
  { enter_stopped, REPLICATION_DONE, false },
  { enter_promoted, REPLICATION_DONE, true },
};

static int
run_command (struct bench *b, enum stage_command command)
{
  switch (command) {
  case COMMAND_START: return secondary_start (b->s, &b->refusal);
  case COMMAND_CHECKPOINT: return secondary_checkpoint (b->s, &b->refusal);
  case COMMAND_STOP:
    return secondary_stop (b->s, false, false, &b->refusal);
  case COMMAND_FAIL_OVER:
    return secondary_stop (b->s, true, false, &b->refusal);
  case COMMAND_RESET: return secondary_reset (b->s, &b->refusal);
  case COMMAND_VERIFY: return secondary_verify (b->s, &b->refusal);
  case NR_COMMANDS: break;
  }
  abort ();
}

/* What must come of it?  Again depends on how it ended. */
static int
wanted (enum stage_command command, enum stage_answer answer, bool promoted)
{
  if (answer == ANSWER_AGAIN)
    return promoted == (command == COMMAND_RESET) ? 0 : -1;
  return answer == ANSWER_DO || answer == ANSWER_IGNORED ? 0 : -1;
}

static void
try_command (size_t place, enum stage_command command)
{
  const enum replication_stage stage = places[place].stage;
  const enum stage_answer answer =
    stages_answer (SIDE_SECONDARY, command, stage);
  struct bench b;
  int r;

  bench_open (&b, SIZE, RECOVER_FAIL);
  places[place].enter (&b);
  assert_int_equal (status_of (&b), stage);
  r = run_command (&b, command);
  if (r != wanted (command, answer, places[place].promoted))
    fail_msg ("command %d in place %zu: %d, %s", command, place, r,
              r == -1 ? b.refusal.desc : "");
  if (r == -1)
    assert_true (b.refusal.desc[0]);
  /* What is ignored or refused changes nothing. */
  if (answer == ANSWER_IGNORED || r == -1)
    assert_int_equal (status_of (&b), stage);
  await_failover (&b);
  atomic_store (&b.disk->fail_after[MEMORY_WRITE], MEMORY_NEVER);
  bench_close (&b);
}

static void
test_each_command_in_each_stage (void **state)
{
  (void) state;
  for (size_t place = 0; place < sizeof places / sizeof places[0]; ++place)
    for (enum stage_command c = COMMAND_START; c < NR_COMMANDS; ++c)
      try_command (place, c);
}

static void
test_a_guest_that_polls_does_not_fill_the_log (void **state)
{
  struct bench b;
  char c;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  forget_messages ();
  for (int i = 0; i < 2000; ++i)
    assert_int_equal (node_pread (b.guest, &c, 1, 0), -1);
  assert_true (nr_messages () >= 1 && nr_messages () < 100);
  bench_close (&b);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_each_command_in_each_stage),
    cmocka_unit_test (test_a_guest_that_polls_does_not_fill_the_log),
  };

  msg_set_handler (collect_message);
  alarm (HANG_SECONDS);
  return cmocka_run_group_tests (tests, make_folder, remove_folder);
}
