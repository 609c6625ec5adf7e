# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# bash and zsh complete the sub-commands and options of qed-img, and whatever
# other tool has a table of its options.

load ../lib/functions

# in_bash 'COMMAND LINE': print what is proposed for its last word.  The line
# is taken apart as bash does.
in_bash ()
{
  bash -c '
    . "$1"
    read -r _ _ function tool < <(complete -p)
    COMP_WORDS=(${2//=/ = })
    if [[ $2 == *" " ]]; then COMP_WORDS+=(""); fi
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    [ "${COMP_WORDS[0]}" = "$tool" ] || exit 1
    $function "$tool" "${COMP_WORDS[COMP_CWORD]}" \
              "${COMP_WORDS[COMP_CWORD - 1]}"
    printf "%s\n" "${COMPREPLY[@]}" | LC_ALL=C sort
  ' bash "$builddir/common/completions/${1%% *}" "$1"
}

# completes 'COMMAND LINE' WORD...: these are proposed for its last word, and
# nothing else is.
completes ()
{
  local line=$1
  shift
  run -0 in_bash "$line"
  assert_output "$(printf '%s\n' "$@" | LC_ALL=C sort)"
}

@test "sub-commands" {
  completes "qed-img " create convert info check map resize rebase commit measure empty
  completes "qed-img c" create convert check commit
  completes "qed-img re" resize rebase
  completes "qed-img x" ""
  completes "qed-img --v" --version
}

@test "options of a sub-command" {
  completes "qed-img empty -" -q -f --format= --no-lock --object= -h --help
  completes "qed-img resize --p" --preallocation=
  completes "qed-img map --" --format= --output= --start-offset= \
            --max-length= --force-share --object= --help
}

@test "words that an option takes" {
  completes "qed-img commit -t " writeback writethrough none directsync unsafe
  completes "qed-img check -r l" leaks
  completes "qed-img check -r a" all
  completes "qed-img info --output=" human json
  completes "qed-img info --output=j" json
  completes "qed-img commit -t w" writeback writethrough
  completes "qed-img measure -q -O r" raw
}

@test "keys of -o" {
  completes "qed-img create -o " backing_file= backing_fmt= cluster_size= \
            extent_size_hint= nocow= preallocation= size= table_size=
  completes "qed-img create -o cl" cluster_size=
  completes "qed-img create -o size=1G,ta" 1G,table_size=
}

@test "files, where they are expected, and only there" {
  touch disk.qed other.qed
  completes "qed-img info d" disk.qed
  completes "qed-img check -r all " disk.qed other.qed
  completes "qed-img rebase -b o" other.qed
  completes "qed-img measure --size " ""
}

@test "every option is in the table, in the help and in the manual page" {
  local command option
  while IFS='|' read -r command option; do
    if [ -z "$option" ]; then continue; fi
    # shellcheck disable=SC2086
    qed-img $command --help | grep -qE -- "(^|[ ,])$option([ =,]|\$)" ||
      fail "qed-img $command --help does not tell of $option"
    grep -qE -- "B<$option([> =]|\$)" "$srcdir/man/qed-img.pod" ||
      fail "the manual page does not tell of $option"
  done < <(qed-img --completions | cut -f 1,2 | tr '\t' '|')
}

@test "the sub-commands and options of logwrites" {
  completes "logwrites " explore info list plot replay verify
  completes "logwrites info --o" --output=
  completes "logwrites replay --next" --next-flush --next-fua
  completes "logwrites replay --check=" discard flush fua
  completes "logwrites list --flags=f" flush fua
  completes "logwrites list --flags=mark,me" mark,metadata
  completes "logwrites verify --b" --base=
  completes "logwrites explore --st" --states=
  completes "logwrites explore --output=t" tap
}

@test "another tool only needs a table of its own" {
  mkdir -p bin common/completions
  printf '#!/bin/sh\nprintf "%%s\\t%%s\\t%%s\\n" "" --log FILE "" --wait "" \
    "" "" LOG\n' >bin/othertool
  chmod +x bin/othertool
  touch log.1
  PATH=$PWD/bin:$PATH
  cp "$srcdir/common/tool/completion.bash" common/completions/othertool
  builddir=$PWD
  completes "othertool --" --log= --wait
  completes "othertool lo" log.1
  completes "othertool --log=l" log.1
}

@test "the commands of a control socket" {
  "$builddir/tests/unit/control-server" ./a.sock 3>&- &
  remember $!
  wait_until 60 blkctl ./a.sock query-commands
  touch other
  completes "blkctl --" --every= --help --metrics --version --watch
  completes "blkctl " a.sock other
  completes "blkctl ./a.sock ec" echo
  completes "blkctl ./a.sock fail" fail fail-badly
  completes "blkctl ./a.sock ./o" ./other
  completes "blkctl ./a.sock ./a.sock replication-checkpoint-a" \
            replication-checkpoint-abort
  completes "blkctl ./none ec" ""
}

@test "zsh proposes what bash does" {
  local line
  "$builddir/tests/unit/control-server" ./a.sock 3>&- &
  remember $!
  wait_until 60 blkctl ./a.sock query-commands
  touch disk.qed other.qed
  local lines=(
    "qed-img "
    "qed-img re"
    "qed-img x"
    "qed-img --v"
    "qed-img empty -"
    "qed-img resize --p"
    "qed-img map --"
    "qed-img commit -t "
    "qed-img check -r l"
    "qed-img info --output=j"
    "qed-img measure -q -O r"
    "qed-img create -o "
    "qed-img create -o size=1G,ta"
    "qed-img info d"
    "qed-img check -r all d"
    "qed-img rebase -b o"
    "qed-img measure --size "
    "logwrites "
    "logwrites replay --next"
    "logwrites list --flags=f"
    "logwrites list --flags=mark,me"
    "blkctl --"
    "blkctl ./a.sock ec"
    "blkctl ./a.sock fail"
    "blkctl ./none ec"
  )
  printf '%s\n' "${lines[@]}" >lines
  cp "$srcdir/tests/lib/complete.zsh" .zshrc
  # zsh reads no line from what is no terminal.
  run -0 env LC_ALL=C ZDOTDIR="$PWD" COMPLETIONS="$builddir/common/completions" \
      LINES_FILE=lines PROPOSALS=proposals \
      script -qec "zsh -d -i" typescript </dev/null
  while IFS= read -r line; do
    in_bash "$line" | LC_ALL=C sort | paste -sd ' '
  done <lines | paste -d '|' lines - >expected
  paste -d '|' lines proposals >ours
  diff -u expected ours
}
