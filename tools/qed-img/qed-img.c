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
 * its options, from which tool.c makes the rest.  What a sub-command
 * does to an image is done by common/qed.
 */

#include <config.h>

#include <stddef.h>

#include "tools/qed-img/qed-img.h"

static const struct tool_command *const commands[] = {
  &img_create_command,
  &img_convert_command,
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

static const struct tool_instead instead[] = {
  { "compare", "qemu-img(1) compares images, or cmp(1) what \"qed-img "
    "convert\" makes of them" },
  { "dd", "\"qed-img convert\" copies whole images, nbdcopy(1) and nbdsh(1) "
    "what a server exports, of any part" },
  { "amend", "there is nothing in a QED image that it could change" },
  { "snapshot", "QED images have no snapshots; make an overlay with "
    "\"qed-img create -b\"" },
  { "bitmap", "QED images have no bitmaps" },
  { "bench", "fio(1) with its engine \"nbd\" measures a server" },
  { NULL, NULL }
};

static const struct tool qed_img = {
  .name = "qed-img",
  .arguments = "IMAGE ...",
  .help = "Work on QED disk images.  "
    "IMAGE is a file, a block device or an NBD URI.",
  .commands = commands,
  .alias = "qemu-img", .alias_version = "7.2.0",
  .instead = instead,
};

int
main (int argc, char *argv[])
{
  return tool_main (&qed_img, argc, argv);
}
