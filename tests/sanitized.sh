#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The .bats files against modules and tools that are built with sanitizers:
#
#     sanitized.sh address,undefined|thread [FILE...]
#
# from the folder of the build, in which sanitized-LIST keeps the other build.
# FILEs are .bats files; all if there are none, but those of house/, which are
# about the build, and faults/, whose shim has a malloc of its own.  nbdkit is
# uninstrumented and has the runtime preloaded.  Whatever a sanitizer reports,
# in a server or in a tool, is written to sanitized-LIST/reports and is a
# failure, also where no test looks at what a program says or how it ends.
# Prints a line for each file and what failed, and ends with exit status 1 if
# something did.
#
# "make check-asan", "make check-tsan"; SANITIZED_FILES names the files.

set -u

here=$(cd "$(dirname "$0")" && pwd)
list=$1
shift
build=$PWD/sanitized-${list%%,*}
reports=$build/reports
failed=0 passed=0

if [ $# -eq 0 ]; then
  set -- "$here"/[!hf]*/*.bats
fi
files=()
for file; do
  file=$(realpath "$file")
  files+=("${file##*/tests/}")
done

# A copy of the sources, because those of a build in the source tree cannot be
# built a second time elsewhere.
rm -rf "$build/new" "$reports"
mkdir -p "$build/tree" "$reports"

copy_and_build ()
{
  make -s distdir distdir="$build/new" &&
    chmod -R u+w "$build/new" &&
    mkdir -p "$build/source" &&
    cp -rpu "$build/new/." "$build/source/" &&
    cd "$build/tree" &&
    { [ Makefile -nt ../source/configure ] ||
        ../source/configure --enable-sanitizers="$list" CFLAGS="-g -O1"; } &&
    make -j2 all &&
    make tests/unit/lossy.la tests/unit/keep.la tests/unit/control-server
}

if ! copy_and_build >"$build/log" 2>&1; then
  tail -n 40 "$build/log"
  exit 1
fi

# Leaks do not change the exit status, on which tests look; they are reported.
common=log_path=$reports/report
export ASAN_OPTIONS=$common:exitcode=0:abort_on_error=1
export UBSAN_OPTIONS=$common:print_stacktrace=1
export TSAN_OPTIONS=$common:exitcode=0:history_size=4
export BESIDES_RUNTIME=$PWD/tests/unit/.libs/keep.so

# Leaks cannot be looked for in a process that is traced.
mkdir -p "$build/bin"
cat >"$build/bin/strace" <<END
#!/bin/sh
ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0 exec $(type -P strace) "\$@"
END
chmod +x "$build/bin/strace"
export PATH=$build/bin:$PATH

# The thread sanitizer cannot work with highly randomised addresses.
plain=()
if setarch -R true 2>/dev/null; then
  plain=(setarch -R)
fi

for file in "${files[@]}"; do
  SECONDS=0
  # Through a pipe, because what opens its /dev/stderr anew would write over
  # the beginning of a file.
  "${plain[@]}" ./run bats --formatter tap "$build/source/tests/$file" \
    2>&1 </dev/null | cat >"$build/out"
  planned=$(sed -n 's/^1\.\.//p' "$build/out")
  good=$(grep -c '^ok' "$build/out")
  bad=$((${planned:-1} - good))
  passed=$((passed + good)) failed=$((failed + bad))
  echo "$file: $good passed, $bad failed, $SECONDS seconds," \
       "$(find "$reports" -type f | wc -l) reports in all"
  if [ "$bad" -ne 0 ] || [ "$good" -eq 0 ]; then
    cat "$build/out"
    failed=$((failed + (bad == 0)))
  fi
done

# nbdkit 1.32 forgets what belongs to connections that are open when it ends:
# of reports about leaks alone those count in which something else leaks.  (A
# suppression would take all that nbdkit's frames are above.)
only_nbdkit_leaks ()
{
  grep -q 'ERROR: LeakSanitizer' "$1" &&
    awk '/^Direct leak/ { getline; getline
                          if ($0 !~ /\/nbdkit\+0x/) other = 1 }
         /ERROR:/ && !/LeakSanitizer/ { other = 1 }
         END { exit other }' "$1"
}

# Who is killed while leaks are looked for has no registers any more.
was_killed ()
{
  ! grep -qv 'Unable to get registers from thread' "$1"
}

# What a thread points to that strace holds is not seen.
was_traced ()
{
  grep -q 'was not suspended. False leaks are possible' "$1" &&
    ! grep 'ERROR:' "$1" | grep -qv LeakSanitizer
}

for report in "$reports"/*; do
  if [ -e "$report" ] && ! only_nbdkit_leaks "$report" &&
     ! was_killed "$report" && ! was_traced "$report"; then
    echo "--- ${report##*/}"
    cat "$report"
    failed=$((failed + 1))
  fi
done
echo "$passed tests passed, $failed failures and reports"
[ "$failed" -eq 0 ]
