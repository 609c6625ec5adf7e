/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* qed-img: all that is done with QED images besides serving them.
 *
 * Notes on the design
 *
 * Sub-commands, options, output and exit statuses are those of qemu-img
 * with -f qed, so that a script changes only the program's name; that
 * is also why the messages about the command line have its wording.
 *
 * A sub-command is an entry of the table "commands" and has a table of
 * its options.  getopt's tables, the help and what the shell completes
 * are made from these, and nothing else knows which options there are.
 * What a sub-command does to an image is done by common/qed.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"
#include "cleanup.h"
#include "message.h"
#include "sizes.h"

static const struct img_command *const commands[] = {
  &img_create_command,
  &img_info_command,
  &img_check_command,
  &img_map_command,
  &img_resize_command,
  &img_rebase_command,
  &img_commit_command,
  &img_measure_command,
  &img_empty_command,
  NULL
};

static const struct img_option global_options[] = {
  { 'h', "help", NULL, "print this help and exit" },
  { 'V', "version", NULL, "print the version and exit" },
  { IMG_COMPLETIONS, "completions", NULL, NULL },
  { 0 }
};

/* ---- Help */

static void
print_option (const struct img_option *o)
{
  const int width = 24;
  char synopsis[80] = "";
  size_t len = 0;

  if (o->code < IMG_OUTPUT)
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
print_options (const struct img_option *options)
{
  for (const struct img_option *o = options; o->code; ++o)
    if (o->help)
      print_option (o);
}

static void
print_help (void)
{
  printf ("usage: qed-img COMMAND [OPTION...] IMAGE ...\n"
          "Work on QED disk images.  IMAGE is a file, a block device or an "
          "NBD URI.\n\nCommands:\n");
  for (size_t i = 0; commands[i]; ++i)
    printf ("  %-24s  %s\n", commands[i]->name, commands[i]->help);
  printf ("\nOptions:\n");
  print_options (global_options);
  printf ("\n'qed-img COMMAND --help' describes a command; see also "
          "qed-img(1).\n");
}

static void
print_command_help (const struct img_command *command)
{
  printf ("usage: qed-img %s [OPTION...] %s\n%s\n\nOptions:\n",
          command->name, command->arguments, command->help);
  print_options (command->options);
}

/* What was printed must have arrived where it should go. */
static int
close_stdout (void)
{
  if (ferror (stdout) || fflush (stdout) == EOF) {
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

/* ---- What the shell completes (plugins/completion.bash)
 *
 * A line for each spelling of an option and for each list of arguments:
 * sub-command, option, value, separated by tabs.  The sub-command is
 * empty for options that come before it, the option for arguments.
 */

static void
print_completions_of (const char *command, const struct img_option *options)
{
  for (const struct img_option *o = options; o->code; ++o) {
    const char *const value = o->value ? o->value : "";

    if (o->help == NULL)
      continue;
    if (o->code < IMG_OUTPUT)
      printf ("%s\t-%c\t%s\n", command, o->code, value);
    if (o->name)
      printf ("%s\t--%s\t%s\n", command, o->name, value);
  }
}

static void
print_completions (void)
{
  print_completions_of ("", global_options);
  for (size_t i = 0; commands[i]; ++i) {
    print_completions_of (commands[i]->name, commands[i]->options);
    printf ("%s\t\t%s\n", commands[i]->name, commands[i]->arguments);
  }
}

/* ---- The command line */

void
img_usage_error (const char *fs, ...)
{
  CLEANUP_FREE char *text = NULL;
  va_list args;

  va_start (args, fs);
  if (vasprintf (&text, fs, args) == -1)
    text = NULL;
  va_end (args);
  msg_error ("%s", text ? text : fs);
  fprintf (stderr, "Try 'qed-img --help' for more information\n");
  exit (EXIT_FAILURE);
}

/* getopt's two ways to describe options, made from one of our tables.
 * Short options are preceded by the characters in flags.
 */
struct getopt_tables {
  char letters[128];
  struct option names[64];
};

static void
make_getopt_tables (const struct img_option *options, const char *flags,
                    struct getopt_tables *t)
{
  size_t nr_letters, nr_names = 0;

  memset (t, 0, sizeof *t);
  nr_letters = strlen (strcpy (t->letters, flags));
  for (const struct img_option *o = options; o->code; ++o) {
    if (o->code < IMG_OUTPUT) {
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
next_option (int argc, char *argv[], const struct img_option *options,
             const char *flags)
{
  struct getopt_tables tables;
  int c;

  make_getopt_tables (options, flags, &tables);
  opterr = 0;
  c = getopt_long (argc, argv, tables.letters, tables.names, NULL);
  if (c == ':')
    img_usage_error ("missing argument for option '%s'", argv[optind - 1]);
  if (c == '?')
    img_usage_error ("unrecognized option '%s'", argv[optind - 1]);
  return c;
}

static void
refuse_unsupported (int code)
{
  switch (code) {
  case IMG_OBJECT:
    img_usage_error ("--object is not supported: there are no QEMU objects "
                     "here; TLS parameters can be given in an NBD URI");
  case IMG_IMAGE_OPTS:
    img_usage_error ("--image-opts is not supported: "
                     "give a file name or an NBD URI");
  }
}

/* Is this one of the words of "a|b"? */
static bool
is_word_of (const char *words, const char *word)
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

/* The command's table says which formats it knows. */
static void
check_format (const struct img_command *command, const char *format)
{
  const struct img_option *o = command->options;

  while (o->code != 'f')
    o++;
  if (!is_word_of (o->value, format)) {
    msg_error ("Unknown file format '%s': qed-img works on qed images",
               format);
    exit (EXIT_FAILURE);
  }
}

static bool
parse_output (const char *format)
{
  if (strcmp (format, "json") == 0)
    return true;
  if (strcmp (format, "human") == 0)
    return false;
  msg_error ("--output must be used with human or json as argument.");
  exit (EXIT_FAILURE);
}

int
img_next_option (const struct img_command *command, int argc, char *argv[],
                 struct img_common *common)
{
  for (;;) {
    const int c = next_option (argc, argv, command->options, ":");

    switch (c) {
    case 'h':
      print_command_help (command);
      exit_after_output ();
      break;
    case 'f':
      check_format (command, optarg);
      common->format = optarg;
      break;
    case 'q':
      common->quiet = true;
      break;
    case 'U':
      common->force_share = true;
      break;
    case 'p':
      common->progress = true;
      break;
    case IMG_OUTPUT:
      common->json = parse_output (optarg);
      break;
    case IMG_OBJECT:
    case IMG_IMAGE_OPTS:
      refuse_unsupported (c);
      break;
    default:
      return c;
    }
  }
}

int64_t
img_parse_size (const char *what, const char *arg)
{
  const int64_t size = parse_size (arg);

  if (size >= 0)
    return size;
  if (errno == ERANGE)
    msg_error ("Invalid %s specified. Must be between 0 and %" PRId64 ".",
               what, INT64_MAX);
  else {
    msg_error ("Invalid %s specified. "
               "You may use k, M, G, T, P or E suffixes for", what);
    msg_error ("kilobytes, megabytes, gigabytes, terabytes, petabytes and "
               "exabytes.");
  }
  exit (EXIT_FAILURE);
}

/* Everything goes through the page cache, and is durable when a command
 * ends.  That keeps what these modes promise.
 */
void
img_check_cache_mode (const char *kind, const char *mode)
{
  if (is_word_of (IMG_CACHE_MODES, mode))
    return;
  if (strcmp (mode, "none") == 0 || strcmp (mode, "directsync") == 0)
    msg_error ("%s option '%s' is not supported: images are read and "
               "written through the page cache", kind, mode);
  else
    msg_error ("Invalid %s option: %s", kind, mode);
  exit (EXIT_FAILURE);
}

const char *
img_one_image (int argc, char *argv[])
{
  if (optind != argc - 1)
    img_usage_error ("Expecting one image file name");
  return argv[optind];
}

/* ---- JSON */

int
img_print_json (json_t *value)
{
  int r = -1;

  if (value == NULL)
    msg_error ("cannot make JSON: out of memory");
  else if (json_dumpf (value, stdout, JSON_INDENT (4) | JSON_ENSURE_ASCII)
           == -1)
    msg_error ("cannot print JSON: %m");
  else {
    putchar ('\n');
    r = 0;
  }
  json_decref (value);
  return r;
}

/* ---- Main */

static const struct img_command *
find_command (const char *name)
{
  for (size_t i = 0; commands[i]; ++i)
    if (strcmp (commands[i]->name, name) == 0)
      return commands[i];
  img_usage_error ("Command not found: %s", name);
}

static void
parse_global_options (int argc, char *argv[])
{
  switch (next_option (argc, argv, global_options, "+:")) {
  case 'h':
    print_help ();
    exit_after_output ();
  case 'V':
    printf ("qed-img version %s (%s)\n", PACKAGE_VERSION, PACKAGE_NAME);
    exit_after_output ();
  case IMG_COMPLETIONS:
    print_completions ();
    exit_after_output ();
  }
}

int
main (int argc, char *argv[])
{
  const struct img_command *command;
  int status;

  parse_global_options (argc, argv);
  if (optind >= argc)
    img_usage_error ("Not enough arguments");
  command = find_command (argv[optind]);

  argc -= optind;
  argv += optind;
  optind = 0;                   /* makes getopt start afresh */
  status = command->run (argc, argv);
  return close_stdout () == -1 ? EXIT_FAILURE : status;
}
