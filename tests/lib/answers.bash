# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Tests that configure the sources anew do not ask gcc all questions again
# that configure has asked it for the tree that is tested.

# answers BUILDDIR: print what configure has found out there about the system
# and gcc, as a CONFIG_SITE file: nothing of libraries and of nbdkit, and
# nothing that is set already.  If the tree was not compiled by gcc, nothing.
answers ()
{
  local log=$1/config.log
  if grep -qE "^ac_cv_env_CC_value='?(ccache )?(gcc)?'?\$" "$log"; then
    sed -nE "s/^(((am|lt)_cv_|ac_cv_(c|func|have|header|prog_cc|prog_make|\
safe|should|sys)_)[A-Za-z0-9_]*)=(.*)/test \"\${\1+set}\" || \1=\5/p" "$log"
  fi
}
