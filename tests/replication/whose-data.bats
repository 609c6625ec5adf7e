# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Whose data is right (nbdkit-replication-filter(1), "Whose data is right"):
# after a failover, a restart or a mistake nothing is overwritten that a guest
# was told is safe, and no command says that something was replicated that was
# not.

load ../lib/replication-functions

disks ()
{
  truncate -s 4M primary.img disk.img
}

# A secondary at place.sock, wherever it is started again.
start_at_place ()
{
  start_secondary "$@"
  secondary_pid=$pid
  ln -sfn "$sock" place.sock
}

place='nbd+unix:///?socket=place.sock'

# A running pair; both are consistent with 'a' in the first 64k.
start_pair ()
{
  disks
  start_at_place
  blkctl secondary.ctl replication-start
  start_primary "nbd+unix:///?socket=$tmp/place.sock"
  primary_uri=$uri primary_pid=$pid
  blkctl primary.ctl replication-start
  qemu_io "$primary_uri" "write -P 0x61 0 64k" flush
  blkctl primary.ctl secondary.ctl replication-checkpoint
}

status_becomes ()
{
  local i
  for ((i = 0; i < 600; i++)); do
    if [ "$(status_of "$1" "$2")" = "$3" ]; then
      return
    fi
    sleep 0.05
  done
  blkctl "$1" query-replication
  fail "$2 of $1 does not become $3"
}

# Fail over, and let the guest write 'g'.
promote ()
{
  blkctl secondary.ctl replication-stop failover=true
  status_becomes secondary.ctl stage "done"
  qemu_io "$guest_uri" "write -P 0x67 1M 64k" flush
}

guest_has_its_data ()
{
  qemu_io "$guest_uri" "read -P 0x61 0 64k" "read -P 0x67 1M 64k"
}

@test "a promoted disk stays promoted over a restart, and is not overwritten" {
  start_pair
  qemu_io "$primary_uri" "write -P 0x62 0 64k"
  promote
  guest_has_its_data
  local how
  for how in TERM KILL; do
    kill -s "$how" "$secondary_pid"
    wait "$secondary_pid" || true
    # The primary goes on, and so does its guest.
    qemu_io "$primary_uri" "write -P 0x63 2M 64k"
    start_at_place
    assert_equal "$(status_of secondary.ctl stage)" "done"
    assert_equal "$(status_of secondary.ctl role)" promoted
    status_becomes primary.ctl link refused
    run status_of primary.ctl link-desc
    assert_output --partial "promoted by a failover"
    guest_has_its_data
    run blkctl primary.ctl replication-checkpoint
    assert_failure
    run blkctl primary.ctl replication-start sync=full
    assert_failure
    assert_output --partial "replication-reset"
  done
  # A primary that is started again does not overwrite it either, whatever it
  # is told.
  stop_nbdkit "$primary_pid"
  start_primary "nbd+unix:///?socket=$tmp/place.sock" replication-start=true
  assert_equal "$(status_of primary.ctl link)" refused
  run blkctl primary.ctl replication-start sync=full
  assert_failure
  guest_has_its_data
  run qemu_io "nbd+unix:///?socket=$tmp/place.sock" "write 0 64k"
  assert_failure
  qemu_io "$uri" "read -P 0x63 2M 64k"
}

@test "replication-reset gives a promoted disk up, and only that" {
  start_pair
  run blkctl secondary.ctl replication-reset
  assert_failure
  promote
  run blkctl secondary.ctl replication-start
  assert_failure
  assert_output --partial "replication-reset"
  blkctl secondary.ctl replication-reset
  assert_equal "$(status_of secondary.ctl stage)" none
  assert_equal "$(status_of secondary.ctl role)" secondary
  qemu_io "$primary_uri" "write -P 0x63 2M 64k"
  status_becomes primary.ctl link refused
  # Still nothing is overwritten without a command that says so.
  run blkctl primary.ctl replication-checkpoint
  assert_failure
  assert_output --partial "sync=full"
  blkctl secondary.ctl replication-start
  blkctl primary.ctl replication-start sync=full
  blkctl primary.ctl secondary.ctl replication-checkpoint
  assert_same_disk primary.img disk.img
}

@test "replication-recover=reset does the same at a start" {
  start_pair
  promote
  stop_nbdkit "$primary_pid"
  stop_nbdkit "$secondary_pid"
  start_at_place replication-recover=reset
  assert_equal "$(status_of secondary.ctl stage)" none
  assert_equal "$(status_of secondary.ctl role)" secondary
  qemu_io "$place" "write -P 1 0 64k"
}

@test "a server that tells no history is not taken for the secondary" {
  start_pair
  kill -KILL "$secondary_pid"
  wait "$secondary_pid" || true
  truncate -s 4M other.img
  start_nbdkit file other.img
  ln -sfn "$sock" place.sock
  qemu_io "$primary_uri" "write -P 0x62 0 64k"
  status_becomes primary.ctl link refused
  run status_of primary.ctl link-desc
  assert_output --partial "tells none now"
  qemu_io "$uri" "read -P 0 0 4M"
}

@test "a primary writes to no guest's export, to no primary and not to itself" {
  disks
  start_at_place
  blkctl secondary.ctl replication-start
  start_primary "$guest_uri"
  run blkctl primary.ctl replication-start
  assert_failure
  assert_output --partial "guest"
  run blkctl primary.ctl replication-start sync=full
  assert_failure
  stop_nbdkit
  start_primary "nbd+unix:///?socket=$tmp/self.sock"
  ln -s "$sock" self.sock
  run blkctl primary.ctl replication-start sync=full
  assert_failure
  assert_output --partial "is a replication primary"
}

@test "a primary without a bitmap knows nothing after a restart" {
  start_pair
  # Not all of this is at the secondary.
  kill -STOP "$secondary_pid"
  qemu_io "$primary_uri" "write -P 0x62 0 64k"
  kill -KILL "$primary_pid"
  wait "$primary_pid" || true
  kill -CONT "$secondary_pid"
  start_primary "nbd+unix:///?socket=$tmp/place.sock"
  run blkctl primary.ctl replication-start
  assert_failure
  assert_output --partial "sync=full"
  blkctl primary.ctl replication-start sync=full
  blkctl primary.ctl secondary.ctl replication-checkpoint
  assert_same_disk primary.img disk.img
}

@test "a primary without a bitmap that died before its first write knows nothing" {
  disks
  start_at_place
  start_primary "nbd+unix:///?socket=$tmp/place.sock"
  blkctl primary.ctl replication-start
  # It has met the secondary, which now stands still.
  kill -STOP "$secondary_pid"
  qemu_io "$uri" "write -P 0x62 0 64k" flush
  kill -KILL "$pid"
  wait "$pid" || true
  kill -CONT "$secondary_pid"
  start_primary "nbd+unix:///?socket=$tmp/place.sock"
  run blkctl primary.ctl replication-start
  assert_failure
  assert_output --partial "before a restart without a bitmap"
  # Nor is it another one's that only loses its connection.
  blkctl primary.ctl replication-start sync=full
  blkctl primary.ctl replication-checkpoint
  assert_same_disk primary.img disk.img
}

@test "another primary's copy, and a stranger's write, begin a new history" {
  disks
  local writer
  for writer in primary stranger; do
    rm -f ./*.qed map
    start_at_place
    start_primary "nbd+unix:///?socket=$tmp/place.sock" replication-bitmap=map
    primary_pid=$pid
    blkctl primary.ctl replication-start
    qemu_io "$uri" "write -P 0x61 0 64k"
    blkctl primary.ctl replication-checkpoint
    stop_nbdkit "$primary_pid"
    if [ "$writer" = primary ]; then
      truncate -s 4M second.img
      start_nbdkit --filter=replication file second.img \
                   replication-mode=primary \
                   replication-remote="nbd+unix:///?socket=$tmp/place.sock" \
                   replication-control=second.ctl
      blkctl second.ctl replication-start sync=full
      blkctl second.ctl replication-checkpoint
      stop_nbdkit "$pid"
    else
      qemu_io "$place" "write -P 0x62 1M 64k"
    fi
    # The first one knows the disk no more, bitmap or not.
    start_primary "nbd+unix:///?socket=$tmp/place.sock" replication-bitmap=map
    run blkctl primary.ctl replication-start
    assert_failure
    assert_output --partial "others have changed it"
    blkctl primary.ctl replication-start sync=full
    blkctl primary.ctl replication-checkpoint
    assert_same_disk primary.img disk.img
    stop_nbdkit "$pid"
    stop_nbdkit "$secondary_pid"
  done
}

@test "replication-start=true without a bitmap is no proof that disks are equal" {
  disks
  # It is started, written to, and started again before it meets anybody.
  local remote="nbd+unix:///?socket=$tmp/place.sock" how
  for how in KILL TERM; do
    start_primary "$remote" replication-start=true
    qemu_io "$uri" "write -P 0x62 1M 64k" flush
    kill -s "$how" "$pid"
    wait "$pid" || true
  done
  start_primary "$remote" replication-start=true
  start_at_place replication-start=true
  status_becomes primary.ctl link connected
  blkctl primary.ctl secondary.ctl replication-checkpoint
  assert_same_disk primary.img disk.img
}

@test "nor that of a server that tells nothing, which is not overwritten" {
  disks
  start_nbdkit file disk.img
  ln -sfn "$sock" place.sock
  local remote="nbd+unix:///?socket=$tmp/place.sock"
  start_primary "$remote" replication-start=true
  assert_equal "$(status_of primary.ctl link)" refused
  run status_of primary.ctl link-desc
  assert_output --partial "replication-bitmap"
  qemu_io "$uri" "write -P 0x62 1M 64k" flush
  qemu_io "$place" "read -P 0 0 4M"
  # Whoever says so is believed, and what was written since is copied.
  blkctl primary.ctl replication-start
  blkctl primary.ctl replication-checkpoint
  assert_same_disk primary.img disk.img
  stop_nbdkit "$pid"
  # With a bitmap it is the one that was there when the bitmap was made.
  start_primary "$remote" replication-start=true replication-bitmap=map
  assert_equal "$(status_of primary.ctl link)" connected
}

@test "a primary's disk that was changed under its bitmap is not in step" {
  disks
  start_at_place
  local remote="nbd+unix:///?socket=$tmp/place.sock" how
  start_primary "$remote" replication-bitmap=map
  blkctl primary.ctl replication-start
  qemu_io "$uri" "write -P 0x61 0 64k"
  blkctl primary.ctl replication-checkpoint
  stop_nbdkit "$pid"
  cp primary.img backup.img
  for how in inplace another killed; do
    start_primary "$remote" replication-bitmap=map
    blkctl primary.ctl replication-start
    qemu_io "$uri" "write -P 0x62 0 64k" flush
    blkctl primary.ctl replication-checkpoint
    case $how in
      inplace)
        stop_nbdkit "$pid"
        cat backup.img >primary.img ;;
      another)
        stop_nbdkit "$pid"
        cp -p primary.img other.img
        mv other.img primary.img ;;
      killed)
        kill -KILL "$pid"
        wait "$pid" || true
        cp backup.img other.img
        mv other.img primary.img ;;
    esac
    # Twice: it is not forgotten.
    start_primary "$remote" replication-bitmap=map
    run blkctl primary.ctl replication-start
    assert_failure
    assert_output --partial "changed, or replaced"
    stop_nbdkit "$pid"
    start_primary "$remote" replication-bitmap=map replication-start=true
    assert_equal "$(status_of primary.ctl link)" refused
    qemu_io disk.img "read -P 0x62 0 64k"
    blkctl primary.ctl replication-start sync=full
    blkctl primary.ctl replication-checkpoint
    assert_same_disk primary.img disk.img
    stop_nbdkit "$pid"
  done
  # Nobody has touched it now.
  start_primary "$remote" replication-bitmap=map
  blkctl primary.ctl replication-start
  blkctl primary.ctl replication-checkpoint
}

# accepted: the connections that the first server has accepted.
accepted ()
{
  grep -c "accepted connection" nbdkit1.log
}

more_than ()
{
  [ "$(accepted)" -gt "$1" ]
}

@test "a command is not answered by an attempt that had begun before it" {
  disks
  # Each attempt to connect takes its time.
  start_nbdkit -v --filter=delay --filter=replication file disk.img \
               delay-open=400ms "${secondary[@]}"
  local remote=$uri before
  start_primary "$remote" replication-bitmap=map
  blkctl primary.ctl replication-start
  qemu_io "$uri" "write -P 0x61 0 64k"
  blkctl primary.ctl replication-checkpoint
  stop_nbdkit "$pid"
  cp primary.img other.img
  mv other.img primary.img
  start_primary "$remote" replication-bitmap=map replication-start=true
  assert_equal "$(status_of primary.ctl link)" refused
  # It goes on trying, which is refused again.
  before=$(accepted)
  wait_until 60 more_than "$before"
  blkctl primary.ctl replication-start sync=full
  blkctl primary.ctl replication-checkpoint
  assert_same_disk primary.img disk.img
}

@test "one server replicates a disk at a time" {
  disks
  start_at_place
  run ! timeout -k 5 60 nbdkit -f -U second.sock --filter=replication \
      file disk.img replication-mode=secondary replication-active=a2.qed \
      replication-hidden=h2.qed replication-top-id=guest
  assert_output --partial "another server replicates this disk"
  run ! timeout -k 5 60 nbdkit -f -U third.sock --filter=replication \
      file disk.img replication-mode=primary replication-remote="$place"
  assert_output --partial "another server replicates this disk"
  # It is free when that one ends, however it does.
  kill -KILL "$secondary_pid"
  start_at_place
  blkctl secondary.ctl replication-start
}

@test "an error is over when a checkpoint shows that all is well" {
  start_pair
  assert_equal "$(status_of primary.ctl last-error)" null
  kill -KILL "$secondary_pid"
  wait "$secondary_pid" || true
  qemu_io "$primary_uri" "write -P 0x62 0 64k"
  status_becomes primary.ctl error true
  # What was rolled back is copied again.
  start_at_place replication-recover=rollback replication-start=true
  status_becomes primary.ctl link connected
  assert_equal "$(status_of primary.ctl error)" true
  blkctl primary.ctl secondary.ctl replication-checkpoint
  assert_equal "$(status_of primary.ctl error)" false
  assert_equal "$(status_of primary.ctl desc)" null
  run status_of primary.ctl last-error
  assert_output --partial "remote"
  run blkctl primary.ctl query-xen-replication-status
  assert_output --partial '"error": false'
  # It is told until the next start.
  blkctl primary.ctl replication-checkpoint
  assert [ "$(status_of primary.ctl last-error)" != null ]
  blkctl primary.ctl replication-stop
  blkctl primary.ctl replication-start
  assert_equal "$(status_of primary.ctl last-error)" null
}

@test "a secondary takes one primary at a time" {
  start_pair
  cp primary.img second.img
  start_nbdkit --filter=replication file second.img replication-mode=primary \
               replication-remote="nbd+unix:///?socket=$tmp/place.sock" \
               replication-control=second.ctl
  run blkctl second.ctl replication-start sync=full
  assert_failure
  # One that does not say who it is: it can read, but not write.
  run qemu_io "$place" "write -P 9 0 64k"
  assert_failure
  assert_equal "$(status_of primary.ctl link)" connected
  blkctl primary.ctl secondary.ctl replication-checkpoint
  assert_same_disk primary.img disk.img
}

@test "a checkpoint fails when the secondary's guest has taken the disk" {
  start_pair
  blkctl secondary.ctl replication-stop
  qemu_io "$guest_uri" "write -P 0x67 1M 64k" flush
  run blkctl primary.ctl replication-checkpoint
  assert_failure
  qemu_io "$primary_uri" "write -P 0x62 1M 64k"
  status_becomes primary.ctl link refused
  guest_has_its_data
  # Nor after a restart.
  kill -KILL "$secondary_pid"
  wait "$secondary_pid" || true
  start_at_place
  run blkctl primary.ctl replication-checkpoint
  assert_failure
  assert_output --partial "others have changed it"
}

@test "a checkpoint of a primary that does not replicate is an error" {
  disks
  start_primary "nbd+unix:///?socket=$tmp/nobody.sock"
  run blkctl primary.ctl replication-checkpoint
  assert_failure
  stop_nbdkit
  start_pair
  blkctl primary.ctl replication-stop
  run blkctl primary.ctl secondary.ctl replication-checkpoint
  assert_failure
  assert_output --partial "was stopped"
  # What was written since is copied when it starts again.
  qemu_io "$primary_uri" "write -P 0x62 3M 64k"
  blkctl primary.ctl replication-start
  blkctl primary.ctl secondary.ctl replication-checkpoint
  assert_same_disk primary.img disk.img
}

@test "sync=full after a stop copies everything" {
  start_pair
  blkctl primary.ctl replication-stop
  blkctl secondary.ctl replication-stop
  qemu_io "$guest_uri" "write -P 0x67 1M 64k" flush
  run blkctl primary.ctl replication-start
  assert_failure
  blkctl secondary.ctl replication-start
  blkctl primary.ctl replication-start sync=full
  blkctl primary.ctl secondary.ctl replication-checkpoint
  assert_same_disk primary.img disk.img
}

@test "a disk in the middle of a copy is not promoted without force" {
  truncate -s 16M primary.img disk.img
  start_at_place
  start_primary "nbd+unix:///?socket=$tmp/place.sock"
  primary_uri=$uri
  qemu_io "$primary_uri" "write -P 0x62 0 16M"
  blkctl secondary.ctl replication-start
  assert_equal "$(status_of secondary.ctl consistent)" true
  blkctl primary.ctl replication-start sync=full
  status_becomes primary.ctl dirty-bytes 0
  # The primary has not said that this is all.
  blkctl secondary.ctl replication-checkpoint
  assert_equal "$(status_of secondary.ctl consistent)" false
  run blkctl secondary.ctl replication-stop failover=true
  assert_failure
  assert_output --partial "force=true"
  # Also after a restart.
  kill -KILL "$secondary_pid"
  wait "$secondary_pid" || true
  start_at_place replication-recover=rollback replication-start=true
  assert_equal "$(status_of secondary.ctl consistent)" false
  status_becomes primary.ctl link connected
  blkctl primary.ctl secondary.ctl replication-checkpoint
  assert_equal "$(status_of secondary.ctl consistent)" true
  blkctl secondary.ctl replication-checkpoint
  assert_equal "$(status_of secondary.ctl consistent)" true
  blkctl secondary.ctl replication-stop failover=true
  status_becomes secondary.ctl stage "done"
  assert_same_disk primary.img disk.img
}

@test "force=true fails over to a disk that is not consistent" {
  start_pair
  qemu_io "$primary_uri" "write -P 0x62 0 64k"
  status_becomes primary.ctl dirty-bytes 0
  blkctl secondary.ctl replication-checkpoint
  run blkctl secondary.ctl replication-stop failover=true
  assert_failure
  run blkctl secondary.ctl replication-stop force=true
  assert_failure
  blkctl secondary.ctl replication-stop failover=true force=true
  status_becomes secondary.ctl role promoted
}

@test "when both disks have grown the buffers are made anew, and know all" {
  start_pair
  stop_nbdkit "$primary_pid"
  stop_nbdkit "$secondary_pid"
  truncate -s 8M primary.img disk.img
  start_at_place
  blkctl secondary.ctl replication-start
  start_primary "nbd+unix:///?socket=$tmp/place.sock"
  qemu_io "$uri" "write -P 0x62 6M 64k"
  # Still nobody knows what was written in between.
  run blkctl primary.ctl replication-start
  assert_failure
  assert_output --partial "sync=full"
  blkctl primary.ctl replication-start sync=full
  blkctl primary.ctl secondary.ctl replication-checkpoint
  assert_same_disk primary.img disk.img
  # A disk that was promoted stays so.
  blkctl secondary.ctl replication-stop failover=true
  status_becomes secondary.ctl stage "done"
  stop_nbdkit "$pid"
  stop_nbdkit "$secondary_pid"
  truncate -s 16M disk.img
  start_at_place
  assert_equal "$(status_of secondary.ctl role)" promoted
  qemu_io "$guest_uri" "read -P 0x62 6M 64k" "write 12M 64k"
}

@test "blkctl --every goes on after a failure, and tells it once" {
  start_pair
  blkctl --every=0.02 primary.ctl secondary.ctl replication-checkpoint \
         >every.log 2>&1 3>&- &
  local loop=$!
  remember "$loop"
  wait_until 60 checkpoints_are 5
  assert_equal "$(cat every.log)" ""
  kill -KILL "$secondary_pid"
  wait "$secondary_pid" || true
  wait_until 60 grep -q "silent until" every.log
  start_at_place replication-recover=discard replication-start=true
  wait_until 60 grep -q "are made again" every.log
  assert_equal "$(grep -c "silent until" every.log)" 1
  wait_until 60 checkpoints_are 2
  kill -TERM "$loop"
  wait "$loop"
  qemu_io "$primary_uri" "write -P 0x64 0 64k"
  run blkctl --every=1 secondary.ctl query-replication
  assert_equal "$status" 2
}

checkpoints_are ()
{
  [ "$(status_of secondary.ctl checkpoints)" -ge "$1" ]
}
