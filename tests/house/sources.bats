# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# What a reader may expect of the files themselves: licence, purpose, form,
# a page for each module, and a place in the tarball.

load ../lib/functions

# Print the files of the tree that people wrote, which have one of these
# name patterns.
written_files ()
{
  local pattern names=()
  for pattern; do
    names+=(-o -name "$pattern")
  done
  (cd "$srcdir" &&
     find common plugins filters tools man tests build-aux/bin .ci \
          -type f \( "${names[@]:1}" \) | LC_ALL=C sort)
}

shell_scripts ()
{
  echo bootstrap
  echo run
  written_files '*.sh'
  (cd "$srcdir" && grep -lrI '^#!.*\<bash$' build-aux/bin .ci)
}

# every FILES CHECK: fail, and name the files, if CHECK prints something or
# fails for one of them.  FILES is a list of lines, and not empty.
every ()
{
  local file
  assert [ -n "$1" ]
  while read -r file; do
    "$2" "$file" || echo "$file: refused by $2"
  done <<<"$1" >complaints 2>&1
  assert_equal "$(cat complaints)" ""
}

# The third argument of opening is the mark of a comment or docstring.
opens_with_purpose ()
{
  awk -v file="$1" '
    NR <= 5 && /Copyright the nbdkit-blockdrivers authors/ { copyright = 1 }
    NR <= 5 && /SPDX-License-Identifier: BSD-3-Clause/ { licence = NR }
    # The first line with text after the licence and the end of its comment.
    licence && NR > licence && !/^( \*\/|#)?$/ && !purpose {
      purpose = /^(\/\* [^ ]|# [^ ]|"""[^ ])/ ? 1 : -1
    }
    END {
      if (!copyright || !licence)
        print file ": no licence header"
      else if (purpose != 1)
        print file ": does not say what it is for"
    }' "$srcdir/$1"
}

fits_79_columns ()
{
  expand "$srcdir/$1" | awk -v file="$1" '
    length > 79 { print file ":" NR ": longer than 79 columns" }
    / $/ { print file ":" NR ": blanks at the end" }'
}

includes_config_first ()
{
  if [ "$(grep -m 1 '^#include' "$srcdir/$1")" != "#include <config.h>" ]; then
    echo "$1: does not include <config.h> first"
  fi
}

passes_podchecker ()
{
  # Its exit status does not tell of warnings.
  podchecker "$srcdir/$1" 2>&1 | grep -v 'pod syntax OK'
  true
}

page_says_who_it_is ()
{
  local name
  name=$(basename "$1" .pod)
  if ! grep -A 2 '^=head1 NAME' "$srcdir/$1" | grep -q "^$name - "; then
    echo "$1: the section NAME does not begin with \"$name - \""
  fi
}

# Left out: sourced files are looked at by themselves (1091), and "$x" in
# single quotes is meant for another shell (2016).
passes_shellcheck ()
{
  shellcheck -x -P SCRIPTDIR -e SC1091,SC2016 "$srcdir/$1"
}

# In the tests, variables come from other files (2154) and go there (2034),
# and a cd that fails ends the test (2164).
passes_shellcheck_bats ()
{
  shellcheck -s bats -S warning -e SC2154,SC2034,SC2164 "$srcdir/$1"
}

# Names of the modules in plugins/ or filters/: folders with sources that
# nbdkit gets to see.
modules ()
{
  (cd "$srcdir/$1" &&
     find . -mindepth 2 -name '*.c' -exec grep -l '^NBDKIT_REGISTER_' {} + |
       cut -d/ -f2 | sort -u)
}

@test "each file opens with the licence and what it is for" {
  every "$(echo configure.ac; echo Makefile.am
           written_files '*.c' '*.h' '*.py' '*.bats' '*.bash' '*.mk'
           shell_scripts)" opens_with_purpose
}

@test "C files include config.h first" {
  every "$(written_files '*.c')" includes_config_first
}

@test "C files fit 79 columns" {
  every "$(written_files '*.c' '*.h')" fits_79_columns
}

# uses_what_is_everywhere FILE: not what machines of 32 bits lack, and no call
# by its number, whose arguments differ between machines.
uses_what_is_everywhere ()
{
  ! grep -nE '__int128|syscall \(SYS_(p?(read|write)|.*truncate|fallocate|l?stat|fstat|lseek|mmap|open)' \
      "$srcdir/$1"
}

@test "C files build on all processors" {
  every "$(written_files '*.c' '*.h')" uses_what_is_everywhere
}

# make_variable NAME...: the values of these in the makefile.
make_variable ()
{
  local name
  for name; do
    sed -n "s/^$name = //p" "$builddir/Makefile"
  done
}

# In cmocka 2 it is deprecated, which the cmocka here may not know.
@test "assert_within is used, not assert_in_range" {
  run grep -nE 'assert_(not_)?in_range \(' -r "$srcdir/tests" --include='*.[ch]'
  assert_failure 1
  assert_output ''
}

# The compiler of the build is gcc mostly, which warns of other things.
@test "clang finds nothing to warn of in C files" {
  require_tool clang
  local flags
  mapfile -t flags < <(make_variable WARNING_CFLAGS NBDKIT_CFLAGS \
      LIBNBD_CFLAGS JANSSON_CFLAGS CMOCKA_CFLAGS | xargs -n 1)
  flags+=(-std=gnu11 -DHAVE_CONFIG_H -I"$builddir" -I"$srcdir/common"
          -I"$srcdir" -Werror)
  (cd "$srcdir" && written_files '*.c' |
     xargs -P 2 -n 8 clang -fsyntax-only "${flags[@]}")
}

@test "shellcheck finds nothing in the shell scripts" {
  require_tool shellcheck
  every "$(shell_scripts)" passes_shellcheck
}

@test "shellcheck finds nothing in the tests" {
  require_tool shellcheck
  every "$(written_files '*.bats' '*.bash')" passes_shellcheck_bats
}

@test "podchecker finds nothing in the manual pages" {
  require_tool podchecker
  every "$(written_files '*.pod')" passes_podchecker
  every "$(written_files '*.pod')" page_says_who_it_is
}

@test "mandoc and man find nothing in the manual pages" {
  require_tool mandoc
  require_tool man
  local page
  for page in "$builddir"/man/*.1; do
    # What is style only, as long lines, is pod2man's.
    run mandoc -T lint -W warning "$page"
    assert_success
    assert_output ''
    run bash -c 'MANROFFSEQ= man --warnings -l "$1" 2>&1 >/dev/null' . "$page"
    assert_success
    assert_output ''
  done
}

@test "each plugin and each filter has a manual page, and so has each tool" {
  local name
  for name in $(modules plugins); do
    assert_file_exist "$srcdir/man/nbdkit-$name-plugin.pod"
  done
  for name in $(modules filters); do
    assert_file_exist "$srcdir/man/nbdkit-$name-filter.pod"
  done
  for name in $(sed -n 's/^bin_PROGRAMS += //p' "$srcdir"/*/local.mk); do
    assert_file_exist "$srcdir/man/$(basename "$name").pod"
  done
}

# A file that a list in a local.mk lacks is neither built, nor tested, nor
# in the tarball.
@test "the tarball holds every file that people wrote" {
  make -C "$builddir" distdir distdir="$tmp/source"
  local file
  for file in $(written_files '*.c' '*.h' '*.py' '*.bats' '*.bash' '*.mk' \
                              '*.pod') \
              $(shell_scripts) configure.ac Makefile.am README LICENSE; do
    assert_file_exist "$tmp/source/$file"
  done
}

# A new version is a line in configure.ac, and a paragraph in the README.
@test "packages, and what each version brings, are of the tree's version" {
  local version packaging=$tmp/source/build-aux/packaging
  version=$(sed -n 's/^VERSION = //p' "$builddir/Makefile")
  make -C "$builddir" distdir distdir="$tmp/source"
  run head -n 1 "$packaging/debian/changelog"
  assert_output --partial "nbdkit-blockdrivers ($version-"
  run sed -n 's/^Version: *//p' "$packaging/nbdkit-blockdrivers.spec"
  assert_output "$version"
  run sed -n '/^%changelog/,$p' "$packaging/nbdkit-blockdrivers.spec"
  assert_line --regexp "^\\* .* - $version-1\$"
  run sed -n '/^What each version brings/,/^Licence/p' "$srcdir/README"
  assert_line --regexp "^    ${version//./\\.}  [^ ]"
}

# A program that was committed by mistake is of one machine, and make may
# take it for its own.
@test "git ignores the programs that are built" {
  local name git=(git -c safe.directory='*' -C "$srcdir")
  if [ -e "$srcdir/.git" ]; then
    require_tool git
    for name in $(sed -nE 's/^(bin|check)_PROGRAMS \+= //p' \
                      "$srcdir"/*/local.mk | sed 's/\$([a-z_]*)//g'); do
      run "${git[@]}" check-ignore "$name"
      assert_success
    done
  fi
}

# What is a function with one version of cmocka is a macro with the next.
@test "no test defines in C what cmocka 2 defines" {
  local type='(u?int|ptr|float|double|null|non_null)'
  run grep -nE -r --include=*.[ch] \
      "^(stop|has_mock|(mock|will|cast|assign)_.*|(assert|expect)_$type.*) \(" \
      "$srcdir/tests"
  assert_equal "$status" 1
}

@test "the faults that are planted to test the tests fit the sources" {
  local patch git=(git -c safe.directory='*' -C "$srcdir")
  require_tool git
  for patch in "$srcdir"/tests/planted/*.patch; do
    run env GIT_CEILING_DIRECTORIES="${srcdir%/*}" \
        "${git[@]}" apply --check "$(realpath "$patch")"
    assert_success
  done
}
