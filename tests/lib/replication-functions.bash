# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# What the tests of the replication filter share, besides functions.bash.

load ../lib/functions

# What a secondary needs besides its plugin; further parameters may follow.
secondary=(replication-mode=secondary replication-active=active.qed
           replication-hidden=hidden.qed replication-top-id=guest)

# start_secondary [PARAMETER...]: over disk.img.  Sets $guest_uri besides
# what start_nbdkit sets, of which $uri is the export for the primary.
start_secondary ()
{
  start_nbdkit --filter=replication file disk.img "${secondary[@]}" \
               replication-control=secondary.ctl "$@"
  guest_uri="nbd+unix:///guest?socket=$sock"
}

# start_primary REMOTE [PARAMETER...]: over primary.img.
start_primary ()
{
  local remote=$1
  shift
  start_nbdkit --filter=replication file primary.img \
               replication-mode=primary replication-remote="$remote" \
               replication-control=primary.ctl "$@"
}

# refused EXPRESSION... -- ARGUMENT...: see must_refuse; nbdkit with the
# filter and these arguments.
refused ()
{
  must_refuse start_in_front "$@"
}

start_in_front ()
{
  # nbdkit does not remove it.
  rm -f "$tmp/refused.sock"
  timeout -k 5 30 nbdkit -f -U "$tmp/refused.sock" --filter=replication "$@"
}

# status_of SOCKET KEY: one value of query-replication.
status_of ()
{
  blkctl "$1" query-replication | jq -r ".\"$2\""
}

stage_is ()
{
  [ "$(status_of "$1" stage)" = "$2" ]
}

# qemu_io URI COMMAND...: qemu-io as a client; it fails if a command does,
# "read -P" also if the bytes are others.
qemu_io ()
{
  local disk=$1 command args=()
  shift
  for command in "$@"; do
    args+=(-c "$command")
  done
  qemu-io -f raw "${args[@]}" "$disk"
}

hash_of ()
{
  sha256sum <"$1"
}

# The same bytes, by QEMU's word.
assert_same_disk ()
{
  run qemu-img compare -f raw -F raw "$1" "$2"
  assert_success
}
