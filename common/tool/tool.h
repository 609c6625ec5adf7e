/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the tools share.  A tool is a table of sub-commands, and each of
 * these has a table of its options: getopt's tables, the help and what
 * the shell completes are made from them.  A tool may have no
 * sub-commands, and then has one table of options itself.
 */

#ifndef BLOCKDRIVERS_TOOL_H
#define BLOCKDRIVERS_TOOL_H

#include <stdbool.h>

#include <jansson.h>

/* Options without a letter; a tool counts on from the last one. */
enum {
  TOOL_OUTPUT = 256,
  TOOL_COMPLETIONS,
  TOOL_FIRST_CODE
};

struct tool_option {
  int code;                     /* its letter, or a number from above */
  const char *name;             /* long name, or NULL */
  const char *value;            /* what it takes: NULL for nothing, words
                                   as "a|b", or a kind such as "FILE" */
  const char *help;             /* NULL: known, but not shown: not
                                   supported, or not for people */
};

#define TOOL_OPTION_HELP                                                \
  { 'h', "help", NULL, "print this help and exit" }
#define TOOL_OPTION_OUTPUT                                              \
  { TOOL_OUTPUT, "output", "human|json", "how to print the result" }

struct tool_command {
  const char *name;
  const char *arguments;        /* "IMAGE [SIZE]" */
  const char *help;
  const struct tool_option *options; /* ends with code 0 */
  int (*run) (int argc, char *argv[]); /* returns the exit status */
};

struct tool_instead {
  const char *command, *hint;
};

struct tool {
  const char *name;
  const char *arguments;        /* of any command, as "IMAGE ..." */
  const char *help;
  const struct tool_command *const *commands; /* ends with NULL */

  /* A tool without commands has this instead.  It gets what stands after
   * the options.
   */
  int (*run) (int argc, char *argv[]); /* returns the exit status */

  /* Options of its own, which stand before that; set_option is called for
   * each that is given.  NULL if it has none.
   */
  const struct tool_option *options; /* ends with code 0 */
  void (*set_option) (int code, const char *value);

  /* Print more lines of what the shell completes, after these words
   * (of an unfinished command line).  May be NULL.
   */
  void (*print_completions) (int argc, char *argv[]);

  int usage_status;             /* for mistakes, if it is not 1 */

  /* A program in whose place it can be called, by its name, and the
   * version of that one whose command line it has; or NULL.
   */
  const char *alias, *alias_version;

  /* Sub-commands of that program which this one does not have, and what to
   * do instead, ending with a NULL name; or NULL.
   */
  const struct tool_instead *instead;
};

/* All of main. */
extern int tool_main (const struct tool *tool, int argc, char *argv[]);

/* getopt for a command's table: the code of the next option, its value
 * in optarg, or -1 at the end; optind then is the first argument.  Does
 * not return for mistakes and --help.
 */
extern int tool_next_option (const struct tool_command *command,
                             int argc, char *argv[]);

/* Say what is wrong with the command line and exit. */
extern void tool_usage_error (const char *fs, ...)
  __attribute__ ((noreturn, format (printf, 1, 2)));

/* Is this one of the words of "a|b"? */
extern bool tool_is_word_of (const char *words, const char *word);

/* The value of --output: is it JSON?  Does not return for mistakes. */
extern bool tool_parse_output (const char *format);

/* Print what has been put to standard output so far.  If that fails, the
 * message comes at the end, and with the reason that there was now.
 */
extern void tool_flush (void);

/* Print the value to standard output as qemu-img does, and release it.
 * NULL is what jansson returns when out of memory.  Returns -1 after a
 * message.
 */
extern int tool_print_json (json_t *value);

/* The same in the form that jansson's flags say, without a line's end. */
extern int tool_dump_json (json_t *value, size_t flags);

#endif /* BLOCKDRIVERS_TOOL_H */
