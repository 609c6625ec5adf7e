#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Fuzz each target for its share of FUZZ_SECONDS (default 600), with limits of
# memory and time; what is found stays in fuzz-out/found.  "make fuzz".

set -eu

tree=$(cd "$(dirname "$0")/../.." && pwd)
out=${OUT:-$PWD/fuzz-out}
targets=()
for target in "$out"/fuzz-*; do
  if [[ -x $target && $target != *.* ]]; then
    targets+=("$target")
  fi
done
share=$(( ${FUZZ_SECONDS:-600} / ${#targets[@]} ))
failed=0

mkdir -p "$out/found"
for target in "${targets[@]}"; do
  name=$(basename "$target")
  mkdir -p "$out/corpus/$name"
  echo "# $name, $share seconds"
  "$target" -max_total_time="$share" -max_len=98304 -timeout=20 \
            -rss_limit_mb=2048 -print_final_stats=1 -verbosity=1 \
            -artifact_prefix="$out/found/$name-" "$out/corpus/$name" \
            "$tree/tests/fuzz/corpus/${name#fuzz-}" >"$out/$name.txt" 2>&1 ||
    failed=1
  grep -E '^stat::number_of_exec|^==|ERROR|failed:|SUMMARY' "$out/$name.txt" ||
    true
  grep -E 'cov: ' "$out/$name.txt" | tail -1
done
exit "$failed"
