#!/usr/bin/python3
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

"""Let each call of a command fail once, and look what the user gets.

    faults.py SHIM [STORY...]
    faults.py --valgrind [STORY...]

For every story (a command of a tool, or a server with requests) the calls of
each kind are counted in a run without faults.  Then there is a run for each
of them, in which that one fails: before its work or after it, with EIO,
ENOSPC, EDQUOT, EINTR or EAGAIN, or with a count that is too short.  No run
may crash or hang.  A command that fails says so, with the name of a file if a
file is concerned, and leaves the old content or the new one in a good image;
one that succeeds has done its work, whatever failed below.

FAULTS_STEP=N tries only every N-th call, from another one each time FAULTS_AT
is.  FAULT_ROW=N lets N calls in a row fail, and with them what is to undo the
first.  FAULTS_TIMEOUT=N (30) seconds without an end are a hang.  With
--valgrind no call fails, but memcheck looks at each tool's command for wrong
accesses and leaks.

Exit status 1, after a line for each fault, if there was one; also if a
call that was counted did not come again, or a kind of a story never did.
"""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile

# What the shim can make fail.
KINDS = ("pread pwrite pwritev fsync fdatasync fallocate ftruncate fcntl "
         "openat stat lseek mmap malloc calloc realloc strdup asprintf "
         "pthread_create socket connect send recv bind listen accept4 "
         "rename link unlink").split()
MEMORY = ("malloc", "calloc", "realloc", "strdup", "asprintf", "mmap",
          "pthread_create")
ERRORS = {
    "pread": (errno.EIO, errno.EINTR, 0),
    "pwrite": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR, 0),
    "pwritev": (errno.EIO, errno.ENOSPC, errno.EINTR, 0),
    "fallocate": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "fcntl": (errno.EIO, errno.EAGAIN),
    "send": (errno.EPIPE, errno.EINTR, 0),
    "recv": (errno.ECONNRESET, errno.EINTR, 0),
    "accept4": (errno.EMFILE, errno.EINTR),
    "rename": (errno.EIO, errno.ENOSPC),
    "link": (errno.EIO, errno.ENOSPC),
}
LATE = ("pwrite", "pwritev", "fallocate", "ftruncate", "fdatasync", "fsync",
        "rename", "link", "unlink")
TIMEOUT = int(os.environ.get("FAULTS_TIMEOUT", "30"))   # seconds
TIMED_OUT = 124                 # says timeout(1), in the script of a server

# What messages may name besides the files of a story.
OTHER_NAMES = ("new.log",)

STEP = int(os.environ.get("FAULTS_STEP", "1"))
AT = int(os.environ.get("FAULTS_AT", "0"))


def run(argv, **environment):
    """The result of a command; None if it hangs."""
    try:
        return subprocess.run(argv, capture_output=True, timeout=TIMEOUT,
                              stdin=subprocess.DEVNULL, check=False,
                              env={**os.environ, **environment})
    except subprocess.TimeoutExpired:
        return None


def must(*argv):
    """A command that succeeds."""
    result = run(argv)
    assert result and result.returncode == 0, (argv, result)
    return result.stdout


def content(image):
    """What a disk holds, None if that cannot be told."""
    if not os.path.exists(image):
        return "missing"
    if os.path.getsize(image) == 0:
        return "empty"
    if not image.endswith(".qed"):
        with open(image, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    check = run(["qed-img", "check", image])
    if check is None or check.returncode not in (0, 3):
        return None
    must("qed-img", "convert", "-O", "raw", image, "content.raw")
    return content("content.raw")


class Story:
    """One command: before it, files are made; after it, files are judged."""

    def __init__(self, name, argv, files, judged=(), program=None,
                 is_server=False, after=None, names=(), varies=False,
                 waypoints=None, failed_over=None):
        self.name = name
        self.argv = argv
        self.files = files
        self.judged = judged
        self.program = program or argv[0]
        self.is_server = is_server
        self.after = after      # a command that succeeds then, whatever failed
        # What the disk may be then; what it is if a failover was accepted.
        self.waypoints = waypoints
        self.failed_over = failed_over
        self.is_pair = after is not None or "--filter=replication" in argv
        self.varies = varies or is_server # how often it makes a call
        self.names = names      # what messages may name besides files

    def prepare(self):
        """Files as they are before the command."""
        for name in os.listdir("."):
            if name != "stock":
                if os.path.isdir(name):
                    shutil.rmtree(name)
                else:
                    os.unlink(name)
        for name in self.files:
            if os.path.exists(os.path.join("stock", name)):
                shutil.copy(os.path.join("stock", name), name)

    def play(self, shim, **faults):
        """Run it.  Returns its result, and what the shim reports."""
        self.prepare()
        result = run(self.argv, LD_PRELOAD=shim, FAULT_OBJECT=self.program,
                     FAULT_REPORT="report",
                     **{f"FAULT_{k.upper()}": str(v)
                        for k, v in faults.items()})
        lines = []
        if os.path.exists("report"):
            with open("report", encoding="ascii") as file:
                lines = file.read().splitlines()
        return result, lines

    def contents(self):
        """What the files hold that it changes."""
        return [content(name) for name in self.judged]


def count_calls(lines):
    """Of each kind, as the shim reports them."""
    counts = {}
    for line in lines:
        kind, nr = line.split()
        counts[kind] = max(counts.get(kind, 0), int(nr))
    return counts


class Campaign:
    """All faults of a story."""

    def __init__(self, story, shim):
        self.story = story
        self.shim = shim
        self.sites = self.runs = 0
        self.counts = {}
        self.complaints = []

    def complain(self, what, why):
        """A fault was found."""
        self.complaints.append(f"{self.story.name}: {what}: {why}")
        print("#", self.complaints[-1], flush=True)

    def measure(self):
        """A run without faults: what it does, and how often it calls."""
        story = self.story
        story.prepare()
        self.old = story.contents()
        self.clean, lines = story.play(self.shim, kind="")
        assert self.clean and self.clean.returncode == 0, (story.name,
                                                           self.clean)
        self.new = story.contents()
        counts = count_calls(lines)
        # Of what threads do each time a bit more or less is left out.
        for _ in range(2 if story.varies else 0):
            again = count_calls(story.play(self.shim, kind="")[1])
            counts = {k: min(n, again.get(k, 0)) for k, n in counts.items()}
        for kind in [k for k, n in counts.items() if n == 0]:
            self.complain(kind, "it is called in some runs only")
        self.counts = counts
        return counts

    def judge_failure(self, what, kind, result):
        """The command says that it failed."""
        text = result.stderr.decode(errors="replace")
        names = [*self.story.files, *self.story.judged, *self.story.names,
                 *OTHER_NAMES]
        if not text.strip():
            self.complain(what, "it fails without a word")
        elif kind not in MEMORY and not any(n in text for n in names):
            self.complain(what, f"no name of a file: {text.strip()}")
        for name, now, old, new in zip(self.story.judged,
                                       self.story.contents(), self.old,
                                       self.new):
            # Of a server's requests each one may have been done or not.
            mixture = self.story.is_server or \
                old == "missing" and now != "empty"
            if now not in (old, new) and (now is None or not mixture):
                self.complain(what, f"{name} is neither old nor new: {now}")

    def judge(self, what, kind, result):
        """After a run with a fault."""
        hangs = self.story.is_pair and result and \
            result.returncode == TIMED_OUT
        if result is None or hangs:
            self.complain(what, "it hangs")
        elif result.returncode < 0 or result.returncode >= 128:
            self.complain(what, f"it crashes: {result.returncode}: "
                          f"{result.stderr.decode(errors='replace')[-200:]}")
        elif result.returncode != 0:
            self.judge_failure(what, kind, result)
        elif (self.story.name, kind) in EXEMPT:
            pass
        elif result.stdout != self.clean.stdout:
            self.complain(what, "it succeeds with another output")
        elif self.story.after:
            pass                # which may have to complete a failover
        elif self.story.contents() != self.new:
            self.complain(what, "it succeeds without having done its work")
        if self.story.after:
            self.look_afterwards(what)

    def look_afterwards(self, what):
        """What the story leaves can be gone on from, and is one of the
        contents that there were on the way."""
        result = run(self.story.after)
        if result is None or result.returncode != 0:
            text = result.stderr.decode(errors="replace") if result else ""
            self.complain(what, f"no way to go on: {text[-300:]}")
        else:
            values = disk_values("second.raw")
            good = values == self.story.failed_over \
                if os.path.exists("accepted") \
                else values in self.story.waypoints
            if not good:
                self.complain(what, f"the disk has {values}")

    def run(self):
        """All of them."""
        counts = self.measure()
        if not counts:
            self.complain("all", "it makes no call that could fail")
        sites = [(kind, call, nr) for kind, nr in counts.items()
                 for call in range(1 + AT % STEP, nr + 1, STEP)]
        # A run of these takes a second.
        if self.story.is_pair and STEP > 1:
            sites = sites[AT % STEP::STEP]
        for site in sites:
            self.sites += 1
            for err in ERRORS.get(site[0], (errno.EIO,)):
                self.try_site(*site, err, 0)
                if site[0] in LATE and err != 0:
                    self.try_site(*site, err, 1)

    def try_site(self, kind, call, nr, err, late):
        """Let this call fail."""
        what = f"{kind} {call} of {nr}, errno {err}" + \
            (", done all the same" if late else "")
        for _ in range(3 if self.story.varies else 1):
            result, lines = self.story.play(self.shim, kind=kind, nr=call,
                                            errno=err, late=late)
            self.runs += 1
            if result is None or "fired" in lines:
                break
        if result is not None and "fired" not in lines:
            self.complain(what, "this call was not reached")
        self.judge(what, kind, result)


def make_stock():
    """The files that stories begin with."""
    os.mkdir("stock")
    os.chdir("stock")
    with open("base.raw", "wb") as file:
        file.write(b"b" * 65536 + bytes(65536 * 3))
    small = ("-o", "cluster_size=4096,table_size=2")
    must("qed-img", "create", "-q", *small, "disk.qed", "256K")
    must("qed-img", "create", "-q", *small, "-b", "base.raw", "-F", "raw",
         "over.qed", "256K")
    for image in ("disk.qed", "over.qed"):
        must("qemu-io", "-f", "qed", "-c", "write -P 3 4k 30k",
             "-c", "write -P 4 100k 3k", "-c", "write -z 60k 8k", image)
    shutil.copy("disk.qed", "dirty.qed")
    with open("dirty.qed", "r+b") as file:
        file.seek(16)
        file.write(b"\2")
    with open("disk.raw", "wb") as file:
        file.truncate(65536)
    must("nbdkit", "-U", "-", "--filter=blklogwrites", "file", "disk.raw",
         "log=disk.log", "--run",
         "qemu-io -f raw -c 'write -P 1 0 8k' -c flush "
         "-c 'write -P 2 4k 4k' -c 'discard 0 4k' $uri")
    with open("zero.raw", "wb") as file:
        file.truncate(65536)
    shutil.copy("zero.raw", "remote.raw")
    shutil.copy("zero.raw", "second.raw")
    for name, story in (("secondary", SECONDARY_STORY),
                        ("primary", PRIMARY_STORY), ("doubt", DOUBT_STORY)):
        with open(f"{name}.sh", "w", encoding="ascii") as file:
            file.write(story)
    with open("doubt.py", "w", encoding="ascii") as file:
        file.write(DOUBT)
    os.chdir("..")


# What may be otherwise after a fault, and why.
EXEMPT = {
    ("info", "stat"): "the size on disk is not known then, which it says",
}

SERVED = "timeout 5 qemu-io -f raw -c 'write -P 9 0 6k' -c 'write -P 8 40k 2k' " \
         "-c flush $uri >/dev/null"


def disk_values(name):
    """The first byte of some KiB."""
    with open(name, "rb") as file:
        content = file.read(16384)
    return tuple(content[kib * 1024] for kib in (0, 1, 2, 3, 8))


# A secondary: a primary writes 1, a checkpoint, 2, and its guest 3; then the
# disk is what the guest sees.
SECONDARY = ["nbdkit", "-U", "-", "--filter=replication", "file", "second.raw",
             "replication-mode=secondary", "replication-active=active.qed",
             "replication-hidden=hidden.qed", "replication-top-id=guest"]
# Without a failover a clean end is a stop, after which the disk is the
# primary's.  A failover was accepted if the file of this name exists.
FAILED_OVER = (1, 1, 3, 3, 0)
WAYPOINTS = ((0, 0, 0, 0, 0), (1, 1, 1, 0, 0), (1, 2, 1, 0, 0), FAILED_OVER)
# A client has a time limit of its own: where the server ends at once, nbdkit,
# which waits for the end of --run, listens on and takes nobody.
SECONDARY_STORY = """
set -e
put ()
{
  timeout 5 qemu-io -f raw -c "$1" "$2" >io 2>&1 || return 1
  ! grep -q failed io
}
guest="nbd+unix:///guest?socket=$unixsocket"
blkctl ./ctl replication-start
put 'write -P 1 0 3k' "$uri"
blkctl ./ctl replication-checkpoint
put 'write -P 2 1k 1k' "$uri"
put 'write -P 3 2k 2k' "$guest"
put 'read -P 1 0 2k' "$guest"
blkctl ./ctl replication-stop failover=true
: >accepted
while blkctl ./ctl query-replication | grep -q '"failover"'; do
  sleep 0.01
done
put 'read -P 3 2k 2k' "$guest"
"""

# A checkpoint of several disks, of which nobody knows whether it was made on
# all, and the one before is kept: then the primary writes on and the server is
# killed, or it is given up before, or a failover goes back.  Where the calls
# are counted, the server reports them when it ends.
DOUBT_STORY = """
set -e
put ()
{
  timeout 5 qemu-io -f raw -c "$1" 'nbd+unix:///?socket=sock' >io 2>&1 ||
    return 1
  ! grep -q failed io
}
nbdkit -f -U sock -P pid "${@:2}" replication-control=ctl 2>err &
signal=KILL
if [ -z "$FAULT_KIND" ]; then
  signal=USR2
fi
finish ()
{
  kill -$signal $! || :
  wait $! 2>/dev/null || [ $? -eq 137 ] || status=1
  cat err >&2
  exit $status
}
trap 'status=$?; trap - EXIT; finish' EXIT
until [ -e pid ]; do
  kill -0 $!
  sleep 0.01
done
blkctl ./ctl replication-start
put 'write -P 1 0 3k'
blkctl ./ctl replication-checkpoint
id=$(blkctl ./ctl query-replication | grep '"checkpoint-id"' | cut -d '"' -f 4)
put 'write -P 2 1k 1k'
put 'write -P 4 8k 1k'
python3 stock/doubt.py "$1"
while blkctl ./ctl replication-start 2>&1 | grep -q 'waits for'; do
  sleep 0.01
done
if [ "$1" != back ]; then
  put 'write -P 3 2k 1k'
else
  blkctl ./ctl replication-stop failover=true "checkpoint=$id"
  : >accepted
  while blkctl ./ctl query-replication | grep -q '"failover"'; do
    sleep 0.01
  done
fi
"""

# New, at the first checkpoint, and at the second one.
DOUBT_WAYPOINTS = ((0, 0, 0, 0, 0), (1, 1, 1, 0, 0), (1, 2, 1, 0, 4))

# One client makes a checkpoint and hangs up, or gives it up.
DOUBT = """
import json
import socket
import sys

STEP = "replication-checkpoint-"
control = socket.socket(socket.AF_UNIX)
control.connect("ctl")
lines = control.makefile("rw")
for step, arguments in (("qmp_capabilities", {}),
                        (STEP + "prepare", {"id": 8 * "beef"}),
                        (STEP + "commit", {"release": False}),
                        (STEP + "abort", {})):
    if step == STEP + "abort" and sys.argv[1] != "abort":
        break
    print(json.dumps({"execute": step, "arguments": arguments}), file=lines,
          flush=True)
    answer = {}
    while "return" not in answer:
        try:
            answer = json.loads(lines.readline() or '{"error": "hung up"}')
        except OSError as error:
            answer = {"error": error}
        if "error" in answer:
            raise SystemExit(f"ctl: {step}: {answer['error']}")
"""

# A primary whose remote comes, and goes on where the bitmap says.
PRIMARY_STORY = """
put ()
{
  timeout 5 qemu-io -f raw -c "$1" "$uri" >io 2>&1 || return 1
  ! grep -q failed io
}
trap 'kill $(cat remote.pid)' EXIT
nbdkit -U remote.sock -P remote.pid file remote.raw
set -e
put 'write -P 1 0 3k'
blkctl ./ctl replication-start
put 'write -P 2 1k 1k'
put 'write -z 2k 1k'
blkctl ./ctl replication-checkpoint
cmp zero.raw remote.raw
put 'write -P 3 2k 2k'
blkctl ./ctl replication-stop
cmp zero.raw remote.raw
"""

PLAY = "uri=$uri unixsocket=$unixsocket timeout 20 bash stock/{}.sh"


def doubt(end):
    """A story of a checkpoint in doubt."""
    return Story(f"doubt-{end}",
                 ["timeout", "20", "bash", "stock/doubt.sh", end,
                  *SECONDARY[3:]], ("second.raw",), ("second.raw",),
                 "nbdkit-replication", True,
                 [*SECONDARY, "replication-recover=rollback", "--run", "true"],
                 ("active.qed", "hidden.qed", "replication", "ctl"),
                 waypoints=DOUBT_WAYPOINTS, failed_over=DOUBT_WAYPOINTS[1])


def server(name, judged, *arguments):
    """A story of a server: what was acknowledged is there.  A request that
    fails is told to the client, so that may be all that is said of it."""
    return Story(name, ["nbdkit", "-U", "-", *arguments, "--run", SERVED],
                 judged, judged, f"nbdkit-{name}", True)


STORIES = [
    Story("create", ["qed-img", "create", "-q", "new.qed", "1M"], (),
          ("new.qed",)),
    Story("info", ["qed-img", "info", "over.qed"], ("over.qed", "base.raw")),
    Story("check", ["qed-img", "check", "disk.qed"], ("disk.qed",)),
    Story("repair", ["qed-img", "check", "-q", "-r", "all", "dirty.qed"],
          ("dirty.qed",), ("dirty.qed",)),
    Story("map", ["qed-img", "map", "over.qed"], ("over.qed", "base.raw")),
    Story("resize", ["qed-img", "resize", "-q", "disk.qed", "512K"],
          ("disk.qed",), ("disk.qed",)),
    Story("rebase", ["qed-img", "rebase", "-q", "-b", "", "over.qed"],
          ("over.qed", "base.raw"), ("over.qed",), varies=True),
    Story("commit", ["qed-img", "commit", "-q", "over.qed"],
          ("over.qed", "base.raw"), ("over.qed",), varies=True),
    Story("measure", ["qed-img", "measure", "-O", "qed", "disk.qed"],
          ("disk.qed",)),
    Story("empty", ["qed-img", "empty", "-q", "disk.qed"], ("disk.qed",),
          ("disk.qed",)),
    Story("convert", ["qed-img", "convert", "-q", "-O", "qed", "disk.qed",
                      "new.qed"], ("disk.qed",), ("new.qed",), varies=True),
    Story("log-info", ["logwrites", "info", "disk.log"], ("disk.log",)),
    Story("log-list", ["logwrites", "list", "disk.log"], ("disk.log",)),
    Story("log-replay", ["logwrites", "replay", "--log", "disk.log",
                         "--replay", "zero.raw"], ("disk.log", "zero.raw")),
    Story("log-verify", ["logwrites", "verify", "disk.log", "disk.raw"],
          ("disk.log", "disk.raw")),
    Story("log-plot", ["logwrites", "plot", "disk.log", "-o", "plot.svg"],
          ("disk.log",), names=("plot.svg",)),
    server("qed-plugin", ("disk.qed",), "qed", "disk.qed"),
    server("blklogwrites-filter", ("disk.raw",),
           "--filter=blklogwrites", "file", "disk.raw", "log=new.log"),
    server("logreplay-plugin", ("disk.log",), "--filter=cow", "logreplay",
           "disk.log"),
    Story("log-explore", ["logwrites", "explore", "--jobs=1", "--limit=3",
                          "--size=64K", "disk.log", "--", "true"],
          ("disk.log",), names=("/tmp", "could not be tried"), varies=True),
    Story("blkctl", ["nbdkit", "-U", "-", "--filter=blklogwrites", "file",
                     "disk.raw", "log=new.log", "log-control=ctl", "--run",
                     "blkctl ./ctl log-mark name=here && blkctl ./ctl "
                     "query-commands >commands"],
          ("disk.raw",), ("disk.raw",), "blkctl", True, names=("ctl",)),
    Story("secondary", [*SECONDARY, "replication-control=ctl", "--run",
                        PLAY.format("secondary")],
          ("second.raw",), ("second.raw",), "nbdkit-replication", True,
          [*SECONDARY, "replication-recover=rollback", "--run", "true"],
          ("active.qed", "hidden.qed", "replication", "ctl"),
          waypoints=WAYPOINTS, failed_over=FAILED_OVER),
    doubt("kill"),
    doubt("abort"),
    doubt("back"),
    Story("primary", ["nbdkit", "-U", "-", "--filter=replication", "file",
                      "zero.raw", "replication-mode=primary",
                      "replication-remote=nbd+unix:///?socket=remote.sock",
                      "replication-bitmap=map", "replication-control=ctl",
                      "--run", PLAY.format("primary")],
          ("zero.raw", "remote.raw"), ("zero.raw", "remote.raw"),
          "nbdkit-replication", True,
          names=("map", "remote", "replication", "ctl")),
]


VALGRIND = ("valgrind", "-q", "--error-exitcode=99", "--leak-check=full",
            "--errors-for-leak-kinds=definite")


def look_with_valgrind(story):
    """The complaints of memcheck about a command of a tool."""
    story.prepare()
    argv = [*VALGRIND, *story.argv]
    if story.program == "blkctl":       # which a server runs
        argv = [*story.argv[:-1], "set -e; blkctl () { "
                + " ".join(VALGRIND) + ' blkctl "$@"; }; ' + story.argv[-1]]
    result = run(argv)
    if result and result.returncode == 0:
        return []
    return [f"{story.name}: {result.stderr.decode() if result else 'hangs'}"]


def main():
    shim = os.path.abspath(sys.argv[1])
    valgrind = sys.argv[1] == "--valgrind"
    chosen = sys.argv[2:]
    sites = runs = 0
    counts = dict.fromkeys(KINDS, 0)
    complaints = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_stock()
        for story in STORIES:
            if chosen and story.name not in chosen:
                continue
            if valgrind:
                if not story.is_server or story.program == "blkctl":
                    complaints += look_with_valgrind(story)
                    runs += 1
                continue
            campaign = Campaign(story, shim)
            campaign.run()
            print(f"# {story.name}: {campaign.sites} calls, "
                  f"{campaign.runs} runs, {len(campaign.complaints)} "
                  "complaints", flush=True)
            sites += campaign.sites
            runs += campaign.runs
            complaints += campaign.complaints
            for kind, nr in campaign.counts.items():
                counts[kind] = counts.get(kind, 0) + nr
        os.chdir("/")
    if valgrind:
        print(f"# memcheck has seen {runs} commands")
    else:
        print(f"# {sites} calls failed, in {runs} runs, of",
              ", ".join(f"{nr} {kind}" for kind, nr in counts.items()))
    if not chosen and not valgrind:
        complaints += [f"{kind}: no story ever calls it"
                       for kind, nr in counts.items() if nr == 0]
    print("\n".join(complaints))
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
