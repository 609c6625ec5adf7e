#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Events of the control sockets, blkctl --watch, and blkctl --metrics.

    events.py STORY

A story is one of the functions below; its docstring says what is promised.
"""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import time

import nbd
from prometheus_client.parser import text_string_to_metric_families

from byte_model import Mismatch, check
from qed_server import Server
from qmp_client import Qmp, QmpError
from replication_server import Primary, Secondary, run_story, stand_still

SIZE = 4 << 20
CLUSTER = 65536


class Desk:
    """A folder with what a story needs in it, and its servers."""

    def __init__(self, directory):
        self.directory = directory
        self.servers = []

    def path(self, name):
        return os.path.join(self.directory, name)

    def disk(self, name):
        if not os.path.exists(self.path(name)):
            with open(self.path(name), "wb") as f:
                f.truncate(SIZE)
        return self.path(name)

    def add(self, server):
        self.servers.append(server)
        return server

    def secondary(self, name="s", **params):
        return self.add(Secondary(
            self.disk(name), self.path(name + "-a"), self.path(name + "-h"),
            **params))

    def primary(self, remote, name="p", **params):
        return self.add(Primary(self.disk(name), remote, **params))

    def end(self):
        for server in reversed(self.servers):
            server.kill()


def listen(server):
    """A client that has negotiated, and so gets events."""
    return Qmp(server.control_path)


def data(client, name, **wanted):
    """The data of the next event of this name that has these members, of any
    number of others before it."""
    while True:
        event = client.receive()
        check(set(event) == {"event", "data", "timestamp"}, str(event))
        if event["event"] == name and \
                wanted.items() <= event["data"].items():
            return event["data"]


def life(desk):
    """Stages and the link are told on both sides, in order."""
    secondary = desk.secondary()
    primary = desk.primary(secondary.uri)
    at_s, at_p = listen(secondary), listen(primary)
    secondary.start()
    check(data(at_s, "REPLICATION_STAGE") ==
          {"stage": "running", "role": "secondary"}, "start")
    primary.start("full")
    for link in "connecting", "connected":
        check(data(at_p, "REPLICATION_LINK") == {"link": link}, link)
    check(data(at_p, "REPLICATION_STAGE") ==
          {"stage": "running", "role": "primary"}, "start")
    check(data(at_s, "REPLICATION_LINK") == {"link": "connected"}, "link")
    primary.checkpoint()
    secondary.checkpoint()
    primary.stop_replication(False)
    check(data(at_p, "REPLICATION_STAGE")["stage"] == "done", "stop")
    check(data(at_p, "REPLICATION_LINK") == {"link": "none"}, "stop")
    data(at_s, "REPLICATION_LINK", link="lost")
    secondary.failover()
    for stage in "failover", "done":
        check(data(at_s, "REPLICATION_STAGE") ==
              {"stage": stage, "role": "promoted"}, stage)
    secondary.command("replication-reset")
    check(data(at_s, "REPLICATION_STAGE") ==
          {"stage": "none", "role": "secondary"}, "reset")


def link(desk):
    """A remote that goes, is refused, and comes back is told, and why."""
    place = desk.path("place")
    primary = desk.primary(f"nbd+unix:///?socket={place}", start="true")
    at_p = listen(primary)
    secondary = desk.secondary(start="true")
    os.symlink(secondary.socket, place)
    data(at_p, "REPLICATION_LINK", link="connected")
    secondary.kill()
    told = data(at_p, "REPLICATION_LINK")
    check(told["link"] == "lost" and "connection lost" in told["link-desc"],
          str(told))
    secondary = desk.secondary(recover="rollback", start="true")
    secondary.failover()
    os.unlink(place)
    os.symlink(secondary.socket, place)
    told = data(at_p, "REPLICATION_LINK", link="refused")
    check("promoted" in told["link-desc"], str(told))
    # The reason changes, and so is told again: nothing is there.
    secondary.kill()
    told = data(at_p, "REPLICATION_LINK", link="lost")
    check("promoted" not in told["link-desc"], str(told))


def errors(desk):
    """An error and a checkpoint that fails are told, with their reasons."""
    secondary = desk.secondary(start="true")
    primary = desk.primary(secondary.uri, start="true")
    at_p = listen(primary)
    secondary.kill()
    told = data(at_p, "REPLICATION_ERROR")
    check(told["desc"] == primary.query()["desc"], str(told))
    try:
        primary.checkpoint()
        raise Mismatch("a checkpoint without remote")
    except QmpError as error:
        told = data(at_p, "REPLICATION_CHECKPOINT_FAILED")
        check(told == {"desc": str(error)}, f"{told}, {error}")
    primary.stop_replication(False)
    for command in "replication-checkpoint", "replication-checkpoint-prepare":
        try:
            primary.command(command)
            raise Mismatch("a checkpoint after the stop")
        except QmpError as error:
            told = data(at_p, "REPLICATION_CHECKPOINT_FAILED",
                        desc=str(error))


def deaf(desk):
    """A client that does not read delays neither commands nor requests."""
    server = desk.secondary()
    client = listen(server)
    server.start()
    # Each is more than an event that is a hundred bytes long.
    for _ in range(600):
        server.stop_replication(False)
        server.start()
    handle = server.connect_primary()
    handle.pwrite(b"p" * CLUSTER, 0)
    check(server.query()["hidden-clusters"] > 0, str(server.query()))
    client.command("query-replication")
    # And is told of what comes after it has read.
    server.stop_replication(False)
    data(client, "REPLICATION_STAGE", stage="done")


def log_error(desk):
    """A log that can log no more tells it, once, with the reason."""
    log = desk.path("log")
    switch = desk.path("fail")
    with open(log, "wb") as f:
        f.truncate(1 << 20)
    store = desk.add(Server(log, plugin="file", options=["--filter=error"],
                            params=["error=ENOSPC", "error-pwrite-rate=100%",
                                    f"error-file={switch}"]))
    control = desk.path("log.ctl")
    server = desk.add(Server(
        desk.disk("d"), plugin="file", options=["--filter=blklogwrites"],
        params=[f"log={store.uri}", f"log-control={control}"]))
    client = Qmp(control)
    handle = nbd.NBD()
    handle.connect_uri(server.uri)
    handle.pwrite(b"x" * 512, 0)
    open(switch, "wb").close()
    for _ in range(2):
        try:
            handle.pwrite(b"x" * 512, 0)
            raise Mismatch("logged into a log that fails")
        except nbd.Error:
            pass
    told = data(client, "BLOCK_LOG_ERROR")
    check(told == {"error": client.command("query-log")["error"]}, str(told))


class Watch:
    """blkctl --watch, and what it prints."""

    def __init__(self, *sockets):
        self.process = subprocess.Popen(
            ["blkctl", "--watch", *sockets], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def line(self, stream, limit=60):
        check(select.select([stream], [], [], limit)[0], "nothing is printed")
        return stream.readline()

    def event(self):
        return json.loads(self.line(self.process.stdout))

    def message(self):
        return self.line(self.process.stderr).strip()

    def end(self):
        self.process.terminate()
        out, err = self.process.communicate(timeout=60)
        check(self.process.returncode == 0, f"{self.process.returncode} {err}")
        return out, err


def watch(desk):
    """blkctl --watch prints a line an event, over the end of a server."""
    first, second = desk.secondary("s"), desk.secondary("t")
    place = desk.path("place")
    os.symlink(first.control_path, place)
    watcher = Watch(place, second.control_path)
    while not (first.query()["stage"] == "running" and
               select.select([watcher.process.stdout], [], [], 0)[0]):
        # It may not be listening yet.
        first.command("replication-start" if first.query()["stage"] != "running"
                      else "replication-stop")
        time.sleep(0.01)
    event = watcher.event()
    check(event["socket"] == place and event["event"] == "REPLICATION_STAGE"
          and event["data"]["role"] == "secondary", str(event))

    first.kill()
    check(watcher.message() == f"blkctl: warning: {place}: the server hung "
          "up; trying again until it is back", "no message")
    second.start()
    while (event := watcher.event())["socket"] == place:
        pass
    check(event["data"]["stage"] == "running", str(event))
    first = desk.secondary("s", recover="discard")
    os.unlink(place)
    os.symlink(first.control_path, place)
    check(watcher.message() ==
          f"blkctl: warning: {place}: connected again", "not back")
    first.start()
    event = watcher.event()
    check((event["socket"], event["data"]["stage"]) == (place, "running"),
          str(event))
    # One that stands still keeps nothing of the others back.
    stand_still(first.process)
    second.stop_replication(False)
    event = watcher.event()
    check(event["data"]["stage"] == "done", str(event))
    watcher.end()


def watch_ends(desk):
    """blkctl --watch wants all its sockets at first, and ends when told to."""
    server = desk.secondary()
    watcher = subprocess.run(
        ["blkctl", "--watch", server.control_path, desk.path("none")],
        capture_output=True, text=True, check=False)
    check(watcher.returncode == 2 and "none: connecting" in watcher.stderr,
          str(watcher))
    watcher = subprocess.run(
        ["blkctl", "--watch", server.control_path, server.control_path],
        capture_output=True, text=True, check=False)
    check(watcher.returncode == 2 and "the same socket" in watcher.stderr,
          str(watcher))
    for end in signal.SIGINT, signal.SIGHUP:
        watcher = Watch(server.control_path)
        while not select.select([watcher.process.stdout], [], [], 0.01)[0]:
            server.command("replication-stop" if server.query()["stage"] ==
                           "running" else "replication-start")
        watcher.process.send_signal(end)
        watcher.process.communicate(timeout=60)
        check(watcher.process.returncode == 0, f"{end}")


# A sample: a name, labels in which a quote, a backslash and a line end are
# escaped, and a number.
SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)'
                    r'\{([a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"'
                    r'(?:,[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*")*)\} '
                    r'(-?[0-9][0-9.e+-]*)')


def check_format(text):
    """The rules of the text format: HELP, TYPE and then the samples of each
    family in a group, none twice.  Returns the samples."""
    check(text.endswith("\n"), "the last line has no end")
    families, samples, family = [], {}, None
    lines = text.split("\n")[:-1]
    for i, line in enumerate(lines):
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
            check(family not in families, f"{family} comes twice")
            check(re.fullmatch(f"# TYPE {family} (gauge|counter)",
                               lines[i + 1]), lines[i + 1])
            check(lines[i + 2].startswith(family + "{"), f"{family} is empty")
            check(family.endswith("_total") ==
                  lines[i + 1].endswith("counter"), lines[i + 1])
            families.append(family)
        elif not line.startswith("# TYPE "):
            match = SAMPLE.fullmatch(line)
            check(match and match[1] == family, line)
            check(match.group(1, 2) not in samples, f"{line} comes twice")
            samples[match.group(1, 2)] = float(match[3])
    return samples


def metrics(desk):
    """blkctl --metrics keeps the rules of Prometheus' text."""
    secondary = desk.secondary(start="true")
    primary = desk.primary(secondary.uri, start="true")
    control = desk.path("log.ctl")
    server = desk.add(Server(
        desk.disk("d"), plugin="file", options=["--filter=blklogwrites"],
        params=[f"log={desk.path('log')}", f"log-control={control}"]))
    check(server.alive(), server.log())
    strange = desk.path('st"ra\\ng\ne')
    os.symlink(secondary.control_path, strange)
    none = desk.path("none")
    primary.checkpoint()
    run = subprocess.run(
        ["blkctl", "--metrics", primary.control_path, strange, control, none],
        capture_output=True, text=True, check=False)
    check(run.returncode == 2 and "none: connecting" in run.stderr, str(run))
    samples = check_format(run.stdout)
    if shutil.which("promtool"):
        subprocess.run(["promtool", "check", "metrics"], input=run.stdout,
                       text=True, check=True)

    # Prometheus' own parser sees the same.
    parsed = {}
    for family in text_string_to_metric_families(run.stdout):
        for sample in family.samples:
            parsed[sample.name, tuple(sorted(sample.labels.items()))] = \
                sample.value
    check(len(parsed) == len(samples), run.stdout)

    def value(name, socket, **labels):
        labels["socket"] = socket
        return parsed.get((f"nbdkit_{name}", tuple(sorted(labels.items()))))
    for socket, up in ((primary.control_path, 1), (strange, 1), (control, 1),
                       (none, 0)):
        check(value("control_up", socket) == up, run.stdout)
    check(value("replication_checkpoints_total", primary.control_path,
                mode="primary") == 1, run.stdout)
    check(value("replication_stage", strange, mode="secondary",
                stage="running") == 1, run.stdout)
    check(value("replication_stage", strange, mode="secondary",
                stage="done") == 0, run.stdout)
    check(value("log_bytes", control) == 512, run.stdout)

    run = subprocess.run(["blkctl", "--metrics", primary.control_path],
                         capture_output=True, text=True, check=False)
    check(run.returncode == 0 and run.stderr == "", str(run))
    check(check_format(run.stdout), run.stdout)


def families_of(*sockets):
    run = subprocess.run(["blkctl", "--metrics", *sockets],
                         capture_output=True, text=True, check=True)
    check_format(run.stdout)
    return set(re.findall(r"^# TYPE (\S+)", run.stdout, re.M))


def every_family(desk):
    """Each family that blkctl knows is told by a server in some state; so do
    the members of a copy's event stand in its status.  The checkpoint is the
    same by both."""
    secondary = desk.secondary(start="true")
    primary = desk.primary(secondary.uri, sync_rate="64K")
    control = desk.path("log.ctl")
    desk.add(Server(
        desk.disk("d"), plugin="file", options=["--filter=blklogwrites"],
        params=[f"log={desk.path('log')}", f"log-control={control}"]))
    at_p = listen(primary)
    primary.start("full")
    primary.wait_for(lambda s: s["sync"]["running"] and s["sync"]["rate"] > 0,
                     "copying")
    found = families_of(primary.control_path, control)
    sync = primary.query()["sync"]
    told = data(at_p, "REPLICATION_SYNC", running=True)
    check(set(told) <= set(sync) and told["total"] == sync["total"],
          f"{told} {sync}")
    subprocess.run(["blkctl", primary.control_path, secondary.control_path,
                    "replication-checkpoint"], check=True,
                   stdout=subprocess.DEVNULL)
    found |= families_of(primary.control_path, secondary.control_path)
    source = os.path.join(os.environ["srcdir"], "tools/blkctl/metrics.c")
    with open(source, encoding="utf-8") as f:
        known = set(re.findall(r'"(nbdkit_\w+)"', f.read()))
    check(found == known, f"never told: {known - found}")

    run = subprocess.run(
        ["blkctl", "--metrics", primary.control_path,
         secondary.control_path], capture_output=True, text=True, check=True)
    ids = re.findall(r'^nbdkit_replication_checkpoint_info.*,id="(\w+)"} 1$',
                     run.stdout, re.M)
    check(len(ids) == 2 and set(ids) == {primary.query()["checkpoint-id"]},
          run.stdout)


STORIES = [life, link, errors, deaf, log_error, watch, watch_ends, metrics,
           every_family]


run_story(STORIES, Desk)
