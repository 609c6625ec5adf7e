/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* qed-img map.
 *
 * Notes on the design
 *
 * The map tells of mappings, as qemu-img's does: a cluster that an image
 * has is data, whether or not the file that holds it has a hole there.
 * Neighbours that continue each other are joined, so there is one range
 * at hand that may still grow, and it is printed when the next one does
 * not continue it.
 */

#include <config.h>

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/qed-img/qed-img.h"
#include "node/node.h"
#include "utils/rounding.h"

static const struct tool_option options[] = {
  IMG_OPTION_FORMAT,
  TOOL_OPTION_OUTPUT,
  { 's', "start-offset", "OFFSET", "where on the disk to begin" },
  { 'l', "max-length", "LENGTH", "how many bytes of the disk to describe" },
  IMG_OPTION_FORCE_SHARE,
  IMG_OPTIONS_EVERYWHERE
};

struct range {
  uint64_t start, length;       /* bytes, on the disk */
  unsigned depth;
  bool present, zero, data;
  const struct node *where;     /* the image that has it */
  bool mapped;
  uint64_t offset;              /* in where, if mapped */
};

struct map {
  bool json;
  bool printed;                 /* was there a range before? */
  struct range range;           /* the one at hand */
};

/* ---- Ranges */

static int
range_at (struct node *n, uint64_t offset, uint64_t count, struct range *r)
{
  struct extent e;
  bool is_qed;

  if (qed_mapping (n, count, offset, &e) == -1)
    return -1;
  is_qed = strcmp (e.where->ops->type, "qed") == 0;
  *r = (struct range) {
    .start = offset, .length = e.length, .depth = e.depth,
    .present = !(e.flags & EXTENT_UNALLOCATED),
    .mapped = e.flags & EXTENT_MAPPED, .offset = e.offset,
    .where = e.where,
  };
  r->zero = is_qed ? !r->mapped : (e.flags & EXTENT_ZERO) != 0;
  r->data = !r->zero;
  return 0;
}

static bool
continues (const struct range *r, const struct range *next)
{
  return r->depth == next->depth && r->present == next->present &&
    r->zero == next->zero && r->data == next->data &&
    r->where == next->where && r->mapped == next->mapped &&
    (!r->mapped || r->offset + r->length == next->offset);
}

/* ---- Output.  Order and wording are qemu-img's. */

static void
print_human (const struct range *r)
{
  /* With # a zero is "0", and anything else begins with 0x. */
  if (r->data)
    printf ("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64 "%s\n", r->start,
            r->length, r->offset, r->where->name);
}

/* qemu-img's form to the byte, which some read line by line. */
static void
print_json (struct map *map)
{
  const struct range *const r = &map->range;
  static const char *const word[] = { "false", "true" };

  printf ("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
          ", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s",
          map->printed ? ",\n" : "[", r->start, r->length, r->depth,
          word[r->present], word[r->zero], word[r->data]);
  if (r->mapped)
    printf (", \"offset\": %" PRIu64, r->offset);
  printf ("}");
  map->printed = true;
}

static void
print_range (struct map *map)
{
  if (map->json)
    print_json (map);
  else
    print_human (&map->range);
}

/* ---- Mapping */

static void
add_range (struct map *map, const struct range *next)
{
  if (map->range.length > 0 && continues (&map->range, next)) {
    map->range.length += next->length;
    return;
  }
  if (map->range.length > 0)
    print_range (map);
  map->range = *next;
}

static int
print_map (struct map *map, struct node *n, uint64_t start, uint64_t length)
{
  const uint64_t size = node_size (n);
  const uint64_t end = start > size || length > size - start ? size
    : start + length;

  if (!map->json)
    printf ("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
  map->range.start = start;
  for (uint64_t offset = start; offset < end;) {
    struct range next;

    if (range_at (n, offset, end - offset, &next) == -1)
      return -1;
    add_range (map, &next);
    offset += next.length;
  }
  /* JSON has at least one range, if only an empty one. */
  print_range (map);
  if (map->json)
    printf ("]\n");
  return 0;
}

static int
run (int argc, char *argv[])
{
  struct qed_options how = QED_DEFAULT_OPTIONS;
  struct img_common common = { 0 };
  int64_t start = 0, length = INT64_MAX;
  struct map map = { 0 };
  const char *image;
  struct node *n;
  int c, result;

  while ((c = img_next_option (&img_map_command, argc, argv,
                               &common)) != -1) {
    switch (c) {
    case 's':
      start = img_parse_size ("start offset", optarg);
      break;
    case 'l':
      length = img_parse_size ("max length", optarg);
      break;
    }
  }
  how.read_only = true;
  image = img_one_image (argc, argv, &common);
  how.no_lock = common.force_share || common.no_lock;
  n = qed_open (image, &how);
  if (n == NULL)
    return EXIT_FAILURE;

  map.json = common.json;
  result = print_map (&map, n, start, length);
  if (node_close (n) == -1)
    result = -1;
  return result == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

const struct tool_command img_map_command = {
  "map", "IMAGE", "Show which image of the chain has which part of the disk.",
  options, run
};
