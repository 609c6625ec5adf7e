#compdef @TOOL@
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# What zsh completes after the name of one of our tools, from the table that
# the tool prints when it is called with --completions.  One text for all of
# them, installed under each tool's name; completion.bash says what is in the
# table.

# _blockdrivers_values COMMAND KIND: the values of a kind.
_blockdrivers_values ()
{
  local -a keys
  case $2 in
    FILE) _files ;;
    KEY=VALUE,...)
      keys=(${(f)"$($words[1] $1 -o help IMAGE 2>/dev/null |
                      sed -n 's/^  *\([a-z_]*=\)<.*/\1/p')"})
      compset -P '*,'
      compadd -S '' -a keys
      ;;
    *[a-z]*)
      compset -P '*,'
      compadd -- ${${(s:|:)2}:#[A-Z]*}
      ;;
  esac
}

_blockdrivers ()
{
  local line word option command kind
  local -a table fields commands options
  local -i files

  # The words of a line, of which the first ones may be empty.
  table=("${(@f)$($words[1] --completions \
                     "${(@)words[2,CURRENT-1]}" 2>/dev/null)}")
  commands=(${(u)${table%%$'\t'*}})
  for word in "${(@)words[2,CURRENT-1]}"; do
    if [[ -n $word && -n ${commands[(re)$word]} ]]; then
      command=$word
      break
    fi
  done

  if [[ $PREFIX == --*=* ]]; then
    option=${PREFIX%%=*}
  elif ((CURRENT > 2)) && [[ $words[CURRENT-1] == -* ]]; then
    option=$words[CURRENT-1]
  fi
  for line in "${(@)table}"; do
    fields=("${(@ps:\t:)line}")
    if [[ $fields[1] != $command ]]; then continue; fi
    if [[ -z $fields[2] ]]; then
      files=1
    elif [[ $fields[2] == $option ]]; then
      kind=$fields[3]
    fi
    if [[ $fields[2] == --* && -n $fields[3] ]]; then
      options+=($fields[2]=)
    elif [[ -n $fields[2] ]]; then
      options+=($fields[2])
    fi
  done

  if [[ $PREFIX == --*=* ]]; then
    compset -P '*='
  fi
  if [[ -n $kind ]]; then
    _blockdrivers_values "$command" "$kind"
  elif [[ $PREFIX == -* ]]; then
    compadd -- ${options:#*=}
    compadd -S '' -- ${(M)options:#*=}
  elif [[ -z $command && -n $commands ]]; then
    compadd -a commands
    if ((files)); then _files; fi
  else
    _files
  fi
}

_blockdrivers "$@"
