# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# qed-img convert does what qemu-img convert does; the cases are explained in
# qed-img-functions.bash.

load ../lib/qed-img-functions

# Besides those of make_chain: a raw image that ends within a sector, one with
# zeroes as data, and targets that are there.
make_sources ()
{
  make_files
  make_chain
  cd files || return
  truncate -s 1000001 odd.raw
  qemu_io odd.raw 'write -P 1 0 100k' 'write -P 2 900k 70k' >/dev/null
  truncate -s 4M zeroes.raw
  qemu_io zeroes.raw 'write -P 3 0 4k' 'write -P 0 4k 1020k' 'write -P 3 1M 4k' \
          'write -P 0 1028k 64k' 'write -P 3 1100k 512' 'write -P 3 3M 1M' \
          >/dev/null
  qemu-img create -q -f qed there.qed 8M
  qemu_io_qed there.qed 'write -P 9 0 8M' >/dev/null
  truncate -s 8M there.raw
  qemu_io there.raw 'write -P 9 0 8M' >/dev/null
  truncate -s 8M empty8.raw
  cd .. || return
}

@test "convert: between raw and QED" {
  make_sources
  cases <<'TABLE'
reads | convert -f raw -O qed low.raw new.qed
reads | convert -f raw -O qed odd.raw new.qed
reads | convert -f raw -O qed zeroes.raw new.qed
reads | convert -f raw -O raw low.raw new.raw
reads | convert -f raw -O raw odd.raw new.raw
reads | convert -f raw -O raw zeroes.raw new.raw
reads | convert -f qed -O raw top.qed new.raw
reads | convert -f qed -O qed top.qed new.qed
reads | convert -f qed -O raw small.qed new.raw
reads | convert -f qed -O qed zero.qed new.qed
reads | convert -f qed -O raw zero.qed new.raw
reads | convert top.qed new.raw
reads | convert low.raw new.raw
reads | convert -O qed low.raw new.qed
reads | convert -O qed -o cluster_size=4k,table_size=2 top.qed new.qed
reads | convert -O qed -o cluster_size=1M top.qed new.qed
0, not 1: QEMU cannot open the image that it makes | convert -O qed -o cluster_size=16k -o table_size=1 low.raw new.qed
reads | convert -O raw -o preallocation=off top.qed new.raw
reads | convert -O raw -o preallocation=falloc top.qed new.raw
reads | convert -O raw -o preallocation=full top.qed new.raw
reads | convert -O raw -o nocow=on,extent_size_hint=64k top.qed new.raw
reads | convert -O raw -o size=1M top.qed new.raw
reads | convert -O qed -o size=16M top.qed new.qed
reads | convert -O qed -o preallocation=full top.qed new.qed
reads | convert -S 0 -O raw top.qed new.raw
reads | convert -S 0 -O qed top.qed new.qed
reads | convert -S 64k -O qed zeroes.raw new.qed
reads | convert -S 512 -O raw zeroes.raw new.raw
reads | convert -W -m 16 -O qed top.qed new.qed
reads | convert -m 1 -O qed top.qed new.qed
reads | convert -W -O raw top.qed new.raw
reads | convert -r 100M -O raw top.qed new.raw
reads | convert -t none -T none -O raw top.qed new.raw
reads | convert -t none -T none -O qed odd.raw new.qed
reads | convert -t directsync -O qed top.qed new.qed
reads | convert -t writethrough -O raw top.qed new.raw
reads | convert -t writeback -T unsafe -O raw top.qed new.raw
reads | convert -U -O raw top.qed new.raw
reads | convert -q -O raw top.qed new.raw
reads | convert -O raw top.qed there.raw
reads | convert -O qed top.qed there.qed
reads | convert -O qed top.qed other.qed
reads | convert -O raw file:top.qed file:new.raw
reads | convert -O raw 'json:{"driver":"qed","file.filename":"top.qed"}' new.raw
reads | convert -O raw 'json:{"driver":"raw","file.filename":"top.qed"}' new.raw
reads | convert --object secret,id=x,data=y -O raw top.qed new.raw
TABLE
}

@test "convert: over the same backing image, and into what is there" {
  make_sources
  cases <<'TABLE'
reads | convert -O qed -B mid.qed -F qed top.qed new.qed
reads | convert -O qed -o backing_file=mid.qed,backing_fmt=qed top.qed new.qed
reads | convert -O qed -B mid.qed -o backing_fmt=qed top.qed new.qed
reads | convert -O qed -B mid.qed -F qed -o cluster_size=4k top.qed new.qed
reads | convert -O qed -B low.raw -F raw mid.qed new.qed
reads | convert -O qed -B low.raw -F raw zeroes.raw new.qed
reads | convert -f raw -O qed -B odd.raw -F raw low.raw new.qed
reads | convert -O qed -B mid.qed -F qed short.qed new.qed
reads | convert -O qed -B mid.qed -F qed -S 0 top.qed new.qed
reads | convert -n -O raw top.qed there.raw
reads | convert -n -O qed top.qed there.qed
reads | convert -n -O raw zeroes.raw there.raw
reads | convert -n -O qed zeroes.raw there.qed
reads | convert -n -W -O raw top.qed there.raw
reads | convert -n -t none -O raw top.qed there.raw
reads | convert -n --target-is-zero -O raw top.qed empty8.raw
reads | convert -n --target-is-zero -W -O raw zeroes.raw empty8.raw
reads | convert -n -S 0 -O raw top.qed there.raw
reads | convert -n -O qed -B mid.qed -F qed top.qed upper.qed
0, not 1: the format is optional | convert -O qed -B mid.qed top.qed new.qed
TABLE
}

@test "convert: mistakes" {
  make_sources
  cases <<'TABLE'
same | convert
same | convert top.qed
same | convert --target-is-zero top.qed new.raw
same | convert -n -o size=1M top.qed there.raw
same | convert -n -O raw top.qed zero.qed
status | convert -n -O raw top.qed gone.raw
status | convert -n -O qed top.qed gone.qed
status | convert -n -O qed top.qed low.raw
same | convert -n -O raw top.qed odd.raw
same | convert -m 0 top.qed new.raw
same | convert -m 17 top.qed new.raw
same | convert -m x top.qed new.raw
same | convert -S 100 top.qed new.raw
same | convert -S 17M top.qed new.raw
same | convert -S x top.qed new.raw
same | convert -r x top.qed new.raw
1, not 1: before anything is made | convert -t bogus top.qed new.raw
same | convert -T bogus top.qed new.raw
status | convert -O bogus top.qed new.raw
status | convert -f bogus top.qed new.raw
status | convert -f qed low.raw new.raw
status | convert gone.qed new.raw
status | convert -O raw -o bogus=1 top.qed new.raw
status | convert -O raw -o cluster_size=4k top.qed new.raw
same | convert -O raw -B mid.qed -F qed top.qed new.raw
same | convert -O raw -F qed top.qed new.raw
status | convert -O raw -o backing_file=mid.qed top.qed new.raw
same | convert -c -O qed top.qed new.qed
same | convert --bitmaps top.qed new.raw
status | convert -l snap top.qed new.raw
status | convert --image-opts top.qed new.raw
status | convert -O raw top.qed nowhere/new.raw
1, not 1: before anything is made | convert -O qed -B gone.qed -F qed top.qed new.qed
1, not 0: one source only | convert top.qed low.raw new.raw
1, not 0: what cannot be read is an error | convert --salvage top.qed new.raw
1, not 0: what is copied is looked at | convert -C top.qed new.raw
1, not 0: only QED images and empty files are overwritten | convert -O qed top.qed there.raw
TABLE
  # On failure, what was there is.
  cd files || return
  cp top.qed before.qed
  cp low.raw before.raw
  run -1 qed-img convert top.qed top.qed
  run -1 qed-img convert -U top.qed file:top.qed
  run -1 qed-img convert -U top.qed low.raw
  run -1 qed-img convert -U -n top.qed low.raw
  run -1 qed-img convert -U -O qed top.qed link.qed
  assert_output --partial "the target of the copy is what it is made of"
  assert_same top.qed before.qed
  assert_same low.raw before.raw
}

@test "convert: what is sparse stays so, and a new image is in order" {
  local tool format
  make_sources
  cd files || return
  for tool in qemu-img qed-img; do
    $tool convert -O raw top.qed $tool.raw
    $tool convert -f raw -O raw zeroes.raw $tool-zeroes.raw
    $tool convert -O qed top.qed $tool.qed
    $tool convert -O qed -f raw zeroes.raw $tool-zeroes.qed
    $tool convert -O qed -B mid.qed -F qed top.qed $tool-over.qed
    $tool convert -S 0 -O qed small.qed $tool-full.qed
    $tool convert -S 0 -O raw small.qed $tool-full.raw
    for format in .raw -zeroes.raw -full.raw .qed -zeroes.qed -full.qed \
                  -over.qed; do
      qemu-img map -f "${format##*.}" --output=json "$tool$format" \
        >"$tool$format.json"
    done
  done
  for format in .raw -zeroes.raw -full.raw .qed -zeroes.qed -full.qed \
                -over.qed; do
    echo "$format"
    diff -u "qemu-img$format.json" "qed-img$format.json"
  done
  assert_equal "$(qed-img check --output=json qed-img.qed |
                  jq '.["fragmented-clusters"]')" \
               "$(qed-img check --output=json qemu-img.qed |
                  jq '.["fragmented-clusters"]')"
}

@test "convert: from and to NBD exports" {
  make_sources
  cd files || return
  start_qemu_nbd source -r -f raw zeroes.raw
  local from=$qemu_uri
  qed-img convert -O qed "$from" new.qed
  qemu-img compare -f raw -F qed zeroes.raw new.qed
  qed-img convert -n -f raw "$from" there.raw
  cmp -n 4194304 zeroes.raw there.raw

  # One that is there, with something in it.
  truncate -s 8M target.raw
  qemu_io target.raw 'write -P 9 0 8M' >/dev/null
  start_qemu_nbd target -f raw target.raw
  qed-img convert -W -n top.qed "$qemu_uri"
  qemu_io "$qemu_uri" 'read -P 9 6M 2M' >/dev/null
  qed-img convert -O qed top.qed copy.qed
  qemu-img convert -f qed -O raw top.qed top.raw
  qed-img convert "$from" "$qemu_uri"
  end_process "$qemu_pid"
  cmp -n 4194304 zeroes.raw target.raw
  cmp -i 4194304 -n 2097152 top.raw target.raw
  run -1 qed-img convert -O qed top.qed "$from"
}

@test "convert: progress, and a copy that fails" {
  make_sources
  cd files || return
  run -0 qed-img convert -p -O raw top.qed new.raw
  assert_output --regexp $'^    \\(0\\.00/100%\\)\r.*    \\(100\\.00/100%\\)\r'
  run -0 qed-img convert -p -q -O raw top.qed new.raw
  assert_output ""

  # No room; a source that cannot be read; both end, and say so.
  run -1 bash -c 'ulimit -f 1024; qed-img convert -O raw there.qed full.raw'
  assert_output --partial "full.raw"
  run -1 bash -c 'ulimit -f 1024; qed-img convert -O qed there.raw full.qed'
  assert_output --partial "full.qed"
  start_nbdkit --filter=error file there.raw error-pread-rate=100% \
               error-file="$tmp/fail"
  touch "$tmp/fail"
  local order
  for order in '' -W; do
    # shellcheck disable=SC2086
    run -1 timeout 60 qed-img convert $order -f raw -O qed "$uri" failed.qed
    rm -f failed.qed
  done
}

@test "compare, dd and others: which program to use instead is said" {
  run -1 qed-img compare a.qed b.qed
  assert_output --partial "qemu-img(1)"
  run -1 qed-img dd if=a.qed of=b.qed
  assert_output --partial "qed-img convert"
  assert_output --partial "nbdcopy(1)"
  local command
  for command in amend snapshot bitmap bench; do
    run -1 qed-img "$command" a.qed
    assert_output --partial "$command is no command of qed-img"
  done
}
