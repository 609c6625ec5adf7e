# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Ask a control socket, or QEMU's monitor, with Python's own sockets.

    control-ask.py SOCKET <REQUESTS

Sends each line as it is (without its end), and prints one answer to each,
as compact JSON.  The greeting and the negotiation are not printed.
"""

import json
import socket
import sys


def main():
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(60)
    sock.connect(sys.argv[1])
    answers = sock.makefile("rb")
    assert "QMP" in json.loads(answers.readline())
    sock.sendall(b'{"execute": "qmp_capabilities"}')
    assert json.loads(answers.readline()) == {"return": {}}
    for line in sys.stdin.buffer:
        sock.sendall(line.rstrip(b"\n"))
        print(json.dumps(json.loads(answers.readline()), sort_keys=True))


main()
