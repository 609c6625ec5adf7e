# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# What bash completes after the name of one of our tools.  One text for all
# of them, installed under each tool's name: a tool prints the table of its
# options itself, when it is called with --completions.  A line of it is
#
#     SUB-COMMAND <tab> OPTION <tab> VALUE
#
# where VALUE is empty, words as "a|b", or a kind in capitals, which may also
# be one of the words.  Lines without an OPTION describe the arguments.  Lines
# without a SUB-COMMAND are about what stands before it, or about a tool that
# has none.  The words before the one to be completed follow --completions, in
# case the table depends on them.

# The values of a kind, one a line.
_blockdrivers_values ()
{
  local tool=$1 command=$2 kind=$3 word=$4
  case $kind in
    FILE) compgen -f -- "$word" ;;
    KEY=VALUE,...)
      "$tool" $command -o help IMAGE 2>/dev/null |
        sed -n 's/^  *\([a-z_]*=\)<.*/\1/p' | _blockdrivers_items "$word"
      ;;
    *[a-z]*)
      tr '|' '\n' <<<"$kind" | grep -v '^[[:upper:]]' |
        _blockdrivers_items "$word"
      ;;
  esac
}

# Complete the last item of a list that has commas.
_blockdrivers_items ()
{
  local list='' item=$1
  if [[ $item == *,* ]]; then
    list=${item%,*},
    item=${item##*,}
  fi
  compgen -P "$list" -W "$(cat)" -- "$item"
}

# A SUB-COMMAND, an option of it, or an argument.
_blockdrivers_words ()
{
  local table=$1 command=$2 word=$3
  if [[ $word == -* ]]; then
    awk -F '\t' -v command="$command" '
      $1 == command && $2 ~ /^--/ && $3 { print $2 "="; next }
      $1 == command && $2 { print $2 }' <<<"$table" |
      _blockdrivers_items "$word"
  elif [ -z "$command" ] && grep -q '^[^[:blank:]]' <<<"$table"; then
    compgen -W "$(cut -f 1 <<<"$table" | sort -u)" -- "$word"
    if grep -q $'^\t\t' <<<"$table"; then
      compgen -f -- "$word"
    fi
  else
    compgen -f -- "$word"
  fi
}

_blockdrivers ()
{
  local tool=$1 table word before=$((COMP_CWORD - 1)) command='' kind='' i
  COMPREPLY=()

  # bash takes a word with equals signs apart.  What stands before the last
  # one is not to be in the reply.
  word=${COMP_WORDS[COMP_CWORD]}
  while [[ $word == =* || ${COMP_WORDS[before]} == = ]] && ((before > 0)); do
    word=${COMP_WORDS[before]}$word
    before=$((before - 1))
  done
  table=$("$tool" --completions "${COMP_WORDS[@]:1:before}" 2>/dev/null) ||
    return 0

  for ((i = 1; i <= before; i++)); do
    if cut -f 1 <<<"$table" | grep -qxF -- "${COMP_WORDS[i]:--}"; then
      command=${COMP_WORDS[i]}
      break
    fi
  done
  kind_of ()
  {
    awk -F '\t' -v command="$command" -v option="$1" '
      $1 == command && $2 == option { print $3 }' <<<"$table"
  }
  if [[ $word == --*=* ]]; then
    kind=$(kind_of "${word%%=*}")
    word=${word#*=}
  elif [[ ${COMP_WORDS[before]} == -* ]]; then
    kind=$(kind_of "${COMP_WORDS[before]}")
  fi
  unset -f kind_of

  if [ "$kind" ]; then
    mapfile -t COMPREPLY < <(
      _blockdrivers_values "$tool" "$command" "$kind" "$word")
  else
    mapfile -t COMPREPLY < <(
      _blockdrivers_words "$table" "$command" "$word")
  fi

  if [[ $word == *=* ]]; then
    COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}")
  fi
  if [[ ${COMPREPLY[0]} == *= ]]; then
    compopt -o nospace
  elif [[ $kind == FILE ||
            ( ! $kind && $word != -* &&
                ( $command || $table == *$'\n\t\t'* ) ) ]]; then
    compopt -o filenames
  fi 2>/dev/null
}

# The name of this file is that of the tool.
complete -F _blockdrivers "${BASH_SOURCE[0]##*/}"
