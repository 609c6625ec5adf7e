# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""A client of QMP sockets: QEMU's, and control sockets of our filters.

The framing is the same, so one client serves both, and what it knows of
the protocol comes from QEMU's manual.
"""

import json
import os
import socket
import time


class QmpError(Exception):
    """A command was refused; the text is the server's description."""


class Qmp:
    """One connection; commands are answered one after the other."""

    def __init__(self, path, process=None, limit=60):
        deadline = time.monotonic() + limit
        while True:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self.socket.connect(path)
                break
            except OSError:
                self.socket.close()
                gone = process is not None and process.poll() is not None
                if gone or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
        self.socket.settimeout(limit)
        self.stream = self.socket.makefile("r", encoding="utf-8")
        self.number = 0
        greeting = self.receive()
        if "QMP" not in greeting:
            raise ConnectionError(f"not a greeting: {greeting}")
        self.command("qmp_capabilities")

    def receive(self):
        line = self.stream.readline()
        if not line:
            raise ConnectionError("the control socket hung up")
        return json.loads(line)

    def send(self, name, arguments):
        self.number += 1
        request = {"execute": name, "id": self.number}
        if arguments:
            request["arguments"] = arguments
        self.socket.sendall(json.dumps(request).encode() + b"\n")

    def answer(self):
        """The answer to the last command; events are skipped."""
        while True:
            answer = self.receive()
            if "event" in answer:
                continue
            if answer.get("id") != self.number:
                raise ConnectionError(f"not the answer: {answer}")
            if "error" in answer:
                raise QmpError(answer["error"]["desc"])
            return answer["return"]

    def command(self, name, /, **arguments):
        """Run it.  The underscores in the names of arguments are sent as
        hyphens."""
        self.send(name, {key.replace("_", "-"): value
                         for key, value in arguments.items()})
        return self.answer()

    def fileno(self):
        return self.socket.fileno()

    def close(self):
        self.stream.close()
        self.socket.close()


def remove_socket(path):
    """QEMU and nbdkit leave their sockets behind when they are killed."""
    if os.path.exists(path):
        os.unlink(path)
