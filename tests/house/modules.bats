# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# What a module brings into nbdkit's process: its entry and its debug names,
# the code that it needs, and nothing that changes the process.

load ../lib/functions

modules ()
{
  ls "$builddir"/{plugins,filters}/*/.libs/nbdkit-*.so
}

# exports MODULE: the names that others find in it.
exports ()
{
  nm -D --defined-only "$1" | awk '{ print $NF }' | LC_ALL=C sort | xargs
}

@test "a module exports its entry and its debug names only" {
  local module name
  for module in $(modules); do
    name=$(basename "$module" .so)
    case $name in
      *-blklogwrites-*) name="blklogwrites_debug_patience filter_init" ;;
      *-qed-plugin)     name="plugin_init qed_debug_io qed_debug_meta" ;;
      *-plugin)         name=plugin_init ;;
      *-filter)         name=filter_init ;;
    esac
    assert_equal "${module##*/}: $(exports "$module")" \
                 "${module##*/}: $name"
  done
}

# Of common/ there is what is used: the log knows no QED, and no image is
# repaired by what only reads logs.
@test "a module has no code that it cannot reach" {
  local module
  for module in $(modules); do
    case $module in *-qed-plugin.so | *-replication-filter.so) continue ;; esac
    assert_equal "${module##*/}: $(nm "$module" | grep -c ' [tT] qed_')" \
                 "${module##*/}: 0"
  done
  run nm "$builddir/plugins/qed/.libs/nbdkit-qed-plugin.so"
  assert_output --regexp ' [tT] qed_'
  refute_output --regexp ' [tT] (writelog|control|log)_'
}

# An unknown symbol would end the server when it is first used.
@test "a module needs nothing but nbdkit's own names, and has no rpath" {
  local module
  for module in $(modules); do
    assert_equal "$(ldd -r "$module" 2>&1 | grep 'undefined symbol' |
                      grep -v 'undefined symbol: nbdkit_')" ""
    run readelf -d "$module"
    refute_output --regexp 'R(UN)?PATH'
  done
  for module in "$builddir"/tools/*/; do
    run readelf -d "$module$(basename "$module")"
    assert_success
    refute_output --regexp 'R(UN)?PATH'
  done
}

# Of a filter since nbdkit 1.42, which asks it.
@test "a module says its version, and so does each tool" {
  local version module name expected
  version=$(sed -n 's/^VERSION = //p' "$builddir/Makefile")
  for name in "$builddir"/tools/*/; do
    name=$(basename "$name")
    run "$name" --version
    assert_success
    assert_output --partial "$name version $version "
  done
  for name in qed logreplay; do
    run nbdkit --dump-plugin "$name"
    assert_line "version=$version"
  done
  for name in blklogwrites replication; do
    expected=
    if grep -q '^#define HAVE_STRUCT_NBDKIT_FILTER_DUMP_PLUGIN 1' \
            "$builddir/config.h"; then
      expected=${name}_version=$version
    fi
    run nbdkit --filter="$name" --dump-plugin memory
    assert_success
    assert_equal "$(grep "^${name}_version=" <<<"$output")" "$expected"
  done
}

# signals FIELD: which are blocked or ignored in the server, but for the two
# that the C library keeps for itself, from its first thread on.
signals ()
{
  local set
  set=$(awk -v field="$1:" '$1 == field { print $2 }' "/proc/$pid/status")
  printf '%x\n' $((0x$set & ~0x180000000))
}

@test "a module leaves alone how the process treats signals" {
  local ignored blocked
  qemu-img create -q -f qed disk.qed 1M
  start_nbdkit --filter=noparallel memory 1M
  ignored=$(signals SigIgn) blocked=$(signals SigBlk)
  for module in "qed disk.qed" \
                "--filter=blklogwrites memory 1M log=disk.log" \
                "logreplay disk.log" \
                "--filter=replication memory 1M replication-mode=secondary
                 replication-active=a.qed replication-hidden=h.qed
                 replication-top-id=top"; do
    # shellcheck disable=SC2086
    start_nbdkit $module
    assert_equal "$module: $(signals SigIgn)" "$module: $ignored"
    assert_equal "$module: $(signals SigBlk)" "$module: $blocked"
    stop_nbdkit
  done
}
