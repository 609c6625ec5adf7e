# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Clients of the blklogwrites filter that keep many requests in flight.

    blklogwrites.py random SECTOR_SIZE [PARAMETER...]
    blklogwrites.py copies|killed|held|many
    blklogwrites.py full LOG PARAMETER...

Each makes a disk and a log in the current folder, and judges the log by
tests/lib/writelog_format.py.  ROUNDS and SEED come from the environment; a
failure prints the seed that repeats it.
"""

import os
import random
import sys

import nbd

import writelog_format as wf
from byte_model import compare
from qed_server import Pipeline, Request, Server

CONNECTIONS = 4
DEPTH = 12                      # on each connection
SEED = int(os.environ.get("SEED", "1"))
ROUNDS = int(os.environ.get("ROUNDS", "1"))


def read(name):
    with open(name, "rb") as f:
        return f.read()


def make_disk(rng, size):
    """Random data, with zeroes behind them."""
    base = rng.randbytes(size // 2) + bytes(size - size // 2)
    with open("disk", "wb") as f:
        f.write(base)
    return base


def forget_log():
    if os.path.exists("log"):
        os.unlink("log")


def start(*params, disk="disk", plugin="file", filters=()):
    """The filter over a disk, with four connections."""
    options = [*filters, "--filter=blklogwrites"]
    server = Server(disk, ["log=log", *params], options=options,
                    plugin=plugin)
    return server, [server.connect() for _ in range(CONNECTIONS)]


def random_request(rng, size, spots):
    """Most of them meet others: they begin near one of a few spots."""
    offset = max(0, min(size - 1, rng.choice(spots) + rng.randrange(-900, 900)))
    count = min(rng.choice((1, 100, 512, 4096, 9000, 70000)), size - offset)
    if rng.random() < 0.3:
        offset -= offset % 512
    flags = nbd.CMD_FLAG_FUA if rng.random() < 0.1 else 0
    kind = rng.choice(["write"] * 12 + ["zero"] * 3 + ["trim"] * 3 +
                      ["flush"] * 2)
    if kind == "flush":
        return Request(kind, 0, 0)
    if kind == "zero" and rng.random() < 0.5:
        flags |= nbd.CMD_FLAG_NO_HOLE
    data = rng.randbytes(count) if kind == "write" else None
    return Request(kind, offset, count, data, flags)


def run_random(rng, pipe, size, requests, after_each, sent=lambda request: None):
    spots = [rng.randrange(size) for _ in range(5)]
    for number in range(requests):
        which = number % CONNECTIONS
        while pipe.in_flight(which) >= DEPTH:
            after_each(pipe.wait())
        request = random_request(rng, size, spots)
        sent(request)
        pipe.send(request, which)
    while pipe.in_flight():
        after_each(pipe.wait())


def no_errors(finished):
    for request in finished:
        assert request.error is None, str(request)


def expect_same(base, entries, sector_size, what):
    """Base plus log is the disk."""
    replayed = bytearray(base)
    wf.replay(entries, replayed, sector_size)
    compare(f"{what}: the log", replayed, read("disk"))


def stop(server, handles):
    for handle in handles:
        handle.shutdown()
    server.stop()


def check_log(base, what, first_entries=()):
    """The log after a clean end: exact length, replays to the disk."""
    log = wf.load("log")
    top, entries, end = wf.parse_log(log)
    assert end == len(log), f"{what}: {len(log)} bytes, {end} in entries"
    assert entries[:len(first_entries)] == list(first_entries), what
    expect_same(base, entries, top.sector_size, what)
    return top, entries


def test_random(sector_size, params):
    for seed in range(SEED, SEED + ROUNDS):
        rng = random.Random(seed)
        size = rng.choice((1000000, 1000001, 700000 + rng.randrange(4096)))
        base = make_disk(rng, size)
        forget_log()
        server, handles = start(f"log-sector-size={sector_size}", *params)
        run_random(rng, Pipeline(handles), size, 600, no_errors)
        stop(server, handles)
        top, entries = check_log(base, f"SEED={seed}")
        assert top.sector_size == int(sector_size)
        flags = [e.flags for e in entries]
        # Few trims cover a large sector, so few are discards.
        for wanted in (wf.FLUSH, wf.FUA) + (
                (wf.DISCARD,) if top.sector_size <= 512 else ()):
            assert any(f & wanted for f in flags), f"SEED={seed}: no {wanted}"


class Watch:
    """What the log must count at any time: when a flush or a FUA request that
    made an entry is answered, all that was answered before it was sent."""

    def __init__(self):
        self.acknowledged = 0   # requests that made an entry at least:
                                # of a trim there may be none
        self.durable = 0        # of these, what must be counted

    def sent(self, request):
        request.before = self.acknowledged

    def __call__(self, finished):
        no_errors(finished)
        self.acknowledged += sum(r.kind != "trim" for r in finished)
        for request in finished:
            if request.kind == "flush" or (
                    request.flags & nbd.CMD_FLAG_FUA and
                    request.kind != "trim"):
                self.durable = max(self.durable, request.before + 1)


def test_copies():
    """A copy made at any moment has whole entries only."""
    for seed in range(SEED, SEED + 3 * ROUNDS):
        rng = random.Random(seed)
        base = make_disk(rng, 500000)
        server, handles = start()
        watch = Watch()
        copies = 0

        def maybe_copy(finished):
            nonlocal copies
            watch(finished)
            if watch.acknowledged >= 30 * (copies + 1):
                copies += 1
                durable = watch.durable
                log = wf.load("log")
                top, entries, _ = wf.parse_log(log)
                assert top.nr_entries >= durable, \
                    f"SEED={seed}: {top.nr_entries} of {durable} entries"
                check_known(entries, seed)

        run_random(rng, Pipeline(handles), 500000, 500, maybe_copy,
                   watch.sent)
        stop(server, handles)
        assert copies > 5
        check_log(base, f"SEED={seed}")


def check_known(entries, seed):
    """Random data are never all zero: an entry whose data have not been
    written yet would be."""
    for number, e in enumerate(entries):
        if e.flags & (wf.FLUSH | wf.DISCARD | wf.MARK) == 0:
            assert e.nr > 0, f"SEED={seed}: entry {number} is empty"


def test_killed():
    """kill -9 at any moment; then the log is continued."""
    for seed in range(SEED, SEED + 4 * ROUNDS):
        rng = random.Random(seed)
        make_disk(rng, 500000)
        forget_log()
        server, handles = start("log-super-update-interval=50")
        watch = Watch()
        limit = rng.randrange(50, 500)
        done = 0

        def kill_later(finished):
            nonlocal done
            watch(finished)
            done += len(finished)
            if done >= limit and server.alive():
                server.kill()
                raise ConnectionError

        try:
            run_random(rng, Pipeline(handles), 500000, 600, kill_later,
                       watch.sent)
        except ConnectionError:
            pass
        assert not server.alive()

        top, entries = wf.read_log("log")
        assert top.nr_entries >= watch.durable, f"SEED={seed}"
        assert top.nr_entries >= done - 100, f"SEED={seed}: no update"
        base = read("disk")
        server, handles = start("log-append=true")
        run_random(rng, Pipeline(handles), 500000, 200, no_errors)
        stop(server, handles)
        _, all_entries = wf.read_log("log")
        assert all_entries[:len(entries)] == entries, f"SEED={seed}"
        expect_same(base, all_entries[len(entries):], 512, f"SEED={seed}")


def test_held():
    """Held writes go to a file beyond a bound, and come back."""
    size = 64 * 1024 * 1024
    rng = random.Random(SEED)
    with open("disk", "wb") as f:
        f.truncate(size)
    server, handles = start("log-order=durability", "log-sector-size=4096")
    pipe = Pipeline(handles)
    piece = 256 * 1024
    for number in range(160):
        offset = rng.randrange(size // piece) * piece
        while pipe.in_flight(number % CONNECTIONS) >= 2:
            no_errors(pipe.wait())
        flags = nbd.CMD_FLAG_FUA if number % 10 == 9 else 0
        offset += 8192 if flags else 0
        count = 4096 if flags else piece
        pipe.send(Request("write", offset, count, rng.randbytes(count), flags),
                  number % CONNECTIONS)
    while pipe.in_flight():
        no_errors(pipe.wait())
    peak = server.peak_memory()
    assert peak < 64 * 1024 * 1024, f"{peak} bytes of memory"
    log = wf.load("log")
    top, entries, _ = wf.parse_log(log)
    assert all(e.flags == wf.FUA for e in entries), "not held back"
    assert top.nr_entries == 16
    pipe.run([Request("flush", 0, 0)])
    top, entries = wf.read_log("log")
    assert entries[-1].flags == wf.FLUSH and top.nr_entries > 144
    stop(server, handles)
    check_log(bytes(size), "held")


def random_small(rng, size):
    """A request on a few sectors, by which what is held is often cut."""
    kind = rng.choice(["write"] * 5 + ["trim"] * 3 + ["zero"])
    fua = rng.random() < 0.3
    count = 512 * rng.randrange(1, 4 if fua else 40)
    offset = 512 * rng.randrange((size - count) // 512 + 1)
    return Request(kind, offset, count,
                   rng.randbytes(count) if kind == "write" else None,
                   nbd.CMD_FLAG_FUA if fua else 0)


def expect_full(handle, request):
    try:
        request(handle)
    except nbd.Error as error:
        assert error.errno == "ENOSPC", error
    else:
        sys.exit("a request succeeds after the log's failure")


def fill(log, params):
    """Until the log is full, then flush.  Returns what the disk was, and the
    request that failed."""
    rng = random.Random(SEED)
    size = 256 * 1024
    base = make_disk(rng, size)
    server = Server("disk", [f"log={log}", "log-order=durability", *params],
                    options=["--filter=blklogwrites"], plugin="file")
    handle = server.connect()
    pipe = Pipeline([handle])
    failed = None
    for number in range(20000):
        request = random_small(rng, size)
        if number % 50 == 49:
            request = Request("flush", 0, 0)
        pipe.run([request])
        if request.error is not None:
            failed = request
            break
    assert failed and failed.kind != "flush", failed
    assert "No space left" in str(failed.error), failed
    before = read("disk")
    expect_full(handle, lambda h: h.pwrite(bytes(512), 0))
    expect_full(handle, lambda h: h.pwrite(bytes(512), 0, nbd.CMD_FLAG_FUA))
    expect_full(handle, lambda h: h.zero(512, 0))
    expect_full(handle, lambda h: h.trim(512, 0))
    assert read("disk") == before
    handle.flush()
    stop(server, [handle])
    assert server.log().count("nothing more can be logged") == 1
    return base, failed


def check_full(base, failed, log):
    """All but what the failed request may have changed."""
    replayed = bytearray(base)
    top, entries = wf.read_log(log)
    wf.replay(entries, replayed, top.sector_size)
    disk = read("disk")
    compare("the log", replayed[:failed.offset], disk[:failed.offset])
    compare("the log", replayed[failed.end:], disk[failed.end:], failed.end)


def download(uri, name):
    handle = nbd.NBD()
    handle.connect_uri(uri)
    with open(name, "wb") as f:
        f.write(handle.pread(handle.get_size(), 0))


def test_full(log, params):
    """A log gets full in the order of durability: what was acknowledged is
    in it after the next flush."""
    base, failed = fill(log, params)
    if "://" in log:
        download(log, "copy")
        log = "copy"
    check_full(base, failed, log)


def write_many(server, handle, requests):
    """Pairs of sector and flags.  Returns the memory used half-way, and in
    the end."""
    peaks = []

    def retire():
        handle.poll(-1)
        while (handle.aio_in_flight() and
               (cookie := handle.aio_peek_command_completed()) > 0):
            handle.aio_command_completed(cookie)

    for number, (sector, flags) in enumerate(requests):
        while handle.aio_in_flight() >= 32:
            retire()
        data = bytearray(number.to_bytes(8, "little") * 64)
        handle.aio_pwrite(nbd.Buffer.from_bytearray(data), sector * 512,
                          flags=flags)
        if number == len(requests) // 2:
            peaks.append(server.peak_memory())
    while handle.aio_in_flight():
        retire()
    return peaks + [server.peak_memory()]


def test_many():
    """Many small held writes, and FUA writes among them, take bounded
    memory."""
    size = 64 * 1024 * 1024
    rng = random.Random(SEED)
    with open("disk", "wb") as f:
        f.truncate(size)
    server, handles = start("log-order=durability")
    requests = [(rng.randrange(size // 512),
                 nbd.CMD_FLAG_FUA if i % 100 == 99 else 0)
                for i in range(120000)]
    peaks = write_many(server, handles[0], requests)
    # By then what may be in memory is.
    assert peaks[1] - peaks[0] < 3 * 1024 * 1024, f"{peaks} bytes of memory"
    assert peaks[1] < 64 * 1024 * 1024, f"{peaks[1]} bytes of memory"
    _, entries = wf.read_log("log")
    assert [e.flags for e in entries] == [wf.FUA] * 1200, "not held back"
    handles[0].flush()
    _, entries = wf.read_log("log")
    assert all(e.flags == 0 for e in entries[1200:-1])
    assert entries[-1].flags == wf.FLUSH
    stop(server, handles)
    check_log(bytes(size), "many")


def main():
    what, *rest = sys.argv[1:]
    if what == "random":
        test_random(rest[0], rest[1:])
    elif what == "full":
        test_full(rest[0], rest[1:])
    else:
        {"copies": test_copies, "killed": test_killed, "held": test_held,
         "many": test_many}[what]()


main()
