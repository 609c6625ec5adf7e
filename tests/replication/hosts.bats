# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Between two hosts, as nbdkit-replication-filter(1) says: TLS with a key and
# with certificates on two addresses, units of systemd, and what a cluster
# manager calls.  Commands and files are those of the manual page.

load ../lib/replication-functions

page=$srcdir/man/nbdkit-replication-filter.pod

# shown HEADING [PATTERN]: the verbatim lines below this =head2; with a pattern
# those from this line on to the next text.
shown ()
{
  awk -v heading="=head2 $1" -v from="${2:-}" '
    /^=head/ { inside = $0 == heading; begun = from == "" }
    inside && from != "" && /^[^ ]/ { begun = 0 }
    inside && /^ / && !/^    ssh/ && $0 ~ from { begun = 1 }
    inside && begun && (/^ / || from != "") && !/^    ssh/ {
      print substr ($0, 2) }' "$page"
}

setup ()
{
  setup_test
  port=$("$python" -c 'import socket
s = socket.create_server(("127.0.0.3", 0))
print(s.getsockname()[1])')
}

teardown ()
{
  local name
  for name in secondary primary; do
    if [ -s "$tmp/$name.pid" ]; then
      remember "$(cat "$tmp/$name.pid")"
    fi
  done
  teardown_test
}

# On this machine, with addresses for names.
here ()
{
  sed "s/secondary\.example\.com/127.0.0.3/g; s/primary\.example\.com/127.0.0.2/g
       s/10809/$port/g; s/dns_name = /ip_address = /"
}

play ()
{
  bash -euo pipefail -c "$1" </dev/null 3>&-
}

# Data go over the wire, and the disks are equal.
works ()
{
  qemu_io "nbd://127.0.0.2:$port" "write -P 7 1M 1M" flush
  blkctl primary.ctl secondary.ctl replication-checkpoint
  assert_same_disk primary.img secondary.img
  # Nobody else gets in.
  run nbdinfo "nbd://127.0.0.3:$port"
  assert_failure
}

@test "two hosts with a shared key" {
  play "$(shown "With a shared key" | here)"
  works
  # With another key neither.
  psktool -u primary -p other.psk
  run nbdinfo "nbds://primary@127.0.0.3:$port/?tls-psk-file=$tmp/other.psk"
  assert_failure
}

@test "two hosts with certificates" {
  local psk
  psk=$(shown "With a shared key" | sed '/^psktool/d; /^chmod/d; /^KEY/d
    s/--tls=require --tls-psk=keys.psk/$TLS/
    s/replication-remote=.* \\/replication-remote="$REMOTE" \\/')
  play "$( (shown "With certificates"; echo "$psk") | here)"
  works
  # Without a certificate nobody gets in.
  mkdir nobody
  cp ca/cert.pem nobody/ca-cert.pem
  run nbdinfo "nbds://127.0.0.3:$port/?tls-certificates=$tmp/nobody"
  assert_failure
}

@test "systemd takes the units" {
  require_tool systemd-analyze
  shown "Units of systemd" >units
  awk '/^\[Unit\]/ { n++ } { print > ("disk-" (n == 1 ? "secondary" :
       "primary") ".service") }' units
  local side
  for side in secondary primary; do
    grep -q "replication-mode=$side" "disk-$side.service"
    # It looks for the program in places of its own.
    sed -i "s|=nbdkit|=/bin/true|" "disk-$side.service"
    run systemd-analyze verify "./disk-$side.service"
    refute_output --partial "disk-$side"
  done
}

@test "a cluster manager promotes, monitors, and cannot give a disk up" {
  shown "What a cluster manager calls" >agent
  chmod +x agent
  run -7 ./agent secondary.ctl monitor
  truncate -s 4M primary.img disk.img
  start_secondary replication-start=true
  start_primary "$uri" replication-start=true
  blkctl primary.ctl secondary.ctl replication-checkpoint
  run -8 ./agent primary.ctl monitor
  run -0 ./agent secondary.ctl monitor
  run -0 ./agent secondary.ctl demote
  run -1 ./agent primary.ctl demote
  run -3 ./agent primary.ctl migrate
  qemu_io "$uri" "write -P 1 0 64k"
  run -0 ./agent primary.ctl promote
  blkctl primary.ctl secondary.ctl replication-checkpoint
  qemu_io "$guest_uri" "write -P 9 1M 64k" flush
  run -0 ./agent secondary.ctl promote
  run -0 ./agent secondary.ctl promote
  run -8 ./agent secondary.ctl monitor
  run -1 ./agent secondary.ctl demote
  qemu_io "$guest_uri" "read -P 1 0 64k" "read -P 9 1M 64k"
}
