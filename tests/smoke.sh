#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Does what is installed work?  A round with each module and each tool, for
# "make installcheck" and for packages:
#
#     tests/smoke.sh [PLUGINDIR FILTERDIR]
#
# The tools are those of PATH; the modules are those of these folders, or
# those that nbdkit finds by their names.  VERSION, if set, is what the tools
# say that they are.  Needs nbdkit and nbdcopy only: no root, loop device,
# FUSE or guestfish.

set -euo pipefail

qed=qed logreplay=logreplay blklogwrites=blklogwrites replication=replication
if [ $# -eq 2 ]; then
  qed=$1/nbdkit-qed-plugin.so
  logreplay=$1/nbdkit-logreplay-plugin.so
  blklogwrites=$2/nbdkit-blklogwrites-filter.so
  replication=$2/nbdkit-replication-filter.so
fi
nbdkit=${NBDKIT:-nbdkit}

tmp=$(mktemp -d)
server=
finish ()
{
  if [ "$server" ]; then
    kill "$server" 2>/dev/null || true
    wait "$server" || true
  fi
  rm -rf "$tmp"
}
trap finish EXIT
cd "$tmp"

ok ()
{
  echo "ok - $*"
}

# same FILE FILE
same ()
{
  if ! cmp "$1" "$2"; then
    echo "not ok - $1 and $2 differ" >&2
    exit 1
  fi
}

for tool in qed-img logwrites blkctl; do
  said=$("$tool" --version)
  if [[ $said != *"${VERSION:-}"* ]]; then
    echo "not ok - $tool --version says: $said" >&2
    exit 1
  fi
done
ok "each tool tells its version"

head -c 3000000 /dev/urandom >data.img
truncate -s 16M data.img

qed-img create -q -f qed disk.qed 16M
"$nbdkit" -U - "$qed" disk.qed --run 'nbdcopy data.img "$uri"'
qed-img check -q -f qed disk.qed
"$nbdkit" -r -U - "$qed" disk.qed --run 'nbdcopy "$uri" seen.img'
same data.img seen.img
qed-img convert -f qed -O raw disk.qed converted.img
same data.img converted.img
ok "a QED image keeps what is written to it"

truncate -s 16M disk.img
"$nbdkit" -U - --filter="$blklogwrites" file disk.img log=disk.log \
          --run 'nbdcopy data.img "$uri"'
same data.img disk.img
logwrites info disk.log >/dev/null
logwrites verify disk.log disk.img
truncate -s 16M replayed.img
logwrites replay --log disk.log --replay replayed.img >/dev/null
same data.img replayed.img
ok "a log has what was written, and gives it back"

"$nbdkit" -U - "$logreplay" disk.log size=16M --run 'nbdcopy "$uri" then.img'
same data.img then.img
ok "a log is served as the disk that it is of"

truncate -s 16M second.img
"$nbdkit" -f -U second.sock -P second.pid \
          --filter="$replication" file second.img \
          replication-mode=secondary replication-active=active.qed \
          replication-hidden=hidden.qed replication-top-id=guest \
          replication-control=second.ctl &
server=$!
until [ -s second.pid ]; do
  kill -0 "$server"
  sleep 0.05
done
# shellcheck disable=SC2034
"$nbdkit" -U - --filter="$replication" file data.img \
          replication-mode=primary replication-control=first.ctl \
          replication-remote="nbd+unix:///?socket=$tmp/second.sock" --run '
  set -e
  blkctl first.ctl replication-start sync=full
  until blkctl first.ctl replication-checkpoint; do sleep 0.05; done
  blkctl second.ctl replication-start
  blkctl first.ctl second.ctl replication-checkpoint' >/dev/null
blkctl second.ctl replication-stop failover=true >/dev/null
nbdcopy "nbd+unix:///guest?socket=$tmp/second.sock" took-over.img
same data.img took-over.img
ok "a second host takes over with what the first one wrote"
