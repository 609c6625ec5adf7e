/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Running a client's command, and answering it. */

#ifndef BLOCKDRIVERS_CONTROL_COMMAND_H
#define BLOCKDRIVERS_CONTROL_COMMAND_H

#include "control/state.h"

/* Send what the client takes of its answers now. */
extern void control_send_output (struct control_client *client);

/* Send this text, and a line end. */
extern void control_say (struct control_client *client, const char *text,
                         size_t len);

/* Takes over the reference of the answer, which is NULL if there was no
 * memory for it.
 */
extern void control_answer (struct control_client *client, json_t *json);

/* The command of this name that the client may use now, or NULL with
 * *desc the reason, to be freed.
 */
extern const struct control_command *
control_choose_command (struct control_client *client, const char *name,
                        char **desc);

/* Run the client's command. */
extern void control_run_command (struct control_client *client);

/* Free what belongs to the request. */
extern void control_forget_request (struct control_client *client);

/* Answer the request that has been dealt with. */
extern void control_reply (struct control_client *client);

#endif /* BLOCKDRIVERS_CONTROL_COMMAND_H */
