/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* qed-img check.
 *
 * Findings go to standard error, one line each, as the library meets
 * them; the summary goes to standard output.  After a repair the image
 * is checked a second time, so that the summary and the exit status
 * say how it is now.
 */

#include <config.h>

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/qed-img/qed-img.h"
#include "utils/jsontext.h"
#include "utils/message.h"

static const struct tool_option options[] = {
  IMG_OPTION_QUIET,
  IMG_OPTION_FORMAT,
  TOOL_OPTION_OUTPUT,
  { 'r', "repair", "leaks|all", "repair what can be repaired" },
  { 'T', NULL, IMG_CACHE_MODES, "cache mode" },
  IMG_OPTION_FORCE_SHARE,
  IMG_OPTION_NO_LOCK,
  IMG_OPTIONS_EVERYWHERE
};

enum {
  EXIT_CLEAN = 0, EXIT_NOT_CHECKED = 1, EXIT_CORRUPT = 2, EXIT_LEAKS = 3
};

/* ---- The command line */

static enum qed_fix
parse_repair (const char *value)
{
  if (strcmp (value, "leaks") == 0)
    return QED_FIX_LEAKS;
  if (strcmp (value, "all") == 0)
    return QED_FIX_ALL;
  tool_usage_error ("Unknown option value for -r (expecting 'leaks' or "
                    "'all'): %s", value);
}

/* ---- Output.  Order and wording are qemu-img's. */

static void
print_finding (void *opaque __attribute__ ((unused)), const char *line)
{
  fprintf (stderr, "%s\n", line);
}

static void
print_repaired (const struct qed_check_result *r)
{
  printf ("The following inconsistencies were found and repaired:\n\n"
          "    %" PRIu64 " leaked clusters\n"
          "    %" PRIu64 " corruptions\n\n"
          "Double checking the fixed image now...\n",
          r->leaks_fixed, r->corruptions_fixed);
  tool_flush ();                /* before the findings that follow */
}

static double
percentage (uint64_t part, uint64_t whole)
{
  return 100.0 * part / whole;
}

static void
print_summary (const struct qed_check_result *r)
{
  if (r->corruptions == 0 && r->leaks == 0 && r->check_errors == 0)
    printf ("No errors were found on the image.\n");
  if (r->corruptions)
    printf ("\n%" PRIu64 " errors were found on the image.\n"
            "Data may be corrupted, or further writes to the image may "
            "corrupt it.\n", r->corruptions);
  if (r->leaks)
    printf ("\n%" PRIu64 " leaked clusters were found on the image.\n"
            "This means waste of disk space, but no harm to data.\n",
            r->leaks);
  if (r->check_errors)
    printf ("\n%" PRIu64 " internal errors have occurred during the check.\n",
            r->check_errors);
  if (r->total_clusters && r->allocated_clusters)
    printf ("%" PRIu64 "/%" PRIu64 " = %.2f%% allocated, %.2f%% fragmented, "
            "0.00%% compressed clusters\n",
            r->allocated_clusters, r->total_clusters,
            percentage (r->allocated_clusters, r->total_clusters),
            percentage (r->fragmented_clusters, r->allocated_clusters));
}

/* Counts of zero are left out, but for the errors. */
static int
add_count (json_t *o, const char *key, uint64_t count)
{
  return count == 0 ? 0 : json_object_set_new (o, key, json_integer (count));
}

/* Returns NULL when out of memory. */
static json_t *
result_to_json (const char *name, const struct qed_check_result *r)
{
  json_t *o = json_object ();

  if (add_count (o, "total-clusters", r->total_clusters) == 0 &&
      add_count (o, "corruptions-fixed", r->corruptions_fixed) == 0 &&
      add_count (o, "corruptions", r->corruptions) == 0 &&
      json_object_set_new (o, "check-errors",
                           json_integer (r->check_errors)) == 0 &&
      add_count (o, "leaks-fixed", r->leaks_fixed) == 0 &&
      add_count (o, "leaks", r->leaks) == 0 &&
      add_count (o, "allocated-clusters", r->allocated_clusters) == 0 &&
      json_object_set_new (o, "filename", json_text (name)) == 0 &&
      json_object_set_new (o, "format", json_string ("qed")) == 0 &&
      add_count (o, "fragmented-clusters", r->fragmented_clusters) == 0)
    return o;
  json_decref (o);
  return NULL;
}

static int
exit_status (const struct qed_check_result *r)
{
  if (r->check_errors)
    return EXIT_NOT_CHECKED;
  if (r->corruptions)
    return EXIT_CORRUPT;
  return r->leaks ? EXIT_LEAKS : EXIT_CLEAN;
}

/* ---- Checking */

static int
check (const char *image, enum qed_fix fix, const struct img_common *common,
       struct qed_check_result *result)
{
  return qed_check (image, fix, common->force_share || common->no_lock,
                    common->cache, print_finding, NULL, result);
}

/* Check again after a repair, keeping the counts of what was repaired. */
static int
check_again (const char *image, const struct img_common *common,
             struct qed_check_result *result)
{
  const struct qed_check_result first = *result;

  if (!common->quiet && !common->json)
    print_repaired (&first);
  if (check (image, QED_FIX_NONE, common, result) == -1)
    return -1;
  result->leaks_fixed = first.leaks_fixed;
  result->corruptions_fixed = first.corruptions_fixed;
  return 0;
}

static int
print (const char *name, const struct img_common *common,
       const struct qed_check_result *result)
{
  if (common->quiet)
    return 0;
  if (common->json)
    return tool_print_json (result_to_json (name, result));
  print_summary (result);
  return 0;
}

static int
run (int argc, char *argv[])
{
  struct qed_check_result result = { 0 };
  struct img_common common = { 0 };
  enum qed_fix fix = QED_FIX_NONE;
  const char *image, *name;
  int c;

  while ((c = img_next_option (&img_check_command, argc, argv,
                               &common)) != -1) {
    switch (c) {
    case 'r':
      fix = parse_repair (optarg);
      break;
    case 'T':
      common.cache = img_parse_cache ("source cache", optarg);
      break;
    }
  }
  image = img_one_image (argc, argv, &common);
  name = argv[optind];
  if (common.force_share && fix != QED_FIX_NONE) {
    msg_error ("%s: -U cannot be used with -r: an image that may be in use "
               "must not be changed", image);
    return EXIT_NOT_CHECKED;
  }

  if (check (image, fix, &common, &result) == -1)
    return EXIT_NOT_CHECKED;
  if (result.leaks_fixed + result.corruptions_fixed > 0 &&
      check_again (image, &common, &result) == -1)
    return EXIT_NOT_CHECKED;
  if (print (name, &common, &result) == -1)
    return EXIT_NOT_CHECKED;
  return exit_status (&result);
}

const struct tool_command img_check_command = {
  "check", "IMAGE", "Find inconsistencies of an image, and repair them.",
  options, run
};
