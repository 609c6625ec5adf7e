#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Chaos of each subject, fuzz targets on damaged corpora, failing calls, odd
# surroundings of servers (tests/surroundings.sh), and servers whose memory
# must not grow (tests/memory.py), side by side with new seeds for
# SOAK_MINUTES (60): a line a minute, and a table at the end.
# "make soak", from the folder of the build.

set -u

here=$(cd "$(dirname "$0")" && pwd)
minutes=${SOAK_MINUTES:-60}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
until=$((SECONDS + minutes * 60))
left () { echo $((until - SECONDS)); }

for subject in qed log primary secondary; do
  CHAOS_SECONDS=$(left) tests/chaos/chaos --subject="$subject" \
    >"$work/chaos-$subject" 2>&1 &
done

# Until the end, or the first failure.
(while [ "$(left)" -gt 0 ]; do
   tests/chaos/pair --states=200 --seed="$RANDOM" >>"$work/pair" 2>&1 || exit 1
 done) &
(while [ "$(left)" -gt 0 ]; do
   for t in control log names notes qed; do
     FUZZ_SEED=$RANDOM$RANDOM ROUNDS=200 "tests/fuzz/fuzz-$t" \
       >>"$work/fuzz" 2>&1 || exit 1
     echo "# rounds: $t" >>"$work/fuzz"
   done
 done) &
(while [ "$(left)" -gt 0 ]; do
   FAULTS_TIMEOUT=120 FAULTS_STEP=7 FAULTS_AT=$((RANDOM % 7)) \
   FAULT_ROW=$((1 + RANDOM % 3)) ./run python3 \
     "$here/faults/faults.py" "$PWD/tests/faults/.libs/shim.so" \
     >>"$work/faults" 2>&1 || exit 1
 done) &

(while [ "$(left)" -gt 0 ]; do
   ./run bash "$here/surroundings.sh" >>"$work/surroundings" 2>&1 || exit 1
 done) &

PYTHONPATH=$here/lib PYTHONDONTWRITEBYTECODE=1 \
  ./run /usr/bin/python3 "$here/memory.py" "$minutes" >"$work/memory" 2>&1 &

summary ()
{
  for subject in qed log primary secondary; do
    printf '%-16s %s\n' "chaos $subject" \
           "$(grep ' runs, ' "$work/chaos-$subject" | tail -n 1)"
  done
  printf '%-16s %s states\n' "chaos pair" \
    "$(grep -o '[0-9]* states' "$work/pair" |
         awk '{ n += $1 } END { print n + 0 }')"
  printf '%-16s %s rounds\n' fuzz "$(grep -c '^# rounds' "$work/fuzz")"
  printf '%-16s %s calls\n' faults \
    "$(awk '/calls failed, in/ { n += $2 } END { print n + 0 }' \
         "$work/faults")"
  printf '%-16s %s servers\n' surroundings \
    "$(grep -c '^ok' "$work/surroundings")"
  # Its lines come at the end.
  grep -E '^(flat|GROWS) ' "$work/memory" | sed 's/^/memory           /'
}

# What tells of a failure, from any part.
failures ()
{
  grep -E ' failed: |^not ok|again:|Sanitizer|Error|GROWS' "$work"/* |
    head -n 50
}

for part in pair fuzz faults surroundings memory; do
  touch "$work/$part"
done
while [ "$(left)" -gt 0 ] && [ -n "$(jobs -rp)" ]; do
  sleep 60
  echo "$((minutes - $(left) / 60)) min: $(summary | tr -s ' \n' ' ')"
  failures
done

failed=0
for job in $(jobs -p); do
  wait "$job" || failed=1
done
summary
if [ "$failed" -ne 0 ]; then
  trap - EXIT
  failures
  echo "what they said is in $work"
fi
exit "$failed"
