# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Filters.  A folder filters/NAME holds nbdkit-NAME-filter, which `run`
# finds there by its name.
