/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* blkctl --metrics: what sockets tell, for Prometheus. */

#ifndef BLOCKDRIVERS_METRICS_H
#define BLOCKDRIVERS_METRICS_H

/* Print it, in Prometheus' text format.  A socket that does not answer is told
 * as one that is not up, too.  Returns the exit status: STATUS_NOT_SENT if
 * there was one.
 */
extern int print_metrics (char *sockets[], int nr);

#endif /* BLOCKDRIVERS_METRICS_H */
