# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Control sockets speak QMP as QEMU does, and blkctl drives them, one by one
# or several at one moment.  The server is tests/unit/control-server.

load ../lib/functions

# start_server SOCKET [ARGUMENT...]: sets $pid.
start_server ()
{
  "$builddir/tests/unit/control-server" "$@" 2>>server.log 3>&- &
  pid=$!
  remember "$pid"
  wait_until 60 answers "$1"
}

answers ()
{
  blkctl "$1" query-commands >/dev/null 2>&1
}

start_qemu ()
{
  require_tool qemu-system-x86_64
  qemu-system-x86_64 -M none -display none -nodefaults \
    -qmp unix:qemu.sock,server=on,wait=off 3>&- &
  remember $!
  wait_until 60 answers qemu.sock
}

# start_three [HOW COMMAND]: a.sock, b.sock and c.sock, with a common record;
# the second is to refuse this command or to die of it.
start_three ()
{
  start_server ./a.sock record
  start_server ./b.sock record "$@"
  start_server ./c.sock record
  : >record
}

checkpoint ()
{
  run blkctl ./a.sock ./b.sock ./c.sock replication-checkpoint
}

# recorded LINE...: in the record is this, in any order, without the common
# start of the words.
recorded ()
{
  assert_equal "$(sed 's/replication-checkpoint-//; s/ /:/; s/^..//' record |
                  LC_ALL=C sort)" "$(printf '%s\n' "$@" | LC_ALL=C sort)"
}

# ---- The socket

@test "what is wrong with a request is said in QEMU's words" {
  start_server ./a.sock
  start_qemu
  cat >requests <<'EOF'
{"execute": "no-such-command"}
{"execute": "no-such-command", "id": [1, {"a": null}]}
{"execute": "qmp_capabilities"}
{"execute": "query-commands", "arguments": {"x": 1}, "id": "x"}
{"execute": "query-commands", "arguments": []}
{"execute": "query-commands", "arguments": null}
{"execute": "query-commands", "id": 4, "x": 1}
{"execute": 5}
{"id": 1.5}
{}
[]
"x"
[[{"execute": "query-commands"}]]
EOF
  python3 "$lib/control-ask.py" ./a.sock \
    <requests >ours
  python3 "$lib/control-ask.py" ./qemu.sock \
    <requests >theirs
  assert_equal "$(wc -l <ours)" "$(wc -l <requests)"
  assert_equal "$(cat ours)" "$(cat theirs)"

  # There the words are the parser's; some QEMUs put the place in front.
  cat >requests <<'EOF'
{"execute":}
{"execute" "query-commands"}
{"execute": "query-commands", "execute": "query-commands"}
}
EOF
  local class='.error.class,
    (.error.desc | test ("^([0-9]+:[0-9]+: )?JSON parse error, "))'
  python3 "$lib/control-ask.py" ./a.sock <requests | jq "$class" >ours
  python3 "$lib/control-ask.py" ./qemu.sock <requests |
    jq "$class" >theirs
  assert_equal "$(cat ours)" "$(cat theirs)"
  assert_equal "$(grep -c true ours)" 4
}

@test "socat and jq suffice to use a socket" {
  require_tool socat jq
  start_server ./a.sock
  printf '%s' '{"execute": "qmp_capabilities"}' \
    '{"execute": "echo", "arguments": {"text": "na\u00efve"}, "id": 7}' |
    socat -t 60 - UNIX-CONNECT:./a.sock >out
  run jq -c 'keys, .return?.text, .id' out
  assert_output '["QMP"]
null
null
["return"]
null
null
["id","return"]
"naïve"
7'
}

# Each of them reads nothing.
@test "garbage, a line without end, unread answers, and the server goes on" {
  start_server ./a.sock
  local server=$pid clients=()
  head -c 10M /dev/urandom | socat -u - UNIX-CONNECT:./a.sock 2>&1 3>&- &
  clients+=($!)
  head -c 100M /dev/zero | tr '\0' x |
    socat -u - UNIX-CONNECT:./a.sock 2>&1 3>&- &
  clients+=($!)
  { echo '{"execute": "qmp_capabilities"}'
    yes '{"execute": "large", "arguments": {"bytes": 1000000}}'; } |
    socat -u - UNIX-CONNECT:./a.sock 2>&1 3>&- &
  clients+=($!)
  for i in 1 2 3; do
    run -0 blkctl ./a.sock echo text=on
  done

  # They are hung up on, the last one for not reading.
  wait "${clients[@]}" || true
  run -0 blkctl ./a.sock echo text=on
  # In kB; a sanitizer keeps what is freed for a while.
  is_sanitized ||
    assert [ "$(awk '/VmHWM/ { print $2 }' "/proc/$server/status")" -lt 30000 ]
}

@test "the socket is its owner's, and gone after the server's end" {
  umask 0
  start_server ./a.sock
  assert_equal "$(stat -c '%a %F' a.sock)" "600 socket"
  end_process "$pid"
  assert_not_exist a.sock
}

@test "the socket of a killed server is replaced, again and again" {
  local i
  for i in {1..10}; do
    start_server ./a.sock
    kill -9 "$pid"
    wait "$pid" || true
    assert_exist a.sock
  done
  start_server ./a.sock
  assert_equal "$(stat -c %a a.sock)" 600
}

@test "a socket that answers, and a file that is none, are left alone" {
  start_server ./a.sock
  run "$builddir/tests/unit/control-server" ./a.sock
  assert_failure
  assert_output --partial "./a.sock: another server answers on this socket"
  answers ./a.sock

  echo data >file
  run "$builddir/tests/unit/control-server" ./file
  assert_failure
  assert_output --partial "./file: this file is not a socket"
  assert_equal "$(cat file)" data
}

@test "fifty clients at a time" {
  start_server ./a.sock
  local i pids=()
  for i in {1..50}; do
    blkctl ./a.sock echo number="$i" >"out.$i" 3>&- &
    pids+=($!)
  done
  wait "${pids[@]}"
  for i in {1..50}; do
    assert_equal "$(jq .number "out.$i")" "$i"
  done
}

# ---- blkctl

# returns EXPECTED ARGUMENT...: what echo returns, as JSON.  Versions of jq
# differ in how they print a number.
returns ()
{
  local expected=$1
  shift
  run -0 --separate-stderr blkctl ./a.sock echo "$@"
  assert_equal "$(jq -c . <<<"$output")" "$(jq -c . <<<"$expected")"
}

@test "values are true, false, numbers, or else strings" {
  start_server ./a.sock
  returns '{}'
  returns '{"flag":true}' flag=true
  returns '{"flag":false,"number":-5}' flag=false number=-5
  returns '{"real":1.5}' real=1.5
  returns '{"real":1000.0}' real=1e3
  returns '{"text":""}' text=
  returns '{"text":"a=b c"}' 'text=a=b c'
  returns '{"text":"True"}' text=True
  returns '{"text":"007"}' text=007
  returns '{"text":"5 "}' 'text=5 '
  returns '{"text":"-"}' text=-
  returns '{"text":"null"}' text=null
  returns '{"text":"{}"}' 'text={}'
  returns '{"text":"a\"b"}' 'text=a"b'
  returns '{"text":"\""}' 'text="'
  returns '{"text":"naïve"}' text=naïve
}

@test "a quoted value is a string, whatever it looks like" {
  start_server ./a.sock
  returns '{"text":"5"}' 'text="5"'
  returns '{"text":"true"}' 'text="true"'
  returns '{"text":"é\n"}' 'text="\u00e9\n"'
  returns '{"text":"\"x\""}' 'text="\"x\""'
  # Not JSON, so it is a string as it stands.
  returns '{"text":"\"a\"b\""}' 'text="a"b"'
}

# exits STATUS MESSAGE ARGUMENT...: blkctl does, with nothing on standard
# output.
exits ()
{
  local status=$1 message=$2
  shift 2
  run "-$status" --separate-stderr blkctl "$@"
  assert_equal "$output" ""
  assert_regex "$stderr" "$message"
}

@test "status 1 and the server's message when a command fails" {
  start_server ./a.sock record die replication-checkpoint
  exits 1 "^blkctl: no space left, says the disk\$" ./a.sock \
        fail desc="no space left, says the disk"
  exits 1 "^blkctl: caf.*: no such file\$" ./a.sock fail-badly
  exits 1 "Parameter 'desc' is missing" ./a.sock fail
  exits 1 "Invalid parameter type for 'desc', expected: string" \
        ./a.sock fail desc=5
  exits 1 "Parameter 'x' is unexpected" ./a.sock echo x=1
  exits 1 "The command x has not been found" ./a.sock x
  exits 1 "a.sock: the server hung up before it answered" \
        ./a.sock replication-checkpoint
}

@test "status 2 when there is no such server, or for a wrong command line" {
  exits 2 "none.sock: connecting.*No such file" none.sock echo
  "$builddir/tests/unit/control-server" ./dead.sock 3>&- &
  wait_until 60 answers ./dead.sock
  kill -9 $!
  wait $! || true
  exits 2 "dead.sock: connecting.*refused" ./dead.sock echo
  touch file
  exits 2 "file: connecting" ./file echo
  exits 2 "at most 107 bytes" "/$(printf '%0200d' 0)" echo
  exits 2 "name of a control socket is empty" "" echo
  exits 2 "Not enough arguments"
  exits 2 "Expecting the name of a command" a.sock
  exits 2 "unrecognized option '--what'" --what
  exits 2 "Expecting KEY=VALUE instead of 'text'" a.sock echo text
  exits 2 "Expecting KEY=VALUE instead of '=x'" a.sock echo =x
  exits 2 "'text' is given twice" a.sock echo text=1 text=2
  exits 2 "is not UTF-8" a.sock echo $'text=\xff'
}

# Is there a socket of this name that takes connections?  To try would use
# up the only one that socat takes.
listens ()
{
  # The flags of a socket that listens, as the kernel shows them.
  grep -q " 00010000 .* $1\$" /proc/net/unix
}

@test "a server that does not speak QMP" {
  socat UNIX-LISTEN:"$tmp/other.sock" SYSTEM:'echo 220 mail; cat >/dev/null' 3>&- &
  remember $!
  wait_until 60 listens "$tmp/other.sock"
  exits 2 "other.sock: the server does not speak QMP" ./other.sock echo
}

@test "a server that says nothing is not waited for" {
  socat UNIX-LISTEN:"$tmp/silent.sock" SYSTEM:'cat >/dev/null' 3>&- &
  remember $!
  wait_until 60 listens "$tmp/silent.sock"
  exits 2 "silent.sock: waiting for an answer: Connection timed out" \
        ./silent.sock echo
}

@test "blkctl drives QEMU's own monitor" {
  start_qemu
  run -0 blkctl ./qemu.sock query-status
  assert_equal "$(jq -r .status <<<"$output")" running
  run -0 blkctl ./qemu.sock blockdev-add driver=null-co node-name=x size=4096
  run -0 blkctl ./qemu.sock query-named-block-nodes
  assert_equal "$(jq '.[0].image."virtual-size"' <<<"$output")" 4096
  exits 1 "Failed to find node with node-name='y'" ./qemu.sock \
        blockdev-del node-name=y
  # An answer that is no object.
  run -0 blkctl ./qemu.sock human-monitor-command "command-line=help quit"
  assert_equal "$(jq -r . <<<"$output" | tr -d '\r')" \
               "quit|q  -- quit the emulator"
}

@test "help and version" {
  run -0 blkctl --help
  assert_output --partial "SOCKET COMMAND [KEY=VALUE...]"
  run -0 blkctl --version
  assert_output --regexp '^blkctl version '
  exits 1 "cannot write to standard output" --help >/dev/full || true
  run bash -c 'blkctl --help >/dev/full'
  assert_failure
}

# ---- A checkpoint of several disks

@test "all prepare before any commits, and commit before any is released" {
  start_three
  checkpoint
  assert_success
  assert_output '{}'
  recorded {a,b,c}.sock:prepare {a,b,c}.sock:commit {a,b,c}.sock:release
  run head -n 3 record
  refute_output --partial commit
  run head -n 6 record
  refute_output --partial release
}

@test "if one refuses none is changed, and the others go on" {
  start_three refuse replication-checkpoint-prepare
  checkpoint
  assert_equal "$status" 1
  assert_line "blkctl: ./b.sock: the disk is full"
  assert_line "blkctl: no checkpoint was made"
  recorded {a,c}.sock:prepare "b.sock:refused prepare" {a,c}.sock:abort
}

@test "if one dies none is changed" {
  start_three die replication-checkpoint-prepare
  checkpoint
  assert_equal "$status" 1
  assert_line --partial "./b.sock: the server hung up before it answered"
  assert_line "blkctl: no checkpoint was made"
  recorded {a,c}.sock:prepare {a,c}.sock:abort
}

@test "if one is absent none is asked" {
  start_three
  run blkctl ./a.sock ./none.sock ./b.sock replication-checkpoint
  assert_equal "$status" 2
  assert_output --partial "./none.sock: connecting"
  recorded ""
}

@test "if one dies of the commit the others undo it" {
  start_three die replication-checkpoint-commit
  checkpoint
  assert_equal "$status" 1
  assert_line --partial "./b.sock: the server hung up before it answered"
  assert_line --partial "no checkpoint was made"
  recorded {a,b,c}.sock:prepare {a,c}.sock:commit {a,c}.sock:abort
}

@test "if one dies when all have committed the checkpoint is made" {
  start_three die replication-checkpoint-release
  checkpoint
  assert_equal "$status" 1
  assert_line "blkctl: ./a.sock: the checkpoint was made"
  assert_line --partial "./b.sock: the checkpoint was made, but may be in doubt"
  recorded {a,b,c}.sock:prepare {a,b,c}.sock:commit {a,c}.sock:release
}

@test "if blkctl is killed before the commit nothing is changed" {
  start_three hold replication-checkpoint-prepare
  blkctl ./a.sock ./b.sock ./c.sock replication-checkpoint 3>&- &
  wait_until 60 grep -q c.sock record
  wait_until 60 grep -q a.sock record
  kill -9 $!
  wait $! || true
  wait_until 60 grep -q "a.sock disconnected" record
  touch go
  wait_until 60 grep -q "b.sock disconnected" record
  wait_until 60 grep -q "c.sock disconnected" record
  recorded {a,b,c}.sock:prepare {a,b,c}.sock:disconnected
}

@test "a client that hangs up after it has prepared is noticed" {
  start_server ./a.sock record
  blkctl ./a.sock replication-checkpoint-prepare
  wait_until 60 grep -q disconnected record
  recorded a.sock:prepare a.sock:disconnected
}

@test "several sockets are for a checkpoint only, and are different ones" {
  start_three
  exits 2 "'echo' is for one socket" ./a.sock ./b.sock echo
  exits 2 "has no arguments" ./a.sock ./b.sock replication-checkpoint x=1
  ln -s a.sock d.sock
  exits 2 "'./a.sock' and 'd.sock' are the same socket" \
        ./a.sock d.sock replication-checkpoint
  recorded ""

  # Without a slash in their names, too; one socket is not prepared.
  run -0 blkctl a.sock b.sock replication-checkpoint
  recorded {a,b}.sock:prepare {a,b}.sock:commit {a,b}.sock:release
  run -0 blkctl a.sock replication-checkpoint
  assert_equal "$(tail -n 1 record)" "./a.sock replication-checkpoint"
}
