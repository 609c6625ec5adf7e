# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# A file takes only what stands below it, and no files need each other, so
# that whoever changes one need not know those above.

load ../lib/functions

# plant FILE LINE...: a file of a small tree, and its object.
plant ()
{
  local file=$1
  shift
  mkdir -p "$(dirname "$file")"
  printf '%s\n' "$@" >"$file"
  if [[ $file = *.c ]]; then
    cc -c -w -Icommon -I. "$file" -o "${file%.c}.o"
  fi
}

# A tree without faults, of the rooms that the order knows.
plant_tree ()
{
  plant common/utils/message.h 'void message (void);'
  plant common/utils/message.c '#include "utils/message.h"' \
        'void message (void) {}'
  plant common/node/node.h 'struct node;'
  plant common/node/file.c '#include "node/node.h"' \
        '#include "utils/message.h"' 'void node_read (void) { message (); }'
  plant common/qed/qed.h '#include "node/node.h"' 'void qed_open (void);'
  plant common/qed/image/map.c '#include "qed/qed.h"' \
        'void node_read (void);' 'void qed_map (void) { node_read (); }'
  plant common/qed/io/read.c 'void qed_map (void);' \
        'void qed_read (void) { qed_map (); }'
  plant common/qed/open.c '#include "qed/qed.h"' 'void qed_read (void);' \
        'void qed_open (void) { qed_read (); }'
  plant common/writelog/reader.c 'void log_read (void) {}'
  plant tools/one/one.c '#include "qed/qed.h"' 'static void usage (void) {}' \
        'int main (void) { usage (); qed_open (); }'
  plant tools/two/two.c 'void log_read (void);' \
        'int main (void) { log_read (); }'
}

arrows ()
{
  run "$python" "$tests/arrows.py" "$@"
}

# names LINE...: the small tree is refused, for these reasons only.
names ()
{
  arrows . .
  assert_equal "$status" 1
  assert_equal "$output" "$(printf '%s\n' "$@")"
}

@test "a tree with arrows down only is taken" {
  plant_tree
  arrows . .
  assert_output ""
  assert_success
}

@test "a call of a higher room is found, also without a header" {
  plant_tree
  plant common/node/file.c 'void qed_open (void);' \
        'void node_read (void) { qed_open (); }'
  names "common/node/file.c takes qed_open of common/qed/open.c, which is in\
 a higher room" \
    "a circle: common/node/file.c takes qed_open of common/qed/open.c;\
 common/qed/open.c takes qed_read of common/qed/io/read.c;\
 common/qed/io/read.c takes qed_map of common/qed/image/map.c;\
 common/qed/image/map.c takes node_read of common/node/file.c"
}

@test "a variable of a higher room, and an address of a function, are found" {
  plant_tree
  plant plugins/qed/qed.c 'int qed_debug;' 'void qed_hook (void) {}'
  plant common/qed/io/read.c 'extern int qed_debug;' 'void qed_hook (void);' \
        'void (*hook) (void) = qed_hook;' 'int qed_read () { return qed_debug; }'
  names "common/qed/io/read.c takes qed_debug, qed_hook of\
 plugins/qed/qed.c, which is in a higher room"
}

@test "a header of a higher room is found" {
  plant_tree
  plant common/utils/message.c '#include "node/node.h"' \
        'void message (void) {}'
  names "common/utils/message.c takes \"node/node.h\" of common/node/node.h,\
 which is in a higher room"
}

@test "the order within a room is kept" {
  plant_tree
  plant common/qed/image/map.c 'void qed_scan (void);' \
        'void qed_map (void) { qed_scan (); }'
  plant common/qed/repair/check.c 'void qed_scan (void) {}'
  names "common/qed/image/map.c takes qed_scan of common/qed/repair/check.c,\
 which is higher in the room"
}

@test "formats, modules and tools do not know each other" {
  plant_tree
  plant common/writelog/reader.c '#include "qed/qed.h"' \
        'void log_read (void) { qed_open (); }'
  plant tools/two/two.c 'void one_help (void);' \
        'int main (void) { one_help (); }'
  plant tools/one/help.c 'void one_help (void) {}'
  names "common/writelog/reader.c takes qed_open of common/qed/open.c, which is\
 in a room that must not be known" \
    "common/writelog/reader.c takes \"qed/qed.h\" of common/qed/qed.h, which is\
 in a room that must not be known" \
    "tools/two/two.c takes one_help of tools/one/help.c, which is in a room that\
 must not be known"
}

@test "the two sides of replication do not know each other" {
  plant_tree
  plant filters/replication/primary/mirror.c 'void commit (void);' \
        'void mirror (void) { commit (); }'
  plant filters/replication/secondary/commit.c 'void commit (void) {}'
  names "filters/replication/primary/mirror.c takes commit of\
 filters/replication/secondary/commit.c, which is on a side that must not be\
 known"
}

@test "files of one folder that need each other are found" {
  plant_tree
  plant common/qed/resize.c 'void b (void);' 'void a (void) { b (); }'
  plant common/qed/empty.c 'void c (void);' 'void b (void) { c (); }'
  plant common/qed/rebase.c 'void a (void);' 'void c (void) { a (); }'
  names "a circle: common/qed/empty.c takes c of common/qed/rebase.c;\
 common/qed/rebase.c takes a of common/qed/resize.c; common/qed/resize.c takes\
 b of common/qed/empty.c"
}

@test "nbdkit is known to modules only" {
  plant_tree
  plant common/module/next.c '#include <nbdkit-filter.h>' 'int next;'
  plant common/node/align.c '#include <nbdkit-plugin.h>' \
        'void align (void) { nbdkit_error ("no"); }'
  names "common/node/align.c takes <nbdkit-plugin.h>, and is not part of a\
 module" \
    "common/node/align.c takes nbdkit_error, and is not part of a module"
}

@test "a file that is too long is found" {
  plant_tree
  local line i
  line=$(for i in {1..200}; do echo '/**/'; done)
  plant common/utils/message.h 'void message (void);' "$line"
  plant common/node/align.c "$line" "$line" "$line" "$line"
  names "common/node/align.c has 800 lines, more than 700" \
        "common/utils/message.h has 201 lines, more than 200"
}

@test "a source that was not built is no source without arrows" {
  plant_tree
  rm common/node/file.o
  names "common/node/file.c has no object: build the tree first"
  rm -r common tools
  arrows . .
  assert_failure
}

@test "arrows point down, and no files need each other" {
  arrows "$srcdir" "$builddir"
  assert [ "$status" -le 1 ]
  # That some files are too long is another test, lengths.bats.
  assert_equal "$(grep -v ' lines, more than ' <<<"$output")" ""
}
