# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# What programs that call qemu-img look at besides the result: files' modes,
# words of the help and of messages, and options of the storage.

load ../lib/qed-img-functions

# ---- What they look for

@test "a new file is nobody else's to write to, whatever the umask" {
  local mask command
  truncate -s 1M raw.img
  for mask in 000 002 022 027 077; do
    (
      umask "$mask"
      qemu-img create -q -f qed qemu.qed 1M
      qed-img create -q ours.qed 1M
    )
    assert_equal "$(stat -c %a ours.qed)" "$(stat -c %a qemu.qed)"
    rm ours.qed qemu.qed
  done

  # Whoever makes a file does it in one way.
  umask 000
  nbdkit -U - --filter=blklogwrites memory 1M log=new.log --run true
  assert_equal "$(stat -c %a new.log)" 644
}

@test "help: one line of syntax a command, with all its options" {
  local help
  help=$(qed-img --help)
  # The probes of libguestfs, and others of their kind.
  grep -qE -- '\binfo\b.*-U\b' <<<"$help"
  grep -qE -- '\bcommit\b.*-d\b' <<<"$help"
  grep -qE -- '\brebase\b.*-t\b' <<<"$help"
  grep -qE -- '\bmeasure\b.*--output' <<<"$help"
  # Each option of a command's own help stands in its line.
  local command letter
  while read -r command; do
    while read -r letter; do
      grep -qE -- "^  $command .*\[${letter}[] =]" <<<"$help" ||
        fail "$command: no $letter"
    done < <(qed-img "$command" --help | grep -oE '^  --?[a-z-]+' |
               grep -v -e '-h$' | tr -d ' ')
  done < <(sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p' <<<"$help")
}

@test "called as qemu-img, messages and help say so" {
  mkdir bin
  ln -s "$(type -P qed-img)" bin/qemu-img
  run -1 bin/qemu-img info gone.qed
  assert_output "qemu-img: Could not open 'gone.qed': No such file or directory"
  run -1 bin/qemu-img bogus
  assert_line "qemu-img: Command not found: bogus"
  assert_line "Try 'qemu-img --help' for more information"
  run -0 bin/qemu-img --help
  assert_line --index 0 --partial "usage: qemu-img "
  run -0 bin/qemu-img create --help
  assert_line --index 0 --partial "usage: qemu-img create "

  # The version is that of the qemu-img whose commands these are.
  run -0 bin/qemu-img --version
  assert_output --regexp '^qemu-img version 7\.2\.0 \(qed-img '
  run -0 qed-img --version
  assert_output --regexp '^qed-img version '
}

@test "what cannot be opened is told as qemu-img begins it" {
  local name
  mkdir folder
  truncate -s 1M raw.img
  for name in gone.qed folder raw.img folder/gone raw.img/x /dev/tty \
              "nbd+unix:///?socket=$tmp/gone.sock"; do
    run -1 qed-img info "$name"
    assert_output --regexp "^qed-img: Could not open '[^']*': [^:]"
    assert_output --partial "'$name'"
    [ "${#lines[@]}" -eq 1 ]
    run -1 qemu-img info -f qed "$name"
    assert_output --partial "Could not open '$name': "
  done
}

# both_say_in_use IMAGE COMMAND...: what both say when the image, or one that it stands on,
# is in use in some way.
both_say_in_use ()
{
  local tool image=$1 pattern='Failed to get .*|Is another process.*'
  shift
  for tool in qemu-img qed-img; do
    run -1 "$tool" "$@"
    grep -oE "$pattern" <<<"$output" >$tool.txt
  done
  diff -u qemu-img.txt qed-img.txt
  grep -qF "Is another process using the image [$image]?" qed-img.txt
}

@test "an image in use is told in the words of QEMU" {
  qemu-img create -q -f qed base.qed 1M
  qemu-img create -q -f qed -b base.qed -F qed over.qed
  start_qemu_nbd writer -f qed base.qed
  both_say_in_use base.qed info -f qed base.qed
  both_say_in_use base.qed check -f qed base.qed
  both_say_in_use base.qed check -f qed -r all base.qed
  both_say_in_use base.qed map -f qed base.qed
  both_say_in_use base.qed map -f qed over.qed
  both_say_in_use base.qed resize -f qed base.qed 2M
  both_say_in_use base.qed create -q -f qed base.qed 2M
  # QEMU opens the base read-only first.
  run -1 qed-img commit over.qed
  assert_line --partial 'Failed to get "write" lock'
  end_process "$qemu_pid"

  # A reader grants no writing.
  start_qemu_nbd reader -r -f qed base.qed
  both_say_in_use base.qed check -f qed -r all base.qed
  both_say_in_use base.qed resize -f qed base.qed 2M
  both_say_in_use base.qed create -q -f qed base.qed 2M
}

@test "create: \"Formatting\" is not said before a refusal" {
  head -c 1M /dev/urandom >other.img
  run -1 qed-img create other.img 1M
  assert_output "qed-img: other.img: create: this holds something that is no \
QED image; remove it first if it is not needed"
  start_qemu_nbd server -f raw other.img
  run -1 qed-img create "$qemu_uri" 1M
  refute_output --partial Formatting
  refute_output --partial "remove it"
  assert_output --partial "zero its first 1048576 bytes"

  # And that is enough.
  nbdsh -u "$qemu_uri" -c 'h.zero(1048576, 0)'
  run -0 qed-img create "$qemu_uri" 512k
}

# ---- New files

# fails_cleanly CALL [OPTION...]: with each call of that kind failing in turn,
# creating succeeds or leaves nothing.  Twice in a row nothing fails any more.
fails_cleanly ()
{
  local call=$1 n whole=0
  shift
  for (( n = 1; n < 200 && whole < 2; n++ )); do
    if strace -o /dev/null -e "inject=$call:error=ENOLCK:when=$n" "$@" \
              qed-img create -q new.qed 1M 2>err; then
      assert_clean new.qed
      rm new.qed
      whole=$((whole + 1))
    else
      whole=0
      assert_not_exists new.qed
      assert_not_exists target.qed
    fi
  done
  assert_equal "$whole" 2
}

@test "create: whatever fails, no new file is left" {
  local call nameless
  nameless=$(strace -e trace=openat qed-img create -q new.qed 1M 2>&1 |
               grep openat | grep -n O_TMPFILE | cut -d: -f1)
  rm new.qed
  for call in newfstatat fcntl linkat ftruncate pwrite64 fdatasync; do
    fails_cleanly "$call"
    # Where a file must have a name from the beginning.
    fails_cleanly "$call" -e "inject=openat:error=EOPNOTSUPP:when=$nameless"
  done

  # What a link means goes, not the link.
  ln -s target.qed new.qed
  run -1 strace -o /dev/null -e inject=fcntl:error=ENOLCK:when=4+ \
      qed-img create -q new.qed 1M
  assert_not_exists target.qed
  assert_link_exists new.qed
}

@test "create: of several at once one wins, and its image stays" {
  local i pids pid won
  for i in {1..10}; do
    pids=() won=0
    for size in 1M 2M 3M; do
      qed-img create -q new.qed "$size" 2>/dev/null 3>&- &
      pids+=($!)
    done
    for pid in "${pids[@]}"; do
      if wait "$pid"; then won=$((won + 1)); fi
    done
    assert [ "$won" -ge 1 ]
    assert_clean new.qed
    rm new.qed
  done
}

# Locks are the only use of fcntl there, but for the first three.
without_locks ()
{
  strace -f -o /dev/null -e inject=fcntl:error=ENOLCK:when=4+ "$@"
}

@test "--no-lock: every command works where the file system has no locks" {
  run -1 without_locks qed-img create -q new.qed 1M
  assert_output --partial "Failed to lock"
  without_locks qed-img create -q --no-lock base.qed 1M
  without_locks qed-img create -q --no-lock -b base.qed over.qed
  qemu_io_qed over.qed 'write -P 1 0 64k'
  without_locks qed-img check --no-lock over.qed
  without_locks qed-img check -r all --no-lock over.qed
  without_locks qed-img commit --no-lock over.qed
  without_locks qed-img resize --no-lock over.qed 2M
  without_locks qed-img rebase --no-lock -b '' over.qed
  without_locks qed-img rebase --no-lock -u -b base.qed over.qed
  without_locks qed-img empty --no-lock over.qed
  qemu_io_qed over.qed 'read -P 1 0 64k'
  for command in 'info' 'map' 'check' 'measure'; do
    run -1 without_locks qed-img "$command" base.qed
    without_locks qed-img "$command" -U base.qed
  done
}

# ---- Cache modes

@test "-t, -T: the modes of qemu-img, with the same result" {
  make_files
  make_chain
  truncate -s 1000001 files/odd.raw
  qemu-img create -q -f qed -b odd.raw -F raw files/over-odd.qed
  qemu_io_qed files/over-odd.qed 'write -P 1 64k 64k' 'write -P 2 900k 72k' \
              >/dev/null
  cases <<'TABLE'
same | check -T none base.qed
same | check -T directsync base.qed
same | check -T writeback base.qed
same | check -T off base.qed
same | check -T bogus base.qed
same | check -T '' base.qed
same | check -T none -T unsafe base.qed
same | check -r all -T none base.qed
same | check -T none --output=json small.qed
status | check -T none gone.qed
reads | rebase -t none -b other.raw -F raw top.qed
reads | rebase -T none -b other.raw -F raw top.qed
reads | rebase -t none -T none -b low.raw -F raw top.qed
reads | rebase -t directsync -T directsync -b '' top.qed
reads | rebase -t writethrough -T unsafe -b '' top.qed
reads | rebase -t unsafe -T writeback -b '' top.qed
same | rebase -t none -u -b gone.raw -F raw top.qed
same | rebase -t bogus -u -b gone.raw -F raw top.qed
same | rebase -T bogus -u -b gone.raw -F raw top.qed
0, not 1: QEMU wants a base whose size is a multiple of blocks | commit -d -t none over-odd.qed
0, not 1: QEMU wants a base whose size is a multiple of blocks | commit -d -t directsync over-odd.qed
reads | commit -d -t unsafe over-odd.qed
reads | commit -d -t writethrough top.qed
reads | commit -d -t none top.qed
reads | commit -d -t directsync -b low.raw top.qed
same | commit -t bogus top.qed
TABLE
}

# opened_with FLAG NAME: that file was.
opened_with ()
{
  grep -E "openat.*$2\", .*" trace | grep -q "$1"
}

@test "-t, -T: what the modes mean" {
  local mode flushes
  make_files
  make_chain
  cd files || return
  for mode in none directsync; do
    strace -f -o trace -e trace=openat qed-img check -T "$mode" top.qed
    opened_with O_DIRECT top.qed
    strace -f -o trace -e trace=openat \
           qed-img rebase -T "$mode" -b other.raw -F raw top.qed
    opened_with O_DIRECT other.raw
    opened_with O_DIRECT mid.qed
    run ! opened_with O_DIRECT top.qed
    strace -f -o trace -e trace=openat \
           qed-img rebase -t "$mode" -b mid.qed -F qed top.qed
    opened_with O_DIRECT top.qed
    run ! opened_with O_DIRECT mid.qed
    strace -f -o trace -e trace=openat qed-img commit -d -t "$mode" mid.qed
    opened_with O_DIRECT mid.qed
    opened_with O_DIRECT low.raw
  done
  for mode in unsafe writeback writethrough none directsync; do
    strace -f -o trace -e trace=fdatasync qed-img commit -d -t "$mode" mid.qed
    flushes=$(grep -c 'fdatasync(' trace || true)
    case $mode in
      unsafe) assert_equal "$flushes" 0 ;;
      # Of each of the two files: who wrote mid.qed may not have flushed it.
      writeback | none) assert [ "$flushes" -eq 1 -o "$flushes" -eq 2 ] ;;
      *) assert [ "$flushes" -gt 2 ] ;;
    esac
  done

  # A base that ends within a block keeps its length.
  truncate -s 1000001 odd.raw
  qemu-img create -q -f qed -b odd.raw -F raw odd.qed 1000448
  qemu_io_qed odd.qed 'write -P 1 64k 64k' 'write -P 2 900k 72k' >/dev/null
  cp odd.raw expected.raw
  truncate -s 1000448 expected.raw
  qemu-io -f raw -c 'write -P 1 64k 64k' -c 'write -P 2 900k 72k' expected.raw
  qed-img commit -d -t none odd.qed
  qemu-img compare -f raw -F raw odd.raw expected.raw

  # No file system of a test is sure to lack it.
  local call
  call=$(strace -e trace=openat qed-img check -T none top.qed 2>&1 |
           grep openat | grep -n top.qed | cut -d: -f1)
  run -1 strace -o /dev/null -e "inject=openat:error=EINVAL:when=$call" \
      qed-img check -T none top.qed
  assert_output "qed-img: Could not open 'top.qed': filesystem does not \
support O_DIRECT"
}

# ---- Names

@test "file: is the protocol prefix everywhere" {
  make_files
  make_chain
  cp files/base.qed files/d/base.qed
  cases <<'TABLE'
same | create file:new.qed 1M
same | create file:d/new.qed 1M
same | create -b file:low.raw -F raw new.qed
same | create -b ../low.raw -F raw file:d/new.qed
same | create -b file:low.raw -F raw d/new.qed
same | create -b base.qed -F qed file:new.qed
same | create -u -b file:gone.raw -F raw new.qed 1M
1, not 0: it would be its own backing image | create -b file:base.qed -F qed base.qed
1, not 0: it would be its own backing image | create -b base.qed -F qed file:base.qed
status | create file:d 1M
status | create foo:new.qed 1M
status | create -b foo:bar -F raw new.qed
status | create -b foo:bar -F raw new.qed 1M
same | create -u -b foo:bar -F raw new.qed 1M
same | info file:base.qed
same | info --output=json file:base.qed
same | info --backing-chain file:top.qed
same | info --backing-chain --output=json file:top.qed
same | info "file:$PWD/base.qed"
same | info "file://$PWD/base.qed"
same | info file:d/base.qed
status | info file:gone.qed
status | info file:file:base.qed
status | info file:
status | info file:.
status | info foo:base.qed
same | check file:base.qed
same | check --output=json file:base.qed
same | check -r all file:base.qed
status | check file:gone.qed
same | map file:top.qed
same | map --output=json file:top.qed
same | resize file:base.qed 5G
same | resize file:base.qed +1G
reads | rebase -b other.raw -F raw file:top.qed
reads | rebase -b '' file:top.qed
same | rebase -u -b file:gone.raw -F raw file:top.qed
reads | commit -d file:top.qed
0, not 1: a base is found under any name | commit -d -b file:low.raw top.qed
status | rebase -b foo:bar -F raw top.qed
TABLE
  # One that lacks the module for it says 0 in some versions.
  run -1 qed-img create http:x 1M
  run -0 qed-img measure file:files/base.qed
  run -0 qed-img measure -f raw file:files/low.raw
  run -0 qed-img empty file:files/base.qed
  run -1 qed-img rebase -b file:files/base.qed -F qed files/base.qed
  assert_output --partial "the image itself"
}

@test "json: names the image by QEMU's options" {
  make_files
  make_chain
  # Nested or flat; with less than everything.
  cases <<'TABLE'
same | info 'json:{"driver":"qed","file":{"driver":"file","filename":"base.qed"}}'
same | info --output=json 'json:{"driver":"qed","file":{"driver":"file","filename":"base.qed"}}'
same | info 'json:{"driver":"qed","file.driver":"file","file.filename":"base.qed"}'
same | info 'json:{"file":{"filename":"base.qed"}}'
same | info 'json:{"file.filename":"base.qed"}'
same | info 'json: { "driver": "qed", "file": { "driver": "file", "filename": "d/../base.qed" } }'
same | info 'json:{"driver":"qed","file":{"driver":"file","filename":"base.qed","locking":"auto"}}'
same | check 'json:{"driver":"qed","file":{"driver":"file","filename":"base.qed","locking":"off"}}'
same | check -r all 'json:{"driver":"qed","file":{"driver":"file","filename":"base.qed","locking":"off"}}'
same | check --output=json 'json:{"driver":"qed","file.filename":"small.qed"}'
same | map --output=json 'json:{"driver":"qed","file.filename":"small.qed"}'
same | resize 'json:{"driver":"qed","file.filename":"base.qed"}' 5G
same | rebase -u -b gone.raw -F raw 'json:{"driver":"qed","file.filename":"top.qed"}'
reads | commit -d 'json:{"driver":"qed","file.filename":"top.qed"}'
status | info 'json:{"driver":"qed"'
same | info 'json:[]'
status | info 'json:'
status | info 'json:{"driver":"qed","file":{"driver":"file","filename":"file:base.qed"}}'
status | info 'json:{"driver":"qed"}'
status | info 'json:{}'
status | info 'json:{"filename":"base.qed"}'
status | info 'json:{"driver":"qed","file":"base.qed"}'
status | info 'json:{"driver":"file","filename":"base.qed"}'
1, not 0: it has to be known | info 'json:{"driver":"bogus","file":{"driver":"file","filename":"base.qed"}}'
status | info 'json:{"driver":"qed","file":{"driver":"bogus","filename":"base.qed"}}'
status | info 'json:{"driver":"qed","bogus":1,"file":{"driver":"file","filename":"base.qed"}}'
status | info 'json:{"driver":"qed","file":{"driver":"file","filename":"base.qed","bogus":1}}'
status | info 'json:{"driver":"qed","file":{"driver":"file","filename":"base.qed","locking":"x"}}'
status | info 'json:{"driver":"qed","file":{"driver":"file","filename":7}}'
same | create 'json:{"driver":"qed","file":{"driver":"file","filename":"new.qed"}}' 1M
same | create -b 'json:{"driver":"raw","file":{"driver":"file","filename":"low.raw"}}' -F raw new.qed
same | create -b 'json:{"driver":"qed","file":{"driver":"file","filename":"base.qed"}}' -F qed new.qed
same | create -b 'json:{"file.filename":"low.raw"}' -F raw new.qed
same | create -b 'json:{"file.filename":"low.raw"}' -F raw d/new.qed
status | create -b 'json:{"file.filename":"low.raw"}' -F qed new.qed
1, not 0: it has to be known | create -b 'json:{"driver":"bogus","file.filename":"low.raw"}' -F raw new.qed
same | rebase -u -b 'json:{"driver":"raw","file.filename":"other.raw"}' -F raw top.qed
status | info 'json:{"driver":"raw","file.filename":"low.raw"}'
TABLE
}

@test "json: in a header, and of NBD exports" {
  local tool
  make_files
  make_chain
  cd files || return
  start_qemu_nbd server -r -f raw low.raw
  for backing in 'json:{"driver":"raw","file":{"driver":"file","filename":"low.raw"}}' \
      "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"nbd\",\"server\":{\"type\":\"unix\",\"path\":\"$tmp/server.sock\"}}}" \
      "json:{\"file.driver\":\"nbd\",\"file.server.type\":\"unix\",\"file.server.path\":\"$tmp/server.sock\"}" \
      'file:low.raw'; do
    qemu-img create -q -f qed -u -b "$backing" -F raw json.qed 3M
    qemu_io_qed json.qed 'write -P 8 64k 64k' >/dev/null
    nbdkit -U - -r qed json.qed --run 'nbdcopy "$uri" served.raw'
    qemu-img compare -f qed -F raw json.qed served.raw
    qed-img rebase -b '' json.qed
    qemu-img compare -f qed -F raw json.qed served.raw
  done

  # What stands in the options is no more of the URI than its place.
  local export='a b?c&socket=x%20'
  end_process "$qemu_pid"
  start_qemu_nbd server2 -r -x "$export" -f raw low.raw
  backing=$(jq -cn --arg export "$export" --arg path "$tmp/server2.sock" \
            '{driver: "raw", file: {driver: "nbd", export: $export,
              server: {type: "unix", path: $path}}}')
  qemu-img create -q -f qed -u -b "json:$backing" -F raw json.qed 3M
  qed-img rebase -b '' json.qed
  qemu-img compare -f qed -F raw json.qed low.raw

  # A new backing image by such a name, relative to this folder.
  local over
  for backing in 'json:{"driver":"qed","file.filename":"other.qed"}' \
                 'file:other.qed'; do
    for over in qemu ours; do cp top.qed $over.qed; done
    qemu-img rebase -f qed -b "$backing" -F qed qemu.qed
    qed-img rebase -b "$backing" -F qed ours.qed
    qemu-img compare -f qed -F qed qemu.qed ours.qed
    assert_equal "$(qed-img info --output=json ours.qed |
                    jq -r '.["backing-filename"]')" "$backing"
  done

  # The name says the format, so nothing is guessed.
  qemu-img create -q -f qed guess.qed 1M
  qed-img create -q -b 'json:{"driver":"raw","file.filename":"guess.qed"}' over.qed
  assert_equal "$(qed-img info --output=json over.qed |
                  jq -r '.["backing-filename-format"]')" raw
}

# says NAME WORDS...: what is said of an image, and of a backing image, of that
# name.
says ()
{
  local name=$1 words
  shift
  run -1 qed-img info "$name"
  for words in "$@"; do assert_output --partial "$words"; done
  run -1 qed-img create -b "$name" new.qed
  for words in "$@"; do assert_output --partial "$words"; done
  refute_output --partial "rebase"
  qemu-img create -q -f qed -u -b "$name" -F raw over.qed 1M
  run -1 qed-img map over.qed
  for words in "$@"; do assert_output --partial "$words"; done
  assert_output --partial "qed-img rebase -u -b"
  assert_output --partial "backing=URI"
}

@test "names that only QEMU knows: what to do is said" {
  says a:b.raw "Unknown protocol 'a'" "./a:b.raw"
  says http://h/x.qed "Unknown protocol 'http'" "nbdkit curl"
  says https://h/x.qed "nbdkit curl"
  says ssh://h/x.qed "nbdkit ssh"
  says rbd:pool/x "qemu-nbd"
  says nbd:localhost:10809 "write nbd://localhost:10809/"
  says nbd:localhost:10809:exportname=disk "write nbd://localhost:10809/disk"
  says nbd:unix:/tmp/s "write nbd+unix:///?socket=/tmp/s"
  says nbd:unix:/tmp/s:exportname=disk "write nbd+unix:///disk?socket=/tmp/s"
  says 'json:{"driver":"qcow2","file.filename":"x"}' "driver 'qcow2'"
  says 'json:{"driver":"raw","file":{"driver":"https","url":"x"}}' "driver 'https'"

  # And that works.
  truncate -s 1M a:b.raw
  qed-img create -q -b ./a:b.raw new.qed
  qed-img map new.qed
}

# ---- Options of the storage, of QEMU's objects, and of formats of others

@test "create -o: how the file is stored" {
  make_files
  cases <<'TABLE'
same | create -o preallocation=off new.qed 1G
same | create -o preallocation=falloc new.qed 1G
same | create -o preallocation=full new.qed 1G
same | create -o preallocation=metadata new.qed 1G
same | create -o preallocation=bogus new.qed 1G
same | create -o preallocation= new.qed 1G
same | create -o preallocation new.qed 1G
same | create -o nocow=on new.qed 1G
same | create -o nocow=off new.qed 1G
same | create -o nocow=yes new.qed 1G
same | create -o nocow=bogus new.qed 1G
same | create -o nocow= new.qed 1G
same | create -o nocow new.qed 1G
same | create -o extent_size_hint=64k new.qed 1G
same | create -o extent_size_hint=0 new.qed 1G
same | create -o extent_size_hint=5000 new.qed 1G
same | create -o extent_size_hint=8G new.qed 1G
status | create -o extent_size_hint=x new.qed 1G
status | create -o extent_size_hint= new.qed 1G
same | create -o nocow=on,preallocation=full,extent_size_hint=2M,cluster_size=8k,table_size=2 new.qed 1G
same | create -o preallocation=full,nocow=off -b base.qed -F qed new.qed
same | create -o preallocation=off -o preallocation=full new.qed 1G
same | create -o help new.qed
same | create -o help
same | create -o preallocation=full,help new.qed
same | create -o nocow=on base.qed 1G
TABLE

  # What the file system is told.
  strace -o trace -e trace=ioctl \
         qed-img create -q -o nocow=on,extent_size_hint=64k new.qed 1M
  grep -q 'FS_IOC_SETFLAGS.*FS_NOCOW_FL' trace
  grep -q 'FS_IOC_FSSETXATTR.*FS_XFLAG_EXTSIZE, fsx_extsize=65536' trace
  strace -o trace -e trace=ioctl qed-img create -q new.qed 1M
  run ! grep -q NOCOW trace
  grep -q 'fsx_extsize=1048576' trace
  strace -o trace -e trace=ioctl \
         qed-img create -q -o extent_size_hint=0 new.qed 1M
  run ! grep -q FS_IOC trace
}

@test "--object: what has no use for QED is ignored" {
  make_files
  make_chain
  cases <<'TABLE'
same | create --object secret,id=x,data=y new.qed 1M
same | create --object '{"qom-type":"secret","id":"x","data":"y"}' new.qed 1M
same | create --object qom-type=secret,id=x,data=y new.qed 1M
same | create --object throttle-group,id=x new.qed 1M
same | create --object secret,data=y new.qed 1M
same | create --object bogus,id=x new.qed 1M
same | create --object bogus new.qed 1M
status | create --object '' new.qed 1M
status | create --object '{"id":"x"}' new.qed 1M
status | create --object '{' new.qed 1M
same | info --object secret,id=x,data=y base.qed
same | info --object secret,id=x,data=y --object secret,id=z,data=y base.qed
same | check --object secret,id=x,data=y base.qed
same | map --object secret,id=x,data=y --output=json small.qed
same | resize --object secret,id=x,data=y base.qed 5G
reads | rebase --object secret,id=x,data=y -b '' top.qed
reads | commit --object secret,id=x,data=y -d top.qed
same | info --object
TABLE
  run -1 qed-img create --object tls-creds-psk,id=x,dir=.,endpoint=client \
      new.qed 1M
  assert_output --partial "tls-psk-file="
}

@test "-F: an image of a format that we do not read can be named" {
  make_files
  make_chain
  cases <<'TABLE'
same | create -q -b foreign.qcow2 -F qcow2 new.qed
same | create -q -b foreign.qcow2 -F qcow2 new.qed 5M
same | create -q -b gone.qcow2 -u -F qcow2 new.qed 5M
same | create -q -b gone.vmdk -u -F vmdk new.qed 5M
same | create -q -o backing_file=foreign.qcow2,backing_fmt=qcow2 new.qed
status | create -b foreign.qcow2 -F qcow2 new.qed
status | create -b gone.qcow2 -F qcow2 new.qed
status | create -b gone.qcow2 -F qcow2 new.qed 5M
status | create -b gone.x -u -F bogus new.qed 5M
same | rebase -q -u -b foreign.qcow2 -F qcow2 top.qed
same | rebase -q -u -b gone.vmdk -F vmdk top.qed
status | rebase -u -b foreign.qcow2 -F qcow2 top.qed
status | rebase -u -b foreign.qcow2 -F bogus top.qed
status | rebase -b foreign.qcow2 -F bogus top.qed
1, not 0: no driver of ours can read it | rebase -b foreign.qcow2 -F qcow2 top.qed
TABLE
  cd files || return
  run -0 qed-img create -b foreign.qcow2 -F qcow2 new.qed
  assert_line --partial "nbdkit's qed plugin needs backing=URI"
  run -0 qed-img rebase -u -b foreign.qcow2 -F qcow2 top.qed
  assert_line --partial "nbdkit's qed plugin needs backing=URI"

  # As it is said.
  qemu-io -f qcow2 -c 'write -P 7 0 1M' foreign.qcow2
  start_qemu_nbd server -r -f qcow2 foreign.qcow2
  nbdkit -U - -r qed new.qed backing="$qemu_uri" backing-format=raw \
         --run 'nbdcopy "$uri" served.raw'
  qemu-img compare -f qed -F raw new.qed served.raw
}

@test "commit -r: no faster than that" {
  make_files
  make_chain
  cases <<'TABLE'
reads | commit -d -r 100M top.qed
reads | commit -d -r 0 top.qed
same | commit -d -r x top.qed
same | commit -d -r -1 top.qed
same | commit -d -r '' top.qed
TABLE
  # 2 MiB at 2 MiB a second: the last piece begins when the others are due.
  truncate -s 4M low.raw
  qemu-img create -q -f qed -b low.raw -F raw slow.qed
  qemu_io_qed slow.qed 'write -P 1 0 4M' >/dev/null
  strace -f -o trace -e trace=clock_nanosleep qed-img commit -r 8M slow.qed
  assert [ "$(grep -c 'clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME' trace)" \
           -ge 2 ]
  qemu-io -f raw -c 'read -P 1 0 4M' low.raw
}
