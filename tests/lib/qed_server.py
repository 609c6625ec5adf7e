# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""The server under test, and a client that keeps many requests in flight.

Python's side of what functions.bash does for bats: start nbdkit with the
qed plugin on an image, connect to it with libnbd, end it gently or not.
"""

import os
import select
import signal
import subprocess
import tempfile
import time

import nbd

# Whether servers run with a sanitizer, whose calls and memory are its own.
SANITIZED = "BESIDES_RUNTIME" in os.environ


class ServerError(Exception):
    """The server did not start, or did not end as it should."""


class Server:
    """nbdkit with the qed plugin (or another one) on one image."""

    def __init__(self, image, params=(), read_only=False, options=(),
                 limit=60, plugin="qed"):
        self.dir = tempfile.TemporaryDirectory(prefix="qed-server.")
        self.socket = os.path.join(self.dir.name, "sock")
        self.log_name = os.path.join(self.dir.name, "log")
        pid_file = os.path.join(self.dir.name, "pid")
        # A test that is ended by force takes its servers with it.
        command = ["nbdkit", "-f", "--exit-with-parent", "-U", self.socket,
                   "-P", pid_file]
        if read_only:
            command.append("-r")
        command += [*options, plugin, image, *params]
        with open(self.log_name, "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        # nbdkit writes its pid file when the socket accepts connections.
        deadline = time.monotonic() + limit
        while not (os.path.exists(pid_file) and os.path.getsize(pid_file)):
            if self.process.poll() is not None:
                raise ServerError("did not start: exit status "
                                  f"{self.process.returncode}\n{self.log()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"did not start in {limit} s\n{self.log()}")
            time.sleep(0.005)

    @property
    def uri(self):
        return f"nbd+unix:///?socket={self.socket}"

    def log(self):
        """Everything the server has printed."""
        with open(self.log_name, encoding="utf-8", errors="replace") as f:
            return f.read()

    def wait_for_message(self, text, limit=60):
        """A server may say something after it has done it."""
        deadline = time.monotonic() + limit
        while text not in self.log():
            if time.monotonic() > deadline:
                raise ServerError(f"did not say \"{text}\" in {limit} s\n"
                                  f"{self.log()}")
            time.sleep(0.005)

    def alive(self):
        return self.process.poll() is None

    def peak_memory(self):
        """Peak resident memory in bytes; 0 where a sanitizer has its own."""
        if SANITIZED:
            return 0
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as f:
            for line in f:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        raise ServerError("no VmHWM: the server is gone")

    def stop(self, limit=60):
        """End it as an administrator would; it must exit with 0."""
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerError(f"did not end in {limit} s\n{self.log()}")
        if status != 0:
            raise ServerError(f"ended with status {status}\n{self.log()}")

    def kill(self):
        """The death of the process, at any point of its work."""
        self.process.kill()
        self.process.wait()

    def connect(self):
        """A new connection that asks for block status."""
        handle = nbd.NBD()
        handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        handle.connect_unix(self.socket)
        return handle


class Request:
    """One request: what was asked, and how it ended (None: not yet)."""

    def __init__(self, kind, offset, count, data=None, flags=0):
        self.kind = kind
        self.offset = offset
        self.count = count
        self.data = data
        self.flags = flags
        self.buffer = None
        self.error = None
        self.done = False

    @property
    def end(self):
        return self.offset + self.count

    def __str__(self):
        how = "" if self.error is None else f" failed: {self.error}"
        return (f"{self.kind} {self.offset}+{self.count} "
                f"flags {self.flags:#x}{how}")

    def send(self, handle):
        """Hand it to libnbd; returns libnbd's cookie."""
        if self.kind == "read":
            self.buffer = nbd.Buffer(self.count)
            return handle.aio_pread(self.buffer, self.offset)
        if self.kind == "write":
            self.buffer = nbd.Buffer.from_bytearray(bytearray(self.data))
            return handle.aio_pwrite(self.buffer, self.offset,
                                     flags=self.flags)
        if self.kind == "zero":
            return handle.aio_zero(self.count, self.offset, flags=self.flags)
        if self.kind == "trim":
            return handle.aio_trim(self.count, self.offset, flags=self.flags)
        if self.kind == "cache":
            return handle.aio_cache(self.count, self.offset)
        if self.kind == "flush":
            return handle.aio_flush()
        raise ValueError(self.kind)

    def finish(self):
        self.done = True
        if self.kind == "read" and self.error is None:
            self.data = bytes(self.buffer.to_bytearray())
        self.buffer = None


class Pipeline:
    """Several connections with requests in flight at the same time."""

    def __init__(self, handles):
        self.handles = handles
        self.pending = [{} for _ in handles]

    def in_flight(self, which=None):
        if which is not None:
            return len(self.pending[which])
        return sum(len(p) for p in self.pending)

    def send(self, request, which):
        cookie = request.send(self.handles[which])
        self.pending[which][cookie] = request

    def _reap(self, which):
        finished = []
        for cookie, request in list(self.pending[which].items()):
            try:
                if not self.handles[which].aio_command_completed(cookie):
                    continue
            except nbd.Error as error:
                request.error = error
            request.finish()
            del self.pending[which][cookie]
            finished.append(request)
        return finished

    def wait(self, limit=60):
        """Wait until at least one request has ended; returns those that
        have.  Raises ConnectionError when a connection is lost."""
        deadline = time.monotonic() + limit
        while True:
            finished = []
            for which in range(len(self.handles)):
                finished += self._reap(which)
            if finished or not self.in_flight():
                return finished
            poller = select.poll()
            by_fd = {}
            for which, handle in enumerate(self.handles):
                if not self.pending[which]:
                    continue
                if handle.aio_is_dead() or handle.aio_is_closed():
                    raise ConnectionError("the server hung up")
                direction = handle.aio_get_direction()
                events = 0
                if direction & nbd.AIO_DIRECTION_READ:
                    events |= select.POLLIN
                if direction & nbd.AIO_DIRECTION_WRITE:
                    events |= select.POLLOUT
                fd = handle.aio_get_fd()
                by_fd[fd] = handle
                poller.register(fd, events)
            left = deadline - time.monotonic()
            ready = poller.poll(left * 1000) if left > 0 else []
            if not ready:
                raise TimeoutError(f"no answer within {limit} s: " + ", ".join(
                    str(r) for p in self.pending for r in p.values()))
            for fd, events in ready:
                direction = by_fd[fd].aio_get_direction()
                try:
                    if (events & (select.POLLIN | select.POLLHUP) and
                            direction & nbd.AIO_DIRECTION_READ):
                        by_fd[fd].aio_notify_read()
                    elif (events & select.POLLOUT and
                            direction & nbd.AIO_DIRECTION_WRITE):
                        by_fd[fd].aio_notify_write()
                    else:
                        raise ConnectionError("the connection broke")
                except nbd.Error as error:
                    raise ConnectionError(str(error)) from error

    def run(self, requests):
        """Send all, spread over the connections; wait for all."""
        for number, request in enumerate(requests):
            self.send(request, number % len(self.handles))
        while self.in_flight():
            self.wait()


def extents(handle, offset, count):
    """Block status of a range as a list of (offset, count, flags)."""
    found = []
    end = offset + count
    while offset < end:
        entries = []

        def collect(context, _offset, reply, _error):
            if context == nbd.CONTEXT_BASE_ALLOCATION:
                entries.extend(reply)

        handle.block_status(end - offset, offset, collect)
        if not entries:
            raise ServerError(f"no block status at {offset}")
        for length, flags in zip(entries[0::2], entries[1::2]):
            length = min(length, end - offset)
            if length == 0:
                break
            found.append((offset, length, flags))
            offset += length
    return found
