# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The frame of the project keeps what the README promises: `run` finds the
# in-tree modules and otherwise leaves nbdkit alone, builds outside the
# source tree and installation work, and bootstrap counts, fails and says
# what is missing.

load ../lib/functions
load ../lib/answers

# A tree with only what `run` needs, with files for a plugin and a filter
# called qed, and a "real" nbdkit behind it that prints its arguments, unless
# one is missing of the options that it knows.
make_tree ()
{
  mkdir -p tree/build-aux/bin tree/plugins/qed/.libs tree/filters/qed/.libs \
        real
  cp "$srcdir/run" tree
  cp "$srcdir/build-aux/bin/nbdkit" tree/build-aux/bin
  plugin=$tmp/tree/plugins/qed/.libs/nbdkit-qed-plugin.so
  filter=$tmp/tree/filters/qed/.libs/nbdkit-qed-filter.so
  touch "$plugin" "$filter"
  cat >real/nbdkit <<'EOF'
#!/bin/sh
getopt -n nbdkit -o 4D:fP:rt:U:vZ: -l dump-plugin,filter:,run:,new:,version \
       -- "$@" >/dev/null || exit 1
printf "<%s>" "$@"
EOF
  chmod +x real/nbdkit
}

# becomes EXPECTED ARGUMENT...: nbdkit with these arguments is run as
# EXPECTED, in which %P and %F stand for the plugin's and the filter's path.
becomes ()
{
  local expected=${1//%P/$plugin}
  expected=${expected//%F/$filter}
  shift
  run env PATH="$tmp/real:$PATH" tree/run nbdkit "$@"
  assert_success
  assert_output "$expected"
}

# What is compiled for the tests of this file is so once for all of them, and
# hardly run.
compile_once ()
{
  require_tool ccache
  export CC="ccache gcc" CCACHE_DIR=$BATS_FILE_TMPDIR/ccache
  export CCACHE_NOHASHDIR=1 CFLAGS=-O0
  # What configure asks the compiler is the same everywhere, and a small shell
  # is quicker, in libtool, too.
  answers "$builddir" >"$BATS_FILE_TMPDIR/config.site"
  export CONFIG_SITE=$BATS_FILE_TMPDIR/config.site CONFIG_SHELL=/bin/sh
}

# A copy of the sources as in a tarball, in $tmp/source.
copy_sources ()
{
  local copy=$BATS_FILE_TMPDIR/copy
  compile_once
  if ! [ -d "$copy" ]; then
    make -C "$builddir" distdir distdir="$copy.new" >/dev/null
    mv "$copy.new" "$copy"
  fi
  cp -a "$copy" source
}

# The same, but one copy for all tests that call this: what one has built is
# there for the next, which has to undo what it changes.
share_sources ()
{
  local shared=$BATS_FILE_TMPDIR/source
  compile_once
  if ! [ -d "$shared" ]; then
    copy_sources
    mv source "$shared"
  fi
  ln -s "$shared" source
}

# A directory of links to the commands of this machine, but for some.
commands_without ()
{
  local command
  mkdir bin
  ln -s /usr/bin/* /usr/sbin/* bin/ 2>/dev/null || true
  for command; do
    rm -f "bin/$command"
  done
}

@test "run finds an in-tree plugin and an in-tree filter by their names" {
  make_tree
  becomes '<%P>' qed
  becomes '<%P><disk.qed>' qed disk.qed
  becomes '<--filter=%F><%P><qed>' --filter=qed qed qed
  becomes '<--filter><%F><%P>' --filter qed qed
  becomes '<-fvU><-><%P><a b><>' -fvU - qed "a b" ""
  becomes '<-fvU-><%P>' -fvU- qed
  becomes '<-U><qed><%P>' -U qed qed
  becomes '<--run><qed><%P>' --run qed qed
  becomes '<-f><-U><-><-P><qed><%P>' -f -U - -P qed qed
  becomes '<-Z><qed><-fZ><qed><-fZqed><--new><qed><%P>' \
          -Z qed -fZ qed -fZqed --new qed qed
  becomes '<--run=qed><%P>' --run=qed qed
  becomes '<--dump-plugin><%P>' --dump-plugin qed
  becomes '<%P><--filter><%F><-r>' qed --filter qed -r
  becomes '<-4><-D><qed.io=1><-t4><%P>' -4 -D qed.io=1 -t4 qed
  becomes '<--><%P><--filter=qed>' -- qed --filter=qed
}

@test "run passes on other modules, and paths, as they are" {
  make_tree
  becomes '<--filter=cow><memory><1M>' --filter=cow memory 1M
  becomes '<./qed>' ./qed
  becomes '<--filter=./qed><plugins/qed>' --filter=./qed plugins/qed
  becomes '<--version>' --version
  becomes '<>'
}

# nbdkit itself is asked which of its options want an argument.
@test "run knows which of nbdkit's options have an argument" {
  make_tree
  local real option wanted
  real=$(type -ap nbdkit | grep -v build-aux | head -n 1)
  # The question is passed on to it.
  sed -i "s|^getopt .*|[ \$# -gt 1 ] \|\| exec $real \"\$@\"|; /^ *-- /d" \
      real/nbdkit
  for option in $("$real" --long-options) $("$real" --short-options); do
    if "$real" "$option" </dev/null 2>&1 |
        grep -q 'option.* requires an argument'; then
      wanted="<$option><qed><%P>"
    else
      wanted="<$option><%P><qed>"
    fi
    if [ "$option" = --filter ]; then
      wanted="<--filter><%F><%P>"
    fi
    becomes "$wanted" "$option" qed qed
  done
}

@test "run's nbdkit is the same process, and children find it, too" {
  make_tree
  cat >real/nbdkit <<'EOF'
#!/bin/sh
echo "$$ $*"
EOF
  cat >script <<'EOF'
#!/bin/sh
nbdkit qed &
wait $!
echo "$!"
EOF
  chmod +x script
  run env PATH="$tmp/real:$PATH" tree/run ./script
  assert_success
  assert_equal "${lines[0]}" "${lines[1]} $plugin"
}

@test "run works under the run of another tree, and under itself" {
  make_tree
  mkdir other
  cp -r tree/run tree/build-aux other
  run env PATH="$tmp/real:$PATH" other/run tree/run nbdkit qed
  assert_output "<$plugin>"
  run env PATH="$tmp/real:$PATH" tree/run other/run nbdkit qed
  assert_output "<$plugin>"
  run env PATH="$tmp/real:$PATH" tree/run tree/run nbdkit qed
  assert_output "<$plugin>"
}

@test "run finds in-tree tools and manual pages" {
  make_tree
  mkdir -p tree/man/man1 tree/tools/qed-tool
  printf '#!/bin/sh\necho "the tool: $*"\n' >tree/tools/qed-tool/qed-tool
  chmod +x tree/tools/qed-tool/qed-tool
  run tree/run qed-tool 1 2
  assert_output "the tool: 1 2"
  run env MANPATH=/man tree/run sh -c 'echo "$MANPATH"'
  assert_output "$tmp/tree/man:/man"
  run env -u MANPATH tree/run sh -c 'echo "$MANPATH"'
  assert_output "$tmp/tree/man:"
}

@test "nbdkit's own plugins and filters work under run" {
  run "$builddir/run" nbdkit -U - --filter=cow memory 1M \
      --run 'nbdinfo --size "$uri"'
  assert_success
  assert_output 1048576
}

@test "a build outside the source tree works, installs and cleans up" {
  copy_sources
  chmod -R a-w source
  mkdir build
  cd build
  # As a user does it.
  unset CC CONFIG_SITE CONFIG_SHELL
  ../source/configure --prefix=/usr/local --enable-werror \
      --with-plugindir=/usr/lib/somewhere/plugins \
      --with-filterdir=/usr/lib/somewhere/filters
  make -j2
  make install DESTDIR="$tmp/root"

  # It works where it is, and there is nothing but what is used.
  make installcheck DESTDIR="$tmp/root" >installcheck.out
  run grep -c '^ok' installcheck.out
  assert_output 5
  assert_equal "$(find "$tmp/root" -name '*.la')" ""

  # Two tarballs are the same, whenever they are made.
  make dist >/dev/null
  mv nbdkit-blockdrivers-*.tar.gz ../first
  make dist >/dev/null
  cmp ../first nbdkit-blockdrivers-*.tar.gz
  rm nbdkit-blockdrivers-*.tar.gz installcheck.out

  # Each folder of a module gave its module, each page its manual.
  require_tool man
  local path name
  for path in ../source/plugins/*/*.c; do
    name=$(basename "$(dirname "$path")")
    assert_file_exist \
      "$tmp/root/usr/lib/somewhere/plugins/nbdkit-$name-plugin.so"
    assert_equal "$(./run nbdkit --dump-plugin "$name" | grep ^path=)" \
      "path=$tmp/build/plugins/$name/.libs/nbdkit-$name-plugin.so"
  done
  for path in ../source/man/*.pod; do
    name=$(basename "$path" .pod)
    assert_file_exist "$tmp/root/usr/local/share/man/man1/$name.1"
    run ./run man -w "$name"
    assert_output --partial "$tmp/build/man/"
  done
  for path in $(sed -n 's/^bin_PROGRAMS += //p' ../source/*/local.mk); do
    name=$(basename "$path")
    run "$tmp/root/usr/local/bin/$name" --version
    assert_success
    assert_output --partial "$name"
  done

  make uninstall DESTDIR="$tmp/root"
  assert_equal "$(find "$tmp/root" ! -type d)" ""
  make distclean
  assert_equal "$(find . ! -type d)" ""
  chmod -R u+w ../source
}

# installed_in ARGUMENT...: where modules go when configure is told this.
installed_in ()
{
  (cd build &&
     ../source/configure "$@" >configure.out 2>&1 &&
     sed -n 's/^\(plugin\|filter\)dir = //p' Makefile | sort | xargs)
}

@test "modules are installed where nbdkit looks for them" {
  local own prefix
  copy_sources
  mkdir build
  own=$(nbdkit --dump-config | sed -n 's/^\(plugin\|filter\)dir=//p' | sort |
          xargs)
  prefix=$(pkg-config --variable=prefix nbdkit)
  assert_equal "$(installed_in)" "$own"
  assert_equal "$(installed_in --prefix="$prefix")" "$own"
  assert_equal "$(grep -c 'are installed below' build/configure.out)" 0
  # Below another prefix it does not look, which is said.
  assert_equal "$(installed_in --prefix=/opt/here)" \
               "\${libdir}/nbdkit/filters \${libdir}/nbdkit/plugins"
  run cat build/configure.out
  assert_output --partial "installed below /opt/here"
}

# private_nbdkit PREFIX: another nbdkit, of the same version.
private_nbdkit ()
{
  local real
  real=$(sed -n 's/^NBDKIT = //p' "$builddir/Makefile")
  mkdir -p "$1/bin" "$1/lib/pkgconfig"
  printf '#!/bin/sh\necho "%s: $*" >>%s/calls\nexec %s "$@"\n' \
         "$1" "$1" "$real" >"$1/bin/nbdkit"
  chmod +x "$1/bin/nbdkit"
  sed "s|^prefix=.*|prefix=$1|" \
      "$(pkg-config --variable=pcfiledir nbdkit)/nbdkit.pc" \
      >"$1/lib/pkgconfig/nbdkit.pc"
}

@test "PKG_CONFIG_PATH decides which of several nbdkits is built for and run" {
  copy_sources
  private_nbdkit "$tmp/private"
  mkdir build
  PKG_CONFIG_PATH=$tmp/private/lib/pkgconfig installed_in \
    --prefix="$tmp/private" >dirs
  assert_equal "$(grep -o "$tmp/private" dirs | wc -l)" 2
  rm private/calls
  # Not by way of the tree that is tested, which has its own.
  PATH=/usr/bin:/bin run build/run nbdkit --version
  assert_success
  assert_equal "$(cat private/calls)" "$tmp/private: --version"
  # Nor does what is built for another machine run one.
  rm private/calls
  printf '#!/bin/sh\nexec cc "$@"\n' >bin-cc
  chmod +x bin-cc
  CONFIG_SITE='' PKG_CONFIG_PATH=$tmp/private/lib/pkgconfig installed_in \
    --build=x86_64-linux-gnu --host=s390x-linux-gnu CC="$tmp/bin-cc" \
    PKG_CONFIG=pkg-config
  assert_not_exists private/calls
}

@test "configure refuses headers of another version than nbdkit's" {
  copy_sources
  printf '#!/bin/sh\necho version=1.99.1\n' >nbdkit
  chmod +x nbdkit
  mkdir build
  cd build
  run ../source/configure NBDKIT="$tmp/nbdkit"
  assert_failure
  assert_output --partial "$tmp/nbdkit (version 1.99.1) do not agree"
}

# configure_refuses MESSAGE ARGUMENT...: it says so, and fails.
configure_refuses ()
{
  local message=$1
  shift
  run ../source/configure "$@"
  assert_failure
  assert_output --partial "$message"
}

@test "configure says what is missing" {
  copy_sources
  mkdir build
  cd build
  configure_refuses "the function eventfd is missing: this is for Linux only" \
                    ac_cv_func_eventfd=no
  configure_refuses "the header sys/eventfd.h is missing" \
                    ac_cv_header_sys_eventfd_h=no
  configure_refuses "the header linux/fs.h is missing" \
                    ac_cv_header_linux_fs_h=no
  configure_refuses "F_OFD_SETLK is missing" ac_cv_have_decl_F_OFD_SETLK=no
  configure_refuses "Linux (the host is freebsd13.2) is missing" \
                    --build=x86_64-linux-gnu --host=x86_64-unknown-freebsd13.2
  configure_refuses "pod2man (of perl) is needed" ac_cv_path_POD2MAN=no
  configure_refuses "no off_t and time_t of 64 bits" CPPFLAGS=-Dtime_t=int
  export PATH="$tmp/bin:$PATH"
  local module
  for module in jansson libnbd nbdkit; do
    cd ..
    hide "$module"
    cd build
    configure_refuses "Package requirements ($module >= "
  done
}

@test "bootstrap build builds, and does nothing the second time" {
  share_sources
  # With the options of the last build here, so that it needs no compiler.
  run env CI=true source/bootstrap build
  assert_success
  assert_output --partial "CC "
  assert_file_exist source/run
  run source/bootstrap build
  assert_success
  refute_output --partial "CC "
  refute_output --partial "checking"
  # Nor does it forget what configure was told.
  (cd source && ./configure --prefix=/elsewhere)
  run env CI=true source/bootstrap build
  assert_success
  assert_equal "$(sed -n 's/^prefix = //p' source/Makefile)" /elsewhere
  run grep '^WARNING_CFLAGS = .*-Werror' source/Makefile
  assert_success
}

@test "bootstrap check counts each test, and fails if one fails" {
  share_sources
  bats_file good 'test "one" { true; }' 'test "two" { true; }'
  bats_file bad 'test "three" { true; }' \
            'test "four" { echo "why it failed"; false; }'
  bats_file skips 'test "five" { skip; }'
  echo 'echo 1..2; echo ok 1; kill -9 $$' >source/tests/dies.sh
  echo 'echo 1..3; echo ok 1; echo ok 2' >source/tests/stops.sh
  echo 'true' >source/tests/silent.sh
  echo 'echo ok 1; sleep 1000' >source/tests/hangs.sh

  suite "good.bats" 0
  assert_equal "${lines[-1]}" "2 passed, 0 failed"
  suite "good.bats bad.bats" 1
  assert_equal "${lines[-1]}" "3 passed, 1 failed"
  assert_output --partial "why it failed"
  # What failed stands at the end, too.
  run tail -n 7 <<<"$output"
  assert_line --regexp '^tests/bad.log: not ok 2 .*four'
  assert_line --partial "why it failed"
  suite "good.bats skips.bats" 1
  assert_equal "${lines[-1]}" "2 passed, 1 failed"
  suite "dies.sh" 1
  assert_equal "${lines[-1]}" "1 passed, 2 failed"
  suite "stops.sh" 1
  assert_equal "${lines[-1]}" "2 passed, 1 failed"
  suite "silent.sh" 1
  assert_equal "${lines[-1]}" "0 passed, 1 failed"
  TEST_FILE_TIMEOUT=8 suite "hangs.sh" 1
  assert_equal "${lines[-1]}" "1 passed, 2 failed"
  suite "" 1
  assert_equal "${lines[-1]}" "0 passed, 0 failed"
}

# bats_file NAME TEST...: make a file of tests in the copy.  They are written
# without their @, which bats would take for tests of this file.
bats_file ()
{
  local name=$1
  shift
  printf '@%s\n' "$@" >"source/tests/$name.bats"
}

# suite FILES STATUS: ./bootstrap check in the copy, with other tests.  Only the
# programs among these are built.
suite ()
{
  local tests=() programs=() file flags
  for file in $1; do
    tests+=("tests/$file")
    if [[ $file = unit/* ]]; then
      programs+=("tests/$file")
    fi
  done
  file=${tests[*]}
  flags="TESTS=${file// /\\ } check_LTLIBRARIES="
  file=${programs[*]}
  # Not the bats that stands in the folder of its parts: it needs functions
  # from the environment, of which a small shell hands on none.
  run env PATH="${PATH//"$BATS_LIBEXEC:"/}" \
      MAKEFLAGS="$flags check_PROGRAMS=${file// /\\ }" source/.ci/run
  assert_equal "$status" "$2"
}

# change FILE COMMAND: sed runs this on a file of the copy, until change_back.
change ()
{
  changed=$1
  cp "source/$changed" before
  sed -i "$2" "source/$changed"
}

change_back ()
{
  cp before "source/$changed"
}

@test "bootstrap check ends with the count when the build fails, too" {
  share_sources
  change common/utils/message.c '$a this is no C'
  run source/bootstrap check
  change_back
  assert_failure
  assert_output --partial "error: unknown type name"
  assert_equal "${lines[-1]}" "0 passed, 0 failed"
}

@test "bootstrap check ends with the count when the tests do not link, too" {
  share_sources
  change tests/unit/test-claim.c \
         's/^#include <config.h>/&\nextern int nowhere; int *there = \&nowhere;/'
  suite "unit/test-claim" 1
  change_back
  assert_equal "${lines[-1]}" "0 passed, 0 failed"
}

# hide MODULE...: from now on pkg-config does not know these.
hide ()
{
  local real
  real=$(PATH=${PATH#"$tmp/bin:"} type -P pkg-config)
  mkdir -p bin
  cat >bin/pkg-config <<EOF
#!/bin/sh
for module in $*; do
  case " \$* " in *" \$module "*) exit 1;; esac
done
exec $real "\$@"
EOF
  chmod +x bin/pkg-config
}

# The demo and the build need less than the tests: what they have configured
# does not do for these.
@test "bootstrap demo, build and check work in any order" {
  share_sources
  echo 'echo "the demo"' >source/tests/demo.sh
  unset CI                      # which would build all anew each time
  export PATH="$tmp/bin:$PATH"
  local order command
  for order in "demo build" "build"; do
    # A fresh tree, as far as it matters.
    rm -f source/config.status source/config.surroundings \
       source/tests/unit/test-claim{,.o}
    hide cmocka bash-completion
    for command in $order; do
      run source/bootstrap "$command"
      assert_success
    done
    assert_equal "$(sed -n 's/^CMOCKA_LIBS = *//p' source/Makefile)" ""
    # Now the packages of the tests are installed.
    hide
    suite "unit/test-claim" 0
    assert_line --regexp '^[1-9][0-9]* passed, 0 failed$'
    run source/bootstrap build
    assert_success
    refute_output --partial "checking"
  done
  # It is seen, too, when they are removed again, or one is upgraded.
  hide cmocka
  run source/bootstrap build
  assert_success
  assert_output --partial "checking for cmocka"
  sed -i '2i case "$*" in *--modversion*) echo 99;; esac' bin/pkg-config
  run source/bootstrap build
  assert_output --partial "checking for"
}

@test "bootstrap names what is missing where it cannot install" {
  commands_without apt-get guestfish libtoolize
  cp "$srcdir/bootstrap" .
  run env PATH="$tmp/bin" PKG_CONFIG_LIBDIR=/nonexistent ./bootstrap demo
  assert_equal "$status" 1
  assert_output --partial "command guestfish [guestfish]"
  assert_output --partial "command libtoolize [libtool]"
  assert_output --partial "library libnbd (with its headers and .pc file)"
  refute_output --partial "command gcc"
}

@test "bootstrap installs what is missing, and only that" {
  commands_without apt-get sudo id gnuplot strace
  cp "$srcdir/bootstrap" .
  printf '#!/bin/sh\necho 1000\n' >bin/id
  printf '#!/bin/sh\necho as root: "$@"\nexec "$@"\n' >bin/sudo
  cat >bin/apt-get <<EOF
#!/bin/sh
echo "\$DEBIAN_FRONTEND: \$*" >>"$tmp/calls"
case "\$*" in *install*gnuplot*) ln -s /usr/bin/true "$tmp/bin/gnuplot";; esac
EOF
  chmod +x bin/id bin/sudo bin/apt-get
  run env PATH="$tmp/bin" ./bootstrap check
  assert_failure
  assert_output --partial "as root: env DEBIAN_FRONTEND=noninteractive apt-get"
  assert_equal "$(head -n 1 calls)" "noninteractive: -q update"
  run tail -n 1 calls
  assert_output --regexp \
    '^noninteractive: -q install -y --no-install-recommends gnuplot-nox( socat)? strace$'
  # It does not go on without what the installation did not bring.
  run env PATH="$tmp/bin" ./bootstrap check
  assert_output --partial "command strace [strace]"
  refute_output --partial "command gnuplot"
  assert_equal "${lines[-1]}" "0 passed, 0 failed"
}
