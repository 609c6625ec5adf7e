# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""What a disk may read as, while many requests are in flight.

A disk is a row of units (sectors, or smaller).  Each change fills its
units with words that name the change and the unit, so a unit that is read
tells who wrote it.  For each unit the model keeps the changes that it may
show: those in flight, and of those that have ended all that no later one
is sure to have overwritten.

Time is counted in events: a request that was sent before another one had
ended may come before or after it.
"""

import errno
import select
import struct

import nbd

from byte_model import Mismatch

READ = nbd.AIO_DIRECTION_READ
WRITE = nbd.AIO_DIRECTION_WRITE

FREE = (1 << 63)                # a change that has not ended


class Change:
    """A write, zero or trim request, or the disk's first content."""

    __slots__ = ("name", "number", "first", "end", "sent", "ended", "kind",
                 "error", "side", "loose")

    def __init__(self, kind, number, first, end, sent, side):
        self.kind = kind
        self.number = 0 if kind in ("zero", "trim") else number
        self.name = number
        self.first = first
        self.end = end
        self.sent = sent
        self.ended = FREE
        self.error = None
        self.side = side
        self.loose = False      # met a checkpoint, may have been dropped

    def __str__(self):
        return (f"{self.side}'s {self.kind} {self.name} of units "
                f"{self.first} to {self.end}, {self.sent} to "
                f"{'-' if self.ended == FREE else self.ended}")


class Read:
    """A read, and what it may show besides what the disk shows."""

    __slots__ = ("first", "end", "sent", "buffer", "seen", "more", "epochs",
                 "quiet", "error", "side")

    def __init__(self, first, end, sent, side):
        self.first = first
        self.end = end
        self.sent = sent
        self.side = side
        self.buffer = None
        self.error = None
        self.seen = None        # what the units might show when it was sent
        self.more = []          # changes sent while it was in flight
        self.epochs = []        # checkpoints that it met
        self.quiet = False      # no change of its units was in flight

    def __str__(self):
        return f"{self.side}'s read of units {self.first} to {self.end}"


def content(number, first, end, unit):
    """The bytes of these units as change number writes them."""
    count = unit // 8
    high = number << 32
    return b"".join(struct.pack("<Q", high | at) * count
                    for at in range(first, end))


class Disk:
    """What each unit may show."""

    def __init__(self, units, unit, first):
        self.units = units
        self.unit = unit
        self.shows = [(first,)] * units
        self.history = [first]  # all changes of the model

    def copy(self):
        other = Disk(self.units, self.unit, self.history[0])
        other.shows = self.shows[:]
        other.history = self.history
        return other

    def send(self, change):
        shows = self.shows
        for at in range(change.first, change.end):
            shows[at] += (change,)

    def end(self, change, merged=False):
        """It has ended (its time is set): what had ended before it was
        sent cannot show any more, unless it is a trim, which promises
        nothing.  Of the other side's changes the guest saw what came
        before the last checkpoint; these are older in any case, unless
        both sides are merged."""
        if change.kind == "trim" or change.error or change.loose:
            return
        shows = self.shows
        sent = change.sent
        side = change.side
        for at in range(change.first, change.end):
            now = shows[at]
            if len(now) == 2 and now[1] is change and now[0].ended < sent:
                shows[at] = (change,)
            else:
                shows[at] = tuple(
                    c for c in now if c is change or
                    (c.ended >= sent and (merged or c.side == side)))

    def settle(self, first, chosen):
        """These units were read (chosen is what check returned) and
        nothing was in flight: that is what they are."""
        for at, change in enumerate(chosen, first):
            if change is not None:
                self.shows[at] = (change,)

    def check(self, data, first, allowed, also=(), name="disk"):
        """Raise Mismatch unless each unit of data, from unit first, shows
        what is in allowed[i] or in also.  Two changes that were in flight
        together may both show in one unit.  Returns for each unit the
        change that it shows, or None if it shows several."""
        unit = self.unit
        per_unit = unit // 8
        words = memoryview(data).cast("Q")
        chosen = []
        at = 0
        for i, changes in enumerate(allowed):
            word = words[i * per_unit]
            if data.count(data[at:at + 8], at, at + unit) == per_unit:
                change = self.find(word, first + i, changes, also)
                good = change is not None
            else:
                change = None
                good = all(self.find(w, first + i, changes, also)
                           for w in words[i * per_unit:(i + 1) * per_unit])
            if not good:
                raise Mismatch(self.describe(name, first + i,
                                             data[at:at + unit], changes))
            chosen.append(change)
            at += unit
        return chosen

    @staticmethod
    def find(word, at, changes, also):
        """The change that wrote this word of unit at, if it may show."""
        number = word >> 32
        if word and word & 0xffffffff != at:
            return None
        for change in changes:
            if change.number == number:
                return change
        for change in also:
            if change.number == number and change.first <= at < change.end:
                return change
        return None

    def describe(self, name, at, data, changes):
        words = sorted(set(memoryview(data).cast("Q")))
        touched = [c for c in self.history if c.first <= at < c.end]
        found = []
        for word in words[:4]:
            unit = word & 0xffffffff if word else at
            found.append(f"unit {unit} of change {word >> 32}"
                         if word else "zeroes")
        return (f"{name}: unit {at} (byte {at * self.unit}) shows "
                + ", ".join(found) + "; it may show:\n  "
                + "\n  ".join(map(str, changes))
                + "\nof its changes, the last of which were:\n  "
                + "\n  ".join(map(str, touched[-12:])))

    def check_all(self, data, name):
        """The whole disk; nothing is in flight."""
        return self.check(data, 0, self.shows, name=name)


class Checkpoint:
    """A checkpoint (or stop) that was asked for: what the replicated disk
    might show then, and what was sent until the answer came."""

    def __init__(self, disk, sent, stop):
        self.stop = stop        # or a checkpoint
        self.disk = disk.copy()
        self.sent = sent
        self.primary = []       # changes sent meanwhile
        self.guest = []         # changes in flight at any time of it

    def result(self):
        """What the guest may see afterwards.  A change in flight may
        have come before or after it."""
        disk = self.disk.copy()
        for change in self.primary + self.guest:
            disk.send(change)
        return disk


class Model:
    """A secondary: the disk, and what its guest sees."""

    def __init__(self, units, unit):
        self.units = units
        self.unit = unit
        self.time = 0
        self.number = 1
        first = Change("write", 1, 0, units, 0, "nobody")
        first.ended = 0
        self.first = first
        self.disk = Disk(units, unit, first)
        self.guest = self.disk.copy()
        self.merged = False     # after stop both exports are the disk
        self.last = self.disk.copy()    # at the last checkpoint
        self.open = None        # the checkpoint that is under way
        self.reads = {"guest": [], "primary": []}
        self.changes = {"guest": [], "primary": []}

    def tick(self):
        self.time += 1
        return self.time

    def view(self, side):
        return self.guest if side == "guest" else self.disk

    def readers(self, side):
        """Reads that a change of this side may show in."""
        if self.merged:
            return self.reads["guest"] + self.reads["primary"]
        return self.reads[side]

    def first_content(self):
        return content(1, 0, self.units, self.unit)

    # Requests.

    def new_change(self, side, kind, first, end):
        """It is being sent."""
        self.number += 1
        change = Change(kind, self.number, first, end, self.tick(), side)
        self.view(side).send(change)
        self.disk.history.append(change)
        self.changes[side].append(change)
        for read in self.readers(side):
            if read.first < end and first < read.end:
                read.more.append(change)
        if self.open:
            if side == "guest":
                self.open.guest.append(change)
            else:
                self.open.primary.append(change)
        return change

    def end_change(self, change):
        """It was answered (change.error tells how)."""
        self.changes[change.side].remove(change)
        change.ended = self.tick()
        self.view(change.side).end(change, self.merged)

    def new_read(self, side, first, end):
        read = Read(first, end, self.tick(), side)
        read.seen = self.view(side).shows[first:end]
        changes = self.changes[side]
        if self.merged:
            changes = self.changes["guest"] + self.changes["primary"]
        read.quiet = not self.open and not any(
            c.first < end and first < c.end for c in changes)
        if self.open:
            read.epochs.append(self.open)
        self.reads[side].append(read)
        return read

    def end_read(self, read, data):
        """Check what it has brought."""
        self.reads[read.side].remove(read)
        view = self.view(read.side)
        if read.epochs and read.side == "guest":
            self.end_read_over_checkpoint(read, data)
            return
        also = read.more + [change for epoch in read.epochs if epoch.stop
                            for change in epoch.guest]
        chosen = view.check(data, read.first, read.seen, also, str(read))
        if read.quiet and not read.more and not read.epochs:
            view.settle(read.first, chosen)

    def end_read_over_checkpoint(self, read, data):
        allowed = list(read.seen)
        also = list(read.more)
        for epoch in read.epochs:
            for i, changes in enumerate(
                    epoch.disk.shows[read.first:read.end]):
                allowed[i] += changes
            also += epoch.primary
            also += epoch.guest
        self.guest.check(data, read.first, allowed, also, str(read))

    # Commands.

    def send_checkpoint(self, stop=False):
        self.open = Checkpoint(self.disk, self.tick(), stop)
        self.open.guest = self.changes["guest"][:]
        for side in "guest", "primary":
            for read in self.reads[side]:
                read.epochs.append(self.open)

    def end_checkpoint(self):
        """It was answered: the guest has the primary's data."""
        self.tick()
        self.last = self.open.disk.copy()
        for change in self.open.primary:
            self.last.send(change)
        self.guest = self.open.result()
        for change in self.open.guest:
            change.loose = True
        self.open = None

    def end_stop(self):
        """Stop without failover was answered: from now on there is one
        disk, with what came through either export meanwhile."""
        guest = self.open.guest
        self.end_checkpoint()
        for change in guest:
            self.disk.send(change)
        for at, changes in enumerate(self.disk.shows):
            if changes is not self.guest.shows[at]:
                self.disk.shows[at] = tuple(
                    set(changes) | set(self.guest.shows[at]))
        self.guest = self.disk
        self.merged = True
        # What is in flight may meet the other side's changes.
        for side, other in ("guest", "primary"), ("primary", "guest"):
            for read in self.reads[side]:
                read.more += self.changes[other] + guest
                read.quiet = False

    def abandon_checkpoint(self):
        """It was refused, and nothing has changed."""
        self.open = None


class Client:
    """Connections to both sides' exports, which tell the model what they
    send and what is answered."""

    def __init__(self, model, handles):
        self.model = model
        self.handles = handles  # side -> list of handles
        self.in_flight = 0
        self.answers = []       # of which the model was not told yet
        self.sent = 0
        self.on_error = self.raise_error
        self.by_fd = {h.aio_get_fd(): h for side in handles.values()
                      for h in side}

    @staticmethod
    def raise_error(side, kind, request, error):
        raise Mismatch(f"{request or side + kind}: "
                       f"{errno.errorcode.get(error, error)}")

    def send(self, side, which, kind, first=0, end=0, flags=0):
        model = self.model
        handle = self.handles[side][which]
        unit = model.unit
        request = None
        if kind == "read":
            request = model.new_read(side, first, end)
            # libnbd 1.14 forgets to free its own Buffer type.
            request.buffer = bytearray((end - first) * unit)
        elif kind != "flush":
            request = model.new_change(side, kind, first, end)

        # An exception that leaves it would be lost in libnbd.
        def completed(error):
            self.answers.append((side, kind, request, error.value))
            return 1

        self.in_flight += 1
        self.sent += 1
        offset = first * unit
        count = (end - first) * unit
        if kind == "read":
            handle.aio_pread(request.buffer, offset, completed)
        elif kind == "write":
            data = content(request.number, first, end, unit)
            handle.aio_pwrite(data, offset, completed, flags)
        elif kind == "zero":
            handle.aio_zero(count, offset, completed, flags)
        elif kind == "trim":
            handle.aio_trim(count, offset, completed, flags)
        else:
            handle.aio_flush(completed)

    def finish(self, side, kind, request, error):
        self.in_flight -= 1
        if error:
            self.on_error(side, kind, request, error)
        if kind == "flush":
            return
        request.error = error
        if kind != "read":
            self.model.end_change(request)
        elif error:
            self.model.reads[side].remove(request)
        else:
            data, request.buffer = request.buffer, None
            self.model.end_read(request, data)

    def wait(self, others=(), limit=60):
        """Wait until something was answered, and tell the model; or until
        one of the others (descriptors) can be read: these are returned."""
        poller = select.poll()
        for fd, handle in self.by_fd.items():
            direction = handle.aio_get_direction()
            poller.register(
                fd, (select.POLLIN if direction & READ else 0) |
                (select.POLLOUT if direction & WRITE else 0))
        for other in others:
            poller.register(other, select.POLLIN)
        ready = poller.poll(limit * 1000)
        if not ready:
            raise TimeoutError(f"no answer within {limit} s: " + "; ".join(
                str(r) for side in ("guest", "primary") for r in
                self.model.changes[side] + self.model.reads[side]))
        found = []
        for fd, events in ready:
            handle = self.by_fd.get(fd)
            if handle is None:
                found.append(fd)
                continue
            self.notify(handle, events)
        answers, self.answers = self.answers, []
        for answer in answers:
            self.finish(*answer)
        return found

    @staticmethod
    def notify(handle, events):
        direction = handle.aio_get_direction()
        try:
            if events & (select.POLLIN | select.POLLHUP) and direction & READ:
                handle.aio_notify_read()
            elif events & select.POLLOUT and direction & WRITE:
                handle.aio_notify_write()
            elif events & (select.POLLHUP | select.POLLERR):
                raise ConnectionError("the connection broke")
            if handle.aio_is_dead() or handle.aio_is_closed():
                raise ConnectionError("the server hung up")
        except nbd.Error as error:
            raise ConnectionError(str(error)) from error

    def drain(self):
        while self.in_flight:
            self.wait()

    def close(self):
        """Hang up, without which nbdkit does not end."""
        self.drain()
        for side in self.handles.values():
            for handle in side:
                handle.shutdown()

    def drain_side(self, side):
        while self.model.changes[side] or self.model.reads[side]:
            self.wait()

    def only(self, side):
        """A client with the connections of one side, none of whose
        requests is in flight; the other's server is gone."""
        return Client(self.model, {side: self.handles[side]})


class Mix:
    """Random requests, often to the same places."""

    def __init__(self, rng, model, cluster, weights):
        self.rng = rng
        self.units = model.units
        self.per_cluster = max(1, cluster // model.unit)
        self.kinds = [kind for kind, _ in weights]
        self.weights = []
        total = 0
        for _, weight in weights:
            total += weight
            self.weights.append(total)

    def range(self):
        rng = self.rng
        units = self.units
        kind = rng.random()
        if kind < 0.6:
            count = rng.randrange(1, 17)
        elif kind < 0.8:
            count = rng.randrange(1, 2 * min(self.per_cluster, 64))
        elif kind < 0.97:
            # Whole clusters.
            count = self.per_cluster * rng.choice([1, 1, 2])
            first = rng.randrange(units) // self.per_cluster
            first *= self.per_cluster
            return first, min(first + min(count, 2048), units)
        else:
            count = rng.randrange(1, min(units, 1024))
        count = min(count, units)
        first = rng.randrange(units - count + 1)
        return first, first + count

    def next(self):
        """Side, kind, first, end, flags of the next request."""
        rng = self.rng
        side, kind = rng.choices(self.kinds, cum_weights=self.weights)[0]
        if kind == "flush":
            return side, kind, 0, 0, 0
        first, end = self.range()
        flags = 0
        if kind != "read":
            if rng.random() < 0.05:
                flags |= nbd.CMD_FLAG_FUA
            if kind == "zero" and rng.random() < 0.5:
                flags |= nbd.CMD_FLAG_NO_HOLE
        return side, kind, first, end, flags
