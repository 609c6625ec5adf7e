# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Read at the start of an interactive zsh, as its .zshrc: prints into the file
# $PROPOSALS what is proposed for the last word of each command line of the
# file $LINES_FILE, a line of words for each.  The folder $COMPLETIONS has the
# functions.  A list before the last item is printed with it, as bash has it.

fpath=($COMPLETIONS $fpath)
autoload -Uz compinit
compinit -D -u

# Tell what would be added, and add nothing.
compadd ()
{
  local -a hits
  if [[ " ${(j: :)@[1,(i)(-|--)]} " == *' -'[[:alpha:]]#[OAD]' '* ]]; then
    builtin compadd "$@"
    return
  fi
  builtin compadd -O hits "$@"
  proposals+=("${(@)hits/#/${IPREFIX##*=}}")
  ((${#hits}))
}
setopt extended_glob

try ()
{
  local line
  local -aU proposals
  for line in "${(@f)$(<$LINES_FILE)}"; do
    BUFFER=$line CURSOR=$#line proposals=()
    zle complete-word
    print -r -- ${(o)proposals}
  done >$PROPOSALS
  exit
}
zle -N zle-line-init try
