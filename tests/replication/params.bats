# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Bad parameters of nbdkit-replication-filter: each is refused, with a
# message that names it, before anything is changed.

load ../lib/replication-functions

# For the cases that end before a disk is looked at.
refused_primary ()
{
  refused "$@" replication-mode=primary
}

disk ()
{
  truncate -s 4M disk.img
}

buffer ()
{
  qemu-img create -q -f qed "$1" "${2:-4M}"
}

@test "replication-mode is missing, unknown, or given twice" {
  refused "replication-mode is missing" "primary" "secondary" -- memory 1M
  refused "replication-mode=tertiary: unknown value" -- \
          memory 1M replication-mode=tertiary
  refused "replication-mode=: unknown value" -- memory 1M replication-mode=
  refused "replication-mode was given twice" -- \
          memory 1M replication-mode=primary replication-mode=primary
}

@test "an unknown parameter is refused, and is not the plugin's" {
  refused "unknown parameter 'replication-colour'" -- \
          memory 1M replication-mode=primary replication-colour=red
  # The plugin's own parameters reach it.
  refused "much" -- memory much replication-mode=primary
}

@test "each parameter may be given once" {
  local setting
  for setting in replication-active=a replication-hidden=h \
                 replication-top-id=g replication-export=e \
                 replication-recover=fail replication-control=c \
                 replication-start=no replication-bitmap=b \
                 replication-remote=nbd://localhost; do
    refused "${setting%%=*} was given twice" -- memory 1M "$setting" "$setting"
  done
}

@test "names of files are not empty" {
  local key
  for key in active hidden bitmap control; do
    refused "replication-$key is empty" -- memory 1M "replication-$key="
  done
}

@test "values that a parameter does not have are refused and named" {
  refused "replication-remote=other.img: not an NBD URI" -- \
          memory 1M replication-remote=other.img
  refused "replication-remote=http://x/: not an NBD URI" -- \
          memory 1M replication-remote=http://x/
  refused "replication-start=perhaps" -- memory 1M replication-start=perhaps
  refused "replication-recover=try: unknown value" "fail" "rollback" \
          "discard" -- memory 1M replication-recover=try
  refused "replication-recover=: unknown" -- memory 1M replication-recover=
}

@test "a primary takes no parameter of a secondary" {
  local setting
  for setting in replication-active=a replication-hidden=h \
                 replication-top-id=guest replication-export=repl \
                 replication-recover=rollback; do
    refused_primary "${setting%%=*} is a parameter of a secondary" \
                    "replication-mode=primary" -- memory 1M "$setting"
  done
}

@test "a secondary takes no parameter of a primary" {
  refused "replication-remote is a parameter of a primary" \
          "replication-mode=secondary" -- \
          memory 1M "${secondary[@]}" replication-remote=nbd://localhost
  refused "replication-sync-rate is a parameter of a primary" -- \
          memory 1M "${secondary[@]}" replication-sync-rate=1M
  assert_not_exists active.qed
}

@test "a secondary needs both buffers and top-id" {
  local i others
  for i in 1 2 3; do
    others=("${secondary[@]}")
    unset "others[i]"
    refused "${secondary[i]%%=*} is missing" "replication-mode=secondary" -- \
            memory 1M "${others[@]}"
  done
  assert_not_exists active.qed
  assert_not_exists hidden.qed
}

@test "the exports of a secondary have different names" {
  local most=("${secondary[@]:0:3}")
  refused "replication-top-id and replication-export are both \"guest\"" -- \
          memory 1M "${secondary[@]}" replication-export=guest
  refused "replication-top-id and replication-export are both \"\"" -- \
          memory 1M "${most[@]}" replication-top-id=
  refused "replication-top-id: an export name has at most 4096 bytes" -- \
          memory 1M "${most[@]}" \
          replication-top-id="$(printf '%04097d' 0)"
}

@test "a bitmap without a remote is refused" {
  refused_primary "replication-bitmap needs replication-remote" -- \
                  memory 1M replication-bitmap=map
  assert_not_exists map
}

@test "the same file cannot be both buffers, under whatever name" {
  local hidden
  disk
  buffer active.qed
  ln -s active.qed link.qed
  ln active.qed hard.qed
  mkdir sub
  for hidden in active.qed sub/../active.qed "$tmp/active.qed" link.qed \
                hard.qed; do
    refused "active.*hidden|hidden.*active" "same file" -- \
            file disk.img replication-mode=secondary replication-top-id=g \
            replication-active=active.qed replication-hidden="$hidden"
  done
  # One that is missing is made once, so it cannot be both either.
  refused "same file" -- \
          file disk.img replication-mode=secondary replication-top-id=g \
          replication-active=new.qed replication-hidden=sub/../new.qed
}

@test "a buffer of another size is refused, and not touched" {
  local before which
  disk
  for which in active hidden; do
    rm -f ./*.qed
    buffer $which.qed 8M
    before=$(hash_of $which.qed)
    refused "$which.qed" "8388608" "4194304" -- file disk.img "${secondary[@]}"
    assert_equal "$(hash_of $which.qed)" "$before"
  done
}

@test "a buffer that is not a QED image is refused, and not touched" {
  local before which
  disk
  for which in active hidden; do
    rm -f ./*.qed
    head -c 200000 /dev/urandom >$which.qed
    before=$(hash_of $which.qed)
    refused "$which.qed" -- file disk.img "${secondary[@]}"
    assert_equal "$(hash_of $which.qed)" "$before"
    rm -f ./*.qed
    qemu-img create -q -f qcow2 $which.qed 4M
    before=$(hash_of $which.qed)
    refused "$which.qed" -- file disk.img "${secondary[@]}"
    assert_equal "$(hash_of $which.qed)" "$before"
  done
  # The disk itself is none either.
  rm -f ./*.qed
  before=$(hash_of disk.img)
  refused "disk.img" -- file disk.img replication-mode=secondary \
          replication-top-id=g replication-active=disk.img \
          replication-hidden=hidden.qed
  assert_equal "$(hash_of disk.img)" "$before"
}

@test "a buffer that cannot be opened or made is refused" {
  disk
  mkdir active.qed
  refused "active.qed" -- file disk.img "${secondary[@]}"
  rmdir active.qed
  refused "missing/active.qed.*No such file" -- \
          file disk.img replication-mode=secondary replication-top-id=g \
          replication-active=missing/active.qed replication-hidden=hidden.qed
}

@test "a buffer that is in use is refused" {
  disk
  start_secondary
  truncate -s 4M disk2.img
  refused "active.qed" "Failed to get" -- file disk2.img "${secondary[@]}"
  refused "hidden.qed" "Failed to get" -- file disk2.img replication-mode=secondary \
          replication-top-id=g replication-active=other.qed \
          replication-hidden=hidden.qed
  qemu_io "$uri" "write -P 1 0 64k" "read -P 1 0 64k"
}

@test "a control socket that is alive is refused, and goes on answering" {
  disk
  start_secondary
  truncate -s 4M disk2.img
  refused "secondary.ctl" -- file disk2.img replication-mode=secondary \
          replication-top-id=g replication-active=a2.qed \
          replication-hidden=h2.qed replication-control=secondary.ctl
  run status_of secondary.ctl stage
  assert_success
  assert_output none
}

@test "a stale control socket is replaced, another kind of file is not" {
  disk
  start_secondary
  kill -KILL "$pid"
  wait_until 60 process_ended "$pid"
  assert_exists secondary.ctl
  start_secondary
  run status_of secondary.ctl stage
  assert_output none
  stop_nbdkit
  assert_not_exists secondary.ctl

  echo precious >file
  refused "file" -- memory 1M replication-mode=primary replication-control=file
  assert_equal "$(cat file)" precious
  refused "missing/ctl" -- \
          memory 1M replication-mode=primary replication-control=missing/ctl
  refused "replication-control|$(printf '%0200d' 0)" -- memory 1M \
          replication-mode=primary replication-control="$(printf '%0200d' 0)"
}

@test "the control socket is for its owner only" {
  disk
  start_secondary
  assert_equal "$(stat -c %a secondary.ctl)" 600
}

@test "nothing of a refused server is left behind" {
  disk
  buffer hidden.qed 8M
  refused "hidden.qed" -- file disk.img "${secondary[@]}" \
          replication-control=secondary.ctl
  assert_not_exists secondary.ctl

  local primary=(replication-mode=primary replication-remote=nbd://localhost
                 replication-bitmap=map)
  refused "disk.img: this file is not a socket" -- file disk.img \
          "${primary[@]}" replication-control=disk.img
  assert_not_exists map
  refused "read-only" -- eval get_size='echo 4M' pread='exit 1' \
          "${primary[@]}"
  assert_not_exists map
}

@test "a secondary cannot work over a plugin that serves one connection" {
  disk
  refused "one connection at a time" -- --filter=noparallel file disk.img \
          serialize=connections "${secondary[@]}"
}

@test "export names: both of a secondary are listed, others are refused" {
  disk
  start_secondary
  run nbdinfo --list --json "$uri"
  assert_success
  assert_equal "$(jq -r '.exports[]."export-name"' <<<"$output" | sort)" \
               "$(printf '%s\n' '' guest)"
  assert_output --partial "for the primary's writes"
  assert_output --partial "disk of its guest"
  run nbdinfo "nbd+unix:///gast?socket=$sock"
  assert_failure
  run cat "$log"
  assert_output --partial 'there is no export "gast"'
  assert_output --partial '"guest"'
}

@test "export names: when both are named, none is the default" {
  disk
  start_secondary replication-export=repl
  nbdinfo --size "nbd+unix:///repl?socket=$sock"
  nbdinfo --size "nbd+unix:///guest?socket=$sock"
  run nbdinfo --size "$uri"
  assert_failure
  run cat "$log"
  assert_output --partial 'there is no export ""'
}

@test "export names: a primary has the default one only" {
  start_nbdkit --filter=replication memory 1M replication-mode=primary
  nbdinfo --size "$uri"
  run nbdinfo --size "nbd+unix:///guest?socket=$sock"
  assert_failure
  run cat "$log"
  assert_output --partial 'there is no export "guest"'
}

@test "a bitmap that is none, or of another disk, or in use is refused" {
  local remote="nbd+unix:///?socket=$tmp/nobody.sock" before
  local primary=(replication-mode=primary replication-remote="$remote")
  truncate -s 4M primary.img
  truncate -s 8M other.img
  head -c 10000 /dev/urandom >map
  before=$(hash_of map)
  refused "map" -- file primary.img "${primary[@]}" replication-bitmap=map
  assert_equal "$(hash_of map)" "$before"
  rm map
  start_primary "$remote" replication-bitmap=map
  refused "map" "Failed to get" -- file primary.img "${primary[@]}" \
          replication-bitmap=map
  stop_nbdkit
  # It says how to get on, since disks grow.
  refused "map" "8388608|4194304" "remove .*sync=full" -- \
          file other.img "${primary[@]}" replication-bitmap=map
  start_primary "$remote" replication-bitmap=map
}

# The remote is looked at when replication starts.

remote_refused ()
{
  local remote=$1 expression
  shift
  truncate -s 4M primary.img
  start_primary "$remote"
  run blkctl primary.ctl replication-start
  assert_failure 1
  for expression; do
    assert_output --regexp "$expression"
  done
  assert_equal "$(status_of primary.ctl stage)" none
  # The guest has its disk all the same.
  qemu_io "$uri" "write -P 3 0 64k" "read -P 3 0 64k"
}

@test "a remote of another size is refused" {
  start_nbdkit memory 8M
  remote_refused "$uri" "8388608" "4194304"
}

@test "a remote that is read-only is refused" {
  start_nbdkit -r memory 4M
  remote_refused "$uri" "read-only"
}

@test "a remote without the export is refused" {
  disk
  start_secondary replication-export=repl
  remote_refused "nbd+unix:///other?socket=$sock" "other"
}

@test "a remote that is absent is refused, but does not stop the primary" {
  remote_refused "nbd+unix:///?socket=$tmp/nobody.sock" "nobody.sock"
}

@test "a remote that speaks something else is refused" {
  disk
  start_secondary
  remote_refused "nbd+unix:///?socket=$tmp/secondary.ctl" "secondary.ctl"
}

# absent_at_launch COMMAND [PARAMETER...]: the remote is not there when the
# primary is launched with replication-start=true.  Its guest has its disk,
# and the disks become equal when the remote has come.
absent_at_launch ()
{
  local primary_pid primary_uri
  rm -f ./*.img ./*.qed
  truncate -s 4M primary.img
  start_primary "nbd+unix:///?socket=$tmp/remote.sock" replication-start=true \
                "$@"
  primary_uri=$uri primary_pid=$pid
  # nbdkit is ready before its filters are; commands wait for this one.
  assert_equal "$(status_of primary.ctl stage)" running
  assert_equal "$(status_of primary.ctl link)" connecting
  run cat "$log"
  assert_output --regexp "replication-start: .*remote.sock.*goes on trying"
  run blkctl primary.ctl replication-checkpoint
  assert_failure
  qemu_io "$uri" "write -P 4 1M 64k" "read -P 4 1M 64k"

  disk
  start_secondary
  ln -sf "$sock" remote.sock
  blkctl primary.ctl replication-checkpoint
  assert_equal "$(status_of primary.ctl link)" connected
  assert_same_disk primary.img disk.img
  qemu_io "$primary_uri" "write -P 5 2M 64k"
  blkctl primary.ctl replication-checkpoint
  assert_same_disk primary.img disk.img
  stop_nbdkit "$primary_pid"
  stop_nbdkit
}

@test "replication-start=true with an absent remote does not stop a primary" {
  absent_at_launch
  absent_at_launch replication-bitmap=map
}

@test "replication-start=true starts at once" {
  disk
  start_secondary replication-start=true
  assert_equal "$(status_of secondary.ctl stage)" running
  truncate -s 4M primary.img
  start_primary "$uri" replication-start=true
  assert_equal "$(status_of primary.ctl stage)" running
}

@test "the remote may be on a TCP port" {
  local port
  port=$("$python" -c 'import socket
s = socket.create_server(("localhost", 0))
print(s.getsockname()[1])')
  disk
  nbdkit -f -i localhost -p "$port" -P tcp.pid --filter=replication \
         file disk.img "${secondary[@]}" replication-start=true \
         replication-control=secondary.ctl >nbdkit-tcp.log 2>&1 3>&- &
  remember $!
  wait_until 60 test -s tcp.pid
  truncate -s 4M primary.img
  start_primary "nbd://localhost:$port" replication-start=true
  qemu_io "$uri" "write -P 6 1M 1M"
  blkctl primary.ctl secondary.ctl replication-checkpoint
  qemu_io "nbd://localhost:$port/guest" "read -P 6 1M 1M"
  assert_same_disk primary.img disk.img
  # Its clients go first.
  stop_nbdkit
}

# In the background the current directory is another one.
@test "the remote may be at a relative path of a socket" {
  disk
  start_secondary replication-start=true
  ln -s "$sock" remote.sock
  truncate -s 4M primary.img
  start_daemon --filter=replication file primary.img \
               replication-mode=primary replication-start=true \
               replication-remote="nbd+unix:///?socket=remote.sock" \
               replication-control=primary.ctl
  qemu_io "$uri" "write -P 6 1M 1M"
  blkctl primary.ctl secondary.ctl replication-checkpoint
  qemu_io "$guest_uri" "read -P 6 1M 1M"
  # Its clients go first.
  stop_nbdkit || true
}

@test "with -r nobody can write, and both exports can be read" {
  disk
  start_nbdkit -r --filter=replication file disk.img "${secondary[@]}" \
               replication-start=true
  local name
  for name in "" guest; do
    run nbdinfo --json "nbd+unix:///$name?socket=$sock"
    assert_equal "$(jq '.exports[0].is_read_only' <<<"$output")" true
    nbdcopy "nbd+unix:///$name?socket=$sock" copy
    assert_same_disk copy disk.img
  done
}

# What a secondary leaves that is killed while it runs: its disk has the
# primary's bytes 0x42, its hidden buffer the old ones, 0x41.
leave_buffers ()
{
  qemu_io disk.img "write -P 0x41 0 4M"
  start_secondary replication-start=true
  qemu_io "$uri" "write -P 0x42 0 68k"
  qemu_io "$guest_uri" "write -P 0x43 1M 4k"
  kill -KILL "$pid"
  wait_until 60 process_ended "$pid"
  rm -f secondary.ctl
  sha256sum active.qed hidden.qed disk.img >before
}

# One that gets there all the same is ended, and leaves its files.
start_in_background ()
{
  local result=0
  timeout -k 5 30 nbdkit -U "$tmp/front.sock" -P "$tmp/front.pid" \
          --filter=replication file disk.img "${secondary[@]}" "$@" ||
    result=$?
  if [ -s "$tmp/front.pid" ]; then
    kill "$(cat "$tmp/front.pid")" || true
  fi
  return $result
}

# refused_in_front EXPRESSION... -- PARAMETER...: a secondary that goes into
# the background must not get there: the error is told on the command line,
# and no file has changed.
refused_in_front ()
{
  must_refuse start_in_background "$@"
  assert_not_exists "$tmp/front.pid"
  assert_not_exists "$tmp/front.sock"
  sha256sum --quiet -c before
}

# The eight bytes 0xff over the first entry of the L1 table.
damage ()
{
  printf '\377%.0s' {1..8} |
    dd of="$1" bs=1 seek=4096 conv=notrunc status=none
}

@test "buffers that were left are told of before nbdkit is in the background" {
  disk
  leave_buffers
  refused_in_front "active.qed" "hidden.qed" "replication-recover=rollback" --
  mv hidden.qed away.qed
  sha256sum active.qed disk.img >before
  refused_in_front "active.qed" "hidden.qed" "holds no checkpoint" -- \
                   replication-recover=rollback
  assert_not_exists hidden.qed
  mv away.qed hidden.qed
  start_secondary replication-recover=rollback
  qemu_io "$uri" "read -P 0x41 0 4M"
}

@test "a hidden buffer that was in use is not taken for the active one" {
  local how
  disk
  leave_buffers
  mv active.qed was-active.qed
  mv hidden.qed active.qed
  mv was-active.qed hidden.qed
  sha256sum active.qed hidden.qed disk.img >before
  for how in fail rollback discard; do
    refused_in_front "active.qed: this file was in use as a hidden buffer" -- \
                     replication-recover="$how"
  done
  mv hidden.qed was-active.qed
  mv active.qed hidden.qed
  mv was-active.qed active.qed
  start_secondary replication-recover=rollback
  qemu_io "$uri" "read -P 0x41 0 4M"
}

@test "a damaged buffer is refused, with its place, and can be discarded" {
  local how name
  for name in active hidden; do
    rm -f ./*.qed
    disk
    leave_buffers
    damage "$name.qed"
    sha256sum active.qed hidden.qed disk.img >before
    for how in fail rollback; do
      refused_in_front "$name.qed: the buffer is damaged" \
                       "$name.qed: .*18446744073709551615" \
                       "replication-recover=discard" -- \
                       replication-recover="$how"
    done
    start_secondary replication-recover=discard
    qemu_io "$uri" "read -P 0x42 0 68k" "read -P 0x41 68k 4028k"
    stop_nbdkit
    qemu-img check -q -f qed active.qed
    qemu-img check -q -f qed hidden.qed
  done
}
