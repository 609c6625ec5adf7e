/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Control sockets: the framing, what is refused and how, clients that
 * behave badly, and the file of the socket.
 *
 * ROUNDS (default 300) is the length of the random test, SEED repeats it.
 */

#include <config.h>

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "control/control.h"
#include "control/socket.h"
#include "control/stream.h"
#include "tests/unit/unit.h"

#define CAPABILITIES "{\"execute\": \"qmp_capabilities\"}"
#define MEBIBYTE 1048576

/* ---- A server with a few commands */

static char directory[] = "/tmp/bd-control.XXXXXX";
static char path[64];

static struct {
  atomic_uint disconnected;     /* so many times */
  atomic_uint counted;          /* runs of "count" */
  sem_t entered, released;      /* by "block" */
  atomic_bool left;             /* "block" has ended */
} seen;

static json_t *
run_echo (void *opaque, struct control_client *client, json_t *arguments)
{
  return json_incref (arguments);
}

static json_t *
run_fail (void *opaque, struct control_client *client, json_t *arguments)
{
  control_fail (client, "this is overridden");
  return control_fail (client, "%s: it did not work", "caf\xe9");
}

static json_t *
run_nothing (void *opaque, struct control_client *client, json_t *arguments)
{
  return NULL;
}

static json_t *
run_count (void *opaque, struct control_client *client, json_t *arguments)
{
  CHECK (opaque == &seen);
  atomic_fetch_add (&seen.counted, 1);
  return json_object ();
}

static json_t *
run_block (void *opaque, struct control_client *client, json_t *arguments)
{
  sem_post (&seen.entered);
  while (sem_wait (&seen.released) == -1)
    CHECK (errno == EINTR);
  usleep (10000);
  atomic_store (&seen.left, true);
  return json_object ();
}

/* Makes "block" end, and is still at it when the next command could
 * begin.
 */
static bool
urge (void *opaque, json_t *arguments)
{
  CHECK (opaque == &seen && json_is_object (arguments));
  sem_post (&seen.released);
  while (!atomic_load (&seen.left))
    usleep (1000);
  usleep (50000);
  return true;
}

static json_t *
run_urgent (void *opaque, struct control_client *client, json_t *arguments)
{
  CHECK (atomic_load (&seen.left));
  return json_integer (atomic_load (&seen.counted));
}

static json_t *
run_large (void *opaque, struct control_client *client, json_t *arguments)
{
  static char text[MEBIBYTE];

  memset (text, 'x', sizeof text);
  return json_stringn (text, sizeof text);
}

static const struct control_argument echo_arguments[] = {
  { "string", JSON_STRING, false },
  { "integer", JSON_INTEGER, true },
  { "real", JSON_REAL, true },
  { "boolean", JSON_TRUE, true },
  { "array", JSON_ARRAY, true },
  { "object", JSON_OBJECT, true },
  { NULL }
};

static const struct control_command commands[] = {
  { "echo", echo_arguments, .run = run_echo },
  { "fail", NULL, .run = run_fail },
  { "nothing", NULL, .run = run_nothing },
  { "count", NULL, .run = run_count },
  { "block", NULL, .run = run_block },
  { "large", NULL, .run = run_large },
  { "quick", NULL, .run = run_count, .at_once = true },
  { "urgent", NULL, .run = run_urgent, .is_urgent = urge },
  { NULL }
};

static void
count_disconnected (void *opaque, struct control_client *client)
{
  CHECK (opaque == &seen && client != NULL);
  atomic_fetch_add (&seen.disconnected, 1);
}

static const struct control_callbacks callbacks = {
  .commands = commands, .disconnected = count_disconnected, .opaque = &seen
};

static int
set_up (void **state)
{
  struct control *control;

  atomic_store (&seen.disconnected, 0);
  atomic_store (&seen.counted, 0);
  atomic_store (&seen.left, false);
  forget_messages ();
  control = control_open (path, &callbacks);
  *state = control;
  return control ? control_start (control) : -1;
}

static int
tear_down (void **state)
{
  control_close (*state);
  return access (path, F_OK) == -1 ? 0 : -1;
}

/* ---- A client: answers are lines */

struct peer {
  int fd;
  FILE *in;
};

static int
connect_to (const char *name)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  const int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  strcpy (address.sun_path, name);
  CHECK (fd >= 0);
  if (connect (fd, (struct sockaddr *) &address, sizeof address) == -1) {
    const int err = errno;

    close (fd);
    errno = err;
    return -1;
  }
  return fd;
}

static void
put_bytes (struct peer *p, const void *data, size_t len)
{
  for (const char *bytes = data; len > 0;) {
    const ssize_t r = send (p->fd, bytes, len, MSG_NOSIGNAL);

    CHECK (r > 0);
    bytes += r;
    len -= r;
  }
}

static void
put (struct peer *p, const char *text)
{
  put_bytes (p, text, strlen (text));
}

/* The next answer, or NULL if the server hung up. */
static json_t *
get (struct peer *p)
{
  CLEANUP_FREE char *line = NULL;
  size_t size = 0;
  ssize_t len;
  json_t *json;

  len = getline (&line, &size, p->in);
  if (len <= 0)
    return NULL;
  CHECK (len > 2 && strcmp (line + len - 2, "\r\n") == 0);
  json = json_loadb (line, len, 0, NULL);
  CHECK (json_is_object (json));
  return json;
}

/* What comes next must be this. */
static void
expect (struct peer *p, const char *answer)
{
  json_t *const json = get (p), *const wanted = json_loads (answer, 0, NULL);

  CHECK (wanted != NULL);
  if (!json_equal (json, wanted)) {
    CLEANUP_FREE char *text = json ? json_dumps (json, 0) : NULL;

    fprintf (stderr, "expected: %s\ngot: %s\n", answer,
             text ? text : "nothing");
    _exit (1);
  }
  json_decref (json);
  json_decref (wanted);
}

/* What comes next must be an error of this class, with this in it. */
static void
expect_error (struct peer *p, const char *class, const char *text)
{
  json_t *const json = get (p);
  const char *c = NULL, *desc = NULL;

  if (json_unpack (json, "{s:{s:s, s:s}}", "error", "class", &c,
                   "desc", &desc) == -1 ||
      strcmp (c, class) != 0 || strstr (desc, text) == NULL) {
    fprintf (stderr, "expected: %s, %s\ngot: %s, %s\n", class, text,
             c ? c : "", desc ? desc : "");
    _exit (1);
  }
  json_decref (json);
}

static struct peer
connect_only (void)
{
  struct peer p = { .fd = connect_to (path) };

  CHECK (p.fd >= 0);
  p.in = fdopen (dup (p.fd), "r");
  CHECK (p.in != NULL);
  return p;
}

static struct peer
connect_peer (void)
{
  struct peer p = connect_only ();
  json_t *const greeting = get (&p);

  CHECK (json_object_get (greeting, "QMP"));
  json_decref (greeting);
  put (&p, CAPABILITIES);
  expect (&p, "{\"return\": {}}");
  return p;
}

static void
disconnect (struct peer *p)
{
  fclose (p->in);
  close (p->fd);
}

static void
check_that_it_goes_on (struct peer *p)
{
  put (p, "{\"execute\": \"echo\", \"arguments\": {\"string\": \"on\"}}\n");
  expect (p, "{\"return\": {\"string\": \"on\"}}");
}

/* ---- Framing */

static void
test_greeting_and_negotiation (void **state)
{
  struct peer p = connect_only ();
  json_t *const greeting = get (&p);
  json_t *capabilities = NULL;
  int micro;

  CHECK (json_unpack (greeting, "{s:{s:{s:{s:i}, s:s}, s:o}}", "QMP",
                      "version", "qemu", "micro", &micro, "package",
                      &(const char *) { NULL }, "capabilities",
                      &capabilities) == 0);
  CHECK (json_is_array (capabilities) && json_array_size (capabilities) == 0);
  json_decref (greeting);

  put (&p, "{\"execute\": \"count\", \"id\": 1}");
  expect (&p, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": "
          "\"Expecting capabilities negotiation with 'qmp_capabilities'\"},"
          " \"id\": 1}");
  put (&p, "{\"execute\": \"qmp_capabilities\","
       " \"arguments\": {\"enable\": [\"oob\"]}}");
  expect_error (&p, "GenericError", "'oob'");
  put (&p, "{\"execute\": \"qmp_capabilities\","
       " \"arguments\": {\"enable\": [1]}}");
  expect_error (&p, "GenericError", "Invalid parameter type for 'enable[0]', "
                "expected: string");
  put (&p, "{\"execute\": \"count\"}");
  expect_error (&p, "CommandNotFound", "Expecting capabilities");
  put (&p, "{\"execute\": \"qmp_capabilities\","
       " \"arguments\": {\"enable\": []}, \"id\": {\"a\": [null]}}");
  expect (&p, "{\"return\": {}, \"id\": {\"a\": [null]}}");
  put (&p, CAPABILITIES);
  expect_error (&p, "CommandNotFound", "already complete");
  assert_int_equal (atomic_load (&seen.counted), 0);
  disconnect (&p);
}

/* Requests and what answers them, in the wording of QEMU 7.2. */
static const struct {
  const char *request, *answer, *class, *desc;
} exchanges[] = {
  { "{\"execute\": \"count\"}", "{\"return\": {}}", NULL, NULL },
  { "{\"execute\": \"count\", \"arguments\": {}, \"id\": \"\\u00e9\"}",
    "{\"return\": {}, \"id\": \"\\u00e9\"}", NULL, NULL },
  { "{\"id\": 1.5, \"execute\": \"fail\"}",
    "{\"error\": {\"class\": \"GenericError\", \"desc\": "
    "\"caf\\ufffd: it did not work\"}, \"id\": 1.5}", NULL, NULL },
  { "{\"execute\": \"nothing\", \"id\": null}",
    "{\"error\": {\"class\": \"GenericError\", \"desc\": "
    "\"out of memory\"}, \"id\": null}", NULL, NULL },
  { "{\"execute\": \"xyz\", \"id\": []}",
    "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": "
    "\"The command xyz has not been found\"}, \"id\": []}", NULL, NULL },
  { "{\"execute\": \"query-commands\"}",
    "{\"return\": [{\"name\": \"echo\"}, {\"name\": \"fail\"},"
    " {\"name\": \"nothing\"}, {\"name\": \"count\"}, {\"name\": \"block\"},"
    " {\"name\": \"large\"}, {\"name\": \"quick\"},"
    " {\"name\": \"urgent\"}, {\"name\": \"qmp_capabilities\"},"
    " {\"name\": \"query-commands\"}]}", NULL, NULL },

  { "{\"execute\": \"count\", \"arguments\": []}", NULL, "GenericError",
    "QMP input member 'arguments' must be an object" },
  { "{\"execute\": \"count\", \"arguments\": null}", NULL, "GenericError",
    "QMP input member 'arguments' must be an object" },
  { "{\"execute\": 5}", NULL, "GenericError",
    "QMP input member 'execute' must be a string" },
  { "{\"id\": 5}", "{\"error\": {\"class\": \"GenericError\", \"desc\": "
    "\"QMP input lacks member 'execute'\"}, \"id\": 5}", NULL, NULL },
  { "{}", NULL, "GenericError", "QMP input lacks member 'execute'" },
  { "{\"execute\": \"count\", \"extra\": 1}", NULL, "GenericError",
    "QMP input member 'extra' is unexpected" },
  { "[]", NULL, "GenericError", "QMP input must be a JSON object" },
  { "\"count\"", NULL, "GenericError", "QMP input must be a JSON object" },
  { "[[{\"execute\": \"count\"}]]", NULL, "GenericError",
    "QMP input must be a JSON object" },
  { "17 ", NULL, "GenericError", "QMP input must be a JSON object" },
  { "null\n", NULL, "GenericError", "QMP input must be a JSON object" },

  { "{\"execute\": \"count\", \"execute\": \"count\"}", NULL, "GenericError",
    "duplicate" },
  { "{\"execute\": \"echo\", \"arguments\": {\"string\": \"a\","
    " \"string\": \"b\"}}", NULL, "GenericError", "duplicate" },
  { "{\"execute\":}", NULL, "GenericError", "JSON parse error" },
  { "{\"execute\" \"count\"}", NULL, "GenericError", "JSON parse error" },
  { "{'execute': 'count'}", NULL, "GenericError", "JSON parse error" },
  { "{]", NULL, "GenericError", "JSON parse error" },
  { "}", NULL, "GenericError", "JSON parse error" },
  { "]", NULL, "GenericError", "JSON parse error" },
  { ",\n", NULL, "GenericError", "JSON parse error" },
  { "hello\n", NULL, "GenericError", "JSON parse error" },
  { "\xff", NULL, "GenericError", "JSON parse error" },
  { "\xc3\x28\n", NULL, "GenericError", "JSON parse error" },
  { "\"\xf0\x90\"", NULL, "GenericError", "JSON parse error" },
  { "{\"execute\": \"cou\nnt\"}\n", NULL, "GenericError",
    "JSON parse error" },
  { "nt\"}\n", NULL, "GenericError", "JSON parse error" },
};

static void
play_exchanges (struct peer *p, bool answers)
{
  for (size_t i = 0; i < sizeof exchanges / sizeof exchanges[0]; ++i) {
    /* The last two belong to each other, and give more than one error. */
    if (strchr (exchanges[i].request, '\n') &&
        strchr (exchanges[i].request, '"'))
      continue;
    if (!answers)
      put (p, exchanges[i].request);
    else if (exchanges[i].answer)
      expect (p, exchanges[i].answer);
    else
      expect_error (p, exchanges[i].class, exchanges[i].desc);
  }
}

static void
test_exchanges (void **state)
{
  for (size_t i = 0; i < sizeof exchanges / sizeof exchanges[0]; ++i) {
    struct peer p = connect_peer ();

    put (&p, exchanges[i].request);
    if (exchanges[i].answer)
      expect (&p, exchanges[i].answer);
    else
      expect_error (&p, exchanges[i].class, exchanges[i].desc);
    disconnect (&p);
  }
}

/* Not one byte between them, and all at once. */
static void
test_a_stream_of_values (void **state)
{
  struct peer p = connect_peer ();

  play_exchanges (&p, false);
  play_exchanges (&p, true);
  check_that_it_goes_on (&p);
  disconnect (&p);
}

static void
test_requests_come_in_pieces (void **state)
{
  const char *const text =
    "{\"execute\":\"echo\",\"arguments\":\r\n{\"string\":\n\"}{\\\"\\\\\","
    "\"array\":[{\"a\":\"]\"}]},\"id\":\"\xc3\xa9\"}";
  struct peer p = connect_peer ();

  for (size_t cut = 1; cut < strlen (text); ++cut) {
    put_bytes (&p, text, cut);
    usleep (100);
    put (&p, text + cut);
    expect (&p, "{\"return\": {\"string\": \"}{\\\"\\\\\", \"array\": "
            "[{\"a\": \"]\"}]}, \"id\": \"\\u00e9\"}");
  }
  for (size_t i = 0; i < strlen (text); ++i)
    put_bytes (&p, text + i, 1);
  json_decref (get (&p));
  check_that_it_goes_on (&p);
  disconnect (&p);
}

/* ---- Arguments */

static const struct {
  const char *arguments;
  const char *desc;             /* NULL if they are taken */
} arguments_tried[] = {
  { "{\"string\": \"\", \"integer\": -5, \"real\": 1.5, \"boolean\": false,"
    " \"array\": [1], \"object\": {}}", NULL },
  { "{\"string\": \"x\", \"real\": 3}", NULL },
  { "{}", "Parameter 'string' is missing" },
  { "{\"integer\": 1}", "Parameter 'string' is missing" },
  { "{\"string\": null}",
    "Invalid parameter type for 'string', expected: string" },
  { "{\"string\": 5}",
    "Invalid parameter type for 'string', expected: string" },
  { "{\"string\": \"\", \"integer\": 1.0}",
    "Invalid parameter type for 'integer', expected: integer" },
  { "{\"string\": \"\", \"integer\": \"1\"}",
    "Invalid parameter type for 'integer', expected: integer" },
  { "{\"string\": \"\", \"integer\": 9223372036854775808}", "JSON parse" },
  { "{\"string\": \"\", \"real\": true}",
    "Invalid parameter type for 'real', expected: number" },
  { "{\"string\": \"\", \"boolean\": \"true\"}",
    "Invalid parameter type for 'boolean', expected: boolean" },
  { "{\"string\": \"\", \"boolean\": 1}",
    "Invalid parameter type for 'boolean', expected: boolean" },
  { "{\"string\": \"\", \"array\": {}}",
    "Invalid parameter type for 'array', expected: array" },
  { "{\"string\": \"\", \"object\": []}",
    "Invalid parameter type for 'object', expected: object" },
  { "{\"string\": \"\", \"other\": 1}", "Parameter 'other' is unexpected" },
  { "{\"string\": \"\\u0000\"}", "JSON parse error" },
};

static void
test_arguments (void **state)
{
  struct peer p = connect_peer ();

  for (size_t i = 0;
       i < sizeof arguments_tried / sizeof arguments_tried[0]; ++i) {
    char text[512];

    snprintf (text, sizeof text, "{\"execute\": \"echo\", \"arguments\": "
              "%s}", arguments_tried[i].arguments);
    put (&p, text);
    if (arguments_tried[i].desc)
      expect_error (&p, "GenericError", arguments_tried[i].desc);
    else {
      snprintf (text, sizeof text, "{\"return\": %s}",
                arguments_tried[i].arguments);
      expect (&p, text);
    }
  }
  put (&p, "{\"execute\": \"count\", \"arguments\": {\"x\": 1}}");
  expect_error (&p, "GenericError", "Parameter 'x' is unexpected");
  assert_int_equal (atomic_load (&seen.counted), 0);
  disconnect (&p);
}

/* ---- Too much of something */

/* A string of n bytes in a request. */
static char *
long_request (size_t n)
{
  const char *const before =
    "{\"execute\": \"echo\", \"arguments\": {\"string\": \"";
  const char *const after = "\"}}";
  char *const text = malloc (strlen (before) + n + strlen (after) + 1);

  CHECK (text != NULL);
  strcpy (text, before);
  memset (text + strlen (before), 'x', n);
  strcpy (text + strlen (before) + n, after);
  return text;
}

static void
test_long_requests (void **state)
{
  CLEANUP_FREE char *fits = long_request (MEBIBYTE - 100);
  CLEANUP_FREE char *does_not = long_request (40 * MEBIBYTE);
  CLEANUP_FREE char *word = malloc (4 * MEBIBYTE);
  struct peer p = connect_peer ();
  json_t *json;

  put (&p, fits);
  json = get (&p);
  CHECK (json_string_length (json_object_get (json_object_get (json,
                                                               "return"),
                                              "string"))
         == MEBIBYTE - 100);
  json_decref (json);

  /* Its end is found, with or without a line end. */
  put (&p, does_not);
  expect_error (&p, "GenericError", "JSON token size limit exceeded");
  check_that_it_goes_on (&p);

  memset (word, 'a', 4 * MEBIBYTE);
  put_bytes (&p, word, 4 * MEBIBYTE);
  put (&p, "\n");
  expect_error (&p, "GenericError", "JSON token size limit exceeded");
  check_that_it_goes_on (&p);
  memset (word, '"', 1);
  put_bytes (&p, word, 4 * MEBIBYTE);
  put (&p, "\n");
  expect_error (&p, "GenericError", "JSON token size limit exceeded");
  check_that_it_goes_on (&p);
  disconnect (&p);
}

static void
test_deep_requests (void **state)
{
  char text[2 * MEBIBYTE / 4];
  struct peer p = connect_peer ();

  /* Deeper than any stack, and not closed. */
  memset (text, '[', sizeof text);
  put_bytes (&p, text, sizeof text);
  put (&p, "\n");
  expect_error (&p, "GenericError", "JSON nesting depth limit exceeded");
  check_that_it_goes_on (&p);

  /* Closed: its end is found. */
  memset (text, '{', 1000);
  memset (text + 1000, '}', 1000);
  put_bytes (&p, text, 2000);
  expect_error (&p, "GenericError", "JSON nesting depth limit exceeded");
  check_that_it_goes_on (&p);

  /* Deep, but not too deep. */
  memset (text, '[', 250);
  memset (text + 250, ']', 250);
  put_bytes (&p, text, 500);
  expect_error (&p, "GenericError", "QMP input must be a JSON object");
  disconnect (&p);
}

static void
test_a_byte_that_starts_afresh (void **state)
{
  struct peer p = connect_peer ();

  put (&p, "{\"execute\": \"ec\xff");
  expect_error (&p, "GenericError", "JSON parse error");
  check_that_it_goes_on (&p);
  disconnect (&p);
}

/* What a stream holds is bounded by its limit. */
static void
test_memory_of_a_stream (void **state)
{
  static const char *const starts[] = { "\"", "[\"", "x", "[[[1,", " \n" };
  char buffer[16384];

  for (size_t i = 0; i < sizeof starts / sizeof starts[0]; ++i) {
    struct stream s;
    unsigned errors = 0;

    stream_init (&s, MEBIBYTE);
    memset (buffer, i == 4 ? ' ' : 'y', sizeof buffer);
    assert_int_equal (stream_append (&s, starts[i], strlen (starts[i])), 0);
    for (unsigned round = 0; round < 1024; ++round) {
      enum stream_result r;
      json_t *value;
      char *error;

      assert_int_equal (stream_append (&s, buffer, sizeof buffer), 0);
      while ((r = stream_next (&s, &value, &error)) == STREAM_ERROR) {
        errors++;
        free (error);
      }
      assert_int_equal (r, STREAM_MORE);
      assert_true (s.capacity <= 2 * MEBIBYTE);
    }
    assert_int_equal (errors, i == 4 ? 0 : 1);
    stream_free (&s);
  }
}

/* ---- Many clients, and bad ones */

static void
ask_many_times (struct unit_thread *t)
{
  struct peer p = connect_peer ();
  char text[256];

  for (unsigned i = 0; i < 50; ++i) {
    snprintf (text, sizeof text, "{\"execute\": \"echo\", \"arguments\": "
              "{\"string\": \"%u\"}, \"id\": %u}", t->nr, i);
    put (&p, text);
    snprintf (text, sizeof text, "{\"return\": {\"string\": \"%u\"},"
              " \"id\": %u}", t->nr, i);
    expect (&p, text);
  }
  disconnect (&p);
}

static void
wait_for_disconnected (unsigned n)
{
  while (atomic_load (&seen.disconnected) < n)
    usleep (1000);
  assert_int_equal (atomic_load (&seen.disconnected), n);
}

static void
test_many_clients (void **state)
{
  run_threads (60, ask_many_times, NULL);
  wait_for_disconnected (60);
}

/* Some wait for others to leave.  All say something at once: who does not
 * has to give way after some seconds, which this may take on a busy machine.
 */
static void
test_more_clients_than_it_takes (void **state)
{
  enum { NR = 300 };
  struct peer peers[NR];

  for (unsigned i = 0; i < NR; ++i) {
    peers[i] = connect_only ();
    put (&peers[i], CAPABILITIES);
  }
  for (unsigned i = 0; i < NR; ++i) {
    json_decref (get (&peers[i]));
    put (&peers[i], "{\"execute\": \"count\"}");
    expect (&peers[i], "{\"return\": {}}");
    expect (&peers[i], "{\"return\": {}}");
    disconnect (&peers[i]);
  }
  wait_for_disconnected (NR);
  assert_int_equal (atomic_load (&seen.counted), NR);
}

/* The answers would be 40 MiB: the server must not keep them, wait for
 * the client to read them, nor lose one.
 */
static void
test_a_client_that_does_not_read (void **state)
{
  struct peer bad = connect_peer (), good = connect_peer ();

  for (unsigned i = 0; i < 40; ++i)
    put (&bad, "{\"execute\": \"large\"}");
  put (&bad, "{\"execute\": \"count\"}");
  for (unsigned i = 0; i < 5; ++i)
    check_that_it_goes_on (&good);
  assert_int_equal (atomic_load (&seen.counted), 0);

  for (unsigned i = 0; i < 40; ++i) {
    json_t *const json = get (&bad);

    CHECK (json_string_length (json_object_get (json, "return"))
           == MEBIBYTE);
    json_decref (json);
  }
  expect (&bad, "{\"return\": {}}");
  disconnect (&bad);

  /* Nor when it goes without having read. */
  bad = connect_peer ();
  for (unsigned i = 0; i < 40; ++i)
    put (&bad, "{\"execute\": \"large\"}");
  disconnect (&bad);
  wait_for_disconnected (2);
  check_that_it_goes_on (&good);
  disconnect (&good);
}

/* Whoever never reads is not kept for ever. */
static void
test_a_client_that_never_reads (void **state)
{
  struct peer p = connect_peer ();

  for (unsigned i = 0; i < 3; ++i)
    put (&p, "{\"execute\": \"large\"}");
  wait_for_disconnected (1);
  disconnect (&p);
}

/* One that sends without end takes turns with the others. */
static void
flood (struct unit_thread *t)
{
  atomic_bool *const stop = t->opaque;
  struct peer p = connect_peer ();
  char text[8192] = "";

  while (strlen (text) < sizeof text - 64)
    strcat (text, "{\"execute\": \"count\"}");
  fcntl (p.fd, F_SETFL, O_NONBLOCK);
  while (!atomic_load (stop)) {
    char answers[8192];

    if (send (p.fd, text, strlen (text), MSG_NOSIGNAL) == -1)
      CHECK (errno == EAGAIN);
    if (recv (p.fd, answers, sizeof answers, 0) == -1)
      CHECK (errno == EAGAIN);
  }
  disconnect (&p);
}

static void
test_clients_that_flood (void **state)
{
  struct unit_thread floods[2];
  atomic_bool stop = false;
  struct peer p = connect_peer ();

  start_threads (floods, 2, flood, &stop);
  while (atomic_load (&seen.counted) < 100)
    usleep (1000);
  for (unsigned i = 0; i < 20; ++i)
    check_that_it_goes_on (&p);
  atomic_store (&stop, true);
  join_threads (floods, 2);
  disconnect (&p);
}

static void
test_half_closed (void **state)
{
  struct peer p = connect_peer ();

  for (unsigned i = 0; i < 5; ++i)
    put (&p, "{\"execute\": \"large\"}");
  put (&p, "{\"execute\": \"count\"}{\"execute\": \"cou");
  shutdown (p.fd, SHUT_WR);
  for (unsigned i = 0; i < 5; ++i)
    json_decref (get (&p));
  expect (&p, "{\"return\": {}}");
  CHECK (get (&p) == NULL);
  wait_for_disconnected (1);
  disconnect (&p);

  /* The other half: commands are run, whether or not anyone reads. */
  p = connect_peer ();
  shutdown (p.fd, SHUT_RD);
  put (&p, "{\"execute\": \"count\"}{\"execute\": \"count\"}");
  disconnect (&p);
  wait_for_disconnected (2);
  assert_int_equal (atomic_load (&seen.counted), 3);
}

/* Before anything, in the middle of a request, with answers unread. */
static void
test_hanging_up (void **state)
{
  struct peer p = connect_only ();

  disconnect (&p);
  wait_for_disconnected (1);
  p = connect_peer ();
  put (&p, "{\"execute\": ");
  disconnect (&p);
  wait_for_disconnected (2);
  p = connect_peer ();
  put (&p, "{\"execute\": \"count\"}");
  disconnect (&p);
  wait_for_disconnected (3);
  assert_int_equal (atomic_load (&seen.counted), 1);
}

/* ---- Ends */

/* ---- A command that takes long */

static void
wait_until_entered (void)
{
  while (sem_wait (&seen.entered) == -1)
    CHECK (errno == EINTR);
}

/* A client whose command runs until released. */
static struct peer
begin_long_command (void)
{
  struct peer p = connect_peer ();

  put (&p, "{\"execute\": \"block\"}{\"execute\": \"quick\"}");
  wait_until_entered ();
  return p;
}

/* Is nothing said to this client?  A moment is enough to see that. */
static bool
is_waiting (struct peer *p)
{
  struct pollfd polled = { .fd = p->fd, .events = POLLIN };

  return poll (&polled, 1, 100) == 0;
}

static void
test_what_does_not_wait_is_run_meanwhile (void **state)
{
  struct peer slow = begin_long_command ();
  struct peer p = connect_peer (), q = connect_peer ();

  put (&q, "{\"execute\": \"fail\"}");
  put (&p, "{\"execute\": \"quick\"}{\"execute\": \"query-commands\"}");
  expect (&p, "{\"return\": {}}");
  json_decref (get (&p));
  CHECK (is_waiting (&slow) && is_waiting (&q));
  assert_int_equal (atomic_load (&seen.counted), 1);

  /* Each client gets its answers in order. */
  sem_post (&seen.released);
  expect (&slow, "{\"return\": {}}");
  expect (&slow, "{\"return\": {}}");
  expect_error (&q, "GenericError", "it did not work");
  disconnect (&slow);
  disconnect (&p);
  disconnect (&q);
}

static void
test_what_is_urgent_overtakes (void **state)
{
  struct peer slow = connect_peer (), p = connect_peer (), q = connect_peer ();

  put (&slow, "{\"execute\": \"block\"}");
  wait_until_entered ();
  put (&p, "{\"execute\": \"count\"}");
  CHECK (is_waiting (&p));
  put (&q, "{\"execute\": \"urgent\"}");
  expect (&q, "{\"return\": 0}");
  expect (&p, "{\"return\": {}}");
  expect (&slow, "{\"return\": {}}");
  disconnect (&slow);
  disconnect (&p);
  disconnect (&q);
}

/* It keeps its place until the command has ended, and that costs nothing. */
static void
test_a_client_that_goes_while_its_command_runs (void **state)
{
  struct peer slow = begin_long_command (), p = connect_peer ();
  struct timespec before, after;

  disconnect (&slow);
  clock_gettime (CLOCK_PROCESS_CPUTIME_ID, &before);
  CHECK (is_waiting (&p));
  clock_gettime (CLOCK_PROCESS_CPUTIME_ID, &after);
  CHECK ((after.tv_sec - before.tv_sec) * 1000000000
         + after.tv_nsec - before.tv_nsec < 50000000);
  assert_int_equal (atomic_load (&seen.disconnected), 0);
  sem_post (&seen.released);
  wait_for_disconnected (1);
  assert_int_equal (atomic_load (&seen.counted), 1);
  check_that_it_goes_on (&p);
  disconnect (&p);
}

static void
test_silent_clients_give_way (void **state)
{
  enum { NR = 256 };
  struct peer peers[NR];
  struct peer busy = begin_long_command (), p;

  for (unsigned i = 1; i < NR; ++i)
    peers[i] = connect_only ();
  for (unsigned i = 1; i < NR; ++i)
    json_decref (get (&peers[i]));
  p = connect_peer ();
  wait_for_disconnected (1);
  sem_post (&seen.released);
  expect (&busy, "{\"return\": {}}");
  check_that_it_goes_on (&p);
  for (unsigned i = 1; i < NR; ++i)
    disconnect (&peers[i]);
  disconnect (&busy);
  disconnect (&p);
}

static void
test_close_waits_for_the_command (void **state)
{
  struct peer p = connect_peer (), other = connect_peer ();

  put (&p, "{\"execute\": \"block\"}");
  sem_wait (&seen.entered);
  sem_post (&seen.released);
  control_close (*state);
  *state = NULL;
  assert_true (atomic_load (&seen.left));
  assert_int_equal (atomic_load (&seen.disconnected), 2);
  expect (&p, "{\"return\": {}}");
  CHECK (get (&p) == NULL);
  CHECK (get (&other) == NULL);
  disconnect (&p);
  disconnect (&other);
}

static void
test_close_without_start (void **state)
{
  struct control *const control = control_open (path, &callbacks);
  struct peer p;

  assert_non_null (control);
  p = connect_only ();
  put (&p, CAPABILITIES);
  control_close (control);
  CHECK (get (&p) == NULL);
  disconnect (&p);
  assert_int_equal (access (path, F_OK), -1);
  control_close (NULL);
}

/* Who waits since before the start is served. */
static void
test_clients_before_the_start (void **state)
{
  struct control *const control = control_open (path, &callbacks);
  struct peer p = connect_only ();

  put (&p, CAPABILITIES);
  assert_int_equal (control_start (control), 0);
  json_decref (get (&p));
  expect (&p, "{\"return\": {}}");
  disconnect (&p);
  control_close (control);
}

static void
test_no_descriptors_for_clients (void **state)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  struct rlimit limit, none;
  struct peer p = connect_peer (), late;
  int next;

  late.fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  late.in = fdopen (dup (late.fd), "r");
  strcpy (address.sun_path, path);
  next = dup (late.fd);
  close (next);

  getrlimit (RLIMIT_NOFILE, &limit);
  none = limit;
  none.rlim_cur = next;
  assert_int_equal (setrlimit (RLIMIT_NOFILE, &none), 0);
  assert_int_equal (connect (late.fd, (struct sockaddr *) &address,
                             sizeof address), 0);
  while (nr_messages () == 0)
    usleep (1000);
  check_that_it_goes_on (&p);
  assert_int_equal (setrlimit (RLIMIT_NOFILE, &limit), 0);
  json_decref (get (&late));
  disconnect (&late);
  disconnect (&p);
  assert_messages (1, "accepting a client");
}

/* ---- The file */

static mode_t
mode_of (const char *name)
{
  struct stat st;

  assert_int_equal (lstat (name, &st), 0);
  assert_true (S_ISSOCK (st.st_mode));
  return st.st_mode & 07777;
}

static void
test_mode (void **state)
{
  static const mode_t masks[] = { 0, 022, 0177, 0777 };

  for (size_t i = 0; i < sizeof masks / sizeof masks[0]; ++i) {
    const mode_t old = umask (masks[i]);
    struct control *const control = control_open (path, &callbacks);

    umask (old);
    assert_non_null (control);
    assert_int_equal (mode_of (path), 0600);
    control_close (control);
  }
}

/* Leave a socket behind, as a process that was killed does. */
static void
make_stale (const char *name)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  const int fd = socket (AF_UNIX, SOCK_STREAM, 0);

  strcpy (address.sun_path, name);
  unlink (name);
  CHECK (bind (fd, (struct sockaddr *) &address, sizeof address) == 0);
  CHECK (listen (fd, 1) == 0);
  close (fd);
}

static void
refused (const char *name, int err, const char *message)
{
  forget_messages ();
  errno = 0;
  assert_null (control_open (name, &callbacks));
  assert_int_equal (errno, err);
  assert_messages (1, message);
}

static void
test_stale_and_alive (void **state)
{
  struct control *control;

  make_stale (path);
  control = control_open (path, &callbacks);
  assert_non_null (control);
  assert_int_equal (mode_of (path), 0600);

  /* It answers from now on, even before it is started. */
  refused (path, EADDRINUSE, "another server answers");
  assert_int_equal (control_start (control), 0);
  refused (path, EADDRINUSE, "another server answers");
  {
    struct peer p = connect_peer ();

    disconnect (&p);
  }
  control_close (control);
  assert_int_equal (access (path, F_OK), -1);
}

static void
test_an_alive_socket_with_a_full_queue (void **state)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  const int fd = socket (AF_UNIX, SOCK_STREAM, 0);
  int waiting[2];

  strcpy (address.sun_path, path);
  assert_int_equal (bind (fd, (struct sockaddr *) &address,
                          sizeof address), 0);
  assert_int_equal (listen (fd, 0), 0);
  waiting[0] = connect_to (path);
  refused (path, EADDRINUSE, "another server answers");
  close (waiting[0]);
  close (fd);
  unlink (path);
}

static void
test_files_that_are_no_sockets (void **state)
{
  char other[80];
  int fd;

  fd = open (path, O_CREAT | O_WRONLY, 0600);
  assert_int_equal (write (fd, "mine", 4), 4);
  close (fd);
  refused (path, EEXIST, "not a socket");
  assert_int_equal (unlink (path), 0);

  assert_int_equal (mkdir (path, 0700), 0);
  refused (path, EEXIST, "not a socket");
  assert_int_equal (rmdir (path), 0);

  snprintf (other, sizeof other, "%s/other", directory);
  make_stale (other);
  assert_int_equal (symlink (other, path), 0);
  refused (path, EEXIST, "not a socket");
  assert_int_equal (unlink (path), 0);
  assert_int_equal (unlink (other), 0);
}

static void
test_bad_paths (void **state)
{
  char name[200];

  refused ("", EINVAL, "empty");
  snprintf (name, sizeof name, "%s/none/sock", directory);
  refused (name, ENOENT, "none/sock");

  /* One byte too many, and then none. */
  memset (name, 'x', sizeof name);
  memcpy (name, directory, strlen (directory));
  name[strlen (directory)] = '/';
  name[108] = '\0';
  refused (name, ENAMETOOLONG, "at most 107 bytes");
  name[107] = '\0';
  {
    struct control *const control = control_open (name, &callbacks);

    assert_non_null (control);
    assert_int_equal (mode_of (name), 0600);
    control_close (control);
    assert_int_equal (access (name, F_OK), -1);
  }
}

static void
test_a_socket_that_was_replaced_stays (void **state)
{
  struct control *const control = control_open (path, &callbacks);

  assert_non_null (control);
  make_stale (path);
  control_close (control);
  assert_int_equal (mode_of (path) & 0400, 0400);
  assert_int_equal (unlink (path), 0);
}

static void
test_another_working_directory (void **state)
{
  struct control *control;

  assert_int_equal (chdir (directory), 0);
  control = control_open ("relative", &callbacks);
  assert_non_null (control);
  assert_int_equal (access ("relative", F_OK), 0);
  assert_int_equal (chdir ("/"), 0);
  control_close (control);
  assert_int_equal (chdir (directory), 0);
  assert_int_equal (access ("relative", F_OK), -1);
  assert_int_equal (chdir ("/"), 0);
}

/* Of several that find the same stale socket one wins, and keeps it. */
struct contest {
  pthread_barrier_t start;
  struct control *_Atomic winner;
};

static void
open_it (struct unit_thread *t)
{
  struct contest *const contest = t->opaque;
  struct control *control;

  pthread_barrier_wait (&contest->start);
  control = control_open (path, &callbacks);
  if (control)
    CHECK (atomic_exchange (&contest->winner, control) == NULL);
}

static void
test_servers_at_the_same_time (void **state)
{
  struct contest contest;

  pthread_barrier_init (&contest.start, NULL, 4);
  for (unsigned i = 0; i < 300; ++i) {
    struct peer p;

    atomic_init (&contest.winner, NULL);
    make_stale (path);
    run_threads (4, open_it, &contest);
    assert_non_null (atomic_load (&contest.winner));
    assert_int_equal (control_start (atomic_load (&contest.winner)), 0);
    p = connect_peer ();
    disconnect (&p);
    control_close (atomic_load (&contest.winner));
    assert_int_equal (access (path, F_OK), -1);
  }
  pthread_barrier_destroy (&contest.start);
}

/* ---- Events */

static void
raise_event (struct control *control, json_int_t number)
{
  control_event (control, "COUNTED", json_pack ("{s:I}", "n", number));
}

/* The next event's number, or -1 for an answer. */
static json_int_t
get_event (struct peer *p)
{
  json_t *const json = get (p);
  json_int_t n = -1, seconds, micros;
  const char *name;

  CHECK (json != NULL);
  if (json_object_get (json, "event")) {
    CHECK (json_unpack_ex (json, NULL, JSON_STRICT,
                           "{s:s, s:{s:I}, s:{s:I, s:I}}", "event", &name,
                           "data", "n", &n, "timestamp", "seconds", &seconds,
                           "microseconds", &micros) == 0);
    CHECK (strcmp (name, "COUNTED") == 0);
    CHECK (micros >= 0 && micros < 1000000);
    /* time has a coarser clock. */
    CHECK (seconds >= time (NULL) - HANG_SECONDS &&
           seconds <= time (NULL) + 1);
  }
  json_decref (json);
  return n;
}

static void
test_events_reach_all_that_have_negotiated (void **state)
{
  struct peer a = connect_peer (), b = connect_peer ();
  struct peer stranger = connect_only ();

  json_decref (get (&stranger));
  for (json_int_t n = 0; n < 100; ++n)
    raise_event (*state, n);
  for (json_int_t n = 0; n < 100; ++n) {
    assert_int_equal (get_event (&a), n);
    assert_int_equal (get_event (&b), n);
  }
  put (&stranger, CAPABILITIES);
  expect (&stranger, "{\"return\": {}}");
  raise_event (*state, 100);
  assert_int_equal (get_event (&stranger), 100);
  assert_int_equal (get_event (&a), 100);
  check_that_it_goes_on (&a);
  disconnect (&a);
  disconnect (&b);
  disconnect (&stranger);
}

/* It gets the first of them, and is answered behind them; the others get all,
 * and nobody waits for it.
 */
static void
test_a_client_that_does_not_read_loses_events (void **state)
{
  const json_int_t nr = 100000;
  struct peer a = connect_peer (), b = connect_peer ();
  json_int_t last = -1, n;

  for (n = 0; n < nr; ++n) {
    raise_event (*state, n);
    assert_int_equal (get_event (&a), n);
  }
  check_that_it_goes_on (&a);

  /* What it has not read is less than an answer may be, so it is not one of
   * those that are hung up on.
   */
  put (&b, "{\"execute\": \"count\"}");
  while ((n = get_event (&b)) >= 0) {
    assert_int_equal (n, last + 1);
    last = n;
  }
  assert_within (last, 100, nr - 2);
  raise_event (*state, nr);
  assert_int_equal (get_event (&b), nr);
  disconnect (&a);
  disconnect (&b);
}

/* Answers up to that with this id. */
static void
skip_answers (struct peer *p, uint64_t id)
{
  for (bool found = false; !found;) {
    json_t *const json = get (p);

    CHECK (json != NULL);
    found = json_object_get (json, "return") &&
      json_integer_value (json_object_get (json, "id")) == (json_int_t) id;
    json_decref (json);
  }
}

static void
raise_many (struct unit_thread *t)
{
  for (json_int_t n = 0; n < 20000 / ONE_IN; ++n)
    raise_event (t->opaque, n);
}

/* Faster than the thread that hands them on; what comes is in order. */
static void
test_events_from_many_threads (void **state)
{
  struct peer a = connect_peer (), b = connect_peer ();

  run_threads (4, raise_many, *state);
  disconnect (&b);
  put (&a, "{\"execute\": \"count\", \"id\": 1}");
  skip_answers (&a, 1);
  disconnect (&a);
}

static void
test_events_without_clients_or_memory (void **state)
{
  struct events events = EVENTS_INITIALIZER;
  struct control *const control = control_open (path, &callbacks);
  struct peer p;

  assert_non_null (control);
  events_raise (NULL, "COUNTED", json_object ());
  events_raise (&events, "COUNTED", json_object ());
  events_connect (&events, control);
  events_raise (&events, "COUNTED", NULL);
  for (unsigned i = 0; i < 5000; ++i)
    events_raise (&events, "COUNTED", json_pack ("{s:i}", "n", i));
  assert_int_equal (control_start (control), 0);
  p = connect_peer ();
  events_raise (&events, "COUNTED", json_pack ("{s:i}", "n", 5000));
  /* Those of before were for nobody, but may be on their way still. */
  while (get_event (&p) < 5000)
    continue;
  events_connect (&events, NULL);
  control_close (control);
  events_raise (&events, "COUNTED", json_object ());
  assert_null (get (&p));
  disconnect (&p);
}

/* ---- Random input */

static uint64_t
number_from (const char *variable, uint64_t otherwise)
{
  const char *const value = getenv (variable);

  return value ? strtoull (value, NULL, 10) : otherwise;
}

/* Pieces from which something like JSON may come about. */
static size_t
random_piece (uint64_t *seed, char *buffer)
{
  static const char *const pieces[] = {
    "{", "}", "[", "]", "\"", ":", ",", "\\", "\n", " ", "\r\n", "\xff",
    "{\"execute\":", "\"count\"", "{\"execute\": \"count\"}", "\"id\":",
    "null", "true", "1e5", "-", "\\u00", "\xc3", "\xa9", "{\"a\":{\"b\":[",
    "{\"execute\": \"echo\", \"arguments\": {\"string\": ",
  };
  const unsigned nr = sizeof pieces / sizeof pieces[0];
  const unsigned i = random_below (seed, nr + 2);

  if (i < nr) {
    strcpy (buffer, pieces[i]);
    return strlen (buffer);
  }
  for (unsigned j = 0; j < 64; ++j)
    buffer[j] = next_random (seed);
  return 64;
}

static void
test_random_input (void **state)
{
  const uint64_t rounds = number_from ("ROUNDS", 300 / ONE_IN);
  uint64_t seed = number_from ("SEED", 20240229);
  struct peer p = connect_peer ();

  print_message ("SEED=%" PRIu64 "\n", seed);
  for (uint64_t i = 1; i <= rounds; ++i) {
    const unsigned nr = random_below (&seed, 100);
    char text[80];

    for (unsigned j = 0; j < nr; ++j)
      put_bytes (&p, text, random_piece (&seed, text));
    snprintf (text, sizeof text,
              "\xff{\"execute\": \"count\", \"id\": %u}", (unsigned) i);
    put (&p, text);
    skip_answers (&p, i);
  }
  disconnect (&p);
}

int
main (void)
{
#define WITH_SERVER(f) cmocka_unit_test_setup_teardown (f, set_up, tear_down)
  const struct CMUnitTest tests[] = {
    WITH_SERVER (test_greeting_and_negotiation),
    WITH_SERVER (test_exchanges),
    WITH_SERVER (test_a_stream_of_values),
    WITH_SERVER (test_requests_come_in_pieces),
    WITH_SERVER (test_arguments),
    WITH_SERVER (test_long_requests),
    WITH_SERVER (test_deep_requests),
    WITH_SERVER (test_a_byte_that_starts_afresh),
    cmocka_unit_test (test_memory_of_a_stream),
    WITH_SERVER (test_many_clients),
    WITH_SERVER (test_more_clients_than_it_takes),
    WITH_SERVER (test_a_client_that_does_not_read),
    WITH_SERVER (test_a_client_that_never_reads),
    WITH_SERVER (test_clients_that_flood),
    WITH_SERVER (test_half_closed),
    WITH_SERVER (test_hanging_up),
    WITH_SERVER (test_what_does_not_wait_is_run_meanwhile),
    WITH_SERVER (test_what_is_urgent_overtakes),
    WITH_SERVER (test_a_client_that_goes_while_its_command_runs),
    WITH_SERVER (test_silent_clients_give_way),
    WITH_SERVER (test_close_waits_for_the_command),
    cmocka_unit_test (test_close_without_start),
    cmocka_unit_test (test_clients_before_the_start),
    WITH_SERVER (test_no_descriptors_for_clients),
    cmocka_unit_test (test_mode),
    cmocka_unit_test (test_stale_and_alive),
    cmocka_unit_test (test_an_alive_socket_with_a_full_queue),
    cmocka_unit_test (test_files_that_are_no_sockets),
    cmocka_unit_test (test_bad_paths),
    cmocka_unit_test (test_a_socket_that_was_replaced_stays),
    cmocka_unit_test (test_another_working_directory),
    cmocka_unit_test (test_servers_at_the_same_time),
    WITH_SERVER (test_events_reach_all_that_have_negotiated),
    WITH_SERVER (test_a_client_that_does_not_read_loses_events),
    WITH_SERVER (test_events_from_many_threads),
    cmocka_unit_test (test_events_without_clients_or_memory),
    WITH_SERVER (test_random_input),
  };
  int r;

  alarm (getenv ("ROUNDS") ? 0 : HANG_SECONDS);
  if (mkdtemp (directory) == NULL)
    return 1;
  snprintf (path, sizeof path, "%s/sock", directory);
  sem_init (&seen.entered, 0, 0);
  sem_init (&seen.released, 0, 0);
  msg_set_handler (collect_message);
  r = cmocka_run_group_tests_name ("control", tests, NULL, NULL);
  rmdir (directory);
  return r;
}
