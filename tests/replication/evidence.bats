# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Whose data a secondary's disk has is known by proof, and where there is none
# status and the log of a failover say so
# (nbdkit-replication-filter(1), "Whose data is right").

load ../lib/replication-functions

place='nbd+unix:///?socket=place.sock'

start_at_place ()
{
  start_secondary "$@"
  secondary_pid=$pid
  ln -sfn "$sock" place.sock
}

# A secondary and a primary that have met; no checkpoint of both yet.
start_both ()
{
  truncate -s 4M primary.img disk.img
  start_at_place replication-start=true
  start_primary "nbd+unix:///?socket=$tmp/place.sock"
  primary_uri=$uri primary_pid=$pid
  blkctl primary.ctl replication-start
}

failover_ended ()
{
  ! stage_is "$1" failover
}

# knows_of PART: what status says of whose data the secondary's disk has.
knows_of ()
{
  assert_equal "$(status_of secondary.ctl consistent)" true
  run status_of secondary.ctl disk-desc
  assert_output --partial "$1"
}

# fail_over SOCKET
fail_over ()
{
  blkctl "$1" replication-stop failover=true
  wait_until 60 failover_ended "$1"
  assert_equal "$(status_of "$1" role)" promoted
}

# was_warned PART: whoever failed over to that disk.
was_warned ()
{
  run grep -h "failing over to this disk: .*$1" nbdkit*.log
  assert_success
}

@test "of a disk that has met no primary nobody says whose data it has" {
  truncate -s 4M disk.img
  start_at_place replication-start=true
  knows_of "met no primary"
  # Neither a reader nor a restart is a primary, nor who fills the disk.
  qemu_io "$uri" "read 0 64k"
  stop_nbdkit "$secondary_pid"
  start_at_place
  qemu_io "$uri" "write -P 0x61 0 64k"
  blkctl secondary.ctl replication-start
  knows_of "met no primary"
  fail_over secondary.ctl
  was_warned "met no primary"
}

@test "a primary that has connected is no proof before a checkpoint of both" {
  start_both
  knows_of "no primary has said so far"
  blkctl primary.ctl secondary.ctl replication-checkpoint
  assert_equal "$(status_of secondary.ctl consistent)" true
  assert_equal "$(status_of secondary.ctl disk-desc)" null
}

@test "a secondary that is started when its primary is lost fails over" {
  local how id was
  start_both
  qemu_io "$primary_uri" "write -P 0x61 0 64k"
  blkctl primary.ctl secondary.ctl replication-checkpoint
  id=$(status_of secondary.ctl checkpoint-id)
  was=$(status_of secondary.ctl checkpoint-time)
  qemu_io "$primary_uri" "write -P 0x62 0 64k"
  kill -KILL "$primary_pid"
  wait "$primary_pid" || true
  # Killed, and then ended, too.
  for how in KILL TERM; do
    kill -s "$how" "$secondary_pid"
    wait "$secondary_pid" || true
    start_at_place replication-recover=rollback replication-start=true
    assert_equal "$(status_of secondary.ctl consistent)" true
    # It is as old as it is, whenever it was started.
    assert_equal "$(status_of secondary.ctl checkpoint-id)" "$id"
    assert_equal "$(status_of secondary.ctl checkpoint-time)" "$was"
    run status_of secondary.ctl disk-desc
    assert_output --partial "no primary has connected since"
  done
  blkctl secondary.ctl replication-stop failover=true
  wait_until 60 failover_ended secondary.ctl
  qemu_io "$guest_uri" "read -P 0x61 0 64k"
}

@test "what was proved does not outlast a reset, nor its guest's writes" {
  start_both
  blkctl primary.ctl secondary.ctl replication-checkpoint
  blkctl primary.ctl replication-stop
  blkctl secondary.ctl replication-stop
  assert_equal "$(status_of secondary.ctl consistent)" true
  qemu_io "$guest_uri" "write -P 0x67 0 64k"
  blkctl secondary.ctl replication-start
  knows_of "no primary has said so far"
  blkctl primary.ctl replication-start sync=full
  blkctl primary.ctl secondary.ctl replication-checkpoint
  blkctl secondary.ctl replication-stop failover=true
  wait_until 60 failover_ended secondary.ctl
  assert_equal "$(status_of secondary.ctl consistent)" true
  blkctl secondary.ctl replication-reset
  assert_equal "$(status_of secondary.ctl checkpoint-id)" null
  blkctl secondary.ctl replication-start
  knows_of "no primary has said so far"
}

@test "a primary that does not say who it is counts when it writes" {
  truncate -s 4M disk.img
  start_at_place replication-start=true
  qemu_io "$uri" "write -P 0x61 0 64k"
  assert_equal "$(status_of secondary.ctl consistent)" true
  run status_of secondary.ctl disk-desc
  assert_output --partial "does not say who it is"
  blkctl secondary.ctl replication-checkpoint
  blkctl secondary.ctl replication-stop failover=true
}

@test "a disk in the middle of a copy is not failed over to without force" {
  start_both
  blkctl secondary.ctl replication-stop
  qemu_io "$primary_uri" "write -P 0x61 0 64k"
  blkctl secondary.ctl replication-start
  assert_equal "$(status_of secondary.ctl consistent)" false
  run blkctl secondary.ctl replication-stop failover=true
  assert_equal "$status" 1
  assert_output --partial "a copy from the primary had begun"
  assert_output --partial "force=true"
  run blkctl secondary.ctl xen-set-replication enable=false primary=false \
    failover=true
  assert_equal "$status" 1
  assert_equal "$(status_of secondary.ctl stage)" running
  blkctl secondary.ctl replication-stop failover=true force=true
  wait_until 60 failover_ended secondary.ctl
  was_warned "a copy from the primary had begun"
}

# The two sides in exchanged roles, with their maps.
exchange ()
{
  stop_nbdkit "$primary_pid"
  stop_nbdkit "$secondary_pid"
  start_nbdkit --filter=replication file primary.img \
    replication-mode=secondary replication-bitmap=primary.map \
    replication-active=active2.qed replication-hidden=hidden2.qed \
    replication-top-id=guest replication-control=old.ctl
  old_pid=$pid
  start_nbdkit --filter=replication file disk.img \
    replication-mode=primary replication-bitmap=disk.map \
    replication-remote="$uri" replication-control=new.ctl
  new_pid=$pid
}

start_mapped_pair ()
{
  truncate -s 4M primary.img disk.img
  start_at_place replication-start=true replication-bitmap=disk.map
  start_primary "nbd+unix:///?socket=$tmp/place.sock" \
    replication-bitmap=primary.map
  primary_uri=$uri primary_pid=$pid
  blkctl primary.ctl replication-start
  qemu_io "$primary_uri" "write -P 0x61 0 64k"
  blkctl primary.ctl secondary.ctl replication-checkpoint
}

@test "a promoted disk that was a primary's since has no old checkpoint" {
  start_mapped_pair
  fail_over secondary.ctl
  local id
  id=$(status_of secondary.ctl checkpoint-id)
  stop_nbdkit "$secondary_pid"
  start_at_place replication-bitmap=disk.map
  # A failover is told at each start.
  assert_equal "$(status_of secondary.ctl checkpoint-id)" "$id"
  run grep -h "promoted by a failover at checkpoint $id of 20" nbdkit*.log
  assert_success
  exchange
  blkctl new.ctl replication-start
  blkctl old.ctl replication-start
  blkctl new.ctl old.ctl replication-checkpoint
  stop_nbdkit "$new_pid"
  stop_nbdkit "$old_pid"
  start_at_place replication-bitmap=disk.map
  assert_equal "$(status_of secondary.ctl role)" promoted
  assert_equal "$(status_of secondary.ctl checkpoint-id)" null
  run status_of secondary.ctl disk-desc
  assert_output --partial "has been a primary's since"
}

@test "an exchange of roles without a failover says what is missing" {
  start_mapped_pair
  exchange
  run blkctl new.ctl replication-start
  assert_equal "$status" 1
  assert_output --partial "this disk was not failed over from it"
  assert_output --partial "replication-stop failover=true"
  # Do as it says.
  stop_nbdkit "$new_pid"
  start_at_place replication-bitmap=disk.map
  blkctl secondary.ctl replication-start
  fail_over secondary.ctl
  primary_pid=$old_pid
  exchange
  blkctl new.ctl replication-start
  blkctl old.ctl replication-start
  blkctl new.ctl old.ctl replication-checkpoint
  assert_same_disk primary.img disk.img
}

@test "times of a status are written as people would write them" {
  start_both
  # Not 1795981308.6659999.
  run blkctl secondary.ctl query-replication
  assert_line --regexp '"checkpoint-time": [0-9]{10}\.[0-9]{1,3},?$'
}

@test "a checkpoint of several that cannot begin says that none was made" {
  start_both
  kill -KILL "$secondary_pid"
  wait "$secondary_pid" || true
  run blkctl primary.ctl secondary.ctl replication-checkpoint
  assert_failure
  assert_output --partial "no checkpoint was made"
}

# link_is SOCKET STATE
link_is ()
{
  [ "$(status_of "$1" link)" = "$2" ]
}

@test "a secondary that stood still does not say that it heard of late" {
  truncate -s 4M primary.img disk.img
  start_at_place replication-start=true replication-timeout=1
  start_primary "nbd+unix:///?socket=$tmp/place.sock" replication-timeout=1
  primary_pid=$pid
  blkctl primary.ctl replication-start
  kill -STOP "$secondary_pid"
  wait_until 60 link_is primary.ctl lost
  kill -KILL "$primary_pid"
  wait "$primary_pid" || true
  # No state to wait for: it is to stand still for longer than that.
  sleep 1
  kill -CONT "$secondary_pid"
  wait_until 60 link_is secondary.ctl lost
  run status_of secondary.ctl link-desc
  # If it had read the last request before, it has heard of it then.
  assert_output --regexp \
    "while this server stood still|heard of last [1-9][0-9.]* seconds ago"
}
