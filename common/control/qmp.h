/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What a client of a control socket asks for, and the answers to it, in
 * the wording of QEMU's monitor.
 */

#ifndef BLOCKDRIVERS_QMP_H
#define BLOCKDRIVERS_QMP_H

#include <jansson.h>

#include "control/control.h"

/* Classes of errors. */
#define QMP_GENERIC_ERROR "GenericError"
#define QMP_COMMAND_NOT_FOUND "CommandNotFound"

/* Is it an object with a command and nothing else but "arguments" and
 * "id"?  Returns the name of the command (valid as long as request is),
 * or NULL with *error a description to be freed, NULL if out of memory.
 */
extern const char *qmp_command (json_t *request, char **error);

/* The arguments of such a request: an object, new reference, empty if it
 * has none; NULL if out of memory.
 */
extern json_t *qmp_arguments (json_t *request);

/* Are these the arguments that the command wants?  -1 with *error as
 * above.
 */
extern int qmp_check_arguments (const struct control_command *command,
                                    json_t *arguments, char **error);

/* Answers, NULL if out of memory.  request may be NULL or any value; the
 * id of an object is repeated.  Takes over the reference of value; the
 * description may be any bytes.
 */
extern json_t *qmp_return (json_t *request, json_t *value);
extern json_t *qmp_error (json_t *request, const char *class,
                             const char *desc);

/* What is said to each new client. */
extern json_t *qmp_greeting (void);

#endif /* BLOCKDRIVERS_QMP_H */
