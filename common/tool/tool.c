/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the tools share: options, help, completion, JSON. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "utils/cleanup.h"
#include "utils/jsontext.h"
#include "utils/message.h"
#include "tool/tool.h"

/* The one that this program is, and the name by which it was called; set
 * by tool_main.
 */
static const struct tool *tool;
static const char *called;

/* Why standard output could not be written to, the first time. */
static int output_errno;

static const struct tool_option global_options[] = {
  TOOL_OPTION_HELP,
  { 'V', "version", NULL, "print the version and exit" },
  { TOOL_COMPLETIONS, "completions", NULL, NULL },
  { 0 }
};

/* ---- Help */

static void
print_option (const struct tool_option *o)
{
  const int width = 24;
  char synopsis[80] = "";
  size_t len = 0;

  if (o->code < TOOL_OUTPUT)
    len += snprintf (synopsis, sizeof synopsis, "-%c%s", o->code,
                     o->name ? ", " : "");
  if (o->name)
    len += snprintf (synopsis + len, sizeof synopsis - len, "--%s", o->name);
  if (o->value)
    snprintf (synopsis + len, sizeof synopsis - len, "%s%s",
              o->name ? "=" : " ", o->value);
  if (strlen (synopsis) > (size_t) width)
    printf ("  %s\n  %*s  %s\n", synopsis, width, "", o->help);
  else
    printf ("  %-*s  %s\n", width, synopsis, o->help);
}

static void
print_options (const struct tool_option *options)
{
  for (const struct tool_option *o = options; o->code; ++o)
    if (o->help)
      print_option (o);
}

/* One line, however long, with all options: scripts look there for what a
 * command knows, as they do with qemu-img.
 */
static void
print_syntax (const struct tool_command *command)
{
  printf ("  %s", command->name);
  for (const struct tool_option *o = command->options; o->code; ++o) {
    if (o->help == NULL || o->code == 'h')
      continue;
    if (o->code < TOOL_OUTPUT)
      printf (" [-%c%s%s]", o->code, o->value ? " " : "",
              o->value ? o->value : "");
    else
      printf (" [--%s%s%s]", o->name, o->value ? "=" : "",
              o->value ? o->value : "");
  }
  printf (" %s\n", command->arguments);
}

static void
print_commands (void)
{
  printf ("\nCommands:\n");
  for (size_t i = 0; tool->commands[i]; ++i)
    printf ("  %-24s  %s\n", tool->commands[i]->name,
            tool->commands[i]->help);
  printf ("\nCommand syntax:\n");
  for (size_t i = 0; tool->commands[i]; ++i)
    print_syntax (tool->commands[i]);
}

static void
print_help (void)
{
  printf ("usage: %s %s[OPTION...] %s\n%s\n",
          called, tool->commands ? "COMMAND " : "", tool->arguments,
          tool->help);
  if (tool->commands)
    print_commands ();
  printf ("\nOptions:\n");
  if (tool->options)
    print_options (tool->options);
  print_options (global_options);
  if (tool->commands)
    printf ("\n'%s COMMAND --help' describes a command; see also %s(1).\n",
            called, tool->name);
  else
    printf ("\nSee also %s(1).\n", tool->name);
}

static void
print_command_help (const struct tool_command *command)
{
  printf ("usage: %s %s [OPTION...] %s\n%s\n\nOptions:\n",
          called, command->name, command->arguments, command->help);
  print_options (command->options);
}

static void
note_output_errno (void)
{
  if (output_errno == 0)
    output_errno = errno;
}

void
tool_flush (void)
{
  if (fflush (stdout) == EOF)
    note_output_errno ();
}

/* What was printed must have arrived where it should go. */
static int
close_stdout (void)
{
  tool_flush ();
  if (ferror (stdout)) {
    errno = output_errno ? output_errno : EIO;
    msg_error ("cannot write to standard output: %m");
    return -1;
  }
  return 0;
}

static __attribute__ ((noreturn)) void
exit_after_output (void)
{
  exit (close_stdout () == 0 ? EXIT_SUCCESS : EXIT_FAILURE);
}

/* ---- What the shell completes (common/tool/completion.bash)
 *
 * A line for each spelling of an option and for each list of arguments:
 * sub-command, option, value, separated by tabs.  The sub-command is
 * empty for options that come before it, the option for arguments.
 */

static void
print_completions_of (const char *command, const struct tool_option *options)
{
  for (const struct tool_option *o = options; o->code; ++o) {
    const char *const value = o->value ? o->value : "";

    if (o->help == NULL)
      continue;
    if (o->code < TOOL_OUTPUT)
      printf ("%s\t-%c\t%s\n", command, o->code, value);
    if (o->name)
      printf ("%s\t--%s\t%s\n", command, o->name, value);
  }
}

static void
print_completions (int argc, char *argv[])
{
  if (tool->options)
    print_completions_of ("", tool->options);
  print_completions_of ("", global_options);
  if (tool->print_completions)
    tool->print_completions (argc, argv);
  for (size_t i = 0; tool->commands && tool->commands[i]; ++i) {
    const struct tool_command *const c = tool->commands[i];

    print_completions_of (c->name, c->options);
    printf ("%s\t\t%s\n", c->name, c->arguments);
  }
}

/* ---- The command line */

void
tool_usage_error (const char *fs, ...)
{
  CLEANUP_FREE char *text = NULL;
  va_list args;

  va_start (args, fs);
  if (vasprintf (&text, fs, args) == -1)
    text = NULL;
  va_end (args);
  msg_error ("%s", text ? text : fs);
  fprintf (stderr, "Try '%s --help' for more information\n", called);
  exit (tool->usage_status ? tool->usage_status : EXIT_FAILURE);
}

/* getopt's two ways to describe options, made from one of our tables.
 * Short options are preceded by the characters in flags.
 */
struct getopt_tables {
  char letters[128];
  struct option names[64];
};

static void
make_getopt_tables (const struct tool_option *options, const char *flags,
                    struct getopt_tables *t)
{
  size_t nr_letters, nr_names = 0;

  memset (t, 0, sizeof *t);
  nr_letters = strlen (strcpy (t->letters, flags));
  for (const struct tool_option *o = options; o->code; ++o) {
    if (o->code < TOOL_OUTPUT) {
      t->letters[nr_letters++] = o->code;
      if (o->value)
        t->letters[nr_letters++] = ':';
    }
    if (o->name)
      t->names[nr_names++] = (struct option) {
        o->name, o->value ? required_argument : no_argument, NULL, o->code
      };
  }
}

static int
next_option (int argc, char *argv[], const struct tool_option *options,
             const char *flags)
{
  struct getopt_tables tables;
  int c;

  make_getopt_tables (options, flags, &tables);
  opterr = 0;
  c = getopt_long (argc, argv, tables.letters, tables.names, NULL);
  if (c == ':')
    tool_usage_error ("missing argument for option '%s'", argv[optind - 1]);
  if (c == '?')
    tool_usage_error ("unrecognized option '%s'", argv[optind - 1]);
  return c;
}

int
tool_next_option (const struct tool_command *command, int argc, char *argv[])
{
  const int c = next_option (argc, argv, command->options, ":");

  if (c == 'h') {
    print_command_help (command);
    exit_after_output ();
  }
  return c;
}

bool
tool_is_word_of (const char *words, const char *word)
{
  const size_t len = strlen (word);

  for (;;) {
    const size_t n = strcspn (words, "|");

    if (n == len && memcmp (words, word, n) == 0)
      return true;
    if (words[n] == '\0')
      return false;
    words += n + 1;
  }
}

bool
tool_parse_output (const char *format)
{
  if (strcmp (format, "json") == 0)
    return true;
  if (strcmp (format, "human") == 0)
    return false;
  msg_error ("--output must be used with human or json as argument.");
  exit (EXIT_FAILURE);
}

/* ---- JSON */

int
tool_dump_json (json_t *value, size_t flags)
{
  int r = -1;

  if (value == NULL)
    msg_error ("cannot make JSON: out of memory");
  else
    r = json_dumpf (value, stdout, flags | JSON_DIGITS_MEANT);
  if (value && r == -1) {
    note_output_errno ();
    if (!ferror (stdout))       /* or close_stdout tells */
      msg_error ("cannot print JSON: %m");
  }
  json_decref (value);
  return r;
}

int
tool_print_json (json_t *value)
{
  if (tool_dump_json (value, JSON_INDENT (4) | JSON_ENSURE_ASCII |
                      JSON_ENCODE_ANY) == -1)
    return -1;
  putchar ('\n');
  return 0;
}

/* ---- Main */

static const struct tool_command *
find_command (const char *name)
{
  for (size_t i = 0; tool->commands[i]; ++i)
    if (strcmp (tool->commands[i]->name, name) == 0)
      return tool->commands[i];
  for (const struct tool_instead *i = tool->instead; i && i->command; ++i) {
    if (strcmp (i->command, name) == 0) {
      msg_error ("%s is no command of %s: %s", name, tool->name, i->hint);
      exit (EXIT_FAILURE);
    }
  }
  tool_usage_error ("Command not found: %s", name);
}

/* Under the other program's name with the other program's version, which
 * scripts compare with what they need.
 */
static void
print_version (void)
{
  if (called == tool->name)
    printf ("%s version %s (%s)\n", called, PACKAGE_VERSION, PACKAGE_NAME);
  else
    printf ("%s version %s (%s %s, %s)\n", called, tool->alias_version,
            tool->name, PACKAGE_VERSION, PACKAGE_NAME);
}

/* The tool's own options and those that all have. */
static const struct tool_option *
all_options (void)
{
  static struct tool_option all[32];
  size_t n = 0;

  for (const struct tool_option *o = tool->options; o && o->code; ++o)
    all[n++] = *o;
  for (const struct tool_option *o = global_options; o->code; ++o)
    all[n++] = *o;
  return all;
}

/* Returns false when there are no more. */
static bool
parse_global_option (int argc, char *argv[])
{
  const int c = next_option (argc, argv, all_options (), "+:");

  switch (c) {
  case -1:
    return false;
  case 'h':
    print_help ();
    exit_after_output ();
  case 'V':
    print_version ();
    exit_after_output ();
  case TOOL_COMPLETIONS:
    print_completions (argc - optind, argv + optind);
    exit_after_output ();
  default:
    tool->set_option (c, optarg);
    return true;
  }
}

static int
run_command (int argc, char *argv[])
{
  const struct tool_command *const command = find_command (argv[0]);

  optind = 0;                   /* makes getopt start afresh */
  return command->run (argc, argv);
}

/* Started with one of the standard streams closed, the first image to be
 * opened would take its place, and what is printed go into the image.
 * What stands there instead fails as a closed one does.
 */
static void
hold_standard_streams (void)
{
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd)
    if (fcntl (fd, F_GETFD) == -1 &&
        open ("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd)
      exit (EXIT_FAILURE);
}

int
tool_main (const struct tool *this_tool, int argc, char *argv[])
{
  int status;

  hold_standard_streams ();
  tool = this_tool;
  called = tool->alias &&
    strcmp (program_invocation_short_name, tool->alias) == 0
    ? tool->alias : tool->name;
  signal (SIGXFSZ, SIG_IGN);    /* a write says EFBIG then */
  while (parse_global_option (argc, argv))
    ;
  if (optind >= argc)
    tool_usage_error ("Not enough arguments");
  argc -= optind;
  argv += optind;
  status = tool->commands ? run_command (argc, argv) : tool->run (argc, argv);
  return close_stdout () == -1 ? EXIT_FAILURE : status;
}
