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
is.  With --valgrind no call fails, but memcheck looks at each tool's command
for wrong accesses and leaks.  Exit status 1, after a line for each fault, if there was one; also if a
call that was counted did not come again, or a kind of a story never did.
"""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile

MEMORY = ("malloc", "calloc", "realloc", "strdup", "mmap", "pthread_create")
ERRORS = {
    "pread": (errno.EIO, errno.EINTR, 0),
    "pwrite": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR, 0),
    "pwritev": (errno.EIO, errno.ENOSPC, errno.EINTR, 0),
    "fallocate": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "fcntl": (errno.EIO, errno.EAGAIN),
    "send": (errno.EPIPE, errno.EINTR, 0),
    "recv": (errno.ECONNRESET, errno.EINTR, 0),
}
LATE = ("pwrite", "pwritev", "fallocate", "ftruncate", "fdatasync", "fsync")
TIMEOUT = 30

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
                 is_server=False):
        self.name = name
        self.argv = argv
        self.files = files
        self.judged = judged
        self.program = program or argv[0]
        self.is_server = is_server

    def prepare(self):
        """Files as they are before the command."""
        for name in os.listdir("."):
            if not os.path.isdir(name):
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


class Campaign:
    """All faults of a story."""

    def __init__(self, story, shim):
        self.story = story
        self.shim = shim
        self.sites = self.runs = 0
        self.complaints = []

    def complain(self, what, why):
        """A fault was found."""
        self.complaints.append(f"{self.story.name}: {what}: {why}")

    def measure(self):
        """A run without faults: what it does, and how often it calls."""
        story = self.story
        story.prepare()
        self.old = story.contents()
        self.clean, lines = story.play(self.shim, kind="")
        assert self.clean and self.clean.returncode == 0, (story.name,
                                                           self.clean)
        self.new = story.contents()
        counts = {}
        for line in lines:
            kind, nr = line.split()
            counts[kind] = max(counts.get(kind, 0), int(nr))
        return counts

    def judge_failure(self, what, kind, result):
        """The command says that it failed."""
        text = result.stderr.decode(errors="replace")
        names = [*self.story.files, *self.story.judged, *OTHER_NAMES]
        if not text.strip():
            self.complain(what, "it fails without a word")
        elif kind not in MEMORY and not any(n in text for n in names):
            self.complain(what, f"no name of a file: {text.strip()}")
        for name, now, old, new in zip(self.story.judged,
                                       self.story.contents(), self.old,
                                       self.new):
            # Of a server's requests each one may have been done or not.
            mixture = self.story.is_server or old == "missing"
            if now not in (old, new) and (now is None or not mixture):
                self.complain(what, f"{name} is neither old nor new")

    def judge(self, what, kind, result):
        """After a run with a fault."""
        if result is None:
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
        elif self.story.contents() != self.new:
            self.complain(what, "it succeeds without having done its work")

    def run(self):
        """All of them."""
        counts = self.measure()
        if not counts:
            self.complain("all", "it makes no call that could fail")
        for kind, nr in counts.items():
            for call in range(1 + AT % STEP, nr + 1, STEP):
                self.sites += 1
                for err in ERRORS.get(kind, (errno.EIO,)):
                    for late in (0, 1)[:1 + (kind in LATE and err != 0)]:
                        what = f"{kind} {call} of {nr}, errno {err}" + \
                            (", done all the same" if late else "")
                        result, lines = self.story.play(
                            self.shim, kind=kind, nr=call, errno=err,
                            late=late)
                        self.runs += 1
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
    os.chdir("..")


# What may be otherwise after a fault, and why.
EXEMPT = {
    ("info", "stat"): "the size on disk is not known then, which it says",
}

SERVED = "timeout 5 qemu-io -f raw -c 'write -P 9 0 6k' -c 'write -P 8 40k 2k' " \
         "-c flush $uri >/dev/null"


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
          ("over.qed", "base.raw"), ("over.qed",)),
    Story("commit", ["qed-img", "commit", "-q", "over.qed"],
          ("over.qed", "base.raw"), ("over.qed",)),
    Story("measure", ["qed-img", "measure", "-O", "qed", "disk.qed"],
          ("disk.qed",)),
    Story("empty", ["qed-img", "empty", "-q", "disk.qed"], ("disk.qed",),
          ("disk.qed",)),
    Story("convert", ["qed-img", "convert", "-q", "-O", "qed", "disk.qed",
                      "new.qed"], ("disk.qed",), ("new.qed",)),
    Story("log-info", ["logwrites", "info", "disk.log"], ("disk.log",)),
    Story("log-list", ["logwrites", "list", "disk.log"], ("disk.log",)),
    Story("log-replay", ["logwrites", "replay", "--log", "disk.log",
                         "--replay", "zero.raw"], ("disk.log", "zero.raw")),
    Story("log-verify", ["logwrites", "verify", "disk.log", "disk.raw"],
          ("disk.log", "disk.raw")),
    Story("log-plot", ["logwrites", "plot", "disk.log", "-o", "plot.svg"],
          ("disk.log",)),
    server("qed-plugin", ("disk.qed",), "qed", "disk.qed"),
    server("blklogwrites-filter", ("disk.raw",),
           "--filter=blklogwrites", "file", "disk.raw", "log=new.log"),
    server("logreplay-plugin", ("disk.log",), "--filter=cow", "logreplay",
           "disk.log"),
]


VALGRIND = ("valgrind", "-q", "--error-exitcode=99", "--leak-check=full",
            "--errors-for-leak-kinds=definite")


def look_with_valgrind(story):
    """The complaints of memcheck about a command of a tool."""
    story.prepare()
    result = run([*VALGRIND, *story.argv])
    if result and result.returncode == 0:
        return []
    return [f"{story.name}: {result.stderr.decode() if result else 'hangs'}"]


def main():
    shim = os.path.abspath(sys.argv[1])
    valgrind = sys.argv[1] == "--valgrind"
    chosen = sys.argv[2:]
    sites = runs = 0
    complaints = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_stock()
        for story in STORIES:
            if chosen and story.name not in chosen:
                continue
            if valgrind:
                if not story.is_server:
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
        os.chdir("/")
    print(f"# {sites} calls failed, in {runs} runs")
    print("\n".join(complaints))
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
