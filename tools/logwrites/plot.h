/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* logwrites plot: its picture for others. */

#ifndef BLOCKDRIVERS_LOGWRITES_PLOT_H
#define BLOCKDRIVERS_LOGWRITES_PLOT_H

#include <stddef.h>
#include <stdint.h>

/* Draw a log as SVG, with lines at some moments, numbers of entries in
 * ascending order.  Returns a descriptor of the picture, in memory, or -1
 * after a message.
 */
extern int logwrites_plot_moments (const char *log, const uint64_t *moments,
                                   size_t nr);

#endif /* BLOCKDRIVERS_LOGWRITES_PLOT_H */
